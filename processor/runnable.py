"""What a Runnable is written against: the classes that user code may import from `processor.runnable`.

Inside of Processor the import is optional: the names are there without it. It is for editors, type checkers
and unit tests. `Message` and `Headers` are the very classes that a guest hands out.

Nothing here imports another part of Processor, and nothing of it decides anything: a guest brings a base
class and exceptions of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["Headers", "Message"]


class Headers(Mapping[str, str]):
    """The headers of a message: a read-only mapping of names, as they were sent, to texts.

    A name that was sent more than once has its last value here, and all of them in `get_list`. Bytes that are
    not UTF-8 are U+FFFD.
    """

    __slots__ = ("_last", "_pairs")

    def __init__(self, pairs: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        """From pairs of name and value, or from another mapping."""
        self._pairs = [*pairs.items()] if isinstance(pairs, Mapping) else [(name, of) for name, of in pairs]
        self._last: dict[str, str] = dict(self._pairs)

    def get_list(self, name: str) -> list[str]:
        """All values that were sent under `name`, in order; empty where there is none."""
        return [value for own, value in self._pairs if own == name]

    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of name and value, in the order in which they were sent."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> str:
        return self._last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def __eq__(self, other: object) -> bool:
        return self._pairs == other._pairs if isinstance(other, Headers) else self._last == other

    def __hash__(self) -> int:
        return hash(tuple(self._pairs))

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"


_NO_HEADERS = Headers()
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One input message, as its sender published it.

    `sequence` is its place in `stream`, and `time` is when that stored it. `attempt` counts its tries from 1.
    `index` is the place of the document in a message that is a list of documents. A message that was kept to
    be tried again, or as a dead letter, or was given to its partition has its own subject and sequence still.
    """

    key: str = ""
    subject: str = ""
    stream: str = ""
    sequence: int = 0
    attempt: int = 1
    index: int = 0
    headers: Headers = _NO_HEADERS
    time: datetime = _BEGINNING
