"""The objective of a training run: a weighted sum of terms, each a mean over its places.

    L = sum over terms k of alpha_k * S_k / n_k

S_k is the sum of a loss over the places of term k (tokens, masked pieces or words). n_k is the
number of these places in the whole optimizer step, over all micro-batches and processes. The
collator lists the places of a batch on the CPU, so n_k is known before any forward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from rolib.config import StudentConfig, TrainingConfig
from rolib.distillation import losses
from rolib.distillation.alignment import Projection, pool_words
from rolib.distillation.masking import View
from rolib.distillation.models import Encoded, MaskedLM
from rolib.distillation.vocabulary import Logits, Target, soften, vocabulary_loss
from rolib.training import autocast

ABSENT = -1e4  # the logit of a piece that a cache did not keep; -inf would make 0 * -inf = NaN
TINY = torch.finfo(torch.float32).tiny


class Term(NamedTuple):
    """One term of the loss, or with alpha 0 a quantity that is only logged."""

    name: str  # its column in metrics.jsonl
    alpha: float  # its weight in the loss
    places: str  # the positions that its mean is over, as the collator calls them
    view: int = 0  # the view that lists them


@dataclass(eq=False)
class Teacher:
    """A teacher, its weight, and the projection of its vocabulary onto the student's."""

    name: str
    model: MaskedLM
    weight: float = 1.0  # the weights of a student's teachers sum to 1
    view: int = 0  # the number of the tokenizer it reads with; 0 is the student's
    projection: Projection | None = None  # for a teacher with another vocabulary

    def place(self, device: torch.device, precision: str = "") -> None:
        """Move the projection to a device; with a precision the model too, frozen."""
        if precision:
            self.model.eval().requires_grad_(False).to(device, getattr(torch, precision))
        if self.projection:
            self.projection.to(device)


class Answer(NamedTuple):
    """What a teacher says of a batch."""

    logits: Callable[[slice], Tensor]  # rows of its soft pieces -> their float32 logits (m, U)
    states: Tensor  # (S, H) of its compared pieces


def inputs_of(view: View) -> tuple[Tensor, Tensor | None]:
    """The input ids and the attention mask of a model, None where nothing is padded."""
    return view["input_ids"], view["attention_mask"] if view["padded"] else None


def spread(logits: Tensor, pieces: Tensor, size: int) -> Tensor:
    """Logits (m, size) from those of some pieces (m, k); the other pieces have no probability."""
    return logits.new_full((len(logits), size), ABSENT).scatter_(1, pieces, logits)


class Objective:
    """The terms of a run, and the loss of a batch.

    Terms: ce (soft targets of all teachers), mlm (masked words), cos (states of the first teacher)
    and cos_<name> (of a further one). Without a teacher mlm is the only one. Only logged, for each
    teacher with another vocabulary: coverage_<name>, the share of masked words where it and the
    student predict at one place; and if it is projected mass_<name>, the share of its soft
    targets' probability that has a counterpart in the student's vocabulary.
    """

    def __init__(
        self, config: TrainingConfig, teachers: Sequence[Teacher] = (), precision: str = "float32"
    ):
        self.config = cast(StudentConfig, config)  # read where there are teachers only
        self.precision, self.teachers, self.compared = precision, list(teachers), list(teachers)
        self.soft_targets, self.states = "masked", "masked"  # the tokens that are compared
        self.terms, self.has_soft_targets = [Term("mlm", 1.0, "masked")], False
        if teachers:
            if self.config.hidden_states == "first":
                self.compared = self.teachers[:1]
            if not self.config.alpha_cos:
                self.compared = []
            if self.config.alpha_ce:
                self.has_soft_targets, self.soft_targets = True, self.config.soft_targets
            if not self.config.cached_pieces:
                self.states = "all"
            self.terms = self._terms()
        # Teachers that nothing is learned from are not run.
        self.asked = self.teachers if self.has_soft_targets or self.compared else []

    def _terms(self) -> list[Term]:
        """The terms of the loss that have a weight, and then what is only logged."""
        config, total = self.config, sum(teacher.weight for teacher in self.compared)
        terms = [Term("ce", config.alpha_ce, "soft"), Term("mlm", config.alpha_mlm, "masked")]
        for teacher in self.compared:
            places = "compared" if self.by_piece(teacher) else "words"
            alpha = config.alpha_cos * teacher.weight / total
            terms.append(Term(self.cosine_name(teacher), alpha, places))
        terms = [term for term in terms if term.alpha or term.name == "mlm"]  # a measure too
        for teacher in self.teachers:
            if teacher.view:
                terms.append(Term(f"coverage_{teacher.name}", 0.0, "masked_words"))
                if self.projects:
                    terms.append(Term(f"mass_{teacher.name}", 0.0, "soft", teacher.view))
        return terms

    def cosine_name(self, teacher: Teacher) -> str:
        """The name of the term that compares a teacher's states."""
        return "cos" if teacher is self.teachers[0] else f"cos_{teacher.name}"

    def by_piece(self, teacher: Teacher) -> bool:
        """True if states are compared piece by piece, False if word by word."""
        return teacher.view == 0 and self.config.hidden_states != "words"

    @property
    def projects(self) -> bool:
        """True if teachers of another vocabulary join the soft targets, projected onto it."""
        return self.has_soft_targets and self.config.soft_target_strategy not in ("uld", "none")

    @property
    def mapped(self) -> list[Teacher]:
        """The teachers whose states are compared through a trainable map: all but the first."""
        return self.compared[1:]

    def counts(self, batch: Sequence[View]) -> list[int]:
        """The number of places of each term in a batch of `MaskingCollator`."""
        return [len(batch[term.view][term.places]) for term in self.terms]

    def loss(
        self, student: nn.Module, batch: Sequence[View], weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss (scalar), and without gradient the sum of each term over its places, (terms,).

        batch: of `MaskingCollator`; weights: (terms,), alpha_k / n_k.
        """
        view, names = batch[0], [term.name for term in self.terms]
        weight = dict(zip(names, weights.unbind(), strict=True))
        with autocast(weights.device, self.precision):
            answers = [self.answer(teacher, batch) for teacher in self.asked]
            ours = student(*inputs_of(view), view["soft"], view["compared"])
            loss, sums = self.vocabulary_terms(ours, answers, batch, weight)
        for name, total in self.cosine_sums(ours, answers, batch).items():
            loss, sums[name] = loss + weight.get(name, 0.0) * total, total.detach()
        for teacher in self.teachers:
            if teacher.view:
                covered = len(batch[teacher.view]["covered"])
                sums[f"coverage_{teacher.name}"] = torch.full_like(weights[0], covered)
        zero = torch.zeros_like(weights[0])
        return loss, torch.stack([sums.get(name, zero) for name in names])

    @torch.no_grad()
    def answer(self, teacher: Teacher, batch: Sequence[View]) -> Answer:
        """What a teacher says of its soft pieces and of its compared pieces."""
        view, name = batch[teacher.view], teacher.name
        if f"{name}.states" in view:  # of a cache
            size = teacher.model.model.config.vocab_size
            kept, pieces = view[f"{name}.logits"], view[f"{name}.pieces"]
            states = view[f"{name}.states"]
            return Answer(lambda rows: spread(kept[rows], pieces[rows], size), states)
        rows, compared = view["soft"], view["compared"]
        unused = teacher.view and self.config.soft_target_strategy == "none"
        if unused or not self.has_soft_targets:
            rows = rows[:0]
        if teacher not in self.compared:
            compared = compared[:0]
        theirs = teacher.model(*inputs_of(view), rows, compared)
        return Answer(Logits(theirs.head, theirs.decoder), theirs.states)

    def vocabulary_terms(
        self, ours: Encoded, answers: list[Answer], batch: Sequence[View], weight: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The part ce + mlm of the loss, and the sums of these terms and of the covered masses.

        ULD compares sorted probabilities, so it is a loss of its own beside the mixed targets.
        """
        labels = batch[0]["labels"].flatten()[batch[0]["masked"]]
        zero = torch.zeros_like(next(iter(weight.values())))
        factors = torch.stack([weight.get("ce", zero), weight.get("mlm", zero)])
        if not self.has_soft_targets:
            loss, parts = vocabulary_loss(ours.head, ours.decoder, labels, factors)
            return loss, {"mlm": parts[1]}
        temperature, masses = self.config.temperature, dict[str, Any]()
        softened = temperature, partial(self.target, answers=answers, batch=batch, masses=masses)
        loss, parts = vocabulary_loss(ours.head, ours.decoder, labels, factors, *softened)
        sums = masses | {"ce": parts[0], "mlm": parts[1]}
        for teacher, answer in zip(self.asked, answers, strict=True):
            if teacher.view and self.config.soft_target_strategy == "uld":
                rows = batch[teacher.view]["soft_rows"]
                probs, _ = soften(answer.logits(slice(0, len(rows))), temperature)
                head = ours.head.index_select(0, rows)
                uld = losses.uld_loss(ours.decoder(head).float(), probs, temperature)
                sums["ce"] = sums["ce"] + teacher.weight * uld.detach()
                loss = loss + factors[0] * teacher.weight * uld
        return loss, sums

    def target(
        self, rows: slice, answers: list[Answer], batch: Sequence[View], masses: dict[str, Any]
    ) -> Target:
        """The soft targets of some of the soft rows: the weighted mean of the teachers' (m, V).

        What is projected onto the student's vocabulary joins it. Adds the covered mass of each
        projected teacher to `masses`.
        """
        members: list[losses.Member] = []
        for teacher, answer in zip(self.asked, answers, strict=True):
            if teacher.view and not self.projects:
                continue
            view = batch[teacher.view]
            inside = slice(*np.searchsorted(view["soft_rows_host"], [rows.start, rows.stop]))
            places = view["soft_rows"][inside] - rows.start
            probs, negative_entropy = soften(answer.logits(inside), self.config.temperature)
            weights = torch.full_like(negative_entropy, teacher.weight)
            if self.config.weighting == "confidence":  # exp(-entropy): 1 for a certain teacher
                weights = weights * negative_entropy.exp()
            if teacher.projection:
                project = getattr(teacher.projection, self.config.soft_target_strategy)
                probs, covered = project(probs, members[0].probs.index_select(0, places))
                name = f"mass_{teacher.name}"
                masses[name] = masses.get(name, 0.0) + covered.sum()
            members.append(losses.Member(places, probs, weights))
        if len(members) == 1:
            return probs, negative_entropy
        mixed = losses.mix_targets(members)
        return mixed, torch.linalg.vecdot(mixed, mixed.clamp(min=TINY).log())

    def cosine_sums(
        self, ours: Encoded, answers: list[Answer], batch: Sequence[View]
    ) -> dict[str, Tensor]:
        """The sum of each compared teacher's term over its pieces or words."""
        sums, states = {}, [ours.states, *ours.mapped]
        for teacher, own, answer in zip(self.compared, states, answers, strict=False):
            one, other = own.float(), answer.states.float()
            if not self.by_piece(teacher):
                view, theirs = batch[0], batch[teacher.view]
                one = pool_words(one, view["numbers"], len(view["words"]))
                other = pool_words(other, theirs["numbers"], len(theirs["words"]))
            sums[self.cosine_name(teacher)] = losses.cosine_loss(one, other, "sum")
        return sums
