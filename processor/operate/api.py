"""What is done for each request, by the functions that the command line calls, and what is answered."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import orjson

from processor import __version__
from processor.config import Config
from processor.context.history import Author
from processor.context.parked import moment
from processor.delivery.codec import content_of, headers_shown
from processor.errors import ERRORS, BrokerError, ProcessorError
from processor.jetstream import Again, ApiError, Broker, Endpoint, MicroService, Refusal, Unknown
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter, StoredDeadLetter
from processor.operate.edits import ContextEdits
from processor.operate.forms import (
    Changes,
    Contexts,
    DeadLetterId,
    DeadLetterOrder,
    DeadLetterQuery,
    Look,
    Order,
    Place,
    Pop,
    Removal,
    ResetOrder,
    Value,
    form,
    read_request,
    some,
)
from processor.operate.status import Survey
from processor.route import Route
from processor.sandbox.values import TOMBSTONE, decode, encode

log = logging.getLogger("processor")

_DEADLINE_S = 30.0
# What the server and a client's headers need of a message beside the answer.
_SPARE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Verb:
    """One kind of request."""

    name: str
    request: type[Any]
    do: Callable[[Desk, Any], Awaitable[dict[str, Any]]]
    summary: str


class Desk:
    """Answers the requests to one processor, from `start` to `stop`; `config` is replaced at a reload."""

    def __init__(self, broker: Broker, config: Config, member: str) -> None:
        self.config = config
        self._broker = broker
        self._member = member
        self._service: MicroService | None = None

    async def start(self) -> None:
        """Answer from now on. What the server does not permit is logged in one line; the rest works."""
        app = self.config.app
        self._service = MicroService(
            self._broker,
            f"processor-{app}",
            self._member,
            __version__,
            f"Processor, app {app}",
            {"app": app},
            [self._endpoint(verb) for verb in VERBS],
            Refusal("E603", "too many requests wait here already; ask again in a moment"),
            _fault,
        )
        denied = await self._service.start()
        if denied:
            log.warning(
                "E403 this user may not subscribe to %s: such requests are not answered, everything else "
                "runs. Allow it, or set `control: off`",
                f"{', '.join(denied[:3])}{f' and {len(denied) - 3} more' if len(denied) > 3 else ''}",
                extra={"code": "E403"},
            )  # fmt: skip

    async def stop(self) -> None:
        """Take no more requests and finish those in hand."""
        if self._service is not None:
            await self._service.stop()

    def _endpoint(self, verb: Verb) -> Endpoint:
        async def answer(payload: bytes) -> bytes:
            request = read_request(verb.request, payload)
            try:
                async with asyncio.timeout(_DEADLINE_S):
                    document = orjson.dumps(await verb.do(self, request))
            except TimeoutError:
                raise Refusal(
                    "E605", f"not done within {_DEADLINE_S:g} s; what of it was done by then, is done"
                ) from None
            except ProcessorError as err:
                raise Refusal(err.code, f"{err.what}. {err.remedy}".strip()) from err
            except ApiError as err:
                raise Refusal("E406", f"the NATS server refused: {err}") from err
            except (Unknown, Again) as err:
                text = f"the NATS server did not answer ({err}); what of it was done, `status` tells"
                raise Refusal("E404", text) from err
            if len(document) > self._room:
                raise Refusal("E606", f"the answer has {len(document)} bytes; a message takes {self._room}")
            return document

        wants = ", ".join(f"{each.name}: {form(each)}" for each in fields(verb.request))
        summary = f"{verb.summary} {{{wants}}}"
        return Endpoint(verb.name.replace(".", "-"), api_subject(self.config.app, verb.name), summary, answer)

    # what is done

    async def _status(self, request: Look) -> dict[str, Any]:
        survey = await Survey.take(self._broker, self.config.app)
        names = [self._route(request.route).name] if request.route else sorted(self.config.routes)
        room = self._room // 2
        members = survey.members()
        if len(orjson.dumps(members)) > room:  # each route has its own stops, too
            members = [{**member, "stops": [], "omitted_stops": len(member["stops"])} for member in members]
        routes = (
            _slim(await survey.route(self.config.routes[name]), room)
            for name in names
            if name > request.after
        )
        shown, is_cut = await _within(room, routes)
        return {
            "app": self.config.app,
            "answered_by": self._member,
            "members": members,
            "routes": shown,
            "next": shown[-1]["route"] if is_cut else None,
        }

    async def _pause(self, request: Order) -> dict[str, Any]:
        return await self._say(request, is_paused=True)

    async def _resume(self, request: Order) -> dict[str, Any]:
        return await self._say(request, is_paused=False)

    async def _say(self, request: Order, *, is_paused: bool) -> dict[str, Any]:
        route = self._route(request.route)
        _note("pause" if is_paused else "resume", f"route {route.name}", request)
        control = Control(self._broker, self.config.app)
        await control.pause(route.name, is_paused=is_paused, reason=request.reason, by=request.by)
        return {"route": route.name, "paused": is_paused}

    async def _reset(self, request: ResetOrder) -> dict[str, Any]:
        route, control = self._route(request.route), Control(self._broker, self.config.app)
        try:
            target = await control.target(route, _place(request.to))
        except ValueError as err:
            raise Refusal("E601", f"`to`: {err}") from err
        _note("reset", f"route {route.name} to {target.sequence}", request)
        moved = await control.reset_to(target, keep_context=request.keep_context, by=request.by)
        return {
            "route": route.name,
            "stream": target.source.stream,
            "position": target.sequence - 1,
            "partitions": moved,
        }

    async def _list(self, request: DeadLetterQuery) -> dict[str, Any]:
        which = Filter(request.route, "", _code(request.code), _since_s(request.since), request.after)

        async def facts() -> Any:
            number = 0
            async with aclosing(DeadLetters(self._broker, self.config.app).find(which)) as found:
                async for letter in found:
                    number += 1
                    if number > request.limit:
                        yield None
                        return
                    yield {**letter.facts(), "place": letter.sequence}

        shown, is_cut = await _within(self._room, facts())
        return {"dead_letters": shown, "next": shown[-1]["place"] if is_cut else None}

    async def _show(self, request: DeadLetterId) -> dict[str, Any]:
        letter = await self._letter(request.id)
        headers, payload = headers_shown(letter.delivery.headers), letter.delivery.payload
        facts = {**letter.facts(), "traceback": orjson.loads(letter.traceback) if letter.traceback else ""}
        whole = {**facts, "headers": headers, **content_of(payload)}
        if len(orjson.dumps(whole)) <= self._room:
            return whole
        whole = {**facts, "headers": headers, "omitted_bytes": len(payload)}
        if len(orjson.dumps(whole)) <= self._room:
            return whole
        return {**facts, "omitted_headers": len(headers), "omitted_bytes": len(payload)}

    async def _redrive(self, request: DeadLetterOrder) -> dict[str, Any]:
        return await self._change("redrive", request)

    async def _drop(self, request: DeadLetterOrder) -> dict[str, Any]:
        return await self._change("drop", request)

    async def _change(self, what: str, request: DeadLetterOrder) -> dict[str, Any]:
        if not request.id and not request.route:
            raise Refusal("E601", f"which ones: dlq.{what} needs `id` or `route`")
        store = DeadLetters(self._broker, self.config.app)
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
            raise Refusal(
                "E602", f"there is no dead letter {request.id!r}; it may have been sent back already"
            )
        _note(f"dlq.{what}", f"{len(letters)} dead letters of {request.id or request.route}", request)
        done: list[str] = []
        missed: list[str] = []
        failed: list[dict[str, str]] = []
        known: list[StoredDeadLetter] = []
        for letter in letters:
            try:
                if what == "redrive":
                    self._route(letter.route)  # nobody would take it up
            except Refusal as err:
                failed.append({"id": letter.id, "code": err.code, "text": err.text})
            else:
                known.append(letter)
        outcomes = await (store.redrive_all if what == "redrive" else store.drop_all)(known)
        for letter, outcome in zip(known, outcomes, strict=True):
            if isinstance(outcome, BrokerError):
                failed.append({"id": letter.id, "code": outcome.code, "text": outcome.what})
            else:
                (done if outcome else missed).append(letter.id)
        return {"done": done, "missed": missed, "failed": failed, "more": is_cut}

    async def _get(self, request: Place) -> dict[str, Any]:
        value = await self._edits(request.route).get(request.key, request.path)
        return {"key": request.key, "path": request.path, "value": _written(value)}

    async def _full(self, request: Contexts) -> dict[str, Any]:
        async def contexts() -> Any:
            number = 0
            async for key, items in self._edits(request.route).full():
                number += 1
                if number > request.after + request.limit:
                    yield None
                    return
                if number > request.after:
                    kept = {n: orjson.Fragment(value) for n, value in items.items() if value != TOMBSTONE}
                    yield {"key": key, "context": kept}

        shown, is_cut = await _within(self._room, contexts())
        return {"contexts": shown, "next": request.after + len(shown) if is_cut else None}

    async def _history(self, request: Changes) -> dict[str, Any]:
        since_s = _since_s(request.since)
        records = await self._edits(request.route).history(request.key, limit=request.limit, since_s=since_s)

        async def newest_first() -> Any:
            for record in reversed(records):
                items = {name: orjson.Fragment(value) for name, value in record.items.items()}
                yield {**{each.name: getattr(record, each.name) for each in fields(record)}, "items": items}

        shown, is_cut = await _within(self._room, newest_first())
        return {"records": shown[::-1], "more": is_cut or len(records) == request.limit}

    async def _set(self, request: Value) -> dict[str, Any]:
        author = self._author("context.set", request)
        edits = self._edits(request.route)
        return (await edits.set(request.key, request.path, _read(request.value), author)).facts()

    async def _append(self, request: Value) -> dict[str, Any]:
        author = self._author("context.append", request)
        edits = self._edits(request.route)
        return (await edits.append(request.key, request.path, _read(request.value), author)).facts()

    async def _pop(self, request: Pop) -> dict[str, Any]:
        author = self._author("context.pop", request)
        edit = await self._edits(request.route).pop(request.key, request.path, author, is_first=request.first)
        return {**edit.facts(), "value": _written(edit.value)}

    async def _delete(self, request: Removal) -> dict[str, Any]:
        author = self._author("context.delete", request)
        return (await self._edits(request.route).delete(request.key, request.path, author)).facts()

    def _edits(self, route: str) -> ContextEdits:
        return ContextEdits(self._broker, self._route(route))

    def _author(self, verb: str, request: Value | Pop | Removal) -> Author:
        _note(verb, f"route {self._route(request.route).name}", request)  # its history has the rest
        return Author(request.by, request.reason)

    async def _letter(self, id: str) -> StoredDeadLetter:
        async with aclosing(DeadLetters(self._broker, self.config.app).find(Filter(id=id))) as found:
            async for letter in found:
                return letter
        raise Refusal("E602", f"there is no dead letter {id!r}")

    def _route(self, name: str) -> Route:
        if name in self.config.routes:
            return self.config.routes[name]
        near = difflib.get_close_matches(name, self.config.routes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"routes here are {some(self.config.routes)}"
        raise Refusal("E602", f"there is no route {name[:64]!r}; {hint}")

    @property
    def _room(self) -> int:
        return self._broker.max_payload - _SPARE_BYTES


VERBS: tuple[Verb, ...] = (
    Verb("status", Look, Desk._status, "Who runs the app, what stops routes, and how far each one is."),
    Verb("pause", Order, Desk._pause, "Stop a route on every processor, also over restarts."),
    Verb("resume", Order, Desk._resume, "Let a paused route go on."),
    Verb("reset", ResetOrder, Desk._reset, "Have a route read its input again from some point on."),
    Verb("dlq.ls", DeadLetterQuery, Desk._list, "List dead letters, oldest first."),
    Verb("dlq.show", DeadLetterId, Desk._show, "Show a dead letter with headers and content."),
    Verb(
        "dlq.redrive", DeadLetterOrder, Desk._redrive, "Send dead letters back to their route, exactly once."
    ),
    Verb("dlq.drop", DeadLetterOrder, Desk._drop, "Let go of dead letters for good."),
    Verb("context.get", Place, Desk._get, "Read a context, or a value in it."),
    Verb("context.full", Contexts, Desk._full, "Read all contexts of a route."),
    Verb("context.history", Changes, Desk._history, "Read what changed in a context, when and by whom."),
    Verb("context.set", Value, Desk._set, "Put a value into a context."),
    Verb("context.append", Value, Desk._append, "Append a value to a list in a context."),
    Verb("context.pop", Pop, Desk._pop, "Take an element out of a list in a context."),
    Verb("context.delete", Removal, Desk._delete, "Remove a value from a context, or the context."),
)


def api_subject(app: str, verb: str) -> str:
    """Where requests of that verb are taken."""
    return f"ctl.{app}.api.{verb}"


def _read(value: Any) -> Any:
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
            raise ValueError(f"{to} is no sequence: they begin with 1")
        return to
    try:
        found = datetime.fromisoformat(to)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ValueError(f"{to!r} is neither `start`, a number, nor a time such as 2026-01-31T08:00:00Z")
    return found


def _since_s(text: str) -> float:
    if not text:
        return 0.0
    try:
        found = moment(text)
        if found.tzinfo is None:
            raise ValueError
        return found.timestamp()
    except (ValueError, OverflowError):
        raise Refusal(
            "E601", f"`since` is {text!r}: neither a span such as 2h nor a time such as 2026-01-31T08:00:00Z"
        ) from None


def _code(text: str) -> str:
    if text and text not in ERRORS:
        raise Refusal("E601", f"`code` is {text!r}, which is not an error code, such as E304")
    return text


def _slim(shown: dict[str, Any], room: int) -> dict[str, Any]:
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


def _note(verb: str, what: str, request: Any) -> None:
    reason = f": {request.reason}" if request.reason else ""
    log.info("request %s of %s: %s%s", verb, request.by, what, reason)


def _fault(err: BaseException) -> Refusal:
    log.error("an unexpected error in a request; please report it", exc_info=err)
    return Refusal("E604", f"an unexpected error: {type(err).__name__}; the log has it")
