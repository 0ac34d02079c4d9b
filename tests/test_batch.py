"""Studies that are stopped, killed or fail, and batches on a cluster; their notebooks only wait."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from rolib.config import ROOT

# A training that takes a minute, and writes its checkpoint when it is asked to stop.
WAIT = """
import os, signal, time
from pathlib import Path
place = Path(os.environ["ROLIB_RUNS"])
def leave(number, frame):
    time.sleep(0.5)
    with open(place / "checkpoints", "a") as file:
        file.write("one\\n")
    raise SystemExit(128 + number)
signal.signal(signal.SIGTERM, leave)
(place / "started").touch()
end = time.monotonic() + 60
while time.monotonic() < end and not (place / "go-on").exists():
    time.sleep(0.02)
"""


def write_notebook(path, *cells):
    parameters = new_code_cell("profile = teacher = ''", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, cells)])
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, path)


def errors_in(path):
    """The names of the errors that an executed notebook shows."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output["ename"] for output in outputs if output["output_type"] == "error"]


def wait_for(path, seconds=30):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path):
    """Start a Python module in tmp_path; it and its children are killed at the end."""
    started = []

    def start(*words, **more):
        environment = {**os.environ, "ROLIB_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            cwd=tmp_path,
            env=environment | more,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # as a terminal does: a signal reaches the whole group
            # Where the tests run in the background of a shell, they and their children ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    (tmp_path / "runs").mkdir()
    yield start
    for process in started:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            for child in [*children, process]:
                child.kill()


@pytest.fixture
def study(tmp_path, start):
    """Start the study `tiny` with stand-ins for its notebooks; returns the process."""
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copytree(ROOT / "notebooks" / "templates", tmp_path / "notebooks" / "templates")
    (tmp_path / "params").symlink_to(ROOT / "params")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        call = re.search(r"from_notebook\(.*\)", path.read_text(encoding="utf-8"))
        cells = [f"# {call and call[0]}", WAIT, "assert teacher != 'bert-cased'"]
        write_notebook(tmp_path / "notebooks" / path.name, *cells)

    def study(*targets, options=("--cores", "2"), places=(), **more):
        done = tmp_path / "runs" / "tiny" / "notebooks"
        flags = "--quiet all --keep-going --nolock --rerun-incomplete --config profile=tiny".split()
        places = [*places, *(done / f"{target}.ipynb" for target in targets)]
        return start("snakemake", *options, *flags, "--", *places, **more)

    return study


def test_a_stopped_or_killed_study_leaves_no_process_and_goes_on(tmp_path, study):
    runs = tmp_path / "runs"
    checkpoints, started = runs / "checkpoints", runs / "started"
    for count, how in enumerate((signal.SIGINT, signal.SIGKILL), 1):
        process = study("01-bert-uncased")
        wait_for(started)
        below = psutil.Process(process.pid).children(recursive=True)
        assert sum("ipykernel" in " ".join(child.cmdline()) for child in below) == 1
        if how == signal.SIGINT:  # Ctrl-C reaches the notebook and Snakemake
            os.killpg(process.pid, how)
            assert process.wait(90) == 130
            line = "stopped: `make study PROFILE=tiny` goes on from here"
            assert process.stderr.read().split("\n")[:2] == [
                "jobs: 1; a line for each that ends",
                line,
            ]
        else:
            second = study("01-bert-uncased")
            assert second.wait(90) == 1
            told = second.stderr.read()
            assert f"error: process {process.pid} works on {runs / 'tiny'}" in told
            assert "Traceback" not in told
            process.kill()
        assert psutil.wait_procs(below, timeout=60)[1] == []
        assert checkpoints.read_text().split() == ["one"] * count  # one signal each
        started.unlink()

    (runs / "go-on").touch()
    process = study("01-bert-cased", "01-bert-uncased", "02-distil-cased")
    assert process.wait(180) == 1
    # A failing notebook stops what rests on it, and nothing else.
    done = runs / "tiny" / "notebooks"
    assert {path.name for path in done.iterdir()} == {
        "01-bert-cased.partial.ipynb",
        "01-bert-uncased.ipynb",
    }
    assert errors_in(done / "01-bert-cased.partial.ipynb") == ["AssertionError"]
    log = runs / "tiny" / "logs" / "01-bert-cased.log"
    said = process.stderr.read().split("\n")
    assert said[-3:-1] == [
        "not finished; what rests on these was not run:",
        f"01-bert-cased failed; its log is {log}",
    ]
    assert log.read_text().split("\n")[-2].startswith("error: AssertionError: ")


def test_a_study_names_what_its_tables_count_without_its_parameters(tmp_path, study):
    """In a folder with a space in its name, too."""
    runs = tmp_path / "some runs"
    known = ["bert-cased/upos/seed-1", "bert-cased/upos/seed-old"]  # the last one nobody counts
    strangers = ["distil-old", "bert-cased/upos/seed-9"]
    for run in (*known, "distil-old/upos/seed-1", *strangers[1:]):
        (runs / "tiny" / "evaluation" / run).mkdir(parents=True)
    (runs / "go-on").touch()
    target = str(runs / "tiny" / "notebooks" / "01-bert-uncased.ipynb")
    process = study(options=("--cores", "1"), places=[target], ROLIB_RUNS=str(runs))
    assert process.wait(90) == 0, process.stderr.read()
    [note] = [line for line in process.stderr.read().split("\n") if line.startswith("note: ")]
    assert all(name in note for name in strangers) and not any(run in note for run in known)
    assert (runs / "tiny" / "logs" / "01-bert-uncased.log").exists()


def test_a_notebook_that_reaches_its_time_limit_says_so(tmp_path, study):
    """The rule's limit stands before the notebook; its signal is sent by hand, hours earlier."""
    process = study("01-bert-uncased")
    wait_for(tmp_path / "runs" / "started")
    [job] = psutil.Process(process.pid).children()
    if shutil.which("timeout"):
        assert job.cmdline()[:4] == ["timeout", "--foreground", "--signal", "XCPU"]
        assert job.cmdline()[6] == "4320m"
        [job] = job.children()
    job.send_signal(signal.SIGXCPU)
    assert process.wait(90) == 1
    assert (tmp_path / "runs" / "checkpoints").read_text() == "one\n"
    log = tmp_path / "runs" / "tiny" / "logs" / "01-bert-uncased.log"
    last = log.read_text().strip().split("\n")[-1]
    assert last.startswith("stopped (CPU time limit exceeded): the same command goes on")
    assert last in process.stderr.read()
    done = tmp_path / "runs" / "tiny" / "notebooks"
    assert [path.name for path in done.iterdir()] == ["01-bert-uncased.partial.ipynb"]


# A cluster of one machine: it starts the job, which is a shell script, and prints a number.
SUBMIT = """#!/bin/sh
echo "$@" >> "$ROLIB_RUNS/submitted"
setsid sh "$4" > "$4.log" 2>&1 &
echo $!
"""


def test_a_batch_runs_on_a_cluster(tmp_path, study):
    """With profiles/slurm, but for its executor."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic", reason="extra `cluster`")
    shutil.copytree(ROOT / "profiles" / "slurm", tmp_path / "profiles" / "slurm")
    submit = tmp_path / "submit"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    (tmp_path / "runs" / "go-on").touch()
    command = f"{submit} {{resources.mem_mb}} {{resources.runtime}} {{resources.gpu}}"
    options = ["--profile", "profiles/slurm", "--executor", "cluster-generic", "--retries", "0"]
    options += ["--cluster-generic-submit-cmd", command, "--seconds-between-status-checks", "1"]
    process = study("01-bert-cased", "01-bert-uncased", "02-distil-cased", options=options)
    told = process.communicate(timeout=180)[1]
    assert process.returncode == 1, told
    asked = (tmp_path / "runs" / "submitted").read_text().splitlines()
    assert [line.split()[:3] for line in asked] == [["16000", "4320", "1"]] * 2
    done = tmp_path / "runs" / "tiny" / "notebooks"
    assert (done / "01-bert-uncased.ipynb").exists()
    assert errors_in(done / "01-bert-cased.partial.ipynb") == ["AssertionError"]
    assert "01-bert-uncased" in told and told.split("\n")[-2].startswith("01-bert-cased failed; ")


def test_a_wrong_parameter_stops_a_study_with_one_line(study, start):
    """Snakemake's own words are off, so the Snakefile says it. `study` has laid the files."""
    words = "--cores 1 --quiet all --nolock --config profile=none".split()
    process = start("snakemake", *words)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert re.fullmatch(r"error: profile 'none': no folder .*; there are: .*demo.*\n", told), told
