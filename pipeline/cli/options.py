"""Options that several commands share, and how their values are read."""

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from relabel.runtime.defaults import MAX_PIXELS, HalfPrecision
from relabel.runtime.errors import InputError, first_line
from relabel.runtime.typed import shown

Images = Annotated[
    str,
    typer.Argument(
        help="Images: a folder IMAGES/CLASS/*.JPEG, a .txt list of paths, .tar files, WebDataset shards"
        " wds/FOLDER[:SPLIT][?label=FIELD&class_map=FILE], or hfds/NAME[:SPLIT][?image=COLUMN&label=COLUMN&class_map=FILE]."
    ),
]
Labels = Annotated[Path, typer.Option(help="Folder of the label set.")]
ModelKwargs = Annotated[
    list[str], typer.Option(metavar="KEY=VALUE", help="Passed to timm.create_model; may be given several times.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; by default CUDA if there is one.")]
ClassNamesFile = Annotated[
    Path | None, typer.Option("--class-names", help="Lines FOLDER NAME, used instead of WordNet's names for WordNet ids.")
]
Amp = Annotated[bool | None, typer.Option(help="Mixed precision, in --amp-dtype; by default on CUDA only.")]
AmpDtype = Annotated[
    HalfPrecision | None, typer.Option(help="bfloat16 is the default; float16 is for GPUs without fast bfloat16.")
]
Workers = Annotated[
    int | None,
    typer.Option(help="Decoding processes per GPU process; 0 decodes in that process. By default its share of the cores."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that this command has not written, too.")]
Compile = Annotated[bool, typer.Option("--compile", help="Use torch.compile: minutes at the start, faster afterwards.")]


def parse_model_kwargs(pairs: list[str], option: str = "--model-kwargs") -> dict[str, Any]:
    """KEY=VALUE arguments, as in timm's scripts: a value is a Python literal, or else a string.

    Raises:
        InputError: an argument without `=`.
    """
    kwargs: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"{option} {shown(pair)}: expected KEY=VALUE, such as output_stride=8")
        try:
            kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[key] = value
        except (MemoryError, RecursionError, TypeError) as error:  # brackets nested by the thousand, and {[]: 1}
            raise InputError(f"{option} {shown(pair)}: the value is not a Python literal ({first_line(error)})") from error
    return kwargs


def parse_size(text: str | None, option: str = "--input-size") -> tuple[int, int] | None:
    """ "475" or "480x640" as rows, columns."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 6 and 0 < int(part) <= MAX_PIXELS for part in parts):
        raise InputError(f"{option} {shown(text)}: expected pixels, as N or ROWSxCOLUMNS, at most {MAX_PIXELS}")
    return int(parts[0]), int(parts[-1])


def parse_pair(text: str | None, option: str) -> tuple[float, float] | None:
    """ "0.08,1" as two numbers."""
    if text is None:
        return None
    try:
        smallest, largest = map(float, text.split(","))
    except ValueError:
        raise InputError(f"{option} {shown(text)}: expected two numbers, as MIN,MAX") from None
    return smallest, largest
