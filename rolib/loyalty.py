"""Loyalty: how closely a student's predictions follow its teacher's, whether or not the teacher is right.

Label and probability loyalty: Xu et al. 2021, "Beyond Preserved Accuracy: Evaluating Loyalty and Robustness of BERT
Compression". Regression loyalty is new in Avram et al. 2022 (arXiv 2112.12650), whose formula we could not consult:
three sensible readings are given, each under its own name. Taggers are counted per word.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon

from rolib import metrics
from rolib.metrics import UNIT, check_lengths, unit_name

STS_RANGE = (0.0, 5.0)  # lowest and highest similarity score
CHUNK = 256  # rows of probabilities at a time, so that they stay in the processor's cache


def label_loyalty(teacher_labels: Sequence, student_labels: Sequence) -> float:
    """Share of units where the student gives the teacher's label (Xu et al. 2021). Shapes (N,), (N,) -> 0 to 1.

    ValueError for N = 0, unequal N, another shape or a missing label.
    """
    check_lengths(teacher_labels, student_labels)
    # dtype object: NumPy would turn a mixed list such as ["1", 1] into equal strings
    teacher, student = np.asarray(teacher_labels, dtype=object), np.asarray(student_labels, dtype=object)
    if teacher.ndim != 1 or student.ndim != 1:
        raise ValueError(f"labels must have shape (N,), but have {teacher.shape} and {student.shape}")
    if pd.isna(teacher).any() or pd.isna(student).any():
        raise ValueError("a label is missing (None or NaN)")
    return float(np.mean(teacher == student))


def probability_loyalty(teacher_probs: Sequence, student_probs: Sequence, base: float = math.e) -> float:
    """Mean over rows of 1 - sqrt(JSD(p_teacher, p_student)) (Xu et al. 2021). Shapes (N, C), (N, C) -> at most 1.

    JSD is the Jensen-Shannon divergence with logarithms to `base`. Identical rows give exactly 1; the least value is
    1 - sqrt(ln 2) = 0.167 for the natural logarithm and 0 for base 2. Both sides share one label order. Rows are scaled
    to the sum 1. ValueError for N = 0, unequal shapes, NaN, negative values, row sums off 1 by over 1e-3, or base <= 1.
    """
    return float(np.mean(row_probability_loyalty(teacher_probs, student_probs, base)))


def row_probability_loyalty(teacher_probs: Sequence, student_probs: Sequence, base: float = math.e) -> np.ndarray:
    """Each row's share (N,) of the mean that is `probability_loyalty`, whose errors it has."""
    check_lengths(teacher_probs, student_probs)
    teacher, student = _distributions("teacher", teacher_probs), _distributions("student", student_probs)
    if teacher.shape != student.shape:
        raise ValueError(f"different numbers of labels: teacher {teacher.shape[1]}, student {student.shape[1]}")
    if not base > 1:
        raise ValueError(f"base must be greater than 1, but is {base}")

    def distances(start: int) -> np.ndarray:
        part = slice(start, start + CHUNK)
        with np.errstate(invalid="ignore"):
            # SciPy's distance already is the square root of the divergence: no second one
            return jensenshannon(teacher[part], student[part], axis=1, base=base)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        distance = np.concatenate(list(pool.map(distances, range(0, len(teacher), CHUNK))))
    # a divergence that rounding pushed below 0 has no root (NaN): its distance is 0
    distance = np.clip(np.nan_to_num(distance, nan=0.0), 0.0, math.sqrt(math.log(2) / math.log(base)))
    return 1.0 - distance


def regression_loyalty(teacher_scores: Sequence, student_scores: Sequence, low: float, high: float) -> float:
    """1 - mean |t - s| on scores scaled from [low, high] to [0, 1]. Shapes (N,), (N,) -> 0 to 1.

    A model's raw output may leave the scale: it is clipped to [low, high] first, as a user of the scale would read it.
    ValueError for N = 0, unequal N, another shape, a score that is not finite, or low >= high.
    """
    teacher, student = _scaled(teacher_scores, student_scores, low, high)
    return float(1.0 - np.mean(np.abs(teacher - student)))


def regression_loyalty_rmse(teacher_scores: Sequence, student_scores: Sequence, low: float, high: float) -> float:
    """1 - RMSE on the same clipped and scaled scores, 0 to 1. Errors as `regression_loyalty`."""
    teacher, student = _scaled(teacher_scores, student_scores, low, high)
    return float(1.0 - np.sqrt(np.mean((teacher - student) ** 2)))


def regression_loyalty_pearson(teacher_scores: Sequence, student_scores: Sequence) -> float:
    """Pearson correlation of the scores as they are (no scale, no clipping), -1 to 1; constant scores give 0.0."""
    return metrics.pearson(teacher_scores, student_scores)


def compare_predictions(task, teacher: pd.DataFrame, student: pd.DataFrame) -> dict[str, float]:
    """Loyalty of a student's to a teacher's prediction table (see rolib.metrics), aligned on (example, position).

    regression: regression_loyalty, regression_loyalty_pearson, regression_loyalty_rmse on the STS scale. Otherwise:
    label_loyalty, probability_loyalty (natural logarithm), probability_loyalty_base2; for ner also span_loyalty, the
    strict micro F1 of the student's spans against the teacher's (0.0 if neither has a span, as in `span_f1`).
    ValueError, which names the first unit at fault, for tables that are bad, cover different units or have
    probabilities over different numbers of labels. Row order does not matter; one label order is the caller's promise.
    """
    columns = [*UNIT, "predicted"] + ["probabilities"] * (task.kind != "regression")
    metrics.check_predictions(teacher, columns, "teacher's table")
    metrics.check_predictions(student, columns, "student's table")
    teacher, student = (table[columns].set_index(UNIT, drop=False) for table in (teacher, student))
    for here, there, name in [(teacher, student, "teacher"), (student, teacher, "student")]:
        if len(alone := here.index.difference(there.index, sort=False)):
            raise ValueError(f"{unit_name(alone[0])} is in the {name}'s table only ({len(alone)} such units)")
    student = student.reindex(teacher.index)
    labels = teacher["predicted"].tolist(), student["predicted"].tolist()
    if task.kind == "regression":
        return {
            "regression_loyalty": regression_loyalty(*labels, *STS_RANGE),
            "regression_loyalty_pearson": regression_loyalty_pearson(*labels),
            "regression_loyalty_rmse": regression_loyalty_rmse(*labels, *STS_RANGE),
        }
    expected = len(teacher["probabilities"].iloc[0])
    for table, name in [(teacher, "teacher"), (student, "student")]:
        sizes = table["probabilities"].map(len)
        if len(odd := sizes[sizes != expected]):
            raise ValueError(
                f"{unit_name(odd.index[0])} has {odd.iloc[0]} probabilities in the {name}'s table, "
                f"but the teacher's first row has {expected}"
            )
    probabilities = teacher["probabilities"].tolist(), student["probabilities"].tolist()
    natural = probability_loyalty(*probabilities)
    loyalty = {
        "label_loyalty": label_loyalty(*labels),
        "probability_loyalty": natural,
        # A change of base only scales the divergence, and its root the distance; the second pass would cost as much as the first.
        "probability_loyalty_base2": 1 - (1 - natural) / math.sqrt(math.log(2)),
    }
    if task.name == "ner":
        tags = [metrics.sentences(table.reset_index(drop=True), "predicted") for table in (teacher, student)]
        loyalty["span_loyalty"] = metrics.span_f1(*tags)["strict_f1_micro"]
    return loyalty


def chance_loyalty(task, teacher: pd.DataFrame, student: pd.DataFrame, seed: int = 0, pairs: int = 2000) -> dict[str, float]:
    """What `compare_predictions` would give if the student answered as often as it does with each answer, but blindly.

    label_loyalty: the expected agreement sum_c p_teacher(c) p_student(c) of Cohen's kappa. regression: the mean over all N^2
    pairs of a teacher's and a student's score (rmse: one minus its root mean square; Pearson: 0). Probabilities: the mean over
    at most `pairs` units, the student's rows shuffled by `seed`. Spans have none, since a blind tagger has no borders.
    """
    labels = teacher["predicted"], student["predicted"]
    if task.kind == "regression":
        low, high = STS_RANGE
        ours, theirs = ((np.clip(side.to_numpy(dtype=np.float64), low, high) - low) / (high - low) for side in labels)
        gaps = np.abs(ours[:, None] - theirs)
        rmse = float(1 - np.sqrt((gaps**2).mean()))
        return {"regression_loyalty": float(1 - gaps.mean()), "regression_loyalty_pearson": 0.0, "regression_loyalty_rmse": rmse}
    shares = [side.value_counts(normalize=True) for side in labels]
    rng, size = np.random.default_rng(seed), min(len(teacher), pairs)
    sides = [np.stack(list(table["probabilities"].iloc[rng.permutation(len(table))[:size]])) for table in (teacher, student)]
    natural = probability_loyalty(*sides)
    base2 = 1 - (1 - natural) / math.sqrt(math.log(2))
    by_label = float(shares[0].mul(shares[1], fill_value=0).sum())
    return {"label_loyalty": by_label, "probability_loyalty": natural, "probability_loyalty_base2": base2}


def ensemble_predictions(task, tables: Sequence[pd.DataFrame], labels: Sequence[str]) -> pd.DataFrame:
    """The prediction table of the ensemble of several models: the mean of their probabilities, or of their STS scores.

    labels: the task's label order, as in scores.json; of equally probable labels the first counts. Models must have predicted the
    same units (ValueError otherwise). Teachers of different vocabularies meet here, since task labels are common to all.
    """
    tables = [table.sort_values(UNIT).reset_index(drop=True) for table in tables]
    if any(not tables[0][UNIT].equals(table[UNIT]) for table in tables[1:]):
        raise ValueError("the models of an ensemble must have predicted the same units")
    if task.kind == "regression":
        return tables[0].assign(predicted=sum(table["predicted"] for table in tables) / len(tables))
    mean = sum(np.array(table["probabilities"].tolist(), dtype=np.float64) for table in tables) / len(tables)
    return tables[0].assign(predicted=[labels[i] for i in mean.argmax(1)], probabilities=list(mean))


def _distributions(side: str, probabilities: Sequence) -> np.ndarray:
    """Rows of probabilities as a float64 array (N, C), refused with a ValueError if they are none."""
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"{side} probabilities must have shape (N, C), but have {rows.shape}")
    for problem, bad in [
        ("NaN or infinite probabilities", ~np.isfinite(rows).all(axis=1)),
        ("negative probabilities", (rows < 0).any(axis=1)),
        ("probabilities that do not sum to 1", np.abs(rows.sum(axis=1) - 1.0) > 1e-3),
    ]:
        if bad.any():
            raise ValueError(f"{side} row {int(np.argmax(bad))} has {problem}")
    # the mean of the smallest subnormal number and 0 rounds to 0, which would make the divergence infinite
    return np.where(rows < np.finfo(np.float64).tiny, 0.0, rows)


def _scaled(teacher: Sequence, student: Sequence, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low must be less than high, both finite, but they are {low} and {high}")
    teacher, student = metrics.finite_pair(teacher, student)
    return (np.clip(teacher, low, high) - low) / (high - low), (np.clip(student, low, high) - low) / (high - low)
