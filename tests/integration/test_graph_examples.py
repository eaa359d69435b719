"""The graphs that are shipped in configs/examples/graphs: each does what its file says."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.embedded import EmbeddedServer
from processor.graphs.client import StateManager
from processor.jetstream import ask_service
from processor.subject import api_subject
from tests.running import Running, started
from tests.web import Asked, answer, serving

EXAMPLES = Path(__file__).parents[2] / "configs" / "examples" / "graphs"
KEY = "canary-of-the-model"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """`copied(name, old=new)` copies the examples; the path of one, with a host of the test's in place."""

    def copy(name: str, host: str = "") -> Path:
        folder = shutil.copytree(EXAMPLES, tmp_path / "graphs", ignore=shutil.ignore_patterns(".processor"))
        path: Path = folder / f"{name}.yaml"
        text = path.read_text().replace("https://api.openai.com", f"http://{host}")
        text = text.replace("hosts: [api.openai.com]", f'hosts: ["http://{host}"]')
        path.write_text(text.replace("api.openai.com", f'"{host}"') + "http: off\n")
        return path

    return copy


@asynccontextmanager
async def app(path: Path, url: str, **env: str) -> AsyncIterator[tuple[Running, StateManager]]:
    async with started(path, url, **env) as running:
        await running.until_ready()
        manager = StateManager(running.app, url)
        try:
            yield running, manager
        finally:
            await manager.close()


async def test_the_nodes_of_the_quick_start_run_unchanged(
    copied: Callable[..., Path], nats_server: EmbeddedServer
) -> None:
    """One after the other, with texts alone."""
    async with app(copied("quickstart"), nats_server.url) as (_, manager):
        await manager.trigger("my-workflow", inputs={"name": "ada", "data": "rows"}, run_id="r")
        assert await manager.result("r", 30) == {"result": "completed:ro"}


async def test_a_batch_of_orders_is_one_total(
    copied: Callable[..., Path], nats_server: EmbeddedServer
) -> None:
    """A cancelled order is left out, one that fails is told, and the total has all others."""
    async with app(copied("etl"), nats_server.url) as (running, manager):
        orders = [
            {"id": "o-1", "amount": 10},
            {"id": "o-2", "amount": 1, "cancelled": True},
            {"id": "o-3", "amount": -4},
            {"id": "o-4", "amount": 2},
        ]
        await running.publish("batches.monday", {"orders": orders})
        [total] = await running.documents("totals.etl", 1)
        assert total["state"] == "SUCCESS"
        assert total["outputs"] == {"total": 18, "orders": ["o-1", "o-4"]}
        [error] = total["errors"]
        assert (error["x"], error["code"]) == ("convert/split.2", "E304")
        assert "order o-3 has the amount -4" in error["text"]
        record = await manager.run(total["run"])
        assert {each["x"]: each["state"] for each in record["executions"]}["convert/split.1"] == "PRUNED"


async def test_a_payment_waits_for_its_approval(
    copied: Callable[..., Path], nats_server: EmbeddedServer
) -> None:
    """It is paid when somebody approves it, and not when somebody refuses."""

    async def signal(running: Running, run: str, value: dict[str, Any]) -> None:
        said = {"run": run, "signal": "approval", "value": value, "by": "test"}
        subject = api_subject(running.app, "graph.signal")
        await ask_service(running.broker, subject, orjson.dumps(said), 10)

    async with app(copied("approval"), nats_server.url) as (running, manager):
        for run in ("yes", "no"):
            await manager.trigger("payment", inputs={"amount": 900}, run_id=run)
        await signal(running, "yes", {"approved": True, "by": "ada"})
        assert await manager.result("yes", 30) == {"paid": 900, "by": "ada"}
        await signal(running, "no", {"approved": False, "by": "bob"})
        documents = await running.documents("payments.SUCCESS", 2)
        assert {each["run"]: each["outputs"].get("paid") for each in documents} == {"yes": 900, "no": None}


class Model:
    """A language model that is busy once, and asks for the stock before it answers."""

    def __init__(self) -> None:
        self._is_busy = True

    def __call__(self, asked: Asked) -> bytes:
        said = json.loads(asked.body)
        if self._is_busy:
            self._is_busy = False
            return answer(status=429)
        return answer(spoken(said["messages"]), content_type="application/json")


def spoken(messages: list[Any]) -> bytes:
    question, last = messages[0]["content"], messages[-1]
    if last["role"] == "tool":
        message: dict[str, Any] = {"role": "assistant", "content": f"{question} {last['content']}"}
    else:
        call = {"name": "stock_of", "arguments": '{"article": "pens"}'}
        message = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": call}]}
    return json.dumps({"choices": [{"message": message}]}).encode()


async def test_an_agent_asks_a_model_and_its_tools(
    copied: Callable[..., Path], nats_server: EmbeddedServer
) -> None:
    """Each question by itself, tried again where the model is busy; the key is in the requests alone."""
    async with (
        serving(Model()) as web,
        app(copied("agent", web.host), nats_server.url, LLM_KEY=KEY) as (running, manager),
    ):
        questions = ["How many pens?", "And of tea?"]
        await manager.trigger("research", inputs={"questions": questions}, run_id="r")
        outputs = await manager.result("r", 60)
        assert outputs["report"] == (
            'How many pens?\nHow many pens? {"stock": 1200}\n\nAnd of tea?\nAnd of tea? {"stock": 1200}'
        )
        assert len(web.asked) == 5
        assert {asked.headers["authorization"] for asked in web.asked} == {f"Bearer {KEY}"}
        kept = [each async for each in running.broker.history("P_agents", ["p.agents.>"])]
        assert not [each.subject for each in kept if KEY.encode() in each.payload]
