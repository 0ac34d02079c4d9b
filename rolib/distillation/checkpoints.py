"""Checkpoints of a training run, and signals that wait for one."""

import contextlib
import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rolib.config import ConfigError
from rolib.runs import check_files, hash_files, read_json, read_metrics, write_json, write_text


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first; their names end in the number of the step."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, since: dict[str, Any]
) -> None:
    """Save model, optimizer and random generators; the last two checkpoints stay.

    since: what the steps since the last metrics record leave to the next one.
    """
    temporary = folder / "checkpoints" / ".partial"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed in this function
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=False)  # tied weights stay tied
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        facts = {"files": hash_files(temporary), "processes": accelerator.num_processes}
        write_json(temporary / "manifest.json", facts | {"since": since})
        temporary.rename(temporary.with_name(f"step-{step}"))
        for path in checkpoints(folder)[:-2]:
            shutil.rmtree(path)


def resume(accelerator: Accelerator, folder: Path) -> tuple[int, dict[str, Any]]:
    """Load the newest checkpoint that is whole; returns its step and `since`; 0 without one.

    Metrics of later steps are removed, since those steps will be trained again. ConfigError for a
    checkpoint of another number of processes, since a step of these has other blocks.
    """
    step, spoiled = 0, []
    since: dict[str, Any] = {"means": [], "tokens": 0, "seconds": 0.0}
    for path in reversed(checkpoints(folder)):
        try:
            check_files(path, "")
        except (ValueError, FileNotFoundError):
            spoiled.append(path)
            continue
        found = read_json(path / "manifest.json", "")
        if (before := found["processes"]) != accelerator.num_processes:
            raise ConfigError(f"{folder}: begun by {before} processes: take as many, or delete it")
        accelerator.load_state(str(path))
        step, since = int(path.name.removeprefix("step-")), found["since"]
        break
    accelerator.wait_for_everyone()
    for path in spoiled if accelerator.is_main_process else []:
        print(f"{path} is damaged: going on from step {step}", file=sys.stderr, flush=True)
        shutil.rmtree(path)
    metrics = folder / "metrics.jsonl"
    if accelerator.is_main_process and metrics.exists():
        kept = [record for record in read_metrics(metrics) if record["step"] <= step]
        write_text(metrics, "".join(json.dumps(record) + "\n" for record in kept))
    return step, since


@contextlib.contextmanager
def delayed_signals() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that come meanwhile; the first one acts at the end of the block.

    So a loop can end its step and save a checkpoint. A second one acts at once.
    """
    came: list[int] = []

    def keep(number: int, frame: object) -> None:
        """Remember a first signal."""
        if came:
            raise KeyboardInterrupt
        came.append(number)

    main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
    numbers = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
    before = {number: signal.signal(number, keep) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
