"""The tables of a study: scores, comparisons, loyalty, calibration; as text too."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from rolib.analysis import study, uncertainty
from rolib.config import AnalyseConfig, Config
from rolib.evaluation.metrics import Scorer, at_ones, scorer
from rolib.evaluation.predictions import check_paired
from rolib.measures import TASKS
from rolib.runs import write_text

LEVEL = 0.05  # of the family-wise error
LEAST = 1e-9  # a score that is divided by is at least this
ESTIMATE = ["checkpoints", "seeds", "examples", "value", "low", "high", "sd"]
Values = dict[tuple[str, ...], np.ndarray]  # see `uncertainty.summary`
# own: the teacher is one of the model's own teachers, and not the ensemble
PAIR = ["model", "role", "teacher", "own", "task", "measure"]


def estimate(
    names: list[str], scorers: dict[tuple, list[list[Scorer]]], examples: int, config: AnalyseConfig
) -> tuple[pd.DataFrame, Values]:
    """A table of scores with intervals, one row a key and score; and the values of all runs.

    scorers: by key, nested lists `[distillation seed][fine-tuning seed]`. names: the columns of
    the parts of a key and of the score's name. Further columns: checkpoints (distillation seeds),
    seeds (fine-tuning seeds of each), examples, value (mean over all runs), low, high (95 %
    bootstrap interval), sd (over the runs; NaN for one run). The values have the keys (*key, score)
    and the shape of `uncertainty.summary`.
    """
    draws = uncertainty.bootstrap(scorers, examples, config.resamples, config.seed)
    rows, values = [], Values()
    for key, runs in scorers.items():
        points = [[at_ones(run, examples) for run in by_seed] for by_seed in runs]
        for score, drawn in draws[key].items():
            of_runs = np.array([[[point[score]] for point in by_seed] for by_seed in points])
            values[*key, score] = found = np.concatenate([of_runs, drawn], axis=-1)
            numbers = (len(runs), len(runs[0]), examples, *uncertainty.summary(found))
            rows.append((*key, score, *numbers, pd.Series(of_runs.ravel()).std()))
    return pd.DataFrame(rows, columns=[*names, *ESTIMATE]), values


def differences(values: Values, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """The differences of pairs of models on each measure that both have.

    values: those of each (model, measure). Columns: model, against, task, difference, low, high, p.
    """
    rows = []
    for (model, other), task in itertools.product(pairs, dict.fromkeys(task for _, task in values)):
        if values.keys() >= {(model, task), (other, task)}:
            gaps = values[model, task] - values[other, task]
            p = uncertainty.p_value(gaps[..., 1:])
            rows.append((model, other, task, *uncertainty.summary(gaps), p))
    return pd.DataFrame(rows, columns="model against task difference low high p".split())


def score_tables(config: AnalyseConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and comparisons of a study from its predictions, as fractions.

    Scores of every model and of the teachers' ensemble: model, role, teacher, task, score, headline
    (whether this is the main score of the measure), and the columns of `estimate`. The measure
    `mean` is the mean of the headline scores; a model that lacks a measure has none.
    Comparisons of headline scores: model, checkpoints (of the model), against, role (of the other
    model), task, difference, low, high, p, p_holm and holds (see `corrected`), and the model's
    score as a share of the other's with its interval: kept, kept_low, kept_high.
    """
    everyone = study.with_ensemble(study.members(config))
    seeds, measures = study.present(config)
    tables, values = [], Values()
    for table, of_task in study.by_measure(partial(_score_task, config, seeds), measures):
        tables.append(table)
        values |= of_task
    scores = pd.concat(tables)
    numbers = scores.groupby("model")[["checkpoints", "seeds"]].min()
    rows = []
    for name in everyone["model"]:
        keys = [(name, task) for task in measures]
        if values.keys() >= set(keys):
            of_tasks = np.broadcast_arrays(*[values[key] for key in keys])
            values[name, "mean"] = mean = np.mean(of_tasks, axis=0)
            rows.append((name, *numbers.loc[name], *uncertainty.summary(mean)))
    columns = ["model", "checkpoints", "seeds", "value", "low", "high"]
    means = pd.DataFrame(rows, columns=columns).assign(task="mean", score="mean", headline=True)
    scores = everyone[["model", "role", "teacher"]].merge(pd.concat([scores, means]), on="model")
    comparisons = _compare(study.compared(everyone), values)
    comparisons.insert(1, "checkpoints", comparisons["model"].map(numbers["checkpoints"]))
    return scores, comparisons


def _score_task(
    config: AnalyseConfig, seeds: list[int], task: str, here: pd.DataFrame
) -> tuple[pd.DataFrame, Values]:
    """The scores of all models on one measure, and the values of their headline scores.

    here: the models, see `study.present`. The values have the keys (model, task).
    """
    headline = study.read_result(config, here["checkpoints"][0][0], task, seeds[0])["headline"]
    models = study.read_teachers(config, here, task, seeds)
    for member in here.itertuples():
        if member.model not in models:
            numbers = seeds[:1] if member.role == study.WORDS_ROLE else seeds
            files = (member.checkpoints, task, numbers)
            models[member.model] = study.read_runs(config, *files, probabilities=False)
    named, scorers = {}, {}
    for name, runs in models.items():
        scorers[name, task] = [[scorer(TASKS[task], run) for run in by_seed] for by_seed in runs]
        for number, by_seed in enumerate(runs, 1):
            for seed, run in zip(seeds, by_seed, strict=False):
                named[f"predictions of {name}, checkpoint {number}, seed {seed}"] = run
    check_paired(named)
    table, values = estimate(["model", "task", "score"], scorers, run.num_examples, config)
    table["headline"] = table["score"] == headline
    return table, {key: values[*key, headline] for key in scorers}


def _compare(pairs: list[tuple[str, str, str]], values: Values) -> pd.DataFrame:
    """The comparisons of `score_tables`; values: those of each (model, measure)."""
    table = differences(values, [(model, other) for model, other, _ in pairs])
    roles = pd.DataFrame(pairs, columns=["model", "against", "role"])
    table.insert(2, "role", table[["model", "against"]].merge(roles)["role"])
    kept = []
    for row in table.itertuples():
        below = np.maximum(values[row.against, row.task], LEAST)
        kept.append(uncertainty.summary(uncertainty.ratio(values[row.model, row.task], below)))
    table[["kept", "kept_low", "kept_high"]] = np.array(kept).reshape(-1, 3)
    return corrected(table)


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p_holm and holds (p_holm below `LEVEL`).

    p is corrected over all tests of the table, whatever their models and measures. The means over
    the measures are a table of their own. A row without p is no test.
    """
    holm = table["p"].dropna().groupby(table["task"] == "mean").transform(uncertainty.holm)
    table = table.assign(p_holm=holm.reindex(table.index))
    return table.assign(holds=table["p_holm"] < LEVEL)


def resamples_note(table: pd.DataFrame, resamples: int) -> str:
    """Says so if a table of `corrected` has too many tests for any difference to hold, else ""."""
    tests = table["p"].notna().groupby(table["task"] == "mean").sum().max()
    least = 2 / (resamples + 1)  # see `uncertainty.p_value`
    if tests * least < LEVEL:
        return ""
    text = f"With {resamples:,} resamples p is at least {least:.2g}, and the table has {tests} "
    text += "tests: after Holm's correction none of them can hold. Set resamples to "
    return f"{text}{math.ceil(2 * tests / LEVEL):,} or more."


def loyalty_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Model and teacher x measure as text: "0.951 ± 0.004* (0.08; 0.96)".

    rows: those of one kind of loyalty. In brackets: chance level and floor, "–" for a missing one.
    A star: the distance from the floor holds.
    """

    def text(row: Any) -> str:
        star = "*" if row.holds else ""
        levels = f"({row.chance:.2f}; {row.floor:.2f})".replace("nan", "–")
        return f"{row.value:.3f} ± {(row.high - row.low) / 2:.3f}{star} {levels}"

    return wide_text(rows, ["role", "model", "teacher"], text)


def wide_text(rows: pd.DataFrame, index: list[str], text: Callable[[Any], str]) -> pd.DataFrame:
    """The text of each row in a table of index x measure; measures stand in their usual order."""
    table = rows.assign(text=[text(row) for row in rows.itertuples()])
    table = table.pivot_table("text", index, "task", aggfunc="first", sort=False)
    order = [task for task in [*TASKS, "mean"] if task in table]
    return table[order].reset_index().rename_axis(columns=None)


def write_tables(config: Config, tables: dict[str, pd.DataFrame]) -> None:
    """Write tables into the profile's folder: name.csv, but for its size disagreements.parquet."""
    for name, table in tables.items():
        if name == "disagreements":
            working = config.folder / f".{name}.parquet"
            table.to_parquet(working, compression="zstd", index=False)
            working.replace(config.folder / f"{name}.parquet")
        else:
            write_text(config.folder / f"{name}.csv", table.to_csv(index=False))


def calibration_table(bins: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, confidence and ece by model, role and task: means over the runs.

    bins: the calibration bins of `loyalty_tables`. ece: the expected calibration error, the mean
    distance of confidence and accuracy over bins, weighted by their counts (Guo et al. 2017).
    """
    names = ["accuracy", "confidence", "ece"]
    keys = ["model", "role", "task", "checkpoint", "seed"]
    bins = bins[bins["count"] > 0].assign(ece=lambda b: (b["accuracy"] - b["confidence"]).abs())
    weighted = bins[names].mul(bins["count"], axis=0)
    sums = bins[[*keys, "count"]].join(weighted).groupby(keys, sort=False).sum()
    return sums[names].div(sums["count"], axis=0).groupby(keys[:3], sort=False).mean().reset_index()
