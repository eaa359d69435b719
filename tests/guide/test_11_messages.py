"""Chapter 11: `self.messages` says where each query came from, and says the same at every try."""

from __future__ import annotations

from typing import Any

import pytest

from processor.embedded import EmbeddedServer
from processor.jetstream import Outgoing
from processor.model import RawHeaders
from processor.operate.dead_letters import DeadLetters, Filter
from tests.conftest import waited
from tests.running import Running, Start, connected

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: show.py
  key: subject.2
  output: seen
  retry: {attempts: 2, base_ms: 0}
"""
SHOW = """
class Runnable:
    def process(self, queries):
        seen = []
        for query, message in zip(queries, self.messages):
            if query.get("fails", 0) >= message.attempt:
                raise ValueError(f"at try {message.attempt}")
            seen.append({
                "query": query, "key": message.key, "subject": message.subject, "stream": message.stream,
                "sequence": message.sequence, "attempt": message.attempt, "index": message.index,
                "headers": dict(message.headers), "age_s": time.time() - message.time.timestamp(),
            })
        return seen
"""


def seen(documents: list[Any], *names: str) -> list[list[Any]]:
    assert all(0 <= document["age_s"] < 600 for document in documents)
    return [[document[name] for name in names] for document in documents]


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_message_says_where_it_came_from(processor: Start, language: str) -> None:
    """Key, subject, stream, sequence, time and headers are the message's; a list is there item by item."""
    async with processor(f"{ROUTE}  language: {language}\n", show=SHOW) as running:
        await running.publish("in.a", {"n": 1}, headers={"trace": "t-1", "Nats-Msg-Id": "id-1"})
        await running.publish("in.b", [{"n": 2}, {"n": 3}])
        found = await running.documents("seen", 3)
        stream = await running.broker.find_stream("in.*")
    found.sort(key=lambda document: document["query"]["n"])
    assert seen(found, "key", "subject", "stream", "sequence", "attempt", "index", "headers") == [
        ["a", "in.a", stream, 1, 1, 0, {"trace": "t-1"}],
        ["b", "in.b", stream, 2, 1, 0, {}],
        ["b", "in.b", stream, 2, 1, 1, {}],
    ]


@pytest.mark.parametrize("wait_ms", [0, 3000], ids=["in memory", "at the server"])
async def test_a_message_that_is_tried_again_says_so(processor: Start, wait_ms: int) -> None:
    """The second try has attempt 2, and the subject, sequence, stream and headers of the first."""
    route = ROUTE.replace("base_ms: 0", f"base_ms: {wait_ms}, strategy: fixed")
    async with processor(route, show=SHOW) as running:
        await running.publish("in.a", {"fails": 1}, headers={"trace": "t-1"})
        found = await running.documents("seen", 1)
        stream = await running.broker.find_stream("in.*")
    assert seen(found, "subject", "stream", "sequence", "attempt", "headers") == [
        ["in.a", stream, 1, 2, {"trace": "t-1"}]
    ]


@pytest.mark.parametrize("repartition", ["false", "true"])
async def test_a_redriven_message_is_itself(processor: Start, repartition: str) -> None:
    """A dead letter that is redriven, and one that was dealt to its partition, names its input's stream."""
    route = ROUTE.replace("create: true", f"create: true, repartition: {repartition}")
    async with processor(route, show=SHOW) as running:
        await running.publish("in.a", {}, {"fails": 9}, headers={"trace": "t-1"})
        await running.dead_letters("r")
        await running.reload(show=SHOW.replace('query.get("fails", 0)', "0"))
        letters = DeadLetters(running.broker, "app")
        [letter] = [letter async for letter in letters.find(Filter(route="r"))]
        assert await letters.redrive(letter)
        found = await running.documents("seen", 2)
        stream = await running.broker.find_stream("in.*")
    assert seen(found, "subject", "stream", "sequence", "attempt", "headers") == [
        ["in.a", stream, 1, 1, {"trace": "t-1"}],
        ["in.a", stream, 2, 1, {"trace": "t-1"}],
    ]


KV = """
r:
  input: {subject: "$KV.cfg.>", delete_markers: pass}
  runnable: show.py
  key: subject.3
  output: seen
"""
SAY = """
class Runnable:
    def process(self, queries):
        for query, message in zip(queries, self.messages):
            said = message.headers.get("KV-Operation") or message.headers.get("Nats-Marker-Reason")
            yield [message.subject, message.sequence, query, said]
"""


async def bucket_of(running: Running) -> None:
    """A KV bucket as `nats kv add --ttl --marker-ttl` makes it, with values, delete markers and an expiry."""
    for name, headers, payload in (
        ("color", {}, b'"red"'),
        ("empty", {}, b""),
        ("color", {"KV-Operation": "DEL"}, b""),
        ("size", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}, b""),
        ("soon", {"Nats-TTL": "1s"}, b"1"),
    ):
        await running.broker.publish_stored(Outgoing(f"$KV.cfg.{name}", payload, RawHeaders.of(headers)))


CFG = {
    "name": "KV_cfg", "subjects": ["$KV.cfg.>"], "allow_rollup_hdrs": True, "allow_msg_ttl": True,
    "subject_delete_marker_ttl": 1_000_000_000, "max_msgs_per_subject": 64, "allow_direct": True,
}  # fmt: skip


@pytest.mark.parametrize("repartition", ["false", "true"])
async def test_a_delete_marker_is_told_from_a_value(
    processor: Start, nats_server: EmbeddedServer, repartition: str
) -> None:
    """A delete, a purge and an expiry are null, and headers say which; an empty value is a dead letter."""
    async with connected(nats_server.url) as broker:
        await broker.api("STREAM.CREATE.KV_cfg", CFG)
    route = KV.replace("delete_markers", f"repartition: {repartition}, delete_markers")
    async with processor(route, show=SAY) as running:
        await bucket_of(running)
        found = await running.documents("seen", 5)
        [letter] = await running.dead_letters("r")
    assert sorted(found, key=lambda row: int(row[1])) == [
        ["$KV.cfg.color", 1, "red", None],
        ["$KV.cfg.color", 3, None, "DEL"],
        ["$KV.cfg.size", 4, None, "PURGE"],
        ["$KV.cfg.soon", 5, 1, None],
        ["$KV.cfg.soon", 6, None, "MaxAge"],
    ]
    assert letter.headers["x-original-subject"] == "$KV.cfg.empty"
    assert letter.headers["x-error-code"] == "E301"
    assert letter.headers["x-dead-letter-reason"] == (
        "the message is empty, which is not JSON; `codec: raw` takes any bytes"
    )


async def test_delete_markers_may_be_skipped(processor: Start, nats_server: EmbeddedServer) -> None:
    """They are settled without a run, with any codec; an empty value is a value."""
    async with connected(nats_server.url) as broker:
        await broker.api("STREAM.CREATE.KV_cfg", CFG)
    route = KV.replace("delete_markers: pass", "codec: raw, delete_markers: skip")
    async with processor(route, show=SAY) as running:
        await bucket_of(running)
        await waited(
            lambda: running.metric("processor_committed_messages_total", route="r") >= 6,
            "all six are settled",
        )
        found = await running.documents("seen", 3)
    assert [[row[1], row[2]["data"]] for row in sorted(found, key=lambda row: int(row[1]))] == [
        [1, '"red"'],
        [2, ""],
        [5, "1"],
    ]
