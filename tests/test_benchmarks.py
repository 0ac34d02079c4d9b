"""The benchmarks' own promises: equal losses, counted operations, results written whole.

No clock is asserted.
"""

import copy
import importlib
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from benchmarks import flops, memory, training
from benchmarks.ours import Ours, Variant
from benchmarks.recipe import Recipe
from benchmarks.shapes import SHAPES, make_world
from torch.utils.flop_counter import FlopCounterMode

from rolib.config import ROOT

TINY = SHAPES["tiny"]
INDICES = list(range(TINY.batch))


@pytest.fixture(scope="module")
def world():
    return make_world(TINY, 4 * TINY.batch)


@pytest.mark.parametrize("soft_targets", ["all", "masked"])
def test_ours_is_the_plain_recipe(world, soft_targets):
    ours, recipe = Ours(world, Variant(soft_targets)), Recipe(world)
    loss, expected = ours.loss(INDICES), recipe.loss(INDICES, soft_targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    largest = max(p.grad.abs().max().item() for p in ours.student.parameters() if p.requires_grad)
    gradients = {name: p.grad for name, p in ours.student.named_parameters() if p.requires_grad}
    for name, parameter in recipe.student.named_parameters():
        if parameter.requires_grad:
            found = gradients.pop(name)
            torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6 * largest)
    assert not gradients


def test_every_step_follows_the_recipe(world):
    ours, recipe = Ours(world, Variant()), Recipe(world)
    for turn in range(3):
        indices = [turn * TINY.batch + i for i in INDICES]
        assert ours.step(indices) == pytest.approx(recipe.step(indices), rel=1e-5)
    name = "distilbert.embeddings.word_embeddings.weight"
    start, trained = (model.get_parameter(name) for model in (world.start, ours.student))
    assert not torch.equal(start, trained)
    other = recipe.student.get_parameter(name)
    torch.testing.assert_close(trained - start, other - start, rtol=1e-2, atol=1e-6)


def test_textbrewer_has_the_same_loss_but_for_the_entropy(world):
    pytest.importorskip("textbrewer")
    from benchmarks.textbrewer_step import TextBrewer

    brewer, recipe = TextBrewer(world), Recipe(world)
    found = brewer.step(INDICES)
    expected = recipe.loss(INDICES).item() + brewer.entropy(INDICES)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_wrong_loss_stops_the_run(world):
    jobs = {name: training.make_peer(name, world) for name in training.peers()}
    training.check_losses(jobs, INDICES)
    jobs["rolib-all-1-teacher-float32"].alphas[1] *= 1.001
    with pytest.raises(SystemExit, match="^error: rolib-all-1-teacher-float32: its loss is "):
        training.check_losses(jobs, INDICES)


def test_operations_are_those_that_torch_counts(world):
    """On texts without padding, with attention as plain products, which torch can count."""
    full = [i for i, length in enumerate(world.blocks["length"]) if length == TINY.length][:3]
    assert len(full) == 3
    plain = copy.copy(world)
    plain.teachers, plain.start = copy.deepcopy((world.teachers, world.start))
    for model in [*plain.teachers, plain.start]:
        model.set_attn_implementation("eager")
    recipe = Recipe(plain)
    with FlopCounterMode(display=False) as counter:
        recipe.loss(full).backward()
    assert flops.count(world, full) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.teachers[0](input_ids=torch.zeros(3, TINY.length, dtype=torch.long))
    cached = flops.count(world, full, cached=True)
    assert flops.count(world, full) - cached == counter.get_total_flops()


def test_the_harness_writes_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(training.machine, "matrix_rate", lambda dtype: 1e10)
    monkeypatch.setattr(training.memory, "peak_memory", lambda *what: 2.0)
    training.main(["--shapes", "tiny", "--rounds", "1", "--folder", str(tmp_path)])
    written = {"training.csv", "machine.json", "training.png", "training.svg", "training.txt"}
    assert {path.name for path in tmp_path.iterdir()} == written
    table = pd.read_csv(tmp_path / "training.csv").set_index("name")
    assert set(training.peers()) < set(table.index)
    assert table.loc["recipe", "speed_up"] == 1
    peers = table[(table["what"] == "rolib") & (table["teachers"] == 1)]
    assert (peers["loss_error"].dropna() <= training.TOLERANCE).all()
    assert (peers["memory_of_recipe"] == 1).all()
    assert table["over_parts"].notna().sum() == (table["teachers"] == 2).sum()
    facts = json.loads((tmp_path / "machine.json").read_text())
    assert facts["matrix_gigaoperations_per_cpu_second"]["float32"] == 10


def test_peak_memory_holds_the_logits():
    logits = TINY.batch * TINY.length * TINY.vocab * 4 / 1e6
    assert logits < memory.peak_memory("tiny", TINY.batch, TINY.length, "recipe") < 1000


def test_over_parts_is_the_median_of_the_turns():
    one, two = "rolib-all-1-teacher-float32", "rolib-all-2-teacher-float32"
    seconds = {one: [2, 2, 4], two: [4, 3, 9], f"second forward of {two}": [1, 1, 2]}
    assert training.over_parts(pd.DataFrame(seconds), two) == 4 / 3
    assert pd.isna(training.over_parts(pd.DataFrame(seconds), one))


def test_make_bench_calls_what_is_there():
    dry = ["make", "--dry-run", "bench", "BENCH=there"]
    said = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = re.findall(r"tests/benchmarks/(\w+)\.py (.*)", said)
    assert [name for name, _ in commands] == ["training", "export"]
    for name, arguments in commands:
        module = importlib.import_module(f"benchmarks.{name}")
        assert module.read_options(arguments.split()).folder == Path("there")
