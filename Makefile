# relabel: `make help` lists the targets and variables.
#
# Every stage leaves a file by which make knows that it is done, and only when it has succeeded: annotate and verify leave a
# marker file in the label set, train and eval write weights.pth and eval.json atomically at the end. Calling a finished
# target again does nothing.

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

# Recipes that do not need a label set.
LABEL_FREE := single label-smoothing distillation scenes-annotator scenes-single

name = $(subst /,-,$(subst :,-,$(1)))
LABELS ?= labels/$(call name,$(ANNOTATOR))
USED_LABELS = $(if $(filter $(LABEL_FREE),$(RECIPE)),,$(LABELS))
RUN ?= runs/$(call name,$(ARCH))-$(basename $(notdir $(RECIPE)))$(if $(USED_LABELS),-$(notdir $(LABELS)))$(if $(EPOCHS),-$(EPOCHS)epochs)

ifeq ($(GPUS),1)
RELABEL := .venv/bin/relabel
else
RELABEL := .venv/bin/torchrun --standalone --nproc-per-node $(GPUS) --no-python .venv/bin/relabel
endif

.DELETE_ON_ERROR:
.PHONY: help demo results bench bench-full test test-fast check format annotate verify train eval all clean FORCE

help:
	@echo 'make demo                     run the whole chain on the embedded digit scenes; takes minutes, needs no GPU'
	@echo 'make annotate IMAGENET=DIR    make label maps of DIR/train in LABELS'
	@echo 'make verify   IMAGENET=DIR    check the label maps against DIR/train'
	@echo 'make train    IMAGENET=DIR    train ARCH with RECIPE in RUN'
	@echo 'make eval     IMAGENET=DIR    evaluate RUN on DIR/val'
	@echo 'make all      IMAGENET=DIR    all four stages; each stage first runs the ones it depends on'
	@echo 'make test                     run all tests'
	@echo 'make test-fast                run all tests that are not marked as slow'
	@echo 'make check                    check format, lint and types'
	@echo 'make format                   format the code and fix lint errors'
	@echo 'make bench                    measure the speed of each part, as ratios to its alternatives'
	@echo 'make bench-full               measure time and memory for a label set of the size of ImageNet; needs 20 GB in SCRATCH'
	@echo 'make results                  measure the tables of docs/results.md and write them there; takes hours'
	@echo 'make clean                    delete the output of make demo and make results'
	@echo
	@echo 'Variables and their current values:'
	@echo '  IMAGENET=$(IMAGENET)             folder with train/ and val/, each with one folder per class'
	@echo '  TRAIN_IMAGES=$(TRAIN_IMAGES) VAL_IMAGES=$(VAL_IMAGES)   used instead of IMAGENET: folders, .tar files, .txt lists, hfds/NAME:SPLIT'
	@echo '  ANNOTATOR=$(ANNOTATOR)   any timm classifier'
	@echo '  CHECKPOINT=$(CHECKPOINT)           your own weights for ANNOTATOR'
	@echo '  ANNOTATOR_ARGS=$(ANNOTATOR_ARGS)       more options of `relabel annotate`'
	@echo '  VERIFY_ARGS=$(VERIFY_ARGS)          more options of `relabel verify`'
	@echo '  LABELS=$(LABELS)'
	@echo '  ARCH=$(ARCH)         any timm model'
	@echo '  ARCH_ARGS=$(ARCH_ARGS)            more options of `relabel train`'
	@echo '  RECIPE=$(RECIPE)        `relabel recipes` lists them'
	@echo '  EPOCHS=$(EPOCHS)               number of epochs; default: the recipe'"'"'s'
	@echo '  SET=$(SET)                  settings that override the recipe'"'"'s, such as SET="lr=0.2 batch_size=256"'
	@echo '  RUN=$(RUN)'
	@echo '  GPUS=$(GPUS)                number of processes on this machine, one per GPU'
	@echo '  WORKERS=$(WORKERS)              decoding workers of each process; default: as many as there are cores'
	@echo '  SCRATCH=$(SCRATCH)              folder for bench-full; default: the system'"'"'s temporary folder'
	@echo '  MULTILABELS=$(MULTILABELS)          JSON file with all the classes that each validation image shows'
	@echo '  EVAL_ARGS=$(EVAL_ARGS)            more options of `relabel eval`, such as --suite DIR --fgsm'
	@echo '  TABLES=$(TABLES)               for make results: targets or robustness; default: both'

# --- set-up -----------------------------------------------------------------------------------------------------------

$(VENV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "relabel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Choose another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

# --- the stages -------------------------------------------------------------------------------------------------------

annotate: $(LABELS)/.annotated
verify: $(LABELS)/.verified
train: $(RUN)/weights.pth
eval: $(RUN)/eval.json
all: eval

# The first check of every stage.
define images
	@test -n "$(TRAIN_IMAGES)" || { echo "make: no images given; pass IMAGENET=DIR, a folder with train/ and val/"; exit 2; }
endef

# The options of a stage are stored next to its output. If they change, make runs the stage again, and the stage then reports
# what conflicts with them. The number of processes and of workers is not one of these options.
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

# If verify finds an error, the marker of annotate is deleted too, so that make annotates again, which is how to fix the error.
$(LABELS)/.verified: $(LABELS)/.annotated $(LABELS)/.verify-options
	.venv/bin/relabel verify $(LABELS) $(VERIFY_OPTIONS) || { rm -f $(LABELS)/.annotated; exit 1; }
	@touch $@

# Labels are verified before training, but verifying them again does not make the weights out of date.
$(RUN)/weights.pth: $(if $(USED_LABELS),$(LABELS)/.annotated) $(RUN)/.train-options | $(VENV) $(if $(USED_LABELS),$(LABELS)/.verified)
	$(RELABEL) train $(TRAIN_OPTIONS)$(DECODERS)

$(RUN)/eval.json: $(RUN)/weights.pth $(RUN)/.eval-options
	@test -n "$(VAL_IMAGES)" || { echo "make: no validation images in $(IMAGENET)/val; pass VAL_IMAGES=DIR"; exit 2; }
	$(RELABEL) eval $(EVAL_OPTIONS)$(DECODERS)

# --- the embedded scenes ----------------------------------------------------------------------------------------------

demo: | $(VENV)
	@.venv/bin/python -m pipeline.demo $(DEMO)

results: | $(VENV)
	.venv/bin/python -m benchmarks.results $(TABLES)

# --- the code ---------------------------------------------------------------------------------------------------------

test: | $(VENV)
	.venv/bin/pytest --numprocesses auto --dist loadfile

test-fast: | $(VENV)
	.venv/bin/pytest -m "not slow" --numprocesses auto --dist loadfile

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
