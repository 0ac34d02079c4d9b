"""The report and the site in a real browser: quiet, offline, readable on a phone, accessible."""

import os
import re
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import chromium, needs_chromium, page_faults

from rolib.config import ROOT

pytestmark = needs_chromium
RUNS = Path(os.environ.get("ROLIB_RUNS") or ROOT / "runs")
# The pages of the site of which colours are judged too: one of each kind.
KINDS = ["index", "figures/mini/index", "notebooks/00-start-here", "rolib/measures"]
KINDS += ["notebooks/08-explore-predictions", "notebooks/lessons/01-soft-targets"]
# Further pages of one template: of a module, of notebooks 01 to 03 for one more model.
REPEATED = re.compile("rolib/|notebooks/0[123]-(bag|bert|distil-(cased|uncased|multi))")


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder: Path):
    """A web server of a folder; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_report(browser, tmp_path):
    report = RUNS / "demo" / "report.html"
    if not report.exists():
        pytest.skip("no finished demo study: run `make demo`")
    faults = page_faults(browser, report.as_uri(), tmp_path)  # opened from the disk, as readers do
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("half", [0, 1])  # for two processes
def test_every_page_of_the_site(half, browser, tmp_path):
    site, found = RUNS / "site", {}
    if not (site / "index.html").exists():
        pytest.skip("no site: run `make site`")
    pages = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    assert not set(KINDS) - pages
    with served(site) as address:
        for name in sorted(pages - {"report"})[half::2]:  # the report has its own test
            look = "layout" if REPEATED.match(name) else "barriers"
            look = "colours" if name in KINDS else look
            found[name] = page_faults(browser, f"{address}/{name}.html", tmp_path, look)
    faults = [f"{name}: {fault}" for name, some in found.items() for fault in some]
    assert not faults, "\n".join(faults)


# --- the check itself -----------------------------------------------------------------------------

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
PAGE = """<!DOCTYPE html><html lang="ro"><head><meta charset="utf-8"><title>A page</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">
<style>:root {{ color-scheme: light dark; }}</style></head><body><main><h1>A page</h1>
<details><summary>More</summary>{}</details></main></body></html>"""
FAULTS = {  # what is said of a piece of a page
    "console: on purpose": "<script>console.error('on purpose')</script>",
    "page error: thrown on purpose": "<script>throw Error('thrown on purpose')</script>",
    "404: ": "<script src='none.js'></script>",
    "asks the network: http://nowhere.invalid/": "<script src='http://nowhere.invalid/'></script>",
    "scrolls sideways: 2008 of 390": "<div style='width: 2000px'>wide</div>",
    "image without a text": f"<img src='{PIXEL}'>",
    "image that is not there: none.png": "<img alt='none' src='none.png'>",
    "critical: button-name": "<button></button>",
    "1280 pixels: serious: color-contrast": "<p style='color: #ccc; background: #fff'>pale</p>",
    "1280 pixels: in the dark: serious: color-contrast": "<p style='color: #111'>night</p>",
}


def test_each_fault_of_a_page_is_noticed(browser, tmp_path):
    (tmp_path / "bad.html").write_text(PAGE.format("".join(FAULTS.values())), encoding="utf-8")
    (tmp_path / "good.html").write_text(PAGE.format("all is well"), encoding="utf-8")
    with served(tmp_path) as address:
        said = page_faults(browser, f"{address}/bad.html", tmp_path)
        assert page_faults(browser, f"{address}/good.html", tmp_path) == []
    assert [fault for fault in FAULTS if not any(fault in text for text in said)] == [], said
    pictures = [Path(text.split("picture: ")[1]) for text in said if "picture: " in text]
    assert len(pictures) == 2 and all(picture.exists() for picture in pictures)
