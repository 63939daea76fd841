# make demo   the main job, on any machine      make test   everything that CI checks      make docs   the site
SHELL := /bin/bash
PY := .venv/bin/python
STAMP := .venv/.ready

.PHONY: demo test docs setup readme export clean
setup: $(STAMP)
$(STAMP): settings.ini setup.py
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -q -e '.[dev]'
	touch $(STAMP)

demo: setup
	.venv/bin/clip-dfgs demo --out runs/demo --overwrite

test: setup
	.venv/bin/ruff check nbs clip_dfgs tests benchmarks setup.py
	$(PY) tests/in_step.py
	export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TMPDIR=$$(mktemp -d) && trap 'rm -rf "$$TMPDIR"' EXIT && \
	export CLIP_DFGS_CACHE=$$TMPDIR/cache && \
	.venv/bin/nbdev_test --n_workers 3 --timing --path nbs && $(PY) -m pytest -q -n 3 --dist worksteal tests
	$(PY) nbs/_sphinx/build.py _docs

docs: setup
	$(PY) nbs/_sphinx/build.py _docs && echo "the site: _docs/html/index.html"

export: setup
	.venv/bin/nbdev_export

readme: setup
	$(PY) tests/in_step.py --readme

clean:
	rm -rf .venv build dist _docs *.egg-info
