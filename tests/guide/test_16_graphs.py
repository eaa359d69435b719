"""Chapter 16: graphs of typed nodes, whose runs fan out, unite, fail, wait and are retried."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from processor.embedded import EmbeddedServer
from processor.graphs.client import StateManager, StateManagerError
from processor.jetstream import ask_service
from processor.subject import api_subject
from tests.running import Running, started

CONFIG = """
app: app
http: off
nodes: {lib: lib.py}
graphs:
  orders:
    nodes:
      - {identifier: split, node_name: Split, inputs: {orders: []}, next_nodes: [price]}
      - identifier: price
        node_name: Price
        inputs: {order: "${{ split.outputs.order }}", rate: "${{ store.rate }}"}
        next_nodes: [total]
        retry: {max_retries: 0}
      - identifier: total
        node_name: Total
        unites: {identifier: split}
        inputs: {prices: "${{ price.outputs.price }}"}
    store_config: {default_values: {rate: 2}}
    outputs: {total: "${{ total.outputs.total }}"}
    output: results.{graph}
    triggers:
      - {subject: "orders.*", create: true, inputs: {orders: "${{ document.orders }}"}}
  approval:
    nodes:
      - {identifier: wait, node_name: Wait, inputs: {signal: approval}, next_nodes: [total]}
      - {identifier: total, node_name: Total, inputs: {prices: "${{ wait.outputs.value }}"}}
    outputs: {total: "${{ total.outputs.total }}"}
"""
NODES = """
from exospherehost import BaseNode, PruneSignal
from pydantic import BaseModel

class Split(BaseNode):
    class Inputs(BaseModel):
        orders: list
    class Outputs(BaseModel):
        order: dict
    async def execute(self):
        return [self.Outputs(order=order) for order in self.inputs.orders]

class Price(BaseNode):
    class Inputs(BaseModel):
        order: dict
        rate: float
    class Outputs(BaseModel):
        price: float
    async def execute(self):
        if self.inputs.order.get("cancelled"):
            raise PruneSignal()
        return self.Outputs(price=self.inputs.order["amount"] * self.inputs.rate)

class Total(BaseNode):
    class Inputs(BaseModel):
        prices: list
    class Outputs(BaseModel):
        total: float
    async def execute(self):
        return self.Outputs(total=sum(self.inputs.prices))
"""
REPAIRED = NODES.replace('order["amount"]', 'order.get("amount", 0)')


@asynccontextmanager
async def app(folder: Path, server: EmbeddedServer) -> AsyncIterator[tuple[Running, StateManager]]:
    (folder / "lib.py").write_text(NODES)
    (folder / "config.yaml").write_text(CONFIG)
    manager = StateManager("app", server.url)
    async with started(folder / "config.yaml", server.url) as running:
        await running.until_ready()
        try:
            yield running, manager
        finally:
            await manager.close()


async def test_a_run_fans_out_and_unites(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """Each element of a list is a branch; what prunes itself is left out; the result comes once."""
    async with app(tmp_path, nats_server) as (running, manager):
        orders = [{"amount": 5}, {"amount": 3, "cancelled": True}, {"amount": 1}]
        asked = await manager.trigger("orders", inputs={"orders": orders}, run_id="r-1")
        assert asked == {"status": "CREATED", "run_id": "r-1", "ignored": []}
        assert await manager.result("r-1", timeout=30) == {"total": 12}

        await manager.trigger("orders", inputs={"orders": orders}, run_id="r-1")
        await manager.trigger("orders", inputs={"orders": []}, store={"rate": 1}, run_id="r-2")
        results = await running.documents("results.orders", 2)
        assert [(each["run"], each["outputs"]) for each in results] == [
            ("r-1", {"total": 12}),
            ("r-2", {"total": 0}),
        ]


async def test_a_message_is_a_run(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """Of each message on the subject of a trigger, exactly one."""
    async with app(tmp_path, nats_server) as (running, _):
        await running.publish("orders.eu", {"orders": [{"amount": 4}]}, {"orders": [{"amount": 7}]})
        results = await running.documents("results.orders", 2)
        assert sorted(each["outputs"]["total"] for each in results) == [8, 14]


async def test_what_failed_is_retried_when_it_is_repaired(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """An execution that fails says why; with the node repaired a retry runs that one again, and the total."""
    async with app(tmp_path, nats_server) as (running, manager):
        await manager.trigger("orders", inputs={"orders": [{"amount": 5}, {}]}, run_id="r-3")
        with pytest.raises(StateManagerError, match=r"FAILED: price/split\.1: E304 .*KeyError: 'amount'"):
            await manager.result("r-3", timeout=30)

        await running.reload(lib=REPAIRED)
        await manager.retry("r-3")
        results = await running.documents("results.orders", 2)
        assert [(each["state"], each["outputs"]) for each in results] == [
            ("FAILED", {}),
            ("SUCCESS", {"total": 10}),
        ]


async def test_a_run_waits_for_a_signal(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """For as long as it takes, and over a restart."""
    async with app(tmp_path, nats_server) as (_, manager):
        await manager.trigger("approval", run_id="a-1")
    async with app(tmp_path, nats_server) as (running, manager):
        signal = {"run": "a-1", "signal": "approval", "value": [3, 4], "by": "ada"}
        await ask_service(running.broker, api_subject("app", "graph.signal"), orjson.dumps(signal), 10)
        assert await manager.result("a-1", timeout=30) == {"total": 7}
