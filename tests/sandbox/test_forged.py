"""What a guest that was broken into may send, and do between its runs: nothing of it harms more than itself.

The guests are plain Python that has its own runtime at hand, as code that escaped the language would.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import orjson
import pytest

from processor.errors import ProcessorError
from processor.model import Failed, Group, Limits, Outcome, Program, Ran
from processor.sandbox import host
from processor.sandbox.host import Guest, Zygote
from tests.web import outside

# `runtime()` is the guest's own object, `forge` writes a frame as if the runtime had.
PRELUDE = """
import dataclasses, json, os, struct, sys, time

def runtime():
    frame = sys._getframe()
    while not hasattr(frame.f_locals.get("self"), "_channel"):
        frame = frame.f_back
    return frame.f_locals["self"]

def forge(header, *blobs):
    head = json.dumps(header).encode()
    sizes = [len(blob) for blob in blobs]
    frame = struct.pack("<QII", runtime()._channel.nonce, len(head), len(blobs)) + head
    frame += struct.pack(f"<{len(sizes)}I", *sizes) + b"".join(blobs)
    frame = struct.pack("<I", len(frame)) + frame
    while frame:
        frame = frame[os.write(3, frame):]
    time.sleep(60)

def answer(**changes):
    names = "outputs", "tokens", "emits", "events", "contexts", "rejected", "heap", "logs"
    return {**{name: [] for name in names}, "outputs": [0], **changes}

"""


def hostile(body: str) -> Program:
    inner = indent(dedent(body), " " * 8)
    source = f"{PRELUDE}\nclass Runnable:\n    def process(self, queries):\n{inner}\n        return []\n"
    return Program(source, "hostile.py", "python")


@asynccontextmanager
async def opened(body: str, perform: Any = None, **limits: Any) -> AsyncIterator[Guest]:
    zygote = await Zygote.start()
    try:
        yield await zygote.spawn(hostile(body), Limits(**limits), perform=perform)
    finally:
        await zygote.close()


async def run(guest: Guest, context: dict[str, bytes] | None = {}, query: Any = 1) -> Outcome:  # noqa: B006
    return await asyncio.wait_for(guest.run([Group("", [orjson.dumps(query)], context)]), 20)


def code(outcome: Outcome) -> str:
    return outcome.failure.code if isinstance(outcome, Failed) else "ran"


def nested(levels: int) -> str:
    return f'b"[" * {levels} + b"]" * {levels}'


ITEM = "forge(answer(contexts=[['', {whole}, {size}, 1, 0]]), b'a', {value})"
DEEP = {
    "an item of a small context": ITEM.format(whole=True, size=1, value=nested(101)),
    "one that the host can just read": ITEM.format(whole=True, size=1, value=nested(1023)),
    "one that nobody reads": ITEM.format(whole=True, size=1, value=nested(5000)),
    "an item of a large context": ITEM.format(whole=False, size=9000, value=nested(600)),
    "an item that is not JSON": ITEM.format(whole=False, size=9000, value="b'{' * 9000"),
    "an item that is not UTF-8": ITEM.format(whole=False, size=9000, value="b'\"\\xff\"'"),
    "an event": f"forge(answer(events=[[0, 'e']]), {nested(1000)})",
    "an event that is not JSON": "forge(answer(events=[[0, 'e']]), b'nan')",
    "filters": """forge(
        {"call": "state_data", "id": 1, "group": 0}, b'{"filters": [' + b'[' * 900 + b']' * 900 + b']}'
    )""",
    "the name of an item": "forge(answer(contexts=[['', False, 9000, 1, 0]]), b'n' * 70000, b'1')",
}


@pytest.mark.parametrize("what", DEEP)
async def test_what_nests_too_deeply_ends_the_guest(what: str) -> None:
    """Nothing is put into another text, kept, or given to a service that was not read and bounded (E315)."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        pytest.fail("it came to the service")

    async with opened(DEEP[what], perform) as guest:
        assert code(await run(guest)) == "E315"


async def test_what_an_honest_guest_may_keep_is_taken() -> None:
    """A hundred levels, and a name of eight kilobytes in a large context."""
    body = ITEM.format(whole=True, size=200, value=nested(100))
    async with opened(body) as guest:
        outcome = await run(guest)
        assert isinstance(outcome, Ran)
        assert outcome.contexts[""].items == {"a": b"[" * 100 + b"]" * 100}
    body = "forge(answer(contexts=[['', False, 9000, 1, 0]]), b'n' * 8192, b'1')"
    async with opened(body) as guest:
        assert code(await run(guest)) == "ran"


async def test_the_size_of_a_context_is_measured() -> None:
    """A guest that says "one byte" of each item that it adds ends at its limit, and not at ten times that."""
    body = """
        own = runtime()
        own._limits = dataclasses.replace(own._limits, context_bytes=1 << 40)
        codec = type(own).serve.__globals__["wire"]
        written = getattr(codec, "honest", codec.write_ran)
        codec.honest = written
        def lying(nonce, brought, contexts, logs):
            contexts = {k: dataclasses.replace(c, size=min(c.size, 9000)) for k, c in contexts.items()}
            return written(nonce, brought, contexts, logs)
        codec.write_ran = lying
        self.context[f"item {queries[0]}"] = "x" * 30_000
    """
    async with opened(body, context_bytes=64 << 10) as guest:
        outcomes = [await run(guest, {} if number == 0 else None, number) for number in range(3)]
    assert [code(outcome) for outcome in outcomes] == ["ran", "ran", "E315"]
    sizes = [outcome.contexts[""].size for outcome in outcomes[:2] if isinstance(outcome, Ran)]
    assert sizes == [30_000 + len('item 0""'), 60_000 + 2 * len('item 0""')]


async def test_a_good_answer_behind_garbage_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts that a guest says once it is to die, however long the kernel takes to kill it."""
    body = """
        os.write(3, b"\\xff" * 100)
        time.sleep(0.2)
        forge(answer())
    """
    kill = signal.pidfd_send_signal
    loop = asyncio.get_running_loop()
    late: list[asyncio.TimerHandle] = []
    monkeypatch.setattr(
        signal,
        "pidfd_send_signal",
        lambda handle, number: late.append(loop.call_later(1, kill, handle, number)),
    )
    async with opened(body) as guest:
        outcome = await run(guest)
        assert code(outcome) == "E315"
        assert late
        monkeypatch.undo()


SPINS = """
own = runtime()._channel
receive = own.receive
def spin():
    while True:
        pass
own.receive = spin
"""


async def test_a_guest_that_spins_between_its_runs_is_ended(
    monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    """Its run was fine; what it does when nothing is asked of it costs it its life (E367)."""
    monkeypatch.setattr(host, "IDLE_LOOK_S", 0.05)
    async with opened(SPINS) as guest:
        assert code(await run(guest)) == "ran"
        await wait_until(lambda: not guest.alive, "it is ended")
        assert guest.verdict is not None
        assert guest.verdict.code == "E367"
        assert "in which nothing was asked of it" in guest.verdict.text


async def test_a_guest_that_waits_is_left_alone(monkeypatch: pytest.MonkeyPatch, wait_until: Any) -> None:
    """However often it is looked at; its work does not count, however much it was."""
    monkeypatch.setattr(host, "IDLE_LOOK_S", 0.01)
    looks = 0
    check = Guest.check_idle

    def counted(guest: Guest) -> None:
        nonlocal looks
        looks += 1
        check(guest)

    monkeypatch.setattr(Guest, "check_idle", counted)
    busy = "until = time.process_time() + 0.7\nwhile time.process_time() < until: pass"
    async with opened(busy) as guest:
        assert code(await run(guest)) == "ran"
        looks = 0
        await wait_until(lambda: looks > 20, "it was looked at")
        assert code(await run(guest, None)) == "ran"


CALLS = """
import requests
class Runnable:
    def process(self, queries):
        failed = []
        for _ in range(queries[0]["calls"]):
            try:
                requests.post(queries[0]["url"], data="x" * 500_000)
            except Exception as err:
                failed.append(type(err).__name__)
        return [[len(failed), *sorted(set(failed))]]
"""


def resident_mb() -> float:
    status = Path("/proc/self/statm").read_text().split()
    return (int(status[1]) - int(status[2])) * 4096 / 1e6


@pytest.mark.parametrize(
    ("url", "allowed", "raised"),
    [
        ("http://elsewhere.example/", ("here.example",), "RequestException"),
        ("http://127.0.0.1:{port}/", ("127.0.0.1:{port}",), "ConnectionError"),
    ],
)
async def test_calls_that_fail_leave_nothing_in_the_host(
    url: str, allowed: tuple[str, ...], raised: str, free_port: int, spawned: Any, one: Any
) -> None:
    """What a call had with it is gone when it is answered, and not when the collector comes by.

    `python tests/bench/calls.py` does 10,000 of each.
    """
    hosts = [each.format(port=free_port) for each in allowed]
    async with outside(*hosts) as calls, spawned(CALLS, calls.perform, requests=1000, wall_s=60) as guest:
        query = {"url": url.format(port=free_port), "calls": 20}
        await guest.run([one(query)])
        gc.collect()
        gc.disable()
        try:
            before = resident_mb()
            outcome = await guest.run([one({**query, "calls": 200}, context=None)])
            grown = resident_mb() - before
        finally:
            gc.enable()
    assert isinstance(outcome, Ran), outcome
    assert [orjson.loads(output.body) for output in outcome.outputs] == [[200, raised]]
    assert grown < 20, f"{grown:.0f} MB are left of 100 MB that were sent"


async def test_an_unexpected_error_of_a_call_is_that_calls_failure(
    spawned: Any, one: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The Runnable sees E365, the log has the traceback, and the guest lives on."""
    source = """
class Runnable:
    def process(self, queries):
        try:
            return self.get_stock_data("IBM")
        except Exception as err:
            if queries[0]:
                raise
            return [str(err)]
"""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        if arguments["ticker"] == "IBM":
            raise RecursionError("deep in ours")
        return object()

    async with spawned(source, perform) as guest:
        with caplog.at_level(logging.ERROR, "processor"):
            caught = await guest.run([one(0)])
            uncaught = await guest.run([one(1, context=None)])
        assert guest.alive
    assert isinstance(caught, Ran)
    assert b"an error of Processor's own" in caught.outputs[0].body
    assert b"deep in ours" not in caught.outputs[0].body
    assert isinstance(uncaught, Failed)
    assert (uncaught.failure.code, uncaught.failure.lethal) == ("E365", False)
    assert "deep in ours" in caplog.text


async def test_an_answer_that_cannot_be_written_is_that_calls_failure(spawned: Any, one: Any) -> None:
    """The same for what a capability brings."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        return object()

    source = "class Runnable:\n    def process(self, queries):\n        return self.get_stock_data('IBM')\n"
    async with spawned(source, perform) as guest:
        assert code(await guest.run([one(0)])) == "E365"
        assert guest.alive


async def test_a_refusal_stays_what_it_was(spawned: Any, one: Any) -> None:
    """A ProcessorError is a refusal with its own code, not an error of ours."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        raise ProcessorError("E325", "not an allowed host")

    source = "class Runnable:\n    def process(self, queries):\n        return self.get_stock_data('IBM')\n"
    async with spawned(source, perform) as guest:
        assert code(await guest.run([one(0)])) == "E325"


@pytest.mark.parametrize("name", ["chr(0xd800)", "'e' + chr(0xdfff)"])
async def test_an_events_name_is_text(spawned: Any, one: Any, name: str) -> None:
    """A lone surrogate is the Runnable's own error, caught or not, and no fault of the runtime's."""
    source = f"class Runnable:\n    def process(self, queries):\n        self.event({name}, 1)\n"
    async with spawned(source) as guest:
        outcome = await guest.run([one(0)])
        assert isinstance(outcome, Failed)
        assert outcome.failure.code == "E304"
        assert outcome.failure.text == "ValueError: an event's name holds a lone surrogate, which is not text"
        assert guest.alive


@pytest.mark.parametrize("before", ["", "self.context['pad'] = 'x' * 9000\n        "])
async def test_the_name_of_an_item_is_bounded(spawned: Any, one: Any, before: str) -> None:
    """A name may have 8,192 bytes, whatever the size of its context; a longer one is refused (E309)."""
    for name, outcome_code in (("'ü' * 4096", "ran"), ("'n' * 8193", "E309"), ("'n' * 70000", "E309")):
        source = f"""
class Runnable:
    def process(self, queries):
        {before}self.context[{name}] = 1
"""
        async with spawned(source) as guest:
            outcome = await guest.run([one(0)])
            assert code(outcome) == outcome_code
            if isinstance(outcome, Failed):
                assert "a name may have 8192" in outcome.failure.text
