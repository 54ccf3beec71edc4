# What a person types to work on anykd. `make` alone prints the list.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test soak check fix clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED)  ## build .venv with everything in it; does nothing where it is up to date

# The stamp is written last. A .venv without it is half made, so it is built anew.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) is not on the path; anykd needs Python 3.11 or later"; \
	  echo "hint: make setup PYTHON=/path/to/python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: anykd needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) -V)"; \
	  echo "hint: make setup PYTHON=python3.12"; exit 1; } >&2
	@test -e $(INSTALLED) || { \
	  echo "Building .venv with $$($(PYTHON) -V)"; $(PYTHON) -m venv --clear .venv; }
	@echo "Installing anykd. PyTorch is some gigabytes on Linux: allow a few minutes the first time."
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(INSTALLED)

# Debian and Ubuntu call it chromium or chromium-browser. It is there for tests of reports alone,
# so where it cannot be had this says so and goes on: those tests skip.
browser:  ## install Chromium, in which tests open reports, where apt-get and root can be had
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v $$name && exit 0; done; \
	if [ "$$(id -u)" = 0 ]; then as=; else as='sudo -n'; fi; \
	{ $$as timeout 300 apt-get update -q && { $$as timeout 600 apt-get install -qy --no-install-recommends chromium || \
	  $$as timeout 600 apt-get install -qy --no-install-recommends chromium-browser; }; } || \
	echo "Chromium could not be installed: the tests that open reports in it skip"

demo: setup  ## distil a small teacher into a small student, end to end
	$(BIN)/anykd demo

test: setup  ## run every test and every example of the documentation strings
	$(BIN)/pytest -n auto

soak: setup  ## kill a run again and again, and watch a long one; half an hour
	$(BIN)/python -m benchmarks.soak

check: setup  ## say whether the tree may be committed; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/typos
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/pytest -n auto

fix: setup  ## format the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## remove .venv and every cache; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
