# make demo    set up and build the demonstration report     make demo-full   with six seeds
# make test    set up and run the tests          make test-all   with the slow ones, and the lowest versions
PY      := .venv/bin/python
PIP     := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP   := .venv/.installed
MIN     := .venv-min/bin/python
# One thread a process: on small tables a second one mostly waits, and on a busy machine it waits by spinning
export OMP_NUM_THREADS ?= 1
# Tests run in so many processes
JOBS ?= 2
PYTEST := -n $(JOBS) --dist worksteal

.PHONY: setup test test-all test-minimum lint demo demo-full results docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^pip==' constraints.txt)"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[fairness,federated,tracking,llm,editing,guard,guard-postgres,video,video-diffusers]' --group test
	touch $@

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

test: $(STAMP)
	@test -x /usr/bin/chromium || echo "Browser tests skip: install Chromium with  apt-get install chromium"
	@command -v tmux >/dev/null || echo "Terminal tests skip: install tmux with  apt-get install tmux"
	$(PY) -m pytest $(PYTEST) -m "not slow and not gpu"

test-all: $(STAMP) lint test-minimum
	$(PY) -m pytest $(PYTEST) -m "not gpu"

# The lowest version of each direct dependency that pyproject.toml allows, with the newest of what those depend on;
# old releases warn about new ones, which is not what this tests. The sinks need extras.
test-minimum: .venv-min/.installed
	.venv-min/bin/upright run --help >/dev/null
	$(MIN) -m pytest $(PYTEST) -m "not slow and not gpu and not browser" -W ignore::DeprecationWarning \
	  --ignore tests/experiment/test_sinks.py tests/maths tests/metrics tests/models tests/data tests/tasks tests/report tests/experiment tests/audits

.venv-min/.installed: pyproject.toml constraints-minimum.txt
	rm -rf .venv-min
	python3.11 -m venv .venv-min
	$(MIN) -m pip install --quiet --disable-pip-version-check -c constraints-minimum.txt \
	  "$$(grep '^torch==' constraints-minimum.txt)" --editable '.[video]' pytest pytest-timeout pytest-xdist hypothesis scikit-learn fairlearn
	touch $@

demo: $(STAMP)
	.venv/bin/upright demo

demo-full: $(STAMP)
	.venv/bin/upright demo --full --out demo-full

results: $(STAMP)
	$(PY) -m upright.report.results

docs: $(STAMP)
	$(PY) docs/make_metrics.py

clean:
	rm -rf .venv-min dist build .pytest_cache .mypy_cache .ruff_cache
