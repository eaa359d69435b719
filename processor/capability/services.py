"""The two services that Runnables know by name: stock prices, and the state API of ISM.

Each asks the one server that the configuration names for it, over the same `Client` as every other request.
The address is the configuration's and never the guest's; what comes from the guest is one text in a fixed
place, checked.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any
from urllib.parse import urlencode

from processor.address import Allowed, parse_url
from processor.capability.answers import Unanswered
from processor.capability.arguments import Anything, Argument, JsonObject, Listed, Text
from processor.capability.client import Client
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.capability.secrets import Scrubber
from processor.errors import ProcessorError
from processor.policy import Ask
from processor.sandbox import documents
from processor.sandbox.bounds import nests_deeper
from processor.sandbox.values import DEPTH

TICKER = re.compile(r"[A-Za-z0-9.^=-]+")
STATE_ID = re.compile(r"[A-Za-z0-9_-]+")
PUBLIC_KEY = "demo"  # what the API's own documentation uses; it answers for a few tickers


class JsonApi:
    """One server with a JSON API. Every failure is ProcessorError E317, or E323 for too many bytes."""

    def __init__(self, name: str, base_url: str, client: Client, deadline_s: float, max_bytes: int) -> None:
        self._name = name
        self._base = base_url.rstrip("/")
        self._client = client
        self._deadline_s = deadline_s
        self._max_bytes = max_bytes

    async def ask(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes, scrubber: Scrubber
    ) -> Any:
        """The document that it answers with. `scrubber` takes the key out of whatever it says."""
        url = parse_url(f"{self._base}{path}")
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

    def _refused(self, what: str) -> ProcessorError:
        return ProcessorError("E317", what, place=self._name)


def _service(connections: Connections, name: str, base_url: str) -> JsonApi:
    client = connections.client(name, Allowed.only(parse_url(base_url)), f"{name}.base_url")
    settings = connections.reach.outbound
    return JsonApi(name, base_url, client, settings.timeout_s, settings.response_bytes)


async def _stock(connections: Connections, arguments: Arguments) -> Any:
    """The intraday series of a ticker, as Alpha Vantage words it."""
    settings = connections.reach.stock
    key = os.environ.get(settings.api_key_env, "").strip()
    query = {
        "function": "TIME_SERIES_INTRADAY",
        "symbol": arguments["ticker"],
        "interval": "5min",
        "apikey": key or PUBLIC_KEY,
    }
    service = _service(connections, "stock", settings.base_url)
    # The API's "rate limit" answer quotes the key that was sent.
    return await service.ask("GET", f"/query?{urlencode(query)}", [], b"", Scrubber([key]))


async def _state_data(connections: Connections, arguments: Arguments) -> Any:
    """The rows of a state that match all filters, as the state API words them."""
    reach, state_id = connections.reach, arguments["state_id"]
    document: dict[str, Any] = {
        "filter_groups": [{"filters": arguments["filters"], "group_logic": "AND"}],
        "state_id": state_id,
    }
    if arguments["user_id"] is not None:
        document["user_id"] = str(arguments["user_id"])[:200]
    key = reach.state_key.value if reach.state_key else ""
    headers = [("Content-Type", "application/json")]
    if key:
        headers.append(("Authorization", f"Bearer {key}"))
    service = _service(connections, "state_data", reach.state_api.base_url)
    path = f"/api/v1/query/state/{state_id}"
    return await service.ask("POST", path, headers, documents.dumps(document), Scrubber([key]))


STOCK = Capability(
    "stock",
    (
        Argument(
            "ticker",
            Text(1, 20, TICKER),
            refusal=lambda value: f"{str(value)[:40]!r} is no ticker",
            remedy="A ticker has up to 20 letters, digits, dots and dashes, such as IBM or BRK-B.",
        ),
    ),
    perform=_stock,
    ask=lambda arguments: Ask("stock", "read", arguments["ticker"]),
    event="stock",
    is_method=False,
)
STATE_DATA = Capability(
    "state_data",
    (
        Argument(
            "state_id", Text(1, 100, STATE_ID), refusal=lambda value: f"{str(value)[:40]!r} is no state id"
        ),
        Argument(
            "filters",
            Listed(JsonObject(), most=1 << 20),
            refusal="the filters are not a list of column, operator and value",
        ),
        Argument("user_id", Anything(), required=False),
    ),
    perform=_state_data,
    ask=lambda arguments: Ask("state_data", "read", arguments["state_id"]),
    event="state_data",
    is_method=False,
)
