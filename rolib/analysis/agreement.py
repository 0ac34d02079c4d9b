"""What stored predictions say: scores and loyalty with intervals, comparisons, calibration, where student and teacher part ways.

No model is loaded. Every table is computed measure by measure, so that the predictions of one measure are in memory at a time.
"""

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from rolib.analysis import uncertainty
from rolib.analysis.loyalty import (
    chance_loyalty,
    class_scorer,
    compare_predictions,
    loyalty_scorer,
)
from rolib.analysis.study import (
    ENSEMBLE,
    ENSEMBLE_ROLE,
    Runs,
    evaluated,
    members,
    read_runs,
    read_teachers,
    with_ensemble,
)
from rolib.analysis.tables import PAIR, estimate
from rolib.analysis.uncertainty import in_threads
from rolib.config import Config
from rolib.evaluation.predictions import Predictions, check_paired
from rolib.measures import TASKS, Task

STS_TOLERANCE = 0.5  # similarity scores that lie closer count as equal


def loyalty_tables(config: Config) -> dict[str, pd.DataFrame]:
    """All that notebook 04 writes, by name; see `task_tables`."""
    tables = {}
    for task, seeds in evaluated(config).items():
        for name, table in task_tables(config, task, seeds):
            tables.setdefault(name, []).append(table)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def task_tables(config: Config, task: str, seeds: list[int]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The tables of one measure, in parts, each with its name. All but loyalty and disagreements are of taggers and classifiers.

    loyalty: `PAIR` and the columns of `estimate`, student and teacher at the same seed; chance (`loyalty.chance_loyalty`) and
    floor (`floor_loyalty`; NaN for one seed). calibration: `uncertainty.reliability` with seed, model, role, task. Of each
    student and its own teachers: classes (`class_loyalty`), confusion, and `disagreements` at the first seed.
    """
    everyone, scorers, chances = with_ensemble(members(config)), {}, {}
    # Teachers are kept, as all others are held against them; everyone else is read once and let go.
    teachers = read_teachers(config, everyone, task, seeds)
    for member in everyone.itertuples():
        runs = teachers.get(member.model) or read_runs(config, member.model, task, seeds)
        if task != "sts":
            for seed, run in zip(seeds, runs, strict=True):
                bins = uncertainty.reliability(
                    run.probabilities.max(axis=1), run.gold == run.predicted
                )
                yield (
                    "calibration",
                    bins.assign(seed=seed, model=member.model, role=member.role, task=task),
                )
        for name in references_of(member, ENSEMBLE in teachers):
            pair, own = (teachers[name], runs), name != ENSEMBLE
            scorers[member.model, member.role, name, own, task] = in_threads(
                partial(loyalty_scorer, TASKS[task]), *pair
            )
            chances[member.model, name] = _mean(
                in_threads(partial(chance_loyalty, TASKS[task], seed=config.seed), *pair)
            )
            if member.role == "student" and own:
                facts = {"model": member.model, "teacher": name, "task": task}
                yield (
                    "disagreements",
                    disagreements(TASKS[task], teachers[name][0], runs[0]).assign(
                        seed=seeds[0], **facts
                    ),
                )
                if task != "sts":
                    yield (
                        "classes",
                        class_loyalty(*pair, config.resamples, config.seed).assign(**facts),
                    )
                    yield "confusion", confusion(*pair).assign(**facts)
    floors = {name: floor_loyalty(TASKS[task], runs) for name, runs in teachers.items()}
    table, _ = estimate(PAIR, scorers, runs[0].num_examples, config)
    table["chance"] = [
        chances[row.model, row.teacher].get(row.measure, np.nan) for row in table.itertuples()
    ]
    yield (
        "loyalty",
        table.assign(
            floor=[floors[row.teacher].get(row.measure, np.nan) for row in table.itertuples()]
        ),
    )


def references_of(member, ensemble: bool) -> list[str]:
    """The models that a member (a row of `with_ensemble`) is held against: its teachers but itself, and their ensemble."""
    own = [
        teacher for teacher in member.teachers if teacher != member.model.removesuffix("-random")
    ]
    return own + [ENSEMBLE] * (ensemble and member.role not in ("teacher", ENSEMBLE_ROLE))


def floor_loyalty(task: Task, runs: Runs) -> dict[str, float]:
    """Mean loyalty between two fine-tuning seeds of one model, over all pairs of seeds: {} for one seed.

    No student needs more: a teacher fine-tuned twice is no more loyal to itself.
    """
    return _mean(
        in_threads(lambda pair: compare_predictions(task, *pair), itertools.combinations(runs, 2))
    )


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else {})}


def class_loyalty(teacher: Runs, student: Runs, resamples: int, seed: int) -> pd.DataFrame:
    """Label loyalty by the teacher's label: label, units (a seed, on average), value, low, high (95 %).

    value: of all units of all seeds where the teacher gives the label, the share where the student does. The interval is over
    the resamples that hold the label, so that a label of one sentence has a narrow one: mind `units`.
    """
    labels, examples = (
        sorted({label for run in teacher for label in run.predicted}),
        teacher[0].num_examples,
    )
    scorers = [
        class_scorer(t.examples, t.predicted, s.predicted, labels)
        for t, s in zip(teacher, student, strict=True)
    ]
    points = [scorer(np.ones((examples, 1))) for scorer in scorers]
    hits, units = (
        np.mean([point[name][:, 0] for point in points], axis=0) for name in ("hits", "units")
    )
    draws = uncertainty.bootstrap({"student": scorers}, examples, resamples, seed)["student"]
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(draws["hits"] / draws["units"], [0.025, 0.975], axis=1)
    return pd.DataFrame(
        {"label": labels, "units": units, "value": hits / units, "low": low, "high": high}
    )


def confusion(teacher: Runs, student: Runs) -> pd.DataFrame:
    """How often, over all seeds, the student gives a label where the teacher gives another: teacher_label, student_label, count."""
    sides = {"teacher_label": teacher, "student_label": student}
    labels = pd.DataFrame(
        {name: np.concatenate([run.predicted for run in runs]) for name, runs in sides.items()}
    )
    return labels.value_counts().rename("count").reset_index()


def side_by_side(
    task: Task, teacher: Predictions, student: Predictions, tolerance: float = STS_TOLERANCE
) -> pd.DataFrame:
    """Two models' answers, one row a unit. ValueError if they cover different units or gold labels.

    Columns: example, position, gold, teacher_label, student_label, teacher_probability, student_probability (of the own label),
    teacher_on_student, student_on_teacher (of the other's label; all four NaN for STS), agree, teacher_right, student_right.
    STS scores that lie closer than `tolerance` count as equal.
    """
    check_paired({"teacher's table": teacher, "student's table": student})
    regression = task.kind == "regression"
    table = teacher.units.assign(
        gold=teacher.gold, teacher_label=teacher.predicted, student_label=student.predicted
    )
    of_label = {
        "teacher_probability": (teacher, teacher),
        "student_probability": (student, student),
    }
    of_label |= {"teacher_on_student": (teacher, student), "student_on_teacher": (student, teacher)}
    for name, (side, by) in of_label.items():
        table[name] = (
            np.nan
            if regression
            else side.probabilities[table.index, by.probabilities.argmax(axis=1)]
        )
    sides = {
        "agree": ("teacher_label", "student_label"),
        "teacher_right": ("teacher_label", "gold"),
    }
    sides["student_right"] = ("student_label", "gold")
    for name, (one, other) in sides.items():
        table[name] = (
            (table[one] - table[other]).abs() < tolerance
            if regression
            else table[one] == table[other]
        )
    return table


def disagreements(task: Task, teacher: Predictions, student: Predictions) -> pd.DataFrame:
    """The rows of `side_by_side` where the two part ways (STS: by at least 1 of 5), up to student_on_teacher; labels as text."""
    table = side_by_side(task, teacher, student, tolerance=1)
    table = (
        table[~table["agree"]]
        .drop(columns=["agree", "teacher_right", "student_right"])
        .reset_index(drop=True)
    )
    if task.kind == "regression":
        table = table.assign(
            **{
                name: table[name].map("{:.2f}".format)
                for name in ("gold", "teacher_label", "student_label")
            }
        )
    return table.astype({name: "float32" for name in table.columns[5:]})
