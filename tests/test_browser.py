"""Notebooks in JupyterLab in a real browser: they run, and widgets and cells obey the keyboard."""

import os
from pathlib import Path

import nbformat
import pytest
from browser import chromium, needs_chromium
from exercises import LESSONS, keep, trial_faults, with_trials
from lab import Lab, server
from nbformat.v4 import new_code_cell, new_notebook

from rolib.config import ROOT

pytestmark = needs_chromium
RUNS = Path(os.environ.get("ROLIB_RUNS") or ROOT / "runs")
SLIDER = "[role=slider]"
MOVES = {  # by notebook: cell, control, keys
    "00-start-here": [("00-06", "input[type=text]", ["End", "Backspace", "Enter"])],
    "08-explore-predictions": [
        ("08-22", SLIDER, ["ArrowRight"]),
        # The list must be open: JupyterLab takes the arrow of a closed one for itself.
        ("08-22", "select >> nth=3", ["Space", "ArrowDown", "Enter"]),
    ],
    "01-soft-targets": [("l1-19", SLIDER, ["ArrowRight"])],
    "02-three-losses": [("l2-35", f"{SLIDER} >> nth=0", ["ArrowRight"])],
    "03-which-layers": [("l3-34", "input[type=checkbox] >> nth=0", ["Space"])],
    "04-two-vocabularies": [("l4-38", SLIDER, ["ArrowRight"])],
    "05-loyalty": [("l5-36", SLIDER, ["ArrowRight"])],
    "06-small-and-fast": [("l6-17", SLIDER, ["ArrowRight"])],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with server(tmp_path_factory.mktemp("lab")) as (address, files), chromium() as running:
        yield Lab(running, address, files)


def shown(cells: list[dict], name: str) -> str:
    """What a cell shows."""
    [outputs] = [cell["outputs"] for cell in cells if cell["id"] == name]
    return "\n".join(str(output.get("data") or output["text"]) for output in outputs)


@pytest.mark.parametrize("stem", ["00-start-here", "08-explore-predictions"])
def test_a_notebook_runs_and_its_widgets_move_by_keyboard(stem, lab, tmp_path):
    if stem.startswith("08") and not (RUNS / "demo" / "report.html").exists():
        pytest.skip("no finished demo study: run `make demo`")
    with lab.notebook(f"notebooks/{stem}.ipynb", tmp_path):
        keep(ROOT / "notebooks" / f"{stem}.ipynb", lab.run_all())
        for move in MOVES[stem]:
            lab.move(*move)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_knows_right_from_wrong_and_moves_by_keyboard(lesson, lab, tmp_path):
    path = f"notebooks/lessons/{lesson.name}"
    nbformat.write(with_trials(lesson), lab.files / path)
    with lab.notebook(path, tmp_path):
        cells = lab.run_all()
        keep(lesson, cells)
        for move in MOVES[lesson.stem]:
            lab.move(*move)
        lab.check(trial_faults(lesson, cells))


def test_a_changed_parameter_changes_the_result(lab, tmp_path):
    """As README says: change a value in the parameters cell, run it and the next ones again."""
    with lab.notebook("notebooks/02-distil-student.ipynb", tmp_path):
        lab.enter("02-01")
        before = lab.run_to("02-05")
        lab.retype("02-01", "temperature: float = 2.0", "2.0", "7.5")
        after = lab.run_to("02-05")
        assert "7.5" not in shown(before, "02-02") and "7.5" in shown(after, "02-02")
        assert "T² KL = " in shown(before, "02-05") and "T² KL = " in shown(after, "02-05")
        assert shown(before, "02-05") != shown(after, "02-05")


FAULTY = """
import ipywidgets as widgets
from IPython.display import display

box = widgets.Checkbox(False)
display(box, widgets.interactive_output(lambda ticked: print({shown}), {{"ticked": box}}))
"""


def test_faults_are_noticed(lab, tmp_path):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    sources = {
        "idle": FAULTY.format(shown="'same'"),
        "breaks": FAULTY.format(shown="1 / (not ticked)"),
    }
    sources |= {"error": "raise ValueError('on purpose')", "late": "1"}
    cells = [new_code_cell(source, id=name) for name, source in sources.items()]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, lab.files / "faulty.ipynb")
    tick = ("input[type=checkbox]", ["Space"])
    with pytest.raises(AssertionError) as raised, lab.notebook("faulty.ipynb", tmp_path):
        with pytest.raises(AssertionError, match=r"cell 3 \(error\): ValueError: on purpose$"):
            lab.run_all()
        with pytest.raises(AssertionError, match="cell idle: .* changed nothing"):
            lab.move("idle", *tick, limit=1)
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            lab.move("breaks", *tick)
        lab.page.evaluate("() => console.error('on purpose')")
    assert "console: on purpose" in str(raised.value)
    assert (tmp_path / "page.png").exists()
