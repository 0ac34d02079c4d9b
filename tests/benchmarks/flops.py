"""The floating-point operations that a training step needs, counted from its shapes.

Only matrix products count, two operations for each multiply-add. For lengths l_1, l_2, ... of the
texts, padding left out, width d, vocabulary V and N rows with logits:

    encoder layer   24 d^2 sum(l) + 4 d sum(l^2)   4 maps of d x d, 2 of d x 4d; scores and sums
    head            N (2 d^2 + 2 d V)
    training        3 times the forward pass: the backward pass has two products for each one

A teacher needs a forward pass only, and nothing if its answers are read from a cache. A second
teacher adds its forward pass, with logits at the places that both vocabularies share, and the
trained map onto its states: 3 * 2 d d' for each piece. What an implementation computes besides
(logits of other rows, padding, products computed twice) does not count.
"""

from benchmarks.shapes import Shape, World


def encoder(layers: int, width: int, lengths: list[int]) -> float:
    """Operations of the forward pass of an encoder."""
    squares = sum(length**2 for length in lengths)
    return layers * (24.0 * width**2 * sum(lengths) + 4.0 * width * squares)


def head(rows: int, width: int, vocab: int) -> float:
    """Operations of the forward pass of an MLM head at `rows` places."""
    return rows * (2.0 * width**2 + 2.0 * width * vocab)


def one_teacher(shape: Shape, lengths: list[int], rows: int, cached: bool = False) -> float:
    """Operations of a step with one teacher, logits at `rows` places."""
    d = shape.hidden
    student = encoder(shape.student_layers, d, lengths) + head(rows, d, shape.vocab)
    teacher = encoder(shape.teacher_layers, d, lengths) + head(rows, d, shape.vocab)
    return 3 * student + (0 if cached else teacher)


def second_forward(shape: Shape, lengths: list[int], rows: int, vocab: int) -> float:
    """Operations of the second teacher's forward pass."""
    return encoder(shape.teacher_layers, shape.hidden, lengths) + head(rows, shape.hidden, vocab)


def count(
    world: World,
    indices: list[int],
    soft_targets: str = "all",
    teachers: int = 1,
    cached: bool = False,
) -> float:
    """Operations of a step over these blocks; teachers=0 is the second one's forward pass alone."""
    first, second = world.read(indices, 2, soft_targets)
    lengths, other = (view["attention_mask"].sum(1).tolist() for view in (first, second))
    shape, vocab = world.shape, len(world.tokenizers[1])
    forward = second_forward(shape, other, len(second["soft"]), vocab)
    if not teachers:
        return forward
    step = one_teacher(shape, lengths, len(first["soft"]), cached)
    return step if teachers == 1 else step + forward + 6 * shape.hidden**2 * sum(lengths)
