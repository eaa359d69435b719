"""A replica that lags behind was believed about messages that are due or held.

With three servers a look-up may be answered by one that has not heard of the last commits. One that still had
a due message that was done made it run twice; one that had not yet a due message, or the messages held behind
a blocked key, had them forgotten until the next restart. Now what takes a kept message away refuses its
commit where that message is gone, and an answer is believed when it has the positions that we know, or all
that the stream's leader has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from processor.jetstream import Broker, Stored
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter
from tests.running import COUNT, REPAIRED, Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  output: out
  retry: %s
"""
ONCE = ROUTE % "{attempts: 1}"


class Lagging(Broker):
    """A broker whose first answer about a kind of kept messages comes from a replica that lags."""

    kind = ""
    stale: Sequence[Stored] = ()
    asked = 0

    async def page_of(self, stream: str, subject: str, sequence: int, max_messages: int) -> list[Stored]:
        if self.is_first([subject]):
            return [*self.stale]
        return await super().page_of(stream, subject, sequence, max_messages)

    async def stream(self, name: str) -> dict[str, Any] | None:
        info = await super().stream(name)
        if info is not None and name == "P_app":
            info["config"]["num_replicas"] = 3  # of one there is none that lags
        return info

    async def history(self, stream: str, subjects: Sequence[str], **more: Any) -> AsyncIterator[Stored]:
        if self.is_first(subjects):
            return
        async for stored in super().history(stream, subjects, **more):
            yield stored

    def is_first(self, subjects: Sequence[str]) -> bool:
        if not any(f".{self.kind}." in subject for subject in subjects):
            return False
        Lagging.asked += 1
        return Lagging.asked == 1


@pytest.fixture
def lagging(monkeypatch: pytest.MonkeyPatch) -> type[Lagging]:
    """The broker of every processor that starts from now on."""
    monkeypatch.setattr("processor.service.Broker", Lagging)
    monkeypatch.setattr(Lagging, "asked", 0)
    monkeypatch.setattr(Lagging, "stale", ())
    return Lagging


async def redriven(running: Running) -> list[Stored]:
    """The message of the one dead letter, due again for a route that stands still."""
    await running.publish("in.a", {"i": 0, "fails": "no"})
    await running.dead_letters("r")
    await Control(running.broker, "app").pause("r", is_paused=True)
    letters = DeadLetters(running.broker, "app")
    assert [await letters.redrive(letter) async for letter in letters.find(Filter())] == [True]
    return await running.stored("p.app.due.r.>")


async def test_a_due_message_that_is_done_does_not_run_again(
    processor: Start, lagging: type[Lagging]
) -> None:
    """The replica still has it, and our position as well: the commit of its second run is refused."""
    async with processor(ONCE, work=COUNT) as running:
        due = await redriven(running)
        await running.reload(work=REPAIRED)
        await Control(running.broker, "app").pause("r", is_paused=False)
        await running.documents("out", 1)
    async with processor(ONCE, work=REPAIRED) as running:
        await running.publish("in.a", {"i": 1})
        await running.documents("out", 2)
    lagging.kind, lagging.asked = "due", 0
    lagging.stale = due
    async with processor(ONCE, work=REPAIRED) as running:
        await running.publish("in.a", {"i": 2})
        assert await running.documents("out", 3) == [{"i": i, "n": n} for i, n in ((0, 1), (1, 2), (2, 3))]
        assert lagging.asked > 1


async def test_a_due_message_that_a_replica_has_not_yet_is_not_forgotten(
    processor: Start, lagging: type[Lagging]
) -> None:
    """The leader of the stream has more than the answer, so it is asked again."""
    async with processor(ONCE, work=COUNT) as running:
        await redriven(running)
    lagging.kind, lagging.asked = "due", 0
    async with processor(ONCE, work=REPAIRED) as running:
        await Control(running.broker, "app").pause("r", is_paused=False)
        assert await running.documents("out", 1) == [{"i": 0, "n": 1}]


async def test_held_messages_that_a_replica_has_not_yet_are_not_left_behind(
    processor: Start, lagging: type[Lagging]
) -> None:
    """Its key stays blocked until an answer has our position, and then all of them run."""
    route = ROUTE % "{attempts: 1, max_ms: 200, then: block}"
    lagging.kind = "held"
    async with processor(route, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "at first"}, {"i": 1}, {"i": 2})
        await running.reload(work=REPAIRED)
        assert await running.documents("out", 3) == [{"i": i, "n": i + 1} for i in range(3)]
