"""The claims of the paper: verdicts and measured values, computed by hand from small tables."""

import pandas as pd
import pytest
from cells import functions_of

from rolib.analysis import claims

REPORT = functions_of("06-report-results")
SIZES = {"t": (1000, 9.0, 10.0, 11.0), "s": (650, 4.5, 5.0, 5.5), "m": (690, 8.0, 8.0, 8.0)}


def comparison(model, against, role, **facts):
    row = {"model": model, "against": against, "role": role, "task": "mean"}
    row |= {"difference": -0.01, "low": -0.02, "high": 0.01, "holds": False}
    return row | {"kept": 0.98, "kept_low": 0.96, "kept_high": 1.01} | facts


def tables():
    """A teacher t, its student s, a student m of several teachers, and a control r."""
    comparisons = [
        comparison("s", "t", "teacher"),
        comparison("s", "t", "teacher", task="upos", kept=0.1),  # only the mean counts
        comparison("s", "r", "random control"),
        comparison("m", "t", "teacher", kept=0.9, kept_low=0.88, kept_high=0.94),
        comparison("m", "s", "student", difference=0.02, low=-0.001, high=0.04),
    ]
    speed = []
    for model, (parameters, low, latency, high) in SIZES.items():
        row = {"model": model, "role": "teacher" if model == "t" else "student", "teacher": "t"}
        row |= {"batch_size": 16, "device": "CPU", "size_ratio": parameters / 1000}
        row |= {"latency_ms": latency, "latency_q1_ms": low, "latency_q3_ms": high}
        row |= {"speed_up": 10 / latency}
        speed += [row, row | {"batch_size": 1, "speed_up": 99.0}]
    label = {"measure": "label_loyalty", "model": "s", "teacher": "t", "floor": float("nan")}
    loyalty = [
        label | {"task": "upos", "value": 0.9, "low": 0.8, "high": 1.0, "chance": 0.3},
        label | {"task": "di", "value": 0.6, "low": 0.4, "high": 0.8, "chance": 0.5},
        label | {"task": "di", "value": 0.1, "low": 0.1, "high": 0.1, "chance": 0.5, "model": "r"},
        label | {"task": "di", "value": 0, "low": 0, "high": 0, "chance": 0.5, "teacher": "other"},
        label | {"task": "di", "value": 0, "low": 0, "high": 0, "chance": 0, "measure": "kappa"},
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
    }
    found = table.set_index(["claim", "model"])
    numbers = found[["value", "low", "high", "bar"]].round(3).T.to_dict("list")
    assert numbers[claims.GOOD, "s"] == [98.0, 96.0, 101.0, 95.0]
    assert numbers[claims.ENSEMBLE, "m"] == [2.0, -0.1, 4.0, 0.0]
    assert numbers[claims.SIZE, "s"] == [35.0, 35.0, 35.0, 31.5]
    assert numbers[claims.SPEED, "s"] == [2.0, round(9 / 5.5, 3), round(11 / 4.5, 3), 1.8]
    assert numbers[claims.LOYAL, "s"] == [0.75, 0.6, 0.9, 0.4]
    assert found["verdict"].to_dict() == {
        (claims.GOOD, "s"): "holds",
        (claims.GOOD, "m"): "does not hold",
        (claims.ENSEMBLE, "m"): "not told apart",
        (claims.SIZE, "s"): "holds",
        (claims.SIZE, "m"): "does not hold",  # 31.0 % saved
        (claims.SPEED, "s"): "not told apart",
        (claims.SPEED, "m"): "does not hold",  # at most 11 / 8 times
        (claims.LOYAL, "s"): "holds",
    }
    note = "label: chance 0.40, random weights 0.10, not above chance: DI"
    assert found["note"][claims.LOYAL, "s"] == note
    unknown = table.loc[table["claim"] != claims.SPEED, "published"]
    assert unknown.isna().all()  # the paper has no such models
    text = REPORT.claim_text(table)
    assert text.iloc[0].tolist()[:7] == [
        *[claims.GOOD, "s", "t", "98.0 %", "96.0 to 101.0 %", "holds", "95.0 %"]
    ]
    assert text["interval"][3] == "35.0 %" and text["published"][0] == "–"
    lines = REPORT.verdict_lines(table)
    assert lines[0] == "comparable to its teacher: holds 1, does not hold 1 of 2"


def test_published_numbers_stand_beside():
    comparisons, speed, loyalty = (
        table.replace({"t": "bert-cased", "s": "distil-cased", "m": "distil-multi"})
        for table in tables()
    )
    table = claims.check_claims(comparisons, speed, loyalty).set_index(["claim", "model"])
    cased = (98.00 + 96.46 + 85.88 + 98.07 + 79.61 + 95.58 + 80.30) / 7
    student = (97.97 + 97.08 + 83.35 + 98.20 + 80.51 + 96.31 + 80.57) / 7
    multi = (98.07 + 96.83 + 83.22 + 98.11 + 79.77 + 96.18 + 80.66) / 7
    published = table["published"]
    assert published[claims.GOOD, "distil-cased"] == pytest.approx(100 * student / cased)
    assert published[claims.ENSEMBLE, "distil-multi"] == pytest.approx(multi - student)
    assert published[claims.SIZE, "distil-cased"] == pytest.approx(100 * (1 - 81.32 / 124.44))
    assert published[claims.SPEED, "distil-cased"] == 2.0
