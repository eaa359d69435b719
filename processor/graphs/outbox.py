"""What the runs of one batch leave behind, as messages of its commit: see `Outbox`.

The engine says here what became of its runs, and hands all of it to its worker as emits: to other runs, pools
and external workers, to the server as timers, and to people as records, outputs and events. Nothing here
decides, waits, or knows a guest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from processor.context.parked import timestamp
from processor.context.subjects import GraphSubjects, RouteSubjects, committed_subject
from processor.graphs.definition import GraphDefinition
from processor.graphs.progress import CANCELLED, FAILED, SUCCESS, Execution, GraphRun, Message, Timer
from processor.graphs.runs import summary_of
from processor.jetstream import GONE, KEPT
from processor.model import SAFE_TOKEN, Emit, key_token, partition_of
from processor.route import ENGINE, GraphEngine, NodeGroup

_GONE_KEPT = {"Nats-Rollup": "sub", "Nats-TTL": "24h"}
# An external worker that never comes leaves its executions for so long; the run waits on.
_WORK_KEPT = {"Nats-TTL": "168h"}
_ERRORS_SHOWN = 20
EVENTS_MAX = 300  # of one execution: the commit of its run has room for no more
_CUT_BYTES = 2 << 10
_TOKEN_CHARS = 80  # of a value in a subject that is no token as it is


def inner_subjects(app: str, pools: Sequence[str]) -> tuple[str, ...]:
    """The patterns of the app's own subjects that an engine with these pools writes to."""
    graphs = GraphSubjects(app)
    return (
        RouteSubjects(app, ENGINE).inbox(),
        *(RouteSubjects(app, pool).inbox() for pool in pools),
        graphs.runs(),
        graphs.every_timer,
        committed_subject(app, f"work.{app}.>"),
        graphs.every_gone,
        graphs.every_seen,
    )


class NoRoom(Exception):
    """An execution that no message holds; the text says how large it is."""


class Outbox:
    """Messages of one commit. `group` is the one of the batch that a message came of."""

    def __init__(self, app: str, engine: GraphEngine, now_ms: int, room: int) -> None:
        """A message may have `room` bytes."""
        self.emits: list[Emit] = []
        self._room = room
        self._app = app
        self._engine = engine
        self._now_ms = now_ms
        self._graphs = GraphSubjects(app)
        self._runs = RouteSubjects(app, ENGINE)

    def __len__(self) -> int:
        return len(self.emits)

    def send(self, group: int, message: Message) -> None:
        """A message to the run that it names."""
        subject = self._runs.inbox(self._partition(message["run"]))
        self.emits.append(Emit(group, subject, orjson.dumps(message)))

    def go(self, group: int, run: str) -> None:
        """The run goes on in another batch."""
        self.send(group, {"v": 1, "t": "go", "run": run})

    def pooled(self, group: int, execution: Execution, graph: str, pool: NodeGroup) -> None:
        """An execution for the pool of its group of nodes. Raises NoRoom."""
        partition = partition_of(execution.run + execution.x, pool.partitions)
        subject = RouteSubjects(self._app, pool.route_name).inbox(partition)
        self.emits.append(Emit(group, subject, self._execution(execution, graph, pool.reads_history)))

    def external(self, group: int, execution: Execution, graph: str) -> None:
        """An execution for the external workers of its kind. Raises NoRoom."""
        namespace, _, node = execution.node.kind.partition("/")
        subject = committed_subject(self._app, self._graphs.work(namespace, node))
        self.emits.append(Emit(group, subject, self._execution(execution, graph), headers=_WORK_KEPT))

    def timer(self, group: int, run: str, timer: Timer) -> None:
        """Let the server send a message to its run when it is due."""
        partition = self._partition(run)
        at = datetime.fromtimestamp(timer.at_ms / 1000, UTC)
        headers = {
            **KEPT,
            "Nats-Schedule": f"@at {timestamp(at)}",
            "Nats-Schedule-Target": self._runs.inbox(partition),
        }
        subject = self._graphs.timer(partition, run, timer.name)
        self.emits.append(Emit(group, subject, orjson.dumps(timer.message), headers=headers))

    def call_back(self, group: int, run: str, name: str) -> None:
        """Take a timer away that may not be due yet."""
        self._remove(group, self._graphs.timer(self._partition(run), run, name))

    def cancelled(self, group: int, run: str) -> None:
        """Let pools and external workers skip what was sent to them of a run until now."""
        body = orjson.dumps({"v": 1, "run": run, "at_ms": self._now_ms})
        self.emits.append(Emit(group, self._graphs.gone(run), body, headers=_GONE_KEPT))

    def share(self, group: int, run: str, number: int, values: Mapping[str, Any]) -> None:
        """Keep what the slices of a fan-out have in common."""
        self.emits.append(Emit(group, self._graphs.seen(run, number), orjson.dumps(values), headers=KEPT))

    def unshare(self, group: int, run: GraphRun) -> None:
        """No slice of a run needs what they had in common any more."""
        for number in range(1, run.seen + 1):
            self._remove(group, self._graphs.seen(run.id, number))

    def running(self, group: int, run: GraphRun) -> None:
        """People see that the run is open."""
        subject = self._graphs.run(run.graph, "running", run.id)
        self.emits.append(Emit(group, subject, orjson.dumps(summary_of(run)), headers=KEPT))

    def not_in(self, group: int, run: GraphRun, state: str) -> None:
        """The run has no record in this state any more."""
        self._remove(group, self._graphs.run(run.graph, state.lower(), run.id))

    def record(self, group: int, run: GraphRun, record: Message) -> None:
        """Keep the record of a run that has ended, and show it to onlookers."""
        body = orjson.dumps(record)
        if len(body) > self._room:
            body = orjson.dumps(_cut(record))
        headers = {"Nats-Rollup": "sub", "Nats-TTL": f"{int(self.kept_s(run.state))}s"}
        subject = self._graphs.run(run.graph, run.state.lower(), run.id)
        self.emits.append(Emit(group, subject, body, headers=headers))
        self.emits.append(Emit(group, self._graphs.live_record(run.graph, run.id), body))

    def kept_s(self, state: str) -> float:
        """How long the record of a run is kept that ended in this state."""
        engine = self._engine
        return {
            SUCCESS: engine.keep_success_s,
            FAILED: engine.keep_failed_s,
            CANCELLED: engine.keep_cancelled_s,
        }[state]

    def output(self, group: int, definition: GraphDefinition, record: Message) -> None:
        """The document of a finished run, where its graph has a subject for them."""
        if definition.output is None:
            return
        document = {key: record[key] for key in ("run", "graph", "version", "state", "outputs", "ended")}
        document["errors"] = record["errors"][:_ERRORS_SHOWN]
        template = definition.output.template
        subject = template.render(fields=[_token(document, name) for name in template.fields])
        self.emits.append(Emit(group, subject, orjson.dumps(document)))

    def event(self, group: int, definition: GraphDefinition, kind: str, run: GraphRun, **more: Any) -> None:
        """What is said of a run, for those who want that much."""
        events = definition.events
        if events is None or kind not in _TOLD[events.level]:
            return
        at = timestamp(datetime.fromtimestamp(self._now_ms / 1000, UTC))
        body = {"event": kind, "graph": run.graph, "run": run.id, "time": at, **more}
        if definition.test_meta:
            body["test_meta"] = definition.test_meta
        self.emits.append(Emit(group, events.subject, orjson.dumps(body)))

    def user_event(
        self, group: int, definition: GraphDefinition, run: GraphRun, x: str, name: str, data: Any
    ) -> None:
        """What a node said with `self.event`."""
        self.event(group, definition, "user", run, x=x, name=name, data=data)

    def _execution(self, execution: Execution, graph: str, reads_history: bool = False) -> bytes:
        message: Message = {
            "v": 1, "t": "exec", "run": execution.run, "x": execution.x, "a": execution.attempt,
            "kind": execution.node.kind, "graph": graph, "inputs": execution.inputs, "store": execution.store,
            "sent_ms": self._now_ms,
        }  # fmt: skip
        if execution.united is not None:
            message["united"] = execution.united
        if reads_history and execution.history:
            message["history"] = execution.history
        body = orjson.dumps(message)
        if len(body) > self._room:
            what = f"inputs and store of {execution.node.id} have {len(body)} bytes"
            raise NoRoom(f"{what}; a message takes {self._room}")
        return body

    def _remove(self, group: int, subject: str) -> None:
        self.emits.append(Emit(group, subject, b"", headers=GONE))

    def _partition(self, run: str) -> int:
        return partition_of(run, self._engine.partitions)


# By what a graph wants to be told, which events that are.
_TOLD = {
    "user": frozenset({"user"}),
    "failures": frozenset({"user", "failed", "cancelled"}),
    "all": frozenset({"user", "failed", "cancelled", "started", "completed"}),
}


def _cut(record: Message) -> Message:
    """A record with sizes in place of what is large in it; who has it cannot go on from there."""
    cut = {**record, "executions": [], "large": True}
    cut.pop("history", None)
    for name in ("inputs", "store", "outputs"):
        if (size := len(orjson.dumps(cut[name]))) > _CUT_BYTES:
            cut[name] = {"cut": size}
    return cut


def _token(document: Message, name: str) -> str:
    """A field of the document as one token of its subject, whatever the field holds."""
    output = name.removeprefix("outputs.")
    found = document[name] if output == name else (document["outputs"] or {}).get(output, "")
    text = found if isinstance(found, str) else str(found)
    return text if SAFE_TOKEN.match(text) else key_token(text[:_TOKEN_CHARS])
