"""What libraries say of themselves in a notebook, which is not a result."""

import json
import re
from pathlib import Path

NOISE = "Loading weights|Casting the dataset|Map:|Filter:|Generating |IPKernelApp|LOAD REPORT"
NOISE += "|FutureWarning|UserWarning|DeprecationWarning|TqdmWarning|Some weights|HF Hub"


def noise(notebook: Path) -> list[str]:
    """The bars, warnings and load reports in the outputs of an executed notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [json.dumps(output) for cell in cells for output in cell.get("outputs", [])]
    return [found for output in outputs for found in re.findall(NOISE, output)]
