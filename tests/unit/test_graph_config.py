"""The keys `engine`, `nodes` and `graphs`: what they come to, and what is said of what is wrong with them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from processor.config import Config, effective_yaml, fingerprint, load
from processor.errors import Faults
from processor.model import Program
from processor.route import GraphEngine

APP = """\
app: MyProject
nodes:
  lib: nodes/lib.py
  api:
    file: nodes/api.py
    language: python
    outbound: [api.example.com]
    secrets: [api_key]
    settings: {api_endpoint: "https://api.example.com"}
    emits: alerts.*
    concurrency: 8
    limits: {wall_s: 60}
secrets:
  api_key: {env: API_KEY, hosts: api.example.com}
graphs:
  inline:
    nodes:
      - {identifier: a, node_name: Lib, next_nodes: [b]}
      - {identifier: b, node_name: Api, inputs: {n: "${{ a.outputs.n }}"}}
    output: results.{graph}
  filed: {file: graphs/filed.yaml}
"""
FILED = """\
nodes:
  - identifier: one
    node_name: Lib
"""
KEY = base64.b64encode(bytes(32)).decode()


def read(
    folder: Path, text: str = APP, filed: str = FILED, env: dict[str, str] | None = None, **files: str
) -> Config:
    (folder / "nodes").mkdir(exist_ok=True)
    (folder / "graphs").mkdir(exist_ok=True)
    for name in ("lib", "api"):
        (folder / "nodes" / f"{name}.py").write_text(f"# {name}\n")
    (folder / "graphs/filed.yaml").write_text(filed)
    (folder / "app.yaml").write_text(text)
    return load(folder / "app.yaml", {"API_KEY": "a-long-enough-key"} | (env or {}))


def faults(folder: Path, text: str = APP, filed: str = FILED, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(Faults) as caught:
        read(folder, text, filed, env)
    return [str(fault).replace(f"{folder}/", "") for fault in caught.value.faults]


def test_an_app_may_be_graphs_alone(tmp_path: Path) -> None:
    """Groups, graphs and the engine are there as they run, and there is no route."""
    config = read(tmp_path)
    assert config.routes == {}
    assert config.engine == GraphEngine()
    lib, api = config.groups["lib"], config.groups["api"]
    assert lib.program == Program("# lib\n", str(tmp_path / "nodes/lib.py"), mode="nodes")
    assert (lib.is_pool, lib.values, lib.reach.outbound.allowed_domains) == (False, frozenset(), ())
    assert (api.is_pool, api.concurrency, api.partitions, api.limits.wall_s) == (True, 8, 64, 60)
    assert (api.route_name, api.program.language, api.emits) == ("nodes-api", "python", ("alerts.*",))
    assert api.reach.outbound.allowed_domains == ("api.example.com",)
    assert [secret.value for secret in api.reach.secrets] == ["a-long-enough-key"]
    assert api.values == {"api_key", "api_endpoint"}
    assert [node.kind for node in config.graphs["inline"].nodes] == ["MyProject/Lib", "MyProject/Api"]
    assert config.graphs["filed"].name == "filed"


def test_without_graphs_there_is_no_engine(tmp_path: Path) -> None:
    """`engine: {}` alone is an app whose graphs come from clients."""
    route = "app: a\nroutes: {r: {input: x, code: 'class Runnable: pass'}}\n"
    assert not read(tmp_path, route).has_engine
    assert read(tmp_path, route).engine is None
    assert read(tmp_path, "app: a\nengine: {}\n").engine == GraphEngine()
    assert faults(tmp_path, "app: a\n") == [
        "app.yaml:1:1 E105 routes is missing: the routes by name (or `graphs`, `recipes` or `engine: {}`)"
    ]


def test_the_engine_is_as_it_is_set(tmp_path: Path) -> None:
    """Times with units; the key from the environment, in one of two forms."""
    text = "app: a\nengine: {partitions: 8, concurrency: 4, keep: {failed: 90d}, secrets_key: {env: K}}\n"
    for key in (KEY, bytes(32).hex()):
        config = read(tmp_path, text, env={"K": key})
        assert config.engine == GraphEngine(8, 4, 7 * 86_400, 90 * 86_400, 7 * 86_400, key)
        assert key not in repr(config.engine) + repr(config) + effective_yaml(config)
    for key in ("short", "x" * 44):
        (fault,) = faults(tmp_path, text, env={"K": key})
        assert "E108 engine.secrets_key.env does not hold 32 bytes" in fault
        assert key not in fault
    assert "E108 engine.secrets_key.env is K, which is not set" in faults(tmp_path, text)[0]
    (fault,) = faults(tmp_path, "app: a\nengine: {secrets_key: {}}\n")
    assert "E106 engine.secrets_key has neither env and file" in fault


ROUTE = "input: x, code: 'class Runnable: pass'"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("next_nodes: [b]", "next_node: [b]", ":18:41 E701 graphs.inline: nodes[0].next_node is no key"),
        ("next_nodes: [b]", "next_nodes: [b, c]", ":18:57 E702 graphs.inline: 'a' is followed by 'c'"),
        ("a.outputs.n", "a.output.n", ":19:50 E703 graphs.inline: nodes[1].inputs.n: '${{ a.output.n"),
        ("  inline:", "  in line:", ":16:3 E104 the name 'in line' cannot be used"),
        (
            "results.{graph}",
            "alerts.done",
            ":20:5 E106 graphs.inline.output 'alerts.done' overlaps nodes.api",
        ),
        ("results.{graph}", "p.MyProject.x", ":20:5 E106 graphs.inline.output 'p.MyProject.x' overlaps"),
        ("  filed: {", "  filed: {nodes: [], ", ":21:11 E106 graphs.filed.nodes has no effect beside `file`"),
        ("graphs/filed", "graphs/field", "graphs/field.yaml:1:1 E107 cannot be read"),
        ("nodes/lib.py", "nodes/lob.py", ":3:3 E107 nodes.lib.file is nodes/lob.py, which cannot be read"),
        ("concurrency: 8", "concurency: 8", ":11:5 E103 nodes.api.concurency is not a key; did you mean"),
        ("concurrency: 8", "where: inline", ":11:5 E106 nodes.api.where is inline, and the group lists"),
        ("concurrency: 8", "concurrency: 65", ":11:5 E104 nodes.api.concurrency is 65: it must be at most"),
        ("concurrency: 8", "concurrency: 8\n    partitions: 4", ":11:5 E106 nodes.api.concurrency is 8, but"),
        ("language: python", "packages: [numpy]", ":6:5 E106 nodes.api.packages has no effect"),
        ("secrets: [api_key]", "secrets: [key]", ":8:5 E106 nodes.api.secrets names 'key', which is not"),
        ("api_endpoint:", "api_key:", ":9:16 E106 nodes.api.settings.api_key is a secret of the group, too"),
        ("nodes/lib.py", "{file: nodes/lib.py, partitions: 8}", ":3:29 E106 nodes.lib.partitions has no"),
        (
            "graphs:\n",
            f"routes: {{graphs: {{{ROUTE}}}}}\ngraphs:\n",
            ":15:10 E106 routes.graphs has the name",
        ),
        ("graphs:\n", f"routes: {{nodes-x: {{{ROUTE}}}}}\ngraphs:\n", ":15:10 E106 routes.nodes-x has the"),
        ("graphs:\n", "graphs:\n  odd: 3\n", ":16:3 E701 graphs.odd: the graph is 3: it must be a mapping."),
    ],
)
def test_a_fault_stands_at_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    """Of the file that it is in, and alone."""
    assert old in APP
    (fault,) = faults(tmp_path, APP.replace(old, new))
    assert says in fault


def test_faults_of_a_graph_in_its_own_file_stand_there(tmp_path: Path) -> None:
    """Of its keys, and of what it is as a whole; in one go with those of the configuration."""
    filed = FILED.replace("one", "store") + "retry_polcy: {}\n"
    assert faults(tmp_path, APP.replace("[b]", "[x]"), filed) == [
        "app.yaml:18:54 E702 graphs.inline: 'a' is followed by 'x', and there is no such node; there are a,"
        " b.",
        "graphs/filed.yaml:2:5 E702 graphs.filed: 'store' is a reserved identifier. Rename the node.",
        "graphs/filed.yaml:4:1 E701 graphs.filed: retry_polcy is no key; did you mean 'retry_policy'?",
    ]


def test_graphs_in_a_circle_are_a_fault(tmp_path: Path) -> None:
    """One that runs another which runs it would never end."""
    filed = FILED.replace("Lib", "graph:inline")
    text = APP.replace('node_name: Api, inputs: {n: "${{ a.outputs.n }}"}', "node_name: graph:filed")
    (fault,) = faults(tmp_path, text, filed)
    assert "E702 graphs.inline: 'inline' -> 'filed' -> 'inline' is a circle of graphs" in fault


def test_files_of_nodes_and_graphs_are_watched(tmp_path: Path) -> None:
    """A change of one changes the configuration, and its fingerprint."""
    before = read(tmp_path)
    watched = {file.relative_to(tmp_path) for file in before.files}
    assert {Path("nodes/lib.py"), Path("nodes/api.py"), Path("graphs/filed.yaml")} <= watched
    marks = {fingerprint(before)}
    marks.add(fingerprint(read(tmp_path, filed=FILED + "timeout_s: 5\n")))
    marks.add(fingerprint(read(tmp_path, APP.replace("wall_s: 60", "wall_s: 61"))))
    marks.add(fingerprint(read(tmp_path, APP + "engine: {concurrency: 3}\n")))
    (tmp_path / "nodes/lib.py").write_text("# other\n")
    marks.add(fingerprint(load(tmp_path / "app.yaml", {"API_KEY": "a-long-enough-key"})))
    assert len(marks) == 5


def test_a_group_is_under_the_policies_of_the_app(tmp_path: Path) -> None:
    """And under its own; what policies demand to be written down is written down of it."""
    for name in ("all", "own"):
        line = '[[capability]]\nname = "http"\nresource = "https://api.example.com/**"\nmethods = ["get"]\n'
        (tmp_path / f"{name}.toml").write_text(line)
    text = APP.replace("    emits: alerts.*\n", "    policy: own.toml\n")
    plain = read(tmp_path, text)
    assert [len(group.policy.policies) for group in plain.groups.values()] == [0, 1]
    config = read(tmp_path, text + "policy: all.toml\n")
    assert [len(group.policy.policies) for group in config.groups.values()] == [1, 2]
    assert {group.audit.level for group in config.groups.values()} == {"calls"}
