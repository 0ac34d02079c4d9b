"""The machine that a benchmark ran on: processor, matrix rates, versions."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from rolib.runs import git_commit

FLAGS = ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile"]
PACKAGES = ["torch", "transformers", "accelerate", "numpy", "textbrewer"]


def use_threads() -> None:
    """Use the threads that OMP_NUM_THREADS says, or one: more would depend on other work."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def matrix_rate(dtype: torch.dtype, sizes: tuple[int, ...] = (1024, 2048, 4096)) -> float:
    """Operations per CPU-second of the best of several square products; median of three each."""
    rates = []
    for size in sizes:
        left, right = (torch.rand(size, size).to(dtype) for _ in range(2))
        out, seconds = torch.empty_like(left), []
        for _ in range(4):
            start = time.process_time()
            torch.matmul(left, right, out=out)
            seconds.append(time.process_time() - start)
        rates.append(2 * size**3 / statistics.median(seconds[1:]))
    return max(rates)


def cpu() -> dict:
    """The processor's name and those of FLAGS that it has; empty where /proc/cpuinfo is missing."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
    flags = set(fields.get("flags", "").split())
    numbers = {key: fields.get(key, "") for key in ("cpu family", "model")}
    name = fields.get("model name", platform.processor())
    return {"name": name, **numbers, "flags": [flag for flag in FLAGS if flag in flags]}


def describe() -> dict:
    """Processor, cores, memory, versions, commit, date."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": git_commit(),
        "date": datetime.date.today().isoformat(),
    }
