"""Recipes in a configuration: what they become, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from processor.config import Config, effective_yaml, fingerprint, load
from processor.errors import Faults
from processor.graphs.checks import problems_of
from processor.graphs.definition import GraphDefinition
from tests.integration.test_recipe_routes import MAIN, write_tree

TOP = "app: shop\n"
TWO = """
steps:
  - {name: a, type: python, module: orchestrator.steps, function: quiet, params: {n: 1}}
  - {name: b, type: python, module: orchestrator.steps, function: quiet, params: {n: 1}}
  - {name: c, type: python, module: orchestrator.steps, function: quiet, depends_on: [a, b]}
"""


def loaded(folder: Path, keys: str, **recipes: str) -> Config:
    write_tree(folder, **recipes)
    path = folder / "config.yaml"
    path.write_text(TOP + keys)
    return load(path, {})


def faults(folder: Path, keys: str, **recipes: str) -> list[str]:
    with pytest.raises(Faults) as caught:
        loaded(folder, keys, **recipes)
    return [
        f"{Path(each.file).name}:{each.line}:{each.column} {each.code} {each.text}"
        for each in caught.value.faults
    ]


def test_a_recipe_is_a_graph_with_groups_of_its_own(tmp_path: Path) -> None:
    """Its python steps run with their runs, its shell steps in a pool; all have the recipe's name."""
    config = loaded(tmp_path, "recipes: {daily: {file: main.yaml, shell: on, history: 5}}\n")
    graph = config.graphs["daily"]
    assert (graph.name, list(graph.kinds)) == ("daily", ["daily/measure", "daily/count", "daily/judge"])
    assert (graph.store_config.history, graph.test_meta) == (5, {"test_id": "HW7", "tester": "ann"})
    assert problems_of(graph) == []
    assert GraphDefinition.of_document(graph.document) == graph
    python, shell = config.groups.values()
    assert (python.name, python.is_pool, python.program.mode) == ("recipe-daily", False, "steps")
    assert (shell.route_name, shell.is_pool, shell.is_shell) == ("nodes-shell-daily", True, True)
    assert shell.steps is not None
    assert {name: step.argv for name, step in shell.steps.steps.items()} == {
        "count": ("orchestrator/count.sh",)
    }
    assert config.has_engine
    assert (python.reads_history, shell.reads_history) == (True, False)  # `judge` asks for it


def test_with_hosts_to_ask_its_python_steps_are_a_pool(tmp_path: Path) -> None:
    """They have an effect outside, and so a commit of their own."""
    keys = "recipes: {daily: {file: main.yaml, shell: on, outbound: [api.example.com], concurrency: 3}}\n"
    python, shell = loaded(tmp_path, keys).groups.values()
    assert (python.route_name, python.concurrency, shell.concurrency) == ("nodes-recipe-daily", 3, 3)
    assert python.reach.outbound.allowed_domains == ("api.example.com",)


def test_a_step_that_may_take_long_has_a_pool(tmp_path: Path) -> None:
    """Its guest gets as much time as the longest `timeout_s`, unless `limits` says another."""
    recipe = MAIN.replace("class: Judge", "class: Judge, timeout_s: 90")
    keys = "recipes: {daily: {file: main.yaml, shell: on%s}}\n"
    for more, wall_s, cpu_s, is_pool in (
        ("", 90, 90, True),
        (", limits: {wall_s: 8}", 8, 90, False),
        (", limits: {wall_s: 30, cpu_s: 2}", 30, 2, True),
    ):
        python, _ = loaded(tmp_path, keys % more, main=recipe).groups.values()
        assert (python.limits.wall_s, python.limits.cpu_s, python.is_pool) == (wall_s, cpu_s, is_pool)
    slow = "steps: [{name: a, type: python, module: orchestrator.steps, function: quiet, timeout_s: 11}]"
    [pool] = loaded(tmp_path, "recipes: {d: {file: s.yaml, concurrency: 2}}\n", s=slow).groups.values()
    assert (pool.is_pool, pool.concurrency) == (True, 2)
    python, _ = loaded(tmp_path, keys % "").groups.values()
    assert (python.limits.wall_s, python.limits.cpu_s, python.is_pool) == (10, 5, False)


def test_shell_steps_are_off_until_they_are_allowed(tmp_path: Path) -> None:
    """The first of them is named, with the line that allows them."""
    assert faults(tmp_path, "recipes:\n  daily: main.yaml\n") == [
        "config.yaml:3:3 E715 step 'count' of recipes.daily is a shell step. Allow it with `shell: on`; it"
        " runs in a cell without network"
    ]


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("recipes: {d: gone.yaml}", "gone.yaml:1:1 E713 cannot be read"),
        ("recipes: {d: {file: py.yaml, shel: on}}", "E103 recipes.d.shel is not a key; did you"),
        ("recipes: {d: {file: py.yaml, packages: [numpy]}}", "E106 recipes.d.packages has no effect"),
        ("recipes: {d: {file: py.yaml, concurrency: 2}}", "E106 recipes.d.concurrency has no effect"),
        ("recipes: {d: {file: sh.yaml, shell: on, outbound: [a.b]}}", "E106 recipes.d.outbound has no"),
        ("recipes: {d: py.yaml}\ngraphs: {d: {nodes: [{identifier: a, node_name: A}]}}",
         "E106 recipes.d and graphs.d have one name"),
        ("recipes: {d: py.yaml}\nnodes: {recipe-d: nodes.py}", "E106 nodes.recipe-d has the name"),
        ("recipes: {d: py.yaml}\nroutes: {nodes-shell-d: {input: a, code: x}}", "routes.nodes-shell-d has"),
        ("recipes: {d: {file: py.yaml, output: 'p.shop.>'}}", "E104 recipes.d.output"),
        ("recipes: {d: {file: py.yaml, output: 'a.{state}', events: a.x}}", "E106 recipes.d.events 'a.x'"),
        ("recipes: {d: {file: py.yaml, triggers: [{}]}}", "E104 recipes.d.triggers.0"),
        ("recipes: {d: {file: main.yaml, shell: on, triggers: [{subject: x, inputs: {serail: 1}}]}}",
         "recipes.d.triggers.0.inputs.serail is no parameter of step 'measure'; did you mean 'serial'?"),
        ("recipes: {d: {file: two.yaml, triggers: [{subject: x, inputs: {n: 1}}]}}",
         "recipes.d.triggers.0.inputs has no effect: several steps begin (a, b); put one before them"),
        ("recipes: {'a b': py.yaml}", "E104 the name 'a b' cannot be used"),
        ("recipes: {d: bad.yaml}", "bad.yaml:2:52 E713 steps[0].depends_on names 'nope', and there is"),
        ("recipes: {d: {file: py.yaml, history: -1}}", "E104 recipes.d.history is -1"),
    ],
)  # fmt: skip
def test_what_contradicts_is_named_where_it_stands(tmp_path: Path, keys: str, fault: str) -> None:
    """In the configuration, or in the recipe, with what to do."""
    quiet = "{name: quiet, type: python, module: orchestrator.steps, function: quiet"
    (tmp_path / "nodes.py").write_text("class A: pass\n")
    found = faults(
        tmp_path,
        keys + "\n",
        py=f"steps: [{quiet}}}]",
        two=TWO,
        sh="steps: [{name: a, type: shell, cmd: 'true'}]",
        bad="steps:\n- {name: a, type: shell, cmd: 'true', depends_on: [nope]}",
    )
    assert any(fault in each for each in found), found


def test_each_fault_of_a_recipe_and_of_its_modules_is_found_at_once(tmp_path: Path) -> None:
    """Also of two recipes, beside those of the configuration."""
    recipe = "steps: [{name: a, type: python, module: orchestrator.steps, class: Gone}]"
    found = faults(
        tmp_path, "recipes: {one: one.yaml, two: two.yaml}\nnope: 1\n", one=recipe, two="steps: []"
    )
    assert [each.split(" ")[1] for each in found if "nope" in each] == ["E103"]
    found = faults(tmp_path, "recipes: {one: one.yaml, two: two.yaml}\n", one=recipe, two="steps: []")
    assert len(found) == 2
    assert any("Gone" in each for each in found)


def test_what_a_recipe_says_counts_for_the_version_of_the_configuration(tmp_path: Path) -> None:
    """Its steps, its modules and its keys; not where its file lies."""
    keys = "recipes: {daily: {file: main.yaml, shell: on}}\n"
    first = fingerprint(loaded(tmp_path, keys))
    assert fingerprint(loaded(tmp_path, keys.replace("main", "copy"), copy=MAIN)) == first
    others = [
        fingerprint(loaded(tmp_path, keys, main=MAIN.replace("A-1", "A-2"))),
        fingerprint(loaded(tmp_path, keys, main=MAIN.replace("list.txt", "other.txt"))),
        fingerprint(loaded(tmp_path, keys.replace("shell: on", "shell: on, history: 7"))),
    ]
    config = loaded(tmp_path, keys)
    steps = tmp_path / "orchestrator" / "steps.py"
    steps.write_text(steps.read_text() + "\nMORE = 1\n")
    others.append(fingerprint(load(config.path, {})))
    assert len({first, *others}) == 5
    assert {tmp_path / "main.yaml", steps} <= set(config.files)
    assert "main.yaml" in effective_yaml(config)


def test_a_trigger_of_a_recipe_is_one_of_its_graph(tmp_path: Path) -> None:
    """With its inputs, which are parameters of the first step."""
    keys = """
recipes:
  daily:
    file: main.yaml
    shell: on
    timeout_s: 60
    output: results.daily
    triggers: [{schedule: "0 3 * * *"}, {subject: dut.ready, inputs: {serial: "${{ document.serial }}"}}]
"""
    graph = loaded(tmp_path, keys).graphs["daily"]
    assert [each.when or each.subject for each in graph.triggers] == ["0 0 3 * * *", "dut.ready"]
    assert (graph.timeout_s, graph.output and graph.output.subject) == (60, "results.daily")
    assert orjson.loads(graph.document)["triggers"][1]["inputs"] == {"serial": "${{ document.serial }}"}
