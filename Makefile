# `make demo` and `make test` set everything up on a machine that has Python 3.11, gcc and make.
PYTHON ?= python3.11
RANKS ?= 2
BIN := .venv/bin
DEMO_CORPUS := build/demo-corpus
export OMP_NUM_THREADS ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test soak bench lint audit image-check format clean

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
	$(BIN)/shellcheck .ci/run docker/*.sh launchers/slurm/*.sbatch
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml
	$(BIN)/kubernetes-validate --quiet --strict docker/kubernetes.yaml
	-@$(MAKE) --no-print-directory audit

# Known vulnerabilities of the pinned packages: `make lint` shows them, this fails. Without a connection there are none to know.
audit: .venv/ready
	@mkdir -p build
	@$(BIN)/pip-audit --progress-spinner off --timeout 5 --no-deps --disable-pip --requirement constraints.txt \
		> build/audit.txt 2>&1 || true
	@! grep -A 1000 -E '^Found [0-9]+ known' build/audit.txt

# Builds the CPU image without a registry, and trains with it on the two nodes of compose.yaml; needs root, podman and debootstrap.
image-check: .venv/ready
	docker/check.sh

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build runs
