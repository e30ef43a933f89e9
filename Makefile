# make quickstart   set up and run a first search
# make test         set up and run the tests
# make compare      compare search methods on the measured benchmarks
# make check        style, types and the order of the rooms
# make help         all of it

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help quickstart install test test-all check format compare compare-all benchmark-fim benchmark-surrogates benchmark-suggestions benchmark-trainings benchmark-activations benchmark-learnable benchmark-throughput benchmark-costs benchmark-pruning benchmark-robustness benchmark-spectra docs pictures wheel clean

help:
	@echo "make quickstart   set up and run a first search (digits, a small network, two minutes)"
	@echo "make test         set up and run the tests (seven minutes on two idle cores)"
	@echo "make test-all     the tests, those that take minutes included, and their coverage"
	@echo "make compare      compare search methods on the benchmarks (under ten minutes on two cores)"
	@echo "make compare-all  all methods, acquisition functions and warm starts, 30 seeds (two hours)"
	@echo "make check        style, types, and the order of the rooms"
	@echo "make format       put the style right"
	@echo "make benchmark-fim  time the Fisher spectra (minutes; ARGS=--help shows the options)"
	@echo "make benchmark-surrogates  order and honesty of the surrogates' predictions (a minute)"
	@echo "make benchmark-suggestions  time and memory of one suggestion beside its peers (ten minutes)"
	@echo "make benchmark-activations  composed functions, fused and not, beside torch.nn.GELU (minutes)"
	@echo "make benchmark-learnable    functions with learnt scales beside plain ones and PReLU (ten minutes)"
	@echo "make benchmark-throughput   the trainer beside a bare loop; several candidates at once (minutes)"
	@echo "make benchmark-costs    regret by seconds of training, and the front of value and cost (half an hour)"
	@echo "make benchmark-pruning  regret by epochs of training, with pruners and without (half an hour)"
	@echo "make benchmark-robustness  regret with values of few digits and a spurious one (half an hour)"
	@echo "make benchmark-spectra  regret with all Fisher spectra, some, and none (a quarter of an hour)"
	@echo "make benchmark-trainings TABLE=parameters|spaces|activations  searches with real trainings (an hour or two)"
	@echo "make pictures     draw the pictures of the documentation anew (a minute)"
	@echo "make docs         build the documentation into site/"
	@echo "make wheel        build the wheel into dist/"
	@echo "make clean        remove the environment and what was built (studies stay in runs/)"

quickstart: $(VENV)/.installed
	@echo "== bo-act run quickstart"
	@$(BIN)/bo-act run quickstart

test: $(VENV)/.installed-dev
	@echo "== tests"
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

test-all: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --cov --cov-report=term

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compare: $(VENV)/.installed-compare
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/standing.py \
		studies/comparisons/standing.toml --out runs/compare/standing

compare-all: $(VENV)/.installed-compare
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/standing.py \
		studies/comparisons/all_methods.toml --out runs/compare/all --name "all methods" \
		--figures docs/figures
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/standing.py \
		studies/comparisons/parts.toml --out runs/compare/parts --name parts
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/standing.py \
		studies/comparisons/acquisitions.toml --out runs/compare/acquisitions \
		--name acquisitions --figures docs/figures/acquisitions
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/standing.py \
		studies/comparisons/warm_start.toml --out runs/compare/warm_start \
		--name "warm start" --figures docs/figures/warm_start

benchmark-fim: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/fim.py $(ARGS)

benchmark-surrogates: $(VENV)/.installed-compare
	$(BIN)/python -W ignore tests/benchmarks/surrogates.py $(ARGS)

benchmark-suggestions: $(VENV)/.installed-compare
	$(BIN)/python -W ignore tests/benchmarks/suggestions.py $(ARGS)

benchmark-costs: $(VENV)/.installed-compare
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/costs.py $(ARGS)

benchmark-pruning: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/pruning.py $(ARGS)

benchmark-robustness: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/robustness.py $(ARGS)

benchmark-spectra: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/spectra.py $(ARGS)

benchmark-activations: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/activations.py $(ARGS)

benchmark-learnable: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/learnable.py $(ARGS)

benchmark-throughput: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/throughput.py $(ARGS)

benchmark-trainings: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/trainings.py $(TABLE) $(ARGS)

pictures: $(VENV)/.installed-compare
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/benchmarks/pictures.py

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel

install: $(VENV)/.installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "bo-act needs Python 3.11 or newer; none was found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bo-act needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V)."; \
		  echo "Name another one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "== new environment in $(VENV) ($$($(PYTHON) -V))"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "== installing bo-act and what it needs (PyTorch is several GB on Linux)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "== installing what the tests need"
	@$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.installed-compare: $(VENV)/.installed
	@echo "== installing what comparisons need"
	@$(PIP) -e ".[umap,report]"
	@touch $@

clean:
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage*
