"""The task loop on Accelerate: fine-tune a model on one measure, keep the best epoch, write every prediction.

What a model reads and which of its scores is the headline is the measure's protocol (rolib.tasks.PROTOCOLS).
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from rolib.config import EvaluateConfig
from rolib.corpus import normalise, windows
from rolib.distill import length_batches, make_accelerator, parameter_groups
from rolib.losses import IGNORE
from rolib.metrics import score_predictions
from rolib.runs import append_metrics, progress, write_json
from rolib.tasks import Task, with_protocol

STS_MAX = 5.0  # RO-STS scores lie between 0 and 5; the model learns them divided by this
Clean = Callable[[str], str]  # what is applied to every text or word before the tokenizer reads it


def label_names(task: Task, split: Dataset) -> list[str]:
    """The task's label order, the same for every model; empty for a regression."""
    if task.kind == "regression":
        return []
    feature = split.features["labels" if task.kind == "tagging" else "label"]
    return (feature.feature if task.kind == "tagging" else feature).names


def encode_tagging(split: Dataset, tokenizer, max_length: int, clean: Clean = normalise) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a tagged split: a word's label stands on its first piece, the other pieces have none.

    Returns rows (input_ids, labels, example, words: the word index at first pieces and -1 elsewhere) and counts.
    """
    rows, windowed, shortened = [], 0, 0
    room = max_length - 2
    for example, (tokens, labels) in enumerate(zip(split["tokens"], split["labels"], strict=True)):
        pieces = tokenizer([clean(token) for token in tokens], add_special_tokens=False)["input_ids"]
        pieces = [word or [tokenizer.unk_token_id] for word in pieces]  # a word of control characters alone
        shortened += sum(len(word) > room for word in pieces)
        parts = windows([(len(word),) for word in pieces], room)
        windowed += len(parts) > 1
        for part in parts:
            row = {"input_ids": [tokenizer.cls_token_id], "labels": [IGNORE], "words": [-1], "example": example}
            for index in part:
                word = pieces[index][:room]
                row["input_ids"] += word
                row["labels"] += [labels[index]] + [IGNORE] * (len(word) - 1)
                row["words"] += [index] + [-1] * (len(word) - 1)
            for column, end in (("input_ids", tokenizer.sep_token_id), ("labels", IGNORE), ("words", -1)):
                row[column].append(end)
            rows.append(row)
    return rows, {"examples": len(split), "windowed": windowed, "words_cut": shortened, "truncated": 0, "skipped": 0}


def encode_texts(
    split: Dataset,
    tokenizer,
    max_length: int,
    scale: float,
    fields: Sequence[str] = ("text", "text_pair"),
    clean: Clean = normalise,
) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a text or pair split from its `fields`, and counts; labels are divided by `scale`.

    Rows: what the tokenizer gives, labels, example, words ([0]) and cut (True where the end of a text is lost).
    """
    first, *others = ([clean(text) for text in split[field]] for field in fields)
    pair = others[0] if others and any(others[0]) else None
    encoded = tokenizer(first, pair, truncation=True, max_length=max_length)
    cut = [len(ids) > max_length for ids in tokenizer(first, pair, verbose=False)["input_ids"]]
    rows = [
        {key: values[i] for key, values in encoded.items()} | {"labels": label / scale, "example": i, "words": [0], "cut": cut[i]}
        for i, label in enumerate(split["label"])
    ]
    return rows, {"examples": len(split), "windowed": 0, "words_cut": 0, "truncated": sum(cut), "skipped": 0}


def encode_apart(
    split: Dataset, tokenizer, max_length: int, scale: float, clean: Clean = normalise
) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a bi-encoder: `input_ids` of the first text, `second` of the other, each cut on its own.

    An example counts once as truncated, whether one of its texts or both are.
    """
    rows, counts = encode_texts(split, tokenizer, max_length, scale, ["text"], clean)
    others, _ = encode_texts(split, tokenizer, max_length, scale, ["text_pair"], clean)
    truncated = sum(row["cut"] or other["cut"] for row, other in zip(rows, others, strict=True))
    rows = [row | {"second": other["input_ids"]} for row, other in zip(rows, others, strict=True)]
    return rows, counts | {"truncated": truncated}


def encode(split: Dataset, task: Task, tokenizer, max_length: int, clean: Clean = normalise) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a split as the task's protocol reads it, and counts of what was windowed, cut or truncated.

    `units` counts the words (examples) that will be scored.
    """
    scale = STS_MAX if task.kind == "regression" else 1
    if task.kind == "tagging":
        rows, counts = encode_tagging(split, tokenizer, max_length, clean)
    elif task.protocol == "bi-encoder":
        rows, counts = encode_apart(split, tokenizer, max_length, scale, clean)
    else:
        fields = ["text_pair"] if task.protocol == "content" else ["text", "text_pair"]
        rows, counts = encode_texts(split, tokenizer, max_length, scale, fields, clean)
    if task.kind == "classification":
        rows = [row | {"labels": int(row["labels"])} for row in rows]
    return rows, counts | {"units": sum(word >= 0 for row in rows for word in row["words"])}


class BiEncoder(nn.Module):
    """Similarity of two texts read apart (Reimers & Gurevych 2019, arXiv 1908.10084): the cosine of their mean states.

    The cosine is mapped to (1 + cos) / 2, so that it lies in [0, 1] like the gold score / 5: linear, hence the
    correlations are those of the cosine itself, and unlike max(0, cos) with a gradient everywhere.
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """input_ids, attention_mask (2B, T): the B first texts, then their B partners; logits (B, 1); loss: mean squared error."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        weights = attention_mask.unsqueeze(-1).float()
        first, second = ((states * weights).sum(1) / weights.sum(1)).chunk(2)
        scores = (1 + cosine_similarity(first, second)) / 2
        loss = None if labels is None else mse_loss(scores, labels)
        return SequenceClassifierOutput(loss=loss, logits=scores.unsqueeze(-1))

    def save_pretrained(self, folder: Path) -> None:
        """Save the encoder, which is all there is to keep, as a plain Hugging Face folder."""
        self.encoder.save_pretrained(folder)


def load_for_task(folder: Path, task: Task, labels: list[str], random_weights: bool) -> PreTrainedModel | BiEncoder:
    """The model of `folder` with a head for the task (fresh if it has none), or the same shape from random weights."""
    if task.protocol == "bi-encoder":
        kind, options = AutoModel, {}
    elif task.kind == "regression":
        kind, options = AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}
    else:
        kind = AutoModelForTokenClassification if task.kind == "tagging" else AutoModelForSequenceClassification
        options = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if random_weights:
        model = kind.from_config(AutoConfig.from_pretrained(folder, **options))
    else:
        model = kind.from_pretrained(folder, **options)
    return BiEncoder(model) if task.protocol == "bi-encoder" else model


def _collate(tokenizer, task: Task):
    def collate(rows):
        """Rows as one padded batch with its labels."""
        if task.protocol == "bi-encoder":
            features = [{"input_ids": row[side]} for side in ("input_ids", "second") for row in rows]
        else:
            names = [name for name in tokenizer.model_input_names if name in rows[0]]
            features = [{name: row[name] for name in names} for row in rows]
        batch = dict(tokenizer.pad(features, return_tensors="pt"))
        labels = [row["labels"] for row in rows]
        if task.kind == "tagging":
            width = batch["input_ids"].shape[1]
            labels = [row + [IGNORE] * (width - len(row)) for row in labels]
        batch["labels"] = torch.tensor(labels, dtype=torch.float if task.kind == "regression" else torch.long)
        return batch

    return collate


@torch.no_grad()
def predict(model, rows: list[dict], task: Task, tokenizer, batch_size: int, device) -> list[np.ndarray]:
    """Outputs of every row, in order: probabilities (words, C) of its labelled words, (1, C) of a text, (1, 1) a score."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    outputs: list[np.ndarray] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _collate(tokenizer, task)([rows[i] for i in chosen])
        logits = model(**{key: value.to(device) for key, value in batch.items() if key != "labels"}).logits.float()
        values = logits * STS_MAX if task.kind == "regression" else logits.softmax(-1)
        for i, value in zip(chosen, values.cpu().numpy(), strict=True):
            if task.kind == "tagging":
                words = np.asarray(rows[i]["words"])
                outputs[i] = value[: len(words)][words >= 0]
            else:
                outputs[i] = value[None]
    return outputs


def prediction_table(rows, outputs, task: Task, split: Dataset, labels: list[str]) -> pd.DataFrame:
    """One row per scored unit (a word for taggers, an example otherwise), in the order of the data set.

    RuntimeError if a unit of the split has no row or more than one.
    """
    ids, records = split["id"], []
    for row, output in zip(rows, outputs, strict=True):
        if task.kind == "tagging":
            units = [(word, label) for word, label in zip(row["words"], row["labels"], strict=True) if word >= 0]
        else:
            units = [(0, row["labels"])]
        for (position, label), value in zip(units, output, strict=True):
            if task.kind == "regression":
                answer = label * STS_MAX, float(value[0]), []
            else:
                answer = labels[label], labels[int(value.argmax())], value
            records.append((ids[row["example"]], position, *answer))
    table = pd.DataFrame(records, columns=["example", "position", "gold", "predicted", "probabilities"])
    check_complete(table, split, task)
    return table


def check_complete(table: pd.DataFrame, split: Dataset, task: Task) -> None:
    """Raise RuntimeError, which names the first example at fault, unless each unit of the split stands in the table once."""
    sizes = [len(tokens) for tokens in split["tokens"]] if task.kind == "tagging" else [1] * len(split)
    found = table.drop_duplicates(["example", "position"])["example"].value_counts()
    for example, size in zip(split["id"], sizes, strict=True):
        if found.get(example, 0) != size:
            raise RuntimeError(f"{task.name}: example {example!r} has {size} units but {found.get(example, 0)} predictions")
    if len(table) != sum(sizes):
        raise RuntimeError(f"{task.name}: {len(table)} predictions for {sum(sizes)} units: some are there twice")


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

    Writes metrics.jsonl, predictions.parquet, scores.json and, with config.keep_models, the best model under model/ into
    `folder`; returns the content of scores.json. RuntimeError if an example were lost on the way.
    """
    # Step 1: model, tokenizer and encoded splits.
    set_seed(seed)
    task = with_protocol(task_name, config.protocols[task_name])
    labels = label_names(task, splits["train"])
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = load_for_task(model_folder, task, labels, random_weights)
    max_length = min(config.max_length, model.config.max_position_embeddings)
    splits = DatasetDict(splits, train=sample_examples(splits["train"], config.max_train_examples, config.seed))
    encoded, counts = {}, {}
    for name, split in splits.items():
        encoded[name], counts[name] = encode(split, task, tokenizer, max_length)

    def predictions(name):
        outputs = predict(model, encoded[name], task, tokenizer, 4 * config.batch_size, accelerator.device)
        return prediction_table(encoded[name], outputs, task, splits[name], labels)

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
        score = score_predictions(task, predictions("validation"))[task.headline]
        if score > best_score:
            best, best_score, best_epoch = copy.deepcopy(accelerator.unwrap_model(model).state_dict()), score, epoch
        record = {"epoch": epoch, "loss": torch.stack(losses).mean().item(), f"validation_{task.headline}": score}
        append_metrics(folder / "metrics.jsonl", record)
        bar.set_postfix(loss=f"{record['loss']:.3f}", validation=f"{score:.3f}", refresh=False)

    # Step 5: the test split with the best weights.
    accelerator.unwrap_model(model).load_state_dict(best)
    table = predictions("test")
    if config.keep_models:
        accelerator.unwrap_model(model).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    table.astype({"position": "int32"}).to_parquet(folder / "predictions.parquet", compression="zstd", index=False)
    result = {
        "task": task_name,
        "seed": seed,
        "protocol": task.protocol,
        "headline": task.headline,
        "test": score_predictions(task, table),
        "validation": {task.headline: best_score},
        "best_epoch": best_epoch,
        "labels": labels,
        "counts": counts,
    }
    write_json(folder / "scores.json", result)
    accelerator.free_memory()
    return result
