"""Make a dense logit map small enough to store: keep the k largest logits of every cell, and one value for all the others.

Shapes: B images, C classes, k classes kept per cell, H rows and W columns of the label map.
"""

import math

import torch
from torch import Tensor

from relabel.labels.maps import LabelMaps
from relabel.runtime.defaults import Tail


def sparsify(logits: Tensor, topk: int, tail: Tail) -> LabelMaps:
    """Reduce (B, C, H, W) logits, on their device, to the k largest per cell.

    Args:
        tail: what stands for the other C - k logits of a cell. "mean": their mean (pooling is linear, so this preserves
            their sum); "logmeanexp": the log of the mean of their exponentials; "zero": 0.
    Returns:
        label maps with sorted float32 scores, int64 classes, and the tail, which is 0 if all classes are kept.
    """
    logits = logits.float()
    scores, classes = logits.topk(topk, dim=1)
    left_out = logits.shape[1] - topk
    if tail == "zero" or left_out == 0:
        rest = torch.zeros_like(scores[:, 0])
    elif tail == "mean":
        rest = (logits.sum(1) - scores.sum(1)) / left_out
    else:
        rest = logits.scatter(1, classes, -math.inf).logsumexp(1) - math.log(left_out)
    return LabelMaps(scores, classes, rest)
