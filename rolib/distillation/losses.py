"""The distillation losses, pure functions of tensors.

    L = alpha_ce * T^2 * KL(teacher || student) + alpha_mlm * CE + alpha_cos * (1 - cos(h_s, h_t))

(Sanh et al. 2019, DistilBERT; Hinton et al. 2015 for the factor T^2: the gradient of the soft term
falls as 1/T^2 where T is high, and the factor stops this fall.)

A loss is a mean over rows, or with reduction="sum" their sum. The training loop takes sums and
divides by the number of rows of the whole optimizer step (`rolib.distillation.objective`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The label of a position that is not predicted (PyTorch's and transformers' convention).
IGNORE = -100


def reduce(total: Tensor, rows: int | Tensor, reduction: str) -> Tensor:
    """The sum as it is, or for "mean" divided by the number of rows; 0 for no rows."""
    return total if reduction == "sum" else total / torch.as_tensor(rows).clamp(min=1)


def check_shapes(student: Tensor, teacher: Tensor, what: str, hint: str) -> None:
    """Raise ValueError unless the shapes are equal: broadcasting gives a wrong loss silently."""
    if student.shape != teacher.shape:
        sides = f"student {what} {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}"
        raise ValueError(f"{sides} differ in shape: {hint}")


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, reduction: str = "mean"
) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)).

    student_logits, teacher_logits: (N, V) over one vocabulary. Returns a scalar in nats; 0 for
    N = 0. Raises ValueError for unequal shapes or a temperature that is not positive. Hinton et al.
    2015, section 2.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive")
    hint = "both must be (N, V) over one vocabulary"
    check_shapes(student_logits, teacher_logits, "logits", hint)
    target = F.softmax(teacher_logits / temperature, dim=-1)
    student = F.log_softmax(student_logits / temperature, dim=-1)
    total = F.kl_div(student, target, reduction="sum") * temperature**2
    return reduce(total, len(student), reduction)


def mlm_loss(student_logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the true pieces, over the rows that have a label.

    student_logits: (N, V); labels: (N,) vocabulary indices, -100 where nothing is predicted.
    Scalar in nats; 0 when no row has a label. Devlin et al. 2019, section 3.1.
    """
    total = F.cross_entropy(student_logits, labels, ignore_index=IGNORE, reduction="sum")
    return reduce(total, (labels != IGNORE).sum(), reduction)


def task_loss(
    student: Tensor, gold: Tensor, teacher: Tensor, alpha: float, temperature: float
) -> Tensor:
    """Of one measure: (1 - alpha) CE(gold) + alpha T^2 KL(teacher || student), a mean over units.

    student: (N, C) logits; teacher: (N, C) probabilities; gold: (N,) label indices, -100 for a unit
    without a gold label. Such a unit counts in N and has the second term alone. With alpha 0, and a
    gold label for every unit, it is the cross-entropy of plain fine-tuning. For C = 1 all three are
    scores: both terms are squared errors, and T has no part. Scalar. Raises ValueError as
    `soft_target_loss` does. Hinton et al. 2015, section 2.
    """
    if student.shape[-1] == 1:
        check_shapes(student, teacher, "scores", "both must be (N, 1)")
        known = gold != IGNORE
        hard = F.mse_loss(student[known, 0], gold[known], reduction="sum")
        soft = F.mse_loss(student, teacher, reduction="sum")
    else:
        hard = mlm_loss(student, gold, reduction="sum")
        soft = soft_target_loss(student, teacher.log(), temperature, reduction="sum")
    return reduce((1 - alpha) * hard + alpha * soft, len(student), "mean")


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor, reduction: str = "mean") -> Tensor:
    """1 - cos(student state, teacher state).

    student_hidden, teacher_hidden: (N, H), last hidden states of the same tokens. Scalar, for the
    mean in [0, 2]; 0 for N = 0. Raises ValueError for unequal shapes. Sanh et al. 2019, section 2.
    """
    hint = "the student must be as wide as its teacher"
    check_shapes(student_hidden, teacher_hidden, "states", hint)
    total = (1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)).sum()
    return reduce(total, len(student_hidden), reduction)


class Member(NamedTuple):
    """One teacher's distributions in a mixed target."""

    rows: Tensor  # (M,) numbers of the rows where it has a distribution
    probs: Tensor  # (M, V)
    weights: Tensor  # (M,)


def mix_targets(members: Sequence[Member]) -> Tensor:
    """The weighted mean of several teachers' distributions, (N, V); each row sums to 1.

    A row's mean is over the teachers that have a distribution there. The first member has every
    row, in order. Hinton et al. 2015, section 3.
    """
    first, *others = members
    total = first.weights.clone()
    for member in others:
        total.index_add_(0, member.rows, member.weights)
    mixed = first.probs * (first.weights / total)[:, None]
    for member in others:
        share = member.weights / total[member.rows]
        mixed.index_add_(0, member.rows, member.probs * share[:, None])
    return mixed


def uld_loss(student_logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """Universal logit distillation: the L1 distance of the two sorted distributions, summed.

    student_logits: (N, V), softened by `temperature`; teacher_probs: (N, U) over any other
    vocabulary. The shorter side is filled up with zeros. Scalar, a sum over rows in [0, 2N]. It
    compares how certain the models are, not of what. Boizard et al. 2024
    (arXiv 2402.12030), equation 5.
    """
    student = F.softmax(student_logits / temperature, dim=-1).sort(dim=-1, descending=True).values
    teacher = teacher_probs.sort(dim=-1, descending=True).values
    width = max(student.shape[-1], teacher.shape[-1])
    student, teacher = (F.pad(side, (0, width - side.shape[-1])) for side in (student, teacher))
    return (student - teacher).abs().sum()
