"""Chapter 5: in stream mode listeners get each chunk as it is made; what is kept is still one commit."""

from __future__ import annotations

from typing import Any

import orjson

from tests.running import Start

ROUTE = """
r:
  input: {subject: "ask.*", create: true}
  runnable: talk.py
  mode: stream
  output: {subject: "talk.{subject.2}", durable: false}
  retry: {attempts: 2}
"""


async def test_chunks_are_numbered_and_end_with_a_marker(processor: Start, wait_until: Any) -> None:
    """Text goes as it is, anything else as JSON, None not at all; the marker follows the commit."""
    talk = """
    class Runnable:
        def process_stream(self, query):
            yield "Hello "
            yield None
            yield {"name": query["name"]}
    """
    async with processor(ROUTE, talk=talk) as running:
        heard = await running.listen("talk.*")
        await running.publish("ask.1", {"name": "Ada"})
        await wait_until(lambda: len(heard) == 3, "two chunks and the marker were heard")
        assert [d.payload for d in heard] == [b"Hello ", b'{"name":"Ada"}', b""]
        assert [d.headers.get("Processor-Chunk") for d in heard] == ["1", "2", None]
        assert [d.headers.get("Processor-Stream") for d in heard] == [None, None, "end"]
        assert {d.headers["Processor-Sequence"] for d in heard} == {"1"}


async def test_a_failed_try_is_visible_to_listeners(processor: Start, wait_until: Any) -> None:
    """It ends with an error marker; the next one has a higher attempt and starts over, context included."""
    talk = """
    class Runnable:
        def process_stream(self, query):
            self.context["n"] = self.context.get("n", 0) + 1
            yield str(self.context["n"])
            raise RuntimeError("out of words")
    """
    async with processor(ROUTE, talk=talk) as running:
        heard = await running.listen("talk.*")
        await running.publish("ask.1", {})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-dead-letter-reason"] == "RuntimeError: out of words"
        await wait_until(lambda: len(heard) == 4, "two tries were heard")
        assert [d.payload for d in heard] == [b"1", b"", b"1", b""]
        assert [d.headers.get("Processor-Stream") for d in heard] == [None, "error", None, "error"]
        assert [d.headers["Processor-Attempt"] for d in heard] == ["1", "1", "2", "2"]


async def test_a_session_has_a_subject_of_its_own(processor: Start, wait_until: Any) -> None:
    """`{session}` is the document's session_id; one that is no subject token is a dead letter."""
    talk = """
    class Runnable:
        def process_stream(self, query):
            yield query["input"]
    """
    route = ROUTE.replace("talk.{subject.2}", "talk.{session}")
    async with processor(route, talk=talk) as running:
        heard = await running.listen("talk.S1")
        await running.publish("ask.1", {"session_id": "S1", "input": "hi"}, {"session_id": "*", "input": "?"})
        await wait_until(lambda: len(heard) == 2, "the chunk and the marker were heard")
        assert heard[0].payload == b"hi"
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E308"


async def test_a_method_that_asks_for_queries_gets_the_list(processor: Start, wait_until: Any) -> None:
    """`process_stream(self, queries)` takes the list; `process_stream(self, query)` each document of it."""
    talk = """
    class Runnable:
        def process_stream(self, queries):
            for query in queries:
                yield query
    """
    async with processor(ROUTE, talk=talk) as running:
        heard = await running.listen("talk.*")
        await running.publish("ask.1", [{"i": 1}, {"i": 2}])
        await wait_until(lambda: len(heard) == 3, "two chunks and one marker were heard")
        assert [orjson.loads(d.payload) for d in heard[:2]] == [{"i": 1}, {"i": 2}]


async def test_chunks_can_be_kept_by_a_stream(processor: Start) -> None:
    """With `durable: true`, the default, a stream of the subject keeps what reaches it, markers included."""
    talk = """
    class Runnable:
        def process_stream(self, query):
            yield from query["words"]
    """
    async with processor(ROUTE.replace(", durable: false", ""), talk=talk) as running:
        await running.publish("ask.1", {"words": ["a", "b"]})
        assert await running.payloads("talk.*", 3) == [b"a", b"b", b""]
