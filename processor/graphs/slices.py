"""Sub-runs: the slices of a fan-out, and the runs of nested graphs, as their run and they tell each other.

A slice is `<run>/<x of the fan-out>.<first output>`, the run of a nested graph `<run>~<x>`; what was begun
anew after it had been taken back has `!<attempt>` behind it. Here are the messages, and how what a slice
reports is counted in its run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from processor.graphs import branches
from processor.graphs.branches import MissingValue
from processor.graphs.outcomes import counts_of, failures_of
from processor.graphs.plan import Plan
from processor.graphs.progress import RUNNING, GraphRun, Message, Progress
from processor.graphs.sizes import COLLECTED_BYTES, bound, cut

_SHOWN_FAILURES = 100


def child_of(run: GraphRun, each: Progress) -> str:
    """The id of the run that an execution of a nested graph begins."""
    return f"{run.id}~{each.x}{_again(each)}"


def slice_of(run: GraphRun, each: Progress, first: int) -> str:
    """The id of a slice of a fan-out."""
    return f"{run.id}/{each.x}.{first}{_again(each)}"


def _again(each: Progress) -> str:
    return f"!{each.first}" if each.first > 1 else ""


def at_work(run: GraphRun, each: Progress) -> list[str]:
    """The ids of the slices of a fan-out that were sent and have not ended."""
    fan = each.fan
    if fan is None:
        return []
    ended = {first for first, report in fan.done.items() if report["is_last"]}
    return [slice_of(run, each, first) for first in fan.sent if first not in ended]


def order(run: GraphRun, what: str, below: str) -> Message:
    """A control message to a run below this one."""
    run.orders += 1
    return {
        "v": 1,
        "t": "control",
        "run": below,
        "id": f"{run.id}:{run.orders}",
        "what": what,
        "x": None,
        "by": "parent",
    }


def child_message(up: Message, state: str, outputs: Mapping[str, Any], error: Message | None) -> Message:
    """What the run of a nested graph tells the execution that began it."""
    said = {"v": 1, "t": "child", "run": up["run"], "x": up["x"], "a": up.get("a"), "state": state}
    return said | {"outputs": outputs, "error": error}


def slices_of(plan: Plan, run: GraphRun, each: Progress, outputs: list[Any]) -> dict[int, Message]:
    """The messages that begin the slices of a fan-out, by first output, without `seen`. Raises TooMuch."""
    used = each.node.used
    shared: Message = {
        "v": 1, "t": "slice", "graph": run.graph, "version": run.version, "by": "parent",
        "up": {"run": run.id, "x": each.x, "a": 0, "depth": run.depth}, "store": run.store,
    }  # fmt: skip
    if run.signals:
        shared["signals"] = run.signals
    parts = cut(
        each.node, [{field: output[field] for field in used if field in output} for output in outputs]
    )
    return {
        first: {**shared, "run": slice_of(run, each, first), "first": first, "outputs": part}
        for first, part in parts
    }


def bundles_of(pending: Mapping[int, Message]) -> list[int]:
    """Slices that are kept together, by the first of them: few items, none larger than a message."""
    bundles: list[int] = []
    size = 0
    for first, message in pending.items():
        more = len(orjson.dumps(message))
        if not bundles or size + more > COLLECTED_BYTES:
            bundles.append(first)
            size = 0
        size += more
    return bundles


def seen_below(plan: Plan, run: GraphRun, each: Progress) -> Mapping[str, Mapping[str, Any]]:
    """What nodes below a fan-out look at that is before it, by node and field. Raises TooMuch."""
    seen: dict[str, dict[str, Any]] = {}
    for reference in each.node.outer:
        try:
            value = branches.look_back(plan, run, each.node, each.branch, reference)
        except MissingValue:
            continue  # the execution that looks at it fails with E703
        seen.setdefault(reference.node, {})[reference.field] = value
    bound(each.node, seen)
    return seen


def is_outer(run: GraphRun, each: Progress) -> bool:
    """Whether an execution of a slice holds up what is outside of it."""
    return any(scope.partition("|")[0] not in run.executions for scope in each.holds)


def report_of(plan: Plan, run: GraphRun, *, is_last: bool) -> Message:
    """What a slice tells its run: once nothing in it holds that up, and at its end."""
    part, up = run.slice, run.up
    assert part is not None
    assert up is not None
    outer = {
        scope: counts[1:]
        for scope, counts in run.units.items()
        if scope.partition("|")[0] not in run.executions
    }
    ok = branches.reported(plan, run)
    is_much = bool(ok) and len(orjson.dumps(ok)) > COLLECTED_BYTES
    return {
        "v": 1, "t": "slice_done", "run": up["run"], "x": up["x"], "a": up["a"], "first": part.first,
        "state": run.state if is_last else RUNNING, "is_last": is_last,
        "ok": None if is_much else ok, "failed": failures_of(run)[:_SHOWN_FAILURES],
        "counts": counts_of(run), "scopes": outer, "errored": run.errored, "absorbed": run.absorbed,
        "executions": run.count, "sets": [[key, value] for key, value in part.sets.items()],
    }  # fmt: skip


def count_report(run: GraphRun, report: Message, sign: int = 1) -> None:
    """Count what a slice reported, or, with -1, no longer."""
    run.errored += sign * report["errored"]
    run.absorbed += sign * report["absorbed"]
    run.count += sign * report["executions"]
    for scope, (errored, pruned, reached) in report["scopes"].items():
        counts = run.units.setdefault(scope, [0, 0, 0, 0])
        counts[1] += sign * errored
        counts[2] += sign * pruned
        counts[3] += sign * reached
