"""Chapter 10: `self.emit` sends to other subjects than the outputs', now or later, in the same commit."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.conftest import waited
from tests.running import Running, Start

ROUTE = """
r:
  input: {subject: "in", create: true}
  runnable: send.py
  output: done
  emits: ["orders.*", "alerts"]
  retry: {attempts: 1}
"""
LATER = "p.app.emit.r.>"


async def is_sent(running: Running) -> bool:
    return not await running.stored(LATER)


async def test_a_message_goes_to_the_subject_that_the_runnable_names(processor: Start) -> None:
    """The route lists subjects or patterns, and streams of them keep what is emitted, with its headers."""
    send = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.emit(f"orders.{query['who']}", {"of": query["who"]}, headers={"kind": "order"})
                self.emit("alerts", [1, None, "text"])
    """
    async with processor(ROUTE.replace("output: done", ""), send=send) as running:
        heard = await running.listen("live.app.>")
        await running.publish("in", {"who": "Ada"}, {"who": "Eve"})
        assert await running.documents("orders.*", 2) == [{"of": "Ada"}, {"of": "Eve"}]
        assert await running.documents("alerts", 2) == [[1, None, "text"]] * 2
        orders = await running.stored("orders.*")
        assert [(order.subject, order.headers["kind"]) for order in orders] == [
            ("orders.Ada", "order"),
            ("orders.Eve", "order"),
        ]
        assert len(heard) == 4
        assert running.metric("processor_outputs_total", route="r") == 4


async def test_outputs_follow_what_was_emitted_before_them(processor: Start) -> None:
    """One stream may keep both: a call's messages come in the order in which they were made, outputs last."""
    send = """
    class Runnable:
        def process(self, queries):
            self.emit("orders.first", 1)
            self.emit("orders.second", 2)
            return [3, 4]
    """
    route = ROUTE.replace("output: done", "output: orders.{subject.1}")
    async with processor(route, send=send) as running:
        await running.publish("in", {})
        assert await running.documents("orders.*", 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_delayed_message_is_sent_when_it_is_due(processor: Start, language: str) -> None:
    """The server keeps it in the app's stream until then; the route need not run any more."""
    send = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.emit("alerts", query, delay_s=query["delay_s"], headers={"kind": "late"})
    """
    route = f"{ROUTE}  language: {language}\n"
    async with processor(route, send=send) as running:
        await running.publish("in", {"delay_s": 0}, {"delay_s": 0.5}, {"delay_s": 86400 * 365})

        async def in_a_year() -> Any:
            return [kept for kept in await running.stored(LATER) if b"31536000" in kept.payload]

        [year] = await waited(in_a_year, "the last message waits")
        assert year.headers == {"kind": "late"}
    async with processor(
        ROUTE.replace('"in"', '"other"'), send=send
    ) as running:  # it serves something else now
        assert await running.documents("alerts", 2) == [{"delay_s": 0}, {"delay_s": 0.5}]
        assert [kept.headers["kind"] for kept in await running.stored("alerts")] == ["late", "late"]

        async def is_sent() -> bool:
            return [kept.subject for kept in await running.stored(LATER)] == [year.subject]

        await waited(is_sent, "only what is due in a year is left")


@pytest.mark.parametrize("mode", ["batch", "stream"])
async def test_a_run_that_fails_has_emitted_nothing(processor: Start, mode: str) -> None:
    """What is emitted is part of the run's commit, be it for now or for later; in stream mode, too."""
    send = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                self.emit("alerts", query)
                self.emit("orders.late", query, delay_s=1000)
                if query["fails"]:
                    raise ValueError("after it was emitted")

        def process_stream(self, query):
            self.process([query])
            yield "chunk"
    """
    async with processor(f"{ROUTE}  mode: {mode}\n", send=send) as running:
        await running.publish("in", {"fails": True}, {"fails": False})
        assert await running.documents("alerts", 1) == [{"fails": False}]
        await running.dead_letters("r")
        assert [kept.payload for kept in await running.stored(LATER)] == [b'{"fails":false}']
        assert len(await running.stored("alerts")) == 1


async def test_nothing_is_emitted_to_a_subject_that_is_not_listed(processor: Start) -> None:
    """It raises ValueError with the line to add; the message of a Runnable that lets it pass is given up."""
    send = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                if query.get("careful"):
                    try:
                        self.emit(query["to"], query)
                    except ValueError as err:
                        self.emit("alerts", str(err))
                else:
                    self.emit(query["to"], query)
    """
    async with processor(ROUTE, send=send) as running:
        await running.publish(
            "in", {"to": "orders.a.b", "careful": True}, {"to": "p.app.ctl.r"}, {"to": "orders.*"}
        )
        [said] = await running.documents("alerts", 1)
        assert said.endswith('allow it in the configuration: emits: ["orders.*", "alerts", "orders.a.b"]')
        letters = await running.dead_letters("r", 2)
        assert [letter.headers["x-error-code"] for letter in letters] == ["E327", "E304"]
        assert "'p.app.ctl.r'" in letters[0].headers["x-dead-letter-reason"]
        assert await is_sent(running)


async def test_a_reminder_to_oneself(processor: Start) -> None:
    """A route may emit to its own input; that it ends is then for the Runnable to see to."""
    send = """
    class Runnable:
        def process(self, queries):
            for query in queries:
                if query["left"]:
                    self.emit("in", {"left": query["left"] - 1}, delay_s=0.01)
                yield query["left"]
    """
    route = ROUTE.replace('["orders.*", "alerts"]', "[in]")
    async with processor(route, send=send) as running:
        await running.publish("in", {"left": 2})
        assert await running.documents("done", 3) == [2, 1, 0]
        await waited(partial(is_sent, running), "nothing is left to come")
