# The verbs of this repository. Each sets up what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CUDA := 13
ADAPTERS := torch flower flower-oldest nvflare nvflare-oldest appfl

.PHONY: help install demo check fix test test-adapters test-gpu test-large test-torch stress bench bench-gpu bench-peers proto check-peers clean

help:  ## Show the verbs.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.dev  ## Set up .venv with everything that development needs.

demo: $(VENV)/.demo  ## Train a digit classifier over six hospitals, and show what came out.
	$(BIN)/flcore run digits

check: $(VENV)/.dev  ## Lint, formatting, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.dev  ## Mend what can be mended by itself.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.dev  ## Run the whole test suite.
	$(BIN)/pytest

test-adapters: $(ADAPTERS:%=.peers/%/.ready)  ## Test adapters and arrays with the real packages, each in its own environment.
	.peers/torch/bin/python -m pytest tests/flcore/model/test_arrays.py
	.peers/flower/bin/python -m pytest tests/flcore/adapters/test_flower.py tests/flcore/adapters/test_flower_run.py
	.peers/flower-oldest/bin/python -m pytest tests/flcore/adapters/test_flower.py tests/flcore/adapters/test_flower_run.py
	.peers/nvflare/bin/python -m pytest tests/flcore/adapters/test_nvflare.py tests/flcore/adapters/test_nvflare_run.py
	.peers/nvflare-oldest/bin/python -m pytest tests/flcore/adapters/test_nvflare.py tests/flcore/adapters/test_nvflare_run.py
	.peers/appfl/bin/python -m pytest tests/flcore/adapters/test_other_frameworks.py

test-gpu: .peers/cuda$(CUDA)/.ready  ## Run the kernels' whole suite on a CUDA device (CUDA=12: with a driver of CUDA 12).
	.peers/cuda$(CUDA)/bin/python -m pytest -m gpu

test-large: $(VENV)/.dev  ## Run the test that needs 11 GB of memory.
	FLCORE_TEST_LARGE=1 $(BIN)/pytest -m large

test-torch: $(VENV)/.torch  ## Run the tests that need PyTorch.
	$(BIN)/pytest -m torch

stress: $(VENV)/.dev  ## Hold large servers to their memory bounds (half an hour, 10 GB of disk).
	FLCORE_TEST_STRESS=1 $(BIN)/pytest -m stress tests/bench/test_memory.py

bench: $(VENV)/.dev  ## Measure kernels, transport, rounds and memory on this machine (minutes, 16 GB).
	$(BIN)/flcore bench kernels --scale full
	$(BIN)/flcore bench transport
	$(BIN)/flcore bench round
	$(BIN)/flcore bench memory
	$(BIN)/pytest bench --benchmark-enable --benchmark-only

bench-gpu: .peers/cuda$(CUDA)/.ready  ## Measure the kernels on a CUDA device, beside how fast it copies.
	.peers/cuda$(CUDA)/bin/flcore bench kernels --backend cuda --scale full

bench-peers: $(VENV)/.dev .peers/torch/.ready .peers/nvflare/.ready .peers/flower/.ready  ## Measure flcore beside others.
	$(BIN)/flcore bench peers --scale full
	$(BIN)/flcore bench round-peers --scale full

proto: $(VENV)/.dev  ## Generate the protobuf code anew.
	$(BIN)/python transport/generate_control.py

check-peers: $(VENV)/.dev  ## See that flcore installs beside the newest flwr and nvflare.
	$(BIN)/python tests/check_peers.py

clean:  ## Remove what the verbs have made.
	rm -rf $(VENV) .peers runs .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flcore needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.torch: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	@touch $@

# Each peer has an environment of its own, with flcore in it: flwr and nvflare cannot share one.
.peers/torch/.ready: PEER := torch==2.13.0 jax[cpu]==0.10.2
.peers/nvflare/.ready: PEER := nvflare==2.9.0 torch==2.13.0
.peers/nvflare-oldest/.ready: PEER := nvflare==2.8.3
.peers/flower/.ready: PEER := flwr==1.42.0
.peers/flower-oldest/.ready: PEER := flwr==1.24.0
.peers/cuda12/.ready: PEER := cupy-cuda12x[ctk]==14.2.0
.peers/cuda13/.ready: PEER := cupy-cuda13x[ctk]==14.2.0
.peers/appfl/.ready: PEER := appfl==1.12.0 torch==2.13.0
.peers/%/.ready: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(PEER)
	$(@D)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@
