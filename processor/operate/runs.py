"""Runs of graphs, for those who run none of them: start, list, show, and steer them.

An order to a run is a message to it, as all that happens to a run: it is accepted when it is stored, and the
engine does it. What is known of a run is its record, and while it is open its context.

What must stay true: what is asked twice with one id is done once; secrets leave the stream only for an
execution that an external worker has, and sealed to its key.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from processor.config import Config
from processor.context.parked import timestamp
from processor.context.reading import read
from processor.context.subjects import GraphSubjects, RouteSubjects, app_stream
from processor.errors import ProcessorError
from processor.graphs.client import new_run_id
from processor.graphs.definition import NESTED, WAIT, GraphDefinition
from processor.graphs.history import told
from processor.graphs.plan import compile_plan
from processor.graphs.progress import CANCELLED, FAILED, OPEN, QUEUED, SUCCESS, WAITING
from processor.graphs.runs import plan_of, record_of, run_of
from processor.graphs.vault import Sealed, SecretVault, seal_to
from processor.jetstream import Again, ApiError, Broker, Outgoing, Stored, Unknown
from processor.model import partition_of
from processor.operate.control import Control
from processor.operate.graphs import ROUTE, Graphs, engine_of, read_document
from processor.operate.journal import Journal

log = logging.getLogger("processor")

RUNS_MAX = 500  # in one request
STATES = ("running", "success", "failed", "cancelled")

_RUN_ID = re.compile(r"[^\s/~\x00-\x1f\x7f]{1,128}")
_WINDOW = 1024  # messages of the stream among which the newest runs are looked for first
_STEPS = 16
_UNPROCESSED_MAX = 5000  # messages of an inbox that are looked at for one start
_SEND_S = 10.0  # how long a message is sent again whose answer did not come
_LOOK_S, _LOOK_MAX_S = 0.02, 0.5  # how soon an end is looked for again: later, more seldom
_ENDED = frozenset((SUCCESS, FAILED, CANCELLED))


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A run that is to be started."""

    graph: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    store: Mapping[str, Any] = field(default_factory=dict)
    delay_ms: int = 0
    run_id: str = ""  # empty: one is made


@dataclass(frozen=True, slots=True)
class ControlOrder:
    """What a run is told, by whom and why; see design of `control` in `graphs.machine`."""

    what: str  # cancel, pause, resume, retry or signal
    by: str
    reason: str = ""
    id: str = ""  # empty: one is made
    x: str = ""
    value: Any = None
    after: bool = False


@dataclass(frozen=True, slots=True)
class _Startable:
    """What a start is checked against: the valid version of a graph."""

    inputs: frozenset[str]  # of its first node
    required: frozenset[str]  # store keys without a default


class GraphRuns:
    """The runs of an app's graphs. Raises ProcessorError E602 for what is not there."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._engine = engine_of(config)
        self._broker = broker
        self._config = config
        self._app = config.app
        self._stream = app_stream(config.app)
        self._subjects = GraphSubjects(config.app)
        self._route = RouteSubjects(config.app, ROUTE)
        self._graphs = Graphs(broker, config)

    # start

    async def start(self, asked: Sequence[StartRequest]) -> list[dict[str, Any]]:
        """Start runs; for each its id, `status`, and the inputs that are `ignored`, or `code` and `text`."""
        startable: dict[str, _Startable | ProcessorError] = {}
        for name in {each.graph for each in asked}:
            try:
                startable[name] = await self._startable(name)
            except ProcessorError as err:
                startable[name] = err
        return list(await asyncio.gather(*(self._start(each, startable[each.graph]) for each in asked)))

    async def _startable(self, name: str) -> _Startable:
        head = await self._graphs.head(name)
        if not head.get("valid"):
            faults = head.get("errors") or []
            what = f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
            raise ProcessorError(
                "E706",
                f"graph {name!r} is {head.get('status')} ({what})",
                remedy="`processor graph show` lists them.",
            )
        definition = await self._graphs.definition(name, str(head["valid"]))
        after = {follows for node in definition["nodes"] for follows in node.get("next_nodes", ())}
        first = next(node for node in definition["nodes"] if node["identifier"] not in after)
        store = definition.get("store_config", {})
        required = frozenset(store.get("required_keys", ())) - store.get("default_values", {}).keys()
        return _Startable(frozenset(first.get("inputs", ())), required)

    async def _start(self, asked: StartRequest, graph: _Startable | ProcessorError) -> dict[str, Any]:
        run = asked.run_id or new_run_id()
        if isinstance(graph, ProcessorError):
            return {"run_id": run, **_refused(graph.code, graph.sentence)}
        if not _RUN_ID.fullmatch(run):
            text = f"run_id {run!r:.80}: at most 128 characters without space, / and ~"
            return {"run_id": run[:128], **_refused("E601", text)}
        if missing := sorted(graph.required - asked.store.keys()):
            named = ", ".join(map(repr, missing))
            return {"run_id": run, **_refused("E707", f"store keys {named} are missing and have no default")}
        message = {
            "v": 1,
            "t": "start",
            "run": run,
            "graph": asked.graph,
            "version": None,
            "inputs": {name: value for name, value in asked.inputs.items() if name in graph.inputs},
            "store": dict(asked.store),
            "delay_ms": asked.delay_ms,
            "by": "api",
            "check": bool(asked.run_id),
            "up": None,
        }
        await self._send(run, message, f"start:{run}")
        ignored = sorted(asked.inputs.keys() - graph.inputs)
        return {"status": "CREATED", "run_id": run, "ignored": ignored}

    async def _send(self, run: str, message: Mapping[str, Any], id: str) -> None:
        subject = self._route.inbox(partition_of(run, self._engine.partitions))
        outgoing = Outgoing(subject, orjson.dumps(message), {"Nats-Msg-Id": id})
        until_s = time.monotonic() + _SEND_S
        while True:
            try:
                await self._broker.publish_stored(outgoing)
                return
            except (Unknown, Again):  # the id makes of two that are stored one
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(_LOOK_S)

    # steer

    async def steer(self, run: str, order: ControlOrder) -> dict[str, Any]:
        """Tell a run something; it is accepted when this returns.

        Raises ProcessorError E708 where the run is in no state for it.
        """
        state = await self.state(run)
        is_open = state not in _ENDED
        if state == "SUCCESS" or (not is_open and order.what != "retry"):
            raise ProcessorError("E708", f"run {run} is {state}: there is nothing to {order.what}")
        id = order.id or new_run_id()
        message = {
            "v": 1,
            "t": "control",
            "run": run,
            "id": id,
            "what": order.what,
            "x": order.x or None,
            "by": order.by,
            "reason": order.reason,
            "value": order.value,
        }
        if order.what == "retry":
            message["after"] = order.after
        said = {"run": run, "id": id} | ({"x": order.x} if order.x else {})
        journal = Journal(self._broker, self._config)
        async with journal.act(f"graph.{order.what}", ROUTE, by=order.by, reason=order.reason, data=said):
            await self._send(run, message, f"control:{run}:{id}")
        return {"run": run, "accepted": True, "id": id}

    async def state(self, run: str) -> str:
        """The state of a run: CREATED where it was asked for, and nothing more is known yet."""
        return str((await self._known(run))["state"])

    async def _known(self, run: str) -> dict[str, Any]:
        """What there is of a run: its record, or that of its context, or that it was asked for."""
        for _ in range(2):  # it may go from one place to the next while this looks
            record = await self._record(run)
            if record and record["state"] in _ENDED:
                return record
            async for _, items in read(self._broker, self._app, ROUTE, run):
                return await self._opened(run, items) or record or {"run": run, "state": "RUNNING"}
            if record:
                return record
            if await self._is_asked_for(run):
                return {"run": run, "state": "CREATED"}
        raise ProcessorError("E602", f"there is no run {run[:128]!r}; the records of runs expire")

    async def _opened(self, run: str, items: Mapping[str, bytes]) -> dict[str, Any] | None:
        """The record of an open run; None where it is of a graph that cannot be read here."""
        try:
            name, version = plan_of(items)
            definition = await self._graphs.definition(name, version)
            plan = compile_plan(GraphDefinition.of_document(orjson.dumps(definition)))
            return record_of(run_of(plan, run, items))
        except (KeyError, TypeError, ValueError, ProcessorError) as err:
            log.warning("the context of run %s cannot be shown: %s", run, err)
            return None

    async def _record(self, run: str) -> dict[str, Any] | None:
        for stored in await self._broker.last_of(self._stream, [self._subjects.record(run)]):
            if found := _read_record(stored):
                return found
        return None

    async def _is_asked_for(self, run: str) -> bool:
        """Whether the message that starts a run is there, and was not processed."""
        inbox = self._route.inbox(partition_of(run, self._engine.partitions))
        seen = 0
        async with aclosing(self._broker.history(self._stream, [inbox], headers_only=True)) as stored:
            async for each in stored:
                seen += 1
                if each.headers.get("Nats-Msg-Id") == f"start:{run}":
                    return True
                if seen == _UNPROCESSED_MAX:
                    return False
        return False

    # look

    async def show(self, run: str, *, room_bytes: int = 0) -> dict[str, Any]:
        """All that is known of a run; `open` says of each execution that is open why it is.

        Executions, and the history of the store, that do not fit into `room_bytes` are left out, and counted.
        """
        record = dict(await self._known(run))
        record.pop("v", None)
        if "history" in record:
            record["history"] = told(record["history"])
        record["open"] = [] if record["state"] in _ENDED else await self._reasons(record)
        for name in ("executions", "open", "history"):
            many = record.get(name) or []
            is_list = name != "history"
            if room_bytes and len(many) > is_list and len(orjson.dumps(record)) > room_bytes:
                record[name], record[f"omitted_{name}"] = type(many)(), len(many)
        return record

    async def ended(self, run: str, timeout_s: float) -> dict[str, Any] | None:
        """The record of a run once it has ended; None where it has not in time."""
        until_s, wait_s = time.monotonic() + timeout_s, _LOOK_S
        while True:
            record = await self._record(run)
            if record and record["state"] in _ENDED:
                return record
            if time.monotonic() + wait_s > until_s:
                return None
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LOOK_MAX_S)

    async def _reasons(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Why each open execution is open, with when that began."""
        queues: dict[str, str] = {}
        found = []
        for each in record.get("executions", ()):
            if each["state"] not in OPEN:
                continue
            since = each["sent"] if each["state"] == QUEUED else each["created"]
            why = self._reason(record, each)
            if not why:
                if each["kind"] not in queues:
                    queues[each["kind"]] = await self._queue(each["kind"])
                why = queues[each["kind"]]
            found.append({"x": each["x"], "state": each["state"], "since": since, "why": why})
        return found

    def _reason(self, record: Mapping[str, Any], each: Mapping[str, Any]) -> str:
        """Why an execution is open, as far as its run says; empty where that depends on who runs it."""
        if record.get("paused") and each["state"] != QUEUED:
            return "the run is paused"
        if "slices" in each:
            slices = each["slices"]
            return f"{slices['open']} slices of its {each.get('width')} branches have not ended"
        if each["kind"].startswith(NESTED):
            return f"run {record['run']}~{each['x']} has not ended"
        last = each.get("why", [])[-1:]
        told = f"{last[0]['code']} {last[0]['text']}" if last else ""
        due = each.get("due")
        if each["state"] == WAITING and each["kind"] == WAIT:
            signal = (each.get("inputs") or {}).get("signal")
            return f"it waits for the signal {signal!r}" + (f", until {_moment(due)}" if due else "")
        if each["state"] == WAITING:
            return "; ".join(filter(None, (told, f"it goes on at {_moment(due)}" if due else "")))
        return "" if each["state"] == QUEUED else "it is ready, and the engine comes to it"

    async def _queue(self, id: str) -> str:
        """What an execution of a kind waits for that was sent to a pool or to external workers."""
        kind = next((kind for kind in await self._graphs.kinds() if kind["kind"] == id), None)
        if kind is None:
            return f"E704 no kind {id!r} is registered"
        if kind.get("where") != "external":
            route = f"nodes-{kind.get('group')}"
            inbox = RouteSubjects(self._app, route).inbox()
            waiting = await self._broker.count(self._stream, [inbox], 1)
            wait = "waits" if waiting == 1 else "wait"
            return f"it is in route {route}, in which {_counted(waiting, 'execution')} {wait}"
        stream, consumer = self._subjects.work_stream, id.replace("/", "-")
        try:
            info = await self._broker.api(f"CONSUMER.INFO.{stream}.{consumer}")
        except ApiError:
            return f"no Runtime with {id} has asked for work yet"
        at_work, waiting = info["num_ack_pending"], info["num_pending"]
        asking = "" if info["num_waiting"] else ", and no Runtime asks for more"
        return f"Runtimes have {_counted(at_work, 'execution')} of {id}, {waiting} wait{asking}"

    async def newest(
        self, *, graph: str = "", state: str = "", since_s: float = 0.0, limit: int, before: int = 0
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Summaries of runs, the newest first, and the place to go on at; None where there are no more.

        `before` is such a place. A run that is open counts from when it began, another from when it ended.
        """
        if state and state.lower() not in STATES:
            raise ProcessorError("E601", f"`state` is {state[:40]!r}; it is one of {', '.join(STATES)}")
        pattern = self._subjects.runs(graph or None, state.lower() or None)
        info = await self._broker.stream(self._stream)
        last, first = int(info["state"]["last_seq"]) if info else 0, 1
        if since_s > time.time():
            return [], None
        if since_s:
            at = datetime.fromtimestamp(since_s, UTC)
            first = await Control(self._broker, self._app).sequence_at(self._stream, pattern, at)
        end = min(last, before - 1) if before else last
        start = await self._start_of(pattern, first, end, limit + 1, last)
        found: list[Stored] = []
        async with aclosing(self._broker.history(self._stream, [pattern], start_sequence=start)) as stored:
            async for each in stored:
                if each.sequence > end:
                    break
                if each.payload:
                    found.append(each)
        shown = found[-limit:]
        documents = [
            {**document, "place": each.sequence}
            for each in reversed(shown)
            if (document := _read_record(each)) is not None
        ]
        is_cut = len(found) > len(shown) or start > first
        return documents, shown[0].sequence if shown and is_cut else None

    async def _start_of(self, pattern: str, first: int, end: int, wanted: int, last: int) -> int:
        """A sequence behind which there are at least so many messages up to `end`, and not many more."""
        behind = await self._broker.count(self._stream, [pattern], end + 1) if end < last else 0

        async def count(start: int) -> int:
            return await self._broker.count(self._stream, [pattern], start) - behind

        low, high, width = end + 1, end + 1, _WINDOW
        while low > first:
            low = max(first, end + 1 - width)
            if await count(low) >= wanted:
                break
            high, width = low, width * 8
        # Too many may lie between: the older half of them is left out while enough stays.
        for _ in range(_STEPS):
            middle = (low + high) // 2
            if high - low <= _WINDOW or await count(low) <= 4 * wanted:
                break
            if await count(middle) >= wanted:
                low = middle
            else:
                high = middle
        return low

    # secrets

    async def secrets(self, run: str, x: str, key: str) -> dict[str, Any]:
        """The secrets of an execution that an external worker has, sealed to its key.

        Raises ProcessorError E708 where no worker has it.
        """
        record = await self._known(run)
        each = next((each for each in record.get("executions", ()) if each["x"] == x), None)
        if each is None or each["state"] != QUEUED:
            raise ProcessorError("E708", f"execution {x[:200]!r} of run {run[:200]!r} is with no worker")
        graph, id = str(record["graph"]), each["kind"]
        kind = next((kind for kind in await self._graphs.kinds() if kind["kind"] == id), {})
        if kind.get("where") != "external":
            raise ProcessorError("E708", f"{id} is not a kind of an external worker")
        values = {}
        vault = SecretVault(self._engine.secrets_key) if self._engine.secrets_key else None
        for name in kind.get("secrets", ()):
            for stored in await self._broker.last_of(self._stream, [self._subjects.secret(graph, name)]):
                if vault is None:
                    raise ProcessorError(
                        "E705", "the app has no `engine.secrets_key`, and secrets are sealed"
                    )
                try:
                    values[name] = vault.open(self._app, graph, name, stored.payload)
                except Sealed as err:
                    raise ProcessorError("E705", str(err)) from err
        try:
            return {"sealed": seal_to(key, values)}
        except ValueError as err:
            raise ProcessorError("E601", f"`key`: {err}") from err


def _read_record(stored: Stored) -> dict[str, Any] | None:
    """The record of a run; None for what is none, such as what takes one away."""
    found = read_document(stored.payload)
    texts = (found.get(key) for key in ("run", "graph", "state")) if found else (None,)
    return found if all(isinstance(text, str) for text in texts) else None


def _refused(code: str, text: str) -> dict[str, str]:
    return {"code": code, "text": text}


def _moment(at_ms: int) -> str:
    return timestamp(datetime.fromtimestamp(at_ms / 1000, UTC))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
