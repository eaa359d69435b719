"""A dict keeps the table that its keys need, whatever a comparison of a user's does to it meanwhile.

CPython 3.11 to 3.13 looks at the kind of a dict's table before it compares keys. One that was emptied and
made a table for texts alone by then would keep the new key as if it were a text, and read its memory so.
"""

from __future__ import annotations

import gc
import textwrap
from typing import Any

import pytest

from processor.sandbox.facades import exact
from tests.sandbox.test_dialect import Loaded

# Keys that are found in the same place, and meddle while they are compared.
PRELUDE = """
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict
import functools, operator

class Key:
    def __hash__(self):
        return 5
    def __eq__(self, other):
        if attacks:
            attacks.pop()()
        return False

attacks = []
FEW = {"a": 1, "b": 2}

class Own(dict):
    def wipe(self):
        super().clear()
    def take(self, other):
        super().update(other)
    def merge(self, other):
        super().__ior__(other)
    def begin(self, other):
        super().__init__(other)

class Alias(dict):
    wipe = dict.clear
    take = dict.update
    merge = dict.__ior__

class Same(dict):
    def __new__(cls, *args):
        return made[0] if made else super().__new__(cls)

made = []

class Few(dict):
    pass

class User(UserDict):
    pass

class Holder:
    pass

holder = Holder()

def fill():
    for key in FEW:
        d[key] = 1

def ior_of_name():
    m = d
    m |= FEW

def ior_of_attribute():
    holder.d = d
    holder.d |= Few(FEW)

def ior_of_item():
    [d][0] |= FEW

def by_user_dict():
    user = User()
    user.data = d
    user |= FEW

def by_chain():
    chain = ChainMap(d)
    chain |= FEW

def by_chain_copy():
    class Mine(dict):
        def copy(self):
            return d
    ChainMap(Mine()) | FEW

def by_pattern():
    match d:
        case dict() as found if found.clear:
            found.clear()
    fill()
"""

# What makes the dict, and what empties it or fills it anew.
CLEARING = [
    ("{}", "d.clear()"),
    ("{}", "dict.clear(d)"),
    ("{}", "getattr(d, 'clear')()"),
    ("{}", "operator.methodcaller('clear')(d)"),
    ("{}", "operator.attrgetter('clear')(d)()"),
    ("{}", "list(map(dict.clear, [d]))"),
    ("{}", "ChainMap(d).clear()"),
    ("{}", "'{0.clear}'.format(d) and d.clear()"),
    ("{}", "by_pattern()"),
    ("defaultdict(int)", "d.clear()"),
    ("defaultdict(int)", "defaultdict.clear(d)"),
    ("Counter()", "d.clear()"),
    ("OrderedDict()", "d.clear()"),
    ("Own()", "d.clear()"),
    ("Own()", "d.wipe()"),
    ("Alias()", "d.wipe()"),
]
MERGING = [
    ("{}", "d.update(FEW)"),
    ("{}", "d.update(Few(FEW))"),
    ("{}", "d.update(**FEW)"),
    ("{}", "dict.update(d, FEW)"),
    ("{}", "getattr(d, 'update')(FEW)"),
    ("{}", "ior_of_name()"),
    ("{}", "ior_of_attribute()"),
    ("{}", "ior_of_item()"),
    ("{}", "operator.ior(d, FEW)"),
    ("{}", "functools.reduce(operator.ior, [FEW], d)"),
    ("{}", "d.__ior__(FEW)"),
    ("{}", "dict.__ior__(d, FEW)"),
    ("{}", "by_user_dict()"),
    ("{}", "by_chain()"),
    ("{}", "by_chain_copy()"),
    ("{}", "ChainMap(d).update(FEW)"),
    ("defaultdict(int)", "d.update(FEW)"),
    ("defaultdict(int)", "ior_of_name()"),
    ("Counter()", "d.update(FEW)"),
    ("Counter()", "ior_of_name()"),
    ("OrderedDict()", "d.update(FEW)"),
    ("OrderedDict()", "ior_of_name()"),
    ("Own()", "d.update(FEW)"),
    ("Own()", "d.take(FEW)"),
    ("Own()", "d.merge(FEW)"),
    ("Own()", "d.begin(FEW)"),
    ("Own()", "dict.__init__(d, FEW)"),
    ("Own()", "dict.__init__(d, **FEW)"),
    ("Alias()", "d.take(FEW)"),
    ("Alias()", "d.merge(FEW)"),
    ("Same()", "made.append(d), Same(FEW)"),
]
STORING = ["d[Key()] = 1", "d.setdefault(Key(), 1)", "d.update([(Key(), 1)])", "d.update({Key(): 1})"]


def sizes_of_text_tables() -> set[int]:
    """How much memory the tables take that hold texts alone; no other table takes so much."""
    return {
        dict.__sizeof__(dict.fromkeys(map(str, range(count)))) - dict.__basicsize__ for count in range(1, 100)
    }


def attacked(make: str, attack: str, store: str) -> Any:
    source = f"""
class Runnable:
    def process(self, queries):
        global d
        d = {make}
        d[5] = 1
        attacks.append(attack)
        {store}
        found = [type(key).__name__ for key in d]
        return d, found, attacks
"""
    body = f"def attack():\n{textwrap.indent(attack, '    ')}\n"
    d, found, left = Loaded(PRELUDE + body + source).process()
    assert not left, "the attack did not run"
    return d, found


def is_for_texts(d: dict[Any, Any]) -> bool:
    return dict.__sizeof__(d) - type(d).__basicsize__ in sizes_of_text_tables()


@pytest.mark.parametrize(("make", "attack"), CLEARING)
def test_a_dict_cleared_in_a_comparison_keeps_its_table(make: str, attack: str) -> None:
    """Whatever clears a dict while a key is stored in it, the key is found among texts as what it is."""
    d, found = attacked(make, f"{attack}\nfill()", STORING[0])
    assert found == ["str", "str", "Key"]
    assert not is_for_texts(d)


@pytest.mark.parametrize(("make", "attack"), MERGING)
def test_a_dict_merged_into_in_a_comparison_keeps_its_table(make: str, attack: str) -> None:
    """Whatever merges texts into a dict that is empty while a key is stored, the key is what it is."""
    d, found = attacked(make, f"d.pop(5)\n{attack}", STORING[0])
    assert found == ["str", "str", "Key"]
    assert not is_for_texts(d)


@pytest.mark.parametrize("store", STORING)
def test_however_a_key_is_stored(store: str) -> None:
    """Each way to store a key looks at the table first."""
    d, found = attacked("{}", "d.clear()\nfill()", store)
    assert found == ["str", "str", "Key"]
    assert not is_for_texts(d)


def test_a_table_for_texts_is_told_by_its_size() -> None:
    """What the tests above ask: a dict that has, or had, another key has no table for texts."""
    mixed: dict[Any, Any] = {5: 1, "a": 2}
    assert is_for_texts({"a": 1, "b": 2})
    assert not is_for_texts(mixed)
    del mixed[5]
    assert not is_for_texts(mixed)
    mixed.clear()
    mixed["a"] = 1
    assert is_for_texts(mixed)


@pytest.mark.parametrize("bound", [None, 8])
def test_a_cache_of_results_has_no_text_alone_for_a_key(bound: int | None) -> None:
    """`cache_clear` in a comparison can give the cache's dict no table for texts."""
    cached = exact.lru_cache(bound)(len)
    cached("a")
    (table,) = (ob for ob in gc.get_referents(cached) if type(ob) is dict and "__name__" not in ob)
    assert table
    assert not any(type(key) is str for key in table)
    assert not is_for_texts(table)


def test_formats_of_a_users_class_are_not_compared() -> None:
    """struct keeps formats in a dict of its own, and clears it: a user's text is none of its keys."""
    source = """
import struct
class Format(str):
    __hash__ = str.__hash__
    def __eq__(self, other):
        compared.append(other)
        return False
compared = []
class Runnable:
    def process(self, queries):
        buffer = bytearray(4)
        struct.pack_into(Format("<I"), buffer, 0, 7)
        packed = struct.pack(Format("<I"), 7)
        found = [*struct.unpack(Format("<I"), packed), *struct.unpack_from(Format("<I"), buffer)]
        found += [*next(struct.iter_unpack(Format("<I"), packed)), struct.calcsize(Format("<I"))]
        return found, compared
"""
    assert Loaded(source).process() == ([7, 7, 7, 4], [])
