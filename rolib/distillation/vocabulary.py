"""The losses over the vocabulary in one function: linear map, soft targets, masked words.

For the states h of N positions, their logits z = h W' + b, and their soft targets q:

    loss = factor_ce * sum of T^2 KL(q || softmax(z / T)) + factor_mlm * sum of CE(label, z)

The plain way holds the (N, V) logits of student and teachers several times and walks them about
fifty times. Here they exist for a chunk of rows at a time. Their gradient is made in the forward
pass, as in Liger's fused linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989):

    d loss / d z = factor_ce * T * (softmax(z / T) - q) + factor_mlm * (softmax(z) - one-hot)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 2**27  # bytes of a chunk of logits: matrix products want many rows, memory wants few
BLOCK = 2**18  # logits in a block of a chunk on a CPU: it stays in the cache while it is reread

Target = tuple[Tensor, Tensor]  # soft targets q (m, V), and sum of q log q of each row (m,)
SoftTargets = Callable[[slice], Target]  # rows -> their soft targets


def chunk_rows(weight: Tensor) -> int:
    """The rows in a chunk of logits, from a decoder's weight (V, H)."""
    return max(1, CHUNK // (len(weight) * weight.element_size()))


def vocabulary_loss(
    states: Tensor,
    decoder: nn.Linear,
    labels: Tensor,
    factors: Tensor,
    temperature: float = 1.0,
    soft_targets: SoftTargets | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss (scalar), and without gradient its two sums (2,): T^2 KL and CE, in nats.

    states: (N, H); decoder: H -> V; labels: (M,), M <= N, the pieces at the first M rows. factors:
    (2,), of the two sums in the loss. Under autocast the products are in its precision, the sums in
    float32.
    """
    terms = labels, factors, temperature, soft_targets, torch.is_grad_enabled()
    return _Fused.apply(states, decoder.weight, decoder.bias, terms)


def soften(logits: Tensor, temperature: float) -> Target:
    """A teacher's softmax(logits / T) (m, V), and sum of q log q of each row (m,), in nats."""
    scaled = logits / temperature
    probs = scaled.softmax(-1)
    return probs, torch.linalg.vecdot(probs, scaled) - log_normaliser(scaled, probs)


def log_normaliser(scaled: Tensor, probs: Tensor) -> Tensor:
    """log sum exp of each row (m,) of `scaled` (m, V), read off its softmax `probs`."""
    return scaled.amax(-1) - probs.amax(-1).log()


def differentiate(
    logits: Tensor, labels: Tensor, target: Target | None, factors: Tensor, temperature: float
) -> Tensor:
    """The two sums (2,) over rows of logits (m, V), which are overwritten by their gradient."""
    exact, sums = logits.to(factors.dtype), torch.zeros_like(factors)
    known, places = exact[: len(labels)], labels[:, None]
    surprise = known.softmax(-1)
    sums[1] = (log_normaliser(known, surprise) - known.gather(1, places)[:, 0]).sum()
    surprise.scatter_add_(1, places, torch.full_like(surprise[:, :1], -1.0)).mul_(factors[1])
    if target is None:
        logits[: len(labels)] = surprise
        logits[len(labels) :] = 0.0  # rows without a label
        return sums
    soft, negative_entropy = target
    scaled = exact / temperature
    gradient = torch.softmax(scaled, -1, out=logits if logits.dtype == exact.dtype else exact)
    cross = torch.linalg.vecdot(soft, scaled) - log_normaliser(scaled, gradient)
    sums[0] = (negative_entropy - cross).sum() * temperature**2
    gradient.sub_(soft).mul_(factors[0] * temperature)
    gradient[: len(labels)] += surprise
    logits.copy_(gradient)  # itself, or in the precision of the products
    return sums


class Logits:
    """The float32 logits of some positions, handed out in blocks of rows, computed in chunks."""

    def __init__(self, head: Tensor, decoder: nn.Linear):
        """head: (N, H), the states that the decoder (H -> V) reads."""
        self.head, self.decoder, self.first = head, decoder, 0
        self.chunk = head.new_empty(0, len(decoder.weight))  # from row `first` on

    def __call__(self, rows: slice) -> Tensor:
        """The logits (m, V) of rows. Blocks come in order."""
        if rows.start < self.first or rows.stop > self.first + len(self.chunk):
            last = max(rows.stop, rows.start + chunk_rows(self.decoder.weight))
            self.first, self.chunk = rows.start, self.decoder(self.head[rows.start : last])
        return self.chunk[rows.start - self.first : rows.stop - self.first].float()


class _Fused(torch.autograd.Function):
    """`vocabulary_loss`, and its gradients of states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, terms: tuple
    ) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the sums (2,) of its terms; the gradients are made with them."""
        labels, factors, temperature, soft_targets, wants_gradients = terms
        device, size = weight.device.type, len(weight)
        mixed = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if mixed else weight.dtype
        inputs, matrix, offset = states.to(kind), weight.to(kind), bias.to(kind)
        gradients = [torch.zeros_like(each) for each in (inputs, weight, bias)]
        buffer = inputs.new_empty(min(len(inputs), chunk_rows(matrix)), size)
        rows_at_once = max(1, BLOCK // size) if device == "cpu" else len(buffer)
        sums = torch.zeros_like(factors)
        for start in range(0, len(inputs), max(1, len(buffer))):
            chunk = inputs[start : start + len(buffer)]
            logits = torch.addmm(offset, chunk, matrix.T, out=buffer[: len(chunk)])
            for block in logits.split(rows_at_once):
                rows = slice(start, start + len(block))
                target = soft_targets(rows) if soft_targets else None
                sums += differentiate(block, labels[rows], target, factors, temperature)
                start += len(block)
            if wants_gradients:
                torch.mm(logits, matrix, out=gradients[0][start - len(chunk) : start])
                if kind == weight.dtype:
                    gradients[1].addmm_(logits.T, chunk)
                else:
                    gradients[1].add_(logits.T @ chunk)
                gradients[2].add_(logits.sum(0))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(sums)
        return (factors * sums).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple:
        return *(gradient * outer for gradient in ctx.saved_tensors), None
