"""`concurrency`: guests of one route side by side, in order per key, and none suffers from another."""

from __future__ import annotations

import asyncio
import collections
from functools import partial
from pathlib import Path

import orjson
import pytest

from processor.embedded import EmbeddedServer
from processor.jetstream import EXPECTED, KEPT, Outgoing
from processor.model import partition_of
from processor.operate.control import Control
from tests.conftest import waited
from tests.faults import host
from tests.integration.test_replicas import Replica
from tests.running import Running, Start, connected, is_empty
from tests.web import Asked, answer, serving

# Numbers the documents of each key; asks the outside, works long, dies or fails where a document says so.
WORK = """
import requests

class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            if query.get("url"):
                requests.get(query["url"])
            if query.get("dies"):
                "x" * (1 << 40)
            if query.get("fails"):
                raise ValueError("no")
            for _ in range(query.get("rounds", 0)):
                sum(range(1000))
            self.context["n"] += 1
            outputs.append({"i": query["i"], "n": self.context["n"]})
        return outputs
"""
REPAIRED = WORK.replace('query.get("fails")', "False")
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  partitions: 16
  concurrency: 4
  output: out.{key}
  outbound: {allowed_domains: ["127.0.0.1:%s"]}
"""
KEYS = 20


def key_in(lane: int, lanes: int = 4) -> str:
    """A key whose messages that lane has, where one processor has all of the 16 partitions."""
    return next(key for key in (f"k{n}" for n in range(100)) if partition_of(key, 16) % lanes == lane)


def changed(running: Running, before: str, after: str) -> None:
    text = running.path.read_text()
    assert before in text
    running.path.write_text(text.replace(before, after))


async def check(running: Running, count: int) -> None:
    """Every message of every key once, in order, numbered by its context."""
    by_key: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    for output in await running.documents("out.*", count):
        by_key[output["i"] % KEYS].append((output["i"], output["n"]))
    expected = {
        key: [(i, n) for n, i in enumerate(range(key, count, KEYS), 1)] for key in range(min(KEYS, count))
    }
    assert by_key == expected


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_each_key_is_processed_once_and_in_order_however_lanes_change(
    processor: Start, retention: str
) -> None:
    """Some keys are slow; the number of lanes changes by reloads, a restart and a second processor."""

    async def publish(running: Running, first: int) -> None:
        for i in range(first, first + 200):
            await running.publish(f"in.k{i % KEYS}", {"i": i, "rounds": 100 * (i % KEYS % 7 == 0)})

    route = (ROUTE % 1).replace(", create: true", "") + "  batch: {max_messages: 20}\n"
    async with processor(route, work=WORK) as running:
        await running.broker.create_stream({"name": "IN", "subjects": ["in.*"], "retention": retention})
        await running.until_ready()
        await publish(running, 0)
        await publish(running, 200)
        changed(running, "concurrency: 4", "concurrency: 3")
        assert await running.reload() == ["r"]
        await publish(running, 400)
        async with Replica(running):
            await publish(running, 600)
        assert await running.service.stop()
    async with processor(route.replace("concurrency: 4", "concurrency: 1"), work=WORK) as running:
        await publish(running, 800)
        await check(running, 1000)
        if retention == "workqueue":
            await waited(partial(is_empty, running.broker, "IN"), "everything is acknowledged")


async def test_runs_of_two_keys_overlap(processor: Start) -> None:
    """Each asks a server that answers only when both ask: one after the other they would wait for ever."""
    both = asyncio.Barrier(2)

    async def together(_: Asked) -> bytes:
        await both.wait()
        return answer()

    async with serving(together) as web, processor(ROUTE % web.port, work=WORK) as running:
        for lane in (0, 3):
            await running.publish(f"in.{key_in(lane)}", {"i": lane, "url": web.url})
        assert {o["i"] for o in await running.documents("out.*", 2)} == {0, 3}


async def test_a_lane_that_waits_holds_up_no_other(processor: Start) -> None:
    """Their messages are committed meanwhile; gauges are those of all lanes, and end with them."""
    is_over = asyncio.Event()

    async def late(_: Asked) -> bytes:
        await is_over.wait()
        return answer()

    async with serving(late) as web, processor(ROUTE % web.port, work=WORK) as running:
        slow, others = key_in(1), [key_in(0), key_in(2)]
        await running.publish(f"in.{slow}", {"i": 0, "url": web.url}, *({"i": i} for i in range(1, 50)))
        await waited(lambda: web.asked, "the slow key waits for its answer")
        for key in others:
            await running.publish(f"in.{key}", *({"i": i} for i in range(100)))
            outputs = await running.documents(f"out.{key}", 100)
            assert [(o["i"], o["n"]) for o in outputs] == [(i, i + 1) for i in range(100)]
        assert await running.stored(f"out.{slow}") == []
        is_over.set()
        await running.documents(f"out.{slow}", 50)
        contexts = await running.contexts("r")
        assert contexts == {slow: {"n": 50}, others[0]: {"n": 100}, others[1]: {"n": 100}}
        held = len("n50" + "n100" + "n100")
        await waited(lambda: running.metric("processor_context_bytes", route="r") == held, "all are counted")
        await Control(running.broker, "app").pause("r", is_paused=True)
        gauges = ("context_bytes", "guest_memory_bytes", "lag_messages", "waiting_messages", "blocked_keys")
        await waited(
            lambda: not any(running.metric(f"processor_{gauge}", route="r") for gauge in gauges),
            "nothing is said of lanes that do not run",
        )
        await Control(running.broker, "app").pause("r", is_paused=False)
        await running.publish(f"in.{slow}", {"i": 50})
        assert (await running.documents(f"out.{slow}", 51))[-1] == {"i": 50, "n": 51}


async def test_the_guest_of_one_lane_dies_alone(processor: Start) -> None:
    """The others keep theirs; the message is tried, and is a dead letter in the end."""
    work = """
    class Runnable:
        life = 0

        def process(self, queries):
            self.life += len(queries)
            for query in queries:
                if query == "die":
                    "x" * (1 << 40)
            return [self.life for query in queries]
    """
    async with processor(ROUTE % 1 + "  retry: {attempts: 3, base_ms: 1}\n", work=work) as running:
        deadly, sound = key_in(0), key_in(1)
        for key in (deadly, sound):
            await running.publish(f"in.{key}", "live")
            assert await running.documents(f"out.{key}", 1) == [1]
        await running.publish(f"in.{deadly}", "die")
        [letter] = await running.dead_letters("r")
        assert (letter.headers["x-error-code"], letter.headers["x-delivery-count"]) == ("E313", "3")
        for key in (deadly, sound):
            await running.publish(f"in.{key}", "live")
        assert await running.documents(f"out.{deadly}", 2) == [1, 1]
        assert await running.documents(f"out.{sound}", 2) == [1, 2]
        assert running.metric("processor_guest_restarts_total", route="r") == 3
        assert running.metric("processor_breaker_openings_total", route="r") == 0


async def test_lanes_share_a_breaker(processor: Start) -> None:
    """When the guests of all lanes die it opens once, is said once, and one message is tried at a time."""
    deadly = WORK.replace('query.get("dies")', "True")
    more = "  events: {subject: events, level: failures}\n  breaker: {deaths: 5, window_s: 60, pause_s: %s}\n"
    route = ROUTE % 1 + "  retry: {attempts: 1}\n" + more
    async with processor(route % 600, work=deadly) as running:
        for i in range(40):
            await running.publish(f"in.k{i % KEYS}", {"i": i})
        await waited(lambda: "breaker r" in running.telemetry.readiness.blocks, "the breaker is open")
        assert running.metric("processor_breaker_openings_total", route="r") == 1
        changed(running, "pause_s: 600", "pause_s: 0.05")
        assert await running.reload(work=WORK) == ["r"]
        assert running.metric("processor_breaker_open", route="r") == 0
        await running.until_ready()
        letters = len(await running.dead_letters("r", 5))
        await running.documents("out.*", 40 - letters)
        assert letters + len(await running.stored("out.*")) == 40
        events = [orjson.loads(s.payload)["event"] for s in await running.stored("events")]
        assert events.count("breaker_opened") == 1


async def test_what_is_kept_for_later_finds_its_lane(processor: Start) -> None:
    """A retry that the server keeps, and a blocked key, go on in whichever lane has them by then."""
    route = ROUTE % 1 + "  retry: {attempts: 2, strategy: fixed, base_ms: 2100, then: %s}\n"
    late, blocked = key_in(0), key_in(3)
    async with processor(route % "dead_letter", work=WORK) as running:
        await running.publish(f"in.{late}", {"i": 0, "fails": True}, {"i": 1})
        assert await running.documents(f"out.{late}", 1) == [{"i": 1, "n": 1}]
        assert len(await running.stored("p.app.later.r.>")) == 1
        changed(running, "then: dead_letter", "then: block")
        await running.reload()
        await running.publish(f"in.{blocked}", {"i": 0, "fails": True}, {"i": 1})
        await waited(lambda: running.metric("processor_blocked_keys", route="r") == 1, "the key is blocked")
        changed(running, "concurrency: 4", "concurrency: 2")
        await running.reload(work=REPAIRED)
        assert await running.documents(f"out.{late}", 2) == [{"i": 1, "n": 1}, {"i": 0, "n": 2}]
        assert await running.documents(f"out.{blocked}", 2) == [{"i": 0, "n": 1}, {"i": 1, "n": 2}]
        assert await running.stored("p.app.dlq.r.>") == []


async def test_positions_follow_what_was_for_others(processor: Start) -> None:
    """Lanes and processors without a message of their own do not have the stream read again for them."""
    route = (ROUTE % 1).replace("concurrency: 4", "concurrency: 2")
    async with processor(route, work=WORK) as running, Replica(running):
        await running.publish("in.k1", *(orjson.dumps({"i": i}) for i in range(12_000)))

        async def is_near() -> bool:
            parts = await Control(running.broker, "app").parts("r")
            return min(part.position for part in parts) >= 10_000

        await waited(is_near, "every partition is past the messages of the one key")


async def test_a_lane_that_is_fenced_takes_the_others_with_it(processor: Start) -> None:
    """They settle what they have, and all claim anew: every message is processed once, whoever had it."""
    async with processor(ROUTE % 1, work=WORK) as running:
        first = {part.epoch for part in await Control(running.broker, "app").parts("r")}
        [position] = await running.broker.last_of("P_app", ["p.app.pos.r.0"])
        body = {**orjson.loads(position.payload), "owner": "zombie", "cid": "z"}
        fence = {**KEPT, EXPECTED: str(position.sequence)}
        await running.broker.commit([Outgoing(position.subject, orjson.dumps(body), fence)])
        for i in range(200):
            await running.publish(f"in.k{i % KEYS}", {"i": i})
        await check(running, 200)
        await running.until_ready()
        again = {part.epoch for part in await Control(running.broker, "app").parts("r")}
        assert (first, again) == ({1}, {2})


async def test_chunks_of_two_keys_go_out_at_the_same_time(processor: Start) -> None:
    """Also in stream mode; how each ended is said after its own commit."""
    both = asyncio.Barrier(2)

    async def together(_: Asked) -> bytes:
        await both.wait()
        return answer()

    talk = """
    import requests

    class Runnable:
        def process_stream(self, query):
            yield "before"
            requests.get(query["url"])
            yield "after"
    """
    route = (ROUTE + "  mode: stream\n").replace("work.py", "talk.py").replace("out.", "talk.")
    async with serving(together) as web, processor(route % web.port, talk=talk) as running:
        heard = await running.listen("talk.*")
        keys = [key_in(0), key_in(1)]
        for key in keys:
            await running.publish(f"in.{key}", {"url": web.url})
        await waited(lambda: len(heard) == 6, "two chunks and an end for each")
        for key in keys:
            chunks = [d for d in heard if d.subject == f"talk.{key}"]
            assert [d.payload for d in chunks] == [b"before", b"after", b""]
            assert chunks[-1].headers["Processor-Stream"] == "end"


async def test_only_the_message_that_ends_the_process_is_blamed(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """What was written down before it runs, runs without the same of other lanes beside it (E314)."""
    killer, sound = key_in(0), key_in(1)
    kills = asyncio.Event()

    def hang(asked: Asked) -> bytes | None:
        """The killer gets no answer, and neither does who asks beside it."""
        if asked.target == "/killer":
            kills.set()
        return None if kills.is_set() else answer()

    async with serving(hang) as web, connected(nats_server.url) as broker:
        (tmp_path / "work.py").write_text(WORK)
        config = tmp_path / "config.yaml"
        route = ROUTE % web.port + "  retry: {attempts: 1}\n"
        config.write_text("app: app\nhttp: off\nroutes:\n" + route.replace("\n", "\n  "))
        running = Running(None, None, broker, config)  # type: ignore[arg-type]
        await broker.create_stream({"name": "IN", "subjects": ["in.*"], "allow_direct": True})
        for key, path in ((killer, "killer"), (sound, "sound")):
            await running.publish(f"in.{key}", {"i": 0, "url": f"{web.url}/{path}"})

        async def is_over() -> bool:
            return kills.is_set() or bool(await running.stored("p.app.dlq.r.>"))

        while True:
            kills.clear()
            with host.start(config, nats_server.url) as process:
                try:
                    await waited(is_over, "the killer runs, or was given up", 30)
                    if kills.is_set():
                        continue
                    assert await running.documents(f"out.{sound}", 1) == [{"i": 0, "n": 1}]
                    [letter] = await running.dead_letters("r")
                    break
                finally:
                    process.kill()
        assert letter.headers["x-error-code"] == "E314"
        assert letter.headers["x-original-subject"] == f"in.{killer}"


@pytest.mark.parametrize("then", ["dead_letter", "block"])
async def test_what_is_kept_follows_its_key_to_another_lane(processor: Start, then: str) -> None:
    """Where `key` was changed meanwhile it is processed by the new one, once, whichever lane has that."""
    route = ROUTE % 1 + f"  retry: {{attempts: 2, strategy: fixed, base_ms: 2100, then: {then}}}\n"
    before, after = key_in(0), key_in(3)
    kind = "later" if then == "dead_letter" else "held"
    async with processor(route, work=WORK) as running:
        await running.publish(f"in.{before}", *({"i": i, "k": after, "fails": True} for i in range(2)))

        async def are_kept() -> bool:
            return len(await running.stored(f"p.app.{kind}.r.>")) == 2

        await waited(are_kept, "both are kept")
        for lane in (1, 2, 3):  # so that none reads the first two again
            await running.publish(f"in.{key_in(lane)}", {"i": 10 + lane, "k": key_in(lane)})
            await running.documents(f"out.{key_in(lane)}", 1)
        changed(running, "key: subject.2", "key: json./k")
        await running.reload(work=REPAIRED)
        outputs = await running.documents(f"out.{after}", 3)
        assert sorted(output["i"] for output in outputs) == [0, 1, 13]
        assert [s for s in await running.stored("p.app.due.r.>") if s.payload] == []
        assert [s for s in await running.stored("p.app.held.r.>") if s.payload] == []
        await waited(lambda: running.metric("processor_blocked_keys", route="r") == 0, "none is blocked")
        await running.publish("in.x", {"i": 2, "k": before})
        assert await running.documents(f"out.{before}", 1) == [{"i": 2, "n": 1}]


async def test_a_stray_message_among_those_that_are_due_costs_nobody(processor: Start) -> None:
    """What was not written here is passed by, by the route that starts and by the one that runs."""
    async with processor(ROUTE % 1, work=WORK) as running:
        stray = [Outgoing(f"p.app.due.{name}", b"{}") for name in ("r.x.1", "r", "r.0.\u00e9")]
        for message in stray:
            await running.broker.publish_stored(message)
        await running.reload(work=REPAIRED)
        await running.until_ready()
        for message in stray:
            await running.broker.publish_stored(message)
        await running.publish(f"in.{key_in(0)}", {"i": 0})
        assert await running.documents(f"out.{key_in(0)}", 1) == [{"i": 0, "n": 1}]
        assert running.telemetry.readiness.blocks == {}
