"""Run folders: whole or not at all, resumed only by the same run, and traceable."""

import hashlib
import json
import math
import sys

import ipykernel
import pytest
import tqdm.notebook
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rolib import runs
from rolib.config import AnalyseConfig, to_dict

INPUTS = {"corpus": "aa", "bert": "bb"}


def config(seed=1, profile="toy"):
    return AnalyseConfig(profile=profile, seed=seed, data="sample", resamples=10)


def finish(folder, seed=1, inputs=INPUTS, text="result", **more):
    with runs.new_run(folder, config(seed), inputs, **more) as working:
        (working / "result.txt").write_text(text, encoding="utf-8")
    return folder


# --- new_run, is_finished -------------------------------------------------------------------------


def test_a_run_appears_whole(tmp_path):
    folder = tmp_path / "students" / "small"
    with runs.new_run(folder, config(), INPUTS, notes=["știre"]) as working:
        assert not folder.exists() and working.is_dir() and working.parent == folder.parent
        assert not (working / "manifest.json").exists()
        (working / "checkpoints").mkdir()
        (working / "result.txt").write_text("x", encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "manifest.json",
        "result.txt",
    ]
    assert list(folder.parent.iterdir()) == [folder]  # nothing is left beside it
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) == to_dict(config())
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (
        manifest["inputs"] == INPUTS
        and manifest["seed"] == 1
        and manifest["device"] == runs.device_name()
    )
    assert manifest["notes"] == ["știre"] and manifest["duration_seconds"] >= 0
    assert (
        set(manifest["packages"]) >= {"torch", "transformers", "datasets"}
        and manifest["git_commit"]
    )


def test_an_interrupted_run_leaves_no_folder_and_goes_on(tmp_path):
    folder = tmp_path / "small"
    with pytest.raises(KeyboardInterrupt), runs.new_run(folder, config(), INPUTS) as working:
        (working / "step-3").write_text("kept", encoding="utf-8")
        raise KeyboardInterrupt
    assert not folder.exists() and not runs.is_finished(folder, config(), INPUTS)
    with runs.new_run(folder, config(), INPUTS) as working:
        assert (working / "step-3").read_text(encoding="utf-8") == "kept"
    assert runs.is_finished(folder, config(), INPUTS)


@pytest.mark.parametrize(
    ("seed", "inputs"),
    [
        (2, INPUTS),
        (1, INPUTS | {"bert": "cc"}),
        (1, {"corpus": "aa"}),
        (1, INPUTS | {"more": "dd"}),
    ],
)
def test_another_runs_remains_are_thrown_away(tmp_path, seed, inputs):
    folder = tmp_path / "small"
    with pytest.raises(ValueError), runs.new_run(folder, config(), INPUTS) as working:
        (working / "step-3").write_text("old", encoding="utf-8")
        raise ValueError
    with runs.new_run(folder, config(seed), inputs) as working:
        assert not (working / "step-3").exists()
    assert runs.is_finished(folder, config(seed), inputs)


def test_a_failed_repetition_keeps_the_finished_run(tmp_path):
    folder = finish(tmp_path / "small", text="first")
    with pytest.raises(ValueError), runs.new_run(folder, config(2), INPUTS):
        raise ValueError
    assert (folder / "result.txt").read_text(encoding="utf-8") == "first"
    assert runs.is_finished(folder, config(), INPUTS)


def test_a_repetition_replaces_the_whole_folder(tmp_path):
    folder = finish(tmp_path / "small")
    (folder / "stray.txt").write_text("x", encoding="utf-8")
    finish(folder, seed=2, text="second")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "manifest.json",
        "result.txt",
    ]
    assert (folder / "result.txt").read_text(encoding="utf-8") == "second"


def test_is_finished_means_this_configuration_and_these_inputs(tmp_path):
    folder = finish(tmp_path / "small")
    assert runs.is_finished(folder, config(), dict(reversed(INPUTS.items())))
    assert not runs.is_finished(folder, config(seed=2), INPUTS)
    assert not runs.is_finished(folder, config(profile="other"), INPUTS)
    assert not runs.is_finished(folder, config(), INPUTS | {"corpus": "changed"})
    assert not runs.is_finished(folder, config(), {})
    assert not runs.is_finished(tmp_path / "nowhere", config(), INPUTS)
    (folder / "manifest.json").unlink()
    assert not runs.is_finished(folder, config(), INPUTS)


def test_a_parameter_that_is_new_leaves_finished_runs_with_its_default(tmp_path):
    folder = finish(tmp_path / "small")
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"].pop("config.yaml")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    def saved_without(name):
        kept = {key: value for key, value in saved.items() if key != name}
        (folder / "config.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")

    saved_without("precision")  # it has a default, "auto"
    assert runs.is_finished(folder, config(), INPUTS)
    changed = config().model_copy(update={"precision": "bfloat16"})
    assert not runs.is_finished(folder, changed, INPUTS)
    saved_without("data")  # it has none
    assert not runs.is_finished(folder, config(), INPUTS)


def test_the_order_of_the_teachers_is_part_of_the_configuration(tmp_path, student_config):
    one, other = (
        student_config(teachers=dict(names))
        for names in ([("a", 1.0), ("b", 1.0)], [("b", 1.0), ("a", 1.0)])
    )
    with runs.new_run(tmp_path / "small", one, {}):
        pass
    assert runs.is_finished(tmp_path / "small", one, {}) and not runs.is_finished(
        tmp_path / "small", other, {}
    )


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.floats(1e-12, 1e12),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.text(st.characters(codec="utf-8"), max_size=10),
)
def test_any_configuration_is_recognised_again(
    tmp_path_factory, student_config, rate, share, corpus
):
    made = student_config(learning_rate=rate, mask_share=share, corpus=corpus)
    folder = tmp_path_factory.mktemp("runs") / "small"
    with runs.new_run(folder, made, {}):
        pass
    assert runs.is_finished(folder, made, {})


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, -math.inf], {"a": {"b": math.nan}}])
def test_json_refuses_what_is_not_finite_and_keeps_the_old_file(tmp_path, value):
    file = tmp_path / "scores.json"
    runs.write_json(file, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.write_json(file, value)
    assert runs.read_json(file, "") == {"old": 1} and list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError):
        runs.append_metrics(tmp_path / "metrics.jsonl", {"loss": value})
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_json_keeps_romanian_letters(tmp_path):
    runs.write_json(tmp_path / "deep" / "a.json", {"titlu": "Știință"})
    assert "Știință" in (tmp_path / "deep" / "a.json").read_text(encoding="utf-8")
    assert runs.read_json(tmp_path / "deep" / "a.json", "") == {"titlu": "Știință"}


def test_a_text_is_written_whole(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    runs.write_text(file, "old")
    monkeypatch.setattr(runs.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        runs.write_text(file, "new")
    assert file.read_text(encoding="utf-8") == "old"


def test_metrics_come_back_in_order(tmp_path):
    records = [{"step": 1, "loss": 0.5}, {"step": 2, "note": "ș"}]
    for record in records:
        runs.append_metrics(tmp_path / "metrics.jsonl", record)
    assert runs.read_metrics(tmp_path / "metrics.jsonl") == records


# --- hashes ---------------------------------------------------------------------------------------


def test_sha256_of_a_file_is_the_files_own(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert (
        runs.sha256(tmp_path / "a") == hashlib.sha256(b"hello\n").hexdigest()
    )  # as sha256sum prints it


def test_sha256_of_a_folder_sees_contents_names_and_places(tmp_path):
    def hashed(number, **files):
        folder = tmp_path / str(number)
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return runs.sha256(folder)

    first = hashed(0, a="x", b="y")
    assert hashed(1, b="y", a="x") == first
    others = [
        hashed(2, a="x", b="z"),
        hashed(3, a="y", b="x"),
        hashed(4, a="x", c="y"),
        hashed(5, a="x"),
    ]
    others += [hashed(6, a="x", sub__b="y"), hashed(7, a="xy", b=""), hashed(8, a="x", b="y", c="")]
    assert len({first, *others}) == 8


# --- what is missing names its command ------------------------------------------------------------


def test_a_missing_result_names_the_command(tmp_path):
    for read in (runs.read_json, runs.require):
        with pytest.raises(
            FileNotFoundError, match=r"scores\.json is missing: run `make demo` first"
        ):
            read(tmp_path / "scores.json", "`make demo`")
    (tmp_path / "scores.json").write_text("{}", encoding="utf-8")
    assert runs.require(tmp_path / "scores.json", "") == tmp_path / "scores.json"


@pytest.mark.parametrize(
    ("profile", "command"), [("demo", "`make demo`"), ("mini", "PROFILE=mini|`make mini`")]
)
def test_a_missing_model_names_the_command(tmp_path, monkeypatch, profile, command):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"{profile}: no finished model 'bert': run .*({command})"
    ):
        runs.model_folder(config(profile=profile), "bert")


def test_model_folder_finds_teachers_and_students_that_are_finished(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    (tmp_path / "toy" / "teachers" / "half").mkdir(
        parents=True
    )  # without a manifest it is not finished
    for kind, name in (("teachers", "bert"), ("students", "small")):
        finish(tmp_path / "toy" / kind / name)
        assert runs.model_folder(config(), name) == tmp_path / "toy" / kind / name
    with pytest.raises(FileNotFoundError, match="no finished model 'half'"):
        runs.model_folder(config(), "half")


def test_progress_hands_on_every_item(capsys):
    assert list(runs.progress(range(5), desc="steps")) == [0, 1, 2, 3, 4]
    assert "steps" in capsys.readouterr().err


def test_progress_is_a_widget_in_jupyterlab_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", ipykernel)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    assert isinstance(runs.progress(range(2), display=False), tqdm.notebook.tqdm)
    monkeypatch.delitem(sys.modules, "ipykernel")  # a process that a kernel has started
    assert not isinstance(runs.progress(range(2)), tqdm.notebook.tqdm)
