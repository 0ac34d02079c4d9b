"""Training in two processes beside one, a thread each: tokens per second of a student of the demo.

    OMP_NUM_THREADS=1 ROLIB_RUNS=FOLDER python tests/benchmarks/processes.py

Needs two free cores and an empty FOLDER. The turns alternate. The step has the same blocks in both.
"""

import statistics

from rolib import stages
from rolib.profiles import load_profile
from rolib.runs import read_metrics


def tokens_per_second(processes: int, turn: int) -> float:
    """The median over the records of a run but the first, which holds the start."""
    recipe = {"steps": 60, "log_every": 10, "checkpoint_every": 1000, "batch_size": 16}
    recipe |= {"accumulation": 4 // processes, "num_processes": processes}
    recipe["student"] = f"processes-{processes}-{turn}"
    student = load_profile("demo")["students"]["distil-cased"].model_copy(update=recipe)
    records = read_metrics(stages.distil_student(student) / "metrics.jsonl")[1:]
    return statistics.median(record["tokens_per_second"] for record in records)


def main() -> None:
    """Print each turn, then the medians and the share of a core's speed that two processes keep."""
    stages.prepare_teacher(load_profile("demo")["teachers"]["bert-cased"])
    found: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(6):
        for processes, speeds in found.items():
            speeds.append(tokens_per_second(processes, turn))
            print(f"turn {turn}, {processes} processes: {speeds[-1]:.0f} tokens a second")
    one, two = (statistics.median(speeds) for speeds in found.values())
    print(f"medians {one:.0f} and {two:.0f}: {two / one / 2:.2f} a core")


if __name__ == "__main__":
    main()
