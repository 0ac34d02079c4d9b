"""A bag of words as a model of the study: by hand, and above a constant answer on the sample."""

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from rolib import stages
from rolib.config import ROOT, EvaluateConfig
from rolib.evaluation.baseline import evaluate_bag_of_words
from rolib.evaluation.metrics import score_predictions
from rolib.evaluation.predictions import Predictions
from rolib.measures import TASKS, with_protocol
from rolib.profiles import load

FILES = [ROOT / "params" / "tiny" / f"{name}.yaml" for name in ("common", "evaluate")]


def tiny(**changes):
    return load(EvaluateConfig, *FILES, model="bag-of-words").model_copy(update=changes)


def sentences(*rows):
    label = List(ClassLabel(names=["NOUN", "VERB", "X"]))
    features = Features({"id": Value("string"), "tokens": List(Value("string")), "labels": label})
    table = [
        {"id": str(number), "tokens": words.split(), "labels": tags}
        for number, (words, tags) in enumerate(rows)
    ]
    return Dataset.from_list(table, features)


def texts(labels, *pairs):
    features = Features({name: Value("string") for name in ("id", "text", "text_pair")})
    features["label"] = ClassLabel(names=["bad", "fair", "good"]) if labels else Value("float32")
    rows = [(str(i), *row) for i, row in enumerate(pairs)]
    return Dataset.from_list([dict(zip(features, row, strict=True)) for row in rows], features)


def answers(task, train, test, folder, **changes):
    splits = DatasetDict({"train": train, "validation": test, "test": test})
    result = evaluate_bag_of_words(tiny(tasks=[task], seeds=[1], **changes), splits, folder)
    return result, pd.read_parquet(folder / "predictions.parquet")


def test_a_word_has_the_tags_of_training_else_those_of_its_longest_known_ending(tmp_path):
    train = sentences(("casa merge", [0, 1]), ("casa alerge", [1, 1]), ("casa masa şi", [0, 0, 2]))
    test = sentences(("casa curge plasa x", [0, 1, 0, 1]), ("și", [2]))
    result, rows = answers("upos", train, test, tmp_path)
    # casa is known; "rge" and "asa" are known endings; of all seven words the tags are 3, 3 and 1
    assert rows["predicted"].tolist() == ["NOUN", "VERB", "NOUN", "NOUN", "X"]
    assert rows["gold"].tolist() == ["NOUN", "VERB", "NOUN", "VERB", "X"]
    assert rows["position"].tolist() == [0, 1, 2, 3, 0]
    assert rows["example"].tolist() == ["0"] * 4 + ["1"]
    expected = [[2 / 3, 1 / 3, 0], [0, 1, 0], [3 / 4, 1 / 4, 0], [3 / 7, 3 / 7, 1 / 7], [0, 0, 1]]
    np.testing.assert_allclose(np.stack(rows["probabilities"]), expected, atol=1e-6)
    assert result["labels"] == ["NOUN", "VERB", "X"]
    assert result["counts"]["test"] == {"examples": 2, "units": 5}


def test_equal_texts_have_the_highest_score_and_strange_ones_zero(tmp_path):
    part = texts(False, ("un om merge", "un om merge", 5.0), ("un om", "merge", 0.0))
    _, rows = answers("sts", part, part, tmp_path)
    assert rows["predicted"].tolist() == pytest.approx([5, 0])
    assert [len(row) for row in rows["probabilities"]] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({}, ["good", "bad", "good"]),
        ({"protocols": {"sar": "content"}}, ["bad", "bad", "good"]),  # not the title
        ({"max_length": 1}, ["good", "bad", "bad"]),  # one word of each text
    ],
)
def test_a_class_that_training_lacks_has_no_probability(changes, read, tmp_path):
    train = [("frumos frumos", "frumos", 2), ("urât", "urât", 0)] * 5
    test = [("frumos", "urât", 2), ("urât", "urât", 1), ("urât frumos", "urât frumos frumos", 2)]
    test[0] = ("frumos frumos frumos", "urât", 2)
    _, rows = answers("sar", texts(True, *train), texts(True, *test), tmp_path, **changes)
    probabilities = np.stack(rows["probabilities"])
    assert (probabilities[:, 1] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert rows["predicted"].tolist()[1] == "bad" and rows["gold"].tolist()[1] == "fair"
    assert rows["predicted"].tolist() == read


def test_the_baseline_is_evaluated_as_any_model(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    config = tiny(seeds=[3, 4])
    results = {result["task"]: result for result in stages.evaluate_model(config)}
    assert list(results) == config.tasks  # one seed
    least = {"upos": 0.6, "xpos": 0.5, "ner": 0.05, "sapn": 0.5, "sar": 0.25, "di": 0.5, "sts": 0.3}
    before = {}
    for task, result in results.items():
        folder = config.folder / "evaluation" / "bag-of-words" / task / "seed-3"
        assert result["test"][result["headline"]] > least[task]
        table = pd.read_parquet(folder / "predictions.parquet")
        scored = with_protocol(task, config.protocols[task])
        assert score_predictions(scored, table) == result["test"]
        run = Predictions.read(folder / "predictions.parquet")
        assert run.probabilities.shape == (len(run.gold), len(result["labels"]))
        if TASKS[task].kind != "regression":
            assert run.entropies.min() >= 0  # they are distributions
            labels = np.array(result["labels"])
            assert (labels[run.probabilities.argmax(1)] == run.predicted).all()
        assert yaml.safe_load((folder / "config.yaml").read_text())["model"] == "bag-of-words"
        before[folder / "manifest.json"] = (folder / "manifest.json").read_bytes()
    stages.evaluate_model(config)
    assert all(file.read_bytes() == old for file, old in before.items())  # finished
