"""Scores under their true names: accuracy, macro-F1, span F1 of named entities, Pearson and Spearman correlation.

All scores are fractions (0 to 1; correlations -1 to 1); percent is a matter of display. Degenerate input has a defined
score and never a NaN or a warning: each function says which. Bad input is a ValueError.

The predictions of one run are a table with one row per scored unit (a word for taggers, an example otherwise):
`example` (id, str), `position` (word index from 0; 0 where there are no words), `gold` and `predicted` (label names;
floats from 0 to 5 for STS), `probabilities` (list of float32 over the task's labels in their order; empty for STS).
"""

import warnings
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

UNIT = ["example", "position"]  # the columns that together name one scored unit


def accuracy(gold: Sequence, predicted: Sequence) -> float:
    """Share of units whose predicted label is the gold one. Shapes (N,), (N,); ValueError for N = 0 or unequal N."""
    check_lengths(gold, predicted)
    return float(accuracy_score(np.asarray(gold), np.asarray(predicted)))


def macro_f1(gold: Sequence, predicted: Sequence) -> float:
    """Unweighted mean of the F1 of every label that occurs in gold or predicted (scikit-learn's default).

    A label without a true positive counts 0. Shapes (N,), (N,); ValueError for N = 0 or unequal N.
    """
    check_lengths(gold, predicted)
    return float(f1_score(np.asarray(gold), np.asarray(predicted), average="macro", zero_division=0))


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entity spans (start, end, class) of one sentence's BIO tags: words start to end - 1, like a Python slice.

    As in conlleval, an I- tag that does not continue a span of its own class starts a new one.
    ValueError for a tag that is not O, B-class or I-class.
    """
    found, start, current = set(), 0, None
    for position, tag in enumerate([*tags, "O"]):  # the last O closes a span that reaches the end
        prefix, _, label = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not label):
            raise ValueError(f"tag {tag!r} at word {position}: expected O, B-class or I-class")
        if prefix == "I" and label == current:
            continue
        if current is not None:
            found.add((start, position, current))
        start, current = position, label or None
    return found


def span_f1(gold_sentences: Sequence[Sequence[str]], predicted_sentences: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of entity spans over sentences of BIO tags.

    strict_f1_micro (with strict_precision_micro, strict_recall_micro): a span is right if its borders and class are.
    boundary_f1_micro: a span is right if its borders are, whatever its class (nervaluate's overall "exact").
    strict_f1_macro: mean of the strict F1 of each class that has a span in gold or predicted.
    boundary_f1_macro: the same mean of boundary F1, where a class has as precision the share of its predicted spans
    whose borders are those of a gold span of any class, and as recall the share of its gold spans whose borders were
    predicted with any class. (nervaluate 1.2 compares spans within one class there: its "exact" is just "strict".)

    A ratio with nothing below the line is 0, as in nervaluate and scikit-learn: with no span in gold nor predicted
    every score is 0.0, so silence is not rewarded. ValueError for no sentences, or unequal numbers or lengths of them.
    """
    check_lengths(gold_sentences, predicted_sentences)
    gold, predicted = set(), set()
    for number, (gold_tags, predicted_tags) in enumerate(zip(gold_sentences, predicted_sentences, strict=True)):
        if len(gold_tags) != len(predicted_tags):
            raise ValueError(f"sentence {number}: {len(gold_tags)} gold tags but {len(predicted_tags)} predicted tags")
        gold |= {(number, *span) for span in spans(gold_tags)}
        predicted |= {(number, *span) for span in spans(predicted_tags)}
    gold_borders, predicted_borders = _borders(gold), _borders(predicted)
    strict, boundary = [], []
    for label in sorted({span[3] for span in gold | predicted}):
        wanted, given = ({span for span in side if span[3] == label} for side in (gold, predicted))
        strict.append(_f1(_share(given, gold), _share(wanted, predicted)))
        boundary.append(_f1(_share(_borders(given), gold_borders), _share(_borders(wanted), predicted_borders)))
    precision, recall = _share(predicted, gold), _share(gold, predicted)
    return {
        "strict_f1_micro": _f1(precision, recall),
        "strict_f1_macro": fmean(strict or [0.0]),
        "boundary_f1_micro": _f1(_share(predicted_borders, gold_borders), _share(gold_borders, predicted_borders)),
        "boundary_f1_macro": fmean(boundary or [0.0]),
        "strict_precision_micro": precision,
        "strict_recall_micro": recall,
    }


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson correlation (SciPy); 0.0 by definition if an input is constant, also if only up to rounding, or N = 1.

    Shapes (N,), (N,); ValueError for N = 0, unequal N or a score that is not finite.
    """
    return _correlation(stats.pearsonr, gold, predicted)


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Spearman rank correlation, ties by mean rank (SciPy); 0.0 and errors as in `pearson`."""
    return _correlation(stats.spearmanr, gold, predicted)


def score_predictions(task, predictions: pd.DataFrame) -> dict[str, float]:
    """All scores of one prediction table for a task (rolib.tasks.Task; its .name and .kind are read).

    ner: the scores of `span_f1`; other taggers and classifiers: accuracy, macro_f1; regression: pearson, spearman.
    The order of the rows does not matter. ValueError for an empty table, a missing column or value, a doubled unit, or
    a NER sentence that lacks a word.
    """
    check_predictions(predictions, [*UNIT, "gold", "predicted"])
    if task.name == "ner":
        return span_f1(sentences(predictions, "gold"), sentences(predictions, "predicted"))
    measures = (pearson, spearman) if task.kind == "regression" else (accuracy, macro_f1)
    return {measure.__name__: measure(predictions["gold"], predictions["predicted"]) for measure in measures}


def check_predictions(predictions: pd.DataFrame, columns: list[str], table: str = "prediction table") -> None:
    """Refuse a table that is empty, lacks columns or values, or repeats units (ValueError)."""
    if missing := [name for name in columns if name not in predictions.columns]:
        raise ValueError(f"{table}: missing columns {', '.join(missing)}")
    if predictions.empty:
        raise ValueError(f"{table}: it has no rows, so there is nothing to score")
    lacking, doubled = predictions[columns].isna().any(axis=1), predictions.duplicated(UNIT)
    for problem, rows in [("missing value", lacking), ("more than one row", doubled)]:
        if rows.any():
            raise ValueError(f"{table}: {problem} for {unit_name(predictions.loc[rows, UNIT].iloc[0])}")


def check_lengths(first: Sequence, second: Sequence) -> None:
    """Refuse empty input and inputs of unequal length (ValueError)."""
    if len(first) != len(second):
        raise ValueError(f"the two sides have different lengths: {len(first)} and {len(second)}")
    if len(first) == 0:
        raise ValueError("both sides are empty, so there is nothing to score")


def finite_pair(first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both inputs as float64 arrays (N,); ValueError for another shape, N = 0, or a value that is not finite."""
    check_lengths(first, second)
    pair = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if pair[0].ndim != 1 or pair[1].ndim != 1:
        raise ValueError(f"scores must have shape (N,), but have {pair[0].shape} and {pair[1].shape}")
    if not np.isfinite(pair).all():
        raise ValueError("scores must be finite numbers, but there is a NaN or an infinite one")
    return pair


def sentences(predictions: pd.DataFrame, column: str) -> list[list[str]]:
    """One column as a list per sentence, sorted by position; ValueError if positions are not 0, 1, 2, ..."""
    table = predictions.sort_values(UNIT)
    gaps = table["position"] != table.groupby("example").cumcount()
    if gaps.any():
        raise ValueError(f"a word is missing before {unit_name(table.loc[gaps, UNIT].iloc[0])}")
    return table.groupby("example", sort=False)[column].agg(list).tolist()


def unit_name(unit: Sequence) -> str:
    """How errors name the unit (example, position)."""
    example, position = unit
    return f"example {example!r}, position {position}"


def _borders(numbered_spans: set[tuple]) -> set[tuple]:
    return {span[:3] for span in numbered_spans}  # (sentence, start, end) without the class


def _share(some: set, right: set) -> float:
    return len(some & right) / len(some) if some else 0.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _correlation(method, gold: Sequence[float], predicted: Sequence[float]) -> float:
    gold, predicted = finite_pair(gold, predicted)
    if len(gold) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", stats.DegenerateDataWarning)  # SciPy decides what is constant
        try:
            return float(method(gold, predicted).statistic)
        except stats.DegenerateDataWarning:
            return 0.0
