"""Where student and teacher agree: loyalty tables, classes, confusion, disagreements, calibration.

Everything is computed from stored predictions; no model is loaded. The tables are made measure by
measure, so that memory holds the predictions of one measure at a time.
"""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from rolib.analysis import loyalty, study, uncertainty
from rolib.analysis.study import ENSEMBLE, ENSEMBLE_ROLE, Runs
from rolib.analysis.tables import PAIR, estimate
from rolib.analysis.uncertainty import in_threads
from rolib.config import AnalyseConfig
from rolib.evaluation.predictions import Predictions, check_paired
from rolib.measures import TASKS, Task

STS_TOLERANCE = 0.5  # scores with a smaller difference count as equal
Named = Iterator[tuple[str, pd.DataFrame]]  # tables with their names
PROBABILITIES = ["teacher_probability", "student_probability"]
PROBABILITIES += ["teacher_on_student", "student_on_teacher"]


def loyalty_tables(config: AnalyseConfig) -> dict[str, pd.DataFrame]:
    """All tables of notebook 04 by name; see `task_tables`."""
    tables: dict[str, list[pd.DataFrame]] = {}
    for task, seeds in study.evaluated(config).items():
        for name, table in task_tables(config, task, seeds):
            tables.setdefault(name, []).append(table)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def task_tables(config: AnalyseConfig, task: str, seeds: list[int]) -> Named:
    """The tables of one measure, in parts, each with its name.

    loyalty: `PAIR` and the columns of `estimate`, student and teacher at the same seed; chance
    (`loyalty.chance_loyalty`) and floor (`floor_loyalty`; NaN for one seed).
    calibration: `uncertainty.reliability` with seed, model, role, task; not for STS.
    classes, confusion, disagreements: see `pair_tables`; of each student with each of its teachers.
    """
    everyone = study.with_ensemble(study.members(config))
    # The teachers stay in memory, since all models are compared with them; others are read once.
    teachers = study.read_teachers(config, everyone, task, seeds)
    scorers, chances = {}, {}
    for member in everyone.itertuples():
        runs = teachers.get(member.model) or study.read_runs(config, member.model, task, seeds)
        if task != "sts":
            for seed, run in zip(seeds, runs, strict=True):
                confidence = run.probabilities.max(axis=1)
                bins = uncertainty.reliability(confidence, run.gold == run.predicted)
                facts = {"seed": seed, "model": member.model, "role": member.role, "task": task}
                yield "calibration", bins.assign(**facts)
        for name in references_of(member, ENSEMBLE in teachers):
            own = name != ENSEMBLE
            scorer = partial(loyalty.loyalty_scorer, TASKS[task])
            chance = partial(loyalty.chance_loyalty, TASKS[task], seed=config.seed)
            key = (member.model, member.role, name, own, task)
            scorers[key] = [in_threads(scorer, teachers[name], runs)]
            answers = in_threads(chance, teachers[name], runs)
            chances[member.model, name] = pd.DataFrame(answers).mean()
            if member.role == "student" and own:
                for title, table in pair_tables(config, task, seeds[0], teachers[name], runs):
                    yield title, table.assign(model=member.model, teacher=name, task=task)
    floors = {name: floor_loyalty(TASKS[task], runs) for name, runs in teachers.items()}
    table, _ = estimate(PAIR, scorers, runs[0].num_examples, config)
    pairs = list(table.itertuples())
    table["chance"] = [chances[p.model, p.teacher].get(p.measure, np.nan) for p in pairs]
    table["floor"] = [floors[p.teacher].get(p.measure, np.nan) for p in pairs]
    yield "loyalty", table


def pair_tables(config: AnalyseConfig, task: str, seed: int, teacher: Runs, student: Runs) -> Named:
    """The tables of a student and a teacher on one measure, each with its name.

    `disagreements` at the first seed; classes (`class_loyalty`) and `confusion`, not for STS.
    """
    yield "disagreements", disagreements(TASKS[task], teacher[0], student[0]).assign(seed=seed)
    if task != "sts":
        yield "classes", class_loyalty(teacher, student, config.resamples, config.seed)
        yield "confusion", confusion(teacher, student)


def references_of(member: Any, ensemble: bool) -> list[str]:
    """The models with which a model is compared: its teachers, and their ensemble if there is one.

    member: a row of `study.with_ensemble`. A teacher and the ensemble have none.
    """
    name = member.model.removesuffix("-random")
    references = [teacher for teacher in member.teachers if teacher != name]
    if ensemble and member.role not in ("teacher", ENSEMBLE_ROLE):
        references.append(ENSEMBLE)
    return references


def floor_loyalty(task: Task, runs: Runs) -> pd.Series:
    """Mean loyalty between two fine-tuning seeds of one model, over all pairs of seeds.

    It is the natural target for a student: a teacher is not more loyal to itself. Empty for one
    seed.
    """
    pairs = itertools.combinations(runs, 2)
    found = in_threads(lambda pair: loyalty.compare_predictions(task, *pair), pairs)
    return pd.DataFrame(found).mean()


def labels_of(runs: Runs) -> np.ndarray:
    """The predicted labels of all seeds."""
    return np.concatenate([run.predicted for run in runs])


def class_loyalty(teacher: Runs, student: Runs, resamples: int, seed: int) -> pd.DataFrame:
    """Label loyalty by the teacher's label: label, units, value, low, high (95 % interval).

    units: how many units get the label from the teacher, mean over seeds. value: the share of them,
    over all seeds, that get it from the student too. The interval is over the resamples that
    contain the label. It is too narrow for a label that occurs in one sentence only.
    """
    theirs = labels_of(teacher)
    equal = pd.Series(theirs == labels_of(student)).groupby(theirs)
    table = pd.DataFrame({"units": equal.size() / len(teacher), "value": equal.mean()})
    pairs = zip(teacher, student, strict=True)
    scorers = {"student": [[loyalty.class_scorer(*pair, table.index) for pair in pairs]]}
    draws = uncertainty.bootstrap(scorers, teacher[0].num_examples, resamples, seed)["student"]
    low_high = []
    for hits, units in zip(*(np.moveaxis(draws[name], 2, 0) for name in ("hits", "units"))):
        held = units.any(axis=(0, 1))  # the resamples with the label
        low_high.append(uncertainty.interval(uncertainty.ratio(hits[..., held], units[..., held])))
    table[["low", "high"]] = low_high
    return table.rename_axis("label").reset_index()


def confusion(teacher: Runs, student: Runs) -> pd.DataFrame:
    """How often each pair of labels occurs over all seeds: teacher_label, student_label, count."""
    sides = {"teacher_label": labels_of(teacher), "student_label": labels_of(student)}
    return pd.DataFrame(sides).value_counts().reset_index(name="count")


def side_by_side(
    task: Task, teacher: Predictions, student: Predictions, tolerance: float = STS_TOLERANCE
) -> pd.DataFrame:
    """The predictions of two models, one row a unit.

    Columns: example, position; gold, teacher_label, student_label; the probabilities that each
    model gives to its own label (teacher_probability, student_probability) and to the other's
    (teacher_on_student, student_on_teacher), NaN for STS; agree, teacher_right, student_right.
    STS scores with a difference below `tolerance` count as equal.
    ValueError if the models differ in units or gold labels.
    """
    check_paired({"teacher's table": teacher, "student's table": student})
    table = teacher.units.assign(
        gold=teacher.gold, teacher_label=teacher.predicted, student_label=student.predicted
    )
    if task.kind == "regression":
        table[PROBABILITIES] = np.nan
    else:
        rows, theirs, ours = np.arange(len(table)), teacher.probabilities, student.probabilities
        first, second = theirs.argmax(axis=1), ours.argmax(axis=1)
        both = theirs[rows, first], ours[rows, second], theirs[rows, second], ours[rows, first]
        table[PROBABILITIES] = np.stack(both, axis=1)

    def equal(one: str, other: str) -> pd.Series:
        if task.kind == "regression":
            return (table[one] - table[other]).abs() < tolerance
        return table[one] == table[other]

    table["agree"] = equal("teacher_label", "student_label")
    table["teacher_right"] = equal("teacher_label", "gold")
    table["student_right"] = equal("student_label", "gold")
    return table


def disagreements(task: Task, teacher: Predictions, student: Predictions) -> pd.DataFrame:
    """The rows of `side_by_side` where the models disagree, with its columns before `agree`.

    STS scores disagree if they differ by at least 1 (on the scale 0 to 5). Labels are text.
    """
    table = side_by_side(task, teacher, student, tolerance=1)
    table = table.loc[~table["agree"], :"student_on_teacher"].reset_index(drop=True)
    if task.kind == "regression":
        for name in ("gold", "teacher_label", "student_label"):
            table[name] = table[name].map("{:.2f}".format)
    return table.astype(dict.fromkeys(PROBABILITIES, "float32"))
