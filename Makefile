# The verbs of this repository. Each sets up what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CUDA := 13
ADAPTERS := torch flower flower-oldest nvflare nvflare-oldest appfl templates tracking

.PHONY: help install demo check fix docs test test-device test-mutants test-adapters test-gpu test-large test-torch test-web stress fuzz bench bench-gpu bench-peers proto check-peers clean

help:  ## Show the verbs.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.dev  ## Set up .venv with everything that development needs.

demo: $(VENV)/.demo  ## Train a digit classifier over six hospitals, and show what came out.
	$(BIN)/flcore run digits --fresh

check: $(VENV)/.dev  ## Lint, formatting, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.dev  ## Mend what can be mended by itself.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## Build the documentation site in site/ (open site/index.html); warnings and dead links are errors.
	$(BIN)/python -m docs.generate
	$(BIN)/python -m sphinx --builder html --conf-dir docs --fail-on-warning --keep-going --fresh-env --quiet . site

test: $(VENV)/.dev  ## Run the test suite, on all cores (ARGS="-k upload" for a part of it).
	$(BIN)/python -m tests.run $(ARGS)

test-device: $(VENV)/.dev  ## Run the CUDA kernels' suite on the CPU emulation of a device.
	$(BIN)/python -m tests.run --lane device $(ARGS)

test-mutants: $(VENV)/.dev  ## Show that the tests find faults that are put into the sources (a quarter of an hour).
	$(BIN)/python -m tests.mutants --sound
	$(BIN)/python -m tests.mutants

test-adapters: $(ADAPTERS:%=peer-%)  ## Test adapters, arrays and trackers with the real packages, each in its own environment.
	.peers/torch/bin/python -m pytest tests/flcore/model/test_arrays.py
	.peers/flower/bin/python -m pytest tests/flcore/adapters/test_flower.py tests/flcore/adapters/test_flower_run.py
	.peers/flower-oldest/bin/python -m pytest tests/flcore/adapters/test_flower.py tests/flcore/adapters/test_flower_run.py
	.peers/nvflare/bin/python -m pytest tests/flcore/adapters/test_nvflare.py tests/flcore/adapters/test_nvflare_run.py tests/flcore/adapters/test_nvflare_on_disk.py
	.peers/nvflare-oldest/bin/python -m pytest tests/flcore/adapters/test_nvflare.py tests/flcore/adapters/test_nvflare_run.py
	.peers/appfl/bin/python -m pytest tests/flcore/adapters/test_other_frameworks.py
	.peers/tracking/bin/python -m pytest tests/flcore/tracking
	.peers/templates/bin/python -m pytest tests/flcore/templates/test_new_job.py tests/flcore/simulation/test_notebook.py

test-gpu: peer-cuda$(CUDA)  ## Run the kernels' whole suite on a CUDA device (CUDA=12: with a driver of CUDA 12).
	.peers/cuda$(CUDA)/bin/python -m pytest -m gpu

test-large: $(VENV)/.dev  ## Run the test that needs 11 GB of memory.
	$(BIN)/pytest -m large

test-torch: $(VENV)/.torch  ## Run the tests that need PyTorch.
	$(BIN)/pytest -m torch

test-web: $(VENV)/.web  ## Test the web page in Chromium, and make the docs' screenshots (needs chromium and chromedriver).
	$(BIN)/pytest -m browser

stress: $(VENV)/.dev  ## Kills, power loss, broken networks and disks, hostile peers, a soak, memory bounds: the full forms (two hours, 10 GB of disk).
	FLCORE_HISTORIES=100000 $(BIN)/pytest tests/flcore/server/test_task_attempt.py tests/transport/test_flow_control.py
	FLCORE_BOUND_CASES=2000 $(BIN)/pytest tests/flcore/aggregation/test_rule_bounds.py
	$(BIN)/pytest -m stress

fuzz: $(VENV)/.dev  ## A million mutated pieces, messages and files: refused or canonical, each within a second (20 minutes; 60 at most).
	$(BIN)/pytest -s -m fuzz

bench: $(VENV)/.dev  ## Measure kernels, transport, rounds and memory on this machine (minutes, 16 GB).
	$(BIN)/flcore bench kernels --scale full
	$(BIN)/flcore bench transport
	$(BIN)/flcore bench round
	$(BIN)/flcore bench memory
	$(BIN)/pytest bench --benchmark-enable --benchmark-only

bench-gpu: peer-cuda$(CUDA)  ## Measure the kernels on a CUDA device, beside how fast it copies.
	.peers/cuda$(CUDA)/bin/flcore bench kernels --backend cuda --scale full

bench-peers: $(VENV)/.dev peer-torch peer-nvflare peer-flower  ## Measure flcore beside others.
	$(BIN)/flcore bench peers --scale full
	$(BIN)/flcore bench round-peers --scale full

proto: $(VENV)/.dev  ## Generate the protobuf code anew.
	$(BIN)/python transport/generate_control.py

check-peers: $(VENV)/.dev  ## See that flcore installs beside the newest flwr and nvflare.
	$(BIN)/python tests/check_peers.py

clean:  ## Remove what the verbs have made.
	rm -rf $(VENV) .peers runs site .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flcore needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.docs: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.torch: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	@touch $@

$(VENV)/.web: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	@touch $@

# Each peer has an environment of its own, with flcore in it: flwr and nvflare cannot share one.
peer-torch: PEER := torch==2.13.0 jax[cpu]==0.10.2
peer-nvflare: PEER := nvflare==2.9.0 torch==2.13.0
peer-nvflare-oldest: PEER := nvflare==2.8.3
peer-flower: PEER := flwr==1.42.0
peer-flower-oldest: PEER := flwr==1.24.0
peer-cuda12: PEER := cupy-cuda12x[ctk]==14.2.0
peer-cuda13: PEER := cupy-cuda13x[ctk]==14.2.0
peer-appfl: PEER := appfl==1.12.0 torch==2.13.0
peer-tracking: PEER := tensorboard==2.21.0 mlflow-skinny==3.17.2 alembic sqlalchemy sqlparse wandb==0.31.0
peer-templates: PEER := torch==2.13.0 transformers==5.24.0 peft==0.21.2 nbclient==0.11.0 ipykernel==7.4.0
peer-%:
	$(PYTHON) tests/peer_environment.py $* $(PEER)
