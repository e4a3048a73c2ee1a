# Every target creates the environment that it needs. `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEEPSPEED ?= .venv-deepspeed
INSTALL := bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP := $(VENV)/$(INSTALL)

.PHONY: quickstart quickstart-distillation test test-all test-deepspeed compatibility compatibility-deepspeed tables quality style clean

quickstart: $(VENV)/.installed
	$(BIN)/trl-entropy quickstart

quickstart-distillation: $(VENV)/.installed
	$(BIN)/trl-entropy quickstart-distillation

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

# In an environment of its own, as transformers and accelerate change what they do if DeepSpeed is there.
test-deepspeed: $(DEEPSPEED)/.installed
	$(DEEPSPEED)/bin/python -m pytest tests/trainers/test_deepspeed.py

compatibility: $(VENV)/.installed
	$(BIN)/python -m tests.support.compatibility $(if $(ONLY),--only $(ONLY))

compatibility-deepspeed: $(DEEPSPEED)/.installed
	$(DEEPSPEED)/bin/python -m tests.support.compatibility --features "2 processes (ZeRO-3)" $(if $(ONLY),--only $(ONLY))

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

$(DEEPSPEED)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(DEEPSPEED)
	$(DEEPSPEED)/$(INSTALL) torch
	DS_BUILD_OPS=0 $(DEEPSPEED)/$(INSTALL) --editable '.[test,deepspeed]'
	touch $@

clean:
	rm -rf $(VENV) $(DEEPSPEED) .cache runs build dist *.egg-info
