# Two commands for a new machine: `make demo` and `make test`. They need Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-lowest test-newest check docs package bench clean

help:
	@echo "make demo    set up, train on MovieLens-100K for a few minutes, print metrics and ten films"
	@echo "make test    fast tests (slow ones: .venv/bin/python -m pytest -m slow)"
	@echo "make test-lowest, test-newest    the same at the lowest and newest versions of what we depend on"
	@echo "make check   ruff, pyright, import-linter; links, named files and words of the repository"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make package   build the sdist and the wheel in dist/ and check them"
	@echo "make bench   speed and memory of this machine; a long run"

demo: $(VENV)/.run-ready
	$(PY) benchmarks/demo.py

test: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist loadfile

# TORCH=2.13.0 make test-lowest takes another torch than the lowest, whose packages have gigabytes of CUDA.
test-lowest: LIMITS := .venv-lowest/limits.txt
test-lowest test-newest:
	$(PYTHON) -m venv --clear .venv-$(@:test-%=%)
	$(if $(LIMITS),$(PYTHON) .ci/lowest.py > $(LIMITS))
	.venv-$(@:test-%=%)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH),torch==$(TORCH)) \
		$(if $(LIMITS),-r $(LIMITS)) --editable ".[track,report,tune,serve,ann]" onnx onnxscript onnxruntime \
		pytest pytest-xdist hypothesis ir-measures pandas pyarrow schemathesis httpx2 playwright nbclient ipykernel
	OMP_NUM_THREADS=1 .venv-$(@:test-%=%)/bin/python -m pytest -n 2

check: $(VENV)/.dev-ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports
	$(PY) .ci/repository.py

docs: $(VENV)/.dev-ready
	@# The variable hides an announcement of the theme's.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

package: $(VENV)/.dev-ready
	rm -rf dist
	$(PY) -m build
	$(PY) -m twine check --strict dist/*
	$(PY) .ci/package.py

bench: $(VENV)/.run-ready
	$(PY) -m benchmarks.measure.speed
	$(PY) -m benchmarks.measure.ingest --rows 25000000

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest site dist

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch is asked for first and by its exact pin, so that pip takes the small CPU build where one is offered.
$(VENV)/.run-ready: pyproject.toml constraints.txt | $(PY)
	@echo "Installing into $(VENV); the first time takes a few minutes."
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable .
	@touch $@

# What running needs is part of it, so one installation serves both.
$(VENV)/.dev-ready: pyproject.toml constraints.txt | $(PY)
	@echo "Installing into $(VENV); the first time takes a few minutes."
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable ".[dev]"
	@touch $(VENV)/.run-ready $@
