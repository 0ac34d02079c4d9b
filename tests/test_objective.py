"""The objective gives the losses and gradients of the loss step that it replaced.

loss-reference.json was computed by that older code (commit aedf53a): for each case the mean of each
term over a step of two micro-batches, the loss, and of each parameter's gradient the norm and the
dot product with cos(0), cos(1), ...
"""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from rolib.data.corpus import build_blocks
from rolib.distillation.alignment import Projection
from rolib.distillation.masking import MaskingCollator
from rolib.distillation.models import MaskedLM, init_student
from rolib.distillation.objective import Objective, Teacher

REFERENCE = json.loads(Path(__file__).with_name("loss-reference.json").read_text("utf-8"))
CASES = {  # the number of teachers, and what differs from conftest's recipe
    "no teacher": (0, {}),
    "one teacher, all tokens": (1, {}),
    "one teacher, masked": (1, {"soft_targets": "masked"}),
    "one teacher, word states": (1, {"hidden_states": "words"}),
    "one teacher, temperature 1": (1, {"temperature": 1.0}),
    "no soft targets": (1, {"alpha_ce": 0.0}),
    "no masked words": (1, {"alpha_mlm": 0.0}),
    "no states": (1, {"alpha_cos": 0.0}),
    "lift, all tokens": (2, {}),
    "lift, masked": (2, {"soft_targets": "masked"}),
    "lift, confidence": (2, {"weighting": "confidence"}),
    "lift, first states": (2, {"hidden_states": "first"}),
    "lift, word states": (2, {"hidden_states": "words"}),
    "lift, no soft targets": (2, {"alpha_ce": 0.0}),
    "intersection": (2, {"soft_target_strategy": "intersection"}),
    "uld": (2, {"soft_target_strategy": "uld"}),
    "uld, masked": (2, {"soft_target_strategy": "uld", "soft_targets": "masked"}),
    "none": (2, {"soft_target_strategy": "none"}),
    "three teachers": (3, {"weighting": "confidence"}),
}


@pytest.fixture(scope="module")
def world(_toy_tokenizer, lower_tokenizer, toy_documents, toy_bert, student_config, teacher_config):
    """Make the student, the objective and the two micro-batches of a case."""

    def make(case):
        number, changes = CASES[case]
        tokenizers = [_toy_tokenizer, lower_tokenizer][: 1 if number < 2 else 2]
        projection = Projection(_toy_tokenizer, lower_tokenizer)
        lower = MaskedLM(toy_bert(layers=2, seed=8, vocab_size=150))
        teachers = [
            Teacher("cased", MaskedLM(toy_bert(layers=3, seed=7)), 0.5),
            Teacher("lower", lower, 0.3, 1, projection),
            Teacher("twin", MaskedLM(toy_bert(layers=2, seed=9)), 0.2),
        ][:number]
        for teacher in teachers:
            teacher.place(torch.device("cpu"), "float32")
        config = student_config(**changes) if number else teacher_config()
        objective = Objective(config, teachers)
        student = init_student(toy_bert(layers=3, seed=7), 2).eval()
        student = MaskedLM(student, [32] * len(objective.mapped))
        texts = Dataset.from_dict({"text": toy_documents[:20]})
        blocks = build_blocks(texts, tokenizers, 24)
        collator = MaskingCollator(tokenizers, 0.4, 1, objective.soft_targets)
        parts = (range(6), range(6, 9))
        return student, objective, [collator([blocks[i] for i in part], 2) for part in parts]

    return make


def test_every_stored_case_is_tested():
    assert set(CASES) == set(REFERENCE)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_older_step(case, world):
    student, objective, micro_batches = world(case)
    alphas = torch.tensor([term.alpha for term in objective.terms])
    counts = torch.tensor([objective.counts(batch) for batch in micro_batches]).sum(0).clamp(min=1)
    means = torch.zeros_like(alphas)
    for batch in micro_batches:
        loss, sums = objective.loss(student, batch, alphas / counts)
        loss.backward()
        means += sums / counts

    expected = REFERENCE[case]
    found = dict(zip([term.name for term in objective.terms], means.tolist(), strict=True))
    # The older step logged a mass of 0 where nothing is projected, and no masked words where they
    # had no weight.
    means_of = {name: one for name, one in expected["means"].items() if one or "mass" not in name}
    logged = {name: found[name] for name in means_of}
    assert logged == pytest.approx(means_of, abs=1e-6, rel=1e-6)
    assert found.keys() == means_of.keys() | {"mlm"} and found["mlm"] > 1
    assert (alphas * means).sum().item() == pytest.approx(expected["loss"], abs=1e-6, rel=1e-6)
    gradients = {}
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            values = parameter.grad.double().flatten()
            waves = torch.cos(torch.arange(len(values), dtype=torch.float64))
            gradients[name] = [values.norm().item(), (values @ waves).item()]
    assert set(gradients) == set(expected["gradients"])
    for name, values in gradients.items():
        assert values == pytest.approx(expected["gradients"][name], abs=1e-6, rel=1e-5), name


def test_cross_entropy_sees_labelled_rows_only(world, monkeypatch):
    from rolib.distillation import objective as module

    student, objective, [batch, _] = world("one teacher, all tokens")
    rows, whole = [], module.vocabulary_loss

    def spy(head, decoder, labels, *rest):
        rows.append((len(head), len(labels)))
        return whole(head, decoder, labels, *rest)

    monkeypatch.setattr(module, "vocabulary_loss", spy)
    objective.loss(student, batch, torch.ones(len(objective.terms)))
    view = batch[0]
    assert rows == [(len(view["tokens"]), len(view["masked"]))] and 2 * rows[0][1] < rows[0][0]


def test_terms_say_what_they_are_a_mean_over(world):
    _, objective, micro_batches = world("lift, masked")
    terms = {term.name: (term.alpha, term.places, term.view) for term in objective.terms}
    assert terms == {
        "ce": (5.0, "soft", 0),
        "mlm": (2.0, "masked", 0),
        "cos": (1.0 * 0.5 / 0.8, "compared", 0),
        "cos_lower": (1.0 * 0.3 / 0.8, "words", 0),
        "coverage_lower": (0.0, "masked_words", 0),
        "mass_lower": (0.0, "soft", 1),
    }
    batch = micro_batches[0]
    lengths = [len(batch[term.view][term.places]) for term in objective.terms]
    assert objective.counts(batch) == lengths
