# The two commands to start with: `make demo` and `make test`. Both create and
# reuse .venv. Needs Python 3.11 (or 3.12: `make test PYTHON=python3.12`).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= workdir/demo
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-all test-processes test-slow mutants lint lock clean

demo: $(VENV)/.base
	$(BIN)/qaq run --config=configs/demo.py --workdir=$(WORKDIR)

# A file's tests stay on one worker, so that none makes another's fixtures.
# Few arenas of malloc: what is freed is used again, not kept per thread.
PYTEST := MALLOC_ARENA_MAX=2 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

# What pods promise: several real processes, killed, stopped and cut off.
test-processes: $(VENV)/.test
	$(PYTEST) -m process

# With programs that are compiled as users' are.
test-slow: export XLA_FLAGS += --xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true
test-slow: $(VENV)/.test
	$(PYTEST) -m slow

# Everything, on both columns of versions.
test-all: test test-slow
	$(MAKE) test test-slow VENV=.venv312 PYTHON=python3.12

# Plants the faults of tests/faults.py, one at a time: which does no test see?
mutants: $(VENV)/.test
	$(BIN)/python tests/mutants.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("qaq_jax needs Python 3.11 or later; this is %d.%d. Say which: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: requirements/base.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -r requirements/base.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.base
	$(BIN)/python -m pip install -q -r requirements/test.txt
	touch $@

# Both files hold the versions for Python 3.11 and for 3.12 and later, told
# apart by markers. torch is a CPU build where the index offers one, for 3.11.
UV := uv pip compile pyproject.toml requirements/build.in --universal --python-version 3.11 -q --no-header --no-annotate
lock:
	$(UV) -o requirements/base.txt
	$(UV) --extra test --extra dev --extra bench -c requirements/base.txt -o requirements/test.txt
	sed -E -i.bak -e '/^(nvidia-|cuda-|triton)/d' -e '/^torch==[^+]*\+/d' -e "s/^(torch==[^ ]*).*/\1 ; python_full_version < '3.12'/" requirements/test.txt
	rm requirements/test.txt.bak

clean:
	rm -rf .venv .venv312 .jax_cache workdir build *.egg-info
