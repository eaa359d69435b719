"""Chapter 2: what a Runnable puts into `self.context` is there in the next call, whatever happens."""

from __future__ import annotations

import pytest

from tests.running import Start

ROUTE = """
r:
  input: {subject: "in", create: true}
  runnable: keep.py
  output: out
  batch: {max_messages: 1}
"""


async def test_init_is_for_a_new_context_only(processor: Start) -> None:
    """`init` sets starting values; what was committed since wins over them, also in the next life."""
    keep = """
    class Runnable:
        def init(self):
            self.context["n"] = 100

        def process(self, queries):
            self.context["n"] += len(queries)
            return self.context["n"]
    """
    async with processor(ROUTE, keep=keep) as running:
        await running.publish("in", {})
        assert await running.documents("out", 1) == [101]
    async with processor(ROUTE, keep=keep) as running:
        await running.publish("in", {})
        assert await running.documents("out", 2) == [101, 102]


async def test_the_context_is_a_whole_dict(processor: Start) -> None:
    """`in`, `+=`, `get`, `setdefault`, `items`, `del` and changes deep inside are all kept."""
    keep = """
    class Runnable:
        def process(self, queries):
            kept = self.context
            for query in queries:
                kept["n"] = kept.get("n", 0) + 1
                kept.setdefault("seen", {}).setdefault(query["who"], []).append(kept["n"])
                if "first" in kept:
                    del kept["first"]
                else:
                    kept["first"] = query["who"]
            return {name: value for name, value in kept.items()}
    """
    async with processor(ROUTE, keep=keep) as running:
        await running.publish("in", {"who": "Ada"}, {"who": "Eve"}, {"who": "Ada"})
        await running.documents("out", 3)
        assert await running.contexts("r") == {
            "": {"n": 3, "seen": {"Ada": [1, 3], "Eve": [2]}, "first": "Ada"}
        }


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("{1, 2}", "{1, 2}"),
        ("{1: 'one', (2, 3): 'pair'}", "{1: 'one', (2, 3): 'pair'}"),
        ("b'bytes'", "b'bytes'"),
        ("Decimal('1.10')", "Decimal('1.10')"),
        ("date(2026, 1, 2)", "date(2026, 1, 2)"),
        ("timedelta(hours=1)", "timedelta(hours=1)"),
        ("Counter('aab')", "Counter('aab')"),
        ("deque([1, 2], maxlen=2)", "deque([1, 2], maxlen=2)"),
        ("2 ** 100", "2 ** 100"),
        ("(1, 2)", "[1, 2]"),
    ],
)
async def test_plain_values_of_python_are_kept_as_they_are(processor: Start, written: str, read: str) -> None:
    """Sets, bytes, dates, decimals, counters and large integers come back; only tuples come back as lists."""
    keep = f"""
    from collections import Counter, deque
    from datetime import date, timedelta
    from decimal import Decimal

    class Runnable:
        def process(self, queries):
            if "value" not in self.context:
                self.context["value"] = {written}
                return "written"
            value = self.context["value"]
            return value == {read} and type(value) is type({read})
    """
    async with processor(ROUTE, keep=keep) as running:
        await running.publish("in", {}, {})
        assert await running.documents("out", 2) == ["written", True]


async def test_values_are_kept_and_not_references(processor: Start) -> None:
    """Two names for one list are two lists in the next call."""
    keep = """
    class Runnable:
        def process(self, queries):
            if "a" not in self.context:
                self.context["a"] = self.context["b"] = []
            self.context["a"].append(1)
            return [[len(self.context["a"]), len(self.context["b"])]]
    """
    async with processor(ROUTE, keep=keep) as running:
        await running.publish("in", {}, {})
        assert await running.documents("out", 2) == [[1, 1], [2, 1]]


async def test_what_cannot_be_kept_is_refused_with_its_path(processor: Start) -> None:
    """A function, an open iterator or NaN has no place in a context; the sentence says where it was found."""
    keep = """
    class Runnable:
        def process(self, queries):
            self.context["prices"] = {"IBM": [1.0, float("nan")]}
    """
    async with processor(ROUTE, keep=keep) as running:
        await running.publish("in", {})
        [letter] = await running.dead_letters("r")
        assert letter.headers["x-error-code"] == "E309"
        assert "prices" in letter.headers["x-dead-letter-reason"]


async def test_the_context_survives_the_death_of_the_guest(processor: Start) -> None:
    """A guest that is killed is replaced by one with the context of the last commit."""
    keep = """
    class Runnable:
        def process(self, queries):
            self.context["n"] = self.context.get("n", 0) + 1
            while queries[0].get("loop"):
                pass
            return self.context["n"]
    """
    route = ROUTE + "  limits: {cpu_s: 0.2}\n  retry: {attempts: 1}\n"
    async with processor(route, keep=keep) as running:
        await running.publish("in", {}, {}, {"loop": True}, {})
        assert await running.documents("out", 3) == [1, 2, 3]


async def test_a_large_context_is_kept_item_by_item(processor: Start) -> None:
    """A commit costs what changed and not what is kept: 300 items, one of them touched by each message."""
    keep = """
    class Runnable:
        def init(self):
            for i in range(300):
                self.context[f"item {i}"] = "x" * 100

        def process(self, queries):
            for query in queries:
                self.context[query["item"]] = "new"
            return len(self.context)
    """
    async with processor(ROUTE, keep=keep) as running:
        await running.publish("in", {"item": "item 7"})
        assert await running.documents("out", 1) == [300]
        before = {stored.subject: stored.sequence for stored in await running.stored("p.app.ctx.r.>")}
        await running.publish("in", {"item": "item 8"})
        assert await running.documents("out", 2) == [300, 300]
        after = {stored.subject: stored.sequence for stored in await running.stored("p.app.ctx.r.>")}
        written = [subject for subject, sequence in after.items() if sequence != before[subject]]
        assert (len(after), len(written)) == (300, 1)
        kept = (await running.contexts("r"))[""]
        assert (len(kept), kept["item 7"], kept["item 8"], kept["item 9"]) == (300, "new", "new", "x" * 100)
