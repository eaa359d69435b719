"""What an argument of a capability may be: its type and its bounds, and how a refusal says so.

`Capability.read` is the one reader of a call's arguments, and asks here. The values come out of JSON that a
guest sent, so the types are exact: a bool is no number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

SHOWN_CHARS = 40  # of a value that is refused
TEXT_CHARS = 1 << 20
ITEMS = 1000


class Kind(Protocol):
    """A type with its bounds."""

    @property
    def words(self) -> str:
        """What a value of it is, such as "a text of 1 to 100 characters"."""

    def fits(self, value: Any) -> bool:
        """Whether this value is of it."""


@dataclass(frozen=True, slots=True)
class Text:
    least: int = 0
    most: int = TEXT_CHARS  # characters
    pattern: re.Pattern[str] | None = None  # of the whole text

    @property
    def words(self) -> str:
        of = f" that matches {self.pattern.pattern}" if self.pattern else ""
        return f"a text of {self.least} to {self.most} characters{of}"

    def fits(self, value: Any) -> bool:
        if type(value) is not str or not self.least <= len(value) <= self.most:
            return False
        return self.pattern is None or self.pattern.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some texts."""

    options: Collection[str]

    @property
    def words(self) -> str:
        return f"one of {', '.join(sorted(self.options))}"

    def fits(self, value: Any) -> bool:
        return type(value) is str and value in self.options


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number."""

    least: int
    most: int

    @property
    def words(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def fits(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most


@dataclass(frozen=True, slots=True)
class Number:
    """A number, whole or not, above `above`."""

    above: float = -math.inf
    most: float = 1e300

    @property
    def words(self) -> str:
        bounds = [f"above {self.above:g}"] if self.above > -math.inf else []
        return f"a number {', '.join([*bounds, f'at most {self.most:g}'])}"

    def fits(self, value: Any) -> bool:
        return type(value) in (int, float) and self.above < value <= self.most


@dataclass(frozen=True, slots=True)
class Flag:
    words: str = "true or false"

    def fits(self, value: Any) -> bool:
        return type(value) is bool


@dataclass(frozen=True, slots=True)
class Binary:
    """The bytes that go beside the other arguments; as long as the wire lets them be."""

    words: str = "bytes"

    def fits(self, value: Any) -> bool:
        return type(value) is bytes


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object with anything in it."""

    words: str = "an object"

    def fits(self, value: Any) -> bool:
        return type(value) is dict


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of values of one kind."""

    of: Kind
    least: int = 0
    most: int = ITEMS

    @property
    def words(self) -> str:
        return f"a list of {self.least} to {self.most} items, each {self.of.words}"

    def fits(self, value: Any) -> bool:
        return type(value) is list and self.least <= len(value) <= self.most and all(map(self.of.fits, value))


@dataclass(frozen=True, slots=True)
class OneOf:
    """A value of one of some kinds."""

    kinds: tuple[Kind, ...]

    @property
    def words(self) -> str:
        return ", or ".join(kind.words for kind in self.kinds)

    def fits(self, value: Any) -> bool:
        return any(kind.fits(value) for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class Anything:
    """A JSON value of any kind; the wire bounds its bytes and its depth."""

    words: str = "a value"

    def fits(self, value: Any) -> bool:
        return value is not None


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument. Of an optional one null is the same as none, and gives `default`."""

    name: str
    kind: Kind
    required: bool = True
    default: Any = None
    refusal: str | Callable[[Any], str] = ""  # what is said of another value; `kind.words` tells otherwise
    remedy: str = ""

    def refused(self, value: Any) -> str:
        if callable(self.refusal):
            return self.refusal(value)
        if self.refusal:
            return self.refusal
        if value is None:
            return f"{self.name} is missing; it is {self.kind.words}"
        return f"{self.name} is {shown(value)}, not {self.kind.words}"


def shown(value: Any) -> str:
    """A refused value, as far as a sentence takes it."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
