"""The records of a training run: losses, tokens and speed, and the files that they go to."""

import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from rolib.distillation.objective import Term
from rolib.runs import append_metrics

OnLog = Callable[[dict], None]


class Records:
    """What a run did since its last record, and the writer of metrics.jsonl and of TensorBoard.

    Several processes call `losses`, `next` and `state` together; the main one writes. terms: of the
    objective. on_log is called with each record. since: of `state`, as a checkpoint has it.
    """

    def __init__(
        self, accelerator: Accelerator, terms: list[Term], folder: Path, on_log: OnLog, since: dict
    ) -> None:
        self.accelerator, self.terms, self.folder = accelerator, terms, folder
        self.on_log, self.events = on_log, cast(Any, None)
        # A checkpoint has the steps of all processes, so they count once.
        device, once = accelerator.device, accelerator.is_main_process
        self.steps = [torch.tensor(means, device=device) * once for means in since["means"]]
        self.tokens = torch.tensor(since["tokens"] * once, device=device)
        self.start = time.monotonic() - since["seconds"]

    def add(self, means: Tensor, tokens: int) -> None:
        """Count one more step of this process: the means of its terms (terms,), its tokens."""
        self.steps.append(means)
        self.tokens += tokens

    def losses(self, step: int) -> dict[str, float]:
        """The mean of each term, and of the loss, since the last record, over all processes.

        {} right after a record. Raises FloatingPointError for a loss that is not finite.
        """
        if not self.steps:
            return {}
        means = (self.accelerator.reduce(sum(self.steps)) / len(self.steps)).tolist()
        record = {term.name: mean for term, mean in zip(self.terms, means, strict=True)}
        loss = sum(term.alpha * record[term.name] for term in self.terms)
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {step}: the loss is {loss}: lower learning_rate")
        return record | {"loss": loss}

    def next(self, step: int, learning_rate: float) -> dict[str, float]:
        """The record of a step; what comes after it belongs to the next one."""
        record, tokens = self.losses(step), int(self.accelerator.reduce(self.tokens))
        seconds = time.monotonic() - self.start
        record |= {"learning_rate": learning_rate, "tokens": tokens}
        self.steps, self.tokens, self.start = [], torch.zeros_like(self.tokens), time.monotonic()
        return record | {"tokens_per_second": tokens / seconds}

    def state(self) -> dict[str, Any]:
        """What the steps since the last record leave to the next one, over all processes."""
        means = [self.accelerator.reduce(step).tolist() for step in self.steps]
        tokens, seconds = self.accelerator.reduce(self.tokens), time.monotonic() - self.start
        return {"means": means, "tokens": int(tokens), "seconds": seconds}

    def write(self, record: dict) -> None:
        """Write a record, which has its "step"; as events too, where TensorBoard is installed."""
        append_metrics(self.folder / "metrics.jsonl", record)
        self.on_log(record)
        if importlib.util.find_spec("tensorboard") is None:
            return
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter  # late: it takes a second

            # The first record hides events of later steps, which an interrupted run left.
            self.events = SummaryWriter(self.folder, purge_step=record["step"])
        for name, value in record.items():
            self.events.add_scalar(name, value, record["step"])
        self.events.flush()

    def close(self) -> None:
        """End the file of events."""
        if self.events is not None:
            self.events.close()
