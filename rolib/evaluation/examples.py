"""The examples of a measure as a model reads them: rows of pieces, batches, samples of a split.

The protocol of the measure (rolib.measures.PROTOCOLS) fixes what is read.
"""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib.config import EvaluateConfig
from rolib.data.corpus import normalise, windows
from rolib.data.words import word_pieces
from rolib.distillation.losses import IGNORE
from rolib.measures import Task, with_protocol

STS_MAX = 5.0  # RO-STS scores lie between 0 and 5; the model learns them divided by this
READINGS = {"bi-encoder": [["text"], ["text_pair"]], "content": [["text_pair"]]}  # by protocol
PAIR_READING = [["text", "text_pair"]]  # of every other protocol: both texts in one input
Clean = Callable[[str], str]  # applied to every text or word before the tokenizer reads it
Rows = list[dict[str, Any]]  # model inputs, see `encode`; with teachers' answers also `soft`
Splits = dict[str, tuple[Dataset, Rows, dict[str, int]]]  # a split and what `encode` makes of it


def label_names(task: Task, split: Dataset) -> list[str]:
    """The label order of the task, the same for every model; empty for a regression."""
    tagging = task.kind == "tagging"
    feature = split.features["labels"].feature if tagging else split.features["label"]
    return [] if task.kind == "regression" else feature.names


def encode(
    split: Dataset, task: Task, tokenizer: Tokenizer, max_length: int, clean: Clean = normalise
) -> tuple[Rows, dict[str, int]]:
    """Model inputs of a split, read as the task's protocol requires, and counts.

    Keys of a row:
    - inputs: a list of tokenizer outputs; a bi-encoder has one for each text, all others have one.
    - words: for a tagger a list with one entry per piece, the index of the word at its first piece
      and -1 elsewhere; [0] for a text.
    - labels: a list of the same length.
    - example: the number of the example in the split.

    Counts: examples; windowed (sentences that needed several rows); words_cut (words longer than a
    row); truncated (examples with a text that was cut); units (words or examples to score).
    """
    reader = encode_tagging if task.kind == "tagging" else encode_texts
    rows, found = reader(split, task, tokenizer, max_length, clean)
    counts = {"examples": len(split), "windowed": 0, "words_cut": 0, "truncated": 0} | found
    return rows, counts | {"units": sum(word >= 0 for row in rows for word in row["words"])}


def encode_tagging(
    split: Dataset, task: Task, tokenizer: Tokenizer, max_length: int, clean: Clean
) -> tuple[Rows, dict[str, int]]:
    """Rows of sentences: the first piece of a word has its label, the other pieces have none.

    A sentence longer than `max_length` pieces becomes several rows, so that no word is lost.
    """
    rows: Rows = []
    counts = {"windowed": 0, "words_cut": 0}
    room = max_length - 2  # without [CLS] and [SEP]
    sentences = zip(split["tokens"][:], split["labels"][:], strict=True)
    for example, (tokens, labels) in enumerate(sentences):
        pieces = word_pieces([clean(token) for token in tokens], tokenizer)
        parts = windows([(len(word),) for word in pieces], room)
        counts["windowed"] += len(parts) > 1
        counts["words_cut"] += sum(len(word) > room for word in pieces)
        for part in parts:
            ids, words = [tokenizer.cls_token_id], [-1]
            for index in part:
                word = pieces[index][:room]
                ids += word
                words += [index] + [-1] * (len(word) - 1)
            row: dict[str, Any] = {"inputs": [{"input_ids": [*ids, tokenizer.sep_token_id]}]}
            row["words"] = [*words, -1]
            row["labels"] = [labels[word] if word >= 0 else IGNORE for word in row["words"]]
            rows.append(row | {"example": example})
    return rows, counts


def encode_texts(
    split: Dataset, task: Task, tokenizer: Tokenizer, max_length: int, clean: Clean
) -> tuple[Rows, dict[str, int]]:
    """Rows of texts, one per example.

    A model reads two texts together as one pair. A bi-encoder reads each text on its own. With the
    protocol `content` a model reads the content of a review without its title. An example with two
    truncated texts counts once. Regression labels are divided by `STS_MAX`.
    """
    inputs, cut = [], np.zeros(len(split), dtype=bool)
    for fields in READINGS.get(task.protocol, PAIR_READING):
        texts = [[clean(text) for text in split[field][:]] for field in fields]
        if not any(texts[-1]):  # no example has a second text
            texts = texts[:1]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        inputs.append(pd.DataFrame(dict(encoded)).to_dict("records"))
        cut |= [bool(found.overflowing) for found in encoded.encodings]  # what was cut off
    labels = split["label"][:]
    if task.kind == "regression":
        labels = [label / STS_MAX for label in labels]
    rows = []
    for example, (*readings, label) in enumerate(zip(*inputs, labels, strict=True)):
        rows.append({"inputs": readings, "words": [0], "labels": [label], "example": example})
    return rows, {"truncated": int(cut.sum())}


def collate(rows: Rows, task: Task, tokenizer: Tokenizer) -> transformers.BatchEncoding:
    """Rows of `encode` as one padded batch with `labels`: (B, T) for taggers, else (B,)."""
    readings = zip(*(row["inputs"] for row in rows), strict=True)  # all first texts come first
    batch = tokenizer.pad(list(chain(*readings)), return_tensors="pt")
    # Not that of the first row: unlabelled rows hold a whole number, and labels would be cut to it.
    kind = torch.float32 if task.kind == "regression" else torch.long
    labels = [torch.tensor(row["labels"], dtype=kind) for row in rows]
    padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE)
    batch["labels"] = padded if task.kind == "tagging" else padded[:, 0]
    return batch


def sample_examples(split: Dataset, count: int, seed: int) -> Dataset:
    """At most `count` examples (0: all), the same examples for every model."""
    if not count or count >= len(split):
        return split
    return split.select(np.random.default_rng(seed).permutation(len(split))[:count])


def sample_splits(config: EvaluateConfig, splits: DatasetDict) -> dict[str, Dataset]:
    """The examples of each split that the study uses."""
    most = {name: getattr(config, f"max_{name}_examples") for name in splits}
    return {name: sample_examples(splits[name], most[name], config.seed) for name in splits}


def read_splits(config: EvaluateConfig, model_folder: Path, splits: DatasetDict) -> Splits:
    """The splits of a measure as the model of `model_folder` reads them; all seeds share them."""
    [task_name] = config.tasks
    task = with_protocol(task_name, config.protocols[task_name])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    positions = transformers.AutoConfig.from_pretrained(model_folder).max_position_embeddings
    max_length = min(config.max_length, positions)
    parts = sample_splits(config, splits).items()
    return {name: (part, *encode(part, task, tokenizer, max_length)) for name, part in parts}
