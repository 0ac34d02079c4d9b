"""Kill a process at random moments, start it again, and compare with what nobody disturbed."""

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
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

SEED = 14
# Of a whole run: with names of parts there is none.
LOG = Path(os.devnull) if sys.argv[1:] else Path(__file__).with_name("soak.log")
START, LOCK = time.monotonic(), threading.Lock()
FINAL_FILES = ("model.safetensors", "predictions.parquet", "manifest.json")
wrong, counts = [], Counter()


def say(part, what, bad=False):
    """Write one line; `bad`: it must not happen."""
    line = f"{time.monotonic() - START:7.1f} s  {part}: {'WRONG: ' * bad}{what}"
    with LOCK, LOG.open("a", encoding="utf-8") as file:
        print(line, flush=True)
        file.write(line + "\n")
        wrong.extend([line] * bad)


class Part:
    """A process that is disturbed, and the folder of its results; {} in a word is that folder."""

    def __init__(self, place, name, words, kills, terms, aims=()):
        self.place, self.name, self.words, self.folder = place, name, words, place / name
        self.rng = random.Random(f"{SEED} {name}")
        self.aimed, self.aims = bool(aims), itertools.cycle(aims or [""])
        self.signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
        self.rng.shuffle(self.signals)

    def start(self):
        """Start the process, which shall go on with what is in the folder."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        more = {"ROLIB_RUNS": str(self.folder), "PYTHONPATH": str(self.place), "PATH": path}
        more |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        more |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        words = [word.replace("{}", str(self.folder)) for word in self.words]
        with open(f"{self.folder}.log", "a", encoding="utf-8") as log:
            options = {"stdout": log, "stderr": log, "start_new_session": True}
            return subprocess.Popen(words, cwd=self.place, env=os.environ | more, **options)

    def alive(self):
        """All processes that work for the folder, orphans too."""
        mine, everyone = str(self.folder), psutil.process_iter(["environ"])
        return [one for one in everyone if (one.info["environ"] or {}).get("ROLIB_RUNS") == mine]

    def phase(self, since):
        """What the process that was started then does, by the files that it has written."""

        def new(path):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime >= since

        tiny = self.folder / "tiny"
        runs = [*tiny.glob("*/.*.partial"), *tiny.glob("evaluation/*/*/.*.partial")]
        runs = [run for run in runs if new(run / "identity.json") or new(run / "manifest.json")]
        phases = {
            "checkpoint": any(new(run / "checkpoints" / ".partial") for run in runs),
            "end of a run": any(new(run / file) for run in runs for file in FINAL_FILES),
            "training": any(new(run / "metrics.jsonl") for run in runs),
            "begin of a run": bool(runs),
            "transfer": any(map(new, self.folder.glob("*/*.part"))),
            "notebook": any(map(new, tiny.glob("logs/*.log"))),
        }
        return next((name for name, true in phases.items() if true), "import and reading")

    def results(self):
        """What must be equal, by path: the content of each file, without times and speeds."""
        values = {}
        for path in filter(Path.is_file, self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.name == "metrics.jsonl":
                records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
                values[name] = [record | {"tokens_per_second": 0} for record in records]
            elif path.name == "manifest.json":
                values[name] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
            elif path.suffix == ".ipynb" or name == "tiny/.lock":  # the lock of a study stays
                values[name] = "exists"
            elif not name.startswith(("tiny/corpus/", "tiny/logs/")):
                values[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return values

    def compare(self, expected):
        """Say whether a finished run is as it must be, and take it away."""
        values = self.results()
        names = sorted(values.keys() | expected.keys())
        different = [name for name in names if values.get(name) != expected.get(name)]
        say(
            self.name,
            f"finished: {len(names)} files, {different or 'none'} differ",
            different != [],
        )
        if orphans := len(self.alive()):
            say(self.name, f"{orphans} processes after the end", bad=True)
        stored = [path.name for path in (self.folder / "tiny" / "corpus").rglob("*")]
        left = [name for name in stored if name.startswith("tmp") or name.endswith(".incomplete")]
        counts[f"{self.name}: runs finished"] += 1
        counts[f"{self.name}: temporary files of datasets in corpus/"] += len(left)
        shutil.rmtree(self.folder)

    def wait(self, process, since, length):
        """Wait for the moment of a signal; the exit status of a process that ends before it.

        Every third one, and most SIGTERMs, come in a phase: a training must write a checkpoint.
        """
        aim = next(self.aims) if len(self.signals) % 3 == 0 else ""
        if self.aimed and self.signals[-1] == signal.SIGTERM and self.rng.random() < 0.7:
            aim = "training"
        if not aim:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(self.rng.uniform(0, length))
            return None
        while process.poll() is None and self.phase(since) != aim:
            time.sleep(0.003)
        time.sleep(self.rng.uniform(0, length / 8 if aim == "training" else 0.06))
        return process.poll()

    def strike(self, process, since):
        """Send a signal and see all processes end; half of the time, start again before they do."""
        doing, seconds, number = self.phase(since), time.time() - since, self.signals.pop()
        process.send_signal(number)
        if process.wait() == 0:  # it was at its end
            return self.signals.append(number)
        told = f"{number.name} after {seconds:.1f} s ({doing}), status {process.returncode}"
        sent = time.time()
        counts[f"{self.name}: {number.name}"] += 1
        counts[f"{self.name}: signals in phase {doing}"] += 1
        if self.alive() and self.rng.random() < 0.5:
            return say(self.name, f"{told}; started again while its children end")
        while (left := self.alive()) and time.time() - sent < 60:
            time.sleep(0.1)
        say(self.name, f"{told}; all ended {time.time() - sent:.1f} s later", bad=bool(left))

    def disturb(self):
        """Send all signals; compare what each run leaves."""
        began = time.monotonic()
        if self.start().wait() != 0:
            return say(self.name, "the undisturbed run fails", bad=True)
        length, expected = time.monotonic() - began, self.results()
        say(self.name, f"undisturbed in {length:.1f} s, {len(expected)} files")
        shutil.rmtree(self.folder)
        while self.signals:
            since, process = time.time(), self.start()
            code = self.wait(process, since, length)
            if code is None:
                self.strike(process, since)
            elif code == 0:
                self.compare(expected)
            else:
                return say(self.name, f"ended by itself with {code}", bad=True)
        if self.start().wait() != 0:
            return say(self.name, "does not go on", bad=True)
        self.compare(expected)
