"""The graph of a recipe: each step once, after all that it waits for, and parameters as they were written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from processor.graphs.checks import problems_of
from processor.graphs.definition import ROOT
from processor.graphs.local import JumpingClock, LocalRuns
from processor.graphs.plan import compile_plan
from processor.graphs.progress import FAILED, SUCCESS, Execution, GraphRun, Message
from processor.recipes.definition import Recipe, read_recipe
from processor.recipes.graph import graph_of


def recipe(*steps: dict[str, Any]) -> Recipe:
    written = [{"type": "python", "module": "m", "class": "C", **step} for step in steps]
    made, problems = read_recipe(Path("r.yaml"), {"steps": written})
    assert made is not None, problems
    return made


def run(of: Recipe, failing: Sequence[str] = ()) -> tuple[GraphRun, list[Execution]]:
    """The run of a recipe whose steps do nothing, and what was executed, in that order."""
    graph = graph_of(of)
    assert problems_of(graph) == []
    ran: list[Execution] = []

    async def execute(executions: Sequence[Execution]) -> list[Message]:
        ran.extend(executions)
        error = {"error": {"code": "E716", "text": "it failed"}}
        return [error if each.node.id in failing else {"outputs": {}} for each in executions]

    runs = LocalRuns({graph.name: compile_plan(graph)}, execute, JumpingClock(), lambda: 0.5)
    start = {"v": 1, "t": "start", "run": "run", "graph": graph.name}
    return asyncio.run(runs.run(start)), ran


def names(ran: Sequence[Execution]) -> list[str]:
    return [each.node.id for each in ran]


def test_steps_without_depends_on_are_a_chain() -> None:
    """They run one after the other, by `idx`."""
    of = recipe({"name": "b", "idx": 2}, {"name": "c", "idx": 3}, {"name": "a", "idx": 1})
    graph = graph_of(of)
    assert [(node.identifier, node.next_nodes) for node in graph.nodes] == [
        ("a", ("b",)), ("b", ("c",)), ("c", ()),
    ]  # fmt: skip
    assert list(graph.kinds) == ["r/a", "r/b", "r/c"]
    ended, ran = run(of)
    assert (ended.state, names(ran)) == (SUCCESS, ["a", "b", "c"])


def test_several_steps_with_nothing_before_them_have_one_root() -> None:
    """A node that is no step comes before them, and what waits for several unites them."""
    of = recipe({"name": "a"}, {"name": "b"}, {"name": "c", "depends_on": ["a", "b"]})
    ended, ran = run(of)
    assert (ended.state, names(ran)) == (SUCCESS, ["a", "b", "c"])
    assert ended.executions[ROOT].state == SUCCESS
    assert list(graph_of(of).kinds) == ["r/a", "r/b", "r/c"]


def test_parameters_are_never_references() -> None:
    """What looks like one reaches the step as the text it is."""
    params = {"a": "${{ store.x }}", "b": ["$${{ y", {"c": "${{"}], "n": 1}
    _, [execution] = run(recipe({"name": "a", "params": params}))
    assert execution.inputs == params


def test_a_step_that_fails_ends_the_run() -> None:
    """What follows is not run, and without `retry` it is tried once; with it, so often."""
    first, second = {"name": "a"}, {"name": "b"}
    ended, ran = run(recipe(first, second), failing=["a"])
    assert (ended.state, names(ran)) == (FAILED, ["a"])
    ended, ran = run(recipe({**first, "retry": 2}, second), failing=["a"])
    assert (ended.state, names(ran)) == (FAILED, ["a", "a", "a"])


def test_a_long_recipe_compiles() -> None:
    """Its length needs no depth of calls."""
    written = [{"name": f"s{n}", "depends_on": [f"s{n - 1}"] if n else []} for n in range(900)]
    ended, ran = run(recipe(*written))
    assert (ended.state, len(ran)) == (SUCCESS, 900)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_recipe_runs_each_step_once_after_what_it_waits_for(data: st.DataObject) -> None:
    """Whatever depends on what, however steps are numbered."""
    count = data.draw(st.integers(1, 9))
    order = data.draw(st.permutations(range(count)))
    steps = [
        {
            "name": f"s{number}",
            "idx": order[number],
            "depends_on": [f"s{before}" for before in range(number) if data.draw(st.booleans())],
        }
        for number in range(count)
    ]
    of = recipe(*steps)
    ended, ran = run(of)
    done = names(ran)
    assert (ended.state, sorted(done)) == (SUCCESS, sorted(of.by_name))
    for name, before in of.before.items():
        assert all(done.index(each) < done.index(name) for each in before)
    assert all(of.order.index(each) < of.order.index(name) for name in of.order for each in of.before[name])
