"""Routes that read the app's own stream: inputs that are dealt to partitions, and schedules."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import textwrap
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.cli import operations
from processor.config import load
from processor.context.subjects import app_stream
from processor.delivery import repartition
from processor.delivery.backlog import Backlog
from processor.delivery.streams import app_stream_config
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import Broker, Outgoing, Stored
from processor.operate.control import Control, ResetStep
from processor.operate.dead_letters import DeadLetters, Filter
from processor.schedule import check_schedule
from tests.integration.test_replicas import Replica, check, has_shares
from tests.running import COUNT, Running, Start, connected, is_empty

QUEUE = """
r:
  input: {subject: "in.*", repartition: true}
  runnable: count.py
  key: json./k
  partitions: 16
  output: out.{key}
  events: events.r
"""


async def make_queue(running: Running, retention: str = "workqueue") -> None:
    await running.broker.create_stream({"name": "IN", "subjects": ["in.*"], "retention": retention})


async def publish(running: Running, first: int, count: int) -> None:
    """Numbered documents of 20 keys, which their payload and their header say."""
    for i in range(first, first + count):
        key = f"k{i % 20}"
        await running.publish("in.x", {"i": i, "k": key}, headers={"key": key})


async def in_inbox(running: Running, route: str = "r") -> int:
    """What is there, processed or not."""
    return await running.broker.count(app_stream("app"), [f"p.app.in.{route}.*"], 1)


async def holds(running: Running, count: int, route: str = "r") -> bool:
    return await in_inbox(running, route) == count


async def last(running: Running, subject: str) -> Stored | None:
    found = await running.broker.last_of(app_stream("app"), [subject])
    return next((stored for stored in found if stored.payload), None)


def blocked(running: Running, name: str) -> str:
    return running.telemetry.readiness.blocks.get(name, "")


# inputs that are dealt


@pytest.mark.parametrize(("retention", "key"), [("workqueue", "json./k"), ("interest", "header.key")])
async def test_processors_share_a_stream_that_deletes(
    processor: Start, wait_until: Any, retention: str, key: str
) -> None:
    """By keys that only their messages know: each once, in order per key, and nothing is left behind."""
    async with processor(QUEUE.replace("json./k", key), count=COUNT) as running:
        await make_queue(running, retention)
        await running.until_ready()
        await publish(running, 0, 100)
        async with Replica(running):
            await wait_until(partial(has_shares, running, 8, 8), "two owners with 8 partitions each")
            await publish(running, 100, 200)
            await check(running, 300)
        await publish(running, 300, 100)
        await check(running, 400)
        await wait_until(partial(is_empty, running.broker, "IN"), "all of the queue is acknowledged")
        await wait_until(partial(holds, running, 0), "what was processed is removed")
        lag = "processor_lag_messages"
        await wait_until(lambda: running.metric(lag, route="r") == 0, "nothing is behind")


DYING = """
class Runnable:
    def process(self, queries):
        return len("x" * (1 << 30))
"""


async def test_a_route_that_stands_still_is_not_run_over(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is dealt ahead is bounded, the rest waits in the queue; and a changed key deals it anew."""
    monkeypatch.setattr(repartition, "BACKLOG_MESSAGES", 50)
    more = "  limits: {memory_mb: 64}\n  breaker: {deaths: 2, pause_s: 3600}\n  batch: {max_messages: 1}\n"
    async with processor(QUEUE + more, count=DYING) as running:
        await make_queue(running)
        await publish(running, 0, 120)
        opened = "processor_breaker_open"
        await wait_until(lambda: running.metric(opened, route="r") == 1, "the route stands still")
        await wait_until(partial(holds, running, 50), "as much is dealt as may be")
        lag = "processor_lag_messages"
        await wait_until(lambda: running.metric(lag, route="r") >= 70, "the rest counts as lag")
        queue = await running.broker.stream("IN")
        assert queue is not None
        assert queue["state"]["messages"] == 70
        running.path.write_text(running.path.read_text().replace("json./k", "json./i").replace(more, ""))
        await running.reload(count=COUNT)
        outputs = await running.documents("out.*", 120)
        assert sorted((o["i"], o["n"]) for o in outputs) == [(i, 1) for i in range(120)]
        await wait_until(partial(holds, running, 0), "what was processed is removed")


async def test_a_message_without_room_for_where_it_came_from_is_a_dead_letter(
    processor: Start, wait_until: Any
) -> None:
    """With an event; its bytes are kept, it is not read again, and those beside it go on."""
    async with processor(QUEUE, count=COUNT) as running:
        await make_queue(running)
        document = {"i": 1, "k": "a", "x": ""}
        document["x"] = "x" * (running.broker.max_payload - len(orjson.dumps(document)))
        await running.publish("in.x", {"i": 0, "k": "a"}, document, {"i": 2, "k": "a"}, b"{")
        assert [(o["i"], o["n"]) for o in await running.documents("out.a", 2)] == [(0, 1), (2, 2)]
        [event, unread] = await running.documents("events.r", 2)
        assert (event["event"], event["code"], event["stream"]) == ("dead_lettered", "E307", "IN")
        found = [letter async for letter in DeadLetters(running.broker, "app").find(Filter("r"))]
        letter, other = sorted(found, key=lambda letter: letter.code, reverse=True)
        assert orjson.loads(letter.delivery.payload) == document
        assert (letter.code, letter.delivery.subject) == ("E307", "in.x")
        with pytest.raises(BrokerError, match="E408"):
            await DeadLetters(running.broker, "app").redrive(letter)
        # One that is dealt and then given up counts in the app's stream, and says where it was before.
        assert (other.code, unread["code"]) == ("E301", "E301")
        assert (other.delivery.subject, other.delivery.stream) == ("in.x", "P_app")
        assert other.delivery.headers == {"x-source-stream": "IN", "x-source-sequence": "4"}
        await wait_until(partial(is_empty, running.broker, "IN"), "all of the queue is acknowledged")


async def test_an_input_is_dealt_only_after_somebody_said_from_where(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route that read its queue itself takes nothing when it is to be dealt, until a reset begins it."""
    async with processor(QUEUE.replace(", repartition: true", ""), count=COUNT) as running:
        await make_queue(running)
        await publish(running, 0, 20)
        await running.documents("out.*", 20)
        await wait_until(partial(is_empty, running.broker, "IN"), "all of the queue is acknowledged")
    async with processor(QUEUE, count=COUNT) as running:
        await publish(running, 20, 20)
        for name in ("route r", "inbox r"):
            await wait_until(lambda name=name: "E407" in blocked(running, name), f"{name} says why")
        assert running.metric("processor_route_stopped", route="r") == 1
        assert await in_inbox(running) == 0
        monkeypatch.setenv("NATS_URL", running.broker.address)

        def reset(to: str) -> int:
            return operations.reset(running.path, "r", to, keep_context=True, is_sure=True)

        assert await asyncio.to_thread(reset, "start") == 0
        await check(running, 40)
        assert await asyncio.to_thread(operations.status, running.path, "r", "json") == 0
        with pytest.raises(BrokerError, match="E413 stream IN deletes what was processed"):
            await asyncio.to_thread(reset, "start")
    async with processor(QUEUE.replace(", repartition: true", ""), count=COUNT) as running:
        await publish(running, 40, 10)
        await wait_until(lambda: "E407" in blocked(running, "route r"), "the way back is one, too")
        assert await asyncio.to_thread(reset, "start") == 0
        await check(running, 50)


async def test_a_hop_is_fenced_paused_and_reset(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lost its position deals nothing twice; a reset of an input that is kept reads it again."""
    async with processor(QUEUE, count=COUNT) as running:
        control = Control(running.broker, "app")
        await make_queue(running, "limits")
        await publish(running, 0, 20)
        await running.documents("out.*", 20)
        await control._move("r", ResetStep(), keep_context=True, kind="hop")  # as another owner does
        await publish(running, 20, 10)
        await check(running, 30)
        await control.pause("r", is_paused=True)

        async def is_released() -> bool:
            return [part.owner for part in await control.parts("r", kind="hop")] == [""]

        await wait_until(is_released, "nobody deals")
        await publish(running, 30, 10)
        assert await Backlog(running.broker, load(running.path, {}).routes["r"]).waiting() == 0
        await control.pause("r", is_paused=False)
        await check(running, 40)
        monkeypatch.setenv("NATS_URL", running.broker.address)
        code = await asyncio.to_thread(
            operations.reset, running.path, "r", "21", keep_context=True, is_sure=True
        )
        assert code == 0
        again = (await running.documents("out.*", 60))[40:]
        assert sorted((o["i"], o["n"]) for o in again) == [(i, 3) for i in range(20, 40)]


# schedules

TICKS = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        for query in queries:
            self.context["n"] += 1
            yield {**query, "n": self.context["n"]}
"""


def scheduled(name: str, spec: str, more: str = "") -> str:
    return f"""
{name}:
  input: {{schedule: "{spec}"{more}}}
  runnable: ticks.py
  output: {name}
"""


async def test_a_schedule_outlives_restarts_and_ends_with_its_route(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tick is processed once; those in between wait, or only the newest; what is due once comes once."""
    soon = (datetime.now(UTC) + timedelta(seconds=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    every = scheduled("every", "@every 1s", ', document: {at: ["{time}"], text: "{time} "}')
    newest = scheduled("newest", "* * * * * *", ", catch_up: false, time_zone: Europe/Berlin")
    once = scheduled("past", "@at 2020-01-01T00:00:00Z") + scheduled("soon", f"@at {soon}")
    async with processor(every + newest + once, ticks=TICKS) as running:
        assert [o["n"] for o in await running.documents("past", 1)] == [1]
        await running.documents("every", 1)
        stored = await last(running, "p.app.sched.every")
        assert stored is not None
        zoned = await running.broker.next_of(app_stream("app"), "p.app.sched.newest", 1)
        assert zoned is not None
        assert zoned.headers["Nats-Schedule-Time-Zone"] == "Europe/Berlin"
        broker = await Broker.connect({"servers": [running.broker.address]}, name="test", wait=False)
    between = Running(running.service, running.telemetry, broker, running.path)
    try:
        await wait_until(lambda: in_inbox_at_least(between, 2, "every"), "two ticks wait")
        assert await in_inbox(between, "newest") == 1
    finally:
        await broker.close()
    async with processor(every + newest + once, ticks=TICKS) as running:
        found = await running.documents("every", 4)
        times = [datetime.fromisoformat(o["at"][0]) for o in found]
        assert [b - a for a, b in itertools.pairwise(times)] == [timedelta(seconds=1)] * 3
        assert [(o["n"], o["text"]) for o in found[:4]] == [(n, "{time} ") for n in range(1, 5)]
        assert [o["time"] for o in await running.documents("soon", 1)] == [soon]
        assert len(await running.documents("past", 1)) == 1
        kept = await last(running, "p.app.sched.every")
        assert kept is not None
        assert kept.sequence == stored.sequence
        # Another document is another schedule, and a route that nobody has any more has none.
        changed = every.replace('"{time} "', "new")
        async with Replica(running):
            write_routes(running, changed + once)
            await running.reload(may_remove=True)
            await running.documents("every", len(await running.stored("every")) + 2)
            assert await is_stored(running, "newest", b"time"), "the other processor has its route"
        # As long as there are both, the schedule is that of the one who keeps it; then it is the new one.
        await wait_until(partial(is_stored, running, "every", b'"new"'), "the new document is stored")
        await wait_until(partial(ended, running, "newest"), "the schedule of the removed route ends")
        await wait_until(partial(is_ahead, running), "ticks are processed")
        assert await last(running, "p.app.plan.past") is not None, "it was due, and is not again"


def write_routes(running: Running, routes: str) -> None:
    head, _, _ = running.path.read_text().partition("routes:")
    running.path.write_text(f"{head}routes:\n{textwrap.indent(routes, '  ')}")


async def is_stored(running: Running, route: str, part: bytes) -> bool:
    stored = await last(running, f"p.app.sched.{route}")
    return stored is not None and part in stored.payload


async def is_ahead(running: Running) -> bool:
    return (await running.documents("every", 5))[-1]["text"] == "new"


async def in_inbox_at_least(running: Running, count: int, route: str) -> bool:
    return await in_inbox(running, route) >= count


async def ended(running: Running, route: str) -> bool:
    return await last(running, f"p.app.sched.{route}") is None


SPECS = [
    "@every 1s", "@every 1h30m", "@every 1.5s", "@hourly", "@midnight", "@annually", "* * * * * *",
    "0 */5 * * * *", "0 0 8 * * MON-FRI", "5/10 ? * * jan sun", "0 0 8 29 2 *", "0 0 8 31 2 MON",
    "0  0 8 1-5/2,7 * *", "@at 2026-12-01T08:00:00+01:00", "@at 2020-01-01T00:00:00.5Z",
    "@every 500ms", "@every 1d", "@every 5", "@every", "@HOURLY", "@reboot", "*/5 * * * *", "0 0 24 * * *",
    "0 0 8 0 * *", "0 0 8 * * 7", "0 0 8 * * SAT-SUN", "0 5-1 * * * *", "0 */0 * * * *", "0 0 8 31 2 *",
    "0 0 8 L * *", "@at tomorrow", "@at 2026-12-01T08:00Z", "@at 2026-13-01T08:00:00Z", "at noon",
]  # fmt: skip


async def test_the_configuration_takes_the_schedules_that_the_server_takes(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """What one refuses, the other refuses too; so a schedule that is loaded can be stored."""
    (tmp_path / "config.yaml").write_text('app: app\nroutes: {r: {input: in, code: "class Runnable: pass"}}')
    async with connected(nats_server.url) as broker:
        await broker.create_stream(app_stream_config(load(tmp_path / "config.yaml", {})))
        for spec in SPECS:
            try:
                text = check_schedule(spec)
            except ValueError:
                text = ""
            headers = {"Nats-Schedule": text or spec, "Nats-Schedule-Target": "p.app.in.r.0"}
            refused = (
                contextlib.nullcontext() if text else pytest.raises(BrokerError, match="schedules pattern")
            )
            with refused:
                await broker.commit([Outgoing("p.app.sched.r", b"{}", headers)])


async def test_a_server_that_is_too_old_for_a_schedule_is_named(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.12 has `@at` only (E402): the route says so, and goes on by itself with a later server."""
    every = scheduled("every", "@every 1s")
    with monkeypatch.context() as patched:
        patched.setattr(Broker, "server_version", property(lambda _: "2.12.3"))
        async with processor(every + scheduled("past", "@at 2020-01-01T00:00:00Z"), ticks=TICKS) as running:
            assert len(await running.documents("past", 1)) == 1
            await wait_until(lambda: "E402" in blocked(running, "inbox every"), "the route says why")
            assert "2.14 or later" in blocked(running, "inbox every")
            patched.undo()
            assert len(await running.documents("every", 1)) == 1
            assert running.telemetry.readiness.blocks == {}


async def test_a_dealt_message_knows_how_often_it_was_tried(processor: Start) -> None:
    """Its attempts count where it was dealt, and its sequence is the one that it had in the input."""
    work = """
class Runnable:
    def process(self, queries):
        for query, message in zip(queries, self.messages):
            if query.get("fails", 0) >= message.attempt:
                raise ValueError("not yet")
            yield [query["i"], message.stream, message.sequence, message.attempt]
"""
    route = """
r:
  input: {subject: "in.*", create: true, repartition: true}
  runnable: work.py
  key: subject.2
  output: out
  retry: {attempts: 3, strategy: fixed, base_ms: 0}
"""
    async with processor(route, work=work) as running:
        await running.publish("in.a", {"i": 1, "fails": 2}, {"i": 2})
        assert await running.documents("out", 2) == [[1, "app-in-any", 1, 3], [2, "app-in-any", 2, 1]]
