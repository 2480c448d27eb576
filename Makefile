# Every target makes its own virtual environment: nothing has to be installed first but Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The newest of everything: make test CONSTRAINTS=/dev/null
CONSTRAINTS ?= constraints.txt
# torch first and pinned: asked for by another package, it may bring gigabytes of CUDA.
TORCH := $(or $(shell sed -n 's/^torch==/torch==/p' $(CONSTRAINTS)),torch)

.DEFAULT_GOAL := help
.PHONY: help demo test coverage test-libraries fuzz mutants test-thinc-8 oldest test-oldest-jax test-oldest-torch \
	test-slow lint types package bench-smoke bench-track bench-compare bench-gate-check \
	bench-history-check scaling figures rivals gpu gpu-dry docs clean

help:  ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml $(filter-out /dev/null,$(CONSTRAINTS))
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -c $(CONSTRAINTS) -e ".[torch,cli]"
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -q -c $(CONSTRAINTS) -e ".[torch,jax,cli,test,dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) install -q -c $(CONSTRAINTS) -e ".[torch,jax,cli,test,dev,docs]"
	@touch $@

demo: $(VENV)/.run  ## Train a deep network on real data with and without teleports (1 minute)
	$(BIN)/nullport compare --task digits --depth 10 --width 128 --optimizer momentum --lr 0.01 \
		--budget 500

test: $(VENV)/.dev  ## Run every test, on every processor
	$(BIN)/python -m pytest -n logical

coverage: $(VENV)/.dev  ## Run every test and report coverage; fails below the floor in pyproject.toml
	mkdir -p build/coverage
	$(BIN)/python -m pytest -n logical --cov --cov-report=term-missing --cov-report=html

# The newer line of thinc is in the environment; this one shadows it.
build/thinc-8/.done: $(VENV)/.dev
	sed '/^thinc==/d' $(CONSTRAINTS) > build/constraints-thinc-8.txt
	$(PIP) install -q --upgrade --target build/thinc-8 -c build/constraints-thinc-8.txt thinc==8.3.14
	@touch $@

test-thinc-8: build/thinc-8/.done  ## Run the tests of thinc models on its older line
	PYTHONPATH=build/thinc-8 $(BIN)/python -m pytest tests/array_adapter/test_thinc.py

# tensorflow-cpu and paddlepaddle too, where they fit: make test-libraries LIBRARIES=paddlepaddle
LIBRARIES ?= keras dask tinygrad ndonnx "mlx[cpu]"

test-libraries: $(VENV)/.dev  ## Test the conversions of docs/arrays.md, and Keras, with what they need
	$(PIP) install -q -c $(CONSTRAINTS) $(LIBRARIES)
	$(BIN)/python -m pytest tests/array_adapter/test_libraries.py tests/test_docs_keras.py

build/oldest-%/.done: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv build/oldest-$*
	build/oldest-$*/bin/python -m pip --disable-pip-version-check install -q \
		-c constraints-oldest.txt -e ".[$*]" $(OLDEST_$*) pytest hypothesis scikit-learn array-api-strict
	@touch $@

OLDEST_jax := flax equinox dm-haiku
# Left to the newest JAX, to take less than two minutes here: sharding, training, wrapped optimizers.
OLDEST_JAX_TESTS := exclusions graph networks optax products teleport views
OLDEST_TORCH_TESTS := batches bad_input certificate direction exclusions freeze networks teleporter
OLDEST_CORE_TESTS := arrays capture linear network nullspace

oldest: test-oldest-jax test-oldest-torch  ## Test on the oldest NumPy, array-api-compat, JAX and torch

test-oldest-jax: build/oldest-jax/.done  ## Test core and JAX adapter on the oldest packages, no torch
	build/oldest-jax/bin/python -m pytest -q $(OLDEST_CORE_TESTS:%=tests/core/test_%.py) \
		tests/array_adapter/test_callables.py
	build/oldest-jax/bin/python -m pytest -q \
		$(OLDEST_JAX_TESTS:%=tests/jax_adapter/test_%.py) -k "not other_transformations and not known and not compiles_once"

test-oldest-torch: build/oldest-torch/.done  ## Test the torch adapter on the oldest torch
	build/oldest-torch/bin/python -m pytest -q $(OLDEST_TORCH_TESTS:%=tests/torch_adapter/test_%.py)

SLOW := jax_adapter/test_replicated jax_adapter/test_teleport array_adapter/test_network_graph \
	array_adapter/test_factored array_adapter/test_libraries

test-slow: $(VENV)/.dev  ## Run what make test leaves out: JAX on many devices, and uncompiled (15 minutes)
	NULLPORT_SLOW=1 $(BIN)/python -m pytest -n logical $(SLOW:%=tests/%.py)

CASES ?= 10000

fuzz: $(VENV)/.dev  ## Check certificate and properties on random cases (CASES=10000; 15 minutes)
	$(BIN)/python tests/fuzz_certificate.py --cases $(CASES)
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q -n logical \
		tests/core/test_certificate.py tests/core/test_direction.py tests/core/test_nullspace.py tests/core/test_sites.py

SAMPLE ?= 120

mutants: $(VENV)/.dev  ## Test a sample of mutants of the core against its tests (SAMPLE=120; 30 minutes)
	$(PIP) install -q -c $(CONSTRAINTS) "cosmic-ray>=8.4"
	$(BIN)/python tests/mutants.py --sample $(SAMPLE)

lint: $(VENV)/.dev  ## Check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## Check types
	$(BIN)/mypy

package: $(VENV)/.dev  ## Build sdist and wheel, check what they hold, train on NumPy alone with the wheel
	rm -rf dist build/empty
	$(BIN)/python -m build -o dist
	$(BIN)/python tests/distributions.py dist
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install -q -c $(CONSTRAINTS) dist/*.whl
	cd build && empty/bin/python -c "from nullport.lab import available_backends; print('installed wheel:', available_backends())"
	cd build && empty/bin/nullport --version
	build/empty/bin/python -m pip install -q -c $(CONSTRAINTS) scikit-learn
	build/empty/bin/python docs/examples/numpy_networks.py

# One thread each: the threads of BLAS libraries wait in loops, and make times depend on the machine.
ASV := cd asv_bench && OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \
	XLA_FLAGS=--xla_cpu_multi_thread_eigen=false

QUICK := NULLPORT_BENCH=quick JAX_COMPILATION_CACHE_DIR="$(CURDIR)/asv_bench/.asv/jax" \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

bench-smoke: $(VENV)/.dev  ## Check that the benchmarks run
	$(ASV) ../$(BIN)/asv machine --yes
	$(ASV) ../$(BIN)/asv check -E existing
	$(ASV) ../$(BIN)/asv check -E existing --config history.conf.json
	$(ASV) $(QUICK) ../$(BIN)/asv run --quick --show-stderr -E existing
	sed 's#"results_dir": "results"#"results_dir": ".asv/quick"#' asv_bench/history.conf.json \
		> asv_bench/history-quick.conf.json  # what is kept under version control stays
	$(ASV) $(QUICK) ../$(BIN)/asv run --quick --show-stderr -E existing --config history-quick.conf.json

bench-track: $(VENV)/.dev  ## Measure the commits since the last tracked one (RANGE=A..B: others)
	$(BIN)/python asv_bench/track.py $(if $(RANGE),--range $(RANGE))

bench-compare: $(VENV)/.dev  ## Compare two commits, BASE=... HEAD=...; fails at a factor of 1.5 (4 minutes)
	$(ASV) ../$(BIN)/python compare.py "$(BASE)" "$(HEAD)"

bench-gate-check: $(VENV)/.dev  ## Check that the comparison finds a planted slowdown, and only that
	$(ASV) ../$(BIN)/python gate_check.py

bench-history-check: $(VENV)/.dev  ## Check that the history finds a slowdown three commits back
	$(BIN)/python asv_bench/history_check.py

scaling: $(VENV)/.dev  ## Measure how costs scale and write docs/benchmarks/scaling.md (25 minutes)
	$(ASV) ../$(BIN)/asv machine --yes
	$(ASV) ../$(BIN)/asv run -E existing --set-commit-hash "$$(git rev-parse HEAD)" \
		--show-stderr --bench "whole|rivals" -a rounds=1
	$(BIN)/python asv_bench/scaling.py

figures: $(VENV)/.dev  ## Measure the figures of the design, side by side (8 minutes)
	$(BIN)/python asv_bench/figures.py

rivals: $(VENV)/.dev  ## Compare with other teleports and captures, torch and JAX (5 minutes)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \
		$(BIN)/python asv_bench/rivals_table.py --markdown

# With the Python of the machine, whose torch, JAX and CuPy know its device: nothing is installed.
gpu:  ## Test and measure on a GPU, write docs/benchmarks/gpu.md (9 minutes; again: goes on)
	$(PYTHON) asv_bench/gpu.py

gpu-dry: $(VENV)/.dev  ## Run all of that small, on the processor (1 minute)
	$(BIN)/python asv_bench/gpu.py --device cpu --small --anew --minutes 30 --out build/gpu.md

# Quick runs are made anew, for the code may have changed; examples run again where they changed.
docs: $(VENV)/.docs  ## Build these pages into build/docs/html; warnings are errors (2 minutes)
	mkdir -p build docs/generated
	rm -f build/quick.sqlite*
	OMP_NUM_THREADS=1 $(BIN)/nullport suite --preset quick --quiet --runs build/quick.sqlite \
		--processes 2 --report docs/generated/quick.md
	cd asv_bench && ../$(BIN)/asv publish --config history.conf.json --html-dir ../build/docs/html/history
	OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -b html -q -W --keep-going \
		docs build/docs/html

clean:  ## Remove everything that was built
	rm -rf $(VENV) build dist docs/gallery docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
