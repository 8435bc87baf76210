# Everything runs in .venv, made here. `make` alone says what there is.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo test check format family tables clean

help:
	@echo "make demo    install opsin with its sample weights and classify sample photos"
	@echo "make test    install what the tests need and run them"
	@echo "make check   format, lint and types"
	@echo "make format  put the code into shape"
	@echo "make family NAME=resnet   check one family: keys, numbers, contract"
	@echo "make tables  write the generated index and the table of capabilities again"

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e ".[demo]"
	@touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e ".[test,dev]"
	@touch $@ .venv/demo

demo: .venv/demo
	$(BIN)/opsin demo

# one thread a process, and one process more than cores: some tests wait for servers and for processes of their own;
# where a test asks for more threads, those that wait leave the core to others
test: .venv/test
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --dist worksteal

check: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

family: .venv/test
	$(BIN)/python tools/build_index.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --family $(NAME) --durations=3

tables: .venv/test
	$(BIN)/python tools/build_index.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/test_contract.py --capabilities

clean:
	rm -rf .venv build dist
