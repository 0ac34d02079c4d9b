"""One theme for every figure, one function that saves it."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from rolib.runs import write_text

ROLES = {  # colour-blind safe (seaborn's colorblind palette), one colour a role in every figure
    "teacher": sns.color_palette("colorblind")[0],
    "student": sns.color_palette("colorblind")[1],
    "mlm control": sns.color_palette("colorblind")[2],
    "random control": sns.color_palette("colorblind")[7],
}


def set_theme() -> None:
    """The look of every figure: readable at column width (85 mm), colour-blind safe."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind", font_scale=1.1)
    plt.rcParams.update({"figure.figsize": (6.0, 3.6), "figure.dpi": 110, "savefig.bbox": "tight", "svg.hashsalt": "rolib"})


def save_figure(figure: Figure, folder: Path, name: str, caption: str) -> Path:
    """Write `folder`/name.png, .svg and .txt (the caption); returns the PNG's path.

    Raises ValueError for a figure whose axes lack a label, since a number without a unit says nothing.
    """
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>" and not (axes.get_xlabel() and axes.get_ylabel()):
            raise ValueError(f"figure {name}: an axis has no label; name what it shows and its unit")
    folder.mkdir(parents=True, exist_ok=True)
    for ending, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
        figure.savefig(folder / f".{name}.{ending}", **options)
        os.replace(folder / f".{name}.{ending}", folder / f"{name}.{ending}")
    write_text(folder / f"{name}.txt", caption + "\n")
    return folder / f"{name}.png"
