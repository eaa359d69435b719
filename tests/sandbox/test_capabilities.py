"""The registry of capabilities: a row is all that it takes, and a guest has no say in what a row is.

`GREETING` is a capability that Processor does not have. Nothing else in the tree knows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from textwrap import dedent, indent
from typing import Any, get_args

import pytest

from processor.audit import Event
from processor.capability.arguments import (
    Anything,
    Argument,
    Binary,
    Choice,
    Flag,
    JsonObject,
    Kind,
    Listed,
    Number,
    Text,
    Whole,
)
from processor.capability.connections import Connections
from processor.capability.registry import CAPABILITIES, HostCalls
from processor.capability.row import Arguments, Ask, Capability
from processor.capability.toolbox import Toolbox
from processor.errors import Faults, ProcessorError
from processor.model import Failed, Limits, Outcome, Program, Ran
from processor.policy import BUDGET_KINDS
from processor.reach import InferenceEndpoint, Reach
from processor.sandbox.host import Guest, Zygote


async def greeting(connections: Connections, arguments: Arguments) -> Any:
    return [f"{arguments['words']}, {arguments['name']}"] * arguments["times"]


GREETING = Capability(
    "greeting",
    (
        Argument("name", Text(1, 20)),
        Argument("times", Whole(1, 3), required=False, default=1),
        Argument("words", Choice(("hello", "welcome")), required=False, default="hello"),
    ),
    perform=greeting,
    ask=lambda arguments: Ask("greeting", "say", arguments["name"]),
    event="user",
    cost=lambda arguments: {"requests": arguments["times"]},
)
LANGUAGES = pytest.mark.parametrize("language", ["restricted", "python"])


@asynccontextmanager
async def guests(source: str, language: str, **limits: Any) -> AsyncIterator[Guest]:
    """A guest that may call what Processor has, and `greeting`."""
    calls = HostCalls(capabilities=[*CAPABILITIES, GREETING])
    route = calls.for_route(Reach("outbound"))
    zygote = await Zygote.start()
    try:
        yield await zygote.spawn(
            Program(source, "runnable.py", language),
            Limits(**limits),
            perform=route.lane().perform,
            capabilities=route.signatures,
        )
    finally:
        await zygote.close()
        await calls.close()


def runnable(body: str, rest: str = "") -> str:
    methods = indent(f"def process(self, queries):\n{indent(dedent(body), '    ')}\n{dedent(rest)}", "    ")
    return f"class Runnable(BaseSecureRunnable):\n{methods}\n"


def documents(outcome: Outcome) -> list[Any]:
    assert isinstance(outcome, Ran), outcome
    return [json.loads(output.body) for output in outcome.outputs]


@LANGUAGES
async def test_a_row_is_all_that_a_capability_takes(language: str, one: Any) -> None:
    """What it is called, what it takes, and who performs it come from the row, on both sides of the wall."""
    body = """
        return [
            self.greeting("Ada"),
            self.greeting("Ada", 2),
            self.greeting(name="Ada", words="welcome"),
            self.greeting("Ada", None, words="hello"),
        ]
    """
    async with guests(runnable(body), language) as guest:
        assert documents(await guest.run([one(1)])) == [
            ["hello, Ada"],
            ["hello, Ada", "hello, Ada"],
            ["welcome, Ada"],
            ["hello, Ada"],
        ]


REFUSED = {
    "self.greeting('')": "greeting E317 name is '', not a text of 1 to 20 characters.",
    "self.greeting('x' * 60)": f"greeting E317 name is '{'x' * 39}…, not a text of 1 to 20 characters.",
    "self.greeting(7)": "greeting E317 name is 7, not a text of 1 to 20 characters.",
    "self.greeting(None)": "greeting E317 name is missing; it is a text of 1 to 20 characters.",
    "self.greeting('Ada', True)": "greeting E317 times is True, not a whole number from 1 to 3.",
    "self.greeting('Ada', 4)": "greeting E317 times is 4, not a whole number from 1 to 3.",
    "self.greeting('Ada', 1, 'hi')": "greeting E317 words is 'hi', not one of hello, welcome.",
}
NO_CALLS = {
    "self.greeting()": "greeting() is missing its argument 'name'",
    "self.greeting('Ada', name='Ada')": "greeting() was given 'name' twice",
    "self.greeting('Ada', 1, 'hello', 4)": "greeting() takes 3 arguments (name, times, words), not 4",
    "self.greeting('Ada', loud=1)": "greeting() has no argument 'loud'; its arguments are name, times, words",
}


@LANGUAGES
async def test_an_argument_that_does_not_fit_is_refused_by_name(language: str, one: Any) -> None:
    """The sentence says which argument it is and what it may be; a call that cannot be one is a TypeError."""
    body = "failed = []\n" + "".join(
        f"try:\n    {call}\nexcept Exception as err:\n"
        "    failed.append(f'{type(err).__name__}: {err}')\n"
        "else:\n    failed.append('it was performed')\n"
        for call in (*REFUSED, *NO_CALLS)
    )
    async with guests(runnable(f"{body}return failed"), language) as guest:
        assert documents(await guest.run([one(1)])) == [
            *(f"CapabilityError: {told}" for told in REFUSED.values()),
            *(f"TypeError: {told}" for told in NO_CALLS.values()),
        ]
        assert guest.alive


async def test_a_refused_argument_that_is_not_caught_fails_the_run(one: Any) -> None:
    """With the code of the refusal, at the user's own line."""
    async with guests(runnable("return self.greeting(7)"), "restricted") as guest:
        outcome = await guest.run([one(1)])
    assert isinstance(outcome, Failed)
    assert (outcome.failure.code, outcome.failure.lethal) == ("E317", False)
    assert "line 3, in process" in outcome.failure.traceback
    assert "processor" not in outcome.failure.traceback


@LANGUAGES
async def test_a_method_of_the_users_own_comes_first(language: str, one: Any) -> None:
    """A capability that is added later on changes no Runnable that has something by its name."""
    rest = """
        def greeting(self, name):
            return f"my own for {name}, over {super().greeting(name)[0]}"
    """
    async with guests(runnable("return [self.greeting('Ada')]", rest), language) as guest:
        assert documents(await guest.run([one(1)])) == ["my own for Ada, over hello, Ada"]


async def test_without_a_row_there_is_no_method(spawned: Any, one: Any) -> None:
    """The base class has the methods of the guest's own capabilities and no others."""
    body = "return [hasattr(self, name) for name in ('greeting', 'stock', 'state_data', 'get_stock_data')]"
    async with spawned(runnable(body)) as guest:
        assert documents(await guest.run([one(1)])) == [False, False, False, True]
    async with guests(runnable(body), "restricted") as guest:
        assert documents(await guest.run([one(1)])) == [True, False, False, True]


async def test_calls_that_stay_on_the_host_are_no_requests(one: Any) -> None:
    """`limits.calls` is for all of them together, `limits.requests` for those that leave; each is E322."""
    body = """
        for _ in range(queries[0]):
            self.budget("requests")
        self.greeting("Ada")
        return []
    """
    async with guests(runnable(body), "restricted", requests=1, calls=4) as guest:
        assert documents(await guest.run([one(3)])) == []
        outcome = await guest.run([one(5, context=None)])
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E322"
    assert "budget: more than 4 calls for one message (limits.calls)" in outcome.failure.text


async def test_the_calls_of_a_row_count_as_requests(one: Any) -> None:
    """`limits.requests` is for what leaves the host; one call more is E322."""
    body = "return [self.greeting('Ada') for _ in range(queries[0])]"
    async with guests(runnable(body), "restricted", requests=2) as guest:
        assert len(documents(await guest.run([one(2)]))) == 2
        outcome = await guest.run([one(3, context=None)])
    assert isinstance(outcome, Failed)
    assert outcome.failure.code == "E322"
    assert "greeting: more than 2 requests for one message" in outcome.failure.text


async def test_a_guest_cannot_make_a_row(one: Any) -> None:
    """What it changes in its copy of the table has no meaning: the host has its own (E317)."""
    body = """
        import sys
        frame = sys._getframe()
        while not hasattr(frame.f_locals.get("self"), "_channel"):
            frame = frame.f_back
        runner = frame.f_locals["self"]
        offer = sys.modules["processor.sandbox.offer"]
        capabilities = sys.modules["processor.sandbox.capabilities"]
        capabilities.offer([
            offer.Signature("shell", ("command",)), offer.Signature("greeting", (), ("name", "extra"))
        ])
        said = []
        for call in (
            lambda: self.shell("id"),
            lambda: self.greeting(name="Ada", extra=1),
            lambda: self.greeting(),
        ):
            try:
                said.append(call())
            except Exception as err:
                said.append(str(err))
        return said
    """
    async with guests(runnable(body), "python") as guest:
        assert documents(await guest.run([one(1)])) == [
            "E317 there is no capability 'shell'.",
            "greeting E317 there is no argument 'extra'; its arguments are name, times, words.",
            "greeting E317 name is missing; it is a text of 1 to 20 characters.",
        ]
        assert guest.alive


async def test_a_program_is_checked_with_its_capabilities() -> None:
    """What a module level finds on the base class when it runs, it finds when it is checked."""
    source = "SAY = BaseSecureRunnable.greeting\n" + runnable("return []")
    async with guests(source, "restricted") as guest:
        assert guest.alive
    zygote = await Zygote.start()
    try:
        with pytest.raises(Faults):
            await zygote.spawn(Program(source, "runnable.py"), Limits())
    finally:
        await zygote.close()


@pytest.mark.parametrize("name", ["stock", "two words", "_hidden", "", "emit", "context"])
def test_a_name_is_one_that_a_runnable_can_call(name: str) -> None:
    """Two rows of one name, or a name that is not free on the base class, stop the process at its start."""
    row = Capability(
        name, (), perform=greeting, ask=lambda arguments: Ask("greeting", "say", ""), event="user"
    )
    with pytest.raises(ValueError, match="cannot be the name of a capability"):
        HostCalls(capabilities=[*CAPABILITIES, row])


# What governance asks of every row.

EXAMPLES: dict[str, dict[str, Any]] = {
    "requests": {
        "method": "POST",
        "url": "HTTPS://API.Example.com:443/v1/pay?token=1",
        "kind": "raw",
        "headers": [["A", "bc"]],
        "body": b"1234",
    },
    "stream_next": {"stream": 1},
    "stream_close": {"stream": 1},
    "stock": {"ticker": "BRK-B"},
    "state_data": {"state_id": "s-1", "filters": []},
    "file": {"op": "write", "path": "data://out/a.csv", "body": b"1234"},
    "tool": {"name": "add", "arguments": {"a": 1}},
    "served_tool": {"name": "calc/add", "arguments": {"a": 1}},
    "tool_list": {},
    "infer": {"model": "tiny", "prompt": "a", "max_tokens": 9},
    "infer_stream": {"model": "tiny", "prompt": "a", "max_tokens": 9},
    "embed": {"model": "tiny", "texts": ["a"]},
    "authorize": {"op": "http.get", "target": "https://api.example.com/"},
    "heap": {"method": "write", "type": "counter", "value": [None]},
    "budget": {"kind": "requests"},
    "set_budget": {"kind": "requests", "limit": 1},
    "audit": {"name": "approved", "data": {"case": 7}},
}
ASKED = {
    "requests": (Ask("http", "post", "https://api.example.com/v1/pay"), {"requests": 1, "bytes": 49}),
    "stream_next": (None, {}),
    "stream_close": (None, {}),
    "stock": (Ask("stock", "read", "BRK-B"), {"requests": 1}),
    "state_data": (Ask("state_data", "read", "s-1"), {"requests": 1}),
    "file": (Ask("file", "write", "data:/out/a.csv"), {"file_bytes": 4}),
    "tool": (Ask("tool", "execute", "add"), {"tool_calls": 1}),
    "served_tool": (Ask("tool", "execute", "calc/add"), {"requests": 1, "tool_calls": 1, "bytes": 7}),
    "tool_list": (None, {}),
    "infer": (
        Ask("infer", "chat", "tiny"),
        {
            "requests": 1,
            "infer_calls": 1,
            "bytes": 74,
            "tokens_in": 19,
            "tokens_out": 9,
            "tokens": 28,
            "cost": 19,
        },
    ),
    "infer_stream": (
        Ask("infer", "chat", "tiny"),
        {
            "requests": 1,
            "infer_calls": 1,
            "bytes": 128,
            "tokens_in": 32,
            "tokens_out": 9,
            "tokens": 41,
            "cost": 25,
        },
    ),
    "embed": (
        Ask("infer", "embed", "tiny"),
        {"requests": 1, "infer_calls": 1, "bytes": 56, "tokens_in": 14, "tokens": 14, "cost": 7},
    ),
    "authorize": (None, {}),
    "budget": (None, {}),
    "set_budget": (None, {}),
    "heap": (Ask("heap", "write", "counter"), {}),
    "audit": (None, {}),
}
ENDPOINT = InferenceEndpoint("local", "http://a.example/v1", ("tiny",), price=(0.5, 1))
NOWHERE = Connections(
    Reach("here", inference=(ENDPOINT,)), lambda allowed, place: pytest.fail("it connects"), Toolbox()
)
# Say what would be done or has been, or let less be done.
UNASKED = {"stream_next", "stream_close", "authorize", "tool_list", "budget", "set_budget", "audit"}
FREE = {"authorize", "heap", "audit"}  # are answered from what the host has in memory
BUDGETS = {kind.name for kind in BUDGET_KINDS.values() if kind.is_of_calls}


def complete(row: Capability, example: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call as they are asked about."""
    arguments = row.read(example)
    return {**arguments, **row.added(NOWHERE, arguments)}


def unready(row: Capability, example: dict[str, Any] | None) -> str:
    """Why a policy, a budget and an audit could not do with this row; empty where they can."""
    if example is None:
        return f"{row.name} has no example in this test"
    arguments = complete(row, example)
    asked, cost = row.ask(arguments), row.cost(arguments)
    if row.name in UNASKED and asked is None and cost == {} and row.event in (None, *get_args(Event)):
        return ""
    if type(asked) is not Ask or not all(type(part) is str and part for part in asked):
        return f"{row.name} has no question for a policy: {asked!r}"
    sent = row.sent(arguments)
    if row.event not in get_args(Event) or type(sent) is not bytes or not sent:
        return f"{row.name} has no entry for the audit: {row.event!r} of {sent!r}"
    if row.name in FREE and cost == {}:
        return ""
    if (
        not cost
        or not cost.keys() <= BUDGETS
        or not all(type(each) is int and each > 0 for each in cost.values())
    ):
        return f"{row.name} costs nothing that a budget knows: {cost!r}"
    return ""


def test_every_row_has_a_question_for_a_policy_a_cost_and_an_entry() -> None:
    """The monitor asks the first, charges the second before it performs anything, and notes the third."""
    assert [told for row in CAPABILITIES if (told := unready(row, EXAMPLES.get(row.name)))] == []
    assert {row.name for row in CAPABILITIES} == ASKED.keys()
    for row in CAPABILITIES:
        arguments = complete(row, EXAMPLES[row.name])
        assert (row.ask(arguments), row.cost(arguments)) == ASKED[row.name]
        assert row.is_request is ("requests" in row.cost(arguments))


@pytest.mark.parametrize(
    ("ask", "cost", "entry", "told"),
    [
        (lambda arguments: None, {"requests": 1}, ("user", b"x"), "no question"),
        (lambda arguments: Ask("x", "", "y"), {"requests": 1}, ("user", b"x"), "no question"),
        (lambda arguments: Ask("x", "y", "z"), {}, ("user", b"x"), "costs nothing"),
        (lambda arguments: Ask("x", "y", "z"), {"requests": 0}, ("user", b"x"), "costs nothing"),
        (lambda arguments: Ask("x", "y", "z"), {"patience": 1}, ("user", b"x"), "costs nothing"),
        (lambda arguments: Ask("x", "y", "z"), {"requests": 1}, ("whim", b"x"), "no entry"),
        (lambda arguments: Ask("x", "y", "z"), {"requests": 1}, ("user", b""), "no entry"),
    ],
)
def test_a_row_without_them_is_found(
    ask: Any, cost: dict[str, int], entry: tuple[Any, bytes], told: str
) -> None:
    """The test above can fail."""
    event, sent = entry
    row = Capability("x", (), greeting, ask, event, cost=lambda arguments: cost, sent=lambda arguments: sent)
    assert told in unready(row, {})
    assert "no example" in unready(row, None)


def test_a_url_that_is_none_has_no_question() -> None:
    """It is refused before anybody is asked, in the words of the call."""
    [requests] = [row for row in CAPABILITIES if row.name == "requests"]
    with pytest.raises(ProcessorError, match=r"requests E317 the URL 'ftp://example\.com'"):
        complete(requests, {**EXAMPLES["requests"], "url": "ftp://example.com"})


# The kinds of arguments.


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Text(1, 2), ["a", "ab"], ["", "abc", 1, None, b"a", ["a"]]),
        (Choice(("a", "b")), ["a"], ["c", "", 1, ["a"], None]),
        (Whole(1, 3), [1, 3], [0, 4, True, 1.0, "1", None]),
        (Number(above=0, most=2), [0.5, 1, 2], [0, -1, 2.1, True, float("nan"), float("inf"), "1", None]),
        (Flag(), [True, False], [1, 0, "true", None]),
        (Binary(), [b"", b"a"], ["a", bytearray(b"a"), None]),
        (JsonObject(), [{}, {"a": 1}], [[], None, "a"]),
        (Listed(Whole(0, 1), 1, 2), [[0], [0, 1]], [[], [0, 1, 1], [2], (0,), [True], "a", None]),
        (Anything(), [0, "", [], False], [None]),
    ],
)
def test_a_kind_takes_its_own_within_its_bounds(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    """Types are exact and bounds are inclusive, but for what a number must be above."""
    assert [value for value in good if not kind.fits(value)] == []
    assert [value for value in bad if kind.fits(value)] == []
    assert kind.words


def test_a_pattern_is_for_the_whole_text() -> None:
    """A line break at the end is one character too many."""
    kind = Text(1, 5, re.compile("[a-z]+"))
    assert kind.fits("abc")
    assert not any(map(kind.fits, ["abc\n", "a b", "abcdef"]))
