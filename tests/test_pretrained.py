"""The shipped models: whole, small, and usable with transformers alone."""

import copy
import importlib
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from rolib import stages
from rolib.config import PRETRAINED, ROOT, ConfigError
from rolib.data import pretrained
from rolib.distillation.models import init_student, load_teacher, save_model
from rolib.evaluation.fill import fill_gap
from rolib.profiles import load_profile
from rolib.runs import sha256

TEXTS = yaml.safe_load((PRETRAINED / "texts.yaml").read_text(encoding="utf-8"))
NAMES = ["bert-cased", "bert-uncased", "distil-cased", "distil-multi", "distil-uncased"]


def test_five_models_are_in_the_box_and_weigh_less_than_16_megabytes():
    assert pretrained.pretrained_names() == NAMES
    files = [path for name in NAMES for path in pretrained.pretrained_folder(name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 16e6


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_says_where_it_comes_from(name):
    folder = pretrained.pretrained_folder(name)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["inputs"]["corpus"] == TEXTS["corpus"] and manifest["duration_seconds"] > 60
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert manifest["seed"] == settings["seed"] and settings["profile"] == "mini"
    study = load_profile("mini")
    configs = study["teachers"] | study["students"]
    today = json.loads(configs[name].model_dump_json())
    today |= {"source": "pretrain"} if name in study["teachers"] else {}  # make pretrained
    assert settings == {key: today[key] for key in settings}  # what it lacks came later
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert manifest["texts"] == TEXTS["texts"] and len(manifest["texts"]) == 6
    for text in manifest["texts"]:
        assert text["licence"] and text["licence"] in card and text["file"] in card


@pytest.mark.parametrize("name", NAMES)
def test_transformers_alone_reads_it_as_float32(name):
    fill = pipeline("fill-mask", str(PRETRAINED / name))
    assert fill.model.dtype == torch.float32
    best = fill("Copilul merge la [MASK] în fiecare dimineață.")[0]
    table = fill_gap(PRETRAINED / name, "Copilul merge la ___ în fiecare dimineață.")
    assert (table["piece"][0], table["probability"][0]) == (best["token_str"], best["score"])
    assert len(table) == 5 and table["probability"].is_monotonic_decreasing


@pytest.mark.parametrize("sentence", ["Fără gol.", "Un ___ și un ___."])
def test_a_sentence_without_one_gap_is_refused(sentence):
    with pytest.raises(ValueError, match="write ___ once"):
        fill_gap(PRETRAINED / NAMES[0], sentence)


@pytest.mark.parametrize("sentence", ["ana are " * 100 + "___", "[MASK] are ___"])
def test_a_text_that_a_model_cannot_read_is_refused(sentence):
    with pytest.raises(ValueError, match="write one gap and at most 128 pieces"):
        fill_gap(PRETRAINED / NAMES[0], sentence)


def test_the_box_is_what_training_left_in_half_precision(
    tmp_path, toy_bert, toy_tokenizer, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT / "figures"))
    ship = importlib.import_module("ship")
    monkeypatch.setattr(ship, "PRETRAINED", tmp_path / "box")
    monkeypatch.setattr("rolib.data.pretrained.PRETRAINED", tmp_path / "box")
    monkeypatch.setattr("rolib.config.PRETRAINED", tmp_path / "box")
    (tmp_path / "box").mkdir()
    shutil.copy(PRETRAINED / "texts.yaml", tmp_path / "box")
    bert = toy_bert()
    small = init_student(bert, 2)
    settings = {
        "teachers/big": "source: pretrain",
        "teachers/copied": "source: pretrained",
        "students/small": "objective: distill",
        "students/small-seed-2": "objective: distill",
        "students/small-mlm": "objective: mlm",
    }
    for place, line in settings.items():
        model = bert if place.startswith("teachers") else small
        save_model(model, copy.deepcopy(toy_tokenizer), tmp_path / "runs" / place, "card\n")
        (tmp_path / "runs" / place / "config.yaml").write_text(f"seed: 1\n{line}\n")
        (tmp_path / "runs" / place / "metrics.jsonl").write_text('{"step": 1}\n')
        facts = {"seed": 1, "inputs": {"corpus": TEXTS["corpus"]}}
        (tmp_path / "runs" / place / "manifest.json").write_text(json.dumps(facts))
    ship.main(tmp_path / "runs")
    assert pretrained.pretrained_names() == ["big", "small"]  # no control, no further seed
    for name, model in {"big": bert, "small": small}.items():
        again = AutoModelForMaskedLM.from_pretrained(pretrained.pretrained_folder(name))
        assert again.dtype == torch.float32
        for key, weight in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], weight.half().float()), key
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "box" / name)
        assert tokenizer.get_vocab() == toy_tokenizer.get_vocab()
    other = {"seed": 1, "inputs": {"corpus": "another"}}
    (tmp_path / "runs" / "teachers" / "big" / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="big: trained on another corpus than texts.yaml has"):
        ship.main(tmp_path / "runs")
    with pytest.raises(ConfigError, match="no shipped model 'other': use one of big, small"):
        pretrained.pretrained_folder("other")
    damaged = tmp_path / "box" / "big" / "tokenizer.json"
    damaged.write_text(damaged.read_text().replace("##", "#", 1))
    with pytest.raises(ValueError, match=r"big/tokenizer.json is damaged .*make pretrained"):
        pretrained.pretrained_folder("big")
    damaged.unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing: .*make pretrained"):
        pretrained.pretrained_folder("big")


def test_a_profile_takes_a_shipped_teacher_by_word_or_by_name():
    config = load_profile("demo")["teachers"]["bert-cased"]
    by_name = config.model_copy(update={"teacher": "mine", "source": "bert-cased"})
    assert config.shipped == by_name.shipped == "bert-cased"
    by_path = config.model_copy(update={"source": str(PRETRAINED / "bert-cased")})
    assert not by_path.shipped  # a folder as any other
    (model, tokenizer), (again, _) = load_teacher(config), load_teacher(by_name)
    assert len(tokenizer) == config.vocab_size == model.config.vocab_size
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_wrong_name_is_refused_before_anything_is_loaded():
    values = load_profile("demo")["teachers"]["bert-cased"].model_dump() | {"teacher": "mine"}
    with pytest.raises(ValueError, match="no model 'mine' in the box, which has bert-cased, "):
        type(load_profile("demo")["teachers"]["bert-cased"])(**values)
    assert (ROOT / "params" / "demo").is_dir()


def test_a_changed_box_prepares_the_teacher_again(tmp_path, monkeypatch):
    """With other weights under the same name; and its training curve comes along."""
    box, name = tmp_path / "box", "bert-uncased"
    config = load_profile("demo")["teachers"][name]
    shutil.copytree(PRETRAINED / name, box / name)
    for module in ("rolib.config", "rolib.data.pretrained"):
        monkeypatch.setattr(f"{module}.PRETRAINED", box)
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path / "runs"))
    folder = stages.prepare_teacher(config)
    assert (folder / "metrics.jsonl").read_bytes() == (box / name / "metrics.jsonl").read_bytes()
    before = load_file(folder / "model.safetensors")
    weights = load_file(box / name / "model.safetensors")
    bias = "cls.predictions.bias"
    weights[bias] = weights[bias] + 1
    save_file(weights, box / name / "model.safetensors", {"format": "pt"})
    manifest = json.loads((box / name / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.safetensors"] = sha256(box / name / "model.safetensors")
    (box / name / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    after = load_file(stages.prepare_teacher(config) / "model.safetensors")
    assert (after[bias] > before[bias] + 0.5).all()
