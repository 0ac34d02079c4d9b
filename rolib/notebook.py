"""Run one notebook through papermill with validated parameters.

    python -m rolib.notebook notebooks/02-distil-student.ipynb OUTPUT.ipynb -f FILE.yaml ... \\
        -p KEY VALUE ...

This adds to the `papermill` command: an unknown or impossible parameter stops before the kernel
starts, the output takes its name only when every cell has run, and a widget cannot make the run
hang. Whatever stops it (Ctrl-C, SIGTERM, a closed terminal, SIGXCPU for a time limit) stops the
kernel, in which a training writes its checkpoint first.
"""

import argparse
import re
import signal
import sys
from pathlib import Path
from typing import Any, cast

# jsonschema checks the notebook format. It would compile a grammar for three seconds at each start.
cast(Any, sys.modules)["rfc3987_syntax"] = None

import nbclient.output_widget  # noqa: E402
import papermill  # noqa: E402
import psutil  # type: ignore[import-untyped]  # noqa: E402
import yaml  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402

from rolib import config, profiles  # noqa: E402

stops: list[signal.Signals] = []  # that came so far


def kind_of(notebook: Path) -> type[config.Config]:
    """The kind of a notebook's parameters, which stands in its call of `from_notebook`.

    Raises ConfigError if there is no such call, or no such notebook.
    """
    cells = notebook.read_text(encoding="utf-8") if notebook.exists() else "no notebook"
    call = re.search(r"from_notebook\((\w+), globals\(\)\)", cells)
    if not call:
        raise config.ConfigError(f"{notebook}: not there, or takes no parameters: name another")
    return getattr(config, call[1])


def stop(number: int, frame: Any) -> None:
    """Handle a signal: end the kernel, and so the run; after a minute, by a kill.

    In a training SIGTERM makes a checkpoint; any other kernel dies of it. It is sent once, since a
    terminal and Snakemake may both tell of the same stop.
    """
    kernels = psutil.Process().children()
    for kernel in kernels:
        if number == signal.SIGALRM:
            kernel.kill()
        elif not stops:
            kernel.terminate()
    stops.append(signal.Signals(number))
    signal.alarm(60)
    if not kernels:
        raise DeadKernelError


def run(notebook: Path, output: Path, files: list[str], overrides: dict[str, Any]) -> None:
    """Validate the parameters, execute the notebook, and give the output its name.

    Raises ConfigError for bad parameters and papermill's error for a cell that fails.
    """
    values = profiles.load(kind_of(notebook), *files, **overrides)
    # nbclient waits without end for the state of an output widget that nobody shows (issue 197).
    nbclient.output_widget.OutputWidget.send = lambda self, *args, **kwargs: None
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.ipynb")
    options: dict[str, Any] = {"cwd": config.ROOT, "progress_bar": False}
    options |= {"stderr_file": sys.stderr, "stdout_file": sys.stdout}
    papermill.execute_notebook(notebook, partial, config.to_dict(values), **options)
    partial.replace(output)


def main() -> None:
    """The command line; errors are one line."""
    parser = argparse.ArgumentParser("python -m rolib.notebook", description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("-f", action="append", default=[], metavar="FILE", help="a later one wins")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    try:
        overrides = {name: yaml.safe_load(value) for name, value in options.p}
        run(options.notebook, options.output, options.f, overrides)
    except (config.ConfigError, yaml.YAMLError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")  # YAML's have several lines
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        ran = f"(the cells that ran are in {options.output.with_suffix('.partial.ipynb')})"
        if stops:
            how = signal.strsignal(stops[0])
            print(f"stopped ({how}): the same command goes on {ran}", file=sys.stderr)
            sys.exit(128 + stops[0])
        name = getattr(error, "ename", "the kernel died")
        first = str(getattr(error, "evalue", "is there enough memory?")).strip().partition("\n")[0]
        sys.exit(f"error: {name}: {first} {ran}")


if __name__ == "__main__":
    main()
