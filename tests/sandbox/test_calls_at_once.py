"""Several calls of a guest at the same time: ids, bounds, and what becomes of them when a run ends.

The guest's end of the channel is in the test's hands, and says what no honest guest would.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from processor.model import Failed, Failure, Group, Outcome, Ran
from processor.sandbox import wire
from processor.sandbox.host import Guest
from tests.sandbox.test_wire import HONEST, taken_over

GROUP = Group("", [b"{}"], {})


class Calls:
    """Performs calls by holding them until it is told to let them go."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Future[Any]] = {}
        self.cut_off: list[str] = []

    async def __call__(self, name: str, arguments: dict[str, Any]) -> Any:
        told = self.open[name] = asyncio.get_running_loop().create_future()
        try:
            return await told
        except asyncio.CancelledError:
            self.cut_off.append(name)
            raise
        finally:
            del self.open[name]


class Hostile:
    """The guest's end of a run, as a program that was broken into would use it."""

    def __init__(self, channel: socket.socket, running: asyncio.Task[Outcome]) -> None:
        self.running = running
        self.nonce = 0
        self._channel = channel
        self._splitter = wire.Splitter(1 << 26)
        self._frames: list[wire.Frame] = []

    async def heard(self) -> dict[str, Any]:
        """The header of the next frame from the host."""
        while not self._frames:
            data = await asyncio.get_running_loop().sock_recv(self._channel, 1 << 18)
            self._frames += self._splitter.feed(data)
        frame = self._frames.pop(0)
        self.nonce = frame.nonce
        return frame.header

    async def say(self, *frames: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._channel, b"".join(frames))

    async def call(self, *numbers: int) -> None:
        """Call with these ids; each capability has the name of its call."""
        await self.say(*(wire.write_call(self.nonce, n, 0, f"c{n}", b"{}") for n in numbers))

    def done(self) -> bytes:
        return wire.write_ran(self.nonce, wire.Yield.of(1), {}, [])

    async def end(self) -> Outcome:
        return await asyncio.wait_for(self.running, 20)


@asynccontextmanager
async def hostile(spawned: Any, perform: Any, **limits: Any) -> AsyncIterator[tuple[Guest, Hostile]]:
    async with spawned(HONEST, perform, **{"wall_s": 30.0, **limits}) as guest:
        with taken_over(guest) as channel:
            guest_end = Hostile(channel, asyncio.create_task(guest.run([GROUP])))
            await guest_end.heard()
            yield guest, guest_end


def code(outcome: Outcome) -> str:
    return outcome.failure.code if isinstance(outcome, Failed) else "ran"


def names(count: int) -> set[str]:
    return {f"c{number}" for number in range(1, count + 1)}


async def test_calls_are_made_at_the_same_time_and_answered_as_they_end(spawned, wait_until) -> None:
    """Sixteen at once, each answered under its own id, in whatever order; all of them are in the record."""
    calls = Calls()
    async with hostile(spawned, calls) as (_, guest):
        await guest.call(*range(1, 17))
        await wait_until(lambda: calls.open.keys() == names(16), "all calls are made")
        for number in (16, 1, 9):
            calls.open[f"c{number}"].set_result(number)
            assert (await guest.heard())["answer"] == number
        await guest.call(17, 18, 19)
        await wait_until(lambda: {"c17", "c18", "c19"} <= calls.open.keys(), "three more are made")
        for told in list(calls.open.values()):
            told.set_result(None)
        answered = {(await guest.heard())["answer"] for _ in range(16)}
        assert answered == set(range(2, 20)) - {9, 16}
        await guest.say(guest.done())
        outcome = await guest.end()
    assert isinstance(outcome, Ran)
    assert [call.name for call in outcome.calls[:3]] == ["c16", "c1", "c9"]
    assert {call.name for call in outcome.calls} == names(19)
    assert {call.code for call in outcome.calls} == {""}


LIES: dict[str, Callable[[Hostile], bytes]] = {
    "one call more than it may have open": lambda g: wire.write_call(g.nonce, 17, 0, "c17", b"{}"),
    "an id twice": lambda g: wire.write_call(g.nonce, 16, 0, "c16", b"{}"),
    "an id that is left out": lambda g: wire.write_call(g.nonce, 18, 0, "c18", b"{}"),
    "a call of no run": lambda g: wire.write_call(g.nonce ^ 1, 17, 0, "c17", b"{}"),
    "the cancellation of a call that was not made": lambda g: wire.write_cancel(g.nonce, 17),
    "more cancellations than calls": lambda g: wire.write_cancel(g.nonce, 1) * 17,
    "an answer of its own": lambda g: wire.write_answer(g.nonce, 1, 1),
    "the end of its run": lambda g: g.done(),
    "a failure that it would outlive": lambda g: wire.write_failed(g.nonce, Failure("E304", "x"), []),
}


@pytest.mark.parametrize("what", LIES)
async def test_what_no_honest_guest_says_with_calls_open_ends_it(spawned, wait_until, what: str) -> None:
    """E315; nothing goes on that it had begun, and each of its calls is recorded as one without an end."""
    calls = Calls()
    async with hostile(spawned, calls) as (guest, end):
        await end.call(*range(1, 17))
        await wait_until(lambda: calls.open.keys() == names(16), "all calls are made")
        await end.say(LIES[what](end))
        outcome = await end.end()
        assert not guest.alive
    assert code(outcome) == "E315"
    assert set(calls.cut_off) == names(16)
    assert not calls.open
    assert {(call.name, call.code) for call in outcome.calls} == {(name, "E314") for name in names(16)}


async def test_a_guest_whose_time_is_up_says_so_with_calls_open(spawned, wait_until) -> None:
    """Its own timer comes first and knows the line; the calls are cut off."""
    calls = Calls()
    async with hostile(spawned, calls) as (_, guest):
        await guest.call(1, 2)
        await wait_until(lambda: calls.open.keys() == names(2), "both calls are made")
        await guest.say(wire.write_failed(guest.nonce, Failure("E312", "x", "line 4"), []))
        outcome = await guest.end()
    assert isinstance(outcome, Failed)
    assert (outcome.failure.code, outcome.failure.traceback) == ("E312", "line 4")
    assert set(calls.cut_off) == names(2)


DYING = """
import asyncio, os
class Runnable:
    def process(self, queries):
        frame = __import__("sys")._getframe()
        while not hasattr(frame.f_locals.get("self"), "_channel"):
            frame = frame.f_back
        calls = frame.f_locals["self"]._calls
        for number in range(16):
            calls.begin(f"c{number + 1}", {}, None, lambda frame: None)
        calls.take_in(None)
        os._exit(3)
"""


async def test_a_guest_that_dies_with_calls_open_cuts_them_off(spawned, wait_until) -> None:
    """None is performed for nobody, and the record of the run has each."""
    calls = Calls()
    async with spawned(DYING, calls, language="python") as guest:
        running = asyncio.create_task(guest.run([GROUP]))
        await wait_until(lambda: calls.open.keys() == names(16), "all calls are made")
        calls.open["c1"].set_result(None)
        outcome = await asyncio.wait_for(running, 20)
    assert code(outcome) == "E314"
    assert set(calls.cut_off) == names(16) - {"c1"}
    assert not calls.open
    assert {(call.name, call.code) for call in outcome.calls} == {
        (name, "" if name == "c1" else "E314") for name in names(16)
    }


async def test_a_run_that_is_cancelled_ends_all_its_calls_first(spawned, wait_until) -> None:
    """When `run` raises, nothing of it is still being performed."""
    calls = Calls()
    async with hostile(spawned, calls) as (guest, end):
        await end.call(1, 2, 3)
        await wait_until(lambda: calls.open.keys() == names(3), "all calls are made")
        end.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await end.running
        assert set(calls.cut_off) == names(3)
        await wait_until(lambda: not guest.alive, "the guest is dead")


@pytest.mark.parametrize(("more", "expected"), [(0, "ran"), (1, "E315")])
async def test_answers_that_a_guest_does_not_read_are_calls_that_are_open(
    spawned, wait_until, more: int, expected: str
) -> None:
    """What the host holds for a guest is bounded by what it may have open."""
    made = []

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        made.append(name)
        return "x" * (8 << 20)

    async with hostile(spawned, perform, calls_at_once=2) as (guest, end):
        await end.call(1, 2)
        await wait_until(lambda: guest._link.unsent == 2, "both answers wait")
        await end.call(*range(3, 3 + more))
        if not more:
            assert [(await end.heard())["answer"] for _ in range(2)] == [1, 2]
            await end.say(end.done())
        assert code(await end.end()) == expected
    assert made == ["c1", "c2"]


async def test_a_guest_that_never_reads_ends_at_its_own_time(spawned, wait_until) -> None:
    """The host writes when it can, and waits for nothing."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        return "x" * (8 << 20)

    async with hostile(spawned, perform, wall_s=1.0) as (guest, end):
        await end.call(*range(1, 17))
        assert code(await end.end()) == "E312"
        assert not guest.alive


async def test_a_call_that_is_cancelled_is_cut_off_and_answered(spawned, wait_until) -> None:
    """Exactly once, as refused; one that has ended has its own answer, and the guest goes on."""
    calls = Calls()
    async with hostile(spawned, calls) as (_, guest):
        await guest.call(1, 2)
        await wait_until(lambda: calls.open.keys() == names(2), "both calls are made")
        await guest.say(wire.write_cancel(guest.nonce, 2))
        refused = await guest.heard()
        assert (refused["answer"], refused["code"]) == (2, "E317")
        assert calls.cut_off == ["c2"]
        calls.open["c1"].set_result(1)
        assert await guest.heard() == {"answer": 1}
        await guest.say(wire.write_cancel(guest.nonce, 1), guest.done())
        outcome = await guest.end()
    assert isinstance(outcome, Ran)
    assert [(call.name, call.code) for call in outcome.calls] == [("c2", "E314"), ("c1", "")]


async def test_calls_that_are_cancelled_at_once_count_as_calls(spawned) -> None:
    """Nobody makes more of them than `limits.calls` by taking each back."""
    async with hostile(spawned, Calls(), requests=3, calls=3) as (_, guest):
        codes = []
        for number in range(1, 6):
            await guest.say(
                wire.write_call(guest.nonce, number, 0, f"c{number}", b"{}"),
                wire.write_cancel(guest.nonce, number),
            )
            codes.append((await guest.heard())["code"])
        await guest.say(guest.done())
        outcome = await guest.end()
    assert codes == ["E317", "E317", "E317", "E322", "E322"]
    assert [call.name for call in outcome.calls] == ["c1", "c2", "c3"]
