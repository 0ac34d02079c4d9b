"""Chromium for tests: where it is, how it starts, and what must be true of a page in it."""

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Without a screen, for root in a container too; it looks for nothing in a network.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WIDTHS = (390, 1280)  # a phone, a laptop
LOCAL = ("http://127.0.0.1:", "http://localhost:", "file:", "data:", "blob:", "about:")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: `apt-get install chromium`, or install Google Chrome"
)


@contextmanager
def chromium():
    """The Chromium of this machine, running: Playwright's own browsers are never downloaded."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


def watch(page: Page) -> list[str]:
    """A list that fills with what goes wrong while the page loads and works."""
    seen: list[str] = []

    def say(text: str) -> None:
        seen.append(re.sub(r"([?&](_xsrf|token)=)[^&\s]*", r"\1...", text)[:500])

    def console(message):
        if message.type == "error":
            place = message.location
            say(f"console: {message.text} ({place['url']}:{place['lineNumber']})")

    def request(one):
        if not one.url.startswith(LOCAL):
            say(f"asks the network: {one.url}")

    def failed(one):
        if one.failure != "net::ERR_ABORTED":  # then the page itself gave it up
            say(f"request failed: {one.url}: {one.failure}")

    page.on("console", console)
    page.on("pageerror", lambda error: say(f"page error: {error}"))
    page.on("request", request)
    page.on("requestfailed", failed)
    page.on("response", lambda one: one.status >= 400 and say(f"{one.status}: {one.url}"))
    return seen


# --- what must be true of a page ------------------------------------------------------------------

OPEN_ALL = "() => document.querySelectorAll('details').forEach((part) => (part.open = true))"
LAYOUT = """async () => {
  const faults = [], page = document.scrollingElement;
  if (page.scrollWidth > page.clientWidth)
    faults.push(`the page scrolls sideways: ${page.scrollWidth} of ${page.clientWidth} pixels`);
  for (const image of document.images) {
    const name = (image.getAttribute("src") ?? "").slice(0, 80);
    if (!image.getAttribute("alt")?.trim()) faults.push(`image without a text: ${name}`);
    await image.decode().catch(() => null);
    if (!image.naturalWidth) faults.push(`image that is not there: ${name}`);
  }
  return faults;
}"""


def axe_faults(page: Page, **options) -> list[str]:
    """What axe-core calls a serious or critical barrier, with the first places of each."""
    faults = []
    options["resultTypes"] = ["violations"]
    for fault in Axe().run(page, options=options).response["violations"]:
        if fault["impact"] in ("serious", "critical"):
            places = [json.dumps(node["html"][:120]) for node in fault["nodes"]]
            said = f"{fault['impact']}: {fault['id']}: {fault['help']}: "
            faults.append(f"{said}{len(places)} times, first {', '.join(places[:3])}")
    return faults


def barriers(page: Page, width: int, look: str) -> list[str]:
    """`axe_faults`; colours, which take most of its time, on a laptop only, by day and by night."""
    if look == "layout":
        return []
    if width == WIDTHS[0]:
        # `region` is a moderate fault at most: it would take time and change nothing.
        left_out = {rule: {"enabled": False} for rule in ("color-contrast", "region")}
        return axe_faults(page, rules=left_out)
    if look == "barriers":
        return []  # a page reads alike at both widths
    faults = axe_faults(page)
    page.emulate_media(color_scheme="dark")
    dark = axe_faults(page, runOnly=["color-contrast"])
    return faults + [f"in the dark: {fault}" for fault in dark]


def page_faults(browser: Browser, address: str, pictures: Path, look: str = "colours") -> list[str]:
    """What is wrong with a page on a phone and on a laptop, with its sections unfolded.

    look: "layout" sees errors, requests, images and width, on the phone alone; "barriers" asks
    axe-core too, and "colours" lets it judge colours as well. A picture of each width with a fault
    is saved in the folder `pictures`.
    """
    found = []
    for width in WIDTHS[:1] if look == "layout" else WIDTHS:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
        try:
            seen = watch(page)
            page.goto(address)
            page.evaluate(OPEN_ALL)
            faults = [*page.evaluate(LAYOUT), *barriers(page, width, look)]
            faults = [*seen, *faults]  # seen last: a page may say something late
            if faults:
                name = re.sub("[^A-Za-z0-9]+", "-", address.split("//")[1])[-60:]
                page.screenshot(path=(picture := pictures / f"{name}-{width}.png"))
                faults.append(f"picture: {picture}")
            found += [f"{width} pixels: {fault}" for fault in faults]
        finally:
            page.close()
    return found
