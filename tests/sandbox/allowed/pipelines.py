"""Whole Runnables in miniature: each check is one processor as a user writes it."""
from __future__ import annotations

import json
import logging
import math
import random
import re
import statistics
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, auto
from functools import lru_cache, partial, wraps
from itertools import chain, groupby, islice
from operator import attrgetter, itemgetter
from typing import Any, Callable, ClassVar, Dict, Generator, Iterable, List, NamedTuple, Optional, Tuple, Union

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
log = logging.getLogger("pipeline")
log.setLevel("DEBUG")
logging.getLogger().setLevel(logging.WARNING)


class Severity(Enum):
    INFO = auto()
    WARN = auto()
    FATAL = auto()

    @classmethod
    def of(cls, value: float) -> Severity:
        for limit, severity in ((90, cls.FATAL), (70, cls.WARN)):
            if value >= limit:
                return severity
        return cls.INFO


@dataclass(slots=True)
class Reading:
    sensor: str
    value: float
    at: datetime = field(default_factory=lambda: datetime(2024, 1, 1, tzinfo=timezone.utc))
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Reading:
        return cls(
            sensor=message["sensor"],
            value=float(message["value"]),
            at=datetime.fromtimestamp(message["ts"], timezone.utc),
            tags=message.get("tags") or {},
        )

    def to_message(self) -> dict[str, Any]:
        return {**asdict(self), "at": self.at.isoformat()}


MESSAGES = [
    {"sensor": "a", "value": "71.5", "ts": 1700000000},
    {"sensor": "b", "value": 20, "ts": 1700000001, "tags": {"room": "x"}},
    {"sensor": "a", "value": 95, "ts": 1700000061},
    {"sensor": "c", "ts": 1700000002},
    {"sensor": "a", "value": "nan", "ts": 1700000062},
]


def check_readings():
    out, errors = [], Counter()
    for message in MESSAGES:
        try:
            reading = Reading.from_message(message)
            if math.isnan(reading.value):
                raise ValueError("not a number")
        except KeyError as err:
            errors[f"missing {err.args[0]}"] += 1
            continue
        except (TypeError, ValueError) as err:
            log.warning("bad reading %r: %s", message, err)
            errors[type(err).__name__] += 1
            continue
        out.append({**reading.to_message(), "severity": Severity.of(reading.value).name})
    return [out, errors]


class EventDeduplicator:
    def __init__(self, capacity: int = 3):
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.capacity = capacity
        self.duplicates = 0

    def __call__(self, event_id: str) -> bool:
        if event_id in self._seen:
            self._seen.move_to_end(event_id)
            self.duplicates += 1
            return False
        self._seen[event_id] = None
        while len(self._seen) > self.capacity:
            self._seen.popitem(last=False)
        return True


def check_dedup():
    dedup = EventDeduplicator()
    kept = [e for e in "abacdaeb" if dedup(e)]
    return [kept, dedup.duplicates]


class TokenBucket:
    def __init__(self, rate: float, burst: int, clock: Callable[[], float]):
        self.rate, self.burst, self.clock = rate, burst, clock
        self.tokens, self.at = float(burst), clock()

    def take(self, n: int = 1) -> bool:
        now = self.clock()
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < n:
            return False
        self.tokens -= n
        return True


def check_bucket():
    times = iter([0, 0, 0, 0, 1.5, 1.6])
    bucket = TokenBucket(1, 2, lambda: next(times))
    return [bucket.take() for _ in range(5)]


class CircuitBreaker:
    CLOSED, OPEN, HALF = "closed", "open", "half"

    def __init__(self, limit=2): self.state, self.failures, self.limit = self.CLOSED, 0, limit

    def call(self, f, *args, **kwargs):
        if self.state == self.OPEN:
            raise RuntimeError("open")
        try:
            result = f(*args, **kwargs)
        except Exception:
            self.failures += 1
            if self.failures >= self.limit:
                self.state = self.OPEN
            raise
        else:
            self.failures = 0
            return result


def check_breaker():
    b, out = CircuitBreaker(), []
    for value in (1, 0, 0, 1):
        try:
            out.append(b.call(lambda v: 10 // v, value))
        except ZeroDivisionError:
            out.append("zero")
        except RuntimeError as err:
            out.append(str(err))
    return out


class Node:
    __slots__ = ("left", "right", "key", "value")
    def __init__(self, key, value): self.key, self.value, self.left, self.right = key, value, None, None


class Tree:
    def __init__(self): self.root, self.size = None, 0
    def insert(self, key, value):
        if self.root is None:
            self.root = Node(key, value)
        else:
            node = self.root
            while True:
                side = "left" if key < node.key else "right"
                child = getattr(node, side)
                if child is None:
                    setattr(node, side, Node(key, value))
                    break
                node = child
        self.size += 1
    def __iter__(self):
        def walk(node):
            if node:
                yield from walk(node.left)
                yield node.key, node.value
                yield from walk(node.right)
        return walk(self.root)
    def __len__(self): return self.size


def check_tree():
    t = Tree()
    for i, k in enumerate("mango"): t.insert(k, i)
    return [list(t), len(t), dict(t)]


class Observable:
    def __init__(self): self._handlers = defaultdict(list)
    def on(self, event):
        def decorate(f):
            self._handlers[event].append(f)
            return f
        return decorate
    def emit(self, event, *args): return [h(*args) for h in self._handlers.get(event, ())]


bus = Observable()


@bus.on("order")
def total(order): return order["n"] * order["price"]


@bus.on("order")
def label(order): return f"{order['n']}x"


def check_bus(): return [bus.emit("order", {"n": 2, "price": 3}), bus.emit("none")]


Rule = namedtuple("Rule", ["name", "test", "action"], defaults=[None])
Pair = namedtuple("Pair", "left right")


def check_rules():
    rules = [Rule("big", lambda o: o > 10, "alert"), Rule("odd", lambda o: o % 2)]
    return [[r.name for r in rules if r.test(11)], rules[1].action, Pair(1, 2)._asdict(), Pair._fields, Pair(left=1, right=2) == (1, 2), Pair(3, 4)._replace(left=9).left, Pair._make([5, 6]).right, repr(Pair(1, 2)), max([Pair(1, 2), Pair(0, 9)], key=attrgetter("right")), [*map(itemgetter(0), [Pair(7, 8)])]]


class Money(NamedTuple):
    amount: Decimal
    currency: str = "EUR"
    def __add__(self, other: Money) -> Money:
        if self.currency != other.currency:
            raise ValueError(f"{self.currency} and {other.currency}")
        return Money(self.amount + other.amount, self.currency)
    def __str__(self): return f"{self.amount:.2f} {self.currency}"


def check_money(): return [str(Money(Decimal("1.5")) + Money(Decimal("2.25"))), str(sum((Money(Decimal(n)) for n in "12"), Money(Decimal(0))))]


class Schema:
    def __init__(self, **fields): self.fields = fields
    def validate(self, doc):
        errors = {}
        for name, (kind, required, *checks) in self.fields.items():
            if name not in doc:
                if required: errors[name] = "missing"
            elif not isinstance(doc[name], kind):
                errors[name] = f"expected {kind.__name__ if isinstance(kind, type) else ' or '.join(k.__name__ for k in kind)}"
            elif bad := [c.__name__ for c in checks if not c(doc[name])]:
                errors[name] = bad
        return errors


def positive(x): return x > 0


def check_schema():
    s = Schema(id=(str, True), n=((int, float), True, positive), note=(str, False))
    return [s.validate({"id": "a", "n": 1}), s.validate({"id": 1, "n": -1, "note": None}), s.validate({})]


def memoize(f):
    cache = {}
    @wraps(f)
    def inner(*args):
        if args not in cache: cache[args] = f(*args)
        return cache[args]
    inner.cache = cache
    return inner


@memoize
def edit_distance(a, b):
    if not a or not b: return len(a) + len(b)
    return min(edit_distance(a[1:], b) + 1, edit_distance(a, b[1:]) + 1, edit_distance(a[1:], b[1:]) + (a[0] != b[0]))


def check_memo(): return [edit_distance("kitten", "sitting"), len(edit_distance.cache) > 5]


class Matrix:
    def __init__(self, rows): self.rows = [list(r) for r in rows]
    @classmethod
    def identity(cls, n): return cls([[int(i == j) for j in range(n)] for i in range(n)])
    def __matmul__(self, o): return Matrix([[sum(a * b for a, b in zip(r, c)) for c in zip(*o.rows)] for r in self.rows])
    def __getitem__(self, ij): i, j = ij; return self.rows[i][j]
    def __setitem__(self, ij, v): i, j = ij; self.rows[i][j] = v
    def __eq__(self, o): return self.rows == o.rows
    @property
    def T(self): return Matrix(zip(*self.rows))


def check_matrix():
    m = Matrix([[1, 2], [3, 4]])
    m[0, 0] += 10
    return [(m @ Matrix.identity(2)) == m, m.T.rows, m[0, 0]]


class LinkedList:
    class _Node:
        def __init__(self, v, nxt=None): self.v, self.nxt = v, nxt
    def __init__(self, items=()):
        self._head = None
        for i in reversed(list(items)): self._head = self._Node(i, self._head)
    def __iter__(self):
        n = self._head
        while n: yield n.v; n = n.nxt
    def reverse(self):
        prev, cur = None, self._head
        while cur: cur.nxt, prev, cur = prev, cur, cur.nxt
        self._head = prev


def check_list():
    l = LinkedList([1, 2, 3]); l.reverse()
    return list(l)


def check_graph():
    edges = {"a": {"b": 1, "c": 4}, "b": {"c": 2, "d": 5}, "c": {"d": 1}, "d": {}}
    import heapq
    dist, heap = {"a": 0}, [(0, "a")]
    while heap:
        d, u = heapq.heappop(heap)
        if d > dist.get(u, math.inf): continue
        for v, w in edges[u].items():
            if (nd := d + w) < dist.get(v, math.inf):
                dist[v] = nd
                heapq.heappush(heap, (nd, v))
    seen, order = set(), []
    def dfs(u):
        if u in seen: return
        seen.add(u)
        for v in edges[u]: dfs(v)
        order.append(u)
    dfs("a")
    q, level = deque([("a", 0)]), {}
    while q:
        u, n = q.popleft()
        if u in level: continue
        level[u] = n
        q.extend((v, n + 1) for v in edges[u])
    return [dist, order[::-1], level]


def check_join():
    orders = [{"id": 1, "c": "x"}, {"id": 2, "c": "y"}, {"id": 3, "c": "z"}]
    customers = {c["id"]: c for c in ({"id": "x", "name": "X"}, {"id": "y", "name": "Y"})}
    return [{**o, **{f"customer_{k}": v for k, v in customers.get(o["c"], {}).items()}} for o in orders]


def check_flatten():
    def flatten(d, parent="", sep="."):
        for k, v in d.items():
            key = f"{parent}{sep}{k}" if parent else k
            if isinstance(v, dict): yield from flatten(v, key, sep)
            elif isinstance(v, list):
                for i, item in enumerate(v): yield from flatten({str(i): item}, key, sep)
            else: yield key, v
    def unflatten(flat):
        out = {}
        for key, v in flat.items():
            *path, last = key.split(".")
            node = out
            for p in path: node = node.setdefault(p, {})
            node[last] = v
        return out
    flat = dict(flatten({"a": {"b": [1, {"c": 2}], "d": None}, "e": 5}))
    return [flat, unflatten({"a.b": 1, "a.c.d": 2})]


def check_mask():
    secret = re.compile(r"(?P<key>password|token)=(?P<value>\S+)", re.I)
    return [secret.sub(lambda m: f"{m['key']}={'*' * len(m['value'])}", "user=a Password=hunter2 token=abc"), re.sub(r"\b(\d{4})(?=\d{4})", "****", "12345678")]


def check_batches():
    def chunks(seq, n):
        for i in range(0, len(seq), n): yield seq[i:i + n]
    return [list(chunks(range(5), 2)) == [range(0, 2), range(2, 4), range(4, 5)], [list(c) for c in chunks("abcde", 2)], list(zip(*[iter("abcdef")] * 2)), [(k, len(list(g))) for k, g in groupby("aabbbc")]]


def check_interpolate():
    points = [(0, 0), (10, 100), (20, 150)]
    def at(x):
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            if x0 <= x <= x1: return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        raise ValueError(f"{x} is out of range")
    try: at(99)
    except ValueError as e: return [at(5), at(15), str(e)]


def check_zscore():
    xs = [10, 12, 11, 50]
    mu, sd = statistics.fmean(xs), statistics.pstdev(xs)
    return [round((x - mu) / sd, 4) for x in xs if abs(x - mu) > sd]


def check_logging_levels():
    log.debug("a %s", 1); log.info("b", extra={"k": 1}); log.error("x", exc_info=True)
    if log.isEnabledFor(logging.DEBUG): log.log(logging.INFO, "enabled")
    child = log.getChild("child"); child.info("c")
    log.addHandler(logging.NullHandler()); log.propagate = False
    return [logging.getLevelName(30), log.name, child.name, logging.getLogger("pipeline") is log, log.level]


class Runnable:
    def process(self, queries):
        return [
            check_readings(),
            check_dedup(),
            check_bucket(),
            check_breaker(),
            check_tree(),
            check_bus(),
            check_rules(),
            check_money(),
            check_schema(),
            check_memo(),
            check_matrix(),
            check_list(),
            check_graph(),
            check_join(),
            check_flatten(),
            check_mask(),
            check_batches(),
            check_interpolate(),
            check_zscore(),
            check_logging_levels(),
        ]
