# Two commands for a new machine: `make demo` and `make test`. They need Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check bench clean

demo: $(VENV)/.run-ready
	$(PY) benchmarks/demo.py

test: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

check: $(VENV)/.dev-ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports

bench: $(VENV)/.run-ready
	$(PY) benchmarks/speed.py
	$(PY) benchmarks/ingest.py --rows 25000000

clean:
	rm -rf $(VENV)

# torch is asked for first and by its exact pin, so that pip takes the build the pin names and not a larger one.
$(VENV)/.run-ready: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@
