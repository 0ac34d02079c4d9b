"""From run folders to tables: who is in the study, their stored scores and predictions."""

import pandas as pd
import yaml

from rolib.analysis.loyalty import ensemble_predictions
from rolib.analysis.uncertainty import in_threads
from rolib.config import Config
from rolib.evaluation.predictions import Predictions
from rolib.measures import TASKS
from rolib.runs import made_by, read_json, require

ROLES = ("teacher", "student", "mlm control", "random control")
ENSEMBLE = "ensemble"  # of all teachers of a profile
Runs = list[Predictions]  # of one model, in order of fine-tuning seeds
CONTROLS = ["mlm control", "random control"]
ENSEMBLE_ROLE = "teacher ensemble"
SAMPLE_WARNING = "These results come from the built-in sample: they show that the machine runs and prove nothing about the models."


def members(config: Config) -> pd.DataFrame:
    """The evaluated models of a profile: model, role, teacher, teachers, layers, in reading order.

    teachers: those it learned from, of a teacher itself; teacher: the first of them, in whose group it stands. A control
    has the teachers of the student it belongs to. Raises FileNotFoundError when nothing is evaluated yet.
    """
    rows = []
    for folder in sorted(config.folder.glob("evaluation/*")):
        name = folder.name.removesuffix("-random")
        is_teacher = (config.folder / "teachers" / name).exists()
        settings = config.folder / ("teachers" if is_teacher else "students") / name / "config.yaml"
        settings = yaml.safe_load(settings.read_text(encoding="utf-8"))
        teachers = (
            [name]
            if is_teacher
            else [teacher for teacher, weight in settings["teachers"].items() if weight]
        )
        role = (
            "teacher"
            if is_teacher
            else "mlm control"
            if settings["objective"] == "mlm"
            else "student"
        )
        role = "random control" if folder.name.endswith("-random") else role
        rows.append((folder.name, role, teachers[0], teachers, settings["num_layers"]))
    if not rows:
        raise FileNotFoundError(
            f"{config.folder / 'evaluation'} holds no evaluated model: run {made_by(config)} first"
        )
    rows.sort(key=lambda row: (row[2], ROLES.index(row[1]), row[0]))
    return pd.DataFrame(rows, columns=["model", "role", "teacher", "teachers", "layers"])


def read_scores(config: Config) -> pd.DataFrame:
    """Every score of every run: model, role, teacher, layers, task, seed, headline (a score's name), score, value."""
    rows = []
    for path in sorted(config.folder.glob("evaluation/*/*/seed-*/scores.json")):
        result = read_json(path, made_by(config))
        for score, value in result["test"].items():
            rows.append(
                (path.parts[-4], result["task"], result["seed"], result["headline"], score, value)
            )
    scores = pd.DataFrame(rows, columns=["model", "task", "seed", "headline", "score", "value"])
    return members(config).merge(scores, on="model")


def read_predictions(
    config: Config, model: str, task: str, seed: int, probabilities: bool = True
) -> Predictions:
    """The stored predictions of one run."""
    path = config.folder / "evaluation" / model / task / f"seed-{seed}" / "predictions.parquet"
    return Predictions.read(require(path, made_by(config)), probabilities)


def data_notes(config: Config) -> list[str]:
    """What stands in for official data in this profile, from the manifests of its runs; once each."""
    notes = dict.fromkeys(
        f"{path.parts[-3].upper()}: {note}"
        for path in sorted(config.folder.glob("evaluation/*/*/seed-*/manifest.json"))
        for note in read_json(path, made_by(config))["notes"]
    )
    return ([SAMPLE_WARNING] if config.data == "sample" else []) + list(notes)


def evaluated(config: Config) -> dict[str, list[int]]:
    """The measures of a study and the fine-tuning seeds of each, in order."""
    found = {}
    for path in config.folder.glob("evaluation/*/*/seed-*/predictions.parquet"):
        found.setdefault(path.parts[-3], set()).add(int(path.parts[-2].removeprefix("seed-")))
    return {task: sorted(found[task]) for task in TASKS if task in found}


def read_runs(
    config: Config, model: str, task: str, seeds: list[int], probabilities: bool = True
) -> Runs:
    """The runs of a model."""
    return in_threads(
        lambda seed: read_predictions(config, model, task, seed, probabilities), seeds
    )


def read_teachers(
    config: Config, everyone: pd.DataFrame, task: str, seeds: list[int]
) -> dict[str, Runs]:
    """The runs of all teachers, and of their ensemble where there is one."""
    names = everyone.loc[everyone["role"] == "teacher", "model"].tolist()
    runs = {name: read_runs(config, name, task, seeds) for name in names}
    if len(names) > 1:
        scores = config.folder / "evaluation" / names[0] / task / f"seed-{seeds[0]}" / "scores.json"
        labels = read_json(scores, made_by(config))["labels"]
        runs[ENSEMBLE] = [
            ensemble_predictions(sides, labels) for sides in zip(*runs.values(), strict=True)
        ]
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
            pairs += [
                (student.model, other.model, "student")
                for other in students.itertuples()
                if len(other.teachers) == 1
            ]
    return pairs
