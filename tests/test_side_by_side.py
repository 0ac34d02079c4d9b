"""The explorer: predictions beside texts against plain loops, and typed texts against the stored predictions of a run."""

import ast
import copy
import json

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict

from rolib import stages
from rolib.analysis.agreement import STS_TOLERANCE, side_by_side
from rolib.config import ROOT, EvaluateConfig
from rolib.data.corpus import normalise
from rolib.data.tasks import SAMPLE, load_task
from rolib.data.words import split_words
from rolib.distillation.models import init_student, save_model
from rolib.evaluation.predictions import Predictions
from rolib.evaluation.robustness import predict_text
from rolib.measures import TASKS

KINDS = {
    "upos": "accuracy",
    "sapn": "title+content",
    "sar": "content",
    "di": "macro_f1",
    "sts": "pair",
}


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


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, toy_bert, _toy_tokenizer):
    """A student fine-tuned on a measure of each kind, its models kept."""
    root = tmp_path_factory.mktemp("runs")
    model = root / "toy" / "students" / "small"
    save_model(init_student(toy_bert(), 2), copy.deepcopy(_toy_tokenizer), model, "")
    (model / "manifest.json").write_text("{}", encoding="utf-8")
    tasks = list(KINDS)
    config = EvaluateConfig(
        **{
            "profile": "toy",
            "seed": 1,
            "data": "sample",
            "model": "small",
            "tasks": tasks,
            "protocols": KINDS,
            "seeds": [1],
        },
        **{
            "keep_models": True,
            "max_train_examples": 16,
            "max_length": 32,
            "batch_size": 8,
            "warmup_share": 0.1,
        },
        **{
            "weight_decay": 0.01,
            "epochs": dict.fromkeys(tasks, 1),
            "learning_rates": dict.fromkeys(tasks, 1e-3),
        },
    )

    def few(name, root=SAMPLE):
        return DatasetDict(
            {split: data.select(range(20)) for split, data in load_task(name, SAMPLE).items()}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLIB_RUNS", str(root))
        patch.setattr(stages, "load_task", few)
        stages.evaluate_model(config)
        yield root / "toy" / "evaluation" / "small"


@pytest.mark.parametrize("name", ["sar", "di", "sts"])
def test_a_typed_test_text_gets_the_stored_prediction(name, evaluated):
    run = evaluated / name / "seed-1"
    stored = pd.read_parquet(run / "predictions.parquet").iloc[0]
    example = load_task(name, SAMPLE)["test"][0]
    texts = (example["text_pair"],) if name == "sar" else (example["text"], example["text_pair"])
    answer = predict_text(run, *texts)
    if name == "sts":
        assert answer.columns.tolist() == ["score"] and answer["score"].iloc[0] == pytest.approx(
            stored["predicted"], abs=1e-4
        )
    else:
        assert answer.iloc[0].idxmax() == stored["predicted"]
        np.testing.assert_allclose(answer.iloc[0], stored["probabilities"], atol=1e-5)


def test_a_typed_sentence_is_cut_into_words_and_tagged(evaluated):
    answer = predict_text(evaluated / "upos" / "seed-1", "Ana are mere,\tAna are  pere.")
    assert answer.index.get_level_values("text").tolist() == "Ana are mere , Ana are pere .".split()
    assert answer.index.get_level_values("position").tolist() == list(range(8))
    assert "NOUN" in answer.columns
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
    stored = pd.read_parquet(evaluated / "upos" / "seed-1" / "predictions.parquet").groupby(
        "example", sort=False
    )
    for row in load_task("upos", SAMPLE)["test"].select(range(20)):
        if split_words(text := normalise(" ".join(row["tokens"]))) == row["tokens"]:
            found = predict_text(evaluated / "upos" / "seed-1", text).idxmax(axis=1)
            assert found.tolist() == stored.get_group(row["id"])["predicted"].tolist()
            break
    else:
        pytest.fail("no sentence of the sample is cut as it was annotated")


def test_cedilla_and_control_characters_are_repaired(evaluated):
    run = evaluated / "sapn" / "seed-1"
    pd.testing.assert_frame_equal(
        predict_text(run, "Ştiinţa\u200b e  bună"), predict_text(run, "Știința e bună")
    )


@pytest.mark.parametrize(
    ("name", "texts"), [("upos", ("",)), ("di", (" \t",)), ("sts", ("Ana are mere.", " "))]
)
def test_an_empty_box_is_said(name, texts, evaluated):
    with pytest.raises(ValueError, match=f"^{name}: no text to read"):
        predict_text(evaluated / name / "seed-1", *texts)
