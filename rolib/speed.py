"""Size and speed of a model on the device at hand: parameters, file size, latency, throughput, peak memory."""

import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from rolib.config import SpeedConfig
from rolib.models import count_parameters


def time_forward(model, input_ids: torch.Tensor, warmup_runs: int, timed_runs: int) -> np.ndarray:
    """Seconds of each of `timed_runs` forward passes over input_ids (B, L), after `warmup_runs` uncounted ones.

    On a GPU the clock stops only after the device has finished.
    """
    wait = torch.cuda.synchronize if input_ids.is_cuda else lambda: None
    mask, seconds = torch.ones_like(input_ids), []
    with torch.inference_mode():
        for run in range(warmup_runs + timed_runs):
            wait()
            start = time.perf_counter()
            model(input_ids=input_ids, attention_mask=mask)
            wait()
            if run >= warmup_runs:
                seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def measure(folder: Path, config: SpeedConfig) -> list[dict]:
    """Measure the encoder of a saved model: one row per batch size.

    Keys: parameters (encoder with BERT's pooler, as the paper counts; no head), megabytes (model.safetensors, 10^6 bytes, MLM head included), batch_size, sequence_length
    (pieces), latency_ms (median of a batch), latency_q1_ms and latency_q3_ms (quartiles), tokens_per_second (at the
    median), peak_memory_mb (of the passes, on a GPU; None on a CPU).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModel.from_pretrained(folder).to(device).eval()
    generator = torch.Generator().manual_seed(config.seed)
    rows = []
    for batch_size in config.batch_sizes:
        shape = (batch_size, config.sequence_length)
        input_ids = torch.randint(5, model.config.vocab_size, shape, generator=generator).to(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = time_forward(model, input_ids, config.warmup_runs, config.timed_runs)
        q1, median, q3 = np.percentile(1000 * seconds, [25, 50, 75])
        rows.append(
            {
                "parameters": count_parameters(model),
                "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
                "batch_size": batch_size,
                "sequence_length": config.sequence_length,
                "latency_ms": median,
                "latency_q1_ms": q1,
                "latency_q3_ms": q3,
                "tokens_per_second": input_ids.numel() / (median / 1000),
                "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else None,
            }
        )
    return rows
