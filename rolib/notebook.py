"""Run one notebook through papermill with validated parameters.

    python -m rolib.notebook notebooks/02-distil-student.ipynb OUTPUT.ipynb -f FILE.yaml ... \\
        -p KEY VALUE ...

This adds to the `papermill` command: an unknown or impossible parameter stops before the kernel
starts, the output takes its name only when every cell has run, and a widget cannot make the run
hang.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, cast

# jsonschema checks the notebook format. It would compile a grammar for three seconds at each start.
cast(Any, sys.modules)["rfc3987_syntax"] = None

import nbclient.output_widget  # noqa: E402
import papermill  # noqa: E402
import yaml  # noqa: E402

from rolib import config, profiles  # noqa: E402

KINDS: dict[str, type[config.Config]] = {
    "01-prepare-teachers": config.TeacherConfig,
    "02-distil-student": config.StudentConfig,
    "03-evaluate-model": config.EvaluateConfig,
    "04-analyse-loyalty": config.AnalyseConfig,
    "05-measure-speed": config.SpeedConfig,
    "06-report-results": config.AnalyseConfig,
    "07-measure-robustness": config.RobustnessConfig,
    "08-explore-predictions": config.Config,
    "09-ablate-ensemble": config.AblationConfig,
}
HOURS_PER_CELL = 72  # a cell that takes longer hangs


def run(notebook: Path, output: Path, files: list[str], overrides: dict[str, Any]) -> None:
    """Validate the parameters, execute the notebook, and give the output its name.

    Raises ConfigError for bad parameters and papermill's error for a cell that fails.
    """
    if notebook.stem not in KINDS:
        hint = f"the notebooks that do are {', '.join(KINDS)}"
        raise config.ConfigError(f"{notebook}: takes no parameters; {hint}")
    values = profiles.load(KINDS[notebook.stem], *files, **overrides)
    # nbclient waits without end for the state of an output widget that nobody shows (issue 197).
    nbclient.output_widget.OutputWidget.send = lambda self, *args, **kwargs: None
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.ipynb")
    settings = {"cwd": config.ROOT, "execution_timeout": HOURS_PER_CELL * 3600}
    streams = {"progress_bar": False, "stderr_file": sys.stderr, "stdout_file": sys.stdout}
    papermill.execute_notebook(notebook, partial, config.to_dict(values), **settings, **streams)
    os.replace(partial, output)


def main() -> None:
    """The command line; errors in parameters are one line."""
    parser = argparse.ArgumentParser("python -m rolib.notebook", description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    file, key = "parameter file; a later one wins", "one parameter"
    parser.add_argument("-f", action="append", default=[], metavar="FILE", help=file)
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help=key
    )
    options = parser.parse_args()
    overrides = {name: yaml.safe_load(value) for name, value in options.p}
    try:
        run(options.notebook, options.output, options.f, overrides)
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    except papermill.PapermillExecutionError as error:
        first = str(error.evalue).strip().partition("\n")[0]
        partial = options.output.with_suffix(".partial.ipynb")
        place = f"in {options.notebook}; the cells that ran are in {partial}"
        sys.exit(f"error: {error.ename}: {first} ({place})")


if __name__ == "__main__":
    main()
