"""The client by itself: an answer as it comes, each request sent once, and nothing dialled unseen."""

from __future__ import annotations

import asyncio
import gc
import gzip
import socket
import ssl
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from processor.address import Allowed, parse_url
from processor.capability.answers import Unanswered
from processor.capability.client import Client, Streamed, resolve
from processor.errors import ProcessorError
from tests.web import PLACE, Web, answer, refusal, serving

ROOTS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def client_of(*allowed: str, names: Callable[[str], list[str]] | None = None) -> AsyncIterator[Client]:
    async def look_up(host: str, port: int) -> list[str]:
        assert names is not None
        return names(host)

    client = Client(Allowed.of(allowed), PLACE, ROOTS, look_up if names else resolve)
    try:
        yield client
    finally:
        await client.close()


async def streamed(client: Client, url: str, method: str = "GET", idle_s: float | None = 5.0) -> Streamed:
    return await client.stream(method, parse_url(url), [], b"", 1 << 20, idle_s)


class Line:
    """A server of one connection after the other, whose bytes the test says when it likes."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.is_closed_by_client = asyncio.Event()
        self.host = ""
        self._more = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                self.writers.append(writer)
                self._more.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.is_closed_by_client.set()
            writer.close()

    async def asked(self, count: int) -> None:
        """Once so many requests have arrived."""
        async with asyncio.timeout(10):
            while len(self.writers) < count:
                await self._more.wait()
                self._more.clear()

    async def say(self, data: bytes) -> None:
        await self.asked(1)
        self.writers[-1].write(data)
        await self.writers[-1].drain()


@asynccontextmanager
async def a_line() -> AsyncIterator[Line]:
    line = Line()
    server = await asyncio.start_server(line.serve, "127.0.0.1", 0)
    line.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        for writer in line.writers:
            writer.close()
        await server.wait_closed()


# An answer as it comes.


async def test_a_body_is_given_as_it_comes() -> None:
    """The head is there before the body, and each piece before the server has written the next one."""
    async with a_line() as line, client_of(line.host) as client:
        asking = asyncio.create_task(streamed(client, f"http://{line.host}/"))
        await line.say(CHUNKED)
        got = await asking
        assert (got.status, got.reason, got.header("content-type")) == (200, "OK", "text/event-stream")
        for data in (b"data: 1\n\n", b"data: 2\n\n"):
            await line.say(chunk(data))
            assert await anext(got) == data
        await line.say(b"0\r\n\r\n")
        assert [piece async for piece in got] == []
        await got.close()
        await got.close()
        again = asyncio.create_task(streamed(client, f"http://{line.host}/"))
        await line.asked(2)
        assert line.writers[0] is line.writers[1], "what was read to its end leaves its connection to others"
        await line.say(HEAD + b"Content-Length: 0\r\n\r\n")
        await (await again).close()


async def test_a_packed_body_is_unpacked_as_it_comes() -> None:
    """What a server flushes is there at once, however it is packed."""
    pack = zlib.compressobj(wbits=31)
    async with a_line() as line, client_of(line.host) as client:
        asking = asyncio.create_task(streamed(client, f"http://{line.host}/"))
        await line.say(HEAD + b"Content-Encoding: gzip\r\n\r\n")
        got = await asking
        for data in (b"data: 1\n\n", b"data: 2\n\n"):
            await line.say(pack.compress(data) + pack.flush(zlib.Z_SYNC_FLUSH))
            assert await anext(got) == data
        await got.close()


async def test_what_unpacks_to_more_than_one_piece_is_whole() -> None:
    """A body that is some hundred times its packed size arrives complete, in bounded pieces."""
    body = b"\0" * (1 << 20)
    packed = answer(gzip.compress(body), Content_Encoding="gzip")
    async with serving(lambda _: packed) as web, client_of(web.host) as client:
        got = await streamed(client, web.url)
        pieces = [piece async for piece in got]
        await got.close()
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= 128 << 10


async def test_a_stream_has_its_bound() -> None:
    """The first byte too many is E323, what came before it was given, and the connection is given up."""
    async with a_line() as line, client_of(line.host) as client:
        asking = asyncio.create_task(client.stream("GET", parse_url(f"http://{line.host}/"), [], b"", 10, 5))
        await line.say(CHUNKED + chunk(b"x" * 10))
        got = await asking
        assert await anext(got) == b"x" * 10
        await line.say(chunk(b"y"))
        assert "more than 10 bytes" in await refusal("E323", anext(got))
        await asyncio.wait_for(line.is_closed_by_client.wait(), 10)
        await got.close()


async def test_silence_ends_a_stream() -> None:
    """A server that says nothing for `idle_s` in the middle of its answer is given up."""
    async with a_line() as line, client_of(line.host) as client:
        asking = asyncio.create_task(streamed(client, f"http://{line.host}/", idle_s=0.05))
        await line.say(CHUNKED + chunk(b"x"))
        got = await asking
        assert await anext(got) == b"x"
        with pytest.raises(Unanswered, match=r"nothing more of the answer came for 0\.05 s") as given_up:
            await anext(got)
        assert given_up.value.kind == "timeout"
        await asyncio.wait_for(line.is_closed_by_client.wait(), 10)


async def test_a_stream_that_is_closed_early_gives_its_connection_up() -> None:
    """Nobody reads the rest, so the next request gets a connection of its own."""
    async with a_line() as line, client_of(line.host) as client:
        asking = asyncio.create_task(streamed(client, f"http://{line.host}/"))
        await line.say(CHUNKED + chunk(b"x"))
        got = await asking
        await got.close()
        await asyncio.wait_for(line.is_closed_by_client.wait(), 10)
        with pytest.raises(Unanswered):
            await anext(got)


@pytest.mark.parametrize("framing", ["chunked", "length", "gzip"])
async def test_a_cut_anywhere_is_one_error(framing: str) -> None:
    """Wherever an answer breaks off, there is one Unanswered of the connection, and never a short body."""
    body = b"data: one\n\ndata: two\n\n"
    whole = {
        "chunked": CHUNKED + chunk(body[:11]) + chunk(body[11:]) + b"0\r\n\r\n",
        "length": HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        "gzip": HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(body),
    }[framing]
    said = b""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async def read(client: Client, url: str) -> bytes:
        got = await streamed(client, url)
        try:
            return b"".join([piece async for piece in got])
        finally:
            await got.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    # Without a length, the end of the connection is the end of the body: an empty one is whole, too.
    is_whole = {whole.index(b"\r\n\r\n") + 4} if framing == "gzip" else set()
    async with client_of(host) as client:
        for length in set(range(len(whole))) - is_whole:
            said = whole[:length]
            with pytest.raises(Unanswered) as broken:
                await read(client, f"http://{host}/")
            assert broken.value.kind == "connection", length
        said = whole
        assert await read(client, f"http://{host}/") == body
    server.close()
    await server.wait_closed()


async def test_an_answer_without_a_body_ends_at_once() -> None:
    """The answer to HEAD, 204 and 304 have no body, whatever their headers say."""
    async with serving() as web, client_of(web.host) as client:
        for status, method in ((200, "HEAD"), (204, "GET"), (304, "GET")):
            web.say = lambda _, status=status: answer(status=status, Content_Length="5")
            got = await streamed(client, web.url, method)
            assert [piece async for piece in got] == []
            await got.close()


# A request is sent once.


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_request_that_a_kept_connection_lost_is_not_sent_again(method: str) -> None:
    """The server may have done it, so it is told as a failure and not repeated, whatever its method."""
    async with a_line() as line, client_of(line.host) as client:
        url = parse_url(f"http://{line.host}/")
        first = asyncio.create_task(client.exchange("GET", url, [], b"", 100))
        await line.say(HEAD + b"Content-Length: 0\r\n\r\n")
        await first
        second = asyncio.create_task(client.exchange(method, url, [], b"", 100))
        await line.asked(2)
        assert line.writers[0] is line.writers[1], "it went over the connection that was kept"
        line.writers[1].transport.abort()
        with pytest.raises(Unanswered, match=line.host):
            await asyncio.wait_for(second, 10)
        assert len(line.requests) == 2


async def test_a_connection_that_its_server_closed_is_not_used_again() -> None:
    """A server that ends idle connections early costs no request."""
    async with a_line() as line, client_of(line.host) as client:
        url = parse_url(f"http://{line.host}/")
        first = asyncio.create_task(client.exchange("GET", url, [], b"", 100))
        await line.say(HEAD + b"Content-Length: 0\r\n\r\n")
        await first
        line.writers[0].close()
        await line.writers[0].wait_closed()
        second = asyncio.create_task(client.exchange("GET", url, [], b"", 100))
        await line.asked(2)
        assert line.writers[1] is not line.writers[0]
        await line.say(HEAD + b"Content-Length: 0\r\n\r\n")
        assert (await second).status == 200


async def test_what_nobody_asked_for_is_no_answer_to_the_next_request() -> None:
    """A connection on which its server says more than it was asked is not used again."""
    async with a_line() as line, client_of(line.host) as client:
        url = parse_url(f"http://{line.host}/")
        first = asyncio.create_task(client.exchange("GET", url, [], b"", 100))
        said = HEAD + b"Content-Length: 1\r\n\r\n"
        await line.say(said + b"1")
        assert (await first).body == b"1"
        await line.say(said + b"2")
        # It has arrived once another request has gone there and back.
        async with serving() as web, client_of(web.host) as other:
            await other.exchange("GET", parse_url(web.url), [], b"", 1000)
        second = asyncio.create_task(client.exchange("GET", url, [], b"", 100))
        await line.asked(2)
        assert line.writers[0] is not line.writers[1]
        await line.say(said + b"3")
        assert (await second).body == b"3"


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
async def test_a_request_that_failed_is_not_kept_in_memory(addresses: list[str], free_port: int) -> None:
    """Its body is let go at once, and not when the collector comes by: many may fail before that."""
    host = f"down.example:{free_port}"
    body = bytes(100_000)
    async with client_of(host, f"127.0.0.0/8:{free_port}", names=lambda _: addresses) as client:
        gc.disable()
        try:
            before = sys.getrefcount(body)
            for _ in range(3):
                with suppress(Unanswered):
                    await client.exchange("POST", parse_url(f"http://{host}/"), [], body, 100)
            assert sys.getrefcount(body) == before
        finally:
            gc.enable()


# What is written and dialled.


async def test_a_target_is_sent_as_it_was_read() -> None:
    """No second reading changes a path or a query, and several lines of a header stay several."""
    async with serving(lambda _: answer()) as web, client_of(web.host) as client:
        targets = ["/a/../b", "//other.example/x", "/a%2Fb;c?x=%2B+&y=?/%25", "/%C3%BC?q=%C3%BC#part", "/?"]
        for target in targets:
            await client.exchange("GET", parse_url(web.url + target), [], b"", 100)
        sent = [asked.target for asked in web.asked]
        assert sent == [target.partition("#")[0].removesuffix("?") for target in targets]
        await client.exchange("GET", parse_url(web.url), [("X-A", "1"), ("x-a", "2")], b"", 100)
        assert web.asked[-1].raw.count(b"X-A: 1\r\nX-A: 2\r\n") == 1


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
async def test_a_body_has_its_length(size: int) -> None:
    """A body is sent whole with its length, and no header that nobody asked for."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with serving(lambda _: answer()) as web, client_of(web.host) as client:
        await client.exchange("POST", parse_url(web.url), [], body, 100)
    assert web.asked[0].body == body
    assert web.asked[0].headers == {
        "host": web.host, "accept": "*/*", "accept-encoding": "identity", "user-agent": "processor",
        "content-length": str(size),
    }  # fmt: skip


async def test_the_socket_looks_at_its_address_again() -> None:
    """What is not allowed is not dialled, even where the look-up and its check were passed by."""
    async with serving() as web, client_of(f"any.example:{web.port}") as client:
        dialer = client._connections()
        where = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", web.port))
        with pytest.raises(OSError, match=r"is at 127\.0\.0\.1, which is not a public address"):
            dialer._socket(where)
        url = parse_url(web.url)
        with pytest.raises(ProcessorError, match="E325") as refused:
            await dialer.send("GET", url, [], b"")
        assert "not a public address" in refused.value.what
        assert not web.connections


async def test_an_address_that_does_not_answer_costs_no_more_than_its_turn() -> None:
    """The next address is tried beside one that stays silent, and the one that answers is asked."""
    silent = socket.socket()
    silent.bind(("127.0.0.7", 0))
    silent.listen(0)
    port = silent.getsockname()[1]
    # A full queue: further connections are neither taken nor refused.
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.7", port))
    web = Web()
    server = await asyncio.start_server(web._serve, "127.0.0.1", port)
    web.port = port
    try:
        allowed = (f"two.example:{port}", f"127.0.0.0/8:{port}")
        async with client_of(*allowed, names=lambda _: ["127.0.0.7", "127.0.0.1"]) as client:
            got = await client.exchange("GET", parse_url(f"http://two.example:{port}/"), [], b"", 1000)
        assert got.status == 200
        assert len(web.asked) == 1
    finally:
        server.close()
        await server.wait_closed()
        for held in (silent, *fillers):
            held.close()


async def test_a_server_without_tls_is_said_to_be_so() -> None:
    """What answers https with anything else is a failure of TLS, in words of ours."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with client_of(host) as client:
        with pytest.raises(Unanswered, match=f"{host}: no TLS connection could be made") as failed:
            await client.exchange("GET", parse_url(f"https://{host}/"), [], b"", 100)
    assert failed.value.kind == "tls"
    server.close()
    await server.wait_closed()


async def test_a_name_that_is_not_ascii_is_looked_up_as_it_is_registered() -> None:
    """The look-up and the Host header have its ASCII form."""
    looked_up: list[str] = []

    def names(host: str) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"]

    async with serving(lambda _: answer()) as web:
        name = f"bücher.example:{web.port}"
        async with client_of(name, f"127.0.0.1:{web.port}", names=names) as client:
            await client.exchange("GET", parse_url(f"http://{name}/"), [], b"", 100)
    assert looked_up == ["xn--bcher-kva.example"]
    assert web.asked[0].headers["host"] == f"xn--bcher-kva.example:{web.port}"
