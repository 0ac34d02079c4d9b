"""Fixtures that several test files share: the real data folder, and a toy world small enough for
one core."""

import copy
import os
import random
from pathlib import Path

# Before torch and transformers are imported: one thread a worker (two are slower under xdist), and
# never the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data files named by ROLIB_DATA; without it the test is skipped, or fails
    under CI."""
    folder = os.environ.get("ROLIB_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if folder or os.environ.get("CI"):
        pytest.fail(f"ROLIB_DATA must name the folder of the real data files, but is {folder!r}")
    pytest.skip("needs the real data files: set ROLIB_DATA")


# --- the toy world --------------------------------------------------------------------------------

SUBJECTS = "Copilul Profesoara Bunicul Vecina Țăranul Știința Orașul Inginerul".split()
VERBS = "citește cumpără găsește păstrează învață șterge împarte".split()
OBJECTS = "cartea casa grădina pâinea știrea țara vântul fântâna".split()
PLACES = "aici, în București, la școală, lângă râu, fără grabă".split(", ")


@pytest.fixture(scope="session")
def toy_documents() -> list[str]:
    """60 documents of three sentences each, all different."""
    rng = random.Random(0)

    def sentence():
        return " ".join(
            rng.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, PLACES)
        ) + rng.choice(".!")

    return [f"{i}. " + " ".join(sentence() for _ in range(3)) for i in range(60)]


@pytest.fixture(scope="session")
def _toy_tokenizer(toy_documents):
    from rolib.distillation.models import train_tokenizer

    return train_tokenizer(toy_documents, vocab_size=200, lowercase=False, max_length=32)


@pytest.fixture
def toy_tokenizer(_toy_tokenizer):
    """A cased WordPiece tokenizer of 200 pieces, for texts of at most 32; a copy of its own for
    every test."""
    return copy.deepcopy(_toy_tokenizer)


@pytest.fixture(scope="session")
def lower_tokenizer(toy_documents):
    """A lower-casing WordPiece tokenizer of 150 pieces, accents kept, for the same texts."""
    from rolib.distillation.models import train_tokenizer

    return train_tokenizer(toy_documents, vocab_size=150, lowercase=True, max_length=32)


@pytest.fixture(scope="session")
def toy_blocks(_toy_tokenizer, toy_documents):
    """Blocks of at most 24 pieces: 50 documents to train on, 10 held out."""
    from datasets import Dataset, DatasetDict

    from rolib.data.corpus import build_blocks

    parts = {"train": toy_documents[:50], "held_out": toy_documents[50:]}
    return DatasetDict(
        {
            name: build_blocks(Dataset.from_dict({"text": texts}), [_toy_tokenizer], 24)
            for name, texts in parts.items()
        }
    )


@pytest.fixture(scope="session")
def toy_bert():
    """Make a BERT of width 32 with random values in every parameter, biases and segment embeddings
    included."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    def make(layers=4, vocab_size=200, seed=0, dropout=0.0, positions=32):
        torch.manual_seed(seed)
        shape = BertConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=positions,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        model = BertForMaskedLM(shape)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model.eval()

    return make


RECIPE = {
    "profile": "toy",
    "seed": 1,
    "data": "sample",
    "precision": "float32",
    "corpus": "data",
    "corpus_revision": "",
    "data_seed": 1,
    "words_per_source": 0,
    "block_length": 24,
    "mask_share": 0.3,
    "steps": 4,
    "batch_size": 8,
    "accumulation": 1,
    "learning_rate": 1e-3,
    "warmup_share": 0.0,
    "weight_decay": 0.01,
    "log_every": 1,
    "checkpoint_every": 100,
}


@pytest.fixture(scope="session")
def teacher_config():
    """Make a TeacherConfig of the toy recipe; keyword arguments change it."""
    from rolib.config import TeacherConfig

    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "dropout": 0.0}
    source = {
        "teacher": "toy",
        "source": "pretrain",
        "revision": "",
        "lowercase": False,
        "vocab_size": 200,
        "require_gate": False,
    }
    return lambda **changes: TeacherConfig(**(RECIPE | shape | source | changes))


@pytest.fixture(scope="session")
def student_config():
    """Make a StudentConfig of the toy recipe; keyword arguments change it."""
    from rolib.config import StudentConfig

    loss = {
        "alpha_ce": 5.0,
        "alpha_mlm": 2.0,
        "alpha_cos": 1.0,
        "temperature": 2.0,
        "soft_targets": "all",
    }
    ensemble = {"weighting": "fixed", "soft_target_strategy": "lift", "hidden_states": "pieces"}
    shape = {
        "student": "small",
        "teachers": {"toy": 1.0},
        "objective": "distill",
        "num_layers": 2,
        "freeze_positions": True,
    }
    return lambda **changes: StudentConfig(**(RECIPE | loss | ensemble | shape | changes))
