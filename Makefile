# Each target first sets up what it needs in .venv; `make PYTHON=python3.12 …` chooses another interpreter, and
# `make test ARGS="-k pism"` passes arguments on (ARGS="-n 0": all in one process).
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPES := $(VENV)/types

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-trl style bench

help:
	@echo "make setup   an environment in $(VENV) with hardsample, editable, and all that the other targets need"
	@echo "make demo    score the bundled questions with the demo model, predict others, then train it on medium+hard and a control"
	@echo "make test    all tests, on all cores"
	@echo "make test-trl TRL=1.16.0   the trainer's tests against another version of TRL"
	@echo "make style   linter, formatter (check only) and type checker"
	@echo "make bench   the kernels' benchmarks; python bench/run.py prints their ratios to the baselines"

setup: $(READY)

# A half-made environment is never taken for a ready one: the stamp is written last.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "hardsample needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	         "Name another one: make PYTHON=python3.12 setup" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev,report,openai]"
	@touch $@

demo: $(READY)
	$(BIN)/hardsample demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist worksteal --durations=15 $(ARGS)

# That version lies beside the environment's own, which stays as it is.
test-trl: $(READY)
	@test -n "$(TRL)" || { echo "Name a version of TRL: make test-trl TRL=1.16.0" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade \
	    --target $(VENV)/trl-$(TRL) trl==$(TRL)
	PYTHONPATH=$(CURDIR)/$(VENV)/trl-$(TRL) $(BIN)/python -m pytest -q -n auto --dist worksteal tests/trainer $(ARGS)

# mypy cannot be told that kernels/ and trainer/ are parts of hardsample, so it is shown a folder where they are.
style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/hardsample
	@ln -s $(CURDIR)/hardsample/* $(CURDIR)/kernels $(CURDIR)/trainer $(TYPES)/hardsample/
	cd $(TYPES) && ../bin/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p hardsample

bench: $(READY)
	$(BIN)/python -m pytest bench/bench_kernels.py --benchmark-group-by=group --benchmark-columns=min,median,max,rounds $(ARGS)
