"""Defaults that the command line and the stages behind it share. None needs torch, which --help does without."""

from typing import Literal

ANNOTATOR = "tf_efficientnet_l2.ns_jft_in1k_475"  # the paper's
TAIL: Literal["mean"] = "mean"  # of the logits that a cell does not store
SHARD_SIZE = 4096  # images
ANNOTATE_BATCH_SIZE = 32
MIN_AGREEMENT = 0.2  # of maps with their folders: far above chance for ImageNet, far below any annotator
COMPARE_BOXES = 4  # random boxes per image
SAVE_MINUTES = 15.0
EVAL_BATCH_SIZE = 256
