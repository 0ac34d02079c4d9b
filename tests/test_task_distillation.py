"""Distillation at the task: the loss, the unlabelled examples, the teachers' stored answers."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from cells import after_cells, functions_of
from datasets import DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rolib import stages
from rolib.config import EvaluateConfig, to_dict
from rolib.data.tasks import SAMPLE, load_task
from rolib.distillation.losses import IGNORE, task_loss
from rolib.distillation.models import init_student, save_model
from rolib.evaluation import task_distillation as td
from rolib.evaluation.examples import read_splits
from rolib.evaluation.finetune import Run, batch_loss
from rolib.evaluation.heads import load_for_task
from rolib.measures import TASKS, with_protocol
from rolib.profiles import load_profile

# --- the loss -------------------------------------------------------------------------------------


def units(seed, count, classes, labelled):
    """Random logits, gold labels (of the first `labelled` units), teacher probabilities."""
    rng = np.random.default_rng(seed)
    student = rng.normal(size=(count, classes))
    if classes == 1:
        gold, teacher = rng.random(count), rng.random((count, 1))
    else:
        gold = rng.integers(classes, size=count)
        teacher = rng.dirichlet(np.ones(classes), size=count)
    gold[labelled:] = IGNORE
    return torch.tensor(student, requires_grad=True), torch.tensor(gold), torch.tensor(teacher)


def plain_loop(student, gold, teacher, alpha, temperature):
    """The equation of the module, unit by unit."""
    total = 0.0
    for z, label, p in zip(student.tolist(), gold.tolist(), teacher.tolist(), strict=True):
        if len(z) == 1:
            hard, soft = (z[0] - label) ** 2, (z[0] - p[0]) ** 2
        else:
            hard = np.log(np.sum(np.exp(z))) - z[max(int(label), 0)]
            q = np.exp(np.array(z) / temperature) / np.sum(np.exp(np.array(z) / temperature))
            p = np.array(p) ** (1 / temperature) / np.sum(np.array(p) ** (1 / temperature))
            soft = temperature**2 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)
        total += (1 - alpha) * hard * (label != IGNORE) + alpha * soft
    return total / len(student)


CASES = given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.sampled_from([1, 2, 5]),
    st.integers(0, 6),
    st.floats(0, 1),
    st.floats(0.5, 4),
)


@settings(max_examples=60, deadline=None)
@CASES
def test_the_loss_is_its_equation(seed, count, classes, labelled, alpha, temperature):
    student, gold, teacher = units(seed, count, classes, labelled)
    found = task_loss(student, gold, teacher, alpha, temperature)
    expected = plain_loop(student, gold, teacher, alpha, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@CASES
def test_unlabelled_units_have_no_gold_gradient(seed, count, classes, labelled, alpha, temperature):
    student, gold, teacher = units(seed, count, classes, labelled)
    task_loss(student, gold, teacher, alpha, temperature).backward()
    alone = student.detach().clone().requires_grad_()
    nothing = torch.full_like(gold, IGNORE)
    task_loss(alone, nothing, teacher, alpha, temperature).backward()
    torch.testing.assert_close(student.grad[labelled:], alone.grad[labelled:])
    if alpha == 0:
        assert not student.grad[labelled:].any()


def test_without_weight_the_loss_is_that_of_plain_fine_tuning():
    student, gold, teacher = units(0, 6, 4, 6)
    plain = torch.nn.functional.cross_entropy(student, gold)
    assert task_loss(student, gold, teacher, 0.0, 3.0).item() == pytest.approx(plain.item())


def test_a_teacher_that_is_certain_gives_a_finite_loss():
    student, gold, _ = units(0, 2, 3, 0)
    certain = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    loss = task_loss(student, gold, certain, 0.5, 2.0)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize("classes", [1, 3])
def test_shapes_that_would_broadcast_are_refused(classes):
    student, gold, teacher = units(0, 4, classes, 4)
    with pytest.raises(ValueError, match="differ in shape"):
        task_loss(student, gold, teacher[:1], 0.5, 1.0)


# --- a toy study with two fine-tuned teachers of different vocabularies ---------------------------

TASK_NAMES = ["ner", "sapn", "sts"]


def config(task, **changes):
    recipe = {"profile": "toy", "seed": 1, "data": "sample", "precision": "float32"}
    recipe |= {"model": "student", "tasks": [task], "seeds": [1], "keep_models": 1}
    recipe |= {"max_train_examples": 8, "max_validation_examples": 0, "max_test_examples": 0}
    recipe |= {"max_length": 32, "batch_size": 8, "warmup_share": 0.1, "weight_decay": 0.01}
    recipe |= {"protocols": {task: "bi-encoder" if task == "sts" else TASKS[task].protocol}}
    recipe |= {"epochs": {task: [1]}, "learning_rates": {task: [1e-3]}}
    recipe["pooling"] = {} if task == "ner" else {task: ["cls"]}
    return EvaluateConfig(**(recipe | changes))


def distilled(task, **changes):
    """Both teachers, and examples without labels."""
    teachers = {"task_teachers": ["cased", "lower"], "unlabelled": 8}
    return config(task, **(teachers | {"alpha_task": 0.5, "task_temperature": 2.0} | changes))


def few(name, root=SAMPLE):
    """Twenty examples of each split of the built-in sample."""
    data = load_task(name, SAMPLE)
    return DatasetDict({split: part.select(range(20)) for split, part in data.items()})


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_bert, _toy_tokenizer, lower_tokenizer, teacher_config):
    """The folder of runs with two teachers fine-tuned on each measure, one with a second seed."""
    folder = tmp_path_factory.mktemp("runs")
    study = folder / "toy"
    for name, tokenizer in (("cased", _toy_tokenizer), ("lower", lower_tokenizer)):
        place = study / "teachers" / name
        bert = toy_bert(layers=2, vocab_size=len(tokenizer))
        save_model(bert, tokenizer, place, "")
        (place / "config.yaml").write_text(yaml.safe_dump(to_dict(teacher_config(teacher=name))))
        (place / "manifest.json").write_text("{}")
    save_model(init_student(toy_bert(), 2), _toy_tokenizer, study / "students" / "student", "")
    (study / "students" / "student" / "manifest.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLIB_RUNS", str(folder))
        patch.setattr(stages, "load_task", few)
        for task in TASK_NAMES:
            for name in ("lower", "cased"):
                stages.evaluate_model(config(task, model=name))
        stages.evaluate_model(config("ner", model="cased", seeds=[2]))
    return folder


@pytest.fixture
def study(made, tmp_path, monkeypatch):
    """The toy study in folders of its own."""
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(stages, "load_task", few)
    return tmp_path / "runs" / "toy"


@pytest.fixture
def asked(monkeypatch):
    """What the teachers are asked: (run, number of examples) of each prediction."""
    seen, real = [], td.predict_perturbed

    def predict(run, split, functions):
        seen.append((run.parts[-3], run.name, len(split)))
        return real(run, split, functions)

    monkeypatch.setattr(td, "predict_perturbed", predict)
    return seen


def train_rows(study, recipe):
    """The train rows of the student with the teachers' answers."""
    (task,) = recipe.tasks
    folder, data = study / "students" / "student", few(task)
    return td.read_taught(recipe, folder, data)["train"]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


# --- which examples -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_unlabelled_examples_are_those_that_training_leaves(study, task):
    train = few(task)["train"]
    labelled = read_splits(config(task), study / "teachers" / "cased", few(task))["train"][0]
    ids = td.unlabelled_examples(distilled(task), task, train)["id"][:]
    assert len(set(ids)) == 8 and not set(ids) & set(labelled["id"][:])
    more = td.unlabelled_examples(distilled(task, unlabelled=100), task, train)
    assert more["id"][:8] == ids  # a larger number adds to the same order
    own = {name for name in more["id"][:] if not name.startswith("corpus-")}
    assert own == set(train["id"][:]) - set(labelled["id"][:])
    assert len(more) == (100 if task == "ner" else 12)  # taggers go on with the corpus
    everything = distilled(task, max_train_examples=0)
    none = td.unlabelled_examples(everything, task, train)
    assert len(none) == (8 if task == "ner" else 0)


def test_plain_sentences_are_words_of_the_corpus(study):
    rows = td.plain_sentences(distilled("ner"), 50)
    assert len({row["id"] for row in rows}) == 50
    files = sorted((SAMPLE / "corpus").glob("*.txt"))
    text = "".join("".join(file.read_text(encoding="utf-8").split()) for file in files)
    for row in rows:
        assert len(row["tokens"]) == len(row["labels"]) and len(row["tokens"]) in td.WORDS
        assert "".join(row["tokens"]) in text


# --- the answers ----------------------------------------------------------------------------------


def test_answers_belong_to_the_words_of_windowed_sentences(study):
    """Teachers of two vocabularies, whose windows and pieces differ from the student's."""
    labelled, rows, counts = train_rows(study, distilled("ner", max_length=12))
    assert counts["windowed"] > 0 and counts["unlabelled"] == 8 and len(labelled) == 8
    expected = {}
    for teacher in ("cased", "lower"):
        for part in ("train", "unlabelled"):
            folder = study / "task-answers" / teacher / "ner" / "seed-1" / part
            table = pd.read_parquet(folder / "answers.parquet")
            assert "gold" not in table
            for row in table.itertuples():
                unit = expected.setdefault((part, row.example, row.position), [])
                unit.append(np.array(row.probabilities, dtype=np.float64))
    ids = {"train": labelled["id"][:]}
    ids["unlabelled"] = td.unlabelled_examples(distilled("ner"), "ner", few("ner")["train"])["id"][
        :
    ]
    found, part, last = set(), "train", -1
    for row in rows:
        if row["example"] < last:
            part = "unlabelled"
        last = row["example"]
        words = [word for word in row["words"] if word >= 0]
        for word, soft in zip(words, row["soft"], strict=True):
            unit = (part, ids[part][row["example"]], word)
            np.testing.assert_allclose(soft, np.mean(expected[unit], axis=0), atol=1e-7)
            found.add(unit)
        gold = [label for label in row["labels"] if label != IGNORE]
        assert len(gold) == (len(words) if part == "train" else 0)
    assert found == set(expected) and all(len(two) == 2 for two in expected.values())


@pytest.mark.parametrize("task", TASK_NAMES)
def test_an_ensemble_of_equal_teachers_is_one_teacher(study, task):
    def soft(*teachers):
        rows = train_rows(study, distilled(task, task_teachers=list(teachers)))[1]
        return np.concatenate([row["soft"] for row in rows])

    one, other, both = soft("cased"), soft("lower"), soft("cased", "lower")
    assert np.array_equal(one, soft("cased", "cased", "cased:1"))
    assert np.array_equal(both, soft("lower", "cased"))  # the order does not matter
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-7)
    if task != "sts":
        np.testing.assert_allclose(both.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("order", [1, -1], ids=["labelled first", "unlabelled first"])
def test_the_loss_of_a_batch_is_that_of_its_units(study, task, order):
    """Against the model's own output for one row at a time, in float64."""
    recipe = distilled(task)
    folder = study / "students" / "student"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    measure = with_protocol(task, recipe.protocols[task])
    _, rows, _ = train_rows(study, recipe)
    rows = [rows[0], rows[1], rows[-1], rows[-2]][::order]
    labels = [] if task == "sts" else list(range(rows[0]["soft"].shape[1]))
    model = load_for_task(folder, measure, list(map(str, labels)), False).double().eval()
    student, gold = [], []
    for row in rows:
        inputs = [{k: torch.tensor([v]) for k, v in one.items()} for one in row["inputs"]]
        if task == "sts":
            one, other = (model.encoder(**part).last_hidden_state[0].mean(0) for part in inputs)
            output = torch.cosine_similarity(one, other, dim=0).reshape(1, 1)  # not whitened yet
        else:
            output = model(**inputs[0]).logits.reshape(-1, len(labels))
        first = [place for place, word in enumerate(row["words"]) if word >= 0]
        student.append(output[first].detach())
        gold += [row["labels"][place] for place in first]
    teacher = torch.tensor(np.concatenate([row["soft"] for row in rows])).double()
    expected = plain_loop(torch.cat(student), torch.tensor(gold), teacher, 0.5, 2.0)
    run = Run(recipe, measure, 1, tokenizer, [], {}, study, torch.device("cpu"), "float32")
    found = batch_loss(run, model, rows).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_answers_are_asked_once_and_reused_by_students_and_seeds(study, asked):
    recipe = distilled("ner", seeds=[1, 2])
    stages.evaluate_model(recipe)
    parts = [("cased", "seed-1", 8)] * 2 + [("lower", "seed-1", 8)] * 2
    assert sorted(asked) == parts
    shutil.copytree(study / "students" / "student", study / "students" / "other")
    stages.evaluate_model(distilled("ner", model="other", alpha_task=0.9))
    stages.evaluate_model(distilled("ner", unlabelled=0), folder=study / "task" / "same")
    assert len(asked) == 4
    manifest = json.loads(
        (study / "task-answers/cased/ner/seed-1/train/manifest.json").read_text(encoding="utf-8")
    )
    assert set(manifest["inputs"]) == {"model", "examples"}
    # Two seeds of one teacher: only the second is new.
    stages.evaluate_model(
        distilled("ner", task_teachers=["cased:1", "cased:2"]), folder=study / "task" / "two"
    )
    assert asked[4:] == [("cased", "seed-2", 8)] * 2


def test_answers_that_do_not_fit_are_not_used(study, asked):
    recipe = distilled("sapn", task_teachers=["cased"])
    train_rows(study, recipe)
    train_rows(study, recipe)
    assert len(asked) == 2
    train_rows(study, distilled("sapn", task_teachers=["cased"], unlabelled=4))
    assert len(asked) == 3  # other examples
    before = train_rows(study, recipe)[1][0]["soft"]
    stages.evaluate_model(config("sapn", model="cased", learning_rates={"sapn": [5e-3]}))
    number = len(asked)
    after = train_rows(study, recipe)[1][0]["soft"]
    assert len(asked) == number + 2 and not np.array_equal(before, after)  # another model


def test_a_teacher_that_was_not_kept_is_named_with_the_remedy(study):
    with pytest.raises(FileNotFoundError, match="no model of 'cased:7' is kept that learned ner"):
        stages.evaluate_model(distilled("ner", task_teachers=["cased:7"]))
    with pytest.raises(
        FileNotFoundError, match="with seed 1, max_train_examples 8 and keep_models"
    ):
        stages.evaluate_model(distilled("ner", task_teachers=["nobody"]))
    # A teacher that learned from more labels would know those of the unlabelled examples.
    with pytest.raises(FileNotFoundError, match="no model of 'cased' .* from these examples"):
        stages.evaluate_model(distilled("ner", max_train_examples=7))
    # So would one that learned from as many others.
    with pytest.raises(FileNotFoundError, match="evaluate it with seed 2"):
        stages.evaluate_model(distilled("ner", seed=2))


def test_a_teacher_may_have_learned_from_fewer_labels_than_its_student(study):
    """So a student with all labels can have teachers with few (`all-and-ensemble`)."""
    own = study / "evaluation" / "cased" / "ner" / "seed-1"
    for labels in (0, 9, 20):
        assert td.kept_run(distilled("ner", max_train_examples=labels), "cased", "ner") == own
    fewer = study / "task" / "cased" / "ner" / "seed-1"
    shutil.copytree(own, fewer)
    settings = yaml.safe_load((fewer / "config.yaml").read_text(encoding="utf-8"))
    (fewer / "config.yaml").write_text(yaml.safe_dump(settings | {"max_train_examples": 5}))
    for labels, wanted in ((6, fewer), (8, own), (0, own)):  # of those it may have, the most
        assert td.kept_run(distilled("ner", max_train_examples=labels), "cased", "ner") == wanted
    labelled, rows, counts = train_rows(study, distilled("ner", max_train_examples=0, unlabelled=0))
    assert len(labelled) == len(few("ner")["train"]) and all("soft" in row for row in rows)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["ner", "sts"])
def test_zero_weight_is_plain_fine_tuning_to_the_bit(study, asked, task):
    plain = config(task)
    stages.evaluate_model(plain, folder=study / "task" / "plain")
    for name, changes in {
        "zero": {"alpha_task": 0.0, "task_teachers": ["cased", "nobody"]},  # not even looked for
        "nobody": {"task_teachers": []},
        "half": {},
    }.items():
        stages.evaluate_model(distilled(task, **changes), folder=study / "task" / name)
    runs = {name: study / "task" / name / task / "seed-1" for name in ("plain", "zero", "nobody")}
    for name, run in runs.items():
        for file in ("scores.json", "metrics.jsonl", "predictions.parquet"):
            assert (run / file).read_bytes() == (runs["plain"] / file).read_bytes(), (name, file)
        assert weights(run) == weights(runs["plain"])
    assert weights(study / "task" / "half" / task / "seed-1") != weights(runs["plain"])
    assert len(asked) == 4  # two teachers, two parts, of "half" alone


@pytest.mark.parametrize("task", ["ner", "sts"])
def test_the_gold_labels_of_unlabelled_examples_change_nothing(study, task, monkeypatch):
    stages.evaluate_model(distilled(task), folder=study / "task" / "right")
    column = "labels" if task == "ner" else "label"
    labelled = set(
        read_splits(config(task), study / "teachers" / "cased", few(task))["train"][0]["id"]
    )

    def disturbed(name, root):
        data = few(name)

        def wrong(row):
            if row["id"] not in labelled:
                zero = 0.0 if task == "sts" else 0
                row[column] = [zero] * len(row["labels"]) if task == "ner" else zero
            return row

        data["train"] = data["train"].map(wrong, load_from_cache_file=False)
        assert data["train"][column][:] != few(name)["train"][column][:]
        return data

    monkeypatch.setattr(stages, "load_task", disturbed)
    shutil.rmtree(study / "task-answers")
    stages.evaluate_model(distilled(task), folder=study / "task" / "wrong")
    right, wrong = (study / "task" / name / task / "seed-1" for name in ("right", "wrong"))
    assert weights(right) == weights(wrong)


def test_a_changed_teacher_or_weight_makes_a_run_anew(study):
    recipe, folder = distilled("sts", keep_models=0), study / "task" / "x"
    stages.evaluate_model(recipe, folder=folder)
    manifest = folder / "sts" / "seed-1" / "manifest.json"
    inputs = json.loads(manifest.read_text())["inputs"]
    assert {"task teacher cased", "task teacher lower"} < set(inputs)
    before = manifest.stat().st_mtime_ns
    stages.evaluate_model(recipe, folder=folder)
    assert manifest.stat().st_mtime_ns == before
    heavier = recipe.model_copy(update={"alpha_task": 0.6})
    stages.evaluate_model(heavier, folder=folder)
    assert (again := manifest.stat().st_mtime_ns) != before
    stages.evaluate_model(config("sts", model="lower", learning_rates={"sts": [5e-3]}))
    stages.evaluate_model(heavier, folder=folder)
    assert manifest.stat().st_mtime_ns != again


# --- notebook 11 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[1, 2, 3], [2], [4, 2]])
def test_further_seeds_leave_the_teachers_runs_of_notebook_03_as_they_are(seeds):
    study = load_profile("mini")
    config = study["task"].model_copy(update={"seeds": seeds})
    cells = functions_of("11-distil-at-task", config=config, settings=study)
    ours = EvaluateConfig(**cells.of_teacher("bert-cased"))
    theirs = study["evaluate"].model_copy(update={"model": "bert-cased"})
    assert set(seeds) <= set(ours.seeds)
    recipe = {"epochs": 3, "learning_rate": 1e-3, "pooling": ""}
    for seed in theirs.seeds:
        first = None if seed == theirs.seeds[0] else recipe
        runs = [stages.single_run(one, "upos", seed, first) for one in (ours, theirs)]
        assert to_dict(runs[0]) == to_dict(runs[1])
    assert ours.seeds[0] == theirs.seeds[0]  # it chooses the recipe


OTHERS = {"max_train_examples": 7, "seed": 7, "data": "sample", "precision": "bfloat16"}


@pytest.mark.parametrize("changes", [{}, *({key: value} for key, value in OTHERS.items())])
def test_teachers_of_other_examples_leave_those_of_the_study_as_they_are(changes):
    study = load_profile("mini")
    known = {"config": study["task"].model_copy(update=changes), "settings": study}
    known |= {"teachers": ["bert-cased"], "chosen": lambda model: {}}
    places = after_cells("11-distil-at-task", "11-12", **known).places
    assert places["bert-cased"] == f"{'task' if changes else 'evaluation'}/bert-cased"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pairs_of_seeds_become_values_of_seeds(count):
    """Where a pair has the mean of its two seeds, its seeds come back; two seeds are one pair."""
    cells = functions_of("11-distil-at-task")
    seeds = np.random.default_rng(1).normal(size=(1, count, 7))
    pairs = [seeds[:, [k, m]].mean(axis=1) for k, m in itertools.combinations(range(count), 2)]
    found = cells.by_seed(np.stack(pairs, axis=1), count)
    wanted = seeds if count > 2 else seeds.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_gold_alone_takes_at_least_the_steps_of_the_ensemble(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    config = load_profile("mini")["task"].model_copy(update={"tasks": ["xpos", "di"]})
    epochs = {"xpos": (4, 4000), "di": (3, 3700)}  # and examples without labels
    for task, (number, unlabelled) in epochs.items():
        counts = {"train": {"examples": 1500, "unlabelled": unlabelled}}
        scores = tmp_path / f"mini/task/ensemble/{task}/seed-1/scores.json"
        scores.parent.mkdir(parents=True)
        scores.write_text(json.dumps({"counts": counts, "recipe": {"epochs": number}}))
    places = {"ensemble": "task/ensemble"}
    cells = functions_of("11-distil-at-task", config=config, places=places)
    assert cells.as_long_as("ensemble") == {"xpos": [15], "di": [11]}
    for task, [number] in cells.as_long_as("ensemble").items():
        wanted = epochs[task][0] * (1500 + epochs[task][1])
        assert (number - 1) * 1500 < wanted <= number * 1500


def test_the_variants_heed_the_parameters_of_the_notebook(tmp_path, monkeypatch):
    """The recipe is that of the first seed of notebook 03, whatever seeds the variants have."""
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    study, own = load_profile("mini"), {"seed": 7, "data": "sample", "precision": "bfloat16"}
    config = study["task"].model_copy(update=own | {"seeds": [4, 2], "tasks": ["upos"]})
    cells = functions_of("11-distil-at-task", config=config, settings=study)
    assert cells.settings_for("distil-multi").items() >= (own | {"seeds": [4, 2]}).items()
    scores = tmp_path / "mini/evaluation/distil-multi/upos/seed-1/scores.json"
    scores.parent.mkdir(parents=True)
    recipe = {"learning_rate": 1e-3, "epochs": 3, "pooling": ""}
    scores.write_text(json.dumps({"recipe": recipe}))
    chosen = {"learning_rates": {"upos": [1e-3]}, "epochs": {"upos": [3]}, "pooling": {}}
    assert cells.chosen("distil-multi") == chosen
