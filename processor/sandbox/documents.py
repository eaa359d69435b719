"""The JSON text of documents: how messages are read, and how what user code made is written.

Reading keeps every digit of an integer. Writing takes JSON's own types and what one of them stands for:
moments, decimals, identifiers, members of an Enum, data classes, models, scalars and arrays of numpy and
pandas. What would lose something on the way, or be written like something else, is refused with its path.

Both sides of the wall read with it; only guests write, because writing an object runs the code of its class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import re
import sys
import types
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson

from processor.sandbox.bounds import KEY, UNCONFIGURED, Bounds, Exceeded, Path, described
from processor.sandbox.remedies import a_kind, instead_of_writing

# What a data class of the dialect has its fields under, as a function of the instance, and their names.
AS_DOCUMENT = "~document"
DOCUMENT_NAMES = "~names"

_DUMP = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_ZEROES = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19  # 64 bits hold at most 19 digits
_SHOWN_CHARS = 40
_CHAIN = 10  # of values that stand for each other: members of an Enum whose value is one of another
_OF_JSON = (str, int, float, dict, list, tuple)
_TEXTS = frozenset((str,))

# The classes of users in the dialect, whose code may change anything, even the lists that are being written.
user_classes: set[type] = set()
_read_without_code: set[type] = set()  # those that were found to be
_changing: set[type] = set()


# Reading.


def decoder(texts: Sequence[bytes]) -> Callable[[bytes], Any]:
    """The function that reads these JSON texts, integers exact at any length; it raises ValueError."""
    # orjson rounds integers beyond 64 bits to floats, so where one may be, Python's own module reads again.
    return _decode_exactly if _LONG_NUMBER in b" ".join(texts).translate(_ZEROES) else orjson.loads


def loads(text: bytes) -> Any:
    """The value of one JSON text, integers exact at any length. Raises ValueError."""
    return decoder((text,))(text)


def _decode_exactly(text: bytes) -> Any:
    orjson.loads(text)  # the stricter of the two decides what is read: no NaN, no lone surrogates
    try:
        return json.loads(text)
    except RecursionError as err:
        raise ValueError("over the depth limit") from err


def dumps(value: Any) -> bytes:
    """The JSON text of what `loads` read."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False).encode()


def decode_answer(text: bytes, bounds: Bounds, name: str) -> Any:
    """What the host answered to a call. Raises Exceeded where it is more than user code may get."""
    answer = loads(text)
    if bounds.may_be_exceeded(text):
        bounds.check(answer, name)
    return answer


def unreadable(err: ValueError | RecursionError, what: str = "the message") -> tuple[str, str]:
    """The code and the sentence for a JSON text that raised this while it was read."""
    if isinstance(err, Exceeded):
        return err.code, str(err)
    said = str(err)
    if isinstance(err, RecursionError) or "depth limit" in said:
        return "E320", f"{what} is nested too deeply to be read"
    where = said[said.rfind(": line ") :].replace(": ", " at ", 1) if ": line " in said else ""
    # These two are JSON by its grammar, and no value that a program can hold.
    if "infinity" in said:
        number = re.compile(r"[-+.0-9eE]*").match(getattr(err, "doc", ""), getattr(err, "pos", 0))
        shown = f": {number[0][:_SHOWN_CHARS]}" if number and number[0] else ""
        return "E301", f"{what} has a number beyond the range of 64-bit floats{shown}{where}"
    if "surrogate in string" in said:
        return "E301", f"{what} has half of a surrogate pair in a text, which is not a character{where}"
    return "E301", f"{what} is not JSON: {said}"


# Writing.


class Unwritable(ValueError):
    """A value that has no JSON text; the message gives its path and its type."""


def encode(document: Any, *place: object, bounds: Bounds = UNCONFIGURED, nan_as_null: bool = False) -> bytes:
    """The JSON text of a document that user code made; NaN is null in it with `nan_as_null`.

    Raises Unwritable, or Exceeded where a part is too long or too deep; both say where under `place`.
    """
    is_collecting = gc.isenabled()
    gc.disable()  # what it frees may be a generator that has a `finally` to run
    try:
        text = orjson.dumps(document, _plain_without_code, _DUMP)
    except TypeError:
        text = None
    finally:
        if is_collecting:
            gc.enable()
    if text is None:
        return _encode_slowly(document, place, bounds, nan_as_null)
    # orjson writes NaN as null and goes deeper than we promise to; look closer only where that can be.
    if b"null" in text:
        return _encode_slowly(document, place, bounds, nan_as_null)
    if len(text) > bounds.harmless_bytes and bounds.may_be_exceeded(text):
        bounds.check(document, " ".join(map(str, place)), plain)
    return text


def plain(value: Any) -> Any:
    """What stands for `value` in JSON, one level of it, the way docs/reference/values.md has it.

    Raises TypeError where nothing does.
    """
    # The type's own conversion: a subclass may have another idea of str().
    if isinstance(value, dict):
        return {key: value[key] for key in value}
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, (date, time)):
        return _moment(value)
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else math.nan if value.is_nan() else float(value)
    if isinstance(value, UUID):
        return str(value)
    as_document = getattr(type(value), AS_DOCUMENT, None)
    if as_document is not None:
        return as_document(value)
    if hasattr(type(value), "__dataclass_fields__"):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return _from_packages(value)


def _plain_without_code(value: Any) -> Any:
    """`plain`, as long as no code of a user's runs: orjson has hold of a list's memory, not of the list.

    Raises TypeError for the rest, too, which `plain` may be asked for in Python.
    """
    kind = type(value)
    if kind in user_classes:
        if kind not in _read_without_code:
            if not _is_read_without_code(kind):
                raise TypeError
            if _changing.isdisjoint(kind.__mro__):
                _read_without_code.add(kind)
    elif isinstance(value, (datetime, time)) and type(value.tzinfo) in user_classes:
        raise TypeError
    if isinstance(value, dict) and not _TEXTS.issuperset(map(type, value)):
        raise TypeError  # any other key may have a hash of its own
    return plain(value)


def _is_read_without_code(kind: type) -> bool:
    """Whether `plain` of an instance of `kind`, a user's class, takes no step of the user's."""
    if issubclass(kind, (str, int, float)):
        return True
    for base in (dict, list, tuple):
        if issubclass(kind, base):
            hooks = ("__iter__", "__getitem__") if base is dict else ("__iter__", "__len__")
            return all(of_class(kind, hook) is vars(base)[hook] for hook in hooks)
    if issubclass(kind, Enum):
        return of_class(kind, "value") is vars(Enum)["value"] and of_class(kind, "_value_") is None
    names: tuple[str, ...] | None = getattr(kind, DOCUMENT_NAMES, None)
    return (
        names is not None
        and of_class(kind, "__getattr__") is None
        and not any(_runs_code(of_class(kind, name)) for name in names)
    )


def _runs_code(value: Any) -> bool:
    """Whether `value`, an attribute of a class, decides what the attribute of an instance is."""
    # A function does not: the instance's own attribute comes first.
    if isinstance(value, (types.MemberDescriptorType, types.FunctionType)):
        return False
    return of_class(type(value), "__get__") is not None


def look_anew() -> None:
    """Forget how instances of the users' classes are read."""
    _read_without_code.clear()


def expect_changes(cls: type) -> None:
    """Look at how instances of `cls`, a user's class, are read each time: its attributes may change."""
    _changing.add(cls)
    look_anew()


def of_class(kind: type, name: str) -> Any:
    """What the class has under `name`, itself; None where that is nothing."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _moment(value: date | time) -> str | None:
    pandas: Any = sys.modules.get("pandas")
    if pandas is not None:
        if value is pandas.NaT:
            return None
        if isinstance(value, pandas.Timestamp):  # it has nanoseconds
            return str(value.isoformat())
    kind: Any = next(kind for kind in (datetime, date, time) if isinstance(value, kind))
    return str(kind.isoformat(value))


def _duration(value: timedelta) -> str:
    """The duration as ISO 8601 writes it: days, hours, minutes and seconds, those that are not 0."""
    nanoseconds = (value.days * 86_400 + value.seconds) * 10**9 + value.microseconds * 1000
    nanoseconds += getattr(value, "nanoseconds", 0)  # of pandas
    sign, rest = "-" if nanoseconds < 0 else "", abs(nanoseconds)
    seconds, rest = divmod(rest, 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    parts = [f"{number}{unit}" for number, unit in ((hours, "H"), (minutes, "M")) if number]
    parts += [f"{seconds}{fraction}S"] if seconds or rest else []
    day = f"{days}D" if days else ""
    clock = f"T{''.join(parts)}" if parts else "" if days else "T0S"
    return f"{sign}P{day}{clock}"


def _from_packages(value: Any) -> Any:
    """A model of pydantic's, a scalar or array of numpy's, and what pandas has for what is missing."""
    numpy, pandas, pydantic = (sys.modules.get(name) for name in ("numpy", "pandas", "pydantic"))
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if pandas is not None and value is pandas.NA:
        return None
    if numpy is None or not isinstance(value, (numpy.generic, numpy.ndarray)):
        raise TypeError
    kind = value.dtype.kind
    if isinstance(value, numpy.ndarray):
        if kind in "mM":
            return list(value) if value.ndim else value[()]
        if kind in "biufUO":
            return value.tolist()
        raise TypeError
    if kind in "mM":
        return _numpy_time(numpy, value, kind)
    make = {"b": bool, "i": int, "u": int, "f": float}.get(kind)
    if make is None:
        raise TypeError
    return make(value)


def _numpy_time(numpy: Any, value: Any, kind: str) -> str | None:
    if numpy.isnat(value):
        return None
    if kind == "M":
        return str(numpy.datetime_as_string(value))
    unit, _ = numpy.datetime_data(value.dtype)
    if unit in ("generic", "Y", "M"):  # of no length that is always the same
        raise TypeError
    days, rest = divmod(value.astype("timedelta64[ns]").astype(int).item(), 86_400 * 10**9)
    return _duration(_Nanoseconds(days, rest))


class _Nanoseconds(timedelta):
    """A timedelta that keeps its nanoseconds, as that of pandas does."""

    nanoseconds: int

    def __new__(cls, days: int, nanoseconds: int) -> _Nanoseconds:
        microseconds, rest = divmod(nanoseconds, 1000)
        made = super().__new__(cls, days, 0, microseconds)
        made.nanoseconds = rest
        return made


def _encode_slowly(document: Any, place: Sequence[object], bounds: Bounds, nan_as_null: bool) -> bytes:
    checked = _Checker(bounds, nan_as_null).checked(document, " ".join(map(str, place)), 1)
    return json.dumps(checked, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class _Checker:
    """Turns one document into JSON's own types, within `bounds`."""

    def __init__(self, bounds: Bounds, nan_as_null: bool) -> None:
        self._bounds = bounds
        self._nan_as_null = nan_as_null
        self._inside: set[int] = set()  # the containers around the value in hand

    def checked(self, value: Any, path: Path, depth: int) -> Any:
        """`value` as JSON has it, `depth` levels deep. Raises Unwritable or Exceeded."""
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self._text(str.__str__(value), path)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return self._number(float.__float__(value), path)
        if not isinstance(value, (dict, list, tuple)):
            return self.checked(self._stand_in(value, path), path, depth)
        if id(value) in self._inside:
            raise Unwritable(f"{described(path)} refers back to itself")
        self._bounds.check_depth(depth, path)
        self._inside.add(id(value))
        made = self._object(value, path, depth) if isinstance(value, dict) else self._list(value, path, depth)
        self._inside.discard(id(value))
        self._bounds.check_length(len(made), path)
        return made

    def _stand_in(self, value: Any, path: Path) -> Any:
        stand_in = value
        for _ in range(_CHAIN):
            try:
                stand_in = plain(stand_in)
            except TypeError:
                kind = a_kind(type(stand_in))
                what = f"is {kind}, which JSON cannot express{instead_of_writing(stand_in)}"
                raise Unwritable(f"{described(path)} {what}") from None
            if stand_in is None or isinstance(stand_in, _OF_JSON):
                return stand_in
        raise Unwritable(f"{described(path)} refers back to itself")

    def _list(self, value: Sequence[Any], path: Path, depth: int) -> list[Any]:
        return [self.checked(item, (path, index), depth + 1) for index, item in enumerate(value)]

    def _object(self, value: dict[Any, Any], path: Path, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key in value:
            name = self._key(key, path)
            if name in made:
                other = next(other for other in value if self._key(other, path) == name)
                both = f"{repr(other)[:_SHOWN_CHARS]} and {repr(key)[:_SHOWN_CHARS]}"
                raise Unwritable(f"{described(path)} has the keys {both}, which JSON writes alike")
            made[name] = self.checked(value[key], (path, key), depth + 1)
        return made

    def _text(self, text: str, path: Path) -> str:
        self._bounds.check_text(text, path)
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise Unwritable(f"{described(path)} holds a lone surrogate, which is not text")
        return text

    def _number(self, number: float, path: Path) -> float | None:
        if math.isnan(number):
            if self._nan_as_null:
                return None
            raise Unwritable(
                f"{described(path)} is nan, which JSON cannot express; "
                "write None for it, or set 'nan_as_null: true' for the route"
            )
        if math.isinf(number):
            raise Unwritable(
                f"{described(path)} is {number!r}, which JSON cannot express; write None or a text"
            )
        return number

    def _key(self, key: Any, path: Path) -> str:
        """The text that JSON has for a key, as json.dumps writes those that it takes."""
        place = (path, KEY)
        name = key
        if not isinstance(key, (str, int, float)) and key is not None:
            with contextlib.suppress(TypeError):
                name = plain(key)
        if isinstance(name, str):
            return self._text(str.__str__(name), place)
        if isinstance(name, float) and not math.isfinite(name):
            raise Unwritable(f"{described(place)} is {float.__float__(name)!r}, which JSON cannot express")
        if name is None or isinstance(name, (bool, int, float)):
            return json.dumps(name)
        kind = type(key).__name__
        raise Unwritable(f"{described(path)} has a key of type {kind}, which JSON cannot express")
