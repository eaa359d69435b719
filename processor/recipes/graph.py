"""The graph that a recipe becomes: a node for each step, by its name, and one root before them.

The machine of graphs decides the rest: what is ready, what is tried again, and that a step which failed ends
the run. Who runs it gives each execution to the step that its node is named after. The node `ROOT` is there
only where several steps have nothing before them; it is no step, and nobody executes it.

Invariants: a step runs once, after every step that it waits for; what is in parameters is never taken for a
reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from processor.graphs.definition import ROOT, Graph, GraphDefinition, RetryDefinition
from processor.graphs.pictures import States, mermaid, svg
from processor.graphs.template import literal
from processor.recipes.definition import Recipe


def graph_of(recipe: Recipe) -> GraphDefinition:
    """The graph of a recipe, by its name; the kinds of its nodes are `<recipe>/<step>`."""
    before = _needed(recipe)
    first = [step.name for step in recipe.steps if not before[step.name]]
    if len(first) > 1:
        before = {name: names or (ROOT,) for name, names in before.items()} | {ROOT: ()}
        root = ROOT
    else:
        [root] = first
    following: dict[str, list[str]] = {name: [] for name in before}
    for step in recipe.steps:
        for name in before[step.name]:
            following[name].append(step.name)
    nodes: list[dict[str, Any]] = [
        {
            "identifier": step.name,
            "node_name": step.name,
            "inputs": literal(dict(step.params or step.args)),
            "next_nodes": following[step.name],
            # All that is before it lies between the root and it.
            "unites": {"identifier": root} if len(before[step.name]) > 1 else None,
            "retry": step.retry and step.retry.model_dump(exclude_none=True),
            "timeout_s": step.timeout_s,
        }
        for step in recipe.steps
    ]
    if root == ROOT:
        nodes.insert(0, {"identifier": ROOT, "node_name": ROOT, "next_nodes": following[ROOT]})
    graph = Graph.model_validate(
        {"nodes": nodes, "retry_policy": RetryDefinition(max_retries=0), "on_error": "stop"}
    )
    return GraphDefinition.named(recipe.name, graph, recipe.name)


def picture_of(
    recipe: Recipe, form: Literal["mermaid", "svg"], states: States | None = None, title: str = ""
) -> str:
    """The steps of a recipe as a picture, with what each runs, and the states of a run if there are any."""
    graph = graph_of(recipe)
    nodes = tuple(node for node in graph.nodes if node.identifier != ROOT)
    graph = graph.model_copy(update={"nodes": nodes})
    notes = {step.name: step.runs for step in recipe.steps}
    if form == "mermaid":
        return mermaid(graph, states, notes)
    return svg(graph, states, title or f"recipe {recipe.name}", notes)


def _needed(recipe: Recipe) -> Mapping[str, tuple[str, ...]]:
    """The steps that each step waits for, less those that another of them waits for itself."""
    earlier: dict[str, set[str]] = {}
    for name in recipe.order:
        before = recipe.before[name]
        earlier[name] = set(before).union(*(earlier[each] for each in before))
    return {
        name: tuple(each for each in names if not any(each in earlier[other] for other in names))
        for name, names in recipe.before.items()
    }
