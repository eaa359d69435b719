"""Totals by group, in the ways people write them."""
from __future__ import annotations

import collections
import itertools
import json
import logging
import operator
import statistics
from collections import Counter, defaultdict, deque, OrderedDict
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

logger = logging.getLogger(__name__)

ORDERS: List[Dict[str, Any]] = [
    {"id": "a1", "customer": "ann", "amount": 12.5, "items": ["pen", "ink"], "region": {"code": "eu"}},
    {"id": "b2", "customer": "bob", "amount": 7.0, "items": ["pen"], "region": {"code": "us"}},
    {"id": "c3", "customer": "ann", "amount": 3.25, "items": [], "region": {"code": "eu"}},
    {"id": "d4", "customer": "cid", "amount": -1.0, "items": ["cap", "pen"], "region": None},
]


def check_by_customer() -> dict[str, float]:
    totals: dict[str, float] = defaultdict(float)
    for order in ORDERS:
        totals[order["customer"]] += order["amount"]
    logger.info("%d customers, %.2f in all", len(totals), sum(totals.values()))
    return dict(sorted(totals.items(), key=lambda pair: (-pair[1], pair[0])))


def check_nested_defaults():
    tree = lambda: defaultdict(tree)
    root = tree()
    for order in ORDERS:
        region = (order.get("region") or {}).get("code", "none")
        root[region][order["customer"]].setdefault("ids", []).append(order["id"])
    return json.loads(json.dumps(root, sort_keys=True))


def check_counter():
    items = Counter(item for order in ORDERS for item in order["items"])
    items.update(pen=2)
    items.subtract({"cap": 3})
    more = Counter("abca") + Counter("ab") - Counter("c")
    return [items.most_common(2), +items, sorted(items.elements()), items.total(), more, Counter("ab") | Counter("bb"), Counter("ab") & Counter("bb")]


def check_groupby():
    rows = sorted(ORDERS, key=operator.itemgetter("customer"))
    out = {}
    for customer, group in itertools.groupby(rows, key=lambda row: row["customer"]):
        group = list(group)
        out[customer] = {"n": len(group), "max": max(group, key=lambda r: r["amount"])["id"]}
    return out


def check_summary():
    amounts = [order["amount"] for order in ORDERS]
    mean, *rest = statistics.mean(amounts), statistics.median(amounts)
    return {"mean": mean, "rest": rest, "stdev": round(statistics.stdev(amounts), 6), "quantiles": statistics.quantiles(amounts, n=4), "mode": statistics.multimode("aabb")}


def check_pivot():
    columns = ["pen", "ink", "cap"]
    table = {o["customer"]: dict.fromkeys(columns, 0) for o in ORDERS}
    for o in ORDERS:
        for item in o["items"]:
            table[o["customer"]][item] += 1
    rows = [[name, *row.values()] for name, row in table.items()]
    return [list(column) for column in zip(["name", *columns], *rows, strict=True)]


def check_ordered():
    seen: OrderedDict[str, int] = OrderedDict()
    for order in ORDERS:
        seen[order["customer"]] = seen.get(order["customer"], 0) + 1
        seen.move_to_end(order["customer"])
    first = seen.popitem(last=False)
    seen.move_to_end("cid", last=False)
    return [list(seen.items()), first, list(reversed(seen))]


def check_running() -> list[float]:
    def running_mean(values: Iterable[float]) -> Iterator[float]:
        total = count = 0
        for value in values:
            total, count = total + value, count + 1
            yield total / count
    return [*running_mean(o["amount"] for o in ORDERS), *itertools.accumulate([1, 2, 3], operator.mul, initial=10)]


def check_top():
    import heapq
    from heapq import nlargest, nsmallest
    heap: list[tuple[float, str]] = []
    for order in ORDERS:
        item = (order["amount"], order["id"])
        if len(heap) < 2:
            heapq.heappush(heap, item)
        else:
            heapq.heappushpop(heap, item)
    return [sorted(heap, reverse=True), nlargest(2, ORDERS, key=lambda o: o["amount"]), nsmallest(1, [3, 1, 2]), list(heapq.merge([1, 4], [2, 3]))]


def check_moving_window():
    window: deque[float] = deque(maxlen=3)
    out = []
    for i, value in enumerate((5, 3, 8, 1, 9), start=1):
        window.append(value)
        if (n := len(window)) == window.maxlen:
            out.append((i, sum(window) / n, max(window), min(window)))
    window.rotate(1)
    window.appendleft(0)
    return [out, list(window), window.popleft(), window.pop()]


def check_chain_map():
    chain = collections.ChainMap({"a": 1}, {"a": 2, "b": 3})
    child = chain.new_child({"c": 4})
    child["a"] = 9
    return [dict(child), child.maps, child.parents["a"], sorted(child), child["b"]]


class Runnable:
    def process(self, queries):
        return [
            check_by_customer(),
            check_nested_defaults(),
            check_counter(),
            check_groupby(),
            check_summary(),
            check_pivot(),
            check_ordered(),
            check_running(),
            check_top(),
            check_moving_window(),
            check_chain_map(),
        ]
