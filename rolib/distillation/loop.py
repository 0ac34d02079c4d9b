"""The training loop on Accelerate, for distillation and for pre-training by masked words."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
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
from rolib.distillation.records import OnLog, Records
from rolib.runs import progress

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
    found = zip(objective.terms, means, strict=True)
    return {f"held_out_{term.name}": mean for term, mean in found}


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


class Run:
    """What a training run works with, at the step it goes on from: steps 1 to 3 of `train`."""

    def __init__(
        self,
        config: TrainingConfig,
        student: PreTrainedModel,
        tokenizers: list[Tokenizer],
        folder: Path,
        teachers: Sequence[Teacher],
        cache: TeacherCache | None,
    ) -> None:
        # Step 1: all randomness comes from the seed. Each process draws dropout masks of its own.
        self.accelerator = training.processes()
        set_seed(config.seed, device_specific=True)
        precision = training.choose_precision(config.precision, student.config.hidden_size)
        objective = self.objective = Objective(config, teachers, precision)
        compared = objective.soft_targets, objective.states
        collator = MaskingCollator(tokenizers, config.mask_share, config.mask_seed, *compared)
        self.reading: dict[str, Collate] = dict.fromkeys(("train", "held_out"), collator)
        if cache:
            self.reading = {name: cache.reading(collator, name, objective) for name in self.reading}

        # Step 2: the optimizer, and teachers, which are not prepared: Accelerate would put them
        # into every checkpoint.
        if isinstance(config, StudentConfig) and config.freeze_positions:
            student.base_model.embeddings.position_embeddings.weight.requires_grad_(False)
        widths = [teacher.model.model.config.hidden_size for teacher in objective.mapped]
        self.bare = MaskedLM(student, widths)
        groups = training.parameter_groups(self.bare, config.weight_decay)
        plain = torch.optim.AdamW(groups, lr=config.learning_rate, **ADAM)
        self.model, self.optimizer = self.accelerator.prepare(self.bare, plain)
        self.model.train()
        for teacher in teachers:
            teacher.place(self.accelerator.device, "" if cache else precision)

        # Step 3: continue from a checkpoint. The schedule follows from the step.
        self.done, self.since = resume(self.accelerator, folder)
        steps = round(config.warmup_share * config.steps), config.steps
        self.schedule = get_linear_schedule_with_warmup(plain, *steps, last_epoch=self.done - 1)


def train(
    config: TrainingConfig,
    student: PreTrainedModel,
    tokenizers: list[Tokenizer],
    blocks: DatasetDict,
    folder: Path,
    teachers: Sequence[Teacher] = (),
    on_log: OnLog = lambda record: None,
    cache: TeacherCache | None = None,
) -> PreTrainedModel:
    """The trained student, on the CPU. Logs to `folder`, goes on from its checkpoint.

    tokenizers: of the views of the blocks, the student's first. teachers: the first one gives the
    student its vocabulary and its start. The states of each further one are compared through a
    trainable map, which is not saved. Without teachers the student is pre-trained by masked words.
    cache: stored answers, read in place of running the teachers. on_log is called with each
    metrics record. SIGINT and SIGTERM act after the step, when a checkpoint is saved; in several
    processes after the next record. Raises FloatingPointError for a loss that is not finite.
    """
    training.keep_freed_memory()
    run = Run(config, student, tokenizers, folder, teachers, cache)
    accelerator, model, bare = run.accelerator, run.model, run.bare
    steps = step_batches(blocks["train"], run.reading["train"], config, accelerator, run.done)
    look = {"desc": folder.name.strip("."), "disable": not accelerator.is_main_process}
    bar = progress(in_background(steps), total=config.steps, initial=run.done, **look)
    records = Records(accelerator, run.objective.terms, folder, on_log, run.since)
    saved = time.monotonic()

    with delayed_signals() as signals:
        for step, micro_batches in enumerate(bar, start=run.done + 1):
            # Step 4: forward, backward, update.
            means = add_gradients(accelerator, model, run.objective, micro_batches)
            accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
            run.optimizer.step()
            run.optimizer.zero_grad()
            records.add(means, sum(len(batch[0]["tokens"]) for batch in micro_batches))

            # Step 5: log. Only here and at a checkpoint the device is waited for.
            last, at_checkpoint = step == config.steps, step % config.checkpoint_every == 0
            at_log = last or step % config.log_every == 0
            record = records.next(step, run.schedule.get_last_lr()[0]) if at_log else {}
            run.schedule.step()  # to the rate of the next step

            # Step 6: the held-out loss.
            if at_checkpoint or last:
                start, held_out = time.monotonic(), (blocks["held_out"], run.reading["held_out"])
                record |= held_out_losses(bare, run.objective, *held_out)
                records.start += time.monotonic() - start  # it counts for no speed
            if record and accelerator.is_main_process:
                shown = {key: f"{value:.3f}" for key, value in record.items() if value < 1e3}
                bar.set_postfix(shown, refresh=False)
                records.write({"step": step, **record})

            # Step 7: keep, and stop if a signal came.
            late = time.monotonic() - saved > 60 * config.checkpoint_minutes
            late, stop = agree(accelerator, [late, bool(signals)], at_log)
            if not last and (at_checkpoint or late or stop):
                records.losses(step)  # no checkpoint of a loss that is not finite
                save_checkpoint(accelerator, folder, step, records.state())
                saved = time.monotonic()
            if stop and not last:
                if accelerator.is_main_process:
                    bar.write(f"Stopped after step {step}: run it again to go on", sys.stderr)
                signals[:] = signals or [signal.SIGTERM]  # for a process that got none itself
                break
    records.close()
    trained = bare.model.cpu().eval()
    accelerator.free_memory()
    return trained
