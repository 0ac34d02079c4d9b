"""What MkDocs does with every page: formulas become MathML, which browsers show by themselves."""

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
        return f'<{match[1]} class="formula">{mathml}</{match[1]}>'

    return FORMULA.sub(formula, text)


def on_page_content(text, page, **_):
    entries = list(page.toc)
    while entries:
        entry = entries.pop()
        entry.title = formulas_as_mathml(entry.title)
        entries += entry.children
    return formulas_as_mathml(text)
