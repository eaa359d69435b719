"""Trying again, by hand, what failed: in a run that goes on, and in one that has ended.

What is ERRORED or CANCELLED becomes ready as a new attempt with its tries counted anew, in slices and child
runs too, and unites that were SKIPPED are armed again. With what came of it, everything after an execution is
taken back first, whatever its state. What counters say afterwards follows from the executions alone, so they
are counted anew and not corrected.
"""

from __future__ import annotations

from processor.graphs.advance import Advance, reach
from processor.graphs.branches import way_back
from processor.graphs.plan import Plan
from processor.graphs.progress import (
    CANCELLED,
    CREATED,
    ERRORED,
    PRUNED,
    QUEUED,
    RUNNING,
    SUCCESS,
    GraphRun,
    Progress,
)
from processor.graphs.slices import count_report, is_outer, order, slice_of


def retry(step: Advance, x: object, *, is_all: bool) -> bool:
    """Begin again what failed, or just `x`; with `is_all` also what came of it. False: there is nothing."""
    run = step.run
    if x is None:
        chosen = {each.x: each for each in run.executions.values() if _has_failed(each)}
        return _begin_again(step, chosen)
    each = run.executions.get(x) if isinstance(x, str) else None
    if each is None:
        return _begin_in_slice(step, str(x), is_all=is_all)
    if is_all and each.attempt and not each.is_open:
        _take_back(step, {each.x}, set())
        each.outputs = each.width = each.fan = None
        each.gives = False
        each.sent = 0
        each.first = each.attempt + 1  # runs and slices below it are new ones
        run.fans = [fan for fan in run.fans if fan is not each]
        return _begin_again(step, {each.x: each})
    return _begin_again(step, {each.x: each} if _has_failed(each, and_absorbed=True) else {})


def _has_failed(each: Progress, *, and_absorbed: bool = False) -> bool:
    if each.fan is not None and each.state == SUCCESS:
        return bool(_unfinished(each)) and (and_absorbed or not each.fan.absorbed)
    return each.state == CANCELLED or (each.state == ERRORED and (and_absorbed or not each.absorbed))


def _unfinished(each: Progress) -> list[int]:
    """The slices of a fan-out that were sent and did not succeed."""
    fan = each.fan
    if fan is None:
        return []
    good = {first for first, report in fan.done.items() if report["is_last"] and report["state"] == SUCCESS}
    return [first for first in fan.sent if first not in good]


def _begin_again(
    step: Advance, chosen: dict[str, Progress], in_slice: tuple[int, str, bool] | None = None
) -> bool:
    run = step.run
    if not chosen or run.state == CREATED:
        return False
    for each in chosen.values():
        _arm(step, each)
        if each.fan is not None:
            _ask_slices(step, each, in_slice)
            continue
        each.state = CREATED
        each.attempt += 1
        each.tries = each.requeues = each.waits = each.ended = 0
        run.changed.add(each.number)
    run.state = RUNNING
    run.fault = None
    run.is_stopping = False
    run.ended = 0
    if run.slice is not None:
        run.slice.is_reported = False
    _count(step)
    for each in chosen.values():
        if each.fan is not None and each.fan.open == 0:  # they had all ended after a cancel
            step.unite_slices(each)
            step.end_slices(each)
        elif each.fan is not None:
            step.send_slices(each)
        elif (each.gives and each.inputs is not None) or step.fill(each):
            step.begin(each)
    for top in list(run.executions.values()):
        if top.state == SUCCESS:
            for uniter in top.node.uniters:
                step.decide(top, step.plan.nodes[uniter])
    return True


def _ask_slices(step: Advance, each: Progress, in_slice: tuple[int, str, bool] | None) -> None:
    fan = each.fan
    assert fan is not None
    asked = [in_slice[0]] if in_slice else _unfinished(each)
    for first in asked:
        asking = order(step.run, "retry", slice_of(step.run, each, first))
        fan.asked[first] = number = fan.asked.get(first, 0) + 1
        up = {"run": step.run.id, "x": each.x, "a": number, "depth": step.run.depth}
        asking |= {"up": up, "first": first}
        if in_slice:
            asking |= {"x": in_slice[1], "after": in_slice[2]}
        step.todo.sends.append(asking)
        fan.done.pop(first, None)
        step.run.parts.add((each.x, first))
    each.state = QUEUED
    each.ended = 0
    fan.left = len(fan.pending) + sum(first not in fan.done for first in fan.sent)
    fan.open = len(fan.pending) + sum(
        first not in fan.done or not fan.done[first]["is_last"] for first in fan.sent
    )
    step.run.changed.add(each.number)


def _begin_in_slice(step: Advance, x: str, *, is_all: bool) -> bool:
    """Begin an execution again that a slice of this run has."""
    branch = x[len(x.partition("/")[0]) :]
    for each in step.run.fans:
        before = f"{each.branch}/{each.node.id}."
        if each.fan is None or not branch.startswith(before):
            continue
        index = branch[len(before) :].partition("/")[0]
        if not index.isdecimal() or not (firsts := [first for first in each.fan.sent if first <= int(index)]):
            return False
        if is_all:
            united = {f"{each.x}|{uniter}" for uniter in each.node.uniters} | set(each.holds)
            _take_back(step, set(), united)
        return _begin_again(step, {each.x: each}, (max(firsts), x, is_all))
    return False


def _arm(step: Advance, each: Progress) -> None:
    """Forget that what unites it did not come about."""
    run = step.run
    for scope in [*each.holds, *(f"{each.x}|{uniter}" for uniter in each.node.uniters)]:
        top, _, uniter = scope.partition("|")
        x = uniter + top[len(top.partition("/")[0]) :]
        if (united := run.executions.get(x)) is not None and not united.attempt:
            del run.executions[x]
            run.changed.add(united.number)


def _take_back(step: Advance, gone: set[str], scopes: set[str]) -> None:
    """Remove what came of the executions `gone`, and of what lies in these scopes.

    Later ones of the same name go on counting attempts, so that no result is taken for another's.
    """
    run = step.run
    kept = set(gone)
    for x in gone:
        scopes = scopes | set(run.executions[x].holds) | {f"{x}|{u}" for u in run.executions[x].node.uniters}
    # What came of an execution was made after it, and stands behind it.
    for each in list(run.executions.values()):
        if each.x in kept or not _came_of(step.plan, each, gone, scopes):
            continue
        gone = gone | {each.x}
        scopes = scopes | set(each.holds)
        if each.is_open:
            step.abandon(each)
        if each.attempt:
            run.again[each.x] = each.attempt
        del run.executions[each.x]
        run.changed.add(each.number)
        if each.fan is not None:
            run.parts.update((each.x, first) for first in [*each.fan.sent, *each.fan.pending])
    run.gathered = {
        id: [each for each in found if each.x in run.executions] for id, found in run.gathered.items()
    }
    run.fans = [fan for fan in run.fans if fan.x in run.executions]


def _came_of(plan: Plan, each: Progress, gone: set[str], scopes: set[str]) -> bool:
    if each.node.unites is not None and f"{each.node.unites[0]}{each.branch}|{each.node.id}" in scopes:
        return True
    return any(node.id + branch in gone for node, branch, _, _ in way_back(plan, each.node, each.branch))


def _count(step: Advance) -> None:
    """Count anew what follows from the executions."""
    run = step.run
    run.open = run.errored = run.absorbed = run.count = 0
    run.units = {}
    if run.slice is not None:
        run.slice.holding = 0
    for each in run.executions.values():
        each.absorbed = False
        _count_one(step, each)
    for each in list(run.executions.values()):
        if each.node.absorbs and each.attempt and each.node.unites is not None:
            top = run.executions[each.node.unites[0] + each.branch]
            step.absorb(top, each.node, f"{top.x}|{each.node.id}")


def _count_one(step: Advance, each: Progress) -> None:
    run: GraphRun = step.run
    is_holding = each.is_open and (each.fan is None or each.fan.left > 0)
    for scope in each.holds:
        counts = run.units.setdefault(scope, [0, 0, 0, 0])
        counts[0] += is_holding
        counts[1] += each.state == ERRORED
        counts[2] += each.state == PRUNED and each.attempt > 0
    run.open += each.is_open
    run.errored += each.state == ERRORED
    run.count += each.attempt > 0
    if run.slice is not None and is_holding and is_outer(run, each):
        run.slice.holding += 1
    if (each.state == SUCCESS or each.fan is not None) and each.node.unite_next:
        reach(run, each, 1 if each.width is None else each.width)
    if each.fan is not None:
        each.fan.absorbed = 0
        for report in each.fan.done.values():
            count_report(run, report)
