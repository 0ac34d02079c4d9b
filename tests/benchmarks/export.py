"""How small and quick an exported student is beside its teacher in PyTorch, at the paper's shape.

    OMP_NUM_THREADS=1 python tests/benchmarks/export.py [--timed-runs 15] [--folder FOLDER]

A teacher of 12 layers (width 768, 50,000 pieces) with random weights, and the student of 6 layers
that `init_student` makes of it, both with a head for two classes. Text of 128 pieces, one thread;
the models take turns. The goals: at batch 1 the int8 file is at least 8 times as fast as the
teacher in PyTorch, with at most a sixth of its bytes.
Writes FOLDER/export.csv (figures/bench) and prints it as JSON.
"""

import argparse
import os
import tempfile
from pathlib import Path

import pandas as pd
import torch
import transformers

from rolib.config import ROOT, Config, SpeedConfig
from rolib.data.corpus import read_documents
from rolib.data.tasks import SAMPLE
from rolib.distillation import models
from rolib.evaluation import export, speed
from rolib.runs import write_text

SHAPE = transformers.BertConfig(vocab_size=50_000)  # the rest is BERT-base


def make_models(folder: Path) -> dict[str, Path]:
    """The folders of a teacher and a student with a head for two classes."""
    files = sorted((SAMPLE / "corpus").glob("*.txt"))
    texts = [text for file in files for text in read_documents(file)]
    # The sample has fewer pieces than the models; these are read only to check the exports.
    tokenizer = models.train_tokenizer(texts, SHAPE.vocab_size, False, max_length=512)
    torch.manual_seed(0)
    teacher = transformers.BertForMaskedLM(SHAPE)
    bare = {"teacher": teacher, "student": models.init_student(teacher, 6)}
    for name, model in bare.items():
        models.save_model(model, tokenizer, folder / name, "")
        kind = transformers.AutoModelForSequenceClassification
        kind.from_pretrained(folder / name).save_pretrained(folder / name)
    return {name: folder / name for name in bare}


def measure(timed_runs: int) -> pd.DataFrame:
    """A row for each batch size and model, with ratios to the teacher in PyTorch."""
    shared = {"profile": "bench", "seed": 1, "data": "sample"}
    runs = {"warmup_runs": 2, "timed_runs": timed_runs}
    config = SpeedConfig(**shared, **runs, sequence_length=128, batch_sizes=[1, 8])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["ROLIB_RUNS"] = temporary
        places = make_models(Path(temporary))
        exported = export.export_model(Config(**shared), places["student"], "student")
        places |= {f"student, {file}": exported / file for file in export.FILES}
        table = pd.DataFrame(speed.measure(places, config, export.load))
    teacher = table[table["model"] == "teacher"].set_index("batch_size")
    columns = ["megabytes", "latency_ms"]
    beside = table[["batch_size"]].join(teacher[columns], on="batch_size")
    table["size_ratio"] = table["megabytes"] / beside["megabytes"]
    table["speed_up"] = beside["latency_ms"] / table["latency_ms"]
    return table.drop(columns=["parameters", "peak_memory_mb"])


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timed-runs", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=ROOT / "figures" / "bench")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, write the table and print it."""
    options = read_options()
    table = measure(options.timed_runs)
    write_text(options.folder / "export.csv", table.to_csv(index=False, float_format="%.6g"))
    print(table.to_json(orient="records", indent=1, double_precision=3))


if __name__ == "__main__":
    main()
