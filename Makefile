# make demo | test | test-hosts | lint | setup | lock | help
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-hosts lint lock

help:  ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: .venv/ready  ## set everything up in .venv

$(BIN)/uv:
	@$(PYTHON) scripts/setup.py

.venv/ready: requirements.lock pyproject.toml scripts/setup.py
	@$(PYTHON) scripts/setup.py

demo: .venv/ready  ## start the cluster and ask eight questions
	@$(BIN)/kitbash demo

test: .venv/ready  ## run every test
	@$(BIN)/python -m pytest -n 2 --dist worksteal tests/unit tests/contract tests/test_docs.py
	@$(BIN)/python -m pytest tests/cluster tests/hosts

test-hosts: .venv/ready  ## Kitbash on three simulated hosts; needs root
	@$(BIN)/python -m pytest -m hosts tests/hosts -s

lint: .venv/ready  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock: $(BIN)/uv  ## compile requirements.lock anew from pyproject.toml, without the extra train
	@$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.10 --extra documents --extra dev --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links -q -o requirements.lock
