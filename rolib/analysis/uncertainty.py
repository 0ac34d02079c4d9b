"""Uncertainty of scores: bootstrap intervals, p-values of paired differences, calibration.

The bootstrap draws test examples. An example is drawn as a whole: the words of a sentence stay
together. Equal numbers of examples and resamples and an equal seed give equal weights: all runs on
one test set are paired draw by draw. Draws keep the runs of a model apart, (distillation seeds,
fine-tuning seeds, resamples), and may be subtracted and averaged; `interval` and `p_value` then add
the variance between the seeds (`over_runs`).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rolib.evaluation.metrics import Scorer

CHUNK = 200  # resamples at a time: their weights and ranks fit into the processor's cache
Scores = dict[str, np.ndarray]  # score name -> (..., resamples)


def bootstrap(
    models: Mapping[Any, list[list[Scorer]]], examples: int, resamples: int = 10_000, seed: int = 0
) -> dict[Any, Scores]:
    """The scores of each run of each model in every resample of the test examples.

    models: nested lists of scorers, `[distillation seed][fine-tuning seed]`. Draws have the shape
    (distillation seeds D, fine-tuning seeds F, resamples). All runs see the same examples. The
    difference of two models pairs their seeds: seed with seed where the numbers are equal, and one
    with all where a model has one. A score may also be an array (..., resamples).

    ValueError unless each number of seeds is one or the same for all models.
    """
    _check_seeds(models)
    # The number of examples is part of the stream: test sets get unrelated resamples.
    weights = resample_weights(examples, resamples, (seed, examples, 0))

    parts: dict[Any, list[Scores]] = {model: [] for model in models}
    for start in range(0, resamples, CHUNK):
        chunk = weights[start : start + CHUNK].T.astype(np.float64, order="C")
        for model, runs in models.items():
            parts[model].append(_run_scores(runs, chunk))
    return {model: _joined(of_model) for model, of_model in parts.items()}


def _check_seeds(models: Mapping[Any, list[list[Scorer]]]) -> None:
    """Raise ValueError for runs that do not form a full grid, or grids that cannot be paired."""
    grids = {model: [len(by_seed) for by_seed in runs] for model, runs in models.items()}
    distilled = {len(grid) for grid in grids.values()} - {1}
    tuned = {number for grid in grids.values() for number in grid} - {1}
    uneven = any(len(set(grid)) != 1 or 0 in grid for grid in grids.values())
    if uneven or len(distilled) > 1 or len(tuned) > 1:
        needed = "models need one seed or equal numbers of distillation and of fine-tuning seeds"
        raise ValueError(f"{needed}, but these are those of their distillation seeds: {grids}")


def _run_scores(runs: list[list[Scorer]], weights: np.ndarray) -> Scores:
    """The scores (D, F, ..., R) of nested runs at weights (examples, R)."""
    found = [[scorer(weights) for scorer in by_seed] for by_seed in runs]
    return {name: np.array([[run[name] for run in by] for by in found]) for name in found[0][0]}


def _joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts, joined along the resamples."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def over_runs(draws: ArrayLike) -> np.ndarray:
    """Draws (R,) of the mean over all runs, from the draws (D, F, R) of the runs.

    Each kind of S > 1 seeds adds a variance: that between the means of its seeds, less what the
    test examples explain of it, divided by S. Few seeds estimate it badly. Therefore the draws
    follow Student's t distribution, with Satterthwaite's degrees of freedom: many where the
    examples have most of the variance, S - 1 where one kind of seeds has it. Draws (R,) of one run
    stay as they are: one seed shows no variance, and the statement is about this seed.

    Coverage of 95 % intervals in simulations (tests/benchmarks/coverage.py): 93 to 97 % where seeds
    have at most about the variance of the examples, and 98 % for two methods with 3 x 3 seeds
    whose single runs differ much; 92 to 97 % for two methods with 2 x 3 seeds, 92 where the
    distillation seeds have most of the variance; 94 to 96 % where one kind of seeds has all of it
    (multinomial weights of 3 seeds: 75 %), 95 to 97 % where both have it. A difference of single
    runs, which is due to neither kind, counts for both: 98 % or more where it has all the variance.
    ValueError if there is no draw, for another shape or a NaN.
    """
    runs = np.asarray(draws, dtype=np.float64)
    if runs.ndim not in (1, 3) or not runs.size or np.isnan(runs).any():
        raise ValueError("bootstrap draws must be (R,) or (D, F, R), at least one, without NaN")
    runs = runs.reshape((1, 1, -1) if runs.ndim == 1 else runs.shape)
    mean = runs.mean(axis=(0, 1))
    added = spread = 0.0  # the variance that seeds add; the variance of its estimate, halved
    for level in (0, 1):
        seeds = runs.mean(axis=1 - level) - mean  # (S, R)
        number = len(seeds)
        if number > 1:
            between = seeds.mean(axis=1).var(ddof=1)
            explained = seeds.var(axis=1).sum() / (number - 1)
            added += max(between - explained, 0) / number
            spread += (between / number) ** 2 / (number - 1)
    if not added:
        return mean
    degrees = (mean.var() + added) ** 2 / spread
    rng = np.random.default_rng((0, 0, 1))  # a stream that no resample_weights have
    gaps = mean - mean.mean() + np.sqrt(added) * rng.normal(size=len(mean))
    return mean.mean() + gaps * np.sqrt(degrees / rng.chisquare(degrees, len(mean)))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The ratio of two models' mean scores, as draws of runs: their mean is the ratio of the means.

    Draws (D, F, R). A run stands as far from the ratio as it moves it, to first order. `below` must
    have means above 0.
    """
    mean = below.mean(axis=(0, 1))
    kept = above.mean(axis=(0, 1)) / mean
    return kept + (above - kept * below) / mean


def interval(draws: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws (R,) or (D, F, R); see `over_runs`.

    low and high stand around the middle `level` of them.
    BCa intervals had no better coverage in simulations (Pearson, 300 pairs: 94 % for both). The
    interval of a macro-F1 over many rare classes is too low, because resamples lose classes.
    ValueError if there is no value or a NaN.
    """
    low, high = np.quantile(over_runs(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summary(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over all runs and its 95 % `interval`: value, low, high.

    values (D, F, 1 + R): the score of each run, then its bootstrap draws.
    """
    return float(values[..., 0].mean()), *interval(values[..., 1:])


def p_value(differences: ArrayLike) -> float:
    """Two-sided p-value of "no difference" from paired draws (R,) or (D, F, R); see `over_runs`.

    It is twice the share of the rarer sign; a difference of 0 counts for both signs. The observed
    sample counts as one more draw of both signs, so that p is never 0 (Davison and Hinkley 1997,
    4.4): with 10,000 resamples it is at least 2 / 10,001, so that Holm's correction can reach 0.05
    for at most 250 tests. Up to this one draw, p is below 1 - level exactly if `interval`
    excludes 0.
    ValueError if there is no difference or a NaN.
    """
    gaps = over_runs(differences)
    rarer = min((gaps <= 0).sum(), (gaps >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(gaps) + 1)))


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values (M,) adjusted for M tests, in the order given (Holm 1979).

    The probability of any false rejection (the family-wise error) is then at most alpha.
    ValueError for another shape or a number outside 0 to 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((0 <= p) & (p <= 1)).all():  # also refuses NaN
        raise ValueError("p-values must be a list of numbers from 0 to 1")
    rising = pd.Series(p).sort_values(kind="stable")
    return (rising * np.arange(len(p), 0, -1)).cummax().clip(upper=1).sort_index().to_numpy()


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Mean confidence and accuracy in bins of equal width, one row a bin.

    confidence (N,): the probability of the predicted label; correct (N,): whether the label is
    right. Columns: low, high, confidence, accuracy, count. A bin holds low < confidence <= high.
    An empty bin has count 0 and NaN for both means, which leaves a gap in a plot.
    ValueError for N = 0, unequal N, a confidence outside 0 to 1, a value of correct other than true
    and false, or bins < 1.
    """
    edges = np.linspace(0, 1, bins + 1)
    columns = {"confidence": np.asarray(confidence), "accuracy": np.asarray(correct)}
    units = pd.DataFrame(columns, dtype=np.float64)
    valid = units["confidence"].between(0, 1 + 1e-3) & units["accuracy"].isin((0, 1))
    if units.empty or not valid.all() or bins < 1:
        raise ValueError("expected confidences from 0 to 1, correct true or false, and bins >= 1")
    groups = units.groupby(np.digitize(units["confidence"], edges[1:-1], right=True))
    means = groups.mean().reindex(range(bins))
    count = groups.size().reindex(range(bins), fill_value=0)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **means, "count": count})


@lru_cache(maxsize=1)  # the examples of the latest measure, which all models share
def resample_weights(units: int, resamples: int, stream: tuple[int, ...]) -> np.ndarray:
    """How often each resample holds each unit: (resamples, units) uint16.

    Units are drawn with replacement; every row sums to `units`. stream: the seed of the generator.
    """
    rng = np.random.default_rng(stream)
    weights = np.empty((resamples, units), dtype=np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(units, size=units), minlength=units)
    weights.flags.writeable = False  # the cache returns the same array again
    return weights
