"""The predictions of fine-tuning runs: stored as tables, read as arrays, checked once.

Columns of a table, as a run stores it:
- `example`: the id of the example, a string.
- `position`: the index of the word in the sentence, from 0; 0 for measures without words.
- `gold` and `predicted`: label names; for STS floats from 0 to 5.
- `probabilities`: a list of float32 over the labels, in their order; empty for STS.

One row is one scored unit: a word for taggers, an example for the other measures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

UNIT = ["example", "position"]  # the columns that identify a scored unit
COLUMNS = [*UNIT, "gold", "predicted", "probabilities"]
TINY = np.finfo(float).tiny  # takes the place of 0 in logarithms
CHUNK = 128  # rows of probabilities at a time: they fit into the processor's cache
Span = tuple[int, int, str]  # start, end (exclusive), class


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one run, sorted by unit: N units, C labels (0 for STS)."""

    units: pd.DataFrame  # example, position
    gold: np.ndarray  # (N,)
    predicted: np.ndarray  # (N,)
    probabilities: np.ndarray  # (N, C)

    @classmethod
    def of(cls, table: pd.DataFrame, name: str = "prediction table") -> "Predictions":
        """The predictions of a table whose rows are in any order.

        ValueError if the table is empty, lacks a value or repeats a unit. The message calls the
        table `name`.
        """
        if missing := [column for column in COLUMNS if column not in table]:
            raise ValueError(f"{name}: missing columns {', '.join(missing)}")
        if table.empty:
            raise ValueError(f"{name}: it has no rows, so there is nothing to score")
        table = table.reset_index(drop=True)
        # Arrow keeps all lists in one block of memory, which is much faster than N small arrays.
        lists = pd.Series(pd.arrays.ArrowExtensionArray(pa.array(table.pop("probabilities"))))
        sizes, table = lists.list.len().fillna(0), table.sort_values(UNIT)
        faults = {
            "missing value": table[COLUMNS[:-1]].isna().any(axis=1),
            "more than one row": table.duplicated(UNIT),
            "another number of probabilities than elsewhere": sizes[table.index] != sizes.mode()[0],
        }
        for fault, bad in faults.items():
            if bad.any():
                raise ValueError(f"{name}: {fault} for {unit_name(table.loc[bad, UNIT].iloc[0])}")
        rows = lists.list.flatten().to_numpy(na_value=np.nan).reshape(len(table), -1)[table.index]
        table = table.reset_index(drop=True)
        return cls(table[UNIT], table["gold"].to_numpy(), table["predicted"].to_numpy(), rows)

    @classmethod
    def read(cls, path: Path, probabilities: bool = True) -> "Predictions":
        """The predictions of a stored table; ValueError if the table is damaged.

        Without probabilities their shape is (N, 0), and reading takes a tenth of the time.
        """
        columns = COLUMNS if probabilities else COLUMNS[:-1]
        try:
            # Arrow's own threads are off, because several processes read tables at the same time.
            table = pq.read_table(path, columns=columns, use_threads=False, memory_map=True)
            table = table.to_pandas(types_mapper=_arrow_lists)
            if not probabilities:
                table["probabilities"] = [()] * len(table)
            return cls.of(table, "table")
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:  # Arrow's errors are of both kinds
            problem = f"{path} is damaged ({str(error).splitlines()[0]})"
            raise ValueError(f"{problem}: delete the folder of this run") from None

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
        """(N,) `row_entropies` of the probabilities; ValueError if a row is no distribution."""
        return row_entropies(distributions("prediction", self.probabilities))

    @cached_property
    def right(self) -> np.ndarray:
        """(N,) whether each unit has its gold label."""
        return self.gold == self.predicted

    @cached_property
    def shares(self) -> pd.Series:
        """The share of units that get each label."""
        return pd.Series(self.predicted).value_counts(normalize=True)

    @cached_property
    def spans(self) -> dict[str, list[set[Span]]]:
        """The `spans` of each sentence, under gold and predicted; ValueError for a missing word."""
        starts = np.flatnonzero(np.diff(self.examples, prepend=-1))
        gaps = self.units["position"] != np.arange(len(self.gold)) - starts[self.examples]
        if gaps.any():
            raise ValueError(f"a word is missing before {unit_name(self.units[gaps].iloc[0])}")
        gold, predicted = (np.split(tags, starts[1:]) for tags in (self.gold, self.predicted))
        return {"gold": list(map(spans, gold)), "predicted": list(map(spans, predicted))}


def _arrow_lists(kind: pa.DataType) -> pd.ArrowDtype | None:
    """The type of a pandas column: lists stay with Arrow, others have pandas' usual type."""
    return pd.ArrowDtype(kind) if pa.types.is_list(kind) else None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Store a prediction table."""
    table.astype({"position": "int32"}).to_parquet(path, compression="zstd", index=False)


def check_paired(runs: Mapping[str, Predictions]) -> None:
    """Raise ValueError unless all runs predicted the same units and have the same gold labels.

    runs: the name of each run for the message, which names the first unit or the run at fault.
    """
    (first_name, first), *others = runs.items()
    for name, run in others:
        if not first.units.equals(run.units):
            one, two = (pd.MultiIndex.from_frame(side.units) for side in (first, run))
            for owner, side, other in ((first_name, one, two), (name, two, one)):
                if len(units := side.difference(other, False)):
                    only = f"in the {owner} only ({len(units)} such units)"
                    raise ValueError(f"{unit_name(units[0])} is {only}")
        if not np.array_equal(first.gold, run.gold):
            raise ValueError(f"the {first_name} and the {name} differ in their gold labels")


def spans(tags: Iterable[str]) -> set[Span]:
    """The entity spans (start, end, class) of one sentence's BIO tags: words start to end - 1.

    As in conlleval, an I- tag that does not continue a span of its own class starts a new span.
    ValueError for a tag that is not O, B-class or I-class.
    """
    found, start, current = set(), 0, ""
    for position, tag in enumerate([*tags, "O"]):  # the last O closes a span that reaches the end
        prefix, _, label = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not label):
            raise ValueError(f"tag {tag!r} at word {position}: expected O, B-class or I-class")
        if prefix == "I" and label == current:
            continue
        if current:
            found.add((start, position, current))
        start, current = position, label
    return found


def distributions(side: str, probabilities: ArrayLike) -> np.ndarray:
    """Rows of probabilities as an array (N, C).

    ValueError if a row has a negative value or a sum that differs from 1 by over 1e-3. The message
    names the first such row of the `side`.
    """
    rows = np.asarray(probabilities)
    if rows.ndim != 2:
        raise ValueError(f"{side} probabilities must have shape (N, C), but have {rows.shape}")
    good = (rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= 1e-3)  # False for NaN
    if not good.all():
        row = rows[np.argmin(good)]
        values = f"its least value is {row.min(initial=1):g} and their sum {row.sum():g}"
        raise ValueError(f"{side} row {np.argmin(good)} is no distribution: {values}")
    return rows


def row_entropies(*sides: np.ndarray) -> np.ndarray:
    """The entropy (N,) in nats of each row of the mean of one or more distributions (N, C).

    Each row is first scaled to the sum 1 in float64.
    """
    entropies = [np.empty(0)]
    for start in range(0, len(sides[0]), CHUNK):
        rows = [side[start : start + CHUNK].astype(np.float64) for side in sides]
        for part in rows:
            part *= 1 / len(sides) / part.sum(axis=1, keepdims=True)
        mean = sum(rows[1:], start=rows[0])
        logs = np.log(np.maximum(mean, TINY))  # 0 log 0 = 0; faster than SciPy's entr
        entropies.append(-np.einsum("nc,nc->n", mean, logs))
    return np.concatenate(entropies)


def unit_name(unit: Sequence) -> str:
    """The name of a unit (example, position) in error messages."""
    return "example {!r}, position {}".format(*unit)
