# Every target makes its own virtual environment: nothing has to be installed first but Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch first and pinned: asked for by another package, it may bring gigabytes of CUDA.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test test-thinc-8 lint types package bench-smoke figures clean

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

# The newer line of thinc is in the environment; this one shadows it.
build/thinc-8/.done: $(VENV)/.dev
	sed '/^thinc==/d' constraints.txt > build/constraints-thinc-8.txt
	$(PIP) install -q --upgrade --target build/thinc-8 -c build/constraints-thinc-8.txt thinc==8.3.14
	@touch $@

test-thinc-8: build/thinc-8/.done  ## Run the tests of thinc models on its older line
	PYTHONPATH=build/thinc-8 $(BIN)/python -m pytest tests/array_adapter/test_thinc.py

lint: $(VENV)/.dev  ## Check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

package: $(VENV)/.dev  ## Build the wheel, install it in an empty environment, train on NumPy alone
	rm -rf dist build/empty
	$(BIN)/python -m build --wheel -o dist
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cd build && empty/bin/python -c "import nullport; print('installed wheel:', nullport.available_backends())"
	cd build && empty/bin/nullport --version
	build/empty/bin/python -m pip install -q -c constraints.txt scikit-learn
	build/empty/bin/python docs/examples/numpy_networks.py

bench-smoke: $(VENV)/.dev  ## Check that the benchmarks run
	cd asv_bench && ../$(BIN)/asv machine --yes && ../$(BIN)/asv check -E existing \
		&& ../$(BIN)/asv run --quick --show-stderr -E existing

figures: $(VENV)/.dev  ## Measure the figures of the design, side by side (5 minutes)
	$(BIN)/python asv_bench/figures.py

clean:  ## Remove everything that was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
