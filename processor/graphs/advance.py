"""How a run goes on: executions begin, end, split and unite, and a run that has none open ends.

`machine` decides what a message says, and calls this; it is about one message to one run. The order in which
things happen here is what keeps a run from hanging or from uniting twice:

1. What follows an execution is created before the execution is closed, so that a scope is never empty while
   something of it is still to come.
2. Closing counts down inner scopes before outer ones, so that a node which unites an inner scope is open in
   the outer one before that is looked at.
3. A unite is decided when its top is done and its scope has nothing open; its name is taken from then on.
4. `conclude` is called once, after all else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from processor.errors import ERRORS
from processor.graphs import branches
from processor.graphs.branches import MissingValue
from processor.graphs.history import StoreChange
from processor.graphs.outcomes import first_error, returned
from processor.graphs.plan import NodePlan, Plan
from processor.graphs.progress import (
    CANCELLED,
    CREATED,
    ERRORED,
    FAILED,
    NOTHING,
    PRUNED,
    QUEUED,
    RUNNING,
    SKIPPED,
    SUCCESS,
    WAITING,
    Execution,
    GraphRun,
    Message,
    Progress,
    SlicedFanOut,
    Timer,
    Todo,
)
from processor.graphs.sizes import (
    IN_ONE_RUN,
    LEAF_BYTES,
    SLICE,
    TooMuch,
    bound,
    bound_inputs,
    kept,
    kept_of_all,
    set_store,
)
from processor.graphs.slices import (
    at_work,
    bundles_of,
    child_message,
    child_of,
    count_report,
    is_outer,
    order,
    report_of,
    seen_below,
    slices_of,
)
from processor.graphs.template import as_text

# Slices in one commit, which holds at most 1,000 messages; the rest follows after a `go`.
SLICES_AT_ONCE = 200
# What slices share is stored once if it is larger.
SHARED_BYTES = 1024
MOST_DEEP = 8
_KEPT_REASONS = 10
_NONE = (0, 0, 0, 0)
_TEXT = 500
_TRACEBACK = 2000
_FINAL = frozenset(code for code, row in ERRORS.items() if row.is_final)


def set_timer(run: GraphRun, each: Progress, todo: Todo, name: str, at_ms: int, what: str = "") -> None:
    """The execution is told at `at_ms`; `name` is retry or late, and `what` its tick's word if another."""
    each.timer = name
    each.due = at_ms
    message = {"v": 1, "t": "tick", "run": run.id, "x": each.x, "a": each.attempt, "what": what or name}
    todo.set_timer(Timer(f"{name}.{each.x}", at_ms, message))


def note(
    each: Progress, code: str, text: str, now_ms: int, traceback: str = "", returned: Any = None
) -> None:
    """Remember why an execution is not done, or failed, and what it returned nevertheless, if that is small;
    the last ten reasons are kept.
    """
    for name in ("traceback", "returned") if each.why else ():
        each.why[-1].pop(name, None)  # the last one is enough
    why: Message = {"a": each.attempt, "code": code, "text": text[:_TEXT], "at": now_ms}
    if traceback:
        why["traceback"] = traceback[-_TRACEBACK:]
    if returned is not None and len(orjson.dumps(returned)) <= LEAF_BYTES:
        why["returned"] = returned
    each.why = [*each.why[1 - _KEPT_REASONS :], why]


class Advance:
    """One message to one run: what it changes in the run, and, in `todo`, what it makes necessary."""

    __slots__ = ("luck", "now", "plan", "run", "todo")

    def __init__(self, plan: Plan, run: GraphRun, now_ms: int, luck: float = 0.0) -> None:
        self.plan = plan
        self.run = run
        self.now = now_ms
        self.luck = luck
        self.todo = Todo()

    def create(
        self,
        node: NodePlan,
        branch: str,
        parent: str = "",
        outputs: Any = NOTHING,
        united: Mapping[str, int] | None = None,
    ) -> None:
        """A new execution of the node, ready at once; `outputs` are those of its `parent` that led to it."""
        run = self.run
        x = node.id + branch
        run.made += 1
        first = run.again.get(x, 0) + 1 if run.again else 1
        each = Progress(x, node, branch, self.now, run.made, first)
        run.executions[x] = each
        run.changed.add(each.number)
        run.open += 1
        run.count += 1
        each.united = united
        if node.gathered:
            run.gathered.setdefault(node.id, []).append(each)
        if node.scopes:
            _hold(self.plan, run, each)
        if run.count > self.plan.executions:
            limit = self.plan.executions
            self.fail(each, "E711", f"the run has more than {limit} executions (limits.executions)")
        elif self.fill(each, parent, outputs):
            self.begin(each)

    def fill(self, each: Progress, parent: str = "", outputs: Any = NOTHING) -> bool:
        """Give it the inputs that the graph says. False: it has failed with what is wrong with them."""
        try:
            each.inputs = _inputs_of(self.plan, self.run, each, parent, outputs)
        except MissingValue as err:
            self.fail(each, "E703", f"inputs of {each.node.id}: {err}")
        except TooMuch as err:
            self.fail(each, "E711", str(err))
        else:
            return True
        return False

    def begin(self, each: Progress) -> None:
        """It is ready: to be run, to begin a run of its own, or to wait for its signal."""
        run, node = self.run, each.node
        each.state = CREATED
        run.changed.add(each.number)
        if run.is_paused or run.is_stopping:
            return
        if node.is_empty:
            self.succeed(each, NOTHING)
        elif node.is_wait:
            self._await_signal(each)
        elif node.graph is not None:
            self._begin_child(each, node.graph)
        else:
            inputs = NOTHING if each.inputs is None else each.inputs
            key = f"{run.id}:{each.x}"
            self.todo.ready.append(
                Execution(
                    run.id, each.x, node, each.attempt, inputs, run.store, each.united, key, run.history
                )
            )

    def _await_signal(self, each: Progress) -> None:
        inputs = each.inputs or NOTHING
        name = inputs.get("signal")
        if isinstance(name, str) and name in self.run.signals:
            self.succeed(each, {"value": self.run.signals.pop(name)})
            return
        each.state = WAITING
        each.sent = self.now
        timeout_s = inputs.get("timeout_s") or each.node.timeout_s
        try:
            late_ms = 0 if timeout_s is None else round(float(timeout_s) * 1000)
        except (TypeError, ValueError, OverflowError):
            self.fail(each, "E709", f"timeout_s of {each.node.id} is no number: {timeout_s!r:.80}")
            return
        if late_ms > 0:
            set_timer(self.run, each, self.todo, "late", self.now + late_ms)

    def _begin_child(self, each: Progress, graph: str) -> None:
        run = self.run
        if run.depth >= MOST_DEEP:
            self.fail(each, "E711", f"graphs run graphs {MOST_DEEP} deep at most")
            return
        up = {"run": run.id, "x": each.x, "a": each.attempt, "depth": run.depth + 1}
        message: Message = {
            "v": 1, "t": "start", "run": child_of(run, each), "graph": graph, "version": None,
            "inputs": each.inputs, "store": {}, "delay_ms": 0, "by": "parent", "check": False, "up": up,
        }  # fmt: skip
        if each.sent:  # it is there already: what failed in it is tried again
            message = order(run, "retry", child_of(run, each)) | {"up": up}
        self.todo.sends.append(message)
        each.state = QUEUED
        each.sent = self.now
        if each.node.timeout_s is not None:
            set_timer(run, each, self.todo, "late", self.now + round(each.node.timeout_s * 1000))

    def succeed(self, each: Progress, outputs: Any) -> None:
        """It gave an object, None, or a list of objects, which is a fan-out; what follows is created."""
        if isinstance(outputs, list):
            self._split(each, outputs)
            return
        outputs = NOTHING if outputs is None else outputs
        try:
            each.outputs = kept(each.node, outputs)
        except TooMuch as err:
            self.fail(each, "E711", str(err))
            return
        self._follow(each, each.branch, outputs)
        if each.node.unite_next:
            reach(self.run, each, 1)
        self.close(each, SUCCESS)

    def _follow(self, each: Progress, branch: str, outputs: Any) -> None:
        node = each.node
        for id in node.next:
            after = self.plan.nodes[id]
            self.create(after, f"{branch}/~{node.id}" if after.runs_for_each else branch, node.id, outputs)

    def _split(self, each: Progress, outputs: list[Any]) -> None:
        node, plan, count = each.node, self.plan, len(outputs)
        if not all(isinstance(output, dict) for output in outputs):
            self.fail(each, "E709", f"{node.id} returned a list of what are no objects")
            return
        if count > plan.fan_out:
            text = f"{node.id!r} returned {count} elements; limits.fan_out is {plan.fan_out}"
            self.fail(each, "E711", text)
            return
        if (total := self.run.count + count * len(node.next)) > plan.executions:
            text = f"{node.id!r} returned {count} elements, which makes {total} executions; limits.executions"
            self.fail(each, "E711", f"{text} is {plan.executions}")
            return
        try:
            is_large = count > SLICE or len(self.run.executions) + count * len(node.next) > IN_ONE_RUN
            if node.next and count and is_large:
                self._slice(each, outputs)
                return
            each.outputs = kept_of_all(node, outputs)
        except TooMuch as err:
            each.outputs = None
            self.fail(each, "E711", str(err))
            return
        each.width = count
        self.run.fans.append(each)
        for index, output in enumerate(outputs):
            self._follow(each, f"{each.branch}/{node.id}.{index}", output)
        if node.unite_next:
            reach(self.run, each, count)
        self.close(each, SUCCESS)

    def _slice(self, each: Progress, outputs: list[Any]) -> None:
        """Cut a fan-out into sub-runs; the execution stays open until they have ended."""
        node, run = each.node, self.run
        pending = slices_of(self.plan, run, each, outputs)
        seen = seen_below(self.plan, run, each)
        if node.gathered:
            gathered = [{f: o[f] for f in node.gathered if f in o} for o in outputs]
            bound(node, gathered)
            each.outputs = gathered
        if len(orjson.dumps(seen)) > SHARED_BYTES:
            run.seen += 1
            self.todo.seen.append((run.seen, seen))
            shared_seen: Message = {"seen_at": {"run": run.id, "n": run.seen}}
        else:
            shared_seen = {"seen": seen}
        for message in pending.values():
            message |= shared_seen
        each.width = len(outputs)
        each.fan = SlicedFanOut(pending)
        each.state = QUEUED
        run.fans.append(each)
        run.changed.add(each.number)
        if node.unite_next:
            reach(run, each, each.width)
        self.send_slices(each)
        each.fan.bundles = bundles_of(each.fan.pending)
        run.parts.update((each.x, first) for first in each.fan.bundles)

    def send_slices(self, each: Progress) -> None:
        """Send what a commit can hold of the slices that were not sent."""
        fan = each.fan
        if fan is None or self.run.is_paused or self.run.is_stopping:
            return
        for first in list(fan.pending)[: max(SLICES_AT_ONCE - len(self.todo.sends), 0)]:
            self.todo.sends.append(fan.pending.pop(first))
            fan.sent.append(first)
            self.run.parts.add((each.x, first))
            self.run.changed.add(each.number)
        self.todo.has_more = self.todo.has_more or bool(fan.pending)

    def report(self, each: Progress, report: Message) -> None:
        """A slice of this fan-out has reported, or ended."""
        run, fan, first = self.run, each.fan, report["first"]
        assert fan is not None
        before = fan.done.get(first)
        fan.done[first] = report
        run.parts.add((each.x, first))
        run.changed.add(each.number)
        if not each.is_open:  # its run was cancelled meanwhile: a retry finds it
            return
        count_report(run, report)
        if before is None:
            fan.left -= 1
        else:
            count_report(run, before, -1)
        fan.open -= report["is_last"]
        if (
            report["state"] == FAILED
            and self.plan.on_error == "stop"
            and not _can_absorb(self.plan, [*_uniters(each.node), *each.node.uniters])
        ):
            run.is_stopping = True
        if fan.left == 0 and before is None:
            self.unite_slices(each)
        elif before is not None:
            _set_reported(self, each, report["sets"])
        if fan.open == 0:
            self.end_slices(each)

    def unite_slices(self, each: Progress) -> None:
        """All slices of this fan-out have reported: what unites them goes on."""
        fan = each.fan
        assert fan is not None
        for _, report in sorted(fan.done.items()):
            _set_reported(self, each, report["sets"])
        for uniter in each.node.uniters:
            self.decide(each, self.plan.nodes[uniter])
        self._release(each, SUCCESS)

    def end_slices(self, each: Progress) -> None:
        """All slices of this fan-out have ended, and so has it."""
        each.state = SUCCESS
        each.ended = self.now
        self.run.open -= 1

    def fail(
        self,
        each: Progress,
        code: str,
        text: str,
        *,
        is_final: bool = False,
        traceback: str = "",
        returned: Any = None,
    ) -> None:
        """It failed: it waits for its next try if it has one, else it is ERRORED."""
        note(each, code, text, self.now, traceback, returned)
        each.tries += 1
        retry = each.node.retry
        if is_final or code in _FINAL or each.tries >= retry.attempts or self.run.is_stopping:
            self.close(each, ERRORED)
        else:
            self.wait_again(each, round(retry.wait_s(each.tries, self.luck) * 1000), "retry")

    def wait_again(self, each: Progress, wait_ms: int, what: str) -> None:
        """It is run again in `wait_ms`, as a new attempt."""
        self.call_back(each)
        each.state = WAITING
        each.attempt += 1
        self.run.changed.add(each.number)
        set_timer(self.run, each, self.todo, "retry", self.now + wait_ms, what)

    def call_back(self, each: Progress) -> None:
        """What it waited for is not needed."""
        if each.timer:
            self.todo.call_back(f"{each.timer}.{each.x}")
            each.timer = ""
            each.due = 0

    def close(self, each: Progress, state: str) -> None:
        """It has ended; scopes that it was the last open one of are united."""
        run = self.run
        self.call_back(each)
        each.state = state
        each.ended = self.now
        if state != ERRORED or not each.gives:
            each.inputs = None
        run.open -= 1
        run.changed.add(each.number)
        if state == ERRORED:
            run.errored += 1
            if self.plan.on_error == "stop" and not _can_absorb(self.plan, _uniters(each.node)):
                run.is_stopping = True
        if state == SUCCESS:
            for uniter in each.node.uniters:
                self.decide(each, self.plan.nodes[uniter])
        if each.holds:
            self._release(each, state)

    def _release(self, each: Progress, state: str) -> None:
        run = self.run
        if run.slice is not None and each.holds and is_outer(run, each):
            run.slice.holding -= 1
        units = [(scope, run.units[scope]) for scope in each.holds if scope in run.units]
        for _, counts in units:
            counts[1] += state == ERRORED
            counts[2] += state == PRUNED
        for scope, counts in units:
            counts[0] -= 1
            if counts[0] == 0:
                top, _, uniter = scope.partition("|")
                if top in run.executions:  # else it is decided outside of this slice
                    self.decide(run.executions[top], self.plan.nodes[uniter])

    def decide(self, top: Progress, uniter: NodePlan) -> None:
        """What becomes of the node that unites what is below `top`, if that can be said now."""
        run = self.run
        x = uniter.id + top.branch
        scope = f"{top.x}|{uniter.id}"
        counts = run.units.get(scope, _NONE)
        if counts[0] or not top.is_done or x in run.executions or run.is_stopping:
            return
        run.units.pop(scope, None)
        _, errored, pruned, reached = counts
        assert uniter.unites is not None
        if errored and uniter.unites[1] == "ALL_SUCCESS":
            failed = "an execution" if errored == 1 else f"{errored} executions"
            _pass_over(run, uniter, top.branch, SKIPPED, f"{failed} between {top.x} and it failed", self.now)
        elif top.width is None and not reached:
            _pass_over(run, uniter, top.branch, PRUNED, f"no branch of {top.x} reached it", self.now)
        else:
            if errored:
                self.absorb(top, uniter, scope)
            united = {"success": reached, "errored": errored, "pruned": pruned}
            self.create(uniter, top.branch, united=united)

    def absorb(self, top: Progress, uniter: NodePlan, scope: str) -> None:
        """What unites a scope takes its errors: they fail neither the run nor outer scopes."""
        run = self.run
        count = 0
        for each in run.executions.values():
            if each.state == ERRORED and not each.absorbed and scope in each.holds:
                each.absorbed = True
                run.changed.add(each.number)
                count += 1
        for fan in run.fans:
            if fan.fan is not None and (fan is top or scope in fan.holds):
                errored = sum(report["scopes"].get(scope, (0,))[0] for report in fan.fan.done.values())
                count += max(errored - fan.fan.absorbed, 0)
                fan.fan.absorbed = max(errored, fan.fan.absorbed)
                run.changed.add(fan.number)
        run.absorbed += count
        for outer in branches.holds(self.plan, uniter, top.branch):
            if outer in run.units:
                run.units[outer][1] -= min(count, run.units[outer][1])

    def conclude(self) -> None:
        """End the run if nothing is open; a slice tells when nothing in it holds up what is outside."""
        run = self.run
        if run.state != RUNNING:
            return
        if run.is_stopping and run.open:
            self.cancel_open()
        if run.open == 0:
            self.finish()
        elif run.slice is not None and not run.slice.is_reported and run.slice.holding == 0:
            run.slice.is_reported = True
            top = self.plan.nodes[run.slice.x.partition("/")[0]]
            if not (top.uniters or top.scopes):
                return  # nobody waits for it before its end
            self.todo.sends.append(report_of(self.plan, self.run, is_last=False))

    def finish(self, state: str = "") -> None:
        """The run has ended, in this state or the one that follows from its executions."""
        run = self.run
        if not state and not run.fault and run.errored <= run.absorbed and run.slice is None:
            try:
                run.outputs = returned(self.plan, run)
            except MissingValue as err:
                run.fault = {"code": "E703", "text": str(err)}
            except TooMuch as err:
                run.fault = {"code": "E711", "text": str(err)}
        run.state = state or (FAILED if run.fault or run.errored > run.absorbed else SUCCESS)
        run.ended = self.now
        run.is_paused = False
        self.todo.is_finished = True
        if self.plan.timeout_s is not None and run.slice is None:
            self.todo.call_back("late")
        tell(self)

    def cancel_open(self) -> None:
        """End all that is open as CANCELLED, also below this run."""
        for each in self.run.executions.values():
            if each.is_open:
                self.abandon(each)
                is_dispatched = each.state == QUEUED and each.fan is None and each.node.graph is None
                self.todo.is_gone = self.todo.is_gone or is_dispatched
                each.state = CANCELLED
                each.ended = self.now
                self.run.changed.add(each.number)
        self.run.open = 0

    def abandon(self, each: Progress) -> None:
        """Nobody waits for what this open execution began any more."""
        self.call_back(each)
        if each.fan is not None:
            self.todo.sends += (order(self.run, "cancel", id) for id in at_work(self.run, each))
        elif each.state == QUEUED and each.node.graph is not None:
            self.todo.sends.append(order(self.run, "cancel", child_of(self.run, each)))


def tell(step: Advance) -> None:
    """Tell the run above this one how it ended."""
    run = step.run
    if run.slice is not None:
        step.todo.sends.append(report_of(step.plan, run, is_last=True))
    elif run.up is not None:
        step.todo.sends.append(child_message(run.up, run.state, run.outputs, first_error(run)))


def _inputs_of(plan: Plan, run: GraphRun, each: Progress, parent: str, outputs: Any) -> Mapping[str, Any]:
    """What the graph says. Raises MissingValue and TooMuch."""
    node = each.node
    inputs: dict[str, Any] = {}
    for field, template in node.inputs.items():
        reference = template.reference
        if reference is not None and reference.node == parent and reference.field in outputs:
            inputs[field] = outputs[reference.field]
        elif template.is_literal:
            inputs[field] = template.value
        else:
            inputs[field] = template.render(
                lambda found: branches.look_back(plan, run, node, each.branch, found)
            )
    if not node.parents:
        inputs.update(run.inputs)
    if plan.strings_only:
        inputs = {field: as_text(value) for field, value in inputs.items()}
    bound_inputs(node, inputs)
    return inputs


def _set_reported(step: Advance, each: Progress, sets: Sequence[Sequence[Any]]) -> None:
    """Change the store as a slice did; too much of it fails the run, as its execution has ended."""
    run = step.run
    changes = [StoreChange(key, value, each.x, step.now) for key, value in sets]
    if (text := set_store(run, changes, step.plan.history)) and not run.fault:
        run.fault = {"code": "E711", "text": text}
        run.is_stopping = True


def reach(run: GraphRun, each: Progress, count: int) -> None:
    """So many of its outputs reached the nodes after it that unite."""
    for uniter in each.node.unite_next:
        if uniter in each.node.uniters:
            run.units.setdefault(f"{each.x}|{uniter}", [0, 0, 0, 0])[3] += count
        for scope in each.holds:
            if scope.endswith(f"|{uniter}") and scope in run.units:
                run.units[scope][3] += count


def _hold(plan: Plan, run: GraphRun, each: Progress) -> None:
    each.holds = branches.holds(plan, each.node, each.branch)
    for scope in each.holds:
        run.units.setdefault(scope, [0, 0, 0, 0])[0] += 1
    if run.slice is not None and is_outer(run, each):
        run.slice.holding += 1


def _uniters(node: NodePlan) -> list[str]:
    return [uniter for _, uniter in node.scopes]


def _can_absorb(plan: Plan, uniters: Sequence[str]) -> bool:
    return any(plan.nodes[uniter].absorbs for uniter in uniters)


def _pass_over(run: GraphRun, node: NodePlan, branch: str, state: str, text: str, now_ms: int) -> None:
    """A unite does not come about."""
    run.made += 1
    each = Progress(node.id + branch, node, branch, now_ms, run.made, 0)
    each.state = state
    each.ended = now_ms
    note(each, "", text, now_ms)
    run.executions[each.x] = each
    run.changed.add(each.number)
