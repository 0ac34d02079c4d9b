"""Loyalty against plain loops, scipy.special, scikit-learn, nervaluate and the known bounds."""

import math
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from sklearn.metrics import accuracy_score, mean_absolute_error

from rolib.analysis import loyalty
from rolib.evaluation.predictions import Predictions, row_entropies

steady = settings(
    deadline=None, derandomize=True
)  # the same examples on every machine, however slow
UPOS, NER, STS = (
    SimpleNamespace(name=name, kind=kind)
    for name, kind in [("upos", "tagging"), ("ner", "tagging"), ("sts", "regression")]
)
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def compare(task, teacher, student):
    """Of prediction tables."""
    sides = Predictions.of(teacher, "teacher's table"), Predictions.of(student, "student's table")
    return loyalty.compare_predictions(task, *sides)


def plain_loyalty(teacher, student, base):
    """The definition, one number at a time."""
    total = 0.0
    for p, q in zip(teacher, student, strict=True):
        divergence = 0.0
        for a, b in zip(p, q, strict=True):
            middle = (a + b) / 2
            # a weight below 1e-300 changes nothing, but the mean of subnormal numbers may be 0
            divergence += (a * math.log(a / middle, base) if a > 1e-300 else 0) / 2
            divergence += (b * math.log(b / middle, base) if b > 1e-300 else 0) / 2
        total += 1 - math.sqrt(max(divergence, 0.0))
    return total / len(teacher)


def random_probabilities(seed, rows=7, labels=5):
    """Rows from nearly uniform to nearly one-hot, some with exact zeros."""
    generator = np.random.default_rng(seed)
    probs = np.stack(
        [generator.dirichlet(np.full(labels, a)) for a in generator.choice([0.05, 1, 20], rows)]
    )
    probs[probs < 1e-4] = 0.0
    return probs / probs.sum(axis=1, keepdims=True)


# Any weights, zeros and subnormal numbers included, scaled to sum 1
rows_of_three = (
    st.tuples(*[st.floats(0, 1)] * 3)
    .filter(lambda w: sum(w) > 1e-3)
    .map(lambda w: np.array(w) / sum(w))
)
pairs_of_rows = st.lists(st.tuples(rows_of_three, rows_of_three), min_size=1, max_size=8).map(
    lambda pairs: tuple(np.array(side) for side in zip(*pairs, strict=True))
)
pairs_of_labels = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30
)
pairs_of_scores = st.lists(
    st.tuples(st.floats(-2, 7), st.floats(-2, 7)), min_size=1, max_size=20
).map(lambda pairs: tuple(np.array(side) for side in zip(*pairs, strict=True)))


# --- labels ---------------------------------------------------------------------------------------


@steady
@given(pairs_of_labels)
def test_label_loyalty_is_the_accuracy_against_the_teacher(pairs):
    teacher, student = map(list, zip(*pairs, strict=True))
    value = loyalty.label_loyalty(teacher, student)
    assert value == pytest.approx(accuracy_score(teacher, student), abs=1e-12)
    assert value == loyalty.label_loyalty(student, teacher)
    assert loyalty.label_loyalty(teacher, teacher) == 1.0
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert value == loyalty.label_loyalty(*map(list, zip(*shuffled, strict=True)))


def test_label_loyalty_types():
    assert loyalty.label_loyalty(np.array([1, 2, 3]), [1, 2, 4]) == pytest.approx(2 / 3)
    assert loyalty.label_loyalty(pd.Series(["a", "b"]), ["a", "c"]) == 0.5
    assert loyalty.label_loyalty(["1", "x"], [1, "x"]) == 0.5  # "1" is not 1


@pytest.mark.parametrize(
    "teacher, student, message",
    [
        (["a"], ["a", "b"], "different lengths: 1 and 2"),
        ([], [], "empty"),
        (["a", None], ["a", "b"], "missing"),
        ([1.0, 2.0], [1.0, math.nan], "missing"),
        ([["a"]], [["a"]], "shape"),
    ],
)
def test_label_loyalty_errors(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        loyalty.label_loyalty(teacher, student)


# --- probabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [math.e, 2, 10])
@pytest.mark.parametrize("seed", range(5))
def test_probability_loyalty_against_two_other_computations(base, seed):
    teacher, student = random_probabilities(seed), random_probabilities(seed + 100)
    value = loyalty.probability_loyalty(teacher, student, base=base)
    assert value == pytest.approx(plain_loyalty(teacher, student, base), abs=1e-9)
    middle = (teacher + student) / 2
    divergence = (
        (rel_entr(teacher, middle) + rel_entr(student, middle)).sum(axis=1) / 2 / np.log(base)
    )
    assert value == pytest.approx(np.mean(1 - np.sqrt(divergence)), abs=1e-9)


def test_probability_loyalty_takes_one_root():
    # By hand, p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4):
    # JSD = ln(4/3)/2 + (ln(2/3)/2 + ln(2)/2)/2 = 0.215762
    divergence = math.log(4 / 3) / 2 + (math.log(2 / 3) + math.log(2)) / 4
    assert divergence == pytest.approx(0.21576155433883565, abs=1e-12)
    value = loyalty.probability_loyalty([[1.0, 0.0]], [[0.5, 0.5]])
    assert value == pytest.approx(0.5354985959, abs=1e-9)  # 1 - 0.215762 ** 0.5
    assert (
        abs(value - (1 - divergence**0.25)) > 0.1 and abs(value - (1 - divergence)) > 0.1
    )  # two roots; none


def test_bounds_of_disjoint_rows():
    teacher, student = np.eye(4)[[0, 1, 2]], np.eye(4)[[1, 2, 3]]
    assert loyalty.probability_loyalty(teacher, student) == pytest.approx(
        1 - math.sqrt(math.log(2)), abs=1e-12
    )
    assert loyalty.probability_loyalty(teacher, student) == pytest.approx(0.16744538884, abs=1e-9)
    assert loyalty.probability_loyalty(teacher, student, base=2) == 0.0


def test_mean_is_over_rows():
    # two equal rows and one disjoint row
    assert loyalty.probability_loyalty(np.eye(3), np.eye(3)[[0, 1, 0]], base=2) == pytest.approx(
        2 / 3, abs=1e-12
    )


@steady
@given(pairs_of_rows)
def test_probability_loyalty_properties(pair):
    teacher, student = pair
    for base, least in [(math.e, 1 - math.sqrt(math.log(2))), (2, 0.0)]:
        value = loyalty.probability_loyalty(teacher, student, base=base)
        assert least - 1e-12 <= value <= 1.0
        # a root magnifies rounding near 0: 1e-16 in the divergence is 1e-8 in the distance
        assert value == pytest.approx(plain_loyalty(teacher, student, base), abs=1e-6)
        assert value == pytest.approx(
            loyalty.probability_loyalty(student, teacher, base=base), abs=1e-12
        )
        order = np.random.default_rng(0).permutation(len(teacher))
        assert value == pytest.approx(
            loyalty.probability_loyalty(teacher[order], student[order], base=base), abs=1e-12
        )
        assert loyalty.probability_loyalty(teacher, teacher, base=base) == 1.0


@steady
@given(pairs_of_rows)
def test_rounding_never_gives_nan(pair):
    teacher = pair[0]
    almost = np.nextafter(teacher, 1.0)
    assert loyalty.probability_loyalty(teacher, almost) == pytest.approx(1.0, abs=1e-6)
    assert loyalty.probability_loyalty(teacher, almost) <= 1.0
    single = teacher.astype(np.float32)
    assert loyalty.probability_loyalty(single, single.copy()) == 1.0


def test_probability_loyalty_against_scipy_and_over_many_rows():
    teacher, student = (
        random_probabilities(7, rows=700, labels=9),
        random_probabilities(8, rows=700, labels=9),
    )
    distances = jensenshannon(teacher, student, axis=1)  # SciPy's distance already is the root
    entropies = (row_entropies(teacher) + row_entropies(student)) / 2
    assert loyalty._distances(teacher, student, entropies) == pytest.approx(distances, abs=1e-12)
    assert loyalty.probability_loyalty(teacher, student) == pytest.approx(
        1 - distances.mean(), abs=1e-12
    )


def test_subnormal_probability():
    assert loyalty.probability_loyalty([[1.0, 5e-324]], [[1.0, 0.0]]) == 1.0


def test_rows_are_scaled_to_sum_one():
    assert loyalty.probability_loyalty([[0.5004, 0.5004]], [[0.5, 0.5]]) == pytest.approx(
        1.0, abs=1e-7
    )


@pytest.mark.parametrize(
    "teacher, student, message",
    [
        ([[0.5, 0.5]], [[0.5, 0.5]] * 2, "different lengths: 1 and 2"),
        ([], [], "empty"),
        ([[0.5, 0.5]], [[0.2, 0.3, 0.5]], "different numbers of labels: teacher 2, student 3"),
        ([0.5, 0.5], [0.5, 0.5], "shape"),
        (
            [[0.5, 0.5], [1.5, -0.5]],
            [[0.5, 0.5]] * 2,
            "teacher row 1 is no distribution: its least value is -0.5",
        ),
        (
            [[0.5, 0.5]] * 2,
            [[0.5, 0.5], [0.5, 0.502]],
            "student row 1 is no distribution: .* their sum 1.002",
        ),
        ([[0.5, 0.498]], [[0.5, 0.5]], "teacher row 0 is no distribution: .* their sum 0.998"),
        ([[math.nan, 0.5]], [[0.5, 0.5]], "teacher row 0 is no distribution: .* nan"),
        ([[0.5, 0.5]], [[math.inf, 0.5]], "student row 0 is no distribution: .* their sum inf"),
        ([[]], [[]], "teacher row 0 is no distribution: .* their sum 0"),
    ],
)
def test_probability_loyalty_errors(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        loyalty.probability_loyalty(teacher, student)


@pytest.mark.parametrize("base", [1, 0, 0.5, -2, math.nan])
def test_base(base):
    with pytest.raises(ValueError, match="base"):
        loyalty.probability_loyalty([[1.0]], [[1.0]], base=base)


# --- scores ---------------------------------------------------------------------------------------


def test_regression_loyalty_by_hand():
    teacher, student = [0.0, 2.0, 5.0], [1.0, 2.0, 3.0]
    assert loyalty.regression_loyalty(teacher, student, 0, 5) == pytest.approx(
        1 - (0.2 + 0 + 0.4) / 3, abs=1e-12
    )
    assert loyalty.regression_loyalty_pearson(teacher, student) == pytest.approx(
        np.corrcoef(teacher, student)[0, 1]
    )


def test_scale_that_does_not_start_at_zero():
    assert loyalty.regression_loyalty([2.0], [4.0], 1, 5) == 0.5


def test_clipping():
    assert loyalty.regression_loyalty([5.0, 0.0], [6.5, -3.0], 0, 5) == 1.0
    # Pearson sees the scores as they are
    raw = loyalty.regression_loyalty_pearson([1.0, 2.0, 5.0], [1.0, 2.0, 9.0])
    assert raw == pytest.approx(np.corrcoef([1, 2, 5], [1, 2, 9])[0, 1]) and raw < 0.999


@steady
@given(pairs_of_scores)
def test_regression_loyalty_properties(pair):
    teacher, student = pair
    scaled = np.clip(teacher, 0, 5) / 5, np.clip(student, 0, 5) / 5
    measure = partial(loyalty.regression_loyalty, low=0, high=5)
    assert measure(teacher, student) == pytest.approx(1 - mean_absolute_error(*scaled), abs=1e-9)
    assert -1e-12 <= measure(teacher, student) <= 1 + 1e-12
    order = np.random.default_rng(0).permutation(len(teacher))
    assert measure(teacher, teacher) == 1.0
    assert measure(teacher, student) == measure(student, teacher)
    expected = pytest.approx(measure(teacher, student), abs=1e-12)
    assert measure(teacher[order], student[order]) == expected


def test_constant_scores():
    assert loyalty.regression_loyalty_pearson([2.0, 2.0], [1.0, 3.0]) == 0.0
    assert loyalty.regression_loyalty([2.0, 2.0], [2.0, 2.0], 0, 5) == 1.0


def test_regression_errors():
    measure = loyalty.regression_loyalty
    for low, high in [(5, 0), (1, 1), (math.nan, 5), (0, math.inf)]:
        with pytest.raises(ValueError, match="low"):
            measure([1.0], [1.0], low, high)
    for teacher, student, message in [
        ([1.0], [1.0, 2.0], "lengths"),
        ([], [], "empty"),
        ([math.nan], [1.0], "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure(teacher, student, 0, 5)
        with pytest.raises(ValueError, match=message):
            loyalty.regression_loyalty_pearson(teacher, student)


# --- prediction tables ----------------------------------------------------------------------------


def tagging_table(seed, labels=TAGS, sentences=("s10", "s9", "s2"), words=6):
    """A table as a run writes it: float32 probabilities; the most probable label is predicted."""
    probs = random_probabilities(seed, rows=len(sentences) * words, labels=len(labels)).astype(
        np.float32
    )
    units = [(sentence, position) for sentence in sentences for position in range(words)]
    frame = pd.DataFrame(units, columns=["example", "position"])
    return frame.assign(
        gold="O", predicted=[labels[row.argmax()] for row in probs], probabilities=list(probs)
    )


def shuffled(table, seed=0):
    return table.sample(frac=1, random_state=seed)


def test_compare_taggers():
    teacher, student = tagging_table(1), tagging_table(2)
    scores = compare(UPOS, teacher, student)
    probs = [np.stack(table["probabilities"]).astype(np.float64) for table in (teacher, student)]
    assert scores == {
        "label_loyalty": pytest.approx(
            accuracy_score(teacher["predicted"].tolist(), student["predicted"].tolist())
        ),
        "probability_loyalty": pytest.approx(
            plain_loyalty(*probs, math.e), abs=1e-6
        ),  # float32 rows sum to 1 +- 1e-7
        "probability_loyalty_base2": pytest.approx(plain_loyalty(*probs, 2), abs=1e-6),
        "lost": pytest.approx(
            np.mean((teacher["predicted"] == "O") & (student["predicted"] != "O"))
        ),
        "gained": pytest.approx(
            np.mean((teacher["predicted"] != "O") & (student["predicted"] == "O"))
        ),
    }
    itself = compare(UPOS, teacher, teacher)
    assert itself.pop("lost") == itself.pop("gained") == 0 and set(itself.values()) == {1.0}


@steady
@given(st.lists(st.tuples(*[st.sampled_from("abc")] * 3), min_size=1, max_size=30))
def test_flips_make_up_the_difference_of_the_accuracies(units):
    """lost and gained, unit by unit; with label loyalty they say how the accuracy moved."""
    names = ["gold", "teacher", "student"]
    table = pd.DataFrame(units, columns=names).assign(position=0)
    table["example"] = [f"s{number:02}" for number in range(len(units))]
    table["probabilities"] = [[1.0, 0.0]] * len(units)
    sides = [table.assign(predicted=table[side]) for side in names[1:]]
    scores = compare(UPOS, *sides)
    lost = sum(t == g and s != g for g, t, s in units) / len(units)
    gained = sum(t != g and s == g for g, t, s in units) / len(units)
    assert (scores["lost"], scores["gained"]) == pytest.approx((lost, gained))
    right = [(side["predicted"] == side["gold"]).mean() for side in sides]
    assert right[0] - lost + gained == pytest.approx(right[1])
    assert scores["label_loyalty"] <= 1 - lost - gained + 1e-12


def score_table(seed, sentences=("s10", "s9", "s2"), pairs=6):
    """Scores of sentence pairs; here an example has several, to be drawn as a whole."""
    units = [(sentence, position) for sentence in sentences for position in range(pairs)]
    frame = pd.DataFrame(units, columns=["example", "position"])
    scores = np.random.default_rng(seed).uniform(-1, 6, len(units))
    return frame.assign(gold=2.5, predicted=scores, probabilities=[()] * len(units))


@pytest.mark.parametrize("task, table", [(NER, tagging_table), (STS, score_table)])
def test_loyalty_to_several_runs_is_the_mean_and_follows_the_weights(task, table):
    """Against the definition, one pair and one resample at a time."""
    weights = np.array([[1.0, 3, 0], [1, 0, 2], [1, 0, 1]])  # of 3 sentences in 3 resamples
    student, teachers = table(3), [table(seed) for seed in (4, 5)]
    runs = [Predictions.of(one) for one in teachers]
    scores = loyalty.loyalty_scorer(task, runs, Predictions.of(student))(weights)
    order = sorted(set(student["example"]))
    for number in range(3):
        single = []
        for teacher in teachers:
            again = []
            for copies, name in zip(weights[:, number], order, strict=True):
                for copy in range(int(copies)):
                    for side in (teacher, student):
                        rows = side[side["example"] == name]
                        again.append(rows.assign(example=f"{name}-{copy}", side=side is teacher))
            both = pd.concat(again)
            single.append(compare(task, *(both[both["side"] == mine] for mine in (True, False))))
        for name, value in pd.DataFrame(single).mean().items():
            assert scores[name][number] == pytest.approx(value, abs=1e-12)


def test_compare_ner_adds_the_span_loyalty():
    teacher, student = tagging_table(3), tagging_table(4)
    student.loc[:8, ["predicted", "probabilities"]] = teacher.loc[
        :8, ["predicted", "probabilities"]
    ]  # spans agree
    teacher.loc[17, "predicted"], student.loc[17, "predicted"] = (
        "B-LOC",
        "B-PER",
    )  # and one in its borders only
    tags = [
        table.groupby("example", sort=False)["predicted"].agg(list).tolist()
        for table in (teacher, student)
    ]
    overall = Evaluator(*tags, tags=["LOC", "PER"], loader="list").evaluate()["overall"]
    strict = overall["strict"].f1
    assert 0 < strict < overall["exact"].f1 < 1
    scores = compare(NER, teacher, student)
    assert scores["span_loyalty"] == pytest.approx(strict, abs=1e-9)
    assert set(scores) == {
        "label_loyalty",
        "probability_loyalty",
        "probability_loyalty_base2",
        "span_loyalty",
        "lost",
        "gained",
    }
    silent = teacher.assign(predicted="O")
    assert compare(NER, silent, silent)["span_loyalty"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_row_order_does_not_matter(seed, tmp_path):
    teacher, student = tagging_table(5), tagging_table(6)
    student.loc[:8, ["predicted", "probabilities"]] = teacher.loc[
        :8, ["predicted", "probabilities"]
    ]
    expected = pytest.approx(compare(NER, teacher, student), abs=1e-12)
    shuffled(student, seed).to_parquet(tmp_path / "student.parquet")
    student_again = pd.read_parquet(tmp_path / "student.parquet")
    assert compare(NER, teacher, student_again) == expected
    assert compare(NER, shuffled(teacher, seed + 7), student_again) == expected


def test_a_missing_probability_is_refused_by_its_row():
    table = score_table(1).assign(probabilities=[[0.5, 0.5]] * 17 + [[None, 1.0]])
    with pytest.raises(ValueError, match="prediction row .* is no distribution"):
        _ = Predictions.of(table).entropies


def test_compare_sts():
    units = pd.DataFrame(
        {"example": ["a", "b", "c"], "position": 0, "gold": 2.5, "probabilities": [[]] * 3}
    )
    teacher, student = (
        units.assign(predicted=[0.0, 2.0, 5.5]),
        units.assign(predicted=[1.0, 2.0, 4.0]),
    )
    scores = compare(STS, teacher, shuffled(student, 3))
    assert scores == {
        "regression_loyalty": pytest.approx(1 - (0.2 + 0 + 0.2) / 3, abs=1e-12),
        "regression_loyalty_pearson": pytest.approx(
            np.corrcoef([0, 2, 5.5], [1, 2, 4])[0, 1], abs=1e-12
        ),
        "regression_loyalty_rmse": pytest.approx(1 - math.sqrt(0.08 / 3), abs=1e-12),
    }


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.drop(index=[4, 5]),
            r"^example 's10', position 4 is in the {other}'s table only \(2 such units\)",
        ),
        (
            lambda t: t.assign(example=t["example"].replace("s9", "s8")),
            "^example 's9', position 0 is in the teacher's",
        ),
        (lambda t: t.iloc[:0], "^{side}'s table: it has no rows"),
        (
            lambda t: t.drop(columns="probabilities"),
            "^{side}'s table: missing columns probabilities",
        ),
        (
            lambda t: pd.concat([t, t[3:4]]),
            "^{side}'s table: more than one row for example 's10', position 3",
        ),
        (
            lambda t: t.assign(predicted=[None, *t["predicted"][1:]]),
            "^{side}'s table: missing value for example 's10'",
        ),
    ],
)
@pytest.mark.parametrize("side", ["teacher", "student"])
def test_alignment_errors(change, message, side):
    tables = {"teacher": tagging_table(1), "student": tagging_table(2)}
    tables[side] = change(tables[side])
    if "'s9'" in message and side == "teacher":
        message = message.replace("'s9'", "'s8'")  # the teacher's own units are looked at first
    other = {"teacher": "student", "student": "teacher"}[side]
    with pytest.raises(ValueError, match=message.format(side=side, other=other)):
        compare(UPOS, **tables)


def test_label_orders_of_different_length():
    teacher = tagging_table(1)
    with pytest.raises(ValueError, match="^different numbers of labels: teacher 5, student 4$"):
        compare(UPOS, teacher, tagging_table(2, labels=TAGS[:4]))
    short = teacher.assign(
        probabilities=[[0.5, 0.5] if row == 7 else p for row, p in teacher["probabilities"].items()]
    )
    fault = "another number of probabilities than elsewhere for example 's9', position 1"
    with pytest.raises(ValueError, match=f"^student's table: {fault}"):
        compare(UPOS, teacher, short)
    with pytest.raises(ValueError, match=f"^teacher's table: {fault}"):
        compare(UPOS, short, teacher)


def test_span_loyalty_refuses_a_missing_word():
    teacher, student = (tagging_table(seed).drop(index=2) for seed in (1, 2))
    with pytest.raises(ValueError, match="a word is missing before example 's10', position 3"):
        compare(NER, teacher, student)
