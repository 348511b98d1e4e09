# make demo: see it draw a sine wave.  make test: the whole suite.  Needs Python 3.11 or newer.
# Another Python: make demo PYTHON=python3.12 (after `make clean` when there is a .venv already).
# Written for GNU make 3.81, which macOS has, and newer.

VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
UV := uv==0.13.9
LOCK := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-config

# A .venv whose Python is gone is made anew.
MISSING := $(shell test -x $(PY) || echo missing)

.PHONY: demo test lint bench soak lock clean missing

demo: $(INSTALLED)
	@exec $(PY) dev/demo.py

# ARGS goes to pytest: make test ARGS="-k health -x". Most tests wait, so four files run at once.
# The service is started dozens of times: its bytecode is kept, whatever the environment says.
test: $(INSTALLED)
	NO_PROXY="127.0.0.1,localhost,$$NO_PROXY" no_proxy="127.0.0.1,localhost,$$no_proxy" \
		PYTHONDONTWRITEBYTECODE= \
		$(PY) -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(INSTALLED)
	@exec $(PY) dev/bench.py $(ARGS)

soak: $(INSTALLED)
	@exec $(PY) dev/soak.py $(ARGS)

# Locks again what the .in files ask for; UPGRADE=--upgrade takes newer versions where they allow it.
lock: $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check $(UV)
	$(LOCK) $(UPGRADE) requirements.in --output-file requirements.txt
	$(LOCK) $(UPGRADE) dev/requirements.in --output-file dev/requirements.txt

clean:
	rm -rf $(VENV) .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		.schemathesis __pycache__ demo.log demo.png

$(INSTALLED): dev/requirements.txt $(MISSING)
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		command -v "$$python" >/dev/null 2>&1 || continue; \
		found="$$found $$python"; \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		new="$$new $$python"; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
		echo "Installing what dev/requirements.txt locks into $(VENV): a minute or so, once."; \
		"$$python" -m venv --clear $(VENV) || exit 1; \
		$(PY) -m pip install --quiet --disable-pip-version-check --no-input \
			--require-hashes --requirement dev/requirements.txt && touch $@ && exit 0; \
		echo "The packages could not be installed; pip says why above. No network, maybe?" >&2; \
		exit 1; \
	done; \
	if [ -n "$$new" ]; then \
		echo "No venv module in:$$new. On Debian and Ubuntu: apt install python3-venv" >&2; \
	elif [ -n "$$found" ]; then \
		echo "Python 3.11 or newer is needed; too old:$$found. Name one: PYTHON=/path/to/python3" >&2; \
	else \
		echo "Python 3.11 or newer is needed and none was found. Name one: PYTHON=/path/to/python3" >&2; \
	fi; \
	exit 1
