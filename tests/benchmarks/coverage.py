"""How often 95 % intervals hold the true value, in simulated studies (not a test).

A run's score on an example is the sum of normal effects: of its distillation seed, of its
fine-tuning seed, of both together, of the example, and of the run's own noise on the example.
Accuracies: the answer is right where such a sum, latent, is above a bound (85 % are right).
A row is the score of a method, or the difference of two methods with equal true scores; these share
two thirds of the examples' variance, and no effect of a seed. A method with one seed of a kind is a
statement about that seed, which therefore has no effect.

Columns by kind of bootstrap: coverage, and half the mean width in points (width_...).
rolib: the interval of `rolib.analysis.uncertainty`. The others draw random weights of seeds at both
levels: multinomial (the pigeonhole bootstrap, Owen 2007), normal (with an unbiased variance), and
student (Student's t, which is exact where one level has all the variance).

Usage: python tests/benchmarks/coverage.py [--studies 2000] [--file figures/bench/coverage.csv]
"""

import argparse
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from rolib.analysis import uncertainty
from rolib.runs import write_text

RESAMPLES = 1000
BATCH = 100  # studies at a time, which share the resamples
# In points of 100: standard deviations of a score over distillation seeds, fine-tuning seeds, and
# both together; the sampling error that all runs share, and that of one run alone.
REALISTIC = {
    "no variance between seeds": (0, 0, 0, 0.7, 0.5),
    "small variance between seeds": (0.3, 0.3, 0.3, 0.7, 0.4),
    "each run differs": (0, 0, 0.6, 0.7, 0.4),
    "seeds as much as examples": (0.5, 0.5, 0.5, 0.7, 0.5),
    "distillation counts most": (0.8, 0.3, 0.3, 0.5, 0.4),
}
EXTREME = {
    "distillation seeds alone": (1, 0, 0, 0.02, 0),
    "fine-tuning seeds alone": (0, 1, 0, 0.02, 0),
    "both kinds of seeds alone": (1, 1, 0, 0.02, 0),
    "both together alone": (0, 0, 1, 0.02, 0),
}
# Of the latent variance of an accuracy, the example has four fifths. Sampling error: 1.1 points.
ACCURACIES = {
    "no variance between seeds": (0, 0, 0),
    "small variance between seeds": (0.3, 0.3, 0.3),
    "seeds as much as examples": (0.8, 0.8, 0.8),
    "seeds count most": (3, 2, 1),
}
Grid = tuple[int, int]  # distillation seeds, fine-tuning seeds
ROWS: list[tuple[str, list[Grid], int]] = [
    *[("realistic", list(grids), 300) for grids in ([(3, 3)], [(1, 3)], [(3, 1)], [(5, 5)])],
    *[("realistic", [(3, 3), other], 300) for other in ((1, 3), (3, 3), (1, 1))],
    *[("realistic", [(2, 3), other], 300) for other in ((1, 3), (2, 3))],  # of figures/mini
    *[("extreme", list(grids), 300) for grids in ([(3, 3)], [(5, 5)], [(3, 3), (3, 3)])],
    *[("accuracy", list(grids), 1000) for grids in ([(3, 3)], [(3, 3), (1, 3)])],
]
SCENARIOS = {"realistic": REALISTIC, "extreme": EXTREME, "accuracy": ACCURACIES}


def seed_effects(sizes: tuple, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """The effects of seeds on the runs of a method: (D, F, 1)."""
    distilled, tuned = grid
    shapes = [(distilled, 1), (1, tuned), grid]
    drawn = [
        rng.normal(0, size if np.prod(shape) > 1 else 0, shape)
        for size, shape in zip(sizes, shapes, strict=False)
    ]
    return sum(drawn)[..., None]


def values(sizes: tuple, grids: list[Grid], examples: int, rng: np.random.Generator) -> list:
    """The scores of the runs of each method on each example, (D, F, examples); true mean 0."""
    common, found = rng.normal(size=examples), []
    for grid in grids:
        seeds = seed_effects(sizes, grid, rng)
        shared = np.sqrt(2 / 3) * common + np.sqrt(1 / 3) * rng.normal(size=examples)
        own = rng.normal(size=(*grid, examples))
        if len(sizes) == 5:
            noise = np.sqrt(examples) * (sizes[3] * shared + sizes[4] * own)
            found.append(seeds + noise)
        else:  # accuracy: an effect on the score, divided by the slope, is one on the latent sum
            bound = stats.norm.ppf(0.85)
            latent = seeds / (100 * stats.norm.pdf(bound))
            right = bound + latent + np.sqrt(0.8) * shared + np.sqrt(0.2) * own > 0
            true = [size if many else 0 for size, many in zip(sizes, many_seeds(grid), strict=True)]
            variance = 1 + sum(np.square(true)) / (100 * stats.norm.pdf(bound)) ** 2
            found.append(100 * (right - stats.norm.cdf(bound / np.sqrt(variance))))
    return found


def many_seeds(grid: Grid) -> list[bool]:
    """Whether the three effects of seeds vary over the runs."""
    return [grid[0] > 1, grid[1] > 1, max(grid) > 1]


def scorer(run: np.ndarray) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda weights: {"score": run @ weights / len(run)}


@lru_cache  # all studies share them
def seed_weights(seeds: int, level: int, kind: str, resamples: int) -> np.ndarray:
    """Random weights of seeds, (seeds, resamples), with the sum 1 in each resample."""
    rng = np.random.default_rng(level)
    if kind == "multinomial" or seeds == 1:
        return rng.multinomial(seeds, np.ones(seeds) / seeds, resamples).T / seeds
    gaps = rng.normal(size=(seeds, resamples)) / np.sqrt(seeds * (seeds - 1))
    if kind == "student":
        gaps /= np.sqrt(rng.chisquare(seeds - 1, resamples) / (seeds - 1))
    return 1 / seeds + gaps - gaps.mean(axis=0)


def by_weights(runs: np.ndarray, kind: str) -> np.ndarray:
    """Draws (R,) of the mean over runs (D, F, R) with random weights of seeds."""
    resamples = runs.shape[2]
    outer, inner = (seed_weights(runs.shape[level], level, kind, resamples) for level in (0, 1))
    return (runs * outer[:, None] * inner).sum(axis=(0, 1))


def simulate(sizes: tuple, grids: list[Grid], examples: int, studies: int) -> dict[str, float]:
    """Coverage and width by kind of bootstrap; see the module."""
    rng, found = np.random.default_rng(1), []
    for start in range(0, studies, BATCH):
        models = {
            (study, number): [[scorer(run) for run in by_seed] for by_seed in method]
            for study in range(start, min(start + BATCH, studies))
            for number, method in enumerate(values(sizes, grids, examples, rng))
        }
        drawn = uncertainty.bootstrap(models, examples, RESAMPLES)
        for study in sorted({study for study, _ in drawn}):
            draws = [drawn[study, number]["score"] for number in range(len(grids))]
            difference = draws[0] - sum(draws[1:])
            kinds = {"rolib": difference}
            for kind in ("multinomial", "normal", "student"):
                kinds[kind] = by_weights(difference, kind)
            row = {}
            for kind, found_draws in kinds.items():
                low, high = uncertainty.interval(found_draws)
                row |= {kind: low <= 0 <= high, f"width_{kind}": (high - low) / 2}
            found.append(row)
    return pd.DataFrame(found).astype(float).mean().round(4).to_dict()


def main(studies: int, file: Path) -> None:
    """Write the table, one row a scenario and shape of the study."""
    rows = []
    for kind, grids, examples in ROWS:
        for name, sizes in SCENARIOS[kind].items():
            seeds = " - ".join("x".join(map(str, grid)) for grid in grids)
            facts = {"kind": kind, "seeds": seeds, "scenario": name, "examples": examples}
            rows.append(facts | simulate(sizes, grids, examples, studies))
            print(*rows[-1].values(), flush=True)
    table = pd.DataFrame(rows).assign(studies=studies, resamples=RESAMPLES)
    write_text(file, table.to_csv(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--file", type=Path, default=Path("figures/bench/coverage.csv"))
    main(**vars(parser.parse_args()))
