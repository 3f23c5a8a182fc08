# For a start: `make demo`, `make test`. `make` alone lists all targets.
#
# PYTHON=python3.12   the interpreter that the environment is made with (3.11 or newer): a path, or a name that is on
#                     PATH or known to pyenv or uv. Each has an environment of its own:
#                     make test PYTHON=python3.12 VENV=.venv-3.12
# VENV=.venv          the folder of the environment; constraints.txt pins versions, pip's own settings say where from
# APP=flask           the app that `make demo` runs: django, flask, fastapi or starlette
# ONCE=1              `make demo` ends by itself
# CELL=django-6.0     the only cell of noxfile.py that `make test-all` runs
# ALLOW_MISSING=1     `make test-all` skips cells whose interpreter this machine lacks
# TRIALS=1000         the number of trials of `make chaos` in which it kills processes on a spool
# MODULE=worker       the only module that `make mutants` mutates; SAMPLE=60 mutants of it, drawn with SEED=1;
#                     ALL=1 runs every mutant, SURVIVORS=1 those that survived the last run
# TESTS=tests/core    the tests that `make test` and `make coverage` run
# JOBS=0              the number of worker processes of `make test`; 0, which a debugger needs, runs all in one process

PYTHON ?= python3
VENV ?= .venv
TESTS ?=
JOBS ?= 2
TRIALS ?= 1000
APP ?= starlette
ONCE ?=
MODULE ?=
SAMPLE ?= 60
SEED ?= 1
ALL ?=
SURVIVORS ?=

BIN := $(VENV)/bin
FOUND = $(or $(if $(filter python3.%,$(PYTHON)),$(shell sh tests/interpreter.sh $(PYTHON) 2>/dev/null)),$(PYTHON))
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Each stamp is written last, so that an interrupted installation is repeated.
RUN := $(VENV)/.stamp-run
DEV := $(VENV)/.stamp-dev

.DEFAULT_GOAL := help
.PHONY: help venv test test-all coverage demo lint types wheel docs changelog bench servers servers-uwsgi chaos mutants clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Checked first, so that a machine that lacks something gets a sentence and not a traceback.
$(BIN)/python:
	@command -v $(FOUND) >/dev/null || { \
		echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; \
		exit 1; }
	@$(FOUND) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(FOUND) -V 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	@$(FOUND) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) can't make environments. Install the system package python3-venv (Debian, Ubuntu: sudo apt-get install python3-venv), then repeat." >&2; \
		exit 1; }
	@echo "Making $(VENV) ..."
	@$(FOUND) -m venv --clear $(VENV)

# A PYTHON that is given must be the version of the environment.
ifneq ($(origin PYTHON),file)
$(RUN): | same
endif
.PHONY: same
same: | $(BIN)/python
	@test "$$($(FOUND) $(VERSION))" = "$$($(BIN)/python $(VERSION))" || { \
		echo "$(VENV) is of Python $$($(BIN)/python $(VERSION)). Name another folder: make $(MAKECMDGOALS) PYTHON=$(PYTHON) VENV=$(VENV)-other" >&2; \
		exit 1; }

$(RUN): constraints.txt pyproject.toml | $(BIN)/python
	@echo "Installing transport-kit with all extras into $(VENV) ..."
	@$(PIP) --editable '.[all]'
	@touch $@

$(DEV): $(RUN)
	@echo "Installing what tests and checks need into $(VENV) ..."
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' > $@.txt
	@$(PIP) --requirement $@.txt
	@touch $@

venv: $(DEV) ## Make the environment for development

# FastAPI is in the dependency group `dev` only.
demo: $(if $(filter fastapi,$(APP)),$(DEV),$(RUN)) ## See one error arrive: receiver, example app, health
	@$(BIN)/python example_apps/demo.py $(APP) $(if $(filter-out 0,$(ONCE)),--once)

test: $(DEV) ## Run the suite
	@echo "Running the suite with $$($(BIN)/python -V) from $(VENV). The first dots come once every test is found ..."
	@$(BIN)/python -m pytest -q -m 'not chaos and not servers' -n $(JOBS) --dist loadgroup $(TESTS)

# constraints.txt pins nox too.
test-all: $(DEV) ## Run each integration with its oldest and newest framework
	@$(PIP) nox
	@$(BIN)/python -m nox $(if $(CELL),--session $(CELL))

coverage: $(DEV) ## Run the suite, and fail below 95 % of branches in transport_kit/
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest -q -m 'not chaos and not servers' -n $(JOBS) --dist loadgroup $(TESTS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --fail-under=95

lint: $(DEV) ## Check style, format, spelling and import contracts
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-cache

types: $(DEV) ## Check types, strictly: packages, example apps, tests; the public signatures with pyright too
	@$(BIN)/python -m mypy
	@$(BIN)/python -m mypy integrations/transport_kit_django integrations/transport_kit_flask integrations/transport_kit_starlette example_apps tests
	@$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(DEV) ## Build wheel and sdist, and use the wheel in an environment of its own
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	@$(BIN)/python -m venv --clear $(VENV)-wheel
	@$(VENV)-wheel/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[all]"
	@cd $(VENV)-wheel && bin/python -W error -c 'import transport_kit, transport_kit_django, transport_kit_flask, transport_kit_starlette; assert "$(VENV)-wheel" in transport_kit.__file__'
	@$(VENV)-wheel/bin/transport-kit --help >/dev/null
	@$(VENV)-wheel/bin/python -m transport_kit --help >/dev/null
	@ls dist

docs: $(DEV) ## Check the documentation against the code: options, snippets, links
	@$(BIN)/python -m pytest -q tests/packaging/test_docs.py

changelog: $(DEV) ## Show the next section of the changelog, made from docs/changes/
	@$(BIN)/towncrier build --draft --version next

bench: $(DEV) ## Print the figures of docs/performance.md
	@$(BIN)/python -m tests.benchmarks.figures

servers: $(DEV) ## Run every server of docs/operations.md, and print its table (minutes)
	@$(BIN)/python -m pytest -q tests/process/servers

servers-uwsgi: $(DEV) ## Build uWSGI, which needs a C compiler, and run its part of the table
	@command -v cc >/dev/null || { echo "There is no C compiler here. Install one (Debian, Ubuntu: sudo apt-get install gcc), then repeat." >&2; exit 1; }
	@$(PIP) uwsgi
	@$(BIN)/python -m pytest -q tests/process/servers -k uWSGI

chaos: $(DEV) ## Run the long campaigns (minutes)
	@TRIALS=$(TRIALS) $(BIN)/python -m pytest -q -m 'chaos or hypothesis' --hypothesis-profile campaign --timeout 1800 $(TESTS)

# constraints.txt pins cosmic-ray too.
mutants: $(DEV) ## Count the mutants that no test notices (hours; a sample of each module)
	@$(PIP) cosmic-ray
	@$(BIN)/python -m tests.mutants $(if $(MODULE),--module $(MODULE)) --seed $(SEED) \
		--sample $(if $(filter-out 0,$(ALL)),0,$(SAMPLE)) $(if $(filter-out 0,$(SURVIVORS)),--survivors)

clean: ## Remove what make made
	@rm -rf $(VENV) $(VENV)-wheel dist build htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
