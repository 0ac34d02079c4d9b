"""One theme for every figure, one function that saves it."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rolib.runs import write_text

PALETTE = sns.color_palette(
    "colorblind"
)  # colour-blind safe; a role has one colour in every figure
ROLES = {
    "teacher": PALETTE[0],
    "teacher ensemble": PALETTE[4],
    "student": PALETTE[1],
    "mlm control": PALETTE[2],
}
ROLES["random control"] = PALETTE[7]
MARKERS = "osD^vP*X"


def set_theme() -> None:
    """The look of every figure: readable at column width (85 mm), colour-blind safe."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", font_scale=1.1)
    plt.rcParams.update(
        {
            "figure.figsize": (6.0, 3.6),
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "svg.hashsalt": "rolib",
        }
    )


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> Path:
    """Write `folder`/name.png, .svg and .txt (the caption); returns the PNG's path.

    Raises ValueError for a figure whose axes lack a label, since a number without a unit says nothing.
    """
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>" and not (axes.get_xlabel() and axes.get_ylabel()):
            raise ValueError(
                f"figure {name}: an axis has no label; name what it shows and its unit"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for ending, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
        figure.savefig(folder / f".{name}.{ending}", **options)
        os.replace(folder / f".{name}.{ending}", folder / f"{name}.{ending}")
    write_text(folder / f"{name}.txt", caption + "\n")
    return folder / f"{name}.png"


def plot_intervals(axes: Axes, table: pd.DataFrame, x: str, order: list[str]) -> None:
    """Values with their intervals (columns model, role, value, low, high): `order` along x, models side by side in their role's colour."""
    models = list(dict.fromkeys(table["model"]))
    for number, model in enumerate(models):
        rows = table[table["model"] == model].set_index(x).reindex(order)
        places = np.arange(len(order)) + 0.8 * ((number + 0.5) / len(models) - 0.5)
        spread = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
        marker, colour = MARKERS[number % len(MARKERS)], ROLES[rows["role"].dropna().iloc[0]]
        axes.errorbar(
            places,
            rows["value"],
            spread,
            fmt=marker,
            color=colour,
            markersize=4,
            elinewidth=1,
            label=model,
        )
    axes.set_xticks(range(len(order)), order)
    axes.grid(axis="x", visible=False)
    axes.legend(title=None, bbox_to_anchor=(1, 1), loc="upper left")
