"""A position or a context that cannot be read: it stops what it belongs to, by name, and can be mended."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.context import reading
from processor.context.history import Author
from processor.context.subjects import WHOLE
from processor.delivery.codec import Codec
from processor.errors import BrokerError
from processor.jetstream import KEPT, Outgoing
from processor.model import key_token, partition_of
from processor.operate.control import Control
from processor.operate.edits import ContextEdits
from processor.operate.status import Survey
from tests.conftest import waited
from tests.running import COUNT, Running, Start, problems_of

ROUTES = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  output: out.{key}
  retry: {attempts: 2, base_ms: 0}
other:
  input: {subject: "more.*", create: true}
  runnable: work.py
  output: aside
"""
NESTED = b"[" * 1023 + b"]" * 1023
PARTITION = partition_of("a", 64)
POSITION = f"p.app.pos.r.{PARTITION}"


async def spoil(running: Running, payload: bytes) -> None:
    await running.broker.publish_stored(Outgoing(POSITION, payload, KEPT))


async def position(running: Running) -> bytes:
    [stored] = await running.broker.last_of("P_app", [POSITION])
    return stored.payload


@pytest.mark.parametrize("what", ["nested", "no JSON", "no object", "of another shape"])
async def test_a_position_that_cannot_be_read_is_named_and_reset(
    processor: Start, what: str, wait_until: Any
) -> None:
    """Its route says E421 and how to go on, others run, and `reset` writes it anew."""
    async with processor(ROUTES, work=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await running.publish("in.b", {"i": 1})
        await running.documents("out.*", 2)
        before = orjson.loads(await position(running))
    async with processor(
        ROUTES.replace("r:\n", "later:\n", 1).replace("in.*", "in2.*"), work=COUNT
    ) as running:
        whole = await position(running)
        begin = whole[: whole.index(b'"ctx":{')] if b'"ctx":{' in whole else whole[:-1] + b","
        payloads = {
            "nested": begin + b'"ctx":{"a":{"x":' + NESTED + b"}}}",
            "no JSON": b"\x00" + whole,
            "no object": b"[]",
            "of another shape": whole.replace(b'"owner":""', b'"owner":5'),
        }
        assert payloads[what] != whole
        await spoil(running, payloads[what])
    async with processor(ROUTES, work=COUNT) as running:
        why = await wait_until(lambda: running.telemetry.readiness.blocks.get("route r"), "it is named")
        assert f"E421 the position of partition {PARTITION} of route r cannot be read" in why
        assert "processor reset" in why
        assert await problems_of(running) == [why]
        await running.publish("more.x", {"i": 7})
        assert await running.documents("aside", 1) == [{"i": 7, "n": 1}]

        config = load(running.path, {"NATS_URL": running.broker.address})
        status = await Survey.take(running.broker, "app")
        document = await status.route(config.routes["r"])
        assert len(document["partitions"]) == 64
        with pytest.raises(BrokerError, match="E421"):
            _ = [key async for key, _ in reading.read(running.broker, "app", "r", "a")]
        assert [key async for key, _ in reading.read(running.broker, "app", "r", "b")] == ["b"]

        control = Control(running.broker, "app")
        target = await control.target(config.routes["r"], 1)
        assert await control.reset_to(target, keep_context=False) == 64
        assert orjson.loads(await position(running))["epoch"] > before["epoch"]
        await wait_until(lambda: "route r" not in running.telemetry.readiness.blocks, "it runs")
        assert (await running.documents("out.a", 2))[1] == {"i": 0, "n": 1}
        await running.publish("in.a", {"i": 2})
        assert (await running.documents("out.a", 3))[2] == {"i": 2, "n": 2}


async def test_a_reset_that_keeps_contexts_keeps_those_that_can_be_read(processor: Start) -> None:
    """Of the partition whose position cannot be read those outside of it; all of the others."""
    async with processor(ROUTES, work=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await running.publish("in.b", {"i": 1})
        await running.documents("out.*", 2)
    async with processor(ROUTES, work=COUNT) as running:
        control = Control(running.broker, "app")
        await control.pause("r", is_paused=True)
        await waited(partial(is_let_go, control), "it stands still")
        await spoil(running, b"[")
        await control.reset_to(await control.target(load_route(running), 3), keep_context=True)
        await control.pause("r", is_paused=False)
        await running.publish("in.a", {"i": 2})
        await running.publish("in.b", {"i": 3})
        assert (await running.documents("out.b", 2))[1] == {"i": 3, "n": 2}
        assert (await running.documents("out.a", 2))[1] == {"i": 2, "n": 1}


async def is_let_go(control: Control) -> bool:
    return all(not part.owner for part in await control.parts("r"))


def load_route(running: Running) -> Any:
    return load(running.path, {"NATS_URL": running.broker.address}).routes["r"]


async def outside_context(running: Running, payload: bytes) -> None:
    """Have the context of key a lie outside of its position, as one message with this payload."""
    subject = f"p.app.ctx.r.{PARTITION}.{key_token('a')}.{WHOLE}"
    body = orjson.loads(await position(running))
    body.pop("ctx", None)
    await running.broker.publish_stored(Outgoing(POSITION, orjson.dumps({**body, "spread": True}), KEPT))
    await running.broker.publish_stored(Outgoing(subject, payload, KEPT))


UNREADABLE = {
    "no text": b"\xff\x00",
    "no object": b"[]",
    "unparsable": b'{"n":' + NESTED + b"}",
    "unwritable": b'{"n":' + NESTED[500:-500] + b"}",
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_a_context_that_cannot_be_read_stops_its_key_alone(processor: Start, what: str) -> None:
    """Its messages are dead letters with E366, other keys go on, and `context delete` lets it begin anew."""
    async with processor(ROUTES, work=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await running.documents("out.a", 1)
    async with processor(ROUTES, work=COUNT) as running:
        control = Control(running.broker, "app")
        await control.pause("r", is_paused=True)
        await waited(partial(is_let_go, control), "it stands still")
        await outside_context(running, UNREADABLE[what])
        await control.pause("r", is_paused=False)
        await running.publish("in.b", {"i": 1})
        await running.publish("in.a", {"i": 2})
        await running.publish("in.b", {"i": 3})
        assert await running.documents("out.b", 2) == [{"i": 1, "n": 1}, {"i": 3, "n": 2}]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E366"
        assert "the context of key 'a' cannot be read" in letter.headers["x-dead-letter-reason"]
        assert running.telemetry.readiness.blocks == {}
        assert await problems_of(running) == [f"E366 {letter.headers['x-dead-letter-reason']}."]

        await ContextEdits(running.broker, load_route(running)).delete("a", "", Author("ann"))
        assert await problems_of(running) == []
        await running.publish("in.a", {"i": 4})
        assert (await running.documents("out.a", 2))[1] == {"i": 4, "n": 1}


LONG = """
class Runnable:
    def process(self, queries):
        self.context["pad"] = "x" * 9000
        name = chr(1) * 8000 + str(queries[0]["i"])
        self.context[name] = self.context.get(name, 0) + 1
        return [self.context[name]]
"""


async def test_the_longest_names_of_items_are_kept(processor: Start) -> None:
    """Written as headers they take six times their bytes, and come back."""
    async with processor(ROUTES, work=LONG) as running:
        await running.publish("in.a", {"i": 0})
        assert await running.documents("out.a", 1) == [1]
    async with processor(ROUTES, work=LONG) as running:
        await running.publish("in.a", {"i": 0})
        assert await running.documents("out.a", 2) == [1, 2]
        assert {len(name) for name in (await running.contexts("r"))["a"]} == {3, 8001}


SPINNING = """
import sys

class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        frame = sys._getframe()
        while not hasattr(frame.f_locals.get("self"), "_channel"):
            frame = frame.f_back
        channel = frame.f_locals["self"]._channel
        receive = channel.receive
        def spin():
            while queries[0]["i"] == 0:
                pass
            return receive()
        channel.receive = spin
        self.context["n"] += 1
        return [{"i": queries[0]["i"], "n": self.context["n"]}]
"""


async def test_a_route_goes_on_whose_guest_was_ended_between_runs(
    processor: Start, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    """The next message finds a new guest and the context as it was; no message has failed."""
    monkeypatch.setattr("processor.sandbox.host.IDLE_LOOK_S", 0.05)
    route = ROUTES.split("other:")[0] + "  language: python\n"
    async with processor(route, work=SPINNING) as running:
        await running.publish("in.a", {"i": 0})
        assert await running.documents("out.a", 1) == [{"i": 0, "n": 1}]
        worker = running.service._runs["r"].lanes._workers[0]  # type: ignore[union-attr]
        await wait_until(lambda: not worker._guests._guest.alive, "the guest was ended")  # type: ignore[union-attr]
        await running.publish("in.a", {"i": 1})
        assert (await running.documents("out.a", 2))[1] == {"i": 1, "n": 2}
        assert running.metric("processor_guest_restarts_total", reason="E367") == 1
        assert running.metric("processor_failures_total") == 0


EVENTS = """
class Runnable:
    def process(self, queries):
        self.event("n", 10**30 + 1)
        self.event("deep", [[[[1.0]]]])
"""


async def test_an_event_has_the_numbers_that_it_was_given(processor: Start) -> None:
    """Integers keep every digit, and a float its point."""
    route = ROUTES.split("other:")[0].replace("  output: out.{key}\n", "") + "  events: happened\n"
    async with processor(route, work=EVENTS) as running:
        await running.publish("in.a", {})
        found = await running.payloads("happened", 2)
        assert b'"data":1000000000000000000000000000001}' in found[0]
        assert b'"data":[[[[1.0]]]]}' in found[1]


def deep(codec: Codec, *arguments: Any) -> Any:
    raise RecursionError("deep in ours")


@pytest.mark.parametrize("step", ["key", "read", "outputs"])
async def test_an_error_of_ours_over_a_message_is_that_messages_failure(
    processor: Start, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a dead letter with E365, and its traceback is in the log; the route reads on."""
    async with processor(ROUTES, work=COUNT) as running:
        with monkeypatch.context() as patch:
            patch.setattr(Codec, step, deep)
            await running.publish("in.a", {"i": 0})
            [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E365"
        assert "deep in ours" not in letter.headers["x-dead-letter-reason"]
        assert "RecursionError: deep in ours" in caplog.text
        await running.publish("in.a", {"i": 1})
        assert [document["i"] for document in await running.documents("out.a", 1)] == [1]
        assert running.telemetry.readiness.blocks == {}


async def test_what_cannot_be_told_of_a_message_does_not_keep_it(
    processor: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A message is given up whatever becomes of the words about it."""
    monkeypatch.setattr(Codec, "failed", deep)
    async with processor(ROUTES, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"}, {"i": 1})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E304"
        assert await running.documents("out.a", 1) == [{"i": 1, "n": 1}]
        assert "an unexpected error while telling of a message" in caplog.text
