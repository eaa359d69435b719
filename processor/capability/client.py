"""One HTTP exchange with one server: the only place that dials, and what it dials it has checked.

A `Client` has one list of what is allowed. A connection is made here and nowhere else: the name is resolved
once, every address that comes back must be allowed, and one of these is dialled. So a name that changes its
address between a check and a connection gains nothing. TLS is verified against the name in the URL. There
are no proxies, no cookies, no credentials from files, and nothing follows a redirect here.

An answer is bounded while it arrives, packed and unpacked. Deadlines are the caller's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore

from processor.address import Address, Allowed, Url
from processor.errors import ProcessorError

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

HEADERS = 200
HEADER_BYTES = 64 << 10
CONNECTIONS = 20  # of one route to all of its servers
IDLE_S = 15.0
ADDRESS_S = 1.5  # for one address of several, before the next is tried
NO_BODY = frozenset({204, 304})

# They would write the parts of each request to their logs, and a secret may be among them.
for chatty in ("httpx", "httpcore"):
    logging.getLogger(chatty).setLevel(logging.WARNING)


class Unanswered(ProcessorError):
    """A request that was allowed brought no answer; `kind` is connection, tls, timeout or redirects."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__("E317", what, place="requests")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. `headers` are in its order, names in lower case; `body` is unpacked."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return ", ".join(value for own, value in self.headers if own == name)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as this machine finds them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def trusted_roots() -> ssl.SSLContext:
    """Verification against SSL_CERT_FILE or SSL_CERT_DIR where they are set, or the usual authorities."""
    import httpx  # with its certificates 0.1 s: most routes never make a request

    return httpx.create_ssl_context()


class Client:
    """Exchanges with the hosts of `allowed`. `place` is the configuration key that holds the list.

    Connections are kept for a while and used again, by this client only: each was dialled to an address that
    this list allows.
    """

    def __init__(self, allowed: Allowed, place: str, roots: ssl.SSLContext, resolve: Resolve) -> None:
        self._allowed = allowed
        self._place = place
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=roots,
            max_connections=CONNECTIONS,
            keepalive_expiry=IDLE_S,
            network_backend=_Dialer(self.addresses, resolve),
        )

    async def close(self) -> None:
        await self._pool.aclose()

    def check(self, url: Url) -> None:
        """Raise ProcessorError E325 unless the host of `url` may be asked, as far as its name says."""
        if not self._allowed.permits(url):
            line = f"'{url.authority}'" if ":" in url.host else url.authority
            raise self._denied(f"{url.authority} is not an allowed host", line)

    async def exchange(
        self, method: str, url: Url, headers: Sequence[tuple[str, str]], body: bytes, max_bytes: int
    ) -> Answer:
        """The answer of the server at `url` to this one request.

        Raises ProcessorError E325 for a host or an address that is not allowed, E323 for an answer of more
        than `max_bytes`, and Unanswered.
        """
        self.check(url)
        request = httpcore.Request(
            method=method.encode(),
            # Its parts, and not a text: nothing is parsed a second time.
            url=httpcore.URL(
                scheme=url.scheme.encode(),
                host=url.host.encode(),
                port=url.port,
                target=url.target.encode(),
            ),
            headers=_encoded([("host", url.authority), *headers], method, body),
            content=body,
        )
        try:
            response = await self._pool.handle_async_request(request)
            try:
                return await _read(response, method, max_bytes)
            finally:
                await response.aclose()
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as err:
            # Neither text nor cause: both can quote the request, and with it a secret.
            kind, why = _explained(err)
            raise Unanswered(kind, f"{url.authority}: {why}") from None

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


class _Dialer(httpcore.AsyncNetworkBackend):
    """Connects to addresses that `check` has seen, and to nothing else."""

    def __init__(self, check: Callable[[str, int, Iterable[str]], list[Address]], resolve: Resolve) -> None:
        self._check = check
        self._resolve = resolve
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception | None = None
        addresses = self._check(host, port, await self._look_up(host, port))
        for address in addresses:
            try:
                patience_s = ADDRESS_S if address is not addresses[-1] else None
                return await self._sockets.connect_tcp(str(address), port, patience_s)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as err:
                failure = err
        try:
            raise failure or httpcore.ConnectError(_NO_ADDRESS)
        finally:
            failure = None  # it has this frame: they would keep each other, and the request, in memory

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("no sockets of this machine")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            return await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError(_NO_ADDRESS) from None


def _encoded(headers: Iterable[tuple[str, str]], method: str, body: bytes) -> list[tuple[bytes, bytes]]:
    lines = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    names = {name.lower() for name, _ in lines}
    if b"accept-encoding" not in names:
        lines.append((b"accept-encoding", b"identity"))
    if b"user-agent" not in names:
        lines.append((b"user-agent", b"processor"))
    if b"accept" not in names:
        lines.append((b"accept", b"*/*"))
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append((b"content-length", b"%d" % len(body)))
    return lines


def _explained(err: Exception) -> tuple[str, str]:
    """The kind of a failure, and why there is no answer in words that hold nothing of the request."""
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "tls", f"its certificate cannot be verified ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return "tls", "no TLS connection could be made"
        if isinstance(cause, OSError) and cause.strerror:
            return "connection", cause.strerror
        cause = cause.__cause__ or cause.__context__
    if isinstance(err, httpcore.ConnectError):
        return "connection", str(err) if str(err) == _NO_ADDRESS else "no connection could be made"
    if isinstance(err, httpcore.RemoteProtocolError):
        return "connection", "the answer is not HTTP, has too many header bytes, or broke off"
    return "connection", f"the connection failed ({type(err).__name__})"


_NO_ADDRESS = "the name has no address"


async def _read(response: httpcore.Response, method: str, max_bytes: int) -> Answer:
    size = sum(len(name) + len(value) for name, value in response.headers)
    if len(response.headers) > HEADERS or size > HEADER_BYTES:
        what = f"the answer has {len(response.headers)} headers of {size} bytes"
        raise ProcessorError("E323", f"{what} (limits {HEADERS} and {HEADER_BYTES})", place="requests")
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers]
    reason = response.extensions.get("reason_phrase", b"").decode("latin-1")
    answer = Answer(response.status, reason, headers, b"")
    unpacker = _Unpacker(answer.header("content-encoding"), max_bytes)
    if method != "HEAD" and response.status not in NO_BODY:
        async for chunk in response.aiter_stream():
            unpacker.feed(chunk)
        unpacker.finish()
    return Answer(response.status, reason, headers, bytes(unpacker.body))


class _Unpacker:
    """The bytes of a body, unpacked as they arrive, and refused at the first that is one too many."""

    def __init__(self, coding: str, max_bytes: int) -> None:
        self.body = bytearray()
        self._max_bytes = max_bytes
        self._packed = 0
        coding = coding.strip().lower()
        self._coding = {"x-gzip": "gzip", "identity": ""}.get(coding, coding)
        self._stream: Any = None

    def feed(self, chunk: bytes) -> None:
        self._packed += len(chunk)
        if not self._coding:
            self.body += chunk
        elif chunk:
            self._unpack(chunk)
        if max(self._packed, len(self.body)) > self._max_bytes:
            raise ProcessorError(
                "E323",
                f"the answer has more than {self._max_bytes} bytes (outbound.response_bytes)",
                place="requests",
            )

    def finish(self) -> None:
        if self._stream is not None and not self._stream.eof:
            raise Unanswered("connection", "the packed answer broke off")

    def _unpack(self, chunk: bytes) -> None:
        if self._coding not in ("gzip", "deflate"):
            what = f"the answer is packed as {self._coding[:40]!r}, which was not asked for"
            raise Unanswered("connection", what)
        try:
            while chunk and len(self.body) <= self._max_bytes:
                if self._stream is None or self._stream.eof:
                    self._stream = zlib.decompressobj(self._window(chunk))
                self.body += self._stream.decompress(chunk, self._max_bytes + 1 - len(self.body))
                chunk = self._stream.unconsumed_tail or self._stream.unused_data
        except zlib.error:
            raise Unanswered("connection", "the packed answer cannot be unpacked") from None

    def _window(self, chunk: bytes) -> int:
        # `deflate` is sent with and without the header of zlib.
        raw = self._coding == "deflate" and chunk[0] & 0x0F != 8
        return -zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32
