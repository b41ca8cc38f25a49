# Each target makes its own .venv with the versions pinned in requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test check lint types clean

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This is Python %d.%d, from 3.11 on is needed: make PYTHON=python3.12, for example" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash demo.sh

# One process a core (tests/conftest.py), each with whole files: their fixtures train and fit once.
test: lint types $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto --dist=loadfile

check:
	CI=true bash .ci/run

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/installed
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
