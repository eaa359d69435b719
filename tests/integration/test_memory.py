"""A route without a server: its real worker and guest on a source, a store and a publisher in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from processor.capability.registry import HostCalls
from processor.context.parked import joined
from processor.context.position import InputStream
from processor.context.subjects import SubjectParts, public_subject
from processor.delivery.codec import codec_for
from processor.delivery.effects import Outlet
from processor.delivery.memory import Memory, MemoryPublisher, MemorySource, MemoryStore
from processor.delivery.worker import Shared, Worker
from processor.jetstream import Outgoing, Stored
from processor.model import NO_HEADERS, Delivery, Program, RawHeaders, RetryPolicy
from processor.route import KeySource, Route, RouteEvents, RouteInput, RouteOutput
from processor.sandbox.host import Zygote
from processor.subject import Template
from processor.telemetry import Telemetry
from tests.conftest import waited
from tests.running import COUNT, REPAIRED

ROUTE = Route(
    app="shop",
    name="count",
    program=Program(COUNT, "count.py"),
    input=RouteInput(("in.*",)),
    key=KeySource("subject", 2),
    partitions=4,
    output=RouteOutput(Template.parse("out.{key}")),
    retry=RetryPolicy(attempts=2, strategy="fixed", base_ms=0),
)
SOURCE = InputStream("IN", "now", ends_at=1 << 30)
LATER = """
class Runnable:
    def process(self, queries):
        if self.messages[0].attempt == 1:
            raise Retry(after_s=3600)
        self.emit("alerts", {"i": queries[0]["i"]}, delay_s=7200)
        return [{"attempt": self.messages[0].attempt}]
"""
CHUNKS = """
class Runnable:
    def process_stream(self, query):
        yield from query["text"].split()
"""


class Shop:
    """One app in memory, over the lives of its workers."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._count = 0
        self._input: list[Delivery] = []
        self.committed: list[Outgoing] = []
        self.heard: list[Outgoing] = []
        self.memory = Memory("shop", self.committed.extend)
        self._source = MemorySource()

    def publish(self, subject: str, document: Any) -> None:
        payload = document if isinstance(document, bytes) else orjson.dumps(document)
        self._input.append(Delivery(subject, payload, NO_HEADERS, "IN", len(self._input) + 1, 0.0))
        self._source.give(self._input[-1])

    @asynccontextmanager
    async def running(self, route: Route) -> AsyncIterator[Worker]:
        """A worker of a route, from where the one before it had come."""
        store = MemoryStore(self.memory, route.name, route.partitions, f"life {id(object())}")
        start = await store.claim(SOURCE, 0)
        self._source = source = MemorySource(d for d in self._input if d.sequence >= start)
        governor = HostCalls().for_route(route.reach)
        codec = codec_for(route)
        topics = [*codec.topics, *([route.events_subject] if route.events_subject else [])]
        worker = Worker(
            route,
            codec,
            MemoryPublisher(self.memory, self.heard.append),
            source,
            store,
            partial(self._zygote.spawn, route.program, route.limits, emits=route.emits),
            dict.fromkeys(topics, Outlet()),
            Telemetry().route(route.name),
            lambda why: None,
            Shared.of(route, {}, governor),
            governor.lane(),
        )
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running

    async def settled(self, worker: Worker) -> None:
        """Return when all that was published is settled."""
        async with asyncio.timeout(60):
            await self._source.drained()
            await worker.rest()

    def documents(self, subject: str) -> list[Any]:
        return [
            orjson.loads(m.payload) for m in self.committed if public_subject("shop", m.subject) == subject
        ]

    def of_kind(self, kind: str) -> list[Stored]:
        """What was committed of a kind, without what takes it away again."""
        return [
            Stored(m.subject, 0, m.payload, RawHeaders.of(m.headers))
            for m in self.committed
            if SubjectParts.of(m.subject).kind == kind and m.payload
        ]


@asynccontextmanager
async def opened() -> AsyncIterator[Shop]:
    zygote = await Zygote.start()
    try:
        yield Shop(zygote)
    finally:
        await zygote.close()


def numbered(outputs: Iterable[dict[str, int]]) -> list[tuple[int, int]]:
    return [(output["i"], output["n"]) for output in outputs]


async def test_a_route_counts_on_where_the_life_before_it_ended() -> None:
    """Outputs and contexts per key, a dead letter after the last try, events; nothing twice, nothing lost."""
    async with opened() as shop:
        route = replace(ROUTE, events=RouteEvents("events.count"))
        async with shop.running(route) as worker:
            for i, key in enumerate("abab"):
                shop.publish(f"in.{key}", {"i": i})
            shop.publish("in.a", {"i": 4, "fails": "no"})
            await shop.settled(worker)
        async with shop.running(route) as worker:
            shop.publish("in.a", {"i": 5})
            await shop.settled(worker)
        assert numbered(shop.documents("out.a")) == [(0, 1), (2, 2), (5, 3)]
        assert numbered(shop.documents("out.b")) == [(1, 1), (3, 2)]
        assert shop.memory.contexts("count") == {"a": {"n": b"3"}, "b": {"n": b"2"}}
        [letter] = shop.of_kind("dlq")
        assert (letter.headers["x-error-code"], letter.headers["x-delivery-count"]) == ("E304", "2")
        kept = joined([letter])
        assert kept is not None
        assert orjson.loads(kept.delivery.payload) == {"i": 4, "fails": "no"}
        assert [event["event"] for event in shop.documents("events.count")] == ["dead_lettered"]


async def test_a_retry_and_a_delayed_message_are_sent_when_their_time_is_said_to_have_come() -> None:
    """Two hours pass in no time, each message is sent once, and the try counts."""
    async with opened() as shop:
        route = replace(
            ROUTE,
            program=Program(LATER, "later.py"),
            emits=("alerts",),
            output=RouteOutput(Template.parse("out")),
        )
        async with shop.running(route) as worker:
            shop.publish("in.a", {"i": 7})
            await shop.settled(worker)
            assert shop.documents("out") == []
            [retry] = shop.memory.waiting("p.shop.later.>")
            assert shop.memory.next_s is not None
            assert shop.memory.fire(shop.memory.next_s - 1) == 0
            assert shop.memory.fire(shop.memory.next_s) == 1
            worker.check_due()
            await waited(lambda: shop.documents("out"), "the second try")
            await shop.settled(worker)
            assert shop.documents("out") == [{"attempt": 2}]
            assert shop.memory.waiting("p.shop.due.>") == []
            assert shop.documents("alerts") == []
            assert shop.memory.fire(shop.memory.next_s) == 1
            assert shop.documents("alerts") == [{"i": 7}]
            assert shop.memory.next_s is None
            assert retry.headers["x-original-sequence"] == "1"


async def test_what_waits_behind_a_blocked_key_is_processed_in_order_by_a_repaired_successor() -> None:
    """The key that failed holds its messages in memory; the other key goes on meanwhile."""
    async with opened() as shop:
        route = replace(ROUTE, retry=RetryPolicy(attempts=1, base_ms=0, max_ms=3_600_000, then="block"))
        async with shop.running(route):
            shop.publish("in.a", {"i": 0, "fails": "no"})
            for i, key in enumerate("abab", 1):
                shop.publish(f"in.{key}", {"i": i})
            await waited(lambda: len(shop.documents("out.b")) == 2, "the other key goes on")
            await waited(
                lambda: len(shop.memory.waiting("p.shop.held.>")) == 3, "all of its messages are held"
            )
            assert shop.documents("out.a") == []
        async with shop.running(replace(route, program=Program(REPAIRED, "count.py"))):
            await waited(lambda: len(shop.documents("out.a")) == 3, "the key goes on")
        assert numbered(shop.documents("out.a")) == [(0, 1), (1, 2), (3, 3)]
        assert shop.memory.waiting("p.shop.held.>") == []
        assert numbered(shop.documents("out.b")) == [(2, 1), (4, 2)]


async def test_chunks_are_heard_and_their_end_behind_the_commit() -> None:
    """What a run of stream mode yields goes to listeners at once, numbered."""
    async with opened() as shop:
        route = replace(
            ROUTE,
            mode="stream",
            program=Program(CHUNKS, "chunks.py", mode="stream"),
            partitions=1,
            key=KeySource(),
        )
        route = replace(route, output=RouteOutput(Template.parse("out")))
        async with shop.running(route) as worker:
            shop.publish("in.a", {"text": "so it is"})
            await shop.settled(worker)
        assert [message.payload for message in shop.heard] == [b"so", b"it", b"is", b""]
        assert [message.headers.get("Processor-Chunk") for message in shop.heard] == ["1", "2", "3", None]
        assert shop.heard[-1].headers["Processor-Stream"] == "end"
