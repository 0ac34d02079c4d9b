"""What both training loops share: precision, optimizer groups, batches of similar length."""

import torch
from accelerate import Accelerator
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler


def has_bf16() -> bool:
    """True on a GPU with bf16; 16-bit floats are many times slower on most CPUs."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def make_accelerator() -> Accelerator:
    """bf16 where the GPU has it, float32 elsewhere."""
    return Accelerator(mixed_precision="bf16" if has_bf16() else "no")


def autocast(device: torch.device):
    """The precision of `make_accelerator`, for a model that it did not prepare."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and has_bf16())


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW groups: no decay on biases and layer norms, told by their shape, so that no naming scheme is missed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def length_batches(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of indices of similar length in an order that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(1_000_003 * epoch + seed)
    order = list(LengthGroupedSampler(batch_size, lengths=lengths, generator=generator))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
