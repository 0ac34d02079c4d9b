"""The claims of the paper, each checked against a study by an explicit rule.

A claim has a bar. It `holds` if the whole interval of what was measured lies above the bar, and
`does not hold` if the whole interval lies below it. Else the data do not decide: `not told apart`.
"""

from pathlib import Path

import pandas as pd

from rolib.measures import TASKS

COMPARABLE = 95.0  # percent of the teacher's mean score: the margin of "comparable"
SMALLER, FASTER = 35.0, 2.0  # the paper: "about 35 % smaller", "twice as fast"
ABOUT = 0.9  # of a published number still counts as "about" this number
LOYALTIES = ["label_loyalty", "probability_loyalty", "regression_loyalty"]
COLUMNS = ["claim", "model", "against", "value", "low", "high", "bar", "published", "note"]
GOOD, ENSEMBLE = "comparable to its teacher", "ensemble at least as good"
SIZE, SPEED, LOYAL = "about 35 % smaller", "about twice as fast", "loyal to its teacher"
CLAIMS = [GOOD, ENSEMBLE, SIZE, SPEED, LOYAL]


def verdict(low: float, high: float, bar: float) -> str:
    """`holds`, `does not hold` or `not told apart`, as the module says."""
    if low > bar:
        return "holds"
    return "does not hold" if high < bar else "not told apart"


def check_claims(
    comparisons: pd.DataFrame, speed: pd.DataFrame, loyalty: pd.DataFrame
) -> pd.DataFrame:
    """One row a claim and student: `COLUMNS` and verdict; published is NaN where it is not known.

    The tables are comparisons.csv, speed.csv and loyalty.csv. What is measured, and the bar:
    - comparable: the mean score in percent of the first teacher's; the bar is `COMPARABLE`.
    - ensemble: the mean score less that of each student of one teacher, in points; above 0, without
      a margin.
    - smaller: the percentage of parameters saved; `ABOUT` of `SMALLER`. It is exact.
    - fast: the teacher's latency over the student's at the largest batch; `ABOUT` of `FASTER`. The
      interval sets the quartiles of both models' timed runs against each other: it is no 95 % one.
    - loyal: each kind of loyalty to the first teacher, mean over the measures; the chance level.
      The ends of the interval are means too, as if all measures erred together. The note has the
      chance level, the floor (two seeds of the teacher), the loyalty of the control from random
      weights, and the measures that are not above chance.
    """
    published = pd.read_csv(Path(__file__).with_name("published.csv"), index_col="model")
    published = published.reindex(pd.unique(comparisons[["model", "against"]].to_numpy().ravel()))
    means = published[list(TASKS)].mean(axis=1, skipna=False)
    overall = comparisons[comparisons["task"] == "mean"]
    rows: list[tuple] = []
    for row in overall.itertuples():
        if row.role == "teacher":
            found = (100 * row.kept, 100 * row.kept_low, 100 * row.kept_high, COMPARABLE)
            share = 100 * means[row.model] / means[row.against]
            rows.append((GOOD, row.model, row.against, *found, share, ""))
        elif row.role == "student":
            found = (100 * row.difference, 100 * row.low, 100 * row.high, 0.0)
            points = means[row.model] - means[row.against]
            rows.append((ENSEMBLE, row.model, row.against, *found, points, ""))
    rows += _size_and_speed(speed, published["parameters"]) + _loyalty(loyalty, overall)
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = table["claim"].map(CLAIMS.index)
    table = table.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    ends = zip(table["low"], table["high"], table["bar"], strict=True)
    return table.assign(verdict=[verdict(*row) for row in ends])


def _size_and_speed(speed: pd.DataFrame, published: pd.Series) -> list[tuple]:
    """The rows of the claims on size and speed; published: parameters of the paper's models."""
    rows: list[tuple] = []
    at_batch = speed[speed["batch_size"] == speed["batch_size"].max()].set_index("model")
    for model, row in at_batch[at_batch["role"] == "student"].iterrows():
        teacher = row["teacher"]
        beside, saved = at_batch.loc[teacher], 100 * (1 - row["size_ratio"])
        less = 100 * (1 - published[model] / published[teacher])
        rows.append((SIZE, model, teacher, saved, saved, saved, ABOUT * SMALLER, less, ""))
        low = beside["latency_q1_ms"] / row["latency_q3_ms"]
        high = beside["latency_q3_ms"] / row["latency_q1_ms"]
        found = (row["speed_up"], low, high, ABOUT * FASTER, FASTER)
        rows.append((SPEED, model, teacher, *found, f"batch {row['batch_size']}, {row['device']}"))
    return rows


def _loyalty(loyalty: pd.DataFrame, overall: pd.DataFrame) -> list[tuple]:
    """The rows of the claim on loyalty; overall: the comparisons of mean scores."""
    first = overall.loc[overall["role"] == "teacher", ["model", "against"]]
    controls = overall[overall["role"] == "random control"].set_index("model")["against"]
    of_kind = loyalty[loyalty["measure"].isin(LOYALTIES)]
    means = of_kind.groupby(["model", "teacher", "measure"])["value"].mean()
    own = of_kind.merge(first, left_on=["model", "teacher"], right_on=["model", "against"])
    own = own.sort_values("model", kind="stable")
    rows: list[tuple] = []
    for (model, teacher, kind), part in own.groupby(["model", "teacher", "measure"], sort=False):
        found = part[["value", "low", "high", "chance"]].mean()
        others = {"chance": found["chance"], "floor": part["floor"].mean()}
        others["random weights"] = means.get((controls.get(model), teacher, kind))
        note = [f"{name} {value:.2f}" for name, value in others.items() if pd.notna(value)]
        below = part.loc[part["low"] <= part["chance"], "task"].str.upper()
        if len(below):
            note.append(f"not above chance: {' '.join(below)}")
        text = f"{kind.removesuffix('_loyalty')}: {', '.join(note)}"
        rows.append((LOYAL, model, teacher, *found, float("nan"), text))
    return rows
