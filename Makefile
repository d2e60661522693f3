# make demo      from what a microscope wrote to volume, bodies and report: minutes on a laptop
# make train     simulates a small data set, trains a network on it and evaluates it: minutes on a laptop
# make test      the fast tests
# make validate  the tests that take minutes; they also write the tables and pictures of docs/physics.md
# make lint      style
# The first one called makes .venv and installs what is needed into it.

PYTHON ?= python3
BIN = .venv/bin
INSTALLED = .venv/.installed
QUICKSTART = $(BIN)/python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

.PHONY: demo train test validate lint

demo: $(INSTALLED)
	$(BIN)/python launch.py --mode=reconstruct --input=docs/interconnect --output=runs/interconnect \
	    --silicon=12:44,52:84 --copper=12:44,12:44 --formats=ome-tiff,vti,stl

train: $(INSTALLED)
	$(QUICKSTART) --mode=train
	$(QUICKSTART) --mode=evaluate

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile

validate: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --durations=20

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The exact versions that were tested are those for Python 3.11; other versions of Python take the newest ones.
$(INSTALLED): requirements.txt requirements-io.txt requirements-nebula.txt requirements-trees.txt requirements-dev.txt requirements-lock.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; \
	then $(BIN)/python -m pip install -q -r requirements-dev.txt -c requirements-lock.txt; \
	else $(BIN)/python -m pip install -q -r requirements-dev.txt; fi
	touch $@
