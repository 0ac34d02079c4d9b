"""The site: its links are checked, its pages load nothing from a network, nothing is left out.

tests/run.sh builds and checks the whole site; here are its parts, on a few small pages.
"""

import json
import re
import shutil
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rolib.config import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "templates" / "site"))
import build  # noqa: E402
import check  # noqa: E402
import hooks  # noqa: E402
import pages  # noqa: E402

PATTERNS = ("notebooks/*.ipynb", "notebooks/lessons/*.ipynb")  # no hidden copies of JupyterLab
NOTEBOOKS = sorted(file for pattern in PATTERNS for file in ROOT.glob(pattern))
PIXEL = "iVBORw0KGgo="  # how every PNG starts
EVIL = "<script>alert('x')</script>"


def write(folder, **texts):
    """HTML pages by name."""
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


GOOD = '<h1 id="top">A</h1><a href="other.html#Part%20two">x</a><img src="data:," alt="words">'


def test_a_good_site_has_no_faults(tmp_path):
    write(tmp_path, index=GOOD, other='<h2 id="Part two"></h2><a href="https://arxiv.org">x</a>')
    assert check.faults_of_site(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="missing.html">x</a>', "index.html: broken link: missing.html"),
        ('<a href="folder/">x</a>', "index.html: broken link: folder/"),
        ('<a href="#nowhere">x</a>', "index.html: no such anchor: #nowhere"),
        ('<a href="other.html#no">x</a>', "index.html: no such anchor: other.html#no"),
        ('<img alt="x" src="gone.png">', "index.html: broken link: gone.png"),
        ('<img src="data:,1">', "index.html: image without a text: data:,1"),
        ('<img alt=" " src="data:,2">', "index.html: image without a text: data:,2"),
        ('<script src="https://a.b/c.js"></script>', "loaded from a network: https://a.b/c.js"),
        ('<script src="//a.b/c.js"></script>', "loaded from a network: //a.b/c.js"),
        ('<link rel="stylesheet" href="http://a.b/c.css">', "loaded from a network: http://a.b"),
        ("<style>@import 'https://a.b/c.css';</style>", "a style is loaded from a network"),
        ('<p style="background: url(//a.b/c.png)">x</p>', "a style is loaded from a network"),
    ],
)
def test_a_fault_is_named_with_its_page(tmp_path, text, fault):
    write(tmp_path, index=GOOD + text, other='<h2 id="Part two"></h2>')
    [found] = check.faults_of_site(tmp_path)
    assert found.startswith("index.html: ") and fault in found


def test_styles_and_size_of_a_site_are_checked(tmp_path):
    write(tmp_path, index="<p>x</p>")
    (tmp_path / "a.css").write_text('@font-face { src: url("https://a.b/c.woff") }')
    first, second = check.faults_of_site(tmp_path, largest=10)
    assert first == "a.css: loads from a network" and "more than 10" in second
    assert check.LARGEST <= 60e6
    assert check.faults_of_site(tmp_path / "nothing") == ["no pages"]


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("03-evaluate-model.ipynb", "03-evaluate-model.md"),
        ("lessons/05-loyalty.ipynb#read-next", "lessons/05-loyalty.md#read-next"),
        ("lessons", "lessons/README.md"),
        ("../rolib/distillation/losses.py", "../rolib/distillation/losses.md"),
        ("../rolib/data/pretrained", "../rolib/data/pretrained/index.md"),
        ("../figures/mini/", "../figures/mini/index.md"),
        ("../params/demo/study.yaml", "../params/demo/study.yaml"),
        ("https://arxiv.org/abs/1503.02531", "https://arxiv.org/abs/1503.02531"),
        ("#here", "#here"),
    ],
)
def test_links_lead_to_pages(link, there):
    page = ROOT / "notebooks" / "00-start-here.ipynb"
    code = "`a[0](missing.ipynb)`\n\n```python\nb[0](missing.ipynb)\n```\n"
    text, named = pages.rewrite_links(f"[`x`]({link}), {code}", page)
    assert text == f"[`x`]({there}), {code}"
    assert len(named) == (not link.startswith(("http", "#")))


def test_a_link_to_nothing_is_named():
    page = ROOT / "notebooks" / "00-start-here.ipynb"
    with pytest.raises(pages.SiteError, match="notebooks/00-start-here.ipynb: no.ipynb: no such"):
        pages.rewrite_links("[x](no.ipynb)", page)


def page_of(tmp_path, *outputs, source="draw()", captions=None):
    """The page of a notebook whose one code cell has these outputs."""
    cells = [new_markdown_cell("# A\n\n## Speed"), new_code_cell(source, outputs=list(outputs))]
    nbformat.write(new_notebook(cells=cells), tmp_path / "02-distil-multi.ipynb")
    source = ROOT / "notebooks" / "02-distil-student.ipynb"
    return pages.notebook_page(tmp_path / "02-distil-multi.ipynb", source, captions or {})[0]


def picture():
    return new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})


def test_a_figure_has_its_caption_as_its_text(tmp_path):
    captions = {"student-distil-cased": "Not this.", "student-distil-multi": 'The "terms".'}
    source = 'figures.save_figure(figure, folder, f"student-{config.student}", caption)'
    page = page_of(tmp_path, picture(), source=source, captions=captions)
    assert '<img alt="The &quot;terms&quot;." src="data:image/png;base64,' in page
    page = page_of(tmp_path, picture(), captions=captions)
    assert '<img alt="Figure of the section: Speed"' in page


def test_outputs_are_text_not_markup(tmp_path):
    said = new_output("stream", name="stdout", text=f"\x1b[31m{EVIL}\x1b[0m\n```\n# no heading")
    bar = new_output("stream", name="stderr", text="Loading weights")
    widget = new_output("display_data", {pages.WIDGET: {}, "text/plain": "VBox(children=...)"})
    page = page_of(tmp_path, said, bar, widget)
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert "&#96;&#96;&#96;" in page and "Loading weights" not in page
    assert "VBox" not in page and "work in JupyterLab only" in page


def test_a_cell_that_failed_stops_the_site(tmp_path):
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    with pytest.raises(pages.SiteError, match=r"02-distil-student.ipynb: .* ValueError: no"):
        page_of(tmp_path, error)


def test_every_formula_becomes_mathml():
    count = 0
    for notebook in NOTEBOOKS:
        cells = nbformat.read(notebook, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        text = "".join(pages.CODE.split(text)[::3])
        for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", text, re.DOTALL):
            assert "<math" in hooks.mathml(block or inline)
            count += 1
    assert count > 50


def test_an_unknown_command_in_a_formula_is_an_error():
    found = hooks.formulas_as_mathml(r'<span class="arithmatex">\(a &lt; \alpha\)</span>')
    assert found.startswith("<math") and "&#x0003C;" in found and "\\" not in found
    with pytest.raises(hooks.PluginError, match="unknown command: .*nonsense"):
        hooks.mathml(r"\nonsense{x}")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A finished study whose notebooks show nothing, and lessons that were run."""
    runs = tmp_path / "runs"
    (runs / "demo" / "notebooks").mkdir(parents=True)
    (runs / "demo" / "report.html").write_text('<a href="#a" id="a">Report</a>')
    for notebook in build.NOTEBOOKS[1:]:
        shutil.copy(notebook, runs / "demo" / "notebooks")
    for notebook in [build.NOTEBOOKS[0], *build.LESSONS]:
        copy = runs / "executed" / notebook.relative_to(ROOT / "notebooks")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, copy)
    monkeypatch.setattr(build, "RUNS", runs)
    monkeypatch.setattr(build, "execute", lambda *_: pytest.fail("it was run already"))
    (tmp_path / "pages").mkdir()
    return build.Source(tmp_path / "pages", runs / "demo")


def test_every_notebook_and_module_has_a_page_and_an_entry(study):
    nav = json.dumps(build.write_pages(study))
    modules = sorted((ROOT / "rolib").rglob("*.py"))
    assert len(NOTEBOOKS) >= 19 and len(modules) > 40
    for file in [*NOTEBOOKS, *modules]:
        page = str(pages.page_of(file).relative_to(ROOT))
        assert (study.folder / page).is_file() and f'"{page}"' in nav, page
    for page in ("README", "CONTRIBUTING", "CHANGELOG", "LOG", "notebooks/lessons/README"):
        assert f'"{page}.md"' in nav
    assert '"report.html"' in nav and (study.folder / "report.html").is_file()
    assert (study.folder / "figures" / "mini" / "mean-scores.png").is_file()


def test_a_study_without_a_notebook_is_named(study):
    (study.study / "notebooks" / "09-ablate-ensemble.ipynb").unlink()
    with pytest.raises(pages.SiteError, match="no 09-ablate-ensemble.ipynb"):
        build.write_pages(study)


def test_the_run_of_the_default_model_comes_first(study):
    folder = study.study / "notebooks"
    (folder / "02-distil-student.ipynb").unlink()
    for name in ("02-a.ipynb", "02-distil-cased.ipynb", "02-z.partial.ipynb"):
        (folder / name).touch()
    found = build.runs_of(ROOT / "notebooks" / "02-distil-student.ipynb", folder)
    assert [file.stem for file in found] == ["02-distil-cased", "02-a"]


def test_a_changed_notebook_is_run_again(study):
    source = build.LESSONS[0]
    copy = build.RUNS / "executed" / "lessons" / source.name
    assert build.is_current(copy, source)
    copy.write_text(copy.read_text("utf-8").replace("temperature", "heat"), "utf-8")
    assert not build.is_current(copy, source)


@pytest.fixture
def small(tmp_path):
    """A folder of pages with a formula, a table, an output and a module."""
    folder = tmp_path / "pages"
    folder.mkdir()
    page = page_of(tmp_path, picture(), new_output("stream", text="said"))
    table = "| a | b |\n|---|---|\n| 1 | [x](#why-t2) |\n"
    solution = (
        '<details markdown="1"><summary>Solution</summary>\n\n```python\na = 1\n```\n\n</details>'
    )
    text = f"{page}\n## Why $T^2$?\n\n$$\n\\frac{{a}}{{b}}\n$$\n\n{table}\n{solution}\n"
    (folder / "index.md").write_text(text)
    (folder / "losses.md").write_text(pages.module_page(ROOT / "rolib/distillation/losses.py"))
    return folder


def test_a_small_site_is_whole_and_offline(small, tmp_path):
    site = tmp_path / "site"
    build.make_site(small, site, ["index.md", {"losses": "losses.md"}])
    text = (site / "index.html").read_text("utf-8")
    assert text.count("<math") == 4  # a heading, its entries in two tables of contents, a formula
    assert "arithmatex" not in text and "\\(" not in text
    assert text.count('tabindex="0" role="group"') == 4
    assert "<summary>Solution</summary>" in text and "```" not in text
    assert "soft_target_loss" in (site / "losses.html").read_text("utf-8")
    assert not check.faults_of_site(site)
    assert (site / "search" / "search_index.js").is_file()  # the search of a page opened as a file


def test_a_broken_link_stops_the_site(small, tmp_path, caplog):
    (small / "losses.md").write_text("[x](gone.md)")
    with pytest.raises(build.Abort):
        build.make_site(small, tmp_path / "site", ["index.md", "losses.md"])
    assert "losses.md" in caplog.text and "gone.md" in caplog.text
