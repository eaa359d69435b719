"""Each limit of a guest by its name: what is tried, the code that it ends with, and that the rest goes on.

The first tests leave the language out (`jailed`), because a Runnable cannot even write these down; the
others are Runnables in real guests.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import signal
from dataclasses import fields
from typing import Any

import pytest

from processor.errors import Faults
from processor.model import Emit, Failed, Group, Limits, Program, Ran
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
    assert failed.code in ("E313", "E312", "E307", "E318", "E304"), failed


async def test_a_crash_at_the_limit_is_called_by_its_cause(spawned, one) -> None:
    """JSON writing that dies of a refused allocation is E313 as well, and not a crash without a reason."""
    source = processing("text = 'x' * (1 << 20)", "return [[text] * 10_000]")
    async with spawned(source, memory_mb=64, output_bytes=64 << 30) as guest:
        failed = failure(await guest.run([one({})]))
    assert (failed.code, failed.lethal) == ("E313", True)


async def test_a_crash_for_want_of_address_space_is_called_by_its_cause(spawned, one) -> None:
    """A long list whose text needs more room than there is, is E313, though little memory was ever used."""
    async with spawned(processing("return [[[0] * 1_000_000]]"), memory_mb=64) as guest:
        failed = failure(await guest.run([one({})]))
    assert (failed.code, failed.lethal) == ("E313", True)


async def test_a_memory_error_may_be_caught(spawned, one) -> None:
    """Code that catches MemoryError goes on in its guest; the limit only refuses the allocation."""
    source = processing("try:", "    'x' * (1 << 33)", "except MemoryError:", "    return 'too much'")
    async with spawned(source, memory_mb=64) as guest:
        outcome = await guest.run([one({})])
        assert guest.alive
    assert outcome.outputs[0].body == b'"too much"'


@pytest.mark.parametrize(
    "making", ["zfill(1 << 40)", "ljust(1 << 40)", "center(1 << 40)", "__mul__(1 << 40)"]
)
async def test_a_bytearray_that_cannot_be_made_is_a_memory_error(spawned, one, making: str) -> None:
    """CPython complains of the one that it could not make; that does not end the guest."""
    source = processing(
        "try:", f"    bytearray(b'a').{making}", "except MemoryError:", "    return 'too much'"
    )
    async with spawned(source, memory_mb=64) as guest:
        outcome = await guest.run([one({})])
    assert isinstance(outcome, Ran), outcome
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
    ("one that is sorted", ["sorted([1, 2], key=lambda n: max(iter(int, 1)))"]),
    ("one search after the other", ["x = [0] * 1_000_000", "while True:", "    1 in x"]),
    ("one iterator emptied", ["import collections, itertools", "collections.deque(itertools.repeat(1), 0)"]),
    ("one that is out of memory", ["while True:", "    try:", "        'x' * (1 << 40)",
        "    except MemoryError:", "        continue"]),
    ("one that continues in finally", ["while True:", "    try:", "        return 1", "    finally:",
        "        continue"]),
    ("one that sleeps again", ["import time", "while True:", "    try:", "        time.sleep(1)",
        "    except BaseException:", "        pass"]),
    ("an abandoned generator", ["def g():", "    try:", "        yield", "    finally:",
        "        while True:", "            pass", "next(g())"]),
]  # fmt: skip


@pytest.mark.parametrize("lines", [lines for _, lines in LOOPS], ids=[name for name, _ in LOOPS])
async def test_cannot_outlive_its_wall_time(spawned, one, within, lines: list[str]) -> None:
    """Whatever keeps a guest busy, or asleep, it is dead soon after its wall time, with E312."""
    async with spawned(processing(*lines), wall_s=0.3) as guest:
        failed = failure(await within(5, guest.run([one({})])))
        assert not guest.alive
    assert (failed.code, failed.lethal) == ("E312", True)
    assert re.fullmatch(r"stopped after \d\.\d\d s of wall time \(limit 0\.3 s\)", failed.text)


SPIN = "while True:\n            pass\n"
# A base class and a method of it that spins, and what makes us call it.
ODD = [
    ("object", "__lt__(self, other)", ["sorted([Odd(), Odd()])"]),
    ("object", "__eq__(self, other)", ["Odd() in [Odd()]"]),
    ("object", "__enter__(self)", ["with Odd():", "    pass"]),
    ("object", "__iter__(self)", ["yield from Odd()"]),
    ("Exception", "__str__(self)", ["raise Odd()"]),
    ("dict", "__bool__(self)", ["return Odd(a=1)"]),
    ("dict", "__len__(self)", ["return Odd(a=1)"]),
    ("dict", "__iter__(self)", ["return [Odd(a=1)]"]),
    ("dict", "__getitem__(self, key)", ["return [{'a': Odd(a=1)}]"]),
    ("list", "__iter__(self)", ["self.event('e', Odd([1]))"]),
    ("int", "__repr__(self)", ["return [{Odd(1): float('nan')}]"]),
]


@pytest.mark.parametrize(("base", "method", "lines"), ODD, ids=[f"{b}.{method}" for b, method, _ in ODD])
async def test_cannot_spin_where_we_call_its_methods(
    spawned, one, within, base: str, method: str, lines: list[str]
) -> None:
    """Methods that run while we compare, print or write a value of the user's are in the run's time."""
    odd = (
        f"class Odd({base}):\n    def __exit__(self, *why):\n        pass\n    def {method}:\n        {SPIN}"
    )
    async with spawned(odd + processing(*lines), wall_s=0.3) as guest:
        failed = failure(await within(5, guest.run([one({})])))
    assert (failed.code, failed.lethal) == ("E312", True)


@pytest.mark.parametrize(
    "source",
    [
        f"class Runnable:\n    process = len\n    def init(self):\n        {SPIN}",
        f"class Runnable:\n    process = len\n    def __init__(self):\n        {SPIN}",
        f"class Runnable:\n    @property\n    def process(self):\n        {SPIN}",
        f"class Runnable:\n    def process_stream(self, query):\n        {SPIN}        yield\n",
        f"class Runnable:\n    def process_stream(self, query):\n        yield 1\n        {SPIN}",
        "class Runnable:\n    def process_stream(self, query):\n        try:\n            yield 1\n"
        "        finally:\n            while True:\n                pass\n",
        "class Odd:\n    def __iter__(self):\n        return self\n    def __next__(self):\n"
        f"        {SPIN}class Runnable:\n    def process_stream(self, query):\n        return Odd()\n",
    ],
)
async def test_cannot_spin_in_any_method_of_a_runnable(spawned, one, within, source: str) -> None:
    """init(), the constructor, a property, and a stream before, between and after its chunks."""

    async def emit(_: bytes) -> None:
        pass

    async with spawned(source, wall_s=0.3) as guest:
        run = guest.stream(one({}), emit) if "_stream" in source else guest.run([one({})])
        failed = failure(await within(5, run))
    assert (failed.code, failed.lethal) == ("E312", True)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("while True: pass", "more than 0.3 s of wall time"),
        ("sum(iter(int, 1))", "wall time"),
        ("x = 'x' * (1 << 40)", "more memory than its limit"),
    ],
)
async def test_cannot_outlive_its_limits_while_it_is_loaded(within, line: str, why: str) -> None:
    """Module-level code has the limits of a run; what it does beyond them is E206."""
    zygote = await Zygote.start()
    try:
        program = Program(f"{line}\nclass Runnable: pass\n", "a.py")
        with pytest.raises(Faults, match=f"E206.*{why}"):
            await within(5, zygote.spawn(program, Limits(wall_s=0.3, memory_mb=64)))
    finally:
        await zygote.close()


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
        assert guest.alive
    assert failed.code == "E307"


# Quantity.


@pytest.mark.parametrize(
    "line, limits, code",
    [
        ("return list(range(1, 12))", {"outputs": 10}, "E324"),
        ("return ({'n': n} for n in iter(int, 1))", {"outputs": 10}, "E324"),
        ("return ['x' * 600, 'y' * 600]", {"output_bytes": 1000}, "E307"),
        ("return 'x' * 5_000_000", {"output_bytes": 1000, "max_string_length": 5_000_000}, "E307"),
    ],
)
async def test_cannot_flood_outputs(spawned, one, line: str, limits: dict[str, int], code: str) -> None:
    """More outputs than the limit is E324, more bytes of them E307, and the guest goes on."""
    async with spawned(processing(line), **limits) as guest:
        failed = failure(await guest.run([one({})]))
        assert guest.alive
    assert (failed.code, failed.lethal) == (code, False)


async def test_a_generator_that_resists_being_closed_has_still_made_too_many(spawned, one) -> None:
    """The reason that is told is the limit, not what the generator says to its end."""
    source = """
class Runnable:
    def process(self, queries):
        while True:
            try:
                yield 1
            except GeneratorExit:
                pass
"""
    async with spawned(source, outputs=10) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E324"


@pytest.mark.parametrize(("limits", "code"), [({"outputs": 2}, "E324"), ({"output_bytes": 1000}, "E307")])
async def test_cannot_flood_chunks(spawned, one, limits: dict[str, int], code: str) -> None:
    """A stream has a hundred chunks for each output of the limit, and its bytes; the guest goes on."""
    source = (
        "class Runnable:\n    def process_stream(self, query):\n        while True:\n            yield 'x'\n"
    )
    chunks = []

    async def emit(chunk: bytes) -> None:
        chunks.append(chunk)

    async with spawned(source, **limits) as guest:
        failed = failure(await guest.stream(one({}), emit))
        assert guest.alive
    assert (failed.code, failed.lethal) == (code, False)
    assert len(chunks) == limits.get("outputs", 10) * 100


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
        assert failure(await guest.run([one({})])).code == "E324"
    async with spawned(processing(*lines), output_bytes=10) as guest:
        assert failure(await guest.run([one({})])).code == "E307"


@pytest.mark.parametrize("swallow", [False, True])
async def test_cannot_flood_emits(spawned, one, swallow: bool) -> None:
    """What is emitted counts as outputs do, together with them; catching the refusal does not hide it."""
    lines = ["for n in range(queries[0]):", "    self.emit('a', n)", "return list(range(5))"]
    if swallow:
        lines[1:2] = ["    try:", "        self.emit('a', n)", "    except BaseException:", "        pass"]
    async with spawned(processing(*lines), outputs=10, emits=["a"]) as guest:
        assert failure(await guest.run([one(6)])).code == "E324"
        assert failure(await guest.run([one(20)])).code == "E324"
        ran = await guest.run([one(5)])
        assert (len(ran.emits), len(ran.outputs)) == (5, 5)
    async with spawned(processing(*lines), output_bytes=10, emits=["a"]) as guest:
        assert failure(await guest.run([one(6)])).code == "E307"
        assert failure(await guest.run([one(20)])).code == "E307"
        assert len((await guest.run([one(5)])).emits) == 5


EMITS = {
    "'b', 1": r"may not emit to 'b'; .* emits: \[\"a\", \"o\.\*\.>\", \"b\"\]",
    "'o.*.x', 1": "wildcard",
    "'a\\r\\nPUB b', 1": "characters",
    "'o.x.\\ud800', 1": "lone surrogate",
    "5, 1": "is a int",
    "'a', {1, 2}": "is a set, which JSON cannot express",
    "'a', float('nan')": "nan, which JSON cannot express",
    "'a', self.secrets": "Secrets, which JSON cannot express",
    "'a', 1, -1": "delay_s is -1",
    "'a', 1, float('nan')": "delay_s is nan",
    "'a', 1, 367 * 86400": "delay_s is 31708800",
    "'a', 1, '5'": "delay_s is a str",
    "'a', 1, True": "delay_s is a bool",
    "'a', 1, 0, {'Nats-Rollup': 'all'}": "Nats-Rollup cannot be set",
    "'a', 1, 0, {'processor-stream': 'end'}": "processor-stream cannot be set",
    "'a', 1, 0, {'a:b': 'x'}": "the name of a header is 'a:b'",
    "'a', 1, 0, {'a': 'x\\r\\nb: y'}": "the header a is not a text",
    "'a', 1, 0, {'a': 5}": "the header a is not a text",
    "'a', 1, 0, {'a': 'x' * 5000}": "5001 bytes of headers",
    "'a', 1, 0, {f'a{n}': '' for n in range(33)}": "33 headers",
}


async def test_what_cannot_be_emitted_is_a_value_error(spawned, one) -> None:
    """Whoever catches it goes on and has emitted nothing; the sentence says what is wrong."""
    lines = []
    for arguments in EMITS:
        lines += ["try:", f"    self.emit({arguments})", "    yield 'emitted'"]
        lines += ["except ValueError as err:", "    yield str(err)"]
    async with spawned(processing(*lines), emits=["a", "o.*.>"]) as guest:
        ran = await guest.run([one({})])
    assert ran.emits == []
    for (arguments, why), output in zip(EMITS.items(), ran.outputs, strict=True):
        assert re.search(why, json.loads(output.body)), arguments


async def test_what_can_be_emitted_is_as_it_was_given(spawned, one) -> None:
    """Subclasses of texts and numbers count as these; wildcards of the route's list mean what NATS means."""
    lines = ["class Text(str): pass", "class Number(float): pass", "texts = {Text('a'): Text('b')}"]
    lines += ["self.emit(Text('a'), Text('c'), Number(1.5), texts)", "self.emit('o.x.y.z', None, 2)"]
    async with spawned(processing(*lines), emits=["a", "o.*.>"]) as guest:
        ran = await guest.run([one({})])
    assert ran.emits == [Emit(0, "a", b'"c"', 1.5, {"a": "b"}), Emit(0, "o.x.y.z", b"null", 2.0, {})]


@pytest.mark.parametrize("method", ["__init__", "init"])
async def test_cannot_emit_while_a_context_is_taken_up(spawned, one, method: str) -> None:
    """That happens again after each death of a guest, and the message would be sent each time."""
    source = f"class Runnable:\n    process = len\n    def {method}(self):\n        self.emit('a', 1)\n"
    async with spawned(source, emits=["a"]) as guest:
        failed = failure(await guest.run([one({})]))
    assert (failed.code, failed.text) == (
        "E304",
        "RuntimeError: self.emit is for process and process_stream; init runs again after a restart",
    )


async def test_cannot_flood_logs(spawned, one) -> None:
    """Log lines beyond the limit are counted, long ones cut; the run itself succeeds."""
    source = processing("for n in range(5000):", "    print('x' * 3000)")
    async with spawned(source, log_lines=20) as guest:
        outcome = await guest.run([one({})])
        again = await guest.run([one({})])
    assert isinstance(outcome, Ran)
    assert len(outcome.logs) == len(again.logs) == 21
    assert {len(line.text) for line in outcome.logs[:20]} == {1000}
    assert outcome.logs[20].text.startswith("E321 dropped 4980 of the run's lines of log; ")
    assert outcome.logs[20].dropped == 4980


async def test_cannot_log_more_bytes_than_allowed(spawned, one) -> None:
    """The log is cut at the first line that has no room, characters of several bytes included."""
    source = processing("for n in range(10):", "    print('é' * 30)", "print('short')", "return 'done'")
    async with spawned(source, log_bytes=200) as guest:
        outcome = await guest.run([one({})])
        assert len((await guest.run([one({})])).logs) == 4
    assert outcome.outputs[0].body == b'"done"'
    assert [line.text for line in outcome.logs[:3]] == ["é" * 30] * 3
    assert (outcome.logs[3].level, outcome.logs[3].dropped) == ("warning", 8)
    assert "E321 dropped 8 " in outcome.logs[3].text


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
    refusal = b'"E322 stock: more than 2 requests for one message (limits.requests)."'
    assert [output.body for output in outcome.outputs] == [b"1", b"2", refusal, refusal, refusal]
    assert [output.body for output in again.outputs][:3] == [b"3", b"4", refusal]


async def test_every_message_has_its_own_requests(spawned, one) -> None:
    """A batch may make the limit's calls for each of its messages, and no message uses up another key's."""
    source = processing(
        "for n in range(queries[0]):", "    self.get_stock_data('IBM')", "return 'done'",
    )  # fmt: skip

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        return 1

    async with spawned(source, perform, requests=2) as guest:
        outcome = await guest.run([one(2, key=f"k{number}") for number in range(50)])
        shared = await guest.run([one(6, 0, 0, key="three")])
        failed = await guest.run([one(2, key="a"), one(5, 0, key="b")])
    assert [output.body for output in outcome.outputs] == [b'"done"'] * 50
    assert [output.body for output in shared.outputs] == [b'"done"']
    assert (failed.group, failed.failure.code) == (1, "E322")
    assert "more than 2 requests for each of 2 messages (limits.requests)" in failed.failure.text


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


# The shape of one value: length of texts and containers, depth.

SHAPE = {"max_string_length": 10, "max_container_length": 5, "max_depth": 4}
# What is over each bound by one, and what is just within it, as a Python expression of the user's.
BOUNDS = [
    ("E318", "'x' * 11", "'x' * 10"),
    ("E318", "{'k' * 11: 1}", "{'k' * 10: 1}"),
    ("E318", "[{'a': 'é' * 11}]", "[{'a': 'é' * 10}]"),
    ("E319", "[[0] * 6]", "[[0] * 5]"),
    ("E319", "{'a': {str(n): n for n in range(6)}}", "{'a': {str(n): n for n in range(5)}}"),
    ("E320", "{'a': [[[[]]]]}", "{'a': [[[1]]]}"),
    ("E320", "[[[[{'a': 1}]]]]", "[[[{'a': 1}]]]"),
    ("E320", "[[[[None, [1]]]]]", "[[[[None, 1]]]]"),
]
PLACES = {
    "an output": "return [VALUE]",
    "an output of a subclass": (
        "return [Dict(v=VALUE)['v'] if isinstance(VALUE, str) else Dict(VALUE) if isinstance(VALUE, dict) "
        "else List(VALUE)]"
    ),
    "an event": "self.event('e', VALUE)",
    "an emit": "self.emit('a', VALUE)",
    "a kept value": "self.context['v'] = VALUE",
}
CLASSES = "class Dict(dict): pass\nclass List(list): pass\n"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("code", "over", "within_it"), BOUNDS, ids=[over for _, over, _ in BOUNDS])
async def test_cannot_send_what_is_too_long_or_too_deep(
    spawned, one, place: str, code: str, over: str, within_it: str
) -> None:
    """Outputs, events and kept values have bounds; the failure has its code, and the guest goes on."""
    line = PLACES[place]
    source = CLASSES + processing(
        "if queries[0]:",
        f"    {line.replace('VALUE', over)}",
        "else:",
        f"    {line.replace('VALUE', within_it)}",
    )
    async with spawned(source, emits=["a"], **SHAPE) as guest:
        failed = failure(await guest.run([one(1)]))
        assert isinstance(await guest.run([one(0)]), Ran)
    assert (failed.code, failed.lethal) == (code, False)
    assert re.search(r"limits\.max_", failed.text)


@pytest.mark.parametrize(("code", "over", "within_it"), BOUNDS, ids=[over for _, over, _ in BOUNDS])
async def test_a_message_that_is_too_long_or_too_deep_is_rejected_alone(
    spawned, one, code: str, over: str, within_it: str
) -> None:
    """It never reaches the Runnable, and the other messages of its batch do."""
    async with spawned(processing("return len(queries)"), **SHAPE) as guest:
        outcome = await guest.run([one(eval(within_it), {"v": eval(over)}, 1)])
    [(group, index, why)] = outcome.rejected
    assert (group, index, why.code) == (0, 1, code)
    assert why.text.startswith(("the message['v']", "a key of the message['v']"))
    assert len(outcome.outputs) == 1


async def test_a_list_of_documents_is_a_container(spawned, one) -> None:
    """One message with too many documents is rejected like any other container."""
    async with spawned(processing("return len(queries)"), max_container_length=100) as guest:
        outcome = await guest.run([one([1] * 100, [1] * 101)])
    assert outcome.outputs[0].body == b"100"
    [(_, index, why)] = outcome.rejected
    assert (index, why.code) == (1, "E319")
    assert why.text == "the message holds 101 items; limits.max_container_length is 100"


@pytest.mark.parametrize("depth", [101, 1000, 1025, 100_000])
async def test_however_deep_a_message_is_it_is_too_deep(spawned, one, depth: int) -> None:
    """Beyond what our JSON reader reads it is E320 as well, and not called something else than JSON."""
    text = b"[" * depth + b"]" * depth
    async with spawned(processing("return queries")) as guest:
        outcome = await guest.run([Group("", [text, b"12345678901234567890" + b" " * 9, text], {})])
    assert [(index, why.code) for _, index, why in outcome.rejected] == [(0, "E320"), (2, "E320")]


@pytest.mark.parametrize("depth", [101, 250, 300])
async def test_however_deep_an_output_is_it_is_too_deep(spawned, one, depth: int) -> None:
    """Beyond what our JSON writer writes it is E320 as well."""
    source = processing(
        "value = 1", f"for _ in range({depth}):", "    value = [value]", "return {'v': value}"
    )
    async with spawned(source) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E320"
    assert "more than 100 levels deep" in failed.text
    assert len(failed.text) < 300


@pytest.mark.parametrize("chunk", ["'x' * 11", "{'v': 'x' * 11}"])
async def test_cannot_stream_a_text_that_is_too_long(spawned, one, chunk: str) -> None:
    """A chunk is a value like any other, be it text or JSON."""
    source = f"class Runnable:\n    def process_stream(self, query):\n        yield {chunk}\n"

    async def emit(_: bytes) -> None:
        raise AssertionError("it was sent")

    async with spawned(source, **SHAPE) as guest:
        failed = failure(await guest.stream(one({}), emit))
    assert failed.code == "E318"
    assert re.match(r"chunk 1(\['v'\])? is 11 characters long", failed.text)


async def test_the_name_of_an_event_is_a_text(spawned, one) -> None:
    """It has the same bound; whoever catches the refusal has no event."""
    lines = ["try:", "    self.event('e' * 11)", "except ValueError as err:", "    return str(err)"]
    async with spawned(processing(*lines), **{**SHAPE, "max_string_length": 10}) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E318"  # the sentence is an output, and a text as well
    async with spawned(processing(*lines), max_string_length=100) as guest:
        assert (await guest.run([one({})])).events[0].name == "e" * 11


@pytest.mark.parametrize(
    ("answer", "code"), [("x" * 11, "E318"), ([0] * 6, "E319"), ([[[[[0]]]]], "E320"), ("x" * 10, None)]
)
async def test_an_answer_is_a_value_like_any_other(spawned, one, answer: Any, code: str | None) -> None:
    """What a call brings is refused where it is over a bound; the Runnable may catch that."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        return answer

    async with spawned(processing("self.get_stock_data('IBM')"), perform, **SHAPE) as guest:
        outcome = await guest.run([one({})])
    if code is None:
        assert isinstance(outcome, Ran)
    else:
        assert failure(outcome).code == code


async def test_an_argument_is_a_value_like_any_other(spawned, one) -> None:
    """A call with a text that is too long is never made."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        raise AssertionError("it was performed")

    async with spawned(processing("self.get_stock_data('I' * 11)"), perform, **SHAPE) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E318"


@pytest.mark.parametrize(
    ("value", "code", "where"),
    [
        ("b'x' * 11", "E318", "context['v'] is 11 bytes long"),
        ("{('x' * 11, 1)}", "E318", "an element of context['v'] is 11 characters long"),
        ("{1: 'x' * 11}", "E318", "context['v'][1] is 11 characters long"),
        ("set(range(6))", "E319", "context['v'] holds 6 items"),
        ("collections.deque(range(6))", "E319", "context['v'] holds 6 items"),
        ("collections.Counter('abcdef')", "E319", "context['v'] holds 6 items"),
        ("[[[{1}]]]", "E320", "context['v'][0][0][0] is more than 4 levels deep"),
    ],
)
async def test_every_kept_type_has_bounds(spawned, one, value: str, code: str, where: str) -> None:
    """Bytes, sets, deques, counters and what is in them, with the path of the part that is too much."""
    source = "import collections\n" + processing(f"self.context['v'] = {value}")
    async with spawned(source, **SHAPE) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == code
    assert failed.text.startswith(where)


async def test_a_key_of_the_context_is_a_text(spawned, one) -> None:
    """The names of what is kept have the bound of every other text."""
    async with spawned(processing("self.context['k' * 11] = 1"), **SHAPE) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E318"
    assert failed.text.startswith("a key of context is 11 characters long")


# Every limit, by its name: a value, what goes beyond it, and the code that it ends with. But for
# `calls_at_once`: what is more waits in the guest, and one that does not wait is in test_calls_at_once.
BY_NAME: dict[str, tuple[float, list[str], str]] = {
    "memory_mb": (64, ["x = 'x' * (1 << 28)"], "E313"),
    "cpu_s": (0.2, ["while True: pass"], "E311"),
    "wall_s": (0.2, ["import time", "time.sleep(60)"], "E312"),
    "requests": (0, ["self.get_stock_data('IBM')"], "E322"),
    "calls": (
        0,  # no fewer than requests, which are calls, too
        [
            "for _ in range(101):",
            "    try:",
            "        self.get_stock_data('IBM')",
            "    except CapabilityError as err:",
            "        if err.code == 'E322':",
            "            raise",
        ],
        "E322",
    ),
    "output_bytes": (100, ["return 'x' * 100"], "E307"),
    "outputs": (2, ["return [1, 2, 3]"], "E324"),
    "context_bytes": (100, ["self.context['v'] = 'x' * 100"], "E310"),
    "log_lines": (1, ["print(1)", "print(2)"], "E321"),
    "log_bytes": (10, ["print('x' * 11)"], "E321"),
    "max_string_length": (10, ["return 'x' * 11"], "E318"),
    "max_container_length": (10, ["return [list(range(11))]"], "E319"),
    "max_depth": (2, ["return [[[[]]]]"], "E320"),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Limits) if field.name != "calls_at_once"])
async def test_every_limit_has_its_code(spawned, one, within, name: str) -> None:
    """Whatever goes beyond a limit is told by the limit's own code, and nothing of the run has an effect."""
    limit, lines, code = BY_NAME[name]

    async def perform(_: str, arguments: dict[str, Any]) -> Any:
        if name == "calls":
            return {}
        raise AssertionError("it was performed")

    async with spawned(processing(*lines), perform, **{name: limit}) as guest:
        outcome = await within(5, guest.run([one({})]))
    if code == "E321":
        assert isinstance(outcome, Ran)
        assert outcome.logs[-1].text.startswith("E321 dropped 1 of the run's lines")
    else:
        assert failure(outcome).code == code
