"""Checks a built site: links, anchors, texts of images, nothing from a network, size."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LARGEST = 60_000_000  # bytes of the whole site
LOADED = {"src", "srcset", "poster", "data", "action", "background"}  # whatever the tag
LOADING_LINKS = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest"}
REMOTE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
REMOTE_STYLE = re.compile(r"(?:@import|url\()[\s\"'(]*(?:url\()?[\"']?(?:https?:)?//", re.I)


class Page(HTMLParser):
    """What a page links to, what it loads, its anchors, and its images without a text."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.silent: list[str] = []
        self.styles = ""
        self.in_style = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = {name: value or "" for name, value in attributes}
        self.in_style = tag == "style"
        self.styles += found.get("style", "") + "\n"
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.loads += [found[name] for name in LOADED & set(found)]
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and LOADING_LINKS & set(found.get("rel", "").split()):
            self.loads.append(found["href"])
        if tag == "img" and not found.get("alt", "").strip():
            self.silent.append(found.get("src", "")[:80])

    def handle_data(self, data):
        if self.in_style:
            self.styles += data

    def handle_endtag(self, tag):
        self.in_style = False


def is_local(link: str) -> bool:
    return not re.match(r"[a-z][a-z+.-]*:|//", link, re.IGNORECASE)


def faults_of_page(file: Path, pages: dict[Path, Page]) -> list[str]:
    """What is wrong with one page; `pages` has all of the site."""
    page, faults = pages[file], []
    faults += [f"image without a text: {image}" for image in page.silent]
    faults += [f"loaded from a network: {one}" for one in page.loads if REMOTE.match(one)]
    if REMOTE_STYLE.search(page.styles):
        faults.append("a style is loaded from a network")
    for link in [link for link in page.links + page.loads if is_local(link)]:
        name, _, anchor = link.partition("#")
        target = (file.parent / unquote(name.partition("?")[0])).resolve() if name else file
        if not target.is_file():
            faults.append(f"broken link: {link}")
        elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
            faults.append(f"no such anchor: {link}")
    return faults


def faults_of_site(site: Path, largest: int = LARGEST) -> list[str]:
    """Everything that is wrong with the site in a folder, a line each: page, fault, link."""
    files = sorted(site.resolve().rglob("*"))
    pages = {file: Page(file.read_text("utf-8")) for file in files if file.suffix == ".html"}
    faults = [] if pages else ["no pages"]
    for file in pages:
        name = file.relative_to(site.resolve())
        faults += [f"{name}: {fault}" for fault in dict.fromkeys(faults_of_page(file, pages))]
    for file in files:
        if file.suffix == ".css" and REMOTE_STYLE.search(file.read_text("utf-8")):
            faults.append(f"{file.relative_to(site.resolve())}: loads from a network")
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size > largest:
        faults.append(f"the site has {size} bytes, more than {largest}")
    return faults


if __name__ == "__main__":
    found = faults_of_site(Path(sys.argv[1]))
    print(*found, sep="\n", file=sys.stderr)
    sys.exit(bool(found))
