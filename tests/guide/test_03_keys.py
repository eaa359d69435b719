"""Chapter 3: a key separates contexts; order is kept per key."""

from __future__ import annotations

import pytest

from tests.running import Start

COUNT = """
class Runnable:
    def process(self, queries):
        outputs = []
        for query in queries:
            self.context["n"] = self.context.get("n", 0) + 1
            outputs.append({**query, "n": self.context["n"]})
        return outputs
"""


@pytest.mark.parametrize("key", ["subject.2", "header.Symbol", "json./tick/symbol"])
async def test_each_key_has_a_context_of_its_own(processor: Start, key: str) -> None:
    """The key is a token of the subject, a header, or a value in the document."""
    route = f"""
    r:
      input: {{subject: "ticks.*", create: true}}
      runnable: count.py
      key: {key}
      output: "counted.{{key}}"
    """
    async with processor(route, count=COUNT) as running:
        for symbol in ("IBM", "AAPL", "IBM"):
            document = {"tick": {"symbol": symbol}}
            await running.publish(f"ticks.{symbol}", document, headers={"Symbol": symbol})
        assert [d["n"] for d in await running.documents("counted.IBM", 2)] == [1, 2]
        assert [d["n"] for d in await running.documents("counted.AAPL", 1)] == [1]
        assert await running.contexts("r") == {"AAPL": {"n": 1}, "IBM": {"n": 2}}


async def test_a_message_without_its_key_is_set_aside(processor: Start) -> None:
    """It is a dead letter with E303; the others go on."""
    route = """
    r:
      input: {subject: "ticks.*", create: true}
      runnable: count.py
      key: json./symbol
      output: "counted.{key}"
    """
    async with processor(route, count=COUNT) as running:
        await running.publish("ticks.any", {"symbol": "IBM"}, {"price": 3}, {"symbol": "IBM"})
        assert [d["n"] for d in await running.documents("counted.IBM", 2)] == [1, 2]
        [letter] = await running.dead_letters("r")
        assert (letter.payload, letter.headers["x-error-code"]) == (b'{"price":3}', "E303")


async def test_the_subject_of_an_output_is_made_of_what_it_is_about(processor: Start) -> None:
    """Tokens of the input's subject and fields of the output have their places in the template."""
    route = """
    r:
      input: {subject: "ticks.*.*", create: true}
      runnable: count.py
      output: "by.{subject.2}.{currency.code}"
    """
    async with processor(route, count=COUNT) as running:
        await running.publish("ticks.xnas.AAPL", {"currency": {"code": "USD"}})
        await running.publish("ticks.xetr.SAP", {"currency": {"code": "EUR"}})
        assert len(await running.documents("by.xnas.USD", 1)) == 1
        assert len(await running.documents("by.xetr.EUR", 1)) == 1


async def test_data_cannot_choose_a_subject_that_it_must_not(processor: Start) -> None:
    """A value that is not one safe token is E308, not a subject with a wildcard or a token too many."""
    route = """
    r:
      input: {subject: "ticks", create: true}
      runnable: count.py
      output: "by.{name}"
      retry: {attempts: 1}
    """
    async with processor(route, count=COUNT) as running:
        bad = ["a.b", "*", ">", "a b", ""]
        await running.publish("ticks", *({"name": name} for name in bad), {"name": "fine"})
        assert [d["n"] for d in await running.documents("by.*", 1)] == [1]
        letters = await running.dead_letters("r", len(bad))
        assert {letter.headers["x-error-code"] for letter in letters} == {"E308"}


async def test_order_is_kept_per_key(processor: Start) -> None:
    """However keys are mixed, each sees its own messages in the order of the stream."""
    route = """
    r:
      input: {subject: "ticks.*", create: true}
      runnable: count.py
      key: subject.2
      output: "counted.{key}"
    """
    async with processor(route, count=COUNT) as running:
        for i in range(200):
            await running.publish(f"ticks.k{i % 7}", {"i": i})
        for key in range(7):
            counted = await running.documents(f"counted.k{key}", len(range(key, 200, 7)))
            assert [d["i"] for d in counted] == list(range(key, 200, 7))
            assert [d["n"] for d in counted] == list(range(1, len(counted) + 1))
