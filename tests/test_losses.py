"""Losses against SciPy and plain loops in float64, and their properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, rel_entr, softmax

from rolib.distillation.losses import IGNORE, cosine_loss, mlm_loss, soft_target_loss

steady = settings(deadline=None, derandomize=True, max_examples=60)
temperatures = st.floats(0.5, 20)


def logits(low=-20, high=20):
    """Pairs of float64 arrays of one shape (N, V)."""
    shapes = st.tuples(st.integers(1, 5), st.integers(2, 9))
    values = st.floats(low, high, allow_subnormal=False)
    return shapes.flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.float64, shape, elements=values)] * 2)
    )


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float64) for array in arrays]


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- against independent computations -------------------------------------------------------------


@steady
@given(logits(), temperatures)
def test_soft_target_loss_is_scipys_relative_entropy_times_squared_temperature(pair, temperature):
    student, teacher = pair
    rows = [
        rel_entr(softmax(t / temperature), softmax(s / temperature)).sum() * temperature**2
        for s, t in zip(student, teacher, strict=True)
    ]
    assert soft_target_loss(*tensors(*pair), temperature).item() == pytest.approx(
        np.mean(rows), rel=1e-9, abs=1e-9
    )


@steady
@given(logits(), st.data())
def test_mlm_loss_is_the_mean_log_loss_of_the_labelled_rows(pair, data):
    scores = pair[0]
    labels = data.draw(
        st.lists(
            st.sampled_from([IGNORE, *range(scores.shape[1])]),
            min_size=len(scores),
            max_size=len(scores),
        )
    )
    rows = [
        -log_softmax(row)[label] for row, label in zip(scores, labels, strict=True) if label != -100
    ]
    expected = sum(rows) / len(rows) if rows else 0.0
    found = mlm_loss(*tensors(scores), torch.tensor(labels)).item()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@steady
@given(logits())
def test_cosine_loss_is_scipys_cosine_distance(pair):
    student, teacher = (
        array + np.where(np.abs(array).sum(1, keepdims=True) < 1e-2, 1.0, 0.0) for array in pair
    )
    rows = [cosine(s, t) for s, t in zip(student, teacher, strict=True)]
    assert cosine_loss(*tensors(student, teacher)).item() == pytest.approx(np.mean(rows), abs=1e-9)


def test_values_by_hand():
    student, teacher = tensors([[0.0, math.log(3)]], [[0.0, 0.0]])  # q = (1/4, 3/4), p = (1/2, 1/2)
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert soft_target_loss(student, teacher, 1.0).item() == pytest.approx(by_hand, abs=1e-12)
    assert mlm_loss(student, torch.tensor([0])).item() == pytest.approx(math.log(4), abs=1e-12)
    assert cosine_loss(
        *tensors([[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [3.0, 3.0]])
    ).item() == pytest.approx(0.5)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_gradient_of_the_soft_target_loss(temperature):
    student, teacher = seeded(3, 5).requires_grad_(), seeded(3, 5, seed=1)
    assert torch.autograd.gradcheck(lambda s: soft_target_loss(s, teacher, temperature), student)


def test_gradient_of_the_mlm_loss():
    assert torch.autograd.gradcheck(
        lambda s: mlm_loss(s, torch.tensor([1, IGNORE, 4])), seeded(3, 5).requires_grad_()
    )


def test_gradient_of_the_cosine_loss():
    teacher = seeded(3, 5, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: cosine_loss(s, teacher), seeded(3, 5).requires_grad_()
    )


def soft_gradient(temperature):
    student, teacher = seeded(4, 6).requires_grad_(), seeded(4, 6, seed=1)
    soft_target_loss(student, teacher, temperature).backward()
    return student, teacher, student.grad


def test_gradient_of_soft_targets_has_the_closed_form():
    for temperature in (1.0, 3.0):
        student, teacher, gradient = soft_gradient(temperature)
        q, p = (softmax(x.detach().numpy() / temperature, axis=1) for x in (student, teacher))
        np.testing.assert_allclose(gradient.numpy(), temperature * (q - p) / 4, atol=1e-12)


def test_gradient_at_a_high_temperature_has_hintons_limit():
    """Hinton et al. 2015, equation 4: with the factor T^2 the gradient tends to the difference of
    centred logits / V."""
    student, teacher, gradient = soft_gradient(1e4)
    s, t = (x.detach().numpy() for x in (student, teacher))
    expected = (s - s.mean(1, keepdims=True) - t + t.mean(1, keepdims=True)) / 6 / 4
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-5)
    sizes = [soft_gradient(temperature)[2].norm().item() for temperature in (1, 2, 8, 32, 128)]
    assert max(sizes) < 5 * min(sizes)


# --- properties -----------------------------------------------------------------------------------


@steady
@given(logits(), temperatures)
def test_soft_target_loss_is_at_least_pinskers_bound(pair, temperature):
    """KL >= L1^2 / 2 of the two distributions: never negative, and 0 only if they are equal."""
    student, teacher = pair
    q, p = softmax(student / temperature, axis=1), softmax(teacher / temperature, axis=1)
    bound = (np.abs(p - q).sum(1) ** 2 / 2).mean() * temperature**2
    assert soft_target_loss(*tensors(*pair), temperature).item() >= bound - 1e-9


@steady
@given(logits(), temperatures, st.floats(-50, 50))
def test_a_shift_of_a_rows_logits_changes_nothing(pair, temperature, shift):
    student, teacher = tensors(*pair)
    assert soft_target_loss(student, student + shift, temperature).item() == pytest.approx(
        0, abs=1e-9
    )
    before, after = (soft_target_loss(student + c, teacher, temperature).item() for c in (0, shift))
    assert after == pytest.approx(before, rel=1e-9, abs=1e-9)


@steady
@given(logits(0.1, 9), st.floats(0.01, 100), st.floats(0.01, 100))
def test_cosine_loss_ignores_positive_scale_and_turns_with_the_sign(pair, first, second):
    student, teacher = tensors(*pair)
    loss = cosine_loss(student, teacher).item()
    assert 0 <= loss + 1e-9 and loss <= 2
    assert cosine_loss(first * student, second * teacher).item() == pytest.approx(loss, abs=1e-9)
    assert cosine_loss(-student, teacher).item() == pytest.approx(2 - loss, abs=1e-9)
    assert cosine_loss(student, student).item() == pytest.approx(0, abs=1e-9)


def test_rows_count_equally():
    student, teacher = seeded(6, 5), seeded(6, 5, seed=1)
    labels = torch.tensor([0, IGNORE, 2, 3, IGNORE, 4])
    for loss, args in ((soft_target_loss, (teacher, 2.0)), (cosine_loss, (teacher,))):
        rows = [loss(student[i : i + 1], args[0][i : i + 1], *args[1:]) for i in range(6)]
        assert loss(student, *args).item() == pytest.approx(
            torch.stack(rows).mean().item(), abs=1e-12
        )
    rows = [mlm_loss(student[i : i + 1], labels[i : i + 1]) for i in (0, 2, 3, 5)]
    assert mlm_loss(student, labels).item() == pytest.approx(
        torch.stack(rows).mean().item(), abs=1e-12
    )


# --- nothing to learn, bad input ------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: mlm_loss(s, torch.full((len(s),), IGNORE)),
        lambda s: mlm_loss(s[:0], torch.empty(0, dtype=torch.long)),
        lambda s: soft_target_loss(s[:0], s[:0].detach(), 2.0),
        lambda s: cosine_loss(s[:0], s[:0].detach()),
    ],
    ids=["nothing labelled", "mlm, no rows", "soft targets, no rows", "cosine, no rows"],
)
def test_nothing_to_learn_is_zero_and_differentiable(loss):
    student = seeded(3, 5).requires_grad_()
    value = loss(student)
    value.backward()
    assert value.shape == () and value.item() == 0
    assert torch.equal(student.grad, torch.zeros(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature .* must be positive"):
        soft_target_loss(seeded(2, 3), seeded(2, 3), temperature)


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\).*one vocabulary"):
        soft_target_loss(seeded(2, 3), seeded(2, 4), 1.0)
    with pytest.raises(ValueError, match=r"\(1, 3\).*\(2, 3\)"):
        soft_target_loss(seeded(1, 3), seeded(2, 3), 1.0)  # would broadcast
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\).*as wide as its teacher"):
        cosine_loss(seeded(2, 3), seeded(2, 4))
