# `make help` lists the targets. Each installs what it needs into .venv first; stamps in there make a repetition quick.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.streampose-runtime
DEV := $(VENV)/.streampose-dev
OUT := out
INSTALLED := .cache/installed
PIP := $(BIN)/python -m pip
PIP_INSTALL := $(PIP) install --quiet --progress-bar off --constraint constraints.txt

export PIP_RETRIES ?= 5
export PIP_DEFAULT_TIMEOUT ?= 60
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help run test lint types pytest bench clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: $(RUNTIME) ## Find the poses in the bundled clip: out/people.jsonl and out/demo.mp4
	@mkdir -p $(OUT)
	@echo "Estimating the poses in the bundled clip"
	@$(BIN)/python -m streampose run --source demo --no-publish --save $(OUT)/people.jsonl --render $(OUT)/demo.mp4
	@echo "Keypoints, one line a frame: $(OUT)/people.jsonl"
	@echo "The clip with the poses drawn in: $(OUT)/demo.mp4"

test: lint types pytest ## Check style, types and behaviour, as CI does
	@echo "All passed: ruff, mypy --strict, pytest"

lint: $(DEV) ## Check style and format with ruff
	@echo "Checking style and format (ruff)"
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

types: $(DEV) ## Check types with mypy --strict, on the package as it installs
	@echo "Checking types (mypy --strict)"
	@rm -rf build $(INSTALLED)
	@$(PIP) install --quiet --no-deps --no-build-isolation --no-index --target $(INSTALLED) .
	@rm -rf build
	@cd $(INSTALLED) && $(CURDIR)/$(BIN)/python -m mypy --strict --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p streampose

pytest: $(DEV) ## Run the tests; PYTEST_ARGS='-m "not slow"' leaves out the slow ones
	@echo "Running the tests (pytest)"
	@$(BIN)/python -m pytest -q -rfEs $(PYTEST_ARGS)

bench: $(RUNTIME) ## Measure the pipeline on this machine, on the bundled clip: out/bench.json
	@mkdir -p $(OUT)
	@echo "Measuring the pipeline on the bundled clip"
	@$(BIN)/python -m streampose bench --json > $(OUT)/bench.json
	@echo "The figures: $(OUT)/bench.json"

clean: ## Remove what was built, the results in out/ and the caches
	rm -rf build dist $(OUT) .cache .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: $(PYTHON) is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the run-time packages into $(VENV); the first time takes a minute or two"
	@$(PIP_INSTALL) setuptools
	@$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "Installing the extras train, record, web and dev into $(VENV); the first time takes some minutes (torch)"
	@$(PIP_INSTALL) --no-build-isolation --editable '.[train,record,web,dev]'
	@$(PIP_INSTALL) --no-deps torch-tensorrt dllist psutil || echo "torch-tensorrt cannot be had here; its tests are skipped"
	@touch $@
