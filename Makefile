# make demo: the study on the built-in sample.   make test: every check.   make help: the rest.
PYTHON ?= python3
PROFILE ?= demo
CORES ?= 2
# TORCH=cpu: PyTorch without CUDA (several GB less); cu128 or the like: of another CUDA.
TORCH ?=
INDEX = $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH))
BIN := .venv/bin
STAMP := .venv/.installed
# exec, so that a signal to make reaches Snakemake. --nolock: the Snakefile has a lock of its own,
# which no kill leaves behind.
SNAKEMAKE = exec env PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --config profile=$(PROFILE) \
    --quiet all --cores $(CORES) --keep-going --nolock --rerun-incomplete
RUNS = $(or $(ROLIB_RUNS),runs)/$(PROFILE)

.PHONY: help demo mini study students ablation task budget export pretrained publish readme bench site lab test test-paper soak lint clean
help:
	@echo "make demo                    the whole study on the built-in sample (minutes)"
	@echo "make mini                    the study on real data, in hours (ROLIB_DATA, or download)"
	@echo "make study PROFILE=NAME      the study of params/NAME, on CORES=$(CORES) cores"
	@echo "make students PROFILE=NAME   teachers and students alone, no study of the students"
	@echo "make ablation PROFILE=NAME   strategies and weights of the two-teacher student"
	@echo "make task PROFILE=NAME       distil at the task, with unlabelled text"
	@echo "make budget PROFILE=NAME     score and loyalty against tokens of distillation"
	@echo "make export PROFILE=NAME     students as ONNX files"
	@echo "make pretrained              train the shipped models again, on real data"
	@echo "make publish PROFILE=NAME    copy a finished study's figures and tables to figures/NAME"
	@echo "make readme                  write the tables of README.md from figures/mini"
	@echo "make bench                   speed and memory beside other tools, to figures/bench"
	@echo "make site                    notebooks, lessons, report and API as pages, to runs/site"
	@echo "make lab                     JupyterLab on notebooks/00-start-here.ipynb"
	@echo "make test                    every check of the project"
	@echo "make test-paper              the paper profile, scaled, with a stand-in of the hub"
	@echo "TORCH=cpu                    with any of them: install PyTorch without CUDA"
	@echo "make soak                    kill everything at random moments, and compare"

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	    { echo "error: $(PYTHON) is not Python 3.11 to 3.13: set PYTHON=python3.12 or the like"; \
	    exit 1; }
	@echo "installing into .venv: three to ten minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(INDEX) --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

study: $(STAMP)
	@$(SNAKEMAKE)
	@cat "$(RUNS)/summary.txt"

demo mini:
	@$(MAKE) --no-print-directory study PROFILE=$@

students ablation task budget export: $(STAMP)
	@test $@ = students || test -e params/$(PROFILE)/$@.yaml || \
	    { echo "error: no params/$(PROFILE)/$@.yaml: add it, as in another profile"; exit 1; }
	@$(SNAKEMAKE) $@
	@echo "done: the results lie in $(RUNS)"

# The shipped models, made again by the recipe of params/mini: two hours on 2 cores, with the
# teachers' gate on the real measures.
pretrained: $(STAMP)
	@$(SNAKEMAKE) students --config profile=mini source=pretrain
	$(BIN)/python figures/ship.py "$(or $(ROLIB_RUNS),runs)/mini"

publish:
	@test -e "$(RUNS)/report.html" || { echo "error: no finished study in $(RUNS)"; exit 1; }
	rm -rf figures/$(PROFILE)
	mkdir -p figures/$(PROFILE)
	cd "$(RUNS)" && cp figures/*.png figures/*.svg figures/*.txt *.csv "$(CURDIR)/figures/$(PROFILE)/"

readme: $(STAMP)
	$(BIN)/python figures/readme.py

# TextBrewer asks for tensorboard and imports tensorboardX in its place, so no dependencies.
# BENCH=FOLDER: where the results go, for a second machine.
BENCH ?= figures/bench
MEASURE := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=tests $(BIN)/python
bench: $(STAMP)
	$(BIN)/pip install --quiet --no-deps textbrewer==0.2.1.post1 tensorboardX==2.6.5
	$(MEASURE) tests/benchmarks/training.py --folder $(BENCH)
	$(MEASURE) tests/benchmarks/export.py --folder $(BENCH)

# The report waits for some notebooks only; the site shows them all.
site: study
	@$(SNAKEMAKE) explore export ablation task budget
	@$(BIN)/python notebooks/templates/site/build.py $(PROFILE)

# The root folder, so that runs/ and params/ can be opened too. root (in a container) needs the flag.
# The default URL, so that the printed address names the map too.
lab: $(STAMP)
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" $(if $(filter 0,$(shell id -u)),--allow-root) \
	    --LabApp.default_url=/lab/tree/notebooks/00-start-here.ipynb

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

test: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tests/run.sh

# The two teachers have their true shapes: half an hour on two cores, 10 GB of memory.
test-paper: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" CORES=$(CORES) $(BIN)/python tests/paper.py

# A quarter of an hour on two cores.
soak: $(STAMP)
	PYTHONPATH="$(CURDIR)" $(BIN)/python tests/soak.py

clean:
	rm -rf .venv runs .snakemake
