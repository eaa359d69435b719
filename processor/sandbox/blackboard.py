"""What the steps of a recipe share: values by their keys, each with how it came to be.

`Blackboard` is the Context of a step, in a guest and in a process of one's own. A value is JSON of the strict
kind: what comes back of it is equal to what was given, and is a copy, so that nothing but `set` changes what
is kept. Nothing here runs code of a user's, whatever a value is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

KEY_CHARS = 128
WHO_CHARS = 128
UNKNOWN = "unknown"
_DEPTH = 100
_LOWEST, _HIGHEST = -(1 << 63), (1 << 64) - 1  # what every reader of JSON here keeps exactly


class BoardEntry(NamedTuple):
    """One change of a key: when, by whom, and the value before and after it."""

    ts_ms: int
    who: str
    old: Any
    new: Any

    def told(self) -> dict[str, Any]:
        """It as users see it: `ts` in seconds since 1970."""
        return {"ts": self.ts_ms / 1000, "who": self.who, "old": copied(self.old), "new": copied(self.new)}

    @classmethod
    def read(cls, said: Any) -> BoardEntry:
        """What `told` gave. Raises ValueError for anything else."""
        if not isinstance(said, Mapping) or not {"ts", "who", "old", "new"} <= said.keys():
            raise ValueError("an entry has ts, who, old and new")
        ts, who = said["ts"], said["who"]
        if type(ts) not in (int, float) or not 0 <= ts < 1e11:
            raise ValueError("the ts of an entry is seconds since 1970")
        if type(who) is not str:
            raise ValueError("the who of an entry is a text")
        return cls(round(ts * 1000), who, said["old"], said["new"])


class Blackboard:
    """Values by key, for several threads at once."""

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        history: Mapping[str, Sequence[BoardEntry]] | None = None,
        who: str = UNKNOWN,
    ) -> None:
        """What is given is this object's from now on; `who` is who sets what names nobody."""
        self._lock = threading.RLock()
        self._values: dict[str, Any] = dict(values or {})
        self._history: dict[str, list[BoardEntry]] = {
            key: list(found) for key, found in (history or {}).items()
        }
        self._who = who

    def set(self, key: str, value: Any, who: str | None = None) -> None:
        """Give a key a value, JSON only, and note who did.

        Raises ValueError for a value that would not come back as it is, and for a key that is none.
        """
        key, who = checked_key(key), self._author(who)
        value = strict(key, value)
        with self._lock:
            self._put(key, value, who)

    def get(self, key: str, default: Any = None) -> Any:
        """A copy of the value of a key, or `default`."""
        with self._lock:
            return copied(self._values[key]) if key in self._values else default

    def get_history(self, key: str) -> list[dict[str, Any]]:
        """All changes of a key, the first one first: `{"ts", "who", "old", "new"}`.

        `ts` is in seconds since 1970.
        """
        with self._lock:
            return [entry.told() for entry in self._history.get(key, ())]

    def last_modified(self, key: str) -> float | None:
        """When a key was last changed, in seconds since 1970; None where that is not known."""
        with self._lock:
            entries = self._history.get(key)
            return entries[-1].ts_ms / 1000 if entries else None

    def to_dict(self) -> dict[str, Any]:
        """A copy of all values by their keys."""
        with self._lock:
            found: dict[str, Any] = copied(self._values)
            return found

    def _author(self, who: str | None) -> str:
        if who is None:
            return self._who
        if not isinstance(who, str):
            raise TypeError(f"who is a text, not a {type(who).__name__}")
        return str.encode(str.__str__(who)[:WHO_CHARS], errors="replace").decode()

    def _put(self, key: str, value: Any, who: str) -> BoardEntry:
        """Keep a value that was checked."""
        entry = BoardEntry(time.time_ns() // 1_000_000, who, self._values.get(key), value)
        self._values[key] = value
        self._history.setdefault(key, []).append(entry)
        return entry

    def __repr__(self) -> str:
        return f"<Context {', '.join(self._values)}>"


def checked_key(key: object) -> str:
    """A key as a text. Raises ValueError, or TypeError where it is none."""
    if not isinstance(key, str):
        raise TypeError(f"a key of the context is a text, not a {type(key).__name__}")
    key = str.__str__(key)
    if not 0 < len(key) <= KEY_CHARS or not key.isprintable():
        shown = repr(key[:KEY_CHARS])
        raise ValueError(f"a key of the context is 1 to {KEY_CHARS} printable characters: {shown}")
    return key


def copied(value: Any) -> Any:
    """A copy of a value that `strict` gave, or that was read from JSON."""
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if type(value) is list else value


def strict(key: str, value: Any) -> Any:
    """A copy of a value that is JSON: it comes back from its text as it is.

    Raises ValueError that names the key and the first thing that would not.
    """
    try:
        return _strict(value, "", _DEPTH)
    except ValueError as err:
        raise ValueError(f"Value for {key} not JSON-serializable: {err}") from None


def _strict(value: Any, path: str, levels: int) -> Any:
    """The type's own conversions: a subclass may have another idea of itself."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return _text(str.__str__(value), path)
    if isinstance(value, int):
        number = int.__int__(value)
        if not _LOWEST <= number <= _HIGHEST:
            raise ValueError(f"an integer of more than 64 bits{_at(path)}")
        return number
    if isinstance(value, float):
        figure = float.__float__(value)
        if not math.isfinite(figure):
            raise ValueError(f"{figure}{_at(path)}")
        return figure
    if not isinstance(value, (dict, list)):
        raise ValueError(f"{_named(value)}{_at(path)}")
    if not levels:
        raise ValueError(f"it is nested more than {_DEPTH} levels deep")
    if isinstance(value, list):
        items = enumerate(list.__iter__(value))
        return [_strict(item, f"{path}[{index}]", levels - 1) for index, item in items]
    found = {}
    for key, item in dict.items(value):
        if not isinstance(key, str):
            raise ValueError(f"{_named(key)} as a key of a dict{_at(path)}")
        name = _text(str.__str__(key), path)
        found[name] = _strict(item, f"{path}[{name[:40]!r}]", levels - 1)
    return found


def _text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"half of a surrogate pair{_at(path)}") from None
    return value


def _named(value: object) -> str:
    """A value without asking it: what it is, or of which type."""
    if type(value) in (int, float, bool, type(None)):
        return f"{value!r:.40}"
    return f"a {type.__dict__['__name__'].__get__(type(value))}"


def _at(path: str) -> str:
    return f" at {path if len(path) <= 200 else '…' + path[-199:]}" if path else ""
