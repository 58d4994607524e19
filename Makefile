# Two commands do it all: `make demo` runs the main job, `make test` the tests. Each builds .venv from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/quickstart
# Keep what Python compiles, whatever the environment says: the tests start dozens of processes that import the same.
unexport PYTHONDONTWRITEBYTECODE
# As many workers as cores, eight at most: each needs about 1 GB. WORKERS=0 is one process without workers.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 8 ? cores : 8)))
# A file's tests share its fixtures and stay on one worker. (pytest-xdist 3.8 groups nothing by mark with pytest 9.2.)
RUN_TESTS = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST ?= -m "not slow"

.PHONY: help demo study test test-all coverage check lint types docs wheel check-wheel clean

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

study: $(VENV)/.installed  ## Run the long study and write its report
	$(BIN)/kick run examples/full.toml --out runs/full
	@echo "Open runs/full/report.html in a browser."

test: $(VENV)/.installed  ## Run the tests
	$(RUN_TESTS) $(PYTEST)

test-all: $(VENV)/.installed  ## Run the tests, the slow ones too
	$(RUN_TESTS)

coverage: $(VENV)/.installed  ## Run the tests, and show the share of the lines that each module has run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pytest-cov
	$(RUN_TESTS) --cov=llmkick --cov-report=term $(PYTEST)

check: lint types docs check-wheel test  ## Everything that must pass before a change lands

lint: $(VENV)/.installed  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed  ## Types
	$(BIN)/mypy

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Without --quiet, which would hide the warnings from --strict. The variable drops an advertisement for Zensical, the
# successor of the theme, which is maintained until May 2027.
docs: $(VENV)/.docs-installed  ## Write the documentation as a site to site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/.installed  ## Build the wheel into dist/
	@rm -rf build dist/llmkick-*.whl  # files of an earlier build would get into it
	$(BIN)/python -m pip wheel . --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist

check-wheel: wheel  ## Install the wheel into an empty environment, and run a study there
	$(BIN)/python .ci/check_wheel.py dist/llmkick-*.whl

clean:  ## Remove what the targets built (not runs/)
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
