"""The one exception for what a user or a disk got wrong; the command line prints its message and exits with 1."""


class InputError(ValueError):
    """Says what was found, where, what was expected, and what to do. Anything else that is raised is a bug of ours."""
