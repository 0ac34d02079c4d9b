"""The distillation losses: pure functions of tensors.

    L = alpha_ce * T^2 * KL(teacher || student) + alpha_mlm * CE + alpha_cos * (1 - cos(h_student, h_teacher))

(Sanh et al. 2019, DistilBERT; Hinton et al. 2015 for the factor T^2, which keeps the gradient of the soft term at the
size of the hard term's whatever the temperature is.)
"""

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # the label of a position that is not predicted (PyTorch's and transformers' convention)


def soft_target_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over rows.

    student_logits, teacher_logits: (N, V) over one vocabulary. Returns a scalar in nats; 0 for N = 0.
    Hinton et al. 2015, section 2. Raises ValueError for unequal shapes or a temperature that is not positive.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ in "
            "shape: both must be (N, V) over one vocabulary"
        )
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive")
    if not len(student_logits):
        return student_logits.sum()
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


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
    if student_hidden.shape != teacher_hidden.shape:
        raise ValueError(
            f"student states {tuple(student_hidden.shape)} and teacher states {tuple(teacher_hidden.shape)} differ in "
            "shape: the student must be as wide as its teacher"
        )
    if not len(student_hidden):
        return student_hidden.sum()
    return (1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1)).mean()
