# Every target makes its own virtual environment when it is missing or out of date.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUANTISED := $(VENV)/.installed-quantised
CLUSTER := $(VENV)/.installed-cluster

# Nothing here fetches a model.
export HF_HUB_OFFLINE := 1

.PHONY: demo test check bench oracle parity soak chaos fuzz lint protos format image clean

# Or it advises to install what nothing here needs.
demo: export TRANSFORMERS_VERBOSITY := error
demo: $(STAMP)  ## One model, several adapters at once, swapped while it runs.
	$(BIN)/python -m examples.demo

test: $(STAMP) $(QUANTISED) $(CLUSTER)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --cov --cov-report=term

check: lint test

lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against protos/released.binpb

bench: $(STAMP) $(CLUSTER)
	$(BIN)/python -m benchmarks

oracle: $(STAMP)  ## Random traffic, tokens and images held against the trainers' own models.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.oracle --requests 500 --dtype float64
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.oracle --requests 500 --dtype float32
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.oracle.images --requests 400 --dtype float32
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.oracle.images --requests 200 --dtype float64

parity: $(STAMP) $(QUANTISED)  ## Every algorithm, form, layer and name against its trainer.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.parity --seeds 3

soak: $(STAMP)  ## Swaps of every kind, after which the base must be what it was.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.oracle.soak --swaps 10000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.oracle.images.soak --images 1000

chaos: $(STAMP) $(CLUSTER)  ## A real server under everything at once, killed and started again.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --minutes 15

fuzz: $(STAMP)  ## Mutated adapter files, each of which must be read right or refused by name.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases 100000

protos: $(STAMP)  ## Generate the code of the wire contract.
	$(BIN)/python scripts/generate_protos.py

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/buf format --write

image:  ## The container image; TORCH=cu130 for NVIDIA GPUs, see docs/kubernetes.md.
	deploy/image/build

clean:
	rm -rf $(VENV) demo-data bench-results

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(QUANTISED): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quantised]'
	touch $@

$(CLUSTER): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster]'
	touch $@
