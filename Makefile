# Everything runs in an environment of its own, .venv, at the versions of constraints.txt.
# Another Python: make test PYTHON=python3.12. Which device JAX uses is left to JAX.

SHELL := /bin/bash
PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
CONFIG ?= configs/ddpm.py:digits
WORKDIR ?= runs/demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := $(VENV)/bin
comma := ,
RUN := --config=$(CONFIG) --workdir=$(WORKDIR)

.DEFAULT_GOAL := help
.PHONY: help venv demo test check smoke parity docs notebooks peers lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

define check_python
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit((3, 11) > v or v > (3, 13))' \
	  2>/dev/null || { echo "diffjax needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo missing). Choose one, as in: make venv PYTHON=python3.12" >&2; \
	  exit 1; }
endef

# $(call new_venv,FOLDER): where ensurepip is missing (Debian splits it off), the pip of $(PYTHON)
# installs pip.
define new_venv
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(1); else \
	  $(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip --python $(1) install -q pip; fi
endef

# $(call install,FOLDER,EXTRAS): the stamp .installed comes last. A folder that an interruption left
# half done is marked by .installing and made anew; folders that we did not make are never removed.
define install
	$(call check_python)
	@if [ -e $(1)/.installing ]; then \
	  echo "$(1): an earlier installation was interrupted; starting over"; rm -rf $(1); fi
	@if [ ! -e $(1) ] || [ -e $(1)/.installed ]; then mkdir -p $(1) && touch $(1)/.installing; fi
	$(call new_venv,$(1))
	$(1)/bin/python -m pip install -q -c constraints.txt -e '.[$(2)]'
	@rm -f $(1)/.installing && touch $(1)/.installed
endef

venv: $(VENV)/.installed ## install diffjax and what it needs into .venv

$(VENV)/.installed: setup.py constraints.txt
	$(call install,$(VENV),test)

.venv-parity/.installed: setup.py constraints.txt
	$(call install,.venv-parity,test$(comma)parity)

.venv-docs/.installed: setup.py constraints.txt
	$(call install,.venv-docs,docs)

# On Linux this puts memory in huge pages: an eighth less time for a training step on CPUs.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: venv ## train, sample, evaluate and report on small digits (4 to 9 minutes on 2 cores)
	$(BIN)/python -m experiments.train $(RUN)
	$(BIN)/python -m experiments.sample $(RUN)
	$(BIN)/python -m experiments.evaluate $(RUN)
	$(BIN)/python -m experiments.report $(RUN)
	@echo "Done. Open $(WORKDIR)/report.html in a browser."

test: venv ## run the tests (12 to 20 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 -m "not slow and not parity and not smoke_all"

check: venv ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy diffjax
	$(BIN)/lint-imports

smoke: venv ## the long tests, and two steps of training and a sample of every variant (an hour)
	$(BIN)/python -m pytest -n 2 -m "(smoke_all or slow) and not parity"

parity: .venv-parity/.installed ## compare with torch and diffusers, in .venv-parity
	.venv-parity/bin/python -m pytest -m parity

docs: .venv-docs/.installed ## build the documentation site in build/site, strictly
	.venv-docs/bin/python -m sphinx -q -W --keep-going -b html -c docs/site -d build/doctrees docs build/site
	.venv-docs/bin/python docs/site/check_pages.py build/site
	@echo "Done. Open build/site/index.html in a browser."

notebooks: .venv-docs/.installed ## write the chapters of the tour as notebooks in build/notebooks, and run them
	.venv-docs/bin/python -m experiments.tour.run --notebooks=build/notebooks --execute

# They share nothing with diffjax, so that each has the versions that suit it.
peers: ## environments of what diffjax's speed is measured beside
	$(call check_python)
	$(call new_venv,.venv-peers)
	.venv-peers/bin/python -m pip install -q -r experiments/benchmarks/peers-torch.txt
	$(call new_venv,.venv-peers-flax)
	.venv-peers-flax/bin/python -m pip install -q -r experiments/benchmarks/peers-flax.txt

# With Python 3.11, the oldest supported. Then try the others: with a pip of 3.12 and of 3.13,
# pip install --dry-run -c constraints.txt -e '.[test]'
lock: ## renew constraints.txt from a fresh environment (Python 3.11)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "make lock needs Python 3.11, the oldest supported: PYTHON=python3.11" >&2; exit 1; }
	rm -rf .venv-lock
	$(call new_venv,.venv-lock)
	.venv-lock/bin/python -m pip install -q '.[test]'
	{ echo "# Every package of diffjax[test], as tested. Written by make lock; do not edit."; \
	  .venv-lock/bin/python -m pip freeze --exclude diffjax; } > constraints.tmp
	mv constraints.tmp constraints.txt
	rm -rf .venv-lock build

clean: ## remove environments, caches and builds (runs/ stays)
	rm -rf .venv-parity .venv-docs .venv-peers .venv-peers-flax .venv-lock docs/reference
	rm -rf $(VENV) build dist *.egg-info constraints.tmp
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
