# make detect   set everything up and find things in a photo
# make demo     set everything up and open the demo; MODEL=FOLDER for a model, or several, of your own
# make test     set up what the tests need and run them
# make test-numeric    the tests of numbers once more, with the instructions of a processor without AVX-512
# make check    format, lint, types and tests: what a change must pass
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
QUERIES ?= a person, a cat, a car
THRESHOLD ?= 0.5
IMAGE ?=
OUT ?= out

.PHONY: detect demo test test-numeric check screenshots generators converters figures calibrate masks oneshot ablation forgetting joint-masks self-training clean

detect: $(VENV)/.photos
	@image="$(IMAGE)"; \
	[ -n "$$image" ] || image=$$($(BIN)/python -c "import skimage, pathlib; print(pathlib.Path(skimage.__file__).parent / 'data' / 'camera.png')"); \
	$(BIN)/owl-swin detect "$$image" --queries "$(QUERIES)" --threshold $(THRESHOLD) --save "$(OUT)"

demo: $(VENV)/.dev
	$(BIN)/python demo/app.py $(addprefix --model ,$(MODEL))

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.dev
	$(PYTEST)

# Other instructions add in another order, so numbers that must be equal have to be so for another reason.
OLDER := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
test-numeric: $(VENV)/.dev
	$(OLDER) $(PYTEST) -m numeric $$(grep -l mark.numeric tests/test_*.py)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# Pictures of the demo, light, dark and narrow, in out/screens; needs Chromium.
screenshots: $(VENV)/.dev
	OWL_SWIN_SCREENS=$(OUT)/screens $(BIN)/python -m pytest tests/test_demo_browser.py -k photographed

# Generators of clients, with which tests/test_server_clients.py tries the schema; they need versions of their own.
generators:
	$(PYTHON) -m venv $(OUT)/generators
	$(OUT)/generators/bin/python -m pip install --quiet --disable-pip-version-check openapi-python-client==0.29.1
	npm install --silent --no-save --prefix $(OUT)/generators openapi-typescript@7.13.0 typescript@5.9

# Label Studio's converter, with which tests/test_mask_formats.py reads what we write; of what its package needs, which is
# half a gigabyte, only what the converter imports.
converters:
	$(PYTHON) -m venv $(OUT)/converters
	$(OUT)/converters/bin/python -m pip install --quiet --no-compile --disable-pip-version-check \
		appdirs defusedxml ijson lxml 'nltk>=3.10' 'numpy>=2.2' pillow 'pyjwt<2.14' requests ujson
	$(OUT)/converters/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps label-studio-sdk==2.1.2

# The figures of the model card; DATA is the folder of the sets that the card names.
MODEL ?= nano
FIGURES := runs/figures
FOD_HELDOUT := hammer,battery,soda can,pen,nail,fuel cap
FOD_TRAINED := bolt,bolt washer,clamp part,metal part,cutter,plastic part,luggage tag,pliers,label,washer,wrench,nut,metal sheet,hose,adjustable clamp,adjustable wrench,bolt nut set,luggage part,paint chip,rock,screw,screwdriver,wire,tape,wood
D := $(DATA)
EVAL = $(BIN)/owl-swin eval
COCO := --annotations $(D)/coco/test.json --images $(D)/coco/images
FOD := --annotations $(D)/fod/test.json --images $(D)/fod/images
AQUARIUM := --annotations $(D)/aquarium/test.json --images $(D)/aquarium/images
PLATES := --annotations $(D)/license_plates/test.json --images $(D)/license_plates/images
TINY := --annotations $(D)/tiny_imagenet/manifest.json
figures: $(VENV)/.dev
	$(EVAL) detect --model $(MODEL) $(COCO) --json $(FIGURES)/coco.json
	$(EVAL) detect --model $(MODEL) $(COCO) --classes person --json $(FIGURES)/coco_person.json
	$(EVAL) diagnose --model $(MODEL) $(COCO) --json $(FIGURES)/coco_diagnosis.json
	$(EVAL) detect --model $(MODEL) $(FOD) --classes "$(FOD_TRAINED)" --json $(FIGURES)/fod_trained.json
	$(EVAL) detect --model $(MODEL) $(FOD) --classes "$(FOD_HELDOUT)" --json $(FIGURES)/fod_heldout.json
	$(EVAL) detect --model $(MODEL) $(AQUARIUM) --json $(FIGURES)/aquarium.json
	$(EVAL) detect --model $(MODEL) $(PLATES) --json $(FIGURES)/license_plates.json
	$(EVAL) oneshot --model $(MODEL) $(FOD) --classes "$(FOD_HELDOUT)" --json $(FIGURES)/fod_oneshot.json
	$(EVAL) oneshot --model $(MODEL) $(AQUARIUM) --json $(FIGURES)/aquarium_oneshot.json
	$(EVAL) oneshot --model $(MODEL) $(PLATES) --json $(FIGURES)/license_plates_oneshot.json
	$(EVAL) absence --model $(MODEL) $(COCO) --json $(FIGURES)/absence.json
	$(EVAL) calibrate --model $(MODEL) $(COCO) --plot $(FIGURES)/reliability.png --json $(FIGURES)/calibration.json
	$(EVAL) classify --model $(MODEL) $(TINY) --image-size 128 --json $(FIGURES)/tiny_all.json
	$(EVAL) classify --model $(MODEL) $(TINY) --image-size 128 --pictures trained --json $(FIGURES)/tiny_trained.json
	$(EVAL) classify --model $(MODEL) $(TINY) --image-size 128 --pictures heldout --among heldout --json $(FIGURES)/tiny_heldout.json
	$(EVAL) classify --model $(MODEL) --annotations $(D)/grocery/test.json --images $(D)/grocery/images --json $(FIGURES)/grocery.json
	$(EVAL) classify --model $(MODEL) --annotations $(D)/grocery/test.json --images $(D)/grocery/images --examples $(D)/grocery/iconic.json --json $(FIGURES)/grocery_iconic.json
	$(EVAL) retrieve --model $(MODEL) --annotations $(D)/flickr8k --json $(FIGURES)/retrieval.json

# Scores by name that mean what they say, on pictures of two kinds: simple ones that no training saw, whose boxes were guessed, and
# crowded ones with true boxes, which training saw. Writes the model with them to CALIBRATED.
CALIBRATED ?= runs/calibrated.safetensors
VALIDATION := runs/flickr8k_val
calibrate: $(VENV)/.dev
	mkdir -p $(VALIDATION)
	for tar in $(D)/flickr8k/val-*.tar; do tar -xf "$$tar" -C $(VALIDATION) || exit 1; done
	$(EVAL) calibrate --model $(MODEL) $(COCO) --fit $(D)/pseudo/flickr8k_val.json --fit-images $(VALIDATION) \
	  --fit $(D)/coco/train.json --fit-images $(D)/coco/images --to $(CALIBRATED)

# Masks of ten kinds of cut-outs that no training saw, on photographs that no training saw, by name and by exemplar.
NEW := guitar,rocket,lobster,cactus,saxophone,octopus,crown,snail,kite,abacus
M := runs/masks/heldout
CUTOUTS := --annotations $(M)/annotations.json --images $(M)/images
masks: $(VENV)/.dev
	$(BIN)/owl-swin paste $(D)/fluent_emoji_3d/all.json --names $(NEW) --on $(D)/license_plates/images --to $(M) --pictures 200 --seed 2
	$(EVAL) detect --model $(MODEL) $(CUTOUTS) --masks --json $(FIGURES)/masks.json
	$(EVAL) oneshot --model $(MODEL) $(CUTOUTS) --masks --draws 3 --json $(FIGURES)/masks_oneshot.json
	$(EVAL) segment --model $(MODEL) $(CUTOUTS) --json $(FIGURES)/maps.json

# By exemplars of things that no training saw: 1, 3 and 5, with negatives, with the name; and what is absent.
oneshot: $(VENV)/.dev
	for set in fod aquarium; do \
	  case $$set in fod) asked='--classes "$(FOD_HELDOUT)" $(FOD)';; *) asked='$(AQUARIUM)';; esac; \
	  for form in "1:--shots 1" "3:--shots 3" "5:--shots 5" "1_not:--shots 1 --negatives 3" "1_text:--shots 1 --with-text"; do \
	    eval $(EVAL) oneshot --model $(MODEL) $$asked $${form#*:} --json $(FIGURES)/oneshot_$${set}_$${form%%:*}.json || exit 1; \
	  done; \
	done
	$(EVAL) absence --model $(MODEL) $(COCO) --with exemplar --json $(FIGURES)/absence_exemplar.json

# Matching x box form at one equal budget; DATA as above, linked as "data" here.
ABLATION := centre_patch hungarian_patch hungarian_owl aligned_patch aligned_owl
ABLATION_EVAL = $(BIN)/owl-swin eval detect --image-size 96
ablation: $(VENV)/.dev
	@test -e data || ln -s "$(DATA)" data
	for run in $(ABLATION); do \
	  $(BIN)/owl-swin train configs/train/ablation_$$run.toml && \
	  $(ABLATION_EVAL) --model runs/ablation_$$run --annotations data/fod/test.json --images data/fod/images --classes "$(FOD_TRAINED)" --json runs/ablation_$$run/fod.json && \
	  $(ABLATION_EVAL) --model runs/ablation_$$run --annotations data/coco/test.json --images data/coco/images --classes person --json runs/ablation_$$run/coco_person.json || exit 1; \
	done

# The runs below learn at 256 px, and what they began with is measured at 256 px beside them.
EVAL_256 = $(EVAL) detect --image-size 256

# What fine-tuning on 50 pictures of new things gives and costs: ten kinds of cut-outs on photographs, four ways.
F := runs/forgetting
forgetting: $(VENV)/.dev
	@test -e data || ln -s "$(DATA)" data
	$(BIN)/owl-swin paste $(D)/fluent_emoji_3d/all.json --names $(NEW) --on $(D)/coco/images --to $(F)/new --pictures 50
	$(BIN)/owl-swin paste $(D)/fluent_emoji_3d/all.json --names $(NEW) --on $(D)/imagenet_1k_samples/images --to $(F)/test --pictures 50 --seed 1
	$(BIN)/owl-swin train configs/train/forgetting.toml --output $(F)/plain
	$(BIN)/owl-swin train configs/train/forgetting.toml --blend 0.5 --output $(F)/blend
	$(BIN)/owl-swin train configs/train/forgetting_replay.toml --output $(F)/replay
	$(BIN)/owl-swin train configs/train/forgetting_replay.toml --blend 0.5 --output $(F)/replay_blend
	for run in nano $(F)/plain $(F)/blend $(F)/replay $(F)/replay_blend; do \
	  name=$(F)/$$(basename $$run) && \
	  $(EVAL_256) --model $$run --annotations $(F)/test/annotations.json --images $(F)/test/images --json $$name.new.json && \
	  $(EVAL_256) --model $$run $(COCO) --json $$name.coco.json && \
	  $(EVAL_256) --model $$run $(FOD) --classes "$(FOD_TRAINED)" --json $$name.fod.json && \
	  $(EVAL_256) --model $$run $(FOD) --classes "$(FOD_HELDOUT)" --json $$name.heldout.json && \
	  $(EVAL) classify --model $$run $(TINY) --image-size 64 --pictures heldout --among heldout --json $$name.tiny.json || exit 1; \
	done

# What learning masks does to boxes: the shipped model, fine-tuned with its mask branch and by the same run without it.
J := runs/joint_masks
joint-masks: $(VENV)/.dev
	@test -e data || ln -s "$(DATA)" data
	$(BIN)/owl-swin paste $(D)/fluent_emoji_3d/all.json --names $(NEW) --on $(D)/coco/images --to $(J)/new --pictures 200
	$(BIN)/owl-swin paste $(D)/fluent_emoji_3d/all.json --names $(NEW) --on $(D)/imagenet_1k_samples/images --to $(J)/test --pictures 100 --seed 1
	sed 's/nano_masks/nano/' configs/train/joint_masks.toml > $(J)/boxes.toml
	$(BIN)/owl-swin train $(J)/boxes.toml --output $(J)/boxes
	$(BIN)/owl-swin train configs/train/joint_masks.toml
	for run in $(MODEL) $(J)/boxes $(J)/masks; do \
	  name=$(J)/$$(basename $$run) && \
	  case $$run in */boxes) masks=;; *) masks=--masks;; esac && \
	  $(EVAL_256) --model $$run --annotations $(J)/test/annotations.json --images $(J)/test/images $$masks --json $$name.new.json && \
	  $(EVAL_256) --model $$run $(COCO) --json $$name.coco.json && \
	  $(EVAL_256) --model $$run $(FOD) --classes "$(FOD_TRAINED)" --json $$name.fod.json && \
	  $(EVAL_256) --model $$run $(FOD) --classes "$(FOD_HELDOUT)" --json $$name.heldout.json || exit 1; \
	done

# label → train on soft scores → eval: at 256 px a model learns from what it found itself, at its own 416 px, in pictures that
# nobody labelled. Both are measured at 256 px.
ST := runs/self_training
self-training: $(VENV)/.dev
	@test -e data || ln -s "$(DATA)" data
	mkdir -p $(ST)
	$(BIN)/python -c "import json; print(*(c['name'] for c in json.load(open('data/coco/train.json'))['categories']), sep='\n')" > $(ST)/names.txt
	$(BIN)/owl-swin label data/imagenet_det200/images --queries $(ST)/names.txt --to $(ST)/labels.json --sheet $(ST)/labels.jpg
	$(BIN)/owl-swin train configs/train/self_training.toml
	for run in nano $(ST)/run; do \
	  $(EVAL_256) --model $$run $(COCO) --json $(ST)/$$(basename $$run).json || exit 1; \
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
