"""A graph compiled for running: what comes after a node, what it unites, what of its outputs is used.

`compile_plan` takes a definition in which `checks` found no fault, and is called once for each version; the
machine looks things up here and computes nothing about the shape of a graph by itself. Everything is frozen.

Words: the scope of (A, U), where U unites A, is what lies between: the nodes below A that lead to U. A branch
says by which elements and edges an execution was reached (see `machine`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from processor.graphs.definition import NESTED, ROOT, WAIT, GraphDefinition, NodeDefinition
from processor.graphs.template import Reference, ValueTemplate, parse
from processor.model import RetryPolicy


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node as the machine sees it.

    `kind` is `namespace/Name`, `graph:<name>` or `Wait`. `next` are the nodes that run for each of its
    outputs, and `unite_next` the uniting nodes that its outputs reach. `scopes` are the (A, U) that it lies
    in, inner ones first, and `uniters` the nodes that unite it. `used` are the fields of its outputs that
    something refers to, and `gathered` those of them that are looked at from behind a node that unites
    branches, or by the outputs of the graph.
    """

    id: str
    kind: str
    inputs: Mapping[str, ValueTemplate]
    next: tuple[str, ...]
    unite_next: tuple[str, ...]
    unites: tuple[str, str] | None  # (ancestor, strategy)
    parents: tuple[str, ...]
    scopes: tuple[tuple[str, str], ...]
    uniters: tuple[str, ...]
    used: frozenset[str]
    gathered: frozenset[str]
    is_shown: bool  # its outputs are kept for people, as far as they are small
    retry: RetryPolicy
    timeout_s: float | None
    # What nodes below it look at that is not below it: what a slice of its outputs has to know.
    outer: tuple[Reference, ...]
    rank: int  # its place in `Plan.order`

    @property
    def runs_for_each(self) -> bool:
        """Whether it has several parents and runs once for each of them."""
        return len(self.parents) > 1 and self.unites is None

    @property
    def absorbs(self) -> bool:
        """Whether it unites what succeeded, and takes the errors of its scope."""
        return self.unites is not None and self.unites[1] == "ALL_DONE"

    @property
    def graph(self) -> str | None:
        """The name of the graph that it runs, if it does."""
        return self.kind.removeprefix(NESTED) if self.kind.startswith(NESTED) else None

    @property
    def is_wait(self) -> bool:
        """Whether it waits for a signal."""
        return self.kind == WAIT

    @property
    def is_empty(self) -> bool:
        """Whether it does nothing."""
        return self.kind == ROOT


@dataclass(frozen=True)
class Plan:
    """One version of a graph, compiled; `order` are the identifiers, each after all that lead to it."""

    name: str
    version: str
    nodes: Mapping[str, NodePlan]
    root: str
    order: tuple[str, ...]
    below: Mapping[str, frozenset[str]]  # what comes after each node, at any distance
    # The nodes that run for each element if a node returns a list: less what is behind a unite of it.
    spread: Mapping[str, frozenset[str]]
    between: Mapping[tuple[str, str], frozenset[str]]  # the nodes of each scope
    required_keys: tuple[str, ...]
    default_values: Mapping[str, Any]
    history: int  # changes of each key of the store that are remembered
    outputs: Mapping[str, ValueTemplate]
    on_error: str
    timeout_s: float | None
    strings_only: bool
    fan_out: int
    executions: int

    def ignored(self, inputs: Iterable[str]) -> list[str]:
        """The inputs of a trigger that are left out: those that the definition of the first node lacks."""
        return [name for name in inputs if name not in self.nodes[self.root].inputs]


def compile_plan(definition: GraphDefinition) -> Plan:
    """The plan of a definition that `checks` found no fault in; of another one anything may be raised."""
    shape = _Shape(definition.nodes)
    inputs = {
        node.identifier: {key: parse(value) for key, value in node.inputs.items()}
        for node in definition.nodes
    }
    outputs = {key: parse(value) for key, value in definition.outputs.items()}
    looked_at = {node: list(_references(templates.values())) for node, templates in inputs.items()}
    used = _by_node(reference for found in looked_at.values() for reference in found)
    for reference in _references(outputs.values()):
        used.setdefault(reference.node, set()).add(reference.field)
    gathered = _by_node(_references(outputs.values()))
    for node, found in looked_at.items():
        for reference in found:
            if shape.is_seen_united(node, reference.node):
                gathered.setdefault(reference.node, set()).add(reference.field)
    ranks = {node: rank for rank, node in enumerate(shape.order)}
    nodes = {}
    for each in definition.nodes:
        id = each.identifier
        outer = {
            r: None
            for below in shape.below[id]
            for r in looked_at[below]
            if r.node and r.node not in shape.below[id]
        }
        nodes[id] = NodePlan(
            id=id,
            kind=each.kind,
            inputs=inputs[id],
            next=tuple(after for after in each.next_nodes if after not in shape.united),
            unite_next=tuple(after for after in each.next_nodes if after in shape.united),
            unites=(each.unites.identifier, each.unites.strategy) if each.unites else None,
            parents=shape.parents[id],
            scopes=tuple(pair for pair in shape.pairs if id in shape.between[pair]),
            uniters=tuple(uniter for ancestor, uniter in shape.pairs if ancestor == id),
            used=frozenset(used.get(id, ())),
            gathered=frozenset(gathered.get(id, ())),
            is_shown=definition.keeps_outputs
            or (not each.next_nodes and id not in {ancestor for ancestor, _ in shape.pairs}),
            retry=definition.retry_of(each),
            timeout_s=each.timeout_s,
            outer=tuple(r for r in outer if r.node != id),
            rank=ranks[id],
        )
    return Plan(
        name=definition.name,
        version=definition.version,
        nodes=nodes,
        root=shape.root,
        order=shape.order,
        below=shape.below,
        spread=shape.spread,
        between=shape.between,
        required_keys=tuple(definition.store_config.required_keys),
        default_values=definition.store_config.default_values,
        history=definition.store_config.history,
        outputs=outputs,
        on_error=definition.on_error,
        timeout_s=definition.timeout_s,
        strings_only=definition.strings_only,
        fan_out=definition.limits.fan_out,
        executions=definition.limits.executions,
    )


class _Shape:
    """What follows from the edges of a graph alone."""

    def __init__(self, nodes: Iterable[NodeDefinition]) -> None:
        following = {node.identifier: node.next_nodes for node in nodes}
        self.united = {node.identifier: node.unites.identifier for node in nodes if node.unites}
        self.parents = {
            id: tuple(other for other, after in following.items() if id in after) for id in following
        }
        self.root = next(id for id, before in self.parents.items() if not before)
        self.order = tuple(_ordered(following, self.parents))
        self.below: dict[str, frozenset[str]] = {}
        for id in reversed(self.order):
            self.below[id] = frozenset().union(*({after} | self.below[after] for after in following[id]))
        # Inner scopes come first: the one that unites them lies after them.
        self.pairs = [(self.united[id], id) for id in self.order if id in self.united]
        self.between = {
            (ancestor, uniter): frozenset(id for id in self.below[ancestor] if uniter in self.below[id])
            for ancestor, uniter in self.pairs
        }
        self.spread = {id: self._spread(id, following) for id in following}

    def _spread(self, id: str, following: Mapping[str, Iterable[str]]) -> frozenset[str]:
        """What is reached from a node by edges that do not lead into a unite of it, or of one above it."""
        found: set[str] = set()
        waiting = [id]
        while waiting:
            for after in following[waiting.pop()]:
                top = self.united.get(after)
                is_closed = top is not None and (top == id or id in self.between[top, after])
                if after not in found and not is_closed:
                    found.add(after)
                    waiting.append(after)
        return frozenset(found)

    def is_seen_united(self, node: str, other: str) -> bool:
        """Whether `node`, or one before it, unites a scope that `other` is at the top of, or inside of."""
        return any(
            (node == uniter or node in self.below[uniter])
            and (other == ancestor or other in self.between[ancestor, uniter])
            for ancestor, uniter in self.pairs
        )


def _ordered(
    following: Mapping[str, tuple[str, ...]], parents: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    waiting = {id: len(before) for id, before in parents.items()}
    free = [id for id, count in waiting.items() if not count]
    while free:
        id = free.pop(0)
        yield id
        for after in following[id]:
            waiting[after] -= 1
            if not waiting[after]:
                free.append(after)


def _references(templates: Iterable[ValueTemplate]) -> Iterator[Reference]:
    for template in templates:
        yield from template.references


def _by_node(references: Iterable[Reference]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for reference in references:
        found.setdefault(reference.node, set()).add(reference.field)
    return found
