# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-slow test-gpu chaos fuzz wheel cluster-lab lint types bench bench-gpu docs clean

# torch first and pinned: any later requirement is then satisfied by it, and no CUDA wheels are fetched on a CPU machine.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[s3,report,data,judges,dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/dsprobe sweep demo --trials 24 --limit 16
	$(BIN)/dsprobe run demo

# Two processes, a test file in one of them: module fixtures are made once.
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

# A campaign of random kills and storage faults; the tables must be those of an undisturbed run, byte for byte.
chaos: $(VENV)/.installed
	$(BIN)/python -m benchmarks.chaos

# Coverage-guided fuzzing of everything that is read from files, a minute a target.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.hostile.fuzz all --seconds 60

# What `ray up` carries to the nodes: the package, and the versions of what it needs.
wheel: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	cp constraints.txt dist/

# Three hosts on this machine (root), a real S3 server, and everything that docs/cluster.md says, from `ray up` to `ray down`.
cluster-lab: $(VENV)/.installed
	$(BIN)/python -m benchmarks.cluster_lab

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

bench-gpu:
	$(PYTHON) benchmarks/gpu/run.py

docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
