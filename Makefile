# Everything works from a bare clone with Python 3.11 or newer; see `make help`.
# Chosen from outside: PYTHON, TORCH_REQUIREMENT (see .ci/setup), ARGS, PYTEST_ARGS.

PYTHON_VENV := .venv/bin/python
ARGS ?=
PYTEST_ARGS ?= -q
GENERATED_CHECK := .ci/gen-proto

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-nixl check setup setup-run setup-triton setup-nixl clean

help:
	@echo "make demo    set up, start router, prefill and decode workers, send four prompts, stop"
	@echo "make serve   the same service, staying up (options: make serve ARGS='--http-port 8000')"
	@echo "make test    set up, check, and run every test that needs no GPU"
	@echo "make test-nixl  install NIXL (69 MB) and run the tests of KV over it"
	@echo "make check   formatting, types, generated code, architecture"
	@echo "make setup   make .venv and install everything"
	@echo "make clean   remove .venv and caches of tools (prepared models stay)"

demo: setup-run
	@$(PYTHON_VENV) -m cluster.demo $(ARGS)

serve: setup-run
	@$(PYTHON_VENV) -m cluster serve $(ARGS)

test: setup setup-triton check
	$(PYTHON_VENV) -m pytest $(PYTEST_ARGS) -n 2 --dist loadfile -m "not gpu and not ray and not alone" \
		--ignore tests/architecture
	$(PYTHON_VENV) -m pytest $(PYTEST_ARGS) -m alone tests/integration
	@# By themselves: started from a process that has run hundreds of tests, a Ray head's raylet
	@# sometimes never comes up (twice in some ten runs; never in twenty from a fresh process).
	$(PYTHON_VENV) -m pytest $(PYTEST_ARGS) -m ray tests/ray

test-nixl: setup setup-nixl
	$(PYTHON_VENV) -m pytest $(PYTEST_ARGS) -k nixl tests/integration tests/unit/kvtransfer

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(GENERATED_CHECK) --check
	$(PYTHON_VENV) -m pytest -q tests/architecture

setup:
	@.ci/setup dev

setup-run:
	@.ci/setup run

setup-triton: setup
	@.ci/setup triton

setup-nixl: setup
	@.ci/setup nixl

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build pdserve.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
