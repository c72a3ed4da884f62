# Two commands do everything on a machine with Python 3.11 or newer, git and make:
#   make demo    trains on real digits with and without the losses, and shows the table and pictures
#   make test    runs the test suite (make test-slow: the rest of it, whole runs end to end)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := $(VENV)-oldest

.PHONY: demo test test-slow test-oldest lint types format benchmark docs notebooks test-notebooks clean

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "mirjax needs Python 3.11 or newer; $$($(PYTHON) --version) was found. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
endef

$(READY): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[train]" --group dev
	@touch $(READY)

demo: $(READY)
	$(BIN)/python -m train.demo $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The numerics again as users run them, with all of the compiler's optimisations, and then the slow
# tests, or those that begin within some minutes: make test-slow SLOW="--minutes 10".
test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "numerics and not slow" --optimised
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(SLOW)

# The tests of the library with the oldest JAX and NumPy that it supports, without `train`; some of
# them: make test-oldest TESTS="tests/test_entropy.py".
TESTS ?= $(filter-out %_agenda.py %_benchmarks.py %_docs.py %_lowering.py %_notebooks.py,$(wildcard tests/test_*.py))

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt --editable ".[plot]" --group test
	@touch $@

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[benchmarks]"
	$(BIN)/python -m benchmarks.run $(BENCHMARK)

docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# All notebooks, or those named: make notebooks ONLY="quickstart".
notebooks: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group notebooks
	$(BIN)/python docs/notebooks.py $(ONLY)

test-notebooks: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group notebooks
	$(BIN)/python docs/notebooks.py --check $(ONLY)

clean:
	rm -rf $(VENV) $(OLDEST) .cache .pytest_cache .ruff_cache site
