"""How much a fine-tuned model depends on diacritics and capitals: its predictions on perturbed test texts.

Romanian is often typed without diacritics, with the cedilla letters of old encodings, or in capitals. A text is first
normalised as in training and then perturbed; nothing repairs it after that, so a model without `corpus.normalise` in
front of it is what is measured.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from datasets import ClassLabel, Dataset, List
from transformers import AutoTokenizer

from rolib import runs
from rolib.config import Config, RobustnessConfig
from rolib.data.corpus import normalise
from rolib.data.download import data_root
from rolib.data.tasks import load_task
from rolib.data.words import split_words
from rolib.evaluation.finetune import (
    encode,
    label_names,
    load_for_task,
    predict,
    prediction_table,
    sample_examples,
)
from rolib.evaluation.metrics import score_predictions
from rolib.measures import Task, with_protocol
from rolib.training import autocast, make_accelerator

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


PERTURBATIONS = {
    "strip_diacritics": strip_diacritics,
    "cedilla": cedilla,
    "lower": str.lower,
    "upper": str.upper,
}


def perturb(split: Dataset, task: Task, function: Callable[[str], str]) -> Dataset:
    """The split with every word (taggers) or text normalised and given to `function`; ids, labels and MOROCO's $NE$ stay."""

    def change(text: str) -> str:
        return PLACEHOLDER.join(map(function, normalise(text).split(PLACEHOLDER)))

    columns = split.to_dict()
    if task.kind == "tagging":
        columns["tokens"] = [[change(token) for token in tokens] for tokens in columns["tokens"]]
    else:
        columns |= {
            field: [change(text) for text in columns[field]] for field in ("text", "text_pair")
        }
    return Dataset.from_dict(columns, features=split.features)


def task_of(run: Path) -> Task:
    """The measure of a fine-tuning run, under its protocol."""
    result = runs.read_json(run / "scores.json", "03-evaluate-model")
    return with_protocol(result["task"], result["protocol"])


def predict_perturbed(
    run: Path, split: Dataset, functions: dict[str, Callable[[str], str]]
) -> dict[str, pd.DataFrame]:
    """The prediction table (see rolib.evaluation.predictions) of a run's kept model on a split under each of the perturbations.

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


def kept_runs(config: Config, tasks: Sequence[str], models: Sequence[str] = ()) -> list[Path]:
    """The run folders, the first seed of each task and evaluated model, that hold a fine-tuned model.

    models: those wanted; none named, every one. FileNotFoundError, with the mend, if there is none.
    """
    place, found = runs.require(config.folder / "evaluation", runs.made_by(config)), {}
    for task in tasks:
        for path in sorted(place.glob(f"*/{task}/seed-*/model/model.safetensors")):
            model, run = path.parts[-5], path.parents[1]
            if not models or model in models:
                found.setdefault((task, model), run)
    if not found:
        raise FileNotFoundError(
            f"{place} holds no fine-tuned model: set keep_models to true in evaluate.yaml and evaluate again"
        )
    return list(found.values())


def measure_robustness(config: RobustnessConfig) -> list[dict]:
    """Predict perturbed test splits with every kept fine-tuned model; leave runs/<profile>/robustness/<model>/<task>.

    A folder holds <perturbation>.parquet (prediction tables) and scores.json: the scores on the same examples as they
    are ("original", the run's own predictions) and of each perturbation. Returns the scores.json of each.
    """
    results = []

    @cache  # of the measures whose runs are not finished
    def test_split(task):
        return sample_examples(
            load_task(task, data_root(config.data))["test"], config.max_test_examples, config.seed
        )

    for run in runs.progress(
        kept_runs(config, config.tasks, config.models), desc="perturbed test splits"
    ):
        model, task = run.parts[-3:-1]
        one = config.model_copy(update={"tasks": [task], "models": [model]})
        folder = config.folder / "robustness" / model / task
        inputs = {
            file: runs.sha256(run / file)
            for file in ("predictions.parquet", "model/model.safetensors")
        }
        inputs["perturbations"] = ", ".join(PERTURBATIONS)
        if not runs.is_finished(folder, one, inputs):
            with runs.new_run(folder, one, inputs) as working:
                perturb_run(run, test_split(task), working)
        results.append(
            {"model": model} | runs.read_json(folder / "scores.json", runs.made_by(config))
        )
    return results


def perturb_run(run: Path, split: Dataset, folder: Path) -> None:
    """The predictions and scores of one fine-tuning run on a split under every perturbation, written into `folder`."""
    result, task = runs.read_json(run / "scores.json", "03-evaluate-model"), task_of(run)
    original = pd.read_parquet(run / "predictions.parquet")
    tables = {"original": original[original["example"].isin(split["id"][:])]}
    tables |= predict_perturbed(run, split, PERTURBATIONS)
    scores = {}
    for name, table in tables.items():
        table.astype({"position": "int32"}).to_parquet(
            folder / f"{name}.parquet", compression="zstd", index=False
        )
        scores[name] = score_predictions(task, table)
    kept = {key: result[key] for key in ("task", "seed", "protocol", "headline")}
    runs.write_json(folder / "scores.json", kept | {"examples": len(split), "scores": scores})


def predict_text(run: Path, text: str, other: str = "") -> pd.DataFrame:
    """What the kept model of a fine-tuning run says about a text (STS: about `text` and `other`).

    Index (position, text): one row a word for taggers, cut like the corpus, and one for the text otherwise; columns:
    the probability of each label, or the STS `score`. A LaRoSeDa model reads the text as a review without a title.
    ValueError for an empty text.
    """
    task, labels = task_of(run), runs.read_json(run / "scores.json", "03-evaluate-model")["labels"]
    paired, tagged = task.kind == "regression", task.kind == "tagging"
    text, other = normalise(text), normalise(other) if paired else ""
    if not text or (paired and not other):
        raise ValueError(f"{task.name}: no text to read" + " in one of the two boxes" * paired)
    words = split_words(text) if tagged else [f"{text} ‖ {other}" if paired else text]
    first, second = ("", text) if task.dataset == "LaRoSeDa" else (text, other)
    row = (
        {"tokens": words, "labels": [0] * len(words)}
        if tagged
        else {"text": first, "text_pair": second, "label": 0}
    )
    split = Dataset.from_list([{"id": "typed"} | row])
    if labels:
        names = ClassLabel(names=labels)
        split = (
            split.cast_column("labels", List(names))
            if tagged
            else split.cast_column("label", names)
        )
    table = predict_perturbed(run, split, {"typed": str})["typed"]
    values = np.stack(table["probabilities"]) if labels else table[["predicted"]].to_numpy()
    index = pd.MultiIndex.from_arrays([range(len(words)), words], names=["position", "text"])
    return pd.DataFrame(values, index=index, columns=labels or ["score"])
