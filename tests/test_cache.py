"""Stored answers of teachers: exact for k = V, refused by name where they are of something else."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict

from rolib import stages
from rolib.config import ConfigError
from rolib.data.corpus import build_blocks
from rolib.distillation import cache as module
from rolib.distillation import loop
from rolib.distillation.alignment import Projection
from rolib.distillation.cache import TeacherCache, megabytes, write_cache
from rolib.distillation.masking import MaskingCollator
from rolib.distillation.models import MaskedLM, init_student
from rolib.distillation.objective import Objective, Teacher, spread

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(_toy_tokenizer, lower_tokenizer, toy_documents):
    tokenizers = [_toy_tokenizer, lower_tokenizer]
    parts = {"train": toy_documents[:30], "held_out": toy_documents[30:40]}
    texts = {name: Dataset.from_dict({"text": rows}) for name, rows in parts.items()}
    blocks = {name: build_blocks(text, tokenizers, 24) for name, text in texts.items()}
    return tokenizers, DatasetDict(blocks)


@pytest.fixture
def teachers(world, toy_bert):
    lower = MaskedLM(toy_bert(layers=2, seed=8, vocab_size=150))
    pair = [
        Teacher("cased", MaskedLM(toy_bert(layers=3, seed=7)), 0.6),
        Teacher("lower", lower, 0.4, 1, Projection(*world[0])),
    ]
    for teacher in pair:
        teacher.place(CPU, "float32")
    return pair


def identity(config, epochs=2):
    return {
        "corpus": "abc",
        "mask_share": config.mask_share,
        "data_seed": config.data_seed,
        "cached_pieces": config.cached_pieces,
        "precision": "float32",
        "epochs": epochs,
    }


@pytest.fixture
def make(world, teachers, student_config, tmp_path):
    """The objective, the collator, and the cache of a configuration."""
    tokenizers, blocks = world

    def made(epochs=2, **changes):
        config = student_config(soft_targets="masked", batch_size=4, **changes)
        objective = Objective(config, teachers)
        folder = tmp_path / "cache"
        if not folder.exists():
            write_cache(folder, identity(config, epochs), objective, blocks, tokenizers, CPU)
        cache = TeacherCache(folder, identity(config, epochs))
        recipe = config.mask_share, config.mask_seed, objective.soft_targets, objective.states
        return objective, MaskingCollator(tokenizers, *recipe), cache

    return made


def losses_and_gradients(objective, student, batch):
    student.zero_grad()
    counts = torch.tensor(objective.counts(batch)).clamp(min=1)
    alphas = torch.tensor([term.alpha for term in objective.terms])
    loss, sums = objective.loss(student, batch, alphas / counts)
    loss.backward()
    return sums / counts, [parameter.grad for parameter in student.parameters()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.0, "weighting": "confidence"},
        {"soft_target_strategy": "uld"},
        {"hidden_states": "words"},
        {"hidden_states": "first"},
        {"alpha_cos": 0.0},
    ],
    ids=lambda changes: " ".join(changes) or "plain",
)
@pytest.mark.parametrize(("split", "epoch"), [("train", 0), ("train", 1), ("held_out", 0)])
def test_with_all_pieces_the_loss_is_that_of_running_teachers(
    make, world, toy_bert, changes, split, epoch, monkeypatch
):
    objective, collator, cache = make(cached_pieces=1000, **changes)
    student = init_student(toy_bert(layers=3, seed=3), 2).eval()
    student = MaskedLM(student, [32] * len(objective.mapped))
    rows = [world[1][split][i] for i in (5, 0, 3)]
    live, stored = collator(rows, epoch), cache.reading(collator, split, objective)(rows, epoch)
    wanted = losses_and_gradients(objective, student, live)
    for teacher in objective.teachers:  # nobody runs them now
        monkeypatch.setattr(teacher.model, "forward", lambda *_: pytest.fail("a teacher was run"))
    found = losses_and_gradients(objective, student, stored)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_fewer_pieces_keep_the_best_and_are_scaled(make, world):
    objective, collator, cache = make(cached_pieces=7)
    rows = [world[1]["train"][i] for i in (1, 2)]
    live, stored = collator(rows, 1), cache.reading(collator, "train", objective)(rows, 1)
    for teacher in objective.teachers:
        positions = slice(0, len(live[teacher.view]["soft"]))
        whole = objective.answer(teacher, live).logits(positions).softmax(-1)
        kept = objective.answer(teacher, stored).logits(positions).softmax(-1)
        best = whole.topk(7).indices
        assert (kept.gather(1, best) > 0).all() and ((kept > 0).sum(1) == 7).all()
        share = whole.gather(1, best)
        torch.testing.assert_close(kept.gather(1, best), share / share.sum(1, keepdim=True))


def test_a_batch_without_common_masked_pieces_is_read(make, world, toy_bert):
    objective, collator, cache = make(cached_pieces=1000, mask_share=0.04)
    candidates = [([block], epoch) for block in world[1]["train"] for epoch in (0, 1)]
    rows, epoch = next(one for one in candidates if not len(collator(*one)[1]["soft"]))
    stored = cache.reading(collator, "train", objective)(rows, epoch)
    student = MaskedLM(init_student(toy_bert(layers=3, seed=3), 2).eval(), [32])
    found = losses_and_gradients(objective, student, stored)
    wanted = losses_and_gradients(objective, student, collator(rows, epoch))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_spread_gives_the_other_pieces_no_probability():
    logits = spread(torch.tensor([[2.0, -30.0]]), torch.tensor([[3, 1]]), 5)
    assert logits.softmax(-1)[0].tolist() == [0, pytest.approx(0, abs=1e-12), 0, 1, 0]
    assert (logits / 100).softmax(-1)[0, [0, 2, 4]].max() < 1e-40


def test_the_states_are_compared_at_masked_pieces_only(make):
    objective, collator, _ = make(cached_pieces=5)
    assert (objective.states, collator.states, objective.soft_targets) == ("masked",) * 3


def test_the_size_of_a_million_tokens(make, capsys):
    objective, _, cache = make(cached_pieces=7)
    # 30 % masked; each teacher: 7 pieces of 4 + 8 bytes, 32 numbers of a state of 4 bytes
    share = objective.config.mask_share
    assert megabytes(objective, 10**6) == pytest.approx(share * 2 * (7 * 12 + 32 * 4))
    printed = capsys.readouterr().out
    assert f"{megabytes(objective, 10**6):.0f} MB for a million tokens" in printed
    stored = sum(
        len(cell) for table in cache.tables.values() for row in table for cell in row.values()
    )
    tokens = 24 * sum(len(table) for table in cache.tables.values())  # the longest block has 24
    assert 0.3 < stored / 1e6 / megabytes(objective, tokens) < 1.1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("corpus", "xyz"),
        ("mask_share", 0.2),
        ("data_seed", 5),
        ("cached_pieces", 9),
        ("precision", "bfloat16"),
        ("epochs", 3),
    ],
)
def test_a_cache_of_something_else_is_refused_by_name(make, key, value, tmp_path):
    objective, *_ = make(cached_pieces=7)
    wanted = identity(objective.config) | {key: value}
    with pytest.raises(ConfigError, match=rf"cache: {key} was .*, and is {value} .*delete"):
        TeacherCache(tmp_path / "cache", wanted)


def test_a_shorter_run_reads_a_longer_cache(make, tmp_path):
    objective, *_ = make(cached_pieces=7)
    tables = TeacherCache(tmp_path / "cache", identity(objective.config, epochs=1)).tables
    assert set(tables) == {"train-0", "train-1", "held_out-0"}


def test_a_cache_is_written_whole_or_not_at_all(make, tmp_path, monkeypatch):
    count = iter(range(3))

    def fails(*arguments):
        next(count)
        return original(*arguments)

    original = module.answers
    monkeypatch.setattr(module, "answers", fails)
    with pytest.raises((StopIteration, RuntimeError)):
        make(cached_pieces=7)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(module, "answers", original)
    assert make(cached_pieces=7)


@pytest.mark.parametrize(
    ("steps", "batch", "accumulation", "processes", "epochs"),
    [(1, 8, 1, 1, 1), (13, 8, 1, 1, 1), (14, 8, 1, 1, 2), (7, 8, 2, 1, 2), (4, 8, 4, 2, 4)],
)
def test_epochs_are_those_that_the_steps_read(
    student_config, steps, batch, accumulation, processes, epochs
):
    """100 blocks are 13 batches of 8."""
    config = student_config(steps=steps, batch_size=batch, accumulation=accumulation)
    assert loop.epochs_of(config, 100, processes) == epochs


def test_a_stage_makes_the_cache_once_and_other_seeds_read_it(
    student_config, toy_bert, toy_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    base = student_config(
        soft_targets="masked", cached_pieces=50, teachers={"toy": 1.0}, steps=4, batch_size=4
    )
    source = base.folder / "teachers" / "toy"
    source.parent.mkdir(parents=True)
    stages.models.save_model(toy_bert(), toy_tokenizer, source, "")
    (source / "manifest.json").write_text("{}", encoding="utf-8")
    folder = stages.distil_student(base)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["precision"] == "float32"
    cached = base.folder / "teacher-cache" / "toy"
    written = {file: file.stat().st_mtime_ns for file in cached.iterdir()}
    assert set(file.name for file in written) == {
        "train-0.arrow",
        "held_out-0.arrow",
        "identity.json",
    }

    def place(teacher, device, precision=""):
        assert not precision, "the model of a teacher was placed"

    monkeypatch.setattr(Teacher, "place", place)
    other = base.model_copy(update={"seed": 2, "temperature": 5.0, "student": "other"})
    stages.distil_student(other)
    assert {file: file.stat().st_mtime_ns for file in cached.iterdir()} == written
    with pytest.raises(ConfigError, match="toy: mask_share was"):
        stages.distil_student(base.model_copy(update={"mask_share": 0.4, "student": "third"}))


def test_stored_answers_need_masked_soft_targets(student_config):
    with pytest.raises(ValueError, match="cached_pieces: .*set soft_targets to masked"):
        student_config(cached_pieces=5, soft_targets="all")
