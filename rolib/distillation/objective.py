"""The objective of a training run: a weighted sum of terms, each a mean over its places.

    L = sum over terms k of alpha_k * S_k / n_k

S_k is the sum of a loss over the places of term k (tokens, masked pieces or words). n_k is the
number of these places in the whole optimizer step, over all micro-batches and processes. The
collator lists the places of a batch on the CPU, so n_k is known before any forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rolib.config import StudentConfig, TrainingConfig
from rolib.distillation import losses
from rolib.distillation.alignment import Projection, pool_words
from rolib.distillation.masking import View
from rolib.distillation.models import MaskedLM
from rolib.training import autocast

Outputs = tuple[Tensor, Tensor]  # a teacher's logits and its last hidden states


class Term(NamedTuple):
    """One term of the loss, or with alpha 0 a quantity that is only logged."""

    name: str  # its column in metrics.jsonl
    alpha: float  # its weight in the loss
    places: str  # the positions that its mean is over, as the collator calls them
    view: int = 0  # the view that lists them

    def count(self, batch: Sequence[View]) -> int:
        """The number of its places in a batch."""
        return len(batch[self.view][self.places])


@dataclass
class Teacher:
    """A teacher, its weight, and the projection of its vocabulary onto the student's."""

    name: str
    model: MaskedLM
    weight: float = 1.0  # the weights of a student's teachers sum to 1
    view: int = 0  # the number of the tokenizer it reads with; 0 is the student's
    projection: Projection | None = None  # for a teacher with another vocabulary

    def place(self, device: torch.device) -> None:
        """Freeze the model; move it and the projection to a device."""
        self.model.eval().requires_grad_(False).to(device)
        if self.projection:
            self.projection.to(device)


class Objective:
    """The terms of a run, and their sums over a batch.

    Terms: ce (soft targets of all teachers), mlm (masked words), cos (states of the first teacher)
    and cos_<name> (of a further one). Without a teacher mlm is the only one. Only logged, for each
    teacher with another vocabulary: coverage_<name>, the share of masked words where it and the
    student predict at one place; mass_<name>, the share of its probability there that has a
    counterpart in the student's vocabulary.
    """

    def __init__(self, config: TrainingConfig, teachers: Sequence[Teacher] = ()):
        self.config = cast(StudentConfig, config)  # read where there are teachers only
        self.teachers, self.compared = list(teachers), list(teachers)
        self.soft_targets, self.terms = "masked", [Term("mlm", 1.0, "masked")]
        if teachers:
            if self.config.alpha_ce:
                self.soft_targets = self.config.soft_targets
            if self.config.hidden_states == "first":
                self.compared = self.teachers[:1]
            self.terms = [term for term in self._losses() if term.alpha] + self._measures()

    def _losses(self) -> list[Term]:
        config, total = self.config, sum(teacher.weight for teacher in self.compared)
        terms = [Term("ce", config.alpha_ce, "soft"), Term("mlm", config.alpha_mlm, "masked")]
        for teacher in self.compared:
            places = "tokens" if self.by_piece(teacher) else "words"
            alpha = config.alpha_cos * teacher.weight / total
            terms.append(Term(self.cosine_name(teacher), alpha, places))
        return terms

    def _measures(self) -> list[Term]:
        terms = []
        for teacher in self.teachers:
            if teacher.view:
                terms.append(Term(f"coverage_{teacher.name}", 0.0, "masked_words"))
                terms.append(Term(f"mass_{teacher.name}", 0.0, "soft", teacher.view))
        return terms

    def cosine_name(self, teacher: Teacher) -> str:
        """The name of the term that compares a teacher's states."""
        return "cos" if teacher is self.teachers[0] else f"cos_{teacher.name}"

    def by_piece(self, teacher: Teacher) -> bool:
        """True if states are compared piece by piece, False if word by word."""
        return teacher.view == 0 and self.config.hidden_states != "words"

    @property
    def mapped(self) -> list[Teacher]:
        """The teachers whose states are compared through a trainable map: all but the first."""
        return self.compared[1:] if self.teachers and self.config.alpha_cos else []

    def counts(self, batch: Sequence[View]) -> list[int]:
        """The number of places of each term in a batch of `MaskingCollator`."""
        return [term.count(batch) for term in self.terms]

    def sums(self, student: nn.Module, batch: Sequence[View]) -> Tensor:
        """The sum of each term over its places in a batch, (terms,)."""
        view, sums = batch[0], {}
        logits, states, mapped = student(view["input_ids"], view["attention_mask"], view["soft"])
        labels = view["labels"].flatten()[view["masked"]]
        sums["mlm"] = losses.mlm_loss(logits[view["labelled"]], labels, "sum")
        if self.teachers and (self.config.alpha_ce or self.config.alpha_cos):
            outputs = [self.teacher_outputs(teacher, batch) for teacher in self.teachers]
            if self.config.alpha_ce:
                sums |= self.soft_target_sums(logits, outputs, batch)
            if self.config.alpha_cos:
                sums |= self.cosine_sums([states, *mapped], outputs, batch)
        for teacher in self.teachers:
            if teacher.view:
                covered = len(batch[teacher.view]["covered"])
                sums[f"coverage_{teacher.name}"] = logits.new_tensor(covered)
        zero = logits.new_zeros(())
        return torch.stack([sums.get(term.name, zero) for term in self.terms])

    @torch.no_grad()
    def teacher_outputs(self, teacher: Teacher, batch: Sequence[View]) -> Outputs:
        """A teacher's logits (M, U) where its soft targets are wanted, and its states (B, L, H)."""
        view = batch[teacher.view]
        rows = view["soft"]
        if not self.config.alpha_ce or (
            teacher.view and self.config.soft_target_strategy == "none"
        ):
            rows = rows[:0]
        with autocast(rows.device):
            logits, states, _ = teacher.model(view["input_ids"], view["attention_mask"], rows)
        return logits.float(), states.float()

    def soft_target_sums(
        self, logits: Tensor, outputs: list[Outputs], batch: Sequence[View]
    ) -> dict[str, Tensor]:
        """The soft-target term, and the covered mass of each projected teacher.

        logits: (N, V), the student's at the soft rows; outputs: of `teacher_outputs`. What is
        projected onto the student's vocabulary joins the mixed target. ULD is a loss of its own.
        """
        members: list[losses.Member] = []
        temperature, strategy = self.config.temperature, self.config.soft_target_strategy
        sums, uld = {}, logits.new_zeros(())
        for teacher, (teacher_logits, _) in zip(self.teachers, outputs, strict=True):
            probs = (teacher_logits / temperature).softmax(-1)
            weights = torch.full_like(probs[:, 0], teacher.weight)
            if self.config.weighting == "confidence":
                weights = weights * losses.confidence(probs)
            if teacher.view == 0:
                rows = torch.arange(len(probs), device=probs.device)
                members.append(losses.Member(rows, probs, weights))
                continue
            rows = batch[teacher.view]["soft_rows"]
            if strategy == "uld":
                uld = uld + teacher.weight * losses.uld_loss(
                    logits[rows], probs, temperature, "sum"
                )
            elif strategy != "none":
                assert teacher.projection
                project = getattr(teacher.projection, strategy)
                probs, covered = project(probs, members[0].probs[rows])
                members.append(losses.Member(rows, probs, weights))
                sums[f"mass_{teacher.name}"] = covered.sum()
        target = losses.mix_targets(members)
        return sums | {"ce": losses.distribution_loss(logits, target, temperature, "sum") + uld}

    def cosine_sums(
        self, states: list[Tensor], outputs: list[Outputs], batch: Sequence[View]
    ) -> dict[str, Tensor]:
        """The term of each compared teacher. states: the student's (B, L, H), then their maps."""
        sums = {}
        for teacher, ours, (_, theirs) in zip(self.compared, states, outputs, strict=False):
            if self.by_piece(teacher):
                tokens = batch[0]["tokens"]
                ours, theirs = ours.flatten(0, 1)[tokens], theirs.flatten(0, 1)[tokens]
            else:
                ours = pool_words(ours, batch[0]["word_ids"])
                theirs = pool_words(theirs, batch[teacher.view]["word_ids"])
            sums[self.cosine_name(teacher)] = losses.cosine_loss(ours, theirs, "sum")
        return sums
