"""Stored answers of teachers at the masked positions, for many distillations of one text.

Masks depend on (seed, epoch, block) alone. So a teacher's k best pieces and its states at the
masked positions can be computed once. Every further distillation (other weights, temperature,
strategy, student or seed) reads them and runs no teacher. With k = V nothing is lost. With fewer,
the other pieces get no probability and the k best are scaled to the sum 1 (biased for a small k:
Anshumann et al. 2025, arXiv 2503.16870).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset, DatasetDict
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib.config import ConfigError
from rolib.distillation.masking import Collate, MaskingCollator, View
from rolib.distillation.objective import Objective
from rolib.runs import progress, read_json, write_json
from rolib.training import autocast

SPLITS = ("train", "held_out")
# What is stored of each teacher, and the positions of a view that it is of.
PARTS = {"logits": "soft", "pieces": "soft", "states": "compared"}
EVERYTHING = {"alpha_ce": 1.0, "alpha_cos": 1.0, "hidden_states": "pieces"}
EVERYTHING |= {"soft_target_strategy": "lift"}


class TeacherCache:
    """The answers below a folder: an Arrow table a split, in it a row an (epoch, block).

    A cell holds the bytes of an array: logits (N, k), pieces (N, k) int32, states (N, H).
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        """Raises ConfigError, which names the first difference, if it is a cache of others."""
        found = read_json(folder / "identity.json", "02-distil-student")
        for name, wanted in identity.items():
            longer = name == "epochs" and found.get(name, 0) > wanted
            if found.get(name) != wanted and not longer:
                problem = f"{name} was {found.get(name)}, and is {wanted} in this run"
                raise ConfigError(f"cached_pieces: {folder}: {problem}: delete the folder")
        self.number = np.float32 if identity["precision"] == "float32" else np.float16
        self.tables, self.blocks = {}, {}
        for split, epochs in zip(SPLITS, (found["epochs"], 1), strict=True):
            self.tables[split] = Dataset.from_file(str(folder / f"{split}.arrow"))
            self.blocks[split] = len(self.tables[split]) // epochs

    def reading(self, collator: MaskingCollator, split: str, objective: Objective) -> Collate:
        """The collator, which also adds the stored answers to its views."""
        table, size = self.tables[split], self.blocks[split]

        def collate(blocks: list[dict], epoch: int) -> list[View]:
            batch = collator(blocks, epoch)
            rows = table[[epoch * size + block["index"] for block in blocks]]
            for teacher in objective.asked:
                view = batch[teacher.view]
                for part, positions in PARTS.items():
                    kind = np.int32 if part == "pieces" else self.number
                    values = np.frombuffer(b"".join(rows[f"{teacher.name}.{part}"]), kind)
                    shape = len(view[positions]), -1
                    values = values.astype(np.int64 if part == "pieces" else np.float32)
                    view[f"{teacher.name}.{part}"] = torch.from_numpy(values.reshape(shape))
            return batch

        return collate


def megabytes(objective: Objective, tokens: int) -> float:
    """The size of a cache of so many tokens, at most: as if every masked piece were soft."""
    number, size = (4 if objective.precision == torch.float32 else 2), 0
    for teacher in objective.teachers:
        shape = teacher.model.model.config
        kept = min(objective.config.cached_pieces, shape.vocab_size)
        size += kept * (4 + number) + shape.hidden_size * number
    return objective.config.mask_share * size * tokens / 1e6


def answers(objective: Objective, batch: list[View]) -> Iterator[dict[str, bytes]]:
    """Yield a row of the table for each block of a batch."""
    blocks, columns = len(batch[0]["labels"]), {}
    kind = np.float32 if objective.precision == torch.float32 else np.float16
    for teacher in objective.teachers:
        view, name = batch[teacher.view], teacher.name
        answer = objective.answer(teacher, batch)
        logits = answer.logits(slice(0, len(view["soft"])))
        kept = logits.topk(min(objective.config.cached_pieces, logits.shape[1]))
        parts = {"logits": kept.values, "pieces": kept.indices.int(), "states": answer.states}
        for part, positions in PARTS.items():
            values = parts[part] if part == "pieces" else parts[part].float()
            numbers = values.cpu().numpy().astype(np.int32 if part == "pieces" else kind)
            inside = (view[positions] // view["labels"].shape[1]).cpu().numpy()
            ends = np.searchsorted(inside, np.arange(1, blocks))
            columns[f"{name}.{part}"] = [cell.tobytes() for cell in np.split(numbers, ends)]
    for cells in zip(*columns.values(), strict=True):
        yield dict(zip(columns, cells, strict=True))


@torch.no_grad()
def write_cache(
    folder: Path,
    identity: dict[str, Any],
    objective: Objective,
    blocks: DatasetDict,
    tokenizers: list[Tokenizer],
    device: torch.device,
) -> None:
    """Run the teachers over all epochs and store what they say, whole or not at all.

    Prints the size of a million tokens, and of all, before it starts.
    """
    tokens = identity["epochs"] * sum(blocks["train"]["length"][:])
    million, whole = megabytes(objective, 10**6), megabytes(objective, tokens)
    print(f"{folder}: {million:.0f} MB for a million tokens, {whole:.0f} MB in all", flush=True)
    config = objective.config.model_copy(update=EVERYTHING)
    everything = Objective(config, objective.teachers, objective.precision)
    collator = MaskingCollator(tokenizers, config.mask_share, config.mask_seed, "masked", "masked")
    for teacher in objective.teachers:
        teacher.place(device, objective.precision)
    working = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    for split, epochs in zip(SPLITS, (identity["epochs"], 1), strict=True):
        starts = range(0, len(blocks[split]), config.batch_size)
        turns = [(epoch, start) for epoch in range(epochs) for start in starts]
        with ArrowWriter(path=str(working / f"{split}.arrow")) as writer:
            for epoch, start in progress(turns, desc=f"teachers' answers, {split}"):
                last = min(start + config.batch_size, len(blocks[split]))
                batch = collator(blocks[split].__getitems__(range(start, last)), epoch)
                with autocast(device, objective.precision):
                    for row in answers(everything, send_to_device(batch, device)):
                        writer.write(row)
            writer.finalize()
    write_json(working / "identity.json", identity)
    os.replace(working, folder)
