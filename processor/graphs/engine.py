"""What the route `graphs` has in place of a guest: it applies messages to runs, and runs ready nodes at once.

A worker gives an `Engine` the messages of some runs, and gets an outcome as of any guest: messages for its
commit, and what changed of the contexts, which are the runs. Executions that become ready and reach nothing
outside are run before that, round after round, so a graph of such nodes is one commit and leaves no context.
What can reach outside is sent to its pool, or to external workers, with that commit.

What must stay true:
- A user's code never fails a message: what it does is a result of its execution.
- A batch stops where its commit would become too large, or others would wait for it; what is ready then stays
  in its run, and the run has a `go` in the same commit.
- What was in memory when anything here failed is not used again: the worker makes another engine, which gets
  the runs as they are committed.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar

import orjson

from processor.delivery.codec import failed_result
from processor.graphs import machine, runs
from processor.graphs.definition import GraphDefinition
from processor.graphs.inline import Given, InlineGuests, Spawn
from processor.graphs.outbox import EVENTS_MAX, NoRoom, Outbox
from processor.graphs.progress import (
    CANCELLED,
    CREATED,
    FAILED,
    QUEUED,
    SUCCESS,
    Execution,
    GraphRun,
    Message,
    Timer,
    Todo,
)
from processor.graphs.shelf import Definitions, NoVersion, Shelf
from processor.graphs.slices import child_message
from processor.jetstream import Broker
from processor.model import (
    NO_CONTEXT,
    ContextChange,
    Failed,
    Failure,
    Group,
    Outcome,
    Ran,
)
from processor.route import GraphEngine, NodeGroup, Route
from processor.sandbox.calls import Answer
from processor.telemetry import GraphTelemetry

log = logging.getLogger("processor")

# A batch takes no more executions once it has left so many messages, run so many, or taken so long: it has to
# fit a commit, and everything else of its lane waits for it.
BATCH_MESSAGES = 450
BATCH_EXECUTIONS = 2000
BATCH_S = 0.2
_SPARE_BYTES = 64 << 10  # of a message, for its headers and what a commit adds


class _Turn:
    """One run in one batch: what its messages have made of it until now.

    `kept` says that there is a context of it. `said` is what people can see of it in the stream: the state of
    its record, or that and whether it is paused where it is open; empty where there is nothing.
    """

    __slots__ = ("has_left", "is_expired", "is_new", "kept", "key", "number", "run", "said", "todo")

    def __init__(self, number: int, key: str, run: GraphRun | None) -> None:
        self.number = number  # of its group in the batch, of the first where there are several
        self.key = key
        self.run = run
        self.todo = Todo()
        self.has_left = False  # executions that are ready, and were not run in this batch
        self.is_expired = False
        self.is_new = False
        self.kept = run is not None
        self.said = "" if run is None or run.slice is not None else _said(run)


class _Place(NamedTuple):
    """Where an execution runs: in a group of nodes, with external workers, or, for a reason, nowhere."""

    where: Literal["inline", "pool", "external", "nowhere"]
    group: str = ""
    why: str = ""


_Pairs = list[tuple[_Turn, Execution]]
_T = TypeVar("_T")


class Engine:
    """Runs the graphs of one lane; a worker takes it for a guest (see `BatchRunner`)."""

    def __init__(
        self,
        route: Route,
        definitions: Definitions,
        broker: Broker,
        spawn: Spawn,
        telemetry: GraphTelemetry,
        clock: Callable[[], float] = time.time,
        luck: Callable[[], float] = random.random,
    ) -> None:
        """`spawn` starts a guest of a group of nodes."""
        assert route.engine is not None, "only a route with an engine has one"
        self._app = route.app
        self._engine: GraphEngine = route.engine
        self._groups: Mapping[str, NodeGroup] = route.groups
        self._definitions = definitions
        self._telemetry = telemetry
        self._room = broker.max_payload - _SPARE_BYTES
        self._clock = clock
        self._luck = luck
        self._inline = InlineGuests(route.groups, spawn, self._room)
        self._shelf = Shelf(route.app, definitions, broker)
        self._waiting: dict[str, set[str]] = {}  # by kind, runs that wait for it
        self._is_alive = True

    @property
    def alive(self) -> bool:
        """Whether what it has in memory is what is, or will be, committed."""
        return self._is_alive

    @property
    def verdict(self) -> Failure | None:
        """Nobody ends it from outside."""
        return None

    def awaiting(self, kind: str) -> frozenset[str]:
        """The runs here that wait for a kind, each told once; others look for it again by themselves."""
        return frozenset(self._waiting.pop(kind, ()))

    async def close(self) -> None:
        """End its guests. Idempotent."""
        self._is_alive = False
        await self._inline.close()

    async def run(
        self,
        groups: Sequence[Group],
        *,
        fields: Sequence[str] = (),
        forget: Sequence[str] = (),
        messages: bytes = b"",
        answer: Answer | None = None,
    ) -> Outcome:
        """What the messages of these groups, each of one run, make of the runs; see `Guest.run`."""
        self._shelf.forget(forget)
        for waiting in self._waiting.values():
            waiting.difference_update(forget)
        if not groups:
            return Ran()
        started_s = time.perf_counter()
        try:
            return await self._batch(groups)
        except NoVersion as err:
            failure = Failure("E706", str(err), lethal=True)
        except Exception:  # a wall: messages to runs may hold anything
            log.exception("an unexpected error in the engine of graphs; please report it")
            text = "an error of Processor's own in the engine of graphs; its log has it, please report it"
            failure = Failure("E365", text, lethal=True)
        except BaseException:
            self._is_alive = False
            raise
        self._is_alive = False
        return Failed(failure, wall_s=time.perf_counter() - started_s)

    async def _batch(self, groups: Sequence[Group]) -> Ran:
        started_s = time.perf_counter()
        now_ms = int(self._clock() * 1000)
        batch = _Batch(Outbox(self._app, self._engine, now_ms, self._room), now_ms)
        rejected: list[tuple[int, int, Failure]] = []
        given: list[tuple[_Turn, Message]] = []
        for number, group in enumerate(groups):
            if group.context is not None:
                await self._shelf.take(group.key, group.context)
            turn = batch.turns.get(group.key)
            if turn is None:
                turn = batch.turns[group.key] = _Turn(number, group.key, self._shelf[group.key])
            for index, document in enumerate(group.documents):
                message = orjson.loads(document)
                if why := wrong_message(message):
                    rejected.append((number, index, Failure("E302", why)))
                else:
                    given.append((turn, message))
        records = await self._shelf.records([(turn.key, message) for turn, message in given])
        for turn, message in given:
            await self._tell(batch, turn, message, records.get(turn.key))
        await self._rounds(batch, started_s + BATCH_S)
        for turn in batch.turns.values():
            self._leave(batch, turn)
        inline = self._inline
        logs, inline.logs = inline.logs, []
        cpu_s, inline.cpu_s = inline.cpu_s, 0.0
        return Ran(
            emits=batch.outbox.emits,
            contexts=batch.contexts,
            rejected=rejected,
            logs=logs,
            wall_s=time.perf_counter() - started_s,
            cpu_s=cpu_s,
            memory_bytes=inline.memory_bytes,
        )

    # Messages.

    async def _tell(self, batch: _Batch, turn: _Turn, message: Message, record: Message | None) -> None:
        """Apply a message to its run."""
        kind = message["t"]
        if kind in ("start", "slice"):
            if turn.run is None and record is None and not self._shelf.has_ended(turn.key):
                await self._start(batch, turn, message)
            return
        is_revived = turn.run is None and await self._revive(turn, message, record)
        run = turn.run
        if run is None:
            self._answer(batch, turn, message, record)
            return
        if kind == "tick" and message["what"] == "expire":
            turn.is_expired = run.is_ended
            return
        if "ns" in message and not self._is_theirs(run, message):
            log.debug("a result from %s is of none of its executions", message["ns"])
            return
        if kind == "result":
            self._count(run, message, batch.now_ms)
            self._tell_events(batch, turn, run, message)
        was_ended = run.is_ended
        todo = machine.apply(self._shelf.plan_of(run), run, message, batch.now_ms, self._luck())
        if is_revived and run.is_ended and not todo.is_finished:  # there was nothing to try again
            turn.run = None
            self._answer(batch, turn, message, record)
            return
        if was_ended and turn.kept and (not run.is_ended or todo.is_finished):
            todo.call_back(_EXPIRE)
        batch.note(turn, todo)

    def _answer(self, batch: _Batch, turn: _Turn, message: Message, record: Message | None) -> None:
        for answer in machine.answer(message, record):
            batch.outbox.send(turn.number, answer)

    async def _start(self, batch: _Batch, turn: _Turn, message: Message) -> None:
        """Begin a run; one of a graph that is not there, or has no valid version, is FAILED at once."""
        turn.is_new = True
        graph, version = message["graph"], message.get("version")
        plan = await self._shelf.plan(graph, version)
        if plan is None:
            said = f"version {version} of graph {graph!r}" if version else f"graph {graph!r}"
            fault = {"code": "E706", "text": f"{said} is not there, or has no valid version"}
            if message["t"] == "slice":
                raise NoVersion(fault["text"])
            turn.run, todo = _refused(turn.key, message, fault, batch.now_ms)
        else:
            if "seen_at" in message:
                message = {**message, "seen": await self._shelf.shared(message["seen_at"])}
            turn.run, todo = machine.start(plan, turn.key, message, batch.now_ms)
        batch.note(turn, todo)

    async def _revive(self, turn: _Turn, message: Message, record: Message | None) -> bool:
        """Have the run of a record again, where the message is to try again what failed in it."""
        is_retry = message["t"] == "control" and message["what"] == "retry"
        if record is None or not is_retry or record["state"] == SUCCESS or record.get("large"):
            return False
        turn.run = await self._shelf.revived(record)
        turn.said = record["state"]
        return turn.run is not None

    def _is_theirs(self, run: GraphRun, message: Message) -> bool:
        """Whether what external workers of a namespace sent is a result of an execution that they have."""
        each = run.executions.get(message["x"])
        if each is None or each.state != QUEUED or not each.node.kind.startswith(f"{message['ns']}/"):
            return False
        kind = self._definitions.kind(each.node.kind)
        return kind is not None and kind.where == "external"

    # Executions.

    async def _rounds(self, batch: _Batch, until_s: float) -> None:
        """Run what is ready, and what becomes ready by that, as far as the batch has room."""
        executed = 0
        turns = dict.fromkeys(batch.turns.values())
        while inline := self._ready(batch, turns):
            turns = {}
            for group, pairs in inline.items():
                is_full = len(batch.outbox) >= BATCH_MESSAGES or time.perf_counter() > until_s
                room = 0 if is_full else BATCH_EXECUTIONS - executed
                for turn, _ in pairs[room:]:
                    turn.has_left = True
                if not (pairs := pairs[:room]):
                    continue
                executed += len(pairs)
                found = await self._inline.run(group, [execution for _, execution in pairs])
                for (turn, execution), given in zip(pairs, found, strict=True):
                    self._given(batch, turn, execution, given)
                    turns[turn] = None

    def _ready(self, batch: _Batch, turns: Iterable[_Turn]) -> dict[str, _Pairs]:
        """Send what is ready to where it runs; what is to be run here, by group."""
        inline: dict[str, _Pairs] = {}
        for turn in turns:
            # What waits for its kind, or is sent, may become ready no sooner than by a message.
            ready, turn.todo.ready = turn.todo.ready, []
            for execution in ready:
                run = turn.run
                if run is None or not machine.is_wanted(run, execution):
                    continue
                place = self._place(execution)
                if place.where == "inline":
                    inline.setdefault(place.group, []).append((turn, execution))
                elif place.where == "nowhere":
                    self._waiting.setdefault(execution.node.kind, set()).add(run.id)
                    batch.note(turn, machine.waits(run, execution.x, place.why, batch.now_ms))
                elif len(batch.outbox) >= BATCH_MESSAGES:
                    turn.has_left = True
                else:
                    self._dispatch(batch, turn, run, execution, place)
        return inline

    def _dispatch(
        self, batch: _Batch, turn: _Turn, run: GraphRun, execution: Execution, place: _Place
    ) -> None:
        """Send an execution to where it runs; one that no message holds has failed for good."""
        try:
            if place.where == "pool":
                batch.outbox.pooled(turn.number, execution, run.graph, self._groups[place.group])
            else:
                batch.outbox.external(turn.number, execution, run.graph)
        except NoRoom as err:
            self._given(batch, turn, execution, Given(failed_result(Failure("E711", str(err)))))
        else:
            batch.note(turn, machine.dispatched(run, execution.x, batch.now_ms))

    def _place(self, execution: Execution) -> _Place:
        id = execution.node.kind
        kind = self._definitions.kind(id)
        if kind is None:
            return _Place("nowhere", why=f"no kind {id!r} is registered")
        if kind.where == "external":
            return _Place("external")
        group = self._groups.get(kind.group)
        if group is None or group.is_pool != (kind.where == "pool"):
            what = f"kind {id!r} is of the {kind.where} group {kind.group!r}"
            return _Place("nowhere", why=f"{what}, which the configuration here has not")
        return _Place(kind.where, kind.group)

    def _given(self, batch: _Batch, turn: _Turn, execution: Execution, given: Given) -> None:
        """Apply what an execution gave that was run here."""
        run = turn.run
        assert run is not None
        message = {
            "v": 1,
            "t": "result",
            "run": run.id,
            "x": execution.x,
            "a": execution.attempt,
        } | given.result
        self._count(run, message, batch.now_ms, given.seconds)
        batch.outbox.emits += [replace(emit, group=turn.number) for emit in given.emits]
        if given.events and (definition := self._definition(run)) is not None:
            for event in given.events:
                data = orjson.Fragment(event.body)
                batch.outbox.user_event(turn.number, definition, run, execution.x, event.name, data)
        batch.note(turn, machine.apply(self._shelf.plan_of(run), run, message, batch.now_ms, self._luck()))

    def _tell_events(self, batch: _Batch, turn: _Turn, run: GraphRun, message: Message) -> None:
        """Send what a node of a pool said with `self.event`, once: with the result of its execution."""
        events = message.get("events")
        each = run.executions.get(message["x"])
        if not isinstance(events, list) or each is None or each.attempt != message["a"] or not each.is_open:
            return
        if "ns" in message or (definition := self._definition(run)) is None:
            return  # what runs outside has events of its own
        for event in events[:EVENTS_MAX]:  # its pool lets no more through; a guest could write them itself
            if isinstance(event, list) and len(event) == 2 and isinstance(event[0], str):
                batch.outbox.user_event(turn.number, definition, run, each.x, *event)

    def _definition(self, run: GraphRun) -> GraphDefinition | None:
        return self._definitions.definition(run.graph, run.version)

    def _count(self, run: GraphRun, message: Message, now_ms: int, seconds: float | None = None) -> None:
        each = run.executions.get(message["x"])
        if each is None or each.attempt != message["a"] or not each.is_open:
            return
        if seconds is None and each.sent:
            seconds = max(0, now_ms - each.sent) / 1000
        self._telemetry.executed(run.graph, each.node.id, outcome_of(message), seconds)

    # What a batch leaves behind.

    def _leave(self, batch: _Batch, turn: _Turn) -> None:
        run, todo, outbox, number = turn.run, turn.todo, batch.outbox, turn.number
        if run is None:
            return
        if turn.is_expired:
            outbox.unshare(number, run)
            batch.contexts[turn.key] = NO_CONTEXT
            self._shelf.end(turn.key)
            return
        change = NO_CONTEXT if run.is_ended else runs.change_of(run)
        if any(value is not None and len(value) > self._room for value in change.items.values()):
            text = f"what is kept of the run is more than a message takes ({self._room} bytes)"
            cancel = {"t": "control", "run": run.id, "id": "E711", "what": "cancel", "by": "the engine: E711"}
            plan = self._shelf.plan_of(run)
            batch.note(turn, machine.apply(plan, run, {**cancel, "reason": text}, batch.now_ms))
        if run.is_ended and todo.is_finished:
            self._end(batch, turn, run)
        elif not run.is_ended:
            if turn.has_left or todo.has_more or todo.ready:
                outbox.go(number, run.id)
            batch.contexts[turn.key] = change
            self._shelf.put(turn.key, run)
            if run.slice is None and turn.said != _said(run):
                if turn.said in _ENDED:
                    outbox.not_in(number, run, turn.said)
                outbox.running(number, run)
                self._tell_started(batch, turn, run)
        elif turn.kept and (run.changed or run.parts):
            # A slice has ended after its run was cancelled: what it reported is not to be run again.
            batch.contexts[turn.key] = runs.change_of(run)
            self._shelf.put(turn.key, run)
        for timer in todo.timers.values():
            outbox.timer(number, run.id, timer)
        for name in todo.needless:
            outbox.call_back(number, run.id, name)
        for shared, values in todo.seen:
            outbox.share(number, run.id, shared, values)
        if todo.is_gone:
            outbox.cancelled(number, run.id)

    def _end(self, batch: _Batch, turn: _Turn, run: GraphRun) -> None:
        """The run has ended in this batch: leave its record, and forget it unless that is not enough."""
        outbox, number = batch.outbox, turn.number
        is_kept = run.state != SUCCESS
        if run.slice is None:
            record = runs.record_of(run)
            is_kept = is_kept and bool(record.get("large"))
            if turn.said and turn.said != run.state:
                outbox.not_in(number, run, turn.said if turn.said in _ENDED else "running")
            outbox.record(number, run, record)
            self._tell_started(batch, turn, run)
            if (definition := self._definition(run)) is not None:
                outbox.output(number, definition, record)
                outbox.event(number, definition, _EVENTS[run.state], run, errors=record["errors"])
            self._telemetry.run_ended(run.graph, run.state.lower(), (run.ended - run.created) / 1000)
        if is_kept:
            expire = {"v": 1, "t": "tick", "run": run.id, "x": None, "a": 0, "what": _EXPIRE}
            at_ms = batch.now_ms + int(outbox.kept_s(run.state) * 1000)
            turn.todo.set_timer(Timer(_EXPIRE, at_ms, expire))
            change = runs.change_of(run)
            if all(value is None or len(value) <= self._room for value in change.items.values()):
                batch.contexts[turn.key] = change
                self._shelf.put(turn.key, run)
                return
        outbox.unshare(number, run)
        if turn.kept:
            batch.contexts[turn.key] = NO_CONTEXT
        self._shelf.end(turn.key)

    def _tell_started(self, batch: _Batch, turn: _Turn, run: GraphRun) -> None:
        if turn.said in ("", CREATED) and run.started and (definition := self._definition(run)) is not None:
            batch.outbox.event(turn.number, definition, "started", run)


class _Batch:
    """What one call of `run` has made until now."""

    def __init__(self, outbox: Outbox, now_ms: int) -> None:
        self.outbox = outbox
        self.now_ms = now_ms
        self.turns: dict[str, _Turn] = {}
        self.contexts: dict[str, ContextChange] = {}

    def note(self, turn: _Turn, todo: Todo) -> None:
        """Add what a message made necessary; what is for other runs is sent at once."""
        for message in todo.sends:
            self.outbox.send(turn.number, message)
        todo.sends = []
        # Until the end of the batch: what a later message does not say again is still so.
        todo.has_more |= turn.todo.has_more
        todo.is_finished |= turn.todo.is_finished
        turn.todo.add(todo)


def _refused(key: str, message: Message, fault: Message, now_ms: int) -> tuple[GraphRun, Todo]:
    """A run that cannot begin, and has ended with a fault."""
    run = GraphRun(key, message["graph"], message.get("version") or "", now_ms)
    run.by, run.up = str(message.get("by", "")), message.get("up")
    run.inputs, run.store = message.get("inputs") or {}, message.get("store") or {}
    run.state, run.fault, run.ended = FAILED, fault, now_ms
    todo = Todo()
    todo.is_finished = True
    if run.up is not None:
        todo.sends.append(child_message(run.up, FAILED, {}, fault))
    return run, todo


def outcome_of(result: Message) -> str:
    """A result in one word, for metrics."""
    for name, outcome in (("error", "error"), ("prune", "pruned"), ("requeue_ms", "requeued")):
        if name in result:
            return outcome
    return "success"


def wrong_message(message: Message) -> str:
    """What keeps a message from being read as one to a run; empty where nothing does."""
    kind = message.get("t")
    needed = _NEEDED.get(kind) if isinstance(kind, str) else None
    if needed is None:
        return f"t of the message is {kind!r:.80}; {', '.join(_NEEDED)} are read"
    for name, types in needed:
        if not isinstance(message.get(name), types):
            return f"{name} of the message is {message.get(name)!r:.80}"
    return ""


def _said(run: GraphRun) -> str:
    """What people see of a run in the stream, beside how far it is."""
    return f"{run.state} paused" if run.is_paused and not run.is_ended else run.state


_EXPIRE = "expire"
_ENDED = frozenset((SUCCESS, FAILED, CANCELLED))
_EVENTS = {SUCCESS: "completed", FAILED: "failed", CANCELLED: "cancelled"}
_NO = type(None)
# By kind of message, what each has to have for the machine to read it.
_NEEDED: Mapping[str, tuple[tuple[str, type | tuple[type, ...]], ...]] = {
    "start": (
        ("graph", str), ("version", (str, _NO)), ("inputs", (dict, _NO)), ("store", (dict, _NO)),
        ("delay_ms", (int, float, _NO)), ("up", (dict, _NO)),
    ),
    "slice": (
        ("graph", str), ("version", str), ("up", dict), ("first", int), ("outputs", list), ("store", dict),
    ),
    "result": (("x", str), ("a", int)),
    "slice_done": (("x", str), ("first", int), ("ok", list), ("counts", dict)),
    "child": (("x", str), ("a", int), ("state", str)),
    "tick": (("x", (str, _NO)), ("what", str)),
    "go": (),
    "control": (("what", str),),
}  # fmt: skip
