"""How long and how deep a value may be that crosses the wall between host and guest.

The guest holds messages, outputs, chunks, events, the arguments and answers of capability calls, and what a
context keeps to these bounds, wherever it reads or writes their JSON text. What is checked first is the text:
one that is short, and has few brackets, cannot hold a value that is over a bound, and is all that most
messages cost. Only the others are walked.

Nothing here runs user code but `plain`, where the caller gives one. The host does not rely on any of that: it
has its own bounds on frames, and `nests_deeper` for the documents in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from processor.model import Limits

# A path is the name of a value, or the path of its container and the step from there.
Path = Any
ELEMENT, KEY = object(), object()

_PATH_CHARS = 200
_STEP_CHARS = 60
_ATOMS: frozenset[type] = frozenset({int, float, bool, type(None)})
_CONTAINERS: frozenset[type] = frozenset({dict, list})


class Exceeded(ValueError):
    """A value is over a bound; `code` says which one, the text where and by how much."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Bounds:
    """What `Limits` say about the shape of one value."""

    __slots__ = ("harmless_bytes", "max_container_length", "max_depth", "max_string_length")

    def __init__(self, limits: Limits) -> None:
        self.max_string_length = limits.max_string_length
        self.max_container_length = limits.max_container_length
        self.max_depth = limits.max_depth
        # A character takes at least a byte of JSON text, an item or a level at least two.
        self.harmless_bytes = min(self.max_string_length, 2 * self.max_container_length, 2 * self.max_depth)

    def may_be_exceeded(self, text: bytes) -> bool:
        """Whether the value of this JSON text may be over a bound; one of `harmless_bytes` never is."""
        size = len(text)
        return size > self.harmless_bytes and (
            size > self.max_string_length
            or size > 2 * self.max_container_length
            or _has_more_brackets(text, self.max_depth)
        )

    def check(self, value: Any, path: Path, plain: Callable[[Any], Any] | None = None) -> None:
        """Raise Exceeded for the first thing in `value` that is over a bound.

        `plain` turns subclasses of JSON's types into these types; without it there are none.
        """
        self._walk(value, path, 1, plain)

    def check_text(self, value: str | bytes, path: Path) -> None:
        """Raise Exceeded for a text, or bytes, over max_string_length."""
        if len(value) > self.max_string_length:
            unit = "characters" if isinstance(value, str) else "bytes"
            raise Exceeded(
                "E318",
                f"{described(path)} is {len(value)} {unit} long; "
                f"limits.max_string_length is {self.max_string_length}",
            )

    def check_length(self, length: int, path: Path) -> None:
        """Raise Exceeded for a container that holds more than max_container_length items."""
        if length > self.max_container_length:
            raise Exceeded(
                "E319",
                f"{described(path)} holds {length} items; "
                f"limits.max_container_length is {self.max_container_length}",
            )

    def check_depth(self, depth: int, path: Path) -> None:
        """Raise Exceeded for a container whose contents are at more than max_depth levels."""
        if depth > self.max_depth:
            raise Exceeded(
                "E320", f"{described(path)} is more than {self.max_depth} levels deep (limits.max_depth)"
            )

    def _walk(self, value: Any, path: Path, depth: int, plain: Callable[[Any], Any] | None) -> None:
        kind = type(value)
        if kind is str:
            self.check_text(value, path)
        elif kind is dict:
            self._enter(len(value), path, depth)
            for key, item in value.items():
                if type(key) is str and len(key) > self.max_string_length:
                    self.check_text(key, (path, KEY))
                if type(item) not in _ATOMS:
                    self._walk(item, (path, key), depth + 1, plain)
        elif kind is list or kind is tuple:
            self._enter(len(value), path, depth)
            for index, item in enumerate(value):
                if type(item) not in _ATOMS:
                    self._walk(item, (path, index), depth + 1, plain)
        elif plain is not None and kind not in _ATOMS:
            self._walk(plain(value), path, depth, plain)

    def _enter(self, length: int, path: Path, depth: int) -> None:
        self.check_depth(depth, path)
        self.check_length(length, path)


UNCONFIGURED = Bounds(Limits())


def nests_deeper(text: bytes, value: Any, levels: int) -> bool:
    """Whether the value of a JSON text has more than so many levels of lists and objects.

    It goes down without recursion, so that no depth is too much for it: for whatever the host takes apart or
    writes again.
    """
    if not _has_more_brackets(text, levels):
        return False
    level = [value]
    for _ in range(levels):
        level = [inner for item in level for inner in _inner(item) if type(inner) in _CONTAINERS]
    return any(type(item) in _CONTAINERS for item in level)


def _inner(container: Any) -> Iterable[Any]:
    kind = type(container)
    return container.values() if kind is dict else container if kind is list else ()


def _has_more_brackets(text: bytes, most: int) -> bool:
    # bytes.count looks at every byte, which costs as much as reading the JSON; find skips to the next one.
    for bracket in (b"{", b"["):
        at = text.find(bracket)
        while at >= 0:
            most -= 1
            if most < 0:
                return True
            at = text.find(bracket, at + 1)
    return False


def described(path: Path) -> str:
    """`path` as people write it, `output 0['rows'][3]`, and not longer than a line."""
    steps: list[str] = []
    role = ""
    while type(path) is tuple:
        path, step = path
        if step is ELEMENT or step is KEY:
            role = "an element of " if step is ELEMENT else "a key of "
            steps.clear()  # the way from here on leads through values that have no names
            continue
        text = repr(step)
        steps.append(f"[{text}]" if len(text) <= _STEP_CHARS else f"[{text[:_STEP_CHARS]}…]")
    text = path + "".join(reversed(steps))
    if len(text) > _PATH_CHARS:
        text = f"{text[: _PATH_CHARS // 2]}…{text[-_PATH_CHARS // 2 :]}"
    return role + text
