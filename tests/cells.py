"""What notebooks define, for the tests of their functions."""

import ast
import json
from types import SimpleNamespace
from typing import Any

from rolib.config import ROOT

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef)


def code_cells(stem: str) -> dict[str, str]:
    """The source of each code cell of a notebook, by its id."""
    notebook = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def after_cells(stem: str, *names: str, **known: Any) -> SimpleNamespace:
    """What a notebook knows after its cells of these ids; of other cells as `functions_of`.

    known: what earlier cells left; a function here takes the place of the notebook's own.
    """
    space = vars(functions_of(stem, **known)) | known
    for name in names:
        exec(compile(code_cells(stem)[name], name, "exec"), space)
    return SimpleNamespace(**space)


def functions_of(stem: str, **known: Any) -> SimpleNamespace:
    """The functions of a notebook; of its other cells only the imports run.

    known: the values that its functions read and that other cells set.
    """
    for source in code_cells(stem).values():
        body = [node for node in ast.parse(source).body if isinstance(node, DEFINITIONS)]
        exec(compile(ast.Module(body, []), stem, "exec"), known)
    return SimpleNamespace(**known)
