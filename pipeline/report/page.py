"""One HTML file out of templates, style sheet, scripts and data: it loads nothing, and no name in it can be code."""

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pipeline.show.figure import COLOURS, OTHERS

SOFTWARE = "relabel report"  # in the page: by this a file is known to be one of ours
STYLES = ("page.css",)
SCRIPTS = ("pooling.js", "explorer.js", "viewer.js")
CLASSES_ON_CARD = 4  # of the classes that have a colour
MAX_NAME = 80  # characters of a class name; longer ones are cut


class Templates:
    """The templates of a report, which share the names of the classes."""

    def __init__(self, name_of: Callable[[int], str]) -> None:
        self._environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(resource))
        self.name_of = functools.cache(lambda number: cut(name_of(number)))
        self._environment.globals["name_of"] = self.name_of

    def card(self, **values: Any) -> Markup:
        """An image with its thumbnail and numbers."""
        return Markup(self._environment.get_template("card.html").render(values, classes_on_card=CLASSES_ON_CARD))

    def page(self, data: Mapping[str, Any], **values: Any) -> bytes:
        """The whole page.

        Args:
            data: for the scripts.
        """
        colours = "".join(f"--c{place}: {colour}; " for place, colour in enumerate(COLOURS))
        style = f":root {{ {colours}--others: {OTHERS}; }}\n" + "".join(map(resource, STYLES))
        script = "".join(map(resource, SCRIPTS))
        policy = f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}"
        page = self._environment.get_template("page.html").render(
            values,
            policy=Markup(policy),
            style=Markup(style),
            script=Markup(script),
            data=Markup(as_script(data)),
            software=SOFTWARE,
        )
        return as_bytes(page)


def resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def cut(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def as_script(data: Any) -> str:
    """JSON that ends neither the element that it is in, nor a line of JavaScript."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def as_bytes(text: str) -> bytes:
    """UTF-8; bytes of names that are no text become question marks."""
    return text.encode(errors="replace")


def digest(text: str) -> str:
    """By which a content security policy knows a style sheet or a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(as_bytes(text)).digest()).decode()}'"
