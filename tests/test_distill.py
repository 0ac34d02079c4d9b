"""The distillation loop: its loss, its batches, its checkpoints, and that it learns."""

import copy
import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, rel_entr, softmax
from steps import alphas_of, counts_of, loss_of, terms_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import DistilBertConfig, DistilBertForMaskedLM

from rolib import training
from rolib.config import ConfigError
from rolib.distillation import loop
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator
from rolib.distillation.models import MaskedLM, init_student
from rolib.distillation.objective import Objective, Teacher
from rolib.runs import read_json, read_metrics, write_json


@pytest.fixture(autouse=True)
def work(tmp_path):
    """One folder a run."""
    numbers = itertools.count()

    def folder():
        path = tmp_path / f"run-{next(numbers)}"
        path.mkdir()
        return path

    return folder


@pytest.fixture
def run(work, toy_bert, toy_tokenizer, toy_blocks):
    """Train a student of the toy teacher (dropout as given) and return it; `folder` goes on with an
    earlier run."""

    def train(
        config,
        blocks=toy_blocks,
        folder=None,
        dropout=0.0,
        with_teacher=True,
        on_log=lambda record: None,
    ):
        student = init_student(toy_bert(layers=3, dropout=dropout), config.num_layers)
        teachers = [guide(toy_bert(layers=3, seed=7))] if with_teacher else []
        return loop.train(
            config, student, [toy_tokenizer], blocks, folder or work(), teachers, on_log
        )

    return train


@pytest.fixture
def batch(toy_blocks, toy_tokenizer):
    """A padded, masked batch of six blocks, among them a short one."""
    short = {"index": 900, "input_ids": [[2, 60, 61, 3]], "word_ids": [[-1, 0, 1, -1]]}
    return MaskingCollator([toy_tokenizer], 0.3, seed=1)(
        [toy_blocks["train"][i] for i in range(5)] + [short]
    )


def guide(model, **options):
    """The model as a teacher of the loop."""
    return Teacher(name="toy", model=MaskedLM(model), **options)


def same_weights(one, other):
    return all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )


def difference(one, other):
    return max(
        (value - other.state_dict()[name]).abs().max().item()
        for name, value in one.state_dict().items()
    )


# --- optimizer groups -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_no_decay_on_biases_and_layer_norms(kind, toy_bert):
    model = toy_bert() if kind == "bert" else init_student(toy_bert(), 2)
    decayed, spared = training.parameter_groups(model, 0.07)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.07, 0.0)
    spared_ids = {id(parameter) for parameter in spared["params"]}
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == (10 if kind == "bert" else 6)  # 2 a layer, the embeddings' and the head's
    expected = {id(parameter) for norm in norms for parameter in norm.parameters()}
    expected |= {
        id(parameter) for name, parameter in model.named_parameters() if name.endswith("bias")
    }
    assert spared_ids == expected
    if kind == "distilbert":
        layer = model.distilbert.transformer.layer[1]
        assert {id(layer.sa_layer_norm.weight), id(layer.output_layer_norm.weight)} <= spared_ids
    everything = [id(parameter) for group in (decayed, spared) for parameter in group["params"]]
    assert sorted(everything) == sorted(id(parameter) for parameter in model.parameters())


def test_frozen_parameters_are_in_no_group(toy_bert):
    model = init_student(toy_bert(), 2)
    places = model.distilbert.embeddings.position_embeddings.weight.requires_grad_(False)
    groups = training.parameter_groups(model, 0.1)
    assert not any(parameter is places for group in groups for parameter in group["params"])


# --- the loss of a batch --------------------------------------------------------------------------


def terms_by_hand(student, teacher, batch, temperature, soft_targets):
    """The three means in float64 by loops, from the full outputs of the plain models."""
    [batch] = batch
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = [model(**inputs, output_hidden_states=True) for model in (student, teacher)]
    (s_logits, s_states), (t_logits, t_states) = (
        (output.logits.double().numpy(), output.hidden_states[-1].double().numpy())
        for output in outputs
    )
    soft, hard, angle = [], [], []
    for row, place in np.argwhere(batch["attention_mask"].numpy() == 1):
        label = batch["labels"][row, place].item()
        s, t = s_logits[row, place], t_logits[row, place]
        if soft_targets == "all" or label != -100:
            soft.append(
                temperature**2 * rel_entr(softmax(t / temperature), softmax(s / temperature)).sum()
            )
        if label != -100:
            hard.append(-log_softmax(s)[label])
        angle.append(cosine(s_states[row, place], t_states[row, place]))
    return [np.mean(soft), np.mean(hard), np.mean(angle)], [len(soft), len(hard), len(angle)]


@pytest.mark.parametrize("soft_targets", ["all", "masked"])
def test_loss_terms_are_the_formula(soft_targets, student_config, toy_bert, batch):
    teacher, student = toy_bert(layers=3, seed=7), init_student(toy_bert(layers=3), 2).eval()
    config = student_config(soft_targets=soft_targets, temperature=3.0)
    means, counts = terms_by_hand(student, teacher, batch, 3.0, soft_targets)
    terms = terms_of(MaskedLM(student), [guide(teacher)], batch, config)
    np.testing.assert_allclose(
        [terms[term].item() for term in ("ce", "mlm", "cos")], means, rtol=1e-5
    )
    assert counts_of(batch, [guide(teacher)], config) == dict(
        zip(("ce", "mlm", "cos"), counts, strict=True)
    )
    assert len(set(counts)) == 2 and min(counts) > 5


def test_a_term_of_weight_zero_is_not_computed(student_config, toy_bert, batch):
    teachers, student = [guide(toy_bert(seed=7))], MaskedLM(init_student(toy_bert(), 2).eval())
    full = terms_of(student, teachers, batch, student_config(soft_targets="masked"))
    for name in ("ce", "mlm", "cos"):
        config = student_config(soft_targets="masked", **{f"alpha_{name}": 0.0})
        terms = terms_of(student, teachers, batch, config)
        assert (
            list(terms)
            == list(counts_of(batch, teachers, config))
            == [key for key in full if key != name or key == "mlm"]  # it is a measure too
        )
        for other in terms:
            assert terms[other].item() == pytest.approx(full[other].item(), rel=1e-5)


def test_the_teacher_gets_no_gradient(student_config, toy_bert, batch):
    teacher, student = guide(toy_bert(seed=7)), MaskedLM(init_student(toy_bert(), 2))
    loss_of(student, [teacher], batch, student_config()).backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_mlm_objective_needs_no_teacher(student_config, teacher_config, toy_bert, batch):
    student = init_student(toy_bert(), 2).eval()
    for config in (student_config(objective="mlm"), teacher_config()):
        assert alphas_of([], config) == {"mlm": 1.0}
        terms = terms_of(MaskedLM(student), [], batch, config)
        by_hand = terms_by_hand(student, toy_bert(), batch, 1.0, "all")[0][1]
        assert terms["mlm"].item() == pytest.approx(by_hand, rel=1e-5) and list(terms) == ["mlm"]
    assert alphas_of([guide(toy_bert())], student_config()) == {"ce": 5.0, "mlm": 2.0, "cos": 1.0}


# --- batches --------------------------------------------------------------------------------------


def test_length_batches_hold_every_index_once_and_depend_on_seed_and_epoch():
    lengths = [(7 * i) % 40 + 3 for i in range(203)]
    batches = training.length_batches(lengths, 8, seed=1, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(203))
    assert sorted(len(batch) for batch in batches) == [3] + [8] * 25
    assert batches == training.length_batches(lengths, 8, seed=1, epoch=0)
    others = [
        training.length_batches(lengths, 8, seed, epoch) for seed, epoch in ((2, 0), (1, 1), (2, 1))
    ]
    assert all(one != other for one, other in itertools.combinations([batches, *others], 2))

    # Similar lengths: less padding than in the order of the data.
    def padding(groups):
        return sum(max(lengths[i] for i in group) - lengths[j] for group in groups for j in group)

    assert padding(batches) < 0.5 * padding(
        [list(range(i, min(i + 8, 203))) for i in range(0, 203, 8)]
    )


def test_length_batches_come_in_random_order():
    lengths = [(7 * i) % 200 + 3 for i in range(640)]
    batches = training.length_batches(lengths, 8, seed=1, epoch=0)
    means = [np.mean([lengths[i] for i in batch]) for batch in batches]
    thirds = [np.mean(part) for part in np.array_split(means, 3)]
    assert max(thirds) - min(thirds) < 30  # sorted batches would be 130 apart
    assert np.mean(means[:-1] > np.asarray(means[1:])) < 0.7  # not falling


def steps_of(config, blocks, tokenizer, first=0, processes=1, index=0):
    collator = MaskingCollator([tokenizer], config.mask_share, config.seed)
    accelerator = SimpleNamespace(num_processes=processes, process_index=index)
    return [
        [(batch["input_ids"].tolist(), batch["labels"].tolist()) for [batch] in step]
        for step in loop.step_batches(blocks, collator, config, accelerator, first)
    ]


def test_step_batches_go_on_where_they_stopped(student_config, toy_blocks, toy_tokenizer):
    config = student_config(steps=31, batch_size=8, accumulation=2)
    whole = steps_of(config, toy_blocks["train"], toy_tokenizer)
    per_epoch = -(-len(toy_blocks["train"]) // 8) // 2
    assert len(whole) == 31 > 2 * per_epoch  # several epochs
    for first in (0, 1, per_epoch - 1, per_epoch, per_epoch + 1, 30, 31):
        assert steps_of(config, toy_blocks["train"], toy_tokenizer, first) == whole[first:]


def test_processes_share_out_the_batches_of_a_step(student_config, toy_blocks, toy_tokenizer):
    one = steps_of(student_config(steps=9, accumulation=4), toy_blocks["train"], toy_tokenizer)
    config = student_config(steps=9, accumulation=2)
    first, second = (
        steps_of(config, toy_blocks["train"], toy_tokenizer, processes=2, index=i) for i in (0, 1)
    )
    for whole, mine, yours in zip(one, first, second, strict=True):
        assert sorted(whole) == sorted(mine + yours)


def test_masks_change_from_epoch_to_epoch(student_config, toy_blocks, toy_tokenizer):
    few = toy_blocks["train"].select(range(8))
    first, second = steps_of(student_config(steps=2, batch_size=8), few, toy_tokenizer)
    (ids, labels), (later_ids, later_labels) = first[0], second[0]

    def true(ids, labels):
        return sorted(
            tuple(x if y == IGNORE else y for x, y in zip(*row, strict=True))
            for row in zip(ids, labels, strict=True)
        )

    assert true(ids, labels) == true(later_ids, later_labels)
    assert sorted(labels) != sorted(later_labels)


def test_a_corpus_smaller_than_a_step_is_read_again(student_config, toy_blocks, toy_tokenizer):
    few = toy_blocks["train"].select(range(3))
    steps = steps_of(student_config(steps=3, batch_size=1, accumulation=8), few, toy_tokenizer)
    assert [len(step) for step in steps] == [8, 8, 8]


def test_batches_are_made_in_the_background_in_order_one_ahead():
    made, threads = [], set()

    def items():
        for i in range(4):
            made.append(i)
            threads.add(threading.get_ident())
            yield i

    seen = []
    for item in loop.in_background(items()):
        seen.append(item)
        assert len(made) <= item + 2  # at most one ahead
    assert seen == made == [0, 1, 2, 3] and threading.get_ident() not in threads


def test_an_error_in_the_background_reaches_the_caller():
    def items():
        yield 1
        raise KeyError("block 7")

    with pytest.raises(KeyError, match="block 7"):
        list(loop.in_background(items()))


# --- training -------------------------------------------------------------------------------------


def test_accumulation_does_not_change_a_step(run, student_config, toy_blocks, monkeypatch):
    """8 x 1, 4 x 2 and 1 x 8 see the same 8 blocks a step, with unequal numbers of masks."""
    blocks = copy.copy(toy_blocks)
    blocks["train"] = toy_blocks["train"].select(range(8))
    assert len(set(blocks["train"]["length"])) > 1

    def trained(batch_size, accumulation, steps=2):
        return run(
            student_config(
                steps=steps, batch_size=batch_size, accumulation=accumulation, soft_targets="masked"
            ),
            blocks,
        )

    whole, *parts = (trained(*shape) for shape in ((8, 1), (4, 2), (1, 8)))
    assert all(difference(whole, part) < 1e-5 for part in parts)

    # Adam hides the size of a gradient; plain descent with rate 1 shows it: the weights move by the
    # (clipped) gradient.
    monkeypatch.setattr(
        torch.optim,
        "AdamW",
        lambda groups, lr, **_: torch.optim.SGD([p for g in groups for p in g["params"]], 1.0),
    )
    start = run(student_config(steps=1, learning_rate=1e-30, batch_size=8), blocks)
    whole, *parts = (trained(*shape, steps=1) for shape in ((8, 1), (4, 2), (1, 8)))
    assert difference(start, whole) > 1e-2
    assert all(difference(whole, part) < 1e-5 for part in parts)


def test_each_process_draws_its_own_dropout_masks(run, student_config, monkeypatch):
    def trained(process, dropout):
        state = SimpleNamespace(process_index=process)
        monkeypatch.setattr("accelerate.utils.random.AcceleratorState", lambda: state)
        return run(student_config(steps=1), dropout=dropout)

    assert not same_weights(trained(0, dropout=0.3), trained(1, dropout=0.3))


def test_emulated_bf16_is_not_used(monkeypatch):
    def is_supported(including_emulation=True):
        return including_emulation  # as on a T4 or V100

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert not training.has_bf16()
    assert training.choose_precision("auto", 768) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert training.has_bf16()
    assert training.choose_precision("auto", 32) == "bfloat16"
    assert training.choose_precision("float32", 768) == "float32"


@pytest.mark.parametrize(
    ("bf16", "amx", "width", "wanted"),
    [
        (False, False, 768, "float32"),
        (True, False, 768, "bfloat16"),
        (False, True, 768, "bfloat16"),
        (True, True, 128, "float32"),  # too narrow to gain
    ],
)
def test_bf16_on_a_cpu_wants_its_instructions_and_a_wide_model(
    monkeypatch, bf16, amx, width, wanted
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert training.choose_precision("auto", width) == wanted
    assert training.choose_precision("float32", width) == "float32"
    assert training.choose_precision("bfloat16", width) == "bfloat16"


def test_the_same_seed_gives_the_same_weights(run, student_config):
    first, second = (run(student_config(), dropout=0.1) for _ in range(2))
    assert same_weights(first, second)
    assert not same_weights(first, run(student_config(seed=2), dropout=0.1))
    assert not same_weights(first, run(student_config(), dropout=0.0))  # so dropout is at work


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_positions(run, student_config, toy_bert, frozen):
    before = init_student(toy_bert(layers=3), 2)
    after = run(student_config(freeze_positions=frozen, weight_decay=0.5))
    places, words = (
        f"distilbert.embeddings.{kind}_embeddings.weight" for kind in ("position", "word")
    )
    assert torch.equal(before.state_dict()[places], after.state_dict()[places]) == frozen
    assert not torch.equal(before.state_dict()[words], after.state_dict()[words])


def test_the_trained_student_is_ready_to_use(run, student_config):
    student = run(student_config(steps=1))
    assert not student.training and isinstance(student, DistilBertForMaskedLM)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight


def test_the_teacher_stays_as_it_was(work, student_config, toy_bert, toy_tokenizer, toy_blocks):
    teacher = toy_bert(seed=7, dropout=0.1)
    loop.train(
        student_config(),
        init_student(toy_bert(), 2),
        [toy_tokenizer],
        toy_blocks,
        work(),
        [guide(teacher)],
    )
    assert not teacher.training and same_weights(teacher, toy_bert(seed=7, dropout=0.1))


@pytest.mark.parametrize(
    ("objective", "terms"), [("distill", ["ce", "cos", "loss"]), ("mlm", ["loss"])]
)
def test_the_loss_falls(run, student_config, objective, terms):
    config, records = student_config(steps=40, learning_rate=5e-3, objective=objective), []
    run(config, on_log=records.append, with_teacher=objective == "distill")
    assert len(records) == 40
    for term in terms:
        values = [record[term] for record in records]
        # A random teacher's targets and the true words disagree: together they fall less.
        goal = 0.9 if (objective, term) == ("distill", "loss") else 0.75
        assert np.mean(values[-5:]) < goal * np.mean(values[:5]), term


def test_metrics(run, work, student_config, toy_blocks):
    folder, records = work(), []
    config = student_config(
        steps=5, log_every=2, checkpoint_every=3, warmup_share=0.4, learning_rate=1e-3
    )
    run(config, folder=folder, on_log=records.append)
    assert read_metrics(folder / "metrics.jsonl") == records
    assert [record["step"] for record in records] == [2, 3, 4, 5]
    assert [("loss" in record, "held_out_ce" in record) for record in records] == [
        *[(True, False), (False, True), (True, False), (True, True)]
    ]
    for record in (records[0], records[2], records[3]):
        assert record["loss"] == pytest.approx(
            5 * record["ce"] + 2 * record["mlm"] + record["cos"], rel=1e-5
        )
        assert record["tokens_per_second"] > 0
    assert [record["learning_rate"] for record in records if "loss" in record] == pytest.approx(
        [5e-4, 2e-3 / 3, 1e-3 / 3]  # with which steps 2, 4 and 5 trained
    )
    assert set(records[-1]) >= {"held_out_ce", "held_out_mlm", "held_out_cos"}
    assert records[0]["tokens"] == sum(
        np.sum(toy_blocks["train"]["length"][index])
        for group in training.length_batches(toy_blocks["train"]["length"], 8, 1, 0)[:2]
        for index in group
    )


def test_the_logged_loss_is_the_mean_since_the_last_record(run, student_config):
    often, seldom = [], []
    run(student_config(steps=4, log_every=1), on_log=often.append)
    run(student_config(steps=4, log_every=2), on_log=seldom.append)
    for i in (0, 1):
        assert seldom[i]["loss"] == pytest.approx(
            (often[2 * i]["loss"] + often[2 * i + 1]["loss"]) / 2, rel=1e-5
        )


def test_the_mlm_run_logs_its_own_term_alone(run, student_config):
    records = []
    run(student_config(steps=1, objective="mlm"), with_teacher=False, on_log=records.append)
    assert records[0]["loss"] == pytest.approx(records[0]["mlm"])
    assert not set(records[0]) & {"ce", "cos", "held_out_ce", "held_out_cos"}


def test_a_loss_that_is_not_finite_stops_the_run(run, student_config):
    with pytest.raises(
        FloatingPointError, match=r"step \d+: the loss is (nan|inf): lower learning_rate"
    ):
        run(student_config(steps=6, learning_rate=1e30))


# --- held-out loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_held_out_loss_uses_fixed_masks(
    training, student_config, toy_bert, toy_tokenizer, toy_blocks
):
    teacher, student = toy_bert(seed=7), init_student(toy_bert(dropout=0.3), 2).train(training)
    collator = MaskingCollator([toy_tokenizer], 0.3, seed=1)
    blocks, config = toy_blocks["held_out"], student_config(batch_size=4)

    def measured(model):
        objective = Objective(config, [guide(teacher)])
        collator.soft_targets = objective.soft_targets
        return loop.held_out_losses(model, objective, blocks, collator)

    model = MaskedLM(student).train(training)
    first = measured(model)
    assert first == measured(model)
    assert {module.training for module in model.modules()} == {training}
    # All held-out blocks in one batch, by hand: means over tokens and not over batches.
    by_hand = terms_by_hand(
        student.eval(), teacher, collator(list(blocks)), config.temperature, "all"
    )[0]
    assert list(first) == ["held_out_ce", "held_out_mlm", "held_out_cos"]
    assert list(first.values()) == pytest.approx(by_hand, rel=1e-5)


# --- checkpoints ----------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def stop_at(step):
    def on_log(record):
        if record["step"] == step:
            raise Interrupted

    return on_log


def events_in(folder):
    """The records that TensorBoard shows of a run."""
    accumulator = EventAccumulator(str(folder)).Reload()
    names, records = accumulator.Tags()["scalars"], {}
    for name in names:
        for event in accumulator.Scalars(name):
            records.setdefault(event.step, {})[name] = event.value
    return [records[step] for step in sorted(records)]


@pytest.mark.parametrize("where", ["inside an epoch", "at an epoch's end"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    run, work, student_config, toy_blocks, where
):
    epoch = -(-len(toy_blocks["train"]) // 8)
    every, steps = (3, 7) if where == "inside an epoch" else (epoch, epoch + 3)
    # The checkpoint stands between two records, and where the rate still rises.
    more = {"log_every": 2, "warmup_share": 0.6} if where == "inside an epoch" else {}
    config = student_config(steps=steps, checkpoint_every=every, **more)
    whole, broken = work(), work()
    expected = run(config, folder=whole, dropout=0.1)
    with pytest.raises(Interrupted):
        run(config, folder=broken, dropout=0.1, on_log=stop_at(every + (1 if more else 2)))
    assert [path.name for path in (broken / "checkpoints").iterdir()] == [f"step-{every}"]
    resumed = run(config, folder=broken, dropout=0.1)
    wanted, got = (read_metrics(folder / "metrics.jsonl") for folder in (whole, broken))
    logged = {*range(config.log_every, steps, config.log_every), *range(every, steps, every), steps}
    assert [record["step"] for record in got] == sorted(logged)
    assert events_in(broken) == [
        {name: pytest.approx(value, rel=1e-6) for name, value in record.items()} for record in got
    ]
    for record in wanted + got:
        record.pop("tokens_per_second", None)
    assert got == wanted
    assert same_weights(expected, resumed)


def test_without_tensorboard_there_are_no_events(run, work, student_config, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = work()
    run(student_config(steps=1), folder=folder)
    assert not list(folder.glob("events*")) and (folder / "metrics.jsonl").exists()


def test_a_run_interrupted_before_its_first_checkpoint_starts_again(run, work, student_config):
    folder = work()
    with pytest.raises(Interrupted):
        run(student_config(), folder=folder, on_log=stop_at(2))
    assert same_weights(run(student_config(), folder=folder), run(student_config()))
    assert [record["step"] for record in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_number_of_processes_is_refused(run, work, student_config):
    """They share out the blocks of a step, so its number would mean others."""
    folder, config = work(), student_config(steps=4, checkpoint_every=2)
    with pytest.raises(Interrupted):
        run(config, folder=folder, on_log=stop_at(3))
    file = folder / "checkpoints" / "step-2" / "manifest.json"
    write_json(file, read_json(file, "") | {"processes": 2})
    with pytest.raises(ConfigError, match="begun by 2 processes: take as many"):
        run(config, folder=folder)
    assert file.exists()  # nothing is lost
    write_json(file, read_json(file, "") | {"processes": 1})
    run(config, folder=folder)


def test_taking_checkpoints_does_not_change_the_training(run, student_config, toy_blocks):
    """Nor does the held-out loss that is taken with them, also in the second epoch, whose masks are
    others."""
    blocks = copy.copy(toy_blocks)
    blocks["train"] = toy_blocks["train"].select(range(16))  # two steps an epoch
    often, never = (
        run(student_config(steps=4, checkpoint_every=every), blocks, dropout=0.1)
        for every in (1, 100)
    )
    assert same_weights(often, never)


def test_the_last_two_checkpoints_are_kept_and_none_is_half_written(
    run, work, student_config, monkeypatch
):
    folder = work()
    run(student_config(steps=7, checkpoint_every=2), folder=folder)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-4", "step-6"]

    def broken_save(self, output_dir, **options):
        (folder / "checkpoints" / ".partial").mkdir(exist_ok=True)
        raise Interrupted

    monkeypatch.setattr("accelerate.Accelerator.save_state", broken_save)
    with pytest.raises(Interrupted):
        run(student_config(steps=9, checkpoint_every=2), folder=folder)
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert kept == ["step-4", "step-6"]


def test_a_control_trains_from_random_weights(work, student_config, toy_tokenizer, toy_blocks):
    torch.manual_seed(0)
    shape = DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=32
    )
    student = DistilBertForMaskedLM(shape)
    before = copy.deepcopy(student.state_dict())
    after = loop.train(
        student_config(objective="mlm"), student, [toy_tokenizer], toy_blocks, work()
    )
    assert not torch.equal(
        before["vocab_transform.weight"], after.state_dict()["vocab_transform.weight"]
    )
