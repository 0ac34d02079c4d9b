"""Several teachers in the distillation loop: one target from many, whatever their vocabularies."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, log_softmax, rel_entr, softmax
from steps import alphas_of, counts_of, loss_of, terms_of

from rolib.data.corpus import build_blocks
from rolib.distillation import alignment, loop, losses
from rolib.distillation.alignment import Projection
from rolib.distillation.losses import IGNORE
from rolib.distillation.masking import MaskingCollator
from rolib.distillation.models import MaskedLM, init_student
from rolib.distillation.objective import Objective, Teacher
from rolib.distillation.vocabulary import soften
from rolib.runs import read_metrics

LOWER = 150  # the lower-cased vocabulary's size
steady = settings(deadline=None, derandomize=True, max_examples=50)


@pytest.fixture(scope="module")
def world(_toy_tokenizer, lower_tokenizer, toy_documents):
    """Both tokenizers, and blocks with a view for each."""
    tokenizers = [_toy_tokenizer, lower_tokenizer]
    parts = {"train": toy_documents[:50], "held_out": toy_documents[50:]}
    return tokenizers, DatasetDict(
        {
            name: build_blocks(Dataset.from_dict({"text": texts}), tokenizers, 24)
            for name, texts in parts.items()
        }
    )


@pytest.fixture
def batch(world):
    tokenizers, blocks = world
    return MaskingCollator(tokenizers, 0.4, seed=1)([blocks["train"][i] for i in range(8)])


@pytest.fixture
def teachers(world, toy_bert):
    """A cased teacher and a lower-casing one with other vocabulary, width 32 both."""
    tokenizers, _ = world

    def make(first=0.5, second=0.5):
        return [
            Teacher("cased", MaskedLM(toy_bert(layers=3, seed=7)), first),
            Teacher(
                "lower",
                MaskedLM(toy_bert(layers=2, seed=8, vocab_size=LOWER)),
                second,
                1,
                Projection(*tokenizers),
            ),
        ]

    return make


def student_of(toy_bert, maps=1):
    return MaskedLM(init_student(toy_bert(layers=3, seed=7), 2).eval(), [32] * maps)


def outputs(model, view):
    """Logits and last states of the plain model, float64."""
    with torch.no_grad():
        found = model.model(
            input_ids=view["input_ids"],
            attention_mask=view["attention_mask"],
            output_hidden_states=True,
        )
    return found.logits.double().numpy(), found.hidden_states[-1].double().numpy()


def masked_words(batch):
    """For each masked word: its places (row, [positions]) in the first and in the second view."""
    for row in range(len(batch[0]["input_ids"])):
        numbers = [view["word_ids"][row].tolist() for view in batch]
        for word in range(max(numbers[0]) + 1):
            places = [[i for i, n in enumerate(side) if n == word] for side in numbers]
            if batch[0]["labels"][row, places[0][0]] != IGNORE:
                yield row, *places


def ce_by_hand(student, teachers, batch, temperature, weighting="fixed", strategy="lift"):
    """The soft-target term by loops over masked pieces, in float64; and the coverage."""
    logits = outputs(student, batch[0])[0]
    first, second = (
        outputs(teacher.model, view)[0] for teacher, view in zip(teachers, batch, strict=True)
    )
    own, theirs = (tokenizer.get_vocab() for tokenizer in batch_tokenizers)
    join = {c: theirs.get(piece if piece[0] == "[" else piece.lower()) for piece, c in own.items()}
    terms, uld, shared, words, masses = [], 0.0, 0, 0, []
    for row, ours, others in masked_words(batch):
        words += 1
        for place in ours:
            p = softmax(first[row, place] / temperature)
            weights, targets = [teachers[0].weight], [p]
            if weighting == "confidence":
                weights[0] *= np.exp(-entr(p).sum())
            if len(ours) == len(others) == 1:
                shared += 1
                u = softmax(second[row, others[0]] / temperature)
                q = np.zeros_like(p)
                if strategy == "lift":
                    for c, k in join.items():
                        if k is not None:
                            q[c] = (
                                u[k] * p[c] / sum(p[d] for d, other in join.items() if other == k)
                            )
                    masses.append(q.sum())
                    q += (1 - q.sum()) * p
                elif strategy == "intersection":
                    for piece, c in own.items():
                        q[c] = u[theirs[piece]] if piece in theirs else 0
                    masses.append(q.sum())
                    q /= q.sum()
                elif strategy == "uld":
                    s = np.sort(softmax(logits[row, place] / temperature))[::-1]
                    padded = np.sort(np.append(u, np.zeros(len(s) - len(u))))[::-1]
                    uld += teachers[1].weight * np.abs(s - padded).sum()
                if strategy in ("lift", "intersection"):
                    targets.append(q)
                    weights.append(
                        teachers[1].weight
                        * (np.exp(-entr(u).sum()) if weighting == "confidence" else 1)
                    )
            target = np.average(targets, axis=0, weights=weights)
            terms.append(
                temperature**2 * rel_entr(target, softmax(logits[row, place] / temperature)).sum()
            )
    return (np.sum(terms) + uld) / len(terms), shared / words, np.mean(masses) if masses else 0.0


@pytest.fixture(autouse=True)
def _tokenizers(world):
    global batch_tokenizers
    batch_tokenizers = world[0]


@pytest.mark.parametrize(
    ("strategy", "weighting"),
    [
        ("lift", "fixed"),
        ("lift", "confidence"),
        ("intersection", "fixed"),
        ("uld", "fixed"),
        ("none", "fixed"),
    ],
)
def test_the_soft_target_term_is_the_formula(
    strategy, weighting, student_config, teachers, toy_bert, batch
):
    config = student_config(
        teachers={"cased": 0.3, "lower": 0.7},
        soft_targets="masked",
        temperature=3.0,
        soft_target_strategy=strategy,
        weighting=weighting,
    )
    student, both = student_of(toy_bert), teachers(0.3, 0.7)
    terms = terms_of(student, both, batch, config)
    expected = ce_by_hand(student, both, batch, 3.0, weighting, strategy)
    names = ["ce", "coverage_lower"] + ["mass_lower"] * (strategy in ("lift", "intersection"))
    found = [terms[name].item() for name in names]
    assert found == pytest.approx(expected[: len(names)], rel=1e-4)
    assert 0.2 < found[1] < 1
    logits = outputs(student, batch[0])[0]
    labels = batch[0]["labels"].numpy()
    mlm = -np.mean(
        [log_softmax(logits[i, j])[labels[i, j]] for i, j in np.argwhere(labels != IGNORE)]
    )
    assert terms["mlm"].item() == pytest.approx(mlm, rel=1e-5)


def test_the_state_terms_are_word_by_word_across_vocabularies(
    student_config, teachers, toy_bert, batch
):
    student, both = student_of(toy_bert), teachers()
    torch.nn.init.normal_(student.maps[0].weight)
    states, first, second = (
        outputs(student, batch[0])[1],
        *(outputs(t.model, v)[1] for t, v in zip(both, batch, strict=True)),
    )
    mapped = states @ student.maps[0].weight.detach().double().numpy().T
    by_word, by_word_first = [], []

    def angle(a, b):
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for row in range(len(states)):
        numbers = [view["word_ids"][row].numpy() for view in batch]
        for word in range(numbers[0].max() + 1):
            here, there = numbers[0] == word, numbers[1] == word
            by_word.append(angle(mapped[row][here].mean(0), second[row][there].mean(0)))
            by_word_first.append(angle(states[row][here].mean(0), first[row][here].mean(0)))
    by_piece = [
        angle(states[i, j], first[i, j])
        for i, j in np.argwhere(batch[0]["attention_mask"].numpy() == 1)
    ]
    for hidden_states, wanted in [("pieces", by_piece), ("words", by_word_first)]:
        config = student_config(hidden_states=hidden_states)
        terms = terms_of(student, both, batch, config)
        assert terms["cos"].item() == pytest.approx(np.mean(wanted), rel=1e-4)
        assert terms["cos_lower"].item() == pytest.approx(np.mean(by_word), rel=1e-4)
        counts = counts_of(batch, both, config)
        assert (counts["cos"], counts["cos_lower"]) == (len(wanted), len(by_word))
    assert "cos_lower" not in terms_of(student, both, batch, student_config(hidden_states="first"))


@pytest.mark.parametrize("soft_targets", ["masked", "all"])
def test_the_mass_is_a_mean_over_shared_words_with_soft_targets(
    soft_targets, student_config, teachers, batch
):
    counts = counts_of(batch, teachers(), student_config(soft_targets=soft_targets))
    shared, _ = alignment.shared_positions(*(view["word_ids"] for view in batch))
    masked = batch[0]["labels"] != IGNORE
    wanted = {"masked": int((shared & masked).sum()), "all": int(shared.sum())}
    assert counts["mass_lower"] == wanted[soft_targets] and wanted["masked"] < wanted["all"]


def test_teachers_that_nothing_is_learned_from_are_not_run(
    student_config, teachers, toy_bert, batch, monkeypatch
):
    config = student_config(alpha_ce=0.0, alpha_cos=0.0)
    monkeypatch.setattr(Objective, "answer", lambda *_: pytest.fail("a teacher was run"))
    terms = terms_of(student_of(toy_bert), teachers(), batch, config)
    assert terms["mlm"] > 0 and set(terms) == {"mlm", "coverage_lower"}


def test_weights_of_the_terms(student_config, teachers):
    both = teachers(0.25, 0.75)
    measures = {"coverage_lower": 0.0, "mass_lower": 0.0}  # logged and not learned from
    for changes, wanted in [
        ({}, {"ce": 5.0, "mlm": 2.0, "cos": 0.25, "cos_lower": 0.75}),
        ({"hidden_states": "first"}, {"ce": 5.0, "mlm": 2.0, "cos": 1.0}),
        ({"alpha_cos": 0.0}, {"ce": 5.0, "mlm": 2.0}),
    ]:
        assert alphas_of(both, student_config(**changes)) == wanted | measures
    assert alphas_of(both[:1], student_config()) == {"ce": 5.0, "mlm": 2.0, "cos": 1.0}


@pytest.mark.parametrize("strategy", ["uld", "none"])
def test_without_a_projection_no_mass_is_logged(strategy, student_config, teachers):
    terms = alphas_of(teachers(), student_config(soft_target_strategy=strategy))
    assert set(terms) == {"ce", "mlm", "cos", "cos_lower", "coverage_lower"}


# --- invariants -----------------------------------------------------------------------------------


def loss_and_gradients(student, teachers, batch, config):
    student.zero_grad()
    loss = loss_of(student, teachers, batch, config)
    loss.backward()
    return loss.item(), {
        name: parameter.grad for name, parameter in student.model.named_parameters()
    }


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("soft_targets", ["all", "masked"])
def test_a_teacher_of_weight_zero_is_no_teacher_also_in_gradients(
    student_config, teachers, toy_bert, batch, soft_targets
):
    config = student_config(soft_targets=soft_targets)
    with_it = loss_and_gradients(student_of(toy_bert), teachers(1.0, 0.0), batch, config)
    assert_same(
        with_it, loss_and_gradients(student_of(toy_bert, 0), teachers(1.0)[:1], batch[:1], config)
    )


def test_teachers_that_share_a_vocabulary_are_averaged(student_config, toy_bert, batch):
    config, student = (
        student_config(soft_targets="masked", temperature=2.0),
        student_of(toy_bert, 2),
    )
    models = [MaskedLM(toy_bert(layers=3, seed=seed)) for seed in (7, 11, 12)]
    three = [
        Teacher(f"t{i}", model, weight)
        for i, (model, weight) in enumerate(zip(models, (0.5, 0.3, 0.2), strict=True))
    ]
    rows, inputs = batch[0]["masked"], (batch[0]["input_ids"], batch[0]["attention_mask"])
    logits = student.model(*inputs).logits.flatten(0, 1)[rows]
    mean = sum(
        t.weight * (t.model.model(*inputs).logits.flatten(0, 1)[rows] / 2).softmax(-1)
        for t in three
    )
    terms = terms_of(student, three, batch, config)
    wanted = losses.soft_target_loss(logits, 2 * mean.log(), 2.0)  # softened again: the mean
    assert terms["ce"].item() == pytest.approx(wanted.item(), abs=1e-6)
    assert list(terms) == ["ce", "mlm", "cos", "cos_t1", "cos_t2"]


def test_one_vocabulary_through_the_projection_is_the_plain_average(
    student_config, toy_bert, world, batch
):
    """A second view with the student's own tokenizer gives what sharing the first view gives, where
    all words are one piece."""
    tokenizer = world[0][0]
    words = [piece for piece in tokenizer.get_vocab() if piece.isalpha() and len(piece) > 1]
    text = Dataset.from_dict(
        {"text": [" ".join(words[i : i + 12]) for i in range(0, len(words), 12)]}
    )
    blocks = build_blocks(text, [tokenizer, tokenizer], 24)
    views = MaskingCollator([tokenizer, tokenizer], 0.5, 1)(list(blocks))
    config, student = (
        student_config(soft_targets="masked", hidden_states="first"),
        student_of(toy_bert, 0),
    )
    models = [MaskedLM(toy_bert(layers=3, seed=seed)) for seed in (7, 11)]
    shared = [Teacher("a", models[0], 0.5), Teacher("b", models[1], 0.5)]
    projected = [shared[0], Teacher("b", models[1], 0.5, 1, Projection(tokenizer, tokenizer))]
    assert len(views[1]["soft_rows"]) == len(views[1]["soft"]) == len(views[0]["masked"])
    terms = terms_of(student, projected, views, config)
    assert terms["coverage_b"] == 1 and terms["mass_b"].item() == pytest.approx(1)
    assert_same(*(loss_and_gradients(student, pair, views, config) for pair in (shared, projected)))


@pytest.mark.parametrize("weighting", ["fixed", "confidence"])
def test_teacher_order_does_not_matter_for_equal_weights(
    weighting, student_config, teachers, toy_bert, batch
):
    config = student_config(soft_targets="masked", weighting=weighting, hidden_states="first")
    models = [MaskedLM(toy_bert(layers=3, seed=seed)) for seed in (7, 11, 12)]
    same = [Teacher(f"t{i}", model, 1 / 3) for i, model in enumerate(models)]
    results = [
        terms_of(student_of(toy_bert, 0), list(order), batch, config)
        for order in itertools.permutations(same)
    ]
    assert [result["ce"].item() for result in results] == pytest.approx(
        [results[0]["ce"].item()] * 6, abs=1e-6
    )
    # With other vocabularies the first stays first, as it gives the student its vocabulary.
    cased, lower = teachers(1 / 3, 1 / 3)
    other = Teacher(
        "other", MaskedLM(toy_bert(layers=1, seed=9, vocab_size=LOWER)), 1 / 3, 1, lower.projection
    )
    one, two = (
        terms_of(student_of(toy_bert, 0), [cased, *rest], batch, config)
        for rest in [(lower, other), (other, lower)]
    )
    assert {name: value.item() for name, value in one.items()} == pytest.approx(
        {name: two[name].item() for name in one}, rel=1e-6
    )


@steady
@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 99))
def test_a_mixed_target_is_a_distribution(members, size, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    rows = [torch.arange(6), *((draw(6) < 0.5).nonzero()[:, 0] for _ in range(members - 1))]
    parts = [
        losses.Member(here, (draw(len(here), size) * 5).softmax(-1), draw(len(here)) + 0.01)
        for here in rows
    ]
    mixed = losses.mix_targets(parts)
    for row in range(6):
        here = [
            (weight[i], probs[i])
            for where, probs, weight in parts
            for i in (where == row).nonzero()[:, 0]
        ]
        wanted = sum(weight * probs for weight, probs in here) / sum(weight for weight, _ in here)
        torch.testing.assert_close(mixed[row], wanted)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(6, dtype=torch.float64))


def test_gradient_of_the_uld_loss():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 5, dtype=torch.float64).softmax(-1)
    assert torch.autograd.gradcheck(lambda x: losses.uld_loss(x, target[:, :4], 2.0), logits)


def test_confidence_is_the_inverse_perplexity():
    probs = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    _, negative_entropy = soften(probs.clamp(min=1e-30).log(), 1.0)
    torch.testing.assert_close(negative_entropy.exp(), torch.tensor([1.0, 0.25, 0.5]))


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def run(world, teachers, toy_bert, tmp_path):
    numbers = itertools.count()

    def train(config, folder=None, on_log=lambda record: None, first=None, dropout=0.1):
        tokenizers, blocks = world
        blocks = DatasetDict(
            blocks, train=blocks["train"].select(range(first or len(blocks["train"])))
        )
        folder = folder or tmp_path / f"run-{next(numbers)}"
        folder.mkdir(exist_ok=True)
        student = init_student(toy_bert(layers=3, seed=3, dropout=dropout), 2)
        return loop.train(config, student, tokenizers, blocks, folder, teachers(), on_log)

    return train


def test_two_teachers_are_learned_from_and_the_maps_are_not_saved(run, student_config):
    records = []
    student = run(
        student_config(steps=30, learning_rate=5e-3, soft_targets="masked"), on_log=records.append
    )
    assert not [name for name in student.state_dict() if "maps" in name]
    for term in ("ce", "cos_lower", "loss"):
        values = [record[term] for record in records]
        assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5]), term
    assert all(
        0 < record["coverage_lower"] <= 1 and 0 < record["mass_lower"] <= 1 + 1e-6
        for record in records
    )
    assert {
        "held_out_ce",
        "held_out_cos_lower",
        "held_out_coverage_lower",
        "held_out_mass_lower",
    } <= set(records[-1])


def test_accumulation_does_not_change_a_step_with_two_teachers(run, student_config):
    def weights(batch_size, accumulation):
        config = student_config(
            steps=1, batch_size=batch_size, accumulation=accumulation, soft_targets="masked"
        )
        records = []
        run(config, on_log=records.append, first=8, dropout=0.0)
        return records[0]

    whole, part = weights(8, 1), weights(2, 4)
    for name in ("ce", "mlm", "cos", "cos_lower", "coverage_lower", "mass_lower", "loss"):
        assert whole[name] == pytest.approx(part[name], rel=1e-5), name


def test_an_interrupted_run_with_maps_ends_like_an_uninterrupted_one(run, student_config, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(record):
        if record["step"] == 5:
            raise Interrupted

    config = student_config(steps=7, checkpoint_every=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run(config, whole)
    with pytest.raises(Interrupted):
        run(config, broken, stop)
    resumed = run(config, broken)
    assert all(
        torch.equal(value, resumed.state_dict()[name])
        for name, value in expected.state_dict().items()
    )
    wanted, got = (
        [
            {k: v for k, v in r.items() if k != "tokens_per_second"}
            for r in read_metrics(f / "metrics.jsonl")
        ]
        for f in (whole, broken)
    )
    assert wanted == got


def test_words_are_numbered_alike_in_both_views(batch):
    for view in batch:
        numbers, counts = alignment.word_numbers(view["word_ids"])
        assert len(counts) == len(alignment.word_numbers(batch[0]["word_ids"])[1])
        assert torch.equal(torch.bincount(numbers[numbers >= 0]), counts)
