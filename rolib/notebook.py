"""Run one notebook through papermill with validated parameters.

    python -m rolib.notebook notebooks/02-distil-student.ipynb OUTPUT.ipynb -f FILE.yaml ... \\
        -p KEY VALUE ...

This adds to the `papermill` command: an unknown or impossible parameter stops before the kernel
starts, the output takes its name only when every cell has run, and a widget cannot make the run
hang.
"""

import argparse
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
    "10-export-student": config.ExportConfig,
}


def run(notebook: Path, output: Path, files: list[str], overrides: dict[str, Any]) -> None:
    """Validate the parameters, execute the notebook, and give the output its name.

    Raises ConfigError for bad parameters and papermill's error for a cell that fails.
    """
    if notebook.stem not in KINDS:
        raise config.ConfigError(f"{notebook}: takes no parameters; these do: {', '.join(KINDS)}")
    values = profiles.load(KINDS[notebook.stem], *files, **overrides)
    # nbclient waits without end for the state of an output widget that nobody shows (issue 197).
    nbclient.output_widget.OutputWidget.send = lambda self, *args, **kwargs: None
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.ipynb")
    # A cell that takes longer than 72 hours hangs.
    settings = {"cwd": config.ROOT, "execution_timeout": 72 * 3600}
    streams = {"progress_bar": False, "stderr_file": sys.stderr, "stdout_file": sys.stdout}
    papermill.execute_notebook(notebook, partial, config.to_dict(values), **settings, **streams)
    partial.replace(output)


def main() -> None:
    """The command line; errors in parameters are one line."""
    parser = argparse.ArgumentParser("python -m rolib.notebook", description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("-f", action="append", default=[], metavar="FILE", help="a later one wins")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    options = parser.parse_args()
    overrides = {name: yaml.safe_load(value) for name, value in options.p}
    try:
        run(options.notebook, options.output, options.f, overrides)
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    except papermill.PapermillExecutionError as error:
        first = str(error.evalue).strip().partition("\n")[0]
        partial = options.output.with_suffix(".partial.ipynb")
        sys.exit(f"error: {error.ename}: {first} (the cells that ran are in {partial})")


if __name__ == "__main__":
    main()
