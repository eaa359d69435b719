"""The body of an answer as guest-side code reads it: whole, or pulled from the host piece by piece.

`requests` and `httpx` show it as bytes, text and lines. A stream is open until its end, an error, `close`, or
the end of the run, with which the host closes it.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol

Call = Callable[[str, dict[str, Any], bytes], Any]
AwaitedCall = Callable[[str, dict[str, Any], bytes], Awaitable[Any]]
# Gives the head of what a call brought, or raises what the library raises for what came of it.
Explain = Callable[[dict[str, Any]], None]


class Unread(RuntimeError):
    """The body of an answer that is a stream was not read."""


class Consumed(RuntimeError):
    """The body of an answer that is a stream was read already, or is closed."""


class Shape(Protocol):
    """What becomes of the pieces of a body."""

    def feed(self, piece: bytes) -> Iterable[Any]: ...

    def finish(self) -> Iterable[Any]: ...


class Pieces:
    """Bytes as they come, at most `most` of them at a time."""

    def __init__(self, most: Any = None) -> None:
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ValueError(f"a chunk has a number of bytes, or None for what has come, not {most!r:.40}")
        self._most = most

    def feed(self, piece: bytes) -> Iterable[bytes]:
        most = self._most or len(piece) or 1
        return [piece[at : at + most] for at in range(0, len(piece), most)]

    def finish(self) -> Iterable[bytes]:
        return ()


class Texts:
    """Text as it comes, of whole characters."""

    def __init__(self, encoding: str | None, most: Any = None) -> None:
        self._pieces = Pieces(most)
        self._decoder = codecs.getincrementaldecoder(known(encoding))("replace")

    def feed(self, piece: bytes) -> Iterable[str]:
        texts = (self._decoder.decode(part) for part in self._pieces.feed(piece))
        return [text for text in texts if text]

    def finish(self) -> Iterable[str]:
        text = self._decoder.decode(b"", True)
        return [text] if text else []


class Lines:
    """Lines as they are complete, without their ends; as text where there is an encoding."""

    def __init__(self, encoding: str | None = None) -> None:
        self._encoding = encoding and known(encoding)
        self._parts: list[bytes] = []  # of the line that is not complete
        self._is_after_return = False

    def feed(self, piece: bytes) -> Iterable[Any]:
        if self._is_after_return and piece:
            piece, self._is_after_return = piece.removeprefix(b"\n"), False
        if b"\n" not in piece and b"\r" not in piece:
            self._parts += [piece] if piece else []
            return ()
        data = b"".join([*self._parts, piece])
        lines = data.splitlines()
        self._is_after_return = data.endswith(b"\r")
        self._parts = [] if data.endswith((b"\n", b"\r")) else [lines.pop()]
        return [self._said(line) for line in lines]

    def finish(self) -> Iterable[Any]:
        parts, self._parts = self._parts, []
        return [self._said(b"".join(parts))] if parts else []

    def _said(self, line: bytes) -> Any:
        return line.decode(self._encoding, "replace") if self._encoding else line


class WholeBody:
    """A body that is there."""

    is_taken = True

    def __init__(self, content: bytes, is_awaited: bool = False) -> None:
        self.content = content
        self._is_awaited = is_awaited

    def each(self, shape: Shape) -> Any:
        """The body in this shape: an iterator, asynchronous where the answer was awaited."""
        said = [*shape.feed(self.content), *shape.finish()]
        return _each_awaited(said) if self._is_awaited else iter(said)

    def read(self) -> Any:
        return _awaited(self.content) if self._is_awaited else self.content

    def close(self) -> Any:
        return _awaited(None) if self._is_awaited else None


class StreamedBody:
    """A body that comes, of which each pull waits."""

    def __init__(self, call: Call, number: int, explain: Explain) -> None:
        self._call = call
        self._number = number
        self._explain = explain
        self._content: bytes | None = None
        self._is_taken = self._is_over = False

    @property
    def is_taken(self) -> bool:
        """Whether it is read, or being read, or closed."""
        return self._is_taken

    @property
    def content(self) -> bytes:
        if self._content is None:
            raise Unread("the body of this answer is a stream, which was not read")
        return self._content

    def each(self, shape: Shape) -> Iterator[Any]:
        if self._content is not None:
            yield from WholeBody(self._content).each(shape)
            return
        self._take()
        while not self._is_over:
            yield from shape.feed(self._pulled(self._ask("stream_next")))
        yield from shape.finish()

    def read(self) -> bytes:
        """All of it, which is kept."""
        if self._content is None:
            self._content = b"".join(self.each(Pieces()))
        return self._content

    def close(self) -> None:
        self._is_taken = True
        if not self._is_over:
            self._is_over = True
            self._ask("stream_close")

    def _take(self) -> None:
        if self._is_taken:
            raise Consumed("the body of this answer was read already, or is closed")
        self._is_taken = True

    def _ask(self, name: str) -> Any:
        try:
            return self._call(name, {"stream": self._number}, b"")
        except TimeoutError:
            raise  # a deadline of the program's own: the stream is open, and is to be closed
        except BaseException:
            self._is_over = True
            raise

    def _pulled(self, made: tuple[dict[str, Any], bytes]) -> bytes:
        head, piece = made
        self._is_over = head.get("end", True)
        self._explain(head)
        return piece


class AwaitedBody(StreamedBody):
    """A body that comes, of which each pull is awaited."""

    def __init__(self, call: AwaitedCall, number: int, explain: Explain) -> None:
        super().__init__(call, number, explain)

    async def each(self, shape: Shape) -> AsyncIterator[Any]:  # type: ignore[override]
        if self._content is not None:
            for said in WholeBody(self._content).each(shape):
                yield said
            return
        self._take()
        while not self._is_over:
            for said in shape.feed(self._pulled(await self._awaited("stream_next"))):
                yield said
        for said in shape.finish():
            yield said

    async def read(self) -> bytes:  # type: ignore[override]
        if self._content is None:
            self._content = b"".join([piece async for piece in self.each(Pieces())])
        return self._content

    async def close(self) -> None:  # type: ignore[override]
        self._is_taken = True
        if not self._is_over:
            self._is_over = True
            await self._awaited("stream_close")

    async def _awaited(self, name: str) -> Any:
        try:
            return await self._call(name, {"stream": self._number}, b"")
        except Exception:  # not where the program gives a pull up: the stream is open, and is to be closed
            self._is_over = True
            raise


def known(encoding: str | None) -> str:
    """An encoding of text that there is: this one, or UTF-8."""
    try:
        is_text = codecs.lookup(encoding or "utf-8")._is_text_encoding
    except (LookupError, ValueError):
        is_text = False
    return encoding or "utf-8" if is_text else "utf-8"


async def _awaited(value: Any) -> Any:
    return value


async def _each_awaited(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
