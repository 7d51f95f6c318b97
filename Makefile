# `make demo` and `make test` set up whatever is missing: they need Python 3, make and a package index, nothing else.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint clean

# uv from the PATH, else installed into a private folder.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --frozen

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv

setup: $(filter .uv/%,$(UV))  ## create .venv with Python 3.10 and everything in uv.lock
	@$(UV) sync --frozen --quiet

demo: setup  ## convert, simulate, verify and export a network of handwritten digits into build/demo
	$(RUN) ann2loihi demo --output build/demo

test: setup lint  ## lint, type-check and test everything but the slow tests
	$(RUN) pytest -m "not slow" -n 2 --dist worksteal

test-slow: setup  ## the tests that take minutes
	$(RUN) pytest -m slow

lint: setup
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

clean:  ## remove what the other targets made
	rm -rf build .venv .uv .mypy_cache .pytest_cache .ruff_cache .hypothesis
