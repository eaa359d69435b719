"""Dead letters after the fact: found, sent back exactly once, or let go of, while their route works."""

from __future__ import annotations

import asyncio
from typing import Any

from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter, StoredDeadLetter
from tests.conftest import waited
from tests.running import COUNT, REPAIRED, Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: work.py
  key: subject.2
  output: out.{key}
  retry: {attempts: 2, base_ms: 0}
"""


async def find(running: Running, **which: Any) -> list[StoredDeadLetter]:
    letters = DeadLetters(running.broker, "app")
    return [letter async for letter in letters.find(Filter(**which))]


async def test_a_letter_goes_back_once_with_what_it_came_with(processor: Start) -> None:
    """Two people redrive at the same time; the message is processed once, with its subject and headers."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"}, {"i": 1}, headers={"Trace": "t-1"})
        await running.documents("out.a", 1)
        await running.dead_letters("r")
        [letter] = await find(running, route="r")
        assert (letter.code, letter.reason, letter.tries) == ("E304", "ValueError: no", 2)
        assert (letter.delivery.subject, letter.delivery.headers) == ("in.a", {"Trace": "t-1"})
        await running.reload(work=REPAIRED)
        letters = DeadLetters(running.broker, "app")
        done = await asyncio.gather(*(letters.redrive(letter) for _ in range(4)))
        assert sorted(done) == [False, False, False, True]
        assert await running.documents("out.a", 2) == [{"i": 1, "n": 1}, {"i": 0, "n": 2}]
        assert await find(running) == []
        await running.publish("in.a", {"i": 2})
        assert (await running.documents("out.a", 3))[-1] == {"i": 2, "n": 3}


async def test_a_letter_that_fails_again_is_a_letter_again(processor: Start, wait_until: Any) -> None:
    """Its tries are counted anew, and where it came from is not forgotten."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"})
        await running.dead_letters("r")
        [first] = await find(running)
        await DeadLetters(running.broker, "app").redrive(first)

        async def is_back() -> bool:
            found = await find(running)
            return len(found) == 1 and found[0].parts[0].sequence > first.parts[0].sequence

        await wait_until(is_back, "the letter is back")
        [second] = await find(running)
        assert (second.id, second.tries) == (first.id, 2)
        assert second.delivery.sequence == first.delivery.sequence == 1


async def test_a_letter_is_taken_up_by_the_next_start(processor: Start) -> None:
    """Nobody runs the route when it is sent back."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"})
        await running.dead_letters("r")
        [letter] = await find(running)
        assert await running.service.stop()
        assert await DeadLetters(running.broker, "app").redrive(letter)
    async with processor(ROUTE, work=REPAIRED) as running:
        assert await running.documents("out.a", 1) == [{"i": 0, "n": 1}]


async def test_letters_are_told_apart(processor: Start) -> None:
    """By route, code, id and age; what is dropped is gone."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"}, b"no json", {"i": 1, "fails": "never"})
        await running.dead_letters("r", 3)
        assert [letter.code for letter in await find(running)] == ["E304", "E301", "E304"]
        [unread] = await find(running, code="E301")
        assert unread.delivery.payload == b"no json"
        assert [letter.id for letter in await find(running, id=unread.id)] == [unread.id]
        assert await find(running, route="other") == []
        assert await find(running, since_s=unread.stored_s + 3600) == []
        assert await DeadLetters(running.broker, "app").drop(unread)
        assert [letter.code for letter in await find(running)] == ["E304", "E304"]


async def test_a_message_that_is_read_again_has_one_letter(processor: Start) -> None:
    """After a reset its letter is written anew in place of the old one, and can be let go of."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"})
        await running.dead_letters("r")
        [before] = await find(running)
        await Control(running.broker, "app").reset("r", 1, keep_context=True)

        async def is_anew() -> list[StoredDeadLetter]:
            return [letter for letter in await find(running) if letter.stored_s > before.stored_s]

        [letter] = await waited(is_anew, "it is given up again")
        assert await find(running) == [letter]
        assert await DeadLetters(running.broker, "app").drop(letter)
        assert await find(running) == []


async def test_a_letter_of_another_route_is_not_meant(processor: Start) -> None:
    """An id and a route say two things, and both have to hold."""
    async with processor(ROUTE, work=COUNT) as running:
        await running.publish("in.a", {"i": 0, "fails": "no"})
        await running.dead_letters("r")
        [letter] = await find(running)
        assert await find(running, route="other", id=letter.id) == []
        assert await find(running, route="r", id=letter.id) == [letter]
