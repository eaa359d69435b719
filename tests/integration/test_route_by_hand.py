"""A route that no file has: constructed by hand, it runs as those of a file do."""

from __future__ import annotations

import asyncio
from functools import partial

import orjson

from processor.capability.registry import HostCalls
from processor.context.store import ContextStore, InputStream, app_stream
from processor.delivery.codec import codec_for
from processor.delivery.effects import Outlet
from processor.delivery.worker import Shared, Worker
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing, Reader
from processor.model import Program
from processor.route import KeySource, Route, RouteEvents, RouteInput, RouteOutput
from processor.sandbox.host import Zygote
from processor.subject import Template
from processor.telemetry import Telemetry
from tests.conftest import waited
from tests.running import COUNT, connected

ROUTE = Route(
    app="shop",
    name="count",
    program=Program(COUNT, "count.py"),
    input=RouteInput(("in.*",)),
    key=KeySource("subject", 2),
    partitions=4,
    output=RouteOutput(Template.parse("out.{key}")),
    events=RouteEvents("events.count"),
)
STREAM = {
    "name": "P_shop",
    "subjects": ["p.shop.>"],
    "storage": "memory",
    "allow_atomic": True,
    "allow_rollup_hdrs": True,
    "allow_msg_ttl": True,
    "allow_msg_schedules": True,
    "allow_direct": True,
}


async def stored(broker: Broker, pattern: str) -> list[Outgoing]:
    found = broker.history(app_stream("shop"), [pattern])
    return [Outgoing(each.subject, each.payload, each.headers) async for each in found]


async def test_a_route_of_code_runs_through_a_worker(nats_server: EmbeddedServer) -> None:
    """Outputs, contexts per key and dead letters: nothing of it needs a file."""
    zygote = await Zygote.start()
    async with connected(nats_server.url) as broker:
        await broker.create_stream(STREAM)
        await broker.create_stream({"name": "IN", "subjects": ["in.*"], "storage": "memory"})
        info = await broker.stream("IN")
        assert info is not None
        store = ContextStore(broker, "shop", "count", ROUTE.partitions, "me")
        start = await store.claim(InputStream("IN", info["created"], 0), 0, lambda _: False)
        reader = Reader(
            broker,
            "IN",
            ROUTE.input.subjects,
            created=info["created"],
            retention="limits",
            name="P_shop-count",
            start_sequence=start,
            prefetch=100,
        )
        await reader.open()
        governor = HostCalls().for_route(ROUTE.reach)
        codec, refusals = codec_for(ROUTE), list[str | None]()
        worker = Worker(
            ROUTE,
            codec,
            broker,
            reader,
            store,
            partial(zygote.spawn, ROUTE.program, ROUTE.limits),
            dict.fromkeys([*codec.topics, "events.count"], Outlet()),
            Telemetry().route("count"),
            refusals.append,
            Shared.of(ROUTE, {}, governor),
            governor.lane(),
        )
        running = asyncio.create_task(worker.run())
        try:
            for i, key in enumerate("abab"):
                await broker.publish(Outgoing(f"in.{key}", orjson.dumps({"i": i})))
            await broker.publish(Outgoing("in.a", b"not JSON"))

            async def is_done() -> bool:
                letters = await stored(broker, "p.shop.dlq.count.>")
                return len(letters) == 1 and len(await stored(broker, "p.shop.out.out.*")) == 4

            await waited(is_done, "four outputs and one dead letter")
        finally:
            worker.stop()
            await running
            await reader.close()
            await zygote.close()
        outputs = [(o.subject, orjson.loads(o.payload)) for o in await stored(broker, "p.shop.out.out.*")]
        of_key = {key: [made for subject, made in outputs if subject.endswith(key)] for key in "ab"}
        assert of_key == {
            "a": [{"i": 0, "n": 1}, {"i": 2, "n": 2}],
            "b": [{"i": 1, "n": 1}, {"i": 3, "n": 2}],
        }
        [letter] = await stored(broker, "p.shop.dlq.count.>")
        assert letter.headers["x-error-code"] == "E301"
        [event] = await stored(broker, "p.shop.out.events.count")
        assert orjson.loads(event.payload)["event"] == "dead_lettered"
        assert not any(refusals)
