"""Loyalty: how closely a student's predictions follow its teacher's, whether or not the teacher is right.

Label and probability loyalty: Xu et al. 2021, "Beyond Preserved Accuracy: Evaluating Loyalty and Robustness of BERT
Compression". Regression loyalty is new in Avram et al. 2022 (arXiv 2112.12650), whose formula we could not consult:
three sensible readings are given, each under its own name. Taggers are counted per word.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from rolib.evaluation.metrics import (
    Scorer,
    at_ones,
    check_lengths,
    counts,
    finite_pair,
    pearson_scorer,
    span_scorer,
)
from rolib.evaluation.predictions import (
    Predictions,
    check_paired,
    distributions,
    row_entropies,
    unit_name,
)

STS_RANGE = (0.0, 5.0)  # lowest and highest similarity score
BASE2 = math.sqrt(
    math.log(2)
)  # a change of base only scales the divergence, and its root the distance


def label_loyalty(teacher_labels: Sequence, student_labels: Sequence) -> float:
    """Share of units where the student gives the teacher's label (Xu et al. 2021). Shapes (N,), (N,) -> 0 to 1.

    ValueError for N = 0, unequal N, another shape or a missing label.
    """
    check_lengths(teacher_labels, student_labels)
    # dtype object: NumPy would turn a mixed list such as ["1", 1] into equal strings
    teacher, student = (
        np.asarray(teacher_labels, dtype=object),
        np.asarray(student_labels, dtype=object),
    )
    if teacher.ndim != 1 or student.ndim != 1:
        raise ValueError(
            f"labels must have shape (N,), but have {teacher.shape} and {student.shape}"
        )
    if pd.isna(teacher).any() or pd.isna(student).any():
        raise ValueError("a label is missing (None or NaN)")
    return float(np.mean(teacher == student))


def probability_loyalty(
    teacher_probs: Sequence, student_probs: Sequence, base: float = math.e
) -> float:
    """Mean over rows of 1 - sqrt(JSD(p_teacher, p_student)) (Xu et al. 2021). Shapes (N, C), (N, C) -> at most 1.

    JSD is the Jensen-Shannon divergence with logarithms to `base`. Identical rows give exactly 1; the least value is
    1 - sqrt(ln 2) = 0.167 for the natural logarithm and 0 for base 2. Both sides share one label order. Rows are scaled
    to the sum 1. ValueError for N = 0, unequal shapes, NaN, negative values, row sums off 1 by over 1e-3, or base <= 1.
    """
    check_lengths(teacher_probs, student_probs)
    if not base > 1:
        raise ValueError(f"base must be greater than 1, but is {base}")
    teacher, student = (
        distributions("teacher", teacher_probs),
        distributions("student", student_probs),
    )
    if teacher.shape != student.shape:
        raise ValueError(
            f"different numbers of labels: teacher {teacher.shape[1]}, student {student.shape[1]}"
        )
    distances = _distances((teacher, student), (row_entropies(teacher), row_entropies(student)))
    return float(np.mean(1 - distances / math.sqrt(math.log(base))))


def _distances(
    sides: tuple[np.ndarray, np.ndarray], entropies: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """sqrt(JSD) in nats of each row (N,) of two distributions (N, C), whose own entropies (N,) are known.

    JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2: exactly 0 for equal rows; rounding may push it below 0.
    """
    divergence = row_entropies(*sides) - sum(entropies) / 2
    return np.sqrt(divergence.clip(0, math.log(2)))


def regression_loyalty(
    teacher_scores: Sequence, student_scores: Sequence, low: float, high: float
) -> float:
    """1 - mean |t - s| on scores scaled from [low, high] to [0, 1]. Shapes (N,), (N,) -> 0 to 1.

    A model's raw output may leave the scale: it is clipped to [low, high] first, as a user of the scale would read it.
    ValueError for N = 0, unequal N, another shape, a score that is not finite, or low >= high.
    """
    teacher, student = _scaled(teacher_scores, student_scores, low, high)
    return float(1.0 - np.mean(np.abs(teacher - student)))


def regression_loyalty_rmse(
    teacher_scores: Sequence, student_scores: Sequence, low: float, high: float
) -> float:
    """1 - RMSE on the same clipped and scaled scores, 0 to 1. Errors as `regression_loyalty`."""
    teacher, student = _scaled(teacher_scores, student_scores, low, high)
    return float(1.0 - np.sqrt(np.mean((teacher - student) ** 2)))


def regression_loyalty_pearson(teacher_scores: Sequence, student_scores: Sequence) -> float:
    """Pearson correlation of the scores as they are (no scale, no clipping), -1 to 1; constant scores give 0.0."""
    return at_ones(
        pearson_scorer(np.arange(len(teacher_scores)), teacher_scores, student_scores),
        len(teacher_scores),
    )["pearson"]


def compare_predictions(task, teacher: Predictions, student: Predictions) -> dict[str, float]:
    """Loyalty of a student to a teacher; see `loyalty_scorer`."""
    return at_ones(loyalty_scorer(task, teacher, student), teacher.num_examples)


def loyalty_scorer(task, teacher: Predictions, student: Predictions) -> Scorer:
    """Loyalty of a student to a teacher as a function of example weights.

    regression: regression_loyalty, regression_loyalty_pearson, regression_loyalty_rmse on the STS scale. Otherwise:
    label_loyalty, probability_loyalty (natural logarithm), probability_loyalty_base2; for ner also span_loyalty, the
    strict micro F1 of the student's spans against the teacher's (0.0 if neither has a span). ValueError, which names the first
    unit at fault, if they cover different units, or differ in their gold labels or in the number of labels. One label order is the caller's promise.
    """
    check_paired({"teacher's table": teacher, "student's table": student})
    regression, more = task.kind == "regression", None
    if regression:
        gaps = np.abs(np.subtract(*_scaled(teacher.predicted, student.predicted, *STS_RANGE)))
        values, more = (
            (gaps, gaps**2),
            pearson_scorer(teacher.examples, teacher.predicted, student.predicted),
        )
    else:
        sides = teacher.probabilities, student.probabilities
        if sides[0].shape != sides[1].shape:
            unit, sizes = unit_name(teacher.units.iloc[0]), (sides[1].shape[1], sides[0].shape[1])
            raise ValueError(
                f"{unit} has {sizes[0]} probabilities in the student's table, but the teacher's has {sizes[1]}"
            )
        values = (
            teacher.predicted == student.predicted,
            1 - _distances(sides, (teacher.entropies, student.entropies)),
        )
        if task.name == "ner":
            more = span_scorer(teacher.spans["predicted"], student.spans["predicted"])
    sums = np.stack(
        [
            np.bincount(teacher.examples, weights=value)
            for value in (*values, np.ones(len(teacher.gold)))
        ]
    )

    def scores(weights):
        """At weights (examples, R)."""
        *totals, units = sums @ weights
        means = [total / units for total in totals]
        if regression:
            loyalty = {
                "regression_loyalty": 1 - means[0],
                "regression_loyalty_pearson": more(weights)["pearson"],
            }
            return loyalty | {"regression_loyalty_rmse": 1 - np.sqrt(means[1])}
        loyalty = dict(zip(("label_loyalty", "probability_loyalty"), means, strict=True))
        loyalty["probability_loyalty_base2"] = 1 - (1 - means[1]) / BASE2
        return loyalty | ({"span_loyalty": more(weights)["strict_f1_micro"]} if more else {})

    return scores


def class_scorer(
    examples: np.ndarray, teacher_labels: np.ndarray, student_labels: np.ndarray, classes: Sequence
) -> Scorer:
    """Label loyalty by the teacher's label: `hits` and `units`, (classes, R) each; their ratio is a class's loyalty."""
    groups, shape = (
        pd.Index(classes).get_indexer(teacher_labels),
        (len(classes), examples.max() + 1),
    )
    hit = teacher_labels == student_labels
    hits, units = counts(groups[hit], examples[hit], shape), counts(groups, examples, shape)
    return lambda weights: {"hits": hits @ weights, "units": units @ weights}


def chance_loyalty(
    task, teacher: Predictions, student: Predictions, seed: int = 0, pairs: int = 2000
) -> dict[str, float]:
    """What `loyalty_scorer` would give if the student answered as often as it does with each answer, but blindly.

    label_loyalty: the expected agreement sum_c p_teacher(c) p_student(c) of Cohen's kappa. regression: the mean over all N^2
    pairs of a teacher's and a student's score (rmse: one minus its root mean square; Pearson: 0). Probabilities: the mean over
    at most `pairs` units, the student's rows shuffled by `seed`. Spans have none, since a blind tagger has no borders.
    """
    if task.kind == "regression":
        ours, theirs = _scaled(teacher.predicted, student.predicted, *STS_RANGE)
        gaps = np.abs(ours[:, None] - theirs)
        rmse = float(1 - np.sqrt((gaps**2).mean()))
        return {
            "regression_loyalty": float(1 - gaps.mean()),
            "regression_loyalty_pearson": 0.0,
            "regression_loyalty_rmse": rmse,
        }
    shares = [pd.Series(side.predicted).value_counts(normalize=True) for side in (teacher, student)]
    rng, size = np.random.default_rng(seed), min(len(teacher.units), pairs)
    natural = probability_loyalty(
        *(
            side.probabilities[rng.permutation(len(side.units))[:size]]
            for side in (teacher, student)
        )
    )
    by_label = float(shares[0].mul(shares[1], fill_value=0).sum())
    base2 = 1 - (1 - natural) / BASE2
    return {
        "label_loyalty": by_label,
        "probability_loyalty": natural,
        "probability_loyalty_base2": base2,
    }


def ensemble_predictions(models: Sequence[Predictions], labels: Sequence[str]) -> Predictions:
    """The predictions of the ensemble of several models: the mean of their probabilities, or of their STS scores.

    labels: the task's label order, as in scores.json; none for STS; of equally probable labels the first counts. ValueError
    unless all predicted the same units and gold labels. Teachers of different vocabularies meet here, since task labels are common to all.
    """
    check_paired({f"table of model {number}": model for number, model in enumerate(models, 1)})
    if not labels:
        return replace(models[0], predicted=sum(model.predicted for model in models) / len(models))
    mean = sum(model.probabilities.astype(np.float64) for model in models) / len(models)
    return replace(
        models[0], predicted=np.array(labels, dtype=object)[mean.argmax(axis=1)], probabilities=mean
    )


def _scaled(teacher: Sequence, student: Sequence, low: float, high: float) -> np.ndarray:
    """Both sides' scores (2, N), clipped and scaled from [low, high] to [0, 1]."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low must be less than high, both finite, but they are {low} and {high}")
    return (np.clip(finite_pair(teacher, student), low, high) - low) / (high - low)
