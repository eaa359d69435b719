"""A message whose subject or headers were odd stopped its route, or all of them.

A subject with a vertical tab, as MQTT clients send, was split as white space and ended the connection's
reading loop: every route stood still, `/readyz` stayed green and SIGTERM was ignored. One that was not UTF-8
stopped its route in a loop that wrote megabytes of log. Headers near 64 KiB left no room for ours, and the
refused commit was tried for ever. Now a subject is any bytes but a space and a line's end, and headers that
do not fit go into the body: one odd message hurts one message.
"""

from __future__ import annotations

import orjson
import pytest

from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import Outgoing, Reader
from processor.model import Delivery, RawHeaders
from processor.operate.dead_letters import DeadLetters, Filter
from tests.running import COUNT, REPAIRED, Running, Start, connected

ROUTE = 'r: {input: {subject: "in.>", create: true}, runnable: count.py, output: out, retry: {attempts: 1}}'
ODD = ["in.a\x0bb", "in.a\x0cb", "in.a\rb", "in.\udce9t\udce9", "in.\udcff.x\x1c\x85"]


async def redrive(running: Running, route: str = "r") -> None:
    letters = DeadLetters(running.broker, "app")
    for letter in [letter async for letter in letters.find(Filter(route=route))]:
        assert await letters.redrive(letter)


@pytest.mark.parametrize("repartition", [False, True])
async def test_a_message_of_any_subject_is_processed(processor: Start, repartition: bool) -> None:
    """With those before and behind it, dealt to its partition or read by itself, and redriven as well."""
    route = ROUTE
    if repartition:
        route = route.replace("create: true}", "create: true, repartition: true}, key: json./i")
    async with processor(route, count=COUNT) as running:
        await running.publish("in.first", {"i": 0})
        for number, subject in enumerate(ODD, 1):
            await running.publish(subject, {"i": number, "fails": "yet"}, {"i": -number})
        await running.publish("in.last", {"i": 9})
        found = await running.documents("out", len(ODD) + 2)
        assert sorted(document["i"] for document in found) == [-5, -4, -3, -2, -1, 0, 9]
        await running.dead_letters("r", len(ODD))
        letters = [s async for s in DeadLetters(running.broker, "app").find(Filter(route="r"))]
        assert sorted(letter.delivery.subject for letter in letters) == sorted(ODD)
        assert orjson.dumps([letter.facts() for letter in letters])  # as `dlq ls` and the API show them
        await running.reload(count=REPAIRED)
        await redrive(running)
        found = await running.documents("out", 2 * len(ODD) + 2)
        assert sorted(document["i"] for document in found)[-6:] == [1, 2, 3, 4, 5, 9]
        assert running.telemetry.readiness.blocks == {}


async def test_an_output_subject_of_other_bytes_costs_its_message(processor: Start) -> None:
    """What cannot be written is a dead letter that says which token it is."""
    async with processor(ROUTE.replace("output: out", "output: 'out.{subject.2}'"), count=COUNT) as running:
        await running.publish("in.a", {"i": 1})
        await running.publish("in.\udce9", {"i": 2})
        await running.publish("in.b", {"i": 3})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E308"
        assert "{subject.2} of 'out.{subject.2}' is '\\udce9'" in letter.headers["x-dead-letter-reason"]
        assert [d["i"] for d in await running.documents("out.*", 2)] == [1, 3]


async def test_a_key_of_other_bytes_costs_its_message(processor: Start) -> None:
    """A key is text: of a subject or a header."""
    async with processor(ROUTE.replace("output", "key: subject.2, output"), count=COUNT) as running:
        await running.publish("in.\udce9", {"i": 1})
        await running.publish("in.b", {"i": 2})
        [letter] = await running.dead_letters("r")
        assert (letter.headers["x-error-code"], letter.payload) == ("E303", b'{"i":1}')
        assert [d["i"] for d in await running.documents("out", 1)] == [2]


async def test_raw_messages_of_any_subject_are_read(processor: Start) -> None:
    """The document has the subject as text, with U+FFFD for what is none."""
    source = (
        "class Runnable:\n    def process(self, queries):\n        return [q['subject'] for q in queries]"
    )
    async with processor(ROUTE.replace("create: true", "create: true, codec: raw"), count=source) as running:
        await running.publish("in.\udce9", b"x")
        assert await running.payloads("out", 1) == ["in.\ufffd".encode()]


@pytest.mark.parametrize("kind", ["dead_letter", "block", "later", "repartition"])
async def test_headers_that_fill_what_a_server_takes_hold_nothing_up(processor: Start, kind: str) -> None:
    """64 KiB of them: as a dead letter, held, kept for later and dealt, and back again, all unchanged."""
    source = """
class Runnable:
    def process(self, queries):
        for query, message in zip(queries, self.messages):
            if query.get("fails") and message.attempt < 2:
                raise {failure}
            yield [query["i"], {name: message.headers.get_list(name) for name in ("X-Baggage", "X-Tag")}]
"""
    failure = "Retry(after_s=2.5)" if kind == "later" else 'ValueError("not yet")'
    then = "{attempts: 1, max_ms: 50, then: block}" if kind == "block" else "{attempts: 1}"
    then = "{attempts: 3}" if kind == "later" else then
    route = ROUTE.replace("{attempts: 1}", then).replace("output", "key: subject.2, output")
    if kind == "repartition":
        route = route.replace("create: true", "create: true, repartition: true")
    lines = b"X-Baggage: %b\r\nX-Tag: one\r\nX-Tag: two\r\n" % (b"v" * 65_300)
    async with processor(route, count=source.replace("{failure}", failure)) as running:
        await running.broker.publish(Outgoing("in.k1", b'{"i":1,"fails":true}', RawHeaders(lines)))
        await running.publish("in.k2", {"i": 2})
        await running.publish("in.k1", {"i": 3})
        if kind in ("dead_letter", "repartition"):
            [letter] = await running.dead_letters("r")
            assert letter.headers["x-error-code"] == "E304"
            assert int(letter.headers["x-original-headers-bytes"]) > 65_000
            await running.reload(
                count=source.replace('query.get("fails")', "False").replace("{failure}", failure)
            )
            await redrive(running)
        found = await running.documents("out", 3)
        assert sorted(i for i, _ in found) == [1, 2, 3]
        [headers] = [headers for i, headers in found if i == 1]
        assert headers["X-Tag"] == ["one", "two"]
        assert headers["X-Baggage"] == ["v" * 65_300]
        assert running.telemetry.readiness.blocks == {}


async def test_a_message_that_cannot_be_read_is_named_once(nats_server: EmbeddedServer) -> None:
    """What lies before it is handed out; then the reader raises, and asks for nothing again."""

    def read(delivery: Delivery) -> Delivery:
        if delivery.sequence == 2:
            raise ValueError("a fault of ours")
        return delivery

    async with connected(nats_server.url) as broker:
        info = await broker.create_stream({"name": "IN", "subjects": ["in.*"]})
        for number in range(3):
            await broker.publish_stored(Outgoing(f"in.{number}", b"{}"))
        reader = Reader(
            broker, "IN", ["in.*"], created=info["created"], retention="limits", name="r",
            start_sequence=1, prefetch=10, read=read,
        )  # fmt: skip
        try:
            await reader.open()
            assert [delivery.sequence for delivery in await reader.take(10, 1 << 20)] == [1]
            for _ in range(2):
                with pytest.raises(BrokerError, match=r"E357 the message behind 1 of stream IN .*a fault"):
                    await reader.take(10, 1 << 20)
        finally:
            await reader.close()
