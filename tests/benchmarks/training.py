"""Training speed: whole optimizer steps of rolib beside the plain recipe and TextBrewer.

    PYTHONPATH=tests python tests/benchmarks/training.py [--shapes ...]

Every peer trains on the same blocks. They take turns, step by step, and the
first turn does not count, so a machine whose speed drifts favours nobody. A speed-up is the median
over the turns of the recipe's time divided by the peer's time in the same turn. Before that the
losses are compared: rolib must equal the recipe to 1e-5 in float32, or the run stops.

Writes training.csv (a row a peer and shape), machine.json, and the figure training.png.
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from benchmarks import flops, machine, memory
from benchmarks.ours import VARIANTS, Ours, SecondForward, Variant
from benchmarks.recipe import Recipe
from benchmarks.shapes import SHAPES, Job, World, make_world

from rolib import figures
from rolib.config import ROOT
from rolib.runs import write_json, write_text

ROUNDS = {"12x768/50k": 3, "8x256/8k": 5, "4x128/8k": 9}
MEMORY_LENGTH = {"12x768/50k": 512}  # the other shapes: as in their steps
TOLERANCE = 1e-5
KEYS = ["what", *Variant._fields]
TURN = ["round", "seconds", "cpu_seconds", "tokens", "operations"]


def peers() -> dict[str, tuple[str, Variant]]:
    """The whole steps that are measured, by name."""
    names = {"recipe": ("recipe", Variant())}
    if importlib.util.find_spec("textbrewer"):
        names["textbrewer"] = ("textbrewer", Variant())
    for variant in VARIANTS:
        words = [variant.soft_targets, f"{variant.teachers}-teacher", variant.precision]
        words += ["cached"] if variant.cached else []
        names["-".join(["rolib", *words])] = ("rolib", variant)
    return names


def make_peer(name: str, world: World) -> Job:
    """The peer of this name on a world."""
    what, variant = peers()[name]
    if what == "recipe":
        return Recipe(world)
    if what == "textbrewer":
        from benchmarks.textbrewer_step import TextBrewer

        return TextBrewer(world)
    return Ours(world, variant)


def check_losses(jobs: dict[str, Job], indices: list[int]) -> dict[str, float]:
    """The relative difference of each float32 peer's first loss from the recipe's.

    TextBrewer's loss holds the teacher's entropy, which is taken off; its difference is relative to
    its own loss. Stops the run if one of rolib's is larger than TOLERANCE.
    """
    errors = {}
    for name, (what, variant) in peers().items():
        if what == "recipe" or variant.teachers != 1 or variant.precision != "float32":
            continue
        if variant.cached:  # it compares states at masked pieces only: tests/test_cache.py
            continue
        job = jobs[name]
        with torch.no_grad():
            expected = jobs["recipe"].loss(indices, variant.soft_targets).item()
            entropy = job.entropy(indices) if what == "textbrewer" else 0.0
            found = job.loss(indices).item() if what == "rolib" else None
        found = job.step(indices) if found is None else found  # TextBrewer has only whole steps
        errors[name] = abs(found - entropy - expected) / abs(found)
        if errors[name] > TOLERANCE:
            losses = f"its loss is {found - entropy:.7f}, the recipe's {expected:.7f}"
            raise SystemExit(f"error: {name}: {losses}: these steps must not be compared")
    return errors


def turns(world: World, jobs: dict[str, Job], rounds: int) -> Iterator[dict]:
    """Time one step of every job in turn; the first turn is not counted."""
    size, names, keys = world.shape.batch, list(jobs), job_keys(jobs)
    for turn in range(rounds + 1):
        indices = list(range(turn * size, (turn + 1) * size))
        tokens = sum(world.blocks[indices]["length"])
        start = turn % len(names)  # nobody is always after the same one
        for name in names[start:] + names[:start]:
            what, variant = keys[name]
            jobs[name].prepare(indices)
            wall, cpu = time.perf_counter(), time.process_time()
            jobs[name].step(indices)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            parts = variant.soft_targets, variant.teachers, variant.cached
            needed = flops.count(world, indices, *parts)
            row = {"name": name, "what": what, **variant._asdict()}
            if turn:
                yield row | dict(zip(TURN, (turn, wall, cpu, tokens, needed), strict=True))


def job_keys(jobs: dict[str, Job]) -> dict[str, tuple[str, Variant]]:
    """What each job is: the peers, and the forward passes of the second teacher (teachers=0)."""
    keys = peers()
    for name in jobs:
        if name not in keys:
            variant = keys[name.removeprefix("second forward of ")][1]
            keys[name] = ("second teacher's forward", variant._replace(teachers=0))
    return keys


def make_jobs(world: World) -> dict[str, Job]:
    """Every peer, and after each two-teacher step the forward pass of its second teacher."""
    jobs: dict[str, Job] = {}
    for name, (_, variant) in peers().items():
        jobs[name] = make_peer(name, world)
        if variant.teachers == 2:
            jobs[f"second forward of {name}"] = SecondForward(jobs[name])
    return jobs


def summarise(
    times: pd.DataFrame, job_names: list[str], rates: dict[str, float], errors: dict[str, float]
) -> list[dict]:
    """One row a job: speeds, their quartiles, ratios, the share of the matrix rate."""
    seconds = times.pivot(index="round", columns="name", values="seconds")
    cpu = times.pivot(index="round", columns="name", values="cpu_seconds")
    rows = []
    for name in job_names:
        part = times[times["name"] == name]
        first, speeds = part.iloc[0], part["tokens"] / part["seconds"]
        quarter, median, three = np.percentile(speeds, [25, 50, 75])
        row = {"name": name, **first[KEYS], "rounds": len(part)}
        row |= {"tokens_per_second": median, "q1": quarter, "q3": three}
        row["tokens_per_cpu_second"] = (part["tokens"] / part["cpu_seconds"]).median()
        speed_ups = seconds["recipe"] / seconds[name]
        labels = ("speed_up", "speed_up_q1", "speed_up_q3")
        row |= dict(zip(labels, np.percentile(speed_ups, [50, 25, 75]), strict=True))
        row["speed_up_cpu"] = (cpu["recipe"] / cpu[name]).median()
        row["over_parts"] = over_parts(seconds, name)
        row["over_parts_cpu"] = over_parts(cpu, name)
        row["gigaoperations"] = part["operations"].median() / 1e9
        done = (part["operations"] / part["cpu_seconds"]).median()
        row["share_of_matrix_rate"] = done / rates[first["precision"]]
        row["loss_error"] = errors.get(name, math.nan)
        rows.append(row)
    return rows


def over_parts(seconds: pd.DataFrame, name: str) -> float:
    """A two-teacher step over the one-teacher step plus the second's forward pass; or NaN."""
    one, forward = name.replace("2-teacher", "1-teacher"), f"second forward of {name}"
    if forward not in seconds or one not in seconds:
        return math.nan
    return (seconds[name] / (seconds[one] + seconds[forward])).median()


def peak_memories(name: str, batch: int | None = None) -> dict[str, dict]:
    """The peak memory of each one-teacher peer beyond the weights, by name.

    batch: the number of blocks; None: as in the steps, or what fits where MEMORY_LENGTH is set.
    """
    shape = SHAPES[name]
    length = MEMORY_LENGTH.get(name, shape.length)
    if name in MEMORY_LENGTH:
        batch = batch or memory.fitting_batch(shape.vocab, length)
    batch = batch or shape.batch
    results, recipe = {}, math.nan
    for peer, (_, variant) in peers().items():
        if variant.teachers == 1:
            peak = memory.peak_memory(name, batch, length, peer)
            recipe = peak if peer == "recipe" else recipe
            size = f"{batch} x {length}"
            results[peer] = {"memory_batch": size, "peak_memory_mb": peak}
            results[peer]["memory_of_recipe"] = peak / recipe
    return results


def compare(name: str, rounds: int, rates: dict[str, float], peaks: dict[str, dict]) -> list[dict]:
    """The rows of one shape; peaks: of `peak_memories`."""
    shape = SHAPES[name]
    world = make_world(shape, (rounds + 2) * shape.batch)
    assert len(world.blocks) >= (rounds + 1) * shape.batch
    jobs = make_jobs(world)
    errors = check_losses(jobs, list(range(shape.batch)))
    rows = summarise(pd.DataFrame(turns(world, jobs, rounds)), list(jobs), rates, errors)
    empty = dict.fromkeys(["memory_batch", "peak_memory_mb", "memory_of_recipe"], math.nan)
    first = {"shape": name, "batch": f"{shape.batch} x {shape.length}"}
    threads = {"threads": torch.get_num_threads()}
    return [first | row | peaks.get(row["name"], empty) | threads for row in rows]


def label(row: pd.Series) -> str:
    """The name of a row in the figure."""
    if row["what"] != "rolib":
        return {"recipe": "plain recipe", "textbrewer": "TextBrewer"}[row["what"]]
    words = ["rolib", {"all": "all tokens", "masked": "masked tokens"}[row["soft_targets"]]]
    words += ["two teachers"] if row["teachers"] == 2 else []
    words += ["bf16"] if row["precision"] == "bfloat16" else []
    words += ["cached teacher"] if row["cached"] else []
    return ", ".join(words)


def plot(table: pd.DataFrame) -> plt.Figure:
    """Tokens per second of every whole step: one panel a shape, bars with quartiles."""
    steps = table[table["teachers"] > 0].assign(label=lambda rows: rows.apply(label, axis=1))
    colours = {"recipe": "0.75", "textbrewer": "0.55", "rolib": "0.4"}  # no model, so no colour
    shapes = list(dict.fromkeys(steps["shape"]))
    height = 0.16 * steps["label"].nunique() + 0.6
    figure, panels = figures.panels(len(shapes), 4, height, sharey=True)
    for axes, shape in zip(panels, shapes, strict=True):
        rows = steps[steps["shape"] == shape]
        spread = [rows["tokens_per_second"] - rows["q1"], rows["q3"] - rows["tokens_per_second"]]
        bars = rows["label"], rows["tokens_per_second"]
        axes.barh(*bars, xerr=spread, color=rows["what"].map(colours), ecolor="black")
        axes.set(title=f"teacher {shape}", xlabel="tokens per second", ylabel="step")
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)
    panels[0].invert_yaxis()
    return figure


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, help="turns that count, of every shape")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--memory-batch", type=int, help="blocks, where memory is measured")
    parser.add_argument("--folder", type=Path, default=ROOT / "figures" / "bench")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, check and write; see the module."""
    options = read_options(arguments)
    machine.use_threads()
    start, facts = time.perf_counter(), machine.describe()
    precisions = sorted({variant.precision for variant in VARIANTS} | {"float32"})
    rates = {name: machine.matrix_rate(getattr(torch, name)) for name in precisions}
    rows = []
    for name in options.shapes:
        rounds = options.rounds or ROUNDS.get(name, 3)
        print(f"{name}: {rounds} turns", flush=True)
        # First, while the memory is free.
        peaks = {} if options.no_memory else peak_memories(name, options.memory_batch)
        # A process of its own: what glibc keeps of one shape's memory would speed up the next one.
        with ProcessPoolExecutor(1, get_context("spawn"), machine.use_threads) as pool:
            rows += pool.submit(compare, name, rounds, rates, peaks).result()
    table = pd.DataFrame(rows)
    facts["matrix_gigaoperations_per_cpu_second"] = {key: rates[key] / 1e9 for key in rates}
    facts["seconds"] = round(time.perf_counter() - start)
    write_text(options.folder / "training.csv", table.to_csv(index=False, float_format="%.6g"))
    write_json(options.folder / "machine.json", facts)
    figures.set_theme()
    caption = "Speed of training, one whole optimizer step at a time, beside the plain DistilBERT "
    caption += "recipe and TextBrewer. Bar: median of the tokens per second; line: quartiles of "
    caption += f"{table['rounds'].min()} turns and more; "
    caption += f"{facts['threads']} thread, {facts['cpu']['name']}."
    figures.save_figure(plot(table), options.folder, "training", caption)
    columns = ["shape", "name", "tokens_per_second", "speed_up", "speed_up_cpu", "over_parts"]
    columns += ["share_of_matrix_rate", "peak_memory_mb", "memory_of_recipe", "loss_error"]
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(table[columns].to_string(index=False, float_format="{:.4g}".format, na_rep="-"))
    print(f"{facts['seconds']} s; results in {options.folder}")


if __name__ == "__main__":
    main()
