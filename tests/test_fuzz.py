"""Damaged files of every reader: it gives a result, or one error that says where the fault is.

ROLIB_FUZZ: how many damaged files a reader gets; `make soak` sets 1,000.
"""

import os
import random
import shutil
from collections.abc import Iterator

import pandas as pd
import pytest

from rolib import runs
from rolib.config import ROOT
from rolib.data.tasks import SAMPLE, load_task, task_source
from rolib.evaluation.predictions import Predictions, write_table
from rolib.measures import TASKS
from rolib.profiles import load_profile


def mutated(whole: bytes, seed: str, number: int, files: int = 1) -> Iterator[bytes]:
    """Copies of a file with some bytes changed, lost, put in, or its end cut off.

    `number` of them, or ROLIB_FUZZ, over all `files` of a reader.
    """
    rng = random.Random(seed)
    for _ in range(-(-int(os.environ.get("ROLIB_FUZZ", number)) // files)):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(content))
            change = [rng.randrange(256)] * rng.randint(0, 3)
            content[place : place + rng.choice([0, 1, 1, 20])] = bytes(change)
        yield bytes(content[: rng.choice([None, None, rng.randrange(len(whole))])])


def count_errors(file, number, read, names, files=1):
    """Read mutants of a file; errors must be ValueErrors that say one of `names`."""
    failed = 0
    for content in mutated(file.read_bytes(), file.name, number, files):
        file.write_bytes(content)
        try:
            read()
        except ValueError as error:
            assert any(str(name) in str(error) for name in names), error
            failed += 1
    return failed


@pytest.mark.parametrize("name", TASKS)
def test_a_measure_of_mutated_files(tmp_path, name):
    """Each file of the measure in turn: every one gets a share of the mutants."""
    shutil.copytree(SAMPLE / TASKS[name].dataset, tmp_path / TASKS[name].dataset)
    failed, files = 0, task_source(name, tmp_path).files
    for file in files:
        whole = file.read_bytes()
        names = [tmp_path, f"{TASKS[name].dataset}: the "]
        failed += count_errors(file, 20, lambda: load_task(name, tmp_path), names, len(files))
        file.write_bytes(whole)
    assert failed


@pytest.mark.parametrize("name", ["common", "training", "evaluate", "teachers/bert-cased"])
def test_a_profile_of_mutated_parameters(tmp_path, name):
    shutil.copytree(ROOT / "params" / "tiny", tmp_path / "tiny")
    file = tmp_path / "tiny" / f"{name}.yaml"
    assert count_errors(file, 20, lambda: load_profile("tiny", tmp_path), [file.name])


READERS = {
    "predictions.parquet": Predictions.read,
    "manifest.json": lambda path: runs.read_json(path, "it"),
    "metrics.jsonl": runs.read_metrics,
}


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_of_a_run(tmp_path, name):
    file = tmp_path / name
    if file.suffix == ".parquet":
        rows = {"example": list("abcd"), "position": 0, "gold": "x", "predicted": list("xyxy")}
        write_table(file, pd.DataFrame(rows | {"probabilities": [[0.5, 0.5]] * 4}))
    else:
        records = "".join(f'{{"step": {n}, "loss": {n}.5, "text": "ș"}}\n' for n in range(9))
        file.write_text(records if name == "metrics.jsonl" else records[:40], encoding="utf-8")
    assert count_errors(file, 20, lambda: READERS[name](file), [file]) > 0
