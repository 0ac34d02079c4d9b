"""The predictions of fine-tuning runs: stored as tables, read as arrays, checked once.

As a table (what a run stores): `example` (id, str), `position` (word index from 0; 0 where there are no words), `gold` and
`predicted` (label names; floats from 0 to 5 for STS), `probabilities` (list of float32 over the labels in their order; empty for
STS). One row a scored unit: a word for taggers, an example otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
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
    def of(cls, table: pd.DataFrame, name: str = "prediction table") -> "Predictions":
        """From a table in any order. ValueError, which calls it `name`, if it is empty, lacks a value or repeats a unit."""
        if missing := [column for column in COLUMNS if column not in table]:
            raise ValueError(f"{name}: missing columns {', '.join(missing)}")
        if table.empty:
            raise ValueError(f"{name}: it has no rows, so there is nothing to score")
        table = table.sort_values(UNIT, ignore_index=True)
        sizes = table["probabilities"].map(len, na_action="ignore").fillna(0)
        faults = [
            ("missing value", table[COLUMNS[:-1]].isna().any(axis=1)),
            ("more than one row", table.duplicated(UNIT)),
        ]
        for problem, bad in [
            *faults,
            ("another number of probabilities than elsewhere", sizes != sizes.mode()[0]),
        ]:
            if bad.any():
                raise ValueError(f"{name}: {problem} for {unit_name(table.loc[bad, UNIT].iloc[0])}")
        probabilities = np.array(table["probabilities"].tolist())  # many times as fast as np.stack
        return cls(
            table[UNIT], table["gold"].to_numpy(), table["predicted"].to_numpy(), probabilities
        )

    @classmethod
    def read(cls, path: Path, probabilities: bool = True) -> "Predictions":
        """A stored table; ValueError for a damaged one. Without probabilities (N, 0) it takes a tenth of the time."""
        columns = COLUMNS if probabilities else COLUMNS[:-1]
        try:
            # Without Arrow's own threads, as the tables of several runs are read side by side.
            table = pd.read_parquet(path, columns=columns, use_threads=False, memory_map=True)
            return cls.of(
                table if probabilities else table.assign(probabilities=[()] * len(table)), "table"
            )
        except ValueError as error:  # Arrow's too
            mend = "delete the folder of this run and evaluate the model again"
            raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}): {mend}") from None

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
        return {
            side: [spans(tags) for tags in np.split(getattr(self, side), starts[1:])]
            for side in ("gold", "predicted")
        }


def check_paired(runs: Mapping[str, Predictions]) -> None:
    """Raise ValueError, which names the first unit or the run at fault, unless all predicted the same units and gold labels."""
    (first_name, first), *others = runs.items()
    for name, run in others:
        if not first.units.equals(run.units):
            ours, theirs = (pd.MultiIndex.from_frame(side.units) for side in (first, run))
            for owner, alone in [
                (first_name, ours.difference(theirs, False)),
                (name, theirs.difference(ours, False)),
            ]:
                if len(alone):
                    raise ValueError(
                        f"{unit_name(alone[0])} is in the {owner} only ({len(alone)} such units)"
                    )
        if not np.array_equal(first.gold, run.gold):
            raise ValueError(f"the {first_name} and the {name} differ in their gold labels")


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
    """Rows of probabilities as an array (N, C); ValueError, which names the first row that is no distribution."""
    rows = np.asarray(probabilities)
    if rows.ndim != 2:
        raise ValueError(f"{side} probabilities must have shape (N, C), but have {rows.shape}")
    good = (rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) <= 1e-3)  # a NaN is neither
    if not good.all():
        number = int(np.argmin(good))
        least, total = rows[number].min(initial=1), rows[number].sum()
        raise ValueError(
            f"{side} row {number} is no distribution: its least value is {least:g} and their sum {total:g}"
        )
    return rows


def row_entropies(*sides: np.ndarray) -> np.ndarray:
    """The entropy in nats of each row (N,) of the mean of distributions (N, C), each scaled to the sum 1 in float64."""
    entropies = np.empty(len(sides[0]))
    for start in range(0, len(entropies), CHUNK):
        mean, *others = (side[start : start + CHUNK].astype(np.float64) for side in sides)
        for rows in (
            mean,
            *others,
        ):  # in place, here and below: copies would take longer than the logarithms
            rows /= rows.sum(axis=1, keepdims=True)
        for rows in others:
            mean += rows
        mean /= len(sides)
        entropies[start : start + CHUNK] = entr(mean, out=mean).sum(axis=1)
    return entropies


def unit_name(unit: Sequence) -> str:
    """How errors name the unit (example, position)."""
    example, position = unit
    return f"example {example!r}, position {position}"
