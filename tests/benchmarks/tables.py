"""The seconds that the tables of a finished study take from stored predictions (not a test).

Usage: python tests/benchmarks/tables.py PROFILE
"""

import sys
import time

from rolib.analysis import agreement, tables
from rolib.profiles import load_profile


def main(profile: str) -> None:
    """Print the seconds of notebook 06's and of notebook 04's tables."""
    config = load_profile(profile)["analyse"]
    runs = len(list(config.folder.glob("evaluation/*/*/seed-*/predictions.parquet")))
    print(f"{profile}: {runs} runs, {config.resamples:,} resamples")
    for make in (tables.score_tables, agreement.loyalty_tables):
        start = time.perf_counter()
        make(config)
        print(f"{make.__name__}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1])
