# make detect   set everything up and find things in a photo
# make test     set up what the tests need and run them
# make check    format, lint, types and tests: what a change must pass
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
QUERIES ?= a person, a cat, a car
THRESHOLD ?= 0.3
IMAGE ?=
OUT ?= out

.PHONY: detect test check figures ablation clean

detect: $(VENV)/.photos
	@image="$(IMAGE)"; \
	[ -n "$$image" ] || image=$$($(BIN)/python -c "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data' / 'astronaut.png')"); \
	$(BIN)/owl-swin detect "$$image" --queries "$(QUERIES)" --threshold $(THRESHOLD) --save "$(OUT)"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# The figures of the model card; DATA is the folder of the sets that the card names.
MODEL ?= nano
FIGURES := runs/figures
FOD_HELDOUT := hammer,battery,soda can,pen,nail,fuel cap
FOD_TRAINED := bolt,bolt washer,clamp part,metal part,cutter,plastic part,luggage tag,pliers,label,washer,wrench,nut,metal sheet,hose,adjustable clamp,adjustable wrench,bolt nut set,luggage part,paint chip,rock,screw,screwdriver,wire,tape,wood
EVAL_DETECT = $(BIN)/owl-swin eval detect --model $(MODEL)
EVAL_TINY = $(BIN)/owl-swin eval classify --model $(MODEL) --annotations $(DATA)/tiny_imagenet/manifest.json --image-size 64
figures: $(VENV)/.dev
	$(EVAL_DETECT) --annotations $(DATA)/coco/test.json --images $(DATA)/coco/images --json $(FIGURES)/coco.json
	$(EVAL_DETECT) --annotations $(DATA)/coco/test.json --images $(DATA)/coco/images --classes person --json $(FIGURES)/coco_person.json
	$(EVAL_DETECT) --annotations $(DATA)/fod/test.json --images $(DATA)/fod/images --classes "$(FOD_TRAINED)" --json $(FIGURES)/fod_trained.json
	$(EVAL_DETECT) --annotations $(DATA)/fod/test.json --images $(DATA)/fod/images --classes "$(FOD_HELDOUT)" --json $(FIGURES)/fod_heldout.json
	$(EVAL_DETECT) --annotations $(DATA)/aquarium/test.json --images $(DATA)/aquarium/images --json $(FIGURES)/aquarium.json
	$(EVAL_DETECT) --annotations $(DATA)/license_plates/test.json --images $(DATA)/license_plates/images --json $(FIGURES)/license_plates.json
	$(EVAL_TINY) --json $(FIGURES)/tiny_all.json
	$(EVAL_TINY) --pictures trained --json $(FIGURES)/tiny_trained.json
	$(EVAL_TINY) --pictures heldout --among heldout --json $(FIGURES)/tiny_heldout.json

# Matching x box form at one equal budget; DATA as above, linked as "data" here.
ABLATION := hungarian_patch hungarian_owl aligned_patch aligned_owl
ABLATION_EVAL = $(BIN)/owl-swin eval detect --image-size 128
ablation: $(VENV)/.dev
	@test -e data || ln -s "$(DATA)" data
	for run in $(ABLATION); do \
	  $(BIN)/owl-swin train configs/train/ablation_$$run.toml && \
	  $(ABLATION_EVAL) --model runs/ablation_$$run --annotations data/fod/test.json --images data/fod/images --classes "$(FOD_TRAINED)" --json runs/ablation_$$run/fod.json && \
	  $(ABLATION_EVAL) --model runs/ablation_$$run --annotations data/coco/test.json --images data/coco/images --classes person --json runs/ablation_$$run/coco_person.json || exit 1; \
	done

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
