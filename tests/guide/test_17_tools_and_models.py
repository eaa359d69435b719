"""Chapter 17: tools that a Runnable calls by name, and models that it asks, each within what is granted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llm import real_server
from tests.running import Start


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with an API as OpenAI's, which runs on this machine."""
    with real_server(tmp_path_factory.mktemp("model"), key="") as url:
        yield url


async def test_a_tool_is_called_by_its_name(processor: Start, tmp_path: Path) -> None:
    """It has no rights of its own: arguments in, result out. What the route does not list is not there."""
    (tmp_path / "vat.py").write_text("def vat(net, rate=0.19):\n    return round(net * rate, 2)\n")
    route = """
    bills:
      input: {subject: "bills.*", create: true}
      runnable: add_vat.py
      output: billed
      tools: [vat]
    """
    add_vat = """
    class Runnable:
        def process(self, bills):
            for bill in bills:
                try:
                    vat = self.tools.call(bill.get("tool", "vat"), net=bill["net"])
                    yield {"net": bill["net"], "vat": vat}
                except NotFoundError as err:
                    yield {"refused": err.code}
    """
    async with processor(route, "tools: {vat: {python: vat.py}}", add_vat=add_vat) as running:
        await running.publish("bills.1", {"net": 100}, {"net": 100, "tool": "discount"})
        assert await running.documents("billed", 2) == [{"net": 100, "vat": 19.0}, {"refused": "E335"}]


ENDPOINT = 'inference: {local: {base_url: "%s", models: ["tiny-*"], max_tokens: 64}}\npolicy: policy.toml'
POLICY = """
[[capability]]
name = "infer"
resource = "tiny-*"
methods = ["chat"]

[[budget]]
name = "tokens-of-a-day"
kind = "tokens"
limit = 120
window = "day"
"""


async def test_a_model_is_asked_within_a_budget(processor: Start, tmp_path: Path, models: str) -> None:
    """A call that might use more tokens than are left is not made, and a model without a line is denied."""
    (tmp_path / "policy.toml").write_text(POLICY)
    route = """
    tickets:
      input: {subject: "tickets.*", create: true}
      runnable: sort.py
      output: sorted
      inference: [local]
    """
    sort = """
    class Runnable:
        def process(self, tickets):
            for ticket in tickets:
                try:
                    model = ticket.get("model", "tiny-random")
                    answer = self.infer(model, prompt=ticket["text"], max_tokens=40)
                    yield {"tokens": answer.usage["completion_tokens"], "ended": answer.finish_reason}
                except (OperationDeniedError, BudgetExceededError) as err:
                    yield {"refused": err.code}
    """
    async with processor(route, ENDPOINT % models, sort=sort) as running:
        ticket = {"text": "the price rose"}
        await running.publish("tickets.1", ticket, {"model": "gpt-4o", **ticket}, ticket)
        assert await running.documents("sorted", 3) == [
            {"tokens": 40, "ended": "length"},
            {"refused": "E330"},
            {"refused": "E332"},
        ]


async def test_listeners_hear_a_model_as_it_speaks(
    processor: Start, wait_until: Any, tmp_path: Path, models: str
) -> None:
    """Each piece is a chunk; what the whole answer used is kept with the commit."""
    (tmp_path / "policy.toml").write_text(POLICY)
    route = """
    talk:
      input: {subject: "ask.*", create: true}
      runnable: talk.py
      mode: stream
      output: {subject: "talk.{subject.2}", durable: false}
      inference: [local]
    """
    talk = """
    class Runnable:
        def process_stream(self, query):
            answer = self.infer("tiny-random", prompt=query["text"], max_tokens=16, stream=True)
            for piece in answer:
                yield piece
            self.context["tokens"] = answer.usage["completion_tokens"]
    """
    async with processor(route, ENDPOINT % models, talk=talk) as running:
        heard = await running.listen("talk.*")
        await running.publish("ask.ada", {"text": "the price rose"})
        await wait_until(lambda: heard and "Processor-Stream" in heard[-1].headers, "the answer has ended")
        assert len(heard) > 2
        assert (await running.contexts("talk"))[""] == {"tokens": 16}
