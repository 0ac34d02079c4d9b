"""The tables of a study, from made-up prediction tables.

Intervals, comparisons, loyalty with floor and chance, calibration, and the text of the summary.
"""

import json
import os
import shutil
import textwrap
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from cells import after_cells, functions_of
from oracles import bootstrap_difference, bootstrap_scores, expected_calibration_error, table_of
from sklearn.metrics import cohen_kappa_score, confusion_matrix, recall_score

from rolib.analysis import agreement, study, tables, uncertainty
from rolib.analysis import loyalty as loyalties
from rolib.analysis.loyalty import probability_loyalty
from rolib.config import ROOT, AblationConfig, AnalyseConfig, BudgetConfig
from rolib.evaluation.metrics import score_predictions
from rolib.evaluation.predictions import Predictions
from rolib.measures import TASKS
from rolib.profiles import load, load_profile
from rolib.runs import write_parameters

REPORT = functions_of("06-report-results")
NER_TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
SIZES = {
    "upos": (12, 6, 5),
    "xpos": (12, 6, 9),
    "ner": (11, 6, 5),
    "sapn": (30, 1, 2),
    "sar": (30, 1, 4),
    "di": (25, 1, 2),
}
SIZES |= {"sts": (20, 1, 0)}  # examples, words in each at most, labels
TEACHERS = {
    "distil-cased": ["bert-cased"],
    "distil-uncased": ["bert-uncased"],
    "distil-multi": ["bert-cased", "bert-uncased"],
}
OBJECTIVES = ["mlm", "init-only", "truncated", "longer"]
STUDENTS = [*TEACHERS, "distil-cased-seed-2", "distil-uncased-mlm"]
STUDENTS += [f"distil-cased-{objective}" for objective in OBJECTIVES]
RANDOM = ["bert-cased", "bert-uncased", "distil-cased", "distil-uncased"]
MODELS = ["bert-cased", "bert-uncased", *STUDENTS, *[f"{name}-random" for name in RANDOM]]
METHODS = [name for name in MODELS if name != "distil-cased-seed-2"] + ["bag-of-words"]


def objective_of(name):
    return next((one for one in OBJECTIVES if f"-{one}" in name), "distill")


def write_study(folder, seeds=(1, 2, 3), sizes=SIZES):
    """A profile's folder as notebooks 01 to 03 leave it; most predictions are right."""
    for name in ["bert-cased", "bert-uncased", *STUDENTS]:
        run = folder / ("teachers" if name.startswith("bert") else "students") / name
        run.mkdir(parents=True)
        objective = objective_of(name)
        teachers = TEACHERS.get(name.removesuffix("-seed-2").removesuffix(f"-{objective}"), [])
        settings = {"teachers": dict.fromkeys(teachers, 1.0), "objective": objective}
        run.joinpath("config.yaml").write_text(
            yaml.safe_dump(settings | {"num_layers": 4 - 2 * bool(teachers)})
        )
    for task, (examples, words, labels) in sizes.items():
        rng = np.random.default_rng(len(task) * 1000 + examples)
        lengths = rng.integers(1, words + 1, examples)
        units = [
            (f"s{number}", position)
            for number, length in enumerate(lengths)
            for position in range(length)
        ]
        table = pd.DataFrame(units, columns=["example", "position"]).astype({"position": "int32"})
        names = NER_TAGS if task == "ner" else [f"L{number:03}" for number in range(labels)]
        truth = (
            rng.uniform(0, 5, len(units)).round(1)
            if task == "sts"
            else rng.geometric(0.4, len(units)).clip(1, labels) - 1
        )
        for skill, model in enumerate(["bag-of-words", *reversed(MODELS)]):
            for seed in seeds[:1] if model == "bag-of-words" else seeds:
                run = folder / "evaluation" / model / task / f"seed-{seed}"
                write_run(
                    run,
                    task,
                    seed,
                    table,
                    names,
                    truth,
                    1 + skill / 10,
                    np.random.default_rng([skill, seed, examples]),
                )


def write_run(run, task, seed, table, names, truth, skill, rng):
    run.mkdir(parents=True)
    if task == "sts":
        gold, predicted = truth, truth / 2 + rng.normal(size=len(truth)) / skill
        probabilities = [np.zeros(0, dtype=np.float32)] * len(truth)
    else:
        logits = rng.gumbel(size=(len(truth), len(names))) * 1.5
        logits[np.arange(len(truth)), truth] += 2 * skill + 1.5 * np.log(len(names))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gold, predicted = np.array(names)[truth], np.array(names)[probabilities.argmax(axis=1)]
        probabilities = list(probabilities.astype(np.float32))
    table = table.assign(gold=gold, predicted=predicted, probabilities=probabilities)
    table.to_parquet(run / "predictions.parquet", compression="zstd", index=False)
    test = score_predictions(TASKS[task], table)
    facts = {
        "task": task,
        "seed": seed,
        "headline": TASKS[task].headline,
        "test": test,
        "labels": names,
    }
    run.joinpath("scores.json").write_text(json.dumps(facts))
    run.joinpath("manifest.json").write_text(json.dumps({"notes": []}))


def add_foreign(evaluation):
    """Put into a study what is no run of its models: all that is computed must stay the same."""
    run = evaluation / "distil-cased" / "upos" / "seed-1"
    for place in ("backup/upos/seed-1", "distil-cased/drafts/seed-1", "distil-cased/upos/seed-old"):
        shutil.copytree(run, evaluation / place)
        (evaluation / place / "manifest.json").write_text('{"notes": ["of another study"]}')
    (evaluation / "notes.txt").write_text("what I saw")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_study(root / "toy")
    add_foreign(root / "toy" / "evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLIB_RUNS", str(root))
        yield AnalyseConfig(profile="toy", seed=3, data="sample", resamples=300)


@pytest.fixture(scope="module")
def loyalty(config):
    return agreement.loyalty_tables(config)


@pytest.fixture(scope="module")
def scored(config):
    return tables.score_tables(config)


def predictions(config, model, task, seed):
    if model == "ensemble":
        teachers = [
            study.read_runs(config, [name], task, [seed])[0][0]
            for name in ("bert-cased", "bert-uncased")
        ]
        scores = config.folder / "evaluation" / "bert-cased" / task / f"seed-{seed}" / "scores.json"
        return table_of(
            loyalties.ensemble_predictions(teachers, json.loads(scores.read_text())["labels"])
        )
    return table_of(study.read_runs(config, [model], task, [seed])[0][0])


def compare_predictions(task, teacher, student):
    """Of prediction tables."""
    return loyalties.compare_predictions(task, Predictions.of(teacher), Predictions.of(student))


def chance_loyalty(task, teacher, student, seed=0):
    """Of prediction tables."""
    return loyalties.chance_loyalty(task, Predictions.of(teacher), Predictions.of(student), seed)


def one(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# --- scores and comparisons -----------------------------------------------------------------------


def test_members_stand_in_reading_order(config):
    everyone = study.members(config)
    *keys, last = [
        (row.teacher, [*study.ROLES].index(row.role), row.model) for row in everyone.itertuples()
    ]
    assert keys == sorted(keys) and list(everyone["model"]) != sorted(everyone["model"])
    assert last[0] == "" and everyone["model"].iloc[-1] == "bag-of-words"


def test_a_method_has_a_row_and_its_checkpoints(config):
    everyone = study.members(config).set_index("model")
    assert everyone["checkpoints"]["distil-cased"] == ["distil-cased", "distil-cased-seed-2"]
    single = everyone["checkpoints"].drop("distil-cased")
    assert single.tolist() == [[name] for name in single.index]
    roles = everyone["role"].to_dict()
    assert {name: roles[f"distil-cased-{name}"] for name in OBJECTIVES} == {
        name: f"{name} control" for name in OBJECTIVES
    }
    assert roles["distil-cased"] == "student" and roles["bag-of-words"] == "bag of words"
    assert everyone["layers"]["distil-cased-longer"] == 4  # it is the teacher
    assert set(roles.values()) == set(study.ROLES) and all(study.ROLES.values())
    note = study.checkpoint_note(study.members(config))
    assert "distil-multi" in note and "distil-cased," not in note and "random" not in note


def test_seeds_of_two_digits_stand_after_those_of_one(config, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    for name in ("distil-cased-mlm-seed-10", "distil-cased-mlm-seed-2", "distil-cased-mlm"):
        run = tmp_path / "toy" / "students" / name
        run.mkdir(parents=True)
        run.joinpath("config.yaml").write_text(
            yaml.safe_dump({"teachers": {"t": 1.0}, "objective": "mlm", "num_layers": 2})
        )
        (tmp_path / "toy" / "evaluation" / name).mkdir(parents=True)
    [row] = study.members(config).itertuples()
    assert row.model == "distil-cased-mlm" and row.role == "mlm control"
    assert row.checkpoints == [row.model, f"{row.model}-seed-2", f"{row.model}-seed-10"]


def test_a_folder_that_is_no_run_of_the_study_is_left_out(config):
    assert set(study.members(config)["model"]) == set(METHODS)
    seeds, measures = study.present(config)
    assert seeds == [1, 2, 3] and list(measures) == list(TASKS)
    runs = study.read_scores(config)[["model", "checkpoint", "task", "seed"]].drop_duplicates()
    assert len(runs) == len(MODELS) * 7 * 3 + 7
    assert study.data_notes(config) == [study.SAMPLE_WARNING]


def test_one_teacher_has_no_ensemble(config):
    both = ["bert-cased", "bert-uncased"]
    for known, extra in ((both, []), ([*both, "ensemble"], ["ensemble"])):
        for member in study.members(config).query("role == 'student'").itertuples():
            assert agreement.references_of(member, known) == member.teachers + extra
            assert agreement.references_of(member, []) == []


def test_scores_are_means_over_seeds_with_the_bootstrap_interval(config, scored):
    scores, _ = scored
    assert set(scores["model"]) == {*METHODS, "ensemble"} and set(scores["task"]) == {
        *SIZES,
        "mean",
    }
    for model, task, score in [
        ("distil-multi", "xpos", "macro_f1"),
        ("ensemble", "ner", "strict_f1_micro"),
        ("ensemble", "sts", "pearson"),
    ]:
        runs = {seed: predictions(config, model, task, seed) for seed in (1, 2, 3)}
        values = [score_predictions(TASKS[task], table)[score] for table in runs.values()]
        row = one(scores, model=model, task=task, score=score)
        assert row["value"] == pytest.approx(np.mean(values)) and row["sd"] == pytest.approx(
            np.std(values, ddof=1)
        )
        draws = bootstrap_scores(TASKS[task], runs, 300, seed=3)[score]
        assert (row["low"], row["high"]) == pytest.approx(uncertainty.interval(draws))
        assert row["seeds"] == 3 and row["examples"] == SIZES[task][0] and row["checkpoints"] == 1
    runs = [
        score_predictions(TASKS["sar"], predictions(config, name, "sar", seed))["macro_f1"]
        for name in ("distil-cased", "distil-cased-seed-2")
        for seed in (1, 2, 3)
    ]
    row = one(scores, model="distil-cased", task="sar", score="macro_f1")
    assert row["value"] == pytest.approx(np.mean(runs)) and row["checkpoints"] == 2
    assert one(scores, model="bag-of-words", task="sar", score="macro_f1")["seeds"] == 1
    mine = scores[(scores["model"] == "bert-cased") & scores["headline"]].set_index("task")["value"]
    assert mine["mean"] == pytest.approx(mine.drop("mean").mean())


def test_the_ensemble_answers_with_the_mean_probabilities(config):
    sides = [predictions(config, name, "sar", 2) for name in ("bert-cased", "bert-uncased")]
    both = predictions(config, "ensemble", "sar", 2)
    for ours, theirs, mean, label in zip(
        *(side["probabilities"] for side in sides),
        both["probabilities"],
        both["predicted"],
        strict=True,
    ):
        expected = [(a + b) / 2 for a, b in zip(ours, theirs, strict=True)]
        assert mean == pytest.approx(expected) and label == f"L{int(np.argmax(expected)):03}"


def test_each_of_two_students_of_a_teacher_is_compared_with_its_own_controls():
    rows = [("big", "teacher", ["big"], 4), ("both", "student", ["big", "small"], 2)]
    for name in ("a", "b"):
        rows += [(name, "student", ["big"], 2), (f"{name}-mlm", "mlm control", ["big"], 2)]
        rows += [(f"{name}-random", "random control", ["big"], 2)]
    columns = ["model", "role", "teachers", "layers"]
    everyone = pd.DataFrame(rows, columns=columns).assign(teacher="big")
    pairs = {pair[:2] for pair in study.compared(everyone)}
    assert pairs == {
        ("a", "big"),
        ("a", "a-mlm"),
        ("a", "a-random"),
        ("b", "big"),
        ("b", "b-mlm"),
        ("b", "b-random"),
        ("both", "big"),
        ("both", "a-mlm"),
        ("both", "a-random"),
        ("both", "a"),
        ("both", "b"),
    }


def test_comparisons_are_paired_and_corrected_over_the_measures(config, scored):
    scores, comparisons = scored
    pairs = set(zip(comparisons["model"], comparisons["against"], strict=True))
    first = [f"distil-cased-{name}" for name in ("longer", "init-only", "truncated", "mlm")]
    others = ["distil-cased-random", "bert-cased", "bag-of-words"]
    expected = {("distil-cased", other) for other in first + others}
    expected |= {("distil-multi", other) for other in first + others}  # the first teacher's
    expected |= {("distil-multi", other) for other in ("distil-cased", "distil-uncased")}
    uncased = ("bert-uncased", "distil-uncased-mlm", "distil-uncased-random", "bag-of-words")
    expected |= {("distil-uncased", other) for other in uncased}
    for teacher in ("bert-cased", "bert-uncased"):
        expected |= {(teacher, f"{teacher}-random"), (teacher, "bag-of-words")}
    assert pairs == expected
    assert comparisons.groupby("model")["checkpoints"].first().to_dict() == {
        **dict.fromkeys(["bert-cased", "bert-uncased", "distil-multi", "distil-uncased"], 1),
        "distil-cased": 2,
    }
    sides = [
        {seed: predictions(config, name, "sapn", seed) for seed in (1, 2, 3)}
        for name in ("distil-multi", "distil-uncased")
    ]
    draws = bootstrap_difference(TASKS["sapn"], *sides, 300, seed=3)[TASKS["sapn"].headline]
    row = one(comparisons, model="distil-multi", against="distil-uncased", task="sapn")
    assert (row["low"], row["high"]) == pytest.approx(uncertainty.interval(draws))
    assert row["p"] == uncertainty.p_value(draws)
    headline = scores[scores["headline"]].set_index(["model", "task"])["value"]
    assert row["difference"] == pytest.approx(
        headline["distil-multi", "sapn"] - headline["distil-uncased", "sapn"]
    )
    assert row["kept"] == pytest.approx(
        headline["distil-multi", "sapn"] / headline["distil-uncased", "sapn"]
    )
    ours, theirs = (
        bootstrap_scores(TASKS["sapn"], side, 300, seed=3)[TASKS["sapn"].headline] for side in sides
    )
    shares = uncertainty.interval(uncertainty.ratio(ours, theirs))
    assert (row["kept_low"], row["kept_high"]) == pytest.approx(shares)
    for mean in (True, False):  # one family each
        family = comparisons[(comparisons["task"] == "mean") == mean].sort_values("p")
        by_hand = np.maximum.accumulate(
            [min(1, (len(family) - rank) * p) for rank, p in enumerate(family["p"])]
        )
        assert family["p_holm"].to_numpy() == pytest.approx(by_hand)
        assert len(family) == len(expected) * (1 if mean else 7)


def test_a_difference_holds_only_after_the_correction():
    def draws(below):  # the value 0.1; of 999 draws so many below 0: p = 2 (below + 1) / 1000
        return np.repeat([0.1, -0.1, 0.1], [1, below, 999 - below])[None, None]

    gaps = {"upos": draws(9), "xpos": draws(9), "ner": draws(0), "mean": draws(19)}
    headlines = {("t", task): np.zeros((1, 1, 1000)) for task in gaps} | {
        ("s", task): values for task, values in gaps.items()
    }
    table = tables._compare([("s", "t", "teacher")], headlines).set_index("task")
    assert table["p"].to_dict() == pytest.approx(
        {"upos": 0.02, "xpos": 0.02, "ner": 0.002, "mean": 0.04}
    )
    assert table["p_holm"].to_dict() == pytest.approx(
        {"upos": 0.04, "xpos": 0.04, "ner": 0.006, "mean": 0.04}
    )
    assert table["holds"].all()
    headlines["s", "upos"] = headlines["s", "xpos"] = draws(14)  # p = 0.03, corrected 0.06
    table = tables._compare([("s", "t", "teacher")], headlines).set_index("task")
    assert (table["p"] < 0.05).all() and table["holds"].to_dict() == {
        "upos": False,
        "xpos": False,
        "ner": True,
        "mean": True,
    }


def test_tables_print_half_intervals_and_mark_what_holds():
    row = {
        "role": "student",
        "model": "s",
        "headline": True,
        "value": 0.917,
        "low": 0.91,
        "high": 0.922,
    }
    scores = pd.DataFrame(
        [row | {"task": "upos"}, row | {"task": "sar"}, row | {"task": "sar", "headline": False}]
    )
    gap = {
        "model": "s",
        "against": "t",
        "role": "teacher",
        "difference": -0.0041,
        "low": -0.012,
        "high": 0.004,
    }
    comparisons = pd.DataFrame(
        [gap | {"task": "upos", "holds": False}, gap | {"task": "sar", "holds": True}]
    )
    assert REPORT.score_table(scores, comparisons).iloc[0].tolist() == [
        "student",
        "s",
        "91.7 ± 0.6",
        "91.7 ± 0.6*",
    ]
    assert REPORT.comparison_table(comparisons).iloc[0].tolist() == [
        "s",
        "t",
        "teacher",
        "-0.4 ± 0.8",
        "-0.4 ± 0.8*",
    ]
    other = comparisons.assign(role="mlm control")
    assert (
        REPORT.score_table(scores, other).iloc[0]["sar"] == "91.7 ± 0.6"
    )  # only the teacher gives a star
    facts = {"teacher": "t", "chance": 0.5, "floor": np.nan, "holds": False}
    assert (
        tables.loyalty_table(scores[:1].assign(**facts)).iloc[0]["upos"]
        == "0.917 ± 0.006 (0.50; –)"
    )


def test_too_many_tests_for_the_resamples_are_named():
    table = pd.DataFrame({"task": ["upos"] * 10 + ["mean"], "p": [2 / 400] * 11})
    assert not tables.corrected(table)["holds"][:10].any()  # 10 * 2 / 400 = 0.05, not below it
    note = tables.resamples_note(table, 399)
    assert "has 10 tests" in note and note.endswith("Set resamples to 400 or more.")
    assert tables.resamples_note(table, 400) == ""
    assert tables.corrected(table.assign(p=2 / 401))["holds"].all()
    table.loc[0, "p"] = np.nan  # no test
    assert tables.resamples_note(table, 399) == ""
    assert tables.corrected(table)["holds"].tolist() == [False] + [True] * 10


def summary_tables():
    """The tables of `summary_text`: a teacher, two students, their controls of random weights."""
    score = {"task": "mean", "headline": True, "role": "student", "teacher": "bert-cased"}
    means = {"bert-cased": 0.8, "distil-cased": 0.72, "distil-multi": 0.76, "weights": 0.4}
    scores = [
        score | {"model": model, "value": value, "low": value - 0.01, "high": value + 0.03}
        for model, value in means.items()
    ]
    scores[0]["role"], scores[3]["role"] = "teacher", "random control"
    scores += [scores[1] | {"task": "upos", "low": 0.7}]  # no mean
    pair = {"against": "weights", "role": "random control", "difference": 0.1, "holds": True}
    first, second = pair | {"model": "distil-cased"}, pair | {"model": "distil-multi"}
    comparisons = [
        first | {"task": "upos"},
        first | {"task": "di", "holds": False},
        first | {"task": "sar", "difference": -0.1},
        first | {"task": "mean", "holds": False},  # no measure
        second | {"task": "upos"},
        second | {"task": "di"},
        second | {"task": "sar", "holds": False},
        second | {"task": "mean"},
        pair | {"model": "bert-cased", "task": "mean"},
        first | {"against": "bert-cased", "role": "teacher", "task": "di", "holds": False},
    ]
    bag = {"against": "bag-of-words", "role": "bag of words"}
    comparisons += [
        first | bag | {"task": "upos"},
        second | bag | {"task": "upos"},
        first | bag | {"task": "di"},
        second | bag | {"task": "di", "holds": False},
        first | bag | {"task": "sts", "difference": -0.1},  # the bag of words is better
    ]
    label = {"model": "distil-cased", "teacher": "bert-cased", "measure": "label_loyalty"}
    label |= {"task": "mean", "seeds": 3}
    loyalty = [
        label | {"value": 0.85, "chance": 0.4},
        label | {"value": 0.8, "chance": 0.3, "task": "upos"},
        label | {"measure": "span_loyalty", "value": 0.0, "chance": 0.0},
        label | {"teacher": "ensemble", "value": 0.0, "chance": 0.0},
        label | {"model": "distil-multi", "value": 0.7, "chance": 0.2},
    ]
    speed = {"batch_size": 16, "parameters": 10_000, "size_ratio": 1.0, "speed_up": 1.0}
    quick = {"parameters": 6500, "size_ratio": 0.65, "speed_up": 1.94}
    tables_ = {
        "scores": scores,
        "comparisons": comparisons,
        "loyalty": loyalty,
        "speed": [
            speed | {"model": "bert-cased"},
            speed | quick | {"model": "distil-cased"},
            speed | quick | {"model": "distil-cased", "batch_size": 1, "speed_up": 9.0},
            speed | quick | {"model": "distil-multi", "speed_up": 2.26},
        ],
    }
    return {name: pd.DataFrame(rows) for name, rows in tables_.items()}


def test_summary_text_by_hand(config):
    """Means over the measures, beside the first teacher and beside random weights."""
    text = REPORT.summary_text(config, summary_tables(), "Un ___. bert-cased: om")
    assert [" ".join(line.split()) for line in text.split("\n")] == [
        "Study toy: mean score in percent ± half the 95 % interval (* differs from random "
        "weights), label",
        "loyalty (chance level), parameters, times the teacher's speed.",
        "model score random weights kept loyalty size speed",
        "bert-cased 80.0 ± 2.0* 40.0 10,000 1.0",
        "distil-cased 72.0 ± 2.0 40.0 90% of bert-cased 0.85 (0.40) 6,500 (-35%) 1.9",
        "distil-multi 76.0 ± 2.0* 40.0 95% of bert-cased 0.70 (0.20) 6,500 (-35%) 2.3",
        "Above random weights, as far as it holds: all on UPOS; some on DI; none on SAR.",
        "Below random weights, as far as it holds: some on SAR; none on UPOS DI.",
        "Above a bag of words, as far as it holds: all on UPOS; some on DI; none on STS.",
        "Below a bag of words, as far as it holds: all on STS; none on UPOS DI.",
        "Un ___. bert-cased: om",
        *[" ".join(line.split()) for line in textwrap.wrap(study.SAMPLE_WARNING, 100)],
        f"Report: {config.folder / 'report.html'}",
        "",
    ]
    assert all(len(line) <= 100 for line in text.split("\n")[:-2])  # the last line is a path


def test_the_summary_says_that_one_seed_is_shared(config):
    found = summary_tables()
    told = "One fine-tuning seed: student and teacher share it"
    assert told not in REPORT.summary_text(config, found, "")
    found["loyalty"]["seeds"] = 1
    assert told in REPORT.summary_text(config, found, "")


def test_the_summary_says_which_control_was_not_measured(config):
    found = summary_tables()
    found["comparisons"] = found["comparisons"].query("model != 'bert-cased'")
    text = REPORT.summary_text(config, found, "Un ___. bert-cased: om")
    assert "bert-cased 80.0 ± 2.0 not measured" in " ".join(text.split()) and "nan" not in text


def test_a_gate_is_passed_missed_or_not_measured():
    loss = {"held_out_mlm": 4.0, "frequency_baseline": 6.0, "left_plateau": True}
    means = {"t": 80.0, "t-random": 70.0, "u": 60.0, "u-random": 70.0, "v": 60.0}
    rows = [REPORT.gate_row(name, means, loss) for name in ("t", "u", "v")]
    assert [row["beats random"] for row in rows] == ["yes", "no", "not measured"]
    assert [row["left the plateau"] for row in rows] == ["yes"] * 3


# --- loyalty --------------------------------------------------------------------------------------


OTHERS = [(k, other) for k in (1, 2, 3) for other in (1, 2, 3) if other != k]
FOLDERS = {"distil-cased": ["distil-cased", "distil-cased-seed-2"]}


def all_pairs(config, model, teacher, task):
    """Each run of a model's checkpoints with each run of the teacher at another seed."""
    found = {}
    for folder in FOLDERS.get(model, [model]):
        for k, other in OTHERS:
            run = predictions(config, folder, task, k)
            found[folder, k, other] = (predictions(config, teacher, task, other), run)
    return found


@pytest.mark.parametrize(
    "model, teacher, task",
    [
        ("distil-multi", "ensemble", "ner"),
        ("distil-cased", "bert-cased", "upos"),
        ("distil-uncased", "bert-uncased", "sts"),
        ("distil-cased-mlm", "bert-cased", "sar"),
    ],
)
def test_loyalty_is_the_mean_over_pairs_of_other_seeds(config, loyalty, model, teacher, task):
    pairs = all_pairs(config, model, teacher, task)
    runs = pd.DataFrame(
        {key: compare_predictions(TASKS[task], *pair) for key, pair in pairs.items()}
    )
    # The floor of the ensemble: how near its single teachers are to it.
    alone = ["bert-cased", "bert-uncased"] if teacher == "ensemble" else [teacher]
    again = [pair for name in alone for pair in all_pairs(config, name, teacher, task).values()]
    floor = pd.DataFrame([compare_predictions(TASKS[task], *pair) for pair in again])
    for measure, values in runs.T.items():
        row = one(loyalty["loyalty"], model=model, teacher=teacher, task=task, measure=measure)
        by_run = values.groupby(level=[0, 1]).mean()
        assert row["value"] == pytest.approx(by_run.mean())
        assert row["sd"] == pytest.approx(by_run.std())
        assert row["floor"] == pytest.approx(floor[measure].mean())
        assert row["floor_gap"] == pytest.approx(values.mean() - floor[measure].mean())
        assert row["own"] == (teacher != "ensemble")
        assert row["checkpoints"] == len(FOLDERS.get(model, [model])) and row["seeds"] == 3
        tested = measure in agreement.TESTED and model != "distil-cased-mlm"
        assert pd.notna(row["p"]) == tested


def test_interval_floor_and_gap_against_plain_loops(config, loyalty):
    """The bootstrap of label loyalty written out, with the weights of rolib's resamples."""
    model, teacher, examples = "distil-cased", "bert-cased", SIZES["sar"][0]
    agree = {
        pair: (theirs["predicted"] == ours["predicted"]).to_numpy()
        for pair, (theirs, ours) in all_pairs(config, model, teacher, "sar").items()
    }
    agree |= {
        ("floor", k, other): (theirs["predicted"] == ours["predicted"]).to_numpy()
        for (_, k, other), (theirs, ours) in all_pairs(config, teacher, teacher, "sar").items()
    }
    weights = uncertainty.resample_weights(examples, 300, (3, examples, 0))

    def draws(folders):
        """(checkpoints, seeds, resamples), one number at a time."""
        found = np.empty((len(folders), 3, 300))
        for place in np.ndindex(found.shape):
            folder, k, draw = folders[place[0]], place[1] + 1, place[2]
            same = [np.average(agree[folder, k, o], weights=weights[draw]) for o in {1, 2, 3} - {k}]
            found[place] = np.mean(same)
        return found

    mine, floor = draws(FOLDERS[model]), draws(["floor"])
    row = one(loyalty["loyalty"], model=model, teacher=teacher, task="sar", measure="label_loyalty")
    assert (row["low"], row["high"]) == pytest.approx(uncertainty.interval(mine))
    assert (row["floor_low"], row["floor_high"]) == pytest.approx(uncertainty.interval(floor))
    assert (row["gap_low"], row["gap_high"]) == pytest.approx(uncertainty.interval(mine - floor))
    assert row["p"] == pytest.approx(uncertainty.p_value(mine - floor))


def test_a_student_that_is_its_teacher_lies_on_the_floor(config, tmp_path, monkeypatch):
    """The fair comparison: at equal seeds its loyalty would be 1, above the floor.

    To the ensemble it is as loyal as this teacher; the floor is the mean over the teachers.
    """
    write_study(tmp_path / "toy", sizes={"sar": SIZES["sar"]})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    evaluation = tmp_path / "toy" / "evaluation"
    shutil.rmtree(evaluation / "distil-uncased")
    shutil.copytree(evaluation / "bert-uncased", evaluation / "distil-uncased")
    shutil.rmtree(evaluation / "distil-cased-seed-2")
    shutil.rmtree(evaluation / "distil-cased")
    shutil.copytree(evaluation / "bert-cased", evaluation / "distil-cased")
    table = agreement.loyalty_tables(config)["loyalty"]
    both = table.query("model in ('distil-cased', 'distil-uncased') and teacher == 'ensemble'")
    gaps = both.groupby(["task", "measure"])["floor_gap"].agg(["size", "sum"])
    assert (gaps["size"] == 2).all() and gaps["sum"].abs().max() < 1e-12
    rows = table.query("model == 'distil-uncased' and teacher == 'bert-uncased'")
    assert rows["floor_gap"].abs().max() < 1e-12 and rows["floor"].iloc[0] < 1
    assert rows[["gap_low", "gap_high"]].abs().max(axis=None) < 1e-12
    assert not rows["holds"].any() and set(rows["p"].dropna()) == {1.0}


def test_tests_against_the_floor_are_corrected_together(loyalty):
    table = loyalty["loyalty"]
    assert set(table.loc[table["p"].notna(), "role"]) == {"student"}
    for mean in (True, False):
        family = table[table["p"].notna() & ((table["task"] == "mean") == mean)]
        assert family["p_holm"].to_numpy() == pytest.approx(uncertainty.holm(family["p"]))
    assert (table["holds"] == (table["p_holm"] < 0.05)).all()


def test_the_mean_over_the_measures_has_paired_draws(loyalty):
    table = loyalty["loyalty"].query("model == 'distil-multi' and teacher == 'ensemble'")
    for measure, tasks in (("label_loyalty", 6), ("lost", 6), ("regression_loyalty", 1)):
        rows = table[table["measure"] == measure].set_index("task")
        mean, parts = rows.loc["mean"], rows.drop("mean")
        assert len(parts) == tasks
        for name in ("value", "floor", "floor_gap"):
            assert mean[name] == pytest.approx(parts[name].mean())
        assert mean["low"] <= mean["value"] <= mean["high"]
        # narrower than if all measures erred together, which the mean of the ends would say
        width = (parts["high"] - parts["low"]).mean()
        assert mean["high"] - mean["low"] == pytest.approx(width) or tasks > 1
        assert tasks == 1 or mean["high"] - mean["low"] < width


def test_chance_is_that_of_other_seeds(config, loyalty):
    row = one(
        loyalty["loyalty"],
        model="distil-cased",
        teacher="bert-cased",
        task="upos",
        measure="label_loyalty",
    )
    pairs = all_pairs(config, "distil-cased", "bert-cased", "upos")
    values = []
    for (_, k, other), pair in pairs.items():
        if other == min({1, 2, 3} - {k}):  # one of the teacher's runs
            values.append(chance_loyalty(TASKS["upos"], *pair, seed=3)["label_loyalty"])
    assert len(values) == 6 and row["chance"] == pytest.approx(np.mean(values))


def test_which_teachers_each_model_is_compared_with(loyalty):
    pairs = loyalty["loyalty"].groupby("model")["teacher"].agg(set).to_dict()
    assert pairs["distil-multi"] == {"bert-cased", "bert-uncased", "ensemble"}
    for name in ("distil-cased", *[f"distil-cased-{one}" for one in (*OBJECTIVES, "random")]):
        assert pairs[name] == {"bert-cased", "ensemble"}
    teachers = {"bert-cased", "bert-uncased", "ensemble", "bag-of-words"}
    assert pairs["bert-cased-random"] == {"ensemble"} and not teachers & set(pairs)


def test_one_seed_has_no_floor(config, tmp_path, monkeypatch):
    write_study(tmp_path / "toy", seeds=(4,), sizes={"sar": SIZES["sar"]})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    found = agreement.loyalty_tables(config)
    table = found["loyalty"]
    columns = ["floor", "floor_gap", "gap_low", "p", "p_holm"]
    assert table[columns].isna().all(axis=None) and not table["holds"].any()
    assert table["value"].notna().all()
    row = one(
        table, model="distil-multi", teacher="bert-cased", task="sar", measure="label_loyalty"
    )
    ours, theirs = (predictions(config, name, "sar", 4) for name in ("distil-multi", "bert-cased"))
    assert row["value"] == (ours["predicted"] == theirs["predicted"]).mean()  # at the same seed
    assert set(found["disagreements"]["teacher_seed"]) == {4}
    text = tables.loyalty_table(table[table["measure"] == "label_loyalty"])
    assert text["sar"].str.endswith("; –)").all()


def test_chance_against_plain_loops_and_kappa(config):
    ours, theirs = (predictions(config, name, "upos", 1) for name in ("distil-cased", "bert-cased"))
    chance = chance_loyalty(TASKS["upos"], theirs, ours)
    pairs = [(a == b) for a in theirs["predicted"] for b in ours["predicted"]]
    assert chance["label_loyalty"] == pytest.approx(np.mean(pairs))
    agreed = (theirs["predicted"] == ours["predicted"]).mean()
    kappa = (agreed - chance["label_loyalty"]) / (1 - chance["label_loyalty"])
    assert kappa == pytest.approx(cohen_kappa_score(theirs["predicted"], ours["predicted"]))
    every = [
        probability_loyalty([p], [q])
        for p in theirs["probabilities"]
        for q in ours["probabilities"]
    ]
    draws = [
        chance_loyalty(TASKS["upos"], theirs, ours, seed)["probability_loyalty"]
        for seed in range(40)
    ]
    assert np.mean(draws) == pytest.approx(np.mean(every), abs=0.03)
    assert 1 - chance["probability_loyalty_base2"] == pytest.approx(
        (1 - chance["probability_loyalty"]) / np.log(2) ** 0.5
    )
    assert chance == chance_loyalty(TASKS["upos"], theirs, ours)  # seeded
    ours, theirs = (predictions(config, name, "sts", 1) for name in ("distil-cased", "bert-cased"))
    gaps = [
        abs(min(max(a, 0), 5) - min(max(b, 0), 5)) / 5
        for a in theirs["predicted"]
        for b in ours["predicted"]
    ]
    chance = chance_loyalty(TASKS["sts"], theirs, ours)
    assert (
        chance["regression_loyalty"] == pytest.approx(1 - np.mean(gaps))
        and chance["regression_loyalty_pearson"] == 0
    )
    assert chance["regression_loyalty_rmse"] == pytest.approx(1 - np.mean(np.square(gaps)) ** 0.5)


def test_classes_and_confusion_against_scikit_learn(config, loyalty):
    pairs = all_pairs(config, "distil-multi", "bert-uncased", "xpos").values()
    theirs, ours = (pd.concat(side)["predicted"].to_numpy() for side in zip(*pairs, strict=True))
    mine = {
        name: loyalty[name].query(
            "model == 'distil-multi' and teacher == 'bert-uncased' and task == 'xpos'"
        )
        for name in ("classes", "confusion")
    }
    labels = sorted({*theirs, *ours})
    matrix = mine["confusion"].pivot(index="teacher_label", columns="student_label", values="count")
    matrix = matrix.reindex(index=labels, columns=labels).fillna(0).to_numpy()
    assert (matrix == confusion_matrix(theirs, ours, labels=labels)).all()
    recall = recall_score(theirs, ours, labels=mine["classes"]["label"], average=None)
    assert mine["classes"]["value"].to_numpy() == pytest.approx(recall)
    assert mine["classes"]["units"].sum() == pytest.approx(len(theirs) / 6)
    assert (mine["classes"]["low"] <= mine["classes"]["value"] + 1e-9).all() and (
        mine["classes"]["high"] >= mine["classes"]["value"] - 1e-9
    ).all()


def test_disagreements_name_both_labels_and_their_probabilities(config, loyalty):
    ours = predictions(config, "distil-cased", "sar", 1)
    theirs = predictions(config, "bert-cased", "sar", 2)
    apart = loyalty["disagreements"].query("model == 'distil-cased' and task == 'sar'")
    expected = [
        number
        for number in range(len(ours))
        if ours["predicted"][number] != theirs["predicted"][number]
    ]
    assert (
        apart["example"].tolist() == ours["example"][expected].tolist()
        and len(expected) > 1
        and set(apart["seed"]) == {1}
        and set(apart["teacher_seed"]) == {2}
    )
    for row, number in zip(apart.itertuples(), expected, strict=True):
        teacher, student = int(row.teacher_label[1:]), int(row.student_label[1:])
        p, q = theirs["probabilities"][number], ours["probabilities"][number]
        assert [row.gold, row.teacher_label] == [ours["gold"][number], theirs["predicted"][number]]
        assert [
            row.teacher_probability,
            row.teacher_on_student,
            row.student_probability,
            row.student_on_teacher,
        ] == pytest.approx([p[teacher], p[student], q[student], q[teacher]])
    far = loyalty["disagreements"].query("task == 'sts'")
    assert (
        len(far)
        and (far["teacher_label"].astype(float) - far["student_label"].astype(float)).abs().min()
        >= 0.98
    )
    assert far["teacher_probability"].isna().all()


def test_calibration_is_that_of_rolib_uncertainty(config, loyalty):
    runs = [predictions(config, "distil-multi", "di", seed) for seed in (1, 2, 3)]
    errors = [
        expected_calibration_error(run["probabilities"], run["gold"] == run["predicted"])
        for run in runs
    ]
    row = one(tables.calibration_table(loyalty["calibration"]), model="distil-multi", task="di")
    assert row["ece"] == pytest.approx(np.mean(errors))
    assert row["accuracy"] == pytest.approx(
        np.mean([(run["gold"] == run["predicted"]).mean() for run in runs])
    )
    assert row["confidence"] == pytest.approx(
        np.mean([max(p) for run in runs for p in run["probabilities"]])
    )
    assert set(loyalty["calibration"]["task"]) == set(SIZES) - {"sts"}


def test_expected_calibration_error_by_hand():
    # certain and right; certain and wrong; 0.75 and right:
    # gaps |1/2 - 1| of two units and |1 - 3/4| of one
    bins = uncertainty.reliability([1, 1, 0.75], [True, False, True])
    table = tables.calibration_table(
        bins.assign(model="m", checkpoint="m", role="student", task="di", seed=1)
    )
    assert table["ece"].item() == pytest.approx((2 * 0.5 + 0.25) / 3)


def test_written_tables_read_back(config, loyalty):
    tables.write_tables(config, loyalty)
    written = pd.read_csv(config.folder / "loyalty.csv")
    assert written["value"].to_numpy() == pytest.approx(loyalty["loyalty"]["value"].to_numpy())
    pd.testing.assert_frame_equal(
        pd.read_parquet(config.folder / "disagreements.parquet"),
        loyalty["disagreements"],
        check_dtype=False,
    )
    assert not list(config.folder.glob(".*"))


def test_what_is_not_evaluated_yet_is_left_out_and_named(config, tmp_path, monkeypatch):
    write_study(tmp_path / "toy", seeds=(1, 2), sizes={name: SIZES[name] for name in ("sar", "di")})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    whole = tables.score_tables(config)[0]
    place = tmp_path / "toy" / "evaluation"
    (place / "distil-multi/sar/seed-2/predictions.parquet").unlink()
    shutil.rmtree(place / "distil-cased-seed-2/di")
    shutil.rmtree(place / "bert-uncased/di")
    seeds, measures = study.present(config)
    assert seeds == [1, 2] and list(measures) == ["sar", "di"]
    note = study.data_notes(config)[-1]
    assert note.startswith("Left out") and "not evaluated in full" in note
    assert note.endswith("distil-multi (SAR), distil-cased-seed-2 (DI), bert-uncased (DI).")
    scores, comparisons = tables.score_tables(config)
    found = scores.groupby("model")["task"].agg(set).to_dict()
    assert found.pop("distil-multi") == found.pop("bert-uncased") - {"sar"} | {"di"} == {"di"}
    assert found.pop("ensemble") == {"sar"}
    assert set(map(frozenset, found.values())) == {frozenset({"sar", "di", "mean"})}
    keys = {"score": "macro_f1", "task": "sar", "model": "distil-cased"}
    assert one(scores, **keys)["value"] == one(whole, **keys)["value"]
    keys["task"] = "di"
    assert one(scores, **keys)["checkpoints"] == 1 and one(whole, **keys)["checkpoints"] == 2
    single = (
        predictions(config, "distil-cased", "di", 1),
        predictions(config, "distil-cased", "di", 2),
    )
    values = [score_predictions(TASKS["di"], table)["macro_f1"] for table in single]
    assert one(scores, **keys)["value"] == pytest.approx(np.mean(values))
    multi = comparisons[comparisons["model"] == "distil-multi"]
    assert set(multi["task"]) == {"di"} and "bert-uncased" not in set(multi["against"])
    rows = agreement.loyalty_tables(config)["loyalty"].query("measure == 'label_loyalty'")
    assert set(rows.loc[rows["model"] == "distil-uncased", "task"]) == {"sar"}
    assert "ensemble" not in set(rows.loc[rows["task"] == "di", "teacher"])


def test_the_usual_seeds_count(config, tmp_path, monkeypatch):
    """A model with further seeds does not make the others incomplete."""
    write_study(tmp_path / "toy", seeds=(1, 2), sizes={"sar": SIZES["sar"]})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    place = tmp_path / "toy" / "evaluation" / "bert-cased" / "sar"
    shutil.copytree(place / "seed-2", place / "seed-3")
    seeds, measures = study.present(config)
    assert seeds == [1, 2] and list(measures) == ["sar"]
    assert study.data_notes(config) == [study.SAMPLE_WARNING]
    assert set(tables.score_tables(config)[0].query("task == 'sar'")["seeds"]) == {1, 2}


def test_runs_on_other_data_are_refused_and_named(config, tmp_path, monkeypatch):
    write_study(tmp_path / "toy", seeds=(1, 2), sizes={"sar": SIZES["sar"]})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    path = tmp_path / "toy/evaluation/distil-multi/sar/seed-2/predictions.parquet"
    table = pd.read_parquet(path)
    table.assign(gold=table["gold"].to_numpy()[::-1]).to_parquet(path)
    for function, name in (
        (tables.score_tables, "predictions of distil-multi, checkpoint 1, seed 2"),
        (agreement.loyalty_tables, "student's table"),
    ):
        with pytest.raises(ValueError, match=f"the .* and the {name} differ in their gold labels"):
            function(config)
    table[:-1].to_parquet(path)
    for function in (agreement.loyalty_tables, tables.score_tables):
        with pytest.raises(
            ValueError, match=r"example '.*', position 0 is in the .* only \(1 such units\)"
        ):
            function(config)


@pytest.mark.parametrize("share", ["3", "1", "", None])
def test_processes_keep_to_the_core_share_of_the_job(share, monkeypatch):
    asked = []

    class Recorder(study.Parallel):
        def __init__(self, n_jobs, **options):
            asked.append(n_jobs)
            super().__init__(1, **options)

    monkeypatch.setattr(study, "Parallel", Recorder)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if share is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", share)
    measures = {name: pd.DataFrame({"model": [name]}) for name in ("upos", "sar")}
    found = study.by_measure(lambda task, here: (task, *here["model"]), measures)
    assert [*found] == [("upos", "upos"), ("sar", "sar")]
    assert asked == [min(int(share) if share else os.cpu_count(), 2)]


def test_two_processes_give_the_same_tables_and_errors(config, scored, loyalty, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for one, two in zip(scored, tables.score_tables(config), strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    again = agreement.loyalty_tables(config)
    assert again.keys() == loyalty.keys()
    for name, table in loyalty.items():
        pd.testing.assert_frame_equal(table, again[name], check_exact=True)
    with pytest.raises(FileNotFoundError, match=r"no-model.*scores\.json"):
        [*study.by_measure(partial(read_no_model, config), study.present(config)[1])]


def read_no_model(config, task, here):
    study.read_result(config, "no-model", task, 1)


def test_methods_of_several_checkpoints_are_cut_to_equal_numbers(config, tmp_path, monkeypatch):
    """Else their seeds could not be paired: here three checkpoints of one and two of another."""
    write_study(tmp_path / "toy", seeds=(1, 2), sizes={"sar": SIZES["sar"]})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    students, evaluation = tmp_path / "toy" / "students", tmp_path / "toy" / "evaluation"
    for old, new in (
        ("distil-cased-seed-2", "distil-cased-seed-3"),
        ("distil-multi", "distil-multi-seed-2"),
    ):
        shutil.copytree(students / old, students / new)
        shutil.copytree(evaluation / old, evaluation / new)
    here = study.present(config)[1]["sar"].set_index("model")["checkpoints"]
    assert here["distil-cased"] == ["distil-cased", "distil-cased-seed-2"]
    assert here["distil-multi"] == ["distil-multi", "distil-multi-seed-2"]
    scores = tables.score_tables(config)[0].query("task == 'sar'").set_index("model")
    assert scores["checkpoints"]["distil-cased"].eq(2).all()


def test_runs_on_other_examples_than_most_are_named(tmp_path, monkeypatch):
    """Their test split may be the same, so that nothing else would notice."""
    write_study(tmp_path / "toy", seeds=(1, 2), sizes={"sar": SIZES["sar"]})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    config = AnalyseConfig(profile="toy", seed=3, data="sample", resamples=300)
    usual = "data: sample\nseed: 1\nmodel: any\nmax_train_examples: 20\n"
    for run in config.folder.glob("evaluation/*/*/seed-*"):
        own = f"{usual}seeds:\n- {run.name[-1]}\nkeep_models: {run.name[-1]}\n"
        run.joinpath("config.yaml").write_text(own)
    assert study.data_notes(config) == [study.SAMPLE_WARNING]
    odd = config.folder / "evaluation/distil-multi/sar/seed-2/config.yaml"
    odd.write_text(usual.replace("20", "0"))
    [note] = study.data_notes(config)[1:]
    assert "other data or numbers of examples, or another seed: distil-multi." in note


def test_the_report_counts_finished_runs_only(tmp_path):
    finished = ["students/s", "evaluation/s/upos/seed-1"]
    others = ["students/.s-seed-2.partial/checkpoints/step-250", "students/.s-seed-2.partial"]
    for run in finished + others:
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
        (tmp_path / run / "manifest.json").write_text("{}")
    found = REPORT.finished_manifests(tmp_path)
    assert found == sorted(tmp_path / run / "manifest.json" for run in finished)


def test_a_student_of_the_study_stands_in_the_curve_of_budgets_once_it_is_evaluated(
    config, tmp_path, monkeypatch
):
    write_study(tmp_path / "toy", seeds=(1, 2), sizes={"sar": SIZES["sar"]})
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path))
    one = SimpleNamespace(student="distil-cased", tasks=["sar"], folder=config.folder)
    known = {"config": one, "recipe": SimpleNamespace(steps=60)}
    known["trained"] = [1, 2]
    known |= {"evaluation": SimpleNamespace(seeds=[1, 2]), "own": config.folder / "budget"}
    places_of = functions_of("12-vary-budget", **known).places_of
    for number, name in ((1, "distil-cased"), (2, "distil-cased-seed-2")):
        kinds = ("students", "evaluation")
        assert places_of(60, number) == tuple(config.folder / kind / name for kind in kinds)
    home = config.folder / "budget"
    shutil.copytree(
        home.with_name("evaluation") / name, home.with_name("evaluation") / "distil-cased-seed-3"
    )
    for steps, number in ((10, 1), (60, 3)):  # another budget; of an earlier study
        student, runs = places_of(steps, number)
        assert home in student.parents and home in runs.parents
    (config.folder / "evaluation/distil-cased-seed-2/sar/seed-2/scores.json").unlink()
    assert home in places_of(60, 2)[0].parents


# --- notebooks 11 and 12 --------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["upos", "sapn", "sts"])
def test_two_seeds_and_two_teachers_by_a_loop(config, task):
    """Notebook 11: the mean score of each kind of ensemble over all pairs of seeds."""
    names = ["bert-cased", "bert-uncased"]
    cells = functions_of("11-distil-at-task", config=config, teachers=names)
    labels = study.read_result(config, names[0], task, 1)["labels"]
    headline = TASKS[task].headline
    stored = {
        (a, k): study.read_runs(config, [a], task, [k])[0][0] for a in names for k in (1, 2, 3)
    }

    def score(*models):
        mean = loyalties.ensemble_predictions([stored[one] for one in models], labels)
        return 100 * score_predictions(TASKS[task], table_of(mean))[headline]

    wanted = {"one model": [], "two seeds": [], "two teachers": []}
    for k, m in ((1, 2), (1, 3), (2, 3)):
        wanted["one model"] += [score((a, seed)) for a in names for seed in (k, m)]
        wanted["two seeds"] += [score((a, k), (a, m)) for a in names]
        wanted["two teachers"] += [score((names[0], a), (names[1], b)) for a, b in ((k, m), (m, k))]
    found = cells.percent(*cells.ensembles(task, [1, 2, 3], labels), headline)
    for kind, numbers in wanted.items():
        values = np.mean([score for (name, _), score in found.items() if name == kind], axis=0)
        assert values.shape == (1, 3, 1 + config.resamples)
        value, low, high = uncertainty.summary(cells.by_seed(values, 3))
        assert value == pytest.approx(np.mean(numbers)) and low <= value <= high


def test_the_labels_of_a_budget_and_its_floor_by_a_loop(config):
    """Notebook 12: label loyalty over pairs of different seeds; one seed has no floor."""
    cells = functions_of("12-vary-budget")
    student, teacher = (
        study.read_runs(config, [name], "upos", [1, 2, 3])[0]
        for name in ("distil-cased", "bert-cased")
    )
    for runs, other in ((student, teacher), (teacher, teacher)):
        pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
        equal = [np.mean(runs[i].predicted == other[j].predicted) for i, j in pairs]
        assert cells.label_loyalty("upos", runs, other) == pytest.approx(np.mean(equal))
    [same] = [np.mean(student[0].predicted == teacher[0].predicted)]
    assert cells.label_loyalty("upos", student[:1], teacher[:1]) == pytest.approx(same)
    alone = teacher[:1]
    assert np.isnan(cells.label_loyalty("upos", alone, alone))


FURTHER = [("robustness", "07"), ("ablation", "09"), ("export", "10"), ("task", "11")]


@pytest.mark.parametrize("name, number", [*FURTHER, ("budget", "12")])
def test_the_report_names_a_table_that_may_be_older_than_the_parameters(name, number, tmp_path):
    settings = load_profile("tiny")
    config = SimpleNamespace(folder=tmp_path)
    outdated = functions_of("06-report-results", config=config).outdated
    assert list(outdated(settings)) == []  # nothing is shown
    table = tmp_path / ("onnx.csv" if name == "export" else f"{name}.csv")
    table.touch()
    note = f"{table.name} may be older than the parameters of the profile: "
    note += f"run notebook {number} again."
    assert list(outdated(settings)) == [note]
    write_parameters(tmp_path / f"{name}.yaml", settings[name])
    assert list(outdated(settings)) == []
    write_parameters(
        tmp_path / f"{name}.yaml", settings[name].model_copy(update={"tasks": ["xpos"]})
    )
    assert list(outdated(settings)) == [note]
    assert list(outdated({})) == []  # the profile does without the notebook


# --- notebooks 09 and 12 --------------------------------------------------------------------------

OWN = {"seed": 7, "data": "some folder", "precision": "bfloat16"}


def parameters_of(kind, name, **changes):
    """The parameters of a notebook in the profile `tiny`."""
    files = [ROOT / "params" / "tiny" / f"{file}.yaml" for file in ("common", name)]
    return load(kind, *files, **changes)


def test_an_ablation_heeds_its_own_seed_data_and_precision():
    config = parameters_of(AblationConfig, "ablation", **OWN)
    cells = after_cells("09-ablate-ensemble", "09-06", config=config)
    assert list(cells.checked) == list(config.variants)
    for one in (*cells.checked.values(), cells.evaluation):
        assert {key: getattr(one, key) for key in OWN} == OWN
    assert {variant.steps for variant in cells.checked.values()} == {config.steps}


def test_variants_of_an_ablation_are_compared_seed_by_seed(config, tmp_path):
    """Notebook 09: the mean of the seeds' differences to the variant that changes nothing."""
    folders = {"other": "distil-multi", "plain": "distil-cased", "same": "distil-cased"}
    for name, model in folders.items():
        for number in (1, 2, 3):
            home = tmp_path / "ablation" / name / f"seed-{number}"
            home.mkdir(parents=True)
            (home / "evaluation").symlink_to(config.folder / "evaluation" / model)
    variants = {"other": {"weighting": "confidence"}, "plain": {}, "same": {"alpha_cos": 1.0}}
    wanted = {"variants": variants, "seeds": [1, 2, 3], "tasks": ["upos", "sar"], "resamples": 300}
    cells = after_cells(
        "09-ablate-ensemble",
        "09-09c",
        config=SimpleNamespace(folder=tmp_path, seed=1, **wanted),
        headlines={task: TASKS[task].headline for task in wanted["tasks"]},
        runs=SimpleNamespace(write_text=lambda *_: None, write_parameters=lambda *_: None),
    )
    found = cells.comparisons.set_index(["variant", "task"])
    assert {*found["against"]} == {"plain"} and len(found) == 2 * 3
    gaps = {}
    for task in wanted["tasks"]:
        of = {
            name: [
                score_predictions(TASKS[task], predictions(config, model, task, k))
                for k in (1, 2, 3)
            ]
            for name, model in folders.items()
        }
        name = TASKS[task].headline
        pairs = zip(of["other"], of["plain"], strict=True)
        gaps[task] = [100 * (one[name] - two[name]) for one, two in pairs]
    gaps["mean"] = np.mean([gaps["upos"], gaps["sar"]], axis=0)
    for task, by_seed in gaps.items():
        row = found.loc["other", task]
        assert row["difference"] == pytest.approx(np.mean(by_seed))
        assert row["low"] < row["difference"] < row["high"]
        by_runs = (cells.values["other", task] - cells.values["plain", task])[..., 0]
        assert by_runs.shape == (3, 1) and by_runs.ravel() == pytest.approx(by_seed)
        same = found.loc["same", task]
        assert same[["difference", "low", "high"]].eq(0).all() and same["p"] == 1


@pytest.mark.parametrize("changes", [{}, *({key: value} for key, value in OWN.items())])
def test_a_curve_heeds_its_own_seed_data_and_precision(changes):
    """The student of the study stands in the curve only if it was made with the same ones."""
    config = parameters_of(BudgetConfig, "budget", **changes)
    cells = after_cells("12-vary-budget", "12-05", config=config)
    for one in (cells.recipe, cells.evaluation):
        assert {key: getattr(one, key) for key in OWN} == {key: getattr(config, key) for key in OWN}
    assert cells.trained == ([] if changes else cells.settings["study"].distillation_seeds)
    asked = []
    evaluate = SimpleNamespace(evaluate_model=lambda one, folder: asked.append((one, folder)))
    known = vars(cells) | {"stages": evaluate}
    cells = after_cells("12-vary-budget", "12-08", **known)
    if not changes:  # the teacher of the study
        assert cells.theirs == config.folder / "evaluation" / cells.teacher and not asked
    else:  # one that has learned from the same examples as the student
        [(one, folder)] = asked
        assert folder == cells.theirs == config.folder / "budget" / cells.teacher
        assert one.model == cells.teacher and one.tasks == config.tasks
        assert {key: getattr(one, key) for key in changes} == changes


def test_scores_and_differences_of_budgets_by_hand(config):
    """Notebook 12: means of measures and seeds, each smaller budget and the teacher beside them."""
    folders = {10: "distil-cased", 20: "distil-multi", "bert-cased": "bert-cased"}
    wanted = {"budgets": [10, 20], "seeds": [1], "tasks": ["upos", "sar"], "resamples": 300}
    evaluated = config.folder / "evaluation"
    cells = after_cells(
        "12-vary-budget",
        *("12-09", "12-10", "12-10b"),
        config=SimpleNamespace(folder=config.folder, profile="toy", seed=1, **wanted),
        places={(steps, 1): (None, evaluated / folders[steps]) for steps in (10, 20)},
        teacher="bert-cased",
        theirs=evaluated / "bert-cased",
        fine_tuning=[1, 2, 3],
        curve=pd.DataFrame({"tokens": [100, 200]}, pd.Index([10, 20], name="steps")),
        runs=SimpleNamespace(write_text=lambda *_: None, write_parameters=lambda *_: None),
    )
    means = {}
    for name, model in folders.items():
        of_tasks = []
        for task in wanted["tasks"]:
            runs = [predictions(config, model, task, k) for k in (1, 2, 3)]
            headline = TASKS[task].headline
            of_tasks.append([score_predictions(TASKS[task], run)[headline] for run in runs])
        means[name] = 100 * np.mean(of_tasks)
        row = cells.table.loc[name]
        assert (
            row["score"] == pytest.approx(means[name]) and row["low"] < row["score"] < row["high"]
        )
        assert row["measures"] == "upos sar"
    found = cells.comparisons.set_index(["steps", "against"])["difference"].to_dict()
    assert found == pytest.approx(
        {
            (20, 10): means[20] - means[10],
            (10, "bert-cased"): means[10] - means["bert-cased"],
            (20, "bert-cased"): means[20] - means["bert-cased"],
        }
    )


def test_ways_at_the_task_are_compared_seed_by_seed(config):
    """Notebook 11: each way less another, the mean of the seeds' differences, in points."""
    folders = {"gold": "distil-cased", "ensemble": "distil-multi", "bert-cased": "bert-cased"}
    wanted = {"seeds": [1, 2, 3], "tasks": ["upos", "sar"], "resamples": 300}
    protocols = {"upos": "accuracy", "sar": "title+content"}
    cells = after_cells(
        "11-distil-at-task",
        *("11-16", "11-17", "11-19"),
        config=SimpleNamespace(folder=config.folder, student="distil-multi", seed=1, **wanted),
        settings={"evaluate": SimpleNamespace(protocols=protocols)},
        checked={"gold": {}, "ensemble": {}},
        teachers=["bert-cased"],
        places={name: f"evaluation/{model}" for name, model in folders.items()},
        runs=SimpleNamespace(write_text=lambda *_: None, write_parameters=lambda *_: None),
    )

    def score(name, task):
        tables_of = [predictions(config, folders[name], task, k) for k in (1, 2, 3)]
        headline = TASKS[task].headline
        return 100 * np.mean([score_predictions(TASKS[task], one)[headline] for one in tables_of])

    values = {(name, task): score(name, task) for name in folders for task in protocols}
    for name in folders:
        values[name, "mean"] = (values[name, "upos"] + values[name, "sar"]) / 2
    assert cells.table.set_index(["variant", "task"])["value"].to_dict() == pytest.approx(values)
    found = cells.comparisons
    assert {*found["model"]} == {"distil-multi"} and {*found["variant"]} == {"ensemble"}
    assert found.groupby("against").size().to_dict() == {"gold": 3, "bert-cased": 3}
    for row in found.itertuples():
        gap = values["ensemble", row.task] - values[row.against, row.task]
        assert row.difference == pytest.approx(gap) and row.low < gap < row.high
