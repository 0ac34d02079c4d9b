"""Who is in a study, and its stored scores and predictions, read from the run folders."""

import itertools
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from rolib.analysis.loyalty import ensemble_predictions
from rolib.analysis.uncertainty import in_threads
from rolib.config import Config
from rolib.evaluation.predictions import Predictions
from rolib.measures import TASKS
from rolib.runs import made_by, read_json, require

CONTROLS = ["mlm control", "random control"]
ROLES = ["teacher", "student", *CONTROLS]  # in reading order
ENSEMBLE = "ensemble"  # of all teachers of a profile
ENSEMBLE_ROLE = "teacher ensemble"
SAMPLE_WARNING = "These results come from the built-in sample, which is small and our own: they "
SAMPLE_WARNING += "say nothing about the real test sets."
Runs = list[Predictions]  # of one model on one measure, in order of fine-tuning seeds


def members(config: Config) -> pd.DataFrame:
    """The evaluated models of a profile in reading order: model, role, teacher, teachers, layers.

    teachers: the models it was distilled from; a teacher lists itself. A control lists the teachers
    of its student. teacher: the first of them; it defines the model's group. A folder in
    evaluation/ that belongs to no teacher or student of the profile is left out.
    FileNotFoundError if no model is evaluated yet.
    """
    rows = []
    kinds = [config.folder.glob(f"{kind}/[!.]*/config.yaml") for kind in ("teachers", "students")]
    for path in itertools.chain(*kinds):
        kind, name = path.parts[-3:-1]
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        role, teachers = "teacher", [name]
        if kind == "students":
            role = "mlm control" if settings["objective"] == "mlm" else "student"
            teachers = [teacher for teacher, weight in settings["teachers"].items() if weight]
        for model, its_role in ((name, role), (f"{name}-random", "random control")):
            if (config.folder / "evaluation" / model).exists():
                rows.append((model, its_role, teachers[0], teachers, settings["num_layers"]))
    if not rows:
        raise FileNotFoundError(f"{config.folder}: no evaluated model: run {made_by(config)} first")
    rows.sort(key=lambda row: (row[2], ROLES.index(row[1]), row[0]))
    return pd.DataFrame(rows, columns=["model", "role", "teacher", "teachers", "layers"])


def run_files(config: Config, name: str) -> list[tuple[str, str, int, Path]]:
    """Every file of this name in the runs of `members`: model, task, seed and path, in order."""
    models, found = set(members(config)["model"]), []
    for path in sorted(config.folder.glob(f"evaluation/*/*/seed-*/{name}")):
        model, task, run = path.parts[-4:-1]
        seed = run.removeprefix("seed-")
        if model in models and task in TASKS and seed.isdecimal():
            found.append((model, task, int(seed), path))
    return found


def read_scores(config: Config) -> pd.DataFrame:
    """Every score of every run, one row a score, with the columns of `members`.

    Further columns: task, seed, headline (the name of the measure's main score), score, value.
    """
    rows: list[tuple] = []
    for model, task, seed, path in run_files(config, "scores.json"):
        result = read_json(path, made_by(config))
        run = (model, task, seed, result["headline"])
        rows.extend((*run, score, value) for score, value in result["test"].items())
    scores = pd.DataFrame(rows, columns=["model", "task", "seed", "headline", "score", "value"])
    return members(config).merge(scores, on="model")


def read_result(config: Config, model: str, task: str, seed: int) -> dict:
    """The contents of scores.json of one run; FileNotFoundError if there is none."""
    path = config.folder / "evaluation" / model / task / f"seed-{seed}" / "scores.json"
    return read_json(path, made_by(config))


def data_notes(config: Config) -> list[str]:
    """Where this profile's data differ from the official data: the notes of its runs, each once."""
    notes = [SAMPLE_WARNING] if config.data == "sample" else []
    for _, task, _, path in run_files(config, "manifest.json"):
        notes += [f"{task.upper()}: {note}" for note in read_json(path, made_by(config))["notes"]]
    return list(dict.fromkeys(notes))


def evaluated(config: Config) -> dict[str, list[int]]:
    """The measures of a study in order, each with its fine-tuning seeds in order."""
    found = {(task, seed) for _, task, seed, _ in run_files(config, "predictions.parquet")}
    seeds = {task: sorted(seed for name, seed in found if name == task) for task in TASKS}
    return {task: of_task for task, of_task in seeds.items() if of_task}


def read_runs(
    config: Config, model: str, task: str, seeds: list[int], probabilities: bool = True
) -> Runs:
    """The predictions of a model on one measure, one item a fine-tuning seed.

    FileNotFoundError for a seed without predictions.
    """
    folder, command = config.folder / "evaluation" / model / task, made_by(config)
    paths = [require(folder / f"seed-{seed}" / "predictions.parquet", command) for seed in seeds]
    return in_threads(partial(Predictions.read, probabilities=probabilities), paths)


def read_teachers(
    config: Config, everyone: pd.DataFrame, task: str, seeds: list[int]
) -> dict[str, Runs]:
    """The runs of all teachers by name and, if there are several, those of their ensemble."""
    names = everyone.loc[everyone["role"] == "teacher", "model"].tolist()
    runs = {name: read_runs(config, name, task, seeds) for name in names}
    if len(names) > 1:
        labels = read_result(config, names[0], task, seeds[0])["labels"]
        by_seed = zip(*runs.values(), strict=True)
        runs[ENSEMBLE] = [ensemble_predictions(teachers, labels) for teachers in by_seed]
    return runs


def with_ensemble(everyone: pd.DataFrame) -> pd.DataFrame:
    """The table of `members`; if it has several teachers, with a last row for their ensemble."""
    if (everyone["role"] == "teacher").sum() < 2:
        return everyone
    row = {"model": ENSEMBLE, "role": ENSEMBLE_ROLE, "teacher": ENSEMBLE, "teachers": []}
    return pd.concat([everyone, pd.DataFrame([row])], ignore_index=True)


def compared(everyone: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The pairs of models to compare: (teacher or student, other model, role of the other).

    A model is compared with the controls that have the same first teacher and the same number of
    layers, a student also with its first teacher. A student of several teachers is compared also
    with every student of one teacher.
    """
    single = everyone[(everyone["role"] == "student") & (everyone["teachers"].map(len) == 1)]
    pairs = []
    for model in everyone[everyone["role"].isin(["teacher", "student"])].itertuples():
        if model.role == "student":
            pairs.append((model.model, model.teacher, "teacher"))
        of_shape = (everyone["teacher"] == model.teacher) & (everyone["layers"] == model.layers)
        others = everyone[of_shape & everyone["role"].isin(CONTROLS)]
        if model.role == "student" and len(model.teachers) > 1:
            others = pd.concat([others, single])
        pairs += [(model.model, other.model, other.role) for other in others.itertuples()]
    return pairs
