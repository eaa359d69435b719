"""The registry: every capability that guests have, and who rules over the calls of each route.

Of each route `HostCalls.for_route` makes the `Governor`, whose monitors perform the calls of its guests. Each
capability is a row (`row`) beside its performer: `outbound` is `requests`, `pulls` how it reads what comes in
pieces, `files` what it may do in directories, `tools` the programs that it may call, `inference` the models
that it may ask, `services` the two servers that it knows by their API, `heap` what it may do to its objects,
`authorization` the question what it may do, and `remarks` its own word in the audit. `client` asks servers,
its `dialer` alone makes connections, `secrets` puts secrets in and takes them out, `roots` opens files,
`toolbox` starts tools.

Everything in a call comes from a guest and is hostile. A secret goes into a request to a host that it is
bound to and nowhere else: not into a log, an error or what a guest gets back, even where the server repeats
it. Every call ends within its deadline and its bytes.
"""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Callable, Iterable, Sequence

from processor.address import Allowed
from processor.capability.allowance import BUDGET, SET_BUDGET
from processor.capability.authorization import AUTHORIZE
from processor.capability.client import Client, Resolve, resolve, trusted_roots
from processor.capability.connections import Connections, Inferred
from processor.capability.files import FILE
from processor.capability.heap import HEAP
from processor.capability.inference import EMBED, INFER, INFER_STREAM
from processor.capability.monitor import NO_MANDATE, Decided, Governor, Mandate, Observe
from processor.capability.outbound import REQUESTS, UNSAFE
from processor.capability.pulls import STREAM_CLOSE, STREAM_NEXT
from processor.capability.remarks import AUDIT
from processor.capability.row import Capability
from processor.capability.services import STATE_DATA, STOCK
from processor.capability.toolbox import Toolbox
from processor.capability.tools import SERVED_TOOL, TOOL, TOOLS
from processor.reach import Reach

__all__ = ["ANEW", "CAPABILITIES", "UNSAFE", "WRITES", "HostCalls", "Resolve"]

CAPABILITIES: Sequence[Capability] = (
    REQUESTS,
    STREAM_NEXT,
    STREAM_CLOSE,
    STOCK,
    STATE_DATA,
    FILE,
    TOOL,
    SERVED_TOOL,
    TOOLS,
    INFER,
    INFER_STREAM,
    EMBED,
    AUTHORIZE,
    HEAP,
    BUDGET,
    SET_BUDGET,
    AUDIT,
)


# Are answered from the rules of the moment, or are of one run, and not from what an earlier try was told.
ANEW = frozenset(
    row.name
    for row in (
        AUTHORIZE,
        HEAP,
        BUDGET,
        SET_BUDGET,
        AUDIT,
        TOOLS,
        INFER_STREAM,
        STREAM_NEXT,
        STREAM_CLOSE,
    )
)


# May change something outside whatever they ask for, or cost money; of `outbound` its method says so.
WRITES = frozenset(row.name for row in (SERVED_TOOL, INFER, EMBED))


class HostCalls:
    """Makes the calls of all guests of a process, until `close`."""

    def __init__(self, resolve: Resolve = resolve, capabilities: Iterable[Capability] = CAPABILITIES) -> None:
        """`capabilities` are those that guests have. Raises ValueError for a name that is not free."""
        self._resolve = resolve
        self.toolbox = Toolbox()
        self._rows: dict[str, Capability] = {}
        for row in capabilities:
            if row.name in self._rows or not row.is_callable:
                raise ValueError(f"{row.name!r} cannot be the name of a capability")
            self._rows[row.name] = row
        self.signatures = [row.signature for row in self._rows.values()]  # what guests are told of them
        self._roots: ssl.SSLContext | None = None
        self._governors: weakref.WeakSet[Governor] = weakref.WeakSet()

    def for_route(
        self,
        reach: Reach,
        mandate: Mandate = NO_MANDATE,
        observe: Observe | None = None,
        decided: Decided | None = None,
        tool_took: Callable[[float], None] = lambda seconds: None,
        inferred: Inferred = lambda name, seconds, given, said, first_s: None,
    ) -> Governor:
        """Who rules over a route's guests, which may `reach` so much, under this mandate.

        `observe` hears of each call: what came of it, and seconds. What came is the class of the answer's
        status, such as `2xx`, or the code of why there was no answer. `decided` hears of each decision of the
        policy: the kind that was asked for; allow, deny, expired or shadow. `tool_took` hears of the seconds
        that each call of a tool took, and `inferred` of each call of a model: its endpoint, seconds, the
        tokens that it was given and has said, and the seconds to its first piece where it came in pieces.
        """
        connections = Connections(reach, self._client, self.toolbox, mandate.route)
        connections.inferred = inferred
        governor = Governor(
            self._rows,
            connections,
            mandate,
            observe or (lambda result, seconds: None),
            decided or (lambda kind, decision: None),
            tool_took,
        )
        self._governors.add(governor)
        return governor

    async def close(self) -> None:
        for governor in list(self._governors):
            await governor.close()
        await self.toolbox.close()

    def _client(self, allowed: Allowed, place: str) -> Client:
        self._roots = self._roots or trusted_roots()
        return Client(allowed, place, self._roots, self._resolve)
