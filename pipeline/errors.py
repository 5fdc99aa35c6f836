"""The one exception for what a user or a disk got wrong; the command line prints its message and exits with 1. And how the
errors of other libraries are quoted in it."""


class InputError(ValueError):
    """Says what was found, where, what was expected, and what to do. Anything else that is raised is a bug of ours."""


def first_line(error: BaseException) -> str:
    """What another library says of an error, without the pages that may follow; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
