"""The same objective through TextBrewer 0.2.1.post1, as its documentation configures it.

`GeneralDistiller` with the KD loss "ce" at temperature 2, the student's own MLM loss as hard label
loss, and a match of the last hidden states with the loss "cos"; weights 5 / 2 / 1; AdamW, gradients
clipped at 5. Its adaptors return `logits_mask`, which leaves padding out.

Two things differ from the recipe. Its "ce" is a cross-entropy, not a divergence: its loss is larger
by the entropy of the teacher, and its gradients are equal. And it has no factor T^2: the factor is
part of `kd_loss_weight` here. `entropy` is the constant, for the comparison of losses.

Nothing of it is patched. `train` is called for one step at a time. It would save the student after
each call: the subclass leaves that out, and it keeps the loss that TextBrewer hands to its log.
"""

import contextlib
import copy
import os
import tempfile

import torch
from benchmarks.recipe import optimizer_of
from benchmarks.shapes import Job, World
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch import Tensor


class Distiller(GeneralDistiller):
    """A GeneralDistiller that saves no checkpoint and keeps its last loss."""

    def save_and_callback(self, *args) -> None:
        """Save nothing."""

    def write_loss(self, total_loss: Tensor, writer_step: int, losses_dict=None) -> None:
        """Keep the loss: without a log_dir TextBrewer would drop it."""
        self.last_loss = total_loss.item()


def read_student(batch: dict, outputs) -> dict:
    """The adaptor of the student: its MLM loss is the hard label loss."""
    return read_teacher(batch, outputs) | {"losses": outputs.loss}


def read_teacher(batch: dict, outputs) -> dict:
    """The adaptor of the teacher."""
    mask = batch["attention_mask"]
    answers = {"logits": outputs.logits, "hidden": outputs.hidden_states}
    return answers | {"logits_mask": mask, "inputs_mask": mask}


class TextBrewer(Job):
    """TextBrewer's step on a world's student and first teacher."""

    def __init__(self, world: World):
        self.world, config = world, world.config
        self.student = copy.deepcopy(world.start)
        states = {"layer_T": -1, "layer_S": -1, "feature": "hidden", "loss": "cos"}
        distillation = DistillationConfig(
            temperature=config.temperature,
            kd_loss_type="ce",
            kd_loss_weight=config.alpha_ce * config.temperature**2,
            hard_label_weight=config.alpha_mlm,
            intermediate_matches=[states | {"weight": config.alpha_cos}],
        )
        # It makes its output folder, and nothing is written there.
        with tempfile.TemporaryDirectory() as folder:
            training = TrainingConfig(output_dir=folder, ckpt_steps=1, device="cpu")
        models = world.teachers[0], self.student
        self.distiller = Distiller(training, distillation, *models, read_teacher, read_student)
        self.optimizer, self.schedule = optimizer_of(self.student, config)

    def batches(self, indices: list[int]):
        """Yield the batch of these blocks in TextBrewer's form; the teacher gets no labels."""
        view = self.world.read(indices)[0]
        inputs = {name: view[name] for name in ("input_ids", "attention_mask")}
        yield {"teacher": inputs, "student": inputs | {"labels": view["labels"]}}

    def step(self, indices: list[int]) -> float:
        """One optimizer step; returns TextBrewer's loss, which holds the teacher's entropy."""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its bar
            with self.distiller:  # sets train and eval mode
                self.distiller.train(
                    self.optimizer,
                    self.batches(indices),
                    scheduler=self.schedule,
                    max_grad_norm=5.0,
                    num_steps=1,
                    output_hidden_states=True,
                )
        return self.distiller.last_loss

    @torch.no_grad()
    def entropy(self, indices: list[int]) -> float:
        """alpha_ce T^2 H(teacher): by so much its loss is larger than the recipe's."""
        view, config = self.world.read(indices)[0], self.world.config
        inputs = {name: view[name] for name in ("input_ids", "attention_mask")}
        logits = self.world.teachers[0](**inputs).logits[view["attention_mask"] == 1]
        probs = (logits / config.temperature).softmax(-1)
        mean = torch.special.entr(probs).sum(-1).mean().item()
        return config.alpha_ce * config.temperature**2 * mean
