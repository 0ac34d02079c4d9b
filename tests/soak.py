"""Kill everything at random moments, start it again, and compare with what nobody disturbed.

    make soak    # a quarter of an hour on two cores

Distillation, fine-tuning, the download and a Snakemake batch get SIGKILLs and SIGTERMs, each until
its signals are used up. A signal comes at a moment drawn from the length of an undisturbed run, or
in a phase that is short: the writing of a checkpoint, the end of a run. A run that ends is compared
and begins anew. Then each reader of files gets 1,000 damaged ones. The log is tests/soak.log.
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml
from test_download import CONTENT, Handler
from test_processes import configs, describe

from rolib.config import ROOT

SEED, FUZZED = 14, "1000"
LOG = ROOT / "tests" / "soak.log"
START, LOCK = time.monotonic(), threading.Lock()
FINAL_FILES = ("model.safetensors", "predictions.parquet", "manifest.json")
found: list[str] = []  # what went wrong
counts: Counter[str] = Counter()


class Part(NamedTuple):
    """A process that is disturbed; `command` gives its words for a folder of results."""

    name: str
    command: Callable[[Path], list[str]]
    kills: int
    terms: int
    aims: tuple[str, ...]  # phases that every third signal waits for
    place: Path  # in which it works


def say(part: str, what: str, wrong: bool = False) -> None:
    """Write one line; `wrong` is for what must not happen."""
    line = f"{time.monotonic() - START:7.1f} s  {part}: {'WRONG: ' * wrong}{what}"
    with LOCK:
        print(line, flush=True)
        with LOG.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        found.extend([line] * wrong)


# --- a process and what it leaves -----------------------------------------------------------------


def start(part: Part, folder: Path) -> subprocess.Popen:
    """Start the process, which shall go on with what is in `folder`."""
    environment = {"ROLIB_RUNS": str(folder), "PYTHONPATH": str(part.place)}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with open(f"{folder}.log", "a", encoding="utf-8") as log:
        options = {"cwd": part.place, "stdout": log, "stderr": log, "start_new_session": True}
        environment = os.environ | environment
        return subprocess.Popen(part.command(folder), env=environment, **options)


def alive(folder: Path) -> list[psutil.Process]:
    """All processes that work for this folder, orphans too."""
    everyone = psutil.process_iter(["environ"])
    return [one for one in everyone if (one.info["environ"] or {}).get("ROLIB_RUNS") == str(folder)]


def phase(folder: Path, since: float) -> str:
    """What the process that was started then does, by the files that it has written."""

    def new(path: Path) -> bool:
        try:
            return path.stat().st_mtime >= since
        except OSError:
            return False

    runs = [*folder.glob("tiny/*/.*.partial"), *folder.glob("tiny/evaluation/*/*/.*.partial")]
    runs = [run for run in runs if new(run / "identity.json") or new(run / "manifest.json")]
    if any(new(run / "checkpoints" / ".partial") for run in runs):
        return "checkpoint"
    if any(new(run / file) for run in runs for file in FINAL_FILES):
        return "end of a run"
    if any(new(run / "metrics.jsonl") for run in runs):
        return "training"
    if runs:
        return "begin of a run"
    if any(map(new, folder.glob("*/*.part"))):
        return "transfer"
    return "notebook" if any(map(new, folder.glob("tiny/logs/*.log"))) else "import and reading"


def results(folder: Path) -> dict[str, object]:
    """What must be equal, by path: the content of each file, without times and speeds."""
    values: dict[str, object] = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("tiny/corpus/", "tiny/logs/")):
            continue
        if path.suffix == ".ipynb" or name == "tiny/.lock":
            values[name] = "exists"
        elif path.name == "metrics.jsonl":
            records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            values[name] = [record | {"tokens_per_second": 0} for record in records]
        elif path.name == "manifest.json":
            values[name] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
        else:
            values[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return values


def compare(part: Part, folder: Path, expected: dict[str, object]) -> None:
    """Say whether a finished run is as it must be, and take it away."""
    values = results(folder)
    names = sorted(values.keys() | expected.keys())
    different = [name for name in names if values.get(name) != expected.get(name)]
    say(part.name, f"finished: {len(names)} files, {different or 'none'} differ", bool(different))
    if processes := alive(folder):
        say(part.name, f"{len(processes)} orphans after the end", wrong=True)
    stored = [path.name for path in (folder / "tiny" / "corpus").rglob("*")]
    left = [name for name in stored if name.startswith("tmp") or name.endswith(".incomplete")]
    counts[f"{part.name}: temporary files of datasets in corpus/"] += len(left)
    counts[f"{part.name}: runs finished"] += 1
    shutil.rmtree(folder)


# --- signals --------------------------------------------------------------------------------------


def disturb(part: Part) -> None:
    """Send all signals of a part; compare what each of its runs leaves."""
    rng, folder = random.Random(f"{SEED} {part.name}"), part.place / part.name
    began = time.monotonic()
    if start(part, folder).wait() != 0:
        return say(part.name, "the undisturbed run fails", wrong=True)
    length, expected = time.monotonic() - began, results(folder)
    say(part.name, f"undisturbed in {length:.1f} s, {len(expected)} files")
    shutil.rmtree(folder)
    signals = [signal.SIGKILL] * part.kills + [signal.SIGTERM] * part.terms
    rng.shuffle(signals)
    aims, failures = itertools.cycle(part.aims), 0
    while signals and failures < 3:
        aim = next(aims) if part.aims and len(signals) % 3 == 0 else ""
        since, process = time.time(), start(part, folder)
        code = wait_for_moment(process, folder, since, aim, rng, length)
        if code is None:
            strike(part, process, folder, since, signals.pop(), rng)
        elif code == 0:
            compare(part, folder, expected)
        else:
            failures += 1
            say(part.name, f"ended by itself with {code}", wrong=True)
    if start(part, folder).wait() != 0:
        return say(part.name, "does not go on", wrong=True)
    compare(part, folder, expected)


def wait_for_moment(
    process: subprocess.Popen,
    folder: Path,
    since: float,
    aim: str,
    rng: random.Random,
    length: float,
) -> int | None:
    """Wait for the moment of a signal; the exit status of a process that ends before it."""
    if not aim:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(rng.uniform(0, length))
        return None
    while process.poll() is None and phase(folder, since) != aim:
        time.sleep(0.003)
    time.sleep(rng.uniform(0, 0.06))
    return process.poll()


def strike(
    part: Part,
    process: subprocess.Popen,
    folder: Path,
    since: float,
    number: signal.Signals,
    rng: random.Random,
) -> None:
    """Send a signal, and look whether all processes end; half of the time, a start comes sooner."""
    doing, seconds = phase(folder, since), time.time() - since
    process.send_signal(number)
    code, sent = process.wait(), time.time()
    told = f"{number.name} after {seconds:.1f} s ({doing}), status {code}"
    counts[f"{part.name}: {number.name}"] += 1
    counts[f"{part.name}: signals in phase {doing}"] += 1
    if alive(folder) and rng.random() < 0.5:
        return say(part.name, f"{told}; the next start comes while its children end")
    while (processes := alive(folder)) and time.time() - sent < 60:
        time.sleep(0.1)
    say(part.name, f"{told}; all ended {time.time() - sent:.1f} s later", wrong=bool(processes))


# --- the parts ------------------------------------------------------------------------------------


def copy_checkout(place: Path) -> None:
    """What the processes read, with a profile `tiny` that is smaller still."""
    for name in ("rolib", "notebooks", "params", "tests"):
        shutil.copytree(ROOT / name, place / name)
    shutil.copy(ROOT / "Snakefile", place)
    few = {"words_per_source": 3000, "log_every": 5, "checkpoint_every": 10}
    changes: dict[str, dict] = {"training": few, "pretrain": {"steps": 60}}
    changes |= {"distill": {"steps": 60}, "robustness": {"tasks": ["sapn"]}}
    changes |= {"evaluate": {"tasks": ["sapn", "sts"], "max_train_examples": 40}}
    for name, values in changes.items():
        file = place / "params" / "tiny" / f"{name}.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8")) | values
        file.write_text(yaml.safe_dump(content), encoding="utf-8")


def stages(place: Path) -> Iterator[Part]:
    """A distillation, with its teacher and the cache of it; fine-tuning of two measures."""
    teacher, evaluate, student = configs(1)
    many = {"accumulation": 1, "log_every": 5, "checkpoint_every": 10}
    teacher = teacher.model_copy(update=many | {"steps": 60, "batch_size": 16, "dropout": 0.1})
    student = student.model_copy(update=many | {"steps": 200, "batch_size": 16, "cached_pieces": 8})
    few = {"max_train_examples": 0, "epochs": dict.fromkeys(evaluate.epochs, 4)}
    trained = {"prepare_teacher": teacher, "distil_student": student}
    tuned = {"prepare_teacher": teacher.model_copy(update={"steps": 5})}
    tuned["evaluate_model"] = evaluate.model_copy(update=few)
    short = ("checkpoint", "end of a run")
    for name, described, kills, terms, aims in (
        ("distillation", trained, 22, 5, short),
        ("fine-tuning", tuned, 15, 2, short[1:]),
    ):
        (place / f"{name}-stages").mkdir()
        file = describe(place / f"{name}-stages", **described)
        words = [sys.executable, "tests/run_stages.py", str(file)]
        yield Part(name, lambda _, words=words: words, kills, terms, aims, place)


class SlowHandler(Handler):
    """The server of tests/test_download.py, with 0.6 MB a second."""

    def setup(self) -> None:
        super().setup()
        write = self.wfile.write

        def slowly(content: bytes) -> None:
            for first in range(0, len(content), 2**14):
                time.sleep(2**14 / 6e5)
                write(content[first : first + 2**14])

        self.wfile.write = slowly


class SlowServer(ThreadingHTTPServer):
    """It does not speak of clients that die."""

    def handle_error(self, *arguments: object) -> None:
        pass


FETCH = """
import functools, json, sys
from rolib.data import download as module
url, files, root = sys.argv[1:]
module.FILES = tuple(module.UpstreamFile(*row) for row in json.loads(files))
module.download = functools.partial(module.download, base_url=url)
module.main(["--root", root])
"""


def fetching(place: Path, server: ThreadingHTTPServer) -> Part:
    """The download of three files."""
    rows = []
    for number, size in enumerate((1500, 1_500_000, 3_000_000)):
        content = random.Random(number).randbytes(size)
        CONTENT[f"/o/r/c/{number}"] = content
        checksum = hashlib.sha256(content).hexdigest()
        rows.append((f"set/{number}.bin", f"o/r/c/{number}", "sha256", checksum))
    words = [sys.executable, "-c", FETCH, f"http://127.0.0.1:{server.server_port}"]
    words.append(json.dumps(rows))
    return Part("download", lambda folder: [*words, str(folder)], 9, 2, (), place)


def batch(place: Path) -> Part:
    """A study of three notebooks, as `make study` starts it."""
    flags = "--quiet all --cores 2 --keep-going --nolock --rerun-incomplete --config profile=tiny"
    words = [sys.executable, "-m", "snakemake", *flags.split(), "--"]
    aims = ("checkpoint", "notebook", "end of a run")

    def command(root: Path) -> list[str]:
        done = root / "tiny" / "notebooks"
        return [*words, f"{done}/02-distil-uncased.ipynb", f"{done}/03-distil-uncased.ipynb"]

    return Part("batch", command, 8, 3, aims, place)


def fuzz() -> None:
    """Give each reader damaged files."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "mutated", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests" / file) for file in ("test_fuzz.py", "test_corpus_files.py")]
    environment = os.environ | {"ROLIB_FUZZ": FUZZED}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip() or "nothing").splitlines()[-1]
    say("fuzzing", f"{FUZZED} damaged files a reader: {last}", wrong=done.returncode != 0)
    if done.returncode:
        print(done.stdout[-3000:])


def main() -> None:
    """Everything, two parts at a time; ends with 1 if something is wrong."""
    chosen = sys.argv[1:]  # names of parts, for a shorter run
    LOG.write_text(f"seed {SEED}\n", encoding="utf-8")
    with (
        tempfile.TemporaryDirectory() as name,
        SlowServer(("127.0.0.1", 0), SlowHandler) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        place = Path(name)
        copy_checkout(place)
        server.answers, server.requests = [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        distillation, tuning = stages(place)
        parts = [batch(place), distillation, tuning, fetching(place, server)]
        work = [threads.submit(disturb, part) for part in parts if part.name in (chosen or part)]
        work += [threads.submit(fuzz)] if not chosen else []
        for one in work:
            one.result()
        server.shutdown()
    ranges = sum(" " in request for request in server.requests)
    counts["download: requests"] = len(server.requests)
    counts["download: requests for the rest of a file"] = ranges
    for what, count in sorted(counts.items()):
        say("summary", f"{what}: {count}")
    for number in ("SIGKILL", "SIGTERM"):
        sent = sum(count for what, count in counts.items() if what.endswith(number))
        say("summary", f"{number}s in all: {sent}")
    say("summary", f"{len(found)} things went wrong" if found else "nothing went wrong")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
