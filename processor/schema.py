"""JSON Schemas that values are checked against: compiled once, and never fetched from anywhere.

A reference leads to a part of the same document; any other one is refused when the schema is compiled, for
to follow it would be a request, or a file, of the schema's choice. Only this module imports jsonschema_rs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs
import orjson

_SHOWN_CHARS = 200


def _refuse(uri: str) -> Any:
    raise ValueError(uri)


@dataclass(frozen=True)
class Schema:
    """A JSON Schema of the draft that its `$schema` names, 2020-12 where it names none.

    Raises ValueError for a text that is no schema, or refers to what is not in it.
    """

    text: bytes = field(repr=False)
    _validator: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            document = orjson.loads(self.text)
        except ValueError as err:
            raise ValueError(f"it is not JSON: {err}") from None
        if not isinstance(document, (dict, bool)):
            raise ValueError("a schema is an object, or true or false")
        try:
            validator = jsonschema_rs.validator_for(document, retriever=_refuse)
        except jsonschema_rs.ValidationError as err:
            raise ValueError(_why(err.message, err.instance_path)) from None
        except (jsonschema_rs.ReferencingError, ValueError) as err:
            raise ValueError(_line(str(err))) from None
        object.__setattr__(self, "_validator", validator)

    def fault(self, value: Any) -> str | None:
        """Where and why a JSON value does not fit; None where it does."""
        for error in self._validator.iter_errors(value):
            return f"{_place(error.instance_path) or 'the value'}: {_line(error.message)}"
        return None

    def broken(self, value: Any) -> list[str]:
        """The rules that a JSON value breaks, such as `minLength 20`, without the value."""
        return list(
            dict.fromkeys(self._rule(error.schema_path) for error in self._validator.iter_errors(value))
        )

    def _rule(self, path: Iterable[str | int]) -> str:
        """The keyword at the end of a path into the schema, with what that says of it where it is short."""
        steps = list(path)
        says: Any = orjson.loads(self.text)
        for step in steps:
            is_there = isinstance(says, dict) and step in says
            is_there = is_there or (isinstance(says, list) and type(step) is int and step < len(says))
            if not is_there:
                return _line(str(steps[-1]))
            says = says[step]
        keyword = str(steps[-1]) if steps else "false"
        is_plain = isinstance(says, (str, int, float)) and not isinstance(says, bool)
        return _line(f"{keyword} {says}" if is_plain else keyword)


def _why(message: str, path: Iterable[str | int]) -> str:
    found = re.match(r"Resource '(.*?)' is not present", message)
    if found:
        return f"it refers to {_line(found[1])}, and nothing but the document itself is read"
    place = _place(path)
    return f"{place}: {_line(message)}" if place else _line(message)


def _place(path: Iterable[str | int]) -> str:
    return _line("".join(f"/{step}" for step in path))


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 1]}…"
