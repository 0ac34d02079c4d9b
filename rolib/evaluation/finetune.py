"""The task loop on Accelerate: fine-tune a model on one measure, keep the best epoch, write every prediction.

What a model reads and which of its scores is the headline is the measure's protocol (rolib.measures.PROTOCOLS).
"""

import copy
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, get_linear_schedule_with_warmup
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from rolib.config import EvaluateConfig
from rolib.data.corpus import normalise, windows
from rolib.data.words import word_pieces
from rolib.distillation.losses import IGNORE
from rolib.evaluation.metrics import score_predictions
from rolib.measures import Task, with_protocol
from rolib.runs import append_metrics, progress, write_json
from rolib.training import length_batches, make_accelerator, parameter_groups

STS_MAX = 5.0  # RO-STS scores lie between 0 and 5; the model learns them divided by this
Clean = Callable[[str], str]  # what is applied to every text or word before the tokenizer reads it


def label_names(task: Task, split: Dataset) -> list[str]:
    """The task's label order, the same for every model; empty for a regression."""
    if task.kind == "regression":
        return []
    return (
        split.features["labels"].feature.names
        if task.kind == "tagging"
        else split.features["label"].names
    )


def encode(
    split: Dataset, task: Task, tokenizer, max_length: int, clean: Clean = normalise
) -> tuple[list[dict], dict[str, int]]:
    """Model inputs of a split as the task's protocol reads it, and counts of what was windowed, cut or truncated.

    A row: inputs (what the model reads: one dict, for a bi-encoder one for each text), words and labels (lists of one length:
    the word index at first pieces, -1 elsewhere; [0] for a text), example (its number in the split). The count `units` is of
    the words (examples) that will be scored.
    """
    reader = encode_tagging if task.kind == "tagging" else encode_texts
    rows, counts = reader(split, task, tokenizer, max_length, clean)
    counts = {
        "examples": len(split),
        "windowed": 0,
        "words_cut": 0,
        "truncated": 0,
        "skipped": 0,
    } | counts
    return rows, counts | {"units": sum(word >= 0 for row in rows for word in row["words"])}


def encode_tagging(
    split: Dataset, task: Task, tokenizer, max_length: int, clean: Clean
) -> tuple[list[dict], dict[str, int]]:
    """A word's label stands on its first piece; a long sentence is several rows, no word is lost."""
    rows, windowed, shortened, room = [], 0, 0, max_length - 2
    for example, (tokens, labels) in enumerate(zip(split["tokens"], split["labels"], strict=True)):
        pieces = word_pieces([clean(token) for token in tokens], tokenizer)
        shortened += sum(len(word) > room for word in pieces)
        parts = windows([(len(word),) for word in pieces], room)
        windowed += len(parts) > 1
        for part in parts:
            ids, words = [tokenizer.cls_token_id], [-1]
            for index in part:
                word = pieces[index][:room]
                ids += word
                words += [index] + [-1] * (len(word) - 1)
            ids, words = [*ids, tokenizer.sep_token_id], [*words, -1]
            row_labels = [labels[word] if word >= 0 else IGNORE for word in words]
            rows.append(
                {
                    "inputs": [{"input_ids": ids}],
                    "labels": row_labels,
                    "words": words,
                    "example": example,
                }
            )
    return rows, {"windowed": windowed, "words_cut": shortened}


def encode_texts(
    split: Dataset, task: Task, tokenizer, max_length: int, clean: Clean
) -> tuple[list[dict], dict[str, int]]:
    """Two texts are read as a pair, by a bi-encoder each on its own; of a review the content alone if the protocol says so.

    An example counts once as truncated, whether one of its texts or both are. Regression labels are divided by `STS_MAX`.
    """
    readings = {"bi-encoder": [["text"], ["text_pair"]], "content": [["text_pair"]]}.get(
        task.protocol, [["text", "text_pair"]]
    )
    inputs, cut = [], []
    for fields in readings:
        texts = [[clean(text) for text in split[field]] for field in fields]
        if not any(texts[-1]):
            texts = texts[:1]  # no example has a second text
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        inputs.append(
            [
                dict(zip(encoded, values, strict=True))
                for values in zip(*encoded.values(), strict=True)
            ]
        )
        cut.append([len(ids) > max_length for ids in tokenizer(*texts, verbose=False)["input_ids"]])
    labels = (
        [label / STS_MAX for label in split["label"]]
        if task.kind == "regression"
        else split["label"]
    )
    rows = [
        {"inputs": read, "labels": [label], "words": [0], "example": example}
        for example, (*read, label) in enumerate(zip(*inputs, labels, strict=True))
    ]
    return rows, {"truncated": sum(map(any, zip(*cut, strict=True)))}


class BiEncoder(nn.Module):
    """Similarity of two texts read apart (Reimers & Gurevych 2019, arXiv 1908.10084): the cosine of their mean states.

    The cosine is mapped to (1 + cos) / 2, so that it lies in [0, 1] like the gold score / 5: linear, hence the
    correlations are those of the cosine itself, and unlike max(0, cos) with a gradient everywhere.
    """

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(
        self, attention_mask: Tensor, labels: Tensor | None = None, **inputs: Tensor
    ) -> SequenceClassifierOutput:
        """attention_mask and inputs (2B, T): the B first texts, then their B partners; logits (B, 1); loss: mean squared error."""
        states = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state.float()
        weights = attention_mask.unsqueeze(-1).float()
        first, second = ((states * weights).sum(1) / weights.sum(1)).chunk(2)
        scores = (1 + cosine_similarity(first, second)) / 2
        loss = None if labels is None else mse_loss(scores, labels)
        return SequenceClassifierOutput(loss=loss, logits=scores.unsqueeze(-1))

    def save_pretrained(self, folder: Path) -> None:
        """Save the encoder, which is all there is to keep, as a plain Hugging Face folder."""
        self.encoder.save_pretrained(folder)


def load_for_task(
    folder: Path, task: Task, labels: list[str], random_weights: bool
) -> PreTrainedModel | BiEncoder:
    """The model of `folder` with a head for the task (fresh if it has none), or the same shape from random weights."""
    kind = (
        AutoModelForTokenClassification
        if task.kind == "tagging"
        else AutoModelForSequenceClassification
    )
    options = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if task.protocol == "bi-encoder":
        kind, options = AutoModel, {}
    elif task.kind == "regression":
        options = {"num_labels": 1, "problem_type": "regression"}
    if random_weights:
        model = kind.from_config(AutoConfig.from_pretrained(folder, **options))
    else:
        model = kind.from_pretrained(folder, **options)
    return BiEncoder(model) if task.protocol == "bi-encoder" else model


def collate(rows: list[dict], task: Task, tokenizer) -> dict[str, Tensor]:
    """Rows of `encode` as one padded batch with its labels: (B, T) for taggers, else (B,)."""
    readings = zip(*(row["inputs"] for row in rows), strict=True)
    batch = dict(
        tokenizer.pad([read for reading in readings for read in reading], return_tensors="pt")
    )
    labels = pad_sequence(
        [torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=IGNORE
    )
    return batch | {"labels": labels if task.kind == "tagging" else labels[:, 0]}


@torch.no_grad()
def predict(
    model, rows: list[dict], task: Task, tokenizer, batch_size: int, device
) -> list[np.ndarray]:
    """Outputs of every row, in order: probabilities (words, C) of its labelled words, (1, C) of a text, (1, 1) a score."""
    model.eval()
    order = np.argsort([len(row["inputs"][0]["input_ids"]) for row in rows], kind="stable")
    outputs: list[np.ndarray] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[i] for i in chosen], task, tokenizer)
        logits = model(
            **{key: value.to(device) for key, value in batch.items() if key != "labels"}
        ).logits.float()
        values = logits * STS_MAX if task.kind == "regression" else logits.softmax(-1)
        for i, value in zip(chosen, values.cpu().numpy(), strict=True):
            words = np.asarray(rows[i]["words"])
            outputs[i] = np.atleast_2d(value)[: len(words)][words >= 0]
    return outputs


def prediction_table(rows, outputs, task: Task, split: Dataset, labels: list[str]) -> pd.DataFrame:
    """One row per scored unit (a word for taggers, an example otherwise), in the order of the data set.

    RuntimeError, which names the first unit (example, position) at fault, unless each one of the split is predicted once.
    """
    ids, records = split["id"][:], []
    for row, output in zip(rows, outputs, strict=True):
        units = [
            (word, label)
            for word, label in zip(row["words"], row["labels"], strict=True)
            if word >= 0
        ]
        for (position, label), value in zip(units, output, strict=True):
            if task.kind == "regression":
                answer = label * STS_MAX, float(value[0]), []
            else:
                answer = labels[label], labels[int(value.argmax())], value
            records.append((ids[row["example"]], position, *answer))
    sizes = map(len, split["tokens"]) if task.kind == "tagging" else [1] * len(split)
    wanted = [
        (example, position)
        for example, size in zip(ids, sizes, strict=True)
        for position in range(size)
    ]
    for unit, record in zip_longest(wanted, records, fillvalue=()):
        if unit != record[:2]:
            raise RuntimeError(
                f"{task.name}: instead of the prediction for {unit} comes {record[:2]}: one is lost or there twice"
            )
    return pd.DataFrame(
        records, columns=["example", "position", "gold", "predicted", "probabilities"]
    )


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
    splits = DatasetDict(
        splits, train=sample_examples(splits["train"], config.max_train_examples, config.seed)
    )
    encoded, counts = {}, {}
    for name, split in splits.items():
        encoded[name], counts[name] = encode(split, task, tokenizer, max_length)

    def predictions(name):
        outputs = predict(
            model, encoded[name], task, tokenizer, 4 * config.batch_size, accelerator.device
        )
        return prediction_table(encoded[name], outputs, task, splits[name], labels)

    # Step 2: optimizer and schedule.
    accelerator = make_accelerator()
    epochs, rate = config.epochs[task_name], config.learning_rates[task_name]
    lengths = [len(row["inputs"][0]["input_ids"]) for row in encoded["train"]]
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
        for batch in DataLoader(
            encoded["train"],
            batch_sampler=batches,
            collate_fn=lambda rows: collate(rows, task, tokenizer),
        ):
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
            best, best_score, best_epoch = (
                copy.deepcopy(accelerator.unwrap_model(model).state_dict()),
                score,
                epoch,
            )
        record = {
            "epoch": epoch,
            "loss": torch.stack(losses).mean().item(),
            f"validation_{task.headline}": score,
        }
        append_metrics(folder / "metrics.jsonl", record)
        bar.set_postfix(loss=f"{record['loss']:.3f}", validation=f"{score:.3f}", refresh=False)

    # Step 5: the test split with the best weights.
    accelerator.unwrap_model(model).load_state_dict(best)
    table = predictions("test")
    if config.keep_models:
        accelerator.unwrap_model(model).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    table.astype({"position": "int32"}).to_parquet(
        folder / "predictions.parquet", compression="zstd", index=False
    )
    result = {"task": task_name, "seed": seed, "protocol": task.protocol, "headline": task.headline}
    result |= {"test": score_predictions(task, table), "validation": {task.headline: best_score}}
    result |= {"best_epoch": best_epoch, "labels": labels, "counts": counts}
    write_json(folder / "scores.json", result)
    accelerator.free_memory()
    return result
