"""Scores against scikit-learn, nervaluate, SciPy and hand-computed values."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator
from oracles import table_of
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from rolib.evaluation import metrics, predictions

# The same examples on every machine, however slow it is.
steady = settings(deadline=None, derandomize=True)
TAGS = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
NO_SPANS = {
    "strict_f1_micro": 0.0,
    "strict_f1_macro": 0.0,
    "boundary_f1_micro": 0.0,
    "boundary_f1_macro": 0.0,
    "strict_precision_micro": 0.0,
    "strict_recall_micro": 0.0,
}
KINDS = dict.fromkeys(["upos", "xpos", "ner"], "tagging")
KINDS |= dict.fromkeys(["sapn", "sar", "di"], "classification") | {"sts": "regression"}


def task(name):
    return SimpleNamespace(name=name, kind=KINDS[name])


def label_scores(gold, predicted):
    scorer = metrics.label_scorer(np.arange(len(gold)), gold, predicted)
    return metrics.at_ones(scorer, len(gold))


def accuracy(gold, predicted):
    return label_scores(gold, predicted)["accuracy"]


def macro_f1(gold, predicted):
    return label_scores(gold, predicted)["macro_f1"]


def correlations(gold, predicted):
    scorer = metrics.correlation_scorer(np.arange(len(gold)), gold, predicted)
    return metrics.at_ones(scorer, len(gold))


def pearson(gold, predicted):
    return correlations(gold, predicted)["pearson"]


def spearman(gold, predicted):
    return correlations(gold, predicted)["spearman"]


def span_f1(gold, predicted):
    """Of sentences of tags."""
    sides = ([predictions.spans(tags) for tags in side] for side in (gold, predicted))
    return metrics.at_ones(metrics.span_scorer(*sides), len(gold))


def table(rows):
    """Rows of (example, position, gold, predicted)."""
    frame = pd.DataFrame(rows, columns=["example", "position", "gold", "predicted"])
    return frame.assign(probabilities=[[]] * len(rows))


@st.composite
def tagged(draw, tags=TAGS):
    """Gold and predicted tags of a few sentences, with stray I- tags.

    The predictions are edited gold tags, so some are right.
    """
    gold, predicted = [], []
    for _ in range(draw(st.integers(1, 4))):
        sentence = draw(st.lists(st.sampled_from(tags), min_size=1, max_size=9))
        edits = draw(st.lists(st.sampled_from([None, None, None, *tags]), min_size=9, max_size=9))
        gold.append(sentence)
        predicted.append([edit or tag for tag, edit in zip(sentence, edits, strict=False)])
    return gold, predicted


# --- labels ---------------------------------------------------------------------------------------


def test_accuracy_and_macro_f1_by_hand():
    gold, predicted = list("aaab"), list("aabc")
    assert accuracy(gold, predicted) == 0.5
    # a: precision 1, recall 2/3 -> 0.8; b: 0; c (predicted only): 0
    assert macro_f1(gold, predicted) == pytest.approx(0.8 / 3, abs=1e-12)


@steady
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=40)
)
def test_label_scores_against_counting(pairs):
    gold, predicted = map(list, zip(*pairs, strict=True))
    assert accuracy(gold, predicted) == pytest.approx(
        sum(g == p for g, p in pairs) / len(pairs), abs=1e-12
    )
    scores = []
    for label in {*gold, *predicted}:
        hits = sum(g == p == label for g, p in pairs)
        scores.append(2 * hits / (gold.count(label) + predicted.count(label)))
    assert macro_f1(gold, predicted) == pytest.approx(sum(scores) / len(scores), abs=1e-9)


def test_one_label_only():
    assert macro_f1(["a", "a"], ["a", "a"]) == 1.0
    assert macro_f1(["a", "a"], ["b", "b"]) == 0.0


@pytest.mark.parametrize("score", [accuracy, pearson, span_f1])
def test_length_and_emptiness(score):
    with pytest.raises(ValueError, match="different lengths: 2 and 1"):
        score([["O"], ["O"]] if score is span_f1 else [1, 2], [["O"]] if score is span_f1 else [1])
    with pytest.raises(ValueError, match="empty"):
        score([], [])


# --- spans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("", set()),
        ("O O", set()),
        ("B-A I-A O", {(0, 2, "A")}),
        ("O B-A I-A", {(1, 3, "A")}),
        ("B-A B-A", {(0, 1, "A"), (1, 2, "A")}),
        ("I-A I-A", {(0, 2, "A")}),  # starts without B-
        ("B-A I-B I-B", {(0, 1, "A"), (1, 3, "B")}),  # class changes
        ("B-A O I-A", {(0, 1, "A"), (2, 3, "A")}),  # O lies between
        ("B-A I-B I-A", {(0, 1, "A"), (1, 2, "B"), (2, 3, "A")}),
        ("B-NAT-REL I-NAT-REL I-NAT", {(0, 2, "NAT-REL"), (2, 3, "NAT")}),  # a hyphen in the class
    ],
)
def test_spans(tags, expected):
    assert predictions.spans(tags.split()) == expected


@pytest.mark.parametrize("tag", ["PER", "S-PER", "B-", "B", "I", "", "-PER", "o"])
def test_spans_refuses_other_tags(tag):
    with pytest.raises(ValueError, match="at word 1: expected O, B-class or I-class"):
        predictions.spans(["B-PER", tag])


@steady
@given(tagged())
def test_span_f1_against_nervaluate(sentences):
    gold, predicted = sentences
    result = Evaluator(gold, predicted, tags=["LOC", "ORG", "PER"], loader="list").evaluate()
    ours, overall = span_f1(gold, predicted), result["overall"]
    assert ours["strict_f1_micro"] == pytest.approx(overall["strict"].f1, abs=1e-9)
    assert ours["strict_precision_micro"] == pytest.approx(overall["strict"].precision, abs=1e-9)
    assert ours["strict_recall_micro"] == pytest.approx(overall["strict"].recall, abs=1e-9)
    assert ours["boundary_f1_micro"] == pytest.approx(overall["exact"].f1, abs=1e-9)
    classes = [scores["strict"].f1 for scores in result["entities"].values()]
    assert ours["strict_f1_macro"] == pytest.approx(np.mean(classes) if classes else 0.0, abs=1e-9)


@steady
@given(tagged())
def test_boundary_macro_against_plain_loops(sentences):
    gold, predicted = ([predictions.spans(tags) for tags in side] for side in sentences)
    scores = []
    for label in ["LOC", "ORG", "PER"]:
        counts = {"predicted": [0, 0], "gold": [0, 0]}  # hits, all
        for g, p in zip(gold, predicted, strict=True):
            for name, these, others in [("predicted", p, g), ("gold", g, p)]:
                for start, end, name_of_class in these:
                    if name_of_class == label:
                        counts[name][0] += any((start, end) == other[:2] for other in others)
                        counts[name][1] += 1
        if counts["predicted"][1] + counts["gold"][1]:
            precision, recall = (hits / total if total else 0 for hits, total in counts.values())
            scores.append(stats.hmean([precision, recall]) if precision and recall else 0.0)
    expected = np.mean(scores) if scores else 0.0
    assert span_f1(*sentences)["boundary_f1_macro"] == pytest.approx(expected, abs=1e-9)


@steady
@given(tagged(tags=TAGS[:3]))
def test_boundary_equals_strict_with_one_class(sentences):
    scores = span_f1(*sentences)
    assert scores["boundary_f1_micro"] == scores["strict_f1_micro"]
    assert scores["strict_f1_micro"] == pytest.approx(scores["strict_f1_macro"], abs=1e-12)
    assert scores["boundary_f1_macro"] == pytest.approx(scores["strict_f1_macro"], abs=1e-12)


def test_span_f1_by_hand():
    # LOC right; PER found as ORG (borders only); one ORG missed.
    # The span of the second sentence must not match that of the first.
    gold = [["B-LOC", "I-LOC", "B-PER", "O", "B-ORG"], ["O", "O"]]
    predicted = [["B-LOC", "I-LOC", "B-ORG", "O", "O"], ["B-LOC", "I-LOC"]]
    scores = span_f1(gold, predicted)
    assert scores["strict_precision_micro"] == pytest.approx(1 / 3)
    assert scores["strict_recall_micro"] == pytest.approx(1 / 3)
    assert scores["strict_f1_micro"] == pytest.approx(1 / 3)
    assert scores["boundary_f1_micro"] == pytest.approx(2 / 3)
    # LOC: 1 of 2 right, 1 of 1 found
    assert scores["strict_f1_macro"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    # LOC as before. ORG: the predicted span has right borders, the gold span was missed.
    # PER: never predicted.
    assert scores["boundary_f1_macro"] == pytest.approx((2 / 3 + 0 + 0) / 3)


def test_boundary_macro_credits_a_confused_class():
    gold = [["B-PER", "O", "B-ORG"]]
    predicted = [["B-ORG", "O", "B-PER"]]
    scores = span_f1(gold, predicted)
    assert (scores["strict_f1_micro"], scores["strict_f1_macro"]) == (0.0, 0.0)
    assert (scores["boundary_f1_micro"], scores["boundary_f1_macro"]) == (1.0, 1.0)
    # nervaluate's "exact" of a class compares spans within the class, so it is 0 here.
    entities = Evaluator(gold, predicted, tags=["PER", "ORG"], loader="list").evaluate()["entities"]
    assert [entities[label]["exact"].f1 for label in ("PER", "ORG")] == [0, 0]


def test_span_f1_without_spans_is_zero():
    assert span_f1([["O", "O"]], [["O", "O"]]) == NO_SPANS
    assert span_f1([["B-PER"]], [["O"]]) == NO_SPANS
    assert span_f1([["O"]], [["B-PER"]]) == NO_SPANS


# --- correlations ---------------------------------------------------------------------------------

scores = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=30).map(
    lambda pairs: np.array(pairs).T / 10
)


@steady
@given(scores)
def test_correlations_against_covariance(pair):
    gold, predicted = pair

    def covariance(a, b):
        (mean_a, mean_b), n = (sum(a) / len(a), sum(b) / len(b)), len(a)
        cross = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
        return (
            cross / np.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
            if n
            else 0
        )

    if len(set(gold)) == 1 or len(set(predicted)) == 1:
        assert pearson(gold, predicted) == spearman(gold, predicted) == 0.0
        return
    assert pearson(gold, predicted) == pytest.approx(covariance(gold, predicted), abs=1e-9)
    assert pearson(gold, predicted) == pytest.approx(
        stats.pearsonr(gold, predicted).statistic, abs=1e-12
    )
    ranks = stats.rankdata(gold), stats.rankdata(predicted)
    assert spearman(gold, predicted) == pytest.approx(covariance(*ranks), abs=1e-9)


def test_spearman_is_not_pearson():
    assert spearman([1, 2, 3], [1, 2, 30]) == pytest.approx(1.0)
    assert pearson([1, 2, 3], [1, 2, 30]) == pytest.approx(29 / np.sqrt(2 * (100 + 81 + 361)))


@pytest.mark.parametrize("correlation", [pearson, spearman])
@pytest.mark.parametrize(
    "pair", [([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1, 1], [1, 1]), ([3], [4])]
)
def test_constant_scores_give_zero_without_warning(correlation, pair):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert correlation(*pair) == 0.0
        # three numbers that differ by rounding only
        assert pearson([0.1 + 0.2, 0.3, 0.3], [1, 2, 3]) == 0.0


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlations_refuse_bad_scores(correlation):
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            correlation([1.0, bad, 2.0], [1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match="finite"):
            correlation([1.0, 2.0, 3.0], [1.0, 2.0, bad])
    with pytest.raises(ValueError, match="shape"):
        correlation([[1.0], [2.0]], [[1.0], [2.0]])


# --- prediction tables ----------------------------------------------------------------------------

WORDS = [
    ("a", 0, "B-PER", "B-PER"),
    ("a", 1, "I-PER", "I-PER"),
    ("a", 2, "O", "B-LOC"),
    ("b", 0, "B-LOC", "O"),
]


@pytest.mark.parametrize("name", ["upos", "xpos", "sapn", "sar", "di"])
def test_score_labels(name):
    gold, predicted = [row[2] for row in WORDS], [row[3] for row in WORDS]
    assert metrics.score_predictions(task(name), table(WORDS)) == {
        "accuracy": pytest.approx(accuracy_score(gold, predicted), abs=1e-12),
        "macro_f1": pytest.approx(f1_score(gold, predicted, average="macro"), abs=1e-12),
    }


def test_score_ner_needs_no_row_order():
    # by hand: 1 of 2 predicted spans right, 1 of 2 gold spans found
    expected = span_f1([["B-PER", "I-PER", "O"], ["B-LOC"]], [["B-PER", "I-PER", "B-LOC"], ["O"]])
    assert expected["strict_f1_micro"] == 0.5
    for order in itertools.permutations(range(4)):
        assert (
            metrics.score_predictions(task("ner"), table([WORDS[row] for row in order])) == expected
        )


def test_score_sts_and_parquet(tmp_path):
    rows = table([("a", 0, 1.0, 1.5), ("b", 0, 2.0, 1.0), ("c", 0, 5.0, 7.25)])
    rows.to_parquet(tmp_path / "predictions.parquet")
    assert metrics.score_predictions(
        task("sts"), pd.read_parquet(tmp_path / "predictions.parquet")
    ) == {
        "pearson": pytest.approx(stats.pearsonr([1, 2, 5], [1.5, 1, 7.25]).statistic, abs=1e-9),
        "spearman": pytest.approx(0.5, abs=1e-9),  # ranks 1 2 3 and 2 1 3
    }


def test_a_stored_table_reads_as_it_was_written(tmp_path):
    path = tmp_path / "predictions.parquet"
    frame = (
        table(WORDS)
        .assign(probabilities=[[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
        .sample(frac=1, random_state=1)
    )
    predictions.write_table(path, frame)
    assert pd.read_parquet(path)["position"].dtype == np.int32
    frame = frame.astype({"position": "int32"})
    for run, width in [
        (predictions.Predictions.read(path), 2),
        (predictions.Predictions.read(path, probabilities=False), 0),
    ]:
        again = predictions.Predictions.of(frame)
        assert run.units.equals(again.units) and run.probabilities.shape == (4, width)
        assert run.gold.tolist() == again.gold.tolist() == [row[2] for row in WORDS]
        assert run.predicted.tolist() == again.predicted.tolist()
    assert (predictions.Predictions.read(path).probabilities == again.probabilities).all()
    assert metrics.score_predictions(task("ner"), table_of(again)) == metrics.score_predictions(
        task("ner"), frame
    )


def test_damaged_stored_tables_are_refused_and_named(tmp_path):
    path = tmp_path / "predictions.parquet"
    path.write_bytes(b"no parquet at all")
    with pytest.raises(
        ValueError, match=r"predictions.parquet is damaged \(.*\): delete the folder of this run"
    ):
        predictions.Predictions.read(path)
    table(WORDS).drop(columns="gold").to_parquet(path)
    with pytest.raises(ValueError, match=r"is damaged \(.*gold.*\): delete the folder"):
        predictions.Predictions.read(path)
    for ragged in ([[0.1, 0.9], [1.0], [0.2, 0.3, 0.5], [0.5, 0.5]], [[1.0], None, [1.0], [1.0]]):
        table(WORDS).assign(probabilities=ragged).to_parquet(path)
        with pytest.raises(
            ValueError, match="damaged .*another number of probabilities than elsewhere for example"
        ):
            predictions.Predictions.read(path)
    table(WORDS).iloc[:0].to_parquet(path)
    with pytest.raises(ValueError, match="it has no rows"):
        predictions.Predictions.read(path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows.iloc[:0], "it has no rows"),
        (lambda rows: rows.drop(columns=["gold", "position"]), "missing columns position, gold"),
        (
            lambda rows: rows.assign(predicted=[None] * 4),
            "missing value for example 'a', position 0",
        ),
        (
            lambda rows: rows.assign(gold=[*rows["gold"][:3], None]),
            "missing value for example 'b', position 0",
        ),
        (
            lambda rows: pd.concat([rows, rows[1:2]]),
            "more than one row for example 'a', position 1",
        ),
    ],
)
def test_bad_tables(name, change, message):
    with pytest.raises(ValueError, match=message):
        metrics.score_predictions(task(name), change(table(WORDS)))


def test_rows_without_probabilities_are_named():
    frame = pd.concat([table(WORDS)] * 2).assign(
        example=list("aaabcccd"), probabilities=[[0.5, 0.5]] * 8
    )  # a doubled index
    for bad in (None, [1.0]):
        rows = [[0.5, 0.5]] * 4 + [bad] + [[0.5, 0.5]] * 3
        with pytest.raises(
            ValueError,
            match="^t: another number of probabilities than elsewhere for example 'c', position 0",
        ):
            predictions.Predictions.of(frame.assign(probabilities=rows), "t")


@pytest.mark.parametrize("dropped", [0, 1])
def test_ner_refuses_a_missing_word(dropped):
    with pytest.raises(
        ValueError, match=f"a word is missing before example 'a', position {dropped + 1}"
    ):
        metrics.score_predictions(task("ner"), table(WORDS).drop(index=dropped))
