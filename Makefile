# make demo    segment the shipped sample scene with the shipped model, and make a picture of it
# make test    install everything into .venv and run all tests, in JOBS=2 processes
# make check   lint (security rules among it), types, layers, known holes in dependencies, docs
# make chaos   attack runs: kills, poison, damage, full disks, power cuts, hostile files; make torture: much more of all
# make bench   measure this machine against what else there is: networks, the CRF, whole jobs beside peers (about half an hour)
# make results  train and measure what docs/results.md shows, on the data beside the repository (hours; what is there is not made again)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-out
JOBS ?= 2
SOURCES := pipeline workflows cli.py tests

.PHONY: demo test check chaos torture bench results clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-check: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[check]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/atrous segment examples/dubai-tile2.tif $(OUT)/labels.zarr
	$(BIN)/atrous export --overwrite $(OUT)/labels.zarr $(OUT)/map.tif
	$(BIN)/atrous export --overwrite $(OUT)/labels.zarr $(OUT)/map.png
	@echo
	@echo "Look at $(abspath $(OUT))/map.png; $(OUT)/map.tif opens in a GIS."

test: $(VENV)/.installed-check
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

check: $(VENV)/.installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/audit_dependencies.py
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

CHAOS := poison cluster concurrency damage fingerprints storage power_cut hostile kills

chaos: $(VENV)/.installed-check
	for attack in $(CHAOS); do $(BIN)/python tests/chaos/$$attack.py --quick || exit 1; done

torture: $(VENV)/.installed-check
	for attack in $(CHAOS); do $(BIN)/python tests/chaos/$$attack.py --keep || exit 1; done
	ATROUS_TORTURE=200 $(BIN)/python -m pytest -q tests/workflows/test_stateful.py
	$(BIN)/python tests/chaos/tables.py

bench: $(VENV)/.installed-check
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python tests/benchmarks/networks.py --variants mobilenet
	$(BIN)/python tests/benchmarks/crf.py --rounds 3
	$(BIN)/python tests/benchmarks/peers.py --rounds 3 --png docs/img/peers.png

results: $(VENV)/.installed-check
	$(BIN)/python tests/results/ablations.py
	$(BIN)/python tests/results/cross_validate.py
	$(BIN)/python tests/results/results_page.py

clean:
	rm -rf $(VENV) build demo-out site .coverage* .mypy_cache .ruff_cache .pytest_cache *.egg-info
