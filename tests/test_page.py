"""The report's page: offline, readable on a phone, accessible, and safe from what data say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rolib.config import ROOT

TEMPLATES = ROOT / "notebooks" / "templates"
EVIL = "<script>alert('x')</script>"
LOADING = {"src", "href", "srcset", "poster", "data", "action", "background"}
VOID = {"meta", "link", "img", "br", "hr"}  # tags without an end


class Page(HTMLParser):
    """The tags of a page with their attributes, and whether every tag is closed in its turn."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag, self.getpos()


def check_page(text: str) -> Page:
    """What must be true of every report."""
    page = Page(text)
    assert not page.open
    for tag, attributes in page.tags:
        for name in LOADING & set(attributes):
            assert attributes[name].startswith(("data:", "#")), (tag, name, attributes[name][:80])
        if tag == "img":
            assert attributes["alt"].strip()
    styles = "".join(re.findall("<style.*?</style>", text, re.DOTALL))
    assert "@import" not in styles and "url(" not in styles
    assert "require.js" not in text and "mathjax" not in text.lower()
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert any(meta.get("name") == "viewport" for meta in metas)
    [policy] = [meta["content"] for meta in metas if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")  # the browser refuses what we overlooked
    return page


def functions_of_the_notebook() -> dict:
    """`neat` and `show` as notebook 06 defines them, with its imports."""
    path = ROOT / "notebooks" / "06-report-results.ipynb"
    cells = {cell["id"]: cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    imports = "".join(cells["06-03"]["source"]).split("figures.set_theme")[0]
    shown: list = []
    names: dict = {}
    for source in (imports, *("".join(cells[name]["source"]) for name in ("06-03f", "06-03g"))):
        exec(source, names)
    names["display"] = lambda *things: shown.extend(things)
    return names | {"shown": shown}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    notebook_06 = functions_of_the_notebook()
    style = notebook_06["neat"](pd.DataFrame({"model": [EVIL], EVIL: [0.5]}))
    picture = tmp_path_factory.mktemp("figures") / "a.png"
    plt.imsave(picture, [[0.0, 1.0], [1.0, 0.0]])
    picture.with_suffix(".txt").write_text(f'A "caption" {EVIL}\n')
    notebook_06["show"](picture)
    image, caption = notebook_06["shown"]
    data = [{"text/html": style.to_html()}, {"text/html": image._repr_html_()}]
    data += [{"text/markdown": caption.data}, {"text/plain": EVIL}]
    outputs = [new_output("display_data", one) for one in data]
    outputs.append(new_output("stream", name="stdout", text=f"Reading: {EVIL}\n"))
    outputs.append(new_output("stream", name="stderr", text="Loading weights"))
    hidden = {"tags": ["not-on-the-page"]}
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("secret = 1", outputs=outputs),
        new_code_cell("", outputs=[new_output("stream", text="hidden output")], metadata=hidden),
        new_markdown_cell("## First & best\n\nSome *text*.", metadata={"tags": ["fold"]}),
        new_markdown_cell("## Second", metadata={"tags": ["fold"]}),
    ]
    notebook = new_notebook(cells=cells, metadata={"title": "Study"})
    nbformat.validate(notebook)
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])
    return exporter.from_notebook_node(notebook)[0]


def test_a_page_loads_nothing_and_names_its_images(page):
    tags = check_page(page).tags
    assert sum(tag == "img" for tag, _ in tags) == 1
    assert "<title>Study</title>" in page and '<html lang="en">' in page


def test_data_never_become_markup(page):
    assert "<script>alert" not in page and page.count("<script") == 1  # the page's own
    assert page.count("&lt;script&gt;") >= 5


def test_sections_fold_and_code_stays_behind(page):
    assert page.count("<details>") == page.count("</details>") == 2
    assert "<summary><h2>First &amp; best</h2></summary>" in page and "<em>text</em>" in page
    assert not any(word in page for word in ("secret", "hidden output", "Loading weights"))


def test_it_prints_sorts_and_darkens(page):
    for word in ("@media print", "prefers-color-scheme: dark", "beforeprint", "aria-sort"):
        assert word in page
    assert '<div class="wide">' in page and "overflow-x: auto" in page


def test_the_rule_uses_the_template():
    rule = Path(ROOT / "Snakefile").read_text(encoding="utf-8")
    assert "--template report" in rule and "extra_template_basedirs=notebooks/templates" in rule
