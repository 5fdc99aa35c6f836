"""Recognise and report failures of torch.compile, for annotate and train alike."""

import sys

from relabel.runtime.errors import InputError, first_line


def is_compile_error(error: BaseException) -> bool:
    """Whether torch.compile raised this error. It compiles, and so may fail, at the first batch of each shape."""
    exceptions = sys.modules.get("torch._dynamo.exc")  # loaded once anything is compiled; importing it takes seconds
    return exceptions is not None and isinstance(error, exceptions.TorchDynamoException)


def compile_failed(what: str, error: BaseException) -> InputError:
    return InputError(f"--compile: torch cannot compile {what} here ({first_line(error)}); leave it out")
