# `make demo` and `make test` set everything up on a machine that has Python 3.11, gcc and make.
PYTHON ?= python3.11
RANKS ?= 2
BIN := .venv/bin
DEMO_CORPUS := build/demo-corpus
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test soak bench lint format clean

demo: .venv/ready
	$(BIN)/python launchers/prepare.py --corpus demo --root $(DEMO_CORPUS) --workers 2
	$(BIN)/deepspeed --num_gpus $(RANKS) launchers/train.py --config ds_configs/experiments/demo.yaml

test: .venv/ready
	$(BIN)/python -m pytest

soak: .venv/ready
	$(BIN)/python -m pytest -m soak

bench: .venv/ready
	$(BIN)/python -m tests.benchmarks $(if $(ONLY),--only $(ONLY))

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build runs
