"""InputError, the exception for anything a user or a disk can get wrong; and how errors of other libraries are quoted.

The command line prints an InputError's message and exits with status 1.
"""

import re


class InputError(ValueError):
    """Its message says what was found, where, what was expected, and what to do. Any other exception is a bug in relabel."""


# how CUDA, the CPU (two ways), cuDNN and cuBLAS, and oneDNN word it
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED", "could not create a primitive")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the machine is full."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """The first line of another library's message, without the pages that may follow; the error's type if it is empty."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours some of its messages
    return next(iter(text.strip().splitlines()), type(error).__name__)
