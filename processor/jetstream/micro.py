"""A NATS micro service (ADR-32): named endpoints that answer requests, found and counted with `nats micro`.

The protocol is written here and not taken from `nats.micro`, whose service belongs to one client and is gone
with it, takes the requests of an endpoint one after the other however many there are, and puts the text of
any exception into an answer.

What must stay true:
- A request gets exactly one answer, or none where no one waits for it; what goes wrong is the answer.
- However many requests come, a bounded number is worked on and a bounded number waits; the rest is refused.
- Requests run in tasks of their own: the client goes on receiving, and so do the routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from processor.errors import Refusal
from processor.jetstream.broker import Broker
from processor.jetstream.protocol import Outgoing, Unknown, encode_parts, parse_head
from processor.jetstream.subscription import Subscription
from processor.model import Delivery

log = logging.getLogger("processor")

_PREFIX = "$SRV"
_TYPE = "io.nats.micro.v1"
_QUEUE = "q"  # the queue group that micro services share by convention
_AT_ONCE = 4
_WAITING_MAX = 64
_TEXT_CHARS = 1000
_CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One kind of request: its name, the subject it comes on, and what makes the JSON of the answer.

    `answer` gets the payload. It raises Refusal for what it does not do; everything else that it raises is a
    fault of ours.
    """

    name: str
    subject: str
    summary: str
    answer: Callable[[bytes], Awaitable[bytes]]


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    spent_ns: int = 0


@dataclass(slots=True)
class MicroService:
    """The endpoints of one process under one service name; of all with that name one answers a request.

    `busy` is the refusal for a request that cannot even wait, `fault` the one for an exception that is no
    Refusal. `id` and `name` must be tokens of letters, digits, `-` and `_`.
    """

    broker: Broker
    name: str
    id: str
    version: str
    description: str
    metadata: Mapping[str, str]
    endpoints: Sequence[Endpoint]
    busy: Refusal
    fault: Callable[[BaseException], Refusal]
    _counts: dict[str, _Counts] = field(default_factory=dict)
    _subscriptions: list[Subscription] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    _started: str = ""

    async def start(self) -> list[str]:
        """Answer from now on; the subjects that the server does not let this user subscribe to."""
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._counts = {endpoint.name: _Counts() for endpoint in self.endpoints}
        identity = {"PING": self._ping, "INFO": self._info, "STATS": self._stats}
        for verb, describe in identity.items():
            for suffix in ("", f".{self.name}", f".{self.name}.{self.id}"):
                await self._listen(f"{_PREFIX}.{verb}{suffix}", self._teller(describe), "")
        for endpoint in self.endpoints:
            await self._listen(endpoint.subject, self._taker(endpoint), _QUEUE)
        with contextlib.suppress(Unknown):  # the connection was lost just now: it comes back with them
            await self.broker.flush()
        denied = {action.lower() for action in self.broker.denials}
        return [
            subscription.subject
            for subscription in self._subscriptions
            if f"subscribe to {subscription.subject}".lower() in denied
        ]

    async def stop(self) -> None:
        """Take no more requests, and return when those in hand are answered, or have had their time."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _listen(
        self, subject: str, callback: Callable[[Delivery], Awaitable[None]], queue: str
    ) -> None:
        self._subscriptions.append(await self.broker.listen(subject, callback, queue=queue))

    def _teller(self, describe: Callable[[], dict[str, Any]]) -> Callable[[Delivery], Awaitable[None]]:
        async def tell(request: Delivery) -> None:
            await self._reply(request, orjson.dumps(describe()))

        return tell

    def _taker(self, endpoint: Endpoint) -> Callable[[Delivery], Awaitable[None]]:
        async def take(request: Delivery) -> None:
            if len(self._tasks) >= _AT_ONCE + _WAITING_MAX:
                self._counts[endpoint.name].requests += 1
                await self._refuse(endpoint, request, self.busy)
                return
            task = asyncio.create_task(self._answer(endpoint, request), name=f"request-{endpoint.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return take

    async def _answer(self, endpoint: Endpoint, request: Delivery) -> None:
        counts = self._counts[endpoint.name]
        counts.requests += 1
        async with self._turns:
            began_ns = time.perf_counter_ns()
            try:
                await self._reply(request, await endpoint.answer(request.payload))
            except Refusal as refusal:
                await self._refuse(endpoint, request, refusal)
            except Exception as err:
                # A fault of ours in one request must not end the others.
                await self._refuse(endpoint, request, self.fault(err))
            finally:
                counts.spent_ns += time.perf_counter_ns() - began_ns

    async def _refuse(self, endpoint: Endpoint, request: Delivery, refusal: Refusal) -> None:
        counts = self._counts[endpoint.name]
        text = " ".join(refusal.text[:_TEXT_CHARS].split())
        counts.errors, counts.last_error = counts.errors + 1, f"{refusal.code}:{text}"
        body = orjson.dumps({"error": {"code": refusal.code, "text": text}})
        # A header is ASCII to some clients; the body has the sentence as it is.
        header = text.encode("ascii", "replace").decode()
        headers = {"Nats-Service-Error-Code": refusal.code, "Nats-Service-Error": header}
        await self._reply(request, body, headers)

    async def _reply(
        self, request: Delivery, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        if not request.ack:  # published and not requested: done, but no answer is awaited
            return
        try:
            await self.broker.publish(Outgoing(request.ack, payload, headers or {}))
        except Unknown:
            log.debug("an answer went down with the connection")

    def _identity(self, what: str) -> dict[str, Any]:
        return {
            "type": f"{_TYPE}.{what}_response",
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": dict(self.metadata),
        }

    def _ping(self) -> dict[str, Any]:
        return self._identity("ping")

    def _info(self) -> dict[str, Any]:
        endpoints = [
            {
                "name": each.name,
                "subject": each.subject,
                "queue_group": _QUEUE,
                "metadata": {"summary": each.summary},
            }
            for each in self.endpoints
        ]
        return {**self._identity("info"), "description": self.description, "endpoints": endpoints}

    def _stats(self) -> dict[str, Any]:
        endpoints = []
        for each in self.endpoints:
            counts = self._counts[each.name]
            endpoints.append(
                {
                    "name": each.name,
                    "subject": each.subject,
                    "queue_group": _QUEUE,
                    "num_requests": counts.requests,
                    "num_errors": counts.errors,
                    "last_error": counts.last_error,
                    "processing_time": counts.spent_ns,
                    "average_processing_time": counts.spent_ns // max(1, counts.requests),
                }
            )
        return {**self._identity("stats"), "started": self._started, "endpoints": endpoints}


async def ask_service(broker: Broker, subject: str, payload: bytes, timeout_s: float) -> bytes:
    """The answer of a micro service to a request.

    Raises Refusal with the service's own code and sentence where it refuses, and as `Connection.answer`.
    """
    headers, answer = await broker.answer(encode_parts(Outgoing(subject, payload), {}), (), timeout_s)
    told = parse_head(headers)
    if code := told.get("Nats-Service-Error-Code"):
        raise Refusal(code, told.get("Nats-Service-Error", ""))
    return answer
