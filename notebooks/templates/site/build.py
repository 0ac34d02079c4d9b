"""Builds the site of a finished study: `make site`. Needs no network.

    python notebooks/templates/site/build.py demo   # $ROLIB_RUNS/demo/ -> $ROLIB_RUNS/site/

Notebooks 01 to 12 come from the study. 00 and the lessons are no part of a study: they run here,
unless a copy that is up to date lies in $ROLIB_RUNS/executed/.
"""

import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import nbclient.output_widget
import nbformat
from check import faults_of_site
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from nbclient import NotebookClient
from pages import ROOT, SiteError, folder_page, module_page, notebook_page, page_of, rewrite_links

HERE = Path(__file__).parent
RUNS = Path(os.environ.get("ROLIB_RUNS") or ROOT / "runs").resolve()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = sorted((ROOT / "notebooks" / "lessons").glob("*.ipynb"))
DOCUMENTS = ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "LOG.md"]


def is_current(executed: Path, source: Path) -> bool:
    """Whether an executed copy has the cells of its notebook and is younger than all of rolib."""
    if not executed.exists():
        return False
    cells = [
        [(cell.cell_type, cell.source) for cell in nbformat.read(file, as_version=4).cells]
        for file in (executed, source)
    ]
    newest = max(file.stat().st_mtime for file in (ROOT / "rolib").rglob("*.py"))
    return cells[0] == cells[1] and executed.stat().st_mtime > newest


def execute(source: Path, executed: Path) -> None:
    """Run a notebook where Jupyter would run it, and keep what it shows."""
    print(f"run {source.relative_to(ROOT)}", flush=True)
    notebook = nbformat.read(source, as_version=4)
    folder = {"metadata": {"path": str(source.parent)}}
    # Outside JupyterLab nothing listens to an output widget, and nbclient would wait for it.
    with mock.patch.object(nbclient.output_widget.OutputWidget, "send"):
        NotebookClient(notebook, timeout=600, resources=folder, kernel_name="python3").execute()
    executed.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, executed)


def executed_copy(source: Path) -> Path:
    executed = RUNS / "executed" / source.relative_to(ROOT / "notebooks")
    if not is_current(executed, source):
        execute(source, executed)
    return executed


def runs_of(source: Path, folder: Path) -> list[Path]:
    """The executed copies of a notebook in a study; first that of its default model.

    01 to 03 run once a model, as 02-distil-multi.ipynb; the others once.
    """
    if (folder / source.name).exists():
        return [folder / source.name]
    found = sorted(folder.glob(f"{source.name[:3]}*.ipynb"))
    found = [file for file in found if not file.stem.endswith(".partial")]
    if not found:
        raise SiteError(f"{folder}: no {source.name}: run `make site`")
    cells = nbformat.read(source, as_version=4).cells
    [defaults] = [one for one in cells if "parameters" in one.metadata.get("tags", [])]
    return sorted(found, key=lambda file: f'= "{file.stem[3:]}"' not in defaults.source)


class Source:
    """The folder of Markdown pages from which MkDocs makes the site."""

    def __init__(self, folder: Path, study: Path):
        self.folder, self.study = folder, study
        texts = sorted((study / "figures").glob("*.txt"))
        self.captions = {file.stem: file.read_text("utf-8").strip() for file in texts}
        self.named: set[Path] = set()  # files of the repository to which a page links

    def write(self, page: Path, text: str) -> str:
        """Write a page, named by its path in the repository; returns its name in the site."""
        name = page.relative_to(ROOT)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(name)

    def document(self, file: Path) -> str:
        # Badges would be loaded from the network.
        text = file.read_text("utf-8")
        text = re.sub("<!-- badges -->.*?<!-- end -->", "", text, flags=re.DOTALL)
        text, named = rewrite_links(text, file)
        self.named |= named
        return self.write(file, text)

    def notebook(self, executed: Path, source: Path, page: Path, note: str = "") -> str:
        text, named = notebook_page(executed, source, self.captions, note)
        self.named |= named
        return self.write(page, text)

    def notebook_of_the_study(self, source: Path) -> str:
        """The page of a notebook, and of its runs with other models."""
        first, *others = runs_of(source, self.study / "notebooks")
        links = [f"[{one.stem[3:]}]({one.stem}.md)" for one in others]
        note = f"*This page shows `{first.stem[3:]}`.* The same for: {', '.join(links)}."
        for one in others:
            back = f"*This page shows `{one.stem[3:]}`.* [Back]({source.stem}.md)"
            self.notebook(one, source, source.with_name(f"{one.stem}.md"), back)
        return self.notebook(first, source, page_of(source), note if others else "")

    def copy_named_files(self) -> None:
        """Files to which a page links and that are no pages; a folder gets a page of its files."""
        done: set[Path] = set()
        while self.named - done:  # a page that is copied may name further files
            file = min(self.named - done)
            done.add(file)
            target = self.folder / page_of(file).relative_to(ROOT)
            if target.exists():
                continue
            if file.is_dir():
                self.write(page_of(file), folder_page(file))
                shutil.copytree(file, target.parent, dirs_exist_ok=True)
            elif file.suffix == ".md":
                self.document(file)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)


def tree(folder: Path, source: Source) -> list:
    """Pages of a package of rolib, as MkDocs wants them for its navigation."""
    package = folder / "__init__.py"
    found: list = [source.write(page_of(package), module_page(package))]
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            found.append({file.stem: source.write(page_of(file), module_page(file))})
    for inner in sorted(folder.glob("*/__init__.py")):
        found.append({inner.parent.name: tree(inner.parent, source)})
    return found


def write_pages(source: Source) -> list:
    """Write every page; returns the navigation."""
    report = "On this site: [the report of the study](report.html), the executed"
    report += " [notebooks](notebooks/00-start-here.md) and [lessons](notebooks/lessons/README.md)."
    shutil.copy(source.study / "report.html", source.folder)
    front = source.document(ROOT / "README.md")
    text = (source.folder / front).read_text("utf-8")
    (source.folder / front).write_text(text.replace("\n## ", f"\n{report}\n\n## ", 1), "utf-8")
    start, *others = NOTEBOOKS
    notebooks = [source.notebook(executed_copy(start), start, page_of(start))]
    notebooks += [source.notebook_of_the_study(one) for one in others]
    lessons = [source.document(ROOT / "notebooks" / "lessons" / "README.md")]
    lessons += [source.notebook(executed_copy(one), one, page_of(one)) for one in LESSONS]
    folders = sorted(one for one in (ROOT / "figures").glob("[!._]*") if one.is_dir())
    source.named |= set(folders)
    api = tree(ROOT / "rolib", source)
    documents = [source.document(ROOT / name) for name in DOCUMENTS]
    source.copy_named_files()
    figures = [str(page_of(one).relative_to(ROOT)) for one in folders]
    return [
        {"Home": front},
        {"Notebooks": notebooks},
        {"Lessons": lessons},
        {"Report": "report.html"},
        {"Figures": figures},
        {"rolib": api},
        {"Project": documents},
    ]


def make_site(folder: Path, site: Path, nav: list) -> None:
    """Make the site of a folder of pages, and check it."""
    logging.basicConfig(level="WARNING", format="%(message)s")  # each names a page and a link
    (folder / "assets").mkdir()
    for name in ("site.css", "iframe-worker.js"):
        shutil.copy(HERE / name, folder / "assets")
    places = {"docs_dir": str(folder), "site_dir": str(site), "nav": nav}
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, **places)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    (site / "404.html").unlink()  # for servers; its links start at the server's root
    faults = faults_of_site(site)
    if faults:
        raise SiteError("\n".join(faults))


def main(profile: str) -> None:
    study, site = RUNS / profile, RUNS / "site"
    if not (study / "report.html").exists():
        raise SiteError(f"{study}: no finished study: run `make study PROFILE={profile}`")
    with tempfile.TemporaryDirectory() as folder:
        nav = write_pages(Source(Path(folder), study))
        make_site(Path(folder), site, nav)
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    print(f"{site / 'index.html'}: {len(list(site.rglob('*.html')))} pages, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (SiteError, Abort) as error:
        sys.exit(f"error: {error}")
