"""The connections of one `Client`: each is to an address that was checked, and each request is sent once.

A name is resolved for each connection, all of its addresses are checked, and the socket of an address looks
once more. A request that a kept connection lost is not sent again unseen: the server may have done it.
There are no proxies, no cookies, no redirects, nothing is unpacked, and no URL is parsed a second time. Only
this module imports aiohttp.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import Connection
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from processor.address import Address, Url
from processor.capability.answers import HEADER_BYTES, HEADERS, Headers, Unanswered, too_long
from processor.errors import ProcessorError

if TYPE_CHECKING:
    from aiohappyeyeballs import AddrInfoType

Check = Callable[[str, int, Iterable[str]], list[Address]]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

CONNECTIONS = 100  # of one route to all of its servers
IDLE_S = 15.0
ADDRESS_S = 1.5  # for one address of several, before the next is tried beside it
BUFFER_BYTES = 64 << 10  # of an answer that nobody reads yet; then its server has to wait
_LARGE_BYTES = 1 << 20  # from here on a body is written in parts, so that others are heard in between
_NO_BODY = frozenset({204, 304})
_OWN = frozenset({"Accept", "Accept-Encoding", "Content-Type", "User-Agent"})  # the caller sets them


class Dialer:
    """Sends requests to addresses that `check` has seen, and to nothing else."""

    def __init__(self, roots: ssl.SSLContext, check: Check, resolve: Resolve) -> None:
        self._check = check
        connector = aiohttp.TCPConnector(
            resolver=_Resolver(check, resolve),
            use_dns_cache=False,
            socket_factory=self._socket,
            ssl=roots,
            limit=CONNECTIONS,
            keepalive_timeout=IDLE_S,
            happy_eyeballs_delay=ADDRESS_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_OWN,
            timeout=aiohttp.ClientTimeout(total=None),
            middlewares=[_once],
            request_class=_SentOnce,
            read_bufsize=BUFFER_BYTES,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            max_headers=2 * HEADERS,  # the caller counts, and says how many there were
        )

    async def close(self) -> None:
        await self._session.close()

    async def send(self, method: str, url: Url, headers: Headers, body: bytes) -> Incoming:
        """The head of the answer, whose body is still to come; the caller closes it.

        Raises Unanswered, ProcessorError E323 for a head that is too long, and what `check` raises.
        """
        target = URL.build(
            scheme=url.scheme,
            host=f"[{url.host}]" if ":" in url.host else url.host,
            port=url.port,
            path=url.path,
            query_string=url.query,
            encoded=True,
        )
        data = io.BytesIO(body) if len(body) >= _LARGE_BYTES else body or None
        try:
            response = await self._session.request(
                method, target, headers=headers, data=data, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError) as err:
            # Neither text nor cause: both can quote the request, and with it a secret.
            raise _explained(err, url.authority) from None
        raw = response.raw_headers
        size = sum(len(name) + len(value) for name, value in raw)
        if len(raw) > HEADERS or size > HEADER_BYTES:
            response.close()
            raise too_long(f"the answer has {len(raw)} headers of {size} bytes")
        return Incoming(response, url.authority)

    def _socket(self, where: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = where
        try:
            self._check(str(address[0]), int(address[1]), [str(address[0])])
        except ProcessorError as err:
            raise _NotAllowed(err) from None
        return socket.socket(family, kind, protocol)


class Incoming:
    """The head of an answer, and the bytes of its body as they arrive, packed as the server packs them."""

    def __init__(self, response: aiohttp.ClientResponse, authority: str) -> None:
        self.status = response.status
        # aiohttp reads it as UTF-8; like headers it is bytes, which Latin-1 keeps.
        self.reason = (response.reason or "").encode("utf-8", "surrogateescape").decode("latin-1")
        self.headers = [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.raw_headers
        ]
        self.authority = authority
        self._response = response
        self._has_body = response.method != "HEAD" and self.status not in _NO_BODY

    async def read(self) -> bytes:
        """What has arrived of the body, at least one byte, or none at its end. Raises Unanswered."""
        if not self._has_body:
            return b""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as err:
            raise _explained(err, self.authority) from None

    def close(self) -> None:
        """Give the connection up, unless the body was read to its end. Idempotent."""
        self._response.close()


class _NotAllowed(OSError):
    """An address that was refused at its socket; aiohttp goes on to the next one only for an OSError."""

    def __init__(self, refusal: ProcessorError) -> None:
        super().__init__(refusal.what)
        self.refusal = refusal


class _Resolver(AbstractResolver):
    """The addresses of names, all of them checked."""

    def __init__(self, check: Check, resolve: Resolve) -> None:
        self._check = check
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found = await self._resolve(host, port)
        except UnicodeError:
            found = ()
        addresses = self._check(host, port, found)
        if not addresses:
            raise OSError
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """There is nothing to close."""


class _Stale(aiohttp.ClientConnectionError):
    """A kept connection has something that nobody asked for; nothing was sent over it."""


class _SentOnce(aiohttp.ClientRequest):
    """A request that is sent over no connection on which its server has said more than it was asked.

    Such bytes would be taken for the answer, and from then on each answer for that to the next request.
    """

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        if conn.protocol is not None and conn.protocol.should_close:
            raise _Stale
        return await super().send(conn)


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send a request, and do not let aiohttp send it a second time.

    It would where a kept connection breaks after an idempotent method; it does for these two exceptions only.
    """
    try:
        while True:
            try:
                return await send(request)
            except _Stale:
                continue  # which was closed: the next one is another
    except aiohttp.ClientConnectorError:
        raise  # nothing was sent
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as err:
        raise aiohttp.ClientConnectionError from err


def _causes(err: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = err
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _explained(err: Exception, authority: str) -> ProcessorError:
    """What to raise for a failure of aiohttp, in words that hold nothing of the request."""
    kind, why = "connection", ""
    for cause in _causes(err):
        # aiohttp's frames have what they raise: they would keep each other, and the request, in memory.
        cause.__traceback__ = None
        if isinstance(cause, _NotAllowed):
            return cause.refusal
        if isinstance(cause, LineTooLong):
            return too_long(f"the answer has a line of more than {HEADER_BYTES} bytes in its head")
        if isinstance(cause, aiohttp.ClientError):
            continue  # those of TLS and of sockets are OSErrors, too, and know less than their cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            kind, why = "tls", f"its certificate cannot be verified ({cause.verify_message})"
        elif isinstance(cause, ssl.SSLError):
            kind, why = "tls", "no TLS connection could be made"
        elif isinstance(cause, OSError) and cause.errno:
            why = why or os.strerror(cause.errno)
    if isinstance(err, aiohttp.ClientConnectorDNSError):
        why = "the name has no address"
    elif not why and isinstance(err, aiohttp.ClientConnectorError):
        why = "no connection could be made"
    why = why or "the answer is not HTTP, has too many header bytes, or broke off"
    return Unanswered(kind, f"{authority}: {why}")
