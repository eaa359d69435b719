"""What the host does on the network for a guest, against a local server of Alpha Vantage's shape."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from processor import http
from processor.config import Stock
from processor.errors import ProcessorError
from processor.http import HostCalls, Perform

CANARY = "K3Y/canary+1"
SERIES = {
    "Meta Data": {
        "1. Information": "Intraday (5min) open, high, low, close prices and volume",
        "2. Symbol": "IBM",
        "3. Last Refreshed": "2024-01-02 19:55:00",
        "4. Interval": "5min",
        "5. Output Size": "Compact",
        "6. Time Zone": "US/Eastern",
    },
    "Time Series (5min)": {
        "2024-01-02 19:55:00": {
            "1. open": "161.4500",
            "2. high": "161.4500",
            "3. low": "161.4500",
            "4. close": "161.4500",
            "5. volume": "26",
        }
    },
}

Answer = tuple[int, dict[str, str], bytes]


class StockServer:
    """A local HTTP server; `requests` are the queries it got, `answer` is what it says."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[dict[str, str]], Answer | None] = lambda _: (
            200,
            {},
            json.dumps(SERIES).encode(),
        )
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            target = urlsplit((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode())
            query = {name: values[0] for name, values in parse_qs(target.query).items()}
            self.requests.append((target.path, query))
            answer = self.answer(query)
            if answer is None:
                await reader.read()  # says nothing until the client goes away
            else:
                status, headers, body = answer
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body
                )
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def stock_calls() -> AsyncIterator[tuple[StockServer, Perform]]:
    """A server and the calls of a route that is configured to ask it."""
    stock_server = StockServer()
    server = await asyncio.start_server(stock_server.serve, "127.0.0.1", 0)
    stock_server.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    calls = HostCalls()
    try:
        yield stock_server, calls.for_route(Stock(base_url=stock_server.url, api_key_env="TEST_STOCK_KEY"))
    finally:
        await calls.close()
        server.close()
        await server.wait_closed()


async def refusal(perform: Perform, name: str, args: dict[str, object]) -> str:
    with pytest.raises(ProcessorError) as refused:
        await perform(name, args)
    assert refused.value.code == "E317"
    return str(refused.value)


async def test_a_series_comes_back_as_the_server_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`stock` asks for the five-minute series of the ticker with the key from the environment."""
    monkeypatch.setenv("TEST_STOCK_KEY", CANARY)
    async with stock_calls() as (server, perform):
        assert await perform("stock", {"ticker": "IBM"}) == SERIES
        path, query = server.requests[0]
        assert path == "/query"
        assert query == {
            "function": "TIME_SERIES_INTRADAY",
            "symbol": "IBM",
            "interval": "5min",
            "apikey": CANARY,
        }


async def test_without_a_key_the_public_one_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route works without a key of its own, for the tickers that the API shows to everyone."""
    monkeypatch.delenv("TEST_STOCK_KEY", raising=False)
    async with stock_calls() as (server, perform):
        await perform("stock", {"ticker": "IBM"})
        assert server.requests[0][1]["apikey"] == "demo"


@pytest.mark.parametrize(
    "ticker", ["", "A B", "IBM&apikey=x", "../x", "A" * 21, "IBM\n", "é", 7, None, ["IBM"], {"a": 1}]
)
async def test_what_is_no_ticker_is_not_asked_for(ticker: object) -> None:
    """A ticker comes from user code: anything else than a short symbol is refused before the network."""
    async with stock_calls() as (server, perform):
        assert "is no ticker. A ticker has" in await refusal(perform, "stock", {"ticker": ticker})
        assert "is no ticker" in await refusal(perform, "stock", {})
        assert not server.requests


async def test_an_unknown_capability_is_refused_by_name() -> None:
    """A guest that asks for something else than a capability is told that there is none."""
    async with stock_calls() as (_, perform):
        assert await refusal(perform, "shell", {}) == "E317 there is no capability 'shell'."


@pytest.mark.parametrize(
    "answer, sentence",
    [
        ((503, {}, b"down"), "stock E317 the server answered with status 503."),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "stock E317 the server answered with status 302."),
        ((200, {}, b"<html>"), "stock E317 the server's answer is not JSON."),
        ((200, {"Content-Encoding": "gzip"}, b"x"), "stock E317 the server sent a compressed answer"),
        (
            (200, {}, b" " * (http.RESPONSE_BYTES + 1)),
            "stock E317 the server's answer is larger than 4194304",
        ),
        (
            (200, {}, b'{"a":' * 900 + b"1" + b"}" * 900),
            "stock E317 the server's answer is nested too deeply.",
        ),
    ],
)
async def test_an_answer_that_cannot_be_used_is_described(
    answer: Answer, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with the answer, the guest gets one sentence that says what."""
    monkeypatch.setenv("TEST_STOCK_KEY", CANARY)
    async with stock_calls() as (server, perform):
        server.answer = lambda _: answer
        assert sentence in await refusal(perform, "stock", {"ticker": "IBM"})


async def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call ends at its deadline, whatever the server does."""
    monkeypatch.setattr(http, "DEADLINE_S", 0.05)
    async with stock_calls() as (server, perform):
        server.answer = lambda _: None
        assert "no complete answer within 0.05 s" in await refusal(perform, "stock", {"ticker": "IBM"})


async def test_a_server_that_is_not_there_is_named_by_the_kind_of_failure() -> None:
    """A refused connection is an error of the call, not of the process."""
    calls = HostCalls()
    perform = calls.for_route(Stock(base_url="http://127.0.0.1:1"))
    assert "the request failed (ConnectError)" in await refusal(perform, "stock", {"ticker": "IBM"})
    await calls.close()


async def test_the_key_appears_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The key is sent, and is then in no log, no error, and no answer, even one that repeats it."""
    monkeypatch.setenv("TEST_STOCK_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    async with stock_calls() as (server, perform):
        server.answer = lambda query: (
            200,
            {},
            json.dumps({query["apikey"]: [f"your key {query['apikey']}!"]}).encode(),
        )
        said.append(json.dumps(await perform("stock", {"ticker": "IBM"})))
        assert said == ['{"***": ["your key ***!"]}']
        for broken in (
            lambda query: (500, {}, query["apikey"].encode()),
            lambda query: (200, {"X-Key\x00": query["apikey"]}, b"{}"),
            lambda query: (200, {"Content-Encoding": query["apikey"]}, b"{}"),
        ):
            server.answer = broken
            said.append(await refusal(perform, "stock", {"ticker": "IBM"}))
        assert all(query["apikey"] == CANARY for _, query in server.requests)
    said += [caplog.text, *capfd.readouterr()]
    assert not [text for text in said if CANARY in text or "K3Y%2F" in text]
