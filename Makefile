# The front door. `make help` lists the targets; set-up happens by itself, in .venv, and only there.
PROFILE ?= laptop
PYTHON  ?= python3
CORES   ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
SETTINGS ?= all_in_one
SEEDS   ?= 0
TORCH   ?= 2.13.0
PYTEST_ARGS ?=
LAB_ARGS    ?=

BIN   := .venv/bin
READY := .venv/.ready
# Outside JupyterLab's search path for kernels nothing is written, and the kernel of .venv comes first in it.
export JUPYTER_PREFER_ENV_PATH := 1
unexport PYTHONPATH PYTHONHOME  # .venv must not see another copy of the package

.PHONY: help setup study plan controls test test-slow test-cluster test-browser lab app badges lint lock reference clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo "variables: PROFILE=$(PROFILE) SETTINGS=$(SETTINGS) SEEDS=$(SEEDS) CORES=$(CORES) PYTHON=$(PYTHON) PYTEST_ARGS LAB_ARGS"

study: $(READY)  ## the whole study in batch, with progress; goes on where it was stopped
	@$(BIN)/mirl study --profile $(PROFILE) --settings $(SETTINGS) --seeds $(SEEDS) --cores $(CORES)

plan: $(READY)  ## what the study would take: chains, time by a few measured steps, disk
	@$(BIN)/mirl plan --profile $(PROFILE) --settings $(SETTINGS) --seeds $(SEEDS) --cores $(CORES)

controls: $(READY)  ## the study with the controls of its ticket: was it luck?
	@$(BIN)/mirl study --profile $(PROFILE) --settings $(SETTINGS) --seeds $(SEEDS) --cores $(CORES) --controls

test: $(READY)  ## the fast tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not browser" -n $(CORES) --dist loadfile $(PYTEST_ARGS)

test-slow: $(READY)  ## the tests that take minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(CORES) --dist loadfile $(PYTEST_ARGS)

test-cluster: $(READY)  ## a tiny grid on a SLURM of its own, where root and apt allow
	@PYTHON="$(CURDIR)/$(BIN)/python" tests/cluster/slurm.sh

test-browser: $(READY)  ## the lab in a real browser, where there is chromium
	@PYTHON="$(CURDIR)/$(BIN)/python" tests/browser/run.sh

lab: $(READY)  ## JupyterLab on the lottery lab and the other notebooks
	@$(BIN)/jupyter lab $(LAB_ARGS) notebooks/00_lottery_lab.ipynb

app: $(READY)  ## the lab's explorers as a page of their own, by Voila
	@$(BIN)/python -c 'import voila' 2>/dev/null || \
	  $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[app]"
	@$(BIN)/voila $(LAB_ARGS) notebooks/app.ipynb

# The repository's public address, for the badges of the README and for Colab, which gets the lab alone.
badges:  ## the address that Binder and Colab fetch from: make badges REPO=owner/name
	@echo "$(REPO)" | grep -qE '^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$$' || \
	  { echo "error: REPO='$(REPO)' is not allowed: owner/name on GitHub, for example make badges REPO=somebody/mirl_study" >&2; exit 1; }
	@for file in README.md notebooks/00_lottery_lab.ipynb; do \
	  sed -E -e 's#(mybinder\.org/v2/gh|colab\.research\.google\.com/github)/[^/]+/[^/]+/#\1/$(REPO)/#g' \
	    -e 's#(https://github\.com)/[^/"]+/[^/"\]+#\1/$(REPO)#g' $$file > $$file.part && mv $$file.part $$file; done

lint: $(READY)  ## ruff
	@$(BIN)/ruff check .

reference: $(READY)  ## keep the results of PROFILE in results/reference/, which git tracks
	@$(BIN)/mirl reference --profile $(PROFILE)

# With the oldest Python that is supported, a newer one can use the lock too: make lock PYTHON=python3.11
lock:  ## write constraints.txt from a fresh environment
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && $(PYTHON) -m venv "$$dir/venv" && \
	"$$dir/venv/bin/python" -m pip install -qq --disable-pip-version-check "torch==$(TORCH)" -e ".[test,app,browser]" && \
	"$$dir/venv/bin/python" -m pip freeze --all --exclude-editable > "$$dir/freeze" && \
	{ echo "# Versions tested together; a pip constraints file, written by \`make lock\`."; \
	  sed -E '/^(pip|setuptools|wheel|mirl-study)( |=)/d; s/\+[a-z0-9.]+$$//' "$$dir/freeze"; } > "$$dir/lock" && \
	! grep -nE ' @ |://' "$$dir/lock" && cp "$$dir/lock" constraints.txt && echo "constraints.txt: $$(grep -c == constraints.txt) versions"

clean:  ## remove the environment and caches; results stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .snakemake
	find . -name __pycache__ -not -path './results/*' -prune -exec rm -rf {} +

setup: $(READY)  ## the environment alone

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old; name Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "setting up .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e ".[test]" \
	  > .venv/pip.log 2>&1 || \
	  { grep -v '^WARNING' .venv/pip.log | tail -15 >&2; echo "error: set-up failed; see .venv/pip.log" >&2; exit 1; }
	@touch $@
