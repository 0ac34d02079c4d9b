"""Where student and teacher agree: loyalty tables, classes, confusion, disagreements, calibration.

Student and teacher are compared at different fine-tuning seeds, and so is the floor. Everything is
computed from stored predictions; no model is loaded. The tables are made measure by measure, so
that each process holds the predictions of one measure at a time.
"""

import itertools
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from rolib.analysis import loyalty, study, uncertainty
from rolib.analysis.study import ENSEMBLE, ENSEMBLE_ROLE, WORDS_ROLE, Runs
from rolib.analysis.tables import PAIR, Values, corrected, estimate
from rolib.config import AnalyseConfig
from rolib.evaluation.predictions import Predictions, check_paired
from rolib.measures import TASKS, Task

STS_TOLERANCE = 0.5  # scores with a smaller difference count as equal
TESTED = ["label_loyalty", "probability_loyalty", "regression_loyalty"]  # against the floor
Named = Iterable[tuple[str, pd.DataFrame]]  # tables with their names
PAIRED = "teacher_probability student_probability teacher_on_student student_on_teacher".split()


def loyalty_tables(config: AnalyseConfig) -> dict[str, pd.DataFrame]:
    """All tables of notebook 04 by name: those of `task_tables` over all measures.

    loyalty has further rows for the means (`with_means`) and the columns of `with_floor`.
    """
    tables, values = dict[str, list[pd.DataFrame]](), Values()
    seeds, measures = study.present(config)
    by_measure = study.by_measure(partial(task_tables, config, seeds), measures)
    for task, (found, of_task) in zip(measures, by_measure, strict=True):
        values |= of_task
        for name, table in found:
            tables.setdefault(name, []).append(table.assign(task=task))
    whole = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    return whole | {"loyalty": with_floor(with_means(whole["loyalty"], values), values)}


def task_tables(
    config: AnalyseConfig, seeds: list[int], task: str, here: pd.DataFrame
) -> tuple[Named, Values]:
    """The tables of one measure and its models (`study.present`), in parts, each with its name.

    loyalty: `PAIR`, the columns of `estimate` and chance (`loyalty.chance_loyalty`, each run with
    one of the teacher's), student and teacher at other seeds (`at_other_seeds`). Unless there is
    one seed only, each teacher has rows too, to itself and to the ensemble: the floors. The second
    thing returned are the values of the loyalties by `PAIR`.
    calibration: `uncertainty.reliability` with checkpoint, seed, model, role; not for STS.
    classes, confusion, disagreements: see `pair_tables`; of each student with each of its teachers.
    """
    # The teachers stay in memory, since all models are compared with them; others are read once.
    teachers = study.read_teachers(config, here, task, seeds)
    scorer = partial(loyalty.loyalty_scorer, TASKS[task])
    scorers, chances, parts = {}, {}, list[tuple[str, pd.DataFrame]]()

    def chance(others: list[Predictions], run: Predictions) -> dict[str, float]:
        return loyalty.chance_loyalty(TASKS[task], others[0], run, config.seed)

    for row in here[here["role"] != WORDS_ROLE].itertuples():  # it has no teacher
        runs = teachers.get(row.model) or study.read_runs(config, row.checkpoints, task, seeds)
        if task != "sts":
            parts += calibration_bins(row, seeds, runs)
        for name in references_of(row, teachers):
            if row.role == "teacher" and len(seeds) == 1:
                continue
            [teacher], own = teachers[name], name != ENSEMBLE
            pair = (row.model, row.role, name, own, task)
            scorers[pair] = at_other_seeds(scorer, teacher, runs)
            answers = at_other_seeds(chance, teacher, runs)
            chances[row.model, name] = pd.DataFrame(itertools.chain(*answers)).mean()
            if row.role == "student" and own:
                for title, table in pair_tables(config, task, seeds, teacher, runs):
                    parts.append((title, table.assign(model=row.model, teacher=name)))
    table, values = estimate(PAIR, scorers, runs[0][0].num_examples, config)
    levels = [chances[row.model, row.teacher].get(row.measure) for row in table.itertuples()]
    parts.append(("loyalty", table.assign(chance=np.array(levels, dtype=float))))
    return parts, values


def at_other_seeds(function: Callable, teacher: list[Predictions], runs: Runs) -> list[list]:
    """function(the teacher's runs at all other fine-tuning seeds, run) of each run.

    At the same seed student and teacher start from the same head, bit by bit, and see the training
    examples in the same order. That makes them alike, whatever distillation did. With one seed
    there is no other: then it is the same.
    """
    others = [teacher[:k] + teacher[k + 1 :] or teacher for k in range(len(teacher))]
    return [list(map(function, others, by_seed)) for by_seed in runs]


def with_means(table: pd.DataFrame, values: Values) -> pd.DataFrame:
    """The table of loyalties with rows for the mean over the measures (task `mean`).

    `values` is given theirs. A pair of models that lacks a measure of others has no mean.
    """
    tasks, rows = table.groupby("measure")["task"].nunique(), []
    keys = ["model", "role", "teacher", "own", "measure"]
    for names, part in table.groupby(keys, sort=False):
        *pair, measure = names
        if len(part) < tasks[measure]:
            continue
        of_tasks = [values[key] for key in part[PAIR].itertuples(index=False, name=None)]
        values[*pair, "mean", measure] = mean = np.array(sum(of_tasks) / len(of_tasks))
        found = (*names, *uncertainty.summary(mean))
        row = dict(zip([*keys, "value", "low", "high"], found, strict=True)) | {"task": "mean"}
        row |= part[["checkpoints", "seeds"]].min().to_dict()
        rows.append(row | {"chance": part["chance"].mean()})
    return pd.concat([table, pd.DataFrame(rows)], ignore_index=True)


def with_floor(table: pd.DataFrame, values: Values) -> pd.DataFrame:
    """The loyalties of students and controls beside the floor: that of the teacher to itself.

    The floor of the ensemble is the mean loyalty of its teachers to it: a student is one model, and
    the mean of several models is nearer to another such mean than to any single model. All is at
    other seeds. Further columns: floor, floor_low, floor_high; floor_gap, the loyalty minus the
    floor in the same resamples, with gap_low and gap_high; p of a student's gap in the loyalties of
    `TESTED`, with p_holm and holds (see `tables.corrected`). NaN with one seed.
    With F fine-tuning seeds the interval of a loyalty shows 1 / (F - 1)^2 of the variance that the
    seeds of the teacher bring, and that of the floor ((F - 2) / (2 (F - 1)))^2, a sixteenth for
    three seeds. That of the gap shows all of it.
    """
    pair, teachers = ["teacher", "task", "measure"], table["role"] == "teacher"
    floors = {}
    for names, part in table[teachers].groupby(pair):
        keys = part[PAIR].itertuples(index=False, name=None)
        floors[names] = np.mean([values[key] for key in keys], axis=0)
    table, rows = table[~teachers].reset_index(drop=True), []
    for key in table[PAIR].itertuples(index=False, name=None):
        _, role, teacher, _, task, measure = key
        floor = floors.get((teacher, task, measure))
        if floor is None:
            rows.append([np.nan] * 7)
            continue
        gaps, tested = values[key] - floor, role == "student" and measure in TESTED
        p = uncertainty.p_value(gaps[..., 1:]) if tested else np.nan
        rows.append([*uncertainty.summary(floor), *uncertainty.summary(gaps), p])
    new = ["floor", "floor_low", "floor_high", "floor_gap", "gap_low", "gap_high", "p"]
    return corrected(table.join(pd.DataFrame(rows, columns=new)))


def calibration_bins(member: Any, seeds: list[int], runs: Runs) -> Named:
    """The table of `uncertainty.reliability` of each run of a row of `study.present`."""
    for folder, by_seed in zip(member.checkpoints, runs, strict=True):
        for seed, run in zip(seeds, by_seed, strict=True):
            bins = uncertainty.reliability(run.probabilities.max(axis=1), run.right)
            bins = bins.assign(checkpoint=folder, seed=seed, model=member.model, role=member.role)
            yield "calibration", bins


def pair_tables(
    config: AnalyseConfig, task: str, seeds: list[int], teacher: list[Predictions], runs: Runs
) -> Named:
    """The tables of a student and a teacher on one measure, each with its name.

    disagreements: of the first checkpoint at the first seed, and the teacher at the second; with
    the columns seed and teacher_seed. Not for STS: classes (`class_loyalty`) and confusion, how
    often each pair of labels occurs in `paired_labels`: teacher_label, student_label, count.
    """
    apart = disagreements(TASKS[task], teacher[:2][-1], runs[0][0])
    yield "disagreements", apart.assign(seed=seeds[0], teacher_seed=seeds[:2][-1])
    if task != "sts":
        pairs = paired_labels(teacher, runs)
        yield "classes", class_loyalty(pairs, len(runs[0][0].units), config.resamples, config.seed)
        counts = pairs[["teacher_label", "student_label"]].value_counts()
        yield "confusion", counts.reset_index(name="count")


def references_of(member: Any, known: Collection[str]) -> list[str]:
    """The models with which a model is compared: its teachers, and their ensemble if there is one.

    member: a row of `study.present`. A teacher is compared with itself too. known: the names of the
    teachers and of the ensemble that can be compared with.
    """
    if member.role == ENSEMBLE_ROLE:
        return []
    shape = member.model.removesuffix("-random") if member.role == "random control" else ""
    return [one for one in (*member.teachers, ENSEMBLE) if one in known and one != shape]


def paired_labels(teacher: list[Predictions], runs: Runs) -> pd.DataFrame:
    """The labels of all pairs of runs (`at_other_seeds`), one row a unit and pair.

    Columns: example (its number), teacher_label, student_label.
    """

    def labels(others: list[Predictions], run: Predictions) -> pd.DataFrame:
        theirs = np.concatenate([other.predicted for other in others])
        ours = {"example": run.examples, "student_label": run.predicted}
        repeated = {name: np.tile(column, len(others)) for name, column in ours.items()}
        return pd.DataFrame(repeated | {"teacher_label": theirs})

    return pd.concat(itertools.chain(*at_other_seeds(labels, teacher, runs)), ignore_index=True)


def class_loyalty(pairs: pd.DataFrame, units: int, resamples: int, seed: int) -> pd.DataFrame:
    """Label loyalty by the teacher's label: label, units, value, low, high (95 % interval).

    pairs: `paired_labels` of a test set of so many units. units: how many units get the label from
    the teacher, mean over pairs of runs. value: the share of them, over all pairs, that get it from
    the student too. The interval is that of these runs: it knows the test examples, over the
    resamples that contain the label, and no seeds. It is too narrow for a label that occurs in one
    sentence only.
    """
    equal = pairs["teacher_label"] == pairs["student_label"]
    by_label = equal.groupby(pairs["teacher_label"])
    table = pd.DataFrame({"units": by_label.size() * units / len(pairs), "value": by_label.mean()})
    scorers = {"all": [[loyalty.class_scorer(pairs, table.index)]]}
    draws = uncertainty.bootstrap(scorers, pairs["example"].max() + 1, resamples, seed)["all"]
    with np.errstate(invalid="ignore"):  # 0 / 0 in resamples without the label
        shares = (draws["hits"] / draws["units"])[0, 0]
    table["low"], table["high"] = np.nanquantile(shares, [0.025, 0.975], axis=1)
    return table.rename_axis("label").reset_index()


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
    table = teacher.units.assign(gold=teacher.gold, teacher_label=teacher.predicted)
    table["student_label"] = student.predicted
    if task.kind == "regression":
        table[PAIRED] = np.nan
    else:
        rows, theirs, ours = np.arange(len(table)), teacher.probabilities, student.probabilities
        first, second = theirs.argmax(axis=1), ours.argmax(axis=1)
        both = theirs[rows, first], ours[rows, second], theirs[rows, second], ours[rows, first]
        table[PAIRED] = np.stack(both, axis=1)

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
    return table.astype(dict.fromkeys(PAIRED, "float32"))
