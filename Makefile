# Everything runs in a virtual environment of its own, .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin

# Else every process that a test starts compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo unit test acceptance counts lint docs pictures bench soak fuzz clean
help:
	@echo "make demo        install, run two workers, kill one of them, check that nothing is lost"
	@echo "make unit        the quick unit tests, in under a minute; the inner loop of a change"
	@echo "make test        install, run the linters and the whole test suite, in about 8 minutes"
	@echo "make acceptance  the same with long histories and stress, and soaks, in about an hour"
	@echo "make counts      calls, commands and round trips of an operation, against their budgets"
	@echo "make lint        only the linters, mypy and pyright"
	@echo "make docs        build the documentation site into build/site"
	@echo "make pictures    draw the pictures of the documents from a real run"
	@echo "make bench       measure against peers and goals, and write docs/performance.md, in three quarters of an hour; QUICK=1 a few minutes"
	@echo "make soak        real workers under faults for MINUTES=60, or without any: STEADY=--steady; TOPOLOGY=cluster, sentinel"
	@echo "make fuzz        throw made-up bytes at what reads (SECONDS= for each target)"
	@echo "make clean       remove what the others made"

.venv/installed: EXTRAS := embedded,cli,dev,docs
.venv/demo: EXTRAS := embedded,cli
.venv/installed .venv/demo: setup.cfg pyproject.toml
	@echo "Installing celery-memsync[$(EXTRAS)] into .venv, once ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# The demo needs less than the other targets; what these have installed is enough for it.
demo: $(or $(wildcard .venv/installed),.venv/demo)
	@$(BIN)/python example_project/demo.py

# Unit tests share only a Redis, so an idle process takes tests over from another one.
unit: .venv/installed
	$(BIN)/python -m pytest tests/unit -m "not slow" -n 3 --dist worksteal

# A process runs the tests of a file in their order, because they share workers, which take seconds to start; without
# reordering the slow folders come first, so that no process ends long after the others.
test: .venv/installed lint
	$(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder

acceptance: .venv/installed lint
	MEMSYNC_STRESS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --timeout 300
	$(BIN)/python -m tests.support.model --seconds 120 --processes 8 --faults kill,restart,empty,pause
	+$(MAKE) --no-print-directory --jobs=3 --output-sync $(SOAKS)

# At the same time, because faults are mostly waited for.
SOAKS := soak-one soak-cluster soak-sentinel
.PHONY: $(SOAKS)
$(SOAKS): soak-%:
	$(BIN)/python -m tests.faults.soak --minutes 9 --topology $*

counts: .venv/installed
	$(BIN)/python -m pytest -q -s tests/integration/test_counts.py tests/unit/test_budgets.py

# All at the same time: mypy takes the longest, and the audit waits for a service.
LINTERS := lint-ruff lint-mypy lint-pyright lint-audit lint-tests
.PHONY: $(LINTERS)
lint: .venv/installed
	+$(MAKE) --no-print-directory --jobs=5 --output-sync $(LINTERS)

lint-ruff:
	$(BIN)/python -m ruff check --quiet .

lint-mypy:
	$(BIN)/python -m mypy

# It comes with a Node.js of its own, and needs no network.
lint-pyright:
	$(BIN)/python -m pyright --pythonpath $(BIN)/python
	$(BIN)/python .ci/typed_names.py

lint-audit:
	$(BIN)/python .ci/audit.py

# All tests can be imported; this compiles them for the processes that run them.
lint-tests:
	@tests=$$($(BIN)/python -m pytest --collect-only -qq 2>&1) || { echo "$$tests" | tail -50; exit 1; }

docs: .venv/installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site
	@echo "build/site/index.html"

pictures: .venv/installed
	$(BIN)/python docs/pictures/make.py

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cachetools celery-once celery-singleton pottery python-redis-lock
	$(BIN)/python benchmarks/report.py $(if $(QUICK),--quick) $(ONLY)

soak: .venv/installed
	$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED)) $(if $(TOPOLOGY),--topology $(TOPOLOGY)) $(STEADY)

fuzz: .venv/installed
	$(BIN)/python -m pip install --quiet atheris
	$(BIN)/python -m tests.faults.fuzz --seconds $(or $(SECONDS),60)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist celery_memsync.egg-info census
