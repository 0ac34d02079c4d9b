#!/bin/sh
# What `make test` runs after linting: the demo study into a temporary folder, unit, property and
# integration tests, and every notebook; one teacher is pre-trained (profile tiny).
set -eu
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
ROLIB_RUNS=$(mktemp -d)
export ROLIB_RUNS
trap 'rm -rf "$ROLIB_RUNS"' EXIT
snakemake --config profile=demo --quiet all --cores 2
snakemake --config profile=tiny --quiet all --cores 2 "$ROLIB_RUNS/tiny/notebooks/01-bert-uncased.ipynb"
pytest -n 2 --dist loadfile tests
# The tests above have run the lessons and, several times, the explorer.
pytest -n 2 --dist loadfile --nbval-lax --ignore=notebooks/lessons \
    --ignore=notebooks/08-explore-predictions.ipynb notebooks
