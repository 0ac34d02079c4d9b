"""What the lessons share: the check of an answer, and a figure with its alternative text."""

import html
from typing import Any

import numpy as np
from IPython.core.pylabtools import print_figure
from IPython.display import HTML, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def check(answer: Any, expected: Any, hint: str, tolerance: float = 1e-3) -> None:
    """Print whether the answer to an exercise is right; if it is wrong, with a hint. Never raises.

    answer: None is "not answered yet"; a function without arguments is called. expected: a text or
    a set, which must be equal, or numbers of any shape, which may differ by the tolerance (absolute
    and relative).
    """
    try:
        found = answer() if callable(answer) else answer
        if found is None:
            return print("not answered yet")
        exact = isinstance(expected, str | set)
        right = found == expected if exact else np.allclose(found, expected, tolerance, tolerance)
        print("right" if right else f"wrong: {hint}")
    except Exception as error:  # of the function, or of a comparison of unlike things
        print(f"wrong: {type(error).__name__}: {error}: {hint}")


def show(figure: Figure, text: str) -> None:
    """Display a figure with a text for those who cannot see it, and close it.

    JupyterLab drops the alternative text of an image output, but keeps that of HTML.
    """
    picture = print_figure(figure, base64=True)
    plt.close(figure)
    display(HTML(f'<img alt="{html.escape(text)}" src="data:image/png;base64,{picture}">'))
