# Two commands do it all: `make demo` runs the main job, `make test` the tests. Each builds .venv from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
# As many workers as cores, eight at most: each needs about 1 GB. WORKERS=0 is one process without workers.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 8 ? cores : 8)))
# A file's tests share its fixtures and stay on one worker. (pytest-xdist 3.8 groups nothing by mark with pytest 9.2.)
RUN_TESTS = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST ?= -m "not slow"

.PHONY: help demo test test-all check lint types clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed  ## Run the quickstart study and write its report
	$(BIN)/kick run examples/quickstart.toml --out $(OUT)
	@echo "Open $(OUT)/report.html in a browser."

test: $(VENV)/.installed  ## Run the tests
	$(RUN_TESTS) $(PYTEST)

test-all: $(VENV)/.installed  ## Run the tests, the slow ones too
	$(RUN_TESTS)

check: lint types test  ## Everything that must pass before a change lands

lint: $(VENV)/.installed  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed  ## Types
	$(BIN)/mypy

clean:  ## Remove what the targets built (not runs/)
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
