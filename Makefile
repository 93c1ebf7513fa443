# Needs Python 3.11, 3.12 or 3.13, make and git. Everything else is installed below this folder.

UV_VERSION := 0.13.9
UV ?= .uv/bin/uv
BIN := .venv/bin
SYNCED := .venv/.synced

# The demo's input: make demo IMAGES=folder BACKBONE=mobilenet_v2 WEIGHTS=file
IMAGES ?=
BACKBONE ?=
WEIGHTS ?=

# The chaos run: make chaos KILLS=12 SEED=1 TARGETS="trainer node"
KILLS ?=
SEED ?=
TARGETS ?=

# Container images: make images PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:… REGISTRY=name
PYTHON_IMAGE ?=
REGISTRY ?= rekindle

.DEFAULT_GOAL := help
.PHONY: help setup demo run test lint format openapi images chaos bench-accuracy bench-train bench-serve clean

help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SYNCED) ## Install everything into .venv, from the lock file

demo: $(SYNCED) ## Train and serve a model, start to end (IMAGES=folder BACKBONE=name WEIGHTS=file for your own)
	@$(BIN)/python -m services.local.demo --images "$(IMAGES)" --backbone "$(BACKBONE)" --weights "$(WEIGHTS)"

run: $(SYNCED) ## Run everything on http://127.0.0.1:8080 until Ctrl-C, data in .rekindle
	@$(BIN)/rekindle up

test: $(SYNCED) ## Run all tests (ARGS="tests/unit -k name" for some)
	$(BIN)/pytest $(if $(ARGS),$(ARGS),--numprocesses 2 --dist loadscope)

lint: $(SYNCED) ## Check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(SYNCED) ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

openapi: $(SYNCED) ## Write docs/openapi anew
	$(BIN)/python -m services.local.openapi docs/openapi

images: ## Build the container images (PYTHON_IMAGE=python:…@sha256:… REGISTRY=name), see deploy/README.md
	@case "$(PYTHON_IMAGE)" in *@sha256:*) ;; *) echo "name the base image with its digest: PYTHON_IMAGE=python:…@sha256:…" >&2; exit 1;; esac
	for target in gateway ray-cpu ray-gpu; do \
		docker build --file deploy/images/Dockerfile --target $$target --build-arg PYTHON_IMAGE="$(PYTHON_IMAGE)" \
			--tag "$(REGISTRY):$$target" . || exit 1; \
	done

chaos: $(SYNCED) ## Kill parts of a deployment while it trains (KILLS=12 SEED=1 TARGETS="..."), into build/chaos/report.json
	@$(BIN)/python -m tests.chaos.run --kills "$(KILLS)" --seed "$(SEED)" --targets "$(TARGETS)" $(ARGS)

bench-accuracy: $(SYNCED) ## Accuracy on real images (REKINDLE_TEST_DATA), into build/bench/accuracy.json
	@$(BIN)/python -m tests.benchmarks.accuracy $(ARGS)

bench-train: $(SYNCED) ## Speed of training against Keras (IMAGES=folder WEIGHTS=file ARGS="--pairs head --rounds 1")
	@$(BIN)/python -m tests.benchmarks.train --images "$(IMAGES)" --weights "$(WEIGHTS)" $(ARGS)

bench-serve: $(SYNCED) ## Speed of predictions against Keras servers (IMAGES=folder WEIGHTS=file ARGS="--rounds 1")
	@$(UV) sync --quiet --frozen --extra cluster --extra cpu --group bench --python $(BIN)/python
	@$(BIN)/python -m tests.benchmarks.serve --images "$(IMAGES)" --weights "$(WEIGHTS)" $(ARGS)

clean: ## Remove what setup and the tools made; .rekindle stays
	rm -rf .venv .uv .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# --- the environment ---

# The first interpreter that is new enough and can make virtual environments.
FIND_PYTHON = for python in python3.13 python3.12 python3.11 python3 python; do \
		"$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
			>/dev/null 2>&1 && exec "$$python" -c 'import sys; print(sys.executable)'; \
	done; \
	echo "Rekindle needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian: apt install python3-venv)." >&2; \
	exit 1

.uv/bin/uv:
	@python=$$($(FIND_PYTHON)) && "$$python" -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(SYNCED): pyproject.toml uv.lock | $(UV)
	@python=$$($(FIND_PYTHON)) && $(UV) sync --quiet --frozen --extra cluster --extra cpu --no-python-downloads --python "$$python"
	@touch $@
