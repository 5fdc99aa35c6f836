"""JSON values against annotations: what fits is converted, and what does not is named."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from relabel.runtime.typed import from_fields, parse_json, shown, typed


@dataclass(frozen=True)
class Point:
    x: int
    name: str | None = None
    at: tuple[float, float] = (0.0, 0.0)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, float, 3.0),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        (["a"], tuple[str, ...], ("a",)),
        ([], list[str], []),
        (None, str | None, None),
        ("ce", Literal["ce", "bce"], "ce"),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"x": 1, "at": [0, 2]}, Point, Point(1, None, (0.0, 2.0))),
    ],
)
def test_value_that_fits_is_converted(value: object, kind: Any, expected: object) -> None:
    assert repr(typed(value, kind)) == repr(expected)


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (True, int, "expected int, not bool"),
        (1.0, int, "expected int, not float"),
        ("1", float, "expected float, not str"),
        (10**20, float, "of at most 64 bits"),
        (-(10**400), int, "of at most 64 bits"),
        ([1], tuple[int, int], "expected a list of 2 numbers"),
        ("12", list[str], "expected a list"),
        (["a", None], list[str], "expected str, not NoneType"),
        ([], dict[str, Any], "expected an object"),
        (["ce"], Literal["ce", "bce"], "expected one of ce, bce"),
        (5, str | None, "expected str, not int"),
        ({"x": "1"}, Point, "x is '1'; expected int, not str"),
        ({"y": 1}, Point, "missing or unknown fields: x, y"),
        ([1], Point, "expected an object"),
    ],
)
def test_value_that_does_not_fit_is_an_error_that_says_what_was_expected(value: object, kind: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        typed(value, kind)


def test_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="missing or unknown fields: z"):
        from_fields(Point, {"x": 1, "z": 2})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"\xff\xfe1", "[" * 100_000, "[" * 101 + "]" * 101, "1" * 5000])
def test_what_is_not_json_or_too_deep_is_a_value_error(content: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)
    assert parse_json("[" * 100 + "]" * 100) is not None


def test_values_in_messages_are_short() -> None:
    assert shown(7) == "7" and shown("a") == "'a'"
    assert shown(10**400) == "a number of 1329 bits" and len(shown("x" * 1000)) == 60


def test_byte_order_mark_of_json_is_skipped() -> None:
    assert parse_json('{"é": 1}'.encode("utf-8-sig")) == {"é": 1}
