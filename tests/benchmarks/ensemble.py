"""What a second teacher costs: the two-teacher step against the one-teacher step plus the second
teacher's forward pass.

    OMP_NUM_THREADS=1 python tests/benchmarks/ensemble.py [repetitions]

Models of the mini profile's shape with random weights, vocabularies learned from the sample. The
three things are timed in turn.
Prints the median milliseconds of each and the median ratio; the goal is a ratio of at most 1.15 for
`lift`.
"""

import statistics
import sys
import time

import torch
from datasets import Dataset

from rolib.data.corpus import build_blocks, read_documents
from rolib.data.tasks import SAMPLE
from rolib.distillation import models
from rolib.distillation.alignment import Projection
from rolib.distillation.masking import MaskingCollator, add_positions
from rolib.distillation.objective import Objective, Teacher
from rolib.profiles import load_profile


def timed(function) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def step(student, teachers, batch, config) -> None:
    """Forward and backward pass of one micro-batch."""
    objective = Objective(config, teachers)
    alphas = torch.tensor([term.alpha for term in objective.terms])
    counts = torch.tensor(objective.counts(batch)).clamp(min=1)
    (alphas * objective.sums(student, batch) / counts).sum().backward()
    student.zero_grad(set_to_none=True)


def main(repetitions: int) -> None:
    """Print one line a strategy."""
    study = load_profile("mini")
    config = study["students"]["distil-multi"]
    texts = [
        text for file in sorted((SAMPLE / "corpus").glob("*.txt")) for text in read_documents(file)
    ]
    shapes = [study["teachers"][name] for name in config.teachers]
    tokenizers = [
        models.train_tokenizer(texts, shape.vocab_size, shape.lowercase, models.MAX_POSITIONS)
        for shape in shapes
    ]
    # The sample is too small for the full vocabularies; the models get them all the same, since the
    # logits are the work.
    torch.manual_seed(0)
    berts = [
        models.build_teacher(shape, tokenizer)
        for shape, tokenizer in zip(shapes, tokenizers, strict=True)
    ]
    for bert, shape in zip(berts, shapes, strict=True):
        bert.resize_token_embeddings(shape.vocab_size, mean_resizing=False)
    blocks = build_blocks(
        Dataset.from_dict({"text": [" ".join(texts)]}), tokenizers, config.block_length
    )
    both = MaskingCollator(tokenizers, config.mask_share, seed=1)(
        [blocks[i] for i in range(config.batch_size)]
    )
    projection = Projection(*tokenizers)
    for name, shape in zip(("join", "equal"), (shapes[0], shapes[1]), strict=True):
        padding = shape.vocab_size - len(getattr(projection, name))
        end = {"join": shapes[1], "equal": shapes[0]}[name].vocab_size
        index = torch.where(
            getattr(projection, name) < len(tokenizers[name == "join"]),
            getattr(projection, name),
            end,
        )
        setattr(projection, name, torch.nn.functional.pad(index, (0, padding), value=end))
    projection.own_size, projection.teacher_size = (shape.vocab_size for shape in shapes)
    add_positions(both, config.soft_targets)
    first = Teacher("first", models.MaskedLM(berts[0]), 0.5)
    second = Teacher("second", models.MaskedLM(berts[1]), 0.5, 1, projection)
    for teacher in (first, second):
        teacher.model.eval().requires_grad_(False)
    small = models.init_student(berts[0], config.num_layers)
    with_map, without = (
        models.MaskedLM(small, [berts[1].config.hidden_size]),
        models.MaskedLM(small),
    )
    print(
        f"{torch.get_num_threads()} threads, {config.batch_size} blocks of {config.block_length}, "
        f"median of {repetitions}"
    )
    for strategy in ("lift", "intersection", "uld", "none"):
        changed = config.model_copy(update={"soft_target_strategy": strategy})
        jobs = {
            "two teachers": lambda changed=changed: step(with_map, [first, second], both, changed),
            "one teacher": lambda changed=changed: step(without, [first], both[:1], changed),
            "second's forward": lambda changed=changed: Objective(
                changed, [first, second]
            ).teacher_outputs(second, both),
        }
        times = {name: [] for name in jobs}
        for _ in range(repetitions + 3):
            for name, job in jobs.items():
                times[name].append(timed(job))
        medians = {name: statistics.median(values[3:]) for name, values in times.items()}
        # A ratio for each turn, since a machine's speed drifts.
        ratio = statistics.median(
            two / (one + more) for two, one, more in list(zip(*times.values(), strict=True))[3:]
        )
        print(
            f"{strategy:13s} "
            + ", ".join(f"{name} {value:.0f} ms" for name, value in medians.items())
            + f": ratio {ratio:.3f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
