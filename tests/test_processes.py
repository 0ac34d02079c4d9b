"""Several processes make every stage together: one writes, all wait, the numbers are the same."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from rolib import stages
from rolib.config import ROOT
from rolib.distillation.checkpoints import checkpoints
from rolib.profiles import load_profile
from rolib.runs import read_json, read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def configs(processes):
    """A small teacher that is pre-trained, and its student.

    A step has eight blocks, whatever the number of processes.
    """
    study, training = load_profile("tiny"), {"steps": 4, "log_every": 1, "checkpoint_every": 2}
    training |= {"batch_size": 2, "accumulation": 4 // processes, "words_per_source": 3000}
    teacher = study["teachers"]["bert-uncased"]
    teacher = teacher.model_copy(update=training | {"require_gate": False, "dropout": 0.0})
    student = study["students"]["distil-uncased"].model_copy(update=training)
    return teacher, student


def describe(folder, **described):
    """Write what tests/run_stages.py shall run; returns the file."""
    told = [
        (stage, type(one).__name__, json.loads(one.model_dump_json()))
        for stage, one in described.items()
    ]
    (folder / "stages.json").write_text(json.dumps(told), encoding="utf-8")
    return folder / "stages.json"


def make(processes, folder, monkeypatch):
    """All runs of so many processes, below the folder that is returned."""
    folder.mkdir()
    monkeypatch.setenv("ROLIB_RUNS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    teacher, student = configs(processes)
    file = describe(folder, prepare_teacher=teacher)
    command = [*TORCHRUN, str(processes), ROOT / "tests" / "run_stages.py", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    records = []
    student = student.model_copy(update={"num_processes": processes})
    stages.distil_student(student, on_log=records.append)  # starts a group itself
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    return folder / "tiny"


def test_every_stage_in_several_processes(tmp_path, monkeypatch):
    processes = int(os.environ.get("ROLIB_PROCESSES", "2"))
    alone = make(1, tmp_path / "one", monkeypatch)
    together = make(processes, tmp_path / "several", monkeypatch)
    ours, theirs = (
        sorted(path.relative_to(root) for path in root.rglob("*")) for root in (alone, together)
    )
    # The names of TensorBoard's files hold time and process.
    ours, theirs = (
        [name.with_name("events") if "tfevents" in name.name else name for name in one]
        for one in (ours, theirs)
    )
    ours, theirs = ([name for name in one if "corpus" not in name.parts] for one in (ours, theirs))
    assert ours == theirs
    assert not [name for name in ours if name.name.endswith((".lock", ".partial", ".tmp"))]
    roots = alone, together
    for run in ("teachers/bert-uncased", "students/distil-uncased"):
        ours, theirs = (read_metrics(root / run / "metrics.jsonl") for root in (alone, together))
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            for name in one.keys() - {"tokens_per_second"}:
                assert one[name] == pytest.approx(other[name], abs=1e-4), (run, name)
        ours, theirs = (load_file(root / run / "model.safetensors") for root in (alone, together))
        assert all((weight - theirs[name]).abs().max() < 1e-4 for name, weight in ours.items())
        numbers = [read_json(root / run / "manifest.json", "")["processes"] for root in roots]
        assert numbers == [1, processes]


on_demand = pytest.mark.skipif(
    not os.environ.get("ROLIB_SOAK"), reason="takes a minute: set ROLIB_SOAK=1"
)


@on_demand
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_of_a_group(tmp_path, monkeypatch, number):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    teacher, student = configs(2)
    changes = {"num_processes": 2, "steps": 200, "log_every": 5, "checkpoint_every": 1000}
    student = student.model_copy(update=changes)
    file = describe(tmp_path, prepare_teacher=teacher, distil_student=student)
    command = [sys.executable, ROOT / "tests" / "run_stages.py", file]
    partial = tmp_path / "tiny" / "students" / ".distil-uncased.partial"
    with subprocess.Popen(command) as first:
        while not (partial / "metrics.jsonl").exists():
            time.sleep(0.1)
        group = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(number)
        assert first.wait() in (-number, 1)  # of a KeyboardInterrupt
    assert not psutil.wait_procs(group, timeout=10)[1]
    assert len(checkpoints(partial)) == 1
    subprocess.run(command, check=True)
    lines = read_metrics(partial.with_name("distil-uncased") / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(5, 201, 5))


# SLURM of one machine: it starts a command once for each node.
SRUN = """#!/bin/sh
for id in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_NODEID=$id "$@" &
done
wait
"""


@on_demand
def test_two_nodes_train_like_one(tmp_path, monkeypatch):
    """The SLURM script, with one process on the CPU of each node."""
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/sh\necho 127.0.0.1\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    study = load_profile("demo")
    stages.prepare_teacher(study["teachers"]["bert-cased"])
    changes = {"steps": 6, "log_every": 3}
    (tmp_path / "changes.yaml").write_text(yaml.safe_dump(changes))
    job = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_ID": str(os.getpid())}
    job["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    script = ["sh", "profiles/slurm/distil.sh", "demo", "distil-cased", tmp_path / "changes.yaml"]
    subprocess.run(script, cwd=ROOT, env=os.environ | job, check=True)
    together = tmp_path / "demo" / "students" / "distil-cased"
    changes |= {"accumulation": 2, "student": "alone"}
    alone = stages.distil_student(study["students"]["distil-cased"].model_copy(update=changes))
    metrics = (read_metrics(folder / "metrics.jsonl") for folder in (alone, together))
    for one, two in zip(*metrics, strict=True):
        del one["tokens_per_second"], two["tokens_per_second"]
        assert one == pytest.approx(two, abs=1e-4)
