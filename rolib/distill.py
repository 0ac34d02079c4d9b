"""The distillation loop on Accelerate. Without a teacher the same loop pre-trains by masked language modelling."""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import LengthGroupedSampler

from rolib.config import StudentConfig, TrainingConfig
from rolib.losses import IGNORE, cosine_loss, mlm_loss, soft_target_loss
from rolib.masking import MaskingCollator
from rolib.models import MaskedLM
from rolib.runs import append_metrics, progress, read_metrics, write_text

TERMS = ("ce", "mlm", "cos")
# DistilBERT's recipe.
ADAM_BETAS, ADAM_EPSILON, CLIP_NORM = (0.9, 0.98), 1e-6, 5.0


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
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def length_batches(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of indices of similar length in an order that depends on (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(1_000_003 * epoch + seed)
    order = list(LengthGroupedSampler(batch_size, lengths=lengths, generator=generator))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def weights(config: TrainingConfig) -> dict[str, float]:
    """The weight of each loss term; pre-training and the MLM control have the MLM term alone."""
    if isinstance(config, StudentConfig) and config.objective == "distill":
        return {"ce": config.alpha_ce, "mlm": config.alpha_mlm, "cos": config.alpha_cos}
    return {"ce": 0.0, "mlm": 1.0, "cos": 0.0}


def term_counts(batch: dict[str, Tensor], config: TrainingConfig) -> Tensor:
    """(3,) how many tokens each of the terms ce, mlm, cos is a mean over."""
    tokens, masked = batch["attention_mask"].sum(), (batch["labels"] != IGNORE).sum()
    soft = masked if getattr(config, "soft_targets", "masked") == "masked" else tokens
    return torch.stack([soft, masked, tokens]).double()


def loss_terms(student: nn.Module, teacher: MaskedLM | None, batch: dict, config: TrainingConfig) -> Tensor:
    """(3,) the terms ce, mlm, cos of one micro-batch, each a mean over its tokens; a term of weight 0 is not computed.

    batch: input_ids, attention_mask, labels, each (B, L).
    """
    alpha = weights(config)
    tokens, masked = batch["attention_mask"].bool(), batch["labels"] != IGNORE
    rows = tokens if alpha["ce"] and config.soft_targets == "all" else masked
    logits, hidden = student(batch["input_ids"], batch["attention_mask"], rows)
    zero = logits.new_zeros(())
    ce = cos = zero
    if alpha["ce"] or alpha["cos"]:
        with torch.no_grad(), autocast(batch["input_ids"].device):
            wanted = rows if alpha["ce"] else torch.zeros_like(rows)
            teacher_logits, teacher_hidden = teacher(batch["input_ids"], batch["attention_mask"], wanted)
        if alpha["ce"]:
            ce = soft_target_loss(logits, teacher_logits.float(), config.temperature)
        if alpha["cos"]:
            cos = cosine_loss(hidden[tokens], teacher_hidden[tokens].float())
    mlm = mlm_loss(logits, batch["labels"][rows]) if alpha["mlm"] else zero
    return torch.stack([ce, mlm, cos])


@torch.no_grad()
def held_out_losses(student, teacher, blocks: datasets.Dataset, collator: MaskingCollator, config, device) -> dict:
    """Mean of each loss term over the held-out blocks, always under the masks of epoch 0."""
    training, collator.epoch = student.training, 0
    student.eval()
    batches = length_batches(blocks["length"], config.batch_size, config.seed, epoch=0)
    total, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in DataLoader(blocks, batch_sampler=batches, collate_fn=collator, generator=torch.Generator()):
        here = term_counts(batch, config)
        moved = {key: value.to(device) for key, value in batch.items()}
        total += loss_terms(student, teacher, moved, config).double().cpu() * here
        count += here
    student.train(training)
    means = (total / count).tolist()
    return {f"held_out_{term}": mean for term, mean in zip(TERMS, means, strict=True) if weights(config)[term]}


def step_batches(blocks, collator, config: TrainingConfig, accelerator: Accelerator, first: int) -> Iterator[list[dict]]:
    """Yield, for every optimizer step from `first` on, this process's micro-batches.

    The order depends on the seed alone, so a resumed run goes on where it stopped without reading what came before.
    """
    width = config.accumulation * accelerator.num_processes
    lengths, step, epoch = blocks["length"], 0, 0
    while step < config.steps:
        batches = length_batches(lengths, config.batch_size, config.seed, epoch)
        while len(batches) < width:  # a corpus smaller than one step is read several times in it
            batches = batches * 2
        groups = [batches[start : start + width] for start in range(0, len(batches) - width + 1, width)]
        wanted = groups[max(0, first - step) : max(0, config.steps - step)]
        mine = [batch for group in wanted for batch in group[accelerator.process_index :: accelerator.num_processes]]
        collator.epoch = epoch
        loader = iter(DataLoader(blocks, batch_sampler=mine, collate_fn=collator, generator=torch.Generator()))
        for _ in wanted:
            # The held-out loss sets the collator to epoch 0, so the epoch is set again before each step.
            collator.epoch = epoch
            yield [next(loader) for _ in range(config.accumulation)]
        step, epoch = step + len(groups), epoch + 1


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Keep the state of model, optimizer, schedule and random generators; the newest checkpoint replaces older ones."""
    accelerator.wait_for_everyone()
    temporary = folder / "checkpoints" / ".partial"
    accelerator.save_state(str(temporary), safe_serialization=False)  # tied weights stay tied
    if accelerator.is_main_process:
        os.replace(temporary, folder / "checkpoints" / f"step-{step}")
        for old in (folder / "checkpoints").glob("step-*"):
            if old.name != f"step-{step}":
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint, if there is one, and return the step it was taken after (0 without one).

    Metrics written after that step belong to work that was lost; they are cut off.
    """
    saved = sorted((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    step = int(saved[-1].name[5:]) if saved else 0
    if saved:
        accelerator.load_state(str(saved[-1]))
    metrics = folder / "metrics.jsonl"
    if accelerator.is_main_process and metrics.exists():
        kept = [json.dumps(record) + "\n" for record in read_metrics(metrics) if record["step"] <= step]
        write_text(metrics, "".join(kept))
    return step


def log_record(means: Tensor, alpha: Tensor, learning_rate: float, tokens: int, seconds: float) -> dict:
    """What a log window says: its mean loss terms (those with a weight), their weighted sum, learning rate and speed."""
    record = {term: mean for term, mean, weight in zip(TERMS, means.tolist(), alpha.tolist(), strict=True) if weight}
    record |= {"loss": float(alpha @ means), "learning_rate": learning_rate}
    return record | {"tokens": tokens, "tokens_per_second": tokens / seconds}


def train(
    config: TrainingConfig,
    student: PreTrainedModel,
    tokenizer,
    blocks: datasets.DatasetDict,
    folder: Path,
    teacher: PreTrainedModel | None = None,
    on_log: Callable[[dict], None] = lambda record: None,
) -> PreTrainedModel:
    """Train `student` on blocks["train"]; log to `folder`/metrics.jsonl, keep checkpoints, go on from the newest one.

    teacher: None pre-trains by MLM. on_log is called with each metrics record (a notebook draws it). Losses are
    weighed by tokens over micro-batches and processes, so that 8 x 1 and 2 x 4 accumulation give the same step.
    Returns the trained student on the CPU. Raises FloatingPointError when the loss is no longer finite.
    """
    # Step 1: everything random comes from the seed.
    set_seed(config.seed)
    accelerator = make_accelerator()
    device = accelerator.device
    collator = MaskingCollator(tokenizer, config.mask_share, config.seed)

    # Step 2: optimizer and schedule. The schedule is not prepared: Accelerate would step it once per process.
    if getattr(config, "freeze_positions", False):
        student.base_model.embeddings.position_embeddings.weight.requires_grad_(False)
    groups = parameter_groups(student, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(config.warmup_share * config.steps), config.steps)
    model, optimizer = accelerator.prepare(MaskedLM(student), optimizer)
    accelerator.register_for_checkpointing(schedule)
    if teacher is not None:
        # Not prepared: Accelerate would put it into every checkpoint.
        teacher = MaskedLM(teacher.eval().requires_grad_(False)).to(device)
    alpha = torch.tensor(list(weights(config).values()), dtype=torch.float32, device=device)

    # Step 3: go on from a checkpoint.
    done = resume(accelerator, folder)
    model.train()
    steps = step_batches(blocks["train"], collator, config, accelerator, first=done)
    bar = progress(steps, total=config.steps, initial=done, desc=folder.name.strip("."), disable=not accelerator.is_main_process)
    sums, tokens, logged, clock = torch.zeros(3, device=device), 0, done, time.perf_counter()

    for step, micro_batches in enumerate(bar, start=done + 1):
        # Step 4: the token counts of the whole step, over micro-batches and processes, before any forward pass.
        counts = torch.stack([term_counts(batch, config) for batch in micro_batches])
        total = counts.sum(0)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total.to(device)).cpu()

        # Step 5: forward and backward; each mean counts by its share of the step's tokens.
        for i, batch in enumerate(micro_batches):
            moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            last = i == len(micro_batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                share = (counts[i] / total.clamp(min=1)).float().to(device)
                terms = loss_terms(model, teacher, moved, config) * share
                # DDP averages gradients over processes; the shares already sum to 1 over them.
                accelerator.backward((alpha * terms).sum() * accelerator.num_processes)
            sums += terms.detach()

        # Step 6: update.
        accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += int(total[2])

        # Step 7: log, evaluate, keep. The only points where the device is waited for.
        record = {}
        if step % config.log_every == 0 or step == config.steps:
            means = accelerator.reduce(sums) / (step - logged)
            record = log_record(means.cpu(), alpha.cpu(), schedule.get_last_lr()[0], tokens, time.perf_counter() - clock)
            sums, tokens, logged, clock = torch.zeros_like(sums), 0, step, time.perf_counter()
        if step % config.checkpoint_every == 0 or step == config.steps:
            paused = time.perf_counter()
            record |= held_out_losses(accelerator.unwrap_model(model), teacher, blocks["held_out"], collator, config, device)
            clock += time.perf_counter() - paused
        if record:
            if not math.isfinite(record.get("loss", 0.0)):
                raise FloatingPointError(f"step {step}: the loss is {record['loss']}: lower learning_rate")
            if accelerator.is_main_process:
                append_metrics(folder / "metrics.jsonl", {"step": step, **record})
                bar.set_postfix({key: f"{value:.3f}" for key, value in record.items() if value < 1e3}, refresh=False)
                on_log({"step": step, **record})
        if step % config.checkpoint_every == 0 and step < config.steps:
            save_checkpoint(accelerator, folder, step)
    trained = accelerator.unwrap_model(model).model.cpu().eval()
    accelerator.free_memory()
    return trained
