"""The distillation loop on Accelerate. Without a teacher the same loop pre-trains by masked language modelling."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from rolib.config import TrainingConfig
from rolib.distillation.alignment import Projection, pool_words, word_starts
from rolib.distillation.losses import (
    IGNORE,
    confidence,
    cosine_loss,
    distribution_loss,
    mix_targets,
    mlm_loss,
    uld_loss,
)
from rolib.distillation.masking import MaskingCollator
from rolib.distillation.models import MaskedLM
from rolib.runs import append_metrics, progress, read_metrics, write_text
from rolib.training import autocast, length_batches, make_accelerator, parameter_groups

# DistilBERT's recipe.
ADAM_BETAS, ADAM_EPSILON, CLIP_NORM = (0.9, 0.98), 1e-6, 5.0


@dataclass
class Teacher:
    """A teacher in the loop: its share of the say, the view it reads, and how its vocabulary is said in the student's."""

    name: str
    model: MaskedLM
    weight: float = 1.0  # the weights of a student's teachers sum to 1
    view: int = 0  # the tokenizer it reads with; 0 is the student's
    projection: Projection | None = None  # for any other view

    def place(self, device: torch.device) -> None:
        """Freeze the model; move it and the projection to a device."""
        self.model.eval().requires_grad_(False).to(device)
        if self.projection:
            self.projection.to(device)


def cosine_terms(teachers: Sequence[Teacher]) -> list[str]:
    """The name of each teacher's loss of states: cos for the first, cos_<name> for a further one."""
    return ["cos", *(f"cos_{teacher.name}" for teacher in teachers[1:])]


def weights(config: TrainingConfig, teachers: Sequence[Teacher]) -> dict[str, float]:
    """What a run computes and logs, in order: each loss with its weight, if it has one, then the measures with weight 0.

    Losses: ce (soft targets of all teachers), mlm, `cosine_terms`; without a teacher mlm alone. Measures, for each teacher with
    another vocabulary: coverage_<name>, the share of masked words where it and the student predict at one place, and
    mass_<name>, the share of its probability there that has a counterpart in the student's vocabulary.
    """
    if not teachers:
        return {"mlm": 1.0}
    compared = teachers[:1] if config.hidden_states == "first" else teachers
    total = sum(teacher.weight for teacher in compared)
    alpha = {"ce": config.alpha_ce, "mlm": config.alpha_mlm}
    for term, teacher in zip(cosine_terms(compared), compared, strict=True):
        alpha[term] = config.alpha_cos * teacher.weight / total
    measures = [
        f"{measure}_{teacher.name}"
        for teacher in teachers
        if teacher.view
        for measure in ("coverage", "mass")
    ]
    return {term: weight for term, weight in alpha.items() if weight} | dict.fromkeys(measures, 0.0)


def soft_rows(view: dict[str, Tensor], config: TrainingConfig) -> Tensor:
    """(B, L) bool: the positions of a view whose teacher distributions are matched."""
    every_token = getattr(config, "soft_targets", "masked") == "all"
    return view["attention_mask"].bool() if every_token else view["labels"] != IGNORE


def by_piece(teacher: Teacher, config: TrainingConfig) -> bool:
    """Are states compared piece by piece? Else word by word."""
    return teacher.view == 0 and config.hidden_states != "words"


def term_places(
    batch: list[dict], teachers: Sequence[Teacher], config: TrainingConfig
) -> dict[str, Tensor]:
    """Where each value of `weights` is taken, (B, L) bool in the student's view: it is a mean over these places."""
    view = batch[0]
    tokens, masked, starts = (
        view["attention_mask"].bool(),
        view["labels"] != IGNORE,
        word_starts(view["word_ids"]),
    )
    places = {"ce": soft_rows(view, config), "mlm": masked}
    for term, teacher in zip(cosine_terms(teachers), teachers, strict=False):
        places[term] = tokens if by_piece(teacher, config) else starts
        if teacher.view:
            places[f"coverage_{teacher.name}"] = masked & starts
            places[f"mass_{teacher.name}"] = places["ce"] & batch[teacher.view]["shared_first"]
    return {term: places[term] for term in weights(config, teachers)}


def term_counts(
    batch: list[dict], teachers: Sequence[Teacher], config: TrainingConfig
) -> dict[str, int]:
    """How many places each value of `loss_terms` is a mean over."""
    return {
        term: int(places.sum()) for term, places in term_places(batch, teachers, config).items()
    }


@torch.no_grad()
def teacher_outputs(
    teacher: Teacher, batch: list[dict], config: TrainingConfig
) -> tuple[Tensor, Tensor]:
    """A teacher's logits where its soft targets are wanted, and its last hidden states, in its own view."""
    view = batch[teacher.view]
    wanted = soft_rows(view, config)
    if teacher.view:
        wanted = wanted & view["shared"]
    if not config.alpha_ce or (teacher.view and config.soft_target_strategy == "none"):
        wanted = torch.zeros_like(wanted)
    with autocast(wanted.device):
        logits, hidden, _ = teacher.model(view["input_ids"], view["attention_mask"], wanted)
    return logits, hidden


def soft_target_terms(
    logits: Tensor, rows: Tensor, teachers, outputs, batch, config
) -> dict[str, Tensor]:
    """The soft-target loss of one micro-batch, a mean over the student's soft rows, and the mass of each projection.

    logits: (N, V) at `rows` (B, L); outputs: each teacher's logits at the same places, for a teacher with another vocabulary
    where a word is one piece in both views. What is projected joins the mixed target; ULD is a loss of its own.
    """
    members, uld, terms = [], 0.0, {}
    for teacher, (teacher_logits, _) in zip(teachers, outputs, strict=True):
        probs = (teacher_logits.float() / config.temperature).softmax(-1)
        sure = (
            confidence(probs) if config.weighting == "confidence" else torch.ones_like(probs[:, 0])
        )
        say = teacher.weight * sure
        if teacher.view == 0:
            members.append((torch.arange(len(say), device=say.device), probs, say))
            continue
        here = batch[teacher.view]["shared_first"][rows].nonzero()[:, 0]
        if config.soft_target_strategy == "uld":
            uld = uld + teacher.weight * uld_loss(logits[here], probs, config.temperature) * len(
                probs
            ) / max(1, len(logits))
        elif config.soft_target_strategy != "none":
            probs, covered = getattr(teacher.projection, config.soft_target_strategy)(
                probs, members[0][1][here]
            )
            members.append((here, probs, say))
            terms[f"mass_{teacher.name}"] = covered.sum() / max(1, len(covered))
    return terms | {"ce": distribution_loss(logits, mix_targets(members), config.temperature) + uld}


def loss_terms(
    student: nn.Module, teachers: Sequence[Teacher], batch: list[dict], config: TrainingConfig
) -> dict[str, Tensor]:
    """The values of `weights` for one micro-batch, each a mean over `term_places`. batch: the views of `MaskingCollator`."""
    view, places = batch[0], term_places(batch, teachers, config)
    rows = places.get("ce", view["labels"] != IGNORE)
    logits, hidden, mapped = student(view["input_ids"], view["attention_mask"], rows)
    outputs = [
        teacher_outputs(teacher, batch, config)
        for teacher in teachers
        if config.alpha_ce or config.alpha_cos
    ]
    terms = dict.fromkeys(places, logits.new_zeros(()))
    if "mlm" in places:
        terms["mlm"] = mlm_loss(logits, view["labels"][rows])
    if "ce" in places:
        terms |= soft_target_terms(logits, rows, teachers, outputs, batch, config)
    for term, teacher, state, (_, output) in zip(
        cosine_terms(teachers), teachers, [hidden, *mapped], outputs, strict=False
    ):
        if term in places and by_piece(teacher, config):
            terms[term] = cosine_loss(state[places[term]], output[places[term]].float())
        elif term in places:
            theirs = pool_words(output.float(), batch[teacher.view]["word_ids"])
            terms[term] = cosine_loss(pool_words(state, view["word_ids"]), theirs)
    for teacher in teachers:
        if teacher.view:
            words = places[f"coverage_{teacher.name}"]
            terms[f"coverage_{teacher.name}"] = (
                words & batch[teacher.view]["shared_first"]
            ).sum() / words.sum().clamp(min=1)
    return terms


@torch.no_grad()
def held_out_losses(
    student, teachers, blocks: Dataset, collator: MaskingCollator, config, device
) -> dict[str, float]:
    """Mean of each value of `loss_terms` over the held-out blocks, always under the masks of epoch 0."""
    training, collator.epoch = student.training, 0
    student.eval()
    batches = length_batches(blocks["length"], config.batch_size, config.seed, epoch=0)
    sums, counts = 0.0, 0
    for batch in DataLoader(
        blocks, batch_sampler=batches, collate_fn=collator, generator=torch.Generator()
    ):
        here = torch.tensor(list(term_counts(batch, teachers, config).values()))
        terms = torch.stack(
            list(loss_terms(student, teachers, send_to_device(batch, device), config).values())
        )
        sums, counts = sums + terms.double().cpu() * here, counts + here
    student.train(training)
    means = (sums / counts.clamp(min=1)).tolist()
    return {
        f"held_out_{term}": mean
        for term, mean in zip(weights(config, teachers), means, strict=True)
    }


def step_batches(
    blocks, collator, config: TrainingConfig, accelerator: Accelerator, first: int
) -> Iterator[list[dict]]:
    """Yield, for every optimizer step from `first` on, this process's micro-batches.

    The order depends on the seed alone, so a resumed run goes on where it stopped without reading what came before.
    """
    width = config.accumulation * accelerator.num_processes

    def steps():
        """The epoch and the indices of all micro-batches of one step after another, without end."""
        for epoch in count():
            batches = length_batches(blocks["length"], config.batch_size, config.seed, epoch)
            while (
                len(batches) < width
            ):  # a corpus smaller than one step is read several times in it
                batches = batches * 2
            for start in range(0, len(batches) - width + 1, width):
                yield epoch, batches[start : start + width]

    for epoch, batches in islice(steps(), first, config.steps):
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        collator.epoch = epoch  # set for every step, since the held-out loss sets it to 0
        yield list(
            DataLoader(blocks, batch_sampler=mine, collate_fn=collator, generator=torch.Generator())
        )


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Keep the state of model, optimizer, schedule and random generators; the newest checkpoint replaces older ones."""
    temporary = folder / "checkpoints" / ".partial"
    accelerator.save_state(str(temporary), safe_serialization=False)  # tied weights stay tied
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = list(temporary.parent.glob("step-*"))
        temporary.rename(temporary.with_name(f"step-{step}"))
        for path in older:
            shutil.rmtree(path)


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint, if there is one, and return the step it was taken after (0 without one).

    Metrics written after that step belong to work that was lost; they are cut off.
    """
    step = max(
        (int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*")),
        default=0,
    )
    if step:
        accelerator.load_state(str(folder / "checkpoints" / f"step-{step}"))
    metrics = folder / "metrics.jsonl"
    if accelerator.is_main_process and metrics.exists():
        kept = [
            json.dumps(record) + "\n" for record in read_metrics(metrics) if record["step"] <= step
        ]
        write_text(metrics, "".join(kept))
    return step


def train(
    config: TrainingConfig,
    student: PreTrainedModel,
    tokenizers: list,
    blocks: DatasetDict,
    folder: Path,
    teachers: Sequence[Teacher] = (),
    on_log: Callable[[dict], None] = lambda record: None,
) -> PreTrainedModel:
    """Train `student` on blocks["train"]; log to `folder`/metrics.jsonl, keep checkpoints, go on from the newest one.

    tokenizers: of the views of the blocks, the student's first. teachers: the first gives the student its vocabulary and its
    start; the states of each further one are compared through a trainable map, which is not saved; without teachers the
    student is pre-trained by MLM. on_log is called with each metrics record. Losses are weighed by tokens over micro-batches
    and processes, so that 8 x 1 and 2 x 4 accumulation give the same step. Returns the trained student on the CPU. Raises
    FloatingPointError when the loss is no longer finite.
    """
    # Step 1: everything random comes from the seed.
    set_seed(config.seed)
    accelerator = make_accelerator()
    collator, device = (
        MaskingCollator(tokenizers, config.mask_share, config.seed),
        accelerator.device,
    )

    # Step 2: optimizer and schedule. The schedule is not prepared: Accelerate would step it once per process.
    if getattr(config, "freeze_positions", False):
        student.base_model.embeddings.position_embeddings.weight.requires_grad_(False)
    alpha = weights(config, teachers)
    factors = torch.tensor(list(alpha.values()), device=device)
    mapped = [teacher.model.model for teacher in teachers[1:] if f"cos_{teacher.name}" in alpha]
    student = MaskedLM(student, [model.config.hidden_size for model in mapped])
    groups = parameter_groups(student, config.weight_decay)
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True
    )
    schedule = get_linear_schedule_with_warmup(
        optimizer, round(config.warmup_share * config.steps), config.steps
    )
    model, optimizer = accelerator.prepare(student, optimizer)
    accelerator.register_for_checkpointing(schedule)
    for teacher in teachers:
        teacher.place(device)  # not prepared: Accelerate would put it into every checkpoint

    # Step 3: go on from a checkpoint.
    done = resume(accelerator, folder)
    model.train()
    steps = step_batches(blocks["train"], collator, config, accelerator, first=done)
    bar = progress(
        steps,
        total=config.steps,
        initial=done,
        desc=folder.name.strip("."),
        disable=not accelerator.is_main_process,
    )
    sums, tokens, logged, clock = 0.0, 0, done, time.perf_counter()

    for step, micro_batches in enumerate(bar, start=done + 1):
        # Step 4: the token counts of the whole step, over micro-batches and processes, before any forward pass.
        counts = torch.tensor(
            [list(term_counts(batch, teachers, config).values()) for batch in micro_batches],
            device=device,
        )
        shares = counts / accelerator.reduce(counts.sum(0)).clamp(min=1)

        # Step 5: forward and backward; each mean counts by its share of the step's tokens.
        for i, batch in enumerate(micro_batches):
            moved = send_to_device(batch, device, non_blocking=True)
            last = i == len(micro_batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                terms = (
                    torch.stack(list(loss_terms(model, teachers, moved, config).values()))
                    * shares[i]
                )
                # DDP averages gradients over processes; the shares already sum to 1 over them.
                accelerator.backward((factors * terms).sum() * accelerator.num_processes)
            sums = sums + terms.detach()

        # Step 6: update.
        accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += sum(int(batch[0]["attention_mask"].sum()) for batch in micro_batches)

        # Step 7: log, evaluate, keep. The only points where the device is waited for.
        record = {}
        if step % config.log_every == 0 or step == config.steps:
            record = dict(
                zip(alpha, (accelerator.reduce(sums) / (step - logged)).tolist(), strict=True)
            )
            record["loss"] = sum(weight * record[term] for term, weight in alpha.items())
            if not math.isfinite(record["loss"]):
                raise FloatingPointError(
                    f"step {step}: the loss is {record['loss']}: lower learning_rate"
                )
            tokens = int(accelerator.reduce(torch.tensor(tokens, device=device)))
            speed = tokens / (time.perf_counter() - clock)
            record |= {
                "learning_rate": schedule.get_last_lr()[0],
                "tokens": tokens,
                "tokens_per_second": speed,
            }
            sums, tokens, logged, clock = 0.0, 0, step, time.perf_counter()
        if step % config.checkpoint_every == 0 or step == config.steps:
            paused = time.perf_counter()
            record |= held_out_losses(
                accelerator.unwrap_model(model),
                teachers,
                blocks["held_out"],
                collator,
                config,
                device,
            )
            clock += time.perf_counter() - paused
        if record and accelerator.is_main_process:
            append_metrics(folder / "metrics.jsonl", {"step": step, **record})
            bar.set_postfix(
                {key: f"{value:.3f}" for key, value in record.items() if value < 1e3}, refresh=False
            )
            on_log({"step": step, **record})
        if step % config.checkpoint_every == 0 and step < config.steps:
            save_checkpoint(accelerator, folder, step)
    trained = accelerator.unwrap_model(model).model.cpu().eval()
    accelerator.free_memory()
    return trained
