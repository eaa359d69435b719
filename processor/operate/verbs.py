"""The verbs: what people and programs may ask of an app, and what is done for each.

A verb takes a request that has been read (a dataclass of `forms`) and answers with a document for JSON.
Nothing here knows how the request came or how the answer goes: `api` offers the verbs over NATS. A verb that
does not do what was asked raises Refusal, with a code and a sentence for the sender.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

import orjson

from processor.config import Config
from processor.context.history import Author
from processor.context.parked import moment
from processor.delivery.codec import content_of, headers_shown
from processor.errors import ERRORS, BrokerError, ProcessorError, Refusal
from processor.jetstream import Again, ApiError, Broker, Unknown
from processor.notes import VerifierKey
from processor.operate.audits import AuditFilter, Audits, own_key
from processor.operate.budgets import budget_states
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter, StoredDeadLetter
from processor.operate.edits import ContextEdits
from processor.operate.forms import (
    AuditQuery,
    AuditVerification,
    BudgetQuery,
    ContextListQuery,
    ContextQuery,
    ContextRemoval,
    DeadLetterId,
    DeadLetterOrder,
    DeadLetterQuery,
    ElementRemoval,
    GraphListQuery,
    GraphOrder,
    GraphQuery,
    HistoryQuery,
    KindsOrder,
    ResetOrder,
    RetryOrder,
    RouteOrder,
    RunListQuery,
    RunOrder,
    RunQuery,
    SecretsQuery,
    SignalOrder,
    StatusQuery,
    TriggerOrder,
    ValueOrder,
    listed_briefly,
    read_request,
)
from processor.operate.graphs import Graphs
from processor.operate.journal import Act, Journal
from processor.operate.runs import RUNS_MAX, ControlOrder, GraphRuns, StartRequest
from processor.operate.status import Survey
from processor.route import Route
from processor.sandbox.values import TOMBSTONE, decode, encode

log = logging.getLogger("processor")

_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class OperatedApp:
    """The app that a verb acts on, by way of which processor, and how many bytes an answer may have."""

    broker: Broker
    config: Config
    member: str
    room_bytes: int


@dataclass(frozen=True, slots=True)
class Verb:
    """One kind of request: its form, and what is done for it."""

    name: str
    request: type[Any]
    do: Callable[[OperatedApp, Any], Awaitable[dict[str, Any]]]
    summary: str


async def perform(verb: Verb, app: OperatedApp, request: Any) -> bytes:
    """The JSON of what `verb` answers to `request`, at most `app.room_bytes` long; raises Refusal."""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            document = orjson.dumps(await verb.do(app, request))
    except TimeoutError:
        raise Refusal(
            "E605", f"not done within {_DEADLINE_S:g} s; what of it was done by then, is done"
        ) from None
    except ProcessorError as err:
        raise Refusal(err.code, err.sentence) from err
    except ApiError as err:
        raise Refusal("E406", f"the NATS server refused: {err}") from err
    except (Unknown, Again) as err:
        text = f"the NATS server did not answer ({err}); what of it was done, `status` tells"
        raise Refusal("E404", text) from err
    if len(document) > app.room_bytes:
        raise Refusal("E606", f"the answer has {len(document)} bytes; a message takes {app.room_bytes}")
    return document


async def _status(app: OperatedApp, request: StatusQuery) -> dict[str, Any]:
    survey = await Survey.take(app.broker, app.config.app)
    names = [_route(app, request.route).name] if request.route else sorted(app.config.routes)
    room = app.room_bytes // 2
    members = survey.members()
    if len(orjson.dumps(members)) > room:  # each route has its own stops, too
        members = [{**member, "stops": [], "omitted_stops": len(member["stops"])} for member in members]
    routes = (
        _bounded(await survey.route(app.config.routes[name]), room) for name in names if name > request.after
    )
    shown, is_cut = await _within(room, routes)
    return {
        "app": app.config.app,
        "answered_by": app.member,
        "members": members,
        "routes": shown,
        "next": shown[-1]["route"] if is_cut else None,
    }


async def _budgets(app: OperatedApp, request: BudgetQuery) -> dict[str, Any]:
    named = [_route(app, request.route)] if request.route else app.config.routes.values()
    states = await budget_states(app.broker, app.config.app, named)

    async def behind() -> Any:
        for state in states:
            if state["budget"] > request.after:
                yield state

    shown, is_cut = await _within(app.room_bytes // 2, behind())
    return {"budgets": shown, "next": shown[-1]["budget"] if is_cut else None}


async def _pause(app: OperatedApp, request: RouteOrder) -> dict[str, Any]:
    return await _set_paused(app, request, is_paused=True)


async def _resume(app: OperatedApp, request: RouteOrder) -> dict[str, Any]:
    return await _set_paused(app, request, is_paused=False)


async def _set_paused(app: OperatedApp, request: RouteOrder, *, is_paused: bool) -> dict[str, Any]:
    route = _route(app, request.route)
    _log_request("pause" if is_paused else "resume", f"route {route.name}", request)
    control = Control(app.broker, app.config.app)
    async with _act(app, "pause" if is_paused else "resume", route.name, request):
        await control.pause(route.name, is_paused=is_paused, reason=request.reason, by=request.by)
    return {"route": route.name, "paused": is_paused}


async def _reset(app: OperatedApp, request: ResetOrder) -> dict[str, Any]:
    route, control = _changeable(app, request.route), Control(app.broker, app.config.app)
    try:
        target = await control.target(route, _place(request.to))
    except ValueError as err:
        raise Refusal("E601", f"`to`: {err}") from err
    _log_request("reset", f"route {route.name} to {target.sequence}", request)
    async with _act(app, "reset", route.name, request, target.facts()):
        moved = await control.reset_to(target, keep_context=request.keep_context, by=request.by)
    return {
        "route": route.name,
        "stream": target.source.stream,
        "position": target.sequence - 1,
        "partitions": moved,
    }


async def _list_dead_letters(app: OperatedApp, request: DeadLetterQuery) -> dict[str, Any]:
    which = Filter(request.route, "", _code(request.code), _since_s(request.since), request.after)

    async def facts() -> Any:
        number = 0
        async with aclosing(DeadLetters(app.broker, app.config.app).find(which)) as found:
            async for letter in found:
                number += 1
                if number > request.limit:
                    yield None
                    return
                yield {**letter.facts(), "place": letter.sequence}

    shown, is_cut = await _within(app.room_bytes, facts())
    return {"dead_letters": shown, "next": shown[-1]["place"] if is_cut else None}


async def _show_dead_letter(app: OperatedApp, request: DeadLetterId) -> dict[str, Any]:
    letter = await _dead_letter(app, request.id)
    headers, payload = headers_shown(letter.delivery.headers), letter.delivery.payload
    facts = {**letter.facts(), "traceback": orjson.loads(letter.traceback) if letter.traceback else ""}
    whole = {**facts, "headers": headers, **content_of(payload)}
    if len(orjson.dumps(whole)) <= app.room_bytes:
        return whole
    whole = {**facts, "headers": headers, "omitted_bytes": len(payload)}
    if len(orjson.dumps(whole)) <= app.room_bytes:
        return whole
    return {**facts, "omitted_headers": len(headers), "omitted_bytes": len(payload)}


async def _redrive_dead_letters(app: OperatedApp, request: DeadLetterOrder) -> dict[str, Any]:
    return await _change_dead_letters(app, "redrive", request)


async def _drop_dead_letters(app: OperatedApp, request: DeadLetterOrder) -> dict[str, Any]:
    return await _change_dead_letters(app, "drop", request)


async def _change_dead_letters(app: OperatedApp, what: str, request: DeadLetterOrder) -> dict[str, Any]:
    if not request.id and not request.route:
        raise Refusal("E601", f"which ones: dlq.{what} needs `id` or `route`")
    store = DeadLetters(app.broker, app.config.app)
    which = Filter(request.route, request.id, _code(request.code), _since_s(request.since))
    letters: list[StoredDeadLetter] = []
    is_cut = False
    async with aclosing(store.find(which)) as found:
        async for letter in found:
            is_cut = len(letters) == request.limit
            if is_cut:
                break
            letters.append(letter)
    if request.id and not letters:
        raise Refusal("E602", f"there is no dead letter {request.id!r}; it may have been sent back already")
    _log_request(f"dlq.{what}", f"{len(letters)} dead letters of {request.id or request.route}", request)
    done: list[str] = []
    missed: list[str] = []
    failed: list[dict[str, str]] = []
    known: list[StoredDeadLetter] = []
    for letter in letters:
        try:
            if what == "redrive":
                _route(app, letter.route)  # nobody would take it up
        except Refusal as err:
            failed.append({"id": letter.id, "code": err.code, "text": err.text})
        else:
            known.append(letter)
    async with _act(app, f"dlq.{what}", request.route or request.id.partition(".")[0], request) as act:
        outcomes = await (store.redrive_all if what == "redrive" else store.drop_all)(known)
        for letter, outcome in zip(known, outcomes, strict=True):
            if isinstance(outcome, BrokerError):
                failed.append({"id": letter.id, "code": outcome.code, "text": outcome.what})
            else:
                (done if outcome else missed).append(letter.id)
        ends = {"done": done, "missed": missed, "failed": [each["id"] for each in failed]}
        act.sum_up({id: end for end, ids in ends.items() for id in ids})
    return {"done": done, "missed": missed, "failed": failed, "more": is_cut}


async def _get_context(app: OperatedApp, request: ContextQuery) -> dict[str, Any]:
    value = await _edits(app, request.route).get(request.key, request.path)
    return {"key": request.key, "path": request.path, "value": _written(value)}


async def _list_contexts(app: OperatedApp, request: ContextListQuery) -> dict[str, Any]:
    async def contexts() -> Any:
        number = 0
        async for key, items in _edits(app, request.route).full():
            number += 1
            if number > request.after + request.limit:
                yield None
                return
            if number > request.after:
                kept = {n: orjson.Fragment(value) for n, value in items.items() if value != TOMBSTONE}
                yield {"key": key, "context": kept}

    shown, is_cut = await _within(app.room_bytes, contexts())
    return {"contexts": shown, "next": request.after + len(shown) if is_cut else None}


async def _read_history(app: OperatedApp, request: HistoryQuery) -> dict[str, Any]:
    since_s = _since_s(request.since)
    records = await _edits(app, request.route).history(request.key, limit=request.limit, since_s=since_s)

    async def newest_first() -> Any:
        for record in reversed(records):
            items = {name: orjson.Fragment(value) for name, value in record.items.items()}
            yield {**{each.name: getattr(record, each.name) for each in fields(record)}, "items": items}

    shown, is_cut = await _within(app.room_bytes, newest_first())
    return {"records": shown[::-1], "more": is_cut or len(records) == request.limit}


async def _query_audit(app: OperatedApp, request: AuditQuery) -> dict[str, Any]:
    since_s, until_s = _since_s(request.since), _since_s(request.until, "until")
    which = AuditFilter(
        frozenset(filter(None, (name.strip() for name in request.event.split(",")))),
        request.actor,
        request.route,
        request.decision,
        request.on,
        round(since_s * 1e6),
        round(until_s * 1e6),
    )
    found: deque[dict[str, Any]] = deque(maxlen=request.limit)
    count = 0
    async with aclosing(Audits(app.broker, app.config).entries(which)) as entries:
        async for entry in entries:
            found.append(entry)
            count += 1

    async def newest_first() -> Any:
        for entry in reversed(found):
            yield entry

    shown, is_cut = await _within(app.room_bytes, newest_first())
    return {"entries": shown[::-1], "more": is_cut or count > len(found)}


async def _verify_audit(app: OperatedApp, request: AuditVerification) -> dict[str, Any]:
    try:
        keys = [VerifierKey.read(line) for line in request.vkey.splitlines() if line.strip()]
    except ValueError as err:
        raise Refusal("E601", f"`vkey`: {err}") from err
    own = own_key(app.config)
    keys = keys or ([own] if own is not None else [])
    report = asdict(await Audits(app.broker, app.config).verify(keys))
    faults, is_cut = await _within(app.room_bytes // 2, _each(report["faults"]))
    return {**report, "faults": faults, "more": is_cut, "checked_signatures": bool(keys)}


async def _each(documents: Sequence[Any]) -> Any:
    for document in documents:
        yield document


async def _set_value(app: OperatedApp, request: ValueOrder) -> dict[str, Any]:
    author = _author(app, "context.set", request)
    edits = _changes(app, request.route)
    return (await edits.set(request.key, request.path, _value(request.value), author)).facts()


async def _append_value(app: OperatedApp, request: ValueOrder) -> dict[str, Any]:
    author = _author(app, "context.append", request)
    edits = _changes(app, request.route)
    return (await edits.append(request.key, request.path, _value(request.value), author)).facts()


async def _pop_element(app: OperatedApp, request: ElementRemoval) -> dict[str, Any]:
    author = _author(app, "context.pop", request)
    edit = await _changes(app, request.route).pop(request.key, request.path, author, is_first=request.first)
    return {**edit.facts(), "value": _written(edit.value)}


async def _delete_value(app: OperatedApp, request: ContextRemoval) -> dict[str, Any]:
    author = _author(app, "context.delete", request)
    return (await _changes(app, request.route).delete(request.key, request.path, author)).facts()


async def _apply_graph(app: OperatedApp, request: GraphOrder) -> dict[str, Any]:
    _log_request("graph.apply", f"graph {request.name!r:.80}", request)
    keys = {
        each.name: value
        for each in fields(request)
        if each.name not in ("name", "by", "secrets", "reason")
        and (value := getattr(request, each.name)) is not None
    }
    graphs = Graphs(app.broker, app.config)
    secrets = request.secrets or {}
    return await graphs.apply(request.name, keys, secrets, by=request.by, reason=request.reason)


async def _get_graph(app: OperatedApp, request: GraphQuery) -> dict[str, Any]:
    return await Graphs(app.broker, app.config).show(request.name, request.version)


async def _list_graphs(app: OperatedApp, request: GraphListQuery) -> dict[str, Any]:
    heads = await Graphs(app.broker, app.config).heads()
    return await _page(app, "graphs", heads, "name", request.after)


async def _list_kinds(app: OperatedApp, request: GraphListQuery) -> dict[str, Any]:
    kinds = await Graphs(app.broker, app.config).kinds()
    return await _page(app, "kinds", kinds, "kind", request.after)


async def _page(
    app: OperatedApp, what: str, documents: Sequence[dict[str, Any]], name: str, after: str
) -> dict[str, Any]:
    """Those behind `after`, by their names, as many as fit."""
    behind = [document for document in documents if document[name] > after]
    shown, is_cut = await _within(app.room_bytes // 2, _each(behind))
    return {what: shown, "next": shown[-1][name] if is_cut else None}


async def _register_kinds(app: OperatedApp, request: KindsOrder) -> dict[str, Any]:
    log.info("request graph.register of runtime %s in %s", request.runtime, request.namespace)
    graphs = Graphs(app.broker, app.config)
    return await graphs.register(request.runtime, request.namespace, request.kinds)


async def _trigger(app: OperatedApp, request: TriggerOrder) -> dict[str, Any]:
    runs = GraphRuns(app.broker, app.config)
    if request.runs is None:
        if not request.name:
            raise Refusal("E601", "`name` is missing: the graph; or `runs`, up to 500 of them")
        [started] = await runs.start([_start_request(request)])
        if "code" in started:
            raise Refusal(started["code"], started["text"])
        return started
    if len(request.runs) > RUNS_MAX:
        raise Refusal("E601", f"`runs` has {len(request.runs)} runs; {RUNS_MAX} are the most of a request")
    asked = []
    for number, each in enumerate(request.runs):
        try:
            asked.append(_start_request(read_request(TriggerOrder, orjson.dumps(each))))
        except Refusal as err:
            raise Refusal(err.code, f"`runs[{number}]`: {err.text}") from err
    return {"runs": await runs.start(asked)}


def _start_request(request: TriggerOrder) -> StartRequest:
    if not request.name or request.runs is not None:
        raise Refusal("E601", "a run needs `name`, its graph, and has no `runs`")
    inputs, store = request.inputs or {}, request.store or {}
    return StartRequest(request.name, inputs, store, request.delay_ms, request.run_id)


async def _list_runs(app: OperatedApp, request: RunListQuery) -> dict[str, Any]:
    found, after = await GraphRuns(app.broker, app.config).newest(
        graph=request.graph,
        state=request.state,
        since_s=_since_s(request.since),
        limit=request.limit,
        before=request.after,
    )
    shown, is_cut = await _within(app.room_bytes // 2, _each(found))
    return {"runs": shown, "next": shown[-1]["place"] if is_cut else after}


async def _show_run(app: OperatedApp, request: RunQuery) -> dict[str, Any]:
    return await GraphRuns(app.broker, app.config).show(request.run, room_bytes=app.room_bytes // 2)


async def _retry_run(app: OperatedApp, request: RetryOrder) -> dict[str, Any]:
    order = ControlOrder(
        "retry", request.by, request.reason, request.id, request.execution, after=request.after
    )
    return await _steer(app, request.run, order)


async def _cancel_run(app: OperatedApp, request: RunOrder) -> dict[str, Any]:
    return await _steer(app, request.run, ControlOrder("cancel", request.by, request.reason))


async def _pause_run(app: OperatedApp, request: RunOrder) -> dict[str, Any]:
    return await _steer(app, request.run, ControlOrder("pause", request.by, request.reason))


async def _resume_run(app: OperatedApp, request: RunOrder) -> dict[str, Any]:
    return await _steer(app, request.run, ControlOrder("resume", request.by, request.reason))


async def _signal_run(app: OperatedApp, request: SignalOrder) -> dict[str, Any]:
    order = ControlOrder("signal", request.by, request.reason, x=request.signal, value=request.value)
    return await _steer(app, request.run, order)


async def _steer(app: OperatedApp, run: str, order: ControlOrder) -> dict[str, Any]:
    _log_request(f"graph.{order.what}", f"run {run!r:.140}", order)
    return await GraphRuns(app.broker, app.config).steer(run, order)


async def _seal_secrets(app: OperatedApp, request: SecretsQuery) -> dict[str, Any]:
    return await GraphRuns(app.broker, app.config).secrets(request.run, request.x, request.key)


def _act(
    app: OperatedApp,
    verb: str,
    route: str,
    request: RouteOrder | ResetOrder | DeadLetterOrder,
    data: Mapping[str, Any] | None = None,
) -> AbstractAsyncContextManager[Act]:
    journal = Journal(app.broker, app.config)
    return journal.act(verb, route, by=request.by, reason=request.reason, data=data)


def _edits(app: OperatedApp, route: str) -> ContextEdits:
    return ContextEdits(app.broker, _route(app, route))


def _changes(app: OperatedApp, route: str) -> ContextEdits:
    return ContextEdits(app.broker, _changeable(app, route))


def _author(app: OperatedApp, verb: str, request: ValueOrder | ElementRemoval | ContextRemoval) -> Author:
    _log_request(verb, f"route {_route(app, request.route).name}", request)  # its history has the rest
    return Author(request.by, request.reason)


async def _dead_letter(app: OperatedApp, id: str) -> StoredDeadLetter:
    async with aclosing(DeadLetters(app.broker, app.config.app).find(Filter(id=id))) as found:
        async for letter in found:
            return letter
    raise Refusal("E602", f"there is no dead letter {id!r}")


def _route(app: OperatedApp, name: str) -> Route:
    if name in app.config.routes:
        return app.config.routes[name]
    near = difflib.get_close_matches(name, app.config.routes, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"routes here are {listed_briefly(app.config.routes)}"
    raise Refusal("E602", f"there is no route {name[:64]!r}; {hint}")


def _changeable(app: OperatedApp, name: str) -> Route:
    """A route whose contexts and position people may change: those of graphs are changed run by run."""
    route = _route(app, name)
    if route.input.is_inner:
        what = f"route {name} runs graphs: runs are changed by `graph.retry`, `graph.cancel` and the like"
        raise Refusal("E601", what)
    return route


def _value(value: Any) -> Any:
    """The value to be kept that the JSON of a request stands for."""
    try:
        return decode(orjson.dumps(value))
    except ValueError as err:
        raise Refusal("E601", f"`value`: {err}") from err


def _written(value: Any) -> orjson.Fragment:
    return orjson.Fragment(encode(value))


def _place(to: int | str) -> int | datetime:
    """Where a reset leads. Raises ValueError."""
    if to == "start":
        return 1
    if isinstance(to, int):
        if to < 1:
            raise ValueError(f"{to} is not a sequence: they begin with 1")
        return to
    try:
        found = datetime.fromisoformat(to)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError(f"{to!r} is neither `start`, a number, nor a time such as 2026-01-31T08:00:00Z")
    return found


def _since_s(text: str, name: str = "since") -> float:
    if not text:
        return 0.0
    try:
        found = moment(text)
        if found.tzinfo is None:
            raise ValueError
        return found.timestamp()
    except (ValueError, OverflowError):
        raise Refusal(
            "E601", f"`{name}` is {text!r}: neither a span such as 2h nor a time such as 2026-01-31T08:00:00Z"
        ) from None


def _code(text: str) -> str:
    if text and text not in ERRORS:
        raise Refusal("E601", f"`code` is {text!r}, which is not an error code, such as E304")
    return text


def _bounded(shown: dict[str, Any], room: int) -> dict[str, Any]:
    """The document of a route, without its partitions where it is too large by itself."""
    if len(orjson.dumps(shown)) < room:
        return shown
    return {**shown, "partitions": [], "omitted_partitions": len(shown["partitions"])}


async def _within(room: int, documents: Any) -> tuple[list[dict[str, Any]], bool]:
    """As many documents as fit into `room` bytes, and whether there are more; None ends them early.

    Raises Refusal E606 where not even the first one fits.
    """
    taken: list[dict[str, Any]] = []
    left = room
    async with aclosing(documents):
        async for document in documents:
            size = 0 if document is None else len(orjson.dumps(document)) + 1
            if document is None or size > left:
                if not taken:
                    raise Refusal("E606", f"the next of the list has {size} bytes; a message takes {room}")
                return taken, True
            taken.append(document)
            left -= size
    return taken, False


def _log_request(verb: str, what: str, request: Any) -> None:
    reason = f": {request.reason}" if request.reason else ""
    log.info("request %s of %s: %s%s", verb, request.by, what, reason)


# Change nothing, and give out nothing that is sealed. What is not named here needs leave to be offered to
# programs that only look.
READING = frozenset(
    {
        "status", "budget.status", "dlq.ls", "dlq.show", "audit.query", "audit.verify", "context.get",
        "context.full", "context.history", "graph.get", "graph.ls", "graph.kinds", "graph.runs", "graph.run",
    }
)  # fmt: skip

VERBS: tuple[Verb, ...] = (
    Verb("status", StatusQuery, _status, "Who runs the app, what stops routes, and how far each one is."),
    Verb("budget.status", BudgetQuery, _budgets, "How much of each budget is used in its window."),
    Verb("pause", RouteOrder, _pause, "Stop a route on every processor, also over restarts."),
    Verb("resume", RouteOrder, _resume, "Let a paused route go on."),
    Verb("reset", ResetOrder, _reset, "Make a route read its input again from some point on."),
    Verb("dlq.ls", DeadLetterQuery, _list_dead_letters, "List dead letters, oldest first."),
    Verb("dlq.show", DeadLetterId, _show_dead_letter, "Show a dead letter with headers and content."),
    Verb(
        "dlq.redrive",
        DeadLetterOrder,
        _redrive_dead_letters,
        "Send dead letters back to their route, exactly once.",
    ),
    Verb("dlq.drop", DeadLetterOrder, _drop_dead_letters, "Delete dead letters for good."),
    Verb("audit.query", AuditQuery, _query_audit, "Read who did what, oldest first."),
    Verb("audit.verify", AuditVerification, _verify_audit, "Check that the audit is what was written."),
    Verb("context.get", ContextQuery, _get_context, "Read a context, or a value in it."),
    Verb("context.full", ContextListQuery, _list_contexts, "Read all contexts of a route."),
    Verb("context.history", HistoryQuery, _read_history, "Read what changed in a context, when and by whom."),
    Verb("context.set", ValueOrder, _set_value, "Put a value into a context."),
    Verb("context.append", ValueOrder, _append_value, "Append a value to a list in a context."),
    Verb("context.pop", ElementRemoval, _pop_element, "Take an element out of a list in a context."),
    Verb("context.delete", ContextRemoval, _delete_value, "Remove a value from a context, or the context."),
    Verb("graph.apply", GraphOrder, _apply_graph, "Define a graph; one that is at fault replaces none."),
    Verb("graph.get", GraphQuery, _get_graph, "Show a graph, and what was found of it."),
    Verb("graph.ls", GraphListQuery, _list_graphs, "List graphs, by name."),
    Verb("graph.kinds", GraphListQuery, _list_kinds, "List the kinds that nodes of graphs can be of."),
    Verb("graph.register", KindsOrder, _register_kinds, "Say which kinds an external worker has."),
    Verb("graph.trigger", TriggerOrder, _trigger, "Start a run of a graph, or many."),
    Verb("graph.runs", RunListQuery, _list_runs, "List runs, newest first."),
    Verb("graph.run", RunQuery, _show_run, "Show a run, and why what is open of it is open."),
    Verb("graph.retry", RetryOrder, _retry_run, "Run again what failed of a run."),
    Verb("graph.cancel", RunOrder, _cancel_run, "End a run; what is open of it is given up."),
    Verb("graph.pause", RunOrder, _pause_run, "Let a run begin nothing more."),
    Verb("graph.resume", RunOrder, _resume_run, "Let a paused run go on."),
    Verb("graph.signal", SignalOrder, _signal_run, "Tell a run what it waits for."),
    Verb("graph.secrets", SecretsQuery, _seal_secrets, "Seal the secrets of an execution to its worker."),
)
