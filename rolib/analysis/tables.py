"""The tables of a study."""

import itertools
import os
from collections.abc import Callable

import numpy as np
import pandas as pd

from rolib.analysis import uncertainty
from rolib.analysis.loyalty import compare_predictions
from rolib.analysis.study import (
    compared,
    evaluated,
    members,
    read_runs,
    read_teachers,
    with_ensemble,
)
from rolib.config import Config, RobustnessConfig
from rolib.evaluation.metrics import Scorer, at_ones, scorer
from rolib.evaluation.predictions import Predictions, check_paired
from rolib.measures import TASKS
from rolib.runs import made_by, read_json, write_text

LEVEL = 0.05  # of the family-wise error


SCORE_COLUMNS = [
    "model",
    "role",
    "teacher",
    "task",
    "seeds",
    "examples",
    "score",
    "headline",
    "value",
    "sd",
    "low",
    "high",
]


PAIR = [
    "model",
    "role",
    "teacher",
    "own",
    "task",
    "measure",
]  # own: the teacher is the model's own, and not the ensemble


def estimate(
    names: list[str], scorers: dict[tuple, list[Scorer]], examples: int, config: Config
) -> tuple[pd.DataFrame, dict]:
    """A table of what scorers, by key and one for each fine-tuning seed, find; and the bootstrap draws behind it.

    Columns: the parts of the key and the score's name under `names`, seeds, examples, value (mean over seeds), sd (over seeds;
    NaN for one), low, high (95 % bootstrap interval).
    """
    draws, rows = uncertainty.bootstrap(scorers, examples, config.resamples, config.seed), []
    for key, by_seed in scorers.items():
        for score, values in pd.DataFrame([at_ones(run, examples) for run in by_seed]).items():
            row = dict(zip(names, (*key, score), strict=True)) | {
                "seeds": len(values),
                "examples": examples,
            }
            low, high = uncertainty.interval(draws[key][score])
            rows.append(
                row | {"value": values.mean(), "sd": values.std(), "low": low, "high": high}
            )
    return pd.DataFrame(rows), draws


def score_tables(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and comparisons of a study from its predictions, as fractions.

    Scores: `SCORE_COLUMNS` (headline: is it the headline score?; the rest as in `estimate`) of every model and of the
    teachers' ensemble; the measure `mean` is the mean of the headlines.
    Comparisons, of headline scores: model, against, role (of the other), task, difference, low, high, p, p_holm (over the
    measures of a pair; `mean` is no part of the family), holds (p_holm below 0.05).
    """
    everyone, tables, draws = with_ensemble(members(config)), [], {}
    first = everyone["model"][0]
    for task, seeds in evaluated(config).items():
        run = config.folder / "evaluation" / first / task / f"seed-{seeds[0]}"
        headline = read_json(run / "scores.json", made_by(config))["headline"]
        models = read_teachers(config, everyone, task, seeds)
        others = [name for name in everyone["model"] if name not in models]
        models |= {
            name: read_runs(config, name, task, seeds, probabilities=False) for name in others
        }
        named = {}
        for name, runs in models.items():
            named |= {
                f"predictions of {name}, seed {seed}": run
                for seed, run in zip(seeds, runs, strict=True)
            }
        check_paired(named)
        scorers = {
            (name, task): [scorer(TASKS[task], run) for run in runs]
            for name, runs in models.items()
        }
        table, by_score = estimate(
            ["model", "task", "score"], scorers, models[first][0].num_examples, config
        )
        tables.append(table.assign(headline=table["score"] == headline))
        draws |= {key: scores[headline] for key, scores in by_score.items()}
    scores, means = pd.concat(tables), []
    points = scores[scores["headline"]].set_index(["model", "task"])["value"].to_dict()
    for name in everyone["model"]:
        keys, mean = sorted(key for key in points if key[0] == name), (name, "mean")
        draws[mean], points[mean] = (
            np.mean([draws[key] for key in keys], axis=0),
            np.mean([points[key] for key in keys]),
        )
        low, high = uncertainty.interval(draws[mean])
        row = {
            "model": name,
            "task": "mean",
            "seeds": len(seeds),
            "score": "mean",
            "headline": True,
        }
        means.append(row | {"value": points[mean], "low": low, "high": high})
    scores = everyone[["model", "role", "teacher"]].merge(
        pd.concat([scores, pd.DataFrame(means)]), on="model"
    )[SCORE_COLUMNS]
    return scores, _compare(compared(everyone), draws, points)


def _compare(pairs: list[tuple[str, str, str]], draws: dict, points: dict) -> pd.DataFrame:
    """The comparisons of `score_tables` from the draws and the point of each (model, measure)."""
    rows = []
    for (model, other, role), task in itertools.product(
        pairs, dict.fromkeys(task for _, task in points)
    ):
        gaps = draws[model, task] - draws[other, task]
        rows.append((model, other, role, task, points[model, task] - points[other, task]))
        rows[-1] += (*uncertainty.interval(gaps), uncertainty.p_value(gaps))
    table = pd.DataFrame(
        rows, columns=["model", "against", "role", "task", "difference", "low", "high", "p"]
    )
    family = [table["model"], table["against"], table["task"] == "mean"]
    table["p_holm"] = table.groupby(family)["p"].transform(uncertainty.holm)
    return table.assign(holds=table["p_holm"] < LEVEL)


def score_table(scores: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Model x measure as text in percent: "91.7 ± 0.6", half the 95 % interval; * where a student differs from its first teacher."""
    held = comparisons[(comparisons["role"] == "teacher") & comparisons["holds"]]
    marked = set(zip(held["model"], held["task"], strict=True))

    def text(row) -> str:
        return f"{100 * row.value:.1f} ± {50 * (row.high - row.low):.1f}" + "*" * (
            (row.model, row.task) in marked
        )

    return _wide(scores[scores["headline"]], ["role", "model"], text)


def comparison_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Pair x measure as text in points: "-0.4 ± 0.8", the student's score minus the other's; * where the difference holds."""

    def text(row) -> str:
        return f"{100 * row.difference:+.1f} ± {50 * (row.high - row.low):.1f}" + "*" * row.holds

    return _wide(comparisons, ["model", "against", "role"], text)


def loyalty_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one loyalty, model and teacher x measure, as text: "0.951 ± 0.004 (0.08; 0.96)", in brackets chance level and floor, "–" for none."""

    def text(row) -> str:
        bracket = f"({row.chance:.2f}; {row.floor:.2f})".replace("nan", "–")
        return f"{row.value:.3f} ± {(row.high - row.low) / 2:.3f} {bracket}"

    return _wide(rows, ["role", "model", "teacher"], text)


def _wide(rows: pd.DataFrame, index: list[str], text: Callable) -> pd.DataFrame:
    """Index x measure with the text of each row."""
    table = rows.assign(text=[text(row) for row in rows.itertuples()])
    table = table.pivot_table(
        index=index, columns="task", values="text", aggfunc="first", sort=False
    )
    return (
        table[[task for task in [*TASKS, "mean"] if task in table]]
        .reset_index()
        .rename_axis(columns=None)
    )


def write_tables(config: Config, tables: dict[str, pd.DataFrame]) -> None:
    """Write tables by name into the profile's folder: name.csv, but the long one of disagreements as Parquet."""
    for name, table in tables.items():
        if name == "disagreements":
            path = config.folder / f".{name}.parquet"
            table.to_parquet(path, compression="zstd", index=False)
            os.replace(path, config.folder / f"{name}.parquet")
        else:
            write_text(config.folder / f"{name}.csv", table.to_csv(index=False))


def calibration_table(bins: pd.DataFrame) -> pd.DataFrame:
    """Model, role and task: accuracy, confidence, ece (expected calibration error), means over seeds, from the calibration bins."""
    names, keys = ["accuracy", "confidence", "ece"], ["model", "role", "task", "seed"]
    bins = bins[bins["count"] > 0]
    weighted = bins.assign(ece=(bins["accuracy"] - bins["confidence"]).abs())[names].mul(
        bins["count"], axis=0
    )
    sums = bins[[*keys, "count"]].join(weighted).groupby(keys, sort=False).sum()
    return (
        sums[names].div(sums["count"], axis=0).groupby(keys[:-1], sort=False).mean().reset_index()
    )


def compare_perturbed(config: RobustnessConfig) -> pd.DataFrame:
    """Scores and loyalty under each perturbation, from what `measure_robustness` left.

    Columns: model, role, teacher, task, seed, headline (a score's name), perturbation ("original" is none), score, value,
    change (value less that of the original). Loyalty is to the first teacher under the same perturbation; there is none
    for teachers and where the teacher was not measured. Only models and tasks of the config; a missing one is left out.
    """
    everyone, rows = members(config), []
    for member in everyone[everyone["model"].isin(config.models or everyone["model"])].itertuples():
        for task in config.tasks:
            folder, reference = (
                config.folder / "robustness" / name / task
                for name in (member.model, member.teacher)
            )
            if not (folder / "scores.json").exists():
                continue
            result = read_json(folder / "scores.json", "07-measure-robustness")
            follows = (
                member.model.removesuffix("-random") != member.teacher
                and (reference / "scores.json").exists()
            )
            for perturbation, values in result["scores"].items():
                if follows:
                    sides = (
                        Predictions.read(place / f"{perturbation}.parquet")
                        for place in (reference, folder)
                    )
                    values = values | compare_predictions(TASKS[task], *sides)
                start = (
                    member.model,
                    member.role,
                    member.teacher,
                    task,
                    result["seed"],
                    result["headline"],
                    perturbation,
                )
                rows += [(*start, score, value) for score, value in values.items()]
    columns = [
        "model",
        "role",
        "teacher",
        "task",
        "seed",
        "headline",
        "perturbation",
        "score",
        "value",
    ]
    table = pd.DataFrame(rows, columns=columns)
    original = (
        table["value"]
        .where(table["perturbation"] == "original")
        .groupby([table[c] for c in ("model", "task", "score")])
    )
    return table.assign(change=table["value"] - original.transform("max"))
