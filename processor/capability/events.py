"""Server-sent events: the data of each, out of the bytes of a stream as they come."""

from __future__ import annotations

from collections.abc import Iterator

EVENT_BYTES = 1 << 20


class TooLong(ValueError):
    """An event has more bytes than EVENT_BYTES."""


class EventSplitter:
    """Splits a stream into the data of its events; other fields and comments are passed over.

    A line ends in \\n, \\r\\n or \\r. An event that its stream does not end is none.
    """

    def __init__(self, most: int = EVENT_BYTES) -> None:
        self._most = most
        self._size = 0  # of the event that is begun
        self._line: list[bytes] = []  # parts of the line that is begun
        self._data: list[bytes] = []
        self._is_after_return = False

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that end in this piece. Raises TooLong."""
        if self._is_after_return and piece:
            piece, self._is_after_return = piece.removeprefix(b"\n"), False
        lines = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._is_after_return = piece.endswith(b"\r")
        for number, part in enumerate(lines):
            self._size += len(part)
            if self._size > self._most:
                raise TooLong(f"an event has more than {self._most:,} bytes")
            self._line.append(part)
            if number < len(lines) - 1:
                line, self._line = b"".join(self._line), []
                yield from self._ended(line)

    def _ended(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line:
            data, self._data, self._size = self._data, [], 0
            if data:
                yield b"\n".join(data)
