"""The one exception for what a user or a disk got wrong; the command line prints its message and exits with 1. And how the
errors of other libraries are recognised and quoted."""


class InputError(ValueError):
    """Says what was found, where, what was expected, and what to do. Anything else that is raised is a bug of ours."""


# as CUDA, the CPU (twice), cuDNN and cuBLAS, and oneDNN put it
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED", "could not create a primitive")


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device's memory, or the machine's, is full."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """What another library says of an error, without the pages that may follow; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
