"""What a Runnable may know of the messages in hand: `self.messages`, `self.message` and `self.key`.

The host writes it in columns, one JSON text for a run, which the guest reads when user code first asks: what
nobody asks for costs a tenth of a microsecond a message. `columns` is called by the worker, `columns_of` by
the library; `InHand` is the guest's.

The columns are the host's own and not vetted; the headers in them are the sender's, and are data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate, repeat
from typing import Any

import orjson

from processor.model import Delivery, Group, is_of_server, subject_text
from processor.model import RawHeaders as Sent
from processor.runnable import Headers, Message


def columns(deliveries: Sequence[Delivery], tries: Sequence[int]) -> bytes:
    """The messages of a run, in the order of its documents, and how many tries of each failed.

    Without `tries` none has.
    """
    if not deliveries:
        return b""
    # One pass in C for all fields: each that is asked for by name costs a pass of its own.
    subjects, _, headers, streams, sequences, times_s, *_ = zip(*deliveries, strict=True)
    attempts = [failed + 1 for failed in tries]
    named = {
        "s": _one_or_all(subjects),
        "st": _one_or_all(streams),
        "q": sequences,
        "t": times_s,
        "a": attempts if any(attempt > 1 for attempt in attempts) else None,
        "h": [_shown(each) for each in headers] if any(headers) else None,
    }
    try:
        return _written(**named)
    except orjson.JSONEncodeError:  # a subject that is not UTF-8
        return _written(**{**named, "s": [subject_text(subject) for subject in subjects]})


def columns_of(messages: Sequence[Message]) -> bytes:
    """Messages that a caller made up, one for each query, with keys and indices of their own."""
    return _written(
        s=[message.subject for message in messages],
        st=[message.stream for message in messages],
        q=[message.sequence for message in messages],
        t=[message.time.timestamp() for message in messages],
        a=[message.attempt for message in messages],
        h=[message.headers.pairs() for message in messages],
        k=[message.key for message in messages],
        i=[message.index for message in messages],
    )


def _written(**named: Any) -> bytes:
    return orjson.dumps(named)


def _one_or_all(texts: Sequence[str]) -> str | Sequence[str]:
    """`texts`, or the one that all of them are."""
    return texts[0] if texts.count(texts[0]) == len(texts) else texts


def _shown(headers: Sent) -> list[tuple[str, str]]:
    pairs = headers.pairs if headers else ()
    return [(n, value.decode(errors="replace")) for n, value in pairs if not is_of_server(n.encode())]


class InHand:
    """The messages of the run in hand, group by group.

    `begin` a run, `enter` each of its groups, and say with `spread` where a document is not one query; then
    `messages`, `message` and `key` answer.
    """

    def __init__(self) -> None:
        self.is_making = False  # init runs, which belongs to no message
        self._columns = b""
        self._groups: Sequence[Group] = ()
        self._number = 0
        self._spread: dict[int, int] = {}
        self._query: int | None = None
        self._read: _Read | None = None
        self._found: list[Message] | None = None

    def begin(self, columns: bytes, groups: Sequence[Group]) -> None:
        """A run of these groups begins."""
        self._columns, self._groups, self._read = columns, groups, None
        self.enter(0)

    def enter(self, number: int) -> None:
        """The next calls are for the group of this number."""
        self._number, self._found, self._query, self.is_making = number, None, None, False
        if self._spread:
            self._spread = {}

    def leave(self) -> tuple[Any, ...]:
        """What is known of the group in hand, for `come_back`: others come before it goes on."""
        return self._number, self._spread, self._query, self._found, self.is_making

    def come_back(self, known: tuple[Any, ...]) -> None:
        """The group that was left goes on."""
        self._number, self._spread, self._query, self._found, self.is_making = known

    def spread(self, index: int, queries: int) -> None:
        """The group's document `index` is so many queries: those of a list, or none."""
        self._spread[index] = queries

    def single_out(self, query: int) -> None:
        """The next call is for the group's query of this index alone."""
        self._query, self._found = query, None

    def messages(self) -> list[Message]:
        """One for each query of the call; empty where its caller gave none. Raises RuntimeError in `init`."""
        self._refuse_init("messages")
        if self._found is None:
            found = self._all_of_group()
            self._found = found if self._query is None else found[self._query : self._query + 1]
        return self._found

    def message(self) -> Message:
        """The one message of the call. Raises ValueError where there is not just one."""
        self._refuse_init("message")
        found = self.messages()
        different = {(each.stream, each.sequence) for each in found}
        if len(different) != 1:
            count = len(different)
            what = f"{count} messages are in hand" if count else "no message is in hand"
            raise ValueError(f"{what}; use self.messages")
        return found[0]

    def key(self) -> str:
        """The key of the call, empty where its route has none."""
        self._refuse_init("key")
        keys = self._all().keys if self._columns else []
        return keys[0] if keys else self._groups[self._number].key

    def _refuse_init(self, name: str) -> None:
        if self.is_making:
            # It runs whenever a guest takes the context up, whatever message is in hand then.
            raise RuntimeError(f"self.{name} is for process and process_stream; init belongs to no message")

    def _all(self) -> _Read:
        if self._read is None:
            self._read = _Read(self._columns, self._groups)
        return self._read

    def _all_of_group(self) -> list[Message]:
        read, key = self._all(), self._groups[self._number].key
        if read.indices:
            return [_message(*of) for of in zip(read.keys, read.rows, read.indices, strict=True)]
        start, end = read.offsets[self._number : self._number + 2]
        rows = read.rows[start:end]
        if not self._spread:
            return [_message(key, row, 0) for row in rows]
        counts = [self._spread.get(document, 1) for document in range(len(rows))]
        return [_message(key, row, i) for row, count in zip(rows, counts, strict=True) for i in range(count)]


# Subject, stream, sequence, time, attempt and headers.
_Row = tuple[str, str, int, float, int, Sequence[tuple[str, str]]]
_NO_HEADERS = Headers()


class _Read:
    """The columns of a run, read."""

    def __init__(self, text: bytes, groups: Sequence[Group]) -> None:
        column: dict[str, Any] = orjson.loads(text) if text else {}
        count = len(column.get("q", ()))

        def each(name: str, default: object) -> Iterable[Any]:
            found = column.get(name)
            found = default if found is None else found
            return found if isinstance(found, list) else repeat(found, count)

        self.rows: list[_Row] = list(
            zip(*(each(name, default) for name, default in _COLUMNS.items()), strict=True)
        )
        self.keys: list[str] = column.get("k") or []
        self.indices: list[int] = column.get("i") or []
        counts = (len(group.documents) if count else 0 for group in groups)
        self.offsets = list(accumulate(counts, initial=0))


_COLUMNS: dict[str, object] = {"s": "", "st": "", "q": 0, "t": 0.0, "a": 1, "h": ()}


def _message(key: str, row: _Row, index: int) -> Message:
    subject, stream, sequence, time_s, attempt, headers = row
    return Message(
        key=key,
        subject=subject,
        stream=stream,
        sequence=sequence,
        attempt=attempt,
        index=index,
        headers=Headers(headers) if headers else _NO_HEADERS,
        time=datetime.fromtimestamp(time_s, UTC),
    )
