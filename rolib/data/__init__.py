"""Data: words, the corpus, the five data sets, the downloader and the built-in sample."""

from pathlib import Path

COMMAND = "python -m rolib.data.download"
SAMPLE = Path(__file__).parent / "sample"  # a data root
