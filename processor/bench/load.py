"""What is put into inputs: documents of a size, as a backlog or at a rate; and who answers HTTP calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import cast

import orjson

from processor.bench.cases import Case
from processor.bench.processes import now_s
from processor.context.parked import ParkedMessages
from processor.context.subjects import RouteSubjects
from processor.jetstream import Broker, Outgoing
from processor.model import NO_HEADERS, Delivery, Failure, partition_of

GRAPH_PARTITIONS = 64
_FLUSH_MESSAGES = 500
_TICK_S = 0.005


class DocumentSource:
    """The documents of a case, for the input subjects `<prefix>.<route>.<key>`."""

    def __init__(self, case: Case, prefix: str) -> None:
        self._case = case
        self._prefix = prefix
        room = case.size - len(orjson.dumps({"i": 1_000_000, "sent": now_s(), "pad": ""}))
        self._pad = "n" * max(0, room)
        self._number = 0

    def next(self) -> Outgoing:
        """The next document, with the time of this moment in it."""
        number = self._number
        self._number += 1
        body = {"i": number, "sent": now_s(), "pad": self._pad}
        if self._case.is_chain:
            return Outgoing(f"{self._prefix}.0", orjson.dumps({"run": f"r{number}", "v": 0, **body}))
        route, key = number % self._case.routes, number % self._case.keys
        return Outgoing(f"{self._prefix}.{route}.k{key}", orjson.dumps(body))

    async def backlog(self, broker: Broker, count: int) -> None:
        """Publish so many documents as fast as the server takes them; return when it has them."""
        for done in range(0, count, _FLUSH_MESSAGES):
            await broker.publish(*(self.next() for _ in range(min(_FLUSH_MESSAGES, count - done))))
            await broker.flush()

    async def steadily(self, broker: Broker, rate_per_s: float, seconds: float) -> int:
        """Publish at a rate for some time, in ticks of 5 ms; how many there were."""
        loop = asyncio.get_running_loop()
        began_s, done, count = loop.time(), 0, int(rate_per_s * seconds)
        while done < count:
            due = min(count, int((loop.time() - began_s) * rate_per_s) + 1)
            await broker.publish(*(self.next() for _ in range(due - done)))
            done = due
            await broker.flush()
            await asyncio.sleep(_TICK_S)
        return done


class RunSource(DocumentSource):
    """What starts runs of the graph `g` of an app, in place of documents."""

    def __init__(self, case: Case, app: str) -> None:
        super().__init__(case, app)
        self._inboxes = RouteSubjects(app, "graphs")

    def next(self) -> Outgoing:
        """As the commit of a trigger has it; each run has an id of its own."""
        run = f"r{self._number}"
        self._number += 1
        body = {"v": 1, "t": "start", "run": run, "graph": "g", "by": "api"}
        return Outgoing(self._inboxes.inbox(partition_of(run, GRAPH_PARTITIONS)), orjson.dumps(body))


async def keep(broker: Broker, prefix: str, size: int) -> int:
    """Make the route of a case keep `size` bytes, in items of at most 500 KB; how many messages it takes."""
    item = min(size, 500_000)
    count = max(1, size // item)
    for number in range(count):
        body = {"keep": f"block{number}", "pad": "n" * item}
        await broker.publish(Outgoing(f"{prefix}.0.k0", orjson.dumps(body)))
        await broker.flush()
    return count


async def give_up(broker: Broker, source: DocumentSource, app: str, count: int) -> None:
    """Store `count` dead letters of the first route, as if it had given up what `source` has next."""
    letters = ParkedMessages(app, "r0", broker.max_payload)
    failure = Failure("E304", "ValueError: not now", traceback="ValueError: not now")
    for first in range(0, count, _FLUSH_MESSAGES):
        written: list[Outgoing] = []
        for number in range(first, min(count, first + _FLUSH_MESSAGES)):
            document = source.next()
            key = document.subject.rsplit(".", 1)[1]
            delivery = Delivery(
                document.subject, document.payload, NO_HEADERS, "given-up", number + 1, now_s()
            )
            written += letters.dead(delivery, partition_of(key, 64), failure, 1, datetime.now(UTC))
        await broker.commit(written)


class _Answers(asyncio.Protocol):
    """Answers each request with `{"one": 1}`, after so many milliseconds as its path says."""

    _ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"one": 1}'

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *heads, self._heard = (self._heard + data).split(b"\r\n\r\n")
        for head in heads:
            delay_ms = int(head.split(b" ", 2)[1].removeprefix(b"/") or 0)
            self._loop.call_later(delay_ms / 1000, self._transport.write, self._ANSWER)


@contextlib.asynccontextmanager
async def http_server() -> AsyncIterator[int]:
    """An HTTP server that answers with `{"one": 1}`; its port."""
    server = await asyncio.get_running_loop().create_server(_Answers, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])
