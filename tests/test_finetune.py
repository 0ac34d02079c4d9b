"""Fine-tuning: every unit is predicted, the best epoch is kept, and the seed fixes the result."""

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from rolib import stages
from rolib.config import EvaluateConfig
from rolib.data.corpus import normalise
from rolib.data.tasks import SAMPLE, load_task
from rolib.distillation.models import init_student, save_model
from rolib.evaluation import examples as ex
from rolib.evaluation import finetune as ft
from rolib.evaluation import heads
from rolib.measures import PROTOCOLS, TASKS, with_protocol
from rolib.runs import read_metrics


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, toy_bert, _toy_tokenizer):
    folder = tmp_path_factory.mktemp("models") / "bert"
    save_model(toy_bert(layers=2), _toy_tokenizer, folder, "")
    return folder


@pytest.fixture
def splits():
    """A few examples of a task of the built-in sample."""

    def few(name):
        return DatasetDict(
            {split: data.select(range(20)) for split, data in load_task(name, SAMPLE).items()}
        )

    return few


def config(task, **changes):
    recipe = {
        "profile": "toy",
        "seed": 1,
        "data": "sample",
        "precision": "float32",
        "model": "bert",
        "tasks": [task],
        "seeds": [1],
    }
    recipe |= {
        "max_train_examples": 16,
        "max_length": 32,
        "batch_size": 8,
        "warmup_share": 0.1,
        "weight_decay": 0.01,
    }
    recipe |= {"protocols": {task: TASKS[task].protocol}, "keep_models": 0}
    recipe |= {"epochs": {task: [1]}, "learning_rates": {task: [1e-3]}}
    recipe |= {"pooling": {} if TASKS[task].kind == "tagging" else {task: ["cls"]}}
    return EvaluateConfig(**(recipe | changes))


def finetune(recipe, name, seed, model_folder, random_weights, data, folder):
    """One run of a measure that no other run shares."""
    model = recipe.model + "-random" * random_weights
    recipe = recipe.model_copy(update={"tasks": [name], "seeds": [seed], "model": model})
    read = ex.read_splits(recipe, model_folder, data)
    return ft.finetune(recipe, model_folder, read, folder)


def tagged(*sentences):
    """A split whose words alternate between two labels."""
    tags = ClassLabel(names=["O", "B-LOC"])
    rows = [
        {"id": f"s{i}", "tokens": words, "labels": [n % 2 for n in range(len(words))]}
        for i, words in enumerate(sentences)
    ]
    return Dataset.from_list(
        rows, Features(id=Value("string"), tokens=List(Value("string")), labels=List(tags))
    )


# --- windows and encoding -------------------------------------------------------------------------


def ids_of(row, reading=0):
    """The pieces of a row's only input, or of one of a bi-encoder's two."""
    assert len(row["inputs"]) > reading
    return row["inputs"][reading]["input_ids"]


LONG = ["Copilul", "citește", "cartea", "la", "școală", ",", "fără", "grabă", "."]


def test_encode_tagging_of_an_awkward_sentence(toy_tokenizer):
    giant = "zgrumetărilorînnebunitoare"
    sentence = [*LONG, "\u200b", giant, *LONG]
    rows, counts = ex.encode(tagged(sentence, ["Casa"]), TASKS["ner"], toy_tokenizer, max_length=8)
    units = len(sentence) + 1
    assert counts == {"examples": 2, "windowed": 1, "words_cut": 1, "truncated": 0, "units": units}
    found = []
    for row in rows[:-1]:
        assert row["example"] == 0
        ids = ids_of(row)
        assert len(ids) == len(row["labels"]) == len(row["words"]) <= 8
        assert (ids[0], ids[-1]) == (toy_tokenizer.cls_token_id, toy_tokenizer.sep_token_id)
        assert row["words"][0] == row["words"][-1] == -1
        places = [place for place, word in enumerate(row["words"]) if word >= 0]
        for place, end in zip(places, [*places[1:], len(row["words"]) - 1], strict=True):
            word = row["words"][place]
            pieces = toy_tokenizer.tokenize(sentence[word]) or ["[UNK]"]
            assert toy_tokenizer.convert_ids_to_tokens(ids[place:end]) == pieces[:6]
            assert row["labels"][place:end] == [word % 2] + [-100] * (end - place - 1)
            found.append(word)
    assert found == list(range(len(sentence)))
    assert rows[-1]["example"] == 1


def test_a_word_that_just_fits_is_not_cut(toy_tokenizer):
    giant = "zgrumetărilorînnebunitoare"
    pieces = len(toy_tokenizer.tokenize(giant))
    for max_length, cut in ((pieces + 2, 0), (pieces + 1, 1)):
        (row,), counts = ex.encode(tagged([giant]), TASKS["ner"], toy_tokenizer, max_length)
        assert counts["words_cut"] == cut and len(ids_of(row)) == max_length


def test_padding_has_no_label(toy_tokenizer):
    rows, _ = ex.encode(tagged(LONG, ["Casa"]), TASKS["ner"], toy_tokenizer, max_length=32)
    batch = ex.collate(rows, TASKS["ner"], toy_tokenizer)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"][1].tolist() == rows[1]["labels"] + [-100] * (
        len(rows[0]["labels"]) - len(rows[1]["labels"])
    )
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_encode_tagging_normalises_words(toy_tokenizer):
    rows = [
        ex.encode(tagged([word]), TASKS["ner"], toy_tokenizer, 16)[0]
        for word in ("ştiinţă", "știință")
    ]
    cedilla, comma = (ids_of(row) for (row,) in rows)
    assert cedilla == comma and toy_tokenizer.unk_token_id not in comma


def texts(pairs, label=1.0):
    return Dataset.from_dict(
        {
            "id": [str(i) for i in range(len(pairs))],
            "text": [a for a, _ in pairs],
            "text_pair": [b for _, b in pairs],
        }
        | {"label": [label] * len(pairs)}
    )


def test_encode_texts_counts_what_is_truncated(toy_tokenizer):
    split = texts([("Copilul citeşte.", ""), (" ".join(LONG * 3), "")], 4.0)
    rows, counts = ex.encode(split, TASKS["sts"], toy_tokenizer, 12)
    assert counts == {"examples": 2, "windowed": 0, "words_cut": 0, "truncated": 1, "units": 2}
    assert ids_of(rows[0]) == toy_tokenizer("Copilul citește.")["input_ids"]
    assert len(ids_of(rows[1])) == 12
    assert [row["labels"] for row in rows] == [[0.8], [0.8]] and [
        row["example"] for row in rows
    ] == [0, 1]


@pytest.mark.parametrize("second", ["", "Bunicul cumpără casa la școală."])
def test_truncated_are_the_texts_longer_than_the_row(second, toy_tokenizer):
    pairs = [(" ".join(LONG[:size]), second) for size in range(1, len(LONG) + 1)]
    lengths = [len(toy_tokenizer(*[text for text in pair if text])["input_ids"]) for pair in pairs]
    assert len(set(lengths)) > 5
    for max_length in range(min(lengths) - 1, max(lengths) + 2):  # also of just that length
        _, counts = ex.encode(texts(pairs), TASKS["sapn"], toy_tokenizer, max_length)
        assert counts["truncated"] == sum(length > max_length for length in lengths)


def test_encode_texts_reads_both_of_a_pair(toy_tokenizer):
    rows, counts = ex.encode(
        texts([("Casa", "știrea"), ("Casa", "")]), TASKS["sts"], toy_tokenizer, 30
    )
    assert rows[0]["inputs"] == [dict(toy_tokenizer("Casa", "știrea"))]
    assert set(rows[0]["inputs"][0]["token_type_ids"]) == {0, 1}
    rows, counts = ex.encode(
        texts([(" ".join(LONG * 2), " ".join(LONG * 2))]), TASKS["sts"], toy_tokenizer, 20
    )
    assert counts["truncated"] == 1 and len(ids_of(rows[0])) == 20
    assert (
        rows[0]["inputs"][0]["token_type_ids"].count(1) > 5
    )  # the second text is not lost to the first


def test_labels_of_the_three_kinds(toy_tokenizer):
    (row,), _ = ex.encode(texts([("Casa", "")], 3), TASKS["sapn"], toy_tokenizer, 16)
    assert row["labels"] == [3] and isinstance(row["labels"][0], int)
    (row,), _ = ex.encode(texts([("Casa", "casa")], 4.0), TASKS["sts"], toy_tokenizer, 16)
    assert row["labels"] == [pytest.approx(0.8)]
    (row,), _ = ex.encode(tagged(["Casa"]), TASKS["ner"], toy_tokenizer, 16)
    assert 0 in row["labels"]


def test_the_content_of_a_review_is_read_alone(toy_tokenizer):
    split = texts([("Titlul", "Casa știe"), ("Casa", " ".join(LONG * 3))], 1)
    rows, counts = ex.encode(split, with_protocol("sar", "content"), toy_tokenizer, 12)
    assert ids_of(rows[0]) == toy_tokenizer("Casa știe")["input_ids"]
    assert (counts["truncated"], counts["units"]) == (1, 2)
    rows, _ = ex.encode(split, with_protocol("sar", "title+content"), toy_tokenizer, 12)
    assert (
        ids_of(rows[0])
        == toy_tokenizer("Titlul", "Casa știe", truncation=True, max_length=12)["input_ids"]
    )


def test_sentences_read_apart_are_cut_apart(toy_tokenizer):
    long = " ".join(LONG * 3)
    split = texts([("Casa", "știrea"), (long, "Casa"), ("Casa", long), (long, long)], 2.5)
    rows, counts = ex.encode(split, with_protocol("sts", "bi-encoder"), toy_tokenizer, 12)
    assert counts == {"examples": 4, "windowed": 0, "words_cut": 0, "truncated": 3, "units": 4}
    assert [ids_of(rows[0], i) for i in (0, 1)] == [
        toy_tokenizer(text)["input_ids"] for text in ("Casa", "știrea")
    ]
    full = [(len(ids_of(row)) == 12, len(ids_of(row, 1)) == 12) for row in rows[1:]]
    assert full == [(True, False), (False, True), (True, True)]
    assert [row["labels"] for row in rows] == [[0.5]] * 4


def test_texts_can_be_read_as_they_are(toy_tokenizer):
    for task, split in [
        (TASKS["ner"], tagged(["ştiinţă"])),
        (TASKS["di"], texts([("ştiinţă", "")], 1)),
        (TASKS["sts"], texts([("ştiinţă", "ştiinţă")])),
        (with_protocol("sts", "bi-encoder"), texts([("ştiinţă", "ştiinţă")])),
    ]:
        raw, cleaned = (
            ids_of(ex.encode(split, task, toy_tokenizer, 30, **how)[0][0])
            for how in ({"clean": str}, {})
        )
        assert toy_tokenizer.unk_token_id in raw and toy_tokenizer.unk_token_id not in cleaned


# --- predictions ----------------------------------------------------------------------------------


def test_prediction_table_covers_every_word_in_order(toy_tokenizer):
    split = tagged(LONG * 3, ["\u200b"], LONG)
    rows, _ = ex.encode(split, TASKS["ner"], toy_tokenizer, max_length=8)
    assert len(rows) > 5
    # The true label gets 0.9, so that a slip between rows, words and outputs would show.
    outputs = [
        np.array(
            [[0.9, 0.1] if label == 0 else [0.1, 0.9] for label in row["labels"] if label >= 0]
        )
        for row in rows
    ]
    table = ft.prediction_table(rows, outputs, TASKS["ner"], split, ["O", "B-LOC"])
    units = [
        (f"s{i}", place)
        for i, words in enumerate((LONG * 3, ["x"], LONG))
        for place in range(len(words))
    ]
    assert list(zip(table["example"], table["position"], strict=True)) == units
    assert table["gold"].tolist() == ["B-LOC" if place % 2 else "O" for _, place in units]
    assert table["predicted"].tolist() == table["gold"].tolist()


def test_prediction_table_of_scores_and_classes():
    split = texts([("a", "b"), ("c", "d")])
    rows = [
        {"example": 0, "words": [0], "labels": [0.5]},
        {"example": 1, "words": [0], "labels": [1.0]},
    ]
    table = ft.prediction_table(
        rows, [np.array([[2.25]]), np.array([[6.0]])], TASKS["sts"], split, []
    )
    assert table["gold"].tolist() == [2.5, 5.0] and table["predicted"].tolist() == [2.25, 6.0]
    assert table["probabilities"].tolist() == [[], []]
    rows = [
        {"example": 0, "words": [0], "labels": [1]},
        {"example": 1, "words": [0], "labels": [0]},
    ]
    table = ft.prediction_table(
        rows,
        [np.array([[0.25, 0.75]]), np.array([[0.3, 0.7]])],
        TASKS["sapn"],
        split,
        ["neg", "pos"],
    )
    assert table["gold"].tolist() == ["pos", "neg"] and table["predicted"].tolist() == [
        "pos",
        "pos",
    ]
    assert np.stack(table["probabilities"]).tolist() == [[0.25, 0.75], [0.3, 0.7]]


@pytest.mark.parametrize("name", ["upos", "sapn", "sts"])
def test_predict_does_not_depend_on_the_batches(name, model_folder, toy_tokenizer, splits):
    task, data = TASKS[name], splits(name)
    labels = ex.label_names(task, data["test"])
    torch.manual_seed(0)
    model = heads.load_for_task(model_folder, task, labels, False)
    rows, _ = ex.encode(data["test"], task, toy_tokenizer, 24)
    one, many = (ft.predict(model, rows, task, toy_tokenizer, size) for size in (1, 9))
    assert len(one) == len(rows)
    for row, single, together in zip(rows, one, many, strict=True):
        np.testing.assert_allclose(single, together, atol=1e-5)
        # Independent: the model's own output for this row alone.
        with torch.no_grad():
            inputs = {key: torch.tensor([row["inputs"][0][key]]) for key in row["inputs"][0]}
            logits = model(**inputs).logits[0].double()
        values = logits * 5 if name == "sts" else logits.softmax(-1)
        if name == "upos":
            values = values[[word >= 0 for word in row["words"]]]
        np.testing.assert_allclose(single, values.reshape(single.shape).numpy(), atol=1e-5)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize(("name", "protocol"), [("sapn", "title+content"), ("sts", "pair")])
def test_a_text_classifier_computes_what_the_plain_model_does(
    name, protocol, layers, toy_bert, toy_tokenizer, tmp_path, splits
):
    """Of a BERT, and of a student."""
    bert, task, data = toy_bert(layers=3), with_protocol(name, protocol), splits(name)["test"]
    save_model(init_student(bert, layers) if layers else bert, toy_tokenizer, tmp_path, "")
    tokenizer, labels = AutoTokenizer.from_pretrained(tmp_path), ex.label_names(task, data)
    rows, _ = ex.encode(data, task, tokenizer, 24)
    model = heads.load_for_task(tmp_path, task, labels, False)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, config=model.config)
    plain.load_state_dict(model.state_dict())
    batch = ex.collate(rows, task, tokenizer)
    for training in (False, True):
        outputs, gradients = [], []
        for one in (model, plain):
            torch.manual_seed(0)  # of the dropout
            result = one.train(training)(**batch)
            outputs.append(result.logits)
            one.zero_grad()
            result.loss.backward()
            gradients.append(torch.cat([part.grad.flatten() for part in one.parameters()]))
        torch.testing.assert_close(*outputs, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
        assert torch.equal(*gradients)  # the very numbers of the plain model


@pytest.mark.parametrize("layers", [0, 2])
def test_a_head_can_read_the_mean_of_the_states(layers, toy_bert, toy_tokenizer, tmp_path, splits):
    """Against the head's own layers on a mean over the pieces of each text, one text at a time."""
    bert, task, data = toy_bert(layers=3), TASKS["sapn"], splits("sapn")["test"]
    save_model(init_student(bert, layers) if layers else bert, toy_tokenizer, tmp_path, "")
    tokenizer, labels = AutoTokenizer.from_pretrained(tmp_path), ex.label_names(task, data)
    rows, _ = ex.encode(data, task, tokenizer, 24)
    model = heads.load_for_task(tmp_path, task, labels, False, "mean").eval()
    outputs = np.concatenate(ft.predict(model, rows, task, tokenizer, 8))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, config=model.config)
    plain.load_state_dict(model.state_dict())
    plain.eval()
    for row, output in zip(rows, outputs, strict=True):
        inputs = {key: torch.tensor([value]) for key, value in row["inputs"][0].items()}
        with torch.no_grad():
            mean = plain.base_model(**inputs).last_hidden_state.mean(1)
            if layers:
                logits = plain.classifier(plain.pre_classifier(mean).relu())
            else:
                pooler = plain.bert.pooler.dense
                logits = plain.classifier(torch.tanh(pooler(mean)))
        np.testing.assert_allclose(output, logits[0].softmax(-1).numpy(), atol=1e-5)
    model.save_pretrained(tmp_path / "kept")
    again = heads.load_for_task(tmp_path / "kept", task, labels, False)  # it remembers
    np.testing.assert_array_equal(
        np.concatenate(ft.predict(again, rows, task, tokenizer, 8)), outputs
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_head_of_a_student_has_the_dropout_of_its_teachers(
    dropout, toy_bert, toy_tokenizer, tmp_path
):
    """DistilBERT's own 0.2 would be a second difference between student and teacher."""
    bert = toy_bert(dropout=dropout)
    for name, model in (("teacher", bert), ("student", init_student(bert, 2))):
        save_model(model, toy_tokenizer, tmp_path / name, "")
        loaded = heads.load_for_task(tmp_path / name, TASKS["sapn"], ["no", "yes"], False, "mean")
        assert loaded.dropout.p == dropout, name


def test_examples_are_the_same_for_every_model():
    data = texts([(str(i), "") for i in range(20)])
    first, again, other = (ex.sample_examples(data, 8, seed)["text"][:] for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 8
    assert ex.sample_examples(data, 0, 1) is data and ex.sample_examples(data, 20, 1) is data


def test_a_lost_example_is_an_error(toy_tokenizer):
    split = tagged(LONG, ["Casa"])
    rows, counts = ex.encode(split, TASKS["ner"], toy_tokenizer, max_length=8)
    assert counts["units"] == len(LONG) + 1
    outputs = [np.array([[0.9, 0.1]] * sum(word >= 0 for word in row["words"])) for row in rows]

    def predicted(chosen):
        chosen = list(chosen)
        return ft.prediction_table(
            [rows[i] for i in chosen],
            [outputs[i] for i in chosen],
            TASKS["ner"],
            split,
            ["O", "B-LOC"],
        )

    assert len(predicted(range(len(rows)))) == counts["units"]
    with pytest.raises(
        RuntimeError, match=r"ner: instead of the prediction for \('s1', 0\) comes \(\)"
    ):
        predicted(range(len(rows) - 1))
    with pytest.raises(
        RuntimeError,
        match=r"ner: instead of the prediction for \('s0', 0\) comes \('s0', [1-9]\): one is lost",
    ):
        predicted(range(1, len(rows)))
    with pytest.raises(
        RuntimeError,
        match=r"ner: instead of the prediction for \(\) comes \('s1', 0\): .* or there twice",
    ):
        predicted([*range(len(rows)), len(rows) - 1])
    with pytest.raises(
        RuntimeError, match=r"ner: instead of the prediction for \('s0', 0\) comes \('s1', 0\)"
    ):
        predicted([len(rows) - 1, *range(len(rows) - 1)])  # all there, in another order


def test_a_bi_encoder_scores_by_the_cosine_of_mean_states(model_folder, toy_tokenizer):
    task = with_protocol("sts", "bi-encoder")
    pairs = [
        ("Copilul citește.", "Casa"),
        ("știrea", "Bunicul cumpără casa la școală."),
        ("Casa", "Casa"),
    ]
    rows, _ = ex.encode(texts(pairs, 4.0), task, toy_tokenizer, 30)
    model = heads.load_for_task(model_folder, task, [], False)
    scores = np.concatenate(ft.predict(model, rows, task, toy_tokenizer, 2))[:, 0]
    encoder = AutoModel.from_pretrained(model_folder).eval()
    for pair, score in zip(pairs, scores, strict=True):
        with torch.no_grad():  # each text alone, so there is no padding
            one, other = (
                encoder(**toy_tokenizer(text, return_tensors="pt"))
                .last_hidden_state[0]
                .double()
                .numpy()
                .mean(0)
                for text in pair
            )
        cosine = one @ other / np.sqrt((one @ one) * (other @ other))
        assert score == pytest.approx(5 * cosine, abs=1e-5)
    assert scores[2] == pytest.approx(5, abs=1e-5)
    batch = ex.collate(rows, task, toy_tokenizer)
    assert model(**batch).loss.item() == pytest.approx(np.mean((scores / 5 - 0.8) ** 2), abs=1e-6)


def test_whitening_gives_mean_states_the_mean_zero_and_equal_variances(model_folder, splits):
    task, data = with_protocol("sts", "bi-encoder"), splits("sts")
    read = ex.read_splits(config("sts", protocols={"sts": "bi-encoder"}), model_folder, data)
    model = heads.load_for_task(model_folder, task, [], False).eval()
    states = torch.randn(5000, 32, dtype=torch.float64) @ torch.randn(32, 32, dtype=torch.float64)
    model.fit_whitening(states + 7)
    white = (states + 7 - model.mean) @ model.matrix.double()
    assert white.mean(0).abs().max() < 1e-4
    covariance = np.cov(white.numpy().T)
    variances = np.linalg.eigvalsh(np.cov(states.numpy().T))
    expected = variances / (variances + 0.01 * variances.max())  # near 1 but for the smallest
    np.testing.assert_allclose(np.diag(covariance), expected, atol=1e-3)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3
    # In a run these are the states of all texts of the train split.
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    run = ft.Run(config("sts"), task, 1, tokenizer, [], read, None, torch.device("cpu"), "float32")
    ft.fit_whitening(run, model)
    encoder, part = AutoModel.from_pretrained(model_folder).eval(), read["train"][0]
    means = []
    for text in [*part["text"], *part["text_pair"]]:
        cut = tokenizer(normalise(text), return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            means.append(encoder(**cut).last_hidden_state[0].mean(0))
    torch.testing.assert_close(model.mean, torch.stack(means).mean(0), atol=1e-5, rtol=1e-5)


# --- end to end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["upos", "ner", "sar", "sts"])
def test_finetune_on_the_sample(name, model_folder, splits, tmp_path):
    data, task = splits(name), TASKS[name]
    result = finetune(config(name), name, 1, model_folder, False, data, tmp_path)
    assert result == json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert task.headline in result["test"] and (
        result["task"],
        result["seed"],
        result["best_epoch"],
    ) == (name, 1, 1)
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert record["epoch"] == 1 and record["loss"] > 0
    assert record[f"validation_{task.headline}"] == result["validation"][task.headline]
    assert (
        result["counts"]["train"]["examples"] == 16 and result["counts"]["test"]["examples"] == 20
    )

    table = pd.read_parquet(tmp_path / "predictions.parquet")
    if task.kind == "tagging":
        assert result["counts"]["test"]["windowed"] > 0
        names = data["test"].features["labels"].feature.names
        gold = [
            (row["id"], i, names[label])
            for row in data["test"]
            for i, label in enumerate(row["labels"])  # every word of every sentence, however long
        ]
    elif task.kind == "classification":
        names = data["test"].features["label"].names
        gold = [(row["id"], 0, names[row["label"]]) for row in data["test"]]
    else:
        names = []
        gold = [(row["id"], 0, pytest.approx(row["label"], abs=1e-5)) for row in data["test"]]
    assert list(table[["example", "position", "gold"]].itertuples(index=False, name=None)) == gold
    assert result["labels"] == names
    if names:
        probabilities = np.stack(table["probabilities"])
        assert probabilities.dtype == np.float32  # doubles would take twice the space and time
        assert probabilities.shape == (len(gold), len(names)) and (probabilities >= 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert table["predicted"].tolist() == [names[i] for i in probabilities.argmax(1)]
        if name != "ner":
            hits = np.mean(table["gold"] == table["predicted"])
            assert result["test"]["accuracy"] == pytest.approx(hits)
    else:
        assert [len(row) for row in table["probabilities"]] == [0] * 20


def test_a_student_can_be_fine_tuned(tmp_path, toy_bert, toy_tokenizer, splits):
    save_model(init_student(toy_bert(), 2), toy_tokenizer, tmp_path / "student", "")
    result = finetune(config("sts"), "sts", 1, tmp_path / "student", False, splits("sts"), tmp_path)
    assert -1 <= result["test"]["pearson"] <= 1


def test_the_same_seed_gives_equal_predictions(model_folder, splits, tmp_path):
    data, tables = splits("sapn"), []
    for number, (seed, random_weights) in enumerate(
        [(1, False), (1, False), (2, False), (1, True)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        finetune(config("sapn"), "sapn", seed, model_folder, random_weights, data, folder)
        tables.append(np.stack(pd.read_parquet(folder / "predictions.parquet")["probabilities"]))
    assert np.array_equal(tables[0], tables[1])
    assert not np.array_equal(tables[0], tables[2]) and not np.array_equal(tables[0], tables[3])


@pytest.mark.parametrize("name", ["upos", "sar", "sts"])
def test_bf16_is_used_where_it_is_asked_for_and_is_near(
    name, model_folder, splits, tmp_path, monkeypatch
):
    tables, kinds = {}, set()
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        folder.mkdir()
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, _, output: (
                kinds.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
            )
        )
        kinds.clear()
        finetune(
            config(name, precision=precision), name, 1, model_folder, False, splits(name), folder
        )
        hook.remove()
        assert kinds == {getattr(torch, precision)}
        tables[precision] = pd.read_parquet(folder / "predictions.parquet")
    one, two = tables.values()
    if name == "sts":
        assert np.allclose(one["predicted"], two["predicted"], atol=0.3)
    else:
        one, two = (np.stack(table["probabilities"]) for table in (one, two))
        assert 0 < np.abs(one - two).max() < 0.1 and np.allclose(two.sum(1), 1, atol=1e-3)


def test_random_weights_have_the_shape_and_nothing_else(model_folder):
    trained, fresh = (
        heads.load_for_task(model_folder, TASKS["upos"], ["A", "B", "C"], flag)
        for flag in (False, True)
    )
    shapes = [
        {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for model in (trained, fresh)
    ]
    assert shapes[0] == shapes[1] and shapes[0]["classifier.weight"] == (3, 32)
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(trained.state_dict()[name], fresh.state_dict()[name])


def test_the_best_epoch_is_kept_and_predicts_the_test_split(
    model_folder, splits, tmp_path, monkeypatch
):
    scores = iter([0.3, 0.8, 0.8, 0.5, 0.123])
    seen = []
    real_predict = ft.predict

    def predict(model, *arguments):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return real_predict(model, *arguments)

    monkeypatch.setattr(ft, "predict", predict)
    monkeypatch.setattr(ft, "score_predictions", lambda task, table: {"accuracy": next(scores)})
    recipe = config("sapn", epochs={"sapn": [4]})
    result = finetune(recipe, "sapn", 1, model_folder, False, splits("sapn"), tmp_path)
    assert (
        result["best_epoch"] == 2
        and result["validation"] == {"accuracy": 0.8}
        and result["test"] == {"accuracy": 0.123}
    )
    assert len(seen) == 5

    def same(one, other):
        return all(torch.equal(value, other[name]) for name, value in one.items())

    assert [same(seen[4], epoch) for epoch in seen[:4]] == [False, True, False, False]
    assert [
        record["validation_accuracy"] for record in read_metrics(tmp_path / "metrics.jsonl")
    ] == [0.3, 0.8, 0.8, 0.5]


GRID = {"epochs": {"sts": [1, 2]}, "learning_rates": {"sts": [1e-3, 5e-3]}}
GRID |= {"pooling": {"sts": ["cls", "mean"]}}


@pytest.fixture(scope="module")
def tried(model_folder, tmp_path_factory):
    """A run over a grid of eight recipes: its result and its folder."""
    folder = tmp_path_factory.mktemp("grid")
    data = DatasetDict({k: part.select(range(20)) for k, part in load_task("sts", SAMPLE).items()})
    return finetune(config("sts", **GRID), "sts", 1, model_folder, False, data, folder), folder


def test_the_best_recipe_of_the_grid_predicts_the_test_split(
    tried, model_folder, splits, tmp_path, monkeypatch
):
    result, folder = tried
    grid = [(point["learning_rate"], point["epochs"], point["pooling"]) for point in result["grid"]]
    assert grid == [(r, e, p) for r in (1e-3, 5e-3) for e in (1, 2) for p in ("cls", "mean")]
    scores = [point["validation"] for point in result["grid"]]
    assert len(set(scores)) > 1  # else there is nothing to choose
    first = result["grid"][scores.index(max(scores))]
    assert result["recipe"] | {"validation": max(scores)} == first
    assert result["validation"]["pearson"] == max(scores)
    records = read_metrics(folder / "metrics.jsonl")
    for point in result["grid"]:
        recipe = {key: point[key] for key in result["recipe"]}
        found = [row["validation_pearson"] for row in records if row["recipe"] == recipe]
        assert len(found) == point["epochs"] and max(found) == point["validation"]
    # The recipe alone gives the same numbers, to the bit: the others leave no trace.
    rate, epochs, pooling = result["recipe"].values()
    alone = {"learning_rates": {"sts": [rate]}, "epochs": {"sts": [epochs]}}
    alone["pooling"] = {"sts": [pooling]}
    split_names, real = [], ft.predictions

    def watched(run, model, name):
        split_names.append(name)
        return real(run, model, name)

    monkeypatch.setattr(ft, "predictions", watched)
    recipe = config("sts", **alone)
    again = finetune(recipe, "sts", 1, model_folder, False, splits("sts"), tmp_path)
    assert split_names == ["validation"] * epochs + ["test"]
    assert len(again["grid"]) == 1 and again | {"grid": result["grid"]} == result
    one, other = ((place / "predictions.parquet").read_bytes() for place in (folder, tmp_path))
    assert one == other


def test_the_first_of_equal_recipes_is_taken(model_folder, splits, tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.7, 0.6, 0.1])
    monkeypatch.setattr(ft, "score_predictions", lambda task, table: {"accuracy": next(scores)})
    recipe = config("sapn", learning_rates={"sapn": [1e-3, 2e-3, 3e-3, 4e-3]})
    result = finetune(recipe, "sapn", 1, model_folder, False, splits("sapn"), tmp_path)
    assert result["recipe"] == {"learning_rate": 2e-3, "epochs": 1, "pooling": "cls"}
    assert result["test"] == {"accuracy": 0.1}


def test_one_recipe_gives_the_numbers_of_the_loop_before_there_was_a_grid(
    toy_bert, toy_tokenizer, splits, tmp_path
):
    torch.manual_seed(3)
    save_model(toy_bert(layers=2), toy_tokenizer, tmp_path / "bert", "")
    losses = {"upos": [2.647867, 2.594076], "sapn": [0.694507, 0.689058]}
    for name, expected in losses.items():
        folder = tmp_path / name
        folder.mkdir()
        recipe = config(name, epochs={name: [2]})
        finetune(recipe, name, 1, tmp_path / "bert", False, splits(name), folder)
        found = [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]
        assert found == pytest.approx(expected, abs=1e-4)


def test_later_seeds_use_the_recipe_of_the_first(model_folder, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "load_task", lambda name, root: splits(name))
    recipe = config("sts", **(GRID | {"seeds": [2, 1]}))

    def evaluate():
        found = stages.evaluate_model(recipe, source=model_folder, folder=tmp_path)
        return found, (tmp_path / "sts" / "seed-1" / "manifest.json").read_bytes()

    (first, second), before = evaluate()
    assert (first["seed"], len(first["grid"])) == (2, 8)
    assert second["recipe"] == first["recipe"] and len(second["grid"]) == 1
    saved = yaml.safe_load((tmp_path / "sts" / "seed-1" / "config.yaml").read_text())
    assert saved["learning_rates"] == {"sts": [first["recipe"]["learning_rate"]]}
    assert saved["epochs"] == {"sts": [first["recipe"]["epochs"]]}
    assert saved["pooling"] == {"sts": [first["recipe"]["pooling"]]}
    assert evaluate()[1] == before  # finished
    others = [rate for rate in (1e-3, 5e-3) if rate != first["recipe"]["learning_rate"]]
    recipe = recipe.model_copy(update={"learning_rates": {"sts": others}})
    (_, second), after = evaluate()  # the choice is another one
    assert after != before and second["recipe"]["learning_rate"] == others[0]


@pytest.mark.parametrize("name", ["upos", "sts"])
def test_a_loss_that_is_not_finite_names_the_learning_rate(name, model_folder, splits, tmp_path):
    recipe = config(name, learning_rates={name: [1e30]})
    with pytest.raises(FloatingPointError, match=f"bert {name}: .* at 1e.30: take smaller"):
        finetune(recipe, name, 1, model_folder, False, splits(name), tmp_path)


def test_the_models_length_is_respected(model_folder, splits, tmp_path):
    """max_length may exceed what the model can read (32 positions here)."""
    result = finetune(
        config("di", max_length=512), "di", 1, model_folder, False, splits("di"), tmp_path
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lengths = [len(ids) for ids in tokenizer(splits("di")["test"]["text"][:])["input_ids"]]
    assert result["counts"]["test"]["truncated"] == sum(length > 32 for length in lengths) > 0


@pytest.mark.parametrize(
    ("name", "protocol"),
    [(name, protocol) for name in PROTOCOLS for protocol in list(PROTOCOLS[name])[1:]],
)
def test_every_other_protocol_runs(name, protocol, model_folder, splits, tmp_path):
    result = finetune(
        config(name, protocols={name: protocol}),
        name,
        1,
        model_folder,
        False,
        splits(name),
        tmp_path,
    )
    headline = PROTOCOLS[name][protocol]
    assert (result["protocol"], result["headline"]) == (protocol, headline)
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (
        result["validation"] == {headline: record[f"validation_{headline}"]}
        and headline in result["test"]
    )
    for split, part in splits(name).items():
        part = ex.sample_examples(part, 16 if split == "train" else 0, 1)
        assert result["counts"][split]["units"] == (
            sum(map(len, part["tokens"])) if "tokens" in part.features else len(part)
        )
    assert (
        len(pd.read_parquet(tmp_path / "predictions.parquet")) == result["counts"]["test"]["units"]
    )


@pytest.mark.parametrize(
    ("name", "protocol"),
    [("upos", "accuracy"), ("sar", "content"), ("sts", "pair"), ("sts", "bi-encoder")],
)
def test_a_kept_model_is_a_plain_folder_that_predicts_the_same(
    name, protocol, tmp_path, toy_bert, _toy_tokenizer, splits
):
    save_model(init_student(toy_bert(), 2), _toy_tokenizer, tmp_path / "student", "")
    recipe, data = config(name, protocols={name: protocol}, keep_models=1), splits(name)
    result = finetune(recipe, name, 1, tmp_path / "student", False, data, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    kinds = {"upos": AutoModelForTokenClassification, "sar": AutoModelForSequenceClassification}
    kind = (
        AutoModel
        if protocol == "bi-encoder"
        else kinds.get(name, AutoModelForSequenceClassification)
    )
    model = kind.from_pretrained(tmp_path / "model").eval()
    if result["labels"]:
        assert list(model.config.id2label.values()) == result[
            "labels"
        ] and model.config.num_labels == len(result["labels"])
        assert model.config.label2id == {label: i for i, label in enumerate(result["labels"])}
    if name == "upos":
        example = next(
            row
            for row in data["test"]
            if len(tokenizer(row["tokens"], is_split_into_words=True)["input_ids"]) <= 32
        )
        inputs = tokenizer(example["tokens"], is_split_into_words=True, return_tensors="pt")
        words = inputs.word_ids()
        first = [words.index(word) for word in range(len(example["tokens"]))]
    else:
        example = data["test"][0]
        read = (
            [example["text_pair"]]
            if protocol == "content"
            else [example["text"], example["text_pair"]]
        )
        cut = functools.partial(tokenizer, truncation=True, max_length=32, return_tensors="pt")
        inputs, first = cut(*read), [0]
    stored = table[table["example"] == example["id"]]
    with torch.no_grad():
        if protocol == "bi-encoder":
            saved = load_file(tmp_path / "model" / "whitening.safetensors")
            one, other = (
                (model(**cut(text)).last_hidden_state[0].mean(0) - saved["mean"]) @ saved["matrix"]
                for text in read
            )
            expected = 5 * torch.cosine_similarity(one, other, dim=0).item()
        else:
            logits = model(**inputs).logits[0]
            expected = (
                5 * logits.item()
                if name == "sts"
                else logits.reshape(-1, len(result["labels"]))[first].softmax(-1)
            )
    if name == "sts":
        assert stored["predicted"].item() == pytest.approx(expected, abs=1e-4)
    else:
        np.testing.assert_allclose(np.stack(stored["probabilities"]), expected.numpy(), atol=1e-5)


def test_no_model_is_kept_unless_asked_for(model_folder, splits, tmp_path):
    finetune(config("sapn"), "sapn", 1, model_folder, False, splits("sapn"), tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_seed_added_later_leaves_the_runs_finished(model_folder, splits, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    monkeypatch.setattr(stages, "load_task", lambda name, root: splits(name))
    target = tmp_path / "toy" / "teachers" / "bert"
    target.parent.mkdir(parents=True)
    shutil.copytree(model_folder, target)
    (target / "manifest.json").write_text("{}", encoding="utf-8")
    recipe = config("sapn", keep_models=1)
    stages.evaluate_model(recipe)
    runs = tmp_path / "toy" / "evaluation" / "bert" / "sapn"
    before = (runs / "seed-1" / "manifest.json").read_bytes()
    more = {"seeds": [1, 2], "tasks": ["sapn", "sar"]}
    more |= {
        key: getattr(recipe, key) | {"sar": getattr(config("sar"), key)["sar"]}
        for key in ("protocols", "epochs", "pooling")
    }
    more["learning_rates"] = {"sapn": [1e-3], "sar": [1e-3]}
    results = stages.evaluate_model(recipe.model_copy(update=more))
    assert [(result["task"], result["seed"]) for result in results] == [
        ("sapn", 1),
        ("sapn", 2),
        ("sar", 1),
        ("sar", 2),
    ]
    assert (runs / "seed-1" / "manifest.json").read_bytes() == before
    kept = [path.parent.name for path in sorted(runs.parent.glob("*/seed-*/model"))]
    assert kept == ["seed-1", "seed-1"]
    # Another protocol is another run.
    (other,) = stages.evaluate_model(config("sapn", protocols={"sapn": "content"}))
    kept = yaml.safe_load((runs / "seed-1" / "config.yaml").read_text(encoding="utf-8"))
    assert other["protocol"] == kept["protocols"]["sapn"] == "content"


def test_seeds_share_the_encoded_splits(model_folder, splits, tmp_path, monkeypatch):
    read = []
    real_encode = ex.encode

    def encode(split, *arguments):
        read.append(split["id"][:])
        return real_encode(split, *arguments)

    monkeypatch.setattr(ex, "encode", encode)
    monkeypatch.setattr(stages, "load_task", lambda name, root: splits(name))
    recipe = config("upos", seeds=[1, 2, 3])
    stages.evaluate_model(recipe, source=model_folder, folder=tmp_path / "together")
    assert [len(ids) for ids in read] == [16, 20, 20]  # each split once
    stages.evaluate_model(recipe, source=model_folder, folder=tmp_path / "together")
    assert len(read) == 3  # finished runs read nothing
    alone = recipe.model_copy(update={"seeds": [2]})
    stages.evaluate_model(alone, source=model_folder, folder=tmp_path / "alone")
    assert read[3:] == read[:3]
    for file in ("scores.json", "metrics.jsonl", "predictions.parquet"):
        one, two = (
            (tmp_path / kind / "upos" / "seed-2" / file).read_bytes()
            for kind in ("together", "alone")
        )
        assert one == two


def test_half_precision_is_trained_as_float32(tmp_path, toy_bert, toy_tokenizer):
    save_model(toy_bert(layers=1).half(), toy_tokenizer, tmp_path, "")
    for name, random_weights in (("upos", False), ("sapn", False), ("sts", False), ("sapn", True)):
        labels = ["A", "B"] if name != "sts" else []
        model = heads.load_for_task(tmp_path, TASKS[name], labels, random_weights)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_few_validation_and_test_examples_the_same_for_every_model(
    model_folder, tmp_path, toy_bert, lower_tokenizer, splits
):
    save_model(toy_bert(layers=1, vocab_size=150), lower_tokenizer, tmp_path / "other", "")
    recipe = config("sapn", max_validation_examples=7, max_test_examples=9, seed=3)
    read = ex.read_splits(recipe, model_folder, splits("sapn"))
    assert {name: len(part) for name, (part, *_) in read.items()} == {
        "train": 16,
        "validation": 7,
        "test": 9,
    }
    other = ex.read_splits(recipe, tmp_path / "other", splits("sapn"))
    for name in read:
        assert read[name][0]["id"][:] == other[name][0]["id"][:]
    scores = ft.finetune(recipe, model_folder, read, tmp_path)
    assert scores["counts"]["test"]["examples"] == 9
    assert len(pd.read_parquet(tmp_path / "predictions.parquet")) == 9
