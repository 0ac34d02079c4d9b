"""Run one notebook through papermill with validated parameters.

    python -m rolib.notebook notebooks/02-distil-student.ipynb OUTPUT.ipynb -f FILE.yaml ... -p KEY VALUE ...

Does what the `papermill` command leaves out: an unknown or impossible parameter stops before the kernel starts, the
output takes its name only when every cell has run, and a widget cannot make the run hang.
"""

import argparse
import os
import sys
from pathlib import Path

# jsonschema, which checks the notebook format, would compile a grammar of internationalised addresses for three seconds at every start.
sys.modules["rfc3987_syntax"] = None

import nbclient.output_widget  # noqa: E402
import papermill  # noqa: E402
import yaml  # noqa: E402

from rolib import config  # noqa: E402

KINDS = {
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


def run(notebook: Path, output: Path, files: list[str], overrides: dict) -> None:
    """Validate, execute, rename. ConfigError for bad parameters; papermill's error for a cell that fails."""
    if notebook.stem not in KINDS:
        raise config.ConfigError(
            f"{notebook}: takes no parameters; the notebooks that do are {', '.join(KINDS)}"
        )
    values = config.load(KINDS[notebook.stem], *files, **overrides)
    # nbclient waits for ever for the state of an output widget that nobody shows (jupyter/nbclient issue 197).
    nbclient.output_widget.OutputWidget.send = lambda self, *args, **kwargs: None
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.ipynb")
    settings = {"cwd": config.ROOT, "execution_timeout": HOURS_PER_CELL * 3600}
    streams = {"progress_bar": False, "stderr_file": sys.stderr, "stdout_file": sys.stdout}
    papermill.execute_notebook(notebook, partial, config.to_dict(values), **settings, **streams)
    os.replace(partial, output)


def main() -> None:
    """The command line; errors in parameters are one line."""
    parser = argparse.ArgumentParser(
        prog="python -m rolib.notebook", description="Run a notebook with validated parameters."
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "-f", action="append", default=[], metavar="FILE", help="parameter file; a later one wins"
    )
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="one parameter"
    )
    options = parser.parse_args()
    try:
        run(
            options.notebook,
            options.output,
            options.f,
            {key: yaml.safe_load(value) for key, value in options.p},
        )
    except config.ConfigError as error:
        sys.exit(f"error: {error}")
    except papermill.PapermillExecutionError as error:
        first = str(error.evalue).strip().partition("\n")[0]
        partial = options.output.with_suffix(".partial.ipynb")
        sys.exit(
            f"error: {error.ename}: {first} (in {options.notebook}; the cells that ran are in {partial})"
        )


if __name__ == "__main__":
    main()
