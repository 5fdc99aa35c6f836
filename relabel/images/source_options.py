"""Options behind the name of a source, as in hfds/NAME:SPLIT?image=COLUMN&label=COLUMN."""

import re
from urllib.parse import parse_qsl

from relabel.runtime.errors import InputError


def options_of(source: str, query: str, form: str) -> dict[str, str]:
    """The options in `query`, which is what follows the ? in `source`.

    Args:
        form: the source with all options that it can have.
    Raises:
        InputError: it has anything but such options with a value.
    """
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))  # a + in a path is no space
    known = re.findall(r"(\w+)=", form)
    if not all(value and name in known for name, value in options.items()):
        raise InputError(f"{source}: cannot read {query!r}; expected {form}")
    return options
