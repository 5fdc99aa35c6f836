"""Seeds for the random numbers of a training run. Everything drawn depends on (seed, step or epoch, image) only."""

import numpy as np

CUTMIX_STREAM = 1  # apart from the seeds of crops, whose last number is left out
DROPOUT_STREAM = 2  # the last number of its seeds, apart from those of crops, which have none there


def seed_of(*numbers: int) -> int:
    """A well-mixed 32-bit seed, which is all that torch's CPU generator uses.

    numpy fills up with zeros, so that seed_of(s, e) is seed_of(s, e, 0): the order of turn t and the crop of image 0 in
    epoch t share a seed, and with t = 0 the initial weights too. They are drawn by other calls; nothing depends on
    their being independent of one another. CutMix's and dropout's numbers end in one that is not 0.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
