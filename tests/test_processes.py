"""Several processes make every stage together: one writes, all wait, the numbers are the same."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from safetensors.torch import load_file

from rolib.config import ROOT
from rolib.profiles import load_profile
from rolib.runs import read_metrics

BLOCKS_A_STEP = 8


def described(processes):
    """A small teacher that is pre-trained, its student, and two measures with two seeds."""
    study, more = load_profile("tiny"), {"steps": 4, "log_every": 1, "checkpoint_every": 2}
    more |= {"batch_size": 2, "accumulation": BLOCKS_A_STEP // 2 // processes, "dropout": 0.0}
    teacher = study["teachers"]["bert-uncased"]
    teacher = teacher.model_copy(update=more | {"require_gate": False, "words_per_source": 3000})
    more.pop("dropout")
    student = study["students"]["distil-uncased"]
    student = student.model_copy(update=more | {"words_per_source": 3000})
    epochs = dict.fromkeys(study["evaluate"].epochs, 1)
    few = {"tasks": ["sapn", "sts"], "seeds": [1, 2], "epochs": epochs, "model": "distil-uncased"}
    evaluate = study["evaluate"].model_copy(update=few | {"max_train_examples": 40})
    stages = ("prepare_teacher", teacher), ("distil_student", student), ("evaluate_model", evaluate)
    return [(stage, type(one).__name__, json.loads(one.model_dump_json())) for stage, one in stages]


def run_in(processes, folder):
    """The results of the stages in so many processes, below `folder`/tiny."""
    folder.mkdir()
    (folder / "stages.json").write_text(json.dumps(described(processes)), encoding="utf-8")
    more = {"PYTHONPATH": str(ROOT), "ROLIB_RUNS": str(folder)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    script = [str(processes), ROOT / "tests" / "run_stages.py", folder / "stages.json"]
    done = subprocess.run(
        [*torchrun, *script], env=os.environ | more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return folder / "tiny"


@pytest.mark.parametrize("processes", [2])
def test_every_stage_in_several_processes(tmp_path, processes):
    alone, together = run_in(1, tmp_path / "one"), run_in(processes, tmp_path / "several")
    names = [
        sorted(path.relative_to(root) for path in root.rglob("*") if path.suffix != ".arrow")
        for root in (alone, together)
    ]
    left = [name for name in names[1] if "corpus" not in name.parts]
    assert left == [name for name in names[0] if "corpus" not in name.parts]
    assert not [name for name in left if name.name.endswith((".lock", ".partial", ".tmp"))]
    for run in ("teachers/bert-uncased", "students/distil-uncased"):
        ours, theirs = (read_metrics(root / run / "metrics.jsonl") for root in (alone, together))
        assert [line["step"] for line in ours] == [1, 2, 3, 4]
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            for name in one.keys() - {"tokens_per_second"}:
                assert one[name] == pytest.approx(other[name], abs=1e-4), (run, name)
        ours, theirs = (load_file(root / run / "model.safetensors") for root in (alone, together))
        assert all((weight - theirs[name]).abs().max() < 1e-4 for name, weight in ours.items())
    for run in ("sapn/seed-1", "sapn/seed-2", "sts/seed-1", "sts/seed-2"):
        path = f"evaluation/distil-uncased/{run}/predictions.parquet"
        one, other = (pd.read_parquet(root / path) for root in (alone, together))
        assert one["example"].tolist() == other["example"].tolist()
        if run.startswith("sts"):
            assert one["predicted"].tolist() == pytest.approx(other["predicted"].tolist(), abs=0.01)
