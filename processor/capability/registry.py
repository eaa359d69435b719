"""The host's side of what a guest asks of the outside: HTTP requests that the host makes for it.

A worker passes `HostCalls.for_route(...).perform` to its guests, and the marks of the route's secrets with
it. There are three capabilities: `requests`, which the Runnable sees as `self.requests`; `stock`; and
`state_data`. `outbound` turns a call into requests, `client` makes each of them and is the only one that
dials, `secrets` puts secrets in and takes them out, `services` knows the two servers by their API. Only this
package imports httpx and httpcore.

Everything in a call comes from a guest and is hostile. A secret goes into a request to a host that it is
bound to and nowhere else: not into a log, an error or what a guest gets back, even where the server repeats
it. Every call ends within its deadline and its bytes.
"""

from __future__ import annotations

import os
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from processor.address import Allowed, parse_url
from processor.capability.client import Client, Resolve, resolve, trusted_roots
from processor.capability.outbound import UNSAFE, Outside
from processor.capability.secrets import Vault
from processor.capability.services import JsonApi
from processor.errors import ProcessorError
from processor.reach import Reach

__all__ = ["UNSAFE", "HostCalls", "Resolve", "RouteCalls"]

Observe = Callable[[str, float], None]


class HostCalls:
    """Makes the calls of all guests of a process, until `close`."""

    def __init__(self, resolve: Resolve = resolve) -> None:
        self._resolve = resolve
        self._roots: ssl.SSLContext | None = None
        self._calls: weakref.WeakSet[RouteCalls] = weakref.WeakSet()

    def for_route(self, reach: Reach, observe: Observe | None = None) -> RouteCalls:
        """What a route's guests may ask for. `observe` hears of each call: what came of it, and seconds.

        That is the class of the answer's status, such as `2xx`, or the code of why there was no answer.
        """
        calls = RouteCalls(reach, self._client, observe or (lambda result, seconds: None))
        self._calls.add(calls)
        return calls

    async def close(self) -> None:
        for calls in list(self._calls):
            await calls.close()

    def _client(self, allowed: Allowed, place: str) -> Client:
        self._roots = self._roots or trusted_roots()
        return Client(allowed, place, self._roots, self._resolve)


class RouteCalls:
    """The calls of one route's guests. `secrets` has the marks that these know its secrets by."""

    def __init__(self, reach: Reach, connect: Callable[[Allowed, str], Client], observe: Observe) -> None:
        vault = Vault(reach.secrets)
        self.secrets: Mapping[str, str] = vault.marks
        self._reach = reach
        self._connect = connect
        self._observe = observe
        self._clients: dict[str, Client] = {}
        self._outside = Outside(reach.outbound, self._outbound_client, vault)

    async def perform(self, name: str, args: dict[str, Any]) -> Any:
        """The answer to one call of a guest: a JSON value, or one with bytes beside it.

        Raises ProcessorError with E317, E323, E325 or E326, whose sentence the guest's code sees as an
        exception.
        """
        started, result = time.monotonic(), "2xx"
        try:
            answer = await self._perform(name, args)
            if name == "requests":
                result = "E317" if "failed" in answer.value else f"{answer.value['status'] // 100}xx"
            return answer
        except ProcessorError as err:
            result = err.code
            raise
        finally:
            self._observe(result, time.monotonic() - started)

    async def close(self) -> None:
        """Close the connections. Idempotent; a later call makes new ones."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    async def _perform(self, name: str, args: dict[str, Any]) -> Any:
        reach = self._reach
        if name == "requests":
            return await self._outside.request(args)
        if name == "stock":
            return await self._service(name, reach.stock.base_url).stock(
                args, os.environ.get(reach.stock.api_key_env, "").strip()
            )
        if name == "state_data":
            key = reach.state_key.value if reach.state_key else ""
            return await self._service(name, reach.state_api.base_url).state_data(args, key)
        raise ProcessorError("E317", f"there is no capability {name[:40]!r}")

    def _outbound_client(self) -> Client:
        return self._client("outbound", self._reach.outbound.allowed, self._reach.place)

    def _service(self, name: str, base_url: str) -> JsonApi:
        client = self._client(name, Allowed.only(parse_url(base_url)), f"{name}.base_url")
        settings = self._reach.outbound
        return JsonApi(name, base_url, client, settings.timeout_s, settings.response_bytes)

    def _client(self, name: str, allowed: Allowed, place: str) -> Client:
        if name not in self._clients:
            self._clients[name] = self._connect(allowed, place)
        return self._clients[name]
