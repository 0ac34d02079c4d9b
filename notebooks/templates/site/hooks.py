"""What MkDocs does with every page: formulas become MathML, which browsers show by themselves; what
scrolls can be reached by the keyboard."""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FORMULA_OF_A_HEADING = re.compile(r"\\\((.*?)\\\)")  # as the table of contents has it


def formulas_as_mathml(text: str) -> str:
    """HTML with the formulas that pymdownx.arithmatex found, as MathML."""

    def replace(match: re.Match) -> str:
        if match[1] == "span":
            return mathml(match[2])
        return in_box("formula", mathml(match[2], "block"))

    return FORMULA.sub(replace, text)


def mathml(formula: str, display: str = "inline") -> str:
    """A formula of LaTeX, as HTML has it, in MathML."""
    text = convert(html.unescape(formula), display=display)
    if "\\" in text:
        raise PluginError(f"a formula with an unknown command: {formula}")
    return text.replace('"negativethinmathspace"', '"-0.167em"')  # browsers do not know the name


def in_box(kind: str, text: str) -> str:
    """HTML in a box that scrolls sideways where the screen is narrow, also by the keyboard."""
    label = kind.capitalize()
    return f'<div class="box {kind}" tabindex="0" role="group" aria-label="{label}">{text}</div>'


def tables_in_boxes(text: str) -> str:
    """HTML with the tables that Markdown made, each in its box."""
    table = re.compile(r"<table>(.*?)</table>", re.DOTALL)
    return table.sub(lambda match: in_box("table", f'<table class="text">{match[1]}</table>'), text)


def on_page_content(text, page, **_):
    entries = list(page.toc)
    while entries:
        entry = entries.pop()
        entry.title = FORMULA_OF_A_HEADING.sub(lambda found: mathml(found[1]), entry.title)
        entries += entry.children
    return tables_in_boxes(formulas_as_mathml(text))


def on_post_page(output, **_):
    return output.replace(
        'role="dialog"', 'role="dialog" aria-label="Search"'
    )  # the theme has none
