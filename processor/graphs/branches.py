"""The names of executions, and what an execution finds when it looks back along its branch.

`x` is the identifier of a node and its branch: `/<fan-out>.<index>` for each fan-out on the way and
`/~<parent>` for each node on it that runs once for each of its parents (`leaf/split.3/sub.0`). What unites A
runs in the branch of A. So a name says by itself what was before it: the way back is computed and not kept.

Nothing here changes a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from processor.graphs.plan import NodePlan, Plan
from processor.graphs.progress import GraphRun, Progress
from processor.graphs.sizes import COLLECTED_BYTES, TooMuch
from processor.graphs.template import Reference

Order = tuple[tuple[int, int], ...]


class MissingValue(Exception):
    """A reference that finds nothing; the text says which."""


def way_back(plan: Plan, node: NodePlan, branch: str) -> Iterator[tuple[NodePlan, str, int | None, NodePlan]]:
    """Each execution before this one, the nearest first: node, branch, and which of its outputs led on.

    The index is None where the execution had one output, or all of them were united. Last comes the node
    behind it on the way, which is where a scope ends that was united.
    """
    while True:
        behind = node
        if node.unites is not None:
            node, index = plan.nodes[node.unites[0]], None
        else:
            if not node.parents:
                return
            parent = node.parents[0]
            if node.runs_for_each:
                branch, _, parent = branch.rpartition("/~")
            node = plan.nodes[parent]
            branch, index = _off(branch, parent)
        yield node, branch, index, behind


def _off(branch: str, node: str) -> tuple[str, int | None]:
    """A branch less its last step, if that is an output of the node."""
    before, slash, step = branch.rpartition("/")
    if slash and step.startswith(node) and step[len(node) : len(node) + 1] == ".":
        return before, int(step[len(node) + 1 :])
    return branch, None


def order_of(plan: Plan, branch: str) -> Order:
    """What sorts branches: their steps by place in the graph, and then by number."""
    steps = []
    for step in branch.split("/")[1:]:
        node, _, index = step.rpartition(".")
        steps.append((plan.nodes[node].rank, int(index)) if node else (plan.nodes[index[1:]].rank, -1))
    return tuple(steps)


def holds(plan: Plan, node: NodePlan, branch: str) -> tuple[str, ...]:
    """The scopes that this execution keeps open, inner ones first."""
    if not node.scopes:
        return ()
    tops = {ancestor for ancestor, _ in node.scopes}
    branches = {before.id: at for before, at, _, _ in way_back(plan, node, branch) if before.id in tops}
    return tuple(
        f"{ancestor}{branches[ancestor]}|{uniter}" for ancestor, uniter in node.scopes if ancestor in branches
    )


def look_back(plan: Plan, run: GraphRun, node: NodePlan, branch: str, reference: Reference) -> Any:
    """What a reference of this execution finds. Raises MissingValue."""
    wanted, field = reference.node, reference.field
    if not wanted:
        return of_store(run, field)
    outside = run.slice.x if run.slice else None
    for before, at, index, behind in way_back(plan, node, branch):
        if behind.unites is not None and wanted in plan.between[before.id, behind.id]:
            return gather(plan, run, f"{before.id}{at}|{behind.id}", reference)
        if before.id == wanted:
            return _output(run, before.id + at, index, field)
        if outside is not None and before.id + at == outside:
            return _seen(run, reference)
    raise MissingValue(f"{reference} is not on the way to this execution")


def of_store(run: GraphRun, key: str) -> Any:
    """The value of a key of the store. Raises MissingValue."""
    if key not in run.store:
        raise MissingValue(f"the store has no {key!r}")
    return run.store[key]


def _seen(run: GraphRun, reference: Reference) -> Any:
    assert run.slice is not None
    try:
        return run.slice.seen[reference.node][reference.field]
    except KeyError:
        raise MissingValue(f"{reference} has no value here") from None


def _output(run: GraphRun, x: str, index: int | None, field: str) -> Any:
    outputs: Any
    if run.slice is not None and x == run.slice.x:
        outputs = run.slice.outputs[(index or 0) - run.slice.first]
    else:
        outputs = run.executions[x].outputs
        if index is not None:
            outputs = outputs[index]
    if isinstance(outputs, list):
        return [_field(each, x, field) for each in outputs]
    return _field(outputs, x, field)


def _field(outputs: Any, x: str, field: str) -> Any:
    try:
        return outputs[field]
    except (KeyError, TypeError):
        raise MissingValue(f"{x} has no output {field!r}") from None


def gather(plan: Plan, run: GraphRun, scope: str | None, reference: Reference) -> Any:
    """The values of a field of all executions of a node in a scope; without one, of the whole run.

    They are a list in the order of branches where a fan-out lies between that was not united before the node,
    or the node runs for each of its parents; else the one value, or None where there is none.
    """
    node = plan.nodes[reference.node]
    found: list[tuple[Order, list[Any]]] = []
    is_many = node.runs_for_each
    for each in run.gathered.get(node.id, ()):
        if each.is_done and (scope is None or scope in each.holds):
            is_many = is_many or each.width is not None
            outputs = each.outputs if each.width is not None else [each.outputs]
            found.append((order_of(plan, each.branch), [_field(o, each.x, reference.field) for o in outputs]))
    for fan in run.fans:
        inside = scope is None or scope in fan.holds or scope.partition("|")[0] == fan.x
        if inside and node.id in plan.spread[fan.node.id]:
            is_many = True
            found += _sliced(plan, fan, reference)
    if not is_many and len(found) < 2:
        return found[0][1][0] if found else None
    found.sort(key=lambda each: each[0])
    return [value for _, values in found for value in values]


def _sliced(plan: Plan, fan: Progress, reference: Reference) -> Iterator[tuple[Order, list[Any]]]:
    """What the slices of a fan-out reported of a node."""
    if fan.fan is None:
        return
    before = order_of(plan, fan.branch)
    for first, report in fan.fan.done.items():
        if report["ok"] is None:
            raise TooMuch(
                f"what a slice of {fan.x} has for {reference} and the like is more than {COLLECTED_BYTES}"
                " bytes. Pass references to data instead of the data"
            )
        values = []
        for element in report["ok"]:
            outputs = element.get(reference.node, [])
            for each in outputs if isinstance(outputs, list) else [outputs]:
                values.append(_field(each, reference.node, reference.field))
        yield (*before, (fan.node.rank, first)), values


def reported(plan: Plan, run: GraphRun) -> list[dict[str, Any]]:
    """What a slice tells of its executions: for each of its outputs, by node, what others look at."""
    part = run.slice
    assert part is not None
    elements: dict[int, dict[str, list[tuple[Order, list[Any]]]]] = {}
    before = len(part.x) + 2  # as long as the branch of the fan-out, "/", its identifier and "."

    def element(branch: str) -> int:
        return int(branch[before:].partition("/")[0])

    for id, executions in run.gathered.items():
        fields = plan.nodes[id].gathered
        for each in executions:
            if each.is_done:
                outputs = each.outputs if each.width is not None else [each.outputs]
                kept = [{name: o[name] for name in fields if name in o} for o in outputs]
                place = elements.setdefault(element(each.branch), {}).setdefault(id, [])
                place.append((order_of(plan, each.branch), kept))
    for fan in run.fans:
        for first, report in fan.fan.done.items() if fan.fan else ():
            order = (*order_of(plan, fan.branch), (fan.node.rank, first))
            for below in report["ok"] or ():
                for id, outputs in below.items():
                    place = elements.setdefault(element(fan.branch), {}).setdefault(id, [])
                    place.append((order, outputs if isinstance(outputs, list) else [outputs]))
    return [{id: _joined(found) for id, found in elements[number].items()} for number in sorted(elements)]


def _joined(found: list[tuple[Order, list[Any]]]) -> Any:
    found.sort(key=lambda each: each[0])
    outputs = [each for _, several in found for each in several]
    return outputs[0] if len(outputs) == 1 else outputs
