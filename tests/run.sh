#!/bin/sh
# What `make test` runs after linting: the demo study into a temporary folder, unit, property and
# integration tests, every notebook, and the site; one teacher is pre-trained (profile tiny).
set -eu
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
ROLIB_RUNS=$(mktemp -d)
export ROLIB_RUNS
# At the end of the study one job waits for another: the teacher of tiny takes the second core.
study="snakemake --quiet all --nolock --config"
$study profile=tiny --cores 1 "$ROLIB_RUNS/tiny/notebooks/01-bert-uncased.ipynb" &
tiny=$!
trap 'kill $tiny 2>/dev/null || true; rm -rf "$ROLIB_RUNS"' EXIT
# The site shows more notebooks than the report waits for.
$study profile=demo --cores 2 all explore export ablation task budget
wait $tiny
# In the order of the names, so that the longest file (the browser's) does not come last.
pytest -n 2 --dist loadfile --no-loadscope-reorder tests
# The tests above have run the lessons and, several times, the explorer; the study has run 09 to 12.
pytest -n 2 --dist loadfile --nbval-lax --ignore=notebooks/lessons \
    --ignore=notebooks/08-explore-predictions.ipynb notebooks
# The site of this study and of the lessons that the tests ran. Its links are checked, then its pages
# in the browser.
python notebooks/templates/site/build.py demo
pytest -n 2 -k site tests/test_pages.py
