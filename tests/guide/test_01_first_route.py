"""Chapter 1: a route reads a subject, gives documents to a Runnable, and publishes what it returns."""

from __future__ import annotations

from typing import Any

import orjson

from tests.running import Start

ROUTE = """
number:
  input: {subject: "ticks.*", create: true}
  runnable: number.py
  output: numbered
"""
NUMBER = """
class Runnable:
    def init(self):
        self.context["counter"] = 0

    def process(self, queries):
        documents = []
        for query in queries:
            self.context["counter"] += 1
            documents.append({"index": self.context["counter"], **query})
        return documents
"""


async def test_documents_go_in_and_come_out_in_order(processor: Start) -> None:
    """Each message is a JSON document, and each document that `process` returns is a message."""
    async with processor(ROUTE, number=NUMBER) as running:
        await running.publish("ticks.IBM", {"price": 3}, {"price": 5})
        assert await running.documents("numbered", 2) == [
            {"index": 1, "price": 3},
            {"index": 2, "price": 5},
        ]


async def test_a_message_may_hold_a_list_of_documents(processor: Start) -> None:
    """A list in one message is as many documents as it has elements."""
    async with processor(ROUTE, number=NUMBER) as running:
        await running.publish("ticks.IBM", [{"price": 3}, {"price": 5}])
        assert [d["index"] for d in await running.documents("numbered", 2)] == [1, 2]


async def test_a_runnable_may_return_nothing(processor: Start) -> None:
    """Without an output the message is done all the same, and what was kept is kept."""
    quiet = """
    class Runnable:
        def process(self, queries):
            self.context["last"] = queries[-1]
            return [query for query in queries if query["price"] > 4]
    """
    async with processor(ROUTE, number=quiet) as running:
        await running.publish("ticks.IBM", {"price": 3}, {"price": 5}, {"price": 1})
        assert await running.documents("numbered", 1) == [{"price": 5}]


async def test_what_is_committed_can_be_watched_live(processor: Start, wait_until: Any) -> None:
    """Any core subscriber of live.<app>.<subject> sees outputs right after their commit."""
    async with processor(ROUTE, number=NUMBER) as running:
        heard = await running.listen("live.app.numbered")
        await running.publish("ticks.IBM", {"price": 3})
        await wait_until(lambda: heard, "the output was heard")
        assert orjson.loads(heard[0].payload) == {"index": 1, "price": 3}


async def test_a_runnable_says_what_happened_in_events(processor: Start) -> None:
    """`self.event` publishes to the route's event subject, in the same commit as the outputs."""
    eventful = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                if query["price"] > 100:
                    self.event("expensive", {"price": query["price"]})
            return queries
    """
    async with processor(ROUTE + "  events: events.number\n", number=eventful) as running:
        await running.publish("ticks.IBM", {"price": 3}, {"price": 125})
        [event] = await running.documents("events.number", 1)
        assert (event["event"], event["name"], event["data"]) == ("user", "expensive", {"price": 125})
