"""The rate of the fine-tuning grid: seconds of every measure and seed, for a teacher and a student.

    OMP_NUM_THREADS=1 ROLIB_DATA=... python tests/benchmarks/grid.py FOLDER [SEEDS [TASK ...]]

Models of the mini profile's shape with random weights, their vocabulary learned from the corpus of
ROLIB_DATA, fine-tuned as params/mini/evaluate.yaml says. Prints CSV, one line for each run: seconds
of the processor (fair on a shared machine) and of the clock, and the scores that another commit has
to reproduce. The first seed's time includes reading the data. FOLDER keeps the models, so that two
commits fine-tune the same ones; its results are deleted first.
"""

import shutil
import sys
import time
from pathlib import Path

import torch

from rolib import stages
from rolib.data.corpus import read_documents
from rolib.data.download import data_root
from rolib.distillation import models
from rolib.profiles import load_profile


def make_models(folder: Path) -> None:
    """Save a random `teacher` and the `student` that starts from its layers."""
    study = load_profile("mini")
    shape = study["teachers"]["bert-cased"]
    files = sorted((data_root("real") / "corpus").glob("*.txt"))
    texts = [text[:2000] for file in files for text in list(read_documents(file))[:2000]]
    tokenizer = models.train_tokenizer(texts, shape.vocab_size, shape.lowercase)
    torch.manual_seed(0)
    teacher = models.build_teacher(shape, tokenizer)
    student = models.init_student(teacher, study["students"]["distil-cased"].num_layers)
    for name, model in (("teacher", teacher), ("student", student)):
        models.save_model(model, tokenizer, folder / name, "")


def main(folder: Path, seeds: int, tasks: list[str]) -> None:
    """Print one line for each run."""
    torch.set_num_threads(1)
    if not (folder / "student" / "model.safetensors").exists():
        make_models(folder)
    shutil.rmtree(folder / "results", ignore_errors=True)
    recipe = load_profile("mini")["evaluate"]
    clocks = (time.process_time, time.perf_counter)
    print("model,task,seed,cpu_seconds,seconds,best_epoch,validation,test")
    for model in ("teacher", "student"):
        for task in tasks or recipe.tasks:
            changes = {"model": model, "tasks": [task], "seeds": list(range(1, seeds + 1))}
            before = [clock() for clock in clocks]

            def show(result: dict, model=model, task=task, before=before) -> None:
                now = [clock() for clock in clocks]
                spent = [f"{new - old:.2f}" for new, old in zip(now, before, strict=True)]
                before[:] = now
                headline = result["headline"]
                scores = [result["validation"][headline], result["test"][headline]]
                row = [model, task, result["seed"], *spent, result["best_epoch"], *scores]
                print(*row, sep=",", flush=True)

            one = recipe.model_copy(update=changes)
            stages.evaluate_model(one, show, folder / model, folder / "results" / model)


if __name__ == "__main__":
    _, place, *options = sys.argv
    main(Path(place), int(options[0]) if options else 1, options[1:])
