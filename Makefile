# relabel: `make help` lists what there is.
#
# Every stage leaves a file that make can see, and none that is half done: labels are marked when annotate and verify have
# succeeded, weights.pth and eval.json are written whole at the end. A second call does nothing.

PYTHON ?= python3
VENV := .venv/installed

IMAGENET ?=
TRAIN_IMAGES ?= $(if $(IMAGENET),$(IMAGENET)/train)
VAL_IMAGES ?= $(if $(IMAGENET),$(wildcard $(IMAGENET)/val))
ANNOTATOR ?= tf_efficientnet_l2.ns_jft_in1k_475
ANNOTATOR_ARGS ?=
CHECKPOINT ?=
VERIFY_ARGS ?=
ARCH ?= resnet50
ARCH_ARGS ?=
RECIPE ?= relabel
EPOCHS ?=
SET ?=
GPUS ?= 1
WORKERS ?=
MULTILABELS ?=
EVAL_ARGS ?=
TABLES ?=
DEMO ?= demo
SCRATCH ?=

# Recipes that read no label set.
LABEL_FREE := single label-smoothing distillation scenes-annotator scenes-single

name = $(subst /,-,$(subst :,-,$(1)))
LABELS ?= labels/$(call name,$(ANNOTATOR))
USED_LABELS = $(if $(filter $(LABEL_FREE),$(RECIPE)),,$(LABELS))
RUN ?= runs/$(call name,$(ARCH))-$(basename $(notdir $(RECIPE)))$(if $(USED_LABELS),-$(notdir $(LABELS)))$(if $(EPOCHS),-$(EPOCHS)epochs)

ifeq ($(GPUS),1)
RELABEL := .venv/bin/relabel
else
RELABEL := .venv/bin/torchrun --standalone --nproc-per-node $(GPUS) -m pipeline
endif

.DELETE_ON_ERROR:
.PHONY: help demo results bench bench-full test check format annotate verify train eval all clean FORCE

help:
	@echo 'make demo                     the whole chain on the embedded digit scenes, no GPU needed, in minutes'
	@echo 'make annotate IMAGENET=DIR    label maps of DIR/train into LABELS'
	@echo 'make verify   IMAGENET=DIR    check them against DIR/train'
	@echo 'make train    IMAGENET=DIR    train ARCH by RECIPE into RUN'
	@echo 'make eval     IMAGENET=DIR    evaluate it on DIR/val'
	@echo 'make all      IMAGENET=DIR    all of these, in order; each of them makes what it needs first'
	@echo 'make test | check | format    the tests | format, lint and types | put the code in form'
	@echo 'make bench                    speed of each part against what could replace it, as ratios'
	@echo 'make bench-full               a label set as large as ImageNet: seconds and memory; needs 20 GB of disk, in SCRATCH'
	@echo 'make results                  the tables of README.md, over seeds; writes them there (hours); TABLES= one of them'
	@echo 'make clean                    delete what make demo and make results have made'
	@echo
	@echo 'Variables, and what they are now:'
	@echo '  IMAGENET=$(IMAGENET)             folder with train/ and val/, each with one folder per class'
	@echo '  TRAIN_IMAGES=$(TRAIN_IMAGES) VAL_IMAGES=$(VAL_IMAGES)   or each by itself: folders, .tar files, .txt lists, hfds/NAME:SPLIT'
	@echo '  ANNOTATOR=$(ANNOTATOR)   any timm classifier'
	@echo '  CHECKPOINT=$(CHECKPOINT)           your own weights for ANNOTATOR'
	@echo '  ANNOTATOR_ARGS=$(ANNOTATOR_ARGS)       more options of `relabel annotate`'
	@echo '  VERIFY_ARGS=$(VERIFY_ARGS)          more options of `relabel verify`'
	@echo '  LABELS=$(LABELS)'
	@echo '  ARCH=$(ARCH)         any timm model'
	@echo '  ARCH_ARGS=$(ARCH_ARGS)            more options of `relabel train`'
	@echo '  RECIPE=$(RECIPE)        `relabel recipes` lists them'
	@echo '  EPOCHS=$(EPOCHS)               instead of the recipe'"'"'s'
	@echo '  SET=$(SET)                  settings instead of the recipe'"'"'s, such as SET="lr=0.2 batch_size=256"'
	@echo '  RUN=$(RUN)'
	@echo '  GPUS=$(GPUS)                processes of torchrun on this machine'
	@echo '  WORKERS=$(WORKERS)              decoding processes for each of them; as many as there are cores'
	@echo '  SCRATCH=$(SCRATCH)              folder for bench-full; the system'"'"'s temporary one'
	@echo '  MULTILABELS=$(MULTILABELS)          JSON of all the classes that each validation image shows'
	@echo '  EVAL_ARGS=$(EVAL_ARGS)            more options of `relabel eval`, such as --suite DIR --fgsm'
	@echo '  TABLES=$(TABLES)               of make results: targets, robustness, recipes'

# --- set-up -----------------------------------------------------------------------------------------------------------

$(VENV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "relabel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

# --- the stages -------------------------------------------------------------------------------------------------------

annotate: $(LABELS)/.annotated
verify: $(LABELS)/.verified
train: $(RUN)/weights.pth
eval: $(RUN)/eval.json
all: eval

# Before anything else: are there images?
define images
	@test -n "$(TRAIN_IMAGES)" || { echo "make: say where the images are: IMAGENET=DIR, a folder with train/ and val/"; exit 2; }
endef

# The options of a stage, kept beside what it made, so that other options make it again (and the stage then says what is in
# the way). How many processes work on it is no such option.
ANNOTATE_OPTIONS = $(strip $(TRAIN_IMAGES) --labels $(LABELS) --model $(ANNOTATOR) \
	$(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(ANNOTATOR_ARGS))
VERIFY_OPTIONS = $(strip --images $(TRAIN_IMAGES) \
	$(if $(CHECKPOINT),$(if $(findstring --spot-check,$(VERIFY_ARGS)),--checkpoint $(CHECKPOINT))) $(VERIFY_ARGS))
TRAIN_OPTIONS = $(strip $(TRAIN_IMAGES) --run-dir $(RUN) --arch $(ARCH) --recipe $(RECIPE) --resume \
	$(if $(USED_LABELS),--labels $(LABELS)) $(if $(VAL_IMAGES),--val $(VAL_IMAGES)) \
	$(if $(MULTILABELS),--multilabels $(MULTILABELS)) $(if $(EPOCHS),--set epochs=$(EPOCHS)) \
	$(foreach setting,$(SET),--set $(setting)) $(ARCH_ARGS))
EVAL_OPTIONS = $(strip $(VAL_IMAGES) --checkpoint $(RUN)/weights.pth --output $(RUN)/eval.json \
	$(if $(MULTILABELS),--multilabels $(MULTILABELS)) $(EVAL_ARGS))
export ANNOTATE_OPTIONS VERIFY_OPTIONS TRAIN_OPTIONS EVAL_OPTIONS
DECODERS = $(if $(WORKERS), --workers $(WORKERS))

$(LABELS)/.annotate-options: FORCE
	$(images)
	@$(call remember,$$ANNOTATE_OPTIONS)
$(LABELS)/.verify-options: FORCE
	$(images)
	@$(call remember,$$VERIFY_OPTIONS)
$(RUN)/.train-options: FORCE
	$(images)
	@$(call remember,$$TRAIN_OPTIONS)
$(RUN)/.eval-options: FORCE
	@$(call remember,$$EVAL_OPTIONS)

define remember
mkdir -p $(@D) && { printf '%s\n' "$(1)" | cmp -s - $@ || printf '%s\n' "$(1)" > $@; }
endef

$(LABELS)/.annotated: $(CHECKPOINT) $(LABELS)/.annotate-options | $(VENV)
	$(RELABEL) annotate $(ANNOTATE_OPTIONS)$(DECODERS)
	@touch $@

# Where verify finds something, the mark of annotate goes: its remedy is to annotate again, which make must not take for done.
$(LABELS)/.verified: $(LABELS)/.annotated $(LABELS)/.verify-options
	.venv/bin/relabel verify $(LABELS) $(VERIFY_OPTIONS) || { rm -f $(LABELS)/.annotated; exit 1; }
	@touch $@

# Labels are verified before they are trained on; verifying them again is no reason to train again.
$(RUN)/weights.pth: $(if $(USED_LABELS),$(LABELS)/.annotated) $(RUN)/.train-options | $(VENV) $(if $(USED_LABELS),$(LABELS)/.verified)
	$(RELABEL) train $(TRAIN_OPTIONS)$(DECODERS)

$(RUN)/eval.json: $(RUN)/weights.pth $(RUN)/.eval-options
	@test -n "$(VAL_IMAGES)" || { echo "make: no validation images in $(IMAGENET)/val; name them by VAL_IMAGES="; exit 2; }
	$(RELABEL) eval $(EVAL_OPTIONS)$(DECODERS)

# --- the embedded scenes ----------------------------------------------------------------------------------------------

demo: | $(VENV)
	@.venv/bin/python -m pipeline.demo $(DEMO)

results: | $(VENV)
	.venv/bin/python -m benchmarks.results $(TABLES)

# --- the code ---------------------------------------------------------------------------------------------------------

test: | $(VENV)
	.venv/bin/pytest --numprocesses 2 --dist loadfile

check: | $(VENV)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: | $(VENV)
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: | $(VENV)
	.venv/bin/python -m benchmarks.label_pooling
	.venv/bin/python -m benchmarks.label_store
	.venv/bin/python -m benchmarks.annotate
	.venv/bin/python -m benchmarks.crops
	.venv/bin/python -m benchmarks.training_step
	.venv/bin/python -m benchmarks.training_loop

bench-full: | $(VENV)
	.venv/bin/python -m benchmarks.full_label_set $(SCRATCH)

clean:
	rm -rf $(DEMO) results
