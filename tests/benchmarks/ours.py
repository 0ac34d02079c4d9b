"""Ours, behind one adapter: whole optimizer steps of rolib as `rolib.distillation.loop` runs them.

Only this file knows rolib's loss step. `VARIANTS` names what is measured.
"""

import copy
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from benchmarks.shapes import Job, World
from datasets import DatasetDict
from torch import Tensor
from transformers import BertTokenizer
from transformers import get_linear_schedule_with_warmup as linear_schedule

from rolib.distillation.alignment import Projection
from rolib.distillation.cache import TeacherCache, write_cache
from rolib.distillation.loop import ADAM, CLIP_NORM, load
from rolib.distillation.masking import Collate, MaskingCollator
from rolib.distillation.models import MaskedLM
from rolib.distillation.objective import Objective, Teacher
from rolib.training import autocast, has_bf16, parameter_groups

CACHED_PIECES = 256  # of each masked position


class Variant(NamedTuple):
    """A way to run a step."""

    soft_targets: str = "all"  # or masked
    teachers: int = 1
    precision: str = "float32"  # or bfloat16
    cached: bool = False  # the first teacher's answers are read, not computed


VARIANTS = [Variant("all"), Variant("masked"), Variant("all", 2), Variant("masked", 2)]
if has_bf16():
    VARIANTS += [Variant("all", precision="bfloat16"), Variant("masked", precision="bfloat16")]
VARIANTS.append(Variant("masked", cached=True))


class Ours(Job):
    """Steps 1 to 6 of `rolib.distillation.loop.train` on a world's models."""

    def __init__(self, world: World, variant: Variant):
        self.world, self.variant = world, variant
        number = variant.teachers
        config = world.config.model_copy(update={"soft_targets": variant.soft_targets})
        if variant.cached:
            config = config.model_copy(update={"cached_pieces": CACHED_PIECES})
        models = world.teachers
        if variant.precision != "float32":  # placed in another precision, not shared
            models = copy.deepcopy(models)
        self.teachers = [Teacher("first", MaskedLM(models[0]), 1 / number)]
        if number == 2:
            projection = Projection(*world.tokenizers)
            second = Teacher("second", MaskedLM(models[1]), 1 / 2, 1, projection)
            self.teachers.append(second)
        self.accelerator = Accelerator()
        precision = variant.precision
        self.objective = Objective(config, self.teachers, precision)
        self.alphas = torch.tensor([term.alpha for term in self.objective.terms])
        compared = self.objective.soft_targets, self.objective.states
        tokenizers = world.tokenizers[:number]
        self.collator = MaskingCollator(tokenizers, config.mask_share, config.seed, *compared)
        widths = [teacher.model.model.config.hidden_size for teacher in self.objective.mapped]
        self.model = MaskedLM(copy.deepcopy(world.start), widths)
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, **ADAM)
        warmup = round(config.warmup_share * config.steps)
        self.schedule = linear_schedule(self.optimizer, warmup, config.steps)
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.collate: Collate = self.collator
        if variant.cached:
            cache = self.make_cache(tokenizers)
            self.collate = cache.reading(self.collator, "train", self.objective)
        for teacher in self.teachers:
            teacher.place(self.accelerator.device, precision)
        self.model.train()

    def make_cache(self, tokenizers: list[BertTokenizer]) -> TeacherCache:
        """The teachers' answers to all blocks of the world, below a temporary folder."""
        blocks = self.world.blocks
        identity = {"epochs": 1, "precision": "float32"}
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name) / "cache"
        splits = DatasetDict(train=blocks, held_out=blocks.select([0]))
        write_cache(folder, identity, self.objective, splits, tokenizers, torch.device("cpu"))
        return TeacherCache(folder, identity)

    @property
    def student(self) -> torch.nn.Module:
        """The student, without the maps."""
        return self.accelerator.unwrap_model(self.model).model

    def loss(self, indices: list[int]) -> Tensor:
        """The loss over these blocks, with its graph: steps 4 and 5 of the loop."""
        batch = load(self.world.blocks, indices, self.collate, epoch=0)
        counts = torch.tensor(self.objective.counts(batch)).clamp(min=1)
        batch = send_to_device(batch, self.accelerator.device)
        return self.objective.loss(self.model, batch, self.alphas / counts)[0]

    def step(self, indices: list[int]) -> float:
        """One optimizer step; returns the loss."""
        loss = self.loss(indices)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()


class SecondForward(Job):
    """The forward pass of the second teacher alone: a part of the two-teacher step."""

    def __init__(self, ours: Ours):
        self.ours = ours

    def prepare(self, indices: list[int]) -> None:
        """Read and mask the batch: this belongs to the one-teacher step."""
        self.batch = self.ours.collator([self.ours.world.blocks[i] for i in indices])

    def step(self, indices: list[int]) -> float:
        """The second teacher's logits and states; there is no loss."""
        objective = self.ours.objective
        with autocast(self.ours.accelerator.device, objective.precision):
            answer = objective.answer(self.ours.teachers[1], self.batch)
            answer.logits(slice(0, len(self.batch[1]["soft"])))
        return float("nan")
