"""Size and speed of models on the device at hand: parameters, file size, latency, throughput, peak memory."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from rolib.config import SpeedConfig
from rolib.distillation.models import count_parameters


def time_forward(model, input_ids: Tensor) -> float:
    """Seconds of one forward pass over input_ids (B, L); on a GPU the clock stops only after the device has finished."""
    wait = torch.cuda.synchronize if input_ids.is_cuda else lambda: None
    with torch.inference_mode():
        wait()
        start = time.perf_counter()
        model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        wait()
    return time.perf_counter() - start


def peak_memory(model, input_ids: Tensor) -> float | None:
    """Megabytes that one forward pass needs beyond the weights, on a GPU; None on a CPU."""
    if not input_ids.is_cuda:
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    time_forward(model, input_ids)
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def measure(folders: dict[str, Path], config: SpeedConfig) -> list[dict]:
    """Measure the encoders of saved models, one row per batch size and model.

    The models take turns run by run, so that a machine whose speed drifts does not favour one of them. A megabyte is 10^6
    bytes, a sequence_length in pieces, a latency that of a batch (median and quartiles).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {
        name: AutoModel.from_pretrained(folder).to(device).eval()
        for name, folder in folders.items()
    }
    generator, rows = torch.Generator().manual_seed(config.seed), []
    for batch_size in config.batch_sizes:
        size = (batch_size, config.sequence_length)
        pieces = [
            torch.randint(5, model.config.vocab_size, size, generator=generator).to(device)
            for model in models.values()
        ]
        turns = range(config.warmup_runs + config.timed_runs)
        seconds = np.array([list(map(time_forward, models.values(), pieces)) for _ in turns])[
            config.warmup_runs :
        ]
        for (name, model), runs, batch in zip(models.items(), seconds.T, pieces, strict=True):
            q1, median, q3 = np.percentile(1000 * runs, [25, 50, 75])
            row = {
                "model": name,
                "batch_size": batch_size,
                "sequence_length": config.sequence_length,
            }
            row |= {
                "parameters": count_parameters(model)
            }  # with BERT's pooler, as the paper counts; no head
            row |= {
                "megabytes": (folders[name] / "model.safetensors").stat().st_size / 1e6
            }  # MLM head included
            row |= {"latency_ms": median, "latency_q1_ms": q1, "latency_q3_ms": q3}
            row |= {
                "tokens_per_second": batch.numel() / (median / 1000),
                "peak_memory_mb": peak_memory(model, batch),
            }
            rows.append(row)
    return rows
