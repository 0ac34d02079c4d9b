"""`side_by_side` against plain loops, and the filters that notebook 08 applies to it."""

import ast
import json

import numpy as np
import pandas as pd
import pytest

from rolib.analysis.agreement import STS_TOLERANCE, side_by_side
from rolib.config import ROOT
from rolib.data.tasks import SAMPLE, load_task
from rolib.evaluation.predictions import Predictions
from rolib.measures import TASKS


def guesses(task, split, seed):
    """A prediction table of a model that guesses."""
    rng, rows = np.random.default_rng(seed), []
    names = None
    if task.kind != "regression":
        feature = split.features["labels" if task.kind == "tagging" else "label"]
        names = (feature.feature if task.kind == "tagging" else feature).names[:2]
    for row in split:
        for position in range(len(row["tokens"]) if task.kind == "tagging" else 1):
            p = rng.dirichlet(np.ones(2))
            given = rng.uniform(0, 5) if names is None else names[p.argmax()]
            gold = row["label"] if names is None else names[rng.integers(2)]
            rows.append((row["id"], position, gold, given, [] if names is None else list(p)))
    return pd.DataFrame(rows, columns=["example", "position", "gold", "predicted", "probabilities"])


def filters():
    """The filters of notebook 08."""
    notebook = json.loads((ROOT / "notebooks/08-explore-predictions.ipynb").read_text("utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    tree = ast.parse(next(source for source in sources if source.startswith("FILTERS = {")))
    return ast.literal_eval(tree.body[0].value)


@pytest.mark.parametrize("name", ["upos", "ner", "sar", "di", "sts"])
def test_side_by_side_is_a_plain_loop(name):
    task, split = TASKS[name], load_task(name, SAMPLE)["test"].select(range(12))
    teacher, student = guesses(task, split, 1), guesses(task, split, 2)
    student["gold"] = teacher["gold"]
    # the student's order does not matter
    table = side_by_side(
        task, Predictions.of(teacher), Predictions.of(student.sample(frac=1, random_state=0))
    )
    teacher, student = (side.sort_values(["example", "position"]) for side in (teacher, student))

    def same(a, b):
        return abs(a - b) < STS_TOLERANCE if name == "sts" else a == b

    expected = []
    for (_, t), (_, s) in zip(teacher.iterrows(), student.iterrows(), strict=True):
        sides = [t["predicted"], s["predicted"], *[np.nan] * 4]
        if name != "sts":
            p, q = t["probabilities"], s["probabilities"]
            sides[2:] = max(p), max(q), p[q.index(max(q))], q[p.index(max(p))]
        judged = [
            same(t["predicted"], s["predicted"]),
            same(t["predicted"], t["gold"]),
            same(s["predicted"], t["gold"]),
        ]
        expected.append([t["example"], t["position"], t["gold"], *sides, *judged])
    assert (
        table.dropna(axis="columns").to_numpy().tolist()
        == pd.DataFrame(expected).dropna(axis="columns").to_numpy().tolist()
    )
    assert table.shape[1] == len(expected[0])

    agree, right, student_right = (
        table[column] for column in ("agree", "teacher_right", "student_right")
    )
    passing = {label: set(table.query(text).index) for label, text in filters().items()}
    assert set(table.index) == passing["agree"] | passing["disagree"]
    assert passing["agree"] == {i for i in table.index if agree[i]}
    assert passing["both wrong"] == {
        i for i in table.index if not right[i] and not student_right[i]
    }
    assert passing["student right, teacher wrong"] == {
        i for i in table.index if student_right[i] and not right[i]
    }
    assert passing["teacher right, student wrong"] == {
        i for i in table.index if right[i] and not student_right[i]
    }


def test_side_by_side_names_what_is_missing():
    task, split = TASKS["upos"], load_task("upos", SAMPLE)["test"].select(range(3))
    table = guesses(task, split, 1)
    with pytest.raises(
        ValueError, match=r"^example '.+', position \d+ is in the teacher's table only"
    ):
        side_by_side(task, Predictions.of(table), Predictions.of(table.iloc[:-1]))
