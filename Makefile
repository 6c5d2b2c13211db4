# `make demo` and `make test` are all that a fresh machine needs; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
UV := uv==0.13.9
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps
COMPILED := bluesky_denoise.cli, bluesky_denoise.router, bluesky_denoise.process, IPython, \
	databroker, matplotlib.pyplot, ophyd, tiled.server.app, torch
# Where it is set, as in many containers, each of the many processes would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all bench evaluate trust docs lint clean

demo: .venv/installed
	$(BIN)/bluesky-denoise demo

test: .venv/installed
	$(BIN)/python -m pytest -n 3 --dist worksteal

# With those that are marked `thorough`; before a release, and after a change of what they are about.
test-all: .venv/installed
	$(BIN)/python -m pytest -n 3 --dist worksteal -m ""

bench: .venv/installed
	$(BIN)/python -m benchmarks

# Without DATA: the shipped measured frames and simulated scenes. DATA=DIR: a folder of HDF5.
evaluate: .venv/installed
	$(BIN)/bluesky-denoise evaluate $(DATA) --report evaluation_report.html --json evaluation.json

# Evaluates on both, and writes the figures into docs/ and the card of the weights.
trust: .venv/installed
	mkdir -p results
	$(BIN)/bluesky-denoise evaluate --report evaluation_report.html --json results/shipped.json
	$(if $(DATA),$(BIN)/bluesky-denoise evaluate $(DATA) --json results/measured.json)
	$(BIN)/python -m bluesky_denoise.evaluation.trust docs results/shipped.json $(if $(DATA),results/measured.json) \
		--card bluesky_denoise/models/weights/default.json

docs: .venv/installed
	$(BIN)/python -m pytest tests/test_docs.py tests/test_plans_docs.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The pinned set: torch first, and the rest by uv, in seconds, which takes pip minutes; pip does it where
# uv cannot, as with an index that pip's own settings name. On Linux the torch of PyPI brings
# several gigabytes of libraries for GPUs, which it depends on; the README says how to take the build for
# CPUs. All the rest is in the lock, but for what other systems than Linux need. Only modules that are
# used are compiled: most are not, and take half of the time.
.venv/installed: requirements.lock setup.cfg pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	@echo "Installing the pinned packages into .venv; this takes some minutes, once."
	$(PIP_INSTALL) -c requirements.lock torch
	{ $(PIP_INSTALL) $(UV) && $(UV_INSTALL) -r requirements.lock; } || \
		$(PIP_INSTALL) --no-deps -r requirements.lock
	$(BIN)/python -m pip check >/dev/null || $(PIP_INSTALL) -r requirements.lock
	$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	$(BIN)/python -c "import $(COMPILED)"
	touch $@

clean:
	rm -rf .venv build demo_data demo.png evaluation.json evaluation_report.html
