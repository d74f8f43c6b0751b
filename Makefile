# `make help` lists what there is. The two commands to start with: `make demo`, `make test`.
SHELL := /bin/sh
BIN := .venv/bin
PACKAGES := rlplatform actors rewards model pretrain
SMOLLM2 := .cache/models/smollm2-135m-instruct
WORKERS ?= 2
# No telemetry from tools the project starts; no hub look-ups in tests.
export RAY_USAGE_STATS_ENABLED ?= 0
export VLLM_NO_USAGE_STATS ?= 1
export DO_NOT_TRACK ?= 1
export EXTRA PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-fresh recipe findings test lint format smollm2 requirements clean

help: ## list these targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1|/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

setup: ## create .venv and install everything into it (EXTRA=gpu for CUDA); instant when nothing has changed
	@scripts/setup.sh

demo: setup ## watch a small language model learn arithmetic by reinforcement, on this machine
	@$(BIN)/rlplatform run configs/recipe/demo.yaml

demo-fresh: setup ## the demo again, from the start
	@$(BIN)/rlplatform run configs/recipe/demo.yaml --fresh

recipe: setup ## the staged recipe in miniature: base, cold start, RL, fusion, general RL, distillation; resumes
	@$(BIN)/rlplatform run configs/recipe/qwen3_mini.yaml

findings: setup ## seeds, ablations, a real model: docs/findings.md; hours; resumes (ARGS="--only budget")
	@$(BIN)/python -m benchmarks.findings $(ARGS)

test: setup ## every test, WORKERS=2 at a time (0: one after another, in one process)
	@$(BIN)/python -m pytest -n $(WORKERS)

lint: setup ## style, types, and which package may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: setup ## rewrite the sources in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

smollm2: setup ## real weights without a hub: SmolLM2-135M-Instruct as a Hugging Face folder
	@$(BIN)/python scripts/convert_smollm2.py $(SMOLLM2)

requirements: setup ## resolve requirements/cpu.txt and gpu.txt again (UPGRADE=--upgrade takes newer releases)
	@$(BIN)/python scripts/compile_requirements.py $(UPGRADE)

clean: ## remove .venv, caches and build output; runs/ stays
	rm -rf .venv .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
