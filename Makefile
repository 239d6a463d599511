# make detect   set everything up and find things in a photo
# make test     set up what the tests need and run them
# make check    format, lint, types and tests: what a change must pass
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
QUERIES ?= a person, a cat, a car
IMAGE ?=
OUT ?= out

.PHONY: detect test check clean

detect: $(VENV)/.photos
	@image="$(IMAGE)"; \
	[ -n "$$image" ] || image=$$($(BIN)/python -c "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data' / 'astronaut.png')"); \
	$(BIN)/owl-swin detect "$$image" --queries "$(QUERIES)" --save "$(OUT)"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/.photos: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'owl_swin needs Python 3.11 or newer')"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (the first time this fetches PyTorch, a few minutes)"
	@$(PIP) --editable '.[photos]'
	@touch $@

$(VENV)/.dev: $(VENV)/.photos
	@$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
