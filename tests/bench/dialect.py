# ruff: noqa: T201 - a measurement prints its figures
"""What the guards cost: the same program plain and in the dialect, turn about, as the ratio of their times.

    python tests/bench/dialect.py [ROUNDS]

Prints for each program the median ratio (guarded / plain) of ROUNDS turns (default 300), and the 10th and
90th percentile. It needs no broker and no jail, and runs on any Python that Processor supports.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from processor.model import Program
from processor.sandbox import dialect

MESSAGE = """
class Runnable:
    def process(self, queries):
        out = []
        for query in queries:
            self.context["n"] = self.context.get("n", 0) + 1
            total = sum(item["price"] * item["count"] for item in query["items"])
            tags = sorted({tag.strip().lower() for tag in query["tags"]})
            out.append({"id": query["id"].upper(), "total": round(total, 2), "tags": tags})
        return out
"""
LOOP = """
class Runnable:
    def process(self, queries):
        total, seen = 0, {}
        for i in range(1000):
            key = i % 17
            seen[key] = seen.get(key, 0) + i
            total += seen[key] & 255
        return total
"""
STORE = """
class Runnable:
    def process(self, queries):
        self.count = 0
        for i in range(1000):
            self.count += 1
            self.last = i
        return self.count
"""
METHODS = """
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def moved(self, by):
        return Point(self.x + by, self.y - by)

class Runnable:
    def process(self, queries):
        point = Point(0, 0)
        for i in range(300):
            point = point.moved(i)
        return point.x
"""
DATACLASS = """
from dataclasses import dataclass

@dataclass
class Tick:
    name: str
    price: float
    size: int = 1

class Runnable:
    def process(self, queries):
        return sum(Tick("a", float(i)).price for i in range(200))
"""
FORMAT = """
class Runnable:
    def process(self, queries):
        return ["{} {:>5} {name}".format(i, i * 2, name="x") + f"{i:03d}" for i in range(200)]
"""
PROGRAMS = {
    "typical message": MESSAGE, "1,000-iteration loop": LOOP, "two stores per iteration": STORE,
    "small objects": METHODS, "data class instances": DATACLASS, "str.format": FORMAT,
}  # fmt: skip
ITEMS = [{"price": 1.5, "count": 2}, {"price": 3, "count": 1}]
QUERIES = [{"id": "a1", "items": ITEMS, "tags": [" X", "y "]}]


class Base:
    def __init__(self) -> None:
        self.context: dict[str, Any] = {}


def plain(source: str) -> Callable[[Any], Any]:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "plain.py", "exec", dont_inherit=True), space)
    return type("Runnable", (space["Runnable"], Base), {})().process  # type: ignore[no-any-return]


def guarded(source: str) -> Callable[[Any], Any]:
    program = Program(source, "guarded.py")
    space = dialect.namespace(dialect.Runtime(Base, lambda *_: None))
    exec(dialect.compile_program(program), space)
    return dialect.runnable_class(space)().process  # type: ignore[attr-defined,no-any-return]


def main(rounds: int) -> None:
    print(f"Python {sys.version.split()[0]}, {rounds} turns")
    for name, source in PROGRAMS.items():
        pair = plain(source), guarded(source)
        for process in pair * 20:
            process(QUERIES)
        repeat = max(1, int(200e-6 / max(_seconds(pair[0], 1), 1e-7)))
        ratios = []
        for turn in range(rounds):
            first, second = pair if turn % 2 else pair[::-1]
            taken = {first: _seconds(first, repeat), second: _seconds(second, repeat)}
            ratios.append(taken[pair[1]] / taken[pair[0]])
        low, *_, high = statistics.quantiles(ratios, n=10)
        print(f"{name:26} {statistics.median(ratios):5.2f}  ({low:.2f} to {high:.2f})")


def _seconds(process: Callable[[Any], Any], repeat: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeat):
        process(QUERIES)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
