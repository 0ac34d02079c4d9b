"""Run folders: configuration, manifest, metrics and result, written whole or not at all."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from rolib.config import ROOT, Config, to_dict
from rolib.training import processes

PACKAGES = "torch transformers tokenizers datasets accelerate numpy scipy pandas".split()
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
# What Python, safetensors and torch.save say of it.
FULL_DISK = re.compile("No space left on device|inline_container")


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
    """Write a text file whole: under a temporary name, onto the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    wait_for_disk(temporary)
    os.replace(temporary, path)


def write_parameters(path: Path, config: Config) -> None:
    """Write parameters as a YAML file, beside what was made by them."""
    write_text(path, yaml.safe_dump(to_dict(config), allow_unicode=True, sort_keys=False))


def wait_for_disk(path: Path) -> None:
    """Return when the content of a file has reached the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole; a number that is not finite raises ValueError."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """The content of a result of an earlier notebook; errors as in `require`, or ValueError."""
    try:
        return json.loads(require(path, made_by).read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, made_by, str(error)) from None


def damaged(path: Path, made_by: str, problem: str) -> ValueError:
    """The error for a file of a run that is not as it was written."""
    return ValueError(f"{path} is damaged ({problem}): delete {path.parent} and run {made_by}")


def require(path: Path, made_by: str) -> Path:
    """`path`. FileNotFoundError, if it is missing, names the command that makes it."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run {made_by} first")
    return path


def made_by(config: Config) -> str:
    """The command that makes this profile's results, for error messages."""
    return "`make demo`" if config.profile == "demo" else f"`make study PROFILE={config.profile}`"


def model_folder(config: Config, name: str) -> Path:
    """The folder of a finished teacher or student, its files unchanged.

    FileNotFoundError or ValueError (a damaged file) name the remedy.
    """
    for kind in ("teachers", "students"):
        folder = config.folder / kind / name
        if (folder / "manifest.json").exists():
            check_files(folder, made_by(config))
            return folder
    problem = f"{config.folder}: no finished model {name!r}"
    raise FileNotFoundError(f"{problem}: run {made_by(config)} first")


def model_identity(folder: Path, made_by: str) -> str:
    """The SHA-256 of a model's weights, shape and tokenizer; for errors see `require`.

    Without tokenizer.json transformers would make a tokenizer of special pieces only.
    """
    digest = hashlib.sha256()
    for file in MODEL_FILES:
        digest.update(sha256(require(folder / file, made_by)).encode())
    return digest.hexdigest()


def check_files(folder: Path, made_by: str) -> None:
    """Raise ValueError for a file of a finished run that differs from its manifest's hash."""
    for file, checksum in read_json(folder / "manifest.json", made_by).get("files", {}).items():
        if sha256(require(folder / file, made_by)) != checksum:
            raise damaged(folder / file, made_by, "its SHA-256 is not that of manifest.json")


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
        "processes": processes().num_processes,
        "seed": config.seed,
        "inputs": inputs,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "duration_seconds": round(seconds, 1),
    }


def partial_folder(folder: Path) -> Path:
    """The folder in which the run `folder` is made."""
    return folder.with_name(f".{folder.name}.partial")


def is_finished(folder: Path, config: Config, inputs: dict[str, str]) -> bool:
    """True if the run in `folder` ended with this configuration and these inputs.

    A parameter that was added to rolib since had its default. ValueError for a file that changed.
    """
    whole = partial_folder(folder) / "manifest.json"
    if whole.exists() or folder.with_name(f".{folder.name}.lock").exists():
        # A kill came before the last rename, or after it. A live process is left alone.
        with contextlib.suppress(RuntimeError, OSError), lock(folder):
            if whole.exists():
                publish(folder)
    if not (folder / "manifest.json").exists() or not (folder / "config.yaml").exists():
        return False
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    read = read_json(folder / "manifest.json", made_by(config))["inputs"]
    wanted, fields = to_dict(config), type(config).model_fields
    saved = {key: saved.get(key, fields[key].default) for key in wanted} | saved
    # As text, since the order of keys may matter: the first teacher gives the vocabulary.
    # default: of a parameter without a default, which differs from any value.
    same = json.dumps(saved, default=str) == json.dumps(wanted) and read == inputs
    if same:
        check_files(folder, made_by(config))
    return same


@contextlib.contextmanager
def lock(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Hold the right to write the run `folder`, which the system gives back if the process dies.

    RuntimeError, which names the other process, if one has held it for `timeout` seconds (-1:
    wait as long as it takes); OSError for a folder that cannot be written.
    """
    file = folder.with_name(f".{folder.name}.lock")
    right = FileLock(file, timeout)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        right.acquire()
    except Timeout:
        # The other one may have ended just now, or not have written its number yet.
        number = file.read_text() if file.exists() else ""
        process = f"process {number or '(unknown)'} is making it"
        raise RuntimeError(f"{folder}: {process}: wait for it, or stop it") from None
    except OSError as error:  # a folder of somebody else, a file system that is read-only, a file
        problem = f"{folder}: cannot be written ({error})"
        raise OSError(f"{problem}: change its rights, or set ROLIB_RUNS") from None
    file.write_text(str(os.getpid()))
    try:
        yield
    finally:
        file.unlink()  # filelock looks whether the file that it opened is still this one
        right.release()


def publish(folder: Path) -> None:
    """Give a whole run its name, in place of an earlier one.

    Whenever a kill comes, the new run stays whole under one of its names, and is found again.
    """
    working = partial_folder(folder)
    shutil.rmtree(working / "checkpoints", ignore_errors=True)
    (working / "identity.json").unlink(missing_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # from here on the earlier one is unfinished
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(working, folder)


@contextlib.contextmanager
def new_run(folder: Path, config: Config, inputs: dict[str, str], **more: Any) -> Iterator[Path]:
    """A working folder beside `folder`, which takes its name when the block ends without an error.

    A manifest is added then, with `more` in it. A working folder that an interrupted run with the
    same configuration and inputs left is given as it is, so that its checkpoints are used. Any
    other one is deleted. Of several processes that work together the main one makes the folder and
    gives it its name; the others wait. Errors as in `lock`, and OSError for a full disk.
    """
    state, working = processes(), partial_folder(folder)
    with lock(folder) if state.is_main_process else contextlib.nullcontext():
        if state.is_main_process:
            start = take_over(working, config, inputs)
        state.wait_for_everyone()
        try:
            yield working
        except Exception as error:
            if FULL_DISK.search(str(error)):
                problem = f"{working}: no space left on the disk"
                raise OSError(f"{problem}: free some, then run the same command again") from error
            raise
        state.wait_for_everyone()
        if state.is_main_process:
            origin = manifest(config, inputs, time.time() - start)
            write_json(working / "manifest.json", origin | more | {"files": hash_files(working)})
            publish(folder)
    state.wait_for_everyone()


def take_over(working: Path, config: Config, inputs: dict[str, str]) -> float:
    """Make the working folder of a run, or keep that of the same run interrupted.

    Returns when it started (in seconds, as of `time.time`), the pauses left out.
    """
    identity = {"config": to_dict(config), "inputs": inputs}
    identity_file, start = working / "identity.json", time.time()
    found = read_json(identity_file, made_by(config)) if identity_file.exists() else {}
    earlier_start = found.pop("start", None)
    if found == identity:
        last_write = max(path.stat().st_mtime for path in working.rglob("*"))
        start -= last_write - earlier_start
        for path in working.rglob(".*.tmp"):
            path.unlink()
    elif working.exists():
        shutil.rmtree(working)
    write_json(identity_file, identity | {"start": start})
    write_parameters(working / "config.yaml", config)
    return start


def hash_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a run, by path, once all are on the disk.

    Without the files of the work, and without the model card, which people may edit.
    """
    mode, hashes = folder.stat().st_mode & 0o666, {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(("checkpoints/", "identity.json", "README.md")):
            path.chmod(mode)  # safetensors writes files that nobody else may read
            wait_for_disk(path)
            hashes[name] = sha256(path)
    return hashes


def append_metrics(path: Path, record: dict) -> None:
    """Add one line to a metrics.jsonl."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict]:
    """All records of a metrics.jsonl, in order; a last line that a kill cut off is left out."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except ValueError as error:
        raise damaged(path, "the same command", str(error)) from None


def progress(iterable: Iterable, **options: Any) -> tqdm:
    """A tqdm bar with the time left: in JupyterLab a widget; in a log a line every few seconds."""
    # Jupyter's server sets the first one; processes that a kernel starts have no widgets.
    if "JPY_SESSION_NAME" in os.environ and "ipykernel" in sys.modules:
        from tqdm.notebook import tqdm as widget  # late: it loads IPython

        return widget(iterable, **options)
    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(iterable, mininterval=interval, file=sys.stderr, dynamic_ncols=True, **options)
