.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test soak up check lint clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $(STAMP)

demo: $(STAMP)  ## take in a sample archive, search it, then end
	$(BIN)/similis demo

up: $(STAMP)  ## start the embedded stack and keep serving
	$(BIN)/similis up

test: $(STAMP)  ## every test but the soaks, on real engines, by three processes
	$(BIN)/pytest -m "not soak" -n 3 --dist loadfile --no-loadscope-reorder $(ONCE_MORE)

soak: $(STAMP)  ## tests that take minutes: models changed, backups restored and processes killed on whole stacks
	$(BIN)/pytest -m soak

check: $(STAMP)  ## ruff, mypy --strict, import contracts, migrations up and down
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.upgrades

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
