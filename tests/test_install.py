"""`pip install .` gives a package that works in any folder, without the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rolib.config import ROOT

SCRIPT = """
import rolib
from rolib import profiles, stages
from rolib.config import ConfigError

print(rolib.__file__)
study = profiles.load_profile("demo")
stages.prepare_teacher(study["teachers"]["bert-cased"])  # from the box, on the built-in sample
quick = {"steps": 2, "log_every": 1, "checkpoint_every": 2}
print(stages.distil_student(study["students"]["distil-cased"].model_copy(update=quick)))
try:
    profiles.load_profile("other")
except ConfigError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the installed package and nothing else of the repository."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "rolib", source / "rolib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--no-index", "--target", target, source], check=True)
    return target


def test_the_installed_package_works_outside_the_repository(installed, tmp_path):
    shutil.copytree(ROOT / "params" / "demo", tmp_path / "params" / "demo")
    environment = {key: value for key, value in os.environ.items() if key != "ROLIB_RUNS"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    module, student, error = run.stdout.splitlines()
    assert Path(module).is_relative_to(installed)
    assert Path(student) == tmp_path / "runs" / "demo" / "students" / "distil-cased"
    assert (Path(student) / "model.safetensors").exists()
    assert error == f"profile 'other': no folder {tmp_path}/params/other; there are: demo"


def test_every_file_of_the_package_is_installed(installed):
    files = [file.relative_to(ROOT) for file in (ROOT / "rolib").rglob("*") if file.is_file()]
    wanted = [file for file in files if "__pycache__" not in file.parts]
    assert wanted and not [file for file in wanted if not (installed / file).exists()]
