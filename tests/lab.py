"""JupyterLab in a browser, for tests: a server of its own, notebooks that run, keys that are
pressed."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import browser
from playwright.sync_api import Browser, Locator

from rolib.config import ROOT

TOKEN = "test"
# News would be asked for in the network; the question for it covers the notebook.
QUIET = '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'

# The page's own mark of an idle kernel comes too early, so all of this is asked for.
READY = """(path) => {
  const panel = window.jupyterapp?.shell.currentWidget;
  const kernel = panel?.sessionContext?.session?.kernel;
  return panel?.context?.path === path && panel.sessionContext.isReady
    && kernel?.connectionStatus === "connected" && kernel.status === "idle";
}"""
RUN_ALL = """(limit) => Promise.race([
  jupyterapp.commands.execute("notebook:run-all-cells").then(() => true),
  new Promise((end) => setTimeout(() => end(false), limit)),
])"""
ACTIVE = "() => jupyterapp.shell.currentWidget.content.activeCellIndex"
RAN = """([number, before]) => {
  const panel = jupyterapp.shell.currentWidget;
  const count = panel.content.model.cells.get(number).executionCount;
  return count !== null && count !== before
    && panel.sessionContext.session.kernel.status === "idle";
}"""
CELLS = "() => jupyterapp.shell.currentWidget.content.model.toJSON().cells"
# The kernel ends by itself: nobody waits for it, or is asked whether to save.
CLOSE = """() => {
  const panel = jupyterapp.shell.currentWidget;
  panel.sessionContext.shutdown();
  panel.dispose();
}"""
# What a reader sees of the outputs of a cell's widgets, once the kernel has nothing more to say:
# texts and pictures. The HTML would not do: the ids of a pandas table are new each time.
SHOWN = """(cell) => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session?.kernel;
  const outputs = [...cell.querySelectorAll(".widget-output")];
  const pictures = outputs.flatMap((one) => [...one.querySelectorAll("img")]);
  const parts = [...outputs.map((one) => one.innerText), ...pictures.map((one) => one.src)];
  return kernel?.status === "idle" ? parts.join("\\n").trim() : "";
}"""
# A widget that cannot be shown, a formula that cannot be read, a traceback in a widget's output.
ERRORS = ".jupyter-widgets-error-widget, mjx-merror, [data-mime-type$='.stderr']"
ERRORS += ":has-text('Traceback (most recent call last)')"
PICTURES = """() => Promise.all([...document.querySelectorAll(".jp-Notebook img")].map((image) =>
  image.decode().catch(() => null).then(() => (image.naturalWidth ? "" : image.src.slice(0, 80)))))
  .then((names) => names.filter(Boolean))"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def server(folder: Path):
    """A JupyterLab on a copy of the notebooks and of what they show; gives its address and folder.

    It reads no settings of the person who runs the tests and leaves nothing in their home.
    """
    files = folder / "files"
    for part in ("notebooks", "params", "figures"):
        ignored = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
        shutil.copytree(ROOT / part, files / part, ignore=ignored)
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    own |= {"JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    (folder / "config" / "labconfig").mkdir(parents=True)
    (folder / "config" / "labconfig" / "page_config.json").write_text(QUIET)
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={files}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True"]
    command += ["--LabApp.extension_manager=readonly"]
    with open(folder / "server.log", "w") as log:
        environment = os.environ | {name: str(folder / part) for name, part in own.items()}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for(address, process, folder / "server.log")
            yield address, files
        finally:
            process.terminate()  # it ends its kernels
            process.wait(timeout=60)


def wait_for(address: str, process: subprocess.Popen, log: Path, limit: float = 90) -> None:
    """Wait until the server answers; say what it said if it does not."""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5)
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def cell_faults(cells: list[dict]) -> list[str]:
    """The cells that show an error, and the first that did not run to its end."""
    faults = []
    for number, cell in enumerate(cells, start=1):
        where = f"cell {number} ({cell['id']})"
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                faults.append(f"{where}: {output['ename']}: {output['evalue']}")
            elif "Traceback (most recent call last)" in str(output):
                faults.append(f"{where}: shows a traceback: {output}")
        if not faults and cell["cell_type"] == "code" and cell["execution_count"] is None:
            return [f"{where}: did not run to its end"]
    return faults


class Lab:
    """One page with JupyterLab; notebooks are opened in it one after the other.

    files: the folder that the server shows.
    """

    def __init__(self, running: Browser, address: str, files: Path):
        self.files = files
        # JupyterLab asks for a picture of a text once before it has put the right address in.
        self.too_early = f"{address}/figures/"
        self.page = running.new_page(viewport={"width": 1280, "height": 900})
        self.seen = browser.watch(self.page)
        self.page.goto(f"{address}/lab?token={TOKEN}")
        self.page.wait_for_function("() => window.jupyterapp", timeout=60_000)
        self.page.evaluate("() => jupyterapp.restored.then(() => true)")

    @contextmanager
    def notebook(self, path: str, pictures: Path):
        """Open a notebook of the copy; it gets a kernel of its own, which ends with it.

        What the page reports meanwhile is a fault. After a fault a picture is saved.
        """
        self.path, self.seen[:] = path, []
        try:
            self.page.evaluate(
                "(path) => jupyterapp.commands.execute('docmanager:open', { path }).then(() => 1)",
                path,
            )
            self.page.wait_for_function(READY, arg=path, timeout=60_000)
            yield
            self.check([text for text in self.seen if self.too_early not in text])
        except BaseException as error:
            picture = pictures / "page.png"
            self.page.screenshot(path=picture)
            error.add_note(f"{path}: picture of the page: {picture}; it said {self.seen}")
            raise
        finally:
            self.page.evaluate(CLOSE)

    def check(self, faults: list[str]) -> None:
        assert not faults, f"{self.path}:\n" + "\n".join(faults)

    def cells(self) -> list[dict]:
        cells = self.page.evaluate(CELLS)
        for cell in cells:
            cell["source"] = "".join(cell["source"])
        return cells

    def number(self, name: str) -> int:
        return [cell["id"] for cell in self.cells()].index(name)

    def run_all(self, limit: float = 240) -> list[dict]:
        """Run all cells and wait for the end; gives them with their outputs."""
        ended = self.page.evaluate(RUN_ALL, limit * 1000)
        cells = self.cells()
        self.check(cell_faults(cells))
        assert ended, f"{self.path}: not at its end after {limit:.0f} s"
        self.check_rendered()
        return cells

    def run_to(self, name: str, limit: float = 120) -> list[dict]:
        """Shift and Enter from the active cell on, until a cell ran; gives all with outputs."""
        last, first = self.number(name), self.page.evaluate(ACTIVE)
        before = self.cells()[last]["execution_count"]
        for _ in range(first, last + 1):
            self.page.keyboard.press("Shift+Enter")
        self.page.wait_for_function(RAN, arg=[last, before], timeout=limit * 1000)
        cells = self.cells()
        self.check(cell_faults(cells[: last + 1]))
        return cells

    def enter(self, name: str) -> None:
        """Put the cursor at the start of a cell."""
        self.cell(name).locator(".cm-content").focus()
        self.page.keyboard.press("Control+Home")

    def retype(self, name: str, line: str, old: str, new: str) -> None:
        """By keyboard, put another end to a line of a cell."""
        self.enter(name)
        lines = self.cells()[self.number(name)]["source"].splitlines()
        for _ in range(lines.index(line)):
            self.page.keyboard.press("ArrowDown")
        self.page.keyboard.press("End")
        for _ in old:
            self.page.keyboard.press("Backspace")
        self.page.keyboard.type(new)
        changed = line.removesuffix(old) + new
        assert changed in self.cells()[self.number(name)]["source"].splitlines()

    def check_rendered(self) -> None:
        """No widget shows an error, and no formula; every picture is there."""
        errors = self.page.locator(".jp-NotebookPanel").locator(ERRORS).all_inner_texts()
        self.check([f"shows an error: {text[-300:]}" for text in errors])
        self.check([f"shows no picture: {name}" for name in self.page.evaluate(PICTURES)])

    def cell(self, name: str) -> Locator:
        """The cell with an id."""
        cells = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")
        return cells.nth(self.number(name))

    def move(self, name: str, control: str, keys: list[str], limit: float = 60) -> None:
        """Press keys on a control of a cell; what its widgets show must change."""
        cell = self.cell(name)
        cell.scroll_into_view_if_needed()
        before = self.settled(cell, "", limit)
        assert before, f"{self.path}: cell {name} shows nothing before its control is moved"
        cell.locator(control).focus()
        for key in keys:
            self.page.keyboard.press(key)
        text = f"cell {name}: {control}: {keys} changed nothing"
        assert self.settled(cell, before, limit), f"{self.path}: {text}"
        self.check_rendered()

    def settled(self, cell: Locator, before: str, limit: float) -> str:
        """What the widgets of a cell show once it is not as before and changes no more; else ""."""
        last, end = "", time.monotonic() + limit
        while time.monotonic() < end:
            now = cell.evaluate(SHOWN)
            if now == last and now not in ("", before):
                return now
            last = now
            self.page.wait_for_timeout(150)
        return ""
