# Every command sets up what it needs in .venv first; nothing outside this folder is changed (make test as root
# also installs the servers and compilers that its real parts use, see tests/services.sh).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Tests in as many processes as there are cores, up to four, a file never in two of them: half of the time is waiting.
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist loadfile
NATIVE := $(wildcard setup.py pyproject.toml shm/*.h shm/*.pyx shm/*.pxi shm/include/*.h workers/*.pyx workers/*.pxi workers/*.h workers/*/*.pyx workers/*/*.h)

.PHONY: help run test bench lint format build services arm64 clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run  ## start the engine on simulated ticks (ARGS="--replay FILE --speed max" for captured ones)
	@$(BIN)/tickengine run $(ARGS)

test: $(VENV)/test services  ## run all tests (ARGS="tests/unit -k ring" for some)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

bench: $(VENV)/bench  ## measure everything against its peers (ARGS="--only publish_batch --json out.json")
	@$(BIN)/python -m perf $(ARGS)

lint: $(VENV)/lint  ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/lint  ## put the code into its standard form
	@$(BIN)/ruff check --fix-only --exit-zero --quiet .
	@$(BIN)/ruff format .

build: $(VENV)/run  ## build the native core in place

arm64:  ## run the unit tests in an arm64 chroot under qemu (root, Debian; slow)
	@tests/arm64/run.sh

clean:  ## remove what was built, the environment included
	rm -rf $(VENV) build *.egg-info shm/*.so shm/_*.c workers/*.so workers/_*.c workers/*/*.so workers/*/_*.c

services:
	@tests/services.sh

$(VENV)/bin/pip:
	@tools/setup.sh $(PYTHON) $(VENV)

# One stamp a purpose: each installs the package, editable, with the extras that the purpose needs.
$(VENV)/run: $(BIN)/pip $(NATIVE)
	@echo "installing tickengine (builds the native core, about a minute)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[replay]'
	@touch $@

$(VENV)/test: $(VENV)/run
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/bench: $(VENV)/run
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

# mypy looks into the libraries that are used, so they must be there; the native core it knows by its .pyi files, so that
# a change of native code alone needs no build here.
$(VENV)/lint: $(BIN)/pip pyproject.toml
	@echo "installing what lint looks into"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@
