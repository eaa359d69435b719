"""The streams that a route reads and writes: found by what they hold, watched, named where they refuse."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.delivery.streams import Streams
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError
from processor.jetstream import NS, Broker, Outgoing
from tests.conftest import waited
from tests.running import COUNT, Running, Serve, Start, connected, is_empty, problems_of, starter

ECHO = """
class Runnable:
    def process(self, queries):
        return queries
"""
ROUTE = """
r:
  input: {subject: "in.>"}
  runnable: count.py
  output: out
"""
KEYED = """
r:
  input: {subject: "in.>", create: true}
  runnable: count.py
  key: subject.2
  output: "own.{key}"
"""


async def blocked(running: Running, *words: str, deadline_s: float = 10) -> str:
    """Why the route is not ready, as soon as the sentence has these words."""

    def sentence() -> str | None:
        why = running.telemetry.readiness.blocks.get("route r", "")
        return why if all(word in why for word in words) else None

    found: str = await waited(sentence, f"the route says {' and '.join(words)}", deadline_s)
    return found


async def has_messages(broker: Broker, stream: str, count: int) -> bool:
    info = await broker.stream(stream)
    return info is not None and info["state"]["messages"] >= count


async def bodies(broker: Broker, stream: str) -> list[Any]:
    return [orjson.loads(s.payload) async for s in broker.history(stream, [">"])]


async def test_an_input_in_two_streams_is_refused_by_name(processor: Start, wait_until: Any) -> None:
    """One stream would never be read: the route, and the check, name both and what they hold (E417)."""
    async with processor(ROUTE, count=COUNT) as running:
        await blocked(running, "E401")
        await running.broker.create_stream({"name": "EU", "subjects": ["in.eu.*"]})
        await running.broker.create_stream({"name": "US", "subjects": ["in.us.*"]})
        why = await blocked(running, "E417")
        assert "EU holds in.eu.*" in why
        assert "US holds in.us.*" in why
        assert await problems_of(running) == [why]


async def test_a_stream_that_takes_a_part_of_the_input_stops_a_running_route(
    processor: Start, wait_until: Any
) -> None:
    """The route says so when it happens, and goes on when the input is in one stream again."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        await broker.create_stream({"name": "EU", "subjects": ["in.eu.*"]})
        await running.until_ready()
        await broker.create_stream({"name": "US", "subjects": ["in.us.*"]})
        await blocked(running, "E417", "US")
        await broker.api("STREAM.DELETE.US")
        await running.publish("in.eu.x", {"i": 1})
        await running.until_ready()
        assert await running.documents("out", 1) == [{"i": 1, "n": 1}]


async def test_subjects_that_move_to_another_stream_stop_the_route(processor: Start) -> None:
    """Its position belongs to the stream that it has read: the route says which is another now (E407)."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        await broker.create_stream({"name": "OLD", "subjects": ["in.>"]})
        await running.until_ready()
        await running.publish("in.x", {"i": 1})
        assert len(await running.documents("out", 1)) == 1
        old = await broker.stream("OLD")
        assert old is not None
        await broker.update_stream({**old["config"], "subjects": ["elsewhere"]})
        await broker.create_stream({"name": "NEW", "subjects": ["in.>"]})
        await blocked(running, "E407", "NEW")


async def test_a_stream_that_becomes_one_of_interest_is_read_as_one(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """The reader follows with a consumer that lasts, so what comes while nobody runs is not lost."""
    async with processor(ROUTE, count=COUNT) as running:
        made = await running.broker.create_stream({"name": "IN", "subjects": ["in.>"]})
        await running.until_ready()
        await running.publish("in.x", {"i": 1})
        assert len(await running.documents("out", 1)) == 1
        await running.broker.update_stream({**made["config"], "retention": "interest"})

        async def is_durable() -> bool:
            found = await running.broker.consumers("IN")
            return any(consumer["config"].get("durable_name") for consumer in found)

        await wait_until(is_durable, "the route has a consumer that lasts")
        await running.publish("in.x", {"i": 2})
        assert len(await running.documents("out", 2)) == 2
        await wait_until(partial(is_empty, running.broker, "IN"), "what was processed is gone")
    async with connected(nats_server.url) as broker:
        await broker.publish_stored(Outgoing("in.x", b'{"i": 3}'))
    async with processor(ROUTE, count=COUNT) as running:
        assert [o["i"] for o in await running.documents("out", 3)] == [1, 2, 3]


async def test_what_a_stream_renames_is_read_under_its_new_name(processor: Start, wait_until: Any) -> None:
    """Nothing is ever stored under the subject that was published: E417 says which one to read."""
    transform = {"src": "raw.*", "dest": "orders.{{wildcard(1)}}"}
    raw = ROUTE.replace("in.>", "raw.*")
    async with processor(raw, count=COUNT) as running:
        await running.broker.create_stream(
            {"name": "T", "subjects": ["raw.*"], "subject_transform": transform}
        )
        why = await blocked(running, "E417", "stream T", "'orders.*'")
        assert await problems_of(running) == [why]
    async with processor(raw.replace("raw.*", "orders.*"), app="b", count=COUNT) as running:
        await running.until_ready()
        await running.publish("raw.x", {"i": 1})
        assert await running.documents("out", 1) == [{"i": 1, "n": 1}]


async def test_a_mirror_as_input_is_refused_by_name(processor: Start, wait_until: Any) -> None:
    """A mirror has no subjects: the route says that it holds the messages and where the origin is (E417)."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        await broker.create_stream({"name": "ORIGIN", "subjects": ["in.>"]})
        await running.publish("in.x", {"i": 1})
        await broker.create_stream({"name": "COPY", "mirror": {"name": "ORIGIN"}})
        await wait_until(partial(has_messages, broker, "COPY", 1), "the mirror has the message")
        origin = await broker.stream("ORIGIN")
        assert origin is not None
        await broker.update_stream({**origin["config"], "subjects": ["elsewhere"]})
        why = await blocked(running, "E417", "COPY", "a mirror", "ORIGIN", deadline_s=30)
        assert await problems_of(running) == [why]


async def test_each_output_gets_to_the_stream_that_holds_its_subject(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """Two streams hold a part of the outputs' subjects each; an output that none holds is a dead letter."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "A", "subjects": ["own.a"]})
        await broker.create_stream({"name": "B", "subjects": ["own.b"]})
    async with processor(KEYED, count=COUNT) as running:
        await running.until_ready()
        for key in "abcab":
            await running.publish(f"in.{key}", {"i": ord(key)})
        await wait_until(partial(has_messages, running.broker, "A", 2), "both of a are in A")
        await wait_until(partial(has_messages, running.broker, "B", 2), "both of b are in B")
        assert [each["i"] for each in await bodies(running.broker, "A")] == [ord("a")] * 2
        assert [each["i"] for each in await bodies(running.broker, "B")] == [ord("b")] * 2
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E417"
        assert "'own.c'" in letter.headers["x-dead-letter-reason"]


async def test_a_stream_that_comes_for_a_part_of_the_outputs_gets_them(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """A route that runs notices a stream that now holds what none has held, and writes to it."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "A", "subjects": ["own.a"]})
    async with processor(KEYED, count=COUNT) as running:
        await running.until_ready()
        await running.publish("in.b", {"i": 1})
        await running.dead_letters("r")
        await running.broker.create_stream({"name": "B", "subjects": ["own.b"]})

        async def is_asked() -> bool:
            info = await running.broker.stream("B")
            return info is not None and bool(info["config"].get("sources"))

        await wait_until(is_asked, "B is asked to copy")
        await running.until_ready()
        await running.publish("in.b", {"i": 2})
        await wait_until(partial(has_messages, running.broker, "B", 1), "the second is in B")
        assert [each["i"] for each in await bodies(running.broker, "B")] == [2]


@pytest.mark.parametrize("second", ["own.b", "own.{key}"])
async def test_a_stream_that_is_to_copy_more_copies_nothing_twice(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any, second: str
) -> None:
    """A second subject of the app for the same stream leaves what was copied of the first as it is."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "OWN", "subjects": ["own.*"]})
    async with processor(KEYED.replace("own.{key}", "own.a"), count=COUNT) as running:
        await running.publish("in.b", *({"i": i} for i in range(5)))
        await wait_until(partial(has_messages, running.broker, "OWN", 5), "five outputs")
    more = KEYED.replace("own.{key}", second)
    async with processor(more, count=COUNT) as running:
        await running.until_ready()
        await running.publish("in.b", {"i": 5})
        await wait_until(partial(has_messages, running.broker, "OWN", 6), "the sixth")
        assert [each["i"] for each in await bodies(running.broker, "OWN")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("retention", ["limits", "interest", "workqueue"])
async def test_the_limits_of_a_streams_consumers_are_obeyed(
    processor: Start, wait_until: Any, retention: str
) -> None:
    """A stream may limit what waits for its acknowledgement, and for how long a consumer may be idle."""
    async with processor(ROUTE, count=COUNT) as running:
        limits = {"inactive_threshold": 10 * NS, "max_ack_pending": 10}
        wanted = {"name": "IN", "subjects": ["in.>"], "retention": retention, "consumer_limits": limits}
        await running.broker.create_stream(wanted)
        await running.until_ready()
        await running.publish("in.x", *({"i": i} for i in range(50)))
        assert [o["i"] for o in await running.documents("out", 50)] == list(range(50))


async def test_the_limits_of_the_server_for_requests_are_obeyed(serve: Serve, tmp_path: Path) -> None:
    """A server may limit how many messages are asked for at once."""
    url = await serve(f'jetstream {{ store_dir: "{tmp_path}/js", limits {{ max_request_batch: 7 }} }}')
    async with starter(tmp_path, url)(ROUTE, count=COUNT) as running:
        await running.broker.create_stream({"name": "IN", "subjects": ["in.>"]})
        await running.until_ready()
        await running.publish("in.x", *({"i": i} for i in range(50)))
        assert [o["i"] for o in await running.documents("out", 50)] == list(range(50))


async def test_a_work_queue_that_is_taken_is_named(processor: Start) -> None:
    """The server's sentence and the consumer that is in the way are said, by the check too."""
    async with processor(ROUTE, count=COUNT) as running:
        broker = running.broker
        await broker.create_stream({"name": "IN", "subjects": ["in.>"], "retention": "workqueue"})
        await running.until_ready()
    async with connected(broker.address) as broker:
        for consumer in await broker.consumers("IN"):
            await broker.delete_consumer("IN", consumer["name"])
        other = {"durable_name": "other", "ack_policy": "explicit", "filter_subject": "in.>"}
        await broker.api(
            "CONSUMER.CREATE.IN.other", {"stream_name": "IN", "config": {"name": "other", **other}}
        )
        async with processor(ROUTE, count=COUNT) as running:
            why = await blocked(running, "E408", "not unique on workqueue stream (10100)", "consumer other")
            assert await problems_of(running) == [why]
            await broker.delete_consumer("IN", "other")
            await running.until_ready()


async def test_a_stream_without_room_for_a_consumer_is_named(
    processor: Start, nats_server: EmbeddedServer
) -> None:
    """max_consumers of a stream is said, by the check too, and the route starts when there is room."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "IN", "subjects": ["in.>"], "max_consumers": 1})
        other = {"name": "other", "ack_policy": "none", "inactive_threshold": 60 * NS}
        await broker.api("CONSUMER.CREATE.IN.other", {"stream_name": "IN", "config": other})
    async with processor(ROUTE, count=COUNT) as running:
        why = await blocked(running, "E408", "maximum consumers limit reached (10026)")
        assert await problems_of(running) == [why]
        await running.broker.delete_consumer("IN", "other")
        await running.until_ready()


@pytest.mark.parametrize("way", ["copied", "foreign"])
async def test_an_output_above_the_limit_of_its_stream_is_a_dead_letter(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any, way: str
) -> None:
    """Whatever its size, an output is stored or a dead letter (E307), and those behind it arrive."""
    wanted = {"name": "OUT", "subjects": ["out"], "max_msg_size": 500}
    async with connected(nats_server.url) as broker:
        await broker.create_stream({**wanted, "allow_msg_schedules": way == "foreign"})
    route = ROUTE.replace('"in.>"', '"in.>", create: true').replace("count.py", "echo.py")
    route += "  retry: {attempts: 1}\n"
    async with processor(route, echo=ECHO) as running:
        await running.until_ready()
        sizes = range(300, 520, 4)
        await running.publish("in.x", *({"pad": "x" * size} for size in sizes), {"pad": ""})

        async def has_last() -> bool:
            return {"pad": ""} in await bodies(running.broker, "OUT")

        await wait_until(has_last, "the last, which is small, is in the stream")
        copied = {len(each["pad"]) for each in await bodies(running.broker, "OUT")} - {0}
        letters = await running.dead_letters("r", len(sizes) - len(copied))
        assert {letter.headers["x-error-code"] for letter in letters} == {"E307"}
        refused = {len(orjson.loads(letter.payload)["pad"]) for letter in letters}
        assert copied | refused == set(sizes)
        assert max(copied) < min(refused) < {"copied": 400, "foreign": 460}[way]


TALK = """
class Runnable:
    def process_stream(self, query):
        self.context["n"] = self.context.get("n", 0) + 1
        yield "begun"
        yield "x" * query["size"]
"""


async def test_a_chunk_above_the_limit_of_its_stream_is_a_dead_letter(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """The stream has all chunks of a message and its end, or the message failed (E307) and says so there."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "TALK", "subjects": ["talk"], "max_msg_size": 500})
    route = """
    r:
      input: {subject: "ask.*", create: true}
      runnable: talk.py
      mode: stream
      output: talk
      retry: {attempts: 1}
    """
    sizes = [*range(398, 410, 2), 600, 5]
    async with processor(route, talk=TALK) as running:
        await running.publish("ask.x", *({"size": size} for size in sizes))

        async def is_done() -> bool:
            ends = [s.headers.get("Processor-Stream") for s in await running.stored("talk")]
            return ends.count("end") + ends.count("error") == len(sizes)

        await wait_until(is_done, "every run has ended")
        stored = await running.stored("talk")
        said = {}
        for number, size in enumerate(sizes, 1):
            of = [s for s in stored if s.headers["Processor-Sequence"] == str(number)]
            said[size] = [len(s.payload) for s in of], of[-1].headers["Processor-Stream"]
        taken = {size for size in sizes if said[size] == ([5, size, 0], "end")}
        refused = {size for size in sizes if said[size] == ([5, 0], "error")}
        assert taken | refused == set(sizes)
        assert 5 in taken
        assert 600 in refused
        assert max(taken) + 2 == min(refused)
        letters = await running.dead_letters("r", len(refused))
        assert {letter.headers["x-error-code"] for letter in letters} == {"E307"}
        assert "stream TALK takes 500 (max_msg_size)" in letters[0].headers["x-dead-letter-reason"]
        assert await running.contexts("r") == {"": {"n": len(taken)}}


async def test_a_stream_that_is_too_small_for_the_end_of_a_run_gets_nothing(
    processor: Start, nats_server: EmbeddedServer
) -> None:
    """A marker would be dropped without a word: the message is a dead letter (E307) before it runs."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "TALK", "subjects": ["talk"], "max_msg_size": 60})
    route = """
    r:
      input: {subject: "ask.*", create: true}
      runnable: talk.py
      mode: stream
      output: talk
      retry: {attempts: 1}
    """
    async with processor(route, talk=TALK) as running:
        await running.publish("ask.x", {"size": 1})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E307"
        assert await running.stored("talk") == []


FULL: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "max_msgs": ({"max_msgs": 2}, "it is full (max_msgs 2, discard new)", {"max_msgs": -1}),
    "max_bytes": ({"max_bytes": 500}, "it is full (max_bytes 500, discard new)", {"max_bytes": -1}),
    "max_msgs_per_subject": (
        {"max_msgs_per_subject": 2, "discard_new_per_subject": True},
        "a subject is full (max_msgs_per_subject 2, discard new)",
        {"max_msgs_per_subject": -1, "discard_new_per_subject": False},
    ),
}


@pytest.fixture
def _copies_are_watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.delivery.watch._COPIES_S", 0.2)
    monkeypatch.setattr("processor.delivery.watch._STANDS_STILL_S", 0.5)


@pytest.mark.usefixtures("_copies_are_watched_closely")
@pytest.mark.parametrize("limit", FULL)
async def test_a_stream_that_takes_no_more_copies_is_red_and_measured(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any, limit: str
) -> None:
    """Committed outputs that a full stream refuses are named with the cause (E350); they go on with room."""
    settings, cause, room = FULL[limit]
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "OUT", "subjects": ["out"], "discard": "new", **settings})
    async with processor(ROUTE.replace('"in.>"', '"in.>", create: true'), count=COUNT) as running:
        await running.publish("in.x", *({"i": i} for i in range(5)))
        blocks = running.telemetry.readiness
        await wait_until(lambda: "copy r" in blocks.blocks, "the process is red")
        why = blocks.blocks["copy r"]
        taken = len(await running.stored("out"))
        assert 0 < taken < 5
        assert f"E350 stream OUT takes no copy of out, and {5 - taken} wait: {cause}." in why
        waiting = running.metric("processor_copy_waiting_messages", stream="OUT", subject="out")
        assert waiting == 5 - taken
        assert running.metric("processor_copy_stopped", stream="OUT", subject="out") == 1
        info = await running.broker.stream("OUT")
        assert info is not None
        await running.broker.update_stream({**info["config"], **room})
        assert [o["i"] for o in await running.documents("out", 5)] == [0, 1, 2, 3, 4]
        await wait_until(lambda: "copy r" not in blocks.blocks, "the process is ready again")
        assert running.metric("processor_copy_stopped", stream="OUT", subject="out") == 0


@pytest.mark.usefixtures("_copies_are_watched_closely")
async def test_a_stream_that_is_sealed_takes_no_more_copies_and_is_red(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """Nothing opens it again: the outputs behind the seal wait in the app's stream, counted (E350)."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "OUT", "subjects": ["out"]})
    async with processor(ROUTE.replace('"in.>"', '"in.>", create: true'), count=COUNT) as running:
        await running.publish("in.x", {"i": 0})
        await running.documents("out", 1)
        info = await running.broker.stream("OUT")
        assert info is not None
        await running.broker.update_stream({**info["config"], "sealed": True})
        await running.publish("in.x", {"i": 1}, {"i": 2})
        blocks = running.telemetry.readiness
        await wait_until(lambda: "copy r" in blocks.blocks, "the process is red")
        why = blocks.blocks["copy r"]
        assert "E350 stream OUT takes no copy of out, and 2 wait: it is sealed. Nothing opens it" in why
        assert running.metric("processor_copy_waiting_messages", stream="OUT", subject="out") == 2
        assert len(await running.stored("out")) == 1


async def test_streams_of_subjects_that_make_one_name_are_two(processor: Start) -> None:
    """A name that is taken by the stream of another subject, or that no stream can have, is made distinct."""
    routes = """
    a:
      input: {subject: "spBv1//0.>", create: true}
      runnable: count.py
      output: a-b
    b:
      input: {subject: a-b}
      runnable: count.py
      output: a.b
    """
    async with processor(routes, count=COUNT) as running:
        await running.until_ready()
        await running.publish("spBv1//0.x", {"i": 1})
        assert await running.documents("a.b", 1) == [{"i": 1, "n": 1}]
        names = [await running.broker.find_stream(subject) for subject in ("a-b", "a.b", "spBv1//0.>")]
        assert len(set(names)) == 3
        assert "app-a-b" in names
        assert await problems_of(running) == []


async def test_created_streams_have_limits(processor: Start, nats_server: EmbeddedServer) -> None:
    """Streams that are made are bounded by age and size, as the configuration says; those there stay."""
    routes = """
    r:
      input: {subject: "in.>", create: {max_age: 2d, max_bytes: 1MiB}}
      runnable: count.py
      output: {subject: out, max_age: 1d, max_bytes: 2MiB}
      events: {subject: events, level: all}
    s:
      input: {subject: two, create: {max_age: 0s, max_bytes: 0}}
      runnable: count.py
      output: kept
    """
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "KEPT", "subjects": ["kept"]})
    async with processor(routes, count=COUNT) as running:
        await running.until_ready()
        found = {}
        for subject in ("in.>", "out", "events", "two", "kept"):
            info = await running.broker.stream_of(subject)
            assert info is not None
            config = info["config"]
            found[subject] = (config["max_age"] // (86_400 * NS), config["max_bytes"], config["discard"])
        assert found["in.>"] == (2, 1 << 20, "old")
        assert found["out"] == (1, 2 << 20, "old")
        assert found["events"][::2] == (1, "old")
        assert found["two"] == found["kept"] == (0, -1, "old")


async def test_a_default_limit_for_which_the_server_has_no_room_is_left_out(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server reserves a limit: without room streams are created without the default one, said once."""
    caplog.set_level("INFO", "processor")
    url = await serve(f'jetstream {{ store_dir: "{tmp_path}/js", max_file_store: 100MB }}')
    first = ROUTE.replace('"in.>"', '"in.>", create: true')
    others = "".join(
        first.replace("r:", f"r{n}:").replace("in.>", f"in{n}.>").replace(": out", f": out{n}")
        for n in range(4)
    )
    async with starter(tmp_path, url)(first + others, count=COUNT) as running:
        await running.until_ready()
        assert [line.message for line in caplog.records if "max_bytes" in line.message] == [
            "the server cannot reserve 10 GiB for a stream: they are created without max_bytes"
        ]
        info = await running.broker.stream_of("in.>")
        assert info is not None
        assert info["config"]["max_bytes"] == -1
        assert info["config"]["max_age"] == 7 * 86_400 * NS
    own = ROUTE.replace('"in.>"', '"other.>", create: {max_bytes: 10GiB}').replace(
        "output: out", "output: o2"
    )
    async with starter(tmp_path, url)(own, app="b", count=COUNT) as running:
        await blocked(running, "E408", "insufficient storage", "lower max_bytes")


async def test_routes_that_start_together_reserve_no_more_than_the_server_has(
    serve: Serve, tmp_path: Path
) -> None:
    """Two of forty streams get the default limit, as many as there is room for, and the others are made."""
    url = await serve(f'jetstream {{ store_dir: "{tmp_path}/js", max_file_store: {25 << 30} }}')
    route = ROUTE.replace('"in.>"', '"in.>", create: true')
    routes = "".join(
        route.replace("r:", f"r{n}:").replace("in.>", f"in{n}.>").replace(": out", f": out{n}")
        for n in range(20)
    )
    async with starter(tmp_path, url)(routes, count=COUNT) as running:
        await running.until_ready()
        made = [
            info["config"] for info in await running.broker.streams() if info["config"]["name"] != "P_app"
        ]
        assert sorted(config["max_bytes"] for config in made) == [-1] * 38 + [10 << 30] * 2


async def test_what_is_dropped_soon_is_said_before_it_is_gone(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A paused route that comes near the limits of its input is measured, logged, and told to listeners."""
    monkeypatch.setattr("processor.operate.retention._INPUTS_S", 0.1)
    route = ROUTE.replace('"in.>"', '"in.>", create: true') + "  events: events\n"
    async with processor(route, count=COUNT) as running:
        await running.until_ready()
        await running.publish("in.x", {"i": 0})
        await running.documents("out", 1)
        info = await running.broker.stream_of("in.>")
        assert info is not None
        await running.broker.update_stream({**info["config"], "max_msgs": 10})
        await running.until_ready()
        await running.broker.client.request("ctl.app.api.pause", b'{"route": "r", "by": "ann"}', timeout=5)
        await wait_until(lambda: running.metric("processor_route_paused", route="r") == 1, "it is paused")
        name = "processor_input_retention_used_ratio"
        await running.publish("in.x", *({"i": i} for i in range(5)))
        await wait_until(lambda: running.metric(name, route="r") == 0.5, "five of ten wait")
        assert "drops messages soon" not in caplog.text
        await running.publish("in.x", *({"i": i} for i in range(4)))
        [event] = await running.documents("events", 1)
        assert (event["event"], event["used"]) == ("retention", "0.90")
        assert caplog.text.count("drops messages soon") == 1
        assert running.telemetry.readiness.blocks == {}


async def test_an_account_that_fills_up_is_measured_and_said(
    serve: Serve, tmp_path: Path, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 85 % of its storage the account's share is a metric, a line of the log and an event."""
    monkeypatch.setattr("processor.operate.retention._STORAGE_S", 0.2)
    users = 'users: [{user: "u", password: "p"}], jetstream: {max_file: 1MB, max_mem: -1}'
    store = f'jetstream {{ store_dir: "{tmp_path}/js" }}'
    url = await serve(f"{store}\naccounts {{ A {{ {users} }} }}")
    url = url.replace("nats://", "nats://u:p@")
    route = ROUTE.replace('"in.>"', '"in.>", create: true') + "  events: events\n"
    async with starter(tmp_path, url)(route, count=COUNT) as running:
        await running.until_ready()
        ratio = "processor_storage_used_ratio"
        await wait_until(lambda: 0 < running.metric(ratio) < 0.5, "little is used")
        await running.publish("in.x", {"i": 1})
        await running.documents("out", 1)
        await wait_until(
            lambda: running.metric("processor_app_stream_messages", kind="out") == 1, "one output"
        )
        assert running.metric("processor_app_stream_bytes") > 0
        await running.broker.create_stream({"name": "BIG", "subjects": ["big"]})
        await running.publish("big", b"x" * 900_000)
        await wait_until(lambda: running.metric(ratio) > 0.85, "most is used")
        [event] = await running.documents("events", 1)
        assert event["event"] == "storage"


async def test_dead_letters_are_kept_for_as_long_as_the_route_says(processor: Start, wait_until: Any) -> None:
    """`dlq.keep` is the time to live of each letter; without it they stay."""
    route = ROUTE.replace('"in.>"', '"in.>", create: true') + "  retry: {attempts: 1}\n"
    async with processor(route + "  dlq: 1s\n", count=COUNT) as running:
        await running.publish("in.x", b"not json")
        await wait_until(
            lambda: running.metric("processor_dead_letters_total", route="r") == 1, "a dead letter"
        )

        async def is_gone() -> bool:
            return await running.stored("p.app.dlq.>") == []

        await wait_until(is_gone, "it is gone")


@pytest.mark.parametrize("what", ["output", "events"])
async def test_a_stream_that_acknowledges_nothing_is_refused_where_it_cannot_copy(
    processor: Start, nats_server: EmbeddedServer, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody would know whether it has an output: route and check say so, and how to go on (E408)."""
    silent = {"name": "OWN", "subjects": ["own.>"], "allow_msg_schedules": True, "no_ack": True}
    async with connected(nats_server.url) as broker:
        made = await broker.create_stream(silent)
    lines = {
        "output": "  output: own.out\n",
        "events": "  output: out\n  events: {subject: own.events, level: all}\n",
    }
    route = ROUTE.replace('"in.>"', '"in.>", create: true').replace("  output: out\n", lines[what])
    async with processor(route, count=COUNT) as running:
        why = await blocked(running, "E408", "stream OWN", "no_ack", "route r", "nats stream edit")
        assert await problems_of(running) == [why]
        assert [record.message for record in caplog.records].count(why) == 1
        assert sum("stream OWN cannot copy" in record.message for record in caplog.records) == 1
        await running.broker.update_stream({**made["config"], "no_ack": False})
        await running.until_ready()
        await running.publish("in.x", {"i": 1})
        subject = {"output": "own.out", "events": "out"}[what]
        assert await running.documents(subject, 1) == [{"i": 1, "n": 1}]
        await running.broker.update_stream(made["config"])
        await blocked(running, "E408", "stream OWN", "no_ack")


async def test_a_stream_that_copies_need_not_acknowledge(
    processor: Start, nats_server: EmbeddedServer
) -> None:
    """What the app has committed is copied from there, whatever the stream says to others."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "OUT", "subjects": ["out"], "no_ack": True})
    async with processor(ROUTE.replace('"in.>"', '"in.>", create: true'), count=COUNT) as running:
        await running.publish("in.x", *({"i": i} for i in range(3)))
        assert [o["i"] for o in await running.documents("out", 3)] == [0, 1, 2]
        assert await problems_of(running) == []


async def test_an_app_stream_that_acknowledges_nothing_is_refused(
    processor: Start, nats_server: EmbeddedServer
) -> None:
    """No commit would ever be certain: a start says what is wrong with the stream (E410)."""
    async with processor(ROUTE.replace('"in.>"', '"in.>", create: true'), count=COUNT) as running:
        await running.until_ready()
        made = await running.broker.stream("P_app")
        assert made is not None
    async with connected(nats_server.url) as broker:
        await broker.update_stream({**made["config"], "no_ack": True})
        with pytest.raises(BrokerError, match="E410 stream P_app exists with no_ack"):
            await Streams(broker, load(running.path, {"NATS_URL": broker.address})).prepare()
        assert any("E410 stream P_app exists with no_ack" in said for said in await problems_of(running))
