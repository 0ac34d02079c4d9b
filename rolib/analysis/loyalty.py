"""Loyalty: how closely a student's predictions follow its teacher's, right or wrong.

Label and probability loyalty: Xu et al. 2021, "Beyond Preserved Accuracy: Evaluating Loyalty and
Robustness of BERT Compression". Regression loyalty: Avram et al. 2022 (arXiv 2112.12650), whose
formula was not available to us; three definitions are given, each under its own name.
Taggers are counted per word.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rolib.evaluation import metrics
from rolib.evaluation.metrics import Scorer
from rolib.evaluation.predictions import Predictions, check_paired, distributions, row_entropies
from rolib.measures import Task

STS_RANGE = (0.0, 5.0)  # lowest and highest similarity score
REGRESSION = ["regression_loyalty", "regression_loyalty_rmse", "regression_loyalty_pearson"]
# A change of base scales the divergence by a constant, and the distance by its root.
BASE2 = math.sqrt(math.log(2))


def label_loyalty(teacher_labels: ArrayLike, student_labels: ArrayLike) -> float:
    """Share of units with equal labels (Xu et al. 2021). Shapes (N,), (N,) -> 0 to 1.

    ValueError for N = 0, unequal N, another shape or a missing label.
    """
    # dtype object: NumPy would turn a mixed list such as ["1", 1] into equal strings.
    teacher = np.asarray(teacher_labels, dtype=object)
    student = np.asarray(student_labels, dtype=object)
    if teacher.ndim != 1 or student.ndim != 1:
        raise ValueError(f"labels must have shape (N,), not {teacher.shape} and {student.shape}")
    metrics.check_lengths(teacher, student)
    if pd.isna(teacher).any() or pd.isna(student).any():
        raise ValueError("a label is missing (None or NaN)")
    return float(np.mean(teacher == student))


def probability_loyalty(
    teacher_probs: ArrayLike, student_probs: ArrayLike, base: float = math.e
) -> float:
    """Mean over rows of 1 - sqrt(JSD(p_teacher, p_student)). Shapes (N, C), (N, C) -> at most 1.

    JSD is the Jensen-Shannon divergence with logarithms to `base` (Xu et al. 2021). Equal rows give
    exactly 1. The least value is 1 - sqrt(ln 2) = 0.167 for the natural logarithm and 0 for base 2.
    Both sides must have the same label order. Each row is scaled to the sum 1.
    ValueError for N = 0, unequal shapes, NaN, negative values, a row sum that differs from 1 by
    more than 1e-3, or base <= 1.
    """
    metrics.check_lengths(np.asarray(teacher_probs), np.asarray(student_probs))
    if not base > 1:
        raise ValueError(f"base must be greater than 1, but is {base}")
    teacher = distributions("teacher", teacher_probs)
    student = distributions("student", student_probs)
    distances = _distances(teacher, student, (row_entropies(teacher) + row_entropies(student)) / 2)
    return float(np.mean(1 - distances / math.sqrt(math.log(base))))


def _distances(teacher: np.ndarray, student: np.ndarray, entropies: np.ndarray) -> np.ndarray:
    """sqrt(JSD) in nats of each row (N,) of two distributions (N, C).

    JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2. entropies (N,): the second term. Equal rows give
    exactly 0. Rounding may give a JSD below 0, which is clipped. ValueError for unequal C.
    """
    if teacher.shape != student.shape:
        labels = f"teacher {teacher.shape[1]}, student {student.shape[1]}"
        raise ValueError(f"different numbers of labels: {labels}")
    divergence = row_entropies(teacher, student) - entropies
    return np.sqrt(divergence.clip(0, math.log(2)))


def regression_loyalty(
    teacher_scores: ArrayLike, student_scores: ArrayLike, low: float, high: float
) -> float:
    """1 - mean |t - s| on scores scaled from [low, high] to [0, 1]. Shapes (N,), (N,) -> 0 to 1.

    Scores outside [low, high] are clipped first, since a model's output may leave the scale.
    ValueError for N = 0, unequal N, another shape, a score that is not finite, or low >= high.
    """
    teacher, student = _scaled(teacher_scores, student_scores, low, high)
    return float(1.0 - np.mean(np.abs(teacher - student)))


def regression_loyalty_pearson(teacher_scores: ArrayLike, student_scores: ArrayLike) -> float:
    """Pearson correlation of the scores, -1 to 1; 0.0 if a side is constant.

    The scores are neither scaled nor clipped. ValueError for N = 0, unequal N or a score that is
    not finite.
    """
    teacher, student = np.asarray(teacher_scores), np.asarray(student_scores)
    scorer = metrics.pearson_scorer(np.arange(len(teacher)), teacher, student)
    return metrics.at_ones(scorer, len(teacher))["pearson"]


def compare_predictions(task: Task, teacher: Predictions, student: Predictions) -> dict[str, float]:
    """Loyalty of a student to a teacher by name; names and errors as in `loyalty_scorer`."""
    return metrics.at_ones(loyalty_scorer(task, [teacher], student), teacher.num_examples)


def loyalty_scorer(task: Task, teachers: Sequence[Predictions], student: Predictions) -> Scorer:
    """Loyalty of one run of a student to runs of a teacher, as a function of example weights.

    It is the mean over the teacher's runs, of:
    regression: regression_loyalty, regression_loyalty_pearson and regression_loyalty_rmse (1 - the
    root of the mean squared difference) on the STS scale. Other tasks: label_loyalty,
    probability_loyalty (natural logarithm) and probability_loyalty_base2; and as shares of the
    units, the flips (Dutta et al. 2024, "Accuracy is Not All You Need"): lost (the teacher is
    right, the student wrong) and gained (the reverse).
    ner also: span_loyalty, the strict micro F1 of the student's spans against the teacher's (0.0 if
    neither has a span).
    Both sides must have the same label order, which is not checked. ValueError if they differ in
    units (it names the first such unit), gold labels or the number of labels.
    """
    for teacher in teachers:
        check_paired({"teacher's table": teacher, "student's table": student})
    if task.kind == "regression":
        return _score_scorer(teachers, student)
    pairs = [_label_sums(teacher, student) for teacher in teachers]
    sums = np.mean(pairs, axis=0)  # all pairs have the same units
    spans = [_span_sums(teacher, student) for teacher in teachers] if task.name == "ner" else []

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        """At weights (examples, R)."""
        units, *totals = sums @ weights
        labels, natural, lost, gained = (total / units for total in totals)
        found = _label_loyalties(labels, natural) | {"lost": lost, "gained": gained}
        if spans:
            both, all_spans = np.stack([pair @ weights for pair in spans], axis=1)
            found["span_loyalty"] = (2 * both / np.maximum(all_spans, 1)).mean(axis=0)
        return found

    return scores


def _score_scorer(teachers: Sequence[Predictions], student: Predictions) -> Scorer:
    """`loyalty_scorer` of a regression."""
    sides = [(student.examples, teacher.predicted, student.predicted) for teacher in teachers]
    pearsons = [metrics.pearson_scorer(*side) for side in sides]
    scaled = [_scaled(theirs, ours, *STS_RANGE) for _, theirs, ours in sides]
    gaps = [np.abs(theirs - ours) for theirs, ours in scaled]
    columns = [np.ones(len(student.units)), np.mean(gaps, axis=0), *(gap**2 for gap in gaps)]
    sums = metrics.example_sums(student.examples, *columns)

    def scores(weights: np.ndarray) -> dict[str, np.ndarray]:
        """At weights (examples, R)."""
        units, absolute, *squared = sums @ weights
        roots = [np.sqrt(total / units) for total in squared]
        pearson = [run(weights)["pearson"] for run in pearsons]
        values = 1 - absolute / units, 1 - np.mean(roots, axis=0), np.mean(pearson, axis=0)
        return dict(zip(REGRESSION, values, strict=True))

    return scores


def _label_sums(teacher: Predictions, student: Predictions) -> np.ndarray:
    """What `loyalty_scorer` sums over the units of each example: (columns, examples).

    The columns: units, equal labels, 1 - distance of the probabilities, lost, gained.
    """
    entropies = (teacher.entropies + student.entropies) / 2
    near = 1 - _distances(teacher.probabilities, student.probabilities, entropies)
    equal, theirs, ours = teacher.predicted == student.predicted, teacher.right, student.right
    columns = [np.ones(len(near)), equal, near, theirs & ~ours, ours & ~theirs]
    return metrics.example_sums(student.examples, *columns)


def _span_sums(teacher: Predictions, student: Predictions) -> np.ndarray:
    """The spans of each sentence that both sides found, and the spans of both: (2, sentences)."""
    pairs = list(zip(teacher.spans["predicted"], student.spans["predicted"], strict=True))
    return np.array([[len(a & b) for a, b in pairs], [len(a) + len(b) for a, b in pairs]], float)


def _label_loyalties(labels: Any, natural: Any, /) -> dict[str, Any]:
    """Label loyalty and probability loyalty in both bases."""
    plain = {"label_loyalty": labels, "probability_loyalty": natural}
    return plain | {"probability_loyalty_base2": 1 - (1 - natural) / BASE2}


def class_scorer(pairs: pd.DataFrame, classes: Sequence[str]) -> Scorer:
    """`hits` and `units` (classes, R) as a function of example weights (examples, R).

    pairs: one row a unit: example (its number), teacher_label, student_label. units: how often the
    teacher gives the class; hits: how often the student gives it to the same unit. Their ratio is
    the label loyalty of the class.
    """
    groups, examples = pd.Index(classes).get_indexer(pairs["teacher_label"]), pairs["example"]
    hit = (pairs["teacher_label"] == pairs["student_label"]).to_numpy()
    shape = (len(classes), examples.max() + 1)
    hits = metrics.counts(groups[hit], examples[hit], shape)
    units = metrics.counts(groups, examples, shape)
    return lambda weights: {"hits": hits @ weights, "units": units @ weights}


def chance_loyalty(
    task: Task, teacher: Predictions, student: Predictions, seed: int = 0, pairs: int = 2000
) -> dict[str, float]:
    """Expected loyalty if both models kept their answers but gave them to units at random.

    label_loyalty: sum_c p_teacher(c) p_student(c), the expected agreement of Cohen's kappa.
    regression: the mean over all N^2 pairs of a teacher's and a student's score (rmse: one minus
    the root of the mean square; Pearson: 0). Probabilities: the mean over at most `pairs` units,
    whose rows are shuffled by `seed`. span_loyalty has no chance level: without the text there are
    no span borders.
    """
    if task.kind == "regression":
        theirs, ours = _scaled(teacher.predicted, student.predicted, *STS_RANGE)
        gaps = np.abs(theirs[:, None] - ours)
        values = 1 - gaps.mean(), 1 - np.sqrt((gaps**2).mean()), 0.0
        return dict(zip(REGRESSION, values, strict=True))
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(side.units))[:pairs] for side in (teacher, student)]
    theirs, ours = teacher.probabilities[orders[0]], student.probabilities[orders[1]]
    labels = float(teacher.shares.mul(student.shares, fill_value=0).sum())
    return _label_loyalties(labels, probability_loyalty(theirs, ours))


def ensemble_predictions(models: Sequence[Predictions], labels: Sequence[str]) -> Predictions:
    """The predictions of an ensemble: the mean of its models' probabilities, or of their scores.

    labels: the label order of the task, as in scores.json; empty for STS. The first of equally
    probable labels counts. Teachers of different vocabularies can be combined here, because they
    share the labels of the task.
    ValueError unless all models predicted the same units and gold labels.
    """
    check_paired({f"table of model {number}": model for number, model in enumerate(models, 1)})
    if not labels:
        return replace(models[0], predicted=np.mean([model.predicted for model in models], axis=0))
    mean = np.stack([model.probabilities for model in models]).mean(axis=0, dtype=np.float64)
    predicted = np.array(labels, dtype=object)[mean.argmax(axis=1)]
    return replace(models[0], predicted=predicted, probabilities=mean)


def _scaled(teacher: ArrayLike, student: ArrayLike, low: float, high: float) -> np.ndarray:
    """Both sides' scores (2, N), clipped to [low, high] and scaled to [0, 1]."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low must be less than high, both finite, but they are {low} and {high}")
    return (np.clip(metrics.finite_pair(teacher, student), low, high) - low) / (high - low)
