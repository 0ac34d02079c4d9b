"""How far a score may be off: bootstrap over test examples and fine-tuning seeds, paired differences, calibration.

Examples are resampled whole: the words of a sentence stay together. Equal numbers of examples, resamples and seed give equal
weights: results of two calls over one test set are paired draw by draw and may be subtracted.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from rolib.evaluation.metrics import Scorer

CHUNK = 200  # resamples at a time, so that their weights and ranks stay in the processor's cache
Scores = dict[str, np.ndarray]  # score name -> (resamples,)


def bootstrap(
    models: Mapping[Hashable, list[Scorer]], examples: int, resamples: int = 10_000, seed: int = 0
) -> dict[Hashable, Scores]:
    """The scores of several models, each with one scorer a fine-tuning seed, all in the same resamples: the mean over seeds.

    A resample draws seeds and, the same for all seeds, examples, both with replacement (the pigeonhole bootstrap, Owen
    2007). It is cautious where runs differ little, as it counts what is peculiar to one run's example up to three times,
    and bold where they differ much, as S seeds show (S - 1) / S of their variance, and one seed none. A score may be an
    array (..., resamples). ValueError unless all models have the same number of seeds.
    """
    if len(runs := {len(scorers) for scorers in models.values()}) != 1:
        raise ValueError(
            f"each model needs the same number of fine-tuning seeds, but they have {sorted(runs)}"
        )
    # A stream of its own for each number of examples: equal streams would couple unrelated test sets.
    weights = resample_weights(examples, resamples, (seed, examples, 0))
    shares = resample_weights(*runs, resamples, (seed, examples, 1)).T / next(iter(runs))

    def part(start: int) -> dict[Hashable, Scores]:
        chunk = weights[start : start + CHUNK].T.astype(np.float64, order="C")
        share = shares[:, start : start + CHUNK]
        return {
            model: _weighted([scorer(chunk) for scorer in scorers], share)
            for model, scorers in models.items()
        }

    parts = in_threads(part, range(0, resamples, CHUNK))
    return {
        model: {
            name: np.concatenate([part[model][name] for part in parts], axis=-1)
            for name in parts[0][model]
        }
        for model in models
    }


def _weighted(runs: list[Scores], shares: np.ndarray) -> Scores:
    """The mean of the scores of runs with shares (runs, resamples)."""
    return {
        name: sum(share * run[name] for share, run in zip(shares, runs, strict=True))
        for name in runs[0]
    }


def in_threads(function: Callable, *arguments: Iterable) -> list:
    """What `map` gives, computed on all cores."""
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):  # threads within threads would wait for each other
        return list(pool.map(function, *arguments))


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values (R,): the middle `level` of them. ValueError for none, or a NaN.

    BCa intervals covered no better in simulations (Pearson, 300 pairs: 94 % both). A macro-F1 over many rare classes falls
    in resamples, which lose classes: its interval lies low.
    """
    low, high = np.quantile(_checked(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of "no difference" from paired bootstrap differences (R,): twice the rarer sign's share.

    It is below 1 - level just where `interval` excludes 0 (up to one draw: the observed sample counts as a draw of
    both signs, so p is never 0; Davison and Hinkley 1997, 4.4). A difference of 0 counts for both signs.
    """
    differences = _checked(differences)
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(differences) + 1)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values (M,) adjusted for M tests, in the given order: the family-wise error is at most alpha (Holm 1979)."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((0 <= p) & (p <= 1)).all():  # also refuses NaN
        raise ValueError("p-values must be a list of numbers from 0 to 1")
    rising = pd.Series(p).sort_values(kind="stable")
    return (rising * np.arange(len(p), 0, -1)).cummax().clip(upper=1).sort_index().to_numpy()


def reliability(
    confidence: Sequence[float], correct: Sequence[bool], bins: int = 10
) -> pd.DataFrame:
    """Confidence against accuracy in bins of equal width: low, high, confidence (mean), accuracy, count; one row a bin.

    confidence (N,): the probability of the label given; correct (N,): whether it is right. A bin holds
    low < confidence <= high. An empty bin has count 0 and NaN as means, so that a plot leaves a gap.
    ValueError for N = 0, unequal N, a confidence outside 0 to 1, correct beyond true and false, or bins < 1.
    """
    edges = np.linspace(0, 1, bins + 1)
    units = pd.DataFrame(
        {"confidence": np.asarray(confidence), "accuracy": np.asarray(correct)}, dtype=np.float64
    )
    plausible = units["confidence"].between(0, 1 + 1e-3) & units["accuracy"].isin((0, 1))
    if units.empty or not plausible.all() or bins < 1:
        raise ValueError(
            "expected confidences from 0 to 1, correct as true or false, and at least one bin"
        )
    groups = units.groupby(np.digitize(units["confidence"], edges[1:-1], right=True))
    means, count = (
        groups.mean().reindex(range(bins)),
        groups.size().reindex(range(bins), fill_value=0),
    )
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **means, "count": count})


@lru_cache(maxsize=2)  # the examples' and the seeds' weights of the latest task: models share them
def resample_weights(units: int, resamples: int, stream: tuple[int, ...]) -> np.ndarray:
    """How often each resample holds each unit, drawn with replacement: (resamples, units) uint16, row sums = units."""
    rng, weights = np.random.default_rng(stream), np.empty((resamples, units), dtype=np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(units, size=units), minlength=units)
    weights.flags.writeable = False  # the cache hands out the same array again
    return weights


def _checked(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError("bootstrap values must be a list of at least one number without NaN")
    return values
