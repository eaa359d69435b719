"""A route's `key` is changed: from a place where nothing waits it goes on, and from another it is refused."""

from __future__ import annotations

from typing import Any

import orjson

from processor.context.position import Position
from processor.jetstream import EXPECTED, KEPT, Outgoing
from processor.model import partition_of
from processor.operate.control import Control
from tests.integration.test_replicas import Replica
from tests.running import Running, Start, problems_of

ROUTE = """
r:
  input: {subject: in, create: true}
  runnable: echo.py
  key: json./a
  output: out
  partitions: 4
  concurrency: 2
"""
CHANGED = ROUTE.replace("json./a", "json./b")
ECHO = """
class Runnable:
    def process(self, queries):
        return queries
"""
PARTITIONS = 4
# Keys of two partitions of different lanes, and what tells the documents apart by the other key.
SLOW, FAST = (next(k for k in "abcdefghijkl" if partition_of(k, PARTITIONS) == n) for n in (0, 1))


async def positions(running: Running) -> dict[int, dict[str, Any]]:
    found = await running.broker.last_of("P_app", ["p.app.pos.r.*"])
    return {int(s.subject.rsplit(".", 1)[1]): orjson.loads(s.payload) for s in found}


async def rewrite(running: Running, partition: int, **fields: Any) -> None:
    """Leave a position as a lane that was behind would, or an older build; None: without the field."""
    [stored] = await running.broker.last_of("P_app", [f"p.app.pos.r.{partition}"])
    body = {**orjson.loads(stored.payload), **fields}
    body = {name: value for name, value in body.items() if value is not None}
    message = Outgoing(stored.subject, orjson.dumps(body), {**KEPT, EXPECTED: str(stored.sequence)})
    await running.broker.commit([message])


def documents(first: int, count: int) -> list[dict[str, Any]]:
    """Of keys in turn, whose partitions are others by the other key."""
    keys = ((SLOW, FAST), (FAST, SLOW))
    return [{"a": keys[i % 2][0], "b": keys[i % 2][1], "i": i} for i in range(first, first + count)]


def blocked(running: Running | Replica) -> str:
    """Why the route does not run."""
    return running.telemetry.readiness.blocks.get("route r", "")


async def numbers_of(running: Running, count: int) -> list[int]:
    return sorted(d["i"] for d in await running.documents("out", count))


async def test_a_key_that_changes_while_nothing_waits_is_taken(processor: Start) -> None:
    """However differently far the idle partitions have come: each message is processed once."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in", *documents(0, 7))
        assert await numbers_of(running, 7) == [*range(7)]
    async with processor(CHANGED, echo=ECHO) as running:
        await running.publish("in", *documents(7, 7))
        assert await numbers_of(running, 14) == [*range(14)]
        await running.service.stop()
        found = await positions(running)
        assert {body["key"] for body in found.values()} == {"json./b"}
        assert min(body["seq"] for body in found.values()) >= 7
        assert await numbers_of(running, 14) == [*range(14)]


async def test_a_key_is_not_changed_over_messages_that_wait(processor: Start, wait_until: Any) -> None:
    """E410 in readiness and `check`; nothing is passed by: by the key before, what waits is processed."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in", *documents(0, 6))
        assert await numbers_of(running, 6) == [*range(6)]
        await running.service.stop()
        # Another lane was at the end when this one had come to its second message.
        await rewrite(running, 0, seq=1, open=None)
        before = await positions(running)
    async with processor(CHANGED, echo=ECHO) as running:
        said = "E410 route r has key json./b now and had json./a before, and message 3 of stream app-in waits"
        await wait_until(lambda: said in blocked(running), "the route refuses")
        assert any(said in problem for problem in await problems_of(running))
        assert await positions(running) == before
        running.path.write_text(running.path.read_text().replace("json./b", "json./a"))
        await running.reload()
        # Messages 3 and 5 of the lane that was behind are run again.
        assert await numbers_of(running, 8) == [0, 1, 2, 2, 3, 4, 4, 5]
        running.path.write_text(running.path.read_text().replace("json./a", "json./b"))
        await running.reload()
        await running.publish("in", *documents(6, 2))
        assert await numbers_of(running, 10) == [0, 1, 2, 2, 3, 4, 4, 5, 6, 7]


async def test_a_message_that_is_open_waits(processor: Start, wait_until: Any) -> None:
    """One below the position that has had tries is not forgotten by another key; a reset settles it."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in", *documents(0, 4))
        await numbers_of(running, 4)
        await running.service.stop()
        await rewrite(running, 1, open={"2": 1})
    async with processor(CHANGED, echo=ECHO) as running:
        await wait_until(lambda: "and message 2 of" in blocked(running), "the route refuses")
        await Control(running.broker, "app").reset("r", 5, keep_context=True)
        await wait_until(lambda: not blocked(running), "the route runs")
        await running.publish("in", *documents(4, 2))
        assert await numbers_of(running, 6) == [*range(6)]
        assert {body["key"] for body in (await positions(running)).values()} == {"json./b"}


async def test_positions_of_an_older_build_are_taken(processor: Start) -> None:
    """Without the field nothing is known of a change; it is written from then on."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in", *documents(0, 4))
        await numbers_of(running, 4)
        await running.service.stop()
        for partition in range(PARTITIONS):
            await rewrite(running, partition, key=None)
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in", *documents(4, 2))
        assert await numbers_of(running, 6) == [*range(6)]
        assert {body["key"] for body in (await positions(running)).values()} == {"json./a"}


async def test_who_runs_by_another_key_is_named(processor: Start, wait_until: Any) -> None:
    """Two processors with two keys would lose what each takes for the other's: the second refuses."""
    async with processor(ROUTE, echo=ECHO) as running:
        await running.publish("in", *documents(0, 4))
        await numbers_of(running, 4)
        text = running.path.read_text()
        running.path.write_text(text.replace("json./a", "json./b"))
        async with Replica(running) as changed:
            await wait_until(lambda: "still runs it with that" in blocked(changed), "it refuses")
            await running.publish("in", *documents(4, 4))
            assert await numbers_of(running, 8) == [*range(8)]


def test_a_position_says_its_key() -> None:
    """Where it has one; a reset makes it count by none."""
    assert b"key" not in Position().encoded()
    assert b'"key":"json./a"' in Position(key="json./a").encoded()
    assert Position(key="json./a").restarted("c", keep_contexts=True).key == ""
