# `make demo` and `make test` set up whatever is missing: they need Python 3, make and a package index, nothing else.
.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-processors test-slow mutants lint clean

# uv from the PATH, else installed into a private folder.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --frozen

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv

setup: $(filter .uv/%,$(UV))  ## create .venv with Python 3.10 and everything in uv.lock
	@$(UV) sync --frozen --quiet

demo: setup  ## convert, simulate, verify and export a network of handwritten digits; report in build/demo/report.html
	$(RUN) ann2loihi demo --output build/demo

docs: setup  ## build the documentation into build/docs; broken links and missing docstrings are errors
	$(RUN) sphinx-build -E -W --keep-going -q -c docs . build/docs

test: setup lint  ## lint, type-check and test everything but the slow tests
	$(RUN) pytest -m "not slow" -n 2 --dist worksteal
	$(MAKE) test-processors

# torch, oneDNN and MKL then sum floats as on processors that can do less; a threads' team that waits must not spin.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
SSE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
TWO_THREADS := OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ANN2LOIHI_TEST_THREADS=2
# What runs in a process of its own need not be compiled again in each.
test test-processors test-slow: export PYTHONDONTWRITEBYTECODE :=
NUMBERS := $(RUN) pytest -m "numbers and not slow and not lava" -n 2 --dist worksteal

# On the second those that decide integers; what is measured of a network follows from them and from sums of both kinds.
test-processors: setup  ## the tests that compare numbers, as on two other processors
	$(AVX2) $(TWO_THREADS) $(NUMBERS)
	$(SSE) OMP_NUM_THREADS=1 $(NUMBERS) tests/calibration tests/graph tests/scales tests/test_convert.py tests/frontends/test_proof.py

test-slow: setup  ## the tests that take minutes
	$(RUN) pytest -m slow

mutants: setup  ## plant 100 bugs, one at a time, and count those that a test notices; takes hours, goes on where it was
	$(RUN) python -m benchmarks.mutants --count 100 --json build/mutants.json --resume $(AGAIN) \
		--coverage build/mutants-coverage.json

lint: setup
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

clean:  ## remove what the other targets made
	rm -rf build .venv .uv .mypy_cache .pytest_cache .ruff_cache .hypothesis
