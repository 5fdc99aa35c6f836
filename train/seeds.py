"""Seeds for the random numbers of a training run. Everything drawn depends only on (seed, step or epoch, image)."""

import numpy as np

# The fourth number of a seed; seeds of crops have none, which counts as 0
CUTMIX_STREAM = 1
DROPOUT_STREAM = 2
REGION_STREAM = 3


def seed_of(*numbers: int) -> int:
    """A well-mixed 32-bit seed; torch's CPU generator uses no more bits.

    numpy pads the numbers with zeros, so seed_of(s, e) is seed_of(s, e, 0): the order of images in cycle t and the crop of
    image 0 in epoch t share a seed, and for t = 0 the initial weights share it too. They are drawn by different calls, and
    nothing needs them to be independent of each other. Seeds of CutMix, dropout and regions end in a number that is not 0.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
