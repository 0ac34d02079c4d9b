"""The lessons: the parts that each must have; their solutions are called right, mistakes wrong.

Each lesson runs once, in a kernel, with a mistake and the solution put in after each exercise. This
replaces the plain run of the lesson (tests/run.sh). With ROLIB_RUNS set, what its own cells showed
goes to $ROLIB_RUNS/executed/lessons/, where the site takes it from.
"""

import ast
import os
import re
from pathlib import Path

import nbclient.output_widget
import nbformat
import pytest
from nbclient import NotebookClient

from rolib.config import ROOT

LESSONS = sorted((ROOT / "notebooks" / "lessons").glob("*.ipynb"))
HEADER = ["Goal", "For", "You need", "You will be able to", "Your time", "Inputs", "Outputs"]
MISTAKES = {  # by lesson: a usual mistake in each exercise
    "01-soft-targets": [
        "def softened(logits, temperature):\n    return logits.softmax(-1) / temperature",
        "answer_2 = 0",
        "def my_loss(student_logits, teacher_logits, temperature):\n"  # the factor is forgotten
        "    return losses.soft_target_loss(student_logits, teacher_logits, temperature) / 4",
        "answer_4 = 4",
    ],
    "02-three-losses": [
        "def my_mlm_loss(logits, labels):\n"  # over all rows
        "    return -logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None]).mean()",
        "def my_cosine_loss(ours, theirs):\n    return 1 - (ours * theirs).sum(-1).mean()",
        "answer_3 = 'ce'",  # it has the largest alpha
        "answer_4 = set()",
    ],
    "03-which-layers": [
        "def kept_layers(teacher_layers, student_layers):\n"
        "    return list(range(0, teacher_layers, teacher_layers // student_layers))",
        "def layer_parameters(hidden):\n    return 12 * hidden**2",  # without biases and norms
        "answer_3 = 1",
        "answer_4 = 3",
    ],
    "04-two-vocabularies": [
        "def shared_words(one, other):\n    return set(one['word']) & set(other['word'])",
        "def word_state(states, word_ids, number):\n    return states[word_ids == number].sum(0)",
        "answer_3 = p_u[0, u].item()",  # not split among the forms
        "answer_4 = p_c[0, c].item()",  # one form of three
    ],
    "05-loyalty": [
        "def flips(gold, teacher, student):\n"  # the two are exchanged
        "    return ((teacher != gold) & (student == gold)).mean(), "
        "((teacher == gold) & (student != gold)).mean()",
        "answer_2 = grid.mean()",
        "answer_3 = 0.91",
        "answer_4 = 1 - (1 - 0.62) ** 0.5",
    ],
    "06-small-and-fast": [
        "def rounded(w, steps=127):\n    return (w / (w.abs().max() / steps)).round()",
        "answer_2 = 1",
        "answer_3 = int((own != small).sum())",
        "answer_4 = 3 * 0.6",
    ],
}


def cells(lesson):
    return nbformat.read(lesson, as_version=4).cells


def exercises(lesson):
    """For each exercise: its number, the index of the cell that checks it, the solution's code."""
    content, found = cells(lesson), []
    for index, cell in enumerate(content):
        titles = re.findall(r"^### Exercise (\d)$", cell.source, re.M)
        for title in titles if cell.cell_type == "markdown" else []:
            later = range(index + 1, len(content))
            check = next(i for i in later if "check(" in content[i].source)
            assert content[check].cell_type == "code"
            # No other code stands between the check and its folded solution.
            folded = re.search(
                rf"\A<details><summary>Solution {title}</summary>\n(.*?)\n</details>",
                content[check + 1].source,
                re.S,
            )
            code = re.search(r"```python\n(.*?)\n```", folded[1], re.S)
            found.append((int(title), check, code[1]))
    return found


def names_defined(statement):
    """The names that a statement at the top of a cell defines."""
    targets = [getattr(statement, "name", "")]
    targets += [getattr(target, "id", "") for target in getattr(statement, "targets", [])]
    return set(targets) - {""}


def check_again(cell, answer):
    """The code of a check cell without its empty answer, after the code of another answer."""
    known = set().union(*map(names_defined, ast.parse(answer).body))
    body = [one for one in ast.parse(cell.source).body if not names_defined(one) & known]
    return f"{answer}\n{ast.unparse(ast.Module(body, []))}"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
class TestParts:
    def test_first_cell(self, lesson):
        first = " ".join(cells(lesson)[0].source.split())
        assert first.startswith(f"# Lesson {int(lesson.stem[:2])} · ")
        assert all(f"**{part}**" in first for part in HEADER)
        assert "(../00-start-here.ipynb)" in first

    def test_neighbours_are_linked(self, lesson):
        here, first = LESSONS.index(lesson), cells(lesson)[0].source
        for word, number in (("Previous", here - 1), ("Next", here + 1)):
            if 0 <= number < len(LESSONS):
                assert re.search(rf"{word}:\s\[[^]]+\]\({LESSONS[number].name}\)", first)

    def test_short_code_cells(self, lesson):
        code = [cell.source for cell in cells(lesson) if cell.cell_type == "code"]
        assert max(len(source.splitlines()) for source in code) <= 7

    def test_a_prediction_before_its_result(self, lesson):
        content = cells(lesson)
        asked = [i for i, cell in enumerate(content) if "**Predict first.**" in cell.source]
        code = [cell.source for cell in content[asked[0] :] if cell.cell_type == "code"]
        assert any(line.startswith("guess = None") for line in code[0].splitlines())
        assert any("{guess}" in source for source in code[1:])

    def test_exercises_have_checks_and_folded_solutions(self, lesson):
        numbers, checks, _ = zip(*exercises(lesson), strict=True)
        assert len(numbers) >= 3 and list(numbers) == list(range(1, len(numbers) + 1))
        assert len(set(checks)) == len(numbers) == len(MISTAKES[lesson.stem])

    def test_widget_figures_equation_and_references(self, lesson):
        source = "\n".join(cell.source for cell in cells(lesson))
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


def keep(lesson, executed_cells):
    """Write an executed lesson to where the site looks for it."""
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells = executed_cells
    folder = Path(os.environ["ROLIB_RUNS"]) / "executed" / "lessons"
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / lesson.name)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs_and_knows_right_from_wrong(lesson, monkeypatch):
    monkeypatch.setattr(nbclient.output_widget.OutputWidget, "send", lambda *_, **__: None)
    content, found = cells(lesson), exercises(lesson)
    inserted = {index: [] for _, index, _ in found}
    for (_, index, solution), mistake in zip(found, MISTAKES[lesson.stem], strict=True):
        for answer in (mistake, solution):
            cell = nbformat.v4.new_code_cell(check_again(content[index], answer))
            inserted[index].append(cell)
    order = [[cell, *inserted.get(index, [])] for index, cell in enumerate(content)]
    notebook = nbformat.v4.new_notebook(cells=[cell for group in order for cell in group])
    folder = {"metadata": {"path": str(lesson.parent)}}  # where Jupyter runs it
    NotebookClient(notebook, timeout=300, resources=folder, kernel_name="python3").execute()
    if "ROLIB_RUNS" in os.environ:
        keep(lesson, content)
    for number, index, _ in found:
        trials = [content[index], *inserted[index]]
        said = ["".join(out.get("text", "") for out in cell.outputs) for cell in trials]
        starts = [text.splitlines()[-1].split(":")[0] for text in said]
        assert starts == ["not answered yet", "wrong", "right"], (number, said)
