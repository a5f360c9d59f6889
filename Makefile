# make demo: environment + the whole pipeline on the built-in model;  make test: environment + all checks.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests and benchmarks run on one thread: two threads on a small shared machine give noise, not speed.
# Bytecode is kept whatever the shell says, or every process of a run compiles every module anew.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

.PHONY: venv demo test fuzz check lint format bench tables-check readme clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "vitslim needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rtx]' || \
		echo "no TensorRT-RTX to be had here; the tests that build engines will be skipped"
	@touch $(STAMP)

demo: venv
	$(BIN)/vitslim demo --out demo-out --overwrite

# Two runs of the tests: shape checks on for all, then off for those that compile. The types are checked beside the
# first one, for they would keep one core busy and the others idle; what they found is shown when it has ended.
test: lint tables-check
	@types=$$(mktemp); $(BIN)/pyright > $$types 2>&1 & pyright=$$!; \
	trap "kill $$pyright 2> /dev/null; rm -f $$types" EXIT; trap 'exit 1' INT TERM; \
	$(TEST_ENV) $(PYTEST) -m "not compiled"; tests=$$?; \
	wait $$pyright; found=$$?; echo "pyright:"; cat $$types; exit $$((tests || found))
	$(TEST_ENV) VITSLIM_SHAPE_CHECKS=0 $(PYTEST) -m compiled

# Ten thousand bad inputs; a failure is printed with the number that brings it back: python -m tests.fuzz --case N
fuzz: venv
	$(TEST_ENV) $(BIN)/python -m tests.fuzz --cases 10000 --seed 0

check: lint
	$(BIN)/pyright

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: venv
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# The CPU tables: three hours.
bench: venv
	$(BIN)/vitslim bench suite --preset cpu
	$(BIN)/python examples/measure.py collect out/suite-cpu
	$(BIN)/python examples/measure.py readme

# Every table that is committed is what its JSON gives.
tables-check: venv
	$(BIN)/python examples/measure.py check

readme: venv
	$(BIN)/python examples/measure.py readme

clean:
	rm -rf $(VENV) demo-out build *.egg-info
