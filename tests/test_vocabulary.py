"""The fused loss over the vocabulary equals the plain formula, its gradients too, in any chunks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rolib.distillation import losses, vocabulary
from rolib.distillation.vocabulary import Logits, soften, vocabulary_loss

ROWS, WIDTH, VOCAB, LABELLED = 37, 16, 101, 20


@pytest.fixture(params=[(ROWS, ROWS), (9, 4), (1, 1)], ids=["one chunk", "chunks", "single rows"])
def sizes(request, monkeypatch):
    """Rows in a chunk and in a block."""
    chunk, block = request.param
    monkeypatch.setattr(vocabulary, "CHUNK", chunk * VOCAB * 4)
    monkeypatch.setattr(vocabulary, "BLOCK", block * VOCAB)


def make(dtype=torch.float32, rows=ROWS):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    decoder, teacher = nn.Linear(WIDTH, VOCAB).to(dtype), nn.Linear(WIDTH, VOCAB).to(dtype)
    for linear in (decoder, teacher):
        linear.weight.data, linear.bias.data = draw(VOCAB, WIDTH), draw(VOCAB)
    labels = torch.randint(VOCAB, (min(LABELLED, rows),), generator=generator)
    return draw(rows, WIDTH).requires_grad_(), decoder, teacher, draw(rows, WIDTH), labels


def plain(head, decoder, target_logits, labels, factors, temperature):
    logits = decoder(head)
    soft = losses.soft_target_loss(logits, target_logits, temperature, "sum")
    hard = losses.mlm_loss(logits[: len(labels)], labels, "sum")
    return factors[0] * soft + factors[1] * hard, torch.stack([soft, hard])


def gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.7])
def test_values_and_gradients_are_those_of_the_plain_formula(sizes, temperature):
    head, decoder, teacher, theirs, labels = make(torch.float64)
    factors = torch.tensor([0.3, 0.7], dtype=torch.float64)
    leaves = head, decoder.weight, decoder.bias
    rows = []

    def targets(part):
        rows.append(part)
        return soften(teacher(theirs)[part].detach(), temperature)

    loss, sums = vocabulary_loss(head, decoder, labels, factors, temperature, targets)
    found = gradients(2 * loss, *leaves)
    wanted, parts = plain(head, decoder, teacher(theirs).detach(), labels, factors, temperature)
    torch.testing.assert_close(loss, wanted, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(sums, parts, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found, gradients(2 * wanted, *leaves), atol=1e-10, rtol=1e-10)
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(ROWS))
    assert not sums.requires_grad


def test_float32_is_equal_to_1e_6_a_row(sizes):
    head, decoder, teacher, theirs, labels = make()
    factors = torch.tensor([1.0, 1.0])
    logits = Logits(theirs, teacher)
    with torch.no_grad():
        _, sums = vocabulary_loss(
            head, decoder, labels, factors, 2.0, lambda rows: soften(logits(rows), 2.0)
        )
    _, wanted = plain(head, decoder, teacher(theirs), labels, factors, 2.0)
    counts = torch.tensor([ROWS, len(labels)])
    torch.testing.assert_close(sums / counts, (wanted / counts).detach(), atol=1e-6, rtol=1e-6)


def test_gradcheck(sizes):
    head, decoder, teacher, theirs, labels = make(torch.float64, rows=5)
    target = soften(teacher(theirs).detach(), 2.0)
    factors = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def loss(head, weight, bias):
        holder = SimpleNamespace(weight=weight, bias=bias)  # nothing else of a decoder is read
        return vocabulary_loss(
            head, holder, labels[:2], factors, 2.0, lambda rows: tuple(x[rows] for x in target)
        )[0]

    assert torch.autograd.gradcheck(loss, (head, decoder.weight, decoder.bias))


@pytest.mark.parametrize("rows", [LABELLED, ROWS])  # all have a label, or only the first ones
def test_without_soft_targets_it_is_the_cross_entropy(sizes, rows):
    head, decoder, _, _, labels = make()
    head = head[:rows].detach().requires_grad_()
    loss, sums = vocabulary_loss(head, decoder, labels, torch.tensor([5.0, 2.0]))
    wanted = losses.mlm_loss(decoder(head)[:LABELLED], labels, "sum")
    assert sums[0] == 0 and loss.item() == pytest.approx(2 * wanted.item(), rel=1e-6)
    leaves = head, decoder.weight
    torch.testing.assert_close(
        gradients(loss, *leaves), gradients(2 * wanted, *leaves), atol=1e-5, rtol=1e-5
    )


def test_without_gradients_one_product_is_made(monkeypatch):
    """The held-out loss needs the logits alone."""
    head, decoder, _, _, labels = make()
    products = []
    whole = torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda *some, **more: products.append(1) or whole(*some, **more)
    )
    with torch.no_grad():
        vocabulary_loss(head, decoder, labels, torch.ones(2))
    assert not products
    vocabulary_loss(head, decoder, labels, torch.ones(2))
    assert products


def test_no_rows_are_no_loss():
    head, decoder, *_ = make()
    none = head[:0].detach().requires_grad_()
    loss, sums = vocabulary_loss(none, decoder, torch.empty(0, dtype=torch.long), torch.ones(2))
    assert loss == 0 and sums.tolist() == [0, 0]
    assert all((gradient == 0).all() for gradient in gradients(loss, none, decoder.weight))


def test_bf16_is_near_and_sums_in_float32(sizes):
    head, decoder, teacher, theirs, labels = make()
    factors, leaves = torch.tensor([0.3, 0.7]), (head, decoder.weight, decoder.bias)
    with torch.autocast("cpu", torch.bfloat16):
        logits = Logits(theirs, teacher)
        loss, sums = vocabulary_loss(
            head, decoder, labels, factors, 2.0, lambda rows: soften(logits(rows), 2.0)
        )
    wanted, parts = plain(head, decoder, teacher(theirs).detach(), labels, factors, 2.0)
    assert sums.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(sums, parts, rtol=0.03, atol=0)
    for one, other in zip(gradients(loss, *leaves), gradients(wanted, *leaves), strict=True):
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def test_memory_grows_with_the_chunk_and_not_with_the_rows(monkeypatch):
    """No tensor with a row for each position and a column for each piece is ever made."""
    monkeypatch.setattr(vocabulary, "CHUNK", 9 * VOCAB * 4)
    head, decoder, teacher, theirs, labels = make()
    largest = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCAB,):
                largest.append(len(result) if result.ndim == 2 else 1)
            return result

    logits = Logits(theirs, teacher)
    with Spy():
        loss, _ = vocabulary_loss(
            head, decoder, labels, torch.ones(2), 2.0, lambda rows: soften(logits(rows), 2.0)
        )
        loss.backward()
    assert largest and max(size for size in largest if size != WIDTH) <= 9


def test_logits_are_the_decoders_in_any_blocks(monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK", 7 * VOCAB * 4)
    _, _, teacher, theirs, _ = make()
    for size in (1, 3, 7, 10, ROWS):
        logits, wanted = Logits(theirs, teacher), teacher(theirs)
        blocks = [slice(i, min(i + size, ROWS)) for i in range(0, ROWS, size)]
        found = torch.cat([logits(block) for block in blocks])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
