"""What the explorer shows: the texts of a data set's units, and a fine-tuned model's answer to a typed text."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, List

from rolib.alignment import split_words
from rolib.corpus import normalise
from rolib.predictions import UNIT, unit_name
from rolib.robustness import predict_perturbed, task_of
from rolib.runs import read_json
from rolib.tasks import Task

FILTERS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "all": lambda table: table["agree"] | True,
    "agree": lambda table: table["agree"],
    "disagree": lambda table: ~table["agree"],
    "both wrong": lambda table: ~table["teacher_right"] & ~table["student_right"],
    "student right, teacher wrong": lambda table: ~table["teacher_right"] & table["student_right"],
    "teacher right, student wrong": lambda table: table["teacher_right"] & ~table["student_right"],
}


def unit_texts(task: Task, split: Dataset, units: pd.DataFrame) -> list[str]:
    """The word (taggers) or the text of each unit (example, position); ValueError for a unit that the split lacks."""
    if task.kind == "tagging":
        texts = {(row["id"], i): token for row in split for i, token in enumerate(row["tokens"])}
    else:
        texts = {(row["id"], 0): " ‖ ".join(filter(None, (row["text"], row["text_pair"]))) for row in split}
    wanted = list(units[UNIT].itertuples(index=False, name=None))
    if missing := [unit for unit in wanted if unit not in texts]:
        raise ValueError(f"{unit_name(missing[0])} is missing from the split")
    return [texts[unit] for unit in wanted]


def predict_text(run: Path, text: str, other: str = "") -> pd.DataFrame:
    """What the kept model of a fine-tuning run says about a text (STS: about `text` and `other`).

    Index (position, text): one row a word for taggers, cut like the corpus, and one for the text otherwise; columns:
    the probability of each label, or the STS `score`. A LaRoSeDa model reads the text as a review without a title.
    ValueError for an empty text.
    """
    task, labels = task_of(run), read_json(run / "scores.json", "03-evaluate-model")["labels"]
    paired, tagged = task.kind == "regression", task.kind == "tagging"
    text, other = normalise(text), normalise(other) if paired else ""
    if not text or (paired and not other):
        raise ValueError(f"{task.name}: no text to read" + " in one of the two boxes" * paired)
    words = split_words(text) if tagged else [f"{text} ‖ {other}" if paired else text]
    first, second = ("", text) if task.dataset == "LaRoSeDa" else (text, other)
    row = {"tokens": words, "labels": [0] * len(words)} if tagged else {"text": first, "text_pair": second, "label": 0}
    split = Dataset.from_list([{"id": "typed"} | row])
    if labels:
        names = ClassLabel(names=labels)
        split = split.cast_column("labels", List(names)) if tagged else split.cast_column("label", names)
    table = predict_perturbed(run, split, {"typed": str})["typed"]
    values = np.stack(table["probabilities"]) if labels else table[["predicted"]].to_numpy()
    index = pd.MultiIndex.from_arrays([range(len(words)), words], names=["position", "text"])
    return pd.DataFrame(values, index=index, columns=labels or ["score"])
