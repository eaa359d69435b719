#!/usr/bin/env python3
# -*- coding: utf-8 -*-
"""Small things of the language that everybody uses without thinking."""
from __future__ import annotations

import json as _json
import collections.abc
import urllib.parse
import datetime as dt, math as m

__all__ = ["Runnable", "helper"]
__version__ = "1.2.3"
__author__ = "a data engineer"

DEBUG = False
_CACHE: dict[str, int] = {}
if not DEBUG:
    LEVEL = "info"
else:
    LEVEL = "debug"

for _i in range(3):
    _CACHE[f"k{_i}"] = _i
TABLE = {name: value for name, value in zip("abc", (1, 2, 3))}


def helper(x: int = 3, *, _private: bool = False) -> int:
    """Helps."""
    return x + (1 if _private else 0)


def check_comprehensions():
    matrix = [[1, 2, 3], [4, 5, 6]]
    return [
        [x * y for x in range(3) for y in range(3) if x != y], {x % 3 for x in range(10)} == {0, 1, 2}, {k: v for k, v in [("a", 1)] if v}, [[row[i] for row in matrix] for i in range(3)], [*zip(*matrix)], [y for x in range(4) if (y := x * x) > 1], list(x for x in "ab"), [a if a > 1 else -a for a in (1, 2)], {**{"a": 1}, "b": 2, **{"a": 3}}, [*range(2), *"ab"], {*[1, 2], 3} == {1, 2, 3}, (*[1], 2), sum(len(r) for r in matrix), [f(2) for f in (abs, str)], [(i, c) for i, c in enumerate("ab", 1)], {n: [m for m in range(n)] for n in range(3)}, [k for k, _ in sorted({"b": 1, "a": 2}.items(), key=lambda kv: kv[1])],
    ]


def check_unpacking():
    first, *middle, last = range(5)
    (a, b), c = (1, 2), 3
    [d, [e, *f]] = [4, [5, 6, 7]]
    a, b = b, a
    x = y = []
    x.append(1)
    head, _, tail = "k:v".partition(":")
    i, arr = 0, [1, 2, 3]
    i, arr[i] = 2, 9
    for (n, (o, p)), *q in [((1, (2, 3)), 4, 5)]:
        pass
    return [first, middle, last, a, b, c, d, e, f, y, head, tail, arr, n, o, p, q]


def check_loops():
    found = []
    for n in range(2, 12):
        for d in range(2, n):
            if n % d == 0:
                break
        else:
            found.append(n)
            continue
    n = 10
    while n:
        n -= 3
        if n < 0:
            break
    else:
        found.append("never")
    for i, (k, v) in enumerate({"x": 1}.items()):
        found.append((i, k, v))
    for c in reversed(sorted("bca")):
        found.append(c)
    return [found, n]


def check_slices():
    l = list(range(10))
    l[2:5] = ["x"]
    del l[::3]
    l[-1:] = [99, 100]
    t = l[:]
    t[::2] = [0] * len(t[::2])
    return [l, t, l[-2], "hello"[1:-1], list(range(10))[slice(1, 8, 3)], (1, 2, 3)[::-1], [1, 2] * 2, [[0] * 2 for _ in range(2)], l.index(100), [1, 2, 3] > [1, 2]]


def check_dicts():
    d = {"a": 1, "b": {"c": [1, 2]}}
    d |= {"z": 26}
    d["b"]["c"][0] += 5
    e = d | {"a": 0}
    removed = d.pop("a"), d.pop("missing", None)
    d.update(x=1, **{"y": 2})
    d.setdefault("l", []).append(3)
    keys = list(d)
    last = d.popitem()
    return [d, e, removed, keys, last, "b" in d, d.get("q", 5), dict.fromkeys("ab", 0), dict([("a", 1)]), dict(zip("ab", [1, 2])), list(d.values())[-1], {1: "i", (1, 2): "t", None: "n"}[(1, 2)], sorted(d, key=str), len(d), list(reversed({"a": 1, "b": 2})), {"a": 1}.items() <= {"a": 1, "b": 2}.items(), max({"a": 3, "b": 5}, key={"a": 3, "b": 5}.get), not {}]


def check_sets():
    a, b = {1, 2, 3}, frozenset([2, 3, 4])
    a.add(9); a.discard(77); a |= {5}; a -= {1}
    a ^= {2}
    return [sorted(a), sorted(a & b), sorted(a | b), sorted(a - b), sorted(a ^ b), {2} < b, a.isdisjoint({100}), sorted(a.union([7], [8])), hash(b) == hash(frozenset([4, 3, 2])), a.issuperset({3}), len({x for x in [1, 1]})]


def check_conditions():
    x, y = 5, None
    return [1 < x <= 5 != 6, x if y is None else y, y or "default", x and "yes", not y, x in (1, 5), x is not y, "a" == "a" in ["a"], bool([]) or bool([0]), (x > 3) + (x > 4), None is None, x == 5.0, [] == [], "ten" if x == 10 else "five" if x == 5 else "other"]


def check_names():
    type_, id, list_, input_ = 1, 2, 3, 4
    _ = 5
    class_ = {"type": type_}
    名前 = "unicode"
    format = "csv"
    filter = lambda x: x
    return [id, class_, _, 名前, format, filter(3), _CACHE, TABLE, LEVEL, __name__ != "__main__", __version__, helper(_private=True), helper.__doc__, helper.__name__, m.pi > 3, dt.date(2024, 1, 1).year, _json.dumps([1])]


def check_delete():
    a, b, d = 1, [1, 2, 3], {"k": 1}
    del a, b[0], d["k"]
    class O: pass
    o = O(); o.x = 1
    del o.x
    return [b, d, hasattr(o, "x")]


def check_builtins():
    return [abs(-1), all([1]), any([]), bin(3), callable(len), chr(97), divmod(7, 2), list(enumerate("a")), list(filter(None, [0, 1])), float("1.5"), format(3, "03d"), getattr("", "upper")(), hasattr(1, "real"), hash(1), isinstance(1, int), issubclass(bool, int), len("ab"), list(map(str, [1])), max(1, 2), min([3, 1]), next(iter([1])), ord("a"), pow(2, 3), list(range(0, 6, 2)), repr("a"), list(reversed([1, 2])), round(2.567, 1), sorted({2, 1}), str(1), sum([1, 2], 10), tuple([1]), type(1).__name__, list(zip([1], "a")), id(1) == id(1), slice(1, 2).stop, Ellipsis is ..., NotImplemented is not None, type(None).__name__, range(5)[1:3] == range(1, 3), 3 in range(5), range(10).step, iter(lambda: 1, 1) is not None, list(iter([3, 2, 0, 1].pop, 0)), bytes(2).hex(), complex("1+2j").imag, sum(map(int, "123")), zip is not None, vars is not None] if False else [abs(-1), divmod(7, 2), list(iter([3, 2, 0, 1].pop, 0)), getattr("", "upper")(), slice(1, 2).stop, type(None).__name__, range(10).step, type([]) is list, type(3) == int, isinstance(3, type(4)), type("x")("y")]


def check_walrus():
    data = [1, 2, 3, 4]
    out = []
    while (chunk := data[:2]):
        out.append(chunk)
        data = data[2:]
    if (n := len(out)) > 1:
        out.append(n)
    return [out, (last := 5), last, any((hit := x) > 1 for x in [1, 2]), hit]


def check_global_state():
    global _CACHE
    _CACHE = {**_CACHE, "new": 1}
    return sorted(_CACHE)


def check_lambda():
    fact = lambda n: 1 if n <= 1 else n * fact(n - 1)
    ops = {"+": lambda a, b: a + b, "-": lambda a, b: a - b}
    return [fact(5), ops["-"](3, 1), (lambda: (yield))().__class__.__name__, sorted([(1, "b"), (1, "a")], key=lambda t: t[1]), list(map(lambda x, y=10: x + y, [1]))]


def check_recursion():
    def hanoi(n, a, b, c):
        return [] if n == 0 else [*hanoi(n - 1, a, c, b), f"{a}{c}", *hanoi(n - 1, b, a, c)]
    def depth(tree): return 1 + max(map(depth, tree.values()), default=0) if isinstance(tree, dict) else 0
    memo = {}
    def ways(n):
        if n in memo: return memo[n]
        memo[n] = result = 1 if n < 2 else ways(n - 1) + ways(n - 2)
        return result
    return [hanoi(2, "a", "b", "c"), depth({"a": {"b": {}}}), ways(30)]


if __name__ == "__main__":
    import sys
    print(helper(), file=sys.stderr)


class Runnable:
    def process(self, queries):
        return [
            check_comprehensions(),
            check_unpacking(),
            check_loops(),
            check_slices(),
            check_dicts(),
            check_sets(),
            check_conditions(),
            check_names(),
            check_delete(),
            check_builtins(),
            check_walrus(),
            check_global_state(),
            check_lambda(),
            check_recursion(),
        ]
