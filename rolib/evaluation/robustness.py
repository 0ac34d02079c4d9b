"""Robustness: the predictions of fine-tuned models on perturbed test texts.

Romanian is often typed without diacritics, with the cedilla letters of old encodings, or in
capitals. A text is first normalised as in training and then perturbed. Nothing repairs it after
that: what is measured is a model without `corpus.normalise` in front of it.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoTokenizer

from rolib import runs
from rolib.config import Config
from rolib.data.corpus import normalise
from rolib.data.words import split_words
from rolib.evaluation import examples, finetune, heads
from rolib.measures import Task, with_protocol
from rolib.training import autocast, choose_precision

Change = Callable[[str], str]  # a perturbation of a text
PLAIN = str.maketrans("ăâîșțşţĂÂÎȘȚŞŢ", "aaiststAAISTST")
COMMA_TO_CEDILLA = str.maketrans("șțȘȚ", "şţŞŢ")
PLACEHOLDER = "$NE$"  # stands for the named entities of MOROCO; no writer typed it


def strip_diacritics(text: str) -> str:
    """The text in NFC without the diacritics of Romanian; other letters keep theirs. Idempotent."""
    text = unicodedata.normalize("NFC", text)
    # A letter with two diacritics needs several passes: the rest may compose again after one.
    while (plain := unicodedata.normalize("NFC", text.translate(PLAIN))) != text:
        text = plain
    return text


def cedilla(text: str) -> str:
    """The text in NFC with ş ţ instead of ș ț; `corpus.normalise` undoes it."""
    return unicodedata.normalize("NFC", text).translate(COMMA_TO_CEDILLA)


PERTURBATIONS: dict[str, Change] = {"strip_diacritics": strip_diacritics, "cedilla": cedilla}
PERTURBATIONS |= {"lower": str.lower, "upper": str.upper}


def perturb(text: str, function: Change) -> str:
    """The text normalised and then changed by `function`, but for MOROCO's placeholder $NE$."""
    return PLACEHOLDER.join(map(function, normalise(text).split(PLACEHOLDER)))


def run_result(run: Path) -> dict:
    """The scores.json of a fine-tuning run."""
    return runs.read_json(run / "scores.json", "03-evaluate-model")


def task_of(run: Path) -> Task:
    """The measure of a fine-tuning run, under its protocol."""
    result = run_result(run)
    return with_protocol(result["task"], result["protocol"])


def load_model(run: Path) -> Any:
    """The kept model of a fine-tuning run."""
    task, labels = task_of(run), run_result(run)["labels"]
    model = heads.load_for_task(run / "model", task, labels, random_weights=False)
    return model.to(Accelerator().device)


@lru_cache(maxsize=40)  # 5 models of 7 measures
def remember_model(run: Path, saved: float) -> Any:
    """The same, loaded once for each time at which it was saved."""
    return load_model(run)


def only_predicted(split: Dataset, table: pd.DataFrame) -> Dataset:
    """The examples of a split that a prediction table has: with `max_test_examples` not all."""
    known = set(table["example"])
    return split.select([row for row, name in enumerate(split["id"][:]) if name in known])


def predict_perturbed(
    run: Path, split: Dataset, functions: dict[str, Change], model: Any = None
) -> dict[str, pd.DataFrame]:
    """The prediction table of a run's kept model under each perturbation of the texts of a split.

    model: takes the place of the kept one, as its ONNX file does.
    For the columns see rolib.evaluation.predictions. With `str` as the function, which changes
    nothing, the predictions are those of the fine-tuning run: windows and batches are the same.
    """
    task, labels = task_of(run), run_result(run)["labels"]
    recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = load_model(run) if model is None else model
    max_length = min(recipe["max_length"], model.config.max_position_embeddings)
    precision = choose_precision(recipe["precision"], model.config.hidden_size)
    tables = {}
    for name, function in functions.items():
        change = partial(perturb, function=function)
        rows, _ = examples.encode(split, task, tokenizer, max_length, clean=change)
        with autocast(Accelerator().device, precision):
            outputs = finetune.predict(model, rows, task, tokenizer, 4 * recipe["batch_size"])
        tables[name] = finetune.prediction_table(rows, outputs, task, split, labels)
    return tables


def kept_runs(config: Config, tasks: Sequence[str], models: Sequence[str] = ()) -> list[Path]:
    """The run folders that hold a fine-tuned model: the first seed of each task and model.

    models: the evaluated models to take; all of them if empty. FileNotFoundError, which names the
    remedy, if there is none.
    """
    place = runs.require(config.folder / "evaluation", runs.made_by(config))
    found: dict[tuple[str, str], Path] = {}
    for task in tasks:
        for path in sorted(place.glob(f"*/{task}/seed-*/model/model.safetensors")):
            model, run = path.parts[-5], path.parents[1]
            if not models or model in models:
                found.setdefault((task, model), run)
    if not found:
        raise FileNotFoundError(f"{place}: no fine-tuned model: set keep_models in evaluate.yaml")
    return list(found.values())


def predict_text(run: Path, text: str, other: str = "") -> pd.DataFrame:
    """The answer of a run's kept model to a text (STS: to the pair of `text` and `other`).

    Index (position, text): one row per word for taggers, which read the words of
    `data.words.split_words`; otherwise one row. Columns: the probability of each label, or the STS
    `score`. A LaRoSeDa model reads the text as a review without a title. A model is loaded once.
    ValueError for an empty text.
    """
    task, text, other = task_of(run), normalise(text), normalise(other)
    regression = task.kind == "regression"
    if not text or (regression and not other):
        raise ValueError(f"{task.name}: no text to read")
    words = split_words(text)
    row = {"id": "typed", "tokens": words, "labels": [0] * len(words), "label": 0}
    row |= {"text": text, "text_pair": other if regression else ""}
    if task.dataset == "LaRoSeDa":
        row |= {"text": "", "text_pair": text}
    units = {"tagging": words, "regression": [f"{text} ‖ {other}"]}.get(task.kind, [text])
    model = remember_model(run, (run / "model" / "model.safetensors").stat().st_mtime)
    table = predict_perturbed(run, Dataset.from_list([row]), {"typed": str}, model)["typed"]
    index = pd.MultiIndex.from_arrays([range(len(units)), units], names=["position", "text"])
    if regression:
        return pd.DataFrame({"score": table["predicted"].to_numpy()}, index)
    return pd.DataFrame(np.stack(table["probabilities"]), index, run_result(run)["labels"])
