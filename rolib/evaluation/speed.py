"""Size and speed of models on this machine: parameters, file size, latency, throughput, memory."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel

from rolib.config import SpeedConfig


def time_forward(model: nn.Module, input_ids: Tensor) -> float:
    """Seconds of one forward pass over input_ids (B, L).

    A GPU works in the background: the clock starts and stops only when it has finished.
    """
    synchronize = torch.cuda.synchronize if input_ids.is_cuda else torch.cpu.synchronize
    with torch.inference_mode():
        synchronize()
        start = time.perf_counter()
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        synchronize()
    return time.perf_counter() - start


def peak_memory(model: nn.Module, input_ids: Tensor) -> float | None:
    """Megabytes that one forward pass needs beyond the weights, on a GPU; None on a CPU."""
    if not input_ids.is_cuda:
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    time_forward(model, input_ids)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def load_encoder(folder: Path) -> nn.Module:
    """The encoder of a saved model, on the GPU if there is one; with a pooler if it was saved."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"]:  # a BERT for masked words: its pooler would be random
        encoder.pooler = None
    return encoder.to(device).eval()


def measure(
    folders: dict[str, Path], config: SpeedConfig, load: Callable[[Path], Any] = load_encoder
) -> list[dict]:
    """Measurements of saved models: one row per batch size and model.

    load: from a folder, or from the file of a model, to the model.
    The models take turns, run by run. So a machine whose speed drifts does not favour one model.
    Units: a megabyte is 10^6 bytes of the saved file (with the MLM head); sequence_length counts
    pieces; latency is that of a batch (median and quartiles, in milliseconds).
    """
    models = [load(folder) for folder in folders.values()]
    generator = torch.Generator().manual_seed(config.seed)
    turns = range(config.warmup_runs + config.timed_runs)
    rows = []
    for batch_size in config.batch_sizes:
        size = (batch_size, config.sequence_length)
        ends = [model.config.vocab_size for model in models]  # from 5: without special pieces
        pieces = [torch.randint(5, end, size, generator=generator) for end in ends]
        devices = [next(model.parameters()).device for model in models]
        batches = [batch.to(device) for batch, device in zip(pieces, devices, strict=True)]
        seconds = [list(map(time_forward, models, batches)) for _ in turns]
        milliseconds = 1000 * np.array(seconds[config.warmup_runs :])
        times = np.percentile(milliseconds, [25, 50, 75], axis=0).T
        for name, model, batch, (q1, q2, q3) in zip(folders, models, batches, times, strict=True):
            row = {"model": name, "batch_size": batch_size, "sequence_length": size[1]}
            # Without the MLM head.
            row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            place = folders[name]
            file = place / "model.safetensors" if place.is_dir() else place
            row["megabytes"] = file.stat().st_size / 1e6
            row |= {"latency_ms": q2, "latency_q1_ms": q1, "latency_q3_ms": q3}
            row["tokens_per_second"] = batch.numel() / (q2 / 1000)
            rows.append(row | {"peak_memory_mb": peak_memory(model, batch)})
    return rows
