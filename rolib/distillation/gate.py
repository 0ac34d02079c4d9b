"""The gate: a teacher that knows little more than word frequencies teaches nothing.

Its second half, whether the teacher beats random weights on the measures, is `evaluate_model` of
both (notebook 01).
"""

from pathlib import Path

import torch
from datasets import DatasetDict
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer

from rolib.config import ConfigError, TeacherConfig, TrainingConfig
from rolib.distillation.loop import held_out_losses
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator
from rolib.distillation.models import MaskedLM
from rolib.distillation.objective import Objective
from rolib.runs import read_json
from rolib.training import processes

PLATEAU_MARGIN = 1.0  # nats below the frequency baseline at which a model has left the plateau


def frequency_baseline(blocks: DatasetDict, collator: MaskingCollator) -> float:
    """The held-out MLM loss (nats) of a model that knows the pieces' frequencies only.

    It predicts the add-one smoothed unigram distribution of the train blocks at the masked held-out
    positions. A masked language model rests on this plateau before it starts to use context.
    """
    counts = torch.ones(len(collator.tokenizers[0]))
    for batch in blocks["train"].select_columns("input_ids").iter(1000):
        pieces = torch.tensor([piece for block in batch["input_ids"] for piece in block[0][1:-1]])
        counts += torch.bincount(pieces, minlength=len(counts))
    # One block at a time: a batch of all of them would be padded to the longest.
    labels = torch.cat([collator([block])[0]["labels"][0] for block in blocks["held_out"]])
    log_probs = counts.log() - counts.sum().log()
    return -log_probs[labels[labels != IGNORE]].mean().item()


def leave_plateau(
    config: TrainingConfig, teacher: PreTrainedModel, tokenizer: Tokenizer, blocks: DatasetDict
) -> dict:
    """Has the teacher, or another model, learned more than frequencies?

    Returns held_out_mlm and frequency_baseline (nats), and left_plateau: whether the first is at
    least `PLATEAU_MARGIN` lower.
    """
    collator = MaskingCollator([tokenizer], config.mask_share, config.mask_seed)
    model = MaskedLM(teacher).to(processes().device)
    gate = held_out_losses(model, Objective(config), blocks["held_out"], collator)
    teacher.cpu()
    gate["frequency_baseline"] = frequency_baseline(blocks, collator)
    least = gate["frequency_baseline"] - PLATEAU_MARGIN
    return gate | {"left_plateau": gate["held_out_mlm"] < least}


def pass_gate(config: TeacherConfig, folder: Path) -> Path:
    """The folder of a finished teacher. ConfigError if it has to leave the plateau and did not."""
    gate = read_json(folder / "gate.json", "notebook 01")
    if config.require_gate and not gate["left_plateau"]:
        loss = f"loss {gate['held_out_mlm']:.2f}, by frequencies {gate['frequency_baseline']:.2f}"
        remedy = "more steps, another learning_rate or source, or require_gate: false to go on"
        raise ConfigError(f"{folder}: knows little more than frequencies ({loss}): {remedy}")
    return folder
