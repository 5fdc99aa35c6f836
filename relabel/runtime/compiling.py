"""torch.compile's failures, told from others, and what is said of them: in annotate and in train alike."""

import sys

from relabel.runtime.errors import InputError, first_line


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile raised this: it does so when a batch of a new shape first comes."""
    exceptions = sys.modules.get("torch._dynamo.exc")  # there once anything is compiled; importing it takes seconds
    return exceptions is not None and isinstance(error, exceptions.TorchDynamoException)


def compile_failed(what: str, error: BaseException) -> InputError:
    return InputError(f"--compile: torch cannot compile {what} here ({first_line(error)}); leave it out")
