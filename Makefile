# make demo | make test | make bench | make docs      (make help says more)
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
OUT ?=

.PHONY: help demo test test-slow lint bench docs clean

help:
	@echo "make demo       train recipes/census.yaml on the full Census-Income data and write a report"
	@echo "make test       quick tests, ruff and mypy; make test-slow runs the slow tests"
	@echo "make bench      measure speed against plain loops and other libraries"
	@echo "make docs       build the documentation into docs/_build/html"
	@echo "PYTHON=python3.12 chooses the interpreter, PIP_ARGS=... is passed to pip"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "polytask needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) 'pip>=25.1'

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --group test --group lint --group docs
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/polytask fit recipes/census.yaml $(if $(OUT),--out $(OUT),)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -m slow --timeout 3600

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run.py --out benchmarks/out

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b doctest docs docs/_build/doctest

clean:
	rm -rf $(VENV) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache
