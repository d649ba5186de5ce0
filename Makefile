# Every target sets up what it needs: Python 3.11 or newer with venv and pip is all that has to be there.
# PYTHON=... chooses the interpreter, ARGS=... goes to the program behind the target.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Whatever the environment says of it: the tests start hundreds of processes, which are not to compile the same again.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
SPREAD := --dist loadgroup --no-loadscope-reorder
SMALL := tests/unit tests/contract tests/test_architecture.py tests/test_documents.py
QUICK := not (bench or chaos or kafka or browser or slow)
DOCUMENTS := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
NEED = $(or $(PYTHON),$(error No Python 3.11 or newer with venv and pip was found: name one with PYTHON=...)) -m tools.bootstrap

.PHONY: help setup setup-run run demo kafka cluster test test-quick properties coverage check fmt lint types protos docs bench flame chaos fuzz fuzz-kernel what-runs loc lock prices screenshots

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' Makefile

setup: ## .venv with everything a developer needs
	@$(NEED) dev >&2

setup-run:
	@$(NEED) run >&2

run: setup-run ## serve: HTTP and gRPC ingest, the worker and its embedded log
	@exec $(BIN)/spendstream serve $(ARGS)

demo: setup-run ## beside `make run`: fill a project with a month of made-up traffic, and print a key to sign in with
	@exec $(BIN)/spendstream demo $(ARGS)

kafka: setup-run ## a Kafka broker on this machine (Java 17 and Maven have to be there); PORT=9092, data in .kafka/data
	@exec $(BIN)/python -m tools.kafka --port $(or $(PORT),9092) $(ARGS)

cluster: setup-run ## a broker, two APIs and two workers on this machine; what they keep is in .kafka/cluster
	@exec $(BIN)/python -m tools.cluster $(ARGS)

test: setup ## all tests, four at a time (JOBS=1: one by one); ARGS="-k name" picks some
	@$(BIN)/pytest --numprocesses $(or $(JOBS),4) $(SPREAD) $(ARGS)

test-quick: setup ## unit and contract tests: no broker, no browser, nothing slow, few examples
	@HYPOTHESIS_PROFILE=quick $(BIN)/pytest --numprocesses $(or $(JOBS),3) $(SPREAD) -m "$(QUICK)" $(SMALL) $(ARGS)

properties: setup ## the properties of the unit tests with twenty times the examples
	@HYPOTHESIS_PROFILE=thorough $(BIN)/pytest --numprocesses $(or $(JOBS),2) $(SPREAD) -m hypothesis --timeout 3600 tests/unit $(ARGS)

coverage: setup ## lines that the unit and contract tests run; the pure core has to have 95 %
	@$(BIN)/pytest --numprocesses $(or $(JOBS),2) $(SPREAD) --cov --cov-report= $(SMALL) $(ARGS)
	@$(BIN)/coverage report
	@$(BIN)/coverage report --include 'processor/core/*' --fail-under 95

check: ## everything that CI checks, the tests included
	@bash .ci/run

fmt: setup ## format, and mend what ruff can mend
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

lint: setup ## style, formatting, who may import whom, documents
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/rumdl check --quiet $(DOCUMENTS)

types: setup ## mypy, strict
	@$(BIN)/mypy

protos: setup ## generate the modules of protos/ again; ARGS=--check only compares
	@$(BIN)/python -m tools.protos $(ARGS)

docs: setup ## make the generated parts of docs/ anew; ARGS=--check only compares
	@$(BIN)/python -m tools.architecture $(ARGS) && $(BIN)/python -m tools.reference $(ARGS)

bench: setup ## measure speed
	@$(BIN)/python -m tests.bench $(ARGS)

flame: setup ## where the time goes while events come in: docs/images/flame-*.svg, and tables; ARGS=--kafka
	@$(BIN)/python -m tools.flame $(ARGS)

chaos: setup ## kill processes under load, then compare every table with the log
	@$(BIN)/python -m tests.chaos $(ARGS)

fuzz: setup ## send both doors what nobody would; ARGS="--seconds 3600"
	@$(BIN)/python -m tests.fuzz $(ARGS)

fuzz-kernel: setup ## mutated events into the compiled kernel and into its twin; ARGS="--seconds 3600 --sanitize"
	@$(BIN)/python -m tests.fuzz.kernel $(ARGS)

what-runs: setup ## which of our functions run for one batch, from its arrival to a read; ARGS=--functions
	@$(BIN)/python -m tools.what_runs $(ARGS)

loc: setup ## lines per module and function
	@$(BIN)/python -m tools.loc $(ARGS)

screenshots: setup ## take the pictures of the page in docs/images again; needs Chromium
	@$(BIN)/python -m tools.screenshots $(ARGS)

prices: setup ## make the built-in price list again; ARGS=--upgrade takes a newer version, ARGS=--check only checks
	@$(BIN)/python -m tools.prices $(ARGS)

lock: setup ## write requirements/ again; ARGS=--upgrade takes newer versions, ARGS=--check only compares
	@$(BIN)/python -m tools.lock $(ARGS)
