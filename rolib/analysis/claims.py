"""The claims of the paper and of this study, each checked by an explicit rule.

A claim has a bar. It `holds` if the whole interval of what was measured lies above the bar, and
`does not hold` if the whole interval lies below it. Else the data do not decide: `not told apart`.
Of a tested difference the test decides (p after Holm's correction), and not the interval.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from rolib.measures import TASKS

COMPARABLE = 95.0  # percent of the teacher's mean score: the margin of "comparable"
SMALLER, FASTER = 35.0, 2.0  # the paper: "about 35 % smaller", "twice as fast"
ABOUT = 0.9  # of a published number still counts as "about" this number
LOYALTIES = ["label_loyalty", "probability_loyalty", "regression_loyalty"]
COLUMNS = "claim model against value low high bar verdict published note".split()
GOOD, ENSEMBLE = "comparable to its teacher", "ensemble at least as good"
SIZE, SPEED, LOYAL = "about 35 % smaller", "about twice as fast", "loyal to its teacher"
LONGER, BETTER = "comparable to its teacher trained on", "better than its control"
AT_TASK, CHANCE = "better when distilled at the task", "more loyal to its teacher than chance"
CLAIMS = [GOOD, ENSEMBLE, SIZE, SPEED, LOYAL, CHANCE, LONGER, BETTER, AT_TASK]
UNKNOWN = float("nan")


def verdict(low: float, high: float, bar: float) -> str:
    """`holds`, `does not hold` or `not told apart`, as the module says."""
    if low > bar:
        return "holds"
    return "does not hold" if high < bar else "not told apart"


def tested(holds: bool, difference: float) -> str:
    """The verdict on a difference above 0: it holds, or the opposite does, or neither."""
    sign = difference if holds else 0
    return verdict(sign, sign, 0)


def check_claims(
    comparisons: pd.DataFrame,
    speed: pd.DataFrame,
    loyalty: pd.DataFrame,
    at_task: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row a claim and student: `COLUMNS` and checkpoints, how many stand for the student.

    The tables are comparisons.csv, speed.csv, loyalty.csv and, where notebook 11 ran,
    task-comparisons.csv; published is NaN where it is not known. What is measured, and the bar:
    - comparable: the mean score in percent of the first teacher's, or of this teacher trained on
      for the student's steps (`longer`); the bar is `COMPARABLE`.
    - ensemble: the mean score less that of each student of one teacher, in points; above 0, tested,
      without a margin.
    - better: the mean score less that of each other control and of the bag of words; as ensemble.
    - at the task: the mean score of a variant of notebook 11, which the note names, less that of
      another variant or of a teacher; as ensemble. One checkpoint stands for the student.
    - smaller: the percentage of parameters saved; `ABOUT` of `SMALLER`. It is exact.
    - fast: the teacher's latency over the student's at the largest batch; `ABOUT` of `FASTER`. The
      interval sets the quartiles of both models' timed runs against each other: it is no 95 % one.
    - loyal: each kind of loyalty to the first teacher, mean over the measures; the floor, tested.
      With one fine-tuning seed there is no floor: the claim has another name, and chance is its
      bar. The note has the gap to the floor, chance, the loyalty of the control from random
      weights, and the measures that are not above chance.
    """
    published = pd.read_csv(Path(__file__).with_name("published.csv"), index_col="model")
    published = published.reindex(pd.unique(comparisons[["model", "against"]].to_numpy().ravel()))
    overall = comparisons[comparisons["task"] == "mean"]
    overall = overall[overall["model"].isin(overall.loc[overall["role"] == "teacher", "model"])]
    means = published[list(TASKS)].mean(axis=1, skipna=False)
    rows = [_score_claim(row, means) for row in overall.itertuples()]
    rows += _size_and_speed(speed, published["parameters"]) + _loyalty(loyalty, overall)
    for row in [] if at_task is None else at_task[at_task["task"] == "mean"].itertuples():
        found = (row.difference, row.low, row.high, 0.0, tested(row.holds, row.difference))
        rows.append((AT_TASK, row.model, row.against, *found, UNKNOWN, f"variant {row.variant}"))
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = overall.drop_duplicates("model").set_index("model")["checkpoints"]
    table.insert(2, "checkpoints", table["model"].map(numbers).mask(table["claim"] == AT_TASK, 1))
    order = table["claim"].map(CLAIMS.index)
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def _score_claim(row: Any, means: pd.Series) -> tuple:
    """The claim on the mean score of a student against another model, a row of the comparisons."""
    names = (row.model, row.against)
    if row.role in ("teacher", "longer control"):
        kept = (100 * row.kept_low, 100 * row.kept_high, COMPARABLE)
        claim, share = LONGER, UNKNOWN  # the paper has no such control
        if row.role == "teacher":
            claim, share = GOOD, 100 * means[row.model] / means[row.against]
        return (claim, *names, 100 * row.kept, *kept, verdict(*kept), share, "")
    found = (100 * row.difference, 100 * row.low, 100 * row.high, 0.0)
    points = means[row.model] - means[row.against]
    claim, note = (ENSEMBLE, "") if row.role == "student" else (BETTER, row.role)
    return (claim, *names, *found, tested(row.holds, row.difference), points, note)


def _size_and_speed(speed: pd.DataFrame, published: pd.Series) -> list[tuple]:
    """The rows of the claims on size and speed; published: parameters of the paper's models."""
    rows: list[tuple] = []
    at_batch = speed[speed["batch_size"] == speed["batch_size"].max()].set_index("model")
    for model, row in at_batch[at_batch["role"] == "student"].iterrows():
        names = (model, row["teacher"])
        beside, saved = at_batch.loc[row["teacher"]], 100 * (1 - row["size_ratio"])
        less = 100 * (1 - published[model] / published[row["teacher"]])
        exact = (saved, saved, ABOUT * SMALLER)
        rows.append((SIZE, *names, saved, *exact, verdict(*exact), less, ""))
        low = beside["latency_q1_ms"] / row["latency_q3_ms"]
        high = beside["latency_q3_ms"] / row["latency_q1_ms"]
        found = (low, high, ABOUT * FASTER)
        where = f"batch {row['batch_size']}, {row['device']}"
        rows.append((SPEED, *names, row["speed_up"], *found, verdict(*found), FASTER, where))
    return rows


def _loyalty(loyalty: pd.DataFrame, overall: pd.DataFrame) -> list[tuple]:
    """The rows of the claim on loyalty; overall: the comparisons of the students' mean scores."""
    first = overall.loc[overall["role"] == "teacher", ["model", "against"]]
    controls = overall[overall["role"] == "random control"].set_index("model")["against"]
    kinds = loyalty[loyalty["measure"].isin(LOYALTIES)]
    own = kinds.merge(first, left_on=["model", "teacher"], right_on=["model", "against"])
    means = kinds[kinds["task"] == "mean"].set_index(["model", "teacher", "measure"])["value"]
    rows: list[tuple] = []
    for row in own[own["task"] == "mean"].sort_values("model", kind="stable").itertuples():
        claim, bar, judged = CHANCE, row.chance, verdict(row.low, row.high, row.chance)
        note = [f"chance {row.chance:.2f}"]
        if pd.notna(row.floor):
            claim, bar, judged = LOYAL, row.floor, tested(row.holds, row.floor_gap)
            note.insert(0, f"gap {row.floor_gap:+.3f} ({row.gap_low:+.3f} to {row.gap_high:+.3f})")
        control = means.get((controls.get(row.model), row.teacher, row.measure))
        if control is not None:
            note.append(f"random weights {control:.2f}")
        parts = own[(own["model"] == row.model) & (own["measure"] == row.measure)]
        below = parts[(parts["low"] <= parts["chance"]) & (parts["task"] != "mean")]["task"]
        if len(below):
            note.append(f"not above chance: {' '.join(below.str.upper())}")
        text = f"{row.measure.removesuffix('_loyalty')}: {', '.join(note)}"
        measured = (row.value, row.low, row.high, bar, judged)
        rows.append((claim, row.model, row.teacher, *measured, UNKNOWN, text))
    return rows
