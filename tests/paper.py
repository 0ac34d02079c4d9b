"""The paper profile, rehearsed: every notebook of its graph against a stand-in of the hub.

    make test-paper    # under half an hour on two cores, 10 GB of memory, 45 GB of disk

The two teachers have their true shapes and random weights. `CHANGES` scales the profile by its
parameters alone. The study runs in a copy of this checkout below the system's temporary folder.
Its log is tests/paper.log. With ROLIB_DATA the measures are read from the real files.
"""

import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import yaml
from hub import Hub
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from rolib.config import ROOT
from rolib.data.corpus import read_documents
from rolib.data.words import split_words
from rolib.measures import TASKS
from rolib.profiles import load_profile

CHANGES: dict[str, dict] = {
    "common": {},
    "training": {
        "block_length": 32,
        "batch_size": 4,
        "accumulation": 2,
        "log_every": 1,
        "checkpoint_every": 2,
        "words_per_source": 4000,
    },
    "pretrain": {"require_gate": False},  # random weights know nothing
    "distill": {"steps": 3},
    "evaluate": {
        "seeds": [1],
        "max_train_examples": 4,
        "max_validation_examples": 8,
        "max_test_examples": 8,
        "max_length": 32,
        "batch_size": 4,
        "epochs": dict.fromkeys(TASKS, [1]),
        "keep_models": 1,  # for notebooks 07 and 10
    },
    "robustness": {"models": ["distil-cased"], "tasks": ["upos", "sapn"], "max_test_examples": 4},
    "analyse": {"resamples": 100},
    "speed": {"sequence_length": 32, "batch_sizes": [1, 2], "warmup_runs": 1, "timed_runs": 3},
    "export": {"models": ["distil-cased"], "tasks": ["upos", "sapn"]},
}
CHANGES["export"] |= CHANGES["speed"]
LETTERS = "aăâbcdefghiîjklmnopqrsștțuvwxyzAĂÂBCDEFGHIÎJKLMNOPQRSȘTȚUVWXYZ0123456789.,;:!?()-„”'\"$"
FOUND = {"bert-cased": 124_441_344, "bert-uncased": 115_062_528}  # parameters, head not counted


def write_vocabulary(size: int, lowercase: bool) -> list[str]:
    """That many different pieces: special ones, letters, words of the sample, made-up words."""
    known = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    fold = str.lower if lowercase else str
    known |= dict.fromkeys(piece for x in map(fold, LETTERS) for piece in (x, f"##{x}"))
    for file in sorted((ROOT / "rolib/data/sample/corpus").glob("*.txt")):
        for text in read_documents(file):
            known |= dict.fromkeys(map(fold, split_words(text)))
    syllables = [a + b for a in "bcdfglmnprsșt" for b in "aăeiou"]
    made_up = ("".join(parts) for parts in itertools.product(syllables, repeat=3))
    for number, word in enumerate(made_up):
        if len(known) >= size:
            break
        known[word if lowercase or number % 2 else word.capitalize()] = None
    return list(known)[:size]


def make_teacher(folder: Path, size: int, lowercase: bool) -> None:
    """A BERT-base of random weights with a pooler. Lower-cased: a pickle and a bare vocabulary."""
    pieces = write_vocabulary(size, lowercase)
    torch.manual_seed(1)
    model = BertForPreTraining(BertConfig(vocab_size=size))
    model.save_pretrained(folder)
    if lowercase:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        lines = "".join(piece + "\n" for piece in pieces)
        (folder / "vocab.txt").write_text(lines, encoding="utf-8")
        return
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    options = {"do_lower_case": False, "strip_accents": False}
    BertTokenizer(vocab=vocabulary, **options).save_pretrained(folder)


def make_corpus(folder: Path, subset: str) -> None:
    """The documents of the built-in sample as a parquet file, laid out as Wikipedia's."""
    texts = []
    for file in sorted((ROOT / "rolib/data/sample/corpus").glob("*.txt")):
        texts += list(read_documents(file))
    (folder / subset).mkdir(parents=True)
    rows = pd.DataFrame({"id": map(str, range(len(texts))), "title": "Titlu", "text": texts})
    rows.to_parquet(folder / subset / "train-00000-of-00001.parquet")
    files = [{"split": "train", "path": f"{subset}/train-*"}]
    card = yaml.safe_dump({"configs": [{"config_name": subset, "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n")


def serve(hub: Hub, place: Path) -> None:
    """Make what the profile's parameters name, and let the hub have it at their revisions."""
    study = load_profile("paper")
    for name, teacher in study["teachers"].items():
        make_teacher(place / name, teacher.vocab_size, teacher.lowercase)
        pinned = re.fullmatch("[0-9a-f]{40}", teacher.revision)
        more = {"commit": teacher.revision} if pinned else {}
        hub.add(teacher.source, place / name, **more)
        corpus, _, subset = teacher.corpus.removeprefix("hub:").partition(":")
    make_corpus(place / "corpus", subset)
    hub.add(corpus, place / "corpus", "datasets", commit=teacher.corpus_revision)


def copy_checkout(place: Path) -> None:
    """The files of this checkout in a new folder, with the profile's parameters changed."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    data = {} if os.environ.get("ROLIB_DATA") else {"data": "sample"}
    for name, changes in (CHANGES | {"common": data}).items():
        file = place / "params" / "paper" / f"{name}.yaml"
        values = yaml.safe_load(file.read_text(encoding="utf-8")) | changes
        file.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), "utf-8")


def check(runs: Path, hub: Hub) -> list[str]:
    """Lines on what was found; AssertionError if a result is missing."""
    study = load_profile("paper")
    lines = []
    for name, teacher in study["teachers"].items():
        manifest = json.loads((runs / "teachers" / name / "manifest.json").read_text())
        commit = hub.repositories["models", teacher.source].commit
        assert manifest["source_commit"] == commit, name
    assert (runs / "report.html").stat().st_size > 10_000
    scores = pd.read_csv(runs / "scores.csv")
    assert set(scores["task"]) == {*study["evaluate"].tasks, "mean"}
    assert set(study["students"]) | set(study["teachers"]) <= set(scores["model"])
    speed = pd.read_csv(runs / "speed.csv").drop_duplicates("model").set_index("model")
    for name, expected in FOUND.items():
        assert speed.loc[name, "parameters"] == expected, (name, speed.loc[name, "parameters"])
    models = scores[scores["model"] != "ensemble"]["model"].nunique()
    lines.append(f"models evaluated: {models}")
    lines += [f"parameters of {name}: {count:,}" for name, count in speed["parameters"].items()]
    return lines


def main() -> None:
    """Run the study and write the log; the exit status is that of the study."""
    start = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix="rolib-paper-"))
    log: list[str] = []

    def say(line: str) -> None:
        line = line.replace(str(place), "").replace(str(ROOT), "").rstrip()
        log.append(line)
        print(line, flush=True)

    try:
        with Hub() as hub:
            serve(hub, place / "hub")
            say(f"two teachers of 12 x 768 and a corpus made: {time.perf_counter() - start:.0f} s")
            copy_checkout(place / "checkout")
            environment = hub.environment(place / "cache") | {
                "PYTHONPATH": str(place / "checkout"),
                "ROLIB_RUNS": str(place / "runs"),
                "TOKENIZERS_PARALLELISM": "false",
            }
            command = ["snakemake", "--config", "profile=paper", "--quiet", "all", "--cores"]
            command.append(os.environ.get("CORES", "2"))
            options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            where = {"cwd": place / "checkout", "env": environment}
            with subprocess.Popen(command, **options, **where) as study:
                for line in study.stdout:
                    say(line)
            if study.returncode:
                for file in sorted((place / "runs" / "paper" / "logs").glob("*.log")):
                    print(f"--- {file.name}\n{file.read_text()[-3000:]}")
                sys.exit(study.returncode)
            for line in check(place / "runs" / "paper", hub):
                say(line)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        say(f"largest process: {peak:.1f} GB; all: {(time.perf_counter() - start) / 60:.1f} min")
        (ROOT / "tests" / "paper.log").write_text("\n".join(log) + "\n", encoding="utf-8")
    finally:
        if "KEEP" not in os.environ:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
