"""What MkDocs does with every page: formulas become MathML, which browsers show by themselves; what
scrolls can be reached by the keyboard."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def formulas_as_mathml(text: str) -> str:
    """HTML with the formulas that pymdownx.arithmatex found, as MathML."""

    def formula(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        mathml = convert(html.unescape(match[2]), display=display)
        if "\\" in mathml:
            raise ValueError(f"a formula with an unknown command: {match[2]}")
        mathml = mathml.replace('"negativethinmathspace"', '"-0.167em"')  # browsers know no names
        return f"<span>{mathml}</span>" if display == "inline" else in_box("formula", mathml)

    return FORMULA.sub(formula, text)


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
        entry.title = formulas_as_mathml(entry.title)
        entries += entry.children
    return tables_in_boxes(formulas_as_mathml(text))


def on_post_page(output, **_):
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')  # the theme has none
