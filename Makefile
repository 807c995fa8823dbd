PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RECIPE ?= pipeline/recipes/demo.yaml
DEMO_EFFECTS := cyanotype,sunset,circle_mask,mirror_halves,snow,blind_shadows
ADAPTER ?= runs/demo/student
PORT ?= 8000
# Small matrices: more BLAS threads than an actor asks for only fight each other.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo notebooks submit test test-slow lint ui app clean

setup: $(READY)

$(READY): pyproject.toml cluster/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c cluster/constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)
	@test -e runs/demo/bank/bank.yaml || \
	  $(BIN)/collectionlora miniature bank runs/demo/bank --effects $(DEMO_EFFECTS) $(if $(TEACH),--teach)
	$(BIN)/collectionlora run pipeline/recipes/demo.yaml

# In place, with their outputs; they read what `make demo` left.
notebooks: $(READY)
	$(BIN)/python notebooks/execute.py

# To the Ray cluster in RAY_ADDRESS (with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN where it asks for
# them). What git ignores is not uploaded, so a recipe names its bank and output by absolute paths on
# the cluster's shared disk. SUBMIT_FLAGS: more flags of `ray job submit`.
submit: $(READY)
	$(BIN)/ray job submit --working-dir . $(SUBMIT_FLAGS) -- python -m pipeline run $(RECIPE)

test: $(READY)
	$(BIN)/pytest

test-slow: $(READY)
	$(BIN)/pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ui: $(READY)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/demo/mlflow.db --port 5000

# An export's effects in a browser; `make demo` makes the first one.
app: $(READY)
	$(BIN)/collectionlora app --adapter $(ADAPTER) --port $(PORT)

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
