# Every target sets up .venv by itself, and reuses it while pyproject.toml and requirements.txt
# stay as they are. Needs Python 3.11 or later and make; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat pyproject.toml requirements.txt | cksum | cut -d ' ' -f 1)
ALL_NOTEBOOKS := $(shell find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*')
# Committed notebooks that `make test` reruns as they are; `make test-all` takes every one.
NOTEBOOKS ?= notebooks/00_start_here.ipynb notebooks/attacks/membership_shadow.ipynb
# Minutes that `make gpu` may take.
MINUTES ?= 8
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax tests

# Executed notebooks for `make site`, as `vplib run` leaves them in a folder; none: it runs them all.
RUN ?=

.PHONY: env run lab test test-all bench gpu site strip generated clean
.DEFAULT_GOAL := run

env: $(READY)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vplib needs Python 3.11 or later; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): PyTorch, JupyterLab and what they need (some minutes, some GB; once)."
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e '.[test,serve,sweep,site]'
	@rm -f $(VENV)/.ready-* && touch $@
	@echo "$(VENV) is ready."

run: env
	@$(BIN)/vplib run --core

lab: env
	@$(BIN)/jupyter lab notebooks/00_start_here.ipynb

test: env
	@echo "Running the library's tests, the notebooks end to end and as committed, and the browser tests."
	@$(PYTEST) $(NOTEBOOKS)

test-all: env
	@$(PYTEST) $(ALL_NOTEBOOKS)

bench: env
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# All notebooks in lab on a CUDA GPU, then the paper profiles that fit; ends in a table for README.
gpu: env
	@$(BIN)/python tests/gpu.py --minutes $(MINUTES) $(ALL_NOTEBOOKS)

# The notebooks as pages with their outputs, in build/site; the front page's path is the last line.
site: env
	@$(BIN)/python docs/site/build.py $(RUN)

# Runs each notebook from a clean kernel, keeps the claims' output alone, and regenerates the Colab
# guard, the gallery and README's table; last the start page's picture, which counts all states.
# One notebook: make strip ALL_NOTEBOOKS=notebooks/attacks/NAME.ipynb
strip: env
	@$(BIN)/python tests/notebooks/strip.py $(ALL_NOTEBOOKS) docs/template.ipynb
	@$(BIN)/ruff format --quiet notebooks docs
	@$(BIN)/vplib run 00_start_here --gallery notebooks/gallery

# Guard, badge and picture of each notebook after `address` in pyproject.toml changed; nothing runs.
generated: env
	@$(BIN)/python tests/notebooks/strip.py --generated $(ALL_NOTEBOOKS) docs/template.ipynb

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
