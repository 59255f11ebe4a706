# All of the tooling. A fresh checkout needs nothing but `make serve` or `make test`.

PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help serve test test-all test-compiled fast mutants wheel coverage lint format types imports check bench curves lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

serve: .venv/.serve ## run an SMTP server, full stack, on embedded defaults; options in ARGS
	$(BIN)/greensmtp serve $(ARGS)

# Two processes; tests of one xdist_group run in the same one, so that those that measure do not run side by side.
PARALLEL := -n 2 --dist loadgroup

# Compiled tests are kept in __pycache__: rewriting their assertions takes half of the time of collecting them.
unexport PYTHONDONTWRITEBYTECODE

test: .venv/.dev ## run the tests, two minutes on two cores; options for pytest in ARGS
	$(BIN)/pytest $(PARALLEL) $(ARGS)

# A superset of `make test`: every cut of every input, and longer properties.
test-all: .venv/.dev ## run every test, those marked exhaustive too; options for pytest in ARGS
	$(BIN)/pytest $(PARALLEL) -m "" --hypothesis-profile=long $(ARGS)

# The compiled package comes before the checkout, which editable installs put at the end of sys.path.
# (PYTHONSAFEPATH: else "python -m greensmtp" would run the sources.)
COMPILED := PYTHONPATH=$(CURDIR)/.compiled PYTHONSAFEPATH=1 GREENSMTP_EXPECT_COMPILED=1

test-compiled: .compiled/.stamp ## run the tests on the compiled build: those that start no process, and those of serve; options in ARGS
	$(COMPILED) $(BIN)/pytest $(PARALLEL) -m "not exhaustive and not peer and not subprocess" $(ARGS)
	$(COMPILED) $(BIN)/pytest $(PARALLEL) tests/config/test_serve.py tests/service tests/test_compiled.py $(ARGS)

fast: .venv/.dev ## run the tests that start no process; options for pytest in ARGS
	$(BIN)/pytest $(PARALLEL) -m "not exhaustive and not peer and not subprocess" $(ARGS)

mutants: .venv/.dev ## mutation tests of the core: ARGS="chain --sample 20"
	$(BIN)/python tests/mutation.py $(ARGS)

coverage: .venv/.dev ## run the tests and show the lines that they do not execute
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

lint: .venv/.dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/.dev ## let ruff fix what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: .venv/.dev ## mypy, strict; and pyright over the programs in tests/typing, where npm is installed
	$(BIN)/mypy
	$(BIN)/python -m tests.pyright

imports: .venv/.dev ## the import rules
	$(BIN)/lint-imports --no-logo

check: test lint types imports ## test, lint, types and imports; CI runs test-all instead of test

bench: .venv/.dev ## measure the server beside a bare loop and its peers; options in ARGS (--help)
	$(BIN)/python -m benchmarks $(ARGS)

curves: .venv/.dev ## measure how costs grow with connections, recipients, bytes ...; options in ARGS (--help)
	$(BIN)/python -m benchmarks curves $(ARGS)

docs: .venv/.docs ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html $(ARGS)

# Installed on top of dev.txt, at the same versions; neither serving nor testing needs these.
.venv/.docs: requirements/docs.txt .venv/.dev
	@echo "Installing $< into .venv"
	@$(PIP) install --require-hashes -r $<
	@touch $@

.PHONY: docs

# One environment for both: dev.txt is serve.txt and more, at the same versions. A stamp for each lock file marks
# what is installed, so that serving needs no test tools and nothing is installed twice.
.venv/.serve .venv/.dev: .venv/.%: requirements/%.txt pyproject.toml
	@echo "Installing requirements/$*.txt into .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r $<
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch .venv/.serve $@

# Resolves the locked versions again, and keeps those that still fit; ARGS=--upgrade for the newest.
# Universal: one lock for every platform and for every Python that pyproject.toml allows.
LOCK := .venv-lock/bin/uv pip compile --quiet --universal --generate-hashes --system-certs \
        --custom-compile-command 'make lock' pyproject.toml $(ARGS)

# Both are built from the same sources; setuptools would put what is left of one into the other.
wheel: .venv/.dev ## build both wheels into dist/: the pure one, and the one that is compiled with mypyc (needs a C compiler)
	rm -rf build
	$(BIN)/pyproject-build --wheel --no-isolation
	GREENSMTP_COMPILE=1 $(BIN)/pyproject-build --wheel --no-isolation
	@ls -l dist

.compiled/.stamp: .venv/.dev setup.py $(shell find greensmtp middleware -name '*.py')
	@echo "Compiling into .compiled"
	@rm -rf build .compiled
	@GREENSMTP_COMPILE=1 $(PIP) wheel --no-deps --no-build-isolation --wheel-dir .compiled .
	@$(PIP) install --no-deps --target .compiled .compiled/*.whl
	@touch $@

lock: ## regenerate requirements/*.txt
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(LOCK) requirements/serve.in --extra all -o requirements/serve.txt
	$(LOCK) requirements/dev.in --extra all -o requirements/dev.txt
	$(LOCK) requirements/docs.in --extra all -o requirements/docs.txt

clean: ## remove everything that make and the tools have created
	rm -rf .venv .venv-lock .bench .compiled build dist docs/_build docs/reference/generated *.egg-info .coverage .coverage.* htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
