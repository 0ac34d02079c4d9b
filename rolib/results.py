"""From run folders to tables: who is in the study, their scores, their loyalty, and the report page."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import yaml

from rolib.config import Config
from rolib.loyalty import ensemble_predictions
from rolib.predictions import Predictions
from rolib.runs import made_by, read_json, require, write_text

ROLES = ("teacher", "student", "mlm control", "random control")
ENSEMBLE = "ensemble"  # of all teachers of a profile
SAMPLE_WARNING = (
    "These results come from the built-in sample: they show that the machine runs and prove nothing about the models."
)


def members(config: Config) -> pd.DataFrame:
    """The evaluated models of a profile: model, role, teacher, teachers, layers, in reading order.

    teachers: those it learned from, of a teacher itself; teacher: the first of them, in whose group it stands. A control
    has the teachers of the student it belongs to. Raises FileNotFoundError when nothing is evaluated yet.
    """
    rows = []
    for folder in sorted(config.folder.glob("evaluation/*")):
        name = folder.name.removesuffix("-random")
        is_teacher = (config.folder / "teachers" / name).exists()
        kind = "teachers" if is_teacher else "students"
        settings = yaml.safe_load((config.folder / kind / name / "config.yaml").read_text(encoding="utf-8"))
        teachers = [name] if is_teacher else [teacher for teacher, weight in settings["teachers"].items() if weight]
        if folder.name.endswith("-random"):
            role = "random control"
        else:
            role = "teacher" if is_teacher else "mlm control" if settings["objective"] == "mlm" else "student"
        member = {"model": folder.name, "role": role, "teacher": teachers[0], "teachers": teachers}
        rows.append(member | {"layers": settings["num_layers"]})
    if not rows:
        raise FileNotFoundError(f"{config.folder / 'evaluation'} holds no evaluated model: run {made_by(config)} first")
    table = pd.DataFrame(rows)
    order = table["role"].map(ROLES.index)
    return table.assign(order=order).sort_values(["teacher", "order", "model"]).drop(columns="order").reset_index(drop=True)


def read_scores(config: Config) -> pd.DataFrame:
    """Every score of every run: model, role, teacher, layers, task, seed, headline (a score's name), score, value."""
    rows = []
    for path in sorted(config.folder.glob("evaluation/*/*/seed-*/scores.json")):
        result = read_json(path, made_by(config))
        for score, value in result["test"].items():
            rows.append((path.parts[-4], result["task"], result["seed"], result["headline"], score, value))
    scores = pd.DataFrame(rows, columns=["model", "task", "seed", "headline", "score", "value"])
    return members(config).merge(scores, on="model")


def read_predictions(config: Config, model: str, task: str, seed: int, probabilities: bool = True) -> Predictions:
    """The stored predictions of one run."""
    path = config.folder / "evaluation" / model / task / f"seed-{seed}" / "predictions.parquet"
    return Predictions.read(require(path, made_by(config)), probabilities)


def combine(config: Config, teachers: Mapping[str, Predictions], task: str, seed: int) -> Predictions:
    """The ensemble of several teachers, each fine-tuned with the same seed."""
    scores = config.folder / "evaluation" / next(iter(teachers)) / task / f"seed-{seed}" / "scores.json"
    return ensemble_predictions(list(teachers.values()), read_json(scores, made_by(config))["labels"])


def data_notes(config: Config) -> list[str]:
    """What stands in for official data in this profile, from the manifests of its runs; once each."""
    notes = dict.fromkeys(
        f"{path.parts[-3].upper()}: {note}"
        for path in sorted(config.folder.glob("evaluation/*/*/seed-*/manifest.json"))
        for note in read_json(path, made_by(config))["notes"]
    )
    return ([SAMPLE_WARNING] if config.data == "sample" else []) + list(notes)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
p {{ max-width: 62rem }} .table {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; white-space: nowrap }}
th, td {{ padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: right }}
td:nth-child(-n+3), th:nth-child(-n+3) {{ text-align: left }}
figure {{ margin: 1.5rem 0 }} img {{ max-width: 100% }} figcaption {{ color: #555; font-size: .9rem }}
.note {{ background: #fff6dd; border-left: 4px solid #e0a800; padding: .5rem 1rem }}
</style></head><body><h1>{title}</h1>{notes}{body}</body></html>
"""


def write_report(path: Path, title: str, notes: list[str], parts: list[tuple[str, str, pd.DataFrame | Path]]) -> None:
    """Write one self-contained HTML page.

    parts: (heading, a paragraph of plain text, a table or the PNG of a saved figure with its caption beside it).
    """
    body = []
    for heading, text, content in parts:
        body.append((f"<h2>{html.escape(heading)}</h2>" if heading else "") + (f"<p>{html.escape(text)}</p>" if text else ""))
        if isinstance(content, Path):
            caption = html.escape(content.with_suffix(".txt").read_text(encoding="utf-8").strip())
            image = base64.b64encode(content.read_bytes()).decode()
            body.append(
                f'<figure><img alt="{caption}" src="data:image/png;base64,{image}"><figcaption>{caption}</figcaption></figure>'
            )
        else:
            content = content.rename_axis(columns=None)
            table = content.to_html(index=False, border=0, na_rep="–", float_format=lambda value: f"{value:.2f}")
            body.append(f'<div class="table">{table}</div>')
    marked = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    write_text(path, PAGE.format(title=html.escape(title), notes=marked, body="".join(body)))
