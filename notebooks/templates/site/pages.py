"""Pages of the site as Markdown: an executed notebook, a module, a folder; links that fit the site.

The pages lie as the files of the repository do, so that a relative link stays as it is. Only its
end changes: a notebook or a module becomes a page.
"""

import base64
import html
import re
from pathlib import Path

import nbformat
from hooks import in_box
from nbconvert.filters import markdown2html, strip_ansi

ROOT = Path(__file__).resolve().parents[3]
CODE = re.compile(r"(^(`{3,}).*?^\2`*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
WIDGET = "application/vnd.jupyter.widget-view+json"


class SiteError(Exception):
    """What is wrong with the site, in one line."""


def page_of(file: Path) -> Path:
    """The page of the site for a file or folder of the repository; other files are copied."""
    if file.is_dir():
        return file / ("README.md" if (file / "README.md").exists() else "index.md")
    if file.name == "__init__.py":
        return file.with_name("index.md")
    is_module = file.suffix == ".py" and file.is_relative_to(ROOT / "rolib")
    return file.with_suffix(".md") if is_module or file.suffix == ".ipynb" else file


def rewrite_links(text: str, page: Path) -> tuple[str, set[Path]]:
    """Markdown of the file `page` with links to pages of the site, and the files that it names."""
    named = set()

    def rewrite(match: re.Match) -> str:
        link, _, anchor = match[1].partition("#")
        if not link or re.match("[a-z]+:", link):
            return match[0]
        file = (page.parent / link).resolve()
        if not file.exists():
            raise SiteError(f"{page.relative_to(ROOT)}: {match[1]}: no such file")
        named.add(file)
        target = page_of(file)
        folder = link.rstrip("/") + "/" if file.is_dir() else link.removesuffix(file.name)
        link = folder + target.name
        return f"]({link}#{anchor})" if anchor else f"]({link})"

    parts = CODE.split(text)  # text, code, its fence, text, ...
    prose = [LINK.sub(rewrite, part) for part in parts[::3]]
    codes = [*parts[1::3], ""]
    return "".join(p + c for p, c in zip(prose, codes, strict=True)), named


def output_html(output: dict, alt: str) -> str:
    """An output of a cell as HTML; empty for progress bars and warnings."""
    data = output.get("data", {})
    if output["output_type"] == "error":
        raise SiteError(f"a cell failed: {output['ename']}: {output['evalue']}")
    if output["output_type"] == "stream":
        printed = output["text"] if output["name"] == "stdout" else ""
    else:
        printed = data.get("text/plain", "")
    if WIDGET in data:
        return '<p class="widget">Sliders, buttons and fields work in JupyterLab only.</p>'
    if "text/html" in data:
        return data["text/html"]
    if "image/png" in data:
        source = data["image/png"].replace("\n", "")
        base64.b64decode(source, validate=True)
        return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'
    if "text/markdown" in data:
        return markdown2html(data["text/markdown"])
    return f"<pre>{html.escape(strip_ansi(printed))}</pre>" if printed.strip() else ""


def caption_of(source: str, model: str, captions: dict[str, str]) -> str:
    """The caption of the figure that the code of a cell saves; empty if it saves none.

    captions: by the figure's name, as `save_figure` wrote them. A name in the code may have a
    field: `f"teacher-{config.teacher}"`. Of several figures it is the one of the notebook's model.
    """
    names = re.findall(r'"([\w{}.-]+)"', source.replace("label_", "label-"))
    patterns = [re.sub(r"\{[^}]*\}", ".+", name.replace("_", "-")) for name in names]
    found = [name for name in captions for one in patterns if re.fullmatch(one, name)]
    own = [name for name in found if name.endswith(model)]
    return captions[(own or found)[0]] if found else ""


def notebook_page(executed: Path, source: Path, captions: dict[str, str], note: str = ""):
    """An executed notebook as Markdown, and the files that it names.

    source: the notebook in the repository, from which its links go out. note: Markdown that follows
    its first cell.
    """
    parts, named, heading = [], set(), ""
    for number, cell in enumerate(nbformat.read(executed, as_version=4).cells):
        if cell.cell_type == "markdown":
            text, files = rewrite_links(cell.source, source)
            named |= files
            parts.append(text.replace("<details>", '<details markdown="1">'))
            heading = ([heading] + re.findall(r"^#+ (.*)", text, re.MULTILINE))[-1]
        elif cell.source.strip():
            parts.append(f"````python\n{cell.source.rstrip()}\n````")
        alt = f"Figure of the section: {heading}"
        if cell.cell_type == "code":
            alt = caption_of(cell.source, executed.stem[3:], captions) or alt
        try:
            shown = [output_html(output, alt) for output in cell.get("outputs", [])]
        except SiteError as error:
            raise SiteError(f"{source.relative_to(ROOT)}: {error}") from None
        parts += [boxed(one) for one in shown if one]
        if number == 0 and note:
            parts.append(note)
    return "\n\n".join(parts) + "\n", named


def boxed(output: str) -> str:
    """An output in its box, as HTML that Markdown leaves alone."""
    output = re.sub(r"<table(?![^>]*class=)", '<table class="data"', output)  # not the theme's look
    return in_box("output", "\n" + output.strip().replace("`", "&#96;") + "\n")


def module_page(file: Path) -> str:
    """A page that mkdocstrings fills from the docstrings of a module or package of rolib."""
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    text = f"# {name}\n\n::: {name}\n"
    if file.name == "__init__.py":
        modules = [one for one in sorted(file.parent.glob("*.py")) if one != file]
        packages = sorted(one.parent for one in file.parent.glob("*/__init__.py"))
        links = [f"- [{one.stem}]({one.stem}.md)" for one in modules]
        links += [f"- [{one.name}]({one.name}/index.md)" for one in packages]
        text += "\n" + "\n".join(links) + "\n"
    return text


def folder_page(folder: Path) -> str:
    """The files of a folder: its pictures with their captions, and links to the others."""
    pictures, others = [], []
    for file in sorted(folder.iterdir()):
        caption = file.with_suffix(".txt")
        if file.suffix == ".png":
            alt = caption.read_text(encoding="utf-8").strip() if caption.exists() else file.stem
            pictures.append(f"## {file.stem}\n\n![{alt}]({file.name})\n\n{alt}")
        elif file.is_file() and file.suffix != ".txt":
            others.append(f"- [{file.name}]({file.name})")
    parts = [f"# {folder.relative_to(ROOT)}", "\n".join(others), *pictures]
    return "\n\n".join(parts) + "\n"
