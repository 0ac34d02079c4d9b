"""What both training loops share: precision, optimizer groups, batches of similar length."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

BATCHES_A_POOL = 50  # examples are sorted by length within pools of so many batches


def has_bf16() -> bool:
    """True on a GPU with bf16 of its own.

    Older GPUs emulate it, and most CPUs have it many times slower than float32.
    """
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def make_accelerator() -> Accelerator:
    """An Accelerator that trains in bf16 where the GPU has it, in float32 elsewhere."""
    return Accelerator(mixed_precision="bf16" if has_bf16() else "no")


def autocast(device: torch.device) -> torch.autocast:
    """The precision of `make_accelerator`, for a model that it did not prepare."""
    enabled = device.type == "cuda" and has_bf16()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW groups: no decay on biases and layer norms.

    The shape of a parameter decides, since names differ between architectures.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    decayed = {"params": matrices, "weight_decay": weight_decay}
    return [decayed, {"params": vectors, "weight_decay": 0.0}]


def length_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Batches of indices of examples of similar length, the batches in random order.

    The order depends on (seed, epoch) only. Each index is in one batch.
    """
    rng = np.random.default_rng([seed, epoch])
    order, size = rng.permutation(len(lengths)).tolist(), BATCHES_A_POOL * batch_size
    batches = []
    for start in range(0, len(order), size):
        pool = sorted(order[start : start + size], key=lambda index: lengths[index])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    rng.shuffle(batches)
    return batches
