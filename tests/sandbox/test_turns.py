"""Messages of different keys take turns in one guest: while one waits for an answer, others run."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from processor.errors import ProcessorError
from processor.model import Failed, Group, Outcome, Ran
from processor.sandbox.host import Guest
from processor.sandbox.offer import HeapGrant, HeapOffer

BOTH = pytest.mark.parametrize("language", ["restricted", "python"])


class Stocks:
    """Performs the calls of a guest by holding each, by its ticker, until it is told to let it go."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Future[Any]] = {}
        self.begun: list[str] = []
        self.cut_off: list[str] = []

    async def __call__(self, name: str, arguments: dict[str, Any]) -> Any:
        ticker = arguments["ticker"]
        self.begun.append(ticker)
        told = self.open[ticker] = asyncio.get_running_loop().create_future()
        try:
            return await told
        except asyncio.CancelledError:
            self.cut_off.append(ticker)
            raise
        finally:
            del self.open[ticker]

    def say(self, *tickers: str) -> None:
        """Let these calls go: each is answered with its ticker."""
        for ticker in tickers:
            if not self.open[ticker].done():
                self.open[ticker].set_result(ticker)

    async def say_all(self, running: asyncio.Task[Outcome]) -> Outcome:
        """What a run comes to whose calls, the newest first, are answered as soon as no other is made."""
        while not running.done():
            for ticker in reversed(list(self.open)):
                self.say(ticker)
            await asyncio.wait({running}, timeout=0.005)
        return await running


def group(key: str, *documents: Any, context: dict[str, bytes] | None = {}) -> Group:  # noqa: B006
    return Group(key, [json.dumps(document).encode() for document in documents], context)


def keys(count: int) -> list[Group]:
    """A message of each of so many keys; it asks for the ticker that has the name of its key."""
    return [group(f"k{number}", {"ask": f"k{number}"}) for number in range(count)]


def bodies(outcome: Outcome) -> list[Any]:
    assert isinstance(outcome, Ran), outcome
    return [json.loads(output.body) for output in outcome.outputs]


@asynccontextmanager
async def asked(
    spawned: Any, source: str, groups: Sequence[Group], stocks: Any = None, **settings: Any
) -> AsyncIterator[tuple[Stocks, asyncio.Task[Outcome], Guest]]:
    stocks = stocks or Stocks()
    async with spawned(source, stocks, **{"wall_s": 30.0, **settings}) as guest:
        running = asyncio.create_task(guest.run(groups))
        yield stocks, running, guest
        await asyncio.wait({running}, timeout=20)
        assert running.done()


ASKS = """
class Runnable:
    def init(self):
        self.context["runs"] = 0

    def process(self, queries):
        for query in queries:
            self.context["runs"] += 1
            yield {"key": self.key, "runs": self.context["runs"], "said": self.get_stock_data(query["ask"])}
"""


@BOTH
async def test_messages_of_other_keys_run_while_one_waits(spawned, wait_until, language: str) -> None:
    """As many as may have calls open; the next begins when one of them has ended."""
    async with asked(spawned, ASKS, keys(20), language=language) as (stocks, running, _):
        await wait_until(lambda: len(stocks.open) == 16, "sixteen wait")
        assert stocks.begun == [f"k{number}" for number in range(16)]
        stocks.say("k7")
        await wait_until(lambda: "k16" in stocks.open, "another has begun")
        assert len(stocks.open) == 16
        outcome = await stocks.say_all(running)
    assert bodies(outcome) == [{"key": f"k{n}", "runs": 1, "said": f"k{n}"} for n in range(20)]


async def test_messages_of_one_key_never_run_beside_each_other(spawned, wait_until) -> None:
    """They run in order, whatever other keys do."""
    groups = [
        group("a", {"ask": "a1"}, {"ask": "a2"}),
        group("b", {"ask": "b1"}),
        group("a", {"ask": "a3"}),
        group("b", {"ask": "b2"}),
    ]
    async with asked(spawned, ASKS, groups) as (stocks, running, _):
        for now, then in (("a1", "a2"), ("a2", "a3"), ("b1", "b2")):
            await wait_until(lambda now=now: now in stocks.open, f"{now} is asked for")
            assert then not in stocks.begun
            stocks.say(now)
        outcome = await stocks.say_all(running)
    assert [(each["key"], each["runs"], each["said"]) for each in bodies(outcome)] == [
        ("a", 1, "a1"), ("a", 2, "a2"), ("b", 1, "b1"), ("a", 3, "a3"), ("b", 2, "b2"),
    ]  # fmt: skip


async def test_one_call_at_a_time_is_one_message_at_a_time(spawned, wait_until) -> None:
    """With `limits.calls_at_once: 1` nothing begins while another waits."""
    async with asked(spawned, ASKS, keys(3), calls_at_once=1) as (stocks, running, _):
        await wait_until(lambda: "k0" in stocks.open, "the first waits")
        assert bodies(await stocks.say_all(running))
        assert stocks.begun == ["k0", "k1", "k2"]
    assert stocks.cut_off == []


BRINGS = """
class Runnable:
    def process(self, queries):
        for query in queries:
            name = query["ask"]
            self.emit("out." + name, [name, 1])
            self.event(name, 1)
            yield {"to": name, "n": 1}
            self.get_stock_data(name)
            self.emit("out." + name, [name, 2])
            self.event(name, 2)
            yield {"to": name, "n": 2}
            self.get_stock_data(name + "-again")
            self.emit("out." + name, [name, 3])
            self.event(name, 3)
            yield {"to": name, "n": 3}
"""


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_what_a_run_brings_is_in_the_order_of_its_messages(spawned, language: str) -> None:
    """Outputs with their subject tokens, emits, events and messages that cannot be read are those of a run in
    which one message came after the other.
    """

    async def outcome_with(stocks: Any, calls_at_once: int) -> Any:
        groups = [group(f"k{n}", {"ask": f"k{n}"}) for n in range(6)]
        groups[2].documents.append(b"{")
        groups[4].documents.insert(0, b"?")
        settings = {"emits": ["out.>"], "language": language, "calls_at_once": calls_at_once}
        async with spawned(BRINGS, stocks, **settings) as guest:
            running = asyncio.create_task(guest.run(groups, fields=("to", "n")))
            outcome = await stocks.say_all(running)
        assert isinstance(outcome, Ran), outcome
        return outcome.outputs, outcome.emits, outcome.events, outcome.rejected

    mixed = await outcome_with(Stocks(), 4)
    assert mixed == await outcome_with(Stocks(), 1)
    outputs, emits, events, rejected = mixed
    assert [(o.group, o.fields) for o in outputs[:4]] == [
        (0, ("k0", "1")), (0, ("k0", "2")), (0, ("k0", "3")), (1, ("k1", "1")),
    ]  # fmt: skip
    assert [(e.group, e.body) for e in emits[2:4]] == [(0, b'["k0",3]'), (1, b'["k1",1]')]
    assert [(e.group, e.name, e.body) for e in events[2:4]] == [(0, "k0", b"3"), (1, "k1", b"1")]
    assert [row[:2] for row in rejected] == [(2, 1), (4, 0)]


FAILS = """
endings = []


class Runnable:
    def init(self):
        self.context["runs"] = 0

    def process(self, queries):
        for query in queries:
            self.context["runs"] += 1
            try:
                said = self.get_stock_data(query["ask"])
            finally:
                endings.append(self.key)
            if query.get("fails"):
                raise ValueError("no price for " + said)
            yield {"runs": self.context["runs"], "endings": len(endings)}
"""


@BOTH
async def test_a_message_that_fails_undoes_the_run_and_names_its_group(
    spawned, wait_until, language: str
) -> None:
    """Contexts of all are as before it, those that wait end there, and their calls are not cut off: what they
    have asked for is answered, so that their next try need not ask again.
    """
    groups = [group(f"k{n}", {"ask": f"k{n}", "fails": n == 2}) for n in range(5)]
    async with asked(spawned, FAILS, groups, language=language) as (stocks, running, guest):
        await wait_until(lambda: len(stocks.open) == 5, "all wait")
        stocks.say("k4")
        await wait_until(lambda: "k4" not in stocks.open, "one has ended")
        stocks.say("k2")
        await wait_until(lambda: "k2" not in stocks.open, "one has failed")
        assert not running.done()
        stocks.say("k0", "k1", "k3")
        outcome = await running
        assert isinstance(outcome, Failed)
        assert (outcome.group, outcome.failure.code, outcome.failure.lethal) == (2, "E304", False)
        assert "ValueError: no price for k2" in outcome.failure.text
        assert {call.code for call in outcome.calls} == {""}
        assert len(outcome.calls) == 5
        assert stocks.cut_off == []
        again = [group(f"k{n}", {"ask": f"k{n}"}, context=None) for n in range(5)]
        brought = bodies(await stocks.say_all(asyncio.create_task(guest.run(again))))
    assert [each["runs"] for each in brought] == [1] * 5
    assert max(each["endings"] for each in brought) == 10  # five of the run that failed, of which none stands


STUBBORN = """
class Runnable:
    tries = 0

    def process(self, queries):
        if queries[0].get("fails"):
            self.get_stock_data("fails")
            raise ValueError("no price")
        for number in range(3):
            try:
                self.get_stock_data(f"{self.key}-{number}")
            except BaseException as err:
                Runnable.tries += 1
        return [Runnable.tries]
"""


async def test_a_message_that_catches_its_end_asks_for_nothing_more(spawned, wait_until) -> None:
    """Whatever it calls then is refused before it reaches the host, and what it returns is dropped."""
    groups = [group("b", {"fails": True}), group("a", {}), group("c", {})]
    async with asked(spawned, STUBBORN, groups, language="python") as (stocks, running, guest):
        await wait_until(lambda: len(stocks.open) == 3, "all wait")
        stocks.say("fails", "a-0", "c-0")  # whoever has waited longest goes on first
        outcome = await running
        assert isinstance(outcome, Failed)
        assert outcome.group == 0
        assert sorted(stocks.begun) == ["a-0", "c-0", "fails"]
        again = asyncio.create_task(guest.run([group("a", {}, context=None)]))
        assert bodies(await stocks.say_all(again)) == [6]


async def test_a_run_that_is_cancelled_ends_its_guest_with_all_that_waits(spawned, wait_until) -> None:
    """Sixteen messages wait; their calls are cut off, and no process is left."""
    stocks = Stocks()
    async with spawned(ASKS, stocks) as guest:
        running = asyncio.create_task(guest.run(keys(30)))
        await wait_until(lambda: len(stocks.open) == 16, "sixteen wait")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await wait_until(lambda: not guest.alive, "the guest is dead")
    assert len(stocks.cut_off) == 16
    assert not stocks.open


async def until_told(run: Callable[[], Awaitable[Outcome]]) -> Failed:
    """A run whose guest was quicker to say that its time is up than its host was to end it."""
    for _ in range(20):
        outcome = await run()
        assert isinstance(outcome, Failed)
        if outcome.failure.traceback:
            return outcome
    raise AssertionError("the host is always first")


async def test_a_run_that_waits_too_long_says_where_it_waits_longest(spawned, wait_until) -> None:
    """E312, of the group that has waited longest and with the line of its call."""

    async def run() -> Outcome:
        async with asked(spawned, ASKS, keys(3), wall_s=1.0) as (stocks, running, _):
            await wait_until(lambda: len(stocks.open) == 3, "all wait")
            stocks.say("k0")
            outcome = await running
        assert sorted(stocks.cut_off) == ["k1", "k2"]
        return outcome

    outcome = await until_told(run)
    assert (outcome.failure.code, outcome.group) == ("E312", 1)
    assert "line 9" in outcome.failure.traceback
    assert "get_stock_data" in outcome.failure.traceback


USES_UP = """
class Runnable:
    def process(self, queries):
        self.get_stock_data(self.key)
        if queries[0]["ask"] == "k1":
            held = []
            while True:
                %s
        self.get_stock_data(self.key)
"""


@pytest.mark.parametrize(("code", "limits"), [("E311", {"cpu_s": 0.3}), ("E312", {"wall_s": 0.7})])
async def test_a_limit_of_time_is_the_runs_and_its_failure_is_of_who_ran(
    spawned, wait_until, code: str, limits: dict[str, float]
) -> None:
    """Time and processor time are counted for all that take turns together; those that wait end."""

    async def run() -> Outcome:
        settings = {"cpu_s": 20.0, **limits}
        async with asked(spawned, USES_UP % "pass", keys(3), **settings) as (stocks, running, guest):
            await wait_until(lambda: len(stocks.open) == 3, "all wait")
            stocks.say("k1")
            outcome = await running
            await wait_until(lambda: not guest.alive, "the guest is dead")
        return outcome

    outcome = await until_told(run)
    assert (outcome.failure.code, outcome.failure.lethal, outcome.group) == (code, True, 1)
    assert re.search(r'runnable\.py", line [78]', outcome.failure.traceback)


async def test_a_run_that_uses_up_its_memory_ends_with_all_that_wait(spawned, wait_until) -> None:
    """Memory is counted for all that take turns together; the failure is of the one that ran."""
    source = USES_UP % "held.append('x' * 100_000)"
    async with asked(spawned, source, keys(3), memory_mb=32) as (stocks, running, guest):
        await wait_until(lambda: len(stocks.open) == 3, "all wait")
        stocks.say("k1")
        outcome = await stocks.say_all(running)
        assert isinstance(outcome, Failed)
        assert (outcome.failure.code, outcome.failure.lethal, outcome.group) == ("E313", True, 1)
        await wait_until(lambda: not guest.alive, "the guest is dead")


COUNTS = """
class Runnable:
    def process(self, queries):
        refused = 0
        for number in range(4):
            try:
                self.get_stock_data(self.key + str(number))
            except BudgetExceededError as err:
                refused += err.code == "E322"
        return [refused]
"""


async def test_the_calls_of_each_message_are_counted_by_themselves(spawned) -> None:
    """`limits.requests` is for a message, whoever runs beside it; a group of two may make twice as many."""
    groups = [group("a", {}), group("b", {}, {}), group("c", {})]
    stocks = Stocks()
    async with spawned(COUNTS, stocks, requests=2, calls=2) as guest:
        outcome = await stocks.say_all(asyncio.create_task(guest.run(groups)))
    assert bodies(outcome) == [2, 0, 2]
    assert sorted(stocks.begun) == ["a0", "a1", "b0", "b1", "b2", "b3", "c0", "c1"]


ITS_OWN = """
import asyncio
from decimal import Decimal, localcontext


class Runnable:
    def init(self):
        self.context["init"] = self.get_stock_data("init")
        try:
            self.emit("out.x", 1)
        except RuntimeError:
            self.context["refused"] = True

    def process(self, queries):
        name = queries[0]["ask"]
        with localcontext() as context:
            context.prec = queries[0]["digits"]
            self.get_stock_data(name)
            third = str(Decimal(1) / Decimal(3))
        self.emit("out.x", name)
        return [{"key": self.key, "third": third, **self.context}]
"""


@BOTH
async def test_a_message_finds_what_is_its_own_after_it_has_waited(spawned, language: str) -> None:
    """Its key, its context, its decimal precision, and whether it is `init` that runs."""

    async def say(name: str, arguments: dict[str, Any]) -> Any:
        await all_wait.wait()
        return arguments["ticker"]

    all_wait = asyncio.Barrier(5)
    groups = [group(f"k{n}", {"ask": f"k{n}", "digits": n + 2}) for n in range(5)]
    async with spawned(ITS_OWN, say, emits=["out.>"], language=language) as guest:
        outcome = await guest.run(groups)
    thirds = [f"0.{'3' * (n + 2)}" for n in range(5)]
    assert bodies(outcome) == [
        {"key": f"k{n}", "third": third, "init": "init", "refused": True} for n, third in enumerate(thirds)
    ]


LOCKED = """
import asyncio
from decimal import Decimal, getcontext

lock, inside = asyncio.Lock(), []


class Runnable:
    async def process(self, queries):
        async with lock:
            inside.append(self.key)
            alone = len(inside) == 1
            self.get_stock_data(self.key)
            alone = alone and len(inside) == 1
            inside.remove(self.key)
        try:
            async with asyncio.timeout(30 if self.key == "k0" else 0.000001):
                self.get_stock_data(self.key + "-timed")
                await asyncio.sleep(0)
                bounded = False
        except TimeoutError:
            bounded = True
        return [[self.key, alone, bounded]]
"""


async def test_a_lock_of_the_module_is_held_while_its_holder_waits(spawned) -> None:
    """Who asks for it meanwhile waits for it, and a deadline bounds nobody but who has set it."""
    stocks = Stocks()
    async with spawned(LOCKED, stocks) as guest:
        outcome = await stocks.say_all(asyncio.create_task(guest.run(keys(5))))
    assert bodies(outcome) == [[f"k{n}", True, n > 0] for n in range(5)]


THREADS = """
import queue
import threading
from contextlib import ExitStack

locks = [threading.Lock(), threading.RLock(), threading.Semaphore(1), threading.Condition()]
inside, said = [], queue.Queue()


class Runnable:
    def process(self, queries):
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(lock)
            held.enter_context(locks[1])  # of the same message, once more
            inside.append(self.key)
            self.get_stock_data(self.key)
            alone = inside == [self.key]
            inside.clear()
        said.put(self.key)
        self.get_stock_data(self.key + "-again")
        waited = locks[0].acquire(timeout=0.001)
        locks[0].release()
        return [[alone, waited, said.get()]]
"""


async def test_locks_of_threads_hold_other_messages_off(spawned) -> None:
    """In plain Python, too, who asks for one that another message holds waits until it is free."""
    stocks = Stocks()
    async with spawned(THREADS, stocks, language="python") as guest:
        outcome = await stocks.say_all(asyncio.create_task(guest.run(keys(5))))
    assert [each[:2] for each in bodies(outcome)] == [[True, True]] * 5
    assert sorted(each[2] for each in bodies(outcome)) == [f"k{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        ("lock.acquire(False)", False),
        ("lock.acquire(timeout=0.001)", False),
        ("lock.acquire()", "it is held here already, and nothing runs beside that could release it"),
        ("again.acquire(timeout=0.001)", True),
        ("other.release()", "release unlocked lock"),
    ],
)
async def test_a_lock_that_nobody_could_release_is_not_waited_for(
    spawned, take: str, expected: bool | str
) -> None:
    """A message that holds it is told so, or gets what `acquire` says where it may not wait."""
    source = f"""
    import threading
    lock, again, other = threading.Lock(), threading.RLock(), threading.Lock()
    class Runnable:
        def process(self, queries):
            lock.acquire()
            again.acquire()
            try:
                return [[{take}]]
            except RuntimeError as err:
                return [[str(err)]]
    """
    async with spawned(source, language="python") as guest:
        assert bodies(await guest.run([group("a", {})])) == [[expected]]


CROSSED = """
import asyncio

first, second = asyncio.Lock(), asyncio.Lock()


class Runnable:
    def process(self, queries):
        outer, inner = (first, second) if self.key == "a" else (second, first)
        with outer:
            self.get_stock_data(self.key)
            with inner:
                return [self.key]
"""


async def test_locks_that_wait_for_each_other_fail_the_run(spawned) -> None:
    """Nothing waits for ever: who has waited longest is told that nothing can release the lock."""
    stocks = Stocks()
    async with spawned(CROSSED, stocks) as guest:
        groups = [group("a", {}), group("b", {})]
        outcome = await stocks.say_all(asyncio.create_task(guest.run(groups)))
    assert isinstance(outcome, Failed)
    assert "it is held here already" in outcome.failure.text


LOOPS = """
import asyncio

import httpx


class Runnable:
    %s process(self, queries):
        return %s

    async def ask(self):
        async with httpx.AsyncClient() as client:
            urls = [f"http://{self.key}-0/", f"http://{self.key}-1/"]
            calls = (client.get(url) for url in urls)
            await asyncio.gather(*calls, return_exceptions=True)
        return [self.get_stock_data(self.key)]
"""


@pytest.mark.parametrize("form", [("async def", "await self.ask()"), ("def", "asyncio.run(self.ask())")])
async def test_in_an_event_loop_the_calls_of_one_message_overlap(
    spawned, wait_until, form: tuple[str, str]
) -> None:
    """What `gather` begins is open at a time; other messages begin when the loop has ended."""
    held: dict[str, asyncio.Future[Any]] = {}

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        what = arguments.get("ticker") or arguments["url"]
        held[what] = asyncio.get_running_loop().create_future()
        return await held[what]

    def refuse(*names: str) -> None:
        for name in names:
            held[name].set_exception(ProcessorError("E325", "not allowed"))

    groups = [group("a", {}), group("b", {})]
    async with asked(spawned, LOOPS % form, groups, perform, language="python") as (_, running, _):
        for key in ("a", "b"):
            urls = [f"http://{key}-0/", f"http://{key}-1/"]
            await wait_until(lambda urls=urls: set(urls) <= held.keys(), "both requests are open")
            refuse(*urls)
            await wait_until(lambda key=key: key in held, "a plain call in the loop is made")
            assert ("b" in held or "http://b-0/" in held) == (key == "b")
            held[key].set_result(key)
        assert bodies(await running) == ["a", "b"]


HEAP = """
class Runnable:
    def process(self, queries):
        handle = self.heap.alloc("note", {"of": self.key})
        self.heap.write(handle, [{"op": "add", "path": "/n", "value": 1}])
        return [self.heap.read(handle)]
"""


async def test_objects_of_each_key_are_its_own_while_the_host_is_asked(spawned) -> None:
    """An operation that the host has to allow is of the group that began it."""

    async def allow(name: str, arguments: dict[str, Any]) -> Any:
        await all_wait.wait()
        return True

    all_wait = asyncio.Barrier(4)

    offer = HeapOffer(policies=[[HeapGrant(False, "other", ("*",))]])
    async with spawned(HEAP, allow, heap=offer) as guest:
        outcome = await guest.run([group(f"k{n}", {}) for n in range(4)])
    assert bodies(outcome) == [{"of": f"k{n}", "n": 1} for n in range(4)]
    assert [(op.group, op.method) for op in outcome.heap] == [
        (n, method) for n in range(4) for method in ("alloc", "write", "read")
    ]


DEEP = """
class Runnable:
    def process(self, queries):
        return [self.go_down(700)]

    def go_down(self, levels):
        return self.get_stock_data(self.key) if levels == 0 else self.go_down(levels - 1)
"""


async def test_a_message_has_the_whole_depth_of_the_stack(spawned) -> None:
    """However deep another stands that waits."""
    stocks = Stocks()
    async with spawned(DEEP, stocks) as guest:
        outcome = await stocks.say_all(asyncio.create_task(guest.run(keys(16))))
    assert bodies(outcome) == [f"k{n}" for n in range(16)]


KEEPS = """
from decimal import Decimal, getcontext


class Runnable:
    def process(self, queries):
        third = str(Decimal(1) / Decimal(3))
        getcontext().prec = 3
        self.get_stock_data(self.key)
        return [third]
"""


@BOTH
async def test_what_a_message_sets_for_its_process_lasts_as_without_turns(spawned, language: str) -> None:
    """The precision of decimal is set by the first message, for all that come after it and in later runs."""
    stocks = Stocks()
    async with spawned(KEEPS, stocks, language=language) as guest:
        for expected in (f"0.{'3' * 28}", "0.333"):
            context: dict[str, bytes] | None = {} if len(expected) > 5 else None
            groups = [group(f"k{n}", {}, context=context) for n in range(3)]
            outcome = await stocks.say_all(asyncio.create_task(guest.run(groups)))
            assert bodies(outcome) == [expected, "0.333", "0.333"]


ESCAPES = """
import socket


class Runnable:
    def process(self, queries):
        self.get_stock_data(self.key)
        if self.key == "k1":
            socket.socket()
        self.get_stock_data(self.key)
"""


async def test_the_jail_holds_whoever_runs(spawned, wait_until) -> None:
    """A system call that it forbids ends the guest with all that wait there, whose calls are cut off."""
    async with asked(spawned, ESCAPES, keys(3), language="python") as (stocks, running, guest):
        await wait_until(lambda: len(stocks.open) == 3, "all wait")
        stocks.say("k1")
        outcome = await running
        assert isinstance(outcome, Failed)
        assert outcome.failure.code == "E316"
        assert not guest.alive
    assert sorted(stocks.cut_off) == ["k0", "k2"]


def test_without_greenlet_a_guest_runs_one_message_after_another() -> None:
    """A platform that has no wheel of it loses the overlap and nothing else."""
    program = """
import sys
sys.modules["greenlet"] = None
from processor.sandbox import guest, turns
assert turns.HAS_GREENLETS is False and guest.HAS_GREENLETS is False
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
