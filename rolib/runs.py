"""Run folders: configuration, manifest, metrics and result, written whole or not at all."""

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from tqdm import tqdm

from rolib.config import ROOT, Config, to_dict

PACKAGES = "torch transformers tokenizers datasets accelerate numpy scipy pandas".split()
T = TypeVar("T")


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


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole; a number that is not finite raises ValueError."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """The content of a result of an earlier notebook; errors as in `require`."""
    return json.loads(require(path, made_by).read_text(encoding="utf-8"))


def require(path: Path, made_by: str) -> Path:
    """`path`. FileNotFoundError, if it is missing, names the command that makes it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run {made_by} first")
    return path


def made_by(config: Config) -> str:
    """The command that makes this profile's results, for error messages."""
    return "`make demo`" if config.profile == "demo" else f"`make study PROFILE={config.profile}`"


def model_folder(config: Config, name: str) -> Path:
    """The folder of a finished teacher or student; FileNotFoundError names the remedy."""
    for kind in ("teachers", "students"):
        if (config.folder / kind / name / "manifest.json").exists():
            return config.folder / kind / name
    problem = f"{config.folder}: no finished model {name!r}"
    raise FileNotFoundError(f"{problem}: run {made_by(config)} first")


def device_name() -> str:
    """The device that a run uses, for manifests and captions."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def git_commit() -> str:
    """The commit of this checkout, marked `-dirty` if a file differs from it or is not in it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"


def manifest(config: Config, inputs: dict[str, str], seconds: float) -> dict:
    """The origin of a result. inputs: the hash of each thing that was read, by name."""
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
    """True if the run in `folder` ended with this configuration and these inputs."""
    if not (folder / "manifest.json").exists() or not (folder / "config.yaml").exists():
        return False
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    read = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["inputs"]
    # As text, since the order of keys may matter: the first teacher gives the vocabulary.
    return json.dumps(saved) == json.dumps(to_dict(config)) and read == inputs


@contextlib.contextmanager
def new_run(folder: Path, config: Config, inputs: dict[str, str], **more: Any) -> Iterator[Path]:
    """A working folder beside `folder`, which takes its name when the block ends without an error.

    A manifest is added then, with `more` in it. A working folder that an interrupted run with the
    same configuration and inputs left is given as it is, so that its checkpoints are used. Any
    other one is deleted.
    """
    working = folder.with_name(f".{folder.name}.partial")
    identity_file = working / "identity.json"
    identity = {"config": to_dict(config), "inputs": inputs}
    if working.exists():
        same = identity_file.exists() and json.loads(identity_file.read_text()) == identity
        if not same:
            shutil.rmtree(working)
    write_json(identity_file, identity)
    settings = yaml.safe_dump(to_dict(config), allow_unicode=True, sort_keys=False)
    write_text(working / "config.yaml", settings)
    start = time.perf_counter()
    yield working
    origin = manifest(config, inputs, time.perf_counter() - start)
    write_json(working / "manifest.json", origin | more)
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


def progress(iterable: Iterable[T], **options: Any) -> "tqdm[T]":
    """A tqdm bar; in a log, where no terminal is, one line every few seconds."""
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(iterable, mininterval=interval, file=sys.stderr, dynamic_ncols=True, **options)
