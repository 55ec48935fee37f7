# make ask    set up what is missing, then ask a question of a CT (SCAN=ct.nii.gz Q="TNM stage?" ARGS="--out report")
# make test   set up what is missing, then run the tests (ARGS="-k tnm")
# make lint   set up what is missing, then ruff and mypy
# make generate  write the trace schema and the generated parts of README.md
# make bench  set up what is missing, then every benchmark (ARGS="load encoder")
# make setup  set up only (setup-tests: with what only the tests need)

SCAN ?= tumorchain_agent/assets/phantom_ct.nii.gz
Q ?= Is there a tumor, and what is the TNM stage?
VENV ?= .venv
ARGS ?=
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python

export SCAN Q VENV

.DEFAULT_GOAL := ask
.PHONY: ask test lint generate bench setup setup-tests

ask: setup
	@$(RUN) -m tumorchain_agent.cli ask "$$SCAN" "$$Q" $(ARGS)

test: setup-tests
	$(RUN) -m pytest $(ARGS)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m mypy

setup setup-tests:
ifeq ($(strip $(PYTHON)),)
	@echo "error: no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1
else
	@$(PYTHON) scripts/setup_env.py --venv "$$VENV" $(if $(filter setup-tests,$@),--tests)
endif

bench: setup-tests
	$(RUN) benchmarks $(ARGS)

generate: setup
	@$(RUN) scripts/generate.py
