"""Scores under their true names: accuracy, macro-F1, span F1 of named entities, Pearson and Spearman correlation.

All scores are fractions (0 to 1; correlations -1 to 1); percent is a matter of display. Degenerate input has a defined
score and never a NaN or a warning: each function says which. Bad input is a ValueError.

A *scorer* gives scores as a function of example weights: with ones it gives the scores of the test set, with the counts of
a bootstrap resample those of the resample (rolib.analysis.uncertainty). It reduces predictions to counts per example once, so that
thousands of resamples are products of two matrices.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from rolib.evaluation.predictions import Predictions

SPAN_SCORES = ["strict_f1_micro", "strict_f1_macro", "boundary_f1_micro", "boundary_f1_macro"]
SPAN_SCORES += ["strict_precision_micro", "strict_recall_micro"]
ROUNDING = 1e-13  # a spread below this share of the squares is what rounding leaves of a constant
# Of weights (examples, R), whole numbers as float64: score name -> (R,).
Scorer = Callable[[np.ndarray], dict[str, np.ndarray]]


def score_predictions(task, predictions: pd.DataFrame) -> dict[str, float]:
    """All scores of one prediction table for a task (rolib.measures.Task; its .name and .kind are read).

    ner: see `span_scorer`; other taggers and classifiers: `label_scorer`; regression: `correlation_scorer`. The order of the
    rows does not matter. ValueError for a table that `Predictions` refuses, or a NER sentence that lacks a word.
    """
    run = Predictions.of(predictions)
    return at_ones(scorer(task, run), run.num_examples)


def at_ones(score: Scorer, examples: int) -> dict[str, float]:
    """What a scorer gives for the test set as it is: every example once."""
    return {name: value.item() for name, value in score(np.ones((examples, 1))).items()}


def scorer(task, run: Predictions) -> Scorer:
    """The scores of a run for a task as a function of example weights."""
    if task.name == "ner":
        return span_scorer(**run.spans)
    make = correlation_scorer if task.kind == "regression" else label_scorer
    return make(run.examples, run.gold, run.predicted)


def label_scorer(examples: np.ndarray, gold: Sequence, predicted: Sequence) -> Scorer:
    """Accuracy and macro-F1 of units (N,) that belong to examples numbered from 0. ValueError for N = 0 or unequal N.

    Macro-F1: the unweighted mean of the F1 of every label that occurs in gold or predicted (scikit-learn's default); a label
    without a true positive counts 0.
    """
    check_lengths(gold, predicted)
    labels = pd.factorize(
        np.concatenate([np.asarray(gold, dtype=object), np.asarray(predicted, dtype=object)])
    )[0]
    hit, shape = labels[: len(gold)] == labels[len(gold) :], (labels.max() + 1, examples.max() + 1)
    hits = counts(labels[: len(gold)][hit], examples[hit], shape)
    occurrences = counts(labels, np.tile(examples, 2), shape)  # in gold and in predicted

    def scores(weights):
        """At weights (examples, R)."""
        right, found = hits @ weights, occurrences @ weights
        return {
            "accuracy": 2 * right.sum(axis=0) / found.sum(axis=0),
            "macro_f1": _class_mean(_ratio(2 * right, found), found),
        }

    return scores


def span_scorer(gold: Sequence[set], predicted: Sequence[set]) -> Scorer:
    """Scores of the entity spans of sentences, which are the examples. ValueError for no sentences or unequal numbers.

    strict_f1_micro (with strict_precision_micro, strict_recall_micro): a span is right if its borders and class are.
    boundary_f1_micro: a span is right if its borders are, whatever its class (nervaluate's overall "exact").
    strict_f1_macro: mean of the strict F1 of each class that has a span in gold or predicted.
    boundary_f1_macro: the same mean of boundary F1, where a class has as precision the share of its predicted spans
    whose borders are those of a gold span of any class, and as recall the share of its gold spans whose borders were
    predicted with any class. (nervaluate 1.2 compares spans within one class there: its "exact" is just "strict".)

    A ratio with nothing below the line is 0, as in nervaluate and scikit-learn: with no span in gold nor predicted
    every score is 0.0, so silence is not rewarded.
    """
    check_lengths(gold, predicted)
    rows = []  # class, what it counts as, sentence
    for sentence, (wanted, given) in enumerate(zip(gold, predicted, strict=True)):
        borders = [{span[:2] for span in side} for side in (wanted, given)]
        borders_found = [span for span in wanted if span[:2] in borders[1]]
        borders_right = [span for span in given if span[:2] in borders[0]]
        for kind, spans in enumerate((wanted, borders_found, given, borders_right, wanted & given)):
            rows += [(span[2], kind, sentence) for span in spans]
    names, labels = np.unique([row[0] for row in rows], return_inverse=True)
    kinds, places = np.array([row[1:] for row in rows], dtype=int).reshape(-1, 2).T
    found = counts(5 * labels + kinds, places, (5 * len(names), len(gold)))

    def scores(weights):
        """At weights (examples, R)."""
        sums = (found @ weights).reshape(len(names), 5, weights.shape[1])
        by_class, total = np.moveaxis(sums, 1, 0), sums.sum(axis=0)
        macro = [_class_mean(f1, by_class[0] + by_class[2]) for f1 in _span_f1(by_class)]
        strict, boundary = zip(_span_f1(total), macro, strict=True)
        precision, recall = _ratio(total[4], total[2]), _ratio(total[4], total[0])
        return dict(zip(SPAN_SCORES, [*strict, *boundary, precision, recall], strict=True))

    return scores


def correlation_scorer(
    examples: np.ndarray, gold: Sequence[float], predicted: Sequence[float]
) -> Scorer:
    """Pearson and Spearman correlation (ties by mean rank) of units (N,) that belong to examples numbered from 0.

    0.0 by definition if a side is constant, also if only up to rounding, or N = 1. ValueError for N = 0, unequal N or a value
    that is not finite.
    """
    sides, pearson = finite_pair(gold, predicted), pearson_scorer(examples, gold, predicted)
    groups = [
        np.unique(side, return_inverse=True)[1] for side in sides
    ]  # equal scores, in rising order
    members = [counts(group, examples, (group.max() + 1, examples.max() + 1)) for group in groups]

    def scores(weights):
        """At weights (examples, R)."""
        units, gaps = weights[examples], []
        for group, member in zip(groups, members, strict=True):
            held = member @ weights
            ranks = np.cumsum(held, axis=0) - (held - 1) / 2  # the mean rank of `held` equal scores
            gaps.append((ranks - (units.sum(axis=0) + 1) / 2)[group])
        squares = [
            np.einsum("nr,nr,nr->r", units, *pair) for pair in (gaps, gaps[:1] * 2, gaps[1:] * 2)
        ]
        return pearson(weights) | {
            "spearman": _ratio(squares[0], np.sqrt(squares[1] * squares[2])).clip(-1, 1)
        }

    return scores


def pearson_scorer(
    examples: np.ndarray, gold: Sequence[float], predicted: Sequence[float]
) -> Scorer:
    """The Pearson correlation alone; see `correlation_scorer`."""
    sides = finite_pair(gold, predicted)
    means = sides.mean(axis=1, keepdims=True)
    x, y = sides - means
    # Sums over each example, so that a resample's moments are one product; centred, so that rounding costs nothing.
    moments = np.stack(
        [
            np.bincount(examples, weights=values)
            for values in (np.ones(len(x)), x, y, x * x, y * y, x * y)
        ]
    )

    def scores(weights):
        """At weights (examples, R)."""
        totals = moments @ weights
        units, sums, squares, cross = totals[0], totals[1:3], totals[3:5], totals[5]
        spread = squares - sums**2 / units
        # SciPy's bound for a constant, and what rounding leaves of one
        least = np.maximum(
            (np.finfo(float).eps ** 0.75 * (means + sums / units)) ** 2, ROUNDING * squares
        )
        norms = np.sqrt(np.where(spread <= least, 0, spread))
        return {
            "pearson": _ratio(cross - sums[0] * sums[1] / units, norms[0] * norms[1]).clip(-1, 1)
        }

    return scores


def check_lengths(first: Sequence, second: Sequence) -> None:
    """Refuse empty input and inputs of unequal length (ValueError)."""
    if len(first) != len(second):
        raise ValueError(f"the two sides have different lengths: {len(first)} and {len(second)}")
    if len(first) == 0:
        raise ValueError("both sides are empty, so there is nothing to score")


def finite_pair(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    """Both inputs as one float64 array (2, N); ValueError for another shape, N = 0, or a value that is not finite."""
    check_lengths(first, second)
    sides = [np.asarray(side, dtype=np.float64) for side in (first, second)]
    if sides[0].ndim != 1 or sides[1].ndim != 1:
        raise ValueError(
            f"scores must have shape (N,), but have {sides[0].shape} and {sides[1].shape}"
        )
    if not np.isfinite(sides).all():
        raise ValueError("scores must be finite numbers, but there is a NaN or an infinite one")
    return np.stack(sides)


def counts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """How often each pair of a row and a column occurs."""
    return sparse.coo_array(
        (np.ones(len(rows)), (rows, columns)), shape
    ).tocsr()  # equal positions add up


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def _class_mean(values: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    return _ratio(
        values.sum(axis=0), (occurrences > 0).sum(axis=0)
    )  # classes that do not occur have the value 0


def _span_f1(found: np.ndarray) -> list[np.ndarray]:
    """Strict and boundary F1 of the five counts (5, ..., R) of `span_scorer`."""
    gold, borders_found, predicted, borders_right, right = found
    pairs = [
        (_ratio(right, predicted), _ratio(right, gold)),
        (_ratio(borders_right, predicted), _ratio(borders_found, gold)),
    ]
    return [_ratio(2 * precision * recall, precision + recall) for precision, recall in pairs]
