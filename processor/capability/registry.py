"""The registry: every capability that guests have, and the dispatch of their calls.

A worker passes `HostCalls.for_route(...).perform` to its guests, with the signatures of what they may call
and the marks of the route's secrets. Each capability is a row (`row`) beside its performer: `outbound` is
`requests` and `services` the two servers that it knows by their API. `client` is the only one that dials,
`secrets` puts secrets in and takes them out. Only this package imports httpx and httpcore.

Everything in a call comes from a guest and is hostile. A secret goes into a request to a host that it is
bound to and nowhere else: not into a log, an error or what a guest gets back, even where the server repeats
it. Every call ends within its deadline and its bytes.
"""

from __future__ import annotations

import ssl
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from processor.address import Allowed
from processor.capability.client import Client, Resolve, resolve, trusted_roots
from processor.capability.connections import Connections
from processor.capability.monitor import Permit, allow_all
from processor.capability.outbound import REQUESTS, UNSAFE
from processor.capability.row import Capability
from processor.capability.services import STATE_DATA, STOCK
from processor.errors import ProcessorError
from processor.reach import Reach
from processor.sandbox.offer import Signature

__all__ = ["CAPABILITIES", "UNSAFE", "HostCalls", "Resolve", "RouteCalls"]

CAPABILITIES: Sequence[Capability] = (REQUESTS, STOCK, STATE_DATA)

Observe = Callable[[str, float], None]


class HostCalls:
    """Makes the calls of all guests of a process, until `close`."""

    def __init__(self, resolve: Resolve = resolve, capabilities: Iterable[Capability] = CAPABILITIES) -> None:
        """`capabilities` are those that guests have. Raises ValueError for a name that is not free."""
        self._resolve = resolve
        self._rows: dict[str, Capability] = {}
        for row in capabilities:
            if row.name in self._rows or not row.is_callable:
                raise ValueError(f"{row.name!r} cannot be the name of a capability")
            self._rows[row.name] = row
        self.signatures = [row.signature for row in self._rows.values()]  # what guests are told of them
        self._roots: ssl.SSLContext | None = None
        self._calls: weakref.WeakSet[RouteCalls] = weakref.WeakSet()

    def for_route(
        self, reach: Reach, observe: Observe | None = None, permit: Permit = allow_all
    ) -> RouteCalls:
        """What a route's guests may ask for. `observe` hears of each call: what came of it, and seconds.

        That is the class of the answer's status, such as `2xx`, or the code of why there was no answer.
        `permit` is asked before anything is done, and raises where it may not be (`monitor`).
        """
        connections = Connections(reach, self._client, permit)
        calls = RouteCalls(self._rows, connections, observe or (lambda result, seconds: None))
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

    def __init__(self, rows: Mapping[str, Capability], connections: Connections, observe: Observe) -> None:
        self.secrets: Mapping[str, str] = connections.vault.marks
        self.signatures: Sequence[Signature] = [row.signature for row in rows.values()]
        self._rows = rows
        self._connections = connections
        self._observe = observe

    async def perform(self, name: str, args: Mapping[str, Any]) -> Any:
        """The answer to one call of a guest: a JSON value, or one with bytes beside it.

        Raises ProcessorError with E317, E323, E325, E326, E330 or E331, whose sentence the guest's code sees
        as an exception.
        """
        started, result = time.monotonic(), "2xx"
        try:
            row = self._rows.get(name)
            if row is None:
                raise ProcessorError("E317", f"there is no capability {name[:40]!r}")
            arguments = row.read(args)
            self._connections.permit(row.ask(arguments))
            answer = await row.perform(self._connections, arguments)
            result = row.result(answer)
            return answer
        except ProcessorError as err:
            result = err.code
            raise
        finally:
            self._observe(result, time.monotonic() - started)

    async def close(self) -> None:
        """Close the connections. Idempotent; a later call makes new ones."""
        await self._connections.close()
