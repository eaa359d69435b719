"""What to write for a value that cannot leave a Runnable, or cannot be kept, as the error says it.

Each remedy is an expression on `value`, and what it gives can be written or kept: tests try every one. Only
the type of a value decides, so that no user code runs here.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from re import Match
from types import CoroutineType, SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

_LISTED: tuple[type, ...] = (
    set,
    frozenset,
    range,
    deque,
    Iterator,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_TEXT = (
    UUID, ZoneInfo, PurePath, BaseException, IPv4Address, IPv4Network, IPv6Address, IPv6Network,
)  # fmt: skip
_NAME_CHARS = 60
_PARTS = "[float(value.real), float(value.imag)]"
_BYTES = "value.decode() for text, or base64.b64encode(value).decode()"

_OF_PANDAS = {
    "DataFrame": "value.to_dict('records')",
    "Series": "value.tolist()",
    "Period": "str(value)",
    "Interval": "str(value)",
}
_OF_PANDAS_TO_KEEP = {
    "DataFrame": "json.loads(value.to_json(orient='records', date_format='iso'))",
    "Series": "json.loads(value.to_json(orient='values', date_format='iso'))",
    "DatetimeIndex": "value.astype(str).tolist()",
    "Period": "str(value)",
    "Interval": "str(value)",
    "Timestamp": "value.isoformat()",
    "Timedelta": "value.isoformat()",
    "NaTType": "None",
    "NAType": "None",
}


def a_kind(kind: type) -> str:
    """The name of a class with its article, bounded."""
    name = str(kind.__name__)[:_NAME_CHARS]
    return f"{'an' if name.startswith(tuple('aeiouAEIO')) else 'a'} {name}"


def instead_of_writing(value: Any) -> str:
    """What to write for a value that JSON cannot express, to end a sentence with; or nothing."""
    is_bytes = isinstance(value, bytes)  # also those of numpy
    return _said(_of_any(value) if is_bytes else _of_package(value, _OF_PANDAS) or _of_any(value))


def instead_of_keeping(value: Any) -> str:
    """What to keep for a value that a context cannot, to end a sentence with; or nothing."""
    return _said(_of_package(value, _OF_PANDAS_TO_KEEP) or _of_subclass(value) or _of_any(value))


def _said(remedy: str) -> str:
    return f"; write {remedy}" if remedy else ""


def _of_any(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return _BYTES
    if isinstance(value, CoroutineType):
        return "asyncio.run(value)"
    if isinstance(value, _LISTED):
        return "list(value)"
    if isinstance(value, complex):
        return _PARTS
    if isinstance(value, Fraction):
        return "float(value)"
    if isinstance(value, Match):
        return "value.groupdict()"
    if isinstance(value, SimpleNamespace):
        return "vars(value)"
    if isinstance(value, _TEXT):
        return "str(value)"
    return "value.model_dump()" if hasattr(type(value), "model_dump") else ""


def _of_subclass(value: Any) -> str:
    """For what a context keeps in its plain form only."""
    if isinstance(value, Enum):
        return "value.value"
    if isinstance(value, bytearray):
        return "bytes(value)"
    for kind in (dict, list, str, int, float):
        if isinstance(value, kind):
            return f"{kind.__name__}(value)"
    if isinstance(value, tuple):
        return "list(value)"
    if hasattr(type(value), "model_dump"):
        return "value.model_dump()"
    is_data = hasattr(type(value), "__dataclass_fields__") or hasattr(type(value), "~document")
    return "dataclasses.asdict(value)" if is_data else ""


def _of_package(value: Any, of_pandas: dict[str, str]) -> str:
    module = str(type(value).__module__).partition(".")[0]
    if module == "pandas":
        return of_pandas.get(type(value).__name__, "value.tolist()" if hasattr(type(value), "tolist") else "")
    numpy: Any = sys.modules.get("numpy")
    if module != "numpy" or numpy is None or not isinstance(value, (numpy.generic, numpy.ndarray)):
        return ""
    kind = value.dtype.kind
    if isinstance(value, numpy.ndarray):
        if kind == "c":
            return "[[float(each.real), float(each.imag)] for each in value.ravel()]"
        return "value.astype(str).tolist()" if kind in "mMS" else "value.tolist()"
    if kind in "mM":
        return "str(value)"
    return {"b": "bool(value)", "f": "float(value)", "i": "int(value)", "u": "int(value)", "c": _PARTS}.get(
        kind, "value.item()"
    )
