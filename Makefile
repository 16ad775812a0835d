# make demo | test | lint | bench | setup     all idempotent: a second call starts at once
# make demo PORT=8600 HEADLESS=1              for servers
PORT ?= 8501
HEADLESS ?= 0
PYTHON ?= >=3.11

VENV := .venv
PY := $(VENV)/bin/python
# uv from the PATH when it runs there, otherwise a private one from pip.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
# Compiling torch anew at every start costs seconds: let Python keep what it compiled, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint bench browser constraints clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,2s/^# //p' Makefile

setup: $(VENV)/.stamp-run

demo: $(VENV)/.stamp-run
	@$(PY) scripts/demo.py --port "$(PORT)" --headless "$(HEADLESS)"

# A browser wants the machine for itself; everything else runs two at a time.
test: $(VENV)/.stamp-dev browser
	@$(PY) -m pytest --numprocesses 2 --dist loadfile tests/core tests/pages; others=$$?; \
		$(PY) -m pytest tests/browser && exit $$others

lint: $(VENV)/.stamp-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	PYTHONPATH=. $(VENV)/bin/lint-imports

bench: $(VENV)/.stamp-run
	$(PY) -m npd_core bench

browser:
	@sh scripts/get_chromium.sh

constraints: $(VENV)/.stamp-uv
	$(UV) pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 --upgrade --no-annotate \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make constraints" -o constraints.txt >/dev/null

clean:
	rm -rf $(VENV) .uv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# A stamp says what has been installed; it is older than any file that changes it.
$(VENV)/.stamp-uv:
	@if [ "$(UV)" != uv ] && [ ! -x "$(UV)" ]; then \
		python3 -m pip --version >/dev/null 2>&1 || { \
			echo "uv is missing and there is no pip to get it: install uv (docs.astral.sh/uv) or Debian's python3-pip." >&2; exit 2; }; \
		echo "Getting uv ..."; python3 -m pip install --quiet --disable-pip-version-check --target .uv uv; fi
	@[ -x $(PY) ] || $(UV) venv --quiet --python "$(PYTHON)" $(VENV)
	@touch $@

$(VENV)/.stamp-run: requirements.txt constraints.txt pyproject.toml | $(VENV)/.stamp-uv
	@echo "Installing the packages of the app (once; PyTorch is large) ..."
	@$(UV) pip install --python $(PY) --constraints constraints.txt -r requirements.txt
	@$(UV) pip install --quiet --python $(PY) --constraints constraints.txt --build-constraints constraints.txt \
		--no-deps --editable .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	@echo "Installing the packages of the tests (once) ..."
	@$(UV) pip install --quiet --python $(PY) --constraints constraints.txt --build-constraints constraints.txt \
		--editable '.[dev,test]'
	@touch $@
