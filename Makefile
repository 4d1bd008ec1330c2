# Both commands create what they need: a virtual environment in .venv, with the pinned PyTorch first.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin
MODEL ?= smollm2-135m
GPU_PYTHON ?= $(BIN)/python
GPU_REPORTS = reports/gpu

.PHONY: serve test lint types tests gpu-bench clean

serve: $(VENV)/.installed   ## serve MODEL on http://127.0.0.1:8000
	$(BIN)/specdec serve $(MODEL)

test: lint types tests   ## everything that CI runs

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal --cov --cov-report=term

# no .venv is made: GPU_PYTHON may be any Python with specdec and a PyTorch that fits the GPU
gpu-bench: export PYTHONUNBUFFERED = 1
gpu-bench: SHELL = /bin/bash
gpu-bench: .SHELLFLAGS = -o pipefail -c
gpu-bench:   ## every measurement on this machine's NVIDIA GPU, each into a file of reports/gpu
	mkdir -p $(GPU_REPORTS)
	$(GPU_PYTHON) -m specdec.bench.kernels | tee $(GPU_REPORTS)/kernels.txt
	$(GPU_PYTHON) -m specdec.bench.kernels --stack --rows 1 2 4 8 16 | tee $(GPU_REPORTS)/stack.txt
	$(GPU_PYTHON) -m specdec.bench.kernels --small | tee $(GPU_REPORTS)/small-kernels.txt
	$(GPU_PYTHON) -m specdec.bench.timeline --drafter none ngram | tee $(GPU_REPORTS)/timeline.txt
	$(GPU_PYTHON) -m specdec.bench.timeline --streams 1 8 32 64 128 256 --kernels 64 256 --prompt 64 --drafter none ngram \
	  | tee $(GPU_REPORTS)/timeline-many.txt
	$(GPU_PYTHON) -m specdec.bench.prefill | tee $(GPU_REPORTS)/prefill.txt
	$(GPU_PYTHON) -m specdec bench speed --shape qwen3-30b-a3b --streams 1,8,32,64,128,256 --repeats 3 --max-tokens 128 \
	  | tee $(GPU_REPORTS)/speed.txt
	$(GPU_PYTHON) -m specdec bench load --shape qwen3-30b-a3b --drafter ngram --concurrency 1,8,32,128 | tee $(GPU_REPORTS)/load.txt
	$(GPU_PYTHON) -m specdec.bench.loading --layers 2 4 | tee $(GPU_REPORTS)/loading.txt
	$(GPU_PYTHON) -m specdec bench lossless smollm2-135m | tee $(GPU_REPORTS)/lossless.txt

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77" "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build specdec.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache
