# make run: everything from nothing to a page on this machine. make help: the other words.
# What was built lies in .venv/ and var/; a name with a checksum in it says what it was built from.

.DEFAULT_GOAL := help
.PHONY: help env run test lint fix chaos mutants bench bench-structured lock clean

PYTHON ?= python3
UV ?= uv
export GPU
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HYPOTHESIS_STORAGE_DIRECTORY := var/cache/hypothesis

checksum = $(firstword $(shell (cat $(1); echo "$(GPU)") | cksum))
ENV := .venv/.built-$(call checksum,requirements.txt requirements-llama.txt requirements-build.txt deploy/build_llama.py)
DEV := .venv/.dev-$(call checksum,requirements.txt requirements-dev.txt)
STATIC := var/build/.collected

help:
	@echo "make run     build what is missing, then serve on http://127.0.0.1:8000"
	@echo "make env     build the environment alone"
	@echo "make test    lint, types and all tests"
	@echo "make lint    ruff and mypy alone;  make fix: let ruff mend what it can"
	@echo "make chaos   kill the server a hundred times in the middle of replies"
	@echo "make mutants break a model file in 20,000 ways, and try out what looks whole"
	@echo "make bench   measure the engine against llama.cpp's own programs"
	@echo "make bench-structured SCHEMAS=FILE.jsonl    measure structured output on these schemas"
	@echo "make lock    renew requirements*.txt from pyproject.toml (needs uv)"
	@echo "make clean   remove everything that was built; conversations and models stay"
	@echo "GPU=cuda before any of them builds llama.cpp for an NVIDIA card."

env: $(ENV)

run: $(ENV) $(STATIC)
	@exec .venv/bin/python manage.py serve

test: lint
	.venv/bin/python -m pytest

lint: $(ENV) $(DEV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

fix: $(DEV)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

chaos: $(ENV) $(DEV)
	CHAOS_KILLS=100 .venv/bin/python -m pytest tests/test_durability.py

mutants: $(ENV) $(DEV)
	.venv/bin/python -m tests.mutants

bench: $(ENV) $(DEV)
	.venv/bin/python -m tests.bench

bench-structured: $(ENV) $(DEV)
	@test -n "$(SCHEMAS)" || { echo "Name a file: make bench-structured SCHEMAS=FILE.jsonl"; exit 2; }
	.venv/bin/python -m tests.bench.structured $(SCHEMAS)

$(ENV):
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("Python " + v + \
	    " is too old: 3.11 or newer is needed. Name one, as in `make PYTHON=python3.12 run`.")'
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --require-hashes -r requirements.txt
	@.venv/bin/python deploy/build_llama.py
	@rm -f .venv/.built-* && touch $@

$(DEV): | $(ENV)
	.venv/bin/python -m pip install --require-hashes -r requirements-dev.txt
	@rm -f .venv/.dev-* && touch $@

# Folders count too: a removed file changes its folder's time.
$(STATIC): $(ENV) $(shell find static templates localllm/settings.py 2>/dev/null)
	.venv/bin/python manage.py collectstatic --noinput
	@mkdir -p $(@D) && touch $@

# uv names no package index in these, and one pin of llama-cpp-python serves both of its files.
lock = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --custom-compile-command 'make lock'
lock:
	$(lock) pyproject.toml --no-emit-package llama-cpp-python -o requirements.txt
	$(lock) --group dev -c requirements.txt -o requirements-dev.txt
	$(lock) --group build -o requirements-build.txt
	grep -o 'llama-cpp-python==[0-9.]*' pyproject.toml | $(lock) --no-deps - -o requirements-llama.txt

clean:
	rm -rf .venv var/build var/cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
