"""Fine-tuning on one measure: train each recipe of the grid, keep the best, store predictions.

The protocol of the measure (rolib.measures.PROTOCOLS) fixes the input and the headline score.
"""

from itertools import product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import transformers
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib import training
from rolib.config import EvaluateConfig, TaskName
from rolib.evaluation.examples import STS_MAX, Rows, Splits, collate, label_names
from rolib.evaluation.heads import BiEncoder, load_for_task, loss_of_rows
from rolib.evaluation.metrics import score_predictions
from rolib.evaluation.predictions import COLUMNS, write_table
from rolib.measures import Task, with_protocol
from rolib.runs import append_metrics, progress, write_json


@torch.inference_mode()
def predict(
    model: nn.Module, rows: Rows, task: Task, tokenizer: Tokenizer, batch_size: int
) -> list[np.ndarray]:
    """The model's output for every row, in order.

    A tagger gives probabilities (words, C) of the words of the row; other classifiers give (1, C);
    a regression gives its score (1, 1) between 0 and `STS_MAX`.
    """
    model.eval()
    device = next(model.parameters()).device
    order = np.argsort([len(row["inputs"][0]["input_ids"]) for row in rows], kind="stable")
    outputs: dict[int, np.ndarray] = {}
    for chosen in np.array_split(order, range(batch_size, len(order), batch_size)):
        batch = collate([rows[i] for i in chosen], task, tokenizer).to(device)
        del batch["labels"]
        logits = model(**batch).logits.float()
        values = logits * STS_MAX if task.kind == "regression" else logits.softmax(-1)
        for i, value in zip(chosen, values.cpu().numpy(), strict=True):
            words = np.array(rows[i]["words"])
            outputs[i] = np.atleast_2d(value)[: len(words)][words >= 0]  # without the padding
    return [outputs[i] for i in range(len(rows))]


def prediction_table(
    rows: Rows, outputs: list[np.ndarray], task: Task, split: Dataset, labels: list[str]
) -> pd.DataFrame:
    """The prediction table (rolib.evaluation.predictions) of a split, in the order of its units.

    RuntimeError unless every unit of the split is predicted once; the message names the first unit
    (example, position) at fault.
    """
    ids = split["id"][:]
    records: list[tuple] = []
    for row, output in zip(rows, outputs, strict=True):
        pairs = zip(row["words"], row["labels"], strict=True)
        units = [(word, label) for word, label in pairs if word >= 0]
        for (position, label), value in zip(units, output, strict=True):
            answer: tuple = (label * STS_MAX, float(value[0]), [])
            if labels:
                answer = (labels[label], labels[int(value.argmax())], value)
            records.append((ids[row["example"]], position, *answer))
    sizes = list(map(len, split["tokens"][:])) if task.kind == "tagging" else [1] * len(split)
    expected = [(name, i) for name, size in zip(ids, sizes, strict=True) for i in range(size)]
    for wanted, record in zip_longest(expected, records, fillvalue=()):
        if wanted != record[:2]:
            fault = f"instead of the prediction for {wanted} comes {record[:2]}"
            raise RuntimeError(f"{task.name}: {fault}: one is lost or there twice")
    return pd.DataFrame(records, columns=COLUMNS)


class Recipe(NamedTuple):
    """One point of the grid of which each model takes the best on validation."""

    learning_rate: float
    epochs: int
    pooling: str  # "" for a tagger


class Run(NamedTuple):
    """What all recipes of a fine-tuning run share."""

    config: EvaluateConfig
    task: Task
    seed: int
    tokenizer: Tokenizer
    labels: list[str]
    splits: Splits
    folder: Path
    device: torch.device
    precision: str


def recipes(config: EvaluateConfig, task_name: TaskName) -> list[Recipe]:
    """The grid of a measure: the product of its learning rates, epochs and poolings."""
    pooling: dict[Any, Any] = config.pooling
    poolings = pooling.get(task_name, [""])
    points = product(config.learning_rates[task_name], config.epochs[task_name], poolings)
    return [Recipe(*point) for point in points]


def batch_loss(run: Run, model: nn.Module, rows: Rows) -> torch.Tensor:
    """The loss () of a batch of training rows."""
    with training.autocast(run.device, run.precision):
        batch = collate(rows, run.task, run.tokenizer).to(run.device)
        return loss_of_rows(model, batch, rows, run.config)


def predictions(run: Run, model: nn.Module, name: str) -> pd.DataFrame:
    """The prediction table of the split `name`."""
    split, rows, _ = run.splits[name]
    with training.autocast(run.device, run.precision):
        outputs = predict(model, rows, run.task, run.tokenizer, 4 * run.config.batch_size)
    return prediction_table(rows, outputs, run.task, split, run.labels)


@torch.no_grad()
def fit_whitening(run: Run, model: BiEncoder) -> None:
    """Fit the whitening of a bi-encoder to the training texts, before it is trained."""
    model.eval()
    rows, size, states = run.splits["train"][1], 4 * run.config.batch_size, []
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], run.task, run.tokenizer).to(run.device)
        del batch["labels"]
        with training.autocast(run.device, run.precision):
            states.append(model.mean_states(**batch))
    model.fit_whitening(torch.cat(states))


def train_recipe(run: Run, recipe: Recipe, model: nn.Module) -> tuple[float, int]:
    """Train the model by one recipe; it keeps the weights of its best epoch.

    Returns the validation score and the number of that epoch (of equal ones the first). Adds a
    record for each epoch to metrics.jsonl.
    """
    # Step 1: optimizer and schedule.
    config, task = run.config, run.task
    train_rows: Any = run.splits["train"][1]  # a list, which a DataLoader takes as a data set
    lengths = [len(row["inputs"][0]["input_ids"]) for row in train_rows]
    steps = recipe.epochs * int(np.ceil(len(lengths) / config.batch_size))
    groups = training.parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    warmup = round(config.warmup_share * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    best, best_score, best_epoch = {}, -np.inf, 0

    bar = progress(range(1, recipe.epochs + 1), desc=f"{config.model} {task.name} seed {run.seed}")
    for epoch in bar:
        # Step 2: one epoch over batches of similar length.
        model.train()
        losses = []
        batches = training.length_batches(lengths, config.batch_size, run.seed, epoch)
        for rows in torch.utils.data.DataLoader(train_rows, batch_sampler=batches, collate_fn=list):
            loss = batch_loss(run, model, rows)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())

        # Step 3: validation; the best epoch's weights are kept.
        mean = torch.stack(losses).mean().item()
        if not np.isfinite(mean):
            fault = f"{config.model} {task.name}: the loss is {mean} at {recipe.learning_rate:g}"
            raise FloatingPointError(f"{fault}: take smaller learning_rates")
        score = score_predictions(task, predictions(run, model, "validation"))[task.headline]
        if score > best_score:
            best_score, best_epoch = score, epoch
            best = {key: value.clone() for key, value in model.state_dict().items()}
        record = {"epoch": epoch, "loss": mean, f"validation_{task.headline}": score}
        append_metrics(run.folder / "metrics.jsonl", {"recipe": recipe._asdict()} | record)
        bar.set_postfix(loss=f"{record['loss']:.3f}", validation=f"{score:.3f}", refresh=False)
    model.load_state_dict(best)
    return best_score, best_epoch


def finetune(config: EvaluateConfig, model_folder: Path, splits: Splits, folder: Path) -> dict:
    """The content of scores.json: the scores of a model fine-tuned on one measure.

    The model learns from the train split by each recipe of the grid, from the same start. The
    recipe and epoch with the best validation score (of equal ones the first) predict the test
    split. Writes metrics.jsonl, predictions.parquet and scores.json into `folder`, and with
    config.keep_models the best model into `folder`/model.
    """
    training.keep_freed_memory()
    [task_name], [seed] = config.tasks, config.seeds
    task = with_protocol(task_name, config.protocols[task_name])
    labels = label_names(task, splits["train"][0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    width = transformers.AutoConfig.from_pretrained(model_folder).hidden_size
    device = training.processes().device
    precision = training.choose_precision(config.precision, width)
    run = Run(config, task, seed, tokenizer, labels, splits, folder, device, precision)
    best_score, grid, random_weights = -np.inf, [], config.model.endswith("-random")
    for recipe in recipes(config, task_name):
        transformers.set_seed(seed)
        model = load_for_task(model_folder, task, labels, random_weights, recipe.pooling).to(device)
        if isinstance(model, BiEncoder):
            fit_whitening(run, model)
        score, epoch = train_recipe(run, recipe, model)
        grid.append(recipe._asdict() | {"validation": score})
        if score > best_score:
            best, best_score, best_epoch, chosen = model, score, epoch, recipe
    table = predictions(run, best, "test")
    if config.keep_models:
        best.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    facts = {"validation": {task.headline: best_score}, "best_epoch": best_epoch}
    facts |= {"recipe": chosen._asdict(), "grid": grid, "labels": labels}
    counts = {name: found for name, (*_, found) in splits.items()}
    result = write_result(folder, task, seed, table, **facts, counts=counts)
    clear_device_cache(garbage_collection=True)
    return result


def write_result(folder: Path, task: Task, seed: int, table: pd.DataFrame, **facts: Any) -> dict:
    """Store the predictions of the test split and scores.json, whose content is returned."""
    write_table(folder / "predictions.parquet", table)
    result: dict[str, Any] = {"task": task.name, "seed": seed, "protocol": task.protocol}
    result |= {"headline": task.headline, "test": score_predictions(task, table)} | facts
    write_json(folder / "scores.json", result)
    return result
