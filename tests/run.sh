#!/bin/sh
# What `make test` runs after linting: the tiny study into a temporary folder, unit, property and
# integration tests, and every notebook.
set -eu
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
ROLIB_RUNS=$(mktemp -d)
export ROLIB_RUNS
trap 'rm -rf "$ROLIB_RUNS"' EXIT
snakemake --cores 2 --config profile=tiny --quiet rules
pytest -n 2 --dist loadfile tests
pytest -n 2 --dist loadfile --nbval-lax notebooks
