"""What a route does with messages, good and bad, from publish to what others can read."""

from __future__ import annotations

import asyncio
import random
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.embedded import EmbeddedServer
from processor.errors import Faults, ProcessorError
from processor.jetstream import ApiError, Broker, Outgoing
from processor.model import Group, Outcome
from processor.sandbox.host import Guest
from tests.conftest import waited
from tests.running import Start, connected, is_empty, pretend_jail

COUNT = """
class Runnable:
    def init(self):
        self.context["n"] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["n"] += 1
            if query.get("fail"):
                raise ValueError(f"cannot do {query['fail']}")
            outputs.append({**query, "n": self.context["n"]})
        return outputs
"""
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  output: out
"""


async def test_outputs_events_and_context_come_out_together(processor: Start, wait_until: Any) -> None:
    """Documents in, documents out in order, the context counts them, and metrics agree."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(100)))
        outputs = await running.documents("out", 100)
        assert outputs == [{"i": i, "n": i + 1} for i in range(100)]
        assert await running.contexts("r") == {"": {"n": 100}}
        await wait_until(
            lambda: running.metric("processor_committed_messages_total", route="r") == 100, "all are counted"
        )
        assert running.metric("processor_outputs_total", route="r") == 100


async def test_routes_that_start_together_share_streams(
    processor: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever makes a stream first, says so, all that write to it or read it find it, and nothing is lost."""
    caplog.set_level("INFO", "processor")
    makers = "".join(
        f"""
        r{number}:
          input: {{subject: "in.{number}.*", create: true}}
          runnable: count.py
          output: "sums.{{i}}"
        """
        for number in range(12)
    )
    readers = """
        reader:
          input: {subject: "sums.*", create: true}
          runnable: count.py
          output: read
        narrow:
          input: {subject: "sums.7", create: true}
          runnable: count.py
          output: narrow
        """ + "".join(
        f"""
        shared{number}: {{input: {{subject: shared.*, create: true}}, runnable: count.py}}
        """
        for number in range(6)
    )
    async with processor(makers + readers, count=COUNT) as running:
        await running.until_ready()
        created = [r.getMessage() for r in caplog.records if r.getMessage().startswith("created stream")]
        assert len(created) == len(set(created)) >= 17, created
        for number in range(12):
            await running.publish(f"in.{number}.a", {"i": number})
        assert {document["i"] for document in await running.documents("read", 12)} == set(range(12))
        assert [document["i"] for document in await running.documents("narrow", 1)] == [7]


async def test_everything_that_is_wrong_with_runnables_is_told_at_a_start(processor: Start) -> None:
    """Routes with the same source are told of once."""
    route = "{input: {subject: %s.*, create: true}, runnable: %s.py}"
    routes = "".join(
        f"\n{name}: {route % (name, file)}" for name, file in (("a", "one"), ("b", "two"), ("c", "one"))
    )
    with pytest.raises(Faults) as found:
        async with processor(routes, one="import os\n" + COUNT, two=COUNT + "\neval('1')\n"):
            pass
    files = [(Path(fault.file).name, fault.code) for fault in found.value.faults]
    assert len(files) == 2
    assert {name for name, _ in files} == {"one.py", "two.py"}


async def test_a_list_of_documents_in_one_message_is_as_many_queries(processor: Start) -> None:
    """The json codec takes a document or a list of documents."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", [{"i": 1}, {"i": 2}], {"i": 3})
        assert [o["n"] for o in await running.documents("out", 3)] == [1, 2, 3]


async def test_one_poison_message_fails_alone(processor: Start) -> None:
    """Of a batch that fails, everything but the poison message succeeds, once, with the right context."""
    async with processor(ROUTE, count=COUNT) as running:
        documents: list[dict[str, Any]] = [{"i": i} for i in range(40)]
        documents[13]["fail"] = "that"
        await running.publish("in.a", *documents)
        outputs = await running.documents("out", 39)
        assert [o["i"] for o in outputs] == [i for i in range(40) if i != 13]
        assert [o["n"] for o in outputs] == list(range(1, 40))
        [letter] = await running.dead_letters("r")
        assert orjson.loads(letter.payload) == documents[13]
        headers = letter.headers
        assert headers["x-error-code"] == "E304"
        assert headers["x-error-page"] == "reference/errors/#e304"
        assert headers["x-dead-letter-reason"] == "ValueError: cannot do that"
        assert headers["x-original-subject"] == "in.a"
        assert headers["x-original-sequence"] == "14"
        assert headers["x-delivery-count"] == "3"
        assert headers["x-route"] == "r"
        traceback = orjson.loads(headers["x-error-traceback"])
        assert 'count.py", line 11, in process' in traceback
        assert 'raise ValueError(f"cannot do' in traceback
        assert await running.contexts("r") == {"": {"n": 39}}


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"not json", "E301"),
        (b"", "E301"),
        (b'{"a": NaN}', "E301"),
        (b'{"i": 1}{"i": 2}', "E301"),
        (b"\xff\xfe", "E301"),
        (b"[" * 101 + b"]" * 101, "E320"),
        (b"[" * 5000 + b"]" * 5000, "E320"),
    ],
)
async def test_what_is_not_json_becomes_a_dead_letter_and_the_route_goes_on(
    processor: Start, payload: bytes, code: str
) -> None:
    """Unreadable messages are kept with their bytes and reason, at the first try; others are unharmed."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 1}, payload, {"i": 2})
        assert [o["n"] for o in await running.documents("out", 2)] == [1, 2]
        [letter] = await running.dead_letters("r")
        assert letter.payload == payload
        assert letter.headers["x-error-code"] == code
        assert letter.headers["x-delivery-count"] == "1"


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("float('nan')", "E306"),
        ("b'bytes'", "E306"),
        ("object()", "E306"),
        ("{1, 2}", "E306"),
        ("[loop]", "E306"),
        ("'x' * 2_000_000", "E318"),
        ("['x' * 600_000] * 2", "E307"),
        ("*(['x'] * 2_000)", "E324"),
    ],
)
async def test_an_output_that_cannot_be_written_is_the_fault_of_its_message(
    processor: Start, expression: str, code: str
) -> None:
    """NaN, bytes, objects, sets, loops, too large, too many: a dead letter, and the route goes on."""
    source = f"""
    class Runnable:
        def process(self, queries):
            loop = {{}}
            loop["loop"] = loop
            outputs = []
            for query in queries:
                outputs += [{expression}] if query.get("bad") else [query]
            return outputs
    """
    async with processor(ROUTE, count=source) as running:
        await running.publish("in.a", {"i": 1}, {"bad": True}, {"i": 2})
        assert await running.documents("out", 2) == [{"i": 1}, {"i": 2}]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == code


@pytest.mark.parametrize("value", ["a b", "a.b", "*", ">", "", None, {"x": 1}])
async def test_a_field_that_is_no_subject_token_is_the_fault_of_its_message(
    processor: Start, value: Any
) -> None:
    """Spaces, dots and wildcards never reach a subject: the message is a dead letter that says why."""
    route = ROUTE.replace("output: out", 'output: "out.{to}"')
    echo = "class Runnable:\n    def process(self, queries):\n        return queries\n"
    async with processor(route, count=echo) as running:
        await running.publish("in.a", {"to": "x"}, {"to": value}, {"to": "y"})
        assert await running.documents("out.*", 2) == [{"to": "x"}, {"to": "y"}]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E308"


async def test_each_key_has_its_own_context_and_order(processor: Start) -> None:
    """A keyed route counts per key, and {key} names the subject of the output."""
    route = ROUTE.replace("output: out", "key: subject.2\n  output: out.{key}")
    async with processor(route, count=COUNT) as running:
        for i in range(50):
            await running.publish(f"in.k{i % 5}", {"i": i})
        await running.documents("out.*", 50)
        for key in range(5):
            found = await running.documents(f"out.k{key}", 10)
            assert [(o["i"], o["n"]) for o in found] == [(key + 5 * j, j + 1) for j in range(10)]
        assert await running.contexts("r") == {f"k{key}": {"n": 10} for key in range(5)}


async def test_more_keys_than_a_guest_holds_are_read_again_when_they_come_back(processor: Start) -> None:
    """Contexts are evicted after their commit and loaded again, without a difference in any count."""
    route = ROUTE.replace(
        "output: out",
        "key: subject.2\n  output: out.{key}\n  limits: {contexts: 3}\n  batch: {max_messages: 4}",
    )
    async with processor(route, count=COUNT) as running:
        for i in range(120):
            await running.publish(f"in.k{i % 12}", {"i": i})
        await running.documents("out.*", 120)
        assert await running.contexts("r") == {f"k{key}": {"n": 10} for key in range(12)}


async def test_contexts_that_are_read_ahead_are_those_that_were_committed(processor: Start) -> None:
    """While a batch runs, the contexts of the next are read: also where runs fail, and keys come and go."""
    route = ROUTE.replace(
        "output: out",
        "key: subject.2\n  partitions: 2\n  output: out.{key}\n  limits: {contexts: 12}\n"
        "  batch: {max_messages: 20}\n  retry: {attempts: 2, base_ms: 0}",
    )
    luck = random.Random(5)
    keys = [luck.randrange(60) for _ in range(1500)]
    async with processor(route, count=COUNT) as running:
        for i, key in enumerate(keys):
            failing = {"fail": "that"} if i % 97 == 96 else {}
            message = Outgoing(f"in.k{key}", orjson.dumps({"i": i, **failing}))
            await running.broker.publish(message)
        succeeding = [i for i in range(len(keys)) if i % 97 != 96]
        found: dict[int, list[int]] = {}
        for output in await running.documents("out.*", len(succeeding)):
            found.setdefault(keys[output["i"]], []).append(output["n"])
        counts = Counter(keys[i] for i in succeeding)
        assert found == {key: list(range(1, count + 1)) for key, count in counts.items()}
        assert await running.contexts("r") == {f"k{key}": {"n": count} for key, count in counts.items()}


async def test_a_large_context_costs_what_changed(processor: Start) -> None:
    """A context beyond a few kilobytes is kept by item: a commit writes the changed item only."""
    source = """
    class Runnable:
        def init(self):
            for i in range(200):
                self.context[f"item{i}"] = "x" * 500

        def process(self, queries):
            for query in queries:
                self.context[query["item"]] = query["value"]
                if query.get("delete"):
                    del self.context[query["delete"]]
            return len(self.context)
    """
    async with processor(ROUTE, count=source) as running:
        await running.publish("in.a", {"item": "item7", "value": "first"})
        await running.documents("out", 1)
        before = len(await running.stored("p.app.ctx.r.>"))
        info = await running.broker.stream("P_app")
        assert info is not None
        await running.publish("in.a", {"item": "item8", "value": "second", "delete": "item9"})
        assert await running.documents("out", 2) == [200, 199]
        later = await running.broker.stream("P_app")
        assert later is not None
        assert later["state"]["last_seq"] - info["state"]["last_seq"] == 4
        assert before == 200
        kept = (await running.contexts("r"))[""]
        assert (len(kept), kept["item7"], kept["item8"], "item9" in kept) == (199, "first", "second", False)


async def test_a_restart_continues_where_the_last_commit_stood(processor: Start) -> None:
    """Stopping and starting loses and repeats nothing."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(10)))
        await running.documents("out", 10)
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(10, 20)))
        outputs = await running.documents("out", 20)
        assert outputs == [{"i": i, "n": i + 1} for i in range(20)]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("while True: pass", "E311"),
        ("x = [0] * 400_000_000", "E313"),
        ("self.context['x'] = [1, 2, query]; raise Reject('not today')", "E305"),
        ("return 1 / 0", "E304"),
        ("self.context['f'] = print", "E309"),
        ("self.context['big'] = 'x' * 3000", "E310"),
    ],
)
async def test_a_run_over_a_limit_is_stopped_and_named(processor: Start, body: str, code: str) -> None:
    """Loops, memory, refusals and errors have their own codes; the route goes on without the message."""
    source = f"""
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.context["seen"] = query["i"]
                if query.get("bad"):
                    {body}
            return queries
    """
    route = ROUTE.replace(
        "output: out",
        "output: out\n  retry: {attempts: 1}\n"
        "  limits: {cpu_s: 0.3, wall_s: 2, memory_mb: 64, context_bytes: 2000}",
    )
    async with processor(route, count=source) as running:
        await running.publish("in.a", {"i": 1}, {"i": 2, "bad": True}, {"i": 3})
        assert await running.documents("out", 2) == [{"i": 1}, {"i": 3}]
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == code
        assert await running.contexts("r") == {"": {"seen": 3}}


async def test_user_events_and_failures_go_to_the_event_subject(processor: Start) -> None:
    """`self.event` and dead letters appear there; each message has one terminal event at level all."""
    source = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                if query["i"] == 2:
                    raise KeyError("two")
                self.event("seen", {"i": query["i"]})
            return queries
    """
    route = ROUTE.replace("output: out", "output: out\n  events: {subject: events.r, level: all}")
    async with processor(route, count=source) as running:
        await running.publish("in.a", {"i": 1}, {"i": 2}, {"i": 3})
        first, *events = await running.documents("events.r", 6)
        assert (first["event"], len(first["program"])) == ("started", 12)
        user = [(e["name"], e["data"]) for e in events if e["event"] == "user"]
        assert user == [("seen", {"i": 1}), ("seen", {"i": 3})]
        ends = sorted((e["sequence"], e["event"]) for e in events if e["event"] != "user")
        assert ends == [(1, "completed"), (2, "dead_lettered"), (3, "completed")]
        [failure] = [e for e in events if e["event"] == "dead_lettered"]
        assert (failure["code"], failure["text"], failure["attempt"]) == ("E304", "KeyError: 'two'", 3)


async def test_live_outputs_reach_those_who_listen_and_no_stream(processor: Start, wait_until: Any) -> None:
    """With durable: false outputs are sent after the commit, on their own subject, and kept nowhere."""
    route = ROUTE.replace("output: out", "output: {subject: live.out, durable: false}")
    async with processor(route, count=COUNT) as running:
        heard = await running.listen("live.out")
        await running.publish("in.a", {"i": 1}, {"i": 2})
        await wait_until(lambda: len(heard) == 2, "both outputs were heard")
        assert [orjson.loads(d.payload)["n"] for d in heard] == [1, 2]
        assert await running.broker.find_stream("live.out") is None


async def test_durable_outputs_can_be_watched_live(processor: Start, wait_until: Any) -> None:
    """What is committed for a subject is also sent to live.<app>.<subject>, for any core subscriber."""
    async with processor(ROUTE, count=COUNT) as running:
        heard = await running.listen("live.app.>")
        await running.publish("in.a", {"i": 1})
        await wait_until(lambda: heard, "the output was heard")
        assert (heard[0].subject, orjson.loads(heard[0].payload)) == ("live.app.out", {"i": 1, "n": 1})


async def test_a_stream_of_the_users_own_copies_the_outputs(
    processor: Start, nats_server: EmbeddedServer
) -> None:
    """A stream that holds the output's subject already gets the app's stream as a source; its limits stay."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "OWN", "subjects": ["own.>"], "max_msgs": 1000})
    async with processor(ROUTE.replace("output: out", "output: own.out"), count=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(10)))
        outputs = await running.documents("own.out", 10)
        assert [o["n"] for o in outputs] == list(range(1, 11))
        info = await running.broker.stream("OWN")
        assert info is not None
        assert [s["name"] for s in info["config"]["sources"]] == ["P_app"]
        assert info["config"]["max_msgs"] == 1000


async def test_a_stream_that_cannot_copy_is_published_to_and_deduplicates(
    processor: Start, nats_server: EmbeddedServer
) -> None:
    """A stream with schedules takes no sources: outputs go to it before the commit, each with its own id."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "OWN", "subjects": ["own.>"], "allow_msg_schedules": True})
    async with processor(ROUTE.replace("output: out", "output: own.out"), count=COUNT) as running:
        await running.publish("in.a", *({"i": i} for i in range(10)))
        assert [o["n"] for o in await running.documents("own.out", 10)] == list(range(1, 11))
        info = await running.broker.stream("OWN")
        assert info is not None
        assert not info["config"].get("sources")
        source = await running.broker.find_stream("in.*")
        for sequence in range(1, 11):
            again = {"Nats-Msg-Id": f"r:{source}:{sequence}:0"}
            await running.broker.publish_stored(Outgoing("own.out", b"again", again))
        assert len(await running.stored("own.out")) == 10


async def test_nothing_is_delayed_on_its_way_to_a_stream_that_cannot_copy(
    processor: Start, nats_server: EmbeddedServer
) -> None:
    """What is emitted there goes before the commit, with an id; a delay is refused (E327)."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "OWN", "subjects": ["own.>"], "allow_msg_schedules": True})
    send = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.emit("own.x", query, query["delay_s"])
    """
    route = """
    r:
      input: {subject: "in.*", create: true}
      runnable: send.py
      emits: own.x
      retry: {attempts: 1}
    """
    async with processor(route, send=send) as running:
        await running.publish("in.a", {"delay_s": 0}, {"delay_s": 60}, {"delay_s": 0})
        assert await running.documents("own.x", 2) == [{"delay_s": 0}] * 2
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E327"
        assert "own.x cannot be delayed" in letter.headers["x-dead-letter-reason"]
        assert await running.stored("p.app.emit.>") == []


@pytest.mark.parametrize("retention", ["workqueue", "interest"])
async def test_a_queue_is_acknowledged_after_the_commit(
    processor: Start, wait_until: Any, retention: str
) -> None:
    """The stream deletes what is done, dead letters included, and keeps what is not."""
    async with processor(ROUTE.replace(", create: true", ""), count=COUNT) as running:
        await running.broker.create_stream({"name": "IN", "subjects": ["in.*"], "retention": retention})
        await wait_until(lambda: running.telemetry.readiness.blocks == {}, "the route has started")
        await wait_until(lambda: running.broker.consumers("IN"), "the consumer exists")
        await running.publish("in.a", *({"i": i} for i in range(20)), b"not json")
        assert [o["n"] for o in await running.documents("out", 20)] == list(range(1, 21))
        await running.dead_letters("r")
        await wait_until(partial(is_empty, running.broker, "IN"), "the queue is empty")


async def test_stream_mode_sends_chunks_as_they_are_made(processor: Start, wait_until: Any) -> None:
    """Chunks, then the end marker after the commit; text goes as it is, documents as JSON."""
    source = """
    class Runnable:
        def process_stream(self, query):
            self.context["n"] = self.context.get("n", 0) + 1
            yield "hello "
            yield None
            yield {"name": query["name"]}
    """
    route = """
    r:
      input: {subject: "in.*", create: true}
      runnable: talk.py
      mode: stream
      output: {subject: "talk.{session}", durable: false}
    """
    async with processor(route, talk=source) as running:
        heard = await running.listen("talk.*")
        await running.publish("in.a", {"name": "Ada", "session_id": "S1"})
        await wait_until(lambda: len(heard) == 3, "chunks and marker were heard")
        assert [d.subject for d in heard] == ["talk.S1"] * 3
        assert [d.payload for d in heard] == [b"hello ", b'{"name":"Ada"}', b""]
        assert [d.headers.get("Processor-Chunk") for d in heard] == ["1", "2", None]
        assert heard[2].headers["Processor-Stream"] == "end"
        assert await running.contexts("r") == {"": {"n": 1}}
        await running.publish("in.a", {"name": "Eve", "session_id": "not a token"})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E308"


async def test_a_failure_in_stream_mode_is_visible_to_listeners(processor: Start, wait_until: Any) -> None:
    """Each failed try ends with an error marker; the next try starts over with a higher attempt number."""
    source = """
    class Runnable:
        def process_stream(self, query):
            yield "one"
            raise RuntimeError("broken")
    """
    route = """
    r:
      input: {subject: "in.*", create: true}
      runnable: talk.py
      mode: stream
      output: {subject: talk, durable: false}
      retry: {attempts: 2}
    """
    async with processor(route, talk=source) as running:
        heard = await running.listen("talk")
        await running.publish("in.a", {"i": 1})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-dead-letter-reason"] == "RuntimeError: broken"
        await wait_until(lambda: len(heard) == 4, "two tries were heard")
        assert [d.headers.get("Processor-Stream") for d in heard] == [None, "error", None, "error"]
        assert [d.headers["Processor-Attempt"] for d in heard] == ["1", "1", "2", "2"]


async def test_a_chunk_that_no_message_can_carry_is_a_failure(processor: Start) -> None:
    """A chunk above the server's max_payload ends the run; the route goes on with the next message."""
    source = """
    class Runnable:
        def process_stream(self, query):
            self.context["n"] = self.context.get("n", 0) + 1
            yield ["x" * query["size"], "x" * query["size"]]
    """
    route = """
    r:
      input: {subject: "in.*", create: true}
      runnable: talk.py
      mode: stream
      output: {subject: talk, durable: false}
      retry: {attempts: 1}
    """
    async with processor(route, talk=source) as running:
        await running.publish("in.a", {"size": 1}, {"size": 600_000}, {"size": 2})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E307"

        async def both_counted() -> bool:
            return await running.contexts("r") == {"": {"n": 2}}

        await waited(both_counted, "the other two are counted")


async def test_lines_of_log_over_the_limit_are_dropped_and_counted(
    processor: Start, caplog: pytest.LogCaptureFixture, wait_until: Any
) -> None:
    """One warning says how many, and so does a metric; the message is done all the same."""
    source = """
    class Runnable:
        def process(self, queries):
            for n in range(30):
                print("line", n)
            return queries
    """
    caplog.set_level("INFO", "processor.runnable")
    async with processor(ROUTE + "  limits: {log_lines: 20}\n", count=source) as running:
        await running.publish("in.a", {"i": 1})
        assert await running.documents("out", 1) == [{"i": 1}]
        await wait_until(
            lambda: running.metric("processor_log_lines_dropped_total", route="r") == 10, "ten are counted"
        )
    said = [record.getMessage() for record in caplog.records if record.name == "processor.runnable"]
    assert said[:20] == [f"line {n}" for n in range(20)]
    [dropped] = said[20:]
    assert dropped.startswith("E321 dropped 10 of the run's lines of log")


async def test_a_reload_runs_the_new_version_and_keeps_the_context(processor: Start) -> None:
    """A changed Runnable takes over between two batches; counts go on."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 1})
        await running.documents("out", 1)
        changed = COUNT.replace("{**query, ", '{"version": 2, **query, ')
        assert await running.reload(count=changed) == ["r"]
        assert await running.reload() == []
        await running.publish("in.a", {"i": 2})
        assert (await running.documents("out", 2))[1] == {"version": 2, "i": 2, "n": 2}


async def test_a_version_that_does_not_compile_leaves_the_old_one_running(processor: Start) -> None:
    """All faults are said with file, line and column; nothing changes."""
    async with processor(ROUTE, count=COUNT) as running:
        source = "import os\nclass Runnable:\n    def process(self, queries):\n        exec('1')\n"
        with pytest.raises(Faults) as refused:
            await running.reload(count=source)
        assert [(f.line, f.code) for f in refused.value.faults] == [(1, "E203"), (4, "E202")]
        await running.publish("in.a", {"i": 1})
        assert await running.documents("out", 1) == [{"i": 1, "n": 1}]


async def test_a_reload_cannot_change_what_needs_a_restart(processor: Start) -> None:
    """The app's name and the server are fixed while it runs; the error says so."""
    async with processor(ROUTE, count=COUNT) as running:
        running.path.write_text(running.path.read_text().replace("app: app", "app: other"))
        with pytest.raises(ProcessorError, match="E106 app changed, which a reload cannot apply"):
            await running.reload()


async def test_a_route_without_input_stream_waits_for_it(processor: Start, wait_until: Any) -> None:
    """E401 in readiness until somebody creates the stream; then the route starts by itself."""
    async with processor(ROUTE.replace(", create: true", ""), count=COUNT) as running:
        await wait_until(
            lambda: "E401 no stream holds 'in.*'" in running.telemetry.readiness.blocks.get("route r", ""),
            "readiness says what is missing",
        )
        await running.broker.create_stream({"name": "IN", "subjects": ["in.*"]})
        await running.publish("in.a", {"i": 1})
        assert await running.documents("out", 1) == [{"i": 1, "n": 1}]
        assert running.telemetry.readiness.blocks == {}


async def test_a_commit_that_the_server_refuses_stops_the_route_and_skips_nothing(
    processor: Start, wait_until: Any
) -> None:
    """The refusal is said in readiness; when its cause is gone the route goes on by itself."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await running.documents("out", 1)
        info = await running.broker.stream("P_app")
        assert info is not None
        await running.broker.update_stream({**info["config"], "max_msg_size": 600})
        await running.publish("in.a", *({"i": i, "pad": "x" * 500} for i in range(1, 5)))
        await wait_until(
            lambda: "E406" in running.telemetry.readiness.blocks.get("route r", ""),
            "it says so",
        )
        await running.broker.update_stream({**info["config"], "max_msg_size": -1})
        outputs = await running.documents("out", 5)
        assert [o["n"] for o in outputs] == [1, 2, 3, 4, 5]
        await wait_until(lambda: running.telemetry.readiness.blocks == {}, "the route is ready again")


async def test_a_lost_server_is_waited_for(
    processor: Start, nats_server: EmbeddedServer, wait_until: Any
) -> None:
    """Readiness is red while it is gone; nothing that was published is lost when it returns."""
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await running.documents("out", 1)
        nats_server.kill()
        await wait_until(lambda: "nats" in running.telemetry.readiness.blocks, "readiness is red")
        nats_server.restart()
        await wait_until(lambda: running.telemetry.readiness.blocks == {}, "readiness is green", 20)
        await running.broker.connected()
        await running.publish("in.a", {"i": 1})
        assert await running.documents("out", 2) == [{"i": 0, "n": 1}, {"i": 1, "n": 2}]


async def test_a_message_of_the_largest_size_survives_as_a_dead_letter(processor: Start) -> None:
    """Payload and added headers exceed the server's limit together: the dead letter has parts."""
    async with processor(ROUTE, count=COUNT) as running:
        payload = b"x" * (running.broker.max_payload)
        await running.publish("in.a", payload)
        first, second = await running.dead_letters("r", 2)
        assert first.payload + second.payload == payload
        assert (first.headers["x-part"], second.headers["x-part"]) == ("1/2", "2/2")
        assert first.headers["x-error-code"] == "E301"


async def test_a_jail_below_the_configured_level_refuses_to_start(processor: Start, monkeypatch: Any) -> None:
    """The error says what level was reached, and which layer is off for which reason."""
    pretend_jail(monkeypatch, {"rlimits": "on", "seccomp": "off(EPERM)"})
    with pytest.raises(ProcessorError, match=r"E501 .* level process, below .*seccomp: off"):
        async with processor(ROUTE, count=COUNT):
            pass


async def test_a_message_that_waits_for_its_next_try_does_not_hold_up_a_stop(processor: Start) -> None:
    """What came before it is committed; it and what follows are done, in order, by the next start."""
    source = """
    class Runnable:
        def init(self):
            self.context["n"] = 0

        def process(self, queries):
            outputs = []
            for query in queries:
                if query["i"] == 1 and VERSION == 1:
                    raise Retry(after_s=3600)
                self.context["n"] += 1
                outputs.append({**query, "n": self.context["n"]})
            return outputs
    """
    route = f"{ROUTE}  retry: {{then: block}}\n"
    async with processor(route, count="VERSION = 1\n" + textwrap.dedent(source)) as running:
        await running.publish("in.a", *({"i": i} for i in range(3)))
        await running.documents("out", 1)
        assert await running.service.stop()
    async with processor(route, count="VERSION = 2\n" + textwrap.dedent(source)) as running:
        assert await running.documents("out", 3) == [{"i": i, "n": i + 1} for i in range(3)]


async def test_messages_are_processed_while_a_commit_is_under_way(processor: Start) -> None:
    """A flood is committed in far fewer commits than messages."""
    async with processor(ROUTE, count=COUNT) as running:
        await asyncio.gather(*(running.publish("in.a", {"i": i}) for i in range(500)))
        await running.documents("out", 500)
        position = [s async for s in running.broker.history("P_app", ["p.app.pos.r.0"])]
        assert len(position) == 1
        info = await running.broker.stream("P_app")
        assert info is not None
        assert info["state"]["last_seq"] < 500 + 250


@pytest.mark.parametrize("max_wait_ms", [0, 60_000])
async def test_a_batch_waits_for_more_only_while_a_commit_is_under_way(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch, max_wait_ms: int
) -> None:
    """What comes meanwhile runs at once without `max_wait_ms`, and otherwise together when it is done."""
    is_held, goes_on = asyncio.Event(), asyncio.Event()

    class Held(Broker):
        async def commit(self, messages: Sequence[Outgoing], *, batch: str = "") -> int:
            if any(".out." in message.subject for message in messages):
                is_held.set()
                await goes_on.wait()
            return await super().commit(messages, batch=batch)

    ran: list[int] = []  # messages of each run; metrics tell of a run when it is committed
    run = Guest.run

    async def counted(guest: Guest, groups: Sequence[Group], **beside: Any) -> Outcome:
        outcome = await run(guest, groups, **beside)
        ran.append(sum(len(group.documents) for group in groups))
        return outcome

    monkeypatch.setattr("processor.service.Broker", Held)
    monkeypatch.setattr(Guest, "run", counted)
    async with processor(f"{ROUTE}  batch: {{max_wait_ms: {max_wait_ms}}}", count=COUNT) as running:

        async def has_all() -> bool:
            [reading] = await running.broker.consumers(str(await running.broker.find_stream("in.a")))
            return bool(reading["delivered"]["stream_seq"] == 4)

        await running.publish("in.a", {"i": 0})  # nothing is under way: it does not wait
        await wait_until(is_held.is_set, "its commit is under way")
        await running.publish("in.a", {"i": 1})
        if not max_wait_ms:
            await wait_until(lambda: ran == [1, 1], "the second message has run")
        await running.publish("in.a", {"i": 2}, {"i": 3})
        await wait_until(has_all, "all messages have been sent")
        if max_wait_ms:
            assert ran == [1]
        goes_on.set()
        assert [document["i"] for document in await running.documents("out", 4)] == [0, 1, 2, 3]
        if max_wait_ms:
            assert ran == [1, 3]


@pytest.mark.parametrize("is_alone", [True, False])
async def test_process_gets_one_message_at_a_time_where_calls_are_alone(
    processor: Start, *, is_alone: bool
) -> None:
    """Of a key whose messages come in one batch, too; without `limits.calls_alone` it gets them together."""
    work = """
class Runnable:
    def process(self, queries):
        if any(query.get("slow") for query in queries):
            sum(range(60_000_000))
        return [[query["i"] for query in queries]]
"""
    route = f"""
r:
  input: {{subject: "in.*", create: true}}
  runnable: work.py
  key: subject.2
  output: out.{{key}}
  limits: {{calls_alone: {str(is_alone).lower()}}}
"""
    async with processor(route, work=work) as running:
        await running.publish("in.slow", {"i": 0, "slow": True})
        taken = "processor_received_messages_total"
        await waited(lambda: running.metric(taken, route="r") == 1, "what comes now is one batch")
        await running.publish("in.k", *({"i": i} for i in range(1, 4)))
        together = [[1], [2], [3]] if is_alone else [[1, 2, 3]]
        assert await running.documents("out.k", len(together)) == together


async def test_what_has_run_is_committed_though_its_input_is_gone(
    processor: Start, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is deleted while a commit is under way ends the route behind that commit."""
    is_held, goes_on = asyncio.Event(), asyncio.Event()

    class Held(Broker):
        async def commit(self, messages: Sequence[Outgoing], *, batch: str = "") -> int:
            if any(".out." in message.subject for message in messages):
                is_held.set()
                await goes_on.wait()
            return await super().commit(messages, batch=batch)

        async def api(self, name: str, body: Any = None) -> dict[str, Any]:
            try:
                return await super().api(name, body)
            except ApiError:
                if name.startswith("CONSUMER.CREATE.app-in-any"):  # the reader hears it first
                    asyncio.get_running_loop().call_later(0.2, goes_on.set)
                raise

    monkeypatch.setattr("processor.service.Broker", Held)
    async with processor(ROUTE, count=COUNT) as running:
        await running.publish("in.a", {"i": 0})
        await wait_until(is_held.is_set, "its commit is under way")
        await running.broker.api("STREAM.DELETE.app-in-any")
        assert [document["i"] for document in await running.documents("out", 1)] == [0]
