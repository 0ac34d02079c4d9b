"""The distillation losses: pure functions of tensors.

    L = alpha_ce * T^2 * KL(teacher || student) + alpha_mlm * CE + alpha_cos * (1 - cos(h_student, h_teacher))

(Sanh et al. 2019, DistilBERT; Hinton et al. 2015 for the factor T^2, which keeps the gradient of the soft term at the
size of the hard term's whatever the temperature is.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = (
    -100
)  # the label of a position that is not predicted (PyTorch's and transformers' convention)


def check_shapes(student: Tensor, teacher: Tensor, what: str, mend: str) -> None:
    """Raise ValueError unless the shapes are equal; they could broadcast and give a wrong loss without a word."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {what} {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)} differ in shape: {mend}"
        )


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over rows.

    student_logits, teacher_logits: (N, V) over one vocabulary. Returns a scalar in nats; 0 for N = 0.
    Hinton et al. 2015, section 2. Raises ValueError for unequal shapes or a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive")
    return distribution_loss(
        student_logits, F.softmax(teacher_logits / temperature, dim=-1), temperature
    )


def distribution_loss(student_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(target || softmax(student / T)), mean over rows: `soft_target_loss` for a target already softened by T.

    student_logits, target: (N, V), the rows of target summing to 1. Scalar in nats; 0 for N = 0. ValueError for unequal shapes.
    """
    check_shapes(student_logits, target, "logits", "both must be (N, V) over one vocabulary")
    if not len(student_logits):
        return student_logits.sum()
    student = F.log_softmax(student_logits / temperature, dim=-1)
    return F.kl_div(student, target, reduction="batchmean") * temperature**2


def mlm_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the true pieces at the masked positions, mean over those with a label.

    student_logits: (N, V); labels: (N,) vocabulary indices, -100 where nothing is predicted. Scalar in nats; 0 when
    no position has a label. Devlin et al. 2019, section 3.1.
    """
    if not (labels != IGNORE).any():
        return student_logits.sum() * 0
    return F.cross_entropy(student_logits, labels, ignore_index=IGNORE)


def cosine_loss(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """1 - cos(student state, teacher state), mean over rows.

    student_hidden, teacher_hidden: (N, H), last hidden states of the same tokens. Scalar in [0, 2]; 0 for N = 0.
    Sanh et al. 2019, section 2. Raises ValueError for unequal shapes.
    """
    check_shapes(
        student_hidden, teacher_hidden, "states", "the student must be as wide as its teacher"
    )
    if not len(student_hidden):
        return student_hidden.sum()
    return (1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)).mean()


def mix_targets(members: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The weighted mean of several teachers' distributions, row by row, over those that have one there.

    members: for each teacher rows (M,), the row numbers where it has a distribution; probs (M, V) there; weights (M,). The first
    has every row in order. One member comes back as it is. Returns (N, V), each row summing to 1. Hinton et al. 2015, section 3.
    """
    (_, first, say), *others = members
    if not others:
        return first
    total = say.clone()
    for rows, _, weights in others:
        total.index_add_(0, rows, weights)
    mixed = first * (say / total)[:, None]
    for rows, probs, weights in others:
        mixed.index_add_(0, rows, probs * (weights / total[rows])[:, None])
    return mixed


def confidence(probs: Tensor) -> Tensor:
    """exp(-entropy) of each row, in (0, 1]: 1 for a certain teacher, 1/V for one that knows nothing. (N, V) -> (N,)."""
    return torch.special.entr(probs).sum(-1).neg().exp()


def uld_loss(student_logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """Universal logit distillation: the L1 distance of the two sorted distributions, mean over rows.

    student_logits: (N, V), softened by `temperature`; teacher_probs: (N, U) over any other vocabulary, the shorter one filled up
    with zeros. Scalar in [0, 2]; 0 for N = 0. It compares how sure the models are, not of what. Boizard et al. 2024
    (arXiv 2402.12030), equation 5.
    """
    if not len(student_logits):
        return student_logits.sum()
    student = F.softmax(student_logits / temperature, dim=-1).sort(dim=-1, descending=True).values
    teacher = teacher_probs.sort(dim=-1, descending=True).values
    width = max(student.shape[-1], teacher.shape[-1])
    student, teacher = (F.pad(side, (0, width - side.shape[-1])) for side in (student, teacher))
    return (student - teacher).abs().sum(-1).mean()
