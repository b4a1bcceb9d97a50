# Every goal makes its own environment on a fresh clone: only Python 3.11 or newer and make are needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
WORKERS ?= 2

# One thread per worker: two workers on two cores are faster and steadier than two pools of two.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench clean

help:
	@echo "make demo      train a small CNN on real digits, prune it by half, quantize it, show what became of it"
	@echo "make test      the tests, without the slow tier"
	@echo "make test-all  every test: all architectures, several seeds, ONNX for each"
	@echo "make lint      ruff, mypy"
	@echo "make bench     ResNet-50: analysis, optimize, INT8 against float"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp per set of extras: a goal installs what it needs and nothing twice.
$(STAMPS)/%: pyproject.toml constraints.txt setup.py | $(BIN)/python
	@mkdir -p $(STAMPS)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]"
	@touch $@

demo: $(STAMPS)/demo
	$(BIN)/python -m examples.digits_demo

test: $(STAMPS)/test
	$(PYTEST) -m "not slow"

test-all: $(STAMPS)/test
	$(PYTEST)

lint: $(STAMPS)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMPS)/bench
	$(BIN)/python -m benchmarks.resnet50

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
