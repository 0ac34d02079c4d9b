"""What dies, is damaged or runs twice: everything is finished after a restart, or named."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from rolib import runs, stages
from rolib.config import ROOT, AnalyseConfig
from rolib.data import corpus
from rolib.distillation import loop
from rolib.distillation.checkpoints import checkpoints, delayed_signals
from rolib.distillation.models import init_student, save_model

INPUTS = {"corpus": "aa"}


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def config(seed=1):
    return AnalyseConfig(profile="toy", seed=seed, data="sample", resamples=10)


def finish(folder, seed=1, text="result"):
    with runs.new_run(folder, config(seed), INPUTS) as working:
        (working / "checkpoints").mkdir(exist_ok=True)
        (working / "result.txt").write_text(text, encoding="utf-8")
    return folder


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- a run's commit -------------------------------------------------------------------------------


def steps_of_a_commit(monkeypatch, manifest, last):
    """Let `last` changes of the file system happen after the manifest is written, then kill."""
    done = []

    def counting(real):
        def call(*arguments, **options):
            if manifest.exists() or done:
                if len(done) == last:
                    raise Killed
                done.append(real.__name__)
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(runs.os, "replace", counting(os.replace))
    monkeypatch.setattr(runs.shutil, "rmtree", counting(shutil.rmtree))
    return done


@pytest.mark.parametrize("last", range(4))
def test_a_kill_while_a_run_gets_its_name_loses_no_result(tmp_path, monkeypatch, last):
    folder = finish(tmp_path / "small", text="old")
    with monkeypatch.context() as patch:
        done = steps_of_a_commit(patch, tmp_path / ".small.partial" / "manifest.json", last)
        with contextlib.suppress(Killed):
            finish(folder, seed=2, text="new")
    assert len(done) == min(last, 3)  # three changes there are
    places = [path for path in tmp_path.iterdir() if (path / "manifest.json").exists()]
    assert {(path / "result.txt").read_text() for path in places} >= {"new"}
    assert runs.is_finished(folder, config(2), INPUTS)
    assert (folder / "result.txt").read_text() == "new"
    finish(folder, seed=3)
    assert list(tmp_path.iterdir()) == [folder]  # and nothing else stays


def test_what_a_kill_after_the_last_rename_leaves_goes_at_the_next_look(tmp_path):
    folder = finish(tmp_path / "small")
    (tmp_path / ".small.lock").write_text("1")  # of a process that is dead
    assert runs.is_finished(folder, config(), INPUTS)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_result_that_changed_since_is_named(tmp_path):
    folder = finish(tmp_path / "small")
    flip(folder / "result.txt")
    with pytest.raises(ValueError, match=r"result.txt is damaged .*: delete .*small and run `make"):
        runs.is_finished(folder, config(), INPUTS)
    (folder / "result.txt").unlink()
    with pytest.raises(FileNotFoundError, match="result.txt is missing: run"):
        runs.is_finished(folder, config(), INPUTS)
    finish(folder, seed=2)
    (folder / "README.md").write_text("A better card.")  # people may
    assert runs.is_finished(folder, config(2), INPUTS)


@pytest.mark.parametrize("file", ["manifest.json", "scores.json"])
def test_half_a_file_of_json_is_named(tmp_path, file):
    runs.write_json(tmp_path / file, {"a": [1, 2, 3], "b": "ș"})
    cut(tmp_path / file)
    with pytest.raises(ValueError, match=f"{file} is damaged .*: delete {tmp_path} and run `make"):
        runs.read_json(tmp_path / file, "`make demo`")


def test_the_time_of_all_sittings_counts_and_everybody_may_read(tmp_path):
    folder = tmp_path / "small"
    with contextlib.suppress(Killed), runs.new_run(folder, config(), INPUTS) as working:
        (working / ".metrics.jsonl.1.tmp").write_text("half")
        (working / "result.txt").write_text("x")
        (working / "result.txt").chmod(0o600)
        os.utime(working / "result.txt", (time.time() + 100, time.time() + 100))
        raise Killed
    with runs.new_run(folder, config(), INPUTS):
        pass
    assert 99 < runs.read_json(folder / "manifest.json", "")["duration_seconds"] < 130
    assert not list(folder.glob(".*"))
    assert (folder / "result.txt").stat().st_mode == (folder / "config.yaml").stat().st_mode


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("fail at inline_container.cc:672")],
)
def test_a_full_disk_is_named(tmp_path, error):
    with (
        pytest.raises(OSError, match="small.partial: no space left on the disk: free some, then"),
        runs.new_run(tmp_path / "small", config(), INPUTS),
    ):
        raise error


# --- two processes --------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from rolib import runs
from test_faults import INPUTS, config
with runs.new_run(Path(sys.argv[1]), config(), INPUTS) as working:
    (working / "half").write_text("x")
    print("working", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    folder = tmp_path / "small"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "working\n"
        problem = f"small: process {first.pid} is making it: wait for it, or stop it"
        with pytest.raises(RuntimeError, match=problem), runs.new_run(folder, config(2), INPUTS):
            pass
        assert (tmp_path / ".small.partial" / "half").exists()
        first.kill()
    with runs.new_run(folder, config(), INPUTS) as working:
        assert (working / "half").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_lock_whose_owner_has_no_number_yet_is_refused_too(tmp_path):
    with runs.lock(tmp_path / "small"):
        (tmp_path / ".small.lock").write_text("")
        problem = r"small: process \(unknown\) is making it"
        with pytest.raises(RuntimeError, match=problem), runs.lock(tmp_path / "small"):
            pass


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "ro")])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with (
        pytest.raises(OSError, match="small: cannot be written .*: change its rights"),
        runs.new_run(tmp_path / "small", config(), INPUTS),
    ):
        pass


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def train(tmp_path, student_config, toy_bert, toy_tokenizer, toy_blocks):
    """Train the toy student with dropout in a folder, one checkpoint a step."""

    def run(name, on_log=lambda record: None, **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        recipe = student_config(**{"objective": "mlm", "checkpoint_every": 1} | changes)
        student = init_student(toy_bert(layers=3, dropout=0.1), recipe.num_layers)
        trained = loop.train(recipe, student, [toy_tokenizer], toy_blocks, folder, on_log=on_log)
        return {key: value.clone() for key, value in trained.state_dict().items()}

    return run


def stop_at(step):
    def on_log(record):
        if record["step"] == step:
            raise Killed

    return on_log


def interrupted(train, name, step=4):
    """The checkpoints of a run that a kill ended in the step after the last of them."""
    with pytest.raises(Killed):
        train(name, stop_at(step))


def same(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (flip, "pytorch_model.bin"),
        (cut, "pytorch_model.bin"),
        (flip, "optimizer.bin"),
        (flip, "random_states_0.pkl"),
        (os.remove, "random_states_0.pkl"),
        (cut, "manifest.json"),
        (os.remove, "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(train, tmp_path, capfd, damage, file):
    interrupted(train, "broken")
    older, newest = checkpoints(tmp_path / "broken")
    assert (older.name, newest.name) == ("step-2", "step-3")
    damage(newest / file)
    assert same(train("broken"), train("whole"))
    assert "step-3 is damaged: going on from step 2" in capfd.readouterr().err
    steps = [line["step"] for line in runs.read_metrics(tmp_path / "broken" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4]


def test_without_a_whole_checkpoint_a_run_starts_again(train, tmp_path, capfd):
    interrupted(train, "broken")
    for path in checkpoints(tmp_path / "broken"):
        cut(path / "pytorch_model.bin")
    assert same(train("broken"), train("whole"))
    assert capfd.readouterr().err.count("is damaged: going on from step 0") == 2


def test_no_code_can_hide_in_a_checkpoint(train, tmp_path):
    """The schedule follows from the step. What else is pickled loads as plain values only."""
    interrupted(train, "broken")
    names = {path.name for path in checkpoints(tmp_path / "broken")[-1].iterdir()}
    assert names == {"manifest.json", "optimizer.bin", "pytorch_model.bin", "random_states_0.pkl"}
    for name in names - {"manifest.json"}:
        hostile = checkpoints(tmp_path / "broken")[-1] / name
        with pytest.raises(Exception, match="[Ww]eights.only|Unsupported"):
            hostile.write_bytes(b"cos\nsystem\n(S'touch /tmp/rolib-was-here'\ntR.")
            torch.load(hostile, weights_only=True)


def test_half_a_last_line_of_metrics_is_dropped(train, tmp_path):
    interrupted(train, "broken")
    with open(tmp_path / "broken" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    assert same(train("broken"), train("whole"))
    broken, whole = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open(encoding="utf-8")]
        for name in ("broken", "whole")
    )
    assert [line["loss"] for line in broken] == [line["loss"] for line in whole]


def test_a_damaged_line_of_metrics_is_named(train, tmp_path):
    interrupted(train, "broken")
    metrics = tmp_path / "broken" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('{"step": 2', '{"step" 2'))
    with pytest.raises(ValueError, match="metrics.jsonl is damaged .*: delete .*broken and run"):
        train("broken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(train, tmp_path, capfd, number):
    def on_log(record):
        if record["step"] == 2:
            os.kill(os.getpid(), number)

    def die(number, frame):
        raise Killed

    before = signal.signal(number, die)
    try:
        with pytest.raises(Killed):
            train("stopped", on_log, checkpoint_every=100)
        assert signal.getsignal(number) is die  # as it was
    finally:
        signal.signal(number, before)
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["step-2"]
    assert "Stopped after step 2" in capfd.readouterr().err
    assert same(train("stopped", checkpoint_every=100), train("whole", checkpoint_every=100))


def test_a_stop_between_two_records_leaves_no_trace_in_the_metrics(train, tmp_path, monkeypatch):
    """Neither the mean losses nor the tokens of the record after it are of fewer steps."""
    real, steps = loop.add_gradients, []

    def step_and_signal(*parts):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*parts)

    def die(number, frame):
        raise Killed

    options = {"log_every": 3, "checkpoint_every": 100, "steps": 6}
    before = signal.signal(signal.SIGTERM, die)
    try:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop, "add_gradients", step_and_signal)
            train("stopped", **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["step-2"]
    assert same(train("stopped", **options), train("whole", **options))
    stopped, whole = (
        [record | {"tokens_per_second": 0} for record in runs.read_metrics(path / "metrics.jsonl")]
        for path in (tmp_path / "stopped", tmp_path / "whole")
    )
    assert stopped == whole and len(whole) == 2


@pytest.mark.parametrize("every", [{"checkpoint_every": 2}, {"checkpoint_minutes": 1e-9}])
def test_no_checkpoint_is_made_of_a_loss_that_is_not_finite(train, tmp_path, monkeypatch, every):
    real = loop.add_gradients
    monkeypatch.setattr(loop, "add_gradients", lambda *parts: real(*parts) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"step \d: the loss is nan: lower learning_rate"):
        train("broken", log_every=100, **every)
    assert not checkpoints(tmp_path / "broken")


def test_a_held_out_loss_that_is_not_finite_stops_the_run(train, tmp_path, monkeypatch):
    def broken(accelerator, model, objective, batches):  # weights that break after a finite loss
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return torch.ones(len(objective.terms))

    monkeypatch.setattr(loop, "add_gradients", broken)
    fault = "the held-out loss is not finite: lower learning_rate"
    with pytest.raises(FloatingPointError, match=fault):
        train("broken", checkpoint_every=2)
    assert not checkpoints(tmp_path / "broken")


def test_a_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), delayed_signals() as came:
        signal.raise_signal(signal.SIGINT)
        assert came == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one waits too")


def test_checkpoints_come_by_the_clock_too(train, tmp_path):
    train("timed", checkpoint_every=100, checkpoint_minutes=1e-9)
    assert [path.name for path in checkpoints(tmp_path / "timed")] == ["step-2", "step-3"]


# --- models that changed --------------------------------------------------------------------------


@pytest.fixture
def teacher(tmp_path, monkeypatch, toy_bert, toy_tokenizer, student_config):
    """A finished toy teacher in a profile's folder."""
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    recipe = student_config(teachers={"big": 1.0})
    with runs.new_run(recipe.folder / "teachers" / "big", recipe, {}) as working:
        save_model(toy_bert(layers=3), toy_tokenizer, working, "")
    return recipe.folder / "teachers" / "big"


def test_a_student_folder_without_tokenizer_is_refused(teacher, student_config, monkeypatch):
    monkeypatch.setattr(corpus, "corpus_identity", lambda *_: "aa")
    (teacher / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is missing: run `make study"):
        stages.distil_student(student_config(teachers={"big": 1.0}))


def test_flipped_bits_in_a_teacher_are_refused(teacher, student_config, monkeypatch):
    monkeypatch.setattr(corpus, "corpus_identity", lambda *_: "aa")
    flip(teacher / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is damaged .* run `make study"):
        stages.distil_student(student_config(teachers={"big": 1.0}))


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_every_file_of_a_model_is_part_of_its_identity(teacher, file):
    before = runs.model_identity(teacher, "")
    flip(teacher / file)
    assert runs.model_identity(teacher, "") != before
    (teacher / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing: run it first"):
        runs.model_identity(teacher, "it")
