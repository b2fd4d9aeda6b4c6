# make search: the quickstart search.  make test: the whole suite.  make lint: style, types, layers.
# make soak: half an hour in which workers are killed and the database is restarted, at random.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: search test lint soak clean

search: .venv/installed
	@echo "to type hpsearch yourself in this shell, first: . $(BIN)/activate"
	$(BIN)/hpsearch run quickstart

test: .venv/installed-dev
	$(BIN)/pytest --numprocesses 4 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: .venv/installed-dev
	$(BIN)/python -m tests.benchmarks.soak

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv
