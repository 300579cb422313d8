# make demo    set up and build the demonstration report
# make test    set up and run the tests          make test-all   with the slow ones
PY      := .venv/bin/python
PIP     := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP   := .venv/.installed
# One thread: on small tables a second one mostly waits, and on a busy machine it waits by spinning
export OMP_NUM_THREADS ?= 1

.PHONY: setup test test-all lint demo results clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^pip==' constraints.txt)"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[tracking]' --group test
	touch $@

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

test: $(STAMP)
	@test -x /usr/bin/chromium || echo "Browser tests skip: install Chromium with  apt-get install chromium"
	$(PY) -m pytest -m "not slow and not gpu"

test-all: $(STAMP) lint
	$(PY) -m pytest -m "not gpu"

demo: $(STAMP)
	.venv/bin/upright demo

results: $(STAMP)
	$(PY) -m upright.report.results

clean:
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache
