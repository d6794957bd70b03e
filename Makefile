# keymesh: `make demo` shows the product, `make check` is the fast loop, `make test` is everything.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.SUFFIXES:

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q
# workers for tests that may share the machine
JOBS ?= 2
CHECK_SEEDS ?= 20
TEST_SEEDS ?= 1000
DURATIONS ?= 10

SIM = $(BIN)/keymesh sim run --seeds $(1) --json

.PHONY: help setup dev servers demo check static unit test soak bench lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup:  ## create .venv with the locked runtime packages and the keymesh command
	@PYTHON="$(PYTHON)" .ci/setup runtime

dev:
	@PYTHON="$(PYTHON)" .ci/setup dev

demo: setup  ## bring up a mesh, show and measure the product, take it down
	@$(BIN)/keymesh demo

servers:
	@.ci/servers

static: dev
	$(BIN)/ruff format --check --no-cache src tests .ci
	$(BIN)/ruff check --no-cache src tests .ci
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: dev
	$(PYTEST) -n $(JOBS) -m "not slow and not integration" tests/unit tests/vectors

check: static unit  ## format, lint, types, import contracts, unit and vector tests, some seeds (about a minute)
	$(call SIM,$(CHECK_SEEDS))

test: servers static  ## everything: check, contract, integration and simulation tests (35 to 40 minutes on two cores)
	$(PYTEST) -n $(JOBS) --durations=10 -m "not live and not serial" tests
	@$(BIN)/python .ci/live.py $(TEST_SEEDS) --durations=$(DURATIONS)

soak: servers dev  ## the same tests with their full counts; prints one JSON object at the end
	@SOAK_PARTS="$(SOAK_PARTS)" $(BIN)/python .ci/soak.py

bench: servers dev  ## measure Edge, sidecar, KMIP, kill switch and its bounds, control log, dispatch, manifests and scale
	@$(BIN)/keymesh bench edge --json
	@$(BIN)/keymesh bench sidecar --json --seconds 50
	@$(BIN)/keymesh bench kmip --json
	@$(BIN)/keymesh bench killswitch --json
	@$(BIN)/keymesh bench control --json
	@$(BIN)/keymesh bench orbital --json
	@$(BIN)/keymesh bench manifest --json
	@$(BIN)/keymesh bench scale --json

lock:  ## write the hashed locks afresh (newest versions: LOCK_ARGS=--upgrade)
	@LOCK_ARGS="$(LOCK_ARGS)" .ci/lock

clean:  ## remove what the targets made
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
