"""What notebooks define, for the tests of their functions."""

import ast
import json
from types import SimpleNamespace
from typing import Any

from rolib.config import ROOT

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef)


def functions_of(stem: str, **known: Any) -> SimpleNamespace:
    """The functions of a notebook; of its other cells only the imports run.

    known: the values that its functions read and that other cells set.
    """
    notebook = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            body = [node for node in tree.body if isinstance(node, DEFINITIONS)]
            exec(compile(ast.Module(body, []), stem, "exec"), known)
    return SimpleNamespace(**known)
