"""The predictions of fine-tuning runs: stored as tables, read as arrays, checked once.

As a table (what a run stores): `example` (id, str), `position` (word index from 0; 0 where there are no words), `gold` and
`predicted` (label names; floats from 0 to 5 for STS), `probabilities` (list of float32 over the labels in their order; empty for
STS). One row a scored unit: a word for taggers, an example otherwise.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.special import entr

UNIT = ["example", "position"]  # the columns that together name one scored unit
COLUMNS = [*UNIT, "gold", "predicted", "probabilities"]
CHUNK = 128  # rows of probabilities at a time, so that they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one run in order of units: N words of taggers, else examples; C labels, none for STS."""

    units: pd.DataFrame  # example, position
    gold: np.ndarray  # (N,)
    predicted: np.ndarray  # (N,)
    probabilities: np.ndarray  # (N, C)

    @classmethod
    def of(cls, table: pd.DataFrame | pa.Table, name: str = "prediction table", columns: Sequence = COLUMNS) -> "Predictions":
        """From a table in any order. ValueError, which calls it `name`, if it is empty, lacks a value or repeats a unit."""
        if isinstance(table, pd.DataFrame):
            table = pa.Table.from_pandas(table, preserve_index=False)
        if missing := [column for column in columns if column not in table.column_names]:
            raise ValueError(f"{name}: missing columns {', '.join(missing)}")
        if not len(table):
            raise ValueError(f"{name}: it has no rows, so there is nothing to score")
        rows = table.select(COLUMNS[:-1]).to_pandas()
        probabilities = np.zeros((len(rows), 0), dtype=np.float32)
        odd = np.zeros(len(rows), dtype=bool)
        if "probabilities" in columns:  # without a Python list for each row
            lists = table["probabilities"].combine_chunks()
            sizes = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
            odd = sizes != np.bincount(sizes).argmax()
            probabilities = lists.flatten().to_numpy(zero_copy_only=False)
        faults = [("missing value", rows.isna().any(axis=1)), ("more than one row", rows.duplicated(UNIT))]
        for problem, bad in [*faults, ("another number of probabilities than elsewhere", odd)]:
            if bad.any():
                raise ValueError(f"{name}: {problem} for {unit_name(rows.loc[bad, UNIT].iloc[0])}")
        order = rows.sort_values(UNIT).index
        rows, probabilities = rows.loc[order], probabilities.reshape(len(rows), -1)[order]
        sides = (rows[side].to_numpy(dtype=None if rows[side].dtype.kind == "f" else object) for side in ("gold", "predicted"))
        return cls(rows[UNIT].reset_index(drop=True), *sides, probabilities)

    @classmethod
    def read(cls, path: Path, probabilities: bool = True) -> "Predictions":
        """A stored table; ValueError for a damaged one. Without probabilities (N, 0) it takes a tenth of the time."""
        columns = COLUMNS if probabilities else COLUMNS[:-1]
        try:
            # Without Arrow's own threads, as the tables of several runs are read side by side.
            return cls.of(pq.read_table(path, columns=columns, use_threads=False, memory_map=True), "table", columns)
        except ValueError as error:  # Arrow's too
            mend = "delete the folder of this run and evaluate the model again"
            raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}): {mend}") from None

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


def check_same_units(one: Predictions, other: Predictions, names: tuple[str, str]) -> None:
    """Raise ValueError, which names the first unit that only one of the two has."""
    if one.units.equals(other.units):
        return
    sides = [pd.MultiIndex.from_frame(side.units) for side in (one, other)]
    for here, there, name in zip(sides, sides[::-1], names, strict=True):
        if len(alone := here.difference(there, sort=False)):
            raise ValueError(f"{unit_name(alone[0])} is in the {name} only ({len(alone)} such units)")


def check_paired(runs: Iterable[tuple[str, Predictions]]) -> None:
    """Raise ValueError, which names the run, unless all (name, run) predicted the same units with the same gold labels."""
    (first_name, first), *others = runs
    for name, run in others:
        check_same_units(first, run, (f"predictions of {first_name}", f"predictions of {name}"))
        if not np.array_equal(first.gold, run.gold):
            raise ValueError(f"the predictions of {first_name} and of {name} differ in their gold labels")


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


def unit_name(unit: Sequence) -> str:
    """How errors name the unit (example, position)."""
    example, position = unit
    return f"example {example!r}, position {position}"
