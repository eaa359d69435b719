"""What a context keeps: what comes back as it went in, what is refused, and what a run has changed."""

from __future__ import annotations

import copy
import enum
import json
import subprocess
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from processor.sandbox.values import TOMBSTONE, Keeper, LiveContext, decode, encode

# Values.

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["$set", "$", "null", '"$']
)
OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
ZONES = st.none() | st.just(UTC) | OFFSETS
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.datetimes(timezones=ZONES)
    | st.dates()
    | st.times(timezones=ZONES)
    | st.timedeltas()
)
HASHABLES = st.recursive(
    ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4
)
FACTORIES = st.sampled_from([int, float, str, bool, list, dict, set])


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS, inner, max_size=4)
        | st.dictionaries(HASHABLES, inner, max_size=4)
        | st.sets(HASHABLES, max_size=4)
        | st.builds(deque, st.lists(inner, max_size=4), st.none() | st.integers(4, 9))
        | st.lists(HASHABLES, max_size=4).map(Counter)
        | st.builds(defaultdict, FACTORIES, st.dictionaries(HASHABLES, inner, max_size=4))
    )


VALUES = st.recursive(ATOMS | HASHABLES.map(lambda value: {value}), _containers, max_leaves=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)
TAGS = st.sampled_from(
    [
        "$set",
        "$frozenset",
        "$bytes",
        "$decimal",
        "$datetime",
        "$date",
        "$time",
        "$timedelta",
        "$counter",
        "$deque",
        "$defaultdict",
        "$dict",
        "$int",
        "$gone",
        "$unknown",
    ]
)


def _shown(value: Any) -> str:
    """A text that two values share only if they are equal in type and content, all the way down."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}({', '.join(sorted(map(_shown, value)))})"
    if isinstance(value, dict):
        items = ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in value.items())
        return f"{type(value).__name__}({getattr(value, 'default_factory', None)}, {items})"
    if isinstance(value, (list, tuple, deque)):
        return f"{type(value).__name__}({getattr(value, 'maxlen', None)}, {', '.join(map(_shown, value))})"
    return repr(value)


@given(VALUES)
@settings(max_examples=400)
def test_a_value_comes_back_as_it_went_in(value: Any) -> None:
    """Whatever plain data a Runnable keeps, it finds again: same types, same content, same order."""
    assert _shown(decode(encode(value))) == _shown(value)


@given(VALUES)
def test_what_is_kept_is_json_that_cannot_be_mistaken_for_a_deletion(value: Any) -> None:
    """The kept bytes are JSON in UTF-8, and never the mark of a deleted key."""
    text = encode(value)
    json.loads(text.decode())
    assert text != TOMBSTONE
    assert encode({"$gone": 1}) != TOMBSTONE


@given(VALUES)
def test_an_untouched_value_is_the_same_bytes_again(value: Any) -> None:
    """Reading a value and keeping it again changes no byte, so that nothing is written for it."""
    assert encode(decode(encode(value))) == encode(value)


def test_the_bytes_of_a_set_do_not_depend_on_the_process() -> None:
    """Two processes with different hash seeds write equal sets as equal bytes."""
    program = (
        "from processor.sandbox.values import encode\n"
        "print(encode([{'a', 'b', 'c', 'd'}, {1, 'x', (2, 'y'), frozenset('pqr')}]).decode())"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path)) or "."},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        ({"pair": (1, 2)}, {"pair": [1, 2]}),
        ({(1, (2, 3)): "x"}, {(1, (2, 3)): "x"}),
        ({(1, (2, 3))}, {(1, (2, 3))}),
    ],
)
def test_a_tuple_comes_back_as_a_list_unless_it_has_to_be_hashable(value: Any, found: Any) -> None:
    """Tuples become lists, as in JSON; inside a set or as a key they stay tuples."""
    assert _shown(decode(encode(value))) == _shown(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, True, None, "x"]}, b'{"a":[1,2.5,true,null,"x"]}'),
        ({"b", "a"}, b'{"$set":["a","b"]}'),
        (frozenset({1}), b'{"$frozenset":[1]}'),
        (b"\x00\xff", b'{"$bytes":"AP8="}'),
        (Decimal("1.50"), b'{"$decimal":"1.50"}'),
        (datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), b'{"$datetime":"2024-01-02T03:04:05+00:00"}'),
        (date(2024, 1, 2), b'{"$date":"2024-01-02"}'),
        (time(3, 4), b'{"$time":"03:04:00"}'),
        (time(3, 4, fold=1), b'{"$time":["03:04:00",1]}'),
        (timedelta(days=1, seconds=2), b'{"$timedelta":[1,2,0]}'),
        (Counter("aab"), b'{"$counter":[["a",2],["b",1]]}'),
        (deque([1, 2], 5), b'{"$deque":[5,[1,2]]}'),
        (defaultdict(list, {"a": [1]}), b'{"$defaultdict":["list",[["a",[1]]]]}'),
        ({1: "x"}, b'{"$dict":[[1,"x"]]}'),
        ({"$set": [1]}, b'{"$dict":[["$set",[1]]]}'),
        (1 << 64, b'{"$int":"18446744073709551616"}'),
    ],
)
def test_the_text_form_stays_as_it_is(value: Any, text: bytes) -> None:
    """What an earlier build kept, every later one reads: this is the form, tag by tag."""
    assert encode(value) == text
    assert _shown(decode(text)) == _shown(value)


# Refusals.


class Color(enum.Enum):
    RED = 1


class Hijack(dict):  # type: ignore[type-arg]
    """A dict of the user's that must not get to run."""

    def items(self) -> Any:
        raise AssertionError("user code was run")

    __iter__ = keys = values = __len__ = __getitem__ = items


class Zone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        raise AssertionError("user code was run")


def _nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def _around(value: Any) -> Any:
    value["self"] = [value]
    return value


Point = namedtuple("Point", "x y")
NOT_KEPT = [
    (float("nan"), "context['k'] is nan, which cannot be kept"),
    ({"a": [None, float("inf")]}, "context['k']['a'][1] is inf, which cannot be kept"),
    ([0, {"b": (n for n in ())}], "context['k'][1]['b'] is a generator, which cannot be kept"),
    ({"a": object()}, "context['k']['a'] is an object, which cannot be kept"),
    (Color.RED, "context['k'] is a Color, which cannot be kept"),
    ({"a": [Color.RED]}, "context['k']['a'][0] is a Color, which cannot be kept"),
    (uuid.UUID(int=1), "context['k'] is a UUID, which cannot be kept"),
    ([orjson.Fragment(b"]")], "context['k'][0] is a Fragment, which cannot be kept"),
    (Point(1, 2), "context['k'] is a Point, which cannot be kept"),
    (OrderedDict(a=1), "context['k'] is an OrderedDict, which cannot be kept"),
    ([Hijack(a=1)], "context['k'][0] is a Hijack, which cannot be kept"),
    ({1, object}, "an element of context['k'] is a type, which cannot be kept"),
    ({(1, object): 2}, "a key of context['k'] is a type, which cannot be kept"),
    ({1: object}, "context['k'][1] is a type, which cannot be kept"),
    (Counter({"a": object}), "context['k']['a'] is a type, which cannot be kept"),
    (deque([1, object]), "context['k'][1] is a type, which cannot be kept"),
    (defaultdict(lambda: 0), "context['k'] is a defaultdict whose factory is none of int, float, str, bool,"),
    (Decimal("NaN"), "context['k'] is the Decimal NaN, which cannot be kept"),
    (datetime(2024, 1, 1, tzinfo=Zone()), "context['k'] has the time zone of a Zone, which cannot be kept"),
    (time(1, tzinfo=ZoneInfo("UTC")), "context['k'] has the time zone of a ZoneInfo, which cannot be kept"),
    ("\ud800", "context['k'] holds a lone surrogate, which is not text"),
    ({"\ud800": 1}, "a key of context['k'] holds a lone surrogate, which is not text"),
    (10**5000, "context['k'] is an integer of too many digits, which cannot be kept"),
    (_around({}), "context['k']['self'][0] refers back to itself"),
    (_around(defaultdict(int)), "context['k']['self'][0] refers back to itself"),
    (_nested(101), "is more than 100 levels deep"),
    ([_nested(1) for _ in range(200)] + [_nested(100)], "is more than 100 levels deep"),
]


@pytest.mark.parametrize(("value", "why"), NOT_KEPT, ids=[str(n) for n in range(len(NOT_KEPT))])
def test_what_cannot_come_back_is_refused_with_its_path(value: Any, why: str) -> None:
    """A value that JSON and the tags cannot express is named by path and type; nothing of it is run."""
    keeper = Keeper()
    keeper.context["k"] = value
    with pytest.raises(ValueError) as caught:
        keeper.changes()
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_hundred_levels_can_be_kept() -> None:
    """The limit of depth is the same for writing and for reading, with and without tags."""
    assert decode(encode(_nested(100))) == _nested(100)
    kept = [frozenset({1})]
    for _ in range(97):
        kept = [kept]  # type: ignore[list-item]
    assert _shown(decode(encode(kept))) != ""
    with pytest.raises(ValueError, match="more than 100 levels deep"):
        encode([kept])


def test_the_path_of_a_refusal_is_bounded() -> None:
    """Long keys and long paths do not make long messages."""
    value: Any = object()
    for number in range(40):
        value = {f"{number}" + "x" * 1000: value}
    with pytest.raises(ValueError) as caught:
        encode(value, "context")
    assert len(str(caught.value)) < 300


# Hostile bytes.


def _decoded(data: bytes) -> None:
    try:
        value = decode(data)
    except ValueError:
        return
    assert _shown(decode(encode(value))) == _shown(value)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    """Bytes that nobody wrote raise ValueError and nothing else."""
    _decoded(data)


@given(
    st.recursive(
        JSON_VALUES, lambda inner: st.dictionaries(TAGS, inner, min_size=1, max_size=2), max_leaves=8
    )
)
@settings(max_examples=500)
def test_any_tag_around_any_content_is_a_value_or_a_value_error(document: Any) -> None:
    """A known tag with a content that does not fit it raises ValueError; what fits can be kept again."""
    _decoded(orjson.dumps(document))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nul",
        b"NaN",
        b"\xff",
        b'"\\ud800"',
        b"[" * 101 + b"]" * 101,
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"$set":' * 60 + b"[]" + b"}" * 60,
        b'{"$set":[{}]}',
        b'{"$set":[[[1,{"a":1}]]]}',
        b'{"$set":"abc"}',
        b'{"$set":[],"a":1}',
        b'{"$unknown":1}',
        b'{"$bytes":"A"}',
        b'{"$bytes":[65]}',
        b'{"$decimal":1.5}',
        b'{"$decimal":"sNaN"}',
        b'{"$decimal":"1e99999999999999999999"}',
        b'{"$datetime":5}',
        b'{"$date":"2024-13-01"}',
        b'{"$timedelta":[9999999999,0,0]}',
        b'{"$timedelta":[true,0,0]}',
        b'{"$counter":["ab"]}',
        b'{"$dict":[[1,2,3]]}',
        b'{"$deque":[-1,[]]}',
        b'{"$deque":["1",[]]}',
        b'{"$defaultdict":["eval",[]]}',
        b'{"$defaultdict":[["int"],[]]}',
        b'{"$int":"1_000"}',
        b'{"$int":"' + b"9" * 5000 + b'"}',
        TOMBSTONE,
    ],
    ids=lambda data: repr(data[:30]),
)
def test_bytes_that_encode_does_not_write_are_refused(data: bytes) -> None:
    """Wrong tags, wrong contents, wrong types and depth are all ValueError, the tombstone included."""
    with pytest.raises(ValueError):
        decode(data)


# The mapping.


def _live(items: Mapping[str, Any]) -> Keeper:
    """A keeper whose context holds `items` in their bytes, as at the start of a run."""
    keeper = Keeper()
    keeper.overlay({key: encode(value) for key, value in items.items()})
    return keeper


def _update(mapping: Any) -> None:
    mapping.update({"b": 5}, c=6)
    mapping.update([("d", 7)])
    mapping.update(self=8)
    mapping |= {"e": 9}


def _delete_while_reading(mapping: Any) -> None:
    for key in list(mapping):
        if isinstance(mapping[key], list):
            del mapping[key]


def _increment(mapping: Any) -> None:
    mapping["n"] += 1
    mapping["list"] += [4]
    mapping["list"][0] -= 1
    mapping["dict"]["deep"]["er"].append("x")


def _match(mapping: Any) -> Any:
    match mapping:
        case {"n": number, **rest}:
            return number, rest
    return None


OPERATIONS: list[Callable[[Any], Any]] = [
    len,
    list,
    dict,
    repr,
    bool,
    json.dumps,
    copy.deepcopy,
    lambda m: {**m},
    lambda m: dict(**m),
    lambda m: [(k, v) for k, v in m.items()],
    lambda m: list(m.keys()),
    lambda m: list(m.values()),
    lambda m: list(reversed(m)),
    lambda m: list(reversed(m.items())),
    lambda m: list(reversed(m.values())),
    lambda m: repr(m.items()) + repr(m.values()) + repr(m.keys()),
    lambda m: (("n", 1) in m.items(), ("n", 2) in m.items(), [1, 2, 3] in m.values(), len(m.items())),
    lambda m: m.keys() & {"n", "z"},
    lambda m: ("n" in m, "z" in m, 1 in m),
    lambda m: (m.get("n"), m.get("z"), m.get("z", 3)),
    lambda m: m["z"],
    lambda m: m[1],
    lambda m: m[[]],
    lambda m: m.pop("list"),
    lambda m: m.pop("z"),
    lambda m: m.pop("z", None),
    lambda m: m.popitem(),
    lambda m: [m.popitem() for _ in range(9)],
    lambda m: m.setdefault("n", 9),
    lambda m: m.setdefault("z", []).append(1),
    lambda m: m.clear(),
    lambda m: m.copy(),
    lambda m: type(m.copy()),
    lambda m: m | {"n": 2},
    lambda m: {"n": 2, "z": 1} | m,
    lambda m: (m == dict(m), m != dict(m), dict(m) == m, m == m.copy(), m == {}, m != {}, m == 1),
    lambda m: m | 1,
    hash,
    lambda m: isinstance(m, dict),
    lambda m: "{n}".format(**m),
    lambda m: "{n}".format_map(m),
    lambda m: m.fromkeys(["a"], 1),
    lambda m: m.update(1),
    lambda m: m.update({}, {}),
    lambda m: m.__delitem__("n"),
    lambda m: m.__delitem__("z"),
    _update,
    _increment,
    _delete_while_reading,
    _match,
]


def _outcome(operation: Callable[[Any], Any], mapping: Any) -> Any:
    try:
        return operation(mapping)
    except (KeyError, TypeError) as err:
        return type(err)


@pytest.mark.parametrize("operation", OPERATIONS, ids=[str(n) for n in range(len(OPERATIONS))])
@pytest.mark.parametrize("is_read", [False, True], ids=["encoded", "read"])
def test_a_context_behaves_as_the_dict_it_stands_for(operation: Callable[[Any], Any], is_read: bool) -> None:
    """Every operation returns, raises and leaves behind what it would with a plain dict."""
    plain = {"n": 1, "list": [1, 2, 3], "dict": {"deep": {"er": []}}, "none": None}
    context = _live(plain).context
    if is_read:
        assert list(context.values()) == list(plain.values())
    assert _outcome(operation, context) == _outcome(operation, plain)
    assert list(context.items()) == list(plain.items())


def test_a_context_that_holds_itself_can_be_shown() -> None:
    """repr() of a context that refers to itself ends, as a dict's does."""
    context = _live({"n": 1}).context
    context["me"] = context
    assert repr(context) == "{'n': 1, 'me': {...}}"


@pytest.mark.parametrize("key", [1, None, b"n", ("a",), Color.RED])
def test_a_key_of_the_context_is_a_text(key: Any) -> None:
    """Any other key is refused where it is set, which is the line that the traceback shows."""
    context: Any = _live({}).context
    for attempt in (
        lambda: context.__setitem__(key, 1),
        lambda: context.setdefault(key, 1),
        lambda: context.update({key: 1}),
    ):
        with pytest.raises(TypeError, match="a key of the context must be a str, not a"):
            attempt()
    assert not context


def test_user_code_finds_no_other_names_on_the_context_than_those_of_a_dict() -> None:
    """What we need of the context is out of the way of what a user may call."""
    assert {name for name in dir(LiveContext) if not name.startswith("_")} == set(dir(dict)) - {
        name for name in dir(dict) if name.startswith("_")
    }


# Runs.


def test_only_what_differs_is_reported() -> None:
    """Reading, or writing what was there, is no change; the size counts keys and values in bytes."""
    keeper = _live({"n": 1, "list": [1], "über": "x"})
    context = keeper.context
    assert context["list"] == [1]
    context["n"] = 1
    assert keeper.changes() == ({}, len(b"n1list[1]") + len('über"x"'.encode()))
    context["list"].append(2)
    context["new"] = {"a": 1}
    del context["n"]
    assert keeper.changes() == (
        {"list": b"[1,2]", "n": None, "new": b'{"a":1}'},
        len(b'list[1,2]new{"a":1}') + len('über"x"'.encode()),
    )


def test_a_run_sees_the_round_trip_of_what_the_run_before_left() -> None:
    """A container is not the same object in the next run, so that a crash in between changes nothing."""
    keeper = _live({})
    shared = [1]
    keeper.context.update(a=shared, b=shared, c=(1, 2), n=1)
    keeper.changes()
    keeper.keep()
    shared.append(2)
    keeper.context["a"].append(3)
    assert keeper.context == {"a": [1, 3], "b": [1], "c": [1, 2], "n": 1}
    assert keeper.changes()[0] == {"a": b"[1,3]"}


def test_undo_brings_back_what_was_before_the_run() -> None:
    """After a failed run nothing of it is left, whether it was staged or not."""
    before = {"n": 1, "list": [1], "gone": True}
    keeper = _live(before)
    for is_staged in (False, True):
        keeper.context["n"] += 1
        keeper.context["list"].append(2)
        keeper.context["new"] = 1
        del keeper.context["gone"]
        if is_staged:
            keeper.changes()
        keeper.undo()
        assert list(keeper.context.items()) == list(before.items())
        assert keeper.changes()[0] == {}
        assert keeper.all_items() == {key: encode(value) for key, value in before.items()}


def test_a_value_that_cannot_be_kept_leaves_the_context_to_undo() -> None:
    """A refused run can be rolled back like any other."""
    keeper = _live({"n": 1})
    keeper.context["n"] = object()
    with pytest.raises(ValueError, match=r"context\['n'\] is an object"):
        keeper.changes()
    keeper.undo()
    assert keeper.context == {"n": 1}


def test_what_was_taken_from_below_the_context_cannot_be_kept() -> None:
    """`dict.get` sees the place of an item that nobody has read; storing that is refused with its path."""
    keeper = _fresh({"a": encode([1, 2])})
    keeper.context["b"] = dict.get(keeper.context, "a")
    with pytest.raises(ValueError, match=r"context\['b'\] is an item that was never read"):
        keeper.changes()


def _fresh(committed: Mapping[str, bytes]) -> Keeper:
    """A keeper after an init() that sets `total` and `seen`, and the items that are committed."""
    keeper = Keeper()
    keeper.context["total"] = 0
    keeper.context["seen"] = {"start"}
    keeper.overlay(committed)
    return keeper


def test_what_init_sets_is_reported_with_the_first_run() -> None:
    """A fresh context starts from init(), and what init() set is committed with what the run did."""
    keeper = _fresh({})
    keeper.context["total"] += 1
    assert keeper.changes()[0] == {"total": b"1", "seen": b'{"$set":["start"]}'}
    keeper.keep()
    assert keeper.changes()[0] == {}


def test_a_failed_first_run_goes_back_to_what_init_set() -> None:
    """Undoing the first run keeps init()'s values, still to be reported."""
    keeper = _fresh({})
    keeper.context.clear()
    keeper.context["other"] = 1
    keeper.changes()
    keeper.undo()
    assert keeper.context == {"total": 0, "seen": {"start"}}
    assert keeper.changes()[0] == {"total": b"0", "seen": b'{"$set":["start"]}'}


def test_committed_items_win_over_init() -> None:
    """After a restart the committed value counts, and only what init() has set anew is a change."""
    keeper = _fresh({"total": b"41", "mine": b"[1]"})
    assert keeper.context == {"total": 41, "seen": {"start"}, "mine": [1]}
    assert keeper.changes()[0] == {"seen": b'{"$set":["start"]}'}


def test_a_deleted_key_of_init_does_not_come_back() -> None:
    """Deleting what init() sets leaves a tombstone, which outlives the instance; other keys just go."""
    keeper = _fresh({"total": b"41", "seen": b"[]", "mine": b"1"})
    del keeper.context["seen"]
    del keeper.context["mine"]
    assert keeper.changes() == ({"seen": TOMBSTONE, "mine": None}, len(b"total41seen") + len(TOMBSTONE))
    keeper.keep()
    committed = keeper.all_items()
    assert committed == {"total": b"41", "seen": TOMBSTONE}

    restarted = _fresh(committed)
    assert restarted.context == {"total": 41}
    assert restarted.changes() == ({}, len(b"total41seen") + len(TOMBSTONE))
    restarted.context["seen"] = 1
    assert restarted.changes()[0] == {"seen": b"1"}


def test_init_may_not_set_what_cannot_be_kept() -> None:
    """What init() leaves behind is checked as it is laid down."""
    keeper = Keeper()
    keeper.context["clock"] = print
    with pytest.raises(ValueError, match=r"context\['clock'\] is a builtin_function_or_method"):
        keeper.overlay({})


KEYS = st.sampled_from(["a", "b", "init", "also init", "ключ"])
INITIAL: dict[str, Any] = {"init": [], "also init": 1}


class KeptContext(RuleBasedStateMachine):
    """A context through runs, failures and restarts, against a plain dict and what a host has stored."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, bytes] = {}
        self.ground: dict[str, Any] = {}

    @initialize()
    def start(self) -> None:
        self.keeper = Keeper()
        self.keeper.context.update(copy.deepcopy(INITIAL))
        self.keeper.overlay(self.stored)
        if not self.stored:
            self.ground = copy.deepcopy(INITIAL)
        self.run = copy.deepcopy(self.ground)

    @rule(key=KEYS, value=VALUES)
    def set_item(self, key: str, value: Any) -> None:
        self.keeper.context[key] = value
        self.run[key] = copy.deepcopy(value)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert (self.keeper.context.pop(key, None) is None) == (self.run.pop(key, None) is None)

    @rule(key=KEYS, value=ATOMS)
    def append(self, key: str, value: Any) -> None:
        for mapping in (self.keeper.context, self.run):
            if isinstance(mapping.get(key), list):
                mapping[key].append(value)

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        assert _shown(self.keeper.context.get(key)) == _shown(self.run.get(key))

    @rule()
    def succeed(self) -> None:
        changes, size = self.keeper.changes()
        for key, value in changes.items():
            assert self.stored.get(key) != value, "nothing is reported that is stored already"
            if value is None:
                del self.stored[key]
            else:
                self.stored[key] = value
        self.keeper.keep()
        assert self.keeper.all_items() == self.stored
        assert size == sum(len(key.encode()) + len(value) for key, value in self.stored.items())
        self.ground = copy.deepcopy(self.run)

    @rule(is_staged=st.booleans())
    def fail(self, is_staged: bool) -> None:
        if is_staged:
            self.keeper.changes()
        self.keeper.undo()
        self.run = copy.deepcopy(self.ground)

    @precondition(lambda self: self.stored)
    @rule()
    def restart(self) -> None:
        self.start()

    @invariant()
    def is_the_same_mapping(self) -> None:
        if hasattr(self, "run"):
            assert set(self.keeper.context) == set(self.run)
            assert len(self.keeper.context) == len(self.run)

    def teardown(self) -> None:
        if hasattr(self, "run"):
            for key, value in self.run.items():
                assert _shown(self.keeper.context[key]) == _shown(value)


TestKeptContext = KeptContext.TestCase
TestKeptContext.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
