"""The Context of a recipe in a process of one's own, and the files that it is kept in.

A file of a context is one JSON object, a snapshot: the values, their history, and what the run says of itself
that wrote it. An object without the mark of a snapshot is taken for the values alone, so that a file can be
written by hand. Reading trusts nothing that it finds.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from processor.errors import ProcessorError
from processor.sandbox.blackboard import Blackboard, BoardEntry, checked_key, strict

VERSION = 1
_MARK = "context_format"  # the key of a snapshot that has its version


class RecipeContext(Blackboard):
    """What the steps of a recipe share: values by key, JSON only, with the history of each.

    It may be used by several threads. What it gives are copies: set a key again to change what it has. The
    history is never pruned.
    """

    def delete(self, key: str, who: str | None = None) -> None:
        """Take a key out of the context; its history stays, and has None as the new value.

        Raises KeyError where it is not there.
        """
        who = self._author(who)
        with self._lock:
            if key not in self._values:
                raise KeyError(key)
            self._put(key, None, who)
            del self._values[key]

    def apply(self, key: str, value: Any, who: str, ts_ms: int) -> None:
        """Take over a change that a step made elsewhere, as it said. Raises ValueError."""
        key = checked_key(key)
        value = strict(key, value)
        with self._lock:
            self._history.setdefault(key, []).append(BoardEntry(ts_ms, who, self._values.get(key), value))
            self._values[key] = value

    def history(self) -> dict[str, list[dict[str, Any]]]:
        """The history of every key, as `get_history` gives it."""
        with self._lock:
            return {key: [entry.told() for entry in found] for key, found in self._history.items()}

    def changes(self) -> dict[str, list[Any]]:
        """The history of every key as a run keeps it, and gives it to its steps: see `graphs.history`."""
        with self._lock:
            return {
                key: [found[0].old, *([entry.ts_ms, entry.who, entry.new] for entry in found)]
                for key, found in self._history.items()
                if found
            }


class Snapshot(NamedTuple):
    """What a file of a context holds."""

    context: RecipeContext
    run: Mapping[str, Any]  # what the run that wrote it said of itself; empty where no run did


def dump(context: RecipeContext, run: Mapping[str, Any] | None = None) -> bytes:
    """A snapshot of a context, with what a run says of itself."""
    said = {
        _MARK: VERSION,
        "values": context.to_dict(),
        "history": context.history(),
        "run": dict(run or {}),
    }
    return orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load(text: bytes, place: str = "") -> Snapshot:
    """What `dump` wrote, or the values that a JSON object has.

    Raises ProcessorError E719, which has the `place`.
    """
    try:
        said = orjson.loads(text)
        if not isinstance(said, dict):
            raise ValueError(f"it is a {type(said).__name__}, and no object with keys")
        if _MARK not in said:
            return Snapshot(RecipeContext(_values(said)), {})
        if said[_MARK] != VERSION:
            raise ValueError(f"it is of version {str(said[_MARK])[:20]!r}, and this build reads {VERSION}")
        values, history, run = (said.get(name, {}) for name in ("values", "history", "run"))
        if not all(isinstance(part, dict) for part in (values, history, run)):
            raise ValueError("its values, history or run are no objects")
        return Snapshot(RecipeContext(_values(values), _history(history)), run)
    except ValueError as err:
        what, remedy = f"it is no context: {str(err)[:300]}", "Give a JSON object of keys and values."
        raise ProcessorError("E719", what, place=place, remedy=remedy) from None


def read(path: Path) -> Snapshot:
    """The snapshot, or the values, in a file. Raises ProcessorError E719."""
    try:
        text = path.read_bytes()
    except OSError as err:
        what = f"the context cannot be read: {err.strerror or err}"
        raise ProcessorError("E719", what, place=str(path), remedy="Give a file that can be read.") from None
    return load(text, str(path))


def save(path: Path, text: bytes) -> None:
    """Replace a file as a whole: after a crash, of the machine too, it is the old one or the new one.

    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _values(said: Mapping[str, Any]) -> dict[str, Any]:
    return {checked_key(key): strict(key, value) for key, value in said.items()}


def _history(said: Mapping[str, Any]) -> dict[str, list[BoardEntry]]:
    if not all(isinstance(found, list) for found in said.values()):
        raise ValueError("the history of a key is a list")
    return {checked_key(key): [BoardEntry.read(entry) for entry in found] for key, found in said.items()}
