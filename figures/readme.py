"""Write the tables of README.md from the published study: python figures/readme.py (make readme).

They stand between `<!-- NAME -->` and `<!-- end -->`, NAME being a function below.
"""

import math
import re
import textwrap
import tomllib
from pathlib import Path

import pandas as pd

from rolib.analysis.claims import AT_TASK, BETTER, ENSEMBLE, LOYAL, SPEED
from rolib.config import ROOT
from rolib.measures import TASKS
from rolib.profiles import read_yaml

STUDY = Path(__file__).parent / "mini"
FEW = Path(__file__).parent / "few"
BENCH = Path(__file__).parent / "bench"
MACHINES = {"": BENCH, ", older CPU": BENCH / "older-cpu"}  # what a column's name ends with
README = Path(__file__).parents[1] / "README.md"
ROLES = {  # the columns of `scores`: role of the other model -> title
    "teacher": "minus teacher",
    "longer control": "minus teacher trained on",
    "init-only control": "minus init-only",
    "mlm control": "minus MLM control",
    "random control": "minus random weights",
    "bag of words": "minus bag of words",
}


# The rows of `speed`: title -> what, soft_targets, teachers, precision, cached; what was wanted.
STEPS = {
    "TextBrewer 0.2.1.post1": ("textbrewer", "all", 1, "float32", False, "–"),
    "all tokens, float32": ("rolib", "all", 1, "float32", False, "1.5"),
    "all tokens, bf16": ("rolib", "all", 1, "bfloat16", False, "2.5"),
    "masked tokens, float32": ("rolib", "masked", 1, "float32", False, "2.6 / 9"),
    "masked tokens, bf16": ("rolib", "masked", 1, "bfloat16", False, "4.5"),
    "masked tokens, stored teachers": ("rolib", "masked", 1, "float32", True, "1.4 x masked"),
}


def table_text(rows: list[list[str]]) -> str:
    """Rows as Markdown; the first one is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def half_width(row) -> float:
    return 50 * (row.high - row.low)


def badges() -> str:
    """Badges that open the map on Binder and Colab; "" until pyproject.toml knows the address."""
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    address = project.get("urls", {}).get("Repository", "")
    name = address.removeprefix("https://github.com/")
    if name == address:
        return ""
    map_of_notebooks = "notebooks/00-start-here.ipynb"
    binder = f"https://mybinder.org/v2/gh/{name}/HEAD?labpath={map_of_notebooks}"
    colab = f"https://colab.research.google.com/github/{name}/blob/HEAD/{map_of_notebooks}"
    return (
        f"[![Open on Binder](https://mybinder.org/badge_logo.svg)]({binder})\n"
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    )


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
    return table_text(rows)


def claim_row(row) -> str:
    """What a claim is about, and its bar; the claims of one row of the table share it."""
    kind = row.note.split(":")[0].removeprefix("variant ")
    if row.claim == LOYAL:
        return f"{row.claim}, {kind}: gap to the floor"
    if row.claim == SPEED:
        return f"{row.claim} (bar {row.bar:g}; in brackets quartiles of the timed runs)"
    about = {ENSEMBLE: f" as `{row.against}`", BETTER: f": {kind}"}
    about[AT_TASK] = f": `{kind}` less `{row.against}`"
    return f"{row.claim}{about.get(row.claim, '')} (bar {row.bar:g})"


def claims() -> str:
    """A row a claim, a column a student: what was measured, its interval, the verdict."""
    table = pd.read_csv(STUDY / "claims.csv").fillna({"note": ""})
    cells: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        measured = f"{row.value:.1f}" + f" ({row.low:.1f} to {row.high:.1f})" * (row.low < row.high)
        if row.claim == LOYAL:  # the note has the gap
            measured = re.search(r"gap (\S+ \(.*?\))", row.note)[1]
        cells.setdefault(claim_row(row), {})[row.model] = f"{measured}, {row.verdict}"
    models = sorted(table["model"].unique())
    rows = [["claim", *[f"`{model}`" for model in models]]]
    rows += [[claim, *[found.get(model, "") for model in models]] for claim, found in cells.items()]
    return table_text(rows)


def less_loyal() -> str:
    """Of each student and teacher, or their ensemble: what is shown to be below the floor."""
    gaps = pd.read_csv(STUDY / "loyalty.csv").query("role == 'student' and task == 'mean'")
    below = gaps[gaps["holds"] & (gaps["floor_gap"] < 0)]
    kinds = below["measure"].str.removesuffix("_loyalty")
    pairs = kinds.groupby([below["model"], below["teacher"]]).agg(", ".join)
    return "; ".join(f"`{model}` to `{other}` ({kind})" for (model, other), kind in pairs.items())


def findings() -> str:
    """What else the study says: speed, loyalty, random weights, careless writing, budgets."""
    speed = pd.read_csv(STUDY / "speed.csv").query("role == 'student'")
    gaps = pd.read_csv(STUDY / "comparisons.csv").query("role == 'random control'")
    lost = (gaps["holds"] & (gaps["difference"] < 0)).groupby(gaps["task"]).all()
    behind = ", ".join(lost.index[lost].str.upper()) or "nothing"
    texts = read_yaml(ROOT / "params/mini/robustness.yaml")["max_test_examples"]
    changed = pd.read_csv(STUDY / "robustness.csv").query("score == headline")
    costs = -100 * changed.groupby(["perturbation", "model"])["change"].mean()
    plain, upper = costs["strip_diacritics"], costs["upper"]
    upper = upper[upper > 1]  # others are lower-cased
    names = ", ".join(f"`{name}`" for name in upper.index)
    budgets = pd.read_csv(STUDY / "budget.csv").dropna(subset="tokens").sort_values("tokens")
    (least, most), ends = budgets["tokens"].iloc[[0, -1]] / 1e6, budgets.iloc[[0, -1]]
    (first, last), (near, nearer) = ends["score"], ends["label_loyalty"]
    learned = budgets["measures"].iloc[0].upper().replace(" ", ", ")
    differ = "differences were not tested (one checkpoint a budget)"
    if (tested := STUDY / "budget-comparisons.csv").exists():
        pairs = pd.read_csv(tested)
        holds = pairs.loc[pairs["against"].isin(budgets["steps"].astype(str)), "holds"]
        differ = f"{holds.sum()} of {len(holds)} differences between budgets hold"
    ways = pd.read_csv(STUDY / "ablation-comparisons.csv").query("task == 'mean'")
    reference, told = ways["against"].iloc[0], ways[ways["holds"]]
    apart = "".join(f", `{row.variant}` {difference_text(row)}" for row in told.itertuples())
    widest = math.ceil(10 * max(-ways["low"].min(), ways["high"].max())) / 10
    quick, slow = speed["speed_up"].max(), speed["speed_up"].min()
    lines = [
        f"A student is {slow:.1f} to {quick:.1f} times as fast as its teacher.",
        f"Loyalty below the floor (each holds): {less_loyal()}.",
        f"Fine-tuned random weights are above every teacher and student on {behind} (holds).",
        f"Lost diacritics cost {plain.min():.0f} to {plain.max():.0f} points of the mean score, "
        f"text in capitals {upper.min():.0f} to {upper.max():.0f} ({names}): one fine-tuning "
        f"seed, at most {texts} texts a measure, no interval.",
        f"From {least:.2f} to {most:.1f} million tokens of distillation the mean of {learned} goes "
        f"from {first:.1f} to {last:.1f}, the label loyalty from {near:.3f} to {nearer:.3f}; "
        f"{differ}.",
        f"Of {len(ways)} ways other than `{reference}` (notebook 09: other strategies, weights and "
        f"states for the second teacher, and one teacher alone) {len(told)} are told apart from it "
        f"on the mean{apart}; no interval goes beyond {widest:.1f} points.",
    ]
    look = {"width": 98, "subsequent_indent": "  ", "break_on_hyphens": False}  # names have some
    return "\n".join(textwrap.fill(f"- {line}", **look) for line in lines)


def difference_text(row) -> str:
    """A difference in points, its interval, and a star if it holds."""
    return f"{row.difference:+.2f} ({row.low:+.2f} to {row.high:+.2f})" + "*" * bool(row.holds)


def few_labels() -> str:
    """Every model of the study with few labels, the student's lead, and its mean with more."""
    gaps = pd.read_csv(FEW / "comparisons.csv").query("task == 'mean'")
    [student] = gaps["model"][gaps["role"] == "init-only control"].unique()
    gaps = gaps[gaps["model"] == student].set_index("against")
    gaps[["difference", "low", "high"]] *= 100
    few, more = (100 * headlines(folder) for folder in (FEW, STUDY))
    tasks = [task for task in TASKS if task in few]
    rows = [["model", *map(str.upper, tasks), "mean", f"`{student}` less it", "mean, 1,500 labels"]]
    for model, scores in few.sort_values("mean", ascending=False).iterrows():
        gap = difference_text(gaps.loc[model]) if model in gaps.index else ""
        with_more = more.loc[model, tasks].mean()
        numbers = [f"{scores[task]:.1f}" for task in [*tasks, "mean"]]
        rows.append([f"`{model}`", *numbers, gap, f"{with_more:.1f}"])
    return table_text(rows)


def headlines(folder: Path) -> pd.DataFrame:
    """The headline scores of a study, as fractions: a row a model, a column a measure."""
    scores = pd.read_csv(folder / "scores.csv").query("headline")
    return scores.pivot(index="model", columns="task", values="value")


def speed() -> str:
    """A training step beside the plain recipe, by shape; a student in int8 beside its teacher."""
    tables = {name: pd.read_csv(path / "training.csv") for name, path in MACHINES.items()}
    steps = pd.concat([table.assign(shape=table["shape"] + name) for name, table in tables.items()])
    shapes = list(steps["shape"].unique())
    rows = [["a training step", "wanted", *shapes]]
    keys = ["what", "soft_targets", "teachers", "precision", "cached"]
    found = steps.set_index([*keys, "shape"]).sort_index()

    def texts(column: str, key: tuple) -> list[str]:
        values = found[column].reindex([(*key, shape) for shape in shapes])
        return [f"{value:.2f}" if value == value else "–" for value in values]

    for title, (*key, wanted) in STEPS.items():
        rows.append([title, wanted, *texts("speed_up", tuple(key))])
    for soft in ("all", "masked"):
        title = f"time of two teachers over the sum of its parts, {soft} tokens"
        rows.append([title, "1.12", *texts("over_parts", ("rolib", soft, 2, "float32", False))])
    title = "peak memory beyond weights, all tokens, share of the recipe"
    key = ("rolib", "all", 1, "float32", False)
    rows.append([title, "0.40", *texts("memory_of_recipe", key)])
    int8 = {}
    for name, path in MACHINES.items():  # it is measured at the paper's shape
        files = pd.read_csv(path / "export.csv").query("batch_size == 1").set_index("model")
        int8["12x768/50k" + name] = f"{files['speed_up']['student, model-int8.onnx']:.2f}"
    title = "a text through the student as int8 ONNX, beside its teacher in PyTorch"
    rows.append([title, "8", *[int8.get(shape, "–") for shape in shapes]])
    return table_text(rows)


def updated(text: str) -> str:
    """The text of README.md with its tables written anew."""

    def fill(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{globals()[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?\n?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
