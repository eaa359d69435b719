"""What can be said of a run as a whole: how its executions did, what failed, what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from processor.graphs import branches
from processor.graphs.branches import MissingValue
from processor.graphs.plan import Plan
from processor.graphs.progress import ERRORED, GraphRun, Message
from processor.graphs.sizes import RUN_BYTES, TooMuch
from processor.graphs.template import Reference


def counts_of(run: GraphRun) -> dict[str, int]:
    """How many executions are in each state, those of ended slices included."""
    counts: dict[str, int] = {}
    for each in run.executions.values():
        counts[each.state] = counts.get(each.state, 0) + 1
    for fan in run.fans:
        for report in fan.fan.done.values() if fan.fan else ():
            for state, count in report["counts"].items():
                counts[state] = counts.get(state, 0) + count
    return counts


def failures_of(run: GraphRun) -> list[Message]:
    """Each execution that failed, and why ({"x", "code", "text"}); of each slice the first hundred."""
    found = [
        {"x": each.x, **{key: value for key, value in each.why[-1].items() if key not in ("a", "at")}}
        for each in run.executions.values()
        if each.state == ERRORED
    ]
    for fan in run.fans:
        for _, report in sorted(fan.fan.done.items()) if fan.fan else ():
            found += report["failed"]
    return found


def first_error(run: GraphRun) -> Message | None:
    """Why a run did not succeed: of itself, or of the first execution that failed."""
    if run.fault is not None:
        return run.fault
    return next(iter(failures_of(run)), None)


def returned(plan: Plan, run: GraphRun) -> Mapping[str, Any]:
    """What the run returns, by the outputs of its graph. Raises MissingValue and TooMuch."""

    def find(reference: Reference) -> Any:
        if reference.node:
            return branches.gather(plan, run, None, reference)
        return branches.of_store(run, reference.field)

    try:
        outputs = {name: template.render(find) for name, template in plan.outputs.items()}
    except MissingValue as err:
        raise MissingValue(f"outputs of graph {plan.name}: {err}") from None
    if outputs and (size := len(orjson.dumps(outputs))) > RUN_BYTES:
        raise TooMuch(f"the outputs of the run are {size} bytes; {RUN_BYTES} are the most")
    return outputs
