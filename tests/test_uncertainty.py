"""Uncertainty against resampled tables written out in full, other libraries and simulations.

The other libraries are scikit-learn and SciPy; there are plain loops too.
"""

import itertools
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from benchmarks import coverage
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bootstrap_difference, bootstrap_loyalty, bootstrap_scores, scores_elsewhere
from scipy import stats

from rolib.analysis import loyalty, uncertainty
from rolib.evaluation import metrics
from rolib.evaluation.predictions import Predictions

steady = settings(
    deadline=None, derandomize=True
)  # the same examples on every machine, however slow
KINDS = {"upos": "tagging", "ner": "tagging", "sar": "classification", "sts": "regression"}
LABELS = {
    "upos": ["ADJ", "NOUN", "VERB", "X"],
    "ner": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"],
    "sar": ["1", "2", "4", "5"],
    "sts": [0.0, 0.5, 1.1, 3.3, 5.0],
}
LABEL_LOYALTIES = ["label_loyalty", "probability_loyalty", "probability_loyalty_base2"]
LABEL_LOYALTIES += ["lost", "gained"]


def task(name):
    return SimpleNamespace(name=name, kind=KINDS[name])


def make_tables(name, seeds=(0, 1), examples=9, labels=None, noise=0.4, start=0):
    """Prediction tables by fine-tuning seed, rows shuffled; ids sort as text (s10 < s9)."""
    rng, labels = np.random.default_rng(start), labels or LABELS[name]
    words = (
        rng.integers(1, 7, examples) if KINDS[name] == "tagging" else np.ones(examples, dtype=int)
    )
    units = [
        (f"s{number}", position)
        for number, length in enumerate(words)
        for position in range(length)
    ]
    gold, tables = rng.choice(labels, len(units)), {}
    for seed in seeds:
        predicted = np.where(rng.random(len(units)) < noise, rng.choice(labels, len(units)), gold)
        table = pd.DataFrame(units, columns=["example", "position"]).assign(
            gold=gold, predicted=predicted
        )
        probabilities = list(rng.dirichlet(np.ones(3), len(units)).astype(np.float32))
        tables[seed] = table.assign(probabilities=probabilities).sample(frac=1, random_state=seed)
    return tables


def written_out(table, weights):
    """The resampled table in full: each example, in sorted order, repeated by its weight."""
    rows = []
    for (name, example), weight in zip(table.groupby("example"), weights, strict=True):
        rows += [example.assign(example=f"{name}-copy-{copy}") for copy in range(int(weight))]
    return pd.concat(rows)


def column(weights):
    return np.array(weights, dtype=float)[:, None]


# --- scores in resamples --------------------------------------------------------------------------

DEGENERATE = [
    ("upos", ["NOUN"]),
    ("sar", ["1"]),
    ("ner", ["O"]),  # no span at all
    ("ner", ["O", "I-LOC"]),
    ("sts", [2.5]),
    ("sts", [0.1 + 0.2, 0.3]),  # constant up to rounding: Pearson is 0, the ranks are not constant
]


@pytest.mark.parametrize("name, labels", [*((name, None) for name in KINDS), *DEGENERATE])
@pytest.mark.parametrize("examples", [1, 2, 40])
def test_equal_weights_give_the_score_itself(name, labels, examples):
    for start in range(3):
        for table in make_tables(name, examples=examples, labels=labels, start=start).values():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                scores = metrics.scorer(task(name), Predictions.of(table))(np.ones((examples, 2)))
                same = {score: pair[0] for score, pair in scores.items()}
                assert metrics.score_predictions(task(name), table) == pytest.approx(
                    same, abs=1e-12
                )
            expected = (
                {"pearson": 0.0, "spearman": 0.0}
                if name == "sts" and examples == 1
                else scores_elsewhere(task(name), table)
            )
            for score, value in expected.items():
                assert scores[score] == pytest.approx([value] * 2, abs=1e-9), score


@pytest.mark.parametrize("name, labels", [*((name, None) for name in KINDS), *DEGENERATE])
def test_scores_of_resamples_against_tables_written_out(name, labels):
    [table] = make_tables(name, seeds=[0], examples=12, labels=labels).values()
    weights = np.random.default_rng(1).multinomial(12, np.ones(12) / 12, 25).T
    weights[:, 0], weights[:, 1] = (
        12 * np.eye(12)[:2]
    )  # one example only: degenerate for the correlations
    scores = metrics.scorer(task(name), Predictions.of(table))(weights.astype(float))
    for number, drawn in enumerate(weights.T):
        resampled = written_out(table, drawn)
        expected = metrics.score_predictions(task(name), resampled) | scores_elsewhere(
            task(name), resampled
        )
        assert {score: values[number] for score, values in scores.items()} == pytest.approx(
            expected, abs=1e-9
        )


def test_a_resample_of_one_example_is_constant_whatever_rounding_leaves():
    sides = np.random.default_rng(4).normal(3.3, 1.1, (2, 300))
    scores = metrics.correlation_scorer(np.arange(300), *sides)(300 * np.eye(300))
    assert not scores["pearson"].any() and not scores["spearman"].any()


@pytest.mark.parametrize("name", KINDS)
def test_bootstrap_gives_the_scores_of_each_run_in_every_resample(name, monkeypatch):
    monkeypatch.setattr(uncertainty, "CHUNK", 3)  # the last chunk is not full
    tables = make_tables(name, seeds=[30, 4, 12, 5, 6, 7])
    student = [*tables.values()]
    grids = {"student": [student[:3], student[3:]], "teacher": [student[:3]], "bag": [[student[5]]]}
    models = {
        model: [
            [metrics.scorer(task(name), Predictions.of(table)) for table in by_seed]
            for by_seed in grid
        ]
        for model, grid in grids.items()
    }
    draws = uncertainty.bootstrap(models, 9, resamples=7, seed=5)
    weights = uncertainty.resample_weights(9, 7, (5, 9, 0))
    for model, grid in grids.items():
        for score, values in draws[model].items():
            assert values.shape == (len(grid), len(grid[0]), 7), score
    for draw in range(7):
        for model, grid in grids.items():
            for (outer, by_seed), inner in itertools.product(enumerate(grid), range(len(grid[0]))):
                table = written_out(by_seed[inner], weights[draw])
                expected = metrics.score_predictions(task(name), table)
                assert {
                    score: values[outer, inner, draw] for score, values in draws[model].items()
                } == pytest.approx(expected, abs=1e-9)


def test_one_run_and_mean_of_many_draws():
    tables = make_tables("sar", examples=200)
    point = {
        seed: metrics.score_predictions(task("sar"), table)["accuracy"]
        for seed, table in tables.items()
    }
    one = bootstrap_scores(task("sar"), {0: tables[0]}, 4000)["accuracy"]
    assert (uncertainty.over_runs(one) == one[0, 0]).all()  # one seed: no variance between seeds
    assert one.mean() == pytest.approx(point[0], abs=4 * one.std() / math.sqrt(4000))
    assert one.std() == pytest.approx(math.sqrt(point[0] * (1 - point[0]) / 200), rel=0.06)
    both = bootstrap_scores(task("sar"), tables, 4000)["accuracy"]
    assert both.mean() == pytest.approx(
        np.mean(list(point.values())), abs=4 * both.std() / math.sqrt(4000)
    )


def test_weights():
    weights = uncertainty.resample_weights(50, 4000, (0, 50))
    assert weights.shape == (4000, 50) and (weights.sum(axis=1) == 50).all()
    # multinomial: mean 1, variance 1 - 1/50, correlation between units -1/49
    assert weights.mean(axis=0) == pytest.approx(np.ones(50), abs=5 / math.sqrt(4000))
    assert weights.var(axis=0) == pytest.approx(np.full(50, 0.98), abs=0.25)
    assert np.corrcoef(weights.T)[~np.eye(50, dtype=bool)].mean() == pytest.approx(
        -1 / 49, abs=1e-3
    )
    assert (weights == uncertainty.resample_weights.__wrapped__(50, 4000, (0, 50))).all()
    assert (weights != uncertainty.resample_weights(50, 4000, (1, 50))).any()
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 7


# --- pairs of models ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_difference_is_paired(name):
    student, teacher = make_tables(name, noise=0.6), make_tables(name, noise=0.3)
    teacher = {seed: table.assign(gold=student[seed]["gold"]) for seed, table in teacher.items()}
    differences = bootstrap_difference(task(name), student, teacher, 50, seed=3)
    apart = [bootstrap_scores(task(name), tables, 50, seed=3) for tables in (student, teacher)]
    for score, values in differences.items():
        assert values == pytest.approx(apart[0][score] - apart[1][score], abs=1e-12)
    assert not any(
        values.any() for values in bootstrap_difference(task(name), student, student, 50).values()
    )


@pytest.mark.parametrize("name", KINDS)
def test_loyalty_of_resamples(name):
    teacher, student = make_tables(name, start=1), make_tables(name, start=1, noise=0.7)
    if name == "sts":  # out of the scale, as raw outputs may be
        student = {
            seed: table.assign(predicted=table["predicted"] * 1.5 - 0.5)
            for seed, table in student.items()
        }
    runs = [Predictions.of(teacher[0])], Predictions.of(student[0])
    same = loyalty.loyalty_scorer(task(name), *runs)(np.ones((9, 1)))
    expected = loyalty.compare_predictions(
        task(name), Predictions.of(teacher[0]), Predictions.of(student[0])
    )
    assert {name: value.item() for name, value in same.items()} == pytest.approx(
        {key: expected[key] for key in same}, abs=1e-9
    )
    values = bootstrap_loyalty(task(name), teacher, student, 15)
    weights = uncertainty.resample_weights(9, 15, (0, 9, 0))
    for draw in range(15):
        pairs = [
            [written_out(side[seed], weights[draw]) for side in (teacher, student)]
            for seed in (0, 1)
        ]
        runs = [
            loyalty.compare_predictions(task(name), *map(Predictions.of, pair)) for pair in pairs
        ]
        for measure in values:
            expected = [run[measure] for run in runs]
            assert values[measure][0, :, draw] == pytest.approx(expected, abs=1e-9), measure
    assert (
        list(values)
        == {
            "upos": LABEL_LOYALTIES,
            "sar": LABEL_LOYALTIES,
            "ner": [*LABEL_LOYALTIES, "span_loyalty"],
            "sts": ["regression_loyalty", "regression_loyalty_rmse", "regression_loyalty_pearson"],
        }[name]
    )


def test_runs_that_do_not_match_are_refused():
    tables = make_tables("sar")
    scores = lambda other: bootstrap_scores(task("sar"), {0: tables[0], 1: other}, 5)  # noqa: E731
    with pytest.raises(
        ValueError,
        match=r"example 's0', position 0 is in the predictions of seed 0 only \(9 such units\)",
    ):
        scores(tables[1].assign(example=tables[1]["example"] + "x"))
    with pytest.raises(ValueError, match="is in the predictions of seed 0 only"):
        scores(tables[1][1:])
    with pytest.raises(
        ValueError,
        match="predictions of seed 0 and the predictions of seed 1 differ in their gold labels",
    ):
        scores(tables[1].assign(gold="5"))
    with pytest.raises(ValueError, match="table of seed 1: missing columns predicted"):
        scores(tables[1].drop(columns="predicted"))
    scorers = [metrics.scorer(task("sar"), Predictions.of(table)) for table in tables.values()]
    one, two = scorers[:1], scorers
    uneven = [{"a": [two, one]}, {"a": [[]]}, {"a": []}]
    for models in [*uneven, {"a": [two], "b": [two + one]}, {"a": [one] * 2, "b": [one] * 3}]:
        with pytest.raises(ValueError, match="need one seed or equal numbers of .*'a': "):
            uncertainty.bootstrap(models, 9, 5)
    draws = uncertainty.bootstrap({"a": [two] * 3, "b": [two], "c": [one]}, 9, 5)
    shapes = {model: scores["accuracy"].shape for model, scores in draws.items()}
    assert shapes == {"a": (3, 2, 5), "b": (1, 2, 5), "c": (1, 1, 5)}


# --- seeds ----------------------------------------------------------------------------------------


def runs_of(effects, noise=0.0, resamples=20_000, own=0.0, start=0):
    """Draws (D, F, R) of runs with the scores `effects` (D, F).

    noise: the sampling error that all runs share; own: that of each run alone. As on real data, the
    run's own errors are in its score too.
    """
    rng, effects = np.random.default_rng(start), np.array(effects, dtype=float)[..., None]
    shared = rng.normal(0, noise, resamples)
    error = rng.normal(0, own, effects.shape)
    return effects + error + shared + rng.normal(0, own, (*effects.shape[:2], resamples))


EFFECTS = np.array([[0.0, 1.0, 5.0], [2.0, 2.0, 3.0], [7.0, 6.0, 9.0]])


@pytest.mark.parametrize("effects", [[[1.0, 2.0, 6.0]], [[1.0], [2.0], [6.0]]])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_one_level_of_seeds_alone_has_the_t_interval(effects, level):
    found = uncertainty.interval(runs_of(effects), level)
    low, high = stats.t.interval(level, 2, loc=3, scale=stats.sem([1, 2, 6]))
    assert found == pytest.approx((low, high), abs=0.05 * (high - low))


def test_variance_of_seeds_and_examples_by_hand():
    noise = 0.8
    draws = uncertainty.over_runs(runs_of(EFFECTS, noise, resamples=200_000))
    rows, columns = EFFECTS.mean(axis=1), EFFECTS.mean(axis=0)
    parts = [sum((value - 35 / 9) ** 2 for value in side) / 2 / 3 for side in (rows, columns)]
    variance = noise**2 + sum(parts)
    degrees = variance**2 / sum(part**2 / 2 for part in parts)
    assert 2 < degrees < 5
    expected = stats.t(degrees, 35 / 9, math.sqrt(variance))
    for q in (0.01, 0.1, 0.5, 0.7, 0.975):
        assert np.quantile(draws, q) == pytest.approx(expected.ppf(q), abs=0.15)


def test_equal_runs_add_nothing_and_the_order_of_seeds_does_not_matter():
    same = runs_of(np.full((3, 3), 0.7), noise=0.1)
    assert uncertainty.over_runs(same) == pytest.approx(same[0, 0], abs=1e-6)
    runs = runs_of(EFFECTS, noise=0.5, own=0.3)
    draws = uncertainty.over_runs(runs)
    for other in (runs[[2, 0, 1]], runs[:, [1, 2, 0]], runs[::-1, ::-1], runs.swapaxes(0, 1)):
        assert uncertainty.over_runs(other) == pytest.approx(draws, abs=1e-9)


def test_what_the_examples_explain_counts_once():
    """Runs without any effect of seeds: they differ because each errs on examples of its own."""
    variances = []
    for start in range(400):
        runs = runs_of(np.zeros((3, 3)), noise=0.7, own=0.6, resamples=400, start=start)
        low, high = uncertainty.interval(runs)
        variances.append(((high - low) / 2 / 1.96) ** 2)
    assert np.mean(variances) == pytest.approx(0.7**2 + 0.6**2 / 9, rel=0.25)


def test_differences_pair_the_seeds():
    teacher = runs_of([[0.0, 3.0, 9.0]], noise=0.5)
    student = runs_of([[1.0, 4.0, 10.0]] * 3, noise=0.5)  # better by 1 at every fine-tuning seed
    gaps = uncertainty.over_runs(student - teacher)
    assert gaps == pytest.approx(np.ones(20_000))
    assert uncertainty.p_value(student - teacher) == pytest.approx(2 / 20_001)
    assert uncertainty.p_value(student) > 0.05  # alone it varies by much more
    bag = runs_of([[0.5]], noise=0.5)
    low, high = uncertainty.interval(student - bag)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, 4.5, 7**0.5), abs=0.8)


@steady
@given(st.integers(1, 4), st.integers(1, 4), st.floats(-3, 3), st.integers(0, 99))
def test_p_value_and_interval_agree(distilled, tuned, effect, start):
    effects = effect + np.random.default_rng(start).normal(size=(distilled, tuned))
    runs = runs_of(effects, noise=0.5, resamples=999, own=0.2, start=start)
    p = uncertainty.p_value(runs)
    draws = uncertainty.over_runs(runs)
    rarer = min(sum(draws < 0), sum(draws > 0))
    assert p == pytest.approx(min(1, 2 * (rarer + 1) / 1000))
    low, high = uncertainty.interval(runs)
    if abs(p - 0.05) > 2.1 / 1000:
        assert (p < 0.05) == (low > 0 or high < 0)


def test_a_ratio_is_that_of_the_means_and_linear_in_the_runs():
    above, below = runs_of(EFFECTS + 50, 0.5, 50), runs_of(EFFECTS[:1] + 60, 0.5, 50, start=1)
    ratios = uncertainty.ratio(above, below)
    means = above.mean(axis=(0, 1)) / below.mean(axis=(0, 1))
    assert ratios.mean(axis=(0, 1)) == pytest.approx(means)
    # without one row of runs the ratio of means moves to the mean of the other ratios
    left = above[1:].mean(axis=(0, 1)) / below.mean(axis=(0, 1))
    assert ratios[1:].mean(axis=(0, 1)) == pytest.approx(left, abs=1e-9)
    fewer = above[:, 1:].mean(axis=(0, 1)) / below[:, 1:].mean(axis=(0, 1))
    moved = ratios[:, 1:].mean(axis=(0, 1)) - means
    assert moved == pytest.approx(fewer - means, rel=0.1)


@pytest.mark.parametrize(
    "kind, scenario",
    [
        (coverage.REALISTIC, "seeds as much as examples"),
        (coverage.REALISTIC, "no variance between seeds"),
        (coverage.EXTREME, "distillation seeds alone"),
    ],
)
def test_coverage_over_seeds(kind, scenario, monkeypatch):
    monkeypatch.setattr(coverage, "RESAMPLES", 500)
    found = coverage.simulate(kind[scenario], [(3, 3)], 300, 400)
    assert 0.925 <= found["rolib"] <= 0.98  # of 400: two standard errors are 2 points
    if kind is coverage.EXTREME:
        assert found["multinomial"] < 0.8  # what this test is there to refuse
    else:
        assert found["width_rolib"] < 0.8 * found["width_student"]


def test_the_simulation_writes_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "ROWS", [("accuracy", [(3, 3), (1, 3)], 50)])
    coverage.main(5, tmp_path / "coverage.csv")
    table = pd.read_csv(tmp_path / "coverage.csv")
    assert list(table["scenario"]) == list(coverage.ACCURACIES)
    assert set(table["seeds"]) == {"3x3 - 1x3"} and table["rolib"].between(0, 1).all()


# --- intervals and p-values -----------------------------------------------------------------------


def test_interval_and_p_value_by_hand():
    assert uncertainty.interval(np.arange(101), 0.9) == pytest.approx((5, 95))
    assert uncertainty.p_value([-1, *[1] * 98]) == pytest.approx(2 * 2 / 100)
    assert uncertainty.p_value([1.0] * 999) == pytest.approx(0.002)
    assert uncertainty.p_value([0.0] * 9) == 1.0
    for call, bad in itertools.product(
        [uncertainty.interval, uncertainty.p_value], [[], [math.nan, 1.0], [[1.0]]]
    ):
        with pytest.raises(ValueError, match="at least one, without NaN"):
            call(bad)


@pytest.mark.parametrize("effect", [0.0, 0.05, 0.1, 0.15])
def test_p_value_against_a_sign_flip_test(effect):
    rng, n = np.random.default_rng(7), 400
    gaps = effect + rng.normal(size=n)  # student minus teacher, example by example
    draws = uncertainty.resample_weights(n, 5000, (0, n)) @ gaps / n
    flips = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=5000, rng=1
    )
    assert uncertainty.p_value(draws) == pytest.approx(flips.pvalue, abs=0.03)
    low, high = uncertainty.interval(draws)
    assert (uncertainty.p_value(draws) < 0.05) == (low > 0 or high < 0)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, and never falls: .04 .06 .06 .06
    assert uncertainty.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert uncertainty.holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert uncertainty.holm([0.2]) == pytest.approx([0.2])
    assert len(uncertainty.holm([])) == 0
    for bad in ([0.1, math.nan], [-0.1], [1.1], [[0.1]]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            uncertainty.holm(bad)


@steady
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.floats(0.001, 0.999),
)
def test_holm_properties(p, random, alpha):
    adjusted, m = uncertainty.holm(p), len(p)
    assert all(
        a <= b or x > y
        for (x, a), (y, b) in itertools.permutations(zip(p, adjusted, strict=True), 2)
    )
    assert ((np.array(p) <= adjusted) & (adjusted <= np.minimum(1, m * np.array(p)))).all()
    order = random.sample(range(m), m)
    assert uncertainty.holm([p[i] for i in order]) == pytest.approx(adjusted[order], abs=0)
    rejected = 0  # the textbook's step-down: stop at the first p above alpha / (tests left)
    for value in sorted(p):
        if value * (m - rejected) > alpha:
            break
        rejected += 1
    assert (adjusted <= alpha).sum() == rejected


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bins, sharpness", [(10, 1.0), (15, 0.1), (3, 30.0), (1, 1.0)])
def test_reliability_against_a_plain_loop(bins, sharpness):
    rng = np.random.default_rng(bins)
    probabilities = rng.dirichlet(np.full(4, sharpness), 300).astype(np.float32)
    correct = rng.random(300) < probabilities.max(axis=1) * 0.9
    table = uncertainty.reliability(probabilities.max(axis=1), correct, bins)
    assert list(table) == ["low", "high", "confidence", "accuracy", "count"] and len(table) == bins
    for number, row in enumerate(table.itertuples()):
        low, high = number / bins, (number + 1) / bins
        inside = [
            (max(p), c)
            for p, c in zip(probabilities.tolist(), correct, strict=True)
            if low < max(p) <= high
        ]
        assert (row.low, row.high, row.count) == (
            pytest.approx(low),
            pytest.approx(high),
            len(inside),
        )
        if inside:
            confidence, accuracy = (sum(side) / len(inside) for side in zip(*inside, strict=True))
            assert (row.confidence, row.accuracy) == pytest.approx((confidence, accuracy), abs=1e-9)
        else:
            assert math.isnan(row.confidence) and math.isnan(row.accuracy)


def test_calibration_by_hand():
    # certain and right; certain and wrong; 0.75 and right
    assert uncertainty.reliability([1, 1, 0.75], [True, False, True])["count"].tolist() == [
        0
    ] * 7 + [1, 0, 2]
    # a confidence on an edge belongs to the bin below it
    assert uncertainty.reliability([0.5], [True], bins=2)["count"].tolist() == [1, 0]
    for bad in (([0.5], [True, False]), ([[0.5, 0.5]], [True])):
        with pytest.raises(ValueError, match="arrays must"):
            uncertainty.reliability(*bad)
    for bad in (
        ([], []),
        ([1.5], [True]),
        ([-0.5], [True]),
        ([math.nan], [True]),
        ([0.5], [2]),
        ([0.5], [True], 0),
    ):
        with pytest.raises(ValueError, match="from 0 to 1"):
            uncertainty.reliability(*bad)


# --- simulations: a 95 % interval holds the true value in 93 to 97 % of the repetitions -----------

REPETITIONS, RESAMPLES = 1500, 400


def right(probability, rng):
    """Gold labels and predictions that are right with the given probabilities."""
    return np.ones(len(probability)), rng.random(len(probability)) < probability


def simulate_accuracy(rng, n=300):
    return metrics.label_scorer(np.arange(n), *right(np.full(n, 0.85), rng)), n, {"accuracy": 0.85}


def simulate_correlations(rng, n=250, rho=0.5):
    gold, noise = rng.normal(size=(2, n))
    scorer = metrics.correlation_scorer(
        np.arange(n), gold, rho * gold + math.sqrt(1 - rho**2) * noise
    )
    return scorer, n, {"pearson": rho, "spearman": 6 / math.pi * math.asin(rho / 2)}


def simulate_words(rng, n=250):
    """Sentences of 5 to 19 words, easy or hard as a whole: each word right with 0.95 or 0.75."""
    examples = np.repeat(np.arange(n), rng.integers(5, 20, n))
    return (
        metrics.label_scorer(examples, *right(rng.choice([0.95, 0.75], n)[examples], rng)),
        n,
        {"accuracy": 0.85},
    )


def simulate_pair(rng, n=300):
    """Two models on the same examples, easy or hard for both: right with 0.97 or 0.6.

    The second model is right with 0.03 less.
    """
    ease = rng.choice([0.97, 0.6], n)
    better, worse = (
        metrics.label_scorer(np.arange(n), *right(ease - less, rng)) for less in (0, 0.03)
    )
    return (
        lambda weights: {"accuracy": better(weights)["accuracy"] - worse(weights)["accuracy"]},
        n,
        {"accuracy": 0.03},
    )


@pytest.mark.parametrize(
    "simulate", [simulate_accuracy, simulate_correlations, simulate_words, simulate_pair]
)
def test_coverage(simulate):
    rng, covered = np.random.default_rng(2), {}
    for _ in range(REPETITIONS):
        scorer, examples, truth = simulate(rng)
        weights = np.ascontiguousarray(
            uncertainty.resample_weights(examples, RESAMPLES, (1,)).T, dtype=float
        )
        values = scorer(weights)
        for score, true in truth.items():
            low, high = uncertainty.interval(values[score])
            covered[score] = covered.get(score, 0) + (low <= true <= high)
    for score, count in covered.items():
        assert 0.93 <= count / REPETITIONS <= 0.97, f"{score}: {count / REPETITIONS:.1%}"
