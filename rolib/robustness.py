"""How much a fine-tuned model depends on diacritics and capitals: its predictions on perturbed test texts.

Romanian is often typed without diacritics, with the cedilla letters of old encodings, or in capitals. A text is first
normalised as in training and then perturbed; nothing repairs it after that, so a model without `corpus.normalise` in
front of it is what is measured.
"""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml
from datasets import Dataset
from transformers import AutoTokenizer

from rolib.config import RobustnessConfig
from rolib.corpus import normalise
from rolib.distill import autocast, make_accelerator
from rolib.finetune import encode, label_names, load_for_task, predict, prediction_table
from rolib.loyalty import compare_predictions
from rolib.predictions import Predictions
from rolib.results import members
from rolib.runs import read_json
from rolib.tasks import TASKS, Task, with_protocol

PLAIN = str.maketrans("ăâîșțşţĂÂÎȘȚŞŢ", "aaiststAAISTST")
COMMA_TO_CEDILLA = str.maketrans("șțȘȚ", "şţŞŢ")
PLACEHOLDER = "$NE$"  # stands for the named entities of MOROCO; no writer typed it


def strip_diacritics(text: str) -> str:
    """The text in NFC without the diacritics of Romanian; other letters keep theirs. Idempotent."""
    text = unicodedata.normalize("NFC", text)
    # One pass is not enough where a letter bears a mark twice: what is left composes again.
    while (plain := unicodedata.normalize("NFC", text.translate(PLAIN))) != text:
        text = plain
    return text


def cedilla(text: str) -> str:
    """The text in NFC with ş ţ instead of ș ț; `corpus.normalise` undoes it."""
    return unicodedata.normalize("NFC", text).translate(COMMA_TO_CEDILLA)


PERTURBATIONS = {"strip_diacritics": strip_diacritics, "cedilla": cedilla, "lower": str.lower, "upper": str.upper}


def perturb(split: Dataset, task: Task, function: Callable[[str], str]) -> Dataset:
    """The split with every word (taggers) or text normalised and given to `function`; ids, labels and MOROCO's $NE$ stay."""

    def change(text: str) -> str:
        return PLACEHOLDER.join(map(function, normalise(text).split(PLACEHOLDER)))

    columns = split.to_dict()
    if task.kind == "tagging":
        columns["tokens"] = [[change(token) for token in tokens] for tokens in columns["tokens"]]
    else:
        columns |= {field: [change(text) for text in columns[field]] for field in ("text", "text_pair")}
    return Dataset.from_dict(columns, features=split.features)


def task_of(run: Path) -> Task:
    """The measure of a fine-tuning run, under its protocol."""
    result = read_json(run / "scores.json", "03-evaluate-model")
    return with_protocol(result["task"], result["protocol"])


def predict_perturbed(run: Path, split: Dataset, functions: dict[str, Callable[[str], str]]) -> dict[str, pd.DataFrame]:
    """The prediction table (see rolib.predictions) of a run's kept model on a split under each of the perturbations.

    With `str` as the function, which changes nothing, these are the predictions of the fine-tuning run: windows and batches
    are as they were there.
    """
    task, recipe = task_of(run), yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    labels, device = label_names(task, split), make_accelerator().device
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = load_for_task(run / "model", task, labels, random_weights=False).to(device)
    max_length = min(recipe["max_length"], model.config.max_position_embeddings)
    tables = {}
    for name, function in functions.items():
        perturbed = perturb(split, task, function)
        rows, _ = encode(perturbed, task, tokenizer, max_length, clean=str)
        with autocast(device):
            outputs = predict(model, rows, task, tokenizer, 4 * recipe["batch_size"], device)
        tables[name] = prediction_table(rows, outputs, task, perturbed, labels)
    return tables


def compare_perturbed(config: RobustnessConfig) -> pd.DataFrame:
    """Scores and loyalty under each perturbation, from what stages.measure_robustness left.

    Columns: model, role, teacher, task, seed, headline (a score's name), perturbation ("original" is none), score, value,
    change (value less that of the original). Loyalty is to the first teacher under the same perturbation; there is none
    for teachers and where the teacher was not measured. Only models and tasks of the config; a missing one is left out.
    """
    everyone, rows = members(config), []
    for member in everyone[everyone["model"].isin(config.models or everyone["model"])].itertuples():
        for task in config.tasks:
            folder, reference = (config.folder / "robustness" / name / task for name in (member.model, member.teacher))
            if not (folder / "scores.json").exists():
                continue
            result = read_json(folder / "scores.json", "07-measure-robustness")
            follows = member.model.removesuffix("-random") != member.teacher and (reference / "scores.json").exists()
            for perturbation, values in result["scores"].items():
                if follows:
                    sides = (Predictions.read(place / f"{perturbation}.parquet") for place in (reference, folder))
                    values = values | compare_predictions(TASKS[task], *sides)
                start = (member.model, member.role, member.teacher, task, result["seed"], result["headline"], perturbation)
                rows += [(*start, score, value) for score, value in values.items()]
    columns = ["model", "role", "teacher", "task", "seed", "headline", "perturbation", "score", "value"]
    table = pd.DataFrame(rows, columns=columns)
    original = table["value"].where(table["perturbation"] == "original").groupby([table[c] for c in ("model", "task", "score")])
    return table.assign(change=table["value"] - original.transform("max"))
