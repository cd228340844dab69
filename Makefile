# The verbs of this repository. Each builds the virtual environment it needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check format docs fuzz clean

quickstart: $(VENV)/.installed  ## transfer from the bundled hub, print a table, draw the curves
	$(BIN)/python -m agents.quickstart

test: $(VENV)/.installed  ## run the tests
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/.installed  ## lint, types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## format in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: $(VENV)/.installed  ## bend files of every kind for an hour and read them (SECONDS=3600 SEED=0)
	$(BIN)/python -W ignore tests/fuzz/harness.py --seconds $(or $(SECONDS),3600) --seed $(or $(SEED),0) --keep fuzz-findings

docs: $(VENV)/.installed  ## build the documentation site in site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $@

clean:
	rm -rf $(VENV) dist site
