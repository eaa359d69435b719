"""Changing contexts from outside: while the route runs, while it is idle, and while others do the same."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.context.history import Author
from processor.context.position import Move
from processor.context.store import ContextStore
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError, ProcessorError
from processor.jetstream import KEPT, Broker, Outgoing, Unknown
from processor.model import partition_of
from processor.operate.control import Control, ResetStep
from processor.operate.edits import ContextEdits
from processor.route import Route
from tests.properties.test_context import SOURCE, stream_of
from tests.running import COUNT, Running, Start, connected

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  partitions: 4
  output: out.{key}
"""
ANN = Author("ann@desk", "ticket 7")


def edits(running: Running, route: str = "r", *, broker: Broker | None = None) -> ContextEdits:
    config = load(running.path, {"NATS_URL": running.broker.address})
    return ContextEdits(broker or running.broker, config.routes[route])


async def numbers(running: Running, key: str, count: int) -> list[int]:
    return [o["n"] for o in await running.documents(f"out.{key}", count)]


async def test_an_idle_route_goes_on_with_what_was_set(processor: Start) -> None:
    """The guest remembers the old context; it is told, and the next message already runs on the new one."""
    async with processor(ROUTE, count=COUNT) as running:
        context = edits(running)
        await running.publish("in.a", {"i": 0}, {"i": 1})
        assert await numbers(running, "a", 2) == [1, 2]
        edit = await context.set("a", "n", 100, ANN)
        assert (edit.changed, edit.removed, edit.bytes) == (("n",), (), 4)
        await running.publish("in.a", {"i": 2})
        assert (await numbers(running, "a", 3))[2:] == [101]
        await context.delete("a", "", ANN)
        await running.publish("in.a", {"i": 3})
        assert (await numbers(running, "a", 4))[3:] == [1]
        # A key that no message had yet: `init` runs, and does not touch what is there.
        await context.set("b", "n", 7, ANN)
        await running.publish("in.b", {"i": 4})
        assert await numbers(running, "b", 1) == [8]
        assert running.telemetry.readiness.blocks == {}


async def test_every_change_finds_its_way_into_nested_values(processor: Start) -> None:
    """Paths lead through dicts and lists, types that JSON lacks stay what they are."""
    async with processor(ROUTE, count=COUNT) as running:
        context = edits(running)
        await context.set("a", "day", date(2026, 1, 31), ANN)
        await context.set("a", "by/symbol", {"x/y": [1, {"deep": Decimal("1.50")}]}, ANN)
        assert await context.get("a", "/by~1symbol/x~1y/1/deep") == Decimal("1.50")
        await context.set("a", "/by~1symbol/x~1y/1/deep", {1, 2}, ANN)
        await context.set("a", "/by~1symbol/x~1y/-", "end", ANN)
        await context.append("a", "log", "first", ANN)
        await context.append("a", "log", "second", ANN)
        await context.append("a", "log", "third", ANN)
        assert (await context.pop("a", "log", ANN)).value == "third"
        assert (await context.pop("a", "log", ANN, is_first=True)).value == "first"
        await context.delete("a", "/by~1symbol/x~1y/0", ANN)
        assert await context.get("a") == {
            "day": date(2026, 1, 31),
            "by/symbol": {"x/y": [{"deep": {1, 2}}, "end"]},
            "log": ["second"],
        }
        await context.set("a", "", {"n": 1}, ANN)
        assert await context.get("a") == {"n": 1}


async def test_an_item_that_was_deleted_is_not_set_again_by_init(processor: Start) -> None:
    """As if the Runnable had deleted it; the context as a whole begins anew instead."""
    runnable = """
    class Runnable:
        def init(self):
            self.context["a"] = self.context["b"] = 0

        def process(self, queries):
            return sorted(self.context)
    """
    async with processor(
        ROUTE.replace("key: subject.2", "").replace("partitions: 4", "").replace("out.{key}", "out"),
        count=runnable,
    ) as running:
        context = edits(running)
        await running.publish("in.x", {})
        assert await running.documents("out", 2) == ["a", "b"]
        edit = await context.delete("", "a", ANN)
        assert (edit.changed, edit.removed) == ((), ("a",))
        await running.publish("in.x", {})
        assert await running.documents("out", 3) == ["a", "b", "b"]


async def test_what_may_not_be_changes_nothing(processor: Start) -> None:
    """Paths that lead nowhere, values over the limits of the route, and routes that have no such context."""
    limits = "limits: {context_bytes: 20000, max_string_length: 50000, max_depth: 4}"
    waiting = "w: {input: not.there, runnable: count.py}"
    async with processor(f"{ROUTE}  {limits}\n{waiting}", count=COUNT) as running:
        context = edits(running)
        await context.set("a", "", {"n": 1, "list": [1, 2]}, ANN)
        for path, value, code, says in (
            ("/n/deep", 1, "E328", "an int has no 'deep'"),
            ("/gone/x", 1, "E328", "there is no 'gone'"),
            ("/list/2", 1, "E328", "the length of the list is 2"),
            ("n", float("nan"), "E309", "is nan"),
            ("n", "x" * 30_000, "E310", "limit 20000"),
            ("n", "x" * 50_001, "E318", "max_string_length is 50000"),
            ("n", [[[[[1]]]]], "E320", "more than 4 levels deep"),
            ("", [1], "E328", "a list"),
        ):
            with pytest.raises(ProcessorError, match=says) as refused:
                await context.set("a", path, value, ANN)
            assert refused.value.code == code
        with pytest.raises(ProcessorError, match=r"E328 context..n.. is an int, not a list"):
            await context.append("a", "n", 1, ANN)
        with pytest.raises(ProcessorError, match="E328 route r has kept nothing for key 'b'"):
            await context.delete("b", "", ANN)
        assert (await context.set("a", "n", 1, ANN)).id == ""
        assert await context.get("a") == {"n": 1, "list": [1, 2]}
        assert len(await context.history("a")) == 1
        with pytest.raises(BrokerError, match=r"E401 .* has not run yet"):
            await edits(running, "w").set("", "n", 1, ANN)
        with pytest.raises(ProcessorError, match="E303 route w has `key: none`"):
            await edits(running, "w").set("a", "n", 1, ANN)


async def test_half_a_reset_and_other_partitions_are_refused(processor: Start) -> None:
    """A position that nobody may claim, nobody may edit."""
    async with processor(ROUTE, count=COUNT) as running:
        other = running.path.with_name("other.yaml")
        other.write_text(running.path.read_text().replace("partitions: 4", "partitions: 8"))
        route = load(other, {"NATS_URL": running.broker.address}).routes["r"]
        with pytest.raises(BrokerError, match="E410 route r was created with 4 partitions and now has 8"):
            await ContextEdits(running.broker, route).set("a", "n", 1, ANN)
        await Control(running.broker, "app")._move("r", ResetStep(resetting=0), keep_context=True)
        with pytest.raises(BrokerError, match="E412"):
            await edits(running).set("a", "n", 1, ANN)


async def test_a_busy_owner_and_two_editors_lose_nothing_of_each_other(
    processor: Start, wait_until: Any
) -> None:
    """Hundreds of commits a second, and edits between them: every message and every edit counts once."""
    async with processor(f"{ROUTE}  batch: {{max_messages: 1}}", count=COUNT) as running:
        sent, is_over = 0, asyncio.Event()

        def is_keeping_up() -> bool:
            return sent - running.metric(COMMITTED) < 200

        async def feed() -> None:
            nonlocal sent
            while not is_over.is_set():
                await running.publish("in.a", *({"i": sent + i} for i in range(10)))
                sent += 10
                await wait_until(is_keeping_up, "the route keeps up", 30)

        async def edit(name: str) -> None:
            async with connected(running.broker.address) as broker:
                for number in range(15):
                    await edits(running, broker=broker).append("a", name, number, ANN)

        feeding = asyncio.create_task(feed())
        await running.documents("out.a", 50)
        await asyncio.gather(edit("x"), edit("y"))
        is_over.set()
        await feeding
        documents = await running.documents("out.a", sent)
        assert [(d["i"], d["n"]) for d in documents] == [(i, i + 1) for i in range(sent)]
        context = await edits(running).get("a")
        assert context == {"n": sent, "x": list(range(15)), "y": list(range(15))}
        records = await edits(running).history("a")
        assert [(r.action, r.by, r.reason) for r in records] == [("append", "ann@desk", "ticket 7")] * 30
        # Fences of edits are no quarrel of processors.
        assert running.telemetry.readiness.blocks == {}


async def test_only_the_owner_of_the_key_starts_anew(processor: Start, wait_until: Any) -> None:
    """The other processor of the route has nothing of that partition, and runs on."""
    async with processor(ROUTE, count=COUNT) as one, processor(ROUTE, count=COUNT) as two:
        both = (one.service, two.service)

        def is_shared() -> bool:
            runs = [service._runs["r"] for service in both]
            return all(run.lanes is not None and len(run.share) == 2 for run in runs)

        await wait_until(is_shared, "both have two partitions")
        runs = [service._runs["r"] for service in both]
        lanes = [run.lanes for run in runs]
        [owner] = [n for n, run in enumerate(runs) if partition_of("a", 4) in run.share]
        await edits(one).set("a", "n", 5, ANN)
        await wait_until(lambda: runs[owner].lanes not in (None, lanes[owner]), "its owner starts")
        assert runs[1 - owner].lanes is lanes[1 - owner]
        await one.publish("in.a", {"i": 0})
        assert await numbers(one, "a", 1) == [6]


async def test_all_but_the_contexts_of_a_position_survives_an_edit(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """What waits, is blocked, or was not sent yet, who owns it and how often it was claimed in vain."""
    async with stream_of("app", nats_server) as broker:
        store = ContextStore(broker, "app", "r", 1, "owner")
        await store.claim(SOURCE, 0)
        marker = Outgoing("chunks.a", b"", {"Processor-Stream": "end"})
        await store.commit([], {}, {0: Move(7, opened={6: 2}, blocked={"k": 3})}, live=[marker])
        await ContextStore(broker, "app", "r", 1, "next").claim(SOURCE, 0)
        [stored] = await broker.last_of("P_app", ["p.app.pos.r.0"])
        extended = {**orjson.loads(stored.payload), "live": [["s", {}, ""]], "of a later version": [1, 2]}
        await broker.publish_stored(Outgoing("p.app.pos.r.0", orjson.dumps(extended), KEPT))
        route = route_alone(tmp_path)
        for number in range(3):
            await ContextEdits(broker, route).set("a", f"item-{number}", "x" * 2000, ANN)
        [stored] = await broker.last_of("P_app", ["p.app.pos.r.0"])
        after = orjson.loads(stored.payload)
        assert after.pop("spread") is True
        own = {"epoch": extended["epoch"] + 3, "cid": after["cid"]}
        assert after == {**extended, **own}
        assert len(await ContextEdits(broker, route).get("a")) == 3


async def test_an_edit_whose_answer_was_lost_is_made_once(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Also when the owner has claimed the partition again before anybody could ask."""
    owner: ContextStore

    class Forgetful(Broker):
        """A broker that loses the first answer to a commit, and is told so only after others went on."""

        is_well = False

        async def commit(self, messages: Sequence[Outgoing]) -> int:
            stored = await super().commit(messages)
            if not self.is_well:
                self.is_well = True
                await owner.claim(SOURCE, 0)
                raise Unknown("the answer is lost")
            return stored

    async with stream_of("app", nats_server) as plain:
        owner = ContextStore(plain, "app", "r", 1, "owner")
        await owner.claim(SOURCE, 0)
        broker = await Forgetful.connect({"servers": [nats_server.url]}, name="test", wait=False)
        try:
            context = ContextEdits(broker, route_alone(tmp_path))
            await context.append("a", "list", 1, ANN)
            assert broker.is_well
            assert await context.get("a") == {"list": [1]}
            await context.append("a", "list", 2, ANN)
            assert await context.get("a") == {"list": [1, 2]}
        finally:
            await broker.close()


async def test_the_history_has_what_runs_and_people_changed(processor: Start) -> None:
    """One record for each commit and context, in the commit, with what changed; each expires by itself."""
    runnable = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.context.update(query["set"])
                for name, size in query.get("fill", {}).items():
                    self.context[name] = "x" * size
                for name in query.get("delete", []):
                    del self.context[name]
                yield query
    """
    async with processor(f"{ROUTE}  history: {{keep: 2h, edits: 7d}}", count=runnable) as running:
        for number, query in enumerate(
            (
                {"set": {"a": 1, "b": 2}},
                {"set": {"a": 1}},
                {"set": {"b": 3}, "delete": ["a"]},
                {"set": {}, "fill": {"big": 6000}},
                {"set": {}, "fill": {"c": 600_000, "d": 600_000}},
            ),
            1,
        ):
            await running.publish("in.k", query)
            await running.documents("out.k", number)
        context = edits(running)
        await context.delete("k", "c", ANN)
        await context.delete("k", "", ANN)
        records = await context.history("k")
        runs, people = records[:4], records[4:]
        assert [(r.first, r.last) for r in runs] == [(1, 1), (3, 3), (4, 4), (5, 5)]
        assert [dict(r.items) for r in runs[:2]] == [{"a": b"1", "b": b"2"}, {"b": b"3"}]
        assert runs[1].removed == ("a",)
        assert [set(r.items) for r in runs[2:]] == [{"big"}, set()]
        assert (runs[3].is_abridged, runs[3].sizes) == (True, {"c": 600_002, "d": 600_002})
        assert [(r.action, r.by, r.removed, r.is_gone) for r in people] == [
            ("delete", "ann@desk", ("c",), False),
            ("delete", "ann@desk", ("b", "big", "d"), True),
        ]
        assert await context.history("k", limit=1) == records[-1:]
        assert await context.history("k", since_s=4e9) == []
        found = [await headers(running, s.sequence) for s in await running.stored("p.app.hist.r.*.k")]
        assert [text.count(b"Nats-TTL: 7200s") for text in found] == [1, 1, 1, 1, 0, 0]
        assert [text.count(b"Nats-TTL: 604800s") for text in found] == [0, 0, 0, 0, 1, 1]


async def test_a_record_counts_in_its_commit(processor: Start) -> None:
    """900 outputs, 48 items of a context and their list, a record and a position: one too many (E324)."""
    runnable = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.context.update({f"item{i}": "x" * 100 for i in range(query)})
                yield from range(900)
    """
    async with processor(f"{ROUTE}  history: {{keep: 1h}}", count=runnable) as running:
        await running.publish("in.a", 47)
        await running.documents("out.a", 900)
        await running.publish("in.b", 48)
        [letter] = await running.dead_letters("r")
        assert "need 951 messages of a commit, which takes 950" in letter.headers["x-dead-letter-reason"]
        assert len(await running.stored("p.app.hist.r.>")) == 1


async def headers(running: Running, sequence: int) -> bytes:
    reply = await running.broker.api("STREAM.MSG.GET.P_app", {"seq": sequence})
    return b64decode(reply["message"]["hdrs"])


COMMITTED = "processor_committed_messages_total"


def route_alone(folder: Path) -> Route:
    """A route with one partition that nothing runs."""
    path = folder / "alone.yaml"
    path.write_text(
        "app: app\nroutes: {r: {input: in.*, code: 'class Runnable: ...', key: subject.2, partitions: 1}}"
    )
    return load(path, {}).routes["r"]
