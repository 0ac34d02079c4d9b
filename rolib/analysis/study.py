"""Who is in a study, and its stored scores and predictions, read from the run folders."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from joblib import Parallel, delayed, parallel_config

from rolib.analysis.loyalty import ensemble_predictions
from rolib.config import Config
from rolib.evaluation.predictions import Predictions
from rolib.measures import TASKS
from rolib.runs import made_by, progress, read_json, require

WORDS, WORDS_ROLE = "bag-of-words", "bag of words"
ROLES = {  # in reading order, with what a role is and what it controls for
    "teacher": "what a student shall be like",
    "student": "distilled from its teachers",
    "longer control": "the teacher trained on for the student's steps: 100 % on the same budget",
    "init-only control": "the same layers of the teacher, masked words alone: inherited weights",
    "truncated control": "the same layers of the teacher, untrained: inheritance without training",
    "mlm control": "random weights, masked words alone: training without a teacher",
    "random control": "random weights, fine-tuned at once: no pre-training at all",
    WORDS_ROLE: "word counts, no network: what needs no model",
}
CONTROLS = [role for role in ROLES if role.endswith("control")]
UNTRAINED = ["truncated control", "random control"]  # without a seed of their own before the task
ENSEMBLE = "ensemble"  # of all teachers of a profile
ENSEMBLE_ROLE = "teacher ensemble"
SAMPLE_WARNING = "These results come from the built-in sample, which is small and our own: they "
SAMPLE_WARNING += "say nothing about the real test sets."
# Parameters of notebook 03 that runs must share to be compared.
SHARED = {"data", "seed", "max_train_examples", "max_validation_examples", "max_test_examples"}
FURTHER = re.compile(r"-seed-(\d+)(?=$|-random$)")  # a further distillation seed in a folder's name
# Of one model on one measure: [distillation seed][fine-tuning seed].
Runs = list[list[Predictions]]


def members(config: Config) -> pd.DataFrame:
    """The evaluated methods of a profile in reading order, one row a method.

    model: its name. role: one of `ROLES`. teachers: the models it was distilled from; a teacher
    lists itself, a control lists the teachers of its student. teacher: the first of them; it
    defines the method's group, and is "" for the bag of words. layers. checkpoints: its folders in
    evaluation/, by distillation seed: `<model>-seed-<k>` is a further checkpoint of `<model>`. A
    folder of no model in teachers/ or students/ is left out.
    FileNotFoundError if no model is evaluated yet.
    """
    evaluated = {path.name for path in config.folder.glob("evaluation/[!.]*")}
    rows, depths = [], {}
    kinds = [config.folder.glob(f"{kind}/[!.]*/config.yaml") for kind in ("teachers", "students")]
    for path in itertools.chain(*map(sorted, kinds)):
        kind, name = path.parts[-3:-1]
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        role, teachers, layers = "teacher", [name], settings["num_layers"]
        if kind == "teachers":
            depths[name] = layers
        else:
            objective = settings["objective"]
            role = "student" if objective == "distill" else f"{objective} control"
            teachers = [teacher for teacher, weight in settings["teachers"].items() if weight]
        if role == "longer control":  # it is the teacher itself, with all its layers
            layers = depths.get(teachers[0], layers)
        for folder, its_role in ((name, role), (f"{name}-random", "random control")):
            if folder in evaluated:
                rows.append((folder, its_role, teachers[0], teachers, layers))
    if WORDS in evaluated:
        rows.append((WORDS, WORDS_ROLE, "", [], 0))
    if not rows:
        raise FileNotFoundError(f"{config.folder}: no evaluated model: run {made_by(config)} first")
    return _by_method(rows)


def _by_method(rows: list[tuple]) -> pd.DataFrame:
    """The table of `members` from a row for each checkpoint, whose first part is its folder."""
    table = pd.DataFrame(rows, columns=["folder", "role", "teacher", "teachers", "layers"])
    table.insert(0, "model", table["folder"].str.replace(FURTHER, "", regex=True))
    number = table["folder"].str.extract(FURTHER, expand=False).fillna("1").astype(int)
    rank = table["role"].map([*ROLES].index)
    table = table.assign(last=table["teacher"] == "", rank=rank, number=number)
    table = table.sort_values(["last", "teacher", "rank", "model", "number"])
    folders = table.groupby("model")["folder"].agg(list).rename("checkpoints")
    table = table.drop_duplicates("model").join(folders, on="model")
    return table.drop(columns=["folder", "last", "rank", "number"]).reset_index(drop=True)


def run_files(config: Config, name: str) -> list[tuple[str, str, int, Path]]:
    """Every file of this name in the runs of `members`: checkpoint, task, seed, path; in order."""
    folders, found = {*members(config)["checkpoints"].explode()}, []
    for path in sorted(config.folder.glob(f"evaluation/*/*/seed-*/{name}")):
        folder, task, run = path.parts[-4:-1]
        seed = run.removeprefix("seed-")
        if folder in folders and task in TASKS and seed.isdecimal():
            found.append((folder, task, int(seed), path))
    return found


def read_scores(config: Config) -> pd.DataFrame:
    """Every score of every run, one row a score, with the columns of `members`.

    Further columns: checkpoint (in place of checkpoints), task, seed, headline (the name of the
    measure's main score), score, value.
    """
    rows: list[tuple] = []
    for folder, task, seed, path in run_files(config, "scores.json"):
        result = read_json(path, made_by(config))
        run = (folder, task, seed, result["headline"])
        rows.extend((*run, score, value) for score, value in result["test"].items())
    columns = ["checkpoint", "task", "seed", "headline", "score", "value"]
    everyone = members(config).explode("checkpoints").rename(columns={"checkpoints": "checkpoint"})
    return everyone.merge(pd.DataFrame(rows, columns=columns), on="checkpoint")


def read_result(config: Config, folder: str, task: str, seed: int) -> dict:
    """The contents of scores.json of one run; FileNotFoundError if there is none."""
    path = config.folder / "evaluation" / folder / task / f"seed-{seed}" / "scores.json"
    return read_json(path, made_by(config))


def data_notes(config: Config) -> list[str]:
    """What a reader must know about this profile's data and runs, each note once.

    The notes of the runs say where the data differ from the official ones. The last notes name the
    checkpoints that were evaluated with other examples than most, or not in full.
    """
    notes = [SAMPLE_WARNING] if config.data == "sample" else []
    for _, task, _, path in run_files(config, "manifest.json"):
        notes += [f"{task.upper()}: {note}" for note in read_json(path, made_by(config))["notes"]]
    kinds: dict[tuple[str, ...], list[str]] = {}
    for folder, *_, path in run_files(config, "config.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        kind = tuple(line for line in lines if line.partition(":")[0] in SHARED)
        kinds.setdefault(kind, []).append(folder)
    for odd in sorted(kinds.values(), key=len)[:-1]:
        names = ", ".join(dict.fromkeys(odd))
        text = f"Evaluated with other data or numbers of examples, or another seed: {names}."
        notes.append(f"{text} Do not compare them with the others.")
    lacking: dict[str, list[str]] = {}
    folders = members(config)["checkpoints"].explode()
    for task, here in present(config)[1].items():
        for folder in folders[~folders.isin(here["checkpoints"].explode())]:
            lacking.setdefault(folder, []).append(task.upper())
    if lacking:
        names = ", ".join(f"{folder} ({' '.join(tasks)})" for folder, tasks in lacking.items())
        text = "Left out of these measures, since they or checkpoints of other methods are not "
        notes.append(f"{text}evaluated in full: {names}.")
    return list(dict.fromkeys(notes))


def checkpoint_note(everyone: pd.DataFrame) -> str:
    """Which trained methods of `members` have one checkpoint only, in words; "" if none has."""
    trained = everyone["role"].isin(["student", *CONTROLS]) & ~everyone["role"].isin(UNTRAINED)
    single = everyone[trained & (everyone["checkpoints"].map(len) == 1)]
    if single.empty:
        return ""
    text = f"One checkpoint stands for each of {', '.join(single['model'])}. What is said of them "
    text += "holds for this checkpoint, not for its method: that needs several distillation seeds."
    return text


def present(config: Config) -> tuple[list[int], dict[str, pd.DataFrame]]:
    """The fine-tuning seeds of a study, and for each measure the models to compare there.

    A study goes on over several sittings. Its seeds are those that most checkpoints have. The
    models are the table of `members` with the checkpoints that have all these seeds of the measure
    (the bag of words has the first alone); a method without such a checkpoint is left out. Methods
    of several checkpoints get equal numbers of them. The teachers' ensemble has the last row if
    there are several teachers and all of them are here.
    """
    runs: dict[tuple[str, str], set[int]] = {}
    for folder, task, seed, _ in run_files(config, "predictions.parquet"):
        runs.setdefault((folder, task), set()).add(seed)
    counts = Counter(tuple(sorted(runs[key])) for key in runs if key[0] != WORDS)
    ranked = sorted((number, len(seeds), seeds) for seeds, number in counts.items())
    usual = list(ranked[-1][2]) if ranked else []

    def whole(task: str, folders: list[str]) -> list[str]:
        needed = {name: {*(usual[:1] if name == WORDS else usual)} for name in folders}
        return [name for name in folders if needed[name] <= runs.get((name, task), set())]

    everyone, tables = members(config), {}
    for task in TASKS:
        here = everyone.assign(checkpoints=everyone["checkpoints"].map(partial(whole, task)))
        here = here[here["checkpoints"].map(len) > 0].reset_index(drop=True)
        if usual and set(here["role"]) - {WORDS_ROLE}:
            tables[task] = here
    numbers = {len(folders) for here in tables.values() for folders in here["checkpoints"]}
    least = min(numbers - {1}, default=1)
    teachers = (everyone["role"] == "teacher").sum()
    for task, here in tables.items():
        here["checkpoints"] = here["checkpoints"].str[:least]
        if (here["role"] == "teacher").sum() == teachers:
            tables[task] = with_ensemble(here)
    return usual, tables


def by_measure(function: Callable, measures: Mapping[str, pd.DataFrame]) -> Iterator[Any]:
    """function(measure, its models) of each measure of `present`, in processes, with a bar.

    Threads would wait for each other, since much of the work holds Python's lock. The number of
    processes is OMP_NUM_THREADS, the core share of a job in the Snakefile; without it, all cores.
    """
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    jobs = [delayed(function)(*measure) for measure in measures.items()]
    with parallel_config("loky", inner_max_num_threads=1):
        found = Parallel(min(cores, len(jobs)), return_as="generator")(jobs)
        yield from progress(found, total=len(jobs), unit="measure")


def read_runs(
    config: Config, folders: list[str], task: str, seeds: list[int], probabilities: bool = True
) -> Runs:
    """The predictions of checkpoints on one measure: `[checkpoint][fine-tuning seed]`.

    FileNotFoundError for a seed without predictions.
    """

    def read(folder: str, seed: int) -> Predictions:
        path = config.folder / f"evaluation/{folder}/{task}/seed-{seed}/predictions.parquet"
        return Predictions.read(require(path, made_by(config)), probabilities)

    return [[read(folder, seed) for seed in seeds] for folder in folders]


def read_teachers(
    config: Config, here: pd.DataFrame, task: str, seeds: list[int]
) -> dict[str, Runs]:
    """The runs of all teachers in `present` by name and, if it has a row there, of their ensemble.

    All have one checkpoint.
    """
    names = here.loc[here["role"] == "teacher", "model"].tolist()
    runs = {name: read_runs(config, [name], task, seeds) for name in names}
    if ENSEMBLE in set(here["model"]):
        labels = read_result(config, names[0], task, seeds[0])["labels"]
        by_seed = zip(*(teacher for [teacher] in runs.values()), strict=True)
        runs[ENSEMBLE] = [[ensemble_predictions(teachers, labels) for teachers in by_seed]]
    return runs


def with_ensemble(everyone: pd.DataFrame) -> pd.DataFrame:
    """The table of `members`; if it has several teachers, with a last row for their ensemble."""
    if (everyone["role"] == "teacher").sum() < 2:
        return everyone
    row = {"model": ENSEMBLE, "role": ENSEMBLE_ROLE, "teacher": ENSEMBLE, "teachers": []}
    row["checkpoints"] = [ENSEMBLE]
    return pd.concat([everyone, pd.DataFrame([row])], ignore_index=True)


def compared(everyone: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The pairs of models to compare: (teacher or student, other model, role of the other).

    A student is compared with its first teacher and with a control of each role: its own, or else
    one of that teacher that has its number of layers (of the longer control, the number does not
    matter). A teacher is compared with random weights. Both are compared with the
    bag of words, and a student of several teachers also with every student of one teacher.
    """
    single = everyone[(everyone["role"] == "student") & (everyone["teachers"].map(len) == 1)]
    pairs = []
    for model in everyone[everyone["role"].isin(["teacher", "student"])].itertuples():
        same = everyone[everyone["teacher"] == model.teacher]
        alike = (same["layers"] == model.layers) | (same["role"] == "longer control")
        controls = same[same["role"].isin(CONTROLS) & alike]
        if model.role == "student":
            pairs.append((model.model, model.teacher, "teacher"))
        else:
            controls = controls[controls["role"] == "random control"]
        own = controls["model"] == model.model + "-" + controls["role"].str.removesuffix(" control")
        controls = pd.concat([controls[own], controls]).drop_duplicates("role").sort_index()
        others = [controls, everyone[everyone["role"] == WORDS_ROLE]]
        if model.role == "student" and len(model.teachers) > 1:
            others.append(single)
        pairs += [(model.model, row.model, row.role) for row in pd.concat(others).itertuples()]
    return pairs
