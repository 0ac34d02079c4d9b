"""How far a score may be off: bootstrap over test examples and fine-tuning seeds, paired differences, calibration.

The tables are the prediction tables of rolib.metrics. Examples are resampled whole: the words of a sentence stay
together. A scorer reduces a table once to counts per example; its scores in all resamples are then products of those
counts and the weights, which say how often a resample holds an example. Equal numbers of examples, resamples and seed
give equal weights: results of two calls over one test set are paired draw by draw and may be subtracted.
"""

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import sparse

from rolib import metrics
from rolib.loyalty import STS_RANGE, row_probability_loyalty
from rolib.metrics import UNIT

CHUNK = 200  # resamples at a time, so that their weights and ranks stay in the processor's cache
SPAN_SCORES = ["strict_f1_micro", "strict_f1_macro", "boundary_f1_micro", "boundary_f1_macro"]
SPAN_SCORES += ["strict_precision_micro", "strict_recall_micro"]
Tables = Mapping[int, pd.DataFrame]  # fine-tuning seed -> prediction table
Scores = dict[str, np.ndarray]  # score name -> (resamples,)
Scorer = Callable[[np.ndarray], Scores]  # of weights (examples in sorted order, resamples), whole numbers as float64


def bootstrap_scores(task, tables: Tables, resamples: int = 10_000, seed: int = 0) -> Scores:
    """Every score of `metrics.score_predictions` in every resample, as the mean over fine-tuning seeds.

    A resample draws seeds and, the same for all seeds, examples, both with replacement (the pigeonhole bootstrap, Owen
    2007). It is cautious where runs differ little, as it counts what is peculiar to one run's example up to three times,
    and bold where they differ much, as S seeds show (S - 1) / S of their variance, and one seed none. A score that is
    degenerate in a resample is what rolib.metrics defines. ValueError for bad tables, unequal units or unequal gold.
    """
    return _bootstrap([scorer(task, table) for table in aligned(tables)], tables, resamples, seed)


def bootstrap_difference(task, student: Tables, teacher: Tables, resamples: int = 10_000, seed: int = 0) -> Scores:
    """Student's minus teacher's scores, both in the same resamples of examples and of seeds.

    ValueError as `bootstrap_scores`, or unless both models have the same seeds, units and gold.
    """
    aligned(student, teacher)
    ours, theirs = (bootstrap_scores(task, tables, resamples, seed) for tables in (student, teacher))
    return {name: ours[name] - theirs[name] for name in ours}


def bootstrap_loyalty(task, teacher: Tables, student: Tables, resamples: int = 10_000, seed: int = 0) -> Scores:
    """The measures of `loyalty_scorer` in every resample, runs compared seed by seed; ValueError as the difference."""
    tables = aligned(teacher, student)
    pairs = zip(tables[: len(teacher)], tables[len(teacher) :], strict=True)
    return _bootstrap([loyalty_scorer(task, *pair) for pair in pairs], teacher, resamples, seed)


def bootstrap(
    models: Mapping[Hashable, list[Scorer]], examples: int, resamples: int = 10_000, seed: int = 0
) -> dict[Hashable, Scores]:
    """The scores of several models, each with one scorer a fine-tuning seed, all in the same resamples; see `bootstrap_scores`.

    A score may be an array (..., resamples). ValueError unless all models have the same number of seeds.
    """
    if len(runs := {len(scorers) for scorers in models.values()}) != 1:
        raise ValueError(f"each model needs the same number of fine-tuning seeds, but they have {sorted(runs)}")
    # A stream of its own for each number of examples: equal streams would couple unrelated test sets.
    weights = resample_weights(examples, resamples, (seed, examples, 0))
    shares = resample_weights(*runs, resamples, (seed, examples, 1)).T / next(iter(runs))
    parts = {model: [] for model in models}

    def score(model: Hashable, part: slice, chunk: np.ndarray) -> None:
        runs_scores = [scorer(chunk) for scorer in models[model]]
        means = {
            name: sum(share[part] * run[name] for share, run in zip(shares, runs_scores, strict=True)) for name in runs_scores[0]
        }
        parts[model].append(means)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, resamples, CHUNK):
            part = slice(start, start + CHUNK)
            chunk = weights[part].T.astype(np.float64, order="C")
            list(pool.map(lambda model: score(model, part, chunk), models))
    return {
        model: {name: np.concatenate([chunk[name] for chunk in chunks], axis=-1) for name in chunks[0]}
        for model, chunks in parts.items()
    }


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
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def reliability(probabilities: Sequence, correct: Sequence[bool], bins: int = 10) -> pd.DataFrame:
    """Confidence against accuracy in bins of equal width: low, high, confidence (mean), accuracy, count; one row a bin.

    Confidence is the highest probability of a row (N, C); correct (N,) says whether that label is right. A bin holds
    low < confidence <= high. An empty bin has count 0 and NaN as means, so that a plot leaves a gap.
    ValueError for N = 0, other shapes, values outside 0 to 1, or bins < 1.
    """
    rows, correct = np.asarray(probabilities, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if rows.ndim != 2 or correct.shape != rows.shape[:1] or rows.size == 0:
        raise ValueError(f"expected probabilities (N, C) and correct (N,), but the shapes are {rows.shape} and {correct.shape}")
    if not ((-1e-6 <= rows) & (rows <= 1 + 1e-3)).all() or not np.isin(correct, (0, 1)).all() or bins < 1:
        raise ValueError("expected probabilities from 0 to 1, correct as true or false, and at least one bin")
    edges, confidence = np.linspace(0, 1, bins + 1), rows.max(axis=1)
    units = pd.DataFrame({"confidence": confidence, "accuracy": correct})
    groups = units.groupby(np.digitize(confidence, edges[1:-1], right=True))
    means = groups[["confidence", "accuracy"]].mean().reindex(range(bins))
    count = groups.size().reindex(range(bins), fill_value=0)
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **means, "count": count})


def expected_calibration_error(probabilities: Sequence, correct: Sequence[bool], bins: int = 10) -> float:
    """Mean over units of their bin's |accuracy - confidence|, 0 to 1 (Guo et al. 2017); input as `reliability`."""
    table = reliability(probabilities, correct, bins)
    gaps = (table["accuracy"] - table["confidence"]).abs()
    return float((gaps * table["count"]).sum() / table["count"].sum())  # an empty bin's NaN is left out of the sum


@lru_cache(maxsize=2)  # the examples' and the seeds' weights of the latest task: models share them
def resample_weights(units: int, resamples: int, stream: tuple[int, ...]) -> np.ndarray:
    """How often each resample holds each unit, drawn with replacement: (resamples, units) uint16, row sums = units."""
    rng, weights = np.random.default_rng(stream), np.empty((resamples, units), dtype=np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(units, size=units), minlength=units)
    weights.flags.writeable = False  # the cache hands out the same array again
    return weights


def scorer(task, table: pd.DataFrame) -> Scorer:
    """The scores of `metrics.score_predictions` as a function of example weights (examples, R); same errors."""
    [table] = aligned({0: table})
    if task.name == "ner":
        return span_scorer(metrics.sentences(table, "gold"), metrics.sentences(table, "predicted"))
    examples = pd.factorize(table["example"])[0]
    make = correlation_scorer if task.kind == "regression" else label_scorer
    return make(examples, table["gold"].to_numpy(), table["predicted"].to_numpy())


def loyalty_scorer(task, teacher: pd.DataFrame, student: pd.DataFrame) -> Scorer:
    """The measures of `loyalty.compare_predictions` as a function of example weights (examples, R).

    ValueError as `bootstrap_difference`.
    """
    teacher, student = aligned({0: teacher}, {0: student})
    examples, labels = pd.factorize(teacher["example"])[0], [table["predicted"].to_numpy() for table in (teacher, student)]
    if task.kind == "regression":
        gaps = np.subtract(*(np.clip(side.astype(np.float64), *STS_RANGE) for side in labels)) / (STS_RANGE[1] - STS_RANGE[0])
        values = {"gap": np.abs(gaps), "square": gaps**2}
    else:
        probabilities = (np.stack(list(table["probabilities"])) for table in (teacher, student))
        values = {"label_loyalty": labels[0] == labels[1], "probability_loyalty": row_probability_loyalty(*probabilities)}
    sums, units = np.stack([np.bincount(examples, weights=value) for value in values.values()]), np.bincount(examples)
    spans = span_scorer(*(metrics.sentences(table, "predicted") for table in (teacher, student))) if task.name == "ner" else None

    def scores(weights):
        means = dict(zip(values, sums @ weights / (units @ weights), strict=True))
        if task.kind == "regression":
            pearson = _correlation(weights[examples], *(side.astype(np.float64)[:, None] for side in labels))
            rmse = 1 - np.sqrt(means["square"])
            return {
                "regression_loyalty": 1 - means["gap"],
                "regression_loyalty_pearson": pearson,
                "regression_loyalty_rmse": rmse,
            }
        # a change of base only scales the divergence, and its root the distance
        means["probability_loyalty_base2"] = 1 - (1 - means["probability_loyalty"]) / math.sqrt(math.log(2))
        return means | ({"span_loyalty": spans(weights)["strict_f1_micro"]} if spans else {})

    return scores


def class_scorer(examples: np.ndarray, teacher_labels: np.ndarray, student_labels: np.ndarray, classes: Sequence) -> Scorer:
    """Label loyalty by the teacher's label: `hits` and `units`, (classes, R) each; their ratio is a class's loyalty."""
    groups, shape = pd.Index(classes).get_indexer(teacher_labels), (len(classes), examples.max() + 1)
    hit = teacher_labels == student_labels
    hits, units = _counts(groups[hit], examples[hit], shape), _counts(groups, examples, shape)
    return lambda weights: {"hits": hits @ weights, "units": units @ weights}


def label_scorer(examples: np.ndarray, gold: np.ndarray, predicted: np.ndarray) -> Scorer:
    """Accuracy and macro-F1 of units (N,) that belong to examples numbered from 0."""
    labels = pd.factorize(np.concatenate([gold, predicted]))[0]
    hit, shape = labels[: len(gold)] == labels[len(gold) :], (labels.max() + 1, examples.max() + 1)
    hits = _counts(labels[: len(gold)][hit], examples[hit], shape)
    occurrences = _counts(labels, np.tile(examples, 2), shape)  # in gold and in predicted

    def scores(weights):
        right, found = hits @ weights, occurrences @ weights
        return {"accuracy": 2 * right.sum(axis=0) / found.sum(axis=0), "macro_f1": _class_mean(_ratio(2 * right, found), found)}

    return scores


def span_scorer(gold_sentences: Sequence[Sequence[str]], predicted_sentences: Sequence[Sequence[str]]) -> Scorer:
    """The scores of `metrics.span_f1`, the examples being the sentences."""
    rows = []  # class, what it counts as, sentence
    for sentence, tags in enumerate(zip(gold_sentences, predicted_sentences, strict=True)):
        gold, predicted = map(metrics.spans, tags)
        for kind, these, others in [(0, gold, predicted), (3, predicted, gold)]:
            borders = {span[:2] for span in others}
            for span in these:  # counted as a span; as one whose borders are right; as one that is right
                kinds = [kind] + [kind + 1] * (span[:2] in borders) + [kind + 2] * (span in others)
                rows += [(span[2], counted_as, sentence) for counted_as in kinds]
    labels, names = pd.factorize(np.array([row[0] for row in rows], dtype=object))
    kinds, places = np.array([row[1:] for row in rows], dtype=int).reshape(-1, 2).T
    counts = _counts(6 * labels + kinds, places, (6 * len(names), len(gold_sentences)))

    def scores(weights):
        sums = (counts @ weights).reshape(len(names), 6, weights.shape[1])
        by_class, total = np.moveaxis(sums, 1, 0), sums.sum(axis=0)
        macro = [_class_mean(f1, by_class[0] + by_class[3]) for f1 in _span_f1(by_class)]
        shares = _ratio(total[5], total[3]), _ratio(total[2], total[0])  # precision, recall
        strict, boundary = zip(_span_f1(total), macro, strict=True)
        return dict(zip(SPAN_SCORES, [*strict, *boundary, *shares], strict=True))

    return scores


def correlation_scorer(examples: np.ndarray, gold: np.ndarray, predicted: np.ndarray) -> Scorer:
    """Pearson and Spearman correlation of units (N,) that belong to examples numbered from 0."""
    sides = metrics.finite_pair(gold, predicted)
    groups = [np.unique(side, return_inverse=True)[1] for side in sides]  # equal scores, in rising order
    members = [_counts(group, np.arange(len(group)), (group.max() + 1, len(group))) for group in groups]

    def scores(weights):
        weights, ranks = weights[examples], []
        for group, member in zip(groups, members, strict=True):
            held = member @ weights
            ranks.append((np.cumsum(held, axis=0) - (held - 1) / 2)[group])  # the mean rank of `held` equal scores
        pearson = _correlation(weights, *(side[:, None] for side in sides))
        return {"pearson": pearson, "spearman": _correlation(weights, *ranks)}

    return scores


def _bootstrap(scorers: list[Scorer], tables: Tables, resamples: int, seed: int) -> Scores:
    examples = next(iter(tables.values()))["example"].nunique()
    return bootstrap({"model": scorers}, examples, resamples, seed)["model"]


def aligned(*models: Tables) -> list[pd.DataFrame]:
    """The tables of one or more models in order of model and seed, their rows in order of units; refused if unlike."""
    if any(set(model) != set(models[0]) for model in models) or not models[0]:
        raise ValueError(f"each model needs the same fine-tuning seeds, but they are {[sorted(model) for model in models]}")
    tables = []
    for model in models:
        for seed in sorted(model):
            metrics.check_predictions(model[seed], [*UNIT, "gold", "predicted"], f"prediction table of seed {seed}")
            tables.append(model[seed].sort_values(UNIT, ignore_index=True))
            for column in [*UNIT, "gold"]:
                if not np.array_equal(tables[-1][column].to_numpy(), tables[0][column].to_numpy()):
                    raise ValueError(f"the prediction tables (seed {seed}) differ in their column {column}")
    return tables


def _checked(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError("bootstrap values must be a list of at least one number without NaN")
    return values


def _counts(rows, columns, shape: tuple[int, int]) -> sparse.csr_array:
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()  # equal positions add up


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def _class_mean(values: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    return _ratio(values.sum(axis=0), (occurrences > 0).sum(axis=0))  # classes that do not occur have the value 0


def _span_f1(counts: np.ndarray) -> list[np.ndarray]:
    """Strict and boundary F1 of the six counts (6, ..., R) of `span_scorer`."""
    gold, borders_found, found, predicted, borders_right, right = counts
    pairs = [(_ratio(right, predicted), _ratio(found, gold)), (_ratio(borders_right, predicted), _ratio(borders_found, gold))]
    return [_ratio(2 * precision * recall, precision + recall) for precision, recall in pairs]


def _correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of x and y, (N, R) or (N, 1), in each column of weights (N, R); 0 where one is constant."""
    total, norms, sides = weights.sum(axis=0), [], []
    for side in (x, y):
        mean = (weights * side).sum(axis=0) / total
        sides.append(side - mean)
        norm = np.sqrt((weights * sides[-1] ** 2).sum(axis=0))
        norms.append(np.where(norm <= np.finfo(float).eps ** 0.75 * np.abs(mean), 0, norm))  # SciPy's bound for constant
    return np.clip(_ratio((weights * sides[0] * sides[1]).sum(axis=0), norms[0] * norms[1]), -1, 1)
