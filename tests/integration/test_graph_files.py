"""`graph check`, `graph show` and `check` of a configuration with graphs: what they find, say and draw."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from processor.cli import main
from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK
from processor.embedded import EmbeddedServer
from tests.integration.test_graph_cli import ran, record
from tests.integration.test_graph_requests import answering

Capture = pytest.CaptureFixture[str]
CONFIG = """\
app: app
nodes: {lib: lib.py}
graphs:
  etl:
    nodes:
      - {identifier: split, node_name: Split, inputs: {n: 3}, next_nodes: [work]}
      - {identifier: work, node_name: Work, inputs: {i: "${{ split.outputs.i }}"}}
"""
NODES = """
from exospherehost import BaseNode
from pydantic import BaseModel

class Split(BaseNode):
    class Inputs(BaseModel):
        n: int
    class Outputs(BaseModel):
        i: int
    async def execute(self):
        return [self.Outputs(i=i) for i in range(self.inputs.n)]

class Work(Split):
    class Inputs(BaseModel):
        i: int
    class Secrets(BaseModel):
        token: str = "none"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "lib.py").write_text(NODES)
    (tmp_path / "app.yaml").write_text(CONFIG)
    return tmp_path / "app.yaml"


def changed(config: Path, old: str, new: str) -> str:
    """The path of the configuration, with a change."""
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    return str(config)


def test_graphs_without_a_fault_are_listed(config: Path, capsys: Capture) -> None:
    """With their versions and kinds; `check` counts them, too."""
    assert main(["graph", "check", str(config), "--format", "human"]) == 0
    said = capsys.readouterr().out
    assert f"{config}: 1 graph, 2 kinds, no fault" in said
    assert "app/Split, app/Work" in said
    assert main(["check", str(config), "--format", "human"]) == 0
    said = capsys.readouterr().out
    assert f"{config}: app app, 1 graph, no fault" in said
    assert [line.split()[0] for line in said.splitlines()[3:8] if line] == ["graph", "etl", "nodes", "lib"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("split.outputs.i", "split.outputs.ij", ":7:54 E703 graphs.etl: split has no output 'ij'; did you"),
        ("{n: 3}", "{n: [3]}", ":6:56 E703 graphs.etl: nodes[0].inputs.n is integer in Split, and what"),
        ("{n: 3}", "{m: 3}", "E703 graphs.etl: nodes[0].inputs.m: Split has no input 'm'"),
        ("{n: 3}", "{}", ":6:47 E703 graphs.etl: nodes[0].inputs lacks 'n', which Split requires. Add it."),
        ("next_nodes: [work]", "next_nodes: [wrk]", "E702 graphs.etl: 'split' is followed by 'wrk'"),
    ],
)  # fmt: skip
def test_a_graph_is_checked_with_the_kinds_of_its_groups(
    config: Path, capsys: Capture, old: str, new: str, says: str
) -> None:
    """By `graph check` and by `check` alike, at its line."""
    path = changed(config, old, new)
    assert main(["graph", "check", path, "--format", "human"]) == EXIT_CONFIG
    shown = " ".join(capsys.readouterr().err.split())
    assert says in shown
    assert main(["check", path, "--format", "human"]) == EXIT_CONFIG
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_kind_that_only_a_runtime_has_is_no_fault(config: Path, capsys: Capture) -> None:
    """It may come; until then its graph is PENDING, which a warning says."""
    path = changed(config, "node_name: Work", "node_name: Wrk")
    assert main(["graph", "check", path, "--format", "human"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "E704 graphs.etl: no kind 'app/Wrk' is registered; kinds here: Split, Work." in said


def test_a_group_that_cannot_be_loaded_is_a_fault_at_its_line(config: Path, capsys: Capture) -> None:
    """As of a Runnable."""
    (config.parent / "lib.py").write_text("import os\n")
    assert main(["graph", "check", str(config), "--format", "human"]) == EXIT_CONFIG
    assert "lib.py:1:1 E203" in capsys.readouterr().err


def test_a_graph_in_a_file_of_its_own_is_checked_alone(tmp_path: Path, capsys: Capture) -> None:
    """All of its faults at once, each at its line."""
    file = tmp_path / "etl.yaml"
    file.write_text(
        "nodes:\n  - {identifier: a, node_name: A, next_node: [b]}\nretry_policy: {max_retries: -1}\n"
    )
    assert main(["graph", "check", str(file), "--format", "human"]) == EXIT_CONFIG
    said = capsys.readouterr().err
    assert f"{file}:2:35 E701 nodes[0].next_node is no key; did you mean 'next_nodes'?" in said
    assert f"{file}:3:16 E701 retry_policy.max_retries is -1: it must be at least 0." in said
    file.write_text("nodes:\n  - {identifier: a, node_name: A}\n")
    assert main(["graph", "check", str(file), "--format", "human"]) == 0
    assert f"{file}: graph etl, 1 node, no fault" in capsys.readouterr().out


def test_a_graph_is_shown_as_text_and_as_pictures(config: Path, capsys: Capture) -> None:
    """In four formats, each as a program reads it."""

    def shown(format: str) -> str:
        assert main(["graph", "show", str(config), "etl", "--format", format]) == 0
        return capsys.readouterr().out

    assert "split  app/Split  work" in shown("text")
    assert [node["identifier"] for node in json.loads(shown("json"))["nodes"]] == ["split", "work"]
    assert "n0 --> n1" in shown("mermaid")
    image = ElementTree.fromstring(shown("svg"))
    assert len(list(image.iter("{http://www.w3.org/2000/svg}rect"))) == 3


def test_a_graph_that_is_nearly_named_is_suggested(config: Path, capsys: Capture) -> None:
    """Before any server is asked."""
    assert main(["graph", "show", str(config), "elt"]) == EXIT_FAILED
    assert "E706 the configuration has no graph 'elt'. Did you mean etl?" in capsys.readouterr().err


async def test_a_graph_is_shown_with_the_states_of_a_run(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """As the app has it, in the version of the run; a run of another graph is refused."""
    async with answering(nats_server, tmp_path) as app:
        version = await app.define("g")
        executions = [
            {"x": "api", "node": "api", "state": "SUCCESS"},
            {"x": "end", "node": "end", "state": "ERRORED"},
        ]
        await app.keep("r1", "failed", version=version, **record("failed", executions=executions))
        await app.keep("r2", "failed", graph="other", version="1", **record("failed"))
        shown = await ran(app, "show", "config.yaml", "g", "--run", "r1", "--format", "mermaid")
        assert (shown.code, shown.err) == (EXIT_OK, "")
        assert '"end<br/>app/Api<br/>ERRORED"' in shown.out
        assert "class n1 errored" in shown.out
        text = await ran(app, "show", "config.yaml", "g", "--format", "human")
        assert text.out.startswith(f"graph g, version {version}")
        other = await ran(app, "show", "config.yaml", "g", "--run", "r2")
        assert other.code == EXIT_FAILED
        assert "E602 run r2 is one of graph 'other'. Name that graph." in other.err
