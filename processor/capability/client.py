"""One HTTP exchange with one server: the only place that dials, and what it dials it has checked.

A `Client` has one list of what is allowed. A connection is made by its `Dialer` and nowhere else: the name is
resolved once, every address that comes back must be allowed, and one of these is dialled. So a name that
changes its address between a check and a connection gains nothing. TLS is verified against the name in the
URL. There are no proxies, no cookies, no credentials from files, and nothing follows a redirect here.

An answer is bounded while it arrives, packed and unpacked, be it read whole (`exchange`) or as it comes
(`stream`). A request is sent once. Deadlines are the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from processor.address import Address, Allowed, Url
from processor.capability.answers import Answer, Headers, Unanswered, joined
from processor.errors import ProcessorError

if TYPE_CHECKING:
    from processor.capability.dialer import Dialer, Incoming

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_USUAL = (("Accept-Encoding", "identity"), ("User-Agent", "processor"), ("Accept", "*/*"))
_PIECE_BYTES = 128 << 10  # of what is unpacked, at a time


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as this machine finds them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def trusted_roots() -> ssl.SSLContext:
    """Verification against SSL_CERT_FILE or SSL_CERT_DIR where they are set, or the usual authorities."""
    import certifi

    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    roots = ssl.create_default_context(
        cafile=file or (None if folder else certifi.where()), capath=None if file else folder
    )
    roots.set_alpn_protocols(["http/1.1"])
    return roots


class Client:
    """Exchanges with the hosts of `allowed`. `place` is the configuration key that holds the list.

    Connections are kept for a while and used again, by this client only: each was dialled to an address that
    this list allows.
    """

    def __init__(self, allowed: Allowed, place: str, roots: ssl.SSLContext, resolve: Resolve) -> None:
        self._allowed = allowed
        self._place = place
        self._roots = roots
        self._resolve = resolve
        self._dialer: Dialer | None = None

    async def close(self) -> None:
        """Give up all connections. Idempotent; a later request makes new ones."""
        dialer, self._dialer = self._dialer, None
        if dialer is not None:
            await dialer.close()

    def check(self, url: Url) -> None:
        """Raise ProcessorError E325 unless the host of `url` may be asked, as far as its name says."""
        if not self._allowed.permits(url):
            line = f"'{url.authority}'" if ":" in url.host else url.authority
            raise self._denied(f"{url.authority} is not an allowed host", line)

    async def exchange(self, method: str, url: Url, headers: Headers, body: bytes, max_bytes: int) -> Answer:
        """The answer of the server at `url` to this one request.

        Raises ProcessorError E325 for a host or an address that is not allowed, E323 for an answer of more
        than `max_bytes`, and Unanswered.
        """
        return await (await self.stream(method, url, headers, body, max_bytes)).whole()

    async def stream(
        self,
        method: str,
        url: Url,
        headers: Headers,
        body: bytes,
        max_bytes: int,
        idle_s: float | None = None,
    ) -> Streamed:
        """The head of the answer, as soon as it is there, and its body as it comes; the caller closes it.

        `idle_s` bounds each wait for more of the body, and not the one for the head. Raises as `exchange`.
        """
        self.check(url)
        incoming = await self._connections().send(method, url, _completed(headers, url), body)
        return Streamed(incoming, max_bytes, idle_s)

    def _connections(self) -> Dialer:
        if self._dialer is None:
            from processor.capability.dialer import Dialer  # 0.1 s: most routes never make a request

            self._dialer = Dialer(self._roots, self.addresses, self._resolve)
        return self._dialer

    def addresses(self, host: str, port: int, found: Iterable[str]) -> list[Address]:
        """The addresses to dial for `host`: all of those found, or E325 for the first that is not allowed."""
        addresses: list[Address] = []
        for text in found:
            try:
                address: Address = ipaddress.ip_address(text)
            except ValueError:
                raise self._denied(f"{host} is at {text[:60]!r}, which is not an address", "") from None
            if not self._allowed.permits_address(address, port):
                what = f"{host} is at {address}, which is not a public address"
                raise self._denied(what, _line_for(host, address, port))
            addresses.append(address)
        return addresses

    def _denied(self, what: str, line: str) -> ProcessorError:
        remedy = f"To allow it: {self._place}: [{line}]" if line else ""
        return ProcessorError("E325", what, place="requests", remedy=remedy)


def _line_for(host: str, address: Address, port: int) -> str:
    """What to write into a list of hosts, so that it allows a name at an address that is not public."""
    entry = f"'[{address}]'" if address.version == 6 else str(address)
    if port not in (80, 443):
        host, entry = f"{host}:{port}", f"'[{address}]:{port}'" if address.version == 6 else f"{entry}:{port}"
    return f"{host}, {entry}"


class Streamed:
    """An answer whose head has arrived, and whose body is what iterating over it gives, unpacked.

    Iterating raises ProcessorError E323 beyond `max_bytes`, and Unanswered after `idle_s` of silence and
    where the body breaks off; the connection is given up then.
    """

    def __init__(self, incoming: Incoming, max_bytes: int, idle_s: float | None) -> None:
        self.status = incoming.status
        self.reason = incoming.reason
        self.headers: Headers = incoming.headers
        self._incoming = incoming
        self._idle_s = idle_s
        self._unpacker = _Unpacker(self.header("content-encoding"), max_bytes)
        self._pieces: Iterator[bytes] = iter(())
        self._is_read = False

    def header(self, name: str) -> str:
        return joined(self.headers, name)

    def __aiter__(self) -> Streamed:
        return self

    async def __anext__(self) -> bytes:
        try:
            while True:
                for piece in self._pieces:
                    return piece
                if self._is_read:
                    raise StopAsyncIteration
                if chunk := await self._read():
                    self._pieces = self._unpacker.unpack(chunk)
                else:
                    self._unpacker.finish()
                    self._is_read = True
        except (ProcessorError, asyncio.CancelledError):
            self._incoming.close()
            raise

    async def whole(self) -> Answer:
        """The answer with all of its body, of which nothing was read."""
        try:
            pieces = [piece async for piece in self]
        finally:
            await self.close()
        return Answer(self.status, self.reason, self.headers, b"".join(pieces))

    async def end(self, within_s: float) -> None:
        """Read to the end of a body of which nothing more is wanted, if it comes within so many seconds: then
        the connection serves the next request.
        """
        with contextlib.suppress(ProcessorError, TimeoutError):
            async with asyncio.timeout(within_s):
                async for _ in self:
                    pass

    async def close(self) -> None:
        """Give the connection up, unless the body was read to its end. Idempotent."""
        self._incoming.close()

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout(self._idle_s):
                return await self._incoming.read()
        except TimeoutError:
            what = f"{self._incoming.authority}: nothing more of the answer came for {self._idle_s:g} s"
            raise Unanswered("timeout", what) from None


def _completed(headers: Headers, url: Url) -> list[tuple[str, str]]:
    # Each name in one spelling: of two, aiohttp would keep the last line alone.
    spelled: dict[str, str] = {}
    lines = [("Host", url.authority)]
    lines += [(spelled.setdefault(name.lower(), name), value) for name, value in headers]
    lines += [(name, value) for name, value in _USUAL if name.lower() not in spelled]
    return lines


class _Unpacker:
    """The bytes of a body, unpacked as they arrive, and refused at the first that is one too many."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._packed = 0
        self._unpacked = 0
        coding = coding.strip().lower()
        self._coding = {"x-gzip": "gzip", "identity": ""}.get(coding, coding)
        self._stream: Any = None

    def unpack(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` adds to the body, in pieces, none of them empty."""
        self._packed += len(chunk)
        for piece in self._inflated(chunk) if self._coding else (chunk,):
            self._unpacked += len(piece)
            if max(self._packed, self._unpacked) > self._max_bytes:
                raise ProcessorError(
                    "E323",
                    f"the answer has more than {self._max_bytes} bytes (outbound.response_bytes)",
                    place="requests",
                )
            if piece:
                yield piece

    def finish(self) -> None:
        if self._stream is not None and not self._stream.eof:
            raise Unanswered("connection", "the packed answer broke off")

    def _inflated(self, chunk: bytes) -> Iterator[bytes]:
        if self._coding not in ("gzip", "deflate"):
            what = f"the answer is packed as {self._coding[:40]!r}, which was not asked for"
            raise Unanswered("connection", what)
        try:
            piece = b""
            # A full piece may leave more of itself behind, where no byte of the chunk is left.
            while chunk or len(piece) == _PIECE_BYTES:
                if self._stream is None or self._stream.eof:
                    if not chunk:
                        break
                    self._stream = zlib.decompressobj(self._window(chunk))
                piece = self._stream.decompress(chunk, _PIECE_BYTES)
                yield piece
                chunk = self._stream.unconsumed_tail or self._stream.unused_data
        except zlib.error:
            raise Unanswered("connection", "the packed answer cannot be unpacked") from None

    def _window(self, chunk: bytes) -> int:
        # `deflate` is sent with and without the header of zlib.
        raw = self._coding == "deflate" and chunk[0] & 0x0F != 8
        return -zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32
