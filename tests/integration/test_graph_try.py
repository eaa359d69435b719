"""`processor graph try`: a graph of real nodes, run without a server."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK
from tests.integration.test_cli import Start, code, command, done

__all__ = ["command", "done"]  # fixtures

NODES = """
from datetime import timedelta

from exospherehost import BaseNode, ReQueueAfterSignal
from pydantic import BaseModel


class Split(BaseNode):
    class Inputs(BaseModel):
        count: int

    class Outputs(BaseModel):
        n: int

    async def execute(self):
        print("splits", self.inputs.count)
        return [self.Outputs(n=n) for n in range(self.inputs.count)]


class Double(BaseNode):
    class Inputs(BaseModel):
        n: int

    class Outputs(BaseModel):
        n: int

    async def execute(self) -> Outputs:
        if self.inputs.n == 1 and self.attempt < 3:
            raise ReQueueAfterSignal(timedelta(hours=1))
        if self.inputs.n == 99:
            raise ValueError("no such number")
        return self.Outputs(n=self.inputs.n * 2)


class Total(BaseNode):
    class Inputs(BaseModel):
        numbers: list[int]

    class Outputs(BaseModel):
        total: int

    async def execute(self) -> Outputs:
        return self.Outputs(total=sum(self.inputs.numbers))
"""
CONFIG = """\
app: app
nodes: {lib: nodes.py}
graphs:
  sums:
    nodes:
      - {identifier: split, node_name: Split, inputs: {count: 3}, next_nodes: [double]}
      - {identifier: double, node_name: Double, inputs: {n: "${{ split.outputs.n }}"}, next_nodes: [total]}
      - identifier: total
        node_name: Total
        inputs: {numbers: "${{ double.outputs.n }}"}
        unites: {identifier: split}
    outputs: {total: "${{ total.outputs.total }}"}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "nodes.py").write_text(NODES)
    (tmp_path / "app.yaml").write_text(CONFIG)
    return tmp_path / "app.yaml"


def test_a_graph_is_tried_without_a_server(config: Path, done: Start) -> None:
    """A run with real nodes ends as on a server, and waits of hours take no time."""
    tried = done("graph", "try", config, "sums", "--format", "json")
    assert code(tried) == EXIT_OK, tried.err
    record = orjson.loads(tried.out)
    assert (record["state"], record["outputs"]) == ("SUCCESS", {"total": 6})
    assert {each["x"]: each["attempt"] for each in record["executions"]} == {
        "split": 1, "double/split.0": 1, "double/split.1": 3, "double/split.2": 1, "total": 1
    }  # fmt: skip
    assert "split: info splits 3" in tried.err


def test_a_large_fan_out_is_tried_in_slices(config: Path, done: Start) -> None:
    """Inputs come from the command line; more than 64 branches end as fewer do, and failures are said."""
    tried = done("graph", "try", config, "sums", "-i", "count=80", "--format", "human")
    assert code(tried) == EXIT_OK, tried.err
    assert f"total: {sum(range(80)) * 2}" in tried.out
    tried = done("graph", "try", config, "sums", "-i", "count=100", "--format", "human")
    assert code(tried) == EXIT_FAILED
    assert "ValueError: no such number" in tried.out


def test_one_node_is_tried(config: Path, done: Start) -> None:
    """One node runs alone with the inputs that are given; those that it needs are named."""
    tried = done("graph", "try", config, "sums", "--execution", "double", "-i", "n=4", "--format", "json")
    assert code(tried) == EXIT_OK, tried.err
    assert orjson.loads(tried.out)["outputs"] == {"n": 8}
    assert "double needs n" in done("graph", "try", config, "sums", "--execution", "double").err


def test_what_is_wrong_is_said_before_anything_runs(config: Path, done: Start) -> None:
    """Faults of nodes and graphs end the command, all of them at once."""
    config.write_text(CONFIG.replace("double.outputs.n", "double.outputs.m"))
    tried = done("graph", "try", config, "sums")
    assert code(tried) == EXIT_CONFIG
    assert "E703" in tried.err
    assert "no graph 'sum'" in done("graph", "try", config, "sum").err


def test_nodes_call_the_tools_of_their_group(tmp_path: Path, done: Start) -> None:
    """By the verb of Runnables; a group that lists tools runs in a pool, and an unusable one is found."""
    calling = NODES.replace(
        "self.Outputs(n=self.inputs.n * 2)", 'self.Outputs(**self.tools.call("twice", n=self.inputs.n))'
    )
    (tmp_path / "nodes.py").write_text(calling)
    (tmp_path / "twice.py").write_text("def twice(n):\n    return {'n': n * 2}\n")
    tools = "tools: {twice: {python: twice.py}}\nnodes: {lib: {file: nodes.py, tools: [twice]}}"
    config = tmp_path / "app.yaml"
    config.write_text(CONFIG.replace("nodes: {lib: nodes.py}", tools))
    tried = done("graph", "try", config, "sums", "--format", "json")
    assert code(tried) == EXIT_OK, tried.err
    assert orjson.loads(tried.out)["outputs"] == {"total": 6}
    config.write_text(config.read_text().replace("tools: [twice]", "where: inline, tools: [twice]"))
    assert "the group lists `tools`" in done("check", config).err
    (tmp_path / "twice.py").write_text("import no_such_module\ndef twice(n): ...\n")
    config.write_text(config.read_text().replace("where: inline, ", ""))
    assert "E506 tools.twice: the tool twice is unusable" in done("check", config).err
