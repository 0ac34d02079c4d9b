"""Teachers of another language, in a profile of their own: by parameters alone, without code."""

import os
import random
import shutil
import subprocess
import sys

import pytest
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer

from rolib.config import ROOT
from rolib.distillation.models import save_model, train_tokenizer

LAYERS = 3
SHAPE = {"num_layers": LAYERS, "hidden_size": 32, "num_heads": 4}


def write_yaml(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")


def greek_documents():
    """Texts of made-up Greek words."""
    draw, letters = random.Random(1), "αβγδεζηθικλμνξοπρστυφχψω"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(90)]
    return [" ".join(draw.choices(words, k=60)).capitalize() + "." for _ in range(60)]


@pytest.fixture
def place(tmp_path, toy_bert):
    """A copy of the repository's code with the profile `own`, two teachers and their corpus."""
    for name in ("rolib", "notebooks", "Snakefile", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    documents, own = greek_documents(), tmp_path / "params" / "own"
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "greek.txt").write_text("\n\n".join(documents), encoding="utf-8")
    shutil.copytree(ROOT / "params" / "demo", own, ignore=shutil.ignore_patterns("*rs", "*nts"))
    for name in ("ablation", "budget", "export", "robustness", "task"):
        (own / f"{name}.yaml").unlink()
    changes = {
        "common": {"profile": "own"},
        "training": {"corpus": str(tmp_path / "corpus"), "block_length": 32, "log_every": 2},
        "pretrain": SHAPE | {"require_gate": False},  # random weights know nothing
        "distill": {"steps": 4, "checkpoint_every": 4},
        "evaluate": {"tasks": []},
        "study": {"controls": [], "parts": []},
    }
    for name, values in changes.items():
        file = own / f"{name}.yaml"
        write_yaml(file, yaml.safe_load(file.read_text(encoding="utf-8")) | values)
    for name, size, lowercase in (("big", 160, False), ("small", 110, True)):
        tokenizer = train_tokenizer(documents, size, lowercase, max_length=32)
        bert = toy_bert(layers=LAYERS, vocab_size=len(tokenizer))
        save_model(bert, tokenizer, tmp_path / "models" / name, "")
        source = {"source": str(tmp_path / "models" / name), "vocab_size": len(tokenizer)}
        write_yaml(
            own / f"teachers/{name}.yaml", source | {"teacher": name, "lowercase": lowercase}
        )
    write_yaml(own / "students/solo.yaml", {"student": "solo", "teachers": {"small": 1.0}})
    both = {"student": "both", "teachers": {"big": 1.0, "small": 1.0}}
    write_yaml(own / "students/both.yaml", both)
    return tmp_path


def snakemake(place, *words):
    """Snakemake for the profile `own`, run to its end."""
    scripts = os.path.dirname(sys.executable)
    environment = {**os.environ, "PYTHONPATH": str(place), "ROLIB_RUNS": str(place / "runs")}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "snakemake", *words, "--config", "profile=own", "--nolock"]
    command += ["--quiet", "all", "--cores", "1"]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def test_two_teachers_of_another_language_by_parameters_alone(place):
    run = snakemake(place, "students")
    assert run.returncode == 0, run.stdout + run.stderr
    for name, teacher in (("solo", "small"), ("both", "big")):
        folder = place / "runs" / "own" / "students" / name
        student = AutoModelForMaskedLM.from_pretrained(folder)
        vocabulary = AutoTokenizer.from_pretrained(place / "models" / teacher).get_vocab()
        assert student.config.n_layers == 2
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "Romanian" not in card and "language: ro" not in card
        assert AutoTokenizer.from_pretrained(folder).get_vocab() == vocabulary
    metrics = (place / "runs" / "own" / "students" / "both" / "metrics.jsonl").read_text()
    assert '"held_out_coverage_small": 0.' in metrics  # words that are one piece for both


@pytest.mark.parametrize("part", ["robustness", "export"])
def test_a_control_that_the_study_does_not_have_is_named(part, place):
    """The name of a control is a good one by the files alone; the Snakefile lists the controls."""
    own, demo = place / "params" / "own", ROOT / "params" / "demo"
    shutil.copy(demo / "evaluate.yaml", own)
    values = yaml.safe_load((demo / f"{part}.yaml").read_text(encoding="utf-8"))
    write_yaml(own / f"{part}.yaml", values | {"models": ["solo", "solo-mlm"]})
    run = snakemake(place, "--dry-run")
    known = "big, small, both, solo, bag-of-words"
    problem = f"no 'solo-mlm' in this profile, which has {known}: correct it"
    assert run.returncode == 1
    assert f"error: models (params/own/{part}.yaml): {problem}" in run.stderr
