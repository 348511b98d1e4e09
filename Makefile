# make demo: see it draw and plot.  make test: the whole suite.  Needs Python 3.11 or newer.
# Another Python: make demo PYTHON=python3.12 (after `make clean` when there is a .venv already).
# Written for GNU make 3.81, which macOS has, and newer.

VENV ?= .venv
PY := $(VENV)/bin/python
# The demo needs a part of what the other targets need: both are kept in one .venv.
FOR_DEMO := $(VENV)/.installed-for-demo
FOR_ALL := $(VENV)/.installed
UV := uv==0.13.9
# With the extras that a package asks of another: without them pip before 23.3 looks for
# the newest release of that one, which the lock does not hold.
LOCK := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-strip-extras --no-header --no-config

# Packages keep caches in the user's home. A container may have none for this user, or one
# that belongs to another: then it is a folder in .venv.
ifeq ($(shell test -w "$$HOME" && echo yes),)
export HOME := $(if $(filter /%,$(VENV)),,$(CURDIR)/)$(VENV)/home
endif

# A .venv whose Python is gone is made anew.
MISSING := $(shell test -x $(PY) || echo missing)

.PHONY: demo test lint bench soak lock clean missing

demo: $(FOR_DEMO)
	@exec $(PY) dev/demo.py

# ARGS goes to pytest: make test ARGS="-k health -x". Most tests wait, so five files run at once.
# The service is started dozens of times: its bytecode is kept, whatever the environment says.
test: $(FOR_ALL)
	NO_PROXY="127.0.0.1,localhost,$$NO_PROXY" no_proxy="127.0.0.1,localhost,$$no_proxy" \
		PYTHONDONTWRITEBYTECODE= \
		$(PY) -m pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(FOR_ALL)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(FOR_ALL)
	@exec $(PY) dev/bench.py $(ARGS)

soak: $(FOR_ALL)
	@exec $(PY) dev/soak.py $(ARGS)

# Locks again what the .in files ask for; UPGRADE=--upgrade takes newer versions where they allow it.
lock: $(FOR_ALL)
	$(PY) -m pip install --quiet --disable-pip-version-check $(UV)
	$(LOCK) $(UPGRADE) requirements.in --output-file requirements.txt
	$(LOCK) $(UPGRADE) dev/requirements-demo.in --output-file dev/requirements-demo.txt
	$(LOCK) $(UPGRADE) dev/requirements.in --output-file dev/requirements.txt

clean:
	rm -rf $(VENV) .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		.schemathesis __pycache__ demo-*.log demo-*.png

$(FOR_ALL): dev/requirements.txt $(FOR_DEMO)
	@$(PY) dev/install.py dev/requirements.txt
	@touch $@

$(FOR_DEMO): dev/requirements-demo.txt $(PY)
	@$(PY) dev/install.py dev/requirements-demo.txt
	@touch $@

$(PY): $(MISSING)
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		command -v "$$python" >/dev/null 2>&1 || continue; \
		found="$$found $$python"; \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		new="$$new $$python"; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
		"$$python" -m venv --clear $(VENV); \
		exit; \
	done; \
	if [ -n "$$new" ]; then \
		echo "No venv module in:$$new. On Debian and Ubuntu: apt install python3-venv" >&2; \
	elif [ -n "$$found" ]; then \
		echo "Python 3.11 or newer is needed; too old:$$found. Name one: PYTHON=/path/to/python3" >&2; \
	else \
		echo "Python 3.11 or newer is needed and none was found. Name one: PYTHON=/path/to/python3" >&2; \
	fi; \
	exit 1
