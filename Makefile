# Each target does all of its set-up: a virtual environment in .venv, installed from the lock.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test test-slow check lock clean

demo: .venv/installed  ## plans and runs two models over three tiers on this machine
	$(RUN) -m splitinfer demo

test: .venv/installed  ## the default tests
	$(RUN) -m pytest

test-slow: .venv/installed  ## the long grids
	$(RUN) -m pytest -m slow

check: .venv/installed  ## static checks
	$(RUN) -m ruff check
	$(RUN) -m mypy

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis out
