"""Defaults, and the values that an option may have, shared by the command line and the code behind it.

Nothing here needs torch, so `relabel --help` does not import it.
"""

from typing import Literal

Tail = Literal["mean", "logmeanexp", "zero"]  # the logit of classes that a cell does not store; see labels/manifest.py
Precision = Literal["float32", "bfloat16", "float16"]  # of a forward pass
HalfPrecision = Literal["bfloat16", "float16"]
Loss = Literal["ce", "bce"]  # a classifier is trained with softmax cross-entropy, or a sigmoid per class
Axes = Literal["yx", "xy"]  # the last two axes of a published map: the image's rows and columns, or columns and rows
RegionTarget = Literal["spread", "renormalised", "softmax"]  # of the classes that another project's store leaves out
ForeignFormat = Literal["fkd", "tiny-vit", "ml-dr", "token-labeling", "relabel"]  # of other projects' stores
AxesChoice = Literal["yx", "xy", "auto"]  # auto: an annotator decides

ANNOTATOR = "tf_efficientnet_l2.ns_jft_in1k_475"  # the paper's
TAIL: Tail = "mean"
REGION_TAIL: Tail = "logmeanexp"  # the stored classes keep their probabilities, as in FKD, TinyViT and ml-dr
CROP_SCALE = (0.08, 1.0)  # of regions: share of the image's area
CROP_RATIO = (0.75, 1.3333)  # of regions: width / height
HFLIP = 0.5  # of regions: probability of mirroring
SHARD_SIZE = 4096  # images
MAX_CLASSES = 10_000_000  # the logits of one batch of so many would fill the memory
MAX_PIXELS = 8192  # of a side of an image that a model is given: more would fill the memory before anything else fails
ANNOTATE_BATCH_SIZE = 32
MIN_AGREEMENT = 0.2  # far above chance for ImageNet, far below any annotator
COMPARE_BOXES = 4  # random boxes per image
NOISE_THRESHOLD = 0.5  # of the most probable class's probability; docs/results.md has what this finds
SAVE_MINUTES = 15.0
EVAL_BATCH_SIZE = 256
