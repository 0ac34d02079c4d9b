"""The task loop on Accelerate: fine-tune a model on one measure, keep the best epoch, write every prediction."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)

from rolib.config import EvaluateConfig
from rolib.corpus import normalise
from rolib.distill import length_batches, make_accelerator, parameter_groups
from rolib.losses import IGNORE
from rolib.metrics import score_predictions
from rolib.runs import append_metrics, progress, write_json
from rolib.tasks import TASKS, Task

STS_MAX = 5.0  # RO-STS scores lie between 0 and 5; the model learns them divided by this


def label_names(task: Task, splits: DatasetDict) -> list[str]:
    """The task's label order, the same for every model; empty for a regression."""
    if task.kind == "regression":
        return []
    feature = splits["train"].features["labels" if task.kind == "tagging" else "label"]
    return (feature.feature if task.kind == "tagging" else feature).names


def windows(words: list[list[int]], room: int) -> list[list[int]]:
    """Split a sentence, given as the pieces of each word, into runs of word indices that hold at most `room` pieces.

    Every word lies in exactly one window, so no word is lost to the model's length; a word longer than `room` stands
    alone and its later pieces are cut.
    """
    result, used = [[]], 0
    for index, pieces in enumerate(words):
        if result[-1] and used + len(pieces) > room:
            result.append([])
            used = 0
        result[-1].append(index)
        used += len(pieces)
    return result


def encode_tagging(split: Dataset, tokenizer, max_length: int) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a tagged split: a word's label stands on its first piece, the other pieces have none.

    Returns rows (input_ids, labels, example, words: the word index at first pieces and -1 elsewhere) and counts.
    """
    rows, windowed, shortened = [], 0, 0
    room = max_length - 2
    for example, (tokens, labels) in enumerate(zip(split["tokens"], split["labels"], strict=True)):
        pieces = tokenizer([normalise(token) for token in tokens], add_special_tokens=False)["input_ids"]
        pieces = [word or [tokenizer.unk_token_id] for word in pieces]  # a word of control characters alone
        shortened += sum(len(word) > room for word in pieces)
        parts = windows(pieces, room)
        windowed += len(parts) > 1
        for part in parts:
            row = {"input_ids": [tokenizer.cls_token_id], "labels": [IGNORE], "words": [-1], "example": example}
            for index in part:
                word = pieces[index][:room]
                row["input_ids"] += word
                row["labels"] += [labels[index]] + [IGNORE] * (len(word) - 1)
                row["words"] += [index] + [-1] * (len(word) - 1)
            row["input_ids"].append(tokenizer.sep_token_id)
            row["labels"].append(IGNORE)
            row["words"].append(-1)
            rows.append(row)
    return rows, {"examples": len(split), "windowed": windowed, "words_cut": shortened, "truncated": 0, "skipped": 0}


def encode_texts(split: Dataset, tokenizer, max_length: int, scale: float) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a text or pair split; labels are divided by `scale`. Returns rows and counts."""
    first = [normalise(text) for text in split["text"]]
    second = [normalise(text) for text in split["text_pair"]]
    pair = second if any(second) else None
    encoded = tokenizer(first, pair, truncation=True, max_length=max_length)
    whole = tokenizer(first, pair, verbose=False)["input_ids"]
    truncated = sum(len(ids) > max_length for ids in whole)
    rows = [
        {key: values[i] for key, values in encoded.items()} | {"labels": label / scale, "example": i, "words": [0]}
        for i, label in enumerate(split["label"])
    ]
    return rows, {"examples": len(split), "windowed": 0, "words_cut": 0, "truncated": truncated, "skipped": 0}


def encode(split: Dataset, task: Task, tokenizer, max_length: int) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a split and the counts of what was windowed, cut or truncated."""
    if task.kind == "tagging":
        return encode_tagging(split, tokenizer, max_length)
    rows, counts = encode_texts(split, tokenizer, max_length, STS_MAX if task.kind == "regression" else 1)
    if task.kind == "classification":
        rows = [row | {"labels": int(row["labels"])} for row in rows]
    return rows, counts


def load_for_task(folder: Path, task: Task, labels: list[str], random_weights: bool) -> PreTrainedModel:
    """The model of `folder` with a fresh head for the task, or the same shape from random weights."""
    kind = AutoModelForTokenClassification if task.kind == "tagging" else AutoModelForSequenceClassification
    options = {"num_labels": max(1, len(labels))}
    if task.kind == "regression":
        options["problem_type"] = "regression"
    if random_weights:
        return kind.from_config(AutoConfig.from_pretrained(folder, **options))
    return kind.from_pretrained(folder, **options)


def _collate(tokenizer, task: Task):
    def collate(rows):
        names = [name for name in tokenizer.model_input_names if name in rows[0]]
        features = [{name: row[name] for name in names} for row in rows]
        batch = dict(tokenizer.pad(features, return_tensors="pt"))
        width = batch["input_ids"].shape[1]
        if task.kind == "tagging":
            labels = [row["labels"] + [IGNORE] * (width - len(row["labels"])) for row in rows]
        else:
            labels = [row["labels"] for row in rows]
        batch["labels"] = torch.tensor(labels, dtype=torch.float if task.kind == "regression" else torch.long)
        return batch

    return collate


@torch.no_grad()
def predict(model, rows: list[dict], task: Task, tokenizer, batch_size: int, device) -> list[np.ndarray]:
    """Outputs of every row, in order: probabilities (words, C) of its labelled words, (1, C) of a text, (1, 1) a score."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    outputs: list[np.ndarray] = [None] * len(rows)
    collate = _collate(tokenizer, task)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = {key: value.to(device) for key, value in collate([rows[i] for i in chosen]).items() if key != "labels"}
        logits = model(**batch).logits.float()
        values = logits * STS_MAX if task.kind == "regression" else logits.softmax(-1)
        for i, value in zip(chosen, values.cpu().numpy(), strict=True):
            if task.kind == "tagging":
                words = np.asarray(rows[i]["words"])
                outputs[i] = value[: len(words)][words >= 0]
            else:
                outputs[i] = value[None]
    return outputs


def prediction_table(rows, outputs, task: Task, split: Dataset, labels: list[str]) -> pd.DataFrame:
    """One row per scored unit (a word for taggers, an example otherwise), in the order of the data set."""
    ids, records = split["id"], []
    for row, output in zip(rows, outputs, strict=True):
        if task.kind == "tagging":
            units = [(word, label) for word, label in zip(row["words"], row["labels"], strict=True) if word >= 0]
        else:
            units = [(0, row["labels"])]
        for (position, label), value in zip(units, output, strict=True):
            regression = task.kind == "regression"
            gold = label * STS_MAX if regression else labels[label]
            predicted = float(value[0]) if regression else labels[int(value.argmax())]
            probabilities = [] if regression else value.tolist()
            records.append((ids[row["example"]], position, gold, predicted, probabilities))
    return pd.DataFrame(records, columns=["example", "position", "gold", "predicted", "probabilities"])


def sample_examples(split: Dataset, count: int, seed: int) -> Dataset:
    """At most `count` examples (0: all), the same ones for every model."""
    if not count or count >= len(split):
        return split
    return split.select(np.random.default_rng(seed).permutation(len(split))[:count])


def finetune(
    config: EvaluateConfig,
    task_name: str,
    seed: int,
    model_folder: Path,
    random_weights: bool,
    splits: DatasetDict,
    folder: Path,
) -> dict:
    """Fine-tune on the train split, keep the epoch with the best validation score, predict the test split.

    Writes metrics.jsonl, predictions.parquet and scores.json into `folder`; returns the content of scores.json.
    """
    # Step 1: model, tokenizer and encoded splits.
    set_seed(seed)
    task = TASKS[task_name]
    labels = label_names(task, splits)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = load_for_task(model_folder, task, labels, random_weights)
    max_length = min(config.max_length, model.config.max_position_embeddings)
    splits = DatasetDict(splits, train=sample_examples(splits["train"], config.max_train_examples, config.seed))
    encoded, counts = {}, {}
    for name, split in splits.items():
        encoded[name], counts[name] = encode(split, task, tokenizer, max_length)

    # Step 2: optimizer and schedule.
    accelerator = make_accelerator()
    epochs, rate = config.epochs[task_name], config.learning_rates[task_name]
    lengths = [len(row["input_ids"]) for row in encoded["train"]]
    steps = epochs * -(-len(lengths) // config.batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=rate, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = get_linear_schedule_with_warmup(optimizer, round(config.warmup_share * steps), steps)
    best, best_score, best_epoch = None, -np.inf, 0

    bar = progress(range(1, epochs + 1), desc=f"{model_folder.name} {task_name} seed {seed}")
    for epoch in bar:
        # Step 3: one epoch over length-aware batches.
        model.train()
        losses = []
        batches = length_batches(lengths, config.batch_size, seed, epoch)
        for batch in DataLoader(encoded["train"], batch_sampler=batches, collate_fn=_collate(tokenizer, task)):
            loss = model(**{key: value.to(accelerator.device) for key, value in batch.items()}).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())

        # Step 4: validation; the best epoch's weights are kept.
        outputs = predict(model, encoded["validation"], task, tokenizer, 4 * config.batch_size, accelerator.device)
        table = prediction_table(encoded["validation"], outputs, task, splits["validation"], labels)
        score = score_predictions(task, table)[task.headline]
        if score > best_score:
            best, best_score, best_epoch = copy.deepcopy(accelerator.unwrap_model(model).state_dict()), score, epoch
        record = {"epoch": epoch, "loss": torch.stack(losses).mean().item(), f"validation_{task.headline}": score}
        append_metrics(folder / "metrics.jsonl", record)
        bar.set_postfix(loss=f"{record['loss']:.3f}", validation=f"{score:.3f}", refresh=False)

    # Step 5: the test split with the best weights.
    accelerator.unwrap_model(model).load_state_dict(best)
    outputs = predict(model, encoded["test"], task, tokenizer, 4 * config.batch_size, accelerator.device)
    table = prediction_table(encoded["test"], outputs, task, splits["test"], labels)
    table.astype({"position": "int32"}).to_parquet(folder / "predictions.parquet", compression="zstd", index=False)
    result = {
        "task": task_name,
        "seed": seed,
        "test": score_predictions(task, table),
        "validation": {task.headline: best_score},
        "best_epoch": best_epoch,
        "labels": labels,
        "counts": counts,
    }
    write_json(folder / "scores.json", result)
    accelerator.free_memory()
    return result
