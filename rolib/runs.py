"""Run folders: configuration, manifest and metrics beside every result, written whole or not at all."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from rolib.config import ROOT, Config, to_dict

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "numpy",
    "scipy",
    "pandas",
)


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder."""
    if not path.is_dir():
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole: under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Write JSON whole; non-finite numbers are refused, since a NaN in a result is a fault and no value."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, made_by: str):
    """Read a result of an earlier notebook; errors as in `require`."""
    return json.loads(require(path, made_by).read_text(encoding="utf-8"))


def require(path: Path, made_by: str) -> Path:
    """Return `path` if it exists, else raise one line that names the command that makes it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run {made_by} first")
    return path


def made_by(config: Config) -> str:
    """The command that makes this profile's results, for error messages."""
    return "`make demo`" if config.profile == "tiny" else f"`make study PROFILE={config.profile}`"


def model_folder(config: Config, name: str) -> Path:
    """The folder of a finished teacher or student of this profile; FileNotFoundError names the mend."""
    for kind in ("teachers", "students"):
        if (config.folder / kind / name / "manifest.json").exists():
            return config.folder / kind / name
    raise FileNotFoundError(
        f"{config.folder}: no finished model {name!r}: run {made_by(config)} first"
    )


def device_name() -> str:
    """The device that a run uses, for manifests and captions."""
    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )


def git_commit() -> str:
    """The commit of this checkout, marked `-dirty` if a file differs from it or is not in it."""

    def git(*words):
        return subprocess.run(
            ["git", "-C", ROOT, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"


def manifest(config: Config, inputs: dict[str, str], seconds: float) -> dict:
    """What is needed to tell where a result came from; `inputs` maps a name to the hash of what was read."""
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": device_name(),
        "seed": config.seed,
        "inputs": inputs,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "duration_seconds": round(seconds, 1),
    }


def is_finished(folder: Path, config: Config, inputs: dict[str, str]) -> bool:
    """True if the run in `folder` ended with this very configuration and these very inputs."""
    if not (folder / "manifest.json").exists() or not (folder / "config.yaml").exists():
        return False
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    read = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["inputs"]
    # As text, since the order of the keys may mean something: the first of the teachers gives the vocabulary.
    return json.dumps(saved) == json.dumps(to_dict(config)) and read == inputs


@contextlib.contextmanager
def new_run(folder: Path, config: Config, inputs: dict[str, str], **more) -> Iterator[Path]:
    """Yield a working folder beside `folder`; on success its manifest (and `more` in it) is added and it takes the final name.

    A working folder left by an interrupted run with the same configuration and inputs is yielded as it is, so that
    its checkpoints can be used; any other is thrown away.
    """
    working = folder.with_name(f".{folder.name}.partial")
    identity, identity_file = (
        {"config": to_dict(config), "inputs": inputs},
        working / "identity.json",
    )
    if working.exists() and (
        not identity_file.exists() or json.loads(identity_file.read_text()) != identity
    ):
        shutil.rmtree(working)
    write_json(identity_file, identity)
    write_text(
        working / "config.yaml",
        yaml.safe_dump(to_dict(config), allow_unicode=True, sort_keys=False),
    )
    start = time.perf_counter()
    yield working
    write_json(
        working / "manifest.json", manifest(config, inputs, time.perf_counter() - start) | more
    )
    shutil.rmtree(working / "checkpoints", ignore_errors=True)
    identity_file.unlink()
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(working, folder)


def append_metrics(path: Path, record: dict) -> None:
    """Add one line to a metrics.jsonl."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """All records of a metrics.jsonl, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def progress(iterable, **options):
    """A tqdm bar; where nobody watches a terminal it prints a line every few seconds, so that logs stay readable."""
    return tqdm(
        iterable,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        file=sys.stderr,
        dynamic_ncols=True,
        **options,
    )
