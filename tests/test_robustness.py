"""Robustness: perturbed texts, the predictions on them, and the answers to typed texts."""

import copy
import itertools
import json
import shutil
import unicodedata
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import yaml
from cells import after_cells, functions_of
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rolib import stages
from rolib.analysis.loyalty import compare_predictions
from rolib.analysis.study import members
from rolib.config import EvaluateConfig, RobustnessConfig, TextTask
from rolib.data import tasks as task_readers
from rolib.data.corpus import normalise
from rolib.data.tasks import SAMPLE, load_task
from rolib.data.words import split_words
from rolib.distillation.models import init_student, save_model
from rolib.evaluation import examples, finetune, heads, robustness
from rolib.evaluation.predictions import Predictions
from rolib.evaluation.robustness import (
    PERTURBATIONS,
    cedilla,
    perturb,
    predict_perturbed,
    predict_text,
    strip_diacritics,
)
from rolib.measures import PROTOCOLS, TASKS

ROMANIAN = st.text("abcxyzăâîșțşţABCXYZĂÂÎȘȚŞŢ éÖ.,-0123456789")
MARKED = st.text(st.sampled_from("aAiIsStTăâîșțşţĂÂÎȘȚŞŢ \u0302\u0306\u0326\u0327\u0301"))


# --- runs to read ---------------------------------------------------------------------------------

PROTOCOL = {"ner": "strict", "sar": "content", "sts": "bi-encoder"}
# The measures whose models answer typed texts below: one of each kind.
ANSWERS = {
    "upos": "accuracy",
    "sapn": "title+content",
    "sar": "content",
    "di": "macro_f1",
    "sts": "pair",
}


@pytest.fixture(scope="module")
def few():
    def load(name, root=SAMPLE):
        return DatasetDict(
            {split: data.select(range(20)) for split, data in load_task(name, SAMPLE).items()}
        )

    return load


def evaluate_student(root, protocols, teacher, tokenizer):
    """Fine-tune a student, on every measure of `protocols`, and keep its models."""
    model = root / "toy" / "students" / "small"
    save_model(init_student(teacher, 2), copy.deepcopy(tokenizer), model, "")
    (model / "manifest.json").write_text("{}", encoding="utf-8")
    tasks = list(protocols)
    recipe = {
        "profile": "toy",
        "seed": 1,
        "data": "sample",
        "precision": "float32",
        "model": "small",
        "seeds": [1],
    }
    recipe |= {"tasks": tasks, "protocols": protocols, "keep_models": 1}
    recipe |= {"max_train_examples": 16, "max_length": 32, "batch_size": 8}
    recipe |= {"pooling": {name: ["cls"] for name in tasks if name in get_args(TextTask)}}
    recipe |= {"warmup_share": 0.1, "weight_decay": 0.01}
    recipe |= {"epochs": dict.fromkeys(tasks, [1]), "learning_rates": dict.fromkeys(tasks, [1e-3])}
    stages.evaluate_model(EvaluateConfig(**recipe))


@pytest.fixture(scope="module")
def answering(tmp_path_factory, toy_bert, _toy_tokenizer, few):
    """The runs of a student fine-tuned on ANSWERS."""
    root = tmp_path_factory.mktemp("answering")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLIB_RUNS", str(root))
        patch.setattr(stages, "load_task", few)
        evaluate_student(root, ANSWERS, toy_bert(), _toy_tokenizer)
    return root / "toy" / "evaluation" / "small"


@pytest.fixture(scope="module")
def study(tmp_path_factory, toy_bert, _toy_tokenizer, few):
    """A study whose student was fine-tuned on PROTOCOL."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLIB_RUNS", str(root))
        patch.setattr(stages, "load_task", few)
        patch.setattr(task_readers, "load_task", few)  # of notebook 07
        evaluate_student(root, PROTOCOL, toy_bert(), _toy_tokenizer)
        yield root / "toy"


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


@given(ROMANIAN)
def test_decomposed_letters_are_letters(text):
    for name in ("strip_diacritics", "cedilla"):
        assert PERTURBATIONS[name](unicodedata.normalize("NFD", text)) == PERTURBATIONS[name](text)


# --- perturbed texts ------------------------------------------------------------------------------


def test_a_text_is_normalised_before_it_is_perturbed():
    assert perturb("A  spus\u200b ŞTIINŢA", str.lower) == "a spus știința"
    assert perturb("Ştiinţa", str) == "Știința"


def test_the_placeholder_of_named_entities_stays():
    assert perturb("A  spus $NE$ , $NE$", str.lower) == "a spus $NE$ , $NE$"


@pytest.mark.parametrize("name", ["ner", "sapn", "di", "sts"])
def test_the_model_reads_the_perturbed_texts(name, study, answering, monkeypatch):
    """The rows that are predicted are those of a split whose texts were perturbed by hand."""
    split = load_task(name, SAMPLE)["test"].select([3, 1, 2])
    columns = split.to_dict()
    if name == "ner":
        columns["tokens"] = [[normalise(t).upper() for t in tokens] for tokens in split["tokens"]]
    else:
        for field in ("text", "text_pair"):
            columns[field] = [
                "$NE$".join(part.upper() for part in normalise(text).split("$NE$"))
                for text in split[field]
            ]
    by_hand = Dataset.from_dict(columns, features=split.features)
    models = study / "evaluation" / "small" if name in PROTOCOL else answering
    run, seen = models / name / "seed-1", []
    monkeypatch.setattr(finetune, "predict", lambda model, rows, *rest: seen.append(rows))
    monkeypatch.setattr(finetune, "prediction_table", lambda *arguments: arguments)
    table = predict_perturbed(run, split, {"upper": str.upper})["upper"]
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    rows, _ = examples.encode(by_hand, robustness.task_of(run), tokenizer, 32, clean=str)
    assert seen == [rows]
    assert table[3] is split  # so ids and labels are those of the split


# --- end to end -----------------------------------------------------------------------------------


def config(**changes):
    recipe = {
        "profile": "toy",
        "seed": 1,
        "data": "sample",
        "precision": "float32",
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


def measure_robustness(config):
    """What notebook 07 measures."""
    notebook = functions_of("07-measure-robustness", config=config)
    return list(map(notebook.measure, robustness.kept_runs(config, config.tasks, config.models)))


def test_every_kept_model_is_measured_once(study):
    results = measure_robustness(config())
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
    assert len(before) == 3 and measure_robustness(config()) == results
    assert measure_robustness(config(tasks=["sar"])) == [results[1]]
    assert (
        measure_robustness(config(models=["small", "large"])) == results
    )  # who else is measured changes nothing
    assert [path.read_bytes() for path in manifests] == before
    with pytest.raises(FileNotFoundError, match="no fine-tuned model: set keep_models"):
        measure_robustness(config(models=["large"]))


def test_a_cap_scores_the_same_examples_with_and_without(study):
    (result,) = measure_robustness(config(tasks=["ner"], max_test_examples=5))
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


def test_no_kept_model_is_an_error_that_names_the_remedy(study, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    shutil.copytree(
        study / "evaluation",
        tmp_path / "toy" / "evaluation",
        ignore=shutil.ignore_patterns("model"),
    )
    with pytest.raises(
        FileNotFoundError, match="no fine-tuned model: set keep_models in evaluate.yaml"
    ):
        measure_robustness(config())


# --- answers to typed texts -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sar", "di", "sts"])
def test_a_typed_test_text_gets_the_stored_prediction(name, answering):
    run = answering / name / "seed-1"
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


def test_a_typed_sentence_is_split_into_words_and_tagged(answering):
    answer = predict_text(answering / "upos" / "seed-1", "Ana are mere,\tAna are  pere.")
    assert answer.index.get_level_values("text").tolist() == "Ana are mere , Ana are pere .".split()
    assert answer.index.get_level_values("position").tolist() == list(range(8))
    assert "NOUN" in answer.columns
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-5)
    stored = pd.read_parquet(answering / "upos" / "seed-1" / "predictions.parquet").groupby(
        "example", sort=False
    )
    for row in load_task("upos", SAMPLE)["test"].select(range(20)):
        if split_words(text := normalise(" ".join(row["tokens"]))) == row["tokens"]:
            found = predict_text(answering / "upos" / "seed-1", text).idxmax(axis=1)
            assert found.tolist() == stored.get_group(row["id"])["predicted"].tolist()
            break
    else:
        pytest.fail("no sentence of the sample is split as it was annotated")


def test_a_model_is_loaded_once_for_typed_texts(answering, monkeypatch):
    loaded, load = [], heads.load_for_task

    def count(*given, **options):
        loaded.append(given)
        return load(*given, **options)

    monkeypatch.setattr(heads, "load_for_task", count)
    robustness.remember_model.cache_clear()
    for text in ("Ana are mere.", "Ana are pere.", "Ana are mere."):
        predict_text(answering / "di" / "seed-1", text)
    assert len(loaded) == 1


def test_cedilla_and_control_characters_are_repaired(answering):
    run = answering / "sapn" / "seed-1"
    pd.testing.assert_frame_equal(
        predict_text(run, "Ştiinţa\u200b e  bună"), predict_text(run, "Știința e bună")
    )


@pytest.mark.parametrize(
    ("name", "texts"), [("upos", ("",)), ("di", (" \t",)), ("sts", ("Ana are mere.", " "))]
)
def test_an_empty_text_is_an_error(name, texts, answering):
    with pytest.raises(ValueError, match=f"^{name}: no text to read$"):
        predict_text(answering / name / "seed-1", *texts)


# --- the table of a study -------------------------------------------------------------------------

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


def table_of(measured, models, tasks, teachers=("big",)):
    """The table that notebook 07 makes of these results; teachers: those that it has measured."""
    results, everyone = [], members(config())
    for model, task in itertools.product(models, tasks):
        stored = measured / "robustness" / model / task / "scores.json"
        results.append({"model": model} | json.loads(stored.read_text(encoding="utf-8")))
    known = {"members": everyone, "teacher_of": everyone.set_index("model")["teacher"]}
    known["of_teachers"] = set(itertools.product(teachers, tasks))
    notebook = functions_of("07-measure-robustness", config=config(), **known)
    return notebook.scores_and_loyalty(results)


def test_the_table_of_scores_and_loyalty(measured):
    table = table_of(measured, ROLES, ["sapn", "sts"])
    loyalties = {"sapn": {"label_loyalty", "probability_loyalty", "probability_loyalty_base2"}}
    loyalties["sapn"] |= {"lost", "gained"}
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
    table = table_of(measured, ["small"], ["sapn"])
    assert set(table["model"]) == {"small"} and "label_loyalty" in set(table["score"])
    # A teacher that was not measured now: scores, but no loyalty to what it once answered.
    assert set(table_of(measured, ["small"], ["sapn"], ())["score"]) == {"accuracy"}


def test_the_teachers_of_the_chosen_models_are_measured_too(measured, monkeypatch):
    """Loyalty needs their answers under the same perturbations; they get no rows of their own."""
    places = [measured / "evaluation" / model / "sapn" / "seed-1" for model in ("small", "big")]

    def kept_runs(config, tasks, models):
        assert set(models) == {"small", "big"} and tasks == config.tasks
        return places

    monkeypatch.setattr("rolib.evaluation.robustness.kept_runs", kept_runs)
    known = {"config": config(models=["small"], tasks=["sapn"]), "members": members(config())}
    known["teacher_of"] = known["members"].set_index("model")["teacher"]
    known["measure"] = lambda run: dict(zip(("model", "task"), run.parts[-3:-1], strict=True))
    found = after_cells("07-measure-robustness", "07-09", **known)
    assert found.measured == [{"model": "small", "task": "sapn"}]
    assert found.of_teachers == {("small", "sapn"), ("big", "sapn")}
