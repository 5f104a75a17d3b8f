# Two commands for a newcomer: `make demo` and `make test`.
#
# PYTHON  the interpreter that makes the environment (3.11 or newer)
# VENV    where the environment lives
# LOWEST  where the one with the oldest versions lives
# PIP     flags for pip, for instance an index with CPU-only builds of torch

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
PIP ?=
RUN ?= runs/demo

BIN := $(VENV)/bin

.PHONY: help demo dev test test-app test-cluster test-lowest gpu-check check check-types format generate docs docs-links clean

help:
	@echo "make demo         set up, train on real digits, evaluate, draw: $(RUN)/report.html"
	@echo "make test         set up and run the tests"
	@echo "make dev          set up for development"
	@echo "make check        ruff and mypy"
	@echo "make test-cluster run the tests of Slurm, Ray, Dask, Optuna, MLflow and wandb, which it installs"
	@echo "make test-app     try the explorer and the report in Chromium"
	@echo "make test-lowest  run the tests with the oldest versions that pyproject.toml allows"
	@echo "make gpu-check    compare an accelerator with the processor: speed, memory, results"
	@echo "make check-types  run the tests with shapes and types checked at run time"
	@echo "make generate     write the generated parts of the documentation"
	@echo "make docs         build the site, running its tutorials: build/site/index.html"
	@echo "make docs-links   check the site's links, on the internet too"
	@echo "make clean        remove the environment and caches; runs/ and data/ stay"

demo: $(VENV)/.demo
	$(BIN)/flowfactor run demo --out $(RUN)

dev: $(VENV)/.dev

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal

test-cluster: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet $(PIP) --editable '.[mlflow,ray,search,slurm,wandb]' 'distributed>=2025'
	$(BIN)/python -m pytest -n 0 -m cluster tests

# As many workers as cores: each computes with one thread.
test test-lowest check-types: export OMP_NUM_THREADS = 1

# Needs Chromium, which the system's packages have.
test-app: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet $(PIP) --editable '.[app]' playwright
	$(BIN)/python -m pytest -n 0 -m app tests/app

test-lowest: $(LOWEST)/.dev
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal

# With PIP="--index-url URL" torch for the accelerator can come from elsewhere.
gpu-check: $(VENV)/.dev
	$(BIN)/python -m experiments.benchmarks.gpu_check

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-types: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --jaxtyping-packages=flowfactor,solvers,checking.check tests/flowfactor tests/solvers

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/.dev
	$(BIN)/python -m experiments.write_docs

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html -d build/doctrees docs build/site
	@echo "build/site/index.html"

docs-links: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -b linkcheck -d build/doctrees docs build/links

clean:
	rm -rf $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flowfactor needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) lacks the venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The marks are older than pyproject.toml when the dependencies have changed.
$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP) --editable '.[docs]'
	@touch $@

$(LOWEST)/.dev: pyproject.toml .ci/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet $(PIP) --constraint .ci/lowest.txt --editable '.[dev]'
	@touch $@
