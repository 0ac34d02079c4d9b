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

# What is stored of each teacher: the positions in its view, and the type of the numbers.
PARTS = {"logits": ("soft", "f4"), "pieces": ("soft", "i8"), "states": ("compared", "f4")}
EVERYTHING = {"alpha_ce": 1.0, "alpha_cos": 1.0, "hidden_states": "pieces"}
EVERYTHING |= {"soft_target_strategy": "lift"}


class TeacherCache:
    """The answers in a folder: an Arrow table for each split and epoch, in it a row a block.

    A cell holds the bytes of an array: <teacher>.logits and <teacher>.pieces (N, k), and
    <teacher>.states (N, H), for the N masked pieces of the block.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        """Raises ConfigError, which names the first difference, if it is a cache of others."""
        found = read_json(folder / "identity.json", "02-distil-student")
        for name, wanted in identity.items():
            longer = name == "epochs" and found.get(name, 0) > wanted
            if found.get(name) != wanted and not longer:
                problem = f"{name} was {found.get(name)}, and is {wanted} in this run"
                raise ConfigError(f"cached_pieces: {folder}: {problem}: delete the folder")
        self.tables = {file.stem: Dataset.from_file(str(file)) for file in folder.glob("*.arrow")}

    def reading(self, collator: MaskingCollator, split: str, objective: Objective) -> Collate:
        """The collator, which also adds the stored answers to its views."""

        def collate(blocks: list[dict], epoch: int) -> list[View]:
            """The collator's views, with the answers of each teacher in its own view."""
            batch = collator(blocks, epoch)
            cells = self.tables[f"{split}-{epoch}"][[block["index"] for block in blocks]]
            for teacher in objective.asked:
                view = batch[teacher.view]
                for part, (positions, kind) in PARTS.items():
                    values = bytearray(b"".join(cells[f"{teacher.name}.{part}"]))
                    array, rows = np.frombuffer(values, kind), len(view[positions])
                    array = array.reshape(rows, len(array) // max(rows, 1))  # there may be none
                    view[f"{teacher.name}.{part}"] = torch.from_numpy(array)
            return batch

        return collate


def answers(objective: Objective, batch: list[View]) -> Iterator[dict[str, bytes]]:
    """Yield what the teachers say of each block of a batch: a row of a table."""
    blocks, columns = len(batch[0]["labels"]), {}
    for teacher in objective.teachers:
        view, answer = batch[teacher.view], objective.answer(teacher, batch)
        logits = answer.logits(slice(0, len(view["soft"])))
        best = logits.topk(min(objective.config.cached_pieces, logits.shape[1]))
        parts = {"logits": best.values, "pieces": best.indices, "states": answer.states.float()}
        for part, (positions, kind) in PARTS.items():
            block_of = (view[positions] // view["labels"].shape[1]).cpu().numpy()
            ends = np.searchsorted(block_of, np.arange(1, blocks))
            cells = np.split(parts[part].cpu().numpy().astype(kind), ends)
            columns[f"{teacher.name}.{part}"] = [cell.tobytes() for cell in cells]
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def megabytes(objective: Objective, tokens: int) -> float:
    """The size of a cache of so many tokens, at most: as if every masked piece were soft."""
    shapes = [teacher.model.model.config for teacher in objective.teachers]
    kept = objective.config.cached_pieces
    size = sum(12 * min(kept, shape.vocab_size) + 4 * shape.hidden_size for shape in shapes)
    return objective.config.mask_share * size * tokens / 1e6


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
    objective = Objective(config, objective.teachers, objective.precision)
    collator = MaskingCollator(tokenizers, config.mask_share, config.mask_seed, "masked", "masked")
    for teacher in objective.teachers:
        teacher.place(device, objective.precision)
    working = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    for split, epoch in [("held_out", 0), *(("train", i) for i in range(identity["epochs"]))]:
        table, numbers = f"{split}-{epoch}", range(len(blocks[split]))
        with ArrowWriter(path=str(working / f"{table}.arrow")) as writer:
            for start in progress(numbers[:: config.batch_size], desc=f"teachers' answers {table}"):
                some = numbers[start : start + config.batch_size]
                batch = collator(blocks[split].__getitems__(some), epoch)
                with autocast(device, objective.precision):
                    for row in answers(objective, send_to_device(batch, device)):
                        writer.write(row)
            writer.finalize()
    write_json(working / "identity.json", identity)
    os.replace(working, folder)
