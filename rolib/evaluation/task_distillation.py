"""Distillation at the task: a student also learns from the answers of fine-tuned teachers.

The teachers may have any vocabularies, since they share the labels, words and scores of a measure.
Several teachers answer with the mean of their probabilities or scores. The loss of a batch with N
units (words or examples; Hinton et al. 2015) is

    L = 1/N * sum over u of [ g_u (1 - alpha) CE(gold_u, student_u)
                              + alpha T^2 KL(teacher_u || student_u) ]

g_u is 1 for a unit with a gold label, and 0 for one without. N counts both. So every unit weighs
the same wherever it stands, and alpha 0 is plain fine-tuning, whose loss is a mean over units too.
For a score both terms are squared errors. See `rolib.distillation.losses.task_loss`.

Without labels are first the training examples that `max_train_examples` leaves out. For taggers
follow, if these are too few, plain sentences of the corpus in the first teacher's parameters.
"""

import hashlib
import re
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

from rolib import runs
from rolib.config import EvaluateConfig, TaskName, TrainingConfig
from rolib.data.corpus import corpus_identity, load_corpus
from rolib.data.download import data_root
from rolib.data.words import split_words
from rolib.distillation.losses import IGNORE
from rolib.evaluation.examples import STS_MAX, Splits, read_splits
from rolib.evaluation.robustness import predict_perturbed
from rolib.measures import TASKS
from rolib.profiles import load, read_yaml

WORDS = range(4, 61)  # of a plain sentence; others are headings and lists


def kept_run(config: EvaluateConfig, teacher: str, task: TaskName) -> Path:
    """The fine-tuning run of a task teacher, "name" (its first kept seed) or "name:seed".

    It lies in evaluation/ or task/ of the profile. It has seen at most the labelled examples of the
    student, and of these the most: one that has seen more would hand on the labels of "unlabelled"
    examples. Which examples these are, `seed` decides. FileNotFoundError, which names the remedy,
    if there is none.
    """

    def labels(run: Path) -> float:
        learned = read_yaml(run / "config.yaml")
        same = learned["seed"] == config.seed or not own  # else other examples: as if too many
        return (learned["max_train_examples"] or np.inf) if same else np.nan

    (name, _, seed), own = teacher.partition(":"), config.max_train_examples
    pattern = f"{name}/{task}/seed-{seed or '*'}/model"
    models = chain(*((config.folder / place).glob(pattern) for place in ("evaluation", "task")))
    found = [path.parent for path in models if labels(path.parent) <= (own or np.inf)]
    if not found:
        problem = f"no model of {teacher!r} is kept that learned {task} from these examples"
        remedy = f"evaluate it with seed {config.seed}, max_train_examples {own} and keep_models"
        raise FileNotFoundError(f"task_teachers ({config.folder}): {problem}: {remedy}")
    return min(found, key=lambda run: (-labels(run), int(run.name.removeprefix("seed-"))))


def identity(run: Path) -> str:
    """The SHA-256 of the kept model of a fine-tuning run."""
    return runs.model_identity(run / "model", "03-evaluate-model")


def teachers_corpus(config: EvaluateConfig) -> TrainingConfig:
    """Which text the parameters of the first task teacher name."""
    name = config.task_teachers[0].partition(":")[0]
    settings = read_yaml(runs.model_folder(config, name) / "config.yaml")
    known = TrainingConfig.model_fields.keys() & settings.keys()
    return TrainingConfig(**{key: settings[key] for key in known})


def identities(config: EvaluateConfig, task: TaskName) -> dict[str, str]:
    """What a distilled run reads besides its measure, by name, for its manifest."""
    teachers = config.task_teachers if config.alpha_task else []
    inputs = {f"task teacher {name}": identity(kept_run(config, name, task)) for name in teachers}
    if inputs and config.unlabelled and TASKS[task].kind == "tagging":
        inputs["corpus"] = corpus_identity(teachers_corpus(config), data_root(config.data))
    return inputs


def plain_sentences(config: EvaluateConfig, count: int) -> list[dict]:
    """At most `count` sentences of the corpus as rows of a tagger; their labels mean nothing."""
    texts = load_corpus(teachers_corpus(config), data_root(config.data))["train"]["text"]
    sentences = (split_words(part) for text in texts for part in re.split("(?<=[.!?]) ", text))
    fitting = (words for words in sentences if len(words) in WORDS)
    rows = enumerate(islice(fitting, count))
    return [{"id": f"corpus-{i}", "tokens": one, "labels": [0] * len(one)} for i, one in rows]


def unlabelled_examples(config: EvaluateConfig, task: TaskName, train: Dataset) -> Dataset:
    """At most config.unlabelled examples that the labelled ones leave; their labels do not count.

    train: all training examples. The order is that of `sample_examples`.
    """
    order = np.random.default_rng(config.seed).permutation(len(train))
    first = config.max_train_examples or len(train)
    rest = train.select(order[first:][: config.unlabelled])
    missing = config.unlabelled - len(rest)
    if missing and TASKS[task].kind == "tagging":
        rows = plain_sentences(config, missing)
        rest = concatenate_datasets([rest, Dataset.from_list(rows, train.features)])
    return rest


def stored_answers(config: EvaluateConfig, teacher: str, split: Dataset, part: str) -> np.ndarray:
    """A task teacher's answers to a split: (units, C) probabilities, or (units, 1) scores / 5.

    They are computed once and lie in runs/<profile>/task-answers/<teacher>/<task>/seed-<k>/<part>.
    Of another model, or to other examples, they are not used but replaced. Gold labels are not
    stored. Errors as in `kept_run`.
    """
    [task] = config.tasks
    run = kept_run(config, teacher, task)
    folder = config.folder / "task-answers" / run.parts[-3] / task / run.name / part
    settings = load(EvaluateConfig, run / "config.yaml")
    asked = split.remove_columns("labels" if TASKS[task].kind == "tagging" else "label").to_dict()
    examples = hashlib.sha256(repr(asked).encode()).hexdigest()
    inputs = {"model": identity(run), "examples": examples}
    # Another run that wants the same answers waits for them.
    with runs.lock(folder.with_name(f"{part}-asked"), timeout=-1):
        if not runs.is_finished(folder, settings, inputs):
            with runs.new_run(folder, settings, inputs) as working:
                table = predict_perturbed(run, split, {"": str})[""]
                table.drop(columns="gold").to_parquet(working / "answers.parquet")
        table = pd.read_parquet(folder / "answers.parquet")
    if TASKS[task].kind == "regression":
        return table[["predicted"]].to_numpy(np.float32) / np.float32(STS_MAX)
    return np.stack(table["probabilities"].tolist())


def read_taught(config: EvaluateConfig, model_folder: Path, data: DatasetDict) -> Splits:
    """The splits of `read_splits`; with task teachers the train rows have their answers too.

    These are `soft`, float32 (units of the row, C), the mean over the teachers. Rows of unlabelled
    examples follow; they have no label.
    """
    splits, [task] = read_splits(config, model_folder, data), config.tasks
    if not (config.task_teachers and config.alpha_task):
        return splits
    labelled, rows, counts = splits["train"]
    parts = {"train": (labelled, rows)}
    if len(unlabelled := unlabelled_examples(config, task, data["train"])):
        all_of = config.model_copy(update={"max_train_examples": 0})
        read = read_splits(all_of, model_folder, DatasetDict(train=unlabelled))
        more = [row | {"labels": [IGNORE] * len(row["labels"])} for row in read["train"][1]]
        parts["unlabelled"] = (unlabelled, more)
    for part, (split, of_part) in parts.items():
        answers = [stored_answers(config, name, split, part) for name in config.task_teachers]
        mean = np.mean(answers, axis=0, dtype=np.float64).astype(np.float32)
        ends = np.cumsum([sum(word >= 0 for word in row["words"]) for row in of_part])
        for row, soft in zip(of_part, np.split(mean, ends[:-1]), strict=True):
            row["soft"] = soft
    rows = [row for _, of_part in parts.values() for row in of_part]
    return splits | {"train": (labelled, rows, counts | {"unlabelled": len(unlabelled)})}
