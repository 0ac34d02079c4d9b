"""What the explorer shows: marked differences, gaps that the shipped models fill, typed texts."""

import html
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import nbclient.output_widget
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from noise import noise

from rolib import figures
from rolib.config import ROOT
from rolib.data.pretrained import first_teachers
from rolib.evaluation import fill

SCRIPT = "<script>alert(1)</script>"


# --- marks ----------------------------------------------------------------------------------------


def test_a_difference_has_a_colour_and_a_sign_and_nothing_else_has():
    shown = pd.DataFrame({"teacher": ["da", "nu"], "student": ["da", "ba"]})
    differs = shown.ne(shown["teacher"], axis=0)
    page = figures.mark_differences(shown, differs).to_html(table_uuid="t")
    assert page.count("≠") == 1 and re.search(r'id="T_t_row1_col1"[^>]*>≠ ba<', page)
    [rule] = re.findall(r"#T_t_row\S+ \{[^}]*background-color[^}]*\}", page)
    assert rule.startswith("#T_t_row1_col1 {")


def test_texts_and_names_of_a_table_are_escaped():
    table = pd.DataFrame({SCRIPT: [SCRIPT, "b"]}, index=[SCRIPT, "c"])
    for differs in (True, False):
        page = figures.mark_differences(
            table, pd.DataFrame(differs, table.index, table.columns)
        ).to_html()
        assert "<script" not in page and page.count(html.escape(SCRIPT)) == 3


# --- the models in the box ------------------------------------------------------------------------


def test_students_stand_beside_their_first_teacher():
    assert first_teachers() == {
        "bert-cased": "bert-cased",
        "distil-cased": "bert-cased",
        "distil-multi": "bert-cased",
        "bert-uncased": "bert-uncased",
        "distil-uncased": "bert-uncased",
    }
    assert [*first_teachers()][3] == "bert-uncased"


def test_a_piece_that_the_teacher_lacks_differs(monkeypatch):
    pieces = {name: ["casă", "masă"] for name in first_teachers()}
    pieces |= {"distil-multi": ["masă", "și"], "bert-uncased": ["da", "nu"]}

    def filled(folder, sentence, count):
        return pd.DataFrame({"piece": pieces[folder.name], "probability": [0.75, 0.125]})

    monkeypatch.setattr(fill, "fill_gap", filled)
    shown, differs = fill.compare_shipped("O ___.", 2)
    assert shown["distil-multi"].tolist() == ["masă  0.750", "și  0.125"]
    assert differs.T.to_numpy().tolist() == [
        [False, False],
        [False, False],
        [False, True],
        [False, False],
        [True, True],
    ]


# --- the notebook ---------------------------------------------------------------------------------

CHANGE = f"""
plain = texts_of
texts_of = lambda task: plain(task).assign(text="{SCRIPT} " + plain(task)["text"])
"""


def execute(folder: Path, profile: str, typed: str) -> Path:
    """Notebook 08 on a profile, with a script in every example and `typed` in the box."""
    notebook = nbformat.read(ROOT / "notebooks" / "08-explore-predictions.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.source.startswith("profile: str ="):
            cell.source = cell.source.replace('"demo"', repr(profile))
        if "def texts_of(" in cell.source:
            cell.source += CHANGE
        cell.source = re.sub(r"^TYPED = .*$", f"TYPED = {typed!r}", cell.source, flags=re.M)
    with pytest.MonkeyPatch.context() as patch:  # as rolib.notebook does: it may wait without end
        patch.setattr(nbclient.output_widget.OutputWidget, "send", lambda *_, **__: None)
        NotebookClient(notebook, timeout=300).execute(cwd=ROOT)
    nbformat.write(notebook, folder / "08.ipynb")
    return folder / "08.ipynb"


def pages(notebook: Path) -> str:
    """All HTML that a notebook shows, in widgets too."""
    content = nbformat.read(notebook, as_version=4)
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    widgets = content.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    outputs += [output for one in widgets.values() for output in one["state"].get("outputs", [])]
    return "\n".join(output.get("data", {}).get("text/html", "") for output in outputs)


class Scripts(HTMLParser):
    """Counts the scripts of a page, and gathers those that come from the data."""

    def __init__(self):
        super().__init__()
        self.count, self.evil = 0, []

    def handle_starttag(self, tag, attributes):
        self.count += tag == "script"

    def handle_data(self, data):
        if self.cdata_elem == "script" and data.lstrip().startswith("alert"):
            self.evil.append(data)


def test_without_a_study_the_models_in_the_box_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLIB_RUNS", str(tmp_path / "none"))
    foreign = tmp_path / "none" / "demo" / "evaluation" / "backup" / "upos" / "seed-1"
    foreign.mkdir(parents=True)  # of no model of the profile
    (foreign / "predictions.parquet").touch()
    notebook = execute(tmp_path, "demo", "Ana")
    text = notebook.read_text(encoding="utf-8")
    assert "No finished study here: `make demo` makes one" in text and noise(notebook) == []
    assert all(name in pages(notebook) for name in first_teachers())


def test_what_was_typed_is_shown_as_typed_and_never_run(tmp_path):
    study = Path(os.environ.get("ROLIB_RUNS", ROOT / "runs")) / "demo"
    if not (study / "report.html").exists():
        pytest.skip("no finished demo study: run `make demo`")
    typed = f"Ana n-are  {SCRIPT}\tşi ( mere ) & pere."
    notebook = execute(tmp_path, "demo", typed)
    page, text = pages(notebook), notebook.read_text(encoding="utf-8")
    assert "<script" not in page and html.escape(SCRIPT) in page and noise(notebook) == []
    rendered, scripts = HTMLExporter().from_filename(str(notebook))[0], Scripts()
    scripts.feed(rendered)
    assert rendered.count(html.escape(SCRIPT)) >= 5 and scripts.count > 0 and not scripts.evil
    lines = re.findall(r'<p style="white-space: pre-wrap">(.*?)</p>', page, flags=re.S)
    for line in lines:
        plain = html.unescape(re.sub(r"<[^>]*>|≠", "", line))
        assert plain == typed.replace("ş", "ș")
    assert len(lines) == 2  # on the page, and in the widget
    seconds = re.findall(r"5 models in ([0-9.]+) s", text)
    assert len(seconds) >= 3 and np.median([float(number) for number in seconds]) < 5
    assert "distil-cased-random" not in page.split("white-space: pre-wrap")[1]  # not ticked
