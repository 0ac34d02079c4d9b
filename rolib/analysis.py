"""What stored predictions say: scores and loyalty with intervals, comparisons, calibration, where student and teacher part ways.

No model is loaded. Every table is computed measure by measure, so that the predictions of one measure are in memory at a time.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from rolib import uncertainty
from rolib.config import Config
from rolib.loyalty import chance_loyalty, class_scorer, compare_predictions, ensemble_predictions, loyalty_scorer
from rolib.metrics import Scorer, at_ones, scorer
from rolib.predictions import Predictions, check_paired
from rolib.results import ENSEMBLE, members, read_predictions
from rolib.runs import made_by, read_json, write_text
from rolib.tasks import TASKS, Task
from rolib.uncertainty import in_threads

ENSEMBLE_ROLE = "teacher ensemble"
CONTROLS = ["mlm control", "random control"]
LEVEL = 0.05  # of the family-wise error
SCORE_COLUMNS = ["model", "role", "teacher", "task", "seeds", "examples", "score", "headline", "value", "sd", "low", "high"]
PAIR = ["model", "role", "teacher", "own", "task", "measure"]  # own: the teacher is the model's own, and not the ensemble
STS_TOLERANCE = 0.5  # similarity scores that lie closer count as equal
Runs = list[Predictions]  # of one model, in order of fine-tuning seeds


def evaluated(config: Config) -> dict[str, list[int]]:
    """The measures of a study and the fine-tuning seeds of each, in order."""
    found = {}
    for path in config.folder.glob("evaluation/*/*/seed-*/predictions.parquet"):
        found.setdefault(path.parts[-3], set()).add(int(path.parts[-2].removeprefix("seed-")))
    return {task: sorted(found[task]) for task in TASKS if task in found}


def read_runs(config: Config, model: str, task: str, seeds: list[int], probabilities: bool = True) -> Runs:
    """The runs of a model."""
    return in_threads(lambda seed: read_predictions(config, model, task, seed, probabilities), seeds)


def read_teachers(config: Config, everyone: pd.DataFrame, task: str, seeds: list[int]) -> dict[str, Runs]:
    """The runs of all teachers, and of their ensemble where there is one."""
    names = everyone.loc[everyone["role"] == "teacher", "model"].tolist()
    runs = {name: read_runs(config, name, task, seeds) for name in names}
    if len(names) > 1:
        scores = config.folder / "evaluation" / names[0] / task / f"seed-{seeds[0]}" / "scores.json"
        labels = read_json(scores, made_by(config))["labels"]
        runs[ENSEMBLE] = [ensemble_predictions(sides, labels) for sides in zip(*runs.values(), strict=True)]
    return runs


def with_ensemble(everyone: pd.DataFrame) -> pd.DataFrame:
    """The table of `results.members` and, in a study of several teachers, a row for their ensemble."""
    teachers = everyone.loc[everyone["role"] == "teacher", "model"].tolist()
    row = {"model": ENSEMBLE, "role": ENSEMBLE_ROLE, "teacher": ENSEMBLE, "teachers": []}
    return pd.concat([everyone, pd.DataFrame([row] * (len(teachers) > 1))], ignore_index=True)


def compared(everyone: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Who is compared with whom: (student, other, the other's role).

    Every student with its first teacher and with its controls (of a student with several teachers: those of its twin in
    shape), and a student of several teachers with the students of one.
    """
    students, pairs = everyone[everyone["role"] == "student"], []
    for student in students.itertuples():
        pairs.append((student.model, student.teacher, "teacher"))
        of_shape = (everyone["teacher"] == student.teacher) & (everyone["layers"] == student.layers)
        controls = everyone[of_shape & everyone["role"].isin(CONTROLS)]
        pairs += [(student.model, control.model, control.role) for control in controls.itertuples()]
        if len(student.teachers) > 1:
            pairs += [(student.model, other.model, "student") for other in students.itertuples() if len(other.teachers) == 1]
    return pairs


def estimate(names: list[str], scorers: dict[tuple, list[Scorer]], examples: int, config: Config) -> tuple[pd.DataFrame, dict]:
    """A table of what scorers, by key and one for each fine-tuning seed, find; and the bootstrap draws behind it.

    Columns: the parts of the key and the score's name under `names`, seeds, examples, value (mean over seeds), sd (over seeds;
    NaN for one), low, high (95 % bootstrap interval).
    """
    draws, rows = uncertainty.bootstrap(scorers, examples, config.resamples, config.seed), []
    for key, by_seed in scorers.items():
        for score, values in pd.DataFrame([at_ones(run, examples) for run in by_seed]).items():
            row = dict(zip(names, (*key, score), strict=True)) | {"seeds": len(values), "examples": examples}
            low, high = uncertainty.interval(draws[key][score])
            rows.append(row | {"value": values.mean(), "sd": values.std(), "low": low, "high": high})
    return pd.DataFrame(rows), draws


def score_tables(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and comparisons of a study from its predictions, as fractions.

    Scores: `SCORE_COLUMNS` (headline: is it the headline score?; the rest as in `estimate`) of every model and of the
    teachers' ensemble; the measure `mean` is the mean of the headlines.
    Comparisons, of headline scores: model, against, role (of the other), task, difference, low, high, p, p_holm (over the
    measures of a pair; `mean` is no part of the family), holds (p_holm below 0.05).
    """
    everyone, tables, draws = with_ensemble(members(config)), [], {}
    first = everyone["model"][0]
    for task, seeds in evaluated(config).items():
        run = config.folder / "evaluation" / first / task / f"seed-{seeds[0]}"
        headline = read_json(run / "scores.json", made_by(config))["headline"]
        models = read_teachers(config, everyone, task, seeds)
        others = [name for name in everyone["model"] if name not in models]
        models |= {name: read_runs(config, name, task, seeds, probabilities=False) for name in others}
        named = {}
        for name, runs in models.items():
            named |= {f"predictions of {name}, seed {seed}": run for seed, run in zip(seeds, runs, strict=True)}
        check_paired(named)
        scorers = {(name, task): [scorer(TASKS[task], run) for run in runs] for name, runs in models.items()}
        table, by_score = estimate(["model", "task", "score"], scorers, models[first][0].num_examples, config)
        tables.append(table.assign(headline=table["score"] == headline))
        draws |= {key: scores[headline] for key, scores in by_score.items()}
    scores, means = pd.concat(tables), []
    points = scores[scores["headline"]].set_index(["model", "task"])["value"].to_dict()
    for name in everyone["model"]:
        keys, mean = sorted(key for key in points if key[0] == name), (name, "mean")
        draws[mean], points[mean] = np.mean([draws[key] for key in keys], axis=0), np.mean([points[key] for key in keys])
        low, high = uncertainty.interval(draws[mean])
        row = {"model": name, "task": "mean", "seeds": len(seeds), "score": "mean", "headline": True}
        means.append(row | {"value": points[mean], "low": low, "high": high})
    scores = everyone[["model", "role", "teacher"]].merge(pd.concat([scores, pd.DataFrame(means)]), on="model")[SCORE_COLUMNS]
    return scores, _compare(compared(everyone), draws, points)


def _compare(pairs: list[tuple[str, str, str]], draws: dict, points: dict) -> pd.DataFrame:
    """The comparisons of `score_tables` from the draws and the point of each (model, measure)."""
    rows = []
    for (model, other, role), task in itertools.product(pairs, dict.fromkeys(task for _, task in points)):
        gaps = draws[model, task] - draws[other, task]
        rows.append((model, other, role, task, points[model, task] - points[other, task]))
        rows[-1] += (*uncertainty.interval(gaps), uncertainty.p_value(gaps))
    table = pd.DataFrame(rows, columns=["model", "against", "role", "task", "difference", "low", "high", "p"])
    family = [table["model"], table["against"], table["task"] == "mean"]
    table["p_holm"] = table.groupby(family)["p"].transform(uncertainty.holm)
    return table.assign(holds=table["p_holm"] < LEVEL)


def score_table(scores: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Model x measure as text in percent: "91.7 ± 0.6", half the 95 % interval; * where a student differs from its first teacher."""
    held = comparisons[(comparisons["role"] == "teacher") & comparisons["holds"]]
    marked = set(zip(held["model"], held["task"], strict=True))

    def text(row) -> str:
        return f"{100 * row.value:.1f} ± {50 * (row.high - row.low):.1f}" + "*" * ((row.model, row.task) in marked)

    return _wide(scores[scores["headline"]], ["role", "model"], text)


def comparison_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Pair x measure as text in points: "-0.4 ± 0.8", the student's score minus the other's; * where the difference holds."""

    def text(row) -> str:
        return f"{100 * row.difference:+.1f} ± {50 * (row.high - row.low):.1f}" + "*" * row.holds

    return _wide(comparisons, ["model", "against", "role"], text)


def loyalty_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one loyalty, model and teacher x measure, as text: "0.951 ± 0.004 (0.08; 0.96)", in brackets chance level and floor, "–" for none."""

    def text(row) -> str:
        bracket = f"({row.chance:.2f}; {row.floor:.2f})".replace("nan", "–")
        return f"{row.value:.3f} ± {(row.high - row.low) / 2:.3f} {bracket}"

    return _wide(rows, ["role", "model", "teacher"], text)


def _wide(rows: pd.DataFrame, index: list[str], text: Callable) -> pd.DataFrame:
    """Index x measure with the text of each row."""
    table = rows.assign(text=[text(row) for row in rows.itertuples()])
    table = table.pivot_table(index=index, columns="task", values="text", aggfunc="first", sort=False)
    return table[[task for task in [*TASKS, "mean"] if task in table]].reset_index().rename_axis(columns=None)


def loyalty_tables(config: Config) -> dict[str, pd.DataFrame]:
    """All that notebook 04 writes, by name; see `task_tables`."""
    tables = {}
    for task, seeds in evaluated(config).items():
        for name, table in task_tables(config, task, seeds):
            tables.setdefault(name, []).append(table)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


def write_tables(config: Config, tables: dict[str, pd.DataFrame]) -> None:
    """Write tables by name into the profile's folder: name.csv, but the long one of disagreements as Parquet."""
    for name, table in tables.items():
        if name == "disagreements":
            path = config.folder / f".{name}.parquet"
            table.to_parquet(path, compression="zstd", index=False)
            os.replace(path, config.folder / f"{name}.parquet")
        else:
            write_text(config.folder / f"{name}.csv", table.to_csv(index=False))


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
                bins = uncertainty.reliability(run.probabilities.max(axis=1), run.gold == run.predicted)
                yield "calibration", bins.assign(seed=seed, model=member.model, role=member.role, task=task)
        for name in references_of(member, ENSEMBLE in teachers):
            pair, own = (teachers[name], runs), name != ENSEMBLE
            scorers[member.model, member.role, name, own, task] = in_threads(partial(loyalty_scorer, TASKS[task]), *pair)
            chances[member.model, name] = _mean(in_threads(partial(chance_loyalty, TASKS[task], seed=config.seed), *pair))
            if member.role == "student" and own:
                facts = {"model": member.model, "teacher": name, "task": task}
                yield "disagreements", disagreements(TASKS[task], teachers[name][0], runs[0]).assign(seed=seeds[0], **facts)
                if task != "sts":
                    yield "classes", class_loyalty(*pair, config.resamples, config.seed).assign(**facts)
                    yield "confusion", confusion(*pair).assign(**facts)
    floors = {name: floor_loyalty(TASKS[task], runs) for name, runs in teachers.items()}
    table, _ = estimate(PAIR, scorers, runs[0].num_examples, config)
    table["chance"] = [chances[row.model, row.teacher].get(row.measure, np.nan) for row in table.itertuples()]
    yield "loyalty", table.assign(floor=[floors[row.teacher].get(row.measure, np.nan) for row in table.itertuples()])


def references_of(member, ensemble: bool) -> list[str]:
    """The models that a member (a row of `with_ensemble`) is held against: its teachers but itself, and their ensemble."""
    own = [teacher for teacher in member.teachers if teacher != member.model.removesuffix("-random")]
    return own + [ENSEMBLE] * (ensemble and member.role not in ("teacher", ENSEMBLE_ROLE))


def floor_loyalty(task: Task, runs: Runs) -> dict[str, float]:
    """Mean loyalty between two fine-tuning seeds of one model, over all pairs of seeds: {} for one seed.

    No student needs more: a teacher fine-tuned twice is no more loyal to itself.
    """
    return _mean(in_threads(lambda pair: compare_predictions(task, *pair), itertools.combinations(runs, 2)))


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else {})}


def class_loyalty(teacher: Runs, student: Runs, resamples: int, seed: int) -> pd.DataFrame:
    """Label loyalty by the teacher's label: label, units (a seed, on average), value, low, high (95 %).

    value: of all units of all seeds where the teacher gives the label, the share where the student does. The interval is over
    the resamples that hold the label, so that a label of one sentence has a narrow one: mind `units`.
    """
    labels, examples = sorted({label for run in teacher for label in run.predicted}), teacher[0].num_examples
    scorers = [class_scorer(t.examples, t.predicted, s.predicted, labels) for t, s in zip(teacher, student, strict=True)]
    points = [scorer(np.ones((examples, 1))) for scorer in scorers]
    hits, units = (np.mean([point[name][:, 0] for point in points], axis=0) for name in ("hits", "units"))
    draws = uncertainty.bootstrap({"student": scorers}, examples, resamples, seed)["student"]
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(draws["hits"] / draws["units"], [0.025, 0.975], axis=1)
    return pd.DataFrame({"label": labels, "units": units, "value": hits / units, "low": low, "high": high})


def confusion(teacher: Runs, student: Runs) -> pd.DataFrame:
    """How often, over all seeds, the student gives a label where the teacher gives another: teacher_label, student_label, count."""
    sides = {"teacher_label": teacher, "student_label": student}
    labels = pd.DataFrame({name: np.concatenate([run.predicted for run in runs]) for name, runs in sides.items()})
    return labels.value_counts().rename("count").reset_index()


def side_by_side(task: Task, teacher: Predictions, student: Predictions, tolerance: float = STS_TOLERANCE) -> pd.DataFrame:
    """Two models' answers, one row a unit. ValueError if they cover different units or gold labels.

    Columns: example, position, gold, teacher_label, student_label, teacher_probability, student_probability (of the own label),
    teacher_on_student, student_on_teacher (of the other's label; all four NaN for STS), agree, teacher_right, student_right.
    STS scores that lie closer than `tolerance` count as equal.
    """
    check_paired({"teacher's table": teacher, "student's table": student})
    regression = task.kind == "regression"
    table = teacher.units.assign(gold=teacher.gold, teacher_label=teacher.predicted, student_label=student.predicted)
    of_label = {"teacher_probability": (teacher, teacher), "student_probability": (student, student)}
    of_label |= {"teacher_on_student": (teacher, student), "student_on_teacher": (student, teacher)}
    for name, (side, by) in of_label.items():
        table[name] = np.nan if regression else side.probabilities[table.index, by.probabilities.argmax(axis=1)]
    sides = {"agree": ("teacher_label", "student_label"), "teacher_right": ("teacher_label", "gold")}
    sides["student_right"] = ("student_label", "gold")
    for name, (one, other) in sides.items():
        table[name] = (table[one] - table[other]).abs() < tolerance if regression else table[one] == table[other]
    return table


def disagreements(task: Task, teacher: Predictions, student: Predictions) -> pd.DataFrame:
    """The rows of `side_by_side` where the two part ways (STS: by at least 1 of 5), up to student_on_teacher; labels as text."""
    table = side_by_side(task, teacher, student, tolerance=1)
    table = table[~table["agree"]].drop(columns=["agree", "teacher_right", "student_right"]).reset_index(drop=True)
    if task.kind == "regression":
        table = table.assign(**{name: table[name].map("{:.2f}".format) for name in ("gold", "teacher_label", "student_label")})
    return table.astype({name: "float32" for name in table.columns[5:]})


def calibration_table(bins: pd.DataFrame) -> pd.DataFrame:
    """Model, role and task: accuracy, confidence, ece (expected calibration error), means over seeds, from the calibration bins."""
    names, keys = ["accuracy", "confidence", "ece"], ["model", "role", "task", "seed"]
    bins = bins[bins["count"] > 0]
    weighted = bins.assign(ece=(bins["accuracy"] - bins["confidence"]).abs())[names].mul(bins["count"], axis=0)
    sums = bins[[*keys, "count"]].join(weighted).groupby(keys, sort=False).sum()
    return sums[names].div(sums["count"], axis=0).groupby(keys[:-1], sort=False).mean().reset_index()
