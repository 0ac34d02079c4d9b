"""What the explorer shows: two models' predictions side by side, and a fine-tuned model's answer to a typed text."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, List, Value

from rolib.alignment import split_words
from rolib.corpus import normalise
from rolib.predictions import Predictions, check_same_units, unit_name
from rolib.robustness import predict_perturbed, task_of
from rolib.runs import read_json
from rolib.tasks import Task

STS_TOLERANCE = 0.5  # similarity scores that lie closer count as equal

FILTERS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "all": lambda table: table["agree"] | True,
    "agree": lambda table: table["agree"],
    "disagree": lambda table: ~table["agree"],
    "both wrong": lambda table: ~table["teacher_right"] & ~table["student_right"],
    "student right, teacher wrong": lambda table: ~table["teacher_right"] & table["student_right"],
    "teacher right, student wrong": lambda table: table["teacher_right"] & ~table["student_right"],
}


def side_by_side(task: Task, split: Dataset, teacher: Predictions, student: Predictions) -> pd.DataFrame:
    """Two models' predictions beside the texts of their split, a row a word (taggers) or an example.

    Columns: example, position, text, gold, teacher, teacher_probability, student, student_probability (of the label given;
    none for STS), agree, teacher_right, student_right. ValueError for a unit that the student or the split lacks.
    """
    if task.kind == "tagging":
        texts = {(row["id"], i): token for row in split for i, token in enumerate(row["tokens"])}
    else:
        texts = {(row["id"], 0): " ‖ ".join(filter(None, (row["text"], row["text_pair"]))) for row in split}
    check_same_units(teacher, student, ("teacher's table", "student's table"))
    units = list(teacher.units.itertuples(index=False, name=None))
    if missing := [unit for unit in units if unit not in texts]:
        raise ValueError(f"{unit_name(missing[0])} is missing from the split")
    table = teacher.units.assign(text=[texts[unit] for unit in units], gold=teacher.gold)
    for name, run in (("teacher", teacher), ("student", student)):
        table[name] = run.predicted
        if task.kind != "regression":
            table[f"{name}_probability"] = run.probabilities.max(axis=1)
    return table.assign(
        agree=_same(task, table["teacher"], table["student"]),
        teacher_right=_same(task, table["teacher"], table["gold"]),
        student_right=_same(task, table["student"], table["gold"]),
    )


def _same(task: Task, one: pd.Series, other: pd.Series) -> pd.Series:
    return (one - other).abs() < STS_TOLERANCE if task.kind == "regression" else one == other


def predict_text(run: Path, text: str, other: str = "") -> pd.DataFrame:
    """What the kept model of a fine-tuning run says about a text (STS: about `text` and `other`).

    Index (position, text): one row a word for taggers, cut like the corpus, and one for the text otherwise; columns:
    the probability of each label, or the STS `score`. A LaRoSeDa model reads the text as a review without a title.
    ValueError for an empty text.
    """
    task, labels = task_of(run), read_json(run / "scores.json", "03-evaluate-model")["labels"]
    text, other = normalise(text), normalise(other)
    if not text or (task.kind == "regression" and not other):
        raise ValueError(f"{task.name}: no text to read" + " in one of the two boxes" * (task.kind == "regression"))
    label, string = ClassLabel(names=labels) if labels else Value("float64"), Value("string")
    if task.kind == "tagging":
        words = split_words(text)
        row = {"tokens": words, "labels": [0] * len(words)}
        features = {"tokens": List(string), "labels": List(label)}
    else:
        words = [f"{text} ‖ {other}" if task.kind == "regression" else text]
        pair = ("", text) if task.dataset == "LaRoSeDa" else (text, other if task.kind == "regression" else "")
        row = {"text": pair[0], "text_pair": pair[1], "label": 0}
        features = {"text": string, "text_pair": string, "label": label}
    split = Dataset.from_list([{"id": "typed"} | row], features=Features({"id": string} | features))
    table = predict_perturbed(run, split, {"typed": str})["typed"]
    values = np.stack(table["probabilities"]) if labels else table[["predicted"]].to_numpy()
    index = pd.MultiIndex.from_arrays([range(len(words)), words], names=["position", "text"])
    return pd.DataFrame(values, index=index, columns=labels or ["score"])
