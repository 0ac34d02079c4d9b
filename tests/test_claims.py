"""The claims of the paper: verdicts and measured values, computed by hand from small tables."""

import pandas as pd
import pytest
from cells import functions_of

from rolib.analysis import claims

REPORT = functions_of("06-report-results")
SIZES = {"t": (1000, 9.0, 10.0, 11.0), "s": (650, 4.5, 5.0, 5.5), "m": (690, 8.0, 8.0, 8.0)}


def comparison(model, against, role, **facts):
    row = {"model": model, "against": against, "role": role, "task": "mean", "checkpoints": 1}
    row |= {"difference": -0.01, "low": -0.02, "high": 0.01, "holds": False}
    return row | {"kept": 0.98, "kept_low": 0.96, "kept_high": 1.01} | facts


def tables():
    """A teacher t, its student s, a student m of several teachers, and controls."""
    above = {"difference": 0.03, "low": 0.01, "high": 0.05, "holds": True, "checkpoints": 3}
    comparisons = [
        comparison("s", "t", "teacher", checkpoints=3),
        comparison("s", "t", "teacher", task="upos", kept=0.1),  # only the mean counts
        comparison("s", "l", "longer control", kept=0.97, kept_low=0.94, kept_high=0.99),
        comparison("s", "i", "init-only control", **above | {"holds": False}),
        comparison("s", "r", "random control", **above),
        comparison("s", "b", "bag of words", difference=-0.02, high=-0.01, holds=True),
        comparison("t", "r", "random control", **above),  # of no student
        comparison("m", "t", "teacher", kept=0.9, kept_low=0.88, kept_high=0.94),
        comparison("m", "s", "student", difference=0.02, low=0.001, high=0.04),
    ]
    speed = []
    for model, (parameters, low, latency, high) in SIZES.items():
        row = {"model": model, "role": "teacher" if model == "t" else "student", "teacher": "t"}
        row |= {"batch_size": 16, "device": "CPU", "size_ratio": parameters / 1000}
        row |= {"latency_ms": latency, "latency_q1_ms": low, "latency_q3_ms": high}
        row |= {"speed_up": 10 / latency}
        speed += [row, row | {"batch_size": 1, "speed_up": 99.0}]
    label = {"measure": "label_loyalty", "model": "s", "teacher": "t", "holds": True}
    label |= {"floor": 0.8, "floor_gap": -0.05, "gap_low": -0.07, "gap_high": -0.03}
    low = {"value": 0.1, "low": 0.1, "high": 0.1}
    loyalty = [
        label | {"task": "upos", "value": 0.9, "low": 0.8, "high": 1.0, "chance": 0.3},
        label | {"task": "di", "value": 0.6, "low": 0.4, "high": 0.8, "chance": 0.5},
        label | {"task": "mean", "value": 0.75, "low": 0.65, "high": 0.85, "chance": 0.4},
        label | {"task": "mean", "chance": 0.4, "model": "r"} | low,
        label | {"task": "mean", "chance": 0.4, "teacher": "other"} | low,
        label | {"task": "mean", "chance": 0.4, "measure": "kappa"} | low,
    ]
    return pd.DataFrame(comparisons), pd.DataFrame(speed), pd.DataFrame(loyalty)


@pytest.mark.parametrize(
    ("low", "high", "bar", "word"),
    [
        (0.96, 1.1, 0.95, "holds"),
        (0.90, 0.94, 0.95, "does not hold"),
        (0.90, 1.10, 0.95, "not told apart"),
        (31.5, 31.5, 31.5, "not told apart"),  # neither above the bar nor below it
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, bar, word):
    assert claims.verdict(low, high, bar) == word


def test_claims_by_hand():
    table = claims.check_claims(*tables())
    assert table.groupby("claim", sort=False).size().to_dict() == {
        claims.GOOD: 2,
        claims.ENSEMBLE: 1,
        claims.SIZE: 2,
        claims.SPEED: 2,
        claims.LOYAL: 1,
        claims.LONGER: 1,
        claims.BETTER: 3,
    }
    found = table.set_index(["claim", "model", "against"])
    numbers = found[["value", "low", "high", "bar"]].round(3).T.to_dict("list")
    assert numbers[claims.GOOD, "s", "t"] == [98.0, 96.0, 101.0, 95.0]
    assert numbers[claims.LONGER, "s", "l"] == [97.0, 94.0, 99.0, 95.0]
    assert numbers[claims.ENSEMBLE, "m", "s"] == [2.0, 0.1, 4.0, 0.0]
    assert numbers[claims.BETTER, "s", "r"] == [3.0, 1.0, 5.0, 0.0]
    assert numbers[claims.SIZE, "s", "t"] == [35.0, 35.0, 35.0, 31.5]
    assert numbers[claims.SPEED, "s", "t"] == [2.0, round(9 / 5.5, 3), round(11 / 4.5, 3), 1.8]
    assert numbers[claims.LOYAL, "s", "t"] == [0.75, 0.65, 0.85, 0.8]
    assert found["verdict"].to_dict() == {
        (claims.GOOD, "s", "t"): "holds",
        (claims.GOOD, "m", "t"): "does not hold",
        (claims.ENSEMBLE, "m", "s"): "not told apart",  # above 0, but not after the correction
        (claims.SIZE, "s", "t"): "holds",
        (claims.SIZE, "m", "t"): "does not hold",  # 31.0 % saved
        (claims.SPEED, "s", "t"): "not told apart",
        (claims.SPEED, "m", "t"): "does not hold",  # at most 11 / 8 times
        (claims.LOYAL, "s", "t"): "does not hold",  # its interval holds the floor, its gap not 0
        (claims.LONGER, "s", "l"): "not told apart",  # the lower end counts
        (claims.BETTER, "s", "i"): "not told apart",
        (claims.BETTER, "s", "r"): "holds",
        (claims.BETTER, "s", "b"): "does not hold",
    }
    assert found["checkpoints"].groupby("model").first().to_dict() == {"s": 3, "m": 1}
    note = "label: gap -0.050 (-0.070 to -0.030), chance 0.40, random weights 0.10, "
    assert found["note"][claims.LOYAL, "s", "t"] == f"{note}not above chance: DI"
    unknown = table.loc[table["claim"] != claims.SPEED, "published"]
    assert unknown.isna().all()  # the paper has no such models
    text = REPORT.claim_text(table)
    assert text.iloc[0].tolist()[:7] == [
        *[claims.GOOD, "s", "t", "98.0 %", "96.0 to 101.0 %", "holds", "95.0 %"]
    ]
    assert text["interval"][3] == "35.0 %" and text["published"][0] == "–"
    lines = REPORT.verdict_lines(table)
    assert lines[0] == "comparable to its teacher: holds 1, does not hold 1 of 2"


def test_distillation_at_the_task_has_a_row_for_each_comparison_of_means():
    columns = ["model", "variant", "against", "task", "difference", "low", "high", "holds"]
    rows = [
        ("m", "ensemble", "gold", "mean", 2.5, 1.5, 3.5, True),
        ("m", "ensemble", "gold", "upos", 9.0, 8.0, 10.0, True),  # only the mean counts
        ("m", "ensemble", "t", "mean", 0.5, -0.5, 1.5, False),
        ("m", "all-and-ensemble", "gold-on-all", "mean", -1.0, -1.5, -0.5, True),
    ]
    without, at_task = claims.check_claims(*tables()), pd.DataFrame(rows, columns=columns)
    table = claims.check_claims(*tables(), at_task.assign(p=0.01))
    assert set(without["claim"]) < set(table["claim"]) and table["claim"].iloc[-4] == claims.BETTER
    found = table[table["claim"] == claims.AT_TASK].drop(columns=["claim", "published"])
    assert found.to_numpy().tolist() == [
        ["m", 1, "gold", 2.5, 1.5, 3.5, 0.0, "holds", "variant ensemble"],
        ["m", 1, "t", 0.5, -0.5, 1.5, 0.0, "not told apart", "variant ensemble"],
        ["m", 1, "gold-on-all", -1.0, -1.5, -0.5, 0.0, "does not hold", "variant all-and-ensemble"],
    ]
    assert REPORT.claim_text(table)["measured"].iloc[-3] == "+2.5 points"


@pytest.mark.parametrize(
    ("gap", "holds", "word"),
    [(0.02, True, "holds"), (0.02, False, "not told apart"), (-0.02, True, "does not hold")],
)
def test_loyalty_is_judged_by_the_tested_gap(gap, holds, word):
    comparisons, speed, loyalty = tables()
    table = claims.check_claims(comparisons, speed, loyalty.assign(floor_gap=gap, holds=holds))
    assert table.loc[table["claim"] == claims.LOYAL, "verdict"].tolist() == [word]


def test_without_a_floor_chance_is_the_bar():
    comparisons, speed, loyalty = tables()
    for name in ("floor", "floor_gap", "gap_low", "gap_high"):
        loyalty[name] = float("nan")
    table = claims.check_claims(comparisons, speed, loyalty.assign(holds=False))
    assert claims.LOYAL not in set(table["claim"])  # it would say more than was measured
    [row] = table[table["claim"] == claims.CHANCE].itertuples()
    assert (row.bar, row.verdict) == (0.4, "holds") and "gap" not in row.note


def test_published_numbers_stand_beside():
    comparisons, speed, loyalty = (
        table.replace({"t": "bert-cased", "s": "distil-cased", "m": "distil-multi"})
        for table in tables()
    )
    table = claims.check_claims(comparisons, speed, loyalty).drop_duplicates(["claim", "model"])
    table = table.set_index(["claim", "model"])
    cased = (98.00 + 96.46 + 85.88 + 98.07 + 79.61 + 95.58 + 80.30) / 7
    student = (97.97 + 97.08 + 83.35 + 98.20 + 80.51 + 96.31 + 80.57) / 7
    multi = (98.07 + 96.83 + 83.22 + 98.11 + 79.77 + 96.18 + 80.66) / 7
    published = table["published"]
    assert published[claims.GOOD, "distil-cased"] == pytest.approx(100 * student / cased)
    assert published[claims.ENSEMBLE, "distil-multi"] == pytest.approx(multi - student)
    assert published[claims.SIZE, "distil-cased"] == pytest.approx(100 * (1 - 81.32 / 124.44))
    assert published[claims.SPEED, "distil-cased"] == 2.0
