"""What a guest promises the worker: real guests, one zygote per test."""

from __future__ import annotations

import asyncio
import marshal
import os
import resource
import signal
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from processor.errors import Faults, ProcessorError
from processor.model import Failed, Group, Limits, Program, Ran
from processor.sandbox.endings import Ending, OutOfMemoryKills, explain
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.languages import Footing
from processor.sandbox.launch import raise_descriptor_limit
from processor.sandbox.offer import NOTHING

COUNTER = """
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries):
        self.context['counter'] += len(queries)
        return [{**query, 'counter': self.context['counter']} for query in queries]
"""


def returning(expression: str, before: str = "") -> str:
    return f"""
import math
from datetime import datetime
{before}
class Runnable:
    def process(self, queries):
        return {expression}
"""


def bodies(outcome: Any) -> list[bytes]:
    assert isinstance(outcome, Ran), outcome
    return [output.body for output in outcome.outputs]


def failure(outcome: Any) -> Any:
    assert isinstance(outcome, Failed), outcome
    return outcome.failure


# Messages in, documents out.


async def test_process_is_called_once_per_group_in_order(spawned, one) -> None:
    """Each group is one call of process; outputs come in order and name their group."""
    source = returning("{'got': queries}")
    async with spawned(source) as guest:
        outcome = await guest.run([one({"a": 1}, {"a": 2}), one({"a": 3}, key="k"), one({"a": 4}, key="k")])
    assert [(output.group, output.body) for output in outcome.outputs] == [
        (0, b'{"got":[{"a":1},{"a":2}]}'),
        (1, b'{"got":[{"a":3}]}'),
        (2, b'{"got":[{"a":4}]}'),
    ]
    assert outcome.cpu_s > 0
    assert outcome.memory_bytes > 0


async def test_a_deadline_ends_with_its_run(spawned, one) -> None:
    """What a generator left open in one run bounds nothing in the next."""
    source = """
import asyncio

async def bounded():
    async with asyncio.timeout(0):
        yield 1

class Runnable:
    async def process(self, queries):
        self.open = getattr(self, "open", None) or bounded()
        return [next(self.open, 2), await asyncio.sleep(0.001, 3)] if queries[0] else next(self.open)
"""
    async with spawned(source) as guest:
        assert bodies(await guest.run([one(0)])) == [b"1"]
        assert bodies(await guest.run([one(1, context=None)])) == [b"2", b"3"]


async def test_a_list_is_several_queries(spawned, one) -> None:
    """A message that is a list of documents counts as those documents."""
    async with spawned(returning("len(queries)")) as guest:
        assert bodies(await guest.run([one([{"a": 1}, {"a": 2}], {"a": 3})])) == [b"3"]


async def test_a_message_that_is_not_json_is_rejected_alone(spawned) -> None:
    """A message that is not JSON is reported by group and index, and the others run."""
    documents = [b'{"a":1}', b"{nope}", b"", b"\xff", b'{"a":NaN}', b'{"a":2}']
    async with spawned(returning("queries")) as guest:
        outcome = await guest.run([Group("", documents, {})])
    assert bodies(outcome) == [b'{"a":1}', b'{"a":2}']
    assert [(group, index, why.code) for group, index, why in outcome.rejected] == [
        (0, 1, "E301"),
        (0, 2, "E301"),
        (0, 3, "E301"),
        (0, 4, "E301"),
    ]


async def test_a_group_without_a_query_is_not_processed(spawned, one) -> None:
    """process is not called where a group holds no document at all."""
    async with spawned(returning("1 / 0")) as guest:
        assert bodies(await guest.run([one([]), Group("", [b"nope"])])) == []


async def test_integers_keep_every_digit(spawned) -> None:
    """An integer beyond 64 bits goes in and out exactly."""
    async with spawned(returning("queries")) as guest:
        text = b'{"id":123456789012345678901234567890,"x":-18446744073709551617}'
        assert bodies(await guest.run([Group("", [text], {})])) == [text]


@pytest.mark.parametrize(
    "expression, expected",
    [
        ("None", []),
        ("[]", []),
        ("{}", []),
        ("''", []),
        ("{'a': 1}", [b'{"a":1}']),
        ("'text'", [b'"text"']),
        ("2.5", [b"2.5"]),
        ("({'a': 1}, 'b', 3, None, [1, 2])", [b'{"a":1}', b'"b"', b"3", b"[1,2]"]),
        ("({'n': n} for n in range(2))", [b'{"n":0}', b'{"n":1}']),
        ("{1: 'a', None: 'b', True: 'c', 2.5: 'd'}", [b'{"1":"c","null":"b","2.5":"d"}']),
        ("{'a': (1, None), 'ü': 'ß'}", ['{"a":[1,null],"ü":"ß"}'.encode()]),
    ],
)
async def test_process_may_return_anything_json_has(spawned, one, expression, expected) -> None:
    """Nothing, one document, or a list, tuple or generator of documents; None among them is skipped."""
    async with spawned(returning(expression)) as guest:
        assert bodies(await guest.run([one({})])) == expected


async def test_the_context_may_be_returned(spawned, one) -> None:
    """self.context is a document like any dict."""
    source = """
class Runnable:
    def process(self, queries):
        self.context['seen'] = queries
        return self.context
"""
    async with spawned(source) as guest:
        assert bodies(await guest.run([one({"a": 1})])) == [b'{"seen":[{"a":1}]}']


@pytest.mark.parametrize(
    "expression, place",
    [
        ("{'price': math.nan}", "output['price'] is nan"),
        ("[{'a': [1, math.inf]}]", "output 0['a'][1] is inf"),
        ("{'b': b'x'}", "output['b'] is a bytes"),
        ("[1, {'s': {1, 2}}]", "output 1['s'] is a set"),
        ("[object()]", "output 0 is an object"),
        ("{(1, 2): 3}", "has a key of type tuple"),
        ("loop()", "refers back to itself"),
        ("'\\ud800'", "lone surrogate"),
    ],
)
async def test_an_output_that_is_not_json_fails_with_its_path(spawned, one, expression, place) -> None:
    """What JSON cannot express is E306, and the text says where it stands."""
    before = """
def loop():
    value = {'a': []}
    value['a'].append(value)
    return value

"""
    async with spawned(returning(expression, before)) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E306"
    assert place.replace("output[", "output 0[") in failed.text.replace("output[", "output 0[")
    assert not failed.lethal


async def test_fields_give_subject_tokens(spawned, one) -> None:
    """The fields that a subject asks for are read from each output, by dotted path."""
    source = returning("[{'k': q['k'], 'in': {'n': 7}} for q in queries]")
    async with spawned(source) as guest:
        outcome = await guest.run([one({"k": "a"}, {"k": "b"})], fields=["k", "in.n"])
    assert [output.fields for output in outcome.outputs] == [("a", "7"), ("b", "7")]


@pytest.mark.parametrize(
    "document", [{}, {"k": None}, {"k": True}, {"k": 1.5}, {"k": "a b"}, {"k": "a.b"}, {"k": ">"}, {"k": ""}]
)
async def test_a_field_that_is_no_token_fails_the_run(spawned, one, document) -> None:
    """A missing field, one that is neither text nor integer, or one that no subject can hold is E308."""
    async with spawned(returning("queries")) as guest:
        failed = failure(await guest.run([one(document)], fields=["k"]))
    assert failed.code == "E308"
    assert "'k'" in failed.text


# Context.


async def test_a_context_is_kept_between_runs(spawned, one) -> None:
    """init runs once per context; what a run leaves is what the next finds, and what the host is told."""
    async with spawned(COUNTER) as guest:
        first = await guest.run([one({})])
        second = await guest.run([one({}, {}, context=None)])
    assert first.contexts[""].items == {"counter": b"1"}
    assert first.contexts[""].whole
    assert bodies(second) == [b'{"counter":3}', b'{"counter":3}']
    assert second.contexts[""].size == len("counter") + 1


async def test_every_key_has_a_context_of_its_own(spawned, one) -> None:
    """Groups of different keys never see each other's context."""
    async with spawned(COUNTER) as guest:
        await guest.run([one({}, {}, key="a"), one({}, key="b")])
        outcome = await guest.run([one({}, key="a", context=None), one({}, key="b", context=None)])
    assert bodies(outcome) == [b'{"counter":3}', b'{"counter":2}']


async def test_a_given_context_lies_over_init(spawned, one) -> None:
    """Committed items win over what init sets; an empty given context is a fresh one."""
    async with spawned(COUNTER) as guest:
        restored = await guest.run([one({}, context={"counter": b"41"})])
        fresh = await guest.run([one({})])
    assert bodies(restored) == [b'{"counter":42}']
    assert bodies(fresh) == [b'{"counter":1}']


async def test_a_deleted_key_of_init_stays_deleted(spawned, one) -> None:
    """A key that init sets and the user deleted does not come back when the context is restored."""
    source = """
class Runnable:
    def init(self):
        self.context['a'] = 1
        self.context['b'] = 2

    def process(self, queries):
        self.context.pop('a', None)
        return sorted(self.context)
"""
    async with spawned(source) as guest:
        first = await guest.run([one({})])
        kept = {key: value for key, value in first.contexts[""].items.items() if value is not None}
        again = await guest.run([one({}, context=kept)])
    assert bodies(first) == bodies(again) == [b'"b"']


async def test_a_failed_run_changes_no_context(spawned, one) -> None:
    """When one group raises, every context of the run is as it was, and the guest goes on."""
    source = COUNTER.replace("return [", "queries[0].get('bad') and 1 / 0\n        return [")
    async with spawned(source) as guest:
        await guest.run([one({}, key="a"), one({}, key="b")])
        failed = failure(
            await guest.run([one({}, {}, key="a", context=None), one({"bad": 1}, key="b", context=None)])
        )
        outcome = await guest.run([one({}, key="a", context=None), one({}, key="b", context=None)])
        assert guest.alive
    assert (failed.code, failed.lethal) == ("E304", False)
    assert bodies(outcome) == [b'{"counter":2}', b'{"counter":2}']


@pytest.mark.parametrize(
    ("source", "groups", "code", "failed"),
    [
        (returning("1 / queries[0]"), [1, 2, 0, 3], "E304", 2),
        (returning("float(queries[0] or 'nan')"), [1, 0, 2], "E306", 1),
        (returning("self.event('e' * (300 * (queries[0] == 2)) or 'e')"), [1, 2, 3], "E304", 1),
        ("class Runnable:\n def init(self): self.context['a'] = 1\n"
         " def process(self, q): self.context['a'] = len if q[0] == 3 else 2", [1, 2, 3], "E309", 2),
    ],
)  # fmt: skip
async def test_a_failed_run_names_the_group_that_failed(spawned, source, groups, code, failed) -> None:
    """What raised, what it returned and the context that cannot be kept are told of the group they are of."""
    async with spawned(source) as guest:
        outcome = await guest.run([Group(f"k{number}", [b"%d" % number], {}) for number in groups])
    assert (failure(outcome).code, outcome.group) == (code, failed)


async def test_a_run_that_no_group_failed_names_none(spawned, one) -> None:
    """A context that two groups of one key share is too large by both; a guest that is gone names nobody."""
    source = "class Runnable:\n def process(self, q): self.context[q[0]] = 'x' * 600"
    async with spawned(source, context_bytes=1000) as guest:
        outcome = await guest.run([one("a", key="k"), one("b", key="k", context=None)])
        assert (failure(outcome).code, outcome.group) == ("E310", None)
        os.kill(guest.pid, signal.SIGKILL)
        outcome = await guest.run([one("a", key="k", context=None)])
    assert (failure(outcome).lethal, outcome.group) == (True, None)


async def test_a_context_given_to_a_failed_run_is_held(spawned, one) -> None:
    """After any run that gave a context the guest holds it, though the run, or init itself, failed."""
    source = """
class Runnable:
    def init(self):
        self.context['n'] = 1

    def process(self, queries):
        if queries[0] == 'bad':
            raise ValueError('no')
        return self.context['n']
"""
    async with spawned(source) as guest:
        failure(await guest.run([one("bad", context={"n": b"7"})]))
        assert bodies(await guest.run([one("good", context=None)])) == [b"7"]


async def test_a_context_that_the_guest_does_not_hold_must_be_given(spawned, one) -> None:
    """Leaving the context out for a key that was never given, or was forgotten, is the caller's error."""
    async with spawned(COUNTER) as guest:
        with pytest.raises(ValueError, match="holds no context of key 'k'"):
            await guest.run([one({}, key="k", context=None)])
        await guest.run([one({}, key="k")])
        await guest.run([], forget=["k"])
        with pytest.raises(ValueError, match="holds no context of key 'k'"):
            await guest.run([one({}, key="k", context=None)])


async def test_a_large_context_is_reported_by_change(spawned, one) -> None:
    """Small contexts travel whole, large ones by changed item; the run that crosses the line tells all."""
    source = """
class Runnable:
    def init(self):
        self.context['keep'] = 'x'

    def process(self, queries):
        for query in queries:
            if query['v'] is None:
                del self.context[query['k']]
            else:
                self.context[query['k']] = 'v' * query['v']
"""
    async with spawned(source) as guest:
        small = (await guest.run([one({"k": "a", "v": 10})])).contexts[""]
        crossing = (await guest.run([one({"k": "b", "v": 5000}, context=None)])).contexts[""]
        change = (await guest.run([one({"k": "a", "v": 20}, {"k": "c", "v": 1}, context=None)])).contexts[""]
        deletion = (await guest.run([one({"k": "c", "v": None}, context=None)])).contexts[""]
        back = (await guest.run([one({"k": "b", "v": None}, context=None)])).contexts[""]
    assert (set(small.items), small.whole) == ({"keep", "a"}, True)
    assert (set(crossing.items), crossing.whole) == ({"keep", "a", "b"}, True)
    assert (set(change.items), change.whole) == ({"a", "c"}, False)
    assert deletion.items == {"c": None}
    assert (set(back.items), back.whole) == ({"keep", "a"}, True)
    assert crossing.size == sum(len(key) + len(value) for key, value in crossing.items.items())


async def test_a_run_that_changes_nothing_reports_nothing(spawned, one) -> None:
    """Reading, or writing the same value again, is no change."""
    source = """
class Runnable:
    def process(self, queries):
        self.context['n'] = 1
        return list(self.context)
"""
    async with spawned(source) as guest:
        await guest.run([one({})])
        assert (await guest.run([one({}, context=None)])).contexts == {}


async def test_assigning_the_context_fills_it(spawned, one) -> None:
    """`self.context = {...}` replaces what is kept; it does not hide it."""
    source = """
class Runnable:
    def init(self):
        self.context = {'n': 5}

    def process(self, queries):
        self.context = {**self.context, 'm': 6}
"""
    async with spawned(source) as guest:
        assert (await guest.run([one({})])).contexts[""].items == {"n": b"5", "m": b"6"}


async def test_a_value_that_cannot_be_kept_fails_with_its_path(spawned, one) -> None:
    """A context value without a kept form is E309, named by its path."""
    source = """
class Runnable:
    def process(self, queries):
        self.context['a'] = {'b': [1, lambda: 0]}
"""
    async with spawned(source) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E309"
    assert "context['a']['b'][1]" in failed.text


# What a Runnable says.


async def test_logs_come_with_the_outcome(spawned, one) -> None:
    """self.logger, logger and print all reach the route's log, with their level, on failure too."""
    source = """
class Runnable:
    def process(self, queries):
        self.logger.info('one')
        logger.warning('two')
        print('three', 3)
        logger.error('four')
        if queries[0]:
            raise ValueError('no')
"""
    async with spawned(source) as guest:
        good = await guest.run([one(0)])
        bad = await guest.run([one(1, context=None)])
    expected = [("info", "one"), ("warning", "two"), ("info", "three 3"), ("error", "four")]
    assert [(line.level, line.text) for line in good.logs] == expected
    assert [(line.level, line.text) for line in bad.logs] == expected


async def test_events_come_with_the_run(spawned, one) -> None:
    """self.event gives named JSON documents, which name the group that they were said in."""
    source = """
class Runnable:
    def process(self, queries):
        self.event('seen', {'n': len(queries)})
        self.event('bare')
"""
    async with spawned(source) as guest:
        outcome = await guest.run([one(1, 2), one(3)])
    assert [(event.group, event.name, event.body) for event in outcome.events] == [
        (0, "seen", b'{"n":2}'),
        (0, "bare", b"null"),
        (1, "seen", b'{"n":1}'),
        (1, "bare", b"null"),
    ]


async def test_an_exception_shows_the_users_code_and_nothing_of_ours(spawned, one) -> None:
    """E304 carries the exception's own text, and frames of the user's file with their source lines."""
    source = """
    class Runnable:
        def process(self, queries):
            return self.share(queries[0])

        def share(self, query):
            return query['a'] / query['b']
    """
    async with spawned(source) as guest:
        failed = failure(await guest.run([one({"a": 1, "b": 0})]))
    assert failed.code == "E304"
    assert failed.text == "ZeroDivisionError: division by zero"
    assert 'runnable.py", line 4' in failed.traceback
    assert "return query['a'] / query['b']" in failed.traceback
    assert "processor" not in failed.traceback
    assert "sandbox" not in failed.traceback


async def test_reject_and_retry_pass_by_except_exception(spawned, one) -> None:
    """Reject is E305 with the user's reason, Retry asks for a delay; neither is an Exception."""
    source = """
class Runnable:
    def process(self, queries):
        try:
            if queries[0] == 'reject':
                raise Reject('no price')
            raise Retry(after_s=2.5)
        except Exception:
            return 'swallowed'
"""
    async with spawned(source) as guest:
        rejected = failure(await guest.run([one("reject")]))
        retried = failure(await guest.run([one("retry", context=None)]))
    assert (rejected.code, rejected.text) == ("E305", "no price")
    assert (retried.code, retried.retry_after_s) == ("E304", 2.5)


# Streams.


async def stream(guest: Any, group: Group) -> tuple[list[bytes], Any]:
    chunks: list[bytes] = []

    async def emit(chunk: bytes) -> None:
        chunks.append(chunk)

    return chunks, await guest.stream(group, emit)


async def test_a_stream_sends_chunks_as_they_come(spawned, one) -> None:
    """Texts are sent as they are, other documents as JSON, None not at all; the context comes at the end."""
    source = """
class Runnable:
    def process_stream(self, query):
        yield 'plain "text"'
        yield {'n': query['n']}
        yield None
        yield [1, 2]
        self.context['done'] = True
"""
    async with spawned(source) as guest:
        chunks, outcome = await stream(guest, one({"n": 1}))
    assert chunks == [b'plain "text"', b'{"n":1}', b"[1,2]"]
    assert outcome.outputs == []
    assert outcome.contexts[""].items == {"done": b"true"}


async def test_the_name_of_the_parameter_says_what_a_stream_gets(spawned, one) -> None:
    """process_stream(query) is called per document, process_stream(queries) once with the list."""
    body = """
class Runnable:
    def process_stream(self, {name}):
        yield {name}
"""
    for name, expected in (("query", [b"1", b"2"]), ("queries", [b"[1,2]"])):
        async with spawned(body.replace("{name}", name)) as guest:
            chunks, _ = await stream(guest, one([1, 2]))
        assert chunks == expected


@pytest.mark.parametrize("body", ["pass", "return 'all at once'", "return ['a', 'b']"])
async def test_a_stream_need_not_be_a_generator(spawned, one, body) -> None:
    """A process_stream that returns nothing, one text or a list is as good as one that yields."""
    source = f"class Runnable:\n    def process_stream(self, query):\n        {body}\n"
    async with spawned(source) as guest:
        chunks, outcome = await stream(guest, one({}))
    assert isinstance(outcome, Ran)
    assert b"".join(chunks) in (b"", b"all at once", b"ab")


async def test_a_stream_waits_for_its_listener(spawned, one) -> None:
    """Every chunk is handed over before the next is read, and a slow listener costs the guest no time."""
    source = """
class Runnable:
    def process_stream(self, query):
        for n in range(query['n']):
            yield 'x' * 1000
"""
    handed, gate = 0, asyncio.Event()

    async def emit(_: bytes) -> None:
        nonlocal handed
        handed += 1
        if handed == 3:
            await gate.wait()

    async with spawned(source, wall_s=0.5) as guest:
        running = asyncio.create_task(guest.stream(one({"n": 2000}), emit))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 1.0)
        assert handed == 3
        gate.set()
        outcome = await running
    assert isinstance(outcome, Ran), outcome
    assert handed == 2000


async def test_a_stream_that_fails_keeps_no_context(spawned, one) -> None:
    """What was sent is sent; the context is as before, and the failure says why."""
    source = """
class Runnable:
    def process_stream(self, query):
        self.context['n'] = 1
        yield 'first'
        raise ValueError('torn')

    def process(self, queries):
        return list(self.context) or 'empty'
"""
    async with spawned(source) as guest:
        chunks, outcome = await stream(guest, one({}))
        assert bodies(await guest.run([one({}, context=None)])) == [b'"empty"']
    assert chunks == [b"first"]
    assert failure(outcome).text == "ValueError: torn"


# Capabilities.

DAY = {"Time Series (5min)": {"10:05": {"1. open": "1", "2. high": "4", "3. low": "0", "4. close": "2",
                                        "5. volume": "9"}, "10:00": {}}}  # fmt: skip


async def test_a_helper_asks_the_host(spawned, one) -> None:
    """query_stock and get_stock_data get their document from the host, which sees name and arguments."""
    source = """
class Runnable:
    def process(self, queries):
        return [self.query_stock(queries[0]), self.get_stock_data('IBM')]
"""
    asked = []

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        asked.append((name, arguments))
        return DAY

    async with spawned(source, perform) as guest:
        outcome = await guest.run([one({"ticker": "AAPL"})])
    assert asked == [("stock", {"ticker": "AAPL"}), ("stock", {"ticker": "IBM"})]
    assert bodies(outcome)[0] == (
        b'{"ticker":"AAPL","ticker_open":"1","ticker_high":"4","ticker_low":"0","ticker_close":"2",'
        b'"ticker_volume":"9"}'
    )


async def test_a_refused_call_is_an_exception_for_the_user(spawned, one) -> None:
    """The host's refusal can be caught like any Exception; uncaught it is E317."""
    source = """
class Runnable:
    def process(self, queries):
        try:
            return self.get_stock_data('IBM')
        except Exception as err:
            if queries[0]:
                return str(err)
            raise
"""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        raise ProcessorError("E317", "no key for stock", remedy="Set one.")

    async with spawned(source, perform) as guest:
        caught = await guest.run([one(1)])
        uncaught = failure(await guest.run([one(0, context=None)]))
    assert bodies(caught) == [b'"E317 no key for stock. Set one."']
    assert uncaught.code == "E317"


async def test_a_guest_without_capabilities_is_told_so(spawned, one) -> None:
    """Where the host performs nothing, a helper fails with a sentence."""
    source = "class Runnable:\n    def process(self, queries):\n        return self.get_stock_data('IBM')\n"
    async with spawned(source) as guest:
        failed = failure(await guest.run([one({})]))
    assert failed.code == "E317"
    assert "no such capability" in failed.text


async def test_rows_are_pivoted(spawned, one) -> None:
    """pivot_list_of_dicts makes one dict of the rows of each data_index."""
    rows = [
        {"data_index": 1, "column_name": "a", "data_value": 1},
        {"data_index": 1, "column_name": "b", "data_value": 2},
        {"data_index": 2, "column_name": "a", "data_value": 3},
    ]
    async with spawned(returning("self.pivot_list_of_dicts(queries)")) as guest:
        assert bodies(await guest.run([one(rows)])) == [b'{"a":1,"b":2}', b'{"a":3}']


# Loading.


@pytest.mark.parametrize("head", ["class Runnable(BaseSecureRunnable):", "class Runnable:"])
async def test_naming_the_base_class_is_optional(spawned, one, head) -> None:
    """A Runnable that derives from nothing is one that derives from the base class."""
    source = f"{head}\n    def process(self, queries): pass\n    def process_stream(self, query): pass\n"
    async with spawned(source) as guest:
        assert bodies(await guest.run([one({})])) == []
        assert await stream(guest, one({}, context=None)) == ([], Ran(
            outputs=[], emits=[], events=[], logs=[], rejected=[], heap=[], calls=[],
            wall_s=pytest.approx(0, abs=1 << 20), cpu_s=pytest.approx(0, abs=1 << 20),
            memory_bytes=pytest.approx(0, abs=1 << 30)
        ))  # fmt: skip


async def test_an_own_constructor_finds_everything_in_place(spawned, one) -> None:
    """__init__ may use the context and the logger, with or without super()."""
    source = """
class Runnable(BaseSecureRunnable):
    def __init__(self):
        self.factor = 3
        self.context['n'] = 1
        self.logger.info('made')

    def process(self, queries):
        return queries[0] * self.factor + self.context['n']
"""
    async with spawned(source) as guest:
        assert bodies(await guest.run([one(2)])) == [b"7"]


@pytest.mark.parametrize(
    "source, line, code",
    [
        ("class Runnable:\n    def process(self\n", 2, "E201"),
        ("x = 1\n", 1, "E204"),
        ("x = 1\ny = x / 0\nclass Runnable:\n    pass\n", 2, "E206"),
        ("class Runnable:\n    pass\nwhile True: pass\n", 3, "E206"),
        ("class Runnable:\n    pass\nsum(range(10 ** 12))\n", 1, "E206"),
    ],
)
async def test_a_program_that_cannot_be_loaded_is_refused_by_line(source, line, code) -> None:
    """spawn raises Faults with file, line and code, and leaves no guest behind."""
    zygote = await Zygote.start()
    try:
        with pytest.raises(Faults) as caught:
            await zygote.spawn(Program(source, "a.py"), Limits(wall_s=0.3))
    finally:
        await zygote.close()
    fault = caught.value.faults[0]
    assert (fault.file, fault.line, fault.code) == ("a.py", line, code)


# Life and death.


async def test_a_dead_guest_says_so_and_a_new_one_goes_on(one, wait_until) -> None:
    """A guest that is killed under us ends its run as a lethal failure; the zygote forks another."""
    zygote = await Zygote.start()
    try:
        guest = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
        os.kill(guest.pid, signal.SIGKILL)
        outcome = await guest.run([one({})])
        assert failure(outcome).lethal
        assert not guest.alive
        assert guest.memory_bytes() == 0
        assert failure(await guest.run([one({})])) == failure(outcome)
        other = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
        assert bodies(await other.run([one({}, context={"counter": b"5"})])) == [b'{"counter":6}']
        assert other.memory_bytes() > 0
    finally:
        await zygote.close()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "was killed by SIGKILL from outside, as with `kill -9`: the kernel counted no kill"),
        (signal.SIGTERM, "was ended by SIGTERM, sent from outside"),
    ],
)
async def test_a_guest_that_somebody_kills_is_not_called_out_of_memory(spawned, one, number, said) -> None:
    """The kernel counts whom it kills for lack of memory; a signal of anybody else's is E314."""
    async with spawned("class Runnable:\n def process(self, q):\n  while True: pass") as guest:
        os.kill(guest.pid, number)
        failed = failure(await guest.run([one({})]))
    assert (failed.code, failed.lethal, said in failed.text) == ("E314", True, True), failed.text


@pytest.mark.parametrize(
    ("before", "after", "code", "said"),
    [
        ("low 0\noom_kill 3\n", "low 0\noom_kill 4\n", "E313", "because memory ran out"),
        ("low 0\noom_kill 3\n", "low 9\noom_kill 3\n", "E314", "from outside"),
        ("low 0\n", "low 9\n", "E314", "which the kernel sends when memory runs out, and people"),
    ],
)
def test_a_kill_is_told_by_the_counters_of_the_kernel(tmp_path, before, after, code, said) -> None:
    """A rise of oom_kill is lack of memory; without a counter both who may have sent it are named."""
    counter = tmp_path / "memory.events"
    counter.write_text(before)
    kills = OutOfMemoryKills([counter, tmp_path / "missing"])
    counter.write_text(after)
    failed = explain(Ending(-signal.SIGKILL, 0), Limits(), kills)
    assert (failed.code, said in failed.text) == (code, True), failed.text


def test_this_machine_counts_its_kills() -> None:
    """The kernel's counter is found here, so that the rule above has something to go by."""
    assert OutOfMemoryKills.here().have_grown() is False


async def test_a_guest_that_dies_idle_is_noticed(spawned, wait_until) -> None:
    """Death is noticed at once, not at the next run."""
    async with spawned(COUNTER) as guest:
        os.kill(guest.pid, signal.SIGKILL)
        await wait_until(lambda: not guest.alive, "the guest is known to be dead")


async def test_a_guest_that_waits_for_its_order_is_like_any_other(one, wait_until) -> None:
    """A guest is forked before it is ordered; it has the order's limits, and if it dies another is forked."""
    zygote = await Zygote.start()
    try:
        for memory_mb in (32, 256):
            ahead = await wait_until(lambda: guests_of(zygote), "a guest waits")
            guest = await zygote.spawn(Program(HUNGRY, "a.py"), Limits(memory_mb=memory_mb))
            assert guest.pid in ahead
            outcome = await guest.run([one({})])
            assert isinstance(outcome, Ran if memory_mb == 256 else Failed)
            await guest.close()
        (ahead,) = await wait_until(lambda: guests_of(zygote), "a guest waits")
        os.kill(ahead, signal.SIGKILL)
        await wait_until(lambda: not is_running(ahead), "it is dead")
        guest = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
        assert bodies(await guest.run([one({})])) == [b'{"counter":1}']
    finally:
        await zygote.close()


FORGED = """
class Runnable(BaseSecureRunnable):
    def process(self, queries):
        return [str(().__class__.__base__)]
"""


async def test_a_program_is_compiled_once(one) -> None:
    """Later guests of a source load the code of the first; none runs code that the verifier refuses."""
    program = Program(COUNTER, "a.py")
    zygote = await Zygote.start()
    try:
        await (await zygote.spawn(program, Limits())).close()
        code = zygote._compiled[program]
        assert code
        assert list(map(type, marshal.loads(code))) == [CodeType]
        forged = marshal.dumps([compile(FORGED, "a.py", "exec")])
        for given in (
            code,
            b"",
            b"\xff" * 50,
            marshal.dumps("no code"),
            marshal.dumps([]),
            code[:-20],
            forged,
        ):
            zygote._compiled[program] = given
            guest = await zygote.spawn(program, Limits())
            assert bodies(await guest.run([one({})])) == [b'{"counter":1}']
            await guest.close()
        await zygote.retain([Program(COUNTER, "b.py")])
        assert not zygote._compiled
        with pytest.raises(Faults, match="E20"):
            await zygote.spawn(Program(FORGED, "a.py"), Limits())
        assert not zygote._compiled
    finally:
        await zygote.close()


HUNGRY = "class Runnable:\n    def process(self, queries):\n        return len(bytearray(100 << 20))\n"


def guests_of(zygote: Zygote) -> list[int]:
    """What a zygote has forked; where it has namespaces, it is itself forked by its process."""
    found = [zygote._cells[Footing("restricted")]._process.pid]
    for _ in range(2 if zygote.report.layers["namespaces"].startswith("on") else 1):
        files = [Path(f"/proc/{pid}/task/{pid}/children") for pid in found]
        found = [int(child) for file in files for child in file.read_text().split()]
    return [pid for pid in found if is_running(pid)]


async def test_a_dead_zygote_is_replaced(one, wait_until) -> None:
    """When the zygote dies its guests die with it, and the next spawn starts another."""
    zygote = await Zygote.start()
    try:
        guest = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
        cell = zygote._cells[Footing("restricted")]
        assert cell is not None
        os.kill(cell._process.pid, signal.SIGKILL)
        await wait_until(lambda: not guest.alive, "the guest has died with its zygote")
        other = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
        assert bodies(await other.run([one({})])) == [b'{"counter":1}']
    finally:
        await zygote.close()


async def test_a_guest_that_dies_before_it_is_loaded_is_no_guest() -> None:
    """Killed while it closes its jail, or at its module level, it is an error of spawn that says so."""

    async def begin(guest: Guest) -> None:
        await guest._sealed()
        await guest._load(Program(COUNTER, "a.py"), NOTHING, b"")

    zygote = await Zygote.start()
    try:
        _, guest = await zygote._fork(Footing("restricted"), Limits(), None)
        os.kill(guest.pid, signal.SIGKILL)
        with pytest.raises((ProcessorError, Faults)):
            await begin(guest)
        source = "class Runnable:\n    pass\nwhile True: pass\n"
        loading = asyncio.create_task(zygote.spawn(Program(source, "a.py"), Limits(wall_s=60, cpu_s=60)))
        while not (guests := [guest for guest in zygote._guests if guest.alive and guest._link.nonce]):
            await asyncio.wait([loading], timeout=0.01)
        os.kill(guests[0].pid, signal.SIGKILL)
        with pytest.raises(Faults, match="while it was loaded"):
            await loading
    finally:
        await zygote.close()


SLOW = """
class Runnable:
    def process(self, queries):
        while True: pass

    def process_stream(self, query):
        yield 'first'
        while True: pass
"""


@pytest.mark.parametrize("way", ["run", "stream"])
async def test_a_guest_that_dies_in_a_run_fails_that_run(spawned, one, way: str) -> None:
    """Killed in the middle of a run, or after the first chunk of a stream, it ends in a lethal failure."""
    started = asyncio.Event()

    async def emit(_: bytes) -> None:
        started.set()

    async with spawned(SLOW, wall_s=60, cpu_s=60) as guest:
        running = asyncio.create_task(guest.run([one(1)]) if way == "run" else guest.stream(one(1), emit))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait(
            [running, waiting], timeout=0.1 if way == "run" else None, return_when="FIRST_COMPLETED"
        )
        waiting.cancel()
        os.kill(guest.pid, signal.SIGKILL)
        failed = failure(await running)
        assert failed.lethal
        assert not guest.alive
        assert failure(await guest.run([one(1, context={})])) == failed


async def test_a_zygote_that_dies_takes_its_runs_along(one) -> None:
    """Every run under way fails as E314, every guest is gone, and the next spawn has a new zygote."""
    zygote = await Zygote.start()
    try:
        guests = [await zygote.spawn(Program(SLOW, "a.py"), Limits(wall_s=60, cpu_s=60)) for _ in range(5)]
        running = [asyncio.create_task(guest.run([one(1)])) for guest in guests]
        await asyncio.wait(running, timeout=0.1)
        os.kill(zygote._cells[Footing("restricted")]._process.pid, signal.SIGKILL)
        failures = [failure(outcome) for outcome in await asyncio.gather(*running)]
        assert [(failed.code, failed.lethal) for failed in failures] == [("E314", True)] * 5
        assert not any(is_running(guest.pid) for guest in guests)
        other = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
        assert bodies(await other.run([one({})])) == [b'{"counter":1}']
    finally:
        await zygote.close()


async def test_a_stopped_guest_is_out_of_time(spawned, one, within) -> None:
    """A guest that the kernel has suspended dies at its wall time like one that loops."""
    async with spawned(COUNTER, wall_s=0.3) as guest:
        os.kill(guest.pid, signal.SIGSTOP)
        assert failure(await within(10, guest.run([one({})]))).code == "E312"
        assert not is_running(guest.pid)


async def test_guests_come_and_go_without_a_trace(one, wait_until) -> None:
    """A hundred guests at once, and as many one after the other, leave no descriptor and no process."""
    zygote = await Zygote.start()
    try:
        before = os.listdir("/proc/self/fd")
        program = Program(COUNTER, "a.py")
        guests = await asyncio.gather(*(zygote.spawn(program, Limits()) for _ in range(100)))
        await asyncio.gather(*(guest.close() for guest in guests))
        for number in range(100):
            guest = await zygote.spawn(program, Limits())
            if number % 2:
                os.kill(guest.pid, signal.SIGKILL)
            else:
                await guest.run([one({})])
            await guest.close()
            guests.append(guest)
        assert not any(is_running(guest.pid) for guest in guests)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        await wait_until(lambda: not zygote._cells[Footing("restricted")]._endings, "every end was reported")
    finally:
        await zygote.close()


async def test_a_process_without_descriptors_says_so(one) -> None:
    """Where the limit on descriptors is reached, spawn is E502 with that limit; with one more it works."""
    zygote = await Zygote.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    refusals = []
    try:
        for room in range(8):
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, hard))
            try:
                guest = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
            except ProcessorError as err:
                refusals.append((err.code, f"all {lowest + room} descriptors" in str(err)))
            else:
                assert bodies(await guest.run([one({})])) == [b'{"counter":1}']
                await guest.close()
        assert set(refusals) == {("E502", True)}
        assert len(refusals) < 8
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await zygote.close()


HOST = """
import asyncio, sys
from processor.model import Group, Limits, Program
from processor.sandbox.host import Zygote

async def main():
    zygote = await Zygote.start()
    source = "class Runnable:\\n    def process(self, queries):\\n        while True: pass\\n"
    guest = await zygote.spawn(Program(source, "a.py"), Limits(wall_s=600, cpu_s=600))
    running = asyncio.create_task(guest.run([Group("", [b"1"], {})]))
    await asyncio.wait([running], timeout=0)
    print(guest.pid, flush=True)
    await running

asyncio.run(main())
"""


async def test_nothing_outlives_a_killed_host(wait_until) -> None:
    """When the host is killed, zygote and guests are gone at once, even in the middle of a loop."""
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert host.stdout is not None
    guest = int(await host.stdout.readline())
    zygote = int(stat_of(guest)[1])
    host.kill()
    await host.wait()
    for pid in (guest, zygote):
        await wait_until(lambda pid=pid: not is_running(pid), f"process {pid} is gone")


def is_running(pid: int) -> bool:
    try:
        return stat_of(pid)[0] != "Z"
    except OSError:
        return False


def stat_of(pid: int) -> list[str]:
    """State, parent and so on of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


async def test_a_cancelled_run_costs_the_guest(spawned, one, wait_until) -> None:
    """Nobody knows how far a cancelled run came, so its guest is killed."""
    async with spawned(returning("[0 for _ in iter(int, 1)]")) as guest:
        running = asyncio.create_task(guest.run([one({})]))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running, 0.2)
        await wait_until(lambda: not guest.alive, "the guest is dead")


async def test_a_guest_does_one_run_at_a_time(spawned, one) -> None:
    """A second run while one is under way is the caller's error, and does the first no harm."""
    async with spawned(COUNTER) as guest:
        first = asyncio.create_task(guest.run([one({})]))
        await asyncio.wait([first], timeout=0)
        with pytest.raises(RuntimeError, match="one run at a time"):
            await guest.run([one({})])
        assert bodies(await first) == [b'{"counter":1}']


async def test_closing_twice_is_closing_once(one) -> None:
    """close is idempotent for guests and zygotes, and a closed zygote spawns nothing."""
    zygote = await Zygote.start()
    guest = await zygote.spawn(Program(COUNTER, "a.py"), Limits())
    await guest.close()
    await guest.close()
    await zygote.close()
    await zygote.close()
    with pytest.raises(ProcessorError, match="E502"):
        await zygote.spawn(Program(COUNTER, "a.py"), Limits())


async def test_guests_of_one_zygote_run_at_the_same_time(one) -> None:
    """Many guests can be spawned and run at once, and each has its own context."""
    zygote = await Zygote.start()
    try:
        guests = await asyncio.gather(
            *(zygote.spawn(Program(COUNTER, f"{n}.py"), Limits()) for n in range(20))
        )
        outcomes = await asyncio.gather(*(guest.run([one(*[{}] * n)]) for n, guest in enumerate(guests, 1)))
    finally:
        await zygote.close()
    assert [bodies(outcome)[0] for outcome in outcomes] == [b'{"counter":%d}' % n for n in range(1, 21)]
