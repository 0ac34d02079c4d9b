"""Figures: one theme, one function that saves, and the plots that are too long for a notebook cell.

A plot takes plain tables and returns its Figure. `save_figure` writes it; nothing is shown here.
"""

import math
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rolib.runs import write_text

PALETTE = sns.color_palette("colorblind")
ROLES = {  # a role has one colour in every figure
    "teacher": PALETTE[0],
    "teacher ensemble": PALETTE[4],
    "student": PALETTE[1],
    "mlm control": PALETTE[2],
    "random control": PALETTE[7],
}
MARKERS = "osD^vP*X"


def set_theme() -> None:
    """Set the look of every figure: readable at column width (85 mm), safe for colour blindness."""
    look = {"figure.figsize": (6.0, 3.6), "figure.dpi": 110}
    files = {"savefig.bbox": "tight", "svg.hashsalt": "rolib"}  # the salt: same figure, same file
    sns.set_theme("paper", "whitegrid", "colorblind", font_scale=1.1, rc=look | files)


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> Path:
    """Write `folder`/name.png, .svg and .txt (the caption); returns the path of the PNG.

    Raises ValueError for a figure with an unlabelled axis: a number without a unit has no meaning.
    """
    for axes in figure.axes:
        labelled = axes.get_xlabel() and axes.get_ylabel()
        if not labelled and axes.get_label() != "<colorbar>":
            fault = "an axis has no label; name what it shows and its unit"
            raise ValueError(f"figure {name}: {fault}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(figure, folder / f"{name}.png", dpi=200)
    _write(figure, folder / f"{name}.svg", metadata={"Date": None})
    write_text(folder / f"{name}.txt", caption + "\n")
    return folder / f"{name}.png"


def contact_sheet(folder: Path) -> Path:
    """Write contact-sheet.png: every PNG of `folder` in small, four in a row; returns its path."""
    paths = sorted(path for path in folder.glob("[!.]*.png") if path.stem != "contact-sheet")
    figure, panels = _grid(len(paths), 4, (3, 2.4))
    for axes, path in zip(panels, paths, strict=True):
        axes.imshow(plt.imread(path)[::2, ::2])
        axes.set_title(path.stem, fontsize=8)
        axes.axis("off")
    # Not cropped: the sheet's size depends on the number of figures alone.
    sheet = folder / "contact-sheet.png"
    _write(figure, sheet, dpi=100, bbox_inches=figure.bbox_inches)
    plt.close(figure)
    return sheet


def plot_intervals(axes: Axes, table: pd.DataFrame, x: str, order: list[str]) -> None:
    """Draw values with their intervals: `order` along x, models side by side, coloured by role.

    table: model, role, value, low, high and the column `x`; one row for each model and x.
    """
    models = table.groupby("model", sort=False)
    for number, (model, part) in enumerate(models):
        rows = part.set_index(x).reindex(order)
        places = np.arange(len(order)) + 0.8 * ((number + 0.5) / len(models) - 0.5)
        look = {"color": ROLES[part["role"].iloc[0]], "markersize": 4, "elinewidth": 1}
        marker = MARKERS[number % len(MARKERS)]
        axes.errorbar(places, rows["value"], _spread(rows), fmt=marker, label=model, **look)
    axes.set_xticks(range(len(order)), order)
    axes.grid(axis="x", visible=False)
    axes.legend(title=None, bbox_to_anchor=(1, 1), loc="upper left")


def plot_loyalty(table: pd.DataFrame, order: list[str], label: str) -> Figure:
    """One loyalty of every model on the measures in `order`: points with their intervals.

    table: as in `plot_intervals`, with the columns task, chance and floor. The means of the last
    two over the models are a dotted and a solid line. `label` names the y axis.
    """
    figure, axes = plt.subplots(figsize=(1.5 + max(3, len(order)), 3.6))
    plot_intervals(axes, table, "task", order)
    means = table.groupby("task")[["chance", "floor"]].mean().loc[order]
    places = np.arange(len(order))
    axes.hlines(means["chance"], places - 0.45, places + 0.45, "0.3", ":", linewidth=1)
    axes.hlines(means["floor"], places - 0.45, places + 0.45, "0.3", "-", linewidth=1)
    axes.set(xlabel="measure", ylabel=label, ylim=(min(0, table["low"].min()), 1))
    return figure


def plot_scores(table: pd.DataFrame, measures: list[str], width: float = 2.0) -> Figure:
    """Scores of every model with their intervals: one panel a measure, one line a model.

    table: model, role, task, value, low, high; scores in percent. width: of a panel, in inches.
    """
    models = list(dict.fromkeys(table["model"]))
    size = (width, 0.19 * len(models) + 0.6)
    figure, panels = _grid(len(measures), 4, size, "percent", "model", sharey=True)
    for axes, measure in zip(panels, measures, strict=True):
        for role, rows in table[table["task"] == measure].groupby("role", sort=False):
            places = [models.index(model) for model in rows["model"]]
            look = {"color": ROLES[role], "markersize": 4, "elinewidth": 1, "label": role}
            marker = MARKERS[list(ROLES).index(role)]
            axes.errorbar(rows["value"], places, xerr=_spread(rows), fmt=marker, **look)
        axes.set_title(measure.upper())
    panels[0].set_yticks(range(len(models)), models)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def plot_reliability(bins: pd.DataFrame, least: int) -> Figure:
    """Accuracy against confidence: one panel a measure, one line a model; the diagonal is exact.

    bins: model, role, task, low (a bin's lower end), confidence, accuracy, count. Bins of several
    seeds are pooled. A bin with fewer than `least` answers is left out.
    """
    keys, means = ["task", "model", "role", "low"], ["confidence", "accuracy"]
    filled = bins[bins["count"] > 0]
    weighted = filled[keys + ["count"]].join(filled[means].mul(filled["count"], axis=0))
    sums = weighted.groupby(keys, sort=False).sum()
    sums = sums[sums["count"] >= least]
    pooled = sums[means].div(sums["count"], axis=0).reset_index()
    tasks, models = (list(dict.fromkeys(pooled[name])) for name in ("task", "model"))
    lines = {}
    figure, panels = _grid(len(tasks), 3, (2.2, 2.2), *means, sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for model, line in pooled[pooled["task"] == task].groupby("model", sort=False):
            look = {"color": ROLES[line["role"].iloc[0]], "linewidth": 1, "markersize": 3}
            marker = MARKERS[models.index(model) % len(MARKERS)]
            lines[model] = axes.plot(line["confidence"], line["accuracy"], marker=marker, **look)[0]
        axes.set(title=task.upper(), xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1))
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5)
    return figure


def plot_heat_maps(
    tables: dict[str, pd.DataFrame], columns: int, size: tuple[float, float], bar: str, **look: Any
) -> Figure:
    """Tables (title: table) as heat maps, `columns` in a row, with one colour bar labelled `bar`.

    All tables have the same index and columns; the names of these label the axes. size: of a panel,
    in inches. look: keywords of seaborn.heatmap, among them vmin and vmax, which all panels share.
    """
    figure, panels = _grid(len(tables), columns, size, sharex=True, sharey=True)
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        sns.heatmap(table, cbar=False, xticklabels=True, yticklabels=True, ax=axes, **look)
        axes.tick_params(axis="y", rotation=0)
        axes.set_title(title, loc="left")
    figure.colorbar(panels[0].collections[0], ax=panels, label=bar)
    return figure


def plot_variants(table: pd.DataFrame, measures: list[str]) -> Figure:
    """Scores of every variant: one panel a measure, a grey dot a seed, a diamond for their mean.

    table: variant and the columns `measures` in percent; one row for each variant and seed.
    """
    size = (2.4, 0.35 * table["variant"].nunique() + 1)
    figure, panels = _grid(len(measures), 4, size, "percent", "variant", sharey=True)
    means = table.groupby("variant", sort=False)[measures].mean()
    for axes, measure in zip(panels, measures, strict=True):
        axes.plot(table[measure], table["variant"], "o", color="0.6", markersize=4)
        axes.plot(means[measure], means.index, "D", color=PALETTE[0], markersize=4)
        axes.set_title(measure)
    panels[0].invert_yaxis()
    return figure


def _grid(
    number: int, columns: int, size: tuple[float, float], x: str = "", y: str = "", **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of `number` panels, each of `size` inches, at most `columns` in a row.

    All axes are labelled `x` and `y`; only the labels of the left and lower edges are visible.
    """
    columns = min(columns, number)
    rows = math.ceil(number / columns)
    figure = plt.figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    for axes in grid.flat[number:]:
        axes.remove()
    panels = list(grid.flat[:number])
    for place, axes in enumerate(panels):
        axes.set(xlabel=x, ylabel=y)
        axes.xaxis.label.set_visible(place + columns >= number)
        axes.yaxis.label.set_visible(place % columns == 0)
    return figure, panels


def _spread(rows: pd.DataFrame) -> np.ndarray:
    """The lengths (2, N) of the error bars below and above `value`."""
    sides = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
    return np.clip(sides, 0, None)


def _write(figure: Figure, path: Path, **options: Any) -> None:
    """Save a figure under a temporary name, then rename it, so that no half file is left."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, **options)
    os.replace(temporary, path)
