"""The exercises of the lessons, a usual mistake in each, and the notebooks that try them."""

import ast
import os
import re
from pathlib import Path

import nbformat

from rolib.config import ROOT

LESSONS = sorted((ROOT / "notebooks" / "lessons").glob("*.ipynb"))
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
        "answer_3 = table.loc['all'].max()",  # the alphas are forgotten
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
        "def shared_words(one, other):\n"  # the other view is forgotten
        "    return {n for n in one['word'] if (one['word'] == n).sum() == 1}",
        "def word_state(states, word_ids, number):\n    return states[word_ids == number].sum(0)",
        "answer_3 = (second[0, u] * first[0, c] / first[0, forms].sum()).item()",  # without m
        "answer_4 = first[0, c].item()",  # one form of two
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


def cells_of(lesson):
    return nbformat.read(lesson, as_version=4).cells


def exercises(lesson):
    """For each exercise: its number, the index of the cell that checks it, the solution's code."""
    content, found = cells_of(lesson), []
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


def with_trials(lesson: Path) -> nbformat.NotebookNode:
    """A lesson with a mistake and the solution tried after each check of an exercise.

    Each is tried in a copy of the names, so that all later cells meet the lesson as a learner does
    who runs it without an answer.
    """
    notebook = nbformat.read(lesson, as_version=4)
    content, tried = notebook.cells, {}
    for (number, index, solution), mistake in zip(
        exercises(lesson), MISTAKES[lesson.stem], strict=True
    ):
        for name, answer in (("mistake", mistake), ("solution", solution)):
            code = f"exec({check_again(content[index], answer)!r}, dict(globals()))"
            cell = nbformat.v4.new_code_cell(code, id=f"{name}-{number}")
            tried.setdefault(index, []).append(cell)
    groups = [[cell, *tried.get(index, [])] for index, cell in enumerate(content)]
    notebook.cells = [cell for group in groups for cell in group]
    return notebook


def trial_faults(lesson: Path, cells: list[dict]) -> list[str]:
    """The exercises that take no answer, the mistake or the solution for something else.

    cells: those of the notebook with trials after it ran.
    """
    before, faults = cells_of(lesson), []
    found = {cell["id"]: cell for cell in cells}
    for number, index, _ in exercises(lesson):
        names = [before[index].id, f"mistake-{number}", f"solution-{number}"]
        said = ["".join(out.get("text", "") for out in found[name]["outputs"]) for name in names]
        starts = [text.splitlines()[-1].split(":")[0] if text else "" for text in said]
        if starts != ["not answered yet", "wrong", "right"]:
            faults.append(f"exercise {number}: {said}")
    return faults


def keep(notebook: Path, cells: list[dict]) -> None:
    """Keep what a notebook's own cells showed, where the site looks for it (see its build.py)."""
    if "ROLIB_RUNS" not in os.environ:
        return
    executed = nbformat.read(notebook, as_version=4)
    found = {cell["id"]: cell for cell in cells}
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = nbformat.from_dict(found[cell.id]["outputs"])
            cell.execution_count = found[cell.id]["execution_count"]
    file = Path(os.environ["ROLIB_RUNS"]) / "executed" / notebook.relative_to(ROOT / "notebooks")
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed, file)
