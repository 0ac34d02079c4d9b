"""Scores: accuracy, macro-F1, F1 of entity spans, Pearson and Spearman correlation.

All scores are fractions: 0 to 1, correlations -1 to 1. Every input that has no natural score has a
defined one: no score is NaN, and no warning is raised. Each function states its rule. Bad input is
a ValueError.

A *scorer* is a function from example weights to scores. Weights of one give the scores of the test
set. The counts of a bootstrap resample give the scores of that resample
(rolib.analysis.uncertainty). A scorer reduces the predictions to counts per example once. After
that, thousands of resamples are one product of two matrices.
"""

from collections.abc import Callable, Sequence, Sized

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse

from rolib.evaluation.predictions import Predictions
from rolib.measures import Task

SPAN_SCORES = ["strict_f1_micro", "strict_f1_macro", "boundary_f1_micro", "boundary_f1_macro"]
SPAN_SCORES += ["strict_precision_micro", "strict_recall_micro"]
# Scores with a spread below this share of the sum of squares are constant up to rounding errors.
ROUNDING = 1e-13
# From weights (examples, R), whole numbers as float64, to score name -> (R,).
Scorer = Callable[[np.ndarray], dict[str, np.ndarray]]


def score_predictions(task: Task, predictions: pd.DataFrame) -> dict[str, float]:
    """All scores of one prediction table; the order of its rows does not matter.

    ner: see `span_scorer`. Other taggers and classifiers: `label_scorer`. Regression:
    `correlation_scorer`. ValueError for a table that `Predictions` refuses, or for a NER sentence
    that lacks a word before another.
    """
    run = Predictions.of(predictions)
    return at_ones(scorer(task, run), run.num_examples)


def at_ones(score: Scorer, examples: int) -> dict[str, float]:
    """The scores of the test set itself: every example has weight one."""
    return {name: value.item() for name, value in score(np.ones((examples, 1))).items()}


def scorer(task: Task, run: Predictions) -> Scorer:
    """The scores of a run for a task as a function of example weights."""
    if task.name == "ner":
        return span_scorer(**run.spans)
    make = correlation_scorer if task.kind == "regression" else label_scorer
    return make(run.examples, run.gold, run.predicted)


def label_scorer(examples: np.ndarray, gold: ArrayLike, predicted: ArrayLike) -> Scorer:
    """Accuracy and macro-F1 of units (N,); `examples` (N,) is the number of each unit's example.

    Macro-F1 is the unweighted mean of the F1 of every label that occurs in gold or predicted
    (scikit-learn's default). A label without a true positive has F1 0. ValueError for N = 0 or
    unequal N.
    """
    sides = [np.asarray(side, dtype=object) for side in (gold, predicted)]
    check_lengths(*sides)
    labels, names = pd.factorize(np.concatenate(sides))
    gold_labels, predicted_labels = np.split(labels, 2)
    shape = (len(names), examples.max() + 1)
    hit = gold_labels == predicted_labels
    hits = counts(gold_labels[hit], examples[hit], shape)
    occurrences = counts(labels, np.tile(examples, 2), shape)  # in gold and in predicted

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        right, found = hits @ weights, occurrences @ weights
        accuracy = 2 * right.sum(axis=0) / found.sum(axis=0)
        return {"accuracy": accuracy, "macro_f1": _class_mean(_ratio(2 * right, found), found)}

    return scores


def span_scorer(gold: Sequence[set], predicted: Sequence[set]) -> Scorer:
    """Scores of entity spans; an example is a sentence, given as its set of spans.

    strict_f1_micro, strict_precision_micro, strict_recall_micro: a span is right if its borders and
    its class are right.
    boundary_f1_micro: a span is right if its borders are right (nervaluate's overall "exact").
    strict_f1_macro: mean of the strict F1 of every class that has a span in gold or predicted.
    boundary_f1_macro: the same mean of boundary F1. The precision of a class is the share of its
    predicted spans whose borders are those of a gold span of any class. Its recall is the share of
    its gold spans whose borders were predicted with any class. (nervaluate 1.2 compares spans
    within one class there: its "exact" equals its "strict".)

    A ratio with denominator 0 is 0, as in nervaluate and scikit-learn. So without any span in gold
    or predicted every score is 0.0. ValueError for no sentences or unequal numbers of sentences.
    """
    check_lengths(gold, predicted)
    rows: list[tuple[str, int, int]] = []  # class, which of the five counts, sentence
    for sentence, (wanted, given) in enumerate(zip(gold, predicted, strict=True)):
        gold_borders, predicted_borders = ({span[:2] for span in side} for side in (wanted, given))
        borders_found = [span for span in wanted if span[:2] in predicted_borders]
        borders_right = [span for span in given if span[:2] in gold_borders]
        for kind, spans in enumerate((wanted, borders_found, given, borders_right, wanted & given)):
            rows += [(span[2], kind, sentence) for span in spans]
    names, labels = np.unique([row[0] for row in rows], return_inverse=True)
    kinds, sentences = np.array([row[1:] for row in rows], dtype=int).reshape(-1, 2).T
    found = counts(kinds * len(names) + labels, sentences, (5 * len(names), len(gold)))

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        by_class = (found @ weights).reshape(5, len(names), weights.shape[1])
        total = by_class.sum(axis=1)
        micro, occurrences = _span_f1(total), by_class[0] + by_class[2]
        macro = [_class_mean(f1, occurrences) for f1 in _span_f1(by_class)]
        values = [micro[0], macro[0], micro[1], macro[1]]
        values += [_ratio(total[4], total[2]), _ratio(total[4], total[0])]
        return dict(zip(SPAN_SCORES, values, strict=True))

    return scores


def correlation_scorer(examples: np.ndarray, gold: ArrayLike, predicted: ArrayLike) -> Scorer:
    """Pearson and Spearman correlation (mean rank for ties) of units (N,).

    `examples` (N,) is the number of each unit's example. A correlation is 0.0 if one side is
    constant (also if only up to rounding errors) or if N = 1. ValueError for N = 0, unequal N or a
    value that is not finite.
    """
    pearson = pearson_scorer(examples, gold, predicted)
    # Units with equal scores form a group; groups are numbered in rising order of the score.
    groups = [np.unique(side, return_inverse=True)[1] for side in finite_pair(gold, predicted)]
    members = [counts(group, examples, (group.max() + 1, examples.max() + 1)) for group in groups]

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        """At weights (examples, R)."""
        gaps, squares = [], []
        for group, member in zip(groups, members, strict=True):
            sizes = member @ weights
            # Twice the distance of the mean rank from the middle one. It is computed in place,
            # because new arrays of this size cost more than the sums.
            gap = np.cumsum(sizes, axis=0)
            units = gap[-1].copy()
            gap *= 2
            gap -= sizes
            gap -= units
            gaps.append(gap[group])
            # The sum of their squares with ties (Kendall 1945).
            squares.append((units**3 - np.einsum("gr,gr,gr->r", sizes, sizes, sizes)) / 3)
        cross = np.einsum("nr,nr,nr->r", weights[examples], *gaps)
        spearman = _ratio(cross, np.sqrt(squares[0] * squares[1]))
        return pearson(weights) | {"spearman": spearman.clip(-1, 1)}

    return scores


def pearson_scorer(examples: np.ndarray, gold: ArrayLike, predicted: ArrayLike) -> Scorer:
    """The Pearson correlation alone; see `correlation_scorer`."""
    sides = finite_pair(gold, predicted)
    means = sides.mean(axis=1, keepdims=True)
    x, y = sides - means  # centred, which keeps rounding errors small
    moments = example_sums(examples, np.ones(len(x)), x, y, x * x, y * y, x * y)

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        """At weights (examples, R)."""
        totals = moments @ weights
        units, sums, squares, cross = totals[0], totals[1:3], totals[3:5], totals[5]
        spread = squares - sums**2 / units
        # A side is constant below SciPy's bound, or below what rounding leaves of a constant.
        scipy_bound = (np.finfo(float).eps ** 0.75 * (means + sums / units)) ** 2
        constant = spread <= np.maximum(scipy_bound, ROUNDING * squares)
        norms = np.sqrt(np.where(constant, 0, spread))
        pearson = _ratio(cross - sums[0] * sums[1] / units, norms[0] * norms[1])
        return {"pearson": pearson.clip(-1, 1)}

    return scores


def check_lengths(first: Sized, second: Sized) -> None:
    """Raise ValueError for empty inputs and for inputs of unequal length."""
    if len(first) != len(second) or len(first) == 0:
        lengths = f"{len(first)} and {len(second)}"
        raise ValueError(f"the two sides are empty or have different lengths: {lengths}")


def finite_pair(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Both inputs as one float64 array (2, N).

    ValueError for another shape, unequal N, N = 0, or a value that is not finite.
    """
    x, y = (np.asarray(side, dtype=np.float64) for side in (first, second))
    check_lengths(x, y)
    if x.ndim != 1 or y.ndim != 1 or not np.isfinite([x, y]).all():
        raise ValueError("scores must be finite numbers in arrays of shape (N,)")
    return np.stack([x, y])


def example_sums(examples: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Sums (K, examples) of K arrays of values (N,) over the units of each example.

    Multiplied by example weights (examples, R), they are the sums of a resample.
    """
    return np.stack([np.bincount(examples, weights=column) for column in values])


def counts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """How often each pair of a row and a column occurs."""
    # tocsr() sums the ones of equal positions.
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The ratio, and 0 where the denominator is 0."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def _class_mean(values: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    """The mean (R,) over the classes that occur; values (C, R) are 0 for the other classes."""
    return _ratio(values.sum(axis=0), (occurrences > 0).sum(axis=0))


def _span_f1(found: np.ndarray) -> list[np.ndarray]:
    """Strict and boundary F1 from the five counts (5, ..., R) of `span_scorer`."""
    gold, borders_found, predicted, borders_right, right = found
    strict = (_ratio(right, predicted), _ratio(right, gold))
    boundary = (_ratio(borders_right, predicted), _ratio(borders_found, gold))
    return [_ratio(2 * p * r, p + r) for p, r in (strict, boundary)]  # precision and recall
