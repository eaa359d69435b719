"""The HTTP server of a process, as probes, Prometheus, slow clients and strangers find it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web

from processor.errors import ProcessorError
from processor.health import Health
from processor.telemetry import Telemetry


async def status_of(health: Health, said: bytes) -> int:
    """The status of what is answered to these bytes."""
    reader, writer = await connect(health)
    try:
        writer.write(said)
        return int((await reader.readline()).split(b" ")[1])
    finally:
        writer.close()


@asynccontextmanager
async def serving(telemetry: Telemetry | None = None, **settings: Any) -> AsyncIterator[Health]:
    health = Health(telemetry or Telemetry(), **settings)
    await health.start()
    try:
        yield health
    finally:
        await health.stop()


async def get(path: str, telemetry: Telemetry | None = None) -> httpx.Response:
    async with serving(telemetry) as health, httpx.AsyncClient() as client:
        return await client.get(health.url + path)


async def connect(health: Health) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(health.url.rpartition(":")[2]))


async def test_other_paths_are_not_found() -> None:
    """An unknown path answers 404 and names the known ones."""
    answer = await get("/")
    assert (answer.status_code, answer.text) == (404, "try /metrics, /livez or /readyz\n")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (b"GET /livez?verbose HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"POST /livez HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET /" + b"a" * 100_000, 400),
        (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 100_000, 400),
    ],
)
async def test_it_speaks_just_enough_http(said: bytes, status: int) -> None:
    """Probes of any HTTP version are served, and what is no request of theirs is turned away."""
    async with serving() as health:
        assert await status_of(health, said) == status


async def test_head_sends_no_body() -> None:
    """HEAD answers with the headers of GET."""
    async with serving() as health, httpx.AsyncClient() as client:
        answer = await client.head(health.url + "/readyz")
    assert answer.status_code == 200
    assert answer.content == b""


async def test_stop_ends_open_connections() -> None:
    """A client that connected and says nothing does not hold up the end."""
    health = Health(Telemetry())
    await health.start()
    reader, writer = await connect(health)
    await get("/livez")  # the loop has accepted the silent connection by now
    await health.stop()
    await health.stop()
    assert await reader.read() == b""
    writer.close()


async def test_a_port_in_use_is_named() -> None:
    """A health port that something else holds is an error with the port and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ProcessorError) as taken:
            await Health(Telemetry(), port=port).start()
    assert str(taken.value) == (
        f"E109 health cannot listen on 127.0.0.1:{port}: Address already in use."
        " Another program listens there, perhaps another processor. Take another port: "
        f"PROCESSOR_HTTP_PORT={port + 1} (0 for any that is free), or http.port in the file."
    )


async def test_a_host_that_is_not_ours_is_named() -> None:
    """An address of no interface, and a host that is no name, are the same clear error."""
    for host in ("192.0.2.1", "no..host"):
        with pytest.raises(ProcessorError, match=f"E109 health cannot listen on {host}:0: .*Choose another"):
            await Health(Telemetry(), host=host).start()


async def test_a_connection_has_one_request() -> None:
    """What a client sends behind its first one is not read: the answer says that the connection ends."""
    async with serving() as health:
        reader, writer = await connect(health)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        said = await reader.read()
        writer.close()
    assert said.count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\nConnection: close\r\n" in said
    assert said.endswith(b"\r\n\r\nalive\n")


async def test_answers_name_no_software_and_are_not_kept() -> None:
    """A stranger learns of no library and its version, and no proxy keeps what was ready a while ago."""
    for path in ("/livez", "/readyz", "/metrics", "/none"):
        headers = (await get(path)).headers
        assert (headers["server"], headers["cache-control"]) == ("processor", "no-store")


@pytest.mark.parametrize("said", [b"", b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nHost: x"])
async def test_a_client_that_dawdles_is_cut_off(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """All of a request has to come within the deadline, and others are served meanwhile."""
    monkeypatch.setattr("processor.health.REQUEST_DEADLINE_S", 0.3)
    async with serving() as health, httpx.AsyncClient() as client:
        reader, writer = await connect(health)
        writer.write(said)
        assert (await client.get(health.url + "/livez")).status_code == 200
        try:
            assert await asyncio.wait_for(reader.read(), 20) == b""
        except ConnectionResetError:
            pass
        writer.close()


async def test_a_body_that_does_not_come_holds_up_nothing() -> None:
    """What a request has no use for is not waited for: it is answered, and its connection ends."""
    async with serving() as health:
        reader, writer = await connect(health)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegin")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_client_that_does_not_read_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    """What it has asked for is held for it until the deadline, and no longer."""
    monkeypatch.setattr("processor.health.REQUEST_DEADLINE_S", 1.0)
    telemetry, size = Telemetry(), 32 << 20  # more than the system holds on the way
    telemetry.readiness.block("nats", "x" * size)
    async with serving(telemetry) as health:
        reader, writer = await connect(health)
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        await wait_until(lambda: health._deadlines, "the connection is there")
        await wait_until(lambda: not health._deadlines, "it is cut")
        transport.resume_reading()
        try:
            came = len(await asyncio.wait_for(reader.read(), 20))
        except ConnectionResetError:
            came = 0
        writer.close()
    assert came < size


async def test_what_is_no_request_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody fills the log from outside, or writes into it."""
    caplog.set_level(logging.INFO)
    async with serving() as health:
        for said in (
            b"\x16\x03\x01 not TLS here\r\n\r\n",
            b"GET /livez HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        ):
            assert await status_of(health, said) == 400
    assert not [record for record in caplog.records if "health" in record.name or "aiohttp" in record.name]


async def test_an_error_of_ours_is_logged_and_costs_its_request(caplog: pytest.LogCaptureFixture) -> None:
    """The client hears that it was one, and nothing of it."""
    telemetry = Telemetry()
    telemetry.jail("confined", {"layer": object()})  # type: ignore[dict-item]
    answer = await get("/readyz", telemetry)
    assert answer.status_code == 500
    assert "TypeError" not in answer.text
    assert [record.name for record in caplog.records if record.exc_info] == ["processor.health"]


async def test_other_routes_are_served_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep their connection, and their answers may take longer; an unknown path is still none."""
    monkeypatch.setattr("processor.health.REQUEST_DEADLINE_S", 0.3)

    async def page(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"one ")
        await passed.wait()
        await answer.write(b"two")
        return answer

    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(1.0, passed.set)
    async with serving(routes=[web.get("/console", page)]) as health:
        reader, writer = await connect(health)
        for _ in range(2):
            writer.write(b"GET /console HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"4\r\none \r\n")
        writer.write(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()
