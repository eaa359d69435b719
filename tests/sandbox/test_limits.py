"""Each limit of a guest by its name: what is tried, the code that it ends with, and that the rest goes on.

The first tests leave the language out (`jailed`), because a Runnable cannot even write these down; the
others are Runnables in real guests.
"""

from __future__ import annotations

import asyncio
import re
import resource
import signal
from typing import Any

import pytest

from processor.errors import Faults
from processor.model import Failed, Limits, Program, Ran
from processor.sandbox.host import Zygote


def processing(*lines: str) -> str:
    body = "\n".join(f"        {line}" for line in lines)
    return f"class Runnable:\n    def process(self, queries):\n{body}\n"


def failure(outcome: Any) -> Any:
    assert isinstance(outcome, Failed), outcome
    return outcome.failure


# With the language out of the way.


def test_cannot_fork(jailed) -> None:
    """A sealed process has no children."""
    assert jailed("os.fork()").exit == -signal.SIGSYS


def test_cannot_open_a_socket(jailed) -> None:
    """A sealed process has no network."""
    assert jailed("socket.socket().connect(('127.0.0.1', 4222))").exit == -signal.SIGSYS


def test_cannot_read_a_file(jailed) -> None:
    """A sealed process reads no file, be it ever so public."""
    assert re.match("PermissionError", jailed("open('/etc/hostname').read()").error)


def test_cannot_read_the_environment(jailed) -> None:
    """A sealed process has inherited no environment, and cannot read that of another."""
    assert jailed("result = 'PATH' in os.environ or 'HOME' in os.environ").result is False
    assert re.match("PermissionError", jailed("open('/proc/1/environ').read()").error)


@pytest.mark.parametrize("line", ["import os", "import socket", "open('/etc/hostname')", "eval('1')"])
async def test_cannot_write_it_down_either(line: str) -> None:
    """What the jail would stop is refused by the language first, with its line."""
    zygote = await Zygote.start()
    try:
        with pytest.raises(Faults, match=r"a\.py:3:\d+ E20[23]"):
            await zygote.spawn(Program(processing(line), "a.py"), Limits())
    finally:
        await zygote.close()


# Memory.


async def test_cannot_fill_memory(spawned, one) -> None:
    """More memory than the limit is E313, the guest is given up, and the host's memory is untouched."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = processing("data = []", "while True:", "    data.append('x' * (1 << 20) + str(len(data)))")
    async with spawned(source, memory_mb=64) as guest:
        failed = failure(await guest.run([one({})]))
        assert not guest.alive
    assert (failed.code, failed.lethal) == ("E313", True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000


@pytest.mark.parametrize(
    "line",
    ["'x' * (1 << 40)", "[0] * (1 << 34)", "return ['x' * (1 << 20)] * (1 << 12)", "10 ** (10 ** 9)"],
)
async def test_cannot_fill_memory_at_once(spawned, one, line: str) -> None:
    """One huge object, or one that is only huge when it is written, is no way around the limit."""
    async with spawned(processing(line), memory_mb=64, wall_s=1.0, output_bytes=1 << 20) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code in ("E313", "E312", "E307", "E304"), failed


async def test_a_crash_at_the_limit_is_called_by_its_cause(spawned, one) -> None:
    """JSON writing that dies of a refused allocation is E313 as well, and not a crash without a reason."""
    source = processing("text = 'x' * (1 << 20)", "return [[text] * 10_000]")
    async with spawned(source, memory_mb=64, output_bytes=64 << 30) as guest:
        failed = failure(await guest.run([one({})]))
    assert (failed.code, failed.lethal) == ("E313", True)


async def test_a_memory_error_may_be_caught(spawned, one) -> None:
    """Code that catches MemoryError goes on in its guest; the limit only refuses the allocation."""
    source = processing("try:", "    'x' * (1 << 33)", "except MemoryError:", "    return 'too much'")
    async with spawned(source, memory_mb=64) as guest:
        outcome = await guest.run([one({})])
        assert guest.alive
    assert outcome.outputs[0].body == b'"too much"'


async def test_small_memory_is_enough_for_small_work(spawned, one) -> None:
    """The limit is on top of what the interpreter needs: 16 MB are plenty for ordinary messages."""
    async with spawned(processing("return queries"), memory_mb=16) as guest:
        outcome = await guest.run([one(*[{"n": n, "text": "x" * 200} for n in range(500)])])
    assert len(outcome.outputs) == 500


# Time.

LOOPS = [
    ("a plain loop", ["while True:", "    pass"]),
    (
        "one that swallows everything",
        ["while True:", "    try:", "        1 / 0", "    except BaseException:", "        continue"],
    ),
    ("one in finally", ["try:", "    return 1", "finally:", "    while True:", "        pass"]),
    ("one inside C code", ["sum(range(10 ** 12))"]),
    ("one number", ["return len(str(7 ** (10 ** 8)))"]),
    ("a regular expression", ["import re", "re.match('(a+)+$', 'a' * 60 + 'b')"]),
    ("a sleeping one", ["import time", "time.sleep(3600)"]),
    ("a generator that is never done", ["return (n for n in iter(int, 1) if n)"]),
]


@pytest.mark.parametrize("lines", [lines for _, lines in LOOPS], ids=[name for name, _ in LOOPS])
async def test_cannot_outlive_its_wall_time(spawned, one, within, lines: list[str]) -> None:
    """Whatever keeps a guest busy, or asleep, it is dead soon after its wall time, with E312."""
    async with spawned(processing(*lines), wall_s=0.3) as guest:
        failed = failure(await within(5, guest.run([one({})])))
        assert not guest.alive
    assert (failed.code, failed.lethal) == ("E312", True)
    assert re.fullmatch(r"stopped after \d\.\d\d s of wall time \(limit 0\.3 s\)", failed.text)


async def test_the_line_that_was_running_is_told(spawned, one) -> None:
    """Where the interpreter still turns, the failure shows the user's line."""
    async with spawned(processing("while True:", "    pass"), wall_s=0.2) as guest:
        failed = failure(await guest.run([one({})]))
    assert re.search(r'runnable\.py", line [34]', failed.traceback)


async def test_cannot_close_a_generator_for_ever(spawned, one, within) -> None:
    """A generator that goes on in its finally does so inside the run's time."""
    source = """
class Runnable:
    def process(self, queries):
        try:
            while True:
                yield 1
        finally:
            while True:
                pass
"""
    async with spawned(source, wall_s=0.3, outputs=5) as guest:
        failed = failure(await within(5, guest.run([one({})])))
        assert not guest.alive
    assert failed.code == "E312"


@pytest.mark.parametrize("line", ["while True: pass", "sum(range(10 ** 12))"])
async def test_cannot_spin_longer_than_its_cpu_time(spawned, one, within, line: str) -> None:
    """Processor time is limited by itself: E311 long before the wall time is over."""
    async with spawned(processing(line), cpu_s=0.3, wall_s=30) as guest:
        failed = failure(await within(10, guest.run([one({})])))
        assert not guest.alive
    assert (failed.code, failed.lethal) == ("E311", True)
    assert re.fullmatch(r"stopped after \d\.\d\d s of CPU time \(limit 0\.3 s\)", failed.text)


async def test_cpu_time_is_counted_per_run(spawned, one) -> None:
    """A guest that has worked for long has its full share in the next run."""
    source = processing("return sum(range(3_000_000))")
    async with spawned(source, cpu_s=0.5) as guest:
        for _ in range(8):
            assert isinstance(await guest.run([one({})]), Ran)


async def test_a_swallowed_generator_exit_ends_with_the_run(spawned, one, within) -> None:
    """A stream that answers close() with another value is over all the same."""
    source = """
class Runnable:
    def process_stream(self, query):
        while True:
            try:
                yield 'x' * 1000
            except BaseException:
                pass
"""

    async def emit(_: bytes) -> None:
        pass

    async with spawned(source, output_bytes=10_000) as guest:
        failed = failure(await within(5, guest.stream(one({}), emit)))
    assert failed.code in ("E307", "E304")


# Quantity.


@pytest.mark.parametrize(
    "line, limits",
    [
        ("return list(range(1, 12))", {"outputs": 10}),
        ("return ({'n': n} for n in iter(int, 1))", {"outputs": 10}),
        ("return ['x' * 600, 'y' * 600]", {"output_bytes": 1000}),
        ("return 'x' * 5_000_000", {"output_bytes": 1000}),
    ],
)
async def test_cannot_flood_outputs(spawned, one, line: str, limits: dict[str, int]) -> None:
    """More outputs, or more bytes of them, than the limit is E307, and the guest goes on."""
    async with spawned(processing(line), **limits) as guest:
        failed = failure(await guest.run([one({})]))
        assert guest.alive
    assert (failed.code, failed.lethal) == ("E307", False)


async def test_as_many_outputs_as_allowed_are_allowed(spawned, one) -> None:
    """The limit itself is not over the limit."""
    async with spawned(processing("return list(range(1, 11))"), outputs=10) as guest:
        assert len((await guest.run([one({})])).outputs) == 10


@pytest.mark.parametrize("swallow", [False, True])
async def test_cannot_flood_events(spawned, one, swallow: bool) -> None:
    """Events have the outputs' limit; catching the refusal does not hide it."""
    lines = ["for n in range(20):", "    self.event('e', n)"]
    if swallow:
        lines = ["for n in range(20):", "    try:", "        self.event('e', n)", "    except BaseException:",
                 "        pass"]  # fmt: skip
    async with spawned(processing(*lines), outputs=10) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E307"


async def test_cannot_flood_logs(spawned, one) -> None:
    """Log lines beyond the limit are counted, long ones cut; the run itself succeeds."""
    source = processing("for n in range(5000):", "    print('x' * 3000)")
    async with spawned(source, log_lines=20) as guest:
        outcome = await guest.run([one({})])
        again = await guest.run([one({})])
    assert isinstance(outcome, Ran)
    assert len(outcome.logs) == len(again.logs) == 21
    assert {len(line.text) for line in outcome.logs[:20]} == {1000}
    assert outcome.logs[20].text == "4980 lines over the limit of 20 dropped"


async def test_cannot_grow_the_context(spawned, one) -> None:
    """A context over its limit is E310, and what it held before the run is what it holds."""
    source = processing(
        "self.context['n'] = self.context.get('n', 0) + 1", "self.context['big'] = 'x' * queries[0]",
        "return self.context['n']",
    )  # fmt: skip
    async with spawned(source, context_bytes=10_000) as guest:
        await guest.run([one(100)])
        failed = failure(await guest.run([one(20_000, context=None)]))
        outcome = await guest.run([one(100, context=None)])
    assert (failed.code, failed.lethal) == ("E310", False)
    assert outcome.outputs[0].body == b"2"


async def test_cannot_flood_a_stream(spawned, one) -> None:
    """A stream is limited in bytes and in chunks, a hundred for each output."""
    source = (
        "class Runnable:\n    def process_stream(self, query):\n        while True:\n            yield 'x'\n"
    )
    chunks = 0

    async def emit(_: bytes) -> None:
        nonlocal chunks
        chunks += 1

    async with spawned(source, outputs=2) as guest:
        failed = failure(await guest.stream(one({}), emit))
    assert failed.code == "E307"
    assert chunks == 200


async def test_cannot_make_more_requests_than_allowed(spawned, one) -> None:
    """The host performs no call beyond the limit; each one over it is refused with a sentence."""
    source = processing(
        "said = []", "for n in range(5):", "    try:", "        said.append(self.get_stock_data('IBM'))",
        "    except Exception as err:", "        said.append(str(err))", "return said",
    )  # fmt: skip
    performed = 0

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        nonlocal performed
        performed += 1
        return performed

    async with spawned(source, perform, requests=2) as guest:
        outcome = await guest.run([one({})])
        again = await guest.run([one({}, context=None)])
    refusal = b'"stock: more than 2 requests in one run (limits.requests)"'
    assert [output.body for output in outcome.outputs] == [b"1", b"2", refusal, refusal, refusal]
    assert [output.body for output in again.outputs][:3] == [b"3", b"4", refusal]


async def test_cannot_call_for_ever(spawned, one, within) -> None:
    """Refused calls cost the host time as well, so a guest that never stops calling is killed."""
    source = processing(
        "while True:", "    try:", "        self.get_stock_data('IBM')", "    except Exception:",
        "        pass",
    )  # fmt: skip
    async with spawned(source, wall_s=60, cpu_s=60) as guest:
        failed = failure(await within(20, guest.run([one({})])))
    assert failed.code == "E315"


async def test_many_large_contexts_are_split_by_the_caller(spawned, one) -> None:
    """Contexts that together exceed what one answer carries are E307, which a smaller run avoids."""
    source = processing("self.context['v'] = 'x' * 900_000")
    async with spawned(source, context_bytes=1_000_000, output_bytes=1000) as guest:
        groups = [one({}, key=str(n)) for n in range(10)]
        failed = failure(await guest.run(groups))
        assert len((await guest.run(groups[:5])).contexts) == 5
    assert (failed.code, failed.lethal) == ("E307", False)


async def test_cannot_wait_longer_than_its_wall_time_for_the_host(spawned, one, within) -> None:
    """A call that the host is slow to perform counts as the guest's time, and is given up with it."""
    cancelled = asyncio.Event()

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with spawned(processing("self.get_stock_data('IBM')"), perform, wall_s=0.3) as guest:
        failed = failure(await within(5, guest.run([one({})])))
        await within(5, cancelled.wait())
    assert failed.code == "E312"


async def test_recursion_is_an_ordinary_failure(spawned, one) -> None:
    """Endless recursion is the user's RecursionError, and the guest goes on."""
    source = "class Runnable:\n    def process(self, queries):\n        return self.process(queries)\n"
    async with spawned(source) as guest:
        failed = failure(await guest.run([one({})]))
        assert guest.alive
    assert (failed.code, failed.lethal) == ("E304", False)
    assert failed.text.startswith("RecursionError")


async def test_no_limit_means_none(spawned, one) -> None:
    """Zero memory and endless CPU time lift those two limits; the wall time stays."""
    source = processing("x = bytearray(400 << 20)", "return len(x)")
    async with spawned(source, memory_mb=0, cpu_s=float("inf")) as guest:
        assert (await guest.run([one({})])).outputs[0].body == b"419430400"
