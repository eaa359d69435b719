"""What the fields of a model may be, and how a value is checked and converted for each: as pydantic does it.

A `FieldKind` is made once for an annotation. Its check takes a value of any type, which may be of a class of
the user's, and gives the value that is kept, or raises Refused with pydantic's own words.
"""

from __future__ import annotations

import math
import re
import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

Fault = tuple[tuple[Any, ...], str, str]  # place, type, text
Check = Callable[[Any], Any]


class Refused(Exception):
    """A value that a field does not take: what is wrong with it, by the place below it."""

    def __init__(self, kind: str, text: str) -> None:
        self.faults: list[Fault] = [((), kind, text)]

    @classmethod
    def of(cls, faults: list[Fault]) -> Refused:
        made = cls("", "")
        made.faults = faults
        return made

    def below(self, *place: Any) -> list[Fault]:
        """The faults as they are seen from above."""
        return [((*place, *inner), kind, text) for inner, kind, text in self.faults]


class FieldKind(NamedTuple):
    """What an annotation means."""

    label: str  # in the place of a fault of one of several
    exact: type | None  # the type whose values are kept as they are
    check: Check
    schema: Callable[[dict[str, Any]], dict[str, Any]]  # gets the definitions that it may add to
    suits: Callable[[Any], bool]  # whether a value is of it without being converted
    has_moments: bool = False  # values may hold a datetime
    bounds: str = ""  # which there may be: of a "number", a "text", or of "items"


# Texts, numbers, and the like.


def _str(value: Any) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            text = "Input should be a valid string, unable to parse raw data as a unicode string"
            raise Refused("string_unicode", text) from None
    raise Refused("string_type", "Input should be a valid string")


_INTEGER = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)*(?:\.0*)?\Z")
_MOST_DIGITS = 4300


def _int(value: Any) -> int:
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refused("finite_number", "Input should be a finite number")
        if not float.is_integer(value):
            text = "Input should be a valid integer, got a number with a fractional part"
            raise Refused("int_from_float", text)
        if abs(value) >= 1 << 63:
            text = "Unable to parse input string as an integer, exceeded maximum size"
            raise Refused("int_parsing_size", text)
        return int(float.__float__(value))
    if isinstance(value, str):
        text = str.__str__(value).strip()
        if len(text) <= _MOST_DIGITS and _INTEGER.match(text):
            return int(text.partition(".")[0].replace("_", ""))
        raise Refused("int_parsing", "Input should be a valid integer, unable to parse string as an integer")
    raise Refused("int_type", "Input should be a valid integer")


def _float(value: Any) -> float:
    if isinstance(value, float):
        return float.__float__(value)
    try:
        if isinstance(value, int):
            return float(int.__int__(value))
        if isinstance(value, str):
            return float(str.__str__(value).strip())
    except OverflowError:
        return math.inf
    except ValueError:
        text = "Input should be a valid number, unable to parse string as a number"
        raise Refused("float_parsing", text) from None
    raise Refused("float_type", "Input should be a valid number")


_TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE = frozenset(("0", "off", "f", "false", "n", "no"))


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, str)) or (isinstance(value, float) and float.is_integer(value)):
        text = str.__str__(value).lower() if isinstance(value, str) else str(int(value))
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise Refused("bool_parsing", "Input should be a valid boolean, unable to interpret input")
    raise Refused("bool_type", "Input should be a valid boolean")


_SECONDS_MOST = 2e10  # a number beyond is of milliseconds


def _datetime(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    try:
        if isinstance(value, str):
            text = str.__str__(value).strip()
            if not re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", text):
                return datetime.fromisoformat(text)
            value = float(text)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = float(value) if abs(value) <= _SECONDS_MOST else float(value) / 1000
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise Refused("datetime_from_date_parsing", "Input should be a valid datetime or date") from None
    raise Refused("datetime_type", "Input should be a valid datetime")


def _none(value: Any) -> None:
    if value is not None:
        raise Refused("none_required", "Input should be None")


def _anything(value: Any) -> Any:
    return value


def _typed(**schema: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda _: dict(schema)


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


ANYTHING = FieldKind("any", None, _anything, _typed(), lambda _: True, True, "items")
_NONE = FieldKind("none", type(None), _none, _typed(type="null"), _is(type(None)))
_PLAIN: dict[Any, FieldKind] = {
    str: FieldKind("str", str, _str, _typed(type="string"), _is(str), bounds="text"),
    int: FieldKind("int", int, _int, _typed(type="integer"), _is(int), bounds="number"),
    float: FieldKind("float", float, _float, _typed(type="number"), _is(float, int), bounds="number"),
    bool: FieldKind("bool", bool, _bool, _typed(type="boolean"), _is(bool)),
    datetime: FieldKind(
        "datetime",
        datetime,
        _datetime,
        _typed(type="string", format="date-time"),
        _is(datetime),
        True,
        "number",
    ),
    None: _NONE,
    type(None): _NONE,
}


def plain_kind(hint: Any) -> FieldKind | None:
    """The kind of a plain class; None for anything else."""
    if hint is list:
        return listed(ANYTHING)
    if hint is dict:
        return dictionary(ANYTHING, ANYTHING)
    return _PLAIN.get(hint) if hint is None or type(hint) is type else None


# What is made of others.

_LISTS = (list, tuple, set, frozenset, deque, types.GeneratorType)


def listed(of: FieldKind) -> FieldKind:
    """A list of what is `of` a kind."""

    def check(value: Any) -> list[Any]:
        if not isinstance(value, _LISTS):
            raise Refused("list_type", "Input should be a valid list")
        items = list(value)
        if of is ANYTHING:
            return items
        faults: list[Fault] = []
        for at, item in enumerate(items):
            if type(item) is not of.exact:
                try:
                    items[at] = of.check(item)
                except Refused as err:
                    faults += err.below(at)
        if faults:
            raise Refused.of(faults)
        return items

    def schema(defs: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": of.schema(defs)}

    label = "list" if of is ANYTHING else f"list[{of.label}]"
    suits = lambda value: type(value) is list and all(map(of.suits, value))  # noqa: E731
    return FieldKind(label, None, check, schema, suits, of.has_moments, "items")


def dictionary(keys: FieldKind, values: FieldKind) -> FieldKind:
    """A dict of keys and values of kinds."""

    def check(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise Refused("dict_type", "Input should be a valid dictionary")
        made: dict[Any, Any] = {}
        faults: list[Fault] = []
        for name in value:
            try:
                key = keys.check(name)
            except Refused as err:
                faults += err.below(name, "[key]")
                continue
            try:
                made[key] = values.check(value[name])
            except Refused as err:
                faults += err.below(name)
        if faults:
            raise Refused.of(faults)
        return made

    def schema(defs: dict[str, Any]) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": values.schema(defs) or True}

    label = "dict" if keys is ANYTHING is values else f"dict[{keys.label},{values.label}]"
    suits = lambda value: (  # noqa: E731
        type(value) is dict and all(map(keys.suits, value)) and all(map(values.suits, value.values()))
    )
    return FieldKind(label, None, check, schema, suits, keys.has_moments or values.has_moments, "items")


def literal(values: Sequence[Any]) -> FieldKind:
    """One of these values, and no other that is equal to one. Raises TypeError for what is no constant."""
    for value in values:
        if not isinstance(value, (str, int, type(None))):
            raise TypeError(f"Literal takes texts, integers, booleans and None, not a {type(value).__name__}")
    shown = [repr(value) for value in values]
    words = f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]

    def check(value: Any) -> Any:
        for each in values:
            if type(value) is type(each) and value == each:
                return each
        raise Refused("literal_error", f"Input should be {words}")

    def schema(_: dict[str, Any]) -> dict[str, Any]:
        kinds = {type(value) for value in values}
        named = {str: "string", int: "integer", bool: "boolean", type(None): "null"}
        of = {"type": named[kinds.pop()]} if len(kinds) == 1 else {}
        return {"const": values[0], **of} if len(values) == 1 else {"enum": list(values), **of}

    suits = lambda value: any(type(value) is type(each) and value == each for each in values)  # noqa: E731
    return FieldKind(f"literal[{','.join(shown)}]", None, check, schema, suits)


def optional(of: FieldKind) -> FieldKind:
    """None, or what is `of` a kind."""

    def check(value: Any) -> Any:
        return None if value is None else of.check(value)

    def schema(defs: dict[str, Any]) -> dict[str, Any]:
        inner = of.schema(defs)
        several = inner["anyOf"] if inner.keys() == {"anyOf"} else [inner]
        return {"anyOf": [*several, {"type": "null"}]}

    suits = lambda value: value is None or of.suits(value)  # noqa: E731
    return FieldKind(of.label, None, check, schema, suits, of.has_moments, of.bounds)


def one_of(members: Sequence[FieldKind]) -> FieldKind:
    """What one of several kinds takes: the first that a value is of as it stands, or else can be made."""

    def check(value: Any) -> Any:
        for member in members:
            if member.suits(value):
                return member.check(value)
        faults: list[Fault] = []
        for member in members:
            try:
                return member.check(value)
            except Refused as err:
                faults += err.below(member.label)
        raise Refused.of(faults)

    def schema(defs: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [member.schema(defs) for member in members]}

    label = f"union[{','.join(member.label for member in members)}]"
    suits = lambda value: any(member.suits(value) for member in members)  # noqa: E731
    shared = {member.bounds for member in members}
    bounds = shared.pop() if len(shared) == 1 else ""
    return FieldKind(label, None, check, schema, suits, any(member.has_moments for member in members), bounds)


# Bounds.

_COMPARED: dict[str, tuple[str, str, Callable[[Any, Any], bool], str]] = {
    "ge": ("greater_than_equal", "greater than or equal to", lambda value, bound: value >= bound, "minimum"),
    "gt": ("greater_than", "greater than", lambda value, bound: value > bound, "exclusiveMinimum"),
    "le": ("less_than_equal", "less than or equal to", lambda value, bound: value <= bound, "maximum"),
    "lt": ("less_than", "less than", lambda value, bound: value < bound, "exclusiveMaximum"),
}
_TAKEN = {
    "number": frozenset(_COMPARED),
    "text": frozenset(("max_length", "min_length", "pattern")),
    "items": frozenset(("max_length", "min_length")),
}


def bounded(kind: FieldKind, bounds: Mapping[str, Any], place: str) -> Check:
    """The check of a kind, and of the bounds behind it. Raises TypeError where it cannot have one of them."""
    for name, bound in bounds.items():
        if name not in _TAKEN.get(kind.bounds, ()):
            raise TypeError(f"Unable to apply constraint {name!r} to {place}, a {kind.label}")
        if name.endswith("_length") and (type(bound) is not int or bound < 0):
            raise TypeError(f"{name} of {place} is a number of items, not {bound!r}")
    checks = [_bound(kind.bounds, name, bound) for name, bound in bounds.items()]

    def check(value: Any) -> Any:
        made = kind.check(value)
        if made is not None:
            for each in checks:
                each(made)
        return made

    return check


def _bound(of: str, name: str, bound: Any) -> Callable[[Any], None]:
    if name in _COMPARED:
        kind, words, holds, _ = _COMPARED[name]
        shown = f"{bound:g}" if isinstance(bound, float) and bound.is_integer() else str(bound)

        def compare(value: Any) -> None:
            if not holds(value, bound):
                raise Refused(kind, f"Input should be {words} {shown}")

        return compare
    if name == "pattern":
        pattern = re.compile(bound)

        def match(value: str) -> None:
            if pattern.search(value) is None:
                raise Refused("string_pattern_mismatch", f"String should match pattern '{pattern.pattern}'")

        return match
    is_least = name == "min_length"
    what = "least" if is_least else "most"
    item = "character" if of == "text" else "item"

    def measure(value: Any) -> None:
        length = len(value)
        if (length < bound) if is_least else (length > bound):
            many = f"{bound} {item}{'s' * (bound != 1)}"
            if of == "text":
                kind = "string_too_short" if is_least else "string_too_long"
                raise Refused(kind, f"String should have at {what} {many}")
            whole = "Dictionary" if isinstance(value, dict) else "List"
            kind = "too_short" if is_least else "too_long"
            raise Refused(kind, f"{whole} should have at {what} {many} after validation, not {length}")

    return measure


def bounds_schema(kind: FieldKind, bounds: Mapping[str, Any]) -> dict[str, Any]:
    """The words of JSON Schema for bounds."""
    items = "Items" if kind.label.startswith("list") else "Properties" if kind.bounds == "items" else "Length"
    words = {name: row[3] for name, row in _COMPARED.items()}
    words |= {"min_length": f"min{items}", "max_length": f"max{items}", "pattern": "pattern"}
    return {words[name]: bound for name, bound in bounds.items()}
