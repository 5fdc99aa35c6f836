# relabel: `make help` lists the targets and variables.
#
# Every stage leaves a file by which make knows that it is done, and only when it has succeeded: annotate and verify leave a
# marker file in the label set; train, eval and report write weights.pth, eval.json and report.html atomically at the end.
# Calling a finished target again does nothing.

# What the user gives is text: neither make nor the shell looks for anything to expand or to run in it.
GIVEN := PYTHON IMAGENET TRAIN_IMAGES VAL_IMAGES ANNOTATOR ANNOTATOR_ARGS CHECKPOINT VERIFY_ARGS LABELS ARCH ARCH_ARGS RECIPE \
	EPOCHS SET RUN GPUS WORKERS MULTILABELS EVAL_ARGS TABLES DEMO SCRATCH
$(foreach name,$(GIVEN),$(if $(filter command environment,$(firstword $(origin $(name)))), \
	$(eval override $(name) := $$(value $(name)))))

comma := ,
empty :=
space := $(empty) $(empty)
define newline


endef
SPECIAL := ' " ` \ $$ & | ; < > ( ) { } [ ] * ? ! \# ~
has = $(strip $(foreach sign,$(2),$(findstring $(sign),$(1))))
spaced = $(findstring $(space),$(1))$(findstring	,$(1))
in_quotes = '$(subst ','\'',$(1))'
# One word for the shell, in quotes where it needs them.
quote = $(if $(call has,$(1),$(SPECIAL))$(call spaced,$(1)),$(in_quotes),$(1))
exists = $(shell test -e $(call quote,$(1)) && echo yes)

PYTHON ?= python3
VENV := .venv/installed

IMAGENET ?=
TRAIN_IMAGES ?= $(if $(IMAGENET),$(IMAGENET)/train)
VAL_IMAGES ?= $(if $(IMAGENET),$(if $(call exists,$(IMAGENET)/val),$(IMAGENET)/val))
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

# Make has no quotes for the names of files that it makes or waits for, and options are words for the shell, with quotes.
refuse = $(error $(1)=$($(1)): $(2))
$(foreach name,$(GIVEN),$(if $(findstring $(newline),$($(name))),$(call refuse,$(name),expected a single line)))
$(foreach name,LABELS RUN CHECKPOINT,$(if $(call has,$($(name)),$(SPECIAL) % :)$(call spaced,$($(name))), \
	$(call refuse,$(name),make cannot handle this path$(comma) as it has blanks or one of $(SPECIAL) % : ; use another$(comma) or a link to it)))
$(foreach name,ANNOTATOR_ARGS VERIFY_ARGS ARCH_ARGS EVAL_ARGS,$(if $(call has,$($(name)),` $$ ; & | < >), \
	$(call refuse,$(name),expected options: quotes are allowed$(comma) but none of ` $$ ; & | < >)))

ifeq ($(GPUS),1)
RELABEL := .venv/bin/relabel
else
RELABEL := .venv/bin/torchrun --standalone --nproc-per-node $(call quote,$(GPUS)) --no-python .venv/bin/relabel
endif

.DELETE_ON_ERROR:
.PHONY: help demo results bench bench-full reliability test test-fast fuzz check format annotate verify train eval report all \
	clean FORCE

define HELP
make demo                     run the whole chain on the embedded digit scenes; takes minutes, needs no GPU
make annotate IMAGENET=DIR    make label maps of DIR/train in LABELS
make verify   IMAGENET=DIR    check the label maps against DIR/train
make train    IMAGENET=DIR    train ARCH with RECIPE in RUN
make eval     IMAGENET=DIR    evaluate RUN on DIR/val
make report   IMAGENET=DIR    write RUN/report.html: the label maps, wrong labels, results of RUN
make all      IMAGENET=DIR    all stages; each stage first runs the ones it depends on
make test                     run all tests
make test-fast                run all tests that are not marked as slow
make fuzz                     run the commands on thousands of spoilt files and odd options
make check                    check format, lint and types
make format                   format the code and fix lint errors
make bench                    measure the speed of each part, as ratios to its alternatives
make bench-full               measure time and memory for a label set of the size of ImageNet; needs 20 GB in SCRATCH
make reliability              kill runs, flip bits, fill disks: how often the outcome is not the promised one
make results                  measure the tables of docs/results.md and write them there; takes hours
make clean                    delete the output of make demo and make results

Variables and their current values:
  IMAGENET=$(IMAGENET)             folder with train/ and val/, each with one folder per class
  TRAIN_IMAGES=$(TRAIN_IMAGES) VAL_IMAGES=$(VAL_IMAGES)   used instead of IMAGENET: folders, .tar files, .txt lists, wds/FOLDER:SPLIT, hfds/NAME:SPLIT
  ANNOTATOR=$(ANNOTATOR)   any timm classifier
  CHECKPOINT=$(CHECKPOINT)           your own weights for ANNOTATOR
  ANNOTATOR_ARGS=$(ANNOTATOR_ARGS)       more options of `relabel annotate`
  VERIFY_ARGS=$(VERIFY_ARGS)          more options of `relabel verify`
  LABELS=$(LABELS)
  ARCH=$(ARCH)         any timm model
  ARCH_ARGS=$(ARCH_ARGS)            more options of `relabel train`
  RECIPE=$(RECIPE)        `relabel recipes` lists them
  EPOCHS=$(EPOCHS)               number of epochs; default: the recipe's
  SET=$(SET)                  settings that override the recipe's, such as SET="lr=0.2 batch_size=256"
  RUN=$(RUN)
  GPUS=$(GPUS)                number of processes on this machine, one per GPU
  WORKERS=$(WORKERS)              decoding workers of each process; default: as many as there are cores
  SCRATCH=$(SCRATCH)              folder for bench-full; default: the system's temporary folder
  MULTILABELS=$(MULTILABELS)          JSON file with all the classes that each validation image shows
  EVAL_ARGS=$(EVAL_ARGS)            more options of `relabel eval`, such as --suite DIR --fgsm
  TABLES=$(TABLES)               for make results: targets, robustness, regions, fidelity or noise; default: all
endef

help:
	@:$(info $(HELP))

# --- set-up -----------------------------------------------------------------------------------------------------------

$(VENV): pyproject.toml constraints.txt
	@$(call quote,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ printf 'relabel needs Python 3.11 or newer; %s is %s. Choose another one: make PYTHON=python3.12 ...\n' \
		$(call quote,$(PYTHON)) "$$($(call quote,$(PYTHON)) -V)"; exit 1; }
	$(call quote,$(PYTHON)) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

# --- the stages -------------------------------------------------------------------------------------------------------

annotate: $(LABELS)/.annotated
verify: $(LABELS)/.verified
train: $(RUN)/weights.pth
eval: $(RUN)/eval.json
report: $(RUN)/report.html
all: $(if $(USED_LABELS),report,eval)

# The first check of every stage.
define images
	@$(if $(TRAIN_IMAGES),:,echo "make: no images given; pass IMAGENET=DIR, a folder with train/ and val/"; exit 2)
endef

# NAME=VALUE settings, separated by blanks. A word without = belongs to the value before it, as in crop_scale=[0.25, 1].
marked = $(foreach word,$(SET),$(if $(findstring =,$(word)),<set>)$(word))
quoted_settings = --set '$(subst <set>,,$(subst $(space)<set>,' --set ',$(subst ','\'',$(marked))))'
plain = $(if $(strip $(call has,$(SET),$(SPECIAL))$(foreach word,$(SET),$(if $(findstring =,$(word)),,no))),,yes)
settings = $(if $(plain),$(foreach setting,$(SET),--set $(setting)),$(quoted_settings))

# The options of a stage are stored next to its output. If they change, make runs the stage again, and the stage then reports
# what conflicts with them. The number of processes and of workers is not one of these options.
option = $(if $(2), $(1) $(call quote,$(2)))
more = $(if $(strip $(1)), $(strip $(1)))
ANNOTATE_OPTIONS = $(call quote,$(TRAIN_IMAGES)) --labels $(LABELS)$(call option,--model,$(ANNOTATOR))$(call \
	option,--checkpoint,$(CHECKPOINT))$(call more,$(ANNOTATOR_ARGS))
VERIFY_OPTIONS = --images $(call quote,$(TRAIN_IMAGES))$(if $(findstring --spot-check,$(VERIFY_ARGS)),$(call \
	option,--checkpoint,$(CHECKPOINT)))$(call more,$(VERIFY_ARGS))
TRAIN_OPTIONS = $(call quote,$(TRAIN_IMAGES)) --run-dir $(RUN)$(call option,--arch,$(ARCH))$(call \
	option,--recipe,$(RECIPE)) --resume$(call option,--labels,$(USED_LABELS))$(call option,--val,$(VAL_IMAGES))$(call \
	option,--multilabels,$(MULTILABELS))$(call option,--set,$(addprefix epochs=,$(EPOCHS)))$(call \
	more,$(settings))$(call more,$(ARCH_ARGS))
EVAL_OPTIONS = $(call quote,$(VAL_IMAGES)) --checkpoint $(RUN)/weights.pth --output $(RUN)/eval.json$(call \
	option,--multilabels,$(MULTILABELS))$(call more,$(EVAL_ARGS))
REPORT_OPTIONS = $(LABELS) --images $(call quote,$(TRAIN_IMAGES)) --run $(RUN) --output $(RUN)/report.html
DECODERS = $(call option,--workers,$(WORKERS))

$(LABELS)/.annotate-options: FORCE
	$(images)
	@$(call remember,$(ANNOTATE_OPTIONS))
$(LABELS)/.verify-options: FORCE
	$(images)
	@$(call remember,$(VERIFY_OPTIONS))
$(RUN)/.train-options: FORCE
	$(images)
	@$(call remember,$(TRAIN_OPTIONS))
$(RUN)/.eval-options: FORCE
	@$(call remember,$(EVAL_OPTIONS))
$(RUN)/.report-options: FORCE
	@$(call remember,$(REPORT_OPTIONS))

define remember
mkdir -p $(@D) && options=$(in_quotes) && { printf '%s\n' "$$options" | cmp -s - $@ || printf '%s\n' "$$options" > $@; }
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
	@$(if $(VAL_IMAGES),:,echo 'make: training without validation images; $(if $(IMAGENET),IMAGENET has no val/$(comma) )pass VAL_IMAGES=DIR')
	$(RELABEL) train $(TRAIN_OPTIONS)$(DECODERS)

$(RUN)/eval.json: $(RUN)/weights.pth $(RUN)/.eval-options
	@$(if $(VAL_IMAGES),:,printf 'make: no validation images in %s; pass VAL_IMAGES=DIR\n' $(call quote,$(IMAGENET)/val); exit 2)
	$(RELABEL) eval $(EVAL_OPTIONS)$(DECODERS)

$(RUN)/report.html: $(RUN)/eval.json $(LABELS)/.annotated $(RUN)/.report-options
	.venv/bin/relabel report $(REPORT_OPTIONS)

# --- the embedded scenes ----------------------------------------------------------------------------------------------

demo: | $(VENV)
	@.venv/bin/python -m pipeline.demo $(call quote,$(DEMO))

results: | $(VENV)
	.venv/bin/python -m benchmarks.results $(foreach table,$(TABLES),$(call quote,$(table)))

# --- the code ---------------------------------------------------------------------------------------------------------

# In the order of the folders: files of few tests, which would come last, are those that take longest.
test: | $(VENV)
	.venv/bin/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

fuzz: | $(VENV)
	FUZZ_CASES=5000 FUZZ_SEED=$$(date +%s) .venv/bin/pytest --numprocesses auto tests/test_fuzz.py

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
	.venv/bin/python -m benchmarks.region_store
	.venv/bin/python -m benchmarks.annotate
	.venv/bin/python -m benchmarks.annotate_regions
	.venv/bin/python -m benchmarks.loaders
	.venv/bin/python -m benchmarks.crops
	.venv/bin/python -m benchmarks.training_step
	.venv/bin/python -m benchmarks.training_loop

bench-full: | $(VENV)
	.venv/bin/python -m benchmarks.full_label_set $(call quote,$(SCRATCH))
	.venv/bin/python -m benchmarks.worker_memory $(call quote,$(SCRATCH))

reliability: | $(VENV)
	.venv/bin/python -m benchmarks.reliability --kills 10 --flips 1000 --disks 10 --cuts 8

clean:
	rm -rf -- $(call quote,$(DEMO)) results
