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
import seaborn.objects as so
from IPython.display import display
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
    "truncated control": PALETTE[6],
    "mlm control": PALETTE[2],
    "random control": PALETTE[7],
    "bag of words": PALETTE[5],
}
TERMS = {"ce": "soft targets, T² KL (nats)", "mlm": "masked words, CE (nats)", "cos": "1 − cos"}
DIFFERENT = "background-color: #fbd9a5; color: black"  # a cell whose answer differs


def set_theme() -> None:
    """Set the look of every figure: readable at column width (85 mm), safe for colour blindness."""
    look = {"figure.figsize": (6.0, 3.6), "figure.dpi": 110}
    files = {"savefig.bbox": "tight", "svg.hashsalt": "rolib"}  # the salt: same figure, same file
    sns.set_theme("paper", "whitegrid", "colorblind", font_scale=1.1, rc=look | files)
    so.Plot.config.theme.update(plt.rcParams)


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> Path:
    """Write `folder`/name.png, .svg and .txt (the caption); returns the path of the PNG.

    Raises ValueError for a figure with an unlabelled axis: a number without a unit has no meaning.
    """
    for axes in figure.axes:
        labelled = axes.get_xlabel() and axes.get_ylabel()
        if not labelled and axes.get_label() != "<colorbar>":
            raise ValueError(f"figure {name}: an axis has no label: give it a name and a unit")
    folder.mkdir(parents=True, exist_ok=True)
    formats: dict[str, dict[str, Any]] = {"png": {"dpi": 200}, "svg": {"metadata": {"Date": None}}}
    for ending, options in formats.items():
        working = folder / f".{name}.{ending}"  # renamed, so that no half file is left
        figure.savefig(working, **options)
        working.replace(folder / f"{name}.{ending}")
    write_text(folder / f"{name}.txt", caption + "\n")
    return folder / f"{name}.png"


def plot_losses(records: list[dict]) -> Figure:
    """Each term of the loss against the optimizer steps, in training and held out (nats; 1 − cos).

    records: of metrics.jsonl, at least one of them with a term.
    """
    metrics = pd.DataFrame(records).set_index("step")
    terms = {name: TERMS.get(name.partition("_")[0]) for name in metrics}
    terms = {name: label for name, label in terms.items() if label}
    figure = plt.figure(figsize=(2.8 * len(terms), 2.6), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms.items()):
        lines = {"training": (name, "-"), "held out": (f"held_out_{name}", ".")}
        for kind, (column, style) in lines.items():
            curve = metrics.get(column, pd.Series()).dropna()
            axes.plot(curve, style, label=kind)
        axes.set(xlabel="optimizer steps", ylabel=label, title=name.partition("_")[2])
    figure.axes[0].legend()
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


def draw(plot: so.Plot, width: float, height: float) -> Figure:
    """The figure of a seaborn plot, its size in inches. The legend stands on the right."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plot.on(figure).plot()
    for legend in figure.legends:
        legend.set_bbox_to_anchor((1, 0.5))
    return figure


def plot_heat_maps(
    tables: dict[str, pd.DataFrame], columns: int, size: tuple[float, float], bar: str, **look: Any
) -> Figure:
    """Tables (title: table) as heat maps, `columns` in a row, with one colour bar labelled `bar`.

    All tables have the same index and columns; the names of these label the axes. size: of a panel,
    in inches. look: keywords of seaborn.heatmap, among them vmin and vmax, which all panels share.
    """
    rows = math.ceil(len(tables) / columns)
    figure = plt.figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (title, table) in zip(panels.flat, tables.items(), strict=True):
        sns.heatmap(table, cbar=False, xticklabels=True, yticklabels=True, ax=axes, **look)
        axes.tick_params(axis="y", rotation=0)
        axes.set_title(title, loc="left")
        axes.xaxis.label.set_visible(axes.get_subplotspec().is_last_row())
        axes.yaxis.label.set_visible(axes.get_subplotspec().is_first_col())
    figure.colorbar(panels[0, 0].collections[0], ax=panels, label=bar)
    return figure


def mark_differences(shown: pd.DataFrame, differs: pd.DataFrame) -> Styler:
    """A table of texts; the cells that differ have a colour and the sign ≠. Texts are escaped."""
    style = shown.mask(differs, "≠ " + shown).style.format(escape="html")
    for axis in (0, 1):
        style = style.format_index(escape="html", axis=axis)
    return style.apply(lambda _: differs.replace({True: DIFFERENT, False: ""}), axis=None)
