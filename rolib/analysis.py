"""What stored predictions say: scores and loyalty with intervals, comparisons, calibration, where student and teacher part ways.

No model is loaded. Every table is computed measure by measure, so that the predictions of one measure are in memory at a time.
"""

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from rolib import uncertainty
from rolib.config import Config
from rolib.loyalty import chance_loyalty, class_scorer, compare_predictions, loyalty_scorer
from rolib.metrics import at_ones, scorer
from rolib.predictions import Predictions, check_paired
from rolib.results import ENSEMBLE, combine, members, read_predictions
from rolib.runs import made_by, read_json, write_text
from rolib.tasks import TASKS

ENSEMBLE_ROLE = "teacher ensemble"
CONTROLS = ["mlm control", "random control"]
LEVEL = 0.05  # of the family-wise error
KEYS = ["model", "role", "teacher", "own", "task"]
Runs = dict[int, Predictions]  # fine-tuning seed -> predictions


def evaluated(config: Config) -> dict[str, list[int]]:
    """The measures of a study and the fine-tuning seeds of each, in order."""
    found = {}
    for path in config.folder.glob("evaluation/*/*/seed-*/predictions.parquet"):
        found.setdefault(path.parts[-3], set()).add(int(path.parts[-2].removeprefix("seed-")))
    return {task: sorted(found[task]) for task in TASKS if task in found}


def read_runs(config: Config, model: str, task: str, seeds: list[int], probabilities: bool = True) -> Runs:
    """The runs of a model, by seed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(
            zip(seeds, pool.map(lambda seed: read_predictions(config, model, task, seed, probabilities), seeds), strict=True)
        )


def read_teachers(config: Config, everyone: pd.DataFrame, task: str, seeds: list[int]) -> dict[str, Runs]:
    """The runs of all teachers, and of their ensemble where there is one."""
    names = everyone.loc[everyone["role"] == "teacher", "model"]
    runs = {name: read_runs(config, name, task, seeds) for name in names}
    if ENSEMBLE in set(everyone["model"]):
        runs[ENSEMBLE] = {seed: combine(config, {name: runs[name][seed] for name in names}, task, seed) for seed in seeds}
    return runs


def with_ensemble(everyone: pd.DataFrame) -> pd.DataFrame:
    """The table of `results.members` and, in a study of several teachers, a row for their ensemble."""
    teachers = everyone.loc[everyone["role"] == "teacher", "model"].tolist()
    row = {"model": ENSEMBLE, "role": ENSEMBLE_ROLE, "teacher": ENSEMBLE, "teachers": teachers}
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


def score_tables(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and comparisons of a study from its predictions, as fractions.

    Scores: model, role, teacher, task, score, headline (is it?), seeds, examples, value (mean over seeds), sd (over seeds;
    NaN for one), low, high (95 %), of every model and of the teachers' ensemble; the measure `mean` is the mean of the headlines.
    Comparisons, of headline scores: model, against, role (of the other), task, difference, low, high, p, p_holm (over the
    measures of a pair; `mean` is no part of the family), holds (p_holm below 0.05).
    """
    everyone, rows, headlines, points = with_ensemble(members(config)), [], {}, {}
    for task, seeds in evaluated(config).items():
        folder = config.folder / "evaluation" / everyone["model"][0] / task / f"seed-{seeds[0]}"
        headline = read_json(folder / "scores.json", made_by(config))["headline"]
        models = read_teachers(config, everyone, task, seeds)
        others = [name for name in everyone["model"] if name not in models]
        models |= {name: read_runs(config, name, task, seeds, probabilities=False) for name in others}
        check_paired((f"{name}, seed {seed}", run) for name, runs in models.items() for seed, run in runs.items())
        scorers = {name: [scorer(TASKS[task], run) for run in runs.values()] for name, runs in models.items()}
        examples = models[everyone["model"][0]][seeds[0]].num_examples
        draws = uncertainty.bootstrap(scorers, examples, config.resamples, config.seed)
        for name, by_seed in scorers.items():
            runs = pd.DataFrame([at_ones(run, examples) for run in by_seed])
            facts = {"model": name, "task": task, "seeds": len(seeds), "examples": examples}
            rows += [facts | _score(score, score == headline, runs[score], draws[name][score]) for score in runs]
            headlines[name, task], points[name, task] = draws[name][headline], runs[headline].mean()
    for name, by_task in itertools.groupby(sorted(headlines), key=lambda key: key[0]):
        keys = list(by_task)
        headlines[name, "mean"] = np.mean([headlines[key] for key in keys], axis=0)
        points[name, "mean"] = np.mean([points[key] for key in keys])
        facts = {"model": name, "task": "mean", "seeds": len(seeds)}
        rows.append(facts | _score("mean", True, pd.Series(points[name, "mean"]), headlines[name, "mean"]))
    scores = everyone[["model", "role", "teacher"]].merge(pd.DataFrame(rows), on="model")
    return scores, _compare(compared(everyone), headlines, points)


def _score(score: str, is_headline: bool, values: pd.Series, draws: np.ndarray) -> dict:
    low, high = uncertainty.interval(draws)
    return {"score": score, "headline": is_headline, "value": values.mean(), "sd": values.std(), "low": low, "high": high}


def _compare(pairs, headlines: dict, points: dict) -> pd.DataFrame:
    rows = []
    tasks = list(dict.fromkeys(task for _, task in headlines))
    for (model, other, role), task in itertools.product(pairs, tasks):
        gaps = headlines[model, task] - headlines[other, task]
        low, high = uncertainty.interval(gaps)
        row = {
            "model": model,
            "against": other,
            "role": role,
            "task": task,
            "difference": points[model, task] - points[other, task],
        }
        rows.append(row | {"low": low, "high": high, "p": uncertainty.p_value(gaps)})
    table = pd.DataFrame(rows)
    family = [table["model"], table["against"], table["task"] == "mean"]
    table["p_holm"] = table.groupby(family)["p"].transform(uncertainty.holm)
    return table.assign(holds=table["p_holm"] < LEVEL)


def score_table(scores: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Model x measure as text in percent: "91.7 ± 0.6", half the 95 % interval; * where a student differs from its first teacher."""
    to_teacher = comparisons[(comparisons["role"] == "teacher") & comparisons["holds"]]
    marked = set(zip(to_teacher["model"], to_teacher["task"], strict=True))
    rows = scores[scores["headline"]]
    text = [
        f"{100 * row.value:.1f} ± {50 * (row.high - row.low):.1f}" + "*" * ((row.model, row.task) in marked)
        for row in rows.itertuples()
    ]
    return _wide(rows.assign(text=text), ["role", "model"])


def comparison_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Pair x measure as text in points: "-0.4 ± 0.8", the student's score minus the other's; * where the difference holds."""
    text = [
        f"{100 * row.difference:+.1f} ± {50 * (row.high - row.low):.1f}" + "*" * row.holds for row in comparisons.itertuples()
    ]
    return _wide(comparisons.assign(text=text), ["model", "against", "role"])


def loyalty_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one loyalty, model and teacher x measure, as text: "0.951 ± 0.004 (0.08; 0.96)", in brackets chance level and floor, "–" for none."""
    show = {name: [f"{value:.2f}" if pd.notna(value) else "–" for value in rows[name]] for name in ("chance", "floor")}
    text = [
        f"{row.value:.3f} ± {(row.high - row.low) / 2:.3f} ({chance}; {floor})"
        for row, chance, floor in zip(rows.itertuples(), *show.values(), strict=True)
    ]
    return _wide(rows.assign(text=text), ["role", "model", "teacher"])


def _wide(rows: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    table = rows.pivot_table(index=index, columns="task", values="text", aggfunc="first", sort=False)
    return table[[task for task in [*TASKS, "mean"] if task in table]].reset_index().rename_axis(columns=None)


def loyalty_tables(config: Config) -> dict[str, pd.DataFrame]:
    """All that notebook 04 writes, by name; see `task_loyalty`, `calibration_bins`, `class_loyalty` and `disagreements`."""
    parts = [task_tables(config, task, seeds) for task, seeds in evaluated(config).items()]
    return {name: pd.concat([part[name] for part in parts if len(part[name])], ignore_index=True) for name in parts[0]}


def write_tables(config: Config, tables: dict[str, pd.DataFrame]) -> None:
    """Write tables by name into the profile's folder: name.csv, but the long one of disagreements as Parquet."""
    for name, table in tables.items():
        if name == "disagreements":
            path = config.folder / f".{name}.parquet"
            table.to_parquet(path, compression="zstd", index=False)
            os.replace(path, config.folder / f"{name}.parquet")
        else:
            write_text(config.folder / f"{name}.csv", table.to_csv(index=False))


def task_tables(config: Config, task: str, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """The tables of `loyalty_tables` for one measure."""
    everyone, pairs = with_ensemble(members(config)), {}
    # Teachers are kept, as all others are held against them; everyone else is read once and let go.
    teachers = read_teachers(config, everyone, task, seeds)
    tables = {name: [] for name in ("calibration", "classes", "confusion", "disagreements")}
    for member in everyone.itertuples():
        runs = teachers.get(member.model) or read_runs(config, member.model, task, seeds)
        if task != "sts":
            tables["calibration"].append(calibration_bins(runs).assign(model=member.model, role=member.role, task=task))
        for name in references_of(member, ENSEMBLE in teachers):
            pair = teachers[name], runs
            own = name != ENSEMBLE
            pairs[member.model, member.role, name, own, task] = pair_scorers(TASKS[task], *pair, config.seed)
            if member.role == "student" and own:
                facts = {"model": member.model, "teacher": name, "task": task}
                tables["disagreements"].append(disagreements(TASKS[task], *next(_by_seed(*pair))).assign(seed=seeds[0], **facts))
                if task != "sts":
                    tables["classes"].append(class_loyalty(*pair, config.resamples, config.seed).assign(**facts))
                    tables["confusion"].append(confusion(*pair).assign(**facts))
    floors = {name: floor_loyalty(TASKS[task], runs) for name, runs in teachers.items()}
    examples = runs[seeds[0]].num_examples
    done = {name: pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for name, parts in tables.items()}
    return {"loyalty": task_loyalty(pairs, floors, examples, config)} | done


def pair_scorers(task, teacher: Runs, student: Runs, seed: int) -> tuple[list, list[dict]]:
    """For each fine-tuning seed the `loyalty_scorer` of a pair of models, and its `chance_loyalty`."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scorers = pool.map(lambda sides: loyalty_scorer(task, *sides), _by_seed(teacher, student))
        chances = pool.map(lambda sides: chance_loyalty(task, *sides, seed=seed), _by_seed(teacher, student))
        return list(scorers), list(chances)


def references_of(member, ensemble: bool) -> list[str]:
    """The models that a member (a row of `results.members`) is held against: its teachers but itself, and their ensemble."""
    if member.role == ENSEMBLE_ROLE:
        return []
    own = [teacher for teacher in member.teachers if teacher != member.model.removesuffix("-random")]
    return own + [ENSEMBLE] * (ensemble and member.role != "teacher")


def task_loyalty(pairs: dict, floors: dict, examples: int, config: Config) -> pd.DataFrame:
    """Loyalty with its interval: model, role, teacher, own, task, measure, seeds, examples, value, sd, low, high, chance, floor.

    value: mean over fine-tuning seeds, student and teacher at the same seed; sd over seeds (NaN for one); low, high: 95 %
    bootstrap interval; chance: see `loyalty.chance_loyalty`; floor: see `floor_loyalty` (NaN for one seed).
    """
    draws = uncertainty.bootstrap({key: scorers for key, (scorers, _) in pairs.items()}, examples, config.resamples, config.seed)
    rows = []
    for key, (scorers, chances) in pairs.items():
        runs = [at_ones(score, examples) for score in scorers]
        for measure in runs[0]:
            values = pd.Series([run[measure] for run in runs])
            row = dict(zip(KEYS, key, strict=True)) | {"measure": measure, "seeds": len(runs), "examples": examples}
            low, high = uncertainty.interval(draws[key][measure])
            row |= {"value": values.mean(), "sd": values.std(), "low": low, "high": high}
            chance = np.mean([run.get(measure, np.nan) for run in chances])
            rows.append(row | {"chance": chance, "floor": floors[key[2]].get(measure, np.nan)})
    return pd.DataFrame(rows)


def floor_loyalty(task, runs: Runs) -> dict[str, float]:
    """Mean loyalty between two fine-tuning seeds of one model, over all pairs of seeds: {} for one seed.

    No student needs more: a teacher fine-tuned twice is no more loyal to itself.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = list(pool.map(lambda pair: compare_predictions(task, *pair), itertools.combinations(runs.values(), 2)))
    return {measure: float(np.mean([pair[measure] for pair in pairs])) for measure in (pairs[0] if pairs else {})}


def class_loyalty(teacher: Runs, student: Runs, resamples: int, seed: int) -> pd.DataFrame:
    """Label loyalty by the teacher's label: label, units (a seed, on average), value, low, high (95 %).

    value: of all units of all seeds where the teacher gives the label, the share where the student does. The interval is over
    the resamples that hold the label, so that a label of one sentence has a narrow one: mind `units`.
    """
    labels = sorted({label for run in teacher.values() for label in run.predicted})
    scorers = [class_scorer(t.examples, t.predicted, s.predicted, labels) for t, s in _by_seed(teacher, student)]
    examples = next(iter(teacher.values())).num_examples
    points = [scorer(np.ones((examples, 1))) for scorer in scorers]
    hits, units = (np.mean([point[name][:, 0] for point in points], axis=0) for name in ("hits", "units"))
    draws = uncertainty.bootstrap({"student": scorers}, examples, resamples, seed)["student"]
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(draws["hits"] / draws["units"], [0.025, 0.975], axis=1)
    return pd.DataFrame({"label": labels, "units": units, "value": hits / units, "low": low, "high": high})


def confusion(teacher: Runs, student: Runs) -> pd.DataFrame:
    """How often, over all seeds, the student gives a label where the teacher gives another: teacher_label, student_label, count."""
    sides = [pd.DataFrame({"teacher_label": t.predicted, "student_label": s.predicted}) for t, s in _by_seed(teacher, student)]
    return pd.concat(sides).value_counts().rename("count").reset_index()


def disagreements(task, teacher: Predictions, student: Predictions) -> pd.DataFrame:
    """The units where student and teacher part ways (STS: by at least 1 of 5): one row each.

    example, position, gold, teacher_label, student_label (as text), teacher_probability, student_probability (of the own
    label), teacher_on_student, student_on_teacher (of the other's label; all NaN for STS).
    """
    regression = task.kind == "regression"
    apart = np.abs(teacher.predicted - student.predicted) >= 1 if regression else teacher.predicted != student.predicted
    table, show = teacher.units[apart].reset_index(drop=True), "{:.2f}".format if regression else str
    labels = {"gold": teacher.gold, "teacher_label": teacher.predicted, "student_label": student.predicted}
    for name, values in labels.items():
        table[name] = np.array([show(value) for value in values[apart]], dtype=object)
    sides = [np.nan if regression else side.probabilities[apart] for side in (teacher, student)]
    for name, side, by in [
        ("teacher_probability", 0, 0),
        ("student_probability", 1, 1),
        ("teacher_on_student", 0, 1),
        ("student_on_teacher", 1, 0),
    ]:
        table[name] = np.nan if regression else sides[side][np.arange(len(table)), sides[by].argmax(axis=1)]
    return table.astype({name: "float32" for name in table.columns[5:]})


def calibration_bins(runs: Runs) -> pd.DataFrame:
    """`uncertainty.reliability` of one model's runs, one after the other: seed, low, high, confidence, accuracy, count."""
    parts = []
    for seed, run in runs.items():
        confidence = run.probabilities.max(axis=1, keepdims=True)
        parts.append(uncertainty.reliability(confidence, run.gold == run.predicted).assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def calibration_table(bins: pd.DataFrame) -> pd.DataFrame:
    """Model, role and task: accuracy, confidence, ece (expected calibration error), means over seeds, from `calibration_bins`."""
    bins = bins[bins["count"] > 0]
    bins = bins.assign(ece=(bins["accuracy"] - bins["confidence"]).abs())
    names = ["accuracy", "confidence", "ece"]
    weighted = bins[names].mul(bins["count"], axis=0).assign(count=bins["count"])
    keys = [bins[name] for name in ("model", "role", "task", "seed")]
    sums = weighted.groupby(keys, sort=False).sum()
    return sums[names].div(sums["count"], axis=0).groupby(["model", "role", "task"], sort=False).mean().reset_index()


def _by_seed(teacher: Runs, student: Runs) -> Iterator[tuple[Predictions, Predictions]]:
    return ((teacher[seed], student[seed]) for seed in teacher)
