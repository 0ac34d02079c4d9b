"""The lessons: the parts that each must have; their solutions are called right, mistakes wrong.

Each lesson runs once, with a mistake and the solution tried after each exercise: in the browser
(tests/test_browser.py) or, where there is none, in a kernel alone. This replaces the plain run of
the lesson (tests/run.sh). What its own cells showed is kept for the site (`exercises.keep`).
"""

import re

import nbclient.output_widget
import pytest
from browser import CHROMIUM
from exercises import LESSONS, MISTAKES, cells_of, exercises, keep, trial_faults, with_trials
from nbclient import NotebookClient

from rolib.config import ROOT

HEADER = ["Goal", "For", "You need", "You will be able to", "Your time", "Inputs", "Outputs"]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
class TestParts:
    def test_first_cell(self, lesson):
        first = " ".join(cells_of(lesson)[0].source.split())
        assert first.startswith(f"# Lesson {int(lesson.stem[:2])} · ")
        assert all(f"**{part}**" in first for part in HEADER)
        assert "(../00-start-here.ipynb)" in first

    def test_neighbours_are_linked(self, lesson):
        here, first = LESSONS.index(lesson), cells_of(lesson)[0].source
        for word, number in (("Previous", here - 1), ("Next", here + 1)):
            if 0 <= number < len(LESSONS):
                assert re.search(rf"{word}:\s\[[^]]+\]\({LESSONS[number].name}\)", first)

    def test_short_code_cells(self, lesson):
        code = [cell.source for cell in cells_of(lesson) if cell.cell_type == "code"]
        assert max(len(source.splitlines()) for source in code) <= 7

    def test_a_prediction_before_its_result(self, lesson):
        content = cells_of(lesson)
        asked = [i for i, cell in enumerate(content) if "**Predict first.**" in cell.source]
        code = [cell.source for cell in content[asked[0] :] if cell.cell_type == "code"]
        assert any(line.startswith("guess = None") for line in code[0].splitlines())
        assert any("{guess}" in source for source in code[1:])

    def test_exercises_have_checks_and_folded_solutions(self, lesson):
        numbers, checks, _ = zip(*exercises(lesson), strict=True)
        assert len(numbers) >= 3 and list(numbers) == list(range(1, len(numbers) + 1))
        assert len(set(checks)) == len(numbers) == len(MISTAKES[lesson.stem])

    def test_widget_figures_equation_and_references(self, lesson):
        source = "\n".join(cell.source for cell in cells_of(lesson))
        assert "widgets.interactive_output(" in source  # papermill may hang on @interact
        assert "$$" in source
        # Every figure is shown with a text in words; plt.show would give it none.
        assert source.count(" show(") + source.count("\nshow(") >= 2 and "plt.show" not in source
        assert len(re.findall(r"https://arxiv.org/abs/", source.split("## Read next")[1])) >= 2


def test_the_page_for_teachers_names_every_lesson_and_exercise():
    page = (ROOT / "notebooks" / "lessons" / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((\d\d-[^)]+\.ipynb)\)", page)
    assert sorted(set(linked)) == [lesson.name for lesson in LESSONS]
    rows = re.findall(r"^\| (\d)\.(\d) \|", page, re.M)
    expected = [(str(int(one.stem[:2])), str(e[0])) for one in LESSONS for e in exercises(one)]
    assert rows == expected


@pytest.mark.skipif(CHROMIUM is not None, reason="runs in the browser: test_browser.py")
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs_and_knows_right_from_wrong(lesson, monkeypatch):
    monkeypatch.setattr(nbclient.output_widget.OutputWidget, "send", lambda *_, **__: None)
    notebook = with_trials(lesson)
    folder = {"metadata": {"path": str(lesson.parent)}}  # where Jupyter runs it
    NotebookClient(notebook, timeout=300, resources=folder, kernel_name="python3").execute()
    keep(lesson, notebook.cells)
    assert not (faults := trial_faults(lesson, notebook.cells)), "\n".join(faults)
