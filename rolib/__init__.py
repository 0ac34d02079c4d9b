"""rolib: losses, training loops and loyalty analysis behind the Romanian notebooks."""

import os

__version__ = "1.0.0"

# No bar, notice or load report of a library stands where a result belongs. The libraries read this
# when they are imported, so import rolib first.
for library in ("HF_DATASETS", "HF_HUB"):  # transformers follows the hub
    os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
for library in ("DATASETS", "HF_HUB", "TRANSFORMERS"):
    os.environ.setdefault(f"{library}_VERBOSITY", "error")
