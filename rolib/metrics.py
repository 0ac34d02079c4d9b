"""Scores under their true names: accuracy, macro-F1, span F1 of named entities, Pearson and Spearman correlation.

All scores are fractions (0 to 1; correlations -1 to 1); percent is a matter of display. Degenerate input has a defined
score and never a NaN or a warning: each function says which. Bad input is a ValueError.

A *scorer* gives scores as a function of example weights: with ones it gives the scores of the test set, with the counts of
a bootstrap resample those of the resample (rolib.uncertainty). It reduces predictions to counts per example once, so that
thousands of resamples are products of two matrices.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse
from scipy.special import entr

UNIT = ["example", "position"]  # the columns that together name one scored unit
COLUMNS = [*UNIT, "gold", "predicted", "probabilities"]
SPAN_SCORES = ["strict_f1_micro", "strict_f1_macro", "boundary_f1_micro", "boundary_f1_macro"]
SPAN_SCORES += ["strict_precision_micro", "strict_recall_micro"]
CHUNK = 128  # rows of probabilities at a time, so that they stay in the processor's cache
ROUNDING = 1e-13  # a spread below this share of the squares is what rounding leaves of a constant
# Of weights (examples, R), whole numbers as float64: score name -> (R,).
Scorer = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one run in order of units: N words of taggers, else examples; C labels, none for STS.

    As a table (what a run stores): `example` (id, str), `position` (word index from 0; 0 where there are no words), `gold` and
    `predicted` (label names; floats from 0 to 5 for STS), `probabilities` (list over the labels in their order; empty for STS).
    """

    units: pd.DataFrame  # example, position
    gold: np.ndarray  # (N,)
    predicted: np.ndarray  # (N,)
    probabilities: np.ndarray  # (N, C)

    @classmethod
    def of(cls, table: pd.DataFrame, name: str = "prediction table") -> "Predictions":
        """From a table in any order; ValueError, which calls it `name`, if it is empty, lacks a value or repeats a unit."""
        if missing := [column for column in COLUMNS if column not in table.columns]:
            raise ValueError(f"{name}: missing columns {', '.join(missing)}")
        rows = [() if row is None else row for row in table["probabilities"]]
        (usual, _), *_ = Counter(map(len, rows)).most_common(1) or [(0, 0)]
        for unit, row in zip(table[UNIT].itertuples(index=False), rows, strict=True):
            if len(row) != usual:
                raise ValueError(f"{unit_name(unit)} has {len(row)} probabilities in the {name}, the others have {usual}")
        return cls._checked(table, np.array(rows), name)

    @classmethod
    def read(cls, path: Path, probabilities: bool = True) -> "Predictions":
        """A stored table; errors as `of`. Without probabilities (N, 0) it takes a tenth of the time."""
        columns = COLUMNS if probabilities else COLUMNS[:-1]
        try:
            # Without Arrow's own threads, as the tables of several runs are read side by side.
            stored = pq.read_table(path, columns=columns, use_threads=False, memory_map=True).select(columns)
        except (pa.ArrowInvalid, KeyError) as error:
            mend = "delete the folder of this run and evaluate the model again"
            raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}): {mend}") from None
        rows = np.zeros((len(stored), 0), dtype=np.float32)
        if probabilities and len(stored):  # without a Python list for each row
            lists = stored["probabilities"].combine_chunks()
            if len(pc.unique(pc.list_value_length(lists))) > 1:
                raise ValueError(f"{path}: rows of unequal numbers of probabilities")
            rows = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(stored), -1)
        return cls._checked(stored.select(COLUMNS[:-1]).to_pandas(), rows, str(path))

    @classmethod
    def _checked(cls, table: pd.DataFrame, probabilities: np.ndarray, name: str) -> "Predictions":
        if table.empty:
            raise ValueError(f"{name}: it has no rows, so there is nothing to score")
        table = table[COLUMNS[:-1]].reset_index(drop=True)
        lacking, doubled = table.isna().any(axis=1), table.duplicated(UNIT)
        for problem, rows in [("missing value", lacking), ("more than one row", doubled)]:
            if rows.any():
                raise ValueError(f"{name}: {problem} for {unit_name(table.loc[rows, UNIT].iloc[0])}")
        table = table.sort_values(UNIT)
        return cls(
            table[UNIT].reset_index(drop=True),
            *(table[side].to_numpy(dtype=None if table[side].dtype.kind == "f" else object) for side in ("gold", "predicted")),
            probabilities[table.index],
        )

    def table(self) -> pd.DataFrame:
        """As a table, in order of units."""
        return self.units.assign(gold=self.gold, predicted=self.predicted, probabilities=list(self.probabilities))

    @cached_property
    def examples(self) -> np.ndarray:
        """(N,) the number of each unit's example, from 0 in sorted order."""
        return pd.factorize(self.units["example"])[0]

    @property
    def num_examples(self) -> int:
        """The number of examples (sentences for taggers)."""
        return int(self.examples[-1]) + 1

    @cached_property
    def entropies(self) -> np.ndarray:
        """(N,) `row_entropies` of the probabilities; ValueError if they are none."""
        return row_entropies(distributions("prediction", self.probabilities))

    @cached_property
    def spans(self) -> dict[str, list[set]]:
        """The gold and the predicted `spans` of each sentence; ValueError if a word is missing."""
        starts = np.flatnonzero(np.diff(self.examples, prepend=-1))
        gaps = self.units["position"] != np.arange(len(self.gold)) - starts[self.examples]
        if gaps.any():
            raise ValueError(f"a word is missing before {unit_name(self.units[gaps].iloc[0])}")
        return {side: [spans(tags) for tags in np.split(getattr(self, side), starts[1:])] for side in ("gold", "predicted")}


def score_predictions(task, predictions: pd.DataFrame) -> dict[str, float]:
    """All scores of one prediction table for a task (rolib.tasks.Task; its .name and .kind are read).

    ner: see `span_scorer`; other taggers and classifiers: `label_scorer`; regression: `correlation_scorer`. The order of the
    rows does not matter. ValueError for a table that `Predictions` refuses, or a NER sentence that lacks a word.
    """
    run = Predictions.of(predictions)
    return at_ones(scorer(task, run), run.num_examples)


def at_ones(score: Scorer, examples: int) -> dict[str, float]:
    """What a scorer gives for the test set as it is: every example once."""
    return {name: value.item() for name, value in score(np.ones((examples, 1))).items()}


def scorer(task, run: Predictions) -> Scorer:
    """The scores of a run for a task as a function of example weights."""
    if task.name == "ner":
        return span_scorer(**run.spans)
    make = correlation_scorer if task.kind == "regression" else label_scorer
    return make(run.examples, run.gold, run.predicted)


def label_scorer(examples: np.ndarray, gold: Sequence, predicted: Sequence) -> Scorer:
    """Accuracy and macro-F1 of units (N,) that belong to examples numbered from 0. ValueError for N = 0 or unequal N.

    Macro-F1: the unweighted mean of the F1 of every label that occurs in gold or predicted (scikit-learn's default); a label
    without a true positive counts 0.
    """
    check_lengths(gold, predicted)
    labels = pd.factorize(np.concatenate([np.asarray(gold, dtype=object), np.asarray(predicted, dtype=object)]))[0]
    hit, shape = labels[: len(gold)] == labels[len(gold) :], (labels.max() + 1, examples.max() + 1)
    hits = counts(labels[: len(gold)][hit], examples[hit], shape)
    occurrences = counts(labels, np.tile(examples, 2), shape)  # in gold and in predicted

    def scores(weights):
        right, found = hits @ weights, occurrences @ weights
        return {"accuracy": 2 * right.sum(axis=0) / found.sum(axis=0), "macro_f1": _class_mean(_ratio(2 * right, found), found)}

    return scores


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entity spans (start, end, class) of one sentence's BIO tags: words start to end - 1, like a Python slice.

    As in conlleval, an I- tag that does not continue a span of its own class starts a new one.
    ValueError for a tag that is not O, B-class or I-class.
    """
    found, start, current = set(), 0, None
    for position, tag in enumerate([*tags, "O"]):  # the last O closes a span that reaches the end
        if tag == "O" and current is None:
            continue
        prefix, _, label = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not label):
            raise ValueError(f"tag {tag!r} at word {position}: expected O, B-class or I-class")
        if prefix == "I" and label == current:
            continue
        if current is not None:
            found.add((start, position, current))
        start, current = position, label or None
    return found


def span_scorer(gold: Sequence[set], predicted: Sequence[set]) -> Scorer:
    """Scores of the entity spans of sentences, which are the examples. ValueError for no sentences or unequal numbers.

    strict_f1_micro (with strict_precision_micro, strict_recall_micro): a span is right if its borders and class are.
    boundary_f1_micro: a span is right if its borders are, whatever its class (nervaluate's overall "exact").
    strict_f1_macro: mean of the strict F1 of each class that has a span in gold or predicted.
    boundary_f1_macro: the same mean of boundary F1, where a class has as precision the share of its predicted spans
    whose borders are those of a gold span of any class, and as recall the share of its gold spans whose borders were
    predicted with any class. (nervaluate 1.2 compares spans within one class there: its "exact" is just "strict".)

    A ratio with nothing below the line is 0, as in nervaluate and scikit-learn: with no span in gold nor predicted
    every score is 0.0, so silence is not rewarded.
    """
    check_lengths(gold, predicted)
    rows = []  # class, what it counts as, sentence
    for sentence, (wanted, given) in enumerate(zip(gold, predicted, strict=True)):
        for kind, these, others in [(0, wanted, given), (3, given, wanted)]:
            borders = {span[:2] for span in others}
            for span in these:  # counted as a span; as one whose borders are right; as one that is right
                kinds = [kind] + [kind + 1] * (span[:2] in borders) + [kind + 2] * (span in others)
                rows += [(span[2], counted_as, sentence) for counted_as in kinds]
    labels, names = pd.factorize(np.array([row[0] for row in rows], dtype=object))
    kinds, places = np.array([row[1:] for row in rows], dtype=int).reshape(-1, 2).T
    found = counts(6 * labels + kinds, places, (6 * len(names), len(gold)))

    def scores(weights):
        sums = (found @ weights).reshape(len(names), 6, weights.shape[1])
        by_class, total = np.moveaxis(sums, 1, 0), sums.sum(axis=0)
        macro = [_class_mean(f1, by_class[0] + by_class[3]) for f1 in _span_f1(by_class)]
        shares = _ratio(total[5], total[3]), _ratio(total[2], total[0])  # precision, recall
        strict, boundary = zip(_span_f1(total), macro, strict=True)
        return dict(zip(SPAN_SCORES, [*strict, *boundary, *shares], strict=True))

    return scores


def correlation_scorer(examples: np.ndarray, gold: Sequence[float], predicted: Sequence[float]) -> Scorer:
    """Pearson and Spearman correlation (ties by mean rank) of units (N,) that belong to examples numbered from 0.

    0.0 by definition if a side is constant, also if only up to rounding, or N = 1. ValueError for N = 0, unequal N or a value
    that is not finite.
    """
    sides, pearson = finite_pair(gold, predicted), pearson_scorer(examples, gold, predicted)
    groups = [np.unique(side, return_inverse=True)[1] for side in sides]  # equal scores, in rising order
    members = [counts(group, examples, (group.max() + 1, examples.max() + 1)) for group in groups]

    def scores(weights):
        units, gaps = weights[examples], []
        for group, member in zip(groups, members, strict=True):
            held = member @ weights
            ranks = np.cumsum(held, axis=0) - (held - 1) / 2  # the mean rank of `held` equal scores
            gaps.append((ranks - (units.sum(axis=0) + 1) / 2)[group])
        squares = [np.einsum("nr,nr,nr->r", units, *pair) for pair in (gaps, gaps[:1] * 2, gaps[1:] * 2)]
        return pearson(weights) | {"spearman": _ratio(squares[0], np.sqrt(squares[1] * squares[2])).clip(-1, 1)}

    return scores


def pearson_scorer(examples: np.ndarray, gold: Sequence[float], predicted: Sequence[float]) -> Scorer:
    """The Pearson correlation alone; see `correlation_scorer`."""
    sides = finite_pair(gold, predicted)
    means = [side.mean() for side in sides]
    x, y = (side - mean for side, mean in zip(sides, means, strict=True))
    # Sums over each example, so that a resample's moments are one product; centred, so that rounding costs nothing.
    moments = np.stack([np.bincount(examples, weights=values) for values in (np.ones(len(x)), x, y, x * x, y * y, x * y)])

    def scores(weights):
        total, sum_x, sum_y, square_x, square_y, cross = moments @ weights
        norms = []
        for centre, sums, squares in zip(means, (sum_x, sum_y), (square_x, square_y), strict=True):
            spread = squares - sums**2 / total
            # SciPy's bound for a constant, and what rounding leaves of one
            least = np.maximum((np.finfo(float).eps ** 0.75 * (centre + sums / total)) ** 2, ROUNDING * squares)
            norms.append(np.sqrt(np.where(spread <= least, 0, spread)))
        return {"pearson": _ratio(cross - sum_x * sum_y / total, norms[0] * norms[1]).clip(-1, 1)}

    return scores


def distributions(side: str, probabilities: Sequence) -> np.ndarray:
    """Rows of probabilities as an array (N, C), refused with a ValueError if they are none."""
    rows = np.asarray(probabilities)
    if rows.ndim != 2:
        raise ValueError(f"{side} probabilities must have shape (N, C), but have {rows.shape}")
    for problem, bad in [
        ("NaN or infinite probabilities", ~np.isfinite(rows).all(axis=1)),
        ("negative probabilities", (rows < 0).any(axis=1)),
        ("probabilities that do not sum to 1", np.abs(rows.sum(axis=1) - 1.0) > 1e-3),
    ]:
        if bad.any():
            raise ValueError(f"{side} row {int(np.argmax(bad))} has {problem}")
    return rows


def row_entropies(probabilities: np.ndarray) -> np.ndarray:
    """The entropy in nats of each row (N,) of distributions (N, C), scaled to the sum 1 in float64."""
    entropies = np.empty(len(probabilities))
    for start in range(0, len(entropies), CHUNK):
        rows = probabilities[start : start + CHUNK].astype(np.float64)
        entropies[start : start + CHUNK] = entr(rows / rows.sum(axis=1, keepdims=True)).sum(axis=1)
    return entropies


def check_lengths(first: Sequence, second: Sequence) -> None:
    """Refuse empty input and inputs of unequal length (ValueError)."""
    if len(first) != len(second):
        raise ValueError(f"the two sides have different lengths: {len(first)} and {len(second)}")
    if len(first) == 0:
        raise ValueError("both sides are empty, so there is nothing to score")


def finite_pair(first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both inputs as float64 arrays (N,); ValueError for another shape, N = 0, or a value that is not finite."""
    check_lengths(first, second)
    pair = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if pair[0].ndim != 1 or pair[1].ndim != 1:
        raise ValueError(f"scores must have shape (N,), but have {pair[0].shape} and {pair[1].shape}")
    if not np.isfinite(pair).all():
        raise ValueError("scores must be finite numbers, but there is a NaN or an infinite one")
    return pair


def unit_name(unit: Sequence) -> str:
    """How errors name the unit (example, position)."""
    example, position = unit
    return f"example {example!r}, position {position}"


def counts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """How often each pair of a row and a column occurs."""
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()  # equal positions add up


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def _class_mean(values: np.ndarray, occurrences: np.ndarray) -> np.ndarray:
    return _ratio(values.sum(axis=0), (occurrences > 0).sum(axis=0))  # classes that do not occur have the value 0


def _span_f1(found: np.ndarray) -> list[np.ndarray]:
    """Strict and boundary F1 of the six counts (6, ..., R) of `span_scorer`."""
    gold, borders_found, right_found, predicted, borders_right, right = found
    pairs = [(_ratio(right, predicted), _ratio(right_found, gold))]
    pairs += [(_ratio(borders_right, predicted), _ratio(borders_found, gold))]
    return [_ratio(2 * precision * recall, precision + recall) for precision, recall in pairs]
