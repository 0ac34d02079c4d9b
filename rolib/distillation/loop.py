"""The training loop on Accelerate, for distillation and for pre-training by masked words."""

import contextlib
import importlib.util
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import recursively_apply, send_to_device, set_seed
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib import training
from rolib.config import StudentConfig, TrainingConfig
from rolib.distillation.cache import TeacherCache
from rolib.distillation.checkpoints import delayed_signals, resume, save_checkpoint
from rolib.distillation.masking import Collate, MaskingCollator, View
from rolib.distillation.models import MaskedLM
from rolib.distillation.objective import Objective, Teacher
from rolib.runs import append_metrics, progress

# DistilBERT's recipe.
ADAM: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-6, "fused": True}
CLIP_NORM = 5.0


def epochs_of(config: TrainingConfig, blocks: int, processes: int) -> int:
    """How many epochs a run begins over so many train blocks."""
    steps_an_epoch = math.ceil(blocks / config.batch_size) // (config.accumulation * processes)
    return math.ceil(config.steps / max(1, steps_an_epoch))


@torch.no_grad()
def held_out_losses(
    student: MaskedLM, objective: Objective, blocks: Dataset, collate: Collate
) -> dict[str, float]:
    """The mean of each term over the held-out blocks, always under the masks of epoch 0.

    Raises FloatingPointError for a mean that is not finite.
    """
    was_training, device, config = student.training, student.model.device, objective.config
    student.eval()
    order = training.length_batches(blocks["length"][:], config.batch_size, config.seed, epoch=0)
    sums = torch.zeros(len(objective.terms), dtype=torch.float64, device=device)
    weights = sums.float()  # of a loss that nobody reads
    counts = torch.zeros(len(objective.terms), dtype=torch.int64)
    for batch in in_background(load(blocks, numbers, collate, 0) for numbers in order):
        counts += torch.tensor(objective.counts(batch))
        batch = send_to_device(batch, device, non_blocking=True)
        sums += objective.loss(student, batch, weights)[1]
    student.train(was_training)
    means = (sums.cpu() / counts.clamp(min=1)).tolist()
    if not math.isfinite(sum(means)):  # the weights broke after the last loss was logged
        raise FloatingPointError("the held-out loss is not finite: lower learning_rate")
    names = [f"held_out_{term.name}" for term in objective.terms]
    return dict(zip(names, means, strict=True))


def load(blocks: Dataset, numbers: list[int], collate: Collate, epoch: int) -> list[View]:
    """The batch of the blocks of these numbers; in pinned memory where a GPU will read it."""
    batch = collate(blocks.__getitems__(numbers), epoch)
    return recursively_apply(Tensor.pin_memory, batch) if torch.cuda.is_available() else batch


def in_background(items: Iterator) -> Iterator:
    """Yield the items; the next one is made in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def step_batches(
    blocks: Dataset, collate: Collate, config: TrainingConfig, accelerator: Accelerator, first: int
) -> Iterator[list[list[View]]]:
    """Yield this process's micro-batches of each optimizer step from `first` on.

    The order depends on the seed only, so a resumed run continues where it stopped without reading
    what came before.
    """
    width = config.accumulation * accelerator.num_processes
    lengths = blocks["length"][:]

    def steps() -> Iterator[tuple[int, list[list[int]]]]:
        """The epoch and the block numbers of all micro-batches of a step, without end."""
        for epoch in count():
            batches = training.length_batches(lengths, config.batch_size, config.seed, epoch)
            while len(batches) < width:  # a corpus smaller than a step is read several times in it
                batches = batches * 2
            for start in range(0, len(batches) - width + 1, width):
                yield epoch, batches[start : start + width]

    for epoch, batches in islice(steps(), first, config.steps):
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        yield [load(blocks, numbers, collate, epoch) for numbers in mine]


def add_gradients(
    accelerator: Accelerator, model: nn.Module, objective: Objective, batches: list[list[View]]
) -> Tensor:
    """Add the gradients of one step; returns the mean of each term over it (terms,), on the device.

    L = sum of alpha_k * S_k / n_k: S_k is the sum of a term over its places in the micro-batches of
    all processes, n_k the number of these places. batches: the micro-batches of this process.
    """
    device = accelerator.device
    alphas = torch.tensor([term.alpha for term in objective.terms], device=device)
    # The places are counted before any forward pass.
    places = torch.tensor([objective.counts(batch) for batch in batches]).sum(0)
    counts = accelerator.reduce(places.to(device)).clamp(min=1)
    # DDP averages gradients over processes; the counts already span all of them.
    weights = alphas / counts * accelerator.num_processes
    means = torch.zeros_like(alphas)
    for i, batch in enumerate(batches):
        batch = send_to_device(batch, device, non_blocking=True)
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss, sums = objective.loss(model, batch, weights)
            accelerator.backward(loss)
        means = means + sums / counts
    return means


def agree(accelerator: Accelerator, wishes: list[bool], meeting: bool) -> list[bool]:
    """Which wishes at least one process has. Several processes can only tell at a meeting."""
    if accelerator.num_processes == 1:
        return wishes
    if not meeting:
        return [False] * len(wishes)
    return accelerator.reduce(torch.tensor(wishes).int().to(accelerator.device)).bool().tolist()


def mean_losses(
    accelerator: Accelerator, objective: Objective, last_steps: list[Tensor], step: int
) -> dict[str, float]:
    """The mean of each term, and of the loss, over the last steps of all processes.

    last_steps: what `add_gradients` returned, up to `step`. Raises FloatingPointError for a loss
    that is not finite.
    """
    means = (accelerator.reduce(sum(last_steps)) / len(last_steps)).tolist()
    record = {term.name: mean for term, mean in zip(objective.terms, means, strict=True)}
    record["loss"] = sum(term.alpha * record[term.name] for term in objective.terms)
    if not math.isfinite(record["loss"]):
        raise FloatingPointError(f"step {step}: the loss is {record['loss']}: lower learning_rate")
    return record


def collect(
    accelerator: Accelerator, last_steps: list[Tensor], tokens: int, seconds: float
) -> dict[str, Any]:
    """What the steps since the last record leave to the next one, over all processes."""
    total = accelerator.reduce(torch.tensor(tokens, device=accelerator.device))
    means = [accelerator.reduce(step).tolist() for step in last_steps]
    return {"means": means, "tokens": int(total), "seconds": seconds}


class TensorBoard:
    """Metrics records as TensorBoard events in a folder, where TensorBoard is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def add(self, record: dict) -> None:
        """Write a record, which has its "step". The first one hides events of later steps."""
        if importlib.util.find_spec("tensorboard") is None:
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # late: it takes a second

            self.writer = SummaryWriter(self.folder, purge_step=record["step"])
        for name, value in record.items():
            self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()

    def close(self) -> None:
        """End the file of events."""
        if self.writer is not None:
            self.writer.close()


def train(
    config: TrainingConfig,
    student: PreTrainedModel,
    tokenizers: list[Tokenizer],
    blocks: DatasetDict,
    folder: Path,
    teachers: Sequence[Teacher] = (),
    on_log: Callable[[dict], None] = lambda record: None,
    cache: TeacherCache | None = None,
) -> PreTrainedModel:
    """The trained student, on the CPU. Logs to `folder`, goes on from its checkpoint.

    tokenizers: of the views of the blocks, the student's first. teachers: the first one gives the
    student its vocabulary and its start. The states of each further one are compared through a
    trainable map, which is not saved. Without teachers the student is pre-trained by masked words.
    cache: stored answers, read in place of running the teachers. on_log is called with each
    metrics record. SIGINT and SIGTERM act after the step, when a checkpoint is saved. Raises
    FloatingPointError for a loss that is not finite.
    """
    # Step 1: all randomness comes from the seed. Each process draws dropout masks of its own.
    training.keep_freed_memory()
    accelerator = training.processes()
    set_seed(config.seed, device_specific=True)
    device, is_main = accelerator.device, accelerator.is_main_process
    precision = training.choose_precision(config.precision, student.config.hidden_size)
    objective = Objective(config, teachers, precision)
    compared = objective.soft_targets, objective.states
    collator = MaskingCollator(tokenizers, config.mask_share, config.mask_seed, *compared)
    reading: dict[str, Collate] = dict.fromkeys(blocks, collator)
    if cache:
        reading = {split: cache.reading(collator, split, objective) for split in blocks}

    # Step 2: the optimizer, and teachers, which are not prepared: Accelerate would put them into
    # every checkpoint.
    if isinstance(config, StudentConfig) and config.freeze_positions:
        student.base_model.embeddings.position_embeddings.weight.requires_grad_(False)
    widths = [teacher.model.model.config.hidden_size for teacher in objective.mapped]
    bare = MaskedLM(student, widths)
    groups = training.parameter_groups(bare, config.weight_decay)
    plain = torch.optim.AdamW(groups, lr=config.learning_rate, **ADAM)
    model, optimizer = accelerator.prepare(bare, plain)
    for teacher in teachers:
        teacher.place(device, "" if cache else precision)

    # Step 3: continue from a checkpoint. The schedule follows from the step.
    done, since = resume(accelerator, folder)
    warmup = round(config.warmup_share * config.steps)
    schedule = get_linear_schedule_with_warmup(plain, warmup, config.steps, last_epoch=done - 1)
    model.train()
    steps = step_batches(blocks["train"], reading["train"], config, accelerator, done)
    look = {"desc": folder.name.strip("."), "disable": not is_main}
    bar = progress(in_background(steps), total=config.steps, initial=done, **look)
    # Since the last record. A checkpoint has them of all processes, so they count once.
    last_steps = [torch.tensor(means, device=device) * is_main for means in since["means"]]
    tokens = since["tokens"] * is_main
    events, saved = TensorBoard(folder), time.monotonic()
    clock = saved - since["seconds"]

    with delayed_signals() as signals:
        for step, micro_batches in enumerate(bar, start=done + 1):
            # Step 4: forward, backward, update.
            last_steps.append(add_gradients(accelerator, model, objective, micro_batches))
            accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            tokens += sum(len(batch[0]["tokens"]) for batch in micro_batches)

            # Step 5: log. Only here and at a checkpoint the device is waited for.
            record: dict[str, float] = {}
            at_log = step % config.log_every == 0 or step == config.steps
            if at_log:
                record = mean_losses(accelerator, objective, last_steps, step)
                record["learning_rate"] = schedule.get_last_lr()[0]
                record["tokens"] = int(accelerator.reduce(torch.tensor(tokens, device=device)))
                record["tokens_per_second"] = record["tokens"] / (time.monotonic() - clock)
                last_steps, tokens, clock = [], 0, time.monotonic()

            # Step 6: the held-out loss.
            at_checkpoint = step % config.checkpoint_every == 0
            if at_checkpoint or step == config.steps:
                paused = time.monotonic()
                record |= held_out_losses(bare, objective, blocks["held_out"], reading["held_out"])
                clock += time.monotonic() - paused
            if record and is_main:
                shown = {key: f"{value:.3f}" for key, value in record.items() if value < 1e3}
                bar.set_postfix(shown, refresh=False)
                record = {"step": step, **record}
                append_metrics(folder / "metrics.jsonl", record)
                events.add(record)
                on_log(record)

            # Step 7: keep, and stop if a signal came.
            late = time.monotonic() - saved > 60 * config.checkpoint_minutes
            late, stop = agree(accelerator, [late, bool(signals)], at_log)
            if step < config.steps and (at_checkpoint or late or stop):
                if last_steps:  # no checkpoint of a loss that is not finite
                    mean_losses(accelerator, objective, last_steps, step)
                since = collect(accelerator, last_steps, tokens, time.monotonic() - clock)
                save_checkpoint(accelerator, folder, step, since)
                saved = time.monotonic()
            if stop and step < config.steps:
                if is_main:
                    bar.write(f"Stopped after step {step}: run it again to go on", sys.stderr)
                signals[:] = signals or [signal.SIGTERM]  # for a process that got none itself
                break
    events.close()
    trained = bare.model.cpu().eval()
    accelerator.free_memory()
    return trained
