"""The host's side of what a guest asks of the outside: HTTP requests that the host makes for it.

A worker passes `HostCalls.for_route(...)` to its guests as their `Perform`. Today's one capability is
`stock`: the intraday series of a ticker, in the shape that Alpha Vantage serves. Only this module imports
httpx.

Everything in `args` comes from a guest and is hostile. The address is the configuration's, never the
guest's. An API key goes into a request and nowhere else: not into a log, an error or what a guest gets
back, even where the server repeats it. Every call ends within `DEADLINE_S` and `RESPONSE_BYTES`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from processor.config import Stock
from processor.errors import ProcessorError

if TYPE_CHECKING:
    import httpx

Perform = Callable[[str, dict[str, Any]], Awaitable[Any]]

DEADLINE_S = 5.0
DEPTH = 100  # levels of an answer
RESPONSE_BYTES = 4 << 20  # a series of a hundred points, the API's default, takes about 20 KB
TICKER = re.compile(r"[A-Za-z0-9.^=-]{1,20}\Z")
PUBLIC_KEY = "demo"  # what the API's own documentation uses; it answers for a few tickers

# Both write the URL of each request to their logs, and the API wants its key in the URL.
for chatty in ("httpx", "httpcore"):
    logging.getLogger(chatty).setLevel(logging.WARNING)


class HostCalls:
    """Makes the calls of all guests of a process, over shared connections, until `close`."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    def for_route(self, stock: Stock) -> Perform:
        """What a guest of this route may ask for: `await perform(name, args)` gives a JSON value.

        It raises ProcessorError E317, whose sentence the guest's code sees as an exception.
        """
        return partial(self._perform, stock)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _perform(self, stock: Stock, name: str, args: dict[str, Any]) -> Any:
        if name != "stock":
            raise ProcessorError("E317", f"there is no capability {name[:40]!r}")
        ticker = args.get("ticker")
        if not isinstance(ticker, str) or not TICKER.match(ticker):
            raise ProcessorError(
                "E317",
                f"{str(ticker)[:40]!r} is no ticker",
                place="stock",
                remedy="A ticker has up to 20 letters, digits, dots and dashes, such as IBM or BRK-B.",
            )
        secret = os.environ.get(stock.api_key_env, "")
        query = {
            "function": "TIME_SERIES_INTRADAY",
            "symbol": ticker,
            "interval": "5min",
            "apikey": secret or PUBLIC_KEY,
        }
        body = await self._get(f"{stock.base_url.rstrip('/')}/query", query)
        try:
            document = orjson.loads(body)
            # The API's "rate limit" answer quotes the key that was sent.
            return without(document, secret) if secret else document
        except orjson.JSONDecodeError:
            raise refused("the server's answer is not JSON") from None
        except RecursionError:
            raise refused("the server's answer is nested too deeply") from None

    async def _get(self, url: str, query: dict[str, str]) -> bytes:
        # Loaded at the first call, with its certificates 0.1 s: most routes never make one.
        import httpx

        if self._client is None:
            # Identity: a compressed body could grow past the limit within one chunk.
            self._client = httpx.AsyncClient(headers={"Accept-Encoding": "identity"})
        body = bytearray()
        try:
            async with asyncio.timeout(DEADLINE_S), self._client.stream("GET", url, params=query) as response:
                if response.status_code != 200:
                    raise refused(f"the server answered with status {response.status_code}")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise refused("the server sent a compressed answer, which was not asked for")
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > RESPONSE_BYTES:
                        raise refused(f"the server's answer is larger than {RESPONSE_BYTES} bytes")
        except TimeoutError:
            raise refused(f"no complete answer within {DEADLINE_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Neither text nor cause: both can quote the request, and with it the key.
            raise refused(f"the request failed ({type(error).__name__})") from None
        return bytes(body)


def refused(what: str) -> ProcessorError:
    return ProcessorError("E317", what, place="stock")


def without(value: Any, secret: str, depth: int = 0) -> Any:
    """`value` with every trace of the secret in its texts replaced. Raises RecursionError below DEPTH."""
    if depth > DEPTH:  # our own bound: the interpreter's differs between versions
        raise RecursionError
    if isinstance(value, str):
        return value.replace(secret, "***").replace(quote(secret, safe=""), "***")
    if isinstance(value, list):
        return [without(item, secret, depth + 1) for item in value]
    if isinstance(value, dict):
        return {without(key, secret): without(item, secret, depth + 1) for key, item in value.items()}
    return value
