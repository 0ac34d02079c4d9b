"""Figures: one theme, one function that saves, and the plots that several notebooks or cells share.

A plot takes plain tables and returns its Figure. `save_figure` writes it; nothing is shown here.
"""

import math
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from rolib.runs import write_text

PALETTE = sns.color_palette("colorblind")
ROLES = {  # a role has one colour in every figure
    "teacher": PALETTE[0],
    "teacher ensemble": PALETTE[4],
    "student": PALETTE[1],
    "longer control": PALETTE[9],
    "init-only control": PALETTE[3],
    "truncated control": (0.0, 0.0, 0.0),
    "mlm control": PALETTE[2],
    "random control": PALETTE[7],
    "bag of words": PALETTE[5],
}
MARKERS = dict(zip(ROLES, "sDov<>^XP", strict=True))  # and one marker, for print without colours
WORDS = dict(zip(ROLES, "blue purple orange cyan red black green grey brown".split(), strict=True))
COLUMN, PAGE = 3.4, 7.0  # inches: the widths in which figures are printed, and so drawn
TERMS = {"ce": "soft targets, T² KL (nats)", "mlm": "masked words, CE (nats)", "cos": "1 − cos"}
DIFFERENT = "background-color: #fbd9a5; color: black"  # a cell whose answer differs


def set_theme() -> None:
    """Set the look of every figure: in its size in print, safe for colour blindness."""
    sns.set_theme("paper", "whitegrid", "colorblind")
    plt.style.use(Path(__file__).with_name("figures.mplstyle"))


def key(roles: set[str]) -> str:
    """What the colours of these roles mean, in words, for a caption."""
    return "Colours: " + ", ".join(f"{role} {WORDS[role]}" for role in ROLES if role in roles) + "."


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> Path:
    """Write `folder`/name.png, .svg and .txt (the caption); returns the path of the PNG.

    Raises ValueError for a figure with an unlabelled axis: a number without a unit has no meaning.
    """
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>" and not (axes.get_xlabel() and axes.get_ylabel()):
            raise ValueError(f"figure {name}: an axis has no label: give it a name and a unit")
    write_text(folder / f"{name}.txt", caption + "\n")
    for ending, metadata in (("png", None), ("svg", {"Date": None})):
        working = folder / f".{name}.{ending}"  # renamed, so that no half file is left
        figure.savefig(working, metadata=metadata)
        working.replace(folder / f"{name}.{ending}")
    return folder / f"{name}.png"


def panels(number: int, columns: int, height: float, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `number` panels, at most `columns` in a row; height: of a row, in inches.

    One panel is as wide as a column, several are as wide as a page. share: sharex and sharey of
    matplotlib. A label stands once: the x label in the lowest panels, and the y label, where panels
    share the y axis, in the first column.
    """
    rows = math.ceil(number / columns)
    columns = math.ceil(number / rows)  # rows of equal length
    figure = plt.figure(figsize=(COLUMN if number == 1 else PAGE, rows * height))
    grid = figure.subplots(rows, columns, squeeze=False, **share)
    for place, axes in enumerate(grid.flat):
        if place >= number:
            axes.remove()
        axes.tick_params(labelbottom=place + columns >= number or not share.get("sharex"))
        axes.xaxis.label.set_visible(place + columns >= number)
        axes.yaxis.label.set_visible(place % columns == 0 or not share.get("sharey"))
    return figure, list(grid.flat[:number])


def plot_losses(records: list[dict]) -> Figure:
    """Each term of the loss against the optimizer steps, in training and held out (nats; 1 − cos).

    records: of metrics.jsonl, at least one of them with a term.
    """
    metrics = pd.DataFrame(records).set_index("step")
    terms = {name: TERMS[name.split("_")[0]] for name in metrics if name.split("_")[0] in TERMS}
    figure, grid = panels(len(terms), 4, 1.8)
    for axes, (name, label) in zip(grid, terms.items(), strict=True):
        lines = {"training": (name, "-", "0.6"), "held out": (f"held_out_{name}", ".", "black")}
        for kind, (column, style, colour) in lines.items():
            axes.plot(metrics.get(column, pd.Series()).dropna(), style, color=colour, label=kind)
        axes.set(xlabel="optimizer steps", ylabel=label, title=name.partition("_")[2])
    grid[0].legend()
    return figure


class LivePlot:
    """Loss curves that grow in a notebook while a model trains; it is called with each record."""

    def __init__(self) -> None:
        self.records: list[dict] = []
        self.drawn = -math.inf

    def __call__(self, record: dict) -> None:
        """Add a record, and draw again if the last drawing is two seconds old."""
        self.records.append(record)
        if time.monotonic() - self.drawn > 2:
            figure = plot_losses(self.records)
            display(figure, display_id=str(id(self)), update=len(self.records) > 1)
            plt.close(figure)
            self.drawn = time.monotonic()


def plot_intervals(table: pd.DataFrame, tasks: list[str], unit: str) -> Figure:
    """Values with their intervals: a panel for each task, in it a line for each model.

    table: model, role, task, value, low, high, in the order of the lines; perhaps chance and floor,
    which are short dotted and solid marks. unit: of the values. The names stand at the left.
    """
    models = list(table["model"].unique())
    figure, grid = panels(len(tasks), 4, 0.14 * len(models) + 0.55, sharey=True)
    grid[0].set(ylim=(len(models) - 0.5, -0.5), yticks=range(len(models)), yticklabels=models)
    for axes, task in zip(grid, tasks, strict=True):
        axes.set(title=task.upper(), xlabel=unit, ylabel="model")
        axes.yaxis.label.set_visible(False)  # the names speak for themselves
        axes.locator_params(axis="x", nbins=4)
        for place in range(0, len(models), 2):  # bands, for the eye to follow
            axes.axhspan(place - 0.5, place + 0.5, color="0.95", linewidth=0, zorder=0)
        for role, rows in table[table["task"] == task].groupby("role"):
            places = rows["model"].map(models.index)
            axes.hlines(places, rows["low"], rows["high"], ROLES[role])
            axes.plot(rows["value"], places, MARKERS[role], color=ROLES[role])
            for level, dashes in (("chance", (1, 1.65)), ("floor", ())):
                at = rows.get(level, math.nan * places)
                axes.vlines(at, places - 0.45, places + 0.45, "0.3", (0, dashes), linewidth=0.8)
    return figure


def plot_heat_maps(tables: dict[str, pd.DataFrame], height: float, bar: str, **look: Any) -> Figure:
    """Tables (title: table) as heat maps, three in a row, with one colour bar labelled `bar`.

    All tables have the same index and columns; the names of these label the axes. height: of a
    panel, in inches. look: keywords of seaborn.heatmap, among them vmin and vmax, which all panels
    share.
    """
    figure, grid = panels(len(tables), 3, height, sharex=True, sharey=True)
    for axes, (title, table) in zip(grid, tables.items(), strict=True):
        sns.heatmap(table, cbar=False, xticklabels=True, yticklabels=True, ax=axes, **look)
        axes.tick_params(axis="y", rotation=0)
        axes.set_title(title, loc="left")
    figure.colorbar(grid[0].collections[0], ax=grid, label=bar)
    return figure


def mark_differences(shown: pd.DataFrame, differs: pd.DataFrame) -> Styler:
    """A table of texts; the cells that differ have a colour and the sign ≠. Texts are escaped."""
    style = shown.mask(differs, "≠ " + shown).style.format(escape="html")
    style = style.format_index(escape="html").format_index(escape="html", axis=1)
    return style.apply(lambda _: differs.replace({True: DIFFERENT, False: ""}), axis=None)
