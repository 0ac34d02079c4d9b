"""The models and the blocks of a benchmark: random weights, random words, the real data path.

A `World` holds what all peers of a comparison share: two teachers of one shape (cased, and
lower-cased with three quarters of the vocabulary), the student's start, and blocks with a view for
each tokenizer. There is no dropout, so losses can be compared. The text is made of random
syllables, its words drawn with Zipf's frequencies.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import BertForMaskedLM, BertTokenizer, DistilBertForMaskedLM

from rolib.config import StudentConfig, TeacherConfig
from rolib.data.corpus import build_blocks
from rolib.distillation.masking import MaskingCollator, View
from rolib.distillation.models import build_teacher, init_student

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYLLABLES = [a + b for a in "bcdfghjlmnprstvzșț" for b in "aeiouăâî"]


class Shape(NamedTuple):
    """The sizes of a comparison. The second teacher has 3/4 of the vocabulary."""

    teacher_layers: int
    student_layers: int
    hidden: int
    heads: int
    vocab: int
    batch: int  # blocks in a step
    length: int  # pieces in a block
    mask_share: float = 0.15  # DistilBERT's


SHAPES = {
    "12x768/50k": Shape(12, 6, 768, 12, 50_000, 8, 128),
    "8x256/8k": Shape(8, 4, 256, 4, 8_000, 16, 128),
    "4x128/8k": Shape(4, 2, 128, 4, 8_000, 16, 128),
    "tiny": Shape(4, 2, 32, 4, 1_200, 4, 32),  # for tests
}


class Job:
    """What the harness times. Every peer is one."""

    def prepare(self, indices: list[int]) -> None:
        """What is not timed."""

    def step(self, indices: list[int]) -> float:
        """One step over these blocks; returns the loss before the update."""
        raise NotImplementedError


@dataclass
class World:
    """What the peers of one comparison share."""

    shape: Shape
    config: StudentConfig  # with the recipe: weights 5 / 2 / 1, temperature 2
    tokenizers: list[BertTokenizer]
    teachers: list[BertForMaskedLM]
    start: DistilBertForMaskedLM  # the student's start; each peer trains a copy
    blocks: Dataset

    def read(self, indices: list[int], views: int = 1, soft_targets: str = "all") -> list[View]:
        """The masked batch of these blocks, always with the masks of epoch 0."""
        share, seed = self.config.mask_share, self.config.seed
        collator = MaskingCollator(self.tokenizers[:views], share, seed, soft_targets)
        return collator([self.blocks[i] for i in indices])


def make_world(shape: Shape, number: int, seed: int = 0) -> World:
    """A world with at least `number` blocks, nearly all full."""
    disable_progress_bars()
    rng = np.random.default_rng(seed)
    words = lexicon(2 * shape.vocab, rng)
    positions = max(128, shape.length)
    sizes = [shape.vocab, 3 * shape.vocab // 4]
    tokenizers = [
        make_tokenizer(words, size, lowercase, positions, rng)
        for size, lowercase in zip(sizes, (False, True), strict=True)
    ]
    torch.manual_seed(seed)
    teachers = [make_teacher(shape, tokenizer) for tokenizer in tokenizers]
    texts = Dataset.from_dict({"text": [random_text(words, number * shape.length, rng)]})
    start = init_student(teachers[0], shape.student_layers)
    start.base_model.embeddings.position_embeddings.weight.requires_grad_(False)  # the recipe
    blocks = build_blocks(texts, tokenizers, shape.length)
    return World(shape, make_config(shape), tokenizers, teachers, start, blocks)


def lexicon(size: int, rng: np.random.Generator) -> list[str]:
    """Different words of two to five random syllables, the shorter ones first on the whole."""
    words: dict[str, None] = {}
    while len(words) < size:
        syllables = rng.choice(SYLLABLES, min(5, 2 + int(rng.integers(2) + 3 * len(words) / size)))
        words["".join(syllables)] = None
    return list(words)


def random_text(words: list[str], length: int, rng: np.random.Generator) -> str:
    """A text of `length` words with Zipf's frequencies; sentences of twelve words."""
    chances = 1 / (np.arange(len(words)) + 10.0)
    drawn = rng.choice(len(words), length, p=chances / chances.sum())
    text = [words[i] for i in drawn]
    text[::12] = [word.capitalize() for word in text[::12]]
    text[11::12] = ["." for _ in text[11::12]]
    return " ".join(text)


def make_tokenizer(
    words: list[str], size: int, lowercase: bool, positions: int, rng: np.random.Generator
) -> BertTokenizer:
    """A tokenizer of `size` pieces that knows nine in ten of the frequent words as a whole."""
    pieces = SPECIAL + ["."] + SYLLABLES + [f"##{syllable}" for syllable in SYLLABLES]
    known = [word for word in words if rng.random() < 0.9]
    if not lowercase:
        pieces += [syllable.capitalize() for syllable in SYLLABLES]
        pieces += [word.capitalize() for word in known[: size // 10]]
    vocabulary = list(dict.fromkeys(pieces + known))[:size]
    assert len(vocabulary) == size
    options = {"do_lower_case": lowercase, "strip_accents": False, "model_max_length": positions}
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, **options)


RECIPE = {
    "profile": "bench",
    "seed": 1,
    "data": "sample",
    "precision": "float32",
    "corpus": "data",
    "corpus_revision": "",
    "data_seed": 1,
    "words_per_source": 0,
    "steps": 100_000,  # never reached: the rate stays low, and the losses of the peers close
    "accumulation": 1,
    "learning_rate": 5.0e-4,
    "warmup_share": 0.05,
    "weight_decay": 0.0,
    "log_every": 1,
    "checkpoint_every": 1,
}


def make_teacher(shape: Shape, tokenizer: BertTokenizer) -> BertForMaskedLM:
    """A BERT of random weights with one row for each piece of its tokenizer."""
    sizes = {"num_layers": shape.teacher_layers, "hidden_size": shape.hidden}
    sizes |= {"num_heads": shape.heads, "vocab_size": len(tokenizer), "dropout": 0.0}
    data = {"batch_size": shape.batch, "block_length": 128, "mask_share": shape.mask_share}
    source = {"teacher": "first", "source": "pretrain", "revision": "", "lowercase": False}
    config = TeacherConfig(**RECIPE, **sizes, **data, **source)
    teacher = build_teacher(config, tokenizer).eval().requires_grad_(False)
    # Untrained, it would answer nearly uniformly, and no loss would tell a wrong term from a right
    # one. With this gain the logits have a standard deviation of about 3.
    teacher.cls.predictions.transform.LayerNorm.weight.fill_(3 / (0.02 * shape.hidden**0.5))
    return teacher


def make_config(shape: Shape) -> StudentConfig:
    """DistilBERT's weights and temperature for a student of this shape."""
    data = {"batch_size": shape.batch, "block_length": shape.length}
    loss = {"alpha_ce": 5.0, "alpha_mlm": 2.0, "alpha_cos": 1.0, "temperature": 2.0}
    return StudentConfig(
        **RECIPE,
        **data,
        **loss,
        mask_share=shape.mask_share,
        student="small",
        teachers={"first": 1.0},
        objective="distill",
        num_layers=shape.student_layers,
        soft_targets="all",
        freeze_positions=True,
    )
