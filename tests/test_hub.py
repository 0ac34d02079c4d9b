"""Teachers and corpora from a stand-in of the hub: what is fetched, recorded and refused."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from hub import Hub
from huggingface_hub import constants
from transformers import BertForMaskedLM

from rolib import stages
from rolib.config import ROOT, ConfigError
from rolib.distillation import models
from rolib.runs import read_json


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, toy_bert, _toy_tokenizer, lower_tokenizer):
    """Folders as the two hub teachers have them, and one whose vocabulary is padded."""
    place = tmp_path_factory.mktemp("repositories")
    models.save_model(toy_bert(), _toy_tokenizer, place / "json", "")
    models.save_model(toy_bert(vocab_size=208), _toy_tokenizer, place / "padded", "")
    # pytorch_model.bin and vocab.txt alone
    bare = toy_bert(vocab_size=150)
    bare.save_pretrained(place / "bare")
    (place / "bare" / "model.safetensors").unlink()
    torch.save(bare.state_dict(), place / "bare" / "pytorch_model.bin")
    pieces = sorted(lower_tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    lines = "".join(piece + "\n" for piece, _ in pieces)
    (place / "bare" / "vocab.txt").write_text(lines, encoding="utf-8")
    # What a repository has besides, and a teacher does not need.
    (place / "json" / "onnx").mkdir()
    shutil.copy(place / "json" / "model.safetensors", place / "json" / "onnx")
    (place / "json" / "tf_model.h5").write_bytes(b"not needed")
    torch.save({}, place / "json" / "pytorch_model.bin")
    return place


@pytest.fixture(scope="module")
def hub(repositories):
    with Hub() as hub:
        hub.add("toy/json", repositories / "json", commit="a" * 40)
        hub.add("toy/bare", repositories / "bare")
        hub.add("toy/padded", repositories / "padded")
        hub.add("toy/gated", repositories / "json", gated=True)
        hub.add("toy/slow", repositories / "json", delay=0.1)
        hub.add("toy/broken", repositories / "json", breaks=1)
        hub.moved["toy/old"] = "toy/json"
        yield hub


@pytest.fixture
def online(hub, tmp_path, monkeypatch):
    """This process asks the stand-in, and has an empty cache of its own."""
    point_to(hub.endpoint, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.asked.clear()
    return hub


def point_to(endpoint, monkeypatch):
    """Let huggingface_hub ask another server; it read its address when it was imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def load(teacher_config):
    """Load a teacher of the toy shape; keyword arguments change its parameters."""

    def load(source, revision="main", **changes):
        shape = {"num_layers": 4} | changes
        return models.load_teacher(teacher_config(source=source, revision=revision, **shape))

    return load


@pytest.fixture
def refused(load):
    def refused(match, *source):
        with pytest.raises(ConfigError, match=match) as error:
            load(*source)
        assert "\n" not in str(error.value) and source[0] in str(error.value)

    return refused


LOWER = {"vocab_size": 150, "lowercase": True}


def test_only_what_a_teacher_needs_is_fetched_and_only_once(online, load, repositories):
    model, tokenizer = load("toy/json", "a" * 40)
    kept = BertForMaskedLM.from_pretrained(repositories / "json").state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert tokenizer.tokenize("la școală") == ["la", "școală"]
    paths = (line.partition("/resolve/")[2] for line in online.asked)
    fetched = {path.partition("/")[2] for path in paths} - {""}
    settings = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert fetched == {"model.safetensors"} | settings
    online.asked.clear()
    load("toy/json", "a" * 40)
    assert not online.asked  # a commit does not change


def test_a_teacher_of_a_pickle_and_a_bare_vocabulary(online, load):
    model, tokenizer = load("toy/bare", **LOWER)
    assert tokenizer.tokenize("Știință și")[0].startswith("ști") and len(tokenizer) == 150
    assert Path(model.name_or_path).name == online.repositories["models", "toy/bare"].commit


@pytest.mark.parametrize("name", ["padded", "old", "slow", "broken"])
def test_other_teachers_that_can_be_read(name, online, load):
    model, tokenizer = load(f"toy/{name}")
    assert model.config.vocab_size == len(tokenizer) == 200
    if name == "broken":  # it went on from the byte where it stopped
        assert online.repositories["models", "toy/broken"].breaks == 0


def test_a_gated_repository_says_where_to_ask(online, refused):
    page = f"{online.endpoint}/toy/gated"
    refused(f"is gated: ask at {page}, then run `hf auth login`", "toy/gated")


def test_what_the_hub_does_not_have(online, refused):
    refused("no such folder and no such hub model: correct source", "toy/missing")
    refused("has no revision 'bbbb.*': correct revision", "toy/json", "b" * 40)
    online.asked.clear()
    refused("no such folder", "some/folder/of/mine")
    refused("no such folder", "/some/folder")
    assert not online.asked


def test_without_a_network_the_cache_serves_or_one_line_says_so(online, load, refused, monkeypatch):
    load("toy/bare", **LOWER)
    point_to("http://127.0.0.1:9", monkeypatch)  # nothing listens there
    assert len(load("toy/bare", **LOWER)[1]) == 150
    asked = []
    monkeypatch.setattr(time, "sleep", lambda seconds: asked.append(seconds))
    refused("not available from the hub .*: check the network, HF_HUB_OFFLINE", "toy/other")
    assert not asked  # no waiting for a hub that is not there


def test_the_commit_that_was_found_stands_in_the_manifest(
    online, teacher_config, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    config = teacher_config(source="toy/old", revision="main", num_layers=4)
    manifest = read_json(stages.prepare_teacher(config) / "manifest.json", "")
    assert manifest["source_commit"] == "a" * 40 and manifest["inputs"]["revision"] == "main"
    assert (config.folder / "teachers" / "toy" / "gate.json").exists()


CORPUS = """
import sys
from pathlib import Path
from rolib.config import ROOT
from rolib.data import corpus
from rolib.profiles import load
from rolib.config import TeacherConfig

profile = ROOT / "params" / "paper"
files = [profile / f"{name}.yaml" for name in ("common", "training", "pretrain")]
config = load(TeacherConfig, *files, profile / "teachers" / "bert-cased.yaml")
texts = corpus.load_corpus(config, Path())
print(corpus.corpus_identity(config, Path()))
print(len(texts["train"]), len(texts["held_out"]))
"""


def test_the_corpus_of_the_paper_profile_at_its_revision(tmp_path, toy_documents):
    """In a process of its own: datasets has read the hub's address, too."""
    folder = tmp_path / "wikipedia" / "20231101.ro"
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"id": map(str, range(60)), "title": "Titlu", "text": toy_documents})
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    card = "---\nconfigs:\n- config_name: 20231101.ro\n  data_files:\n  - split: train\n"
    card += "    path: 20231101.ro/train-*\n---\n"
    (tmp_path / "wikipedia" / "README.md").write_text(card)
    commit = "b04c8d1ceb2f5cd4588862100d08de323dccfbaa"
    with Hub() as hub:
        hub.add("wikimedia/wikipedia", tmp_path / "wikipedia", "datasets", commit=commit)
        environment = hub.environment(tmp_path / "cache") | {"PYTHONPATH": str(ROOT)}
        environment["ROLIB_RUNS"] = str(tmp_path / "runs")
        command = [sys.executable, "-c", CORPUS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    identity, sizes = done.stdout.splitlines()
    assert identity == f"wikimedia/wikipedia:20231101.ro@{commit}"
    assert sum(map(int, sizes.split())) == 60
