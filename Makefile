VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OLDEST := $(CURDIR)/.cache/oldest
ACCELERATORS := $(CURDIR)/.cache/accelerators
# The persistent compilation cache: a second run of the tests spends its time on tests.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

.PHONY: install demo test long check docs notebooks accelerators format oldest build clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: install  ## meta-train an optimizer on real images, compare it, write out/demo/
	$(BIN)/metajax demo --out out/demo

test: install lint  ## everything
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not long' --durations=30

long: install  ## what takes longest: experiments at their smallest that share their code with those of `make test`
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m long tests

check: install lint  ## the quick subset
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not slow' tests

.PHONY: lint
lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/docs  ## the site in out/site, warnings are errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs out/site
	@echo "open out/site/index.html"

notebooks: $(VENV)/docs  ## runs the notebooks at full size and keeps their outputs
	cd notebooks && for n in *.py; do ../$(BIN)/jupytext --quiet --to ipynb --execute $$n || exit 1; done

$(VENV)/docs: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/python -m ipykernel install --sys-prefix --name python3
	touch $@

# In an environment of its own: there JAX would look for the devices first.
accelerators: $(ACCELERATORS)/installed  ## what programs do on an H100 and a TPU, in out/compiled; needs neither
	$(ACCELERATORS)/bin/python -m benchmarks compiled
	JAX_PLATFORMS=cpu $(ACCELERATORS)/bin/python -m pytest tests/test_compiled.py

$(ACCELERATORS)/installed: pyproject.toml
	$(PYTHON) -m venv $(ACCELERATORS)
	$(ACCELERATORS)/bin/pip install --quiet --editable '.[dev,aot-gpu,aot-tpu]'
	touch $@

oldest:  ## the quick tests with the oldest versions that pyproject.toml allows; needs Python 3.11
	python3.11 -m venv $(OLDEST)
	sed -n -e '/^docs = /,/^]/d' -e '/^peers = /,/^]/d' -e '/^aot-gpu = /,/^]/d' -e 's/.*"\([A-Za-z_-][A-Za-z_-]*\)>=\([0-9.]*\)[^"]*".*/\1==\2/p' pyproject.toml | sort -u > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/pip install --quiet --requirement $(OLDEST)/requirements.txt
	PYTHONPATH=. JAX_COMPILATION_CACHE_DIR=$(OLDEST)/jax $(OLDEST)/bin/python -m pytest -n 2 --dist loadgroup -m 'not slow' tests

build: install  ## wheel and sdist in dist/
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) .cache out dist build
