"""The two services that Runnables know by name: stock prices, and the state API of ISM.

Each asks the one server that the configuration names for it, over the same `Client` as every other request.
The address is the configuration's and never the guest's; what comes from the guest is one text in a fixed
place, checked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from processor.address import Url, parse_url
from processor.capability.client import Client, Unanswered
from processor.capability.secrets import Scrubber
from processor.errors import ProcessorError
from processor.sandbox import documents
from processor.sandbox.bounds import nests_deeper
from processor.sandbox.values import DEPTH

TICKER = re.compile(r"[A-Za-z0-9.^=-]{1,20}\Z")
STATE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}\Z")
PUBLIC_KEY = "demo"  # what the API's own documentation uses; it answers for a few tickers


class JsonApi:
    """One server with a JSON API. Every failure is ProcessorError E317, or E323 for too many bytes."""

    def __init__(self, name: str, base_url: str, client: Client, deadline_s: float, max_bytes: int) -> None:
        self._name = name
        self._base = base_url.rstrip("/")
        self._client = client
        self._deadline_s = deadline_s
        self._max_bytes = max_bytes

    async def stock(self, args: Mapping[str, Any], key: str) -> Any:
        """The intraday series of a ticker, as Alpha Vantage words it."""
        ticker = args.get("ticker")
        if not isinstance(ticker, str) or not TICKER.match(ticker):
            raise self._refused(
                f"{str(ticker)[:40]!r} is no ticker",
                "A ticker has up to 20 letters, digits, dots and dashes, such as IBM or BRK-B.",
            )
        query = {
            "function": "TIME_SERIES_INTRADAY",
            "symbol": ticker,
            "interval": "5min",
            "apikey": key or PUBLIC_KEY,
        }
        url = parse_url(f"{self._base}/query?{urlencode(query)}")
        # The API's "rate limit" answer quotes the key that was sent.
        return await self._ask("GET", url, [], b"", Scrubber([key]))

    async def state_data(self, args: Mapping[str, Any], key: str) -> Any:
        """The rows of a state that match all filters, as the state API words them."""
        state_id, user_id, filters = args.get("state_id"), args.get("user_id"), args.get("filters")
        if not isinstance(state_id, str) or not STATE_ID.match(state_id):
            raise self._refused(f"{str(state_id)[:40]!r} is no state id")
        if type(filters) is not list or not all(type(each) is dict for each in filters):
            raise self._refused("the filters are not a list of column, operator and value")
        document: dict[str, Any] = {
            "filter_groups": [{"filters": filters, "group_logic": "AND"}],
            "state_id": state_id,
        }
        if user_id is not None:
            document["user_id"] = str(user_id)[:200]
        headers = [("Content-Type", "application/json")]
        if key:
            headers.append(("Authorization", f"Bearer {key}"))
        url = parse_url(f"{self._base}/api/v1/query/state/{state_id}")
        return await self._ask("POST", url, headers, documents.dumps(document), Scrubber([key]))

    async def _ask(
        self, method: str, url: Url, headers: list[tuple[str, str]], body: bytes, scrubber: Scrubber
    ) -> Any:
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await self._client.exchange(method, url, headers, body, self._max_bytes)
        except TimeoutError:
            raise self._refused(f"no complete answer within {self._deadline_s:g} s") from None
        except Unanswered as err:
            raise self._refused(scrubber.text(err.what)) from None
        except ProcessorError as err:
            raise ProcessorError(err.code, scrubber.text(err.what), place=self._name) from None
        if answer.status != 200:
            raise self._refused(f"the server answered with status {answer.status}")
        try:
            document = documents.loads(scrubber.body(answer.body))
        except ValueError:
            raise self._refused("the server's answer is not JSON") from None
        if nests_deeper(answer.body, document, DEPTH):
            raise self._refused("the server's answer is nested too deeply")
        return document

    def _refused(self, what: str, remedy: str = "") -> ProcessorError:
        return ProcessorError("E317", what, place=self._name, remedy=remedy)
