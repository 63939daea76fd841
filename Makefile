# make demo   the main job, on any machine      make test   what every change must pass
# make fast   the quick tests     make test-all   slow ones too     make chapter CH=sampling/02_depth_first
# make docs   the site            make fresh      run notebooks and compare with their stored outputs
SHELL := /bin/bash
PY := .venv/bin/python
STAMP := .venv/.ready
ALONE := export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TMPDIR=$$(mktemp -d) && trap 'rm -rf "$$TMPDIR"' EXIT && \
	export CLIP_DFGS_CACHE=$$TMPDIR/cache

.PHONY: demo test fast test-all chapter check docs fresh setup readme export clean
setup: $(STAMP)
$(STAMP): settings.ini setup.py
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -q -e '.[dev]'
	touch $(STAMP)

demo: setup
	.venv/bin/clip-dfgs demo --out runs/demo --overwrite

check: setup
	.venv/bin/ruff check nbs clip_dfgs tests benchmarks setup.py
	$(PY) tests/check_export.py
	.venv/bin/mypy

test: check
	$(ALONE) && $(PY) tests/notebooks.py && \
	$(PY) -m pytest -q -n 2 --dist worksteal -m 'not slow and not cuda' --durations 20 tests

fast: setup
	$(ALONE) && $(PY) -m pytest -q -n 2 -m 'not slow and not cuda' tests/sampling tests/evaluation/test_evaluation.py \
	tests/training/test_losses.py tests/test_structure.py --deselect tests/sampling/test_sampler_processes.py

test-all: test docs
	$(ALONE) && $(PY) -m pytest -q -n 2 --dist worksteal -m 'slow and not cuda' --durations 20 tests

chapter: setup
	$(ALONE) && .venv/bin/nbdev_test --path nbs/$(CH).ipynb

docs: setup
	$(PY) nbs/_sphinx/build.py _docs && echo "the site: _docs/html/index.html"

fresh: setup
	$(PY) tests/fresh.py

export: setup
	.venv/bin/nbdev_export && $(PY) nbs/_sphinx/docstrings.py

readme: setup
	$(PY) tests/check_export.py --readme

clean:
	rm -rf .venv build dist _docs *.egg-info
