# Every target creates the environment that it needs. `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart quickstart-distillation test test-all compatibility tables quality style clean

quickstart: $(VENV)/.installed
	$(BIN)/trl-entropy quickstart

quickstart-distillation: $(VENV)/.installed
	$(BIN)/trl-entropy quickstart-distillation

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

compatibility: $(VENV)/.installed
	$(BIN)/python -m tests.support.compatibility $(if $(ONLY),--only $(ONLY))

tables: $(VENV)/.installed
	$(BIN)/python -m tests.support.tables

quality: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

style: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch is installed first, so that everything else finds the pinned build.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[test,quality]'
	touch $@

clean:
	rm -rf $(VENV) .cache runs build dist *.egg-info
