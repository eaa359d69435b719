"""A web server inside the test, which says exactly the bytes that the test wants said.

`serving` starts one; `outside` gives what a route's guests may ask for, with a look-up of names that the
test decides.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from processor.address import Binding
from processor.capability.monitor import NO_MANDATE
from processor.capability.registry import HostCalls
from processor.errors import ProcessorError
from processor.reach import BoundSecret, Outbound, Reach

PLACE = "routes.r.outbound.allowed_domains"


@dataclass(frozen=True)
class Asked:
    """One request as it arrived. Header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


class Cut(bytes):
    """Bytes behind which the connection ends."""


@dataclass(frozen=True)
class Paused:
    """An answer that goes on once something has happened."""

    first: bytes
    wait: asyncio.Event
    rest: bytes


Say = Callable[[Asked], bytes | Paused | Awaitable[bytes] | None]


def answer(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    """The bytes of an answer; `content_type="x"` is the header Content-Type."""
    lines = {"Content-Length": str(len(body))} | {n.replace("_", "-"): v for n, v in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body


def to(location: str, status: int = 302) -> bytes:
    return answer(status=status, Location=location)


@dataclass
class Web:
    """A server on this machine. `say` makes the answer of a request; None leaves it without one."""

    port: int = 0
    scheme: str = "http"
    say: Say = lambda asked: answer(asked.raw + asked.body)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = first.split(" ")
        asked = Asked(method, target, headers, body, head)
        self.asked.append(asked)
        said = self.say(asked)
        if isinstance(said, Awaitable):
            said = await said
        if said is None:
            await reader.read()  # says nothing until the client goes away
            return False
        if isinstance(said, Paused):
            writer.write(said.first)
            await said.wait.wait()
            said = said.rest
        if method == "HEAD":  # whose answer has no body, whatever its headers say
            said = said[: said.index(b"\r\n\r\n") + 4]
        writer.write(said)
        await writer.drain()
        return not isinstance(said, Cut) and b"connection: close" not in said.lower()


@asynccontextmanager
async def serving(say: Say | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    """A server that answers with `say`, or with the request itself."""
    web = Web(scheme="https" if tls else "http")
    if say:
        web.say = say
    server = await asyncio.start_server(web._serve, "127.0.0.1", 0, ssl=tls)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        server.close()
        await server.wait_closed()


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Feed:
    """A server whose answer to GET is these pieces, each said once all of what was before it is seen.

    What is seen is posted by whoever reads. The answer breaks off after them where `is_cut` is set, and at
    /idle it never ends.
    """

    def __init__(self, pieces: Sequence[bytes], *, is_cut: bool = False) -> None:
        self.seen = b""
        self.host = ""
        self.is_over = False
        self.gone = asyncio.Event()  # a reader has given an answer up
        self._pieces = pieces
        self._is_cut = is_cut
        self._is_seen = asyncio.Event()

    def see(self, piece: bytes) -> None:
        self.seen += piece
        self._is_seen.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                _, _, length = head.partition("\r\ncontent-length:")
                body = await reader.readexactly(int(length.partition("\r\n")[0] or 0))
                if head.startswith("get"):
                    if not await self._say(reader, writer, head.split()[1]):
                        return
                else:
                    self.see(body)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> bool:
        """Whether the connection goes on."""
        writer.write(STREAM_HEAD)
        self.seen = b""
        said = b""
        for piece in self._pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            said += piece
            while "seen" in target and self.seen != said and not self.is_over:
                self._is_seen.clear()
                await self._is_seen.wait()
        if "idle" in target:
            await reader.read()
            self.gone.set()
        elif self._is_cut:
            return False
        else:
            writer.write(b"0\r\n\r\n")
        return True


@asynccontextmanager
async def fed(pieces: Sequence[bytes], **how: Any) -> AsyncIterator[Feed]:
    feed = Feed(pieces, **how)
    server = await asyncio.start_server(feed.serve, "127.0.0.1", 0)
    feed.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield feed
    finally:
        feed.is_over = True
        feed.see(b"")
        server.close()
        await server.wait_closed()


async def refusal(code: str, asking: Awaitable[Any]) -> str:
    """What is said where a call is refused."""
    with pytest.raises(ProcessorError) as refused:
        await asking
    assert refused.value.code == code, refused.value
    return str(refused.value)


@dataclass
class RouteCalls:
    """What the guests of a route are given: who performs their calls, and the marks of its secrets."""

    perform: Callable[[str, Mapping[str, Any]], Awaitable[Any]]
    secrets: Mapping[str, str]


@asynccontextmanager
async def outside(
    *allowed: str,
    names: Mapping[str, str | Sequence[str]] | Callable[[str], Sequence[str]] | None = None,
    secrets: Mapping[str, tuple[str, Sequence[str]]] | None = None,
    observe: Callable[[str, float], None] | None = None,
    reach: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[RouteCalls]:
    """The calls of a route that may reach `allowed`.

    `names` says where names are, and without it they are where this machine says. `secrets` are a value and
    its hosts; `settings` are keys of `outbound`, `reach` other parts of Reach.
    """

    def look_up(host: str) -> Sequence[str]:
        found = names(host) if callable(names) else (names or {}).get(host, ())
        return [found] if isinstance(found, str) else found

    async def resolve(host: str, port: int) -> Sequence[str]:
        return look_up(host)

    calls = HostCalls() if names is None else HostCalls(resolve)
    bound = [
        BoundSecret(name, value, tuple(map(Binding.parse, hosts)))
        for name, (value, hosts) in (secrets or {}).items()
    ]
    whole = Reach(PLACE, Outbound(allowed_domains=allowed, **settings), secrets=tuple(bound), **(reach or {}))
    try:
        governor = calls.for_route(whole, NO_MANDATE, observe)
        yield RouteCalls(governor.lane().perform, governor.secrets)
    finally:
        await calls.close()


def call(method: str, url: str, **args: Any) -> dict[str, Any]:
    """The arguments of a capability call, as guest-side code writes them."""
    return {"method": method, "url": url, "kind": "raw" if args.get("body") else "none", **args}
