# Every target that runs Python first makes $(VENV) with the versions of constraints.txt.
#
#   PYTHON     the interpreter that makes the environment (3.10 or later)
#   TORCH_PIP  more pip options for torch alone, e.g. a CPU-only build:
#              make test TORCH_PIP='--index-url https://download.pytorch.org/whl/cpu'
#   CONSTRAINTS  the versions to install, by default constraints.txt
#   PY         an interpreter that has the packages already; no environment is then made

PYTHON ?= python3
VENV ?= .venv
TORCH_PIP ?=
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=

ifdef PY
BASE :=
TOOL_STAMP = $(BASE)
else
PY := $(VENV)/bin/python
BASE := $(VENV)/.installed
TOOL_STAMP = $(VENV)/.installed-$(1)
endif

PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
# One thread per worker: two workers on two cores must not fight over them.
SINGLE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(SINGLE_THREAD) $(PY) -m pytest -n 2 --durations=10

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-cuda test-faults test-wheel coverage lint docs bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+: .*## |^[a-z-]+:  ## ' $(MAKEFILE_LIST) \
	  | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "%-10s  %s\n", $$1, $$2}'

demo: $(BASE)  ## fit real data with SIG; pictures, a table and NetCDF go to out/demo
	$(PY) examples/demo.py --out out/demo

test: $(BASE)  ## the fast tests and the doctests, on two workers
	$(PYTEST) -m "not slow and not cuda and not bench and not faults" $(PYTEST_ARGS) pyro_sig tests

test-all: $(BASE)  ## the same with the slow tests
	$(PYTEST) -m "not cuda and not bench and not faults" $(PYTEST_ARGS) pyro_sig tests

test-cuda: $(BASE)  ## the tests that need a CUDA device
	$(PY) -m pytest -m cuda $(PYTEST_ARGS) tests

test-faults: $(BASE)  ## kill runs at random moments and try wrong calls; prints counts (an hour)
	$(SINGLE_THREAD) $(PY) -m pytest -m faults $(PYTEST_ARGS) tests/faults

test-wheel: $(call TOOL_STAMP,dist)  ## build wheel and sdist, and test the wheel where the repository is not to be seen
	rm -rf dist build/wheel && mkdir -p build/wheel
	$(PY) -m build --outdir dist .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet -c $(CONSTRAINTS) $(TORCH_PIP) torch
	build/wheel/venv/bin/python -m pip install --quiet -c $(CONSTRAINTS) "$$(ls dist/*.whl)[test,examples]"
	cp -r tests examples docs README.md Makefile pyproject.toml build/wheel
	cd build/wheel && $(SINGLE_THREAD) venv/bin/python -m pytest -n 2 -o addopts="--import-mode=importlib --strict-markers" \
	  -m "not slow and not cuda and not bench and not faults" $(PYTEST_ARGS) tests

coverage: $(BASE)  ## the lines of the package that `make test` runs
	$(PYTEST) -m "not slow and not cuda and not bench and not faults" --cov=pyro_sig --cov-report=term:skip-covered \
	  --cov-fail-under=95 $(PYTEST_ARGS) pyro_sig tests

lint: $(call TOOL_STAMP,lint)  ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(call TOOL_STAMP,docs)  ## build the documentation in docs/_build/html
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(call TOOL_STAMP,bench)  ## measure speed and memory
	$(PY) -m tests.bench

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) out build docs/_build .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by itself, so that TORCH_PIP chooses its build and the next step keeps it.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_PIP) torch
	$(PIP) -e '.[test,examples]'
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) -e '.[$*]'
	@touch $@
