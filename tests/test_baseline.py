"""Baselines without a network: by hand, and above a constant answer on the sample."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from rolib.config import ROOT, EvaluateConfig
from rolib.evaluation import baseline
from rolib.profiles import load


def sentences(*rows):
    label = List(ClassLabel(names=["NOUN", "VERB"]))
    features = Features({"id": Value("string"), "tokens": List(Value("string")), "labels": label})
    table = [
        {"id": str(number), "tokens": words.split(), "labels": tags}
        for number, (words, tags) in enumerate(rows)
    ]
    return Dataset.from_list(table, features)


def test_a_word_has_its_commonest_tag_else_that_of_its_longest_known_ending():
    train = sentences(("casa merge", [0, 1]), ("casa alerge", [1, 1]), ("casa masa", [0, 0]))
    test = sentences(("casa curge plasa x", [0, 1, 0, 1]))
    rows = baseline._tag(train, test, 0)
    # casa is known; "rge" and "asa" are known endings; of all six words the first tag is commonest
    assert rows["predicted"].tolist() == ["NOUN", "VERB", "NOUN", "NOUN"]
    assert rows["gold"].tolist() == ["NOUN", "VERB", "NOUN", "VERB"]
    assert rows["position"].tolist() == [0, 1, 2, 3] and set(rows["example"]) == {"0"}


def test_equal_texts_have_the_cosine_one_and_strange_ones_zero():
    features = Features({name: Value("string") for name in ("id", "text", "text_pair")})
    features["label"] = Value("float32")
    texts = {"text": ["un om merge", "un om"], "text_pair": ["un om merge", "merge"]}
    part = Dataset.from_dict({"id": ["0", "1"], **texts, "label": [5.0, 0.0]}, features)
    assert baseline._compare(part, part, 10)["predicted"] == pytest.approx([1, 0])


def test_the_baseline_learns_from_the_sample():
    files = [ROOT / "params" / "tiny" / f"{name}.yaml" for name in ("common", "evaluate")]
    config = load(EvaluateConfig, *files, model="bert-cased")
    scores = baseline.baseline_scores(config).set_index("task")["score"]
    assert list(scores.index) == config.tasks
    least = {"upos": 0.6, "xpos": 0.5, "ner": 0.05, "sapn": 0.5, "sar": 0.25, "di": 0.5, "sts": 0.3}
    assert all(scores[task] > value for task, value in least.items()), scores
