"""The services that Runnables know by name, against local servers of their shapes."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from processor.address import Binding
from processor.reach import BoundSecret, StateApi, Stock
from tests.web import Asked, RouteCalls, Say, Web, answer, call, outside, refusal, serving, to

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

ROWS = [{"column_name": "animal", "data_value": "cat", "data_index": 0}]


def document(value: Any) -> Say:
    return lambda _: answer(json.dumps(value).encode())


@asynccontextmanager
async def service(
    say: Say | None = None, key: str = "", **settings: Any
) -> AsyncIterator[tuple[Web, RouteCalls]]:
    """A server that is both services, and the calls of a route that is configured to ask it."""
    async with serving(say or document(SERIES)) as web:
        reach = {
            "stock": Stock(base_url=web.url, api_key_env="TEST_STOCK_KEY"),
            "state_api": StateApi(base_url=f"{web.url}/"),
            "state_key": BoundSecret("s", key, (Binding.parse(web.host),)) if key else None,
        }
        async with outside(reach=reach, **settings) as calls:
            yield web, calls


def query_of(asked: Asked) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(asked.target).query).items()}


# Stock prices.


async def test_a_series_comes_back_as_the_server_sent_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`stock` asks for the five-minute series of the ticker with the key from the environment."""
    monkeypatch.setenv("TEST_STOCK_KEY", CANARY)
    async with service() as (web, calls):
        assert await calls.perform("stock", {"ticker": "IBM"}) == SERIES
        assert urlsplit(web.asked[0].target).path == "/query"
        assert query_of(web.asked[0]) == {
            "function": "TIME_SERIES_INTRADAY",
            "symbol": "IBM",
            "interval": "5min",
            "apikey": CANARY,
        }


async def test_without_a_key_the_public_one_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route works without a key of its own, for the tickers that the API shows to everyone."""
    monkeypatch.delenv("TEST_STOCK_KEY", raising=False)
    async with service() as (web, calls):
        await calls.perform("stock", {"ticker": "IBM"})
        assert query_of(web.asked[0])["apikey"] == "demo"


@pytest.mark.parametrize(
    "ticker", ["", "A B", "IBM&apikey=x", "../x", "A" * 21, "IBM\n", "é", 7, None, ["IBM"], {"a": 1}]
)
async def test_what_is_no_ticker_is_not_asked_for(ticker: object) -> None:
    """A ticker comes from user code: anything else than a short symbol is refused before the network."""
    async with service() as (web, calls):
        asking = calls.perform("stock", {"ticker": ticker})
        assert "is no ticker. A ticker has" in await refusal("E317", asking)
        assert "is no ticker" in await refusal("E317", calls.perform("stock", {}))
        assert not web.asked


async def test_an_unknown_capability_is_refused_by_name() -> None:
    """A guest that asks for something else than a capability is told that there is none."""
    async with service() as (_, calls):
        assert await refusal("E317", calls.perform("shell", {})) == "E317 there is no capability 'shell'."


# The state API.


async def test_the_rows_of_a_state_come_back_as_the_server_sent_them() -> None:
    """`state_data` posts the filters as one group, with the key in a header."""
    filters = [{"column": "animal", "operator": "=", "value": "cat"}]
    async with service(document(ROWS), CANARY) as (web, calls):
        assert await calls.perform("state_data", {"state_id": "s-1", "filters": filters}) == ROWS
        await calls.perform("state_data", {"state_id": "s-1", "user_id": "u", "filters": []})
    first, second = web.asked
    assert (first.method, first.target) == ("POST", "/api/v1/query/state/s-1")
    assert first.headers["authorization"] == f"Bearer {CANARY}"
    assert first.headers["content-type"] == "application/json"
    group = {"filters": filters, "group_logic": "AND"}
    assert json.loads(first.body) == {"filter_groups": [group], "state_id": "s-1"}
    empty = {"filters": [], "group_logic": "AND"}
    assert json.loads(second.body) == {"filter_groups": [empty], "state_id": "s-1", "user_id": "u"}


@pytest.mark.parametrize(
    "args",
    [
        {}, {"state_id": "../users"}, {"state_id": ""}, {"state_id": 7}, {"state_id": "s?a=b"},
        {"state_id": "s", "filters": {"a": 1}}, {"state_id": "s", "filters": ["a"]}, {"state_id": "s\n"},
    ],
)  # fmt: skip
async def test_a_state_is_named_by_its_id_alone(args: dict[str, object]) -> None:
    """What a guest says cannot become another path of the server."""
    async with service() as (web, calls):
        await refusal("E317", calls.perform("state_data", {"filters": [], **args}))
        assert not web.asked


# Both.

CALLS = pytest.mark.parametrize(
    "name, args", [("stock", {"ticker": "IBM"}), ("state_data", {"state_id": "s", "filters": []})]
)


@CALLS
@pytest.mark.parametrize(
    "said, code, sentence",
    [
        (answer(b"down", 503), "E317", "the server answered with status 503."),
        (to("http://127.0.0.1:1/"), "E317", "the server answered with status 302."),
        (answer(b"<html>"), "E317", "the server's answer is not JSON."),
        (answer(b"xyz", Content_Encoding="gzip"), "E317", "the packed answer cannot be unpacked."),
        (answer(b" " * 10_001), "E323", "the answer has more than 10000 bytes"),
        (answer(b'{"a":' * 900 + b"1" + b"}" * 900), "E317", "the server's answer is nested too deeply."),
    ],
    ids=["status", "redirect", "no JSON", "not packed", "too large", "too deep"],
)
async def test_an_answer_that_cannot_be_used_is_described(
    name: str, args: dict[str, object], said: bytes, code: str, sentence: str
) -> None:
    """Whatever is wrong with the answer, the guest gets one sentence that says what."""
    async with service(lambda _: said, CANARY, response_bytes=10_000) as (_, calls):
        assert (await refusal(code, calls.perform(name, args))).startswith(f"{name} {code} {sentence}")


@CALLS
async def test_a_silent_server_is_given_up(name: str, args: dict[str, object]) -> None:
    """A call ends at its deadline, whatever the server does."""
    async with service(lambda _: None, timeout_s=0.05) as (_, calls):
        assert "no complete answer within 0.05 s" in await refusal("E317", calls.perform(name, args))


@CALLS
async def test_a_server_that_is_not_there_is_said_to_be_so(name: str, args: dict[str, object]) -> None:
    """A refused connection is an error of the call, not of the process."""
    reach = {
        "stock": Stock(base_url="http://127.0.0.1:1"),
        "state_api": StateApi(base_url="http://127.0.0.1:1"),
    }
    async with outside(reach=reach) as calls:
        assert "127.0.0.1:1: " in await refusal("E317", calls.perform(name, args))


async def test_the_server_of_a_service_is_for_that_service_alone() -> None:
    """The configuration names it, wherever it is; for `requests` it is a host like any other."""
    async with service() as (web, calls):
        await calls.perform("stock", {"ticker": "IBM"})
        asking = calls.perform("requests", call("GET", web.url))
        assert "is not an allowed host" in await refusal("E325", asking)


async def test_the_keys_appear_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A key is sent, and is then in no log, no error, and no answer, even one that repeats it."""
    monkeypatch.setenv("TEST_STOCK_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    async with service(key=CANARY) as (web, calls):
        for name, args in (("stock", {"ticker": "IBM"}), ("state_data", {"state_id": "s", "filters": []})):
            web.say = document({CANARY: [f"your key {CANARY}!"]})
            said.append(json.dumps(await calls.perform(name, args)))
            assert said[-1] == '{"***": ["your key ***!"]}'
            for broken in (
                answer(CANARY.encode(), 500),
                b"HTTP/1.1 200 OK\r\nX-Key\x00: " + CANARY.encode() + b"\r\n\r\n",
                answer(b"{}", Content_Encoding=CANARY),
            ):
                web.say = lambda _, broken=broken: broken
                said.append(await refusal("E317", calls.perform(name, args)))
        assert all(CANARY in query_of(asked).get("apikey", CANARY) for asked in web.asked)
    said += [caplog.text, *capfd.readouterr()]
    assert not [text for text in said if "canary" in text.lower() or "k3y%2f" in text.lower()]
