# Every target works in a fresh clone; `make` alone lists them. Nothing is installed outside of it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
MODEL ?= models/llama.onnx
MINUTES ?= 10
SEED ?= 0
ENGINE ?= out/$(basename $(notdir $(MODEL))).engine
SOURCES := pyproject.toml CMakeLists.txt $(shell find plugins cmake build_backend -type f -not -name '*.pyc')

.DEFAULT_GOAL := help
.PHONY: help engine test test-gpu check format fuzz bench bench-gpu wheel clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

engine: $(VENV)/installed  ## fuse MODEL, prove it, and build ENGINE (default: the shipped Llama)
	@mkdir -p $(dir $(ENGINE))
	$(BIN)/opfuse build $(MODEL) -o $(ENGINE) --report $(basename $(ENGINE)).json

test: $(VENV)/installed-test  ## run the tests that need no GPU
	$(BIN)/python -m pytest -m "not gpu" -n auto

test-gpu: $(VENV)/installed-test  ## run the kernel tests; needs an NVIDIA GPU and torch
	PATH="$(abspath $(BIN)):$$PATH" tests/gpu/run.sh

check: $(VENV)/installed-dev  ## lint, types, and format; writes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find plugins tests/plugins examples -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' | \
		xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/installed-dev  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	find plugins tests/plugins examples -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' | \
		xargs $(BIN)/clang-format -i

fuzz: $(VENV)/installed-test  ## fuse random spellings and broken blocks for MINUTES (default: 10)
	$(BIN)/python -m benchmarks.fuzz --minutes $(MINUTES) --seed $(SEED) --save out/fuzz

bench: $(VENV)/installed-test  ## time `opfuse fuse` on 32 and 128 layers; measure its memory at 3 GB
	$(BIN)/python -m benchmarks.fuse_speed
	$(BIN)/python -m benchmarks.memory

bench-gpu: $(VENV)/installed-test  ## time every kernel; needs an NVIDIA GPU, torch, and triton
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=optimizer:. python3 -m benchmarks.kernels --grid

wheel:  ## build the wheel into dist/, with the plugin library in it
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

clean:  ## remove what the targets made, the virtual environment too
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# An editable install: Python sources are used where they lie, the library is built once per change.
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(PIP) --editable .
	@touch $@

# opfuse is there by now, so pip installs what the extra adds and builds nothing again.
$(VENV)/installed-test: $(VENV)/installed tests/serving/schema.txt
	$(PIP) 'opfuse[test]'
	$(PIP) --no-deps --require-hashes -r tests/serving/schema.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) 'opfuse[dev]'
	@touch $@
