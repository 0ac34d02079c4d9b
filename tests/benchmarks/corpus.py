"""The memory and the time that a large corpus needs, from files to blocks.

    python tests/benchmarks/corpus.py FOLDER MEGABYTES PROCESSES DOCUMENTS

Writes a synthetic corpus of 20 .jsonl shards into FOLDER (if it is not there yet), reads it with
`load_corpus`, builds blocks of at most DOCUMENTS documents, and prints one line of JSON. Data are
mapped into memory, and the kernel takes these pages back when it needs them; so the memory that
counts is `anonymous`, which is not of files: the peak of the largest process, and of all together.
Linux only.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SHARDS = 20
TOKENIZER = Path(__file__).parents[2] / "rolib/data/pretrained/distil-multi"


def synthetic(folder: Path, megabytes: int) -> None:
    """Write documents of 20 sentences; the words' frequencies fall as Zipf's law says.

    The frequent words are pieces of the vocabulary, the others are random.
    """
    vocabulary = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    rng = np.random.default_rng(0)
    letters = list("aeiouăîrnstlcdmpșțbfgvz")
    words = [word for word in vocabulary if word.isalpha() and len(word) > 1]
    words += ["".join(rng.choice(letters, size)) for size in rng.integers(5, 11, 100_000)]
    chances = 1 / np.arange(10, 10 + len(words))
    picks = rng.choice(len(words), (50_000, 15), p=chances / chances.sum())
    sentences = [" ".join(words[number] for number in row) + "." for row in picks]
    choose = random.Random(0).choices
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with open(folder / f"{shard:02}.jsonl", "w", encoding="utf-8") as file:
            while file.tell() < megabytes * 1_000_000 / SHARDS:
                line = {"text": " ".join(choose(sentences, k=20))}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def child(folder: Path, processes: int, most: int) -> None:
    """Read the corpus and build blocks, in this process and its workers."""
    from transformers import AutoTokenizer

    from rolib.config import TrainingConfig
    from rolib.data import corpus

    corpus.os.cpu_count = lambda: processes
    settings = {"corpus": str(folder), "data_seed": 1, "words_per_source": 0, "profile": "bench"}
    config = TrainingConfig.model_construct(**settings)
    start = time.perf_counter()
    texts = corpus.load_corpus(config, Path())["train"]
    loaded = time.perf_counter()
    some = texts.select(range(min(most, len(texts))))
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    built_from = time.perf_counter()
    blocks = corpus.build_blocks(some, [tokenizer], 128)
    seconds = time.perf_counter() - built_from
    facts = {"documents": len(texts), "load_seconds": loaded - start, "blocks": len(blocks)}
    facts |= {"block_seconds": seconds, "pieces_per_second": sum(blocks["length"]) / seconds}
    facts["documents_per_second"] = 1 / ((loaded - start) / len(texts) + seconds / len(some))
    print(json.dumps(facts))


def tree(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [below for one in task.read_text().split() for below in tree(int(one))]
    return found


def memory(pid: int, key: str) -> float:
    """Megabytes of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure(folder: Path, processes: int, most: int) -> dict:
    """The facts of `child`, and its peaks of memory in MB, sampled ten times a second."""
    command = [sys.executable, __file__, str(folder), str(processes), str(most), "child"]
    environment = os.environ | {"ROLIB_RUNS": str(folder.parent / f"runs-{time.time_ns()}")}
    peaks = {"anonymous_largest": 0.0, "anonymous_all": 0.0, "resident_largest": 0.0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        while run.poll() is None:
            try:
                pids = tree(run.pid)
            except OSError:  # a worker has just ended
                continue
            anonymous = [memory(pid, "RssAnon") for pid in pids]
            resident = [memory(pid, "VmRSS") for pid in pids]
            now = (max(anonymous), sum(anonymous), max(resident))
            peaks = {key: max(peaks[key], new) for key, new in zip(peaks, now, strict=True)}
            time.sleep(0.1)
        facts = json.loads(run.stdout.read().splitlines()[-1])
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    return {"megabytes": round(size), "processes": processes} | facts | peaks


if __name__ == "__main__":
    if sys.argv[-1] == "child":
        child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        size, processes, most = map(int, sys.argv[2:])
        folder = Path(sys.argv[1]) / str(size)
        if not folder.exists():
            synthetic(folder, size)
        facts = measure(folder, processes, most)
        print(json.dumps({key: round(value, 1) for key, value in facts.items()}))
