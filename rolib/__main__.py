"""python -m rolib PROFILE: the tables of a finished study in short, and where its results lie."""

import sys

import pandas as pd

from rolib import analysis, results
from rolib.config import load_profile
from rolib.runs import made_by, require

MEASURES = ["label_loyalty", "probability_loyalty", "regression_loyalty"]


def main(profile: str) -> None:
    """Print scores with their intervals, loyalty with chance and floor, notes and paths; FileNotFoundError for a missing table."""
    study = load_profile(profile)["analyse"]
    names = ("scores", "comparisons", "loyalty")
    tables = {name: pd.read_csv(require(study.folder / f"{name}.csv", made_by(study))) for name in names}
    pd.set_option("display.width", 200, "display.max_columns", 20)
    print("\nHeadline scores, percent: mean over seeds ± half the 95 % interval; * differs from its first teacher\n")
    print(analysis.score_table(tables["scores"], tables["comparisons"]).to_string(index=False))
    loyalty = tables["loyalty"]
    loyalty = loyalty[loyalty["measure"].isin(MEASURES) & loyalty["own"]]
    means = (
        loyalty.groupby(["role", "model", "teacher", "measure"], sort=False)[["value", "chance", "floor"]].mean().reset_index()
    )
    floors = means["floor"].map("{:.2f}".format).replace("nan", "–")
    means["text"] = means["value"].map("{:.3f}".format) + " (" + means["chance"].map("{:.2f}".format) + "; " + floors + ")"
    print("\nLoyalty, mean over the measures (chance; two seeds of the same teacher)\n")
    index = ["role", "model", "teacher"]
    print(
        means.pivot_table(index=index, columns="measure", values="text", aggfunc="first", sort=False)
        .reset_index()
        .to_string(index=False)
    )
    for note in results.data_notes(study):
        print("\nNote:", note)
    print(f"\nReport:  {study.folder / 'report.html'}\nFigures: {study.folder / 'figures'}")


if __name__ == "__main__":
    main(sys.argv[1])
