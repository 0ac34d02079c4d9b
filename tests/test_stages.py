"""The gate of a teacher: held-out loss against what word frequencies alone give."""

import math
from collections import Counter

import pytest

from rolib import stages
from rolib.distillation import loop
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator


def test_frequency_baseline_against_a_plain_loop(toy_blocks, toy_tokenizer):
    collator = MaskingCollator([toy_tokenizer], 0.3, seed=1)
    counts = Counter(
        piece for block in toy_blocks["train"] for piece in block["input_ids"][0][1:-1]
    )
    total = sum(counts.values()) + len(toy_tokenizer)
    labels = collator(list(toy_blocks["held_out"]))[0]["labels"]
    losses = [-math.log((counts[label] + 1) / total) for label in labels[labels != IGNORE].tolist()]
    assert stages.frequency_baseline(toy_blocks, toy_tokenizer, collator) == pytest.approx(
        sum(losses) / len(losses), rel=1e-5
    )


@pytest.mark.parametrize(("held_out", "left"), [(5.9, True), (6.1, False), (7.5, False)])
def test_the_plateau_is_left_a_nat_below_the_baseline(
    held_out, left, teacher_config, toy_bert, toy_tokenizer, monkeypatch
):
    monkeypatch.setattr(loop, "held_out_losses", lambda *_: {"held_out_mlm": held_out})
    monkeypatch.setattr(stages, "frequency_baseline", lambda *_: 7.0)
    gate = stages.leave_plateau(teacher_config(), toy_bert(), toy_tokenizer, {"held_out": None})
    assert gate == {"held_out_mlm": held_out, "frequency_baseline": 7.0, "left_plateau": left}
