"""References for several test files: scores by other libraries, and simple bootstraps."""

import numpy as np
from nervaluate import Evaluator
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from rolib.analysis import uncertainty
from rolib.analysis.loyalty import loyalty_scorer
from rolib.evaluation import metrics
from rolib.evaluation.predictions import UNIT, Predictions, check_paired


def scores_elsewhere(task, table):
    """Scores of a prediction table by scikit-learn, SciPy and nervaluate.

    NER: only the scores that nervaluate defines in the same way.
    """
    if task.name == "ner":
        gold, predicted = (
            table.sort_values(UNIT).groupby("example")[side].agg(list).tolist()
            for side in ("gold", "predicted")
        )
        classes = sorted({tag[2:] for tags in [*gold, *predicted] for tag in tags if tag != "O"})
        if not classes:  # nervaluate refuses
            return dict.fromkeys(metrics.SPAN_SCORES, 0.0)
        result = Evaluator(gold, predicted, tags=classes, loader="list").evaluate()
        strict = result["overall"]["strict"]
        macro = np.mean([scores["strict"].f1 for scores in result["entities"].values()])
        scores = {
            "strict_f1_micro": strict.f1,
            "strict_f1_macro": macro,
            "boundary_f1_micro": result["overall"]["exact"].f1,
        }
        return scores | {
            "strict_precision_micro": strict.precision,
            "strict_recall_micro": strict.recall,
        }
    sides = table["gold"].tolist(), table["predicted"].tolist()
    if task.kind != "regression":
        return {
            "accuracy": accuracy_score(*sides),
            "macro_f1": f1_score(*sides, average="macro", zero_division=0),
        }
    spread = min(map(np.ptp, sides))
    return {
        "pearson": 0.0 if spread < 1e-12 else stats.pearsonr(*sides).statistic,
        "spearman": 0.0 if spread == 0 else stats.spearmanr(*sides).statistic,
    }


def expected_calibration_error(probabilities, correct, bins=10):
    """Guo et al. 2017, unit by unit."""
    units = [(max(row), bool(right)) for row, right in zip(probabilities, correct, strict=True)]
    total = 0.0
    for number in range(bins):
        inside = [unit for unit in units if number / bins < unit[0] <= (number + 1) / bins]
        if inside:
            confidence, accuracy = (sum(side) / len(inside) for side in zip(*inside, strict=True))
            total += len(inside) / len(units) * abs(confidence - accuracy)
    return total


def table_of(run):
    """Predictions as a table, sorted by unit."""
    return run.units.assign(
        gold=run.gold, predicted=run.predicted, probabilities=list(run.probabilities)
    )


def runs_of(tables):
    """Predictions by fine-tuning seed, sorted by seed; ValueError unless their units agree."""
    runs = {
        seed: Predictions.of(tables[seed], f"prediction table of seed {seed}")
        for seed in sorted(tables)
    }
    check_paired({f"predictions of seed {seed}": run for seed, run in runs.items()})
    return runs


def bootstrap_scores(task, tables, resamples=10_000, seed=0):
    """The scores of one model's tables (fine-tuning seed -> table) in every resample."""
    runs = runs_of(tables)
    scorers = [metrics.scorer(task, run) for run in runs.values()]
    examples = next(iter(tables.values()))["example"].nunique()
    return uncertainty.bootstrap({"model": [scorers]}, examples, resamples, seed)["model"]


def bootstrap_difference(task, student, teacher, resamples=10_000, seed=0):
    """Student's minus teacher's scores, both in the same resamples."""
    ours, theirs = (
        bootstrap_scores(task, tables, resamples, seed) for tables in (student, teacher)
    )
    return {name: ours[name] - theirs[name] for name in ours}


def bootstrap_loyalty(task, teacher, student, resamples=10_000, seed=0):
    """The loyalty of one model to another in every resample, runs compared seed by seed."""
    theirs, ours = runs_of(teacher), runs_of(student)
    scorers = [loyalty_scorer(task, [theirs[seed]], ours[seed]) for seed in theirs]
    examples = next(iter(teacher.values()))["example"].nunique()
    return uncertainty.bootstrap({"pair": [scorers]}, examples, resamples, seed)["pair"]
