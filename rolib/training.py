"""What both training loops share: precision, optimizer groups, batches of similar length."""

import ctypes
import os
import sys

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

CPU_BF16_WIDTH = 256  # narrower models gain nothing from bf16 on a CPU: see LOG.md
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of glibc's mallopt
BATCHES_A_POOL = 50  # examples are sorted by length within pools of so many batches


def processes() -> Accelerator:
    """The processes that make a run together, and the device of this one.

    Without a GPU Accelerate would let each process of a launch start a run of its own.
    """
    return Accelerator(cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available())


def has_bf16() -> bool:
    """True where the hardware multiplies bf16 matrices itself.

    Older GPUs emulate it, and older CPUs have it many times slower than float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_precision(precision: str, hidden_size: int) -> str:
    """The type of matrix products: the parameter, or for "auto" "bfloat16" where it is faster."""
    if precision != "auto":
        return precision
    wide = torch.cuda.is_available() or hidden_size >= CPU_BF16_WIDTH
    return "bfloat16" if has_bf16() and wide else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which matrices are multiplied in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones (Linux, glibc).

    Else a step on a CPU gives its large tensors back and waits for new, zeroed pages each time:
    6 to 20 % of a step (LOG.md). The process stays as large as it once was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_MAX, 0)):
            mallopt(option, value)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW groups: no decay on biases and layer norms.

    The shape of a parameter decides, since names differ between architectures.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    decayed = {"params": matrices, "weight_decay": weight_decay}
    return [decayed, {"params": vectors, "weight_decay": 0.0}]


def length_batches(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
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
