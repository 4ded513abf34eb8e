# Verbs of the house. PYTHON is the environment made by tools/install.py.
PYTHON ?= .venv/bin/python

.PHONY: help setup test lint types docs bench hostile house same-loss
help:
	@echo "setup test lint types docs bench hostile house same-loss"
setup:
	python3 tools/install.py --dev
test:
	$(PYTHON) -m pytest
lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
types:
	$(PYTHON) -m mypy
docs:
	$(PYTHON) tools/surface.py --write
	$(PYTHON) tools/docs.py
bench:
	$(PYTHON) benchmarks/read_lidc.py
hostile:
	$(PYTHON) -m pytest tests/hostile tests/kill tests/property
house:
	$(PYTHON) tools/house.py
same-loss:
	$(PYTHON) tools/same_loss.py $(A) $(B)
