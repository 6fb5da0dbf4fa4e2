# The names a person and CI use. Everything Rust is built once, in one profile, into CARGO_TARGET_DIR.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
export CARGO_TARGET_DIR ?= $(HOME)/.cache/ferroflow/target
export PIP_DISABLE_PIP_VERSION_CHECK := 1
RELEASE := $(CARGO_TARGET_DIR)/release
LOCK := $(CARGO_TARGET_DIR)/.ferroflow.lock
BIN := $(VENV)/bin
PYTHON_FILES := build_backend.py python tests benches examples
# The extensions are tested from Python and R: cargo cannot link a test program of them.
WORKSPACE := --workspace --exclude ferroflow-python --exclude ferroflow-r
# Tests against real stores, a real Kubernetes and a Batch emulator, which they start on this machine.
STORES := $(wildcard tests/e2e/test_object_store*.py)
REMOTE := tests/e2e/remote
PYTEST := "pytest tests $(addprefix --ignore=,$(STORES))" "pytest $(STORES) -n 2" "pytest $(REMOTE) -n 2 -m 'not disruptive'" "pytest $(REMOTE) -n 0 -m disruptive"

# The R package is installed into a library of this checkout.
R_LIBRARY := $(CURDIR)/$(VENV)/r-library
R_TESTS := testthat r/tests/run_tests.R
R_CHECK := program r/tests/check $(CURDIR)
export R_LIBS := $(R_LIBRARY)

.PHONY: help demo build develop extension engine r r-check test test-rust test-python test-r lint fmt bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(BIN)/python ## Build and install into .venv, then run a flow
	@echo "Building and installing ferroflow into $(VENV) (the first build takes a few minutes)."
	@rm -f $(VENV)/develop.stamp && find $(VENV) -name ferroflow_develop.pth -delete && rm -f $(BIN)/metaflow
	cargo build --release --locked --package ferroflow-cli --bin metaflow
	$(BIN)/pip install --quiet --force-reinstall --no-deps .
	$(BIN)/python examples/hello.py run

build: $(BIN)/python ## Build the wheel into dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist

develop: $(VENV)/develop.stamp engine extension ## Set .venv up to work on this checkout

# What is taken out of the target folder is copied under the lock that wheel builds take too
# (build_backend.py): checkouts may share the folder. A running program may have the old file
# mapped, so the new one is put beside it and renamed.
engine: | $(BIN)/python
	@mkdir -p $(CARGO_TARGET_DIR)
	flock $(LOCK) $(SHELL) -ec 'cargo build --release --package ferroflow-cli && cp $(RELEASE)/metaflow $(BIN)/.metaflow.new'
	@mv $(BIN)/.metaflow.new $(BIN)/metaflow

extension:
	@mkdir -p $(CARGO_TARGET_DIR)
	flock $(LOCK) $(SHELL) -ec 'PATH="$(CURDIR)/$(BIN):$$PATH" cargo rustc --release --package ferroflow-python --lib -- -C linker=crates/python/linker && cp $(RELEASE)/lib_native.so python/metaflow/.native.new'
	@mv python/metaflow/.native.new python/metaflow/_native.abi3.so

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; choose one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/develop.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/pip uninstall -qq --yes ferroflow
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev
	$(BIN)/python -c 'import sysconfig, pathlib; pathlib.Path(sysconfig.get_path("purelib"), "ferroflow_develop.pth").write_text("$(CURDIR)/python\n")'
	@touch $@

r: | $(BIN)/python ## Install the R package into .venv/r-library
	@command -v Rscript >/dev/null || { echo "R is missing; on Debian: apt-get install r-base-core r-base-dev r-cran-testthat"; exit 1; }
	@mkdir -p $(R_LIBRARY)
	PATH="$(CURDIR)/$(BIN):$$PATH" R CMD INSTALL --no-test-load --library=$(R_LIBRARY) r

r-check: r ## Check the R package as CRAN does; fails on errors and warnings
	r/tests/check $(CURDIR)

test: develop r ## Run every test; the last line counts them
	@tests/summary $(BIN)/python "cargo $(WORKSPACE)" $(PYTEST) "$(R_TESTS)" "$(R_CHECK)"

test-r: r ## Run the tests of the R package
	@tests/summary "" "$(R_TESTS)"

test-rust: ## Run the Rust tests
	@tests/summary "" "cargo $(WORKSPACE)"

test-python: develop r ## Run the Python tests, end to end ones included
	@tests/summary $(BIN)/python $(PYTEST)

lint: develop ## Check formatting, clippy, ruff and mypy
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy

fmt: $(VENV)/develop.stamp ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix-only --quiet $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

bench: develop ## Measure beside stock Metaflow; writes docs/benchmarks.md
	$(BIN)/python benches/macro/bench.py $(BENCH_ARGS)

clean: ## Remove what was built in this checkout (not the shared target folder)
	rm -rf $(VENV) dist ferroflow.data python/metaflow/_native.abi3.so .mypy_cache .ruff_cache .pytest_cache
