"""What becomes of a run of a graph: the one place where a run changes.

The same run and message give the same result: time and luck are arguments. Whoever drives it (the engine,
`local`, the property tests) gives it messages, runs what is ready, and brings the results as messages.

    message      what it does
    start        a run begins: CREATED until its delay is over, then RUNNING with its first execution
    slice        a sub-run begins: what comes after up to 64 outputs of a fan-out
    result       an execution ends, waits to be tried or run again, or splits into branches
    slice_done   a slice has reported, or ended; after the last one its fan-out is done
    child        the run that an execution of a nested graph began has ended
    tick         something is due: start, retry, requeue, late
    go           what was ready and not run is ready again; slices that were not sent are sent
    control      cancel, pause, resume, retry, signal, store; by people, and by a run to those below it

    execution    becomes
    CREATED      QUEUED (dispatched) or, run inline, what a result says; WAITING (no processor has its kind)
    QUEUED       SUCCESS, PRUNED, ERRORED by a result; WAITING by an error with tries left, or a requeue
    WAITING      CREATED by a tick; of a `Wait`: SUCCESS by its signal, ERRORED by a tick
    any of them  CANCELLED with its run
    ERRORED      CREATED by a retry, as what is CANCELLED; unites that were SKIPPED are armed again
    -            SKIPPED or PRUNED: a unite that did not come about, after errors or with nothing to unite

A message that says nothing new (another attempt, an execution that is not open, a `control` seen before)
makes an empty Todo, so any message may come twice. What is no outcome of a node is an error of its execution
(E709). Invariants: `open` is the number of open executions, and a run in which none is open has ended; a
unite is decided once, when its top is done and its scope has nothing open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from processor.graphs.advance import Advance, note, set_timer, tell
from processor.graphs.history import WHO_CHARS, StoreChange, read_changes
from processor.graphs.plan import Plan
from processor.graphs.progress import (
    CANCELLED,
    CREATED,
    FAILED,
    NOTHING,
    PRUNED,
    QUEUED,
    RUNNING,
    SUCCESS,
    WAITING,
    Execution,
    GraphRun,
    Message,
    Progress,
    SliceOf,
    Timer,
    Todo,
)
from processor.graphs.retrying import retry
from processor.graphs.sizes import (
    LEAF_BYTES,
    RUN_BYTES,
    SIGNALS_BYTES,
    TooMuch,
    bound_inputs,
    set_store,
)
from processor.graphs.slices import at_work, child_message, child_of

MOST_REQUEUES = 1000
_KEPT_IDS = 50
_KEPT_SIGNALS = 50
# An execution without a processor looks again after 1 s, 2 s, 4 s and so on, at most this.
_LONGEST_LOOK_MS = 300_000


def start(plan: Plan, run_id: str, message: Message, now_ms: int) -> tuple[GraphRun, Todo]:
    """The run that a `start` or `slice` message begins. `plan` is of the version that the message names.

    The `seen_at` of a slice has to have been replaced with `seen` (see Todo).
    """
    run = GraphRun(run_id, plan.name, plan.version, now_ms)
    step = Advance(plan, run, now_ms)
    run.by = str(message.get("by", ""))
    run.up = message.get("up")
    run.depth = run.up.get("depth", 0) if run.up else 0
    if message["t"] == "slice":
        _start_slice(step, message)
    else:
        _start_run(step, message)
    step.conclude()
    return run, step.todo


def apply(plan: Plan, run: GraphRun, message: Message, now_ms: int, luck: float = 0.0) -> Todo:
    """What a message to a run that was started makes of it; `luck` is a random number in [0, 1)."""
    step = Advance(plan, run, now_ms, luck)
    if (act := _ACTS.get(message.get("t", ""))) is not None:
        act(step, message)
        step.conclude()
    return step.todo


def is_wanted(run: GraphRun, each: Execution) -> bool:
    """Whether this execution is still to be run: what came meanwhile may have ended it, or its run."""
    progress = run.executions.get(each.x)
    return progress is not None and progress.state == CREATED and progress.attempt == each.attempt


def dispatched(run: GraphRun, x: str, now_ms: int) -> Todo:
    """An execution that is wanted was sent to a pool or a worker: QUEUED, and late after `timeout_s`."""
    todo = Todo()
    each = run.executions[x]
    each.state = QUEUED
    each.sent = now_ms
    each.waits = 0
    run.changed.add(each.number)
    if each.node.timeout_s is not None:
        set_timer(run, each, todo, "late", now_ms + round(each.node.timeout_s * 1000))
    return todo


def waits(run: GraphRun, x: str, why: str, now_ms: int) -> Todo:
    """No processor has the kind of an execution that is wanted: it is WAITING (E704), and looks again.

    A `go` makes it ready at once, as when the kind was registered.
    """
    todo = Todo()
    each = run.executions[x]
    each.state = WAITING
    if not each.waits:
        note(each, "E704", why, now_ms)
    each.waits += 1
    run.changed.add(each.number)
    set_timer(run, each, todo, "retry", now_ms + min(500 << min(each.waits, 16), _LONGEST_LOOK_MS))
    return todo


def answer(message: Message, record: Mapping[str, Any] | None) -> list[Message]:
    """What is sent in answer to a message to a run that is not open: `record` is of the run, if it has one.

    A run waits for what it began below it. It is told where a retry of that finds nothing to try again.
    """
    up = message.get("up")
    if message.get("t") != "control" or message.get("what") != "retry" or not up:
        return []
    gone = {"code": "E708", "text": f"nothing is known of run {message['run']} any more"}
    if "first" in message:
        empty = {"ok": [], "counts": {}, "scopes": {}, "absorbed": 0, "executions": 0, "sets": []}
        failed = [{"x": f"{up['x']}.{message['first']}", **gone}]
        said = {"v": 1, "t": "slice_done", "run": up["run"], "x": up["x"], "a": up["a"]}
        said["first"] = message["first"]
        return [said | empty | {"state": FAILED, "is_last": True, "failed": failed, "errored": 1}]
    if record is None:
        return [child_message(up, CANCELLED, NOTHING, gone)]
    error = next(iter(record.get("errors", ())), None)
    return [child_message(up, record["state"], record.get("outputs") or {}, error)]


def refused(message: Message, code: str, text: str) -> list[Message]:
    """What is sent in answer to a `start` that cannot be done, to the execution that asked for it."""
    up = message.get("up")
    return [child_message(up, CANCELLED, NOTHING, {"code": code, "text": text})] if up else []


def _start_run(step: Advance, message: Message) -> None:
    run, plan = step.run, step.plan
    given, store = message.get("inputs") or {}, message.get("store") or {}
    fields = plan.nodes[plan.root].inputs
    run.inputs = {field: value for field, value in given.items() if field in fields}
    run.store = dict(plan.default_values)
    text = set_store(run, _changes(store, run.by, step.now))
    if (size := len(orjson.dumps(run.inputs))) > RUN_BYTES:
        run.inputs = NOTHING
        text = f"the inputs of the run are {size} bytes; {RUN_BYTES} are the most"
    if text:
        run.state, run.fault = RUNNING, {"code": "E711", "text": text}
        return
    delay_ms = message.get("delay_ms") or 0
    if delay_ms > 0:
        tick = {"v": 1, "t": "tick", "run": run.id, "x": None, "a": 0, "what": "start"}
        step.todo.set_timer(Timer("start", step.now + round(delay_ms), tick))
    else:
        _begin_run(step)


def _begin_run(step: Advance) -> None:
    run, plan = step.run, step.plan
    run.state = RUNNING
    run.started = step.now
    if missing := [key for key in plan.required_keys if key not in run.store]:
        named = ", ".join(repr(key) for key in missing)
        run.fault = {"code": "E707", "text": f"store keys {named} are missing and have no default"}
        return
    _set_late(step)
    step.create(plan.nodes[plan.root], "")


def _set_late(step: Advance) -> None:
    """The run is told when its `timeout_s` is over."""
    if step.plan.timeout_s is not None and step.run.slice is None:
        tick = {"v": 1, "t": "tick", "run": step.run.id, "x": None, "a": 0, "what": "late"}
        step.todo.set_timer(Timer("late", step.now + round(step.plan.timeout_s * 1000), tick))


def _start_slice(step: Advance, message: Message) -> None:
    run, plan, up = step.run, step.plan, message["up"]
    run.state = RUNNING
    run.started = step.now
    run.store = message["store"]
    run.signals = dict(message.get("signals", ()))
    run.slice = SliceOf(up["x"], message["first"], message["outputs"], message["seen"])
    id, slash, rest = run.slice.x.partition("/")
    node = plan.nodes[id]
    # One more than there is: what ends at once must not end the slice before all of it was created.
    run.slice.holding += 1
    for index, output in enumerate(message["outputs"], message["first"]):
        branch = f"{slash}{rest}/{id}.{index}"
        for after in node.next:
            follows = plan.nodes[after]
            step.create(follows, f"{branch}/~{id}" if follows.runs_for_each else branch, id, output)
    run.slice.holding -= 1


def _named(run: GraphRun, message: Message) -> Progress | None:
    """The execution that a message is about, if the run has it."""
    x = message.get("x")
    return run.executions.get(x) if isinstance(x, str) else None


def _result(step: Advance, message: Message) -> None:
    run = step.run
    each = _named(run, message)
    if each is None or each.attempt != message.get("a") or each.state not in (CREATED, QUEUED):
        return
    if each.fan is not None or run.state != RUNNING or each.node.is_wait or each.node.graph is not None:
        return
    each.sent = each.sent or step.now
    each.waits = 0
    if (sets := message.get("sets")) and not _take_sets(step, each, sets):
        return
    if "error" in message:
        _error(step, each, message)
    elif "prune" in message:
        data = message["prune"]
        each.outputs = data if len(orjson.dumps(data)) <= LEAF_BYTES else NOTHING
        step.close(each, PRUNED)
    elif "requeue_ms" in message:
        _requeue(step, each, message)
    elif isinstance(outputs := message.get("outputs"), dict | list) or outputs is None:
        step.succeed(each, outputs)
    else:
        step.fail(each, "E709", f"{each.node.id} returned {outputs!r:.80}, which is no object")


def _take_sets(step: Advance, each: Progress, sets: Any) -> bool:
    """Change the store as an execution said; False: it has failed for that."""
    changes = read_changes(sets, each.x, step.now)
    if changes is None:
        text = "sets of the store are lists of a key and a value, and of who and when where it is known"
        step.fail(each, "E709", text)
        return False
    text = set_store(step.run, changes, step.plan.history)
    if text:
        step.fail(each, "E711", text)
    return not text


def _changes(values: Mapping[str, Any], who: str, now_ms: int) -> list[StoreChange]:
    return [StoreChange(key, value, who[:WHO_CHARS], now_ms) for key, value in values.items()]


def _error(step: Advance, each: Progress, message: Message) -> None:
    error = message["error"] if isinstance(message["error"], dict) else {}
    step.fail(
        each,
        str(error.get("code", "E304"))[:8],
        str(error.get("text", "it failed and did not say why")),
        is_final=bool(message.get("final")),
        traceback=str(error.get("traceback") or ""),
        returned=message.get("returned"),
    )


def _requeue(step: Advance, each: Progress, message: Message) -> None:
    wait_ms, inputs = message["requeue_ms"], message.get("inputs")
    each.requeues += 1
    if not isinstance(wait_ms, int | float) or isinstance(wait_ms, bool) or not 0 <= wait_ms <= 1e12:
        step.fail(each, "E709", f"{each.node.id} asked to be run again in {wait_ms!r:.80} ms")
    elif inputs is not None and not isinstance(inputs, dict):
        step.fail(each, "E709", f"{each.node.id} asked to be run again with inputs that are no object")
    elif each.requeues > MOST_REQUEUES:
        step.fail(each, "E711", f"{each.node.id} was run again {MOST_REQUEUES} times at its own wish")
    else:
        if inputs:
            each.inputs = {**(each.inputs or {}), **inputs}
            each.gives = True
            try:
                bound_inputs(each.node, each.inputs)
            except TooMuch as err:
                step.fail(each, "E711", str(err))
                return
        step.wait_again(each, round(wait_ms), "requeue")


def _slice_done(step: Advance, message: Message) -> None:
    each = _named(step.run, message)
    if each is None or each.fan is None or message["first"] not in each.fan.sent:
        return
    if message["a"] != each.fan.asked.get(message["first"], 0):
        return
    before = each.fan.done.get(message["first"])
    if before is None or (message["is_last"] and not before["is_last"]):
        step.report(each, message)


def _child(step: Advance, message: Message) -> None:
    each = _named(step.run, message)
    if each is None or each.state != QUEUED or each.node.graph is None or each.attempt != message["a"]:
        return
    if message["state"] == SUCCESS:
        step.succeed(each, message["outputs"])
        return
    error = message.get("error") or {}
    text = f"run {child_of(step.run, each)} is {message['state']}"
    if error.get("text"):
        text += f": {error.get('code') or ''} {error['text']}"
    step.fail(each, error.get("code") or "E708", text, is_final=message["state"] == CANCELLED)


def _tick(step: Advance, message: Message) -> None:
    run, what, x = step.run, message.get("what"), message.get("x")
    if x is None:
        if what == "start" and run.state == CREATED:
            _begin_run(step)
        elif what == "late" and run.state == RUNNING:
            limit = step.plan.timeout_s or 0
            run.fault = {"code": "E710", "text": f"the run had no result within {limit:g} s (timeout_s)"}
            run.is_stopping = True
        return
    each = _named(run, message)
    if each is None or each.attempt != message.get("a") or run.state != RUNNING:
        return
    if what in ("retry", "requeue") and each.timer == "retry" and each.state == WAITING:
        each.timer = ""
        each.due = 0
        step.begin(each)
    elif what == "late" and each.timer == "late":
        each.timer = ""
        each.due = 0
        _late(step, each)


def _late(step: Advance, each: Progress) -> None:
    if each.node.is_wait:
        inputs = each.inputs or {}
        limit = inputs.get("timeout_s") or each.node.timeout_s
        text = f"no signal {inputs.get('signal')!r:.80} within {limit} s (timeout_s of {each.node.id})"
        step.fail(each, "E710", text, is_final=True)
        return
    if each.node.graph is not None:
        step.abandon(each)
    step.fail(each, "E710", f"no result within {each.node.timeout_s:g} s (timeout_s of {each.node.id})")


def _go(step: Advance, _: Message) -> None:
    run = step.run
    if run.state != RUNNING:
        return
    for each in list(run.executions.values()):
        if each.state == WAITING and each.waits:
            step.call_back(each)
            step.begin(each)
        elif each.state == CREATED:
            step.begin(each)
        elif each.is_open:
            step.send_slices(each)


def _control(step: Advance, message: Message) -> None:
    run, id = step.run, message.get("id")
    if id in run.ids:
        return
    if isinstance(id, str):
        run.ids = [*run.ids[1 - _KEPT_IDS :], id[:256]]
    if (control := _CONTROLS.get(str(message.get("what")))) is not None:
        control(step, message)


def _cancel(step: Advance, message: Message) -> None:
    run = step.run
    if run.is_ended:
        return
    reason = f": {message['reason']}" if message.get("reason") else ""
    run.fault = {"code": "", "text": f"cancelled by {message.get('by') or 'somebody'}{reason}"[:500]}
    if run.state == CREATED:
        step.todo.call_back("start")
    step.cancel_open()
    step.finish(CANCELLED)


def _pause(step: Advance, message: Message) -> None:
    if not step.run.is_ended and not step.run.is_paused:
        step.run.is_paused = True
        _pass_on(step, message)


def _resume(step: Advance, message: Message) -> None:
    if not step.run.is_ended and step.run.is_paused:
        step.run.is_paused = False
        _pass_on(step, message)
        _go(step, message)


def _pass_on(step: Advance, message: Message) -> None:
    """Say the same to the slices and child runs that are at work."""
    for each in step.run.executions.values():
        if each.fan is not None and each.is_open:
            step.todo.sends += [message | {"run": id} for id in at_work(step.run, each)]
        elif each.state == QUEUED and each.node.graph is not None and message["what"] != "signal":
            step.todo.sends.append(message | {"run": child_of(step.run, each)})


def _signal(step: Advance, message: Message) -> None:
    """End each Wait of that name, or with that `x`; without one all. Who comes later finds it, too."""
    run, name, value = step.run, message.get("x"), message.get("value")
    if run.is_ended:
        return
    found = [
        each
        for each in run.executions.values()
        if each.node.is_wait
        and each.state == WAITING
        and (name is None or name == each.x or (each.inputs or {}).get("signal") == name)
    ]
    for each in found:
        step.succeed(each, {"value": value})
    _pass_on(step, message)
    if not found and isinstance(name, str):
        signals = {**run.signals, name: value}
        if len(signals) <= _KEPT_SIGNALS and len(orjson.dumps(signals)) <= SIGNALS_BYTES:
            run.signals = signals


def _store(step: Advance, message: Message) -> None:
    if isinstance(message.get("value"), dict) and not step.run.is_ended:
        changes = _changes(message["value"], str(message.get("by") or ""), step.now)
        set_store(step.run, changes, step.plan.history)


def _retry(step: Advance, message: Message) -> None:
    up = message.get("up")
    if step.run.up is not None and isinstance(up, dict) and up.get("run") == step.run.up["run"]:
        step.run.up = up
    if retry(step, message.get("x"), is_all=bool(message.get("after"))):
        _set_late(step)
    elif step.run.is_ended and not step.run.executions and (step.run.fault or {}).get("code") != "E711":
        step.run.fault = None
        step.run.ended = 0
        _begin_run(step)
    elif step.run.is_ended and up:
        tell(step)  # who asks waits for an answer


_ACTS: Mapping[str, Callable[[Advance, Message], None]] = {
    "result": _result,
    "slice_done": _slice_done,
    "child": _child,
    "tick": _tick,
    "go": _go,
    "control": _control,
}
_CONTROLS: Mapping[str, Callable[[Advance, Message], None]] = {
    "cancel": _cancel,
    "pause": _pause,
    "resume": _resume,
    "retry": _retry,
    "signal": _signal,
    "store": _store,
}
