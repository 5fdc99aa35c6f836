"""Values from JSON and TOML files, checked against type annotations where they are read, so that no later code has to."""

import dataclasses
import functools
import json
import types
import typing
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

MAX_DEPTH = 100  # of nested lists and objects; what relabel writes has fewer than ten levels
MAX_INT = 2**63 - 1  # torch, NumPy and HDF5 count with 64 bits


def parse_json(content: str | bytes) -> Any:
    """json.loads, with a ValueError for whatever is not JSON, and for what is nested too deeply for later code to walk.

    A byte order mark, which Windows writes, is skipped.

    Raises:
        ValueError: with the reason.
    """
    try:
        value = json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return value
    raise ValueError(f"lists or objects are nested more than {MAX_DEPTH} deep")


def typed(value: Any, kind: Any) -> Any:
    """The value as the type of an annotation: whole numbers are accepted as float, and lists as tuple.

    Raises:
        ValueError: it is of another type, or a whole number that does not fit into 64 bits; says what was expected.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        reasons = []
        for part in parts:
            try:
                return typed(value, part)
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(reasons[0])
    if origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
        raise ValueError(f"expected one of {', '.join(map(str, parts))}")
    if origin in (tuple, list):
        items = (parts[0],) * len(value) if isinstance(value, list | tuple) and (origin is list or ... in parts) else parts
        if not isinstance(value, list | tuple) or len(items) != len(value):
            length = "" if origin is list or ... in parts else f" of {len(parts)} numbers"
            raise ValueError(f"expected a list{length}")
        return origin(typed(item, part) for item, part in zip(value, items, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError("expected an object")
        return {name: typed(item, parts[1]) for name, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return from_fields(typing.cast(Any, kind), value)
    if isinstance(value, int | float) and not isinstance(value, bool) and kind in (int, float):
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise ValueError("expected numbers of at most 64 bits")
        if kind is float or isinstance(value, int):
            return kind(value)
    if kind in (int, float) or type(value) is not kind:
        raise ValueError(f"expected {kind.__name__}, not {type(value).__name__}")
    return value


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The annotation of every field of a dataclass."""
    return typing.get_type_hints(cls)


def from_fields(cls: type[T], fields: Any) -> T:
    """A dataclass from the fields of a JSON object; fields with a default may be missing.

    Raises:
        ValueError: a field is missing, unknown or of another type; names it.
    """
    if not isinstance(fields, dict):
        raise ValueError("expected an object")
    known = {field.name: field.default for field in dataclasses.fields(typing.cast(Any, cls))}
    required = {name for name, default in known.items() if default is dataclasses.MISSING}
    odd = sorted(fields.keys() - known.keys() | required - fields.keys())
    if odd:
        raise ValueError(f"missing or unknown fields: {', '.join(odd)}")
    values = {}
    for name, value in fields.items():
        try:
            values[name] = typed(value, hints_of(typing.cast(Any, cls))[name])
        except ValueError as error:
            raise ValueError(f"{name} is {shown(value)}; {error}") from None
    return cls(**values)


def shown(value: Any, length: int = 60) -> str:
    """A value for a message: cut, as a file or a command line may hold megabytes of it."""
    text = f"a number of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 10**50 else repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
