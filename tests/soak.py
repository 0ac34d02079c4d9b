"""Kill everything at random moments, start it again, and compare with what nobody disturbed.

    make soak    # a quarter of an hour on two cores; tests/soak.py NAME ... makes these parts only

Distillation, fine-tuning, the download and a Snakemake batch get SIGKILLs and SIGTERMs. A signal
comes at a moment drawn from the length of an undisturbed run; every third one in a short phase (a
checkpoint, the end of a run). A run that ends is compared, and begins anew while there are signals
left. Then each reader of files gets 1,000 damaged ones. The log is tests/soak.log.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from pathlib import Path

import yaml
from disturbed import LOG, SEED, Part, counts, say, wrong
from test_download import CONTENT, Handler
from test_processes import configs, describe

from rolib.config import ROOT

FUZZED = "1000"


def copy_checkout(place):
    """What the processes read, with a profile `tiny` that is smaller still."""
    for name in ("rolib", "notebooks", "params", "tests"):
        shutil.copytree(ROOT / name, place / name)
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(ROOT / name, place)
    few = {"words_per_source": 3000, "log_every": 5, "checkpoint_every": 10}
    changes = {"training": few, "pretrain": {"steps": 60}, "distill": {"steps": 60}}
    changes["evaluate"] = {"tasks": ["sapn", "sts"], "max_train_examples": 40}
    changes["robustness"] = {"tasks": ["sapn"]}
    for name, values in changes.items():
        file = place / "params" / "tiny" / f"{name}.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8")) | values
        file.write_text(yaml.safe_dump(content), encoding="utf-8")


def stages(place):
    """A teacher and a distillation from its stored answers; fine-tuning of two measures."""
    teacher, evaluate, student = configs(1)
    many = {"accumulation": 1, "log_every": 5, "checkpoint_every": 10, "batch_size": 16}
    teacher = teacher.model_copy(update=many | {"steps": 60, "dropout": 0.1})
    cached = {"steps": 200, "soft_targets": "masked", "cached_pieces": 8}
    trained = {
        "prepare_teacher": teacher,
        "distil_student": student.model_copy(update=many | cached),
    }
    long = {"max_train_examples": 0, "epochs": dict.fromkeys(evaluate.epochs, [4])}
    tuned = {"prepare_teacher": teacher.model_copy(update={"steps": 5})}
    tuned["evaluate_model"] = evaluate.model_copy(update=long)
    for name, described in (("trained", trained), ("tuned", tuned)):
        (place / name).mkdir()
        describe(place / name, **described)
    command = [sys.executable, "tests/run_stages.py"]
    words = [*command, "trained/stages.json"]
    yield Part(place, "distillation", words, 22, 5, ["checkpoint", "end of a run"])
    yield Part(place, "fine-tuning", [*command, "tuned/stages.json"], 15, 2, ["end of a run"])


class SlowHandler(Handler):
    """The server of tests/test_download.py, with 0.6 MB a second."""

    def setup(self):
        super().setup()
        write = self.wfile.write

        def slowly(content):
            for first in range(0, len(content), 2**14):
                time.sleep(2**14 / 6e5)
                write(content[first : first + 2**14])

        self.wfile.write = slowly


FETCH = """
import functools, json, sys
from rolib.data import download as module
url, files, root = sys.argv[1:]
module.FILES = tuple(module.UpstreamFile(*row) for row in json.loads(files))
module.download = functools.partial(module.download, base_url=url)
module.main(["--root", root])
"""


def fetching(place, port):
    """The download of three files."""
    rows = []
    for number, size in enumerate((1500, 1_500_000, 3_000_000)):
        CONTENT[f"/o/r/c/{number}"] = content = random.Random(number).randbytes(size)
        checksum = hashlib.sha256(content).hexdigest()
        rows.append((f"set/{number}.bin", f"o/r/c/{number}", "sha256", checksum))
    url = f"http://127.0.0.1:{port}"
    return Part(place, "download", [sys.executable, "-c", FETCH, url, json.dumps(rows), "{}"], 9, 2)


def batch(place):
    """A study of three notebooks, as `make study` starts it."""
    words = f"{sys.executable} -m snakemake --quiet all --cores 2 --keep-going --nolock"
    words += " --rerun-incomplete --config profile=tiny --"
    for name in ("02-distil-uncased", "03-distil-uncased"):
        words += f" {{}}/tiny/notebooks/{name}.ipynb"
    return Part(place, "batch", words.split(), 8, 3, ["checkpoint", "notebook", "end of a run"])


def fuzz():
    """Give each reader damaged files."""
    words = f"{sys.executable} -m pytest -q -k mutated -p no:cacheprovider".split()
    words += ["tests/test_fuzz.py", "tests/test_corpus_files.py"]
    environment = os.environ | {"ROLIB_FUZZ": FUZZED}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip() or "nothing").splitlines()[-1]
    say("fuzzing", f"{FUZZED} damaged files a reader: {last}", bad=done.returncode != 0)
    if done.returncode:
        print(done.stdout[-3000:])


def main():
    """Everything, two parts at a time; ends with 1 if something is wrong."""
    LOG.write_text(f"seed {SEED}\n", encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler)
    server.answers, server.requests = [], []
    server.handle_error = lambda *_: None  # of clients that die
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as threads:
        copy_checkout(Path(place))
        parts = [
            batch(Path(place)),
            *stages(Path(place)),
            fetching(Path(place), server.server_port),
        ]
        work = {part.name: part.disturb for part in parts} | {"fuzzing": fuzz}
        chosen = [work[name] for name in sys.argv[1:] or work]
        for result in [threads.submit(one) for one in chosen]:
            result.result()
    counts["download: requests"] = len(server.requests)
    counts["download: requests for the rest of a file"] = sum(" " in x for x in server.requests)
    for number in ("SIGKILL", "SIGTERM"):
        sent = sum(count for what, count in counts.items() if what.endswith(number))
        counts[f"{number}s in all"] = sent
    for what, count in sorted(counts.items()):
        say("summary", f"{what}: {count}")
    say("summary", f"{len(wrong) or 'no'} things went wrong")
    sys.exit(len(wrong) > 0)


if __name__ == "__main__":
    main()
