"""A run as it is written down: the items of its context while it is open, and its record.

Up to 4 KiB a run is one item, `run`, which is one message or a part of the position. A larger one has items
for sixteen executions each (`x.<n>`), for one that is large (`b.<x>`), for slices of a fan-out that were not
sent (`u.<x>.<first>`), for each that reported (`d.<x>.<first>`), and for the history of its store (`h`); only
those that changed are written. So the largest run is a few dozen messages, and fits a commit beside others.
What follows from others (the scopes of an execution) is not written.

A record is for people and programs: of a run that has ended, all that is known; of one that has not, the same
as far as it is known. A failed run can go on from its record, unless it is `large`: then its context is kept.

What is written here is read by later builds: a field is never given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from processor.graphs import branches
from processor.graphs.outcomes import counts_of, failures_of
from processor.graphs.plan import Plan
from processor.graphs.progress import SUCCESS, GraphRun, Message, Progress, SlicedFanOut, SliceOf
from processor.model import WHOLE_BYTES, ContextChange

# A record is one message, and so are all executions in it together.
EXECUTIONS_BYTES = 64 << 10
OUTPUTS_BYTES = 2 << 10
_SHOWN_ERRORS = 20
# More executions than this are not worth a try at one item.
_FEW = 48
# Executions in one item, and what one may have there; together they stay far below a message.
_TOGETHER = 16
_ALONE_BYTES = 16 << 10


def change_of(run: GraphRun) -> ContextChange:
    """What changed of the context of an open run since this was asked last; it is taken as written."""
    if not run.sizes and len(run.executions) <= _FEW:
        whole = orjson.dumps(
            {**_run_item(run), "x": {x: _execution_item(run, each) for x, each in run.executions.items()}}
            | _parts_item(run)
        )
        if (size := len(whole) + len("run")) <= WHOLE_BYTES:
            run.written()
            return ContextChange({"run": whole}, True, size)
    is_whole = not run.sizes
    if is_whole:
        run.changed.update(each.number for each in run.executions.values())
        run.parts.update(
            (fan.x, first) for fan in run.fans if fan.fan for first in [*fan.fan.bundles, *fan.fan.done]
        )
    items = _changed_items(run, and_slice=is_whole)
    run.written()
    for name, value in items.items():
        if value is None:
            run.sizes.pop(name, None)
        else:
            run.sizes[name] = len(name) + len(value)
    if is_whole:
        items = {name: value for name, value in items.items() if value is not None}
    return ContextChange(items, is_whole, sum(run.sizes.values()))


def _changed_items(run: GraphRun, *, and_slice: bool) -> dict[str, bytes | None]:
    items: dict[str, bytes | None] = {"run": orjson.dumps(_run_item(run))}
    if and_slice and run.slice is not None:
        items["slice"] = orjson.dumps(_slice_item(run.slice))
    if and_slice or run.has_new_history:
        items["h"] = orjson.dumps(run.history) if run.history else None
    _add_executions(run, items)
    for x, first in run.parts:
        each = run.executions.get(x)
        fan = each.fan if each is not None else None
        done = fan.done.get(first) if fan else None
        items[f"d.{x}.{first}"] = None if done is None else orjson.dumps(done)
        bundle = 0 if fan is None else max((each for each in fan.bundles if each <= first), default=first)
        name = f"u.{x}.{bundle if fan else first}"
        left = _bundle(fan, bundle) if fan else {}
        items[name] = orjson.dumps(left) if left else None
    return {name: value for name, value in items.items() if value is not None or name in run.sizes}


def _add_executions(run: GraphRun, items: dict[str, bytes | None]) -> None:
    """The items of the executions that changed, with those that stand beside them."""
    together: dict[int, dict[str, Any]] = {number // _TOGETHER: {} for number in run.changed}
    for x, each in run.executions.items():
        place = together.get(each.number // _TOGETHER)
        if place is None:
            continue
        encoded = orjson.dumps(_execution_item(run, each))
        alone = f"b.{x}"
        if len(encoded) <= _ALONE_BYTES:
            place[x] = orjson.Fragment(encoded)
            items[alone] = None
        elif each.number in run.changed or alone not in run.sizes:
            items[alone] = orjson.dumps({x: orjson.Fragment(encoded)})
    for number, found in together.items():
        items[f"x.{number}"] = orjson.dumps(found) if found else None
    for name in run.sizes:
        if name.startswith("b.") and name[2:] not in run.executions:
            items[name] = None


def _bundle(fan: SlicedFanOut, bundle: int) -> dict[str, Message]:
    """The slices of a bundle that were not sent, by their first output."""
    after = next((each for each in fan.bundles if each > bundle), None)
    return {
        str(first): part
        for first, part in fan.pending.items()
        if first >= bundle and (after is None or first < after)
    }


def _run_item(run: GraphRun) -> Message:
    item: Message = {
        "v": 1, "g": run.graph, "ver": run.version, "st": run.state, "by": run.by, "t0": run.created,
        "t": _since(run.created, run.started, run.ended),
        "in": run.inputs, "sto": run.store, "open": run.open, "err": run.errored, "abs": run.absorbed,
        "n": run.count, "made": run.made, "u": run.units,
    }  # fmt: skip
    if run.slice is not None:
        part = run.slice
        item["slice"] = {"hold": part.holding, "told": part.is_reported, "sets": part.sets}
    for name, value in (
        ("up", run.up), ("dep", run.depth), ("stop", run.is_stopping), ("pause", run.is_paused),
        ("fault", run.fault), ("ids", run.ids), ("sig", run.signals), ("again", run.again),
        ("seen", run.seen), ("out", run.outputs), ("ord", run.orders),
    ):  # fmt: skip
        if value:
            item[name] = value
    return item


def _since(t0: int, *times: int) -> list[int | None]:
    """Times in ms after the run was made; None for what has not happened."""
    return [time - t0 if time else None for time in times]


def _times(run: GraphRun, since: list[int | None]) -> list[int]:
    return [0 if time is None else time + run.created for time in since]


def _slice_item(part: SliceOf) -> Message:
    return {"x": part.x, "first": part.first, "o": part.outputs, "seen": part.seen}


def _parts_item(run: GraphRun) -> Message:
    """What is an item of its own where a run is not one item."""
    item: Message = {}
    if run.history:
        item["his"] = run.history
    if run.slice is not None:
        item["slice_of"] = _slice_item(run.slice)
    for fan in run.fans:
        if fan.fan is not None:
            parts = {"p": fan.fan.pending, "d": fan.fan.done}
            item.setdefault("parts", {})[fan.x] = {
                letter: {str(first): part for first, part in found.items()} for letter, found in parts.items()
            }
    return item


def _execution_item(run: GraphRun, each: Progress) -> Message:
    times = _since(run.created, each.created, each.sent, each.ended)
    item: Message = {"s": each.state, "a": each.attempt, "i": each.number, "t": times}
    fan = each.fan
    if fan is not None:
        item["f"] = {
            "n": each.width,
            "sent": fan.sent,
            "left": fan.left,
            "open": fan.open,
            "abs": fan.absorbed,
            "bun": fan.bundles,
            "ask": {str(first): count for first, count in fan.asked.items()},
        }
    elif each.width is not None:
        item["f"] = {"n": each.width}
    for name, value in (
        ("q", each.requeues), ("tr", each.tries), ("w", each.waits), ("in", each.inputs), ("o", each.outputs),
        ("why", each.why), ("tm", each.timer), ("du", each.due), ("gi", each.gives), ("un", each.united),
        ("ab", each.absorbed),
    ):  # fmt: skip
        if value:
            item[name] = value
    if each.first != 1 and each.attempt:
        item["a1"] = each.first
    return item


def plan_of(items: Mapping[str, bytes]) -> tuple[str, str]:
    """The graph and the version that the run in these items is of."""
    said = orjson.loads(items["run"])
    return said["g"], said["ver"]


def run_of(plan: Plan, id: str, items: Mapping[str, bytes]) -> GraphRun:
    """The run in the items of its context."""
    said = orjson.loads(items["run"])
    run = GraphRun(id, said["g"], said["ver"], said["t0"])
    run.state, run.by, run.inputs, run.store = said["st"], said["by"], said["in"], said["sto"]
    run.started, run.ended = _times(run, said["t"])
    run.open, run.errored, run.absorbed, run.count = said["open"], said["err"], said["abs"], said["n"]
    run.made, run.orders = said["made"], said.get("ord", 0)
    run.units = said["u"]
    run.up, run.depth = said.get("up"), said.get("dep", 0)
    run.is_stopping, run.is_paused = said.get("stop", False), said.get("pause", False)
    run.fault, run.ids, run.signals = said.get("fault"), said.get("ids", []), said.get("sig", {})
    run.again, run.seen, run.outputs = said.get("again", {}), said.get("seen", 0), said.get("out", {})
    if "slice" in said:
        _read_slice(run, said, items)
    run.history = said.get("his") or orjson.loads(items.get("h", b"{}"))
    executions: dict[str, Message] = said.get("x") or {}
    for name, item in items.items():
        if name.startswith(("x.", "b.")):
            executions |= orjson.loads(item)
    for x, each in sorted(executions.items(), key=lambda each: each[1]["i"]):
        _read_execution(plan, run, x, each)
    _read_parts(run, said, items)
    if len(items) > 1:
        run.sizes = {name: len(name) + len(item) for name, item in items.items()}
    return run


def _read_slice(run: GraphRun, said: Message, items: Mapping[str, bytes]) -> None:
    item = said.get("slice_of") or orjson.loads(items["slice"])
    part = run.slice = SliceOf(item["x"], item["first"], item["o"], item["seen"])
    part.holding, part.is_reported, part.sets = (said["slice"][name] for name in ("hold", "told", "sets"))


def _read_execution(plan: Plan, run: GraphRun, x: str, item: Message) -> None:
    id = x.partition("/")[0]
    each = Progress(x, plan.nodes[id], x[len(id) :], 0, item["i"])
    each.state, each.attempt, each.first = item["s"], item["a"], item.get("a1", 1)
    each.created, each.sent, each.ended = _times(run, item["t"])
    each.requeues, each.tries, each.waits = item.get("q", 0), item.get("tr", 0), item.get("w", 0)
    each.inputs, each.outputs, each.why = item.get("in"), item.get("o"), item.get("why", [])
    each.timer, each.due, each.gives = item.get("tm", ""), item.get("du", 0), item.get("gi", False)
    each.united, each.absorbed = item.get("un"), item.get("ab", False)
    if said := item.get("f"):
        each.width = said["n"]
        if "sent" in said:
            each.fan = fan = SlicedFanOut({})
            fan.sent, fan.left, fan.open = said["sent"], said["left"], said["open"]
            fan.absorbed, fan.bundles = said["abs"], said["bun"]
            fan.asked = {int(first): count for first, count in said["ask"].items()}
    if each.outputs is None and each.state == SUCCESS:
        each.outputs = {} if each.width is None else []
    _add(plan, run, each)


def _add(plan: Plan, run: GraphRun, each: Progress) -> None:
    """Put an execution that was read where the machine looks for it."""
    run.executions[each.x] = each
    if each.attempt:
        each.holds = branches.holds(plan, each.node, each.branch)
        if each.node.gathered:
            run.gathered.setdefault(each.node.id, []).append(each)
        if each.width is not None:
            run.fans.append(each)


def _read_parts(run: GraphRun, said: Message, items: Mapping[str, bytes]) -> None:
    for fan in run.fans:
        if fan.fan is None:
            continue
        if "parts" in said:
            parts = said["parts"].get(fan.x, {"p": {}, "d": {}})
        else:
            parts = {"p": {}, "d": {}}
            for bundle in fan.fan.bundles:
                parts["p"] |= orjson.loads(items.get(f"u.{fan.x}.{bundle}", b"{}"))
            for first in fan.fan.sent:
                if (report := items.get(f"d.{fan.x}.{first}")) is not None:
                    parts["d"][first] = orjson.loads(report)
        fan.fan.pending = {int(first): part for first, part in parts["p"].items()}
        fan.fan.done = {int(first): part for first, part in parts["d"].items()}


def summary_of(run: GraphRun) -> Message:
    """What a list of runs shows of this one."""
    return {
        "v": 1, "run": run.id, "graph": run.graph, "version": run.version, "state": run.state, "by": run.by,
        "created": run.created, "started": run.started, "ended": run.ended, "paused": run.is_paused,
        "counts": counts_of(run),
    }  # fmt: skip


def record_of(run: GraphRun) -> Message:
    """All that is known of a run: of one that has ended, its record.

    Times are milliseconds since 1970, 0 where something has not happened. Outputs above 2 KiB are cut to
    their size. Executions above 64 KiB are left out. `large` says that a run which did not succeed cannot go
    on from this, so that its context has to be kept as long as the record.
    """
    record = summary_of(run)
    failures = failures_of(run)
    if run.fault is not None:
        failures.insert(0, run.fault)
    record["inputs"], record["store"], record["outputs"] = run.inputs, run.store, run.outputs
    record["errors"] = failures[:_SHOWN_ERRORS]
    executions = [_shown(each) for each in run.executions.values()]
    size = len(orjson.dumps(executions))
    is_cut = size > OUTPUTS_BYTES and _cut_outputs(executions)
    if size > EXECUTIONS_BYTES and len(orjson.dumps(executions)) > EXECUTIONS_BYTES:
        executions, is_cut = [], True
    record["executions"] = executions
    if is_cut or any(fan.fan is not None for fan in run.fans):
        record["large"] = True
    for name, value in (
        ("up", run.up), ("depth", run.depth), ("ids", run.ids), ("again", run.again), ("fault", run.fault),
        ("orders", run.orders), ("history", run.history),
    ):  # fmt: skip
        if value:
            record[name] = value
    return record


def _shown(each: Progress) -> Message:
    shown: Message = {
        "x": each.x, "node": each.node.id, "kind": each.node.kind, "state": each.state,
        "attempt": each.attempt, "created": each.created, "sent": each.sent, "ended": each.ended,
        "outputs": each.outputs,
    }  # fmt: skip
    for name, value in (
        ("inputs", each.inputs), ("requeues", each.requeues), ("why", each.why), ("due", each.due),
        ("united", each.united), ("first", each.first if each.first > 1 else 0), ("given", each.gives),
        ("absorbed", each.absorbed),
    ):  # fmt: skip
        if value:
            shown[name] = value
    if each.width is not None:
        shown["width"] = each.width
    if each.fan is not None:
        shown["slices"] = {"sent": len(each.fan.sent), "unsent": len(each.fan.pending), "open": each.fan.open}
    return shown


def _cut_outputs(executions: list[Message]) -> bool:
    """Cut what is too large for a record; whether something was."""
    is_cut = False
    for shown in executions:
        for name in ("outputs", "inputs"):
            if shown.get(name) and (size := len(orjson.dumps(shown[name]))) > OUTPUTS_BYTES:
                shown[name] = {"cut": size}
                is_cut = True
    return is_cut


def revived(plan: Plan, record: Mapping[str, Any]) -> GraphRun:
    """The run that a record is of, to be tried again; the record is not `large`."""
    run = GraphRun(record["run"], record["graph"], record["version"], record["created"])
    run.state, run.by, run.started, run.ended = (record[name] for name in ("state", "by", "started", "ended"))
    run.inputs, run.store, run.history = record["inputs"], record["store"], record.get("history", {})
    run.up, run.depth, run.fault = record.get("up"), record.get("depth", 0), record.get("fault")
    run.ids, run.again, run.orders = record.get("ids", []), record.get("again", {}), record.get("orders", 0)
    for shown in record["executions"]:
        run.made += 1
        node = plan.nodes[shown["node"]]
        each = Progress(shown["x"], node, shown["x"][len(node.id) :], shown["created"], run.made)
        each.state, each.attempt, each.first = shown["state"], shown["attempt"], shown.get("first", 1)
        each.sent, each.ended, each.outputs = shown["sent"], shown["ended"], shown["outputs"]
        each.inputs, each.gives, each.width = (
            shown.get("inputs"),
            shown.get("given", False),
            shown.get("width"),
        )
        each.requeues, each.why = shown.get("requeues", 0), shown.get("why", [])
        each.united, each.absorbed = shown.get("united"), shown.get("absorbed", False)
        _add(plan, run, each)
    if run.state == SUCCESS:
        run.outputs = record["outputs"]
    return run
