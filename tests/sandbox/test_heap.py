"""`self.heap`: typed objects in a key's context, changed by JSON Patch, with a guest on the other side.

rfc6902.jsonl has the 91 enabled cases of json-patch-test-suite 1.1.0 (https://github.com/json-patch/
json-patch-tests, Apache-2.0), one a line, unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from processor.capability.registry import HostCalls
from processor.errors import ProcessorError
from processor.model import ContextChange, Failed, Group, HeapOp, Limits, Outcome, Ran
from processor.reach import Reach
from processor.sandbox import objects, values, wire
from processor.sandbox.host import Guest
from processor.sandbox.objects import HeapObject, Ledger
from processor.sandbox.offer import OPEN_HEAP, HeapGrant, HeapOffer
from processor.schema import Schema

CASES = [json.loads(line) for line in (Path(__file__).parent / "rfc6902.jsonl").read_text().splitlines()]
LANGUAGES = pytest.mark.parametrize("language", ["restricted", "python"])
COUNTER = '{"op": "replace", "path": "/value", "value": 42}'


def program(body: str, rest: str = "") -> str:
    methods = f"def process(self, queries):\n{indent(dedent(body), '    ')}\n{dedent(rest)}"
    return f"class Runnable(BaseSecureRunnable):\n{indent(methods, '    ')}\n"


def documents(outcome: Outcome) -> list[Any]:
    assert isinstance(outcome, Ran), outcome
    return [json.loads(output.body) for output in outcome.outputs]


def failure(outcome: Outcome) -> tuple[str, str]:
    assert isinstance(outcome, Failed), outcome
    return outcome.failure.code, outcome.failure.text


def kept(outcome: Outcome, before: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The items of the one context that a run leaves."""
    assert isinstance(outcome, Ran), outcome
    [change] = outcome.contexts.values()
    items = {**({} if change.whole else before or {}), **change.items}
    return {name: item for name, item in items.items() if item is not None}


@LANGUAGES
async def test_the_cases_of_the_suite_of_rfc_6902(language: str, spawned: Any, one: Any) -> None:
    """Each patch makes what it should, or fails and leaves the object as it was."""
    body = """
        for case in queries:
            handle = self.heap.alloc("case", case["doc"])
            try:
                version = self.heap.write(handle, case["patch"])
            except (InvalidArgumentError, ConflictError) as err:
                version = str(err)
            yield [version, self.heap.read(handle)]
    """
    assert len(CASES) == 91
    async with spawned(program(body), language=language, outputs=200) as guest:
        found = documents(await guest.run([one(*CASES)]))
    for case, (version, value) in zip(CASES, found, strict=True):
        expected = case["doc"] if "error" in case else case.get("expected", value)
        assert json.dumps(value, sort_keys=True) == json.dumps(expected, sort_keys=True), case
        assert isinstance(version, str) == ("error" in case), (case, version)


@LANGUAGES
async def test_an_object_from_its_making_to_its_end(language: str, spawned: Any, one: Any) -> None:
    """A handle is a text; versions count writes from 0; what is gone is not there."""
    body = f"""
        handle = self.heap.alloc("counter", {{"value": 0, "name": "counter"}})
        said = [handle, self.heap.version(handle), self.heap.read(handle)]
        said += [self.heap.write(handle, [{COUNTER}]), self.heap.read(handle), self.heap.version(handle)]
        said += [self.heap.list(), self.heap.list("counter"), self.heap.list("other")]
        self.heap.delete(handle)
        try:
            self.heap.read(handle)
        except NotFoundError as err:
            said += [str(err), err.code, err.operation, err.target, self.heap.list()]
        return [said]
    """
    async with spawned(program(body), language=language) as guest:
        assert documents(await guest.run([one(1)])) == [
            [
                "0x1", 0, {"value": 0, "name": "counter"},
                1, {"value": 42, "name": "counter"}, 1,
                ["0x1"], ["0x1"], [],
                "heap.read E335 there is no object '0x1' in the heap of this context; there are none.",
                "E335", "heap.read", "0x1", [],
            ]
        ]  # fmt: skip


async def test_what_is_read_is_of_the_readers_own(spawned: Any, one: Any) -> None:
    """Neither a value that was handed over nor one that was read leads back into the object."""
    body = """
        mine = {"list": [1]}
        handle = self.heap.alloc("box", mine)
        mine["list"].append(2)
        self.heap.read(handle)["list"].append(3)
        return [self.heap.read(handle)]
    """
    async with spawned(program(body)) as guest:
        assert documents(await guest.run([one(1)])) == [{"list": [1]}]


@LANGUAGES
async def test_a_run_that_fails_leaves_nothing_and_a_retry_gives_the_same_handles(
    language: str, spawned: Any, one: Any
) -> None:
    """Objects are part of the context: they come and go with it."""
    body = f"""
        held = self.heap.list()
        made = self.heap.alloc("counter", {{"value": 0}})
        if held:
            self.heap.write(held[0], [{COUNTER}])
            self.heap.delete(held[-1])
        if queries[0] == "fail":
            raise RuntimeError("no")
        return [[held, made, [self.heap.read(each) for each in self.heap.list()]]]
    """
    async with spawned(program(body), language=language) as guest:
        assert documents(await guest.run([one("a")])) == [[[], "0x1", [{"value": 0}]]]
        assert documents(await guest.run([one("b", context=None)])) == [[["0x1"], "0x2", [{"value": 0}]]]
        for _ in range(2):
            assert failure(await guest.run([one("fail", context=None)]))[0] == "E304"
        outcome = await guest.run([one("c", context=None)])
        assert documents(outcome) == [[["0x2"], "0x3", [{"value": 0}]]]
        assert isinstance(outcome, Ran)
        assert [op[1:] for op in outcome.heap] == [
            ("alloc", "counter", "0x3", 0), ("write", "counter", "0x2", 1),
            ("delete", "counter", "0x2", 1), ("read", "counter", "0x3", 0),
        ]  # fmt: skip


async def test_a_handle_is_never_used_again(spawned: Any, one: Any) -> None:
    """Not by another guest either that takes the context up, nor where the counter was edited away."""
    body = """
        made = [self.heap.alloc("a", 1), self.heap.alloc("a", 2)]
        self.heap.delete(made[1])
        return [made]
    """
    items: dict[str, bytes] = {}
    for expected in (["0x1", "0x2"], ["0x3", "0x4"]):
        async with spawned(program(body)) as guest:
            outcome = await guest.run([one(1, context=items)])
            assert documents(outcome) == [expected]
            items = kept(outcome, items)
    assert items["=heap"] == b"5"
    assert json.loads(items["=heap.0x3"]) == {"type": "a", "version": 0, "value": 1}
    gone = {"=heap.0x7": values.TOMBSTONE, "=heap.0x3": items["=heap.0x3"]}
    async with spawned(program(body)) as guest:
        assert documents(await guest.run([one(1, context=gone)])) == [["0x8", "0x9"]]


async def test_a_write_that_expects_another_version_is_refused(spawned: Any, one: Any) -> None:
    """A conflict changes nothing, and is caught by its name; no expectation is no check."""
    body = f"""
        handle, patch = self.heap.alloc("counter", {{"value": 0}}), [{COUNTER}]
        said = [self.heap.write(handle, patch, expected_version=0)]
        for expected in (0, 2, True, "1", 1.0):
            try:
                said.append(self.heap.write(handle, patch, expected))
            except (ConflictError, InvalidArgumentError) as err:
                said.append(str(err))
        return [said + [self.heap.write(handle, patch, 1), self.heap.write(handle, patch)]]
    """
    async with spawned(program(body)) as guest:
        assert documents(await guest.run([one(1)])) == [
            [
                1,
                "heap.write E336 the object 0x1 has version 1, not 0.",
                "heap.write E336 the object 0x1 has version 1, not 2.",
                "heap.write E337 expected_version is a number or None, not a bool.",
                "heap.write E337 expected_version is a number or None, not '1'.",
                "heap.write E337 expected_version is a number or None, not a float.",
                2,
                3,
            ]
        ]


WRONG = {
    "alloc('', 1)": "E337 a type is a text of 1 to 64 printable characters, not ''.",
    "alloc('x' * 65, 1)": f"E337 a type is a text of 1 to 64 printable characters, not '{'x' * 58}….",
    "alloc('a\\n', 1)": "E337 a type is a text of 1 to 64 printable characters, not 'a\\n'.",
    "alloc(7, 1)": "E337 a type is a text of 1 to 64 printable characters, not a int.",
    "alloc('a', {1, 2})": "E337 the value is a set, which JSON cannot express; write list(value).",
    "read(1)": "E337 a handle is a text such as '0x1', not a int.",
    "read('0x01')": "E335 there is no object '0x01' in the heap of this context; there are 0x1.",
    "read('=heap')": "E335 there is no object '=heap' in the heap of this context; there are 0x1.",
    "delete('x' * 999)": f"E335 there is no object '{'x' * 58}… in the heap of this context; there are 0x1.",
    "write('0x1', {})": (
        "E337 a patch is a list of operations such as {'op': 'replace', 'path': '/value', 'value': 1}, "
        "not a dict."
    ),
    "write('0x1', [{'op': 'add', 'path': '/a/b', 'value': 1}])": None,
    "write('0x1', [{'op': 'jump', 'path': '/a'}])": None,
    "write('0x1', [{'op': 'test', 'path': '', 'value': 2}])": None,
    "write('0x1', [{'op': 'add', 'path': ['a'], 'value': 1}])": None,
    "write('0x1', [[]])": None,
    "alloc('a', 'x' * 70000)": "E338 the value has 70,002 bytes of JSON; an object takes 65,536.",
    "write('0x1', [{'op': 'add', 'path': '/a', 'value': 'x' * 70000}])": (
        "E338 the value has 70,008 bytes of JSON; an object takes 65,536."
    ),
    "write('0x1', [{'op': 'add', 'path': '/a', 'value': 'x' * 270000}])": (
        "E338 the patch has 270,037 bytes of JSON; one takes 262,144."
    ),
}


@LANGUAGES
async def test_what_is_wrong_is_said_and_changes_nothing(language: str, spawned: Any, one: Any) -> None:
    """Each refusal has its own class, the operation, and what it was about."""
    tries = "".join(
        f"try:\n    self.heap.{call}\nexcept AuthorityKernelError as err:\n    said.append(str(err))\n"
        "else:\n    said.append('done')\n"
        for call in WRONG
    )
    body = "self.heap.alloc('a', {})\nsaid = []\n" + tries + "return [said + [self.heap.read('0x1')]]"
    async with spawned(program(body), language=language) as guest:
        [said] = documents(await guest.run([one(1)]))
    for (call, expected), told in zip(WRONG.items(), said, strict=False):
        method = call.partition("(")[0]
        assert told.startswith(f"heap.{method} E33"), (call, told)
        assert expected is None or told == f"heap.{method} {expected}", call
    assert said[-1] == {}


async def test_a_heap_holds_so_many_objects(spawned: Any, one: Any) -> None:
    """The ten thousand and first is refused; what is there stays, and is listed as it was made."""
    body = """
        for number in range(queries[0]):
            self.heap.alloc("item", {"id": number})
        try:
            self.heap.alloc("item", 1)
        except BufferOverflowError as err:
            return [[len(self.heap.list("item")), self.heap.list()[-1], str(err)]]
    """
    why = "heap.alloc E338 the heap holds 10,000 objects, as many as it may."
    async with spawned(program(body), cpu_s=30, wall_s=60) as guest:
        outcome = await guest.run([one(objects.OBJECTS)])
        assert documents(outcome) == [[10_000, "0x2710", why]]
        assert len(kept(outcome)) == objects.OBJECTS + 1
        assert documents(await guest.run([one(0, context=None)])) == [[10_000, "0x2710", why]]


CONTEXT = """
    self.context["own"] = 1
    handle = self.heap.alloc("a", 1)
    said = [sorted(self.context), len(self.context), "=heap" in self.context, self.context.get("=heap.0x1")]
    self.context.clear()
    self.context = {"other": 2}
    return [[*said, dict(self.context), self.heap.read(handle)]]
"""


@LANGUAGES
async def test_the_objects_are_not_among_the_items_of_the_context(
    language: str, spawned: Any, one: Any
) -> None:
    """They are kept beside them: what is done to all items leaves them be."""
    async with spawned(program(CONTEXT), language=language) as guest:
        outcome = await guest.run([one(1)])
        assert documents(outcome) == [[["own"], 1, False, None, {"other": 2}, 1]]
        assert sorted(kept(outcome)) == ["=heap", "=heap.0x1", "other"]
        assert documents(await guest.run([one(1, context=None)]))[0][:2] == [["other", "own"], 2]


@LANGUAGES
@pytest.mark.parametrize("name", ["=heap", "=heap.0x1", "=heapster"])
@pytest.mark.parametrize(
    "set_it",
    [
        "self.context[queries[0]] = 1",
        "self.context.update({queries[0]: 1})",
        "self.context = {queries[0]: 1}",
    ],
)
async def test_a_name_of_the_heap_cannot_be_set(
    language: str, name: str, set_it: str, spawned: Any, one: Any
) -> None:
    """The run fails with E309, and what the heap has there stays."""
    async with spawned(program(f"name = queries[0]\n{set_it}\nreturn []"), language=language) as guest:
        code, text = failure(await guest.run([one(name)]))
        assert code == "E309"
        assert text.endswith("has a name that is for self.heap, as are all that begin with =heap")


async def test_an_item_of_such_a_name_that_was_there_before_stays(spawned: Any, one: Any) -> None:
    """A name that no object can have is an item as it always was, and can be deleted."""
    body = """
        self.context["new"] = 1
        if queries[0]:
            del self.context["=heapster"]
        return [sorted(self.context)]
    """
    async with spawned(program(body)) as guest:
        before = {"=heapster": b"7"}
        assert documents(await guest.run([one(0, context=before)])) == [["=heapster", "new"]]
        outcome = await guest.run([one(1, context=None)])
        assert documents(outcome) == [["new"]]


@LANGUAGES
async def test_a_runnable_may_call_something_of_its_own_heap(language: str, spawned: Any, one: Any) -> None:
    """An attribute or a method of that name is the user's."""
    rest = """
        def init(self):
            self.heap = [3, 1]
    """
    async with spawned(program("return [sorted(self.heap)]", rest), language=language) as guest:
        assert documents(await guest.run([one(1)])) == [[1, 3]]


async def test_there_is_no_heap_in_init(spawned: Any, one: Any) -> None:
    """It runs again after a restart, and would make its objects each time."""
    rest = "def init(self):\n    self.heap.alloc('a', 1)\n"
    async with spawned(program("return []", rest)) as guest:
        code, text = failure(await guest.run([one(1)]))
        assert code == "E304"
        assert "init runs again after a restart" in text


async def test_objects_of_a_large_context_are_kept_one_by_one(spawned: Any, one: Any) -> None:
    """A run that writes one object of many stores that one."""
    body = """
        if queries[0] == "make":
            for number in range(100):
                self.heap.alloc("item", {"id": number, "text": "x" * 100})
            return []
        self.heap.write("0x32", [{"op": "add", "path": "/more", "value": 1}])
        self.heap.delete("0x33")
        return [len(self.heap.list())]
    """
    async with spawned(program(body)) as guest:
        made = kept(await guest.run([one("make")]))
        assert len(made) == 101
    async with spawned(program(body)) as guest:
        outcome = await guest.run([one("change", context=made)])
        assert documents(outcome) == [99]
        assert isinstance(outcome, Ran)
        [change] = outcome.contexts.values()
        assert {name: item is None for name, item in change.items.items()} == {
            "=heap.0x32": False, "=heap.0x33": True,
        }  # fmt: skip
        assert not change.whole
        size = sum(values.weight(name, item) for name, item in kept(outcome, made).items())
        assert change.size == size


async def test_objects_count_for_the_limit_of_their_context(spawned: Any, one: Any) -> None:
    """What is over it fails the run with E310, and nothing is kept."""
    body = "self.heap.alloc('a', 'x' * 60_000)\nself.heap.alloc('a', 'x' * 60_000)\nreturn []"
    async with spawned(program(body), context_bytes=100_000) as guest:
        assert failure(await guest.run([one(1)]))[0] == "E310"


async def test_names_that_begin_with_a_dollar_come_back(spawned: Any, one: Any) -> None:
    """They look like the tags of kept values, in whose bytes they are told apart; so do long integers."""
    value = {"$set": [1], "$gone": 1, "n": 1 << 80, "x": {"$dict": []}}
    async with spawned(program("return [self.heap.read(self.heap.alloc('a', queries[0]))]")) as guest:
        outcome = await guest.run([one(value)])
        assert documents(outcome) == [value]
        items = kept(outcome)
    async with spawned(program("return [self.heap.read('0x1')]")) as guest:
        assert documents(await guest.run([one(1, context=items)])) == [value]


async def test_a_patch_whose_writing_changes_the_object_is_laid_over_that(spawned: Any, one: Any) -> None:
    """A list of the user's own may do anything while it is read: no version is given twice."""
    body = """
        heap, made = self.heap, []
        class Patch(list):
            def __iter__(self):
                made.append(heap.write("0x1", [{"op": "replace", "path": "/b", "value": 5}]))
                return list.__iter__(self)
        heap.alloc("a", {"a": 0, "b": 0})
        made.append(heap.write("0x1", Patch([{"op": "replace", "path": "/a", "value": 7}])))
        return [[sorted(set(made)) == sorted(made), heap.read("0x1")]]
    """
    async with spawned(program(body), language="python") as guest:
        assert documents(await guest.run([one(1)])) == [[True, {"a": 7, "b": 5}]]


async def test_a_patch_that_doubles_its_value_with_each_step_is_cut_short(spawned: Any, one: Any) -> None:
    """It is refused as soon as the value is more than any object may hold, and nothing has changed."""
    body = """
        steps = [{"op": "copy", "from": "", "path": f"/{number}"} for number in range(queries[0])]
        handle = self.heap.alloc("a", {"x": "y" * 1000})
        try:
            return [[self.heap.write(handle, steps), len(self.heap.read(handle))]]
        except BufferOverflowError as err:
            return [[str(err), self.heap.version(handle)]]
    """
    async with spawned(program(body), memory_mb=64) as guest:
        assert documents(await guest.run([one(5)])) == [[1, 6]]
        why = "heap.write E338 a step of the patch makes more than 262,144 bytes of JSON."
        assert documents(await guest.run([one(40, context=None)])) == [[why, 0]]


async def test_an_item_that_is_no_object_is_named(spawned: Any, one: Any) -> None:
    """What an edit could have left is refused where it is read, by its handle."""
    context = {"=heap": b"9", "=heap.0x1": b"[]", "=heap.0x2": b'{"type":"a","version":0,"value":1}'}
    body = """
        try:
            self.heap.read("0x1")
        except InvalidArgumentError as err:
            return [[str(err), self.heap.read("0x2"), self.heap.alloc("a", 1)]]
    """
    async with spawned(program(body)) as guest:
        why = "heap.read E337 the object 0x1 cannot be read: it is not made of type, version and value."
        assert documents(await guest.run([one(1, context=context)])) == [[why, 1, "0x9"]]


# Who may do what.

LINES = [
    [
        HeapGrant(False, "counter", ("alloc", "read", "write")),
        HeapGrant(False, "item_.*", ("*",)),
        HeapGrant(True, "item_secret", ("read",)),
    ]
]
USE = """
    def tried(call):
        try:
            return [call()]
        except AuthorityKernelError as err:
            return [type(err).__name__, str(err)]
    heap = self.heap
    return [
        tried(lambda: heap.alloc("counter", 1)), tried(lambda: heap.delete("0x1")),
        tried(lambda: heap.alloc("other", 1)), tried(lambda: heap.alloc("item_9", 1)),
        tried(lambda: heap.alloc("item_secret", 1)), tried(lambda: heap.read("0x3")),
        tried(lambda: heap.list("item_secret")), tried(lambda: heap.list("item_9")),
    ]
"""


@LANGUAGES
async def test_what_lasting_lines_allow_is_done_without_a_call(language: str, spawned: Any, one: Any) -> None:
    """Anything else the host is asked for, and what it refuses is not done."""
    asked: list[tuple[str, str]] = []

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        assert name == objects.HEAP
        asked.append((arguments["method"], arguments["type"]))
        raise ProcessorError("E330", f"heap {asked[-1][0]} {asked[-1][1]} is not allowed")

    offer = HeapOffer(LINES)
    async with spawned(program(USE), perform, language=language, heap=offer) as guest:
        found = documents(await guest.run([one(1)]))
    denied = "OperationDeniedError"
    assert found == [
        ["0x1"],
        [denied, "E330 heap delete counter is not allowed."],
        [denied, "E330 heap alloc other is not allowed."],
        ["0x2"],
        ["0x3"],
        [denied, "E330 heap read item_secret is not allowed."],
        [denied, "E330 heap read item_secret is not allowed."],
        [["0x2"]],
    ]
    assert asked == [
        ("delete", "counter"), ("alloc", "other"), ("read", "item_secret"), ("read", "item_secret"),
    ]  # fmt: skip


async def test_what_the_host_allows_counts_for_the_rest_of_the_run(spawned: Any, one: Any) -> None:
    """What only a line that expires allows is asked for once in a run, and again in the next."""
    asked = 0

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        return True

    body = "return [self.heap.alloc('a', 1), self.heap.alloc('a', 2)]"
    async with spawned(program(body), perform, heap=HeapOffer([[]])) as guest:
        assert documents(await guest.run([one(1)])) == ["0x1", "0x2"]
        assert asked == 1
        assert documents(await guest.run([one(1, context=None)])) == ["0x3", "0x4"]
        assert asked == 2


SCHEMA = Schema(b'{"type": "object", "properties": {"value": {"type": "integer", "maximum": 99}}}')


async def test_a_value_fits_the_schema_of_its_type(spawned: Any, one: Any) -> None:
    """One that does not is refused with the place in it, made so or patched so; null is a value, too."""
    calls = HostCalls()
    governor = calls.for_route(Reach("outbound", heap={"counter": SCHEMA}))
    body = """
        handle, said = self.heap.alloc("counter", {"value": 1}), []
        for call in (
            lambda: self.heap.alloc("counter", {"value": "no"}),
            lambda: self.heap.alloc("counter", None),
            lambda: self.heap.write(handle, [{"op": "replace", "path": "/value", "value": 100}]),
            lambda: self.heap.alloc("free", "anything"),
        ):
            try:
                said.append(call())
            except InvalidArgumentError as err:
                said.append(str(err))
        return [*said, self.heap.read(handle)]
    """
    async with spawned(program(body), governor.lane().perform, heap=governor.heap) as guest:
        unfit = "E337 a value of the type 'counter' does not fit its schema: "
        assert documents(await guest.run([one(1)])) == [
            f'heap.alloc {unfit}/value: "no" is not of type "integer".',
            f'heap.alloc {unfit}the value: null is not of type "object".',
            f"heap.write {unfit}/value: 100 is greater than the maximum of 99.",
            "0x2",
            {"value": 1},
        ]
    await calls.close()


# What a guest that was broken into may say.


def item(kind: str = "a", version: int = 0, value: Any = 1) -> bytes:
    return values.encode({"type": kind, "version": version, "value": value})


REQUEST = wire.RunRequest([Group("k", [b"1"])], [], [], stream=False)


def told(items: Mapping[str, bytes | None], *ops: Any, whole: bool = True) -> wire.Frame:
    size = sum(values.weight(name, value) for name, value in items.items())
    change = ContextChange(items, whole, size)
    brought = replace(wire.Yield.of(1), heap=list(ops))
    (frame,) = wire.Splitter(1 << 24).feed(wire.write_ran(1, brought, {"k": change}, []))
    return frame


BROKEN = {
    "not JSON of an object": {"=heap.0x1": b"[]"},
    "another field": {"=heap.0x1": b'{"type":"a","version":0,"value":1,"more":1}'},
    "a version below 0": {"=heap.0x1": item(version=-1)},
    "a version that is no integer": {"=heap.0x1": b'{"type":"a","version":0.5,"value":1}'},
    "a type that is none": {"=heap.0x1": item(kind="")},
    "a value that is not JSON": {"=heap.0x1": b'{"type":"a","version":0,"value":{"$set":[1]}}'},
    "a value that is too large": {"=heap.0x1": item(value="x" * objects.VALUE_BYTES)},
    "a number that is none": {"=heap": b'"1"'},
    "the number 0": {"=heap": b"0"},
    "a tag that is unknown": {"=heap.0x1": b'{"$what":1}'},
}


@pytest.mark.parametrize("items", BROKEN.values(), ids=BROKEN)
def test_an_object_that_is_none_ends_its_guest(items: dict[str, bytes]) -> None:
    """The host reads each that is new; one that was none before may stay what it was, and nothing else."""
    alloc = [("k", HeapOp(0, "alloc", "a", "0x1", 0))]
    Ledger(OPEN_HEAP).settle({"k": ContextChange({"=heap.0x1": item()}, True, 0)}, alloc, ())
    with pytest.raises(ValueError):
        Ledger(OPEN_HEAP).settle({"k": ContextChange(items, True, 0)}, alloc, ())
    ledger = Ledger(OPEN_HEAP)
    ledger.hold("k", items)
    ledger.settle({"k": ContextChange({**items, "own": b"1"}, True, 0)}, [], ())
    if "=heap" not in items:
        for other in (item(), b"7", None):
            with pytest.raises(ValueError):
                ledger.settle({"k": ContextChange({"=heap.0x1": other}, False, 0)}, alloc, ())


@pytest.mark.parametrize(
    "op",
    [
        HeapOp(1, "read", "a", "0x1", 0),
        HeapOp(-1, "read", "a", "0x1", 0),
        HeapOp(0, "peek", "a", "0x1", 0),
        HeapOp(0, "read", "", "0x1", 0),
        HeapOp(0, "read", "a" * 65, "0x1", 0),
        HeapOp(0, "read", "a\n", "0x1", 0),
        HeapOp(0, "read", "a", "0x0", 0),
        HeapOp(0, "read", "a", "1", 0),
        HeapOp(0, "read", "a", "0x1\n", 0),
        HeapOp(0, "read", "a", "0x1", -1),
        HeapOp(0, "read", "a", "0x1", True),
        [0, "read", "a", "0x1"],
        [0, ["read"], "a", "0x1", 0],
        [0, "read", {"a": 1}, "0x1", 0],
    ],
)
def test_an_operation_that_is_none_ends_its_guest(op: Any) -> None:
    """Its fields are exactly those that an operation has."""
    [known] = wire.read_ran(told({}, HeapOp(0, "read", "a", "0x1", 3)), REQUEST, Limits()).heap
    assert known == HeapOp(0, "read", "a", "0x1", 3)
    with pytest.raises(wire.Violation):
        wire.read_ran(told({}, op), REQUEST, Limits())


BEFORE = {"=heap": b"3", "=heap.0x1": item("counter", 1, 1), "=heap.0x2": item("item_x", 0, 2), "own": b"1"}


def settled(
    items: Mapping[str, bytes | None], *ops: HeapOp, whole: bool = False, granted: Any = ()
) -> Mapping[str, bytes]:
    """What the ledger takes for the objects after a run, or raises."""
    offer = HeapOffer(LINES, {"item_x"}, lambda kind, text: kind != "item_x" or text == b"2" or text == b"3")
    ledger = Ledger(offer)
    ledger.hold("k", BEFORE)
    ledger.settle({"k": ContextChange(items, whole, 0)}, [("k", op) for op in ops], granted)
    return ledger._kept["k"]


def test_the_host_takes_what_was_said_and_allowed() -> None:
    """An honest run is settled, whether its change is the whole context or a part of it."""
    made = {"=heap": b"4", "=heap.0x3": item("counter", 0, 9)}
    alloc = HeapOp(0, "alloc", "counter", "0x3", 0)
    assert settled(made, alloc) == {**{n: v for n, v in BEFORE.items() if n != "own"}, **made}
    assert settled({**BEFORE, **made}, alloc, whole=True) == settled(made, alloc)
    assert settled({"=heap.0x1": item("counter", 3, 9)}, HeapOp(0, "write", "counter", "0x1", 3))
    assert settled({"=heap.0x2": item("item_x", 1, 3)}, HeapOp(0, "write", "item_x", "0x2", 1))
    assert "=heap.0x2" not in settled({"=heap.0x2": None}, HeapOp(0, "delete", "item_x", "0x2", 0))
    assert settled({}, HeapOp(0, "read", "other", "0x1", 1), granted={("read", "other")})


FORGED = {
    "an operation that no line allows": ({}, [HeapOp(0, "delete", "counter", "0x1", 1)]),
    "an operation that a line denies": ({}, [HeapOp(0, "read", "item_secret", "0x1", 1)]),
    "an object that came unsaid": ({"=heap": b"4", "=heap.0x3": item("counter")}, []),
    "an object that went unsaid": ({"=heap.0x1": None}, []),
    "an object that changed unsaid": ({"=heap.0x1": item("counter", 2, 5)}, []),
    "an object of another type": (
        {"=heap.0x1": item("item_x", 2, 2)}, [HeapOp(0, "write", "item_x", "0x1", 2)]
    ),
    "an object that went by another type": ({"=heap.0x1": None}, [HeapOp(0, "delete", "item_x", "0x1", 1)]),
    "a version that was there": (
        {"=heap.0x1": item("counter", 1, 5)}, [HeapOp(0, "write", "counter", "0x1", 1)]
    ),
    "a handle that was there": (
        {"=heap": b"4", "=heap.0x1": None, "=heap.0x2": item("counter", 0, 1)},
        [HeapOp(0, "alloc", "counter", "0x2", 0)],
    ),
    "a counter that goes back": ({"=heap": b"2"}, []),
    "a counter that is gone": ({"=heap": None}, []),
    "a value that does not fit": (
        {"=heap.0x2": item("item_x", 1, 4)}, [HeapOp(0, "write", "item_x", "0x2", 1)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("items, ops", FORGED.values(), ids=FORGED)
def test_the_host_refuses_what_no_honest_guest_does(items: Any, ops: list[HeapOp]) -> None:
    """What changed is what was said, and what was said is what is allowed."""
    with pytest.raises(ValueError):
        settled(items, *ops)


async def test_a_guest_that_passes_its_own_rules_by_is_ended(spawned: Any, one: Any) -> None:
    """Plain Python that takes the rules away from itself has its run undone, and its life ended."""
    body = """
        import gc
        from processor.sandbox.offer import HeapOffer
        heap = self.heap
        heap._offer = HeapOffer()
        heap.alloc("other", 1)
        return []
    """
    async with spawned(program(body), language="python", heap=HeapOffer(LINES)) as guest:
        assert isinstance(guest, Guest)
        outcome = await guest.run([one(1)])
        assert failure(outcome)[0] == "E315"
        assert not guest.alive


def test_an_object_that_was_read_is_written_as_it_was() -> None:
    """The bytes of an object are those of its value, whoever writes them."""
    for value in (1, None, {"a": [1.5, "ü", True]}, {"$x": 1}, 1 << 70):
        made = objects.write(HeapObject("a", 3, json.dumps(value, ensure_ascii=False).encode()))
        assert objects.write(objects.read(made)) == made
        assert values.decode(made)["value"] == value
