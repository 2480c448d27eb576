# Every target makes its own virtual environment: nothing has to be installed first but Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch first and pinned: asked for by another package, it may bring gigabytes of CUDA.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types package bench-smoke figures clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -c constraints.txt -e ".[torch,cli]"
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -q -c constraints.txt -e ".[torch,jax,cli,test,dev]"
	@touch $@

demo: $(VENV)/.run  ## Train a network on real data with and without teleports (2 minutes)
	$(BIN)/nullport compare --task digits

test: $(VENV)/.dev  ## Run every test
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## Check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

package: $(VENV)/.dev  ## Build the wheel, install it in an empty environment, import it
	rm -rf dist build/empty
	$(BIN)/python -m build --wheel -o dist
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cd build && empty/bin/python -c "import nullport; print('installed wheel:', nullport.available_backends())"
	cd build && empty/bin/nullport --version

bench-smoke: $(VENV)/.dev  ## Check that the benchmarks run
	cd asv_bench && ../$(BIN)/asv machine --yes && ../$(BIN)/asv check -E existing \
		&& ../$(BIN)/asv run --quick --show-stderr -E existing

figures: $(VENV)/.dev  ## Measure the figures of the design, side by side (5 minutes)
	$(BIN)/python asv_bench/figures.py

clean:  ## Remove everything that was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
