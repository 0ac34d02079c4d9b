"""In a real browser: the study's report, the site, and the notebooks in JupyterLab."""

import os
from pathlib import Path

import pytest
from browser import launch, needs_chromium, page_faults
from playwright.sync_api import sync_playwright

from rolib.config import ROOT

pytestmark = needs_chromium
RUNS = Path(os.environ.get("ROLIB_RUNS") or ROOT / "runs")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


def test_the_report(browser, tmp_path):
    report = RUNS / "demo" / "report.html"
    if not report.exists():
        pytest.skip("no finished demo study: run `make demo`")
    faults = page_faults(browser, report.as_uri(), tmp_path)
    assert not faults, "\n".join(faults)
