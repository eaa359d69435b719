"""What a Runnable hands over as JSON: what stands for what, what is refused, and what the refusal advises."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from textwrap import indent
from typing import Any

import pytest

from processor.model import Failed, Group, Limits, Outcome, Program, Ran
from processor.sandbox import documents, values
from processor.sandbox.host import Zygote

LANGUAGES = pytest.mark.parametrize("language", ["restricted", "python"])
Try = Callable[..., Awaitable[Outcome]]

IMPORTS = """
import dataclasses, enum, uuid, fractions, decimal, types, ipaddress, zoneinfo, base64, collections
import datetime as dt
from datetime import date, timedelta, timezone
from decimal import Decimal

class Side(enum.Enum):
    BUY = "buy"
    LATER = date(2026, 1, 31)

class Level(enum.IntEnum):
    LOW = 3

class Tag(str, enum.Enum):
    A = "a"

class Bits(enum.Flag):
    ONE = 1
    TWO = 2

@dataclasses.dataclass
class Point:
    x: int
    when: object

@dataclasses.dataclass(frozen=True, slots=True)
class Slim:
    _hidden: int

class Pair(collections.namedtuple("Pair", "a b")):
    pass
"""
SOURCE = """
class Runnable:
    def process(self, queries):
        for what in queries:
            value = VALUES[what]()
            self.emit("e", {"v": value})
            self.event("v", {"v": value})
            yield {"v": value}
            yield {"v": value, "none": None}
            yield [value]

    def process_stream(self, query):
        yield {"v": VALUES[query]()}
"""


@asynccontextmanager
async def guest_of(
    source: str, language: str, *packages: str, nan_as_null: bool = False
) -> AsyncIterator[Any]:
    """A guest of a zygote of its own with that program."""
    zygote = await Zygote.start()
    try:
        program = Program(source, "r.py", language, packages, nan_as_null=nan_as_null)
        yield await zygote.spawn(program, Limits(memory_mb=256), emits=["e"])
    finally:
        await zygote.close()


def table(expressions: dict[str, str] | list[str]) -> str:
    """A program that hands over the value of the expression that a message names."""
    return "VALUES = {" + ", ".join(f"{name!r}: lambda: {name}" for name in expressions) + "}\n" + SOURCE


def asked(what: Any) -> Group:
    return Group("", [json.dumps([what]).encode()], {})


def written(outcome: Outcome) -> list[str]:
    """Each form in which the value was handed over."""
    assert isinstance(outcome, Ran), outcome
    bodies = [output.body for output in outcome.outputs]
    bodies += [emit.body for emit in outcome.emits] + [event.body for event in outcome.events]
    return [body.decode() for body in bodies]


def forms(text: str) -> list[str]:
    value = f'{{"v":{text}}}'
    return [value, f'{{"v":{text},"none":null}}', f"[{text}]", value, value]


WRITTEN = {
    "dt.datetime(2026, 1, 31, 8, 0, 0, 5)": '"2026-01-31T08:00:00.000005"',
    "dt.datetime(2026, 1, 31, 8, tzinfo=timezone.utc)": '"2026-01-31T08:00:00+00:00"',
    "dt.datetime(1893, 1, 1, tzinfo=timezone(timedelta(seconds=3208)))": '"1893-01-01T00:00:00+00:53:28"',
    "dt.datetime(2026, 1, 31, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))": '"2026-01-31T00:00:00+01:00"',
    "date(2026, 1, 31)": '"2026-01-31"',
    "dt.time(8, 30)": '"08:30:00"',
    "dt.time(8, 30, tzinfo=timezone.utc)": '"08:30:00+00:00"',
    "timedelta(0)": '"PT0S"',
    "timedelta(days=1, hours=2, seconds=3, microseconds=500000)": '"P1DT2H3.5S"',
    "timedelta(minutes=-90)": '"-PT1H30M"',
    "timedelta(microseconds=1)": '"PT0.000001S"',
    "timedelta(weeks=2)": '"P14D"',
    "Decimal('1.50')": '"1.50"',
    "Decimal('1E+30')": '"1E+30"',
    "uuid.UUID(int=5)": '"00000000-0000-0000-0000-000000000005"',
    "Side.BUY": '"buy"',
    "Side.LATER": '"2026-01-31"',
    "Level.LOW": "3",
    "Tag.A": '"a"',
    "Bits.ONE | Bits.TWO": "3",
    "Point(1, date(2026, 1, 31))": '{"x":1,"when":"2026-01-31"}',
    "Point(1, Point(2, [Side.BUY]))": '{"x":1,"when":{"x":2,"when":["buy"]}}',
    "Slim(4)": '{"_hidden":4}',
    "Pair(1, 2)": "[1,2]",
    "{date(2026, 1, 31): 1}": '{"2026-01-31":1}',
    "{Side.BUY: 1, Level.LOW: 2, Decimal('1.5'): 3, None: 4, True: 5}": (
        '{"buy":1,"3":2,"1.5":3,"null":4,"true":5}'
    ),
    "2**70": "1180591620717411303424",
}


@LANGUAGES
async def test_what_stands_for_a_value_is_written_everywhere(language: str) -> None:
    """Outputs, emits, events and chunks write a value alike, whatever else is in the document."""
    async with guest_of(IMPORTS + table(WRITTEN), language) as guest:
        for expression, text in WRITTEN.items():
            assert written(await guest.run([asked(expression)])) == forms(text), expression
        chunks: list[bytes] = []

        async def emit(chunk: bytes) -> None:
            chunks.append(chunk)

        for expression in WRITTEN:
            await guest.stream(asked(expression), emit)
        assert [chunk.decode() for chunk in chunks] == [f'{{"v":{text}}}' for text in WRITTEN.values()]


OF_PACKAGES = {
    "np.float64(1.5)": "1.5",
    "np.int8(-3)": "-3",
    "np.bool_(True)": "true",
    "np.datetime64('2026-01-31')": '"2026-01-31"',
    "np.datetime64('2026-01-31T08:00:00.123456789')": '"2026-01-31T08:00:00.123456789"',
    "np.datetime64('NaT')": "null",
    "np.timedelta64(90, 'm')": '"PT1H30M"',
    "np.timedelta64(1, 'ns')": '"PT0.000000001S"',
    "np.timedelta64('NaT')": "null",
    "np.array([[1, 2], [3, 4]])": "[[1,2],[3,4]]",
    "np.array(['2026-01-31', 'NaT'], dtype='datetime64[D]')": '["2026-01-31",null]',
    "np.array([[60]], dtype='timedelta64[s]')": '[["PT1M"]]',
    "np.array(['a', None, 1], dtype=object)": '["a",null,1]',
    "pd.Timestamp('2026-01-31 08:00:00.123456789+01:00')": '"2026-01-31T08:00:00.123456789+01:00"',
    "pd.Timedelta('1 days 00:00:00.000000001')": '"P1DT0.000000001S"',
    "pd.NaT": "null",
    "pd.NA": "null",
    "pd.DataFrame({'t': [pd.Timestamp('2026-01-31'), pd.NaT], 'n': [1, 2]}).to_dict('records')": (
        '[{"t":"2026-01-31T00:00:00","n":1},{"t":null,"n":2}]'
    ),
}
PACKAGES = "import numpy as np\nimport pandas as pd\n"


async def test_scalars_and_arrays_of_packages_are_written() -> None:
    """Numbers, moments with their nanoseconds, and what is missing, of numpy and pandas."""
    async with guest_of(PACKAGES + table(OF_PACKAGES), "python", "numpy", "pandas") as guest:
        for expression, text in OF_PACKAGES.items():
            assert written(await guest.run([asked(expression)])) == forms(text), expression


ALIKE = {
    "{1: 'a', '1': 'b'}": "has the keys 1 and '1', which JSON writes alike",
    "{'x': [{None: 1, 'null': 2}]}": "['x'][0] has the keys None and 'null', which JSON writes alike",
    "{'true': 1, True: 2}": "has the keys 'true' and True, which JSON writes alike",
    "{date(2026, 1, 31): 1, '2026-01-31': 2}": "and '2026-01-31', which JSON writes alike",
    "Point(1, {1.0: 1, '1.0': 2})": "['when'] has the keys 1.0 and '1.0', which JSON writes alike",
}


@LANGUAGES
async def test_no_value_is_lost_to_a_key_that_is_written_alike(language: str) -> None:
    """Two keys of one dict with the same text are E306 wherever it is handed over; a context keeps both."""
    ways = {"output": "return [V]", "emit": "self.emit('e', V)", "event": "self.event('e', V)"}
    keep = "self.context['k'] = {1: 'a', '1': ['b']}"
    lines = "".join(
        f"        if way == {way!r}: {code.replace('V', 'VALUES[what]()')}\n" for way, code in ways.items()
    )
    source = (
        IMPORTS
        + table(ALIKE)
        + "class Runnable:\n    def process(self, queries):\n        way, what = queries\n"
        + f"{lines}        {keep}\n"
    )
    async with guest_of(source, language) as guest:
        for way in ways:
            for expression, why in ALIKE.items():
                outcome = await guest.run([Group("", [json.dumps([way, expression]).encode()], {})])
                assert isinstance(outcome, Failed), expression
                assert outcome.failure.code == "E306", outcome
                assert why in outcome.failure.text, outcome
        kept = await guest.run([Group("", [b'["", ""]'], {})])
    assert isinstance(kept, Ran), kept
    assert values.decode(kept.contexts[""].items["k"] or b"") == {1: "a", "1": ["b"]}


@LANGUAGES
async def test_nan_is_an_error_or_null(language: str) -> None:
    """Without `nan_as_null` NaN is E306 with its place and the remedy; infinity always is."""
    nans = ["float('nan')", "{'a': [1.5, float('nan')]}", "Decimal('NaN')", "Point(float('nan'), None)"]
    never = ["float('inf')", "[float('-inf')]", "Decimal('Infinity')", "{float('nan'): 1}"]
    source = IMPORTS + table([*nans, *never])
    async with guest_of(source, language) as guest:
        for expression in [*nans, *never]:
            outcome = await guest.run([asked(expression)])
            assert isinstance(outcome, Failed), expression
            assert outcome.failure.code == "E306", outcome
        outcome = await guest.run([asked(nans[1])])
    assert isinstance(outcome, Failed)
    assert "emit e['v']['a'][1] is nan, which JSON cannot express; write None for it" in outcome.failure.text
    async with guest_of(source, language, nan_as_null=True) as guest:
        for expression, text in zip(
            nans, ["null", '{"a":[1.5,null]}', "null", '{"x":null,"when":null}'], strict=True
        ):
            assert written(await guest.run([asked(expression)])) == forms(text)
        for expression in never:
            outcome = await guest.run([asked(expression)])
            assert isinstance(outcome, Failed), expression
            assert outcome.failure.code == "E306"


REFUSED = [
    "{1, 2}", "frozenset([1])", "range(2)", "collections.deque([1])", "{'a': 1}.keys()", "{'a': 1}.values()",
    "{'a': 1}.items()", "(n for n in [1])", "map(str, [1])", "b'a'", "bytearray(b'a')", "1j",
    "fractions.Fraction(1, 3)", "re.match('(?P<a>.)', 'x')", "types.SimpleNamespace(a=1)",
    "ipaddress.ip_address('10.0.0.1')", "ipaddress.ip_network('10.0.0.0/8')",
    "zoneinfo.ZoneInfo('Europe/Berlin')", "ValueError('x')",
]  # fmt: skip
NOT_KEPT = [
    "uuid.UUID(int=5)", "Side.BUY", "Level.LOW", "Tag.A", "Bits.ONE", "Point(1, None)", "Slim(4)",
    "Pair(1, 2)", "range(2)", "{'a': 1}.keys()", "(n for n in [1])", "bytearray(b'a')", "1j",
    "fractions.Fraction(1, 3)", "collections.OrderedDict(a=1)", "types.SimpleNamespace(a=1)",
    "ipaddress.ip_address('10.0.0.1')", "zoneinfo.ZoneInfo('Europe/Berlin')", "ValueError('x')",
    "dt.datetime(2026, 1, 31, tzinfo=zoneinfo.ZoneInfo('UTC'))",
    "dt.time(8, tzinfo=zoneinfo.ZoneInfo('UTC'))",
]  # fmt: skip
REFUSED_OF_PACKAGES = [
    "np.array([1j])", "np.complex128(1j)", "np.bytes_(b'a')", "np.array([b'a'])",
    "pd.DataFrame({'a': [1.5]})", "pd.Series([1])", "pd.Index([1])", "pd.Period('2026-01')",
    "pd.Interval(0, 1)", "pd.Categorical(['a'])",
]  # fmt: skip
NOT_KEPT_OF_PACKAGES = [
    "np.float64(1.5)", "np.float32(1.5)", "np.longdouble(1)", "np.int8(1)", "np.bool_(True)", "np.str_('a')",
    "np.datetime64('2026-01-31')", "np.datetime64('2026-01-31T00:00:00.000000001')",
    "np.timedelta64(1, 'ns')",
    "np.array([1])", "np.array(['2026-01-31'], dtype='datetime64[D]')", "np.array([1j])", "np.complex128(1j)",
    "np.bytes_(b'a')", "pd.DataFrame({'a': [1.5, None], 't': [pd.Timestamp('2026-01-31'), pd.NaT]})",
    "pd.Series([1.5, None])", "pd.Series([pd.Timestamp('2026-01-31')])", "pd.Index([1])",
    "pd.DatetimeIndex(['2026-01-31'])", "pd.Period('2026-01')", "pd.Interval(0, 1)", "pd.Categorical(['a'])",
    "pd.Timestamp('2026-01-31', tz='Europe/Berlin')", "pd.Timedelta('1s')", "pd.NaT", "pd.NA",
]  # fmt: skip


def remedies(outcome: Outcome) -> list[str]:
    """The expressions that the refusal says to write."""
    assert isinstance(outcome, Failed), outcome
    _, found, remedy = outcome.failure.text.partition("; write ")
    assert found, outcome.failure.text
    return [text.removesuffix(" for text") for text in remedy.split(", or ")]


async def tried(head: str, language: str, hand_over: str, expressions: list[str], *packages: str) -> None:
    """Assert that each value is refused, and that all that the refusal says to write is taken."""
    head_of_body = "class Runnable:\n    def process(self, queries):\n        value = VALUES[queries[0]]()\n"
    body = f"{head_of_body}        {hand_over}\n"
    found: dict[str, list[str]] = {}
    async with guest_of(head + table(expressions) + body, language, *packages) as guest:
        for expression in expressions:
            found[expression] = remedies(await guest.run([asked(expression)]))
    cases = [f"(lambda value: {remedy})({what})" for what, remedy_of in found.items() for remedy in remedy_of]
    async with guest_of(head + table(cases) + body, language, *packages) as guest:
        for case in cases:
            outcome = await guest.run([asked(case)])
            assert isinstance(outcome, Ran), (case, outcome)


@LANGUAGES
async def test_what_a_refusal_says_to_write_can_be_written(language: str) -> None:
    """Every remedy of a value that JSON cannot express leads to code that works."""
    await tried(IMPORTS, language, "return [value]", REFUSED)


@LANGUAGES
async def test_what_a_refusal_says_to_keep_can_be_kept(language: str) -> None:
    """Every remedy of a value that a context cannot keep leads to code that works."""
    await tried(IMPORTS, language, "self.context['k'] = value", NOT_KEPT)


async def test_remedies_for_values_of_packages_work() -> None:
    """So do those for numpy and pandas, which only plain Python has."""
    head, packages = IMPORTS + PACKAGES, ("numpy", "pandas")
    await tried(head, "python", "return [value]", REFUSED_OF_PACKAGES, *packages)
    await tried(head, "python", "self.context['k'] = value", NOT_KEPT_OF_PACKAGES, *packages)


TOO_LARGE = "the message has a number beyond the range of 64-bit floats"
HALF = "the message has half of a surrogate pair in a text"


@pytest.mark.parametrize(
    "text, code, why",
    [
        (b'{"a":1e400}', "E301", f"{TOO_LARGE}: 1e400 at line 1 column 6 (char 5)"),
        (b"[0.5,\n-2E999]", "E301", f"{TOO_LARGE}: -2E999 at line 2 column 1"),
        (b"1" * 400, "E301", f"{TOO_LARGE}: {'1' * 40} at line 1"),
        (b'"x\\ud800"', "E301", f"{HALF}, which is not a character at line 1 column 3 (char 2)"),
        (b'{"a\\udc00":1}', "E301", HALF),
        (b"NaN", "E301", "the message is not JSON: "),
        (b"\xff", "E301", "the message is not JSON: "),
        (b'"infinity', "E301", "the message is not JSON: "),
        (b"[" * 2000, "E320", "the message is nested too deeply to be read"),
        (b"[" * 1010 + b"1" * 20 + b"]" * 1010, "E320", "the message is nested too deeply to be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_called_by_its_name(text: bytes, code: str, why: str) -> None:
    """JSON that no value stands for is not called no JSON, and what is wrong has its place."""
    with pytest.raises(ValueError) as refused:
        documents.loads(text)
    said = documents.unreadable(refused.value)
    assert (said[0], said[1][: len(why)]) == (code, why)


# How an item is written, and what makes one that empties its list whenever a hook of it runs.
EMPTYING = {
    "a dict's __iter__": (
        '{"a":1}',
        """
class Item(dict):
    def __iter__(self):
        empty()
        return super().__iter__()
make = lambda: Item(a=1)
""",
    ),
    "a dict's __getitem__": (
        '{"a":2}',
        """
class Item(dict):
    def __getitem__(self, key):
        empty()
        return 2
make = lambda: Item(a=1)
""",
    ),
    "a list's __iter__": (
        "[3,4]",
        """
class Item(list):
    def __iter__(self):
        empty()
        return iter((3, 4))
make = lambda: Item((1, 2))
""",
    ),
    "a tuple's __iter__ that its class got later": (
        "[3,4]",
        """
class Item(tuple):
    pass
emptied(Item((1, 2)))
Item.__iter__ = lambda self: empty() or iter((3, 4))
make = lambda: Item((1, 2))
""",
    ),
    "a key's __hash__": (
        '{"a":1}',
        """
class Key(str):
    def __hash__(self):
        empty()
        return 5
    def __eq__(self, other):
        return self is other
make = lambda: defaultdict(int, [(Key("a"), 1)])
""",
    ),
    "a time zone's utcoffset": (
        '"2026-01-31T00:00:00+01:00"',
        """
class Zone(tzinfo):
    def utcoffset(self, at):
        empty()
        return timedelta(hours=1)
make = lambda: datetime(2026, 1, 31, tzinfo=Zone())
""",
    ),
    "a property": (
        '{"x":6}',
        """
@dataclass
class Item:
    x: int
class Later(Item):
    pass
class Own(Later):
    @property
    def x(self):
        empty()
        return 6
    @x.setter
    def x(self, value):
        pass
make = lambda: Own(1)
""",
    ),
    "a property that its class got later": (
        '{"x":6}',
        """
@dataclass
class Item:
    x: int
emptied(Item(1))
def x(self):
    empty()
    return 6
items = [Item(1) for _ in range(300)]
Item.x = property(x)
make = items.pop
""",
    ),
    "a property that its class gets while a statement asks what to give it": (
        '{"x":6}',
        """
@dataclass
class Item:
    x: int
made = [Item(1) for _ in range(600)]
def x(self):
    empty()
    return 6
class Made:
    def __radd__(self, other):
        emptied(made.pop())
        return property(x)
Item.x = 0
Item.x += Made()
make = made.pop
""",
    ),
    "__getattr__": (
        '{"x":7}',
        """
@dataclass
class Item:
    x: int
    def __getattr__(self, name):
        empty()
        return 7
def make():
    item = Item(1)
    del item.x
    return item
""",
    ),
    "the value of a field that is named as a method": (
        '{"register":5}',
        """
class Value(int):
    def __getattr__(self, name):
        empty()
        raise AttributeError(name)
@dataclass
class Item:
    register: object
make = lambda: Item(Value(5))
""",
    ),
    "an Enum's value": (
        "8",
        """
class Item(Enum):
    A = 1
    @property
    def value(self):
        empty()
        return 8
make = lambda: Item.A
""",
    ),
}
EMPTIED = """
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from enum import Enum
from collections import defaultdict

rows, kept = [], []

def empty():
    rows.clear()
    kept.append([bytearray(b"A" * 8 * n) for n in range(1, 200)])
    del kept[5:]

class Runnable:
    def process(self, queries):
        def emptied(item):
            self.emit("e", [item])
        SNIPPET
        rows[:] = [make() for _ in range(300)]
        return [rows]
"""


@pytest.mark.parametrize(("text", "source"), EMPTYING.values(), ids=EMPTYING)
async def test_a_list_is_written_safely_while_a_hook_empties_it(text: str, source: str) -> None:
    """No hook of a user's runs while native code has hold of the memory of an output's list."""
    async with guest_of(EMPTIED.replace("SNIPPET", indent(source, " " * 8)), "restricted") as guest:
        outcome = await guest.run([asked(0)])
    assert isinstance(outcome, Ran), outcome
    assert outcome.outputs[0].body.decode() == f"[{text}]"


GIVEN_A_WALK = """
import json

class Item(tuple):
    pass

def default(value):
    if value is first:
        setattr(Item, "__iter__", lambda self: items.clear() or iter((3, 4)))
    else:
        class Other(list):
            def __iter__(self):
                return iter(())
    return "x"

first = object()

class Runnable:
    def process(self, queries):
        said = []
        for made in (first, object()):
            items[:] = [made, *(Item((1, 2)) for _ in range(300))]
            try:
                json.dumps(items, default=default)
            except (TypeError, RuntimeError) as err:
                said.append(str(err.__cause__ or err))
        setattr(Item, "__iter__", lambda self: items.clear() or iter((3, 4)))
        items[:] = [Item((1, 2)) for _ in range(300)]
        return [said, json.dumps(items)]

items = []
"""


async def test_no_item_is_given_a_walk_of_its_own_while_json_writes() -> None:
    """The classes of items stay as they were when C's encoder began; then they may have any `__iter__`."""
    async with guest_of(GIVEN_A_WALK, "restricted") as guest:
        outcome = await guest.run([asked(0)])
    assert isinstance(outcome, Ran), outcome
    refused = "a list or tuple cannot be given an __iter__ of its own while json writes"
    assert [json.loads(output.body) for output in outcome.outputs] == [[refused, refused], "[[3, 4]]"]
