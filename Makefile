# Needs make and Python 3.11 or newer, nothing else: everything is installed into .venv.
# `make` lists the targets. Another interpreter: make setup PYTHON=python3.12

SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
PYTEST_ARGS ?=
# Most tests wait for servers and processes: one more at once than there are cores. Each job has its own servers.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -le 7 ] || n=7; expr $$n + 1)
BENCH_ARGS ?=
DEMO_ARGS ?=
PYTHON ?=

# The stamp carries the folder, so that a copied or moved checkout is installed again, and not
# tested with the code of the old one.
STAMP := $(VENV)/.installed-$(shell pwd -P | cksum | cut -d ' ' -f 1)

# One cache per user: whoever runs the checks second need not be able to write what the first one left.
CACHE := .cache-$(shell id -u)
export RUFF_CACHE_DIR := $(CACHE)/ruff
export MYPY_CACHE_DIR := $(CACHE)/mypy
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
PYTEST := $(PY) -m pytest -o cache_dir=$(CACHE)/pytest
LINT_IMPORTS := $(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --cache-dir $(CACHE)/imports
ifeq ($(shell mkdir -p $(CACHE) 2>/dev/null && test -w $(CACHE) && echo yes),)
  export RUFF_NO_CACHE := true
  export MYPY_CACHE_DIR := /dev/null
  PYTEST := $(PY) -m pytest -p no:cacheprovider
  LINT_IMPORTS := $(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache
endif

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help
help: ## List these targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: $(STAMP) ## Create .venv and install everything, pinned (the other targets do it by themselves)

$(PY):
	@set -e; found=; \
	for candidate in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3 python; do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11 or newer with the venv module was found." >&2; \
	  echo "  Debian, Ubuntu:  apt install python3 python3-venv" >&2; \
	  echo "  macOS:           brew install python" >&2; \
	  echo "  elsewhere:       make setup PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$found" --version) ($$found)"; \
	"$$found" -m venv --clear $(VENV)

$(STAMP): $(PY) pyproject.toml constraints.txt
	@test -w $(VENV) || { echo "$(VENV) belongs to another user: remove it, then try again" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	@echo "Installing into $(VENV); the first time takes a minute or two"
	$(PY) -m pip install -c constraints.txt -e '.[dev,test,lint,speed]'
	@rm -f $(VENV)/.installed-*
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Bank transfer on real Postgres, Valkey and workers: success, crash, retries, rollback
	@$(PY) -m orchestrator.demo $(DEMO_ARGS)

.PHONY: dev
dev: $(STAMP) ## Start Postgres, Valkey, a worker and Flower on this machine, and keep them up
	@$(VENV)/bin/orchestrator dev

.PHONY: test
test: $(STAMP) ## Run the tests, JOBS at once (make test PYTEST_ARGS='tests/unit -x' JOBS=0)
	$(PYTEST) -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: soak
soak: $(STAMP) ## Run the chaos tests, and those of the model, for minutes instead of seconds
	ORCHESTRATOR_SOAK=1 $(PYTEST) tests/chaos tests/laws/test_model.py tests/integration/test_model_on_postgres.py \
	  tests/integration/test_admission.py tests/integration/test_creation_limits.py \
	  tests/laws/test_saga_oracle.py tests/integration/test_saga_oracle.py --timeout 3600 $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP) ## Style, format, types and the contracts between the rooms
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(LINT_IMPORTS)

.PHONY: format
format: $(STAMP) ## Format the code and repair what can be repaired
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: docs
docs: $(STAMP) ## Write the parts of docs/ that come from the code
	$(PY) -m docs.generator

.PHONY: bench
bench: $(STAMP) ## Measure throughput and latency on this machine
	$(PY) -m bench $(BENCH_ARGS)

.PHONY: bench-peers
bench-peers: $(STAMP) ## Measure beside Restate, DBOS and bare Celery (make bench-peers BENCH_ARGS=--quick)
	$(PY) -m bench.peers $(BENCH_ARGS)

.PHONY: bench-control
bench-control: $(STAMP) ## Measure the control plane against what is promised of it (make bench-control BENCH_ARGS=--quick)
	$(PY) -m bench.control $(BENCH_ARGS)

.PHONY: wheel
wheel: $(STAMP) ## Build the wheel into dist/
	$(PY) -m pip wheel --no-deps -w dist .

.PHONY: env
env: .env ## Write .env with fresh random passwords for docker compose (an existing one is kept)

.env:
	@umask 077; secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }; \
	sed -e "s/^POSTGRES_PASSWORD=.*/POSTGRES_PASSWORD=$$(secret)/" \
	    -e "s/^REDIS_PASSWORD=.*/REDIS_PASSWORD=$$(secret)/" \
	    -e "s/^FLOWER_PASSWORD=.*/FLOWER_PASSWORD=$$(secret)/" .env.example > .env.new && mv .env.new .env
	@echo "Wrote .env with random passwords. Next: docker compose up --build"

.PHONY: clean
clean: ## Remove what the other targets made: .venv, caches, builds (.env and .local stay)
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache-*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
