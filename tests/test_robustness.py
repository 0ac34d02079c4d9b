"""Robustness: what each perturbation does to a text, and that predictions on perturbed texts are made and kept."""

import json
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from rolib import stages
from rolib.analysis.loyalty import compare_predictions
from rolib.analysis.tables import compare_perturbed
from rolib.config import EvaluateConfig, RobustnessConfig
from rolib.data.corpus import normalise
from rolib.data.tasks import SAMPLE, load_task
from rolib.distillation.models import init_student, save_model
from rolib.evaluation import robustness
from rolib.evaluation.predictions import Predictions
from rolib.evaluation.robustness import (
    PERTURBATIONS,
    cedilla,
    perturb,
    predict_perturbed,
    strip_diacritics,
)
from rolib.measures import PROTOCOLS, TASKS

ROMANIAN = st.text("abcxyzăâîșțşţABCXYZĂÂÎȘȚŞŢ éÖ.,-0123456789")
MARKED = st.text(st.sampled_from("aAiIsStTăâîșțşţĂÂÎȘȚŞŢ \u0302\u0306\u0326\u0327\u0301"))

# --- the perturbations ----------------------------------------------------------------------------


def test_examples_of_every_perturbation():
    text = "Știința și ȚARA în pâine, ăsta-i ŞİŢ cafè"
    expected = {
        "strip_diacritics": "Stiinta si TARA in paine, asta-i SİT cafè",
        "cedilla": "Ştiinţa şi ŢARA în pâine, ăsta-i ŞİŢ cafè",
        "lower": "știința și țara în pâine",
        "upper": "ȘTIINȚA ȘI ȚARA ÎN PÂINE",
    }
    assert set(PERTURBATIONS) == set(expected)
    for name in ("strip_diacritics", "cedilla"):
        assert PERTURBATIONS[name](text) == expected[name]
    for name in ("lower", "upper"):
        assert PERTURBATIONS[name](text.split(",")[0]) == expected[name]


@given(st.one_of(st.text(), ROMANIAN, MARKED))
def test_stripped_text_is_nfc_and_stays_so(text):
    once = strip_diacritics(text)
    assert strip_diacritics(once) == once == unicodedata.normalize("NFC", once)
    assert not set(once) & set("ăâîșțşţĂÂÎȘȚŞŢ")


@given(st.one_of(st.text(), ROMANIAN, MARKED))
def test_normalising_undoes_the_cedilla(text):
    assert normalise(cedilla(text)) == normalise(text)
    assert not set(cedilla(text)) & set("șțȘȚ")


@given(ROMANIAN)
def test_no_perturbation_changes_the_length_of_romanian_text(text):
    for function in PERTURBATIONS.values():
        assert len(function(text)) == len(text)
        assert function(unicodedata.normalize("NFD", text)) or not text


@given(ROMANIAN)
def test_decomposed_letters_are_letters(text):
    for name in ("strip_diacritics", "cedilla"):
        assert PERTURBATIONS[name](unicodedata.normalize("NFD", text)) == PERTURBATIONS[name](text)


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ner", "sapn", "di", "sts"])
def test_perturb_changes_texts_alone(name):
    split = load_task(name, SAMPLE)["test"].select([3, 1, 2])
    changed = perturb(split, TASKS[name], str.upper)
    assert changed.features == split.features and changed["id"][:] == split["id"][:]
    if name == "ner":
        assert changed["labels"][:] == split["labels"][:]
        assert changed["tokens"][:] == [
            [token.upper() for token in tokens] for tokens in split["tokens"]
        ]
    else:
        assert changed["label"][:] == split["label"][:]
        for field in ("text", "text_pair"):
            assert changed[field][:] == [normalise(text).upper() for text in split[field]]


def test_the_placeholder_of_named_entities_stays():
    split = (
        load_task("di", SAMPLE)["test"]
        .select([0])
        .map(lambda row: {"text": "A  spus $NE$ , $NE$"}, keep_in_memory=True)
    )
    assert perturb(split, TASKS["di"], str.lower)["text"][:] == ["a spus $NE$ , $NE$"]


# --- end to end -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few():
    def load(name, root=SAMPLE):
        return DatasetDict(
            {split: data.select(range(20)) for split, data in load_task(name, SAMPLE).items()}
        )

    return load


PROTOCOL = {"ner": "strict", "sar": "content", "sts": "bi-encoder"}


@pytest.fixture(scope="module")
def study(tmp_path_factory, toy_bert, _toy_tokenizer, few):
    """A student fine-tuned on three measures, its models kept."""
    root = tmp_path_factory.mktemp("runs")
    model = root / "toy" / "students" / "small"
    save_model(init_student(toy_bert(), 2), _toy_tokenizer, model, "")
    (model / "manifest.json").write_text("{}", encoding="utf-8")
    tasks = list(PROTOCOL)
    config = EvaluateConfig(
        **{
            "profile": "toy",
            "seed": 1,
            "data": "sample",
            "model": "small",
            "tasks": tasks,
            "protocols": PROTOCOL,
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLIB_RUNS", str(root))
        patch.setattr(stages, "load_task", few)
        patch.setattr(robustness, "load_task", few)
        stages.evaluate_model(config)
        yield root / "toy"


def config(**changes):
    recipe = {
        "profile": "toy",
        "seed": 1,
        "data": "sample",
        "tasks": list(PROTOCOL),
        "models": [],
        "max_test_examples": 0,
    }
    return RobustnessConfig(**(recipe | changes))


@pytest.mark.parametrize("name", PROTOCOL)
def test_without_a_perturbation_the_predictions_are_the_runs_own(name, study, few):
    run = study / "evaluation" / "small" / name / "seed-1"
    table = predict_perturbed(run, few(name)["test"], {"none": str})["none"]
    stored = pd.read_parquet(run / "predictions.parquet")
    columns = ["example", "position", "gold"]
    pd.testing.assert_frame_equal(table[columns], stored[columns], check_dtype=False)
    if name == "sts":
        np.testing.assert_allclose(table["predicted"], stored["predicted"], atol=1e-5)
    else:
        np.testing.assert_allclose(
            np.stack(table["probabilities"]), np.stack(stored["probabilities"]), atol=1e-5
        )


def test_every_kept_model_is_measured_once(study):
    results = robustness.measure_robustness(config())
    assert [(result["model"], result["task"], result["examples"]) for result in results] == [
        ("small", n, 20) for n in PROTOCOL
    ]
    for result in results:
        folder = study / "robustness" / "small" / result["task"]
        own = study / "evaluation" / "small" / result["task"] / "seed-1"
        stored = pd.read_parquet(own / "predictions.parquet")
        assert (
            result["scores"]["original"]
            == json.loads((own / "scores.json").read_text(encoding="utf-8"))["test"]
        )
        assert set(result["scores"]) == {"original", *PERTURBATIONS}
        assert result["headline"] == PROTOCOLS[result["task"]][result["protocol"]]
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in PERTURBATIONS}
        for table in tables.values():
            assert (
                table["gold"].tolist() == stored["gold"].tolist()
                and table["example"].tolist() == stored["example"].tolist()
            )
        column = "predicted" if result["task"] == "sts" else "probabilities"
        # The cedilla reaches the model: it is not repaired on the way.
        assert not np.allclose(np.stack(tables["cedilla"][column]), np.stack(stored[column]))
    manifests = sorted(study.glob("robustness/*/*/manifest.json"))
    before = [path.read_bytes() for path in manifests]
    assert len(before) == 3 and robustness.measure_robustness(config()) == results
    assert robustness.measure_robustness(config(tasks=["sar"])) == [results[1]]
    assert (
        robustness.measure_robustness(config(models=["small", "large"])) == results
    )  # who else is measured changes nothing
    assert [path.read_bytes() for path in manifests] == before
    with pytest.raises(FileNotFoundError, match="no fine-tuned model: set keep_models"):
        robustness.measure_robustness(config(models=["large"]))


def test_a_cap_scores_the_same_examples_with_and_without(study):
    (result,) = robustness.measure_robustness(config(tasks=["ner"], max_test_examples=5))
    table = pd.read_parquet(study / "robustness" / "small" / "ner" / "lower.parquet")
    assert result["examples"] == 5 == table["example"].nunique()
    original = pd.read_parquet(study / "robustness" / "small" / "ner" / "original.parquet")
    assert sorted(original["example"]) == sorted(table["example"])


def test_of_several_kept_models_the_first_seed_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    for seed in (2, 1):
        model = tmp_path / "toy" / "evaluation" / "small" / "ner" / f"seed-{seed}" / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").touch()
    assert [run.name for run in robustness.kept_runs(config(), ["ner"])] == ["seed-1"]


def test_no_kept_model_is_an_error_with_its_mend(study, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    shutil.copytree(
        study / "evaluation",
        tmp_path / "toy" / "evaluation",
        ignore=shutil.ignore_patterns("model"),
    )
    with pytest.raises(
        FileNotFoundError, match="no fine-tuned model: set keep_models to true in evaluate.yaml"
    ):
        robustness.measure_robustness(config())


# --- the table of a study --------------------------------------------------------------------------

LABELS = {
    "sapn": [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]],
    "sts": [[1.0], [2.5], [4.0], [0.5]],
}
ROLES = {
    "big": {},
    "small": {"teachers": {"big": 1.0}},
    "small-mlm": {"teachers": {"big": 1.0}, "objective": "mlm"},
    "big-random": {},
}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A measured study written by hand: a teacher, its student and two controls on two measures."""
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    root, rng = tmp_path / "toy", np.random.default_rng(0)
    for model, settings in ROLES.items():
        (root / "evaluation" / model).mkdir(parents=True)
        place = root / ("students" if settings else "teachers") / model
        place.mkdir(parents=True)
        text = yaml.safe_dump({"objective": "distill", "num_layers": 2} | settings)
        (place / "config.yaml").write_text(text, encoding="utf-8")
        for task, rows in LABELS.items():
            folder = root / "robustness" / model / task
            folder.mkdir(parents=True)
            scores = {}
            for name in ("original", *PERTURBATIONS):
                values = rng.permutation(rows)
                table = pd.DataFrame({"example": ["a", "b", "c", "d"], "position": 0, "gold": "x"})
                table["predicted"] = (
                    values[:, 0]
                    if task == "sts"
                    else [["no", "yes"][row.argmax()] for row in values]
                )
                table["probabilities"] = [[]] * 4 if task == "sts" else list(values)
                table.to_parquet(folder / f"{name}.parquet")
                scores[name] = {"accuracy": rng.random()}
            result = {
                "task": task,
                "seed": 3,
                "headline": "accuracy",
                "examples": 4,
                "scores": scores,
            }
            (folder / "scores.json").write_text(json.dumps(result), encoding="utf-8")
    shutil.rmtree(root / "teachers" / "big-random")  # a control has no folder of its own
    return root


def test_the_table_of_scores_and_loyalty(measured):
    table = compare_perturbed(config(tasks=["sapn", "sts"]))
    loyalties = {"sapn": {"label_loyalty", "probability_loyalty", "probability_loyalty_base2"}}
    loyalties["sts"] = {
        "regression_loyalty",
        "regression_loyalty_pearson",
        "regression_loyalty_rmse",
    }
    expected = {}
    for model in ROLES:
        for task in LABELS:
            folder, own = measured / "robustness" / model / task, {}
            for name, scores in json.loads((folder / "scores.json").read_text())["scores"].items():
                for score, value in scores.items():
                    own[name, score] = value
                if model.startswith("small"):
                    tables = (
                        pd.read_parquet(measured / "robustness" / who / task / f"{name}.parquet")
                        for who in ("big", model)
                    )
                    loyalty = compare_predictions(TASKS[task], *map(Predictions.of, tables))
                    assert set(loyalty) == loyalties[task]
                    own |= {(name, score): value for score, value in loyalty.items()}
            for (name, score), value in own.items():
                expected[model, task, name, score] = (value, value - own["original", score])
    keys = ["model", "task", "perturbation", "score"]
    found = {
        tuple(getattr(row, key) for key in keys): (row.value, row.change)
        for row in table.itertuples()
    }
    assert len(table) == len(expected) and set(found) == set(expected)
    for key, pair in expected.items():
        assert found[key] == pytest.approx(pair)
    assert dict(zip(table["model"], table["role"])) == {
        **{
            "big": "teacher",
            "small": "student",
            "small-mlm": "mlm control",
            "big-random": "random control",
        }
    }
    assert (
        set(table["teacher"]) == {"big"}
        and set(table["seed"]) == {3}
        and set(table["headline"]) == {"accuracy"}
    )


def test_the_table_holds_the_chosen_models_alone(measured):
    table = compare_perturbed(config(tasks=["sapn"], models=["small"]))
    assert set(table["model"]) == {"small"} and "label_loyalty" in set(table["score"])
    shutil.rmtree(
        measured / "robustness" / "big"
    )  # a teacher that was not measured: scores, but no loyalty
    assert set(compare_perturbed(config(tasks=["sapn"], models=["small"]))["score"]) == {"accuracy"}
