import functools
import operator
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict
from dataclasses import dataclass


class Own(dict):
    def update(self, *others, **items):
        super().update(*others, **items)
        self["n"] = len(self)

    def clear(self):
        super().clear()
        self["cleared"] = True


class Seen:
    def __init__(self):
        self.others = []

    def __ior__(self, other):
        self.others.append(other)
        return self

    def __or__(self, other):
        return [type(other) is dict, other]


class Or:
    def __or__(self, other):
        return [type(other) is dict, other]


class Upper(dict):
    def __iter__(self):
        return (key.upper() for key in dict.__iter__(self))

    def keys(self):
        return [key.upper() for key in dict.keys(self)]

    def __getitem__(self, key):
        return dict.__getitem__(self, key.lower()) * 2


@dataclass
class Change:
    update: str
    clear: bool = False


class Hash:
    def update(self, data):
        return ("updated", data)

    def clear(self):
        return "cleared"


class Runnable:
    def process(self, queries):
        out = []
        for make in (dict, OrderedDict, Counter, Own, lambda: defaultdict(int), UserDict, ChainMap):
            d = make()
            d.update({"b": 1, "a": 2})
            d.update([("c", 3)])
            d.update({"a": 5}, k=4)
            d |= {"z": 6}
            self.d = d
            self.d |= Own(y=7)
            out.append(str(dict(d)))
            d.clear()
            out.append(str(dict(d)))
            d.update(a=1)
            out.append([dict(d), len(d), list(d)])
        d = {"a": 1}
        d |= [("b", 2)]
        d.update(Upper(x=1))
        d |= Upper(y=2)
        empty = {}
        empty |= Upper(z=3)
        held = {"k": {}}
        held["k"] |= {"deep": 1}
        seen, given = Seen(), {"q": 1}
        seen |= given
        other = Or()
        other |= given
        s, n, c = {1}, 4, Counter("ab")
        s |= {2}
        n |= n + 3
        c |= {"b": 3, "z": 1}
        for bad in (lambda: {}.update({}, {}), lambda: {}.update(5), lambda: dict.clear([]), lambda: operator.ior({1}, {})):
            try:
                bad()
            except TypeError as err:
                out.append(str(err).partition("(")[0][:60])
        big = {n: n for n in range(1000)}
        big.clear()
        big["a"] = 1
        change = Change("x")
        change.clear = True
        cached = functools.lru_cache(maxsize=2)(lambda key: [key])
        return [out, d, empty, held, seen.others[0] is given, seen | given, other, sorted(s), n, c, big, change.update, change.clear,
                Hash().update(b"x"), Hash().clear(), functools.reduce(operator.ior, [{"a": 1}, {"b": 2}], {}), operator.ior(6, 1),
                cached("a") is cached("a"), cached(1), cached.cache_info().hits, list(map(dict.clear, [{}, {"a": 1}])), Own(a=1).__ior__({"b": 2})]
