"""Write the tables of README.md from the published study: python figures/readme.py (make readme).

They stand between `<!-- NAME -->` and `<!-- end -->`, NAME being a function below.
"""

import re
from pathlib import Path

import pandas as pd

STUDY = Path(__file__).parent / "mini"
README = Path(__file__).parents[1] / "README.md"
ROLES = {  # the columns of `scores`: role of the other model -> title
    "teacher": "minus teacher",
    "longer control": "minus teacher trained on",
    "init-only control": "minus init-only",
    "mlm control": "minus MLM control",
    "random control": "minus random weights",
    "bag of words": "minus bag of words",
}


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown; the first one is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def half_width(row) -> float:
    return 50 * (row.high - row.low)


def scores() -> str:
    """The mean score of each student, and its difference from what it is compared with."""
    found = pd.read_csv(STUDY / "scores.csv").query("task == 'mean' and role == 'student'")
    pairs = pd.read_csv(STUDY / "comparisons.csv").query("task == 'mean'")
    titles = {role: title for role, title in ROLES.items() if role in set(pairs["role"])}
    rows = [["model", "mean", *titles.values()]]
    for student in found.sort_values("model").itertuples():
        row = [f"`{student.model}`", f"{100 * student.value:.1f} ± {half_width(student):.1f}"]
        for role in titles:
            [gap, *_] = pairs.query("model == @student.model and role == @role").itertuples()
            star = "*" if gap.holds else ""
            row.append(f"{100 * gap.difference:+.1f} ± {half_width(gap):.1f}{star}")
        rows.append(row)
    return table(rows)


def claims() -> str:
    """Each claim and student: what was measured, the bar, the verdict."""
    rows = [["claim", "model", "measured", "bar", "verdict"]]
    for row in pd.read_csv(STUDY / "claims.csv").itertuples():
        digits = 3 if row.claim.startswith("loyal") else 1
        low, high = f"{row.low:.{digits}f}", f"{row.high:.{digits}f}"
        measured = f"{row.value:.{digits}f}" + f" ({low} to {high})" * (low != high)
        rows.append([row.claim, f"`{row.model}`", measured, f"{row.bar:.{digits}f}", row.verdict])
    return table(rows)


def updated(text: str) -> str:
    """The text of README.md with its tables written anew."""

    def fill(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{globals()[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?\n?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
