"""How messages become the documents of a Runnable, and how its outputs become messages.

A worker asks the codec of its route for a message's key and documents before a run, and for what is to be
published after it: outputs, and (ISM) the status and usage events of that system. One codec per value of
`input.codec`; `codec_for` makes it.

Runs on the trusted side and treats both sides as hostile: a message may hold anything, and so may what a
guest returns. Bytes are put inside another JSON text only after they were parsed as JSON themselves.
Everything here is a pure function of the route and the delivery, so that a second try of the same message
makes the same publications with the same ids.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote

import orjson

from processor.context.subjects import GraphSubjects, RouteSubjects, SubjectParts, names_of
from processor.errors import ERRORS, ProcessorError
from processor.model import (
    MARKER_REASON,
    NO_HEADERS,
    Delivery,
    Emit,
    Failure,
    Output,
    RawHeaders,
    partition_of,
    subject_text,
)
from processor.route import ENGINE, Route
from processor.sandbox import documents
from processor.sandbox.bounds import nests_deeper
from processor.subject import Template, matches

MAX_KEY_BYTES = 256
# Of a run: those of slices and of graphs in graphs have the names of all above them in theirs.
MAX_RUN_BYTES = 1024
# What a guest gets of an execution, and what its result may have: one of the endings among it.
_EXECUTION = ("kind", "run", "x", "a", "inputs", "store", "united", "history")
_EXECUTION_TYPES = (("run", str), ("x", str), ("a", int), ("kind", str), ("inputs", dict), ("sent_ms", int))
_ENDINGS = frozenset({"outputs", "prune", "requeue_ms", "error"})
_RESULT = _ENDINGS | {"sets", "inputs", "events", "returned"}
# With these codes a guest, or a program, may say itself that it failed: a step of a recipe.
_SAID_CODES = frozenset({"E714", "E716"})
_RETURNED_BYTES = 2048  # of what a step returned that failed
# What of a message the input of a trigger is.
_TRIGGER_VALUE = re.compile(r"\$\{\{\s*(document(?:\.[^\s.{}]+)*|subject)\s*\}\}")
_ABSENT = object()
NOBODY: Mapping[str, int] = MappingProxyType({})
_ERROR_CHARS = 2000
_TRACEBACK_CHARS = 8000
_SHOWN_CHARS = 80
# A status event must fit into a message whatever the message or the exception that it reports.
_STATUS_CHARS = 64 << 10
# Of a message that is read here and written into another: more than limits.max_depth allows with an envelope
# around it, and less than any interpreter refuses to write.
_LEVELS = 250


class Publication(NamedTuple):
    """One message for others; `pattern` is the entry of `Codec.topics` that its subject belongs to."""

    subject: str
    payload: bytes
    pattern: str
    headers: Mapping[str, str] = NO_HEADERS


class Unreadable(Exception):
    """A message that cannot be given to a Runnable, now or later (E301, E302, E303, E320)."""

    def __init__(self, code: str, text: str) -> None:
        self.failure = Failure(code, text)
        super().__init__(text)


def _is_delete_marker(delivery: Delivery) -> bool:
    """Whether an empty message says that the last value of its subject is gone (ADR-8, ADR-43)."""
    return delivery.headers.get("KV-Operation") in ("DEL", "PURGE") or MARKER_REASON in delivery.headers


def _nothing(delivery: Delivery) -> bytes:
    """The document of an empty message: null where that means something. Raises Unreadable."""
    if _is_delete_marker(delivery):
        return b"null"
    raise Unreadable("E301", "the message is empty, which is not JSON; `codec: raw` takes any bytes")


class Codec:
    """The codec `json`: payloads pass through, and the guest decodes them. Others change what differs."""

    # Whether every message is a call of `process` of its own.
    alone = False
    # Whether every message has one answer, of `outputs` or `failed`, and no dead letter beside it.
    answers = False

    def __init__(self, route: Route) -> None:
        self._route = route

    @property
    def topics(self) -> dict[str, bool]:
        """The patterns of all subjects that are published to, and whether a stream is to keep them."""
        output = self._route.output
        outputs = {output.template.pattern: output.is_durable} if output else {}
        return {**outputs, **dict.fromkeys((*self._route.inner, *self._route.emits), True)}

    def kind(self, delivery: Delivery) -> str:
        """What messages have in common that take about as long as each other."""
        return ""

    def key(self, delivery: Delivery) -> str:
        """The key that the message belongs to, empty where the route has none. Raises Unreadable."""
        source = self._route.key
        match source.kind:
            case "none":
                return ""
            case "subject":
                tokens = delivery.subject.split(".")
                value: Any = tokens[source.number - 1] if source.number <= len(tokens) else None
            case "header":
                raw = delivery.headers.raw(source.name)
                value = None if raw is None else raw.decode(errors="surrogateescape")
            case "json":
                value = _pointed_at(_parsed(self.read(delivery)), source.name)
                if type(value) is float:  # or an integer of more than 64 bits
                    value = _pointed_at(documents.loads(self.read(delivery)), source.name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value:
            found = "has none" if value is None else f"has {_show(value)} there"
            raise Unreadable("E303", f"the key is {self._route.key}, and the message {found}")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            what = (
                f"the key is {self._route.key}, and the message has {_show(value)} there, which is not UTF-8"
            )
            raise Unreadable("E303", what) from None
        if size > MAX_KEY_BYTES:
            raise Unreadable("E303", f"the key {_show(value)} is longer than {MAX_KEY_BYTES} bytes")
        return value

    def read(self, delivery: Delivery) -> bytes:
        """JSON text for the guest: one document, or a list of documents. Raises Unreadable."""
        return delivery.payload or _nothing(delivery)

    def is_skipped(self, delivery: Delivery) -> bool:
        """Whether the message is settled without a run, as the route wants it for delete markers."""
        skips = not delivery.payload and self._route.input.skips_delete_markers
        return skips and _is_delete_marker(delivery)

    def outputs(
        self, deliveries: Sequence[Delivery], key: str, outputs: Sequence[Output]
    ) -> list[Publication]:
        """What to publish for the outputs of one group, in order.

        Raises ProcessorError E306 or E308 for an output that cannot be published; then none may be.
        """
        template = self._route.output_template
        if template is None or not outputs:
            return []
        origin, pattern, fields = deliveries[0], template.pattern, template.fields
        subject = "" if fields else template.render(key=key, subject=origin.subject)  # that of all
        made = []
        for index, output in enumerate(outputs):
            if fields:
                subject = template.render(key=key, subject=origin.subject, fields=output.fields)
            payload, headers = self._written(output.body, origin, str(index))
            made.append(Publication(subject, payload, pattern, headers))
        return made

    def emitted(self, delivery: Delivery, index: int, emit: Emit) -> Publication:
        """What to publish for the message that a group emitted as number `index`, counted from 0.

        It is written as an output is. Raises ProcessorError E306 where it cannot be.
        """
        patterns = (*self._route.inner, *self._route.emits)
        pattern = next(pattern for pattern in patterns if matches(pattern, emit.subject))
        payload, headers = self._written(emit.body, delivery, f"emit-{index}")
        own = {name.lower() for name in emit.headers}
        kept = {name: value for name, value in headers.items() if name not in own}
        return Publication(emit.subject, payload, pattern, {**kept, **emit.headers})

    def started(self, delivery: Delivery) -> list[Publication]:
        """What to publish when a readable message is taken up."""
        return []

    def completed(self, delivery: Delivery) -> list[Publication]:
        """What to publish, beyond the outputs, for a message that is done."""
        return []

    def failed(self, delivery: Delivery, failure: Failure) -> list[Publication]:
        """What to publish for a message that becomes a dead letter."""
        return []

    def chunk_subject(self, delivery: Delivery, key: str, document: bytes) -> str | None:
        """Where the chunks of a stream-mode run go; None where no output is configured. Raises E308."""
        template = self._route.output_template
        if template is None:
            return None
        session = session_of(document) if template.needs_session else ""
        return template.render(key=key, subject=delivery.subject, session=session)

    def opening(self, document: bytes) -> list[bytes]:
        """Payloads that listeners get before the first chunk."""
        return []

    def marker(self, failure: Failure | None) -> bytes:
        """Payload of the message after the last chunk, which says how the run ended."""
        return b""

    def _written(self, body: bytes, delivery: Delivery, name: str) -> tuple[bytes, Mapping[str, str]]:
        return body, NO_HEADERS


class _Raw(Codec):
    """Any bytes: in as text where they are UTF-8 and as base64 where not, out the same way."""

    def read(self, delivery: Delivery) -> bytes:
        document: dict[str, str] = {"subject": subject_text(delivery.subject)}
        try:
            document["data"] = delivery.payload.decode()
        except UnicodeDecodeError:
            document["base64"] = base64.b64encode(delivery.payload).decode()
        return orjson.dumps(document)

    def _written(self, body: bytes, delivery: Delivery, name: str) -> tuple[bytes, dict[str, str]]:
        document = _output_document(body)
        if isinstance(document, str):
            return document.encode(), {}
        if (
            isinstance(document, dict)
            and list(document) == ["base64"]
            and isinstance(document["base64"], str)
        ):
            try:
                return base64.b64decode(document["base64"], validate=True), {}
            except (binascii.Error, ValueError) as err:
                raise ProcessorError("E306", f"`base64` of an output is not base64: {err}") from err
        return body, {}


_CE_REQUIRED = ("specversion", "id", "source", "type")
_CE_STRUCTURED = ("application/cloudevents+json", "application/cloudevents-batch+json")
_CE_JSON = re.compile(r"application/json\b|text/json\b|[^;]*\+json\b", re.IGNORECASE)


class _CloudEvents(Codec):
    """CloudEvents 1.0: binary mode in and out, structured JSON (single or batch) in."""

    def read(self, delivery: Delivery) -> bytes:
        if not delivery.payload and _is_delete_marker(delivery):
            return b"null"
        headers = {name.lower(): value for name, value in delivery.headers.pairs}
        event = {
            name[3:]: _attribute(name, value) for name, value in headers.items() if name.startswith("ce-")
        }
        stated_type = headers.get("content-type", b"").decode(errors="replace")
        media_type = stated_type.partition(";")[0].strip().lower()
        # A client that knows no headers can only send the structured mode.
        if media_type.startswith("application/cloudevents") or not event:
            if media_type not in ("", *_CE_STRUCTURED):
                raise Unreadable(
                    "E302", f"content type {_show(media_type)}: structured events are read as JSON only"
                )
            events = _parsed(delivery.payload)
            for one in events if isinstance(events, list) and media_type == _CE_STRUCTURED[1] else [events]:
                _check_event(one)
            return delivery.payload
        _check_event(event)
        content_type = event.setdefault("datacontenttype", stated_type)
        if not content_type:
            del event["datacontenttype"]
        return orjson.dumps({**event, **_event_data(delivery.payload, content_type)})

    def _written(self, body: bytes, delivery: Delivery, name: str) -> tuple[bytes, dict[str, str]]:
        route, own = self._route, self._route.cloudevents
        source = own.source or f"/processor/{route.app}/{route.name}"
        kind = own.type or f"processor.{route.name}.output"
        headers = {
            "ce-specversion": "1.0",
            "ce-id": f"{route.name}-{_header_text(delivery.stream)}-{delivery.sequence}-{name}",
            "ce-source": _header_text(source),
            "ce-type": _header_text(kind),
            "ce-datacontenttype": "application/json",
        }
        return body, headers


def _check_event(event: Any) -> None:
    if not isinstance(event, dict):
        raise Unreadable("E302", f"the event is {_kind(event)}, not an object")
    for name in _CE_REQUIRED:
        value = event.get(name)
        if not isinstance(value, str) or not value:
            what = "is missing" if value is None else f"is {_show(value)}"
            raise Unreadable("E302", f"the attribute {name} of the event {what}")
    if event["specversion"] != "1.0":
        raise Unreadable(
            "E302", f"the specversion of the event is {_show(event['specversion'])}; 1.0 is read"
        )


def _attribute(name: str, raw: bytes) -> str:
    """An attribute's value from its header: out of quotes, then percent-decoded once."""
    value = raw.decode(errors="surrogateescape")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        text = unquote(value, errors="strict")
        text.encode()
        return text
    except UnicodeError as err:
        raise Unreadable(
            "E302", f"the header {name} is {_show(value)}, which is not percent-encoded UTF-8"
        ) from err


def _event_data(payload: bytes, content_type: str) -> dict[str, Any]:
    if not payload:
        return {}
    if not content_type or _CE_JSON.match(content_type):
        try:
            orjson.loads(payload)
            return {"data": orjson.Fragment(payload)}
        except orjson.JSONDecodeError as err:
            if content_type:
                raise _not_json(err, "the data of the event") from err
    try:
        return {"data": payload.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(payload).decode()}


def _header_text(text: str) -> str:
    """`text` as a header value: percent-encoded where the NATS binding of CloudEvents wants it."""
    return quote(text, safe="!#$&'()*+,-./:;<=>?@[\\]^_`{|}~")


@dataclass(frozen=True, slots=True)
class Envelope:
    """An ISM message: which route it came on, and its entries."""

    route_id: str
    processor_id: str
    entries: list[Any]


class IsmCodec(Codec):
    """The envelope of the Alethic ISM processors, in and out, with its status and usage events."""

    alone = True

    def __init__(self, route: Route) -> None:
        super().__init__(route)
        assert route.ism is not None, "a route with the codec ism has its processor"
        self._ism = route.ism
        self._routing = route.ism.routing

    @property
    def topics(self) -> dict[str, bool]:
        routing, states = self._routing, self._ism.states
        used = [routing.monitor]
        used += [routing.usage] if self._ism.reports_usage else []
        if self._route.mode == "batch":
            used += [routing.sync] if any(state.is_stored for state in states) else []
            used += [routing.router] if any(state.next for state in states) else []
        return {**{entry.subject: entry.jetstream for entry in used}, **super().topics}

    def envelope(self, payload: bytes) -> Envelope:
        """The message's parts; raises Unreadable with what exactly is wrong with it."""
        message = _parsed_exactly(payload)
        if not isinstance(message, dict):
            raise Unreadable("E302", f"the envelope is {_kind(message)}, not an object")
        kind = message.get("type")
        if kind not in ("query_state", "query_state_entry"):
            raise Unreadable("E302", f"type is {_show(kind)}; query_state and query_state_entry are read")
        route_id = message.get("route_id")
        if not isinstance(route_id, str) or not route_id:
            raise Unreadable("E302", f"route_id is {_show(route_id)}; it must be text")
        processor_id = message.get("processor_id") or route_id.partition(":")[2]
        if self._ism.id not in (None, processor_id):
            raise Unreadable(
                "E302",
                f"the message is for processor {_show(processor_id)}, this is {self._ism.id!r}",
            )
        entries = message.get("query_state")
        if not isinstance(entries, (dict, list)):
            raise Unreadable("E302", f"query_state is {_kind(entries)}; it must be an object or a list")
        if not entries:
            raise Unreadable("E302", "query_state is empty")
        return Envelope(route_id, str(processor_id), entries if isinstance(entries, list) else [entries])

    def read(self, delivery: Delivery) -> bytes:
        return _dumped(self.envelope(delivery.payload).entries)

    def outputs(
        self, deliveries: Sequence[Delivery], key: str, outputs: Sequence[Output]
    ) -> list[Publication]:
        rows = [_row(output.body) for output in outputs]
        if not rows:
            return []
        envelope = self.envelope(deliveries[0].payload)
        made = []
        for state in self._ism.states:
            if state.is_stored:
                stored = {
                    "route_id": state.route_id,
                    "input_route_id": envelope.route_id,
                    "type": "query_state_route",
                    "input_query_state": envelope.entries,
                    "query_state": rows,
                }
                made.append(self._publication(self._routing.sync.subject, stored))
            for route_id in state.next:
                entry = {
                    "type": "query_state_entry",
                    "route_id": route_id,
                    "input_route_id": envelope.route_id,
                    "query_state": rows,
                }
                made.append(self._publication(self._routing.router.subject, entry))
        if self._ism.reports_usage:
            made.append(self._usage(envelope, deliveries[0], "OUTPUT", len(rows)))
        return made

    def started(self, delivery: Delivery) -> list[Publication]:
        envelope = self.envelope(delivery.payload)
        return [
            self._status(envelope.route_id, "QUEUED"),
            self._status(envelope.route_id, "RUNNING"),
            *(self._status(state.route_id, "RUNNING") for state in self._ism.states),
        ]

    def completed(self, delivery: Delivery) -> list[Publication]:
        envelope = self.envelope(delivery.payload)
        made = [self._status(state.route_id, "COMPLETED") for state in self._ism.states]
        made.append(self._status(envelope.route_id, "COMPLETED"))
        if self._ism.reports_usage:
            made.append(self._usage(envelope, delivery, "INPUT", len(envelope.entries)))
        return made

    def failed(self, delivery: Delivery, failure: Failure) -> list[Publication]:
        try:
            envelope = self.envelope(delivery.payload)
        except Unreadable:
            text = delivery.payload.decode(errors="replace")
            return [self._status(_claimed_route_id(delivery.payload), "FAILED", failure.text, text)]
        data = envelope.entries[0] if len(envelope.entries) == 1 else envelope.entries
        routes = [*(state.route_id for state in self._ism.states), envelope.route_id]
        return [self._status(route_id, "FAILED", failure.text, data) for route_id in routes]

    def chunk_subject(self, delivery: Delivery, key: str, document: bytes) -> str | None:
        subject = self._routing.state.subject.replace("{state_id}", self._ism.states[0].id)
        session = session_of(document)
        return Template.parse(f"{subject}.{{session}}").render(session=session) if session else subject

    def opening(self, document: bytes) -> list[bytes]:
        query = _first(document)
        payloads: list[bytes] = []
        for name in ("source", "input"):
            value = query.get(name)
            if isinstance(value, str):
                payloads += [value.encode(), f"<<>>{name.upper()}<<>>".encode()]
        return payloads

    def marker(self, failure: Failure | None) -> bytes:
        return b"<<>>ASSISTANT<<>>" if failure is None else b"<<>>ERROR<<>>"

    def _status(
        self, route_id: str | None, status: str, exception: str | None = None, data: Any = None
    ) -> Publication:
        event = {
            "type": "processor_state",
            "route_id": route_id,
            "status": status,
            "exception": exception and exception[:_STATUS_CHARS],
            "data": _bounded(data),
        }
        return self._publication(self._routing.monitor.subject, event)

    def _usage(self, envelope: Envelope, delivery: Delivery, subtype: str, count: int) -> Publication:
        at = datetime.fromtimestamp(int(delivery.timestamp_s), UTC)
        event = {
            "id": None,
            "transaction_time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "project_id": self._ism.project_id,
            "resource_id": envelope.processor_id,
            "resource_type": self._ism.selector,
            "unit_type": "COMPUTE",
            "unit_subtype": subtype,
            "unit_count": count,
            "metadata": None,
        }
        return self._publication(self._routing.usage.subject, event)

    def _publication(self, subject: str, event: Mapping[str, Any]) -> Publication:
        return Publication(subject, _dumped(event), subject)


class RunCodec(Codec):
    """Messages to the runs of graphs: each has the run that it is for, which is its key.

    What external workers send says results alone, and gets the namespace that it was sent for, as `ns`.
    """

    def __init__(self, route: Route) -> None:
        super().__init__(route)
        self._live = GraphSubjects(route.app).live
        # By what subjects begin with, up to the token that tells them apart: a run leaves several of these.
        self._inner = {_beginning(pattern): pattern for pattern in (*route.inner, self._live)}

    @property
    def topics(self) -> dict[str, bool]:
        return {**super().topics, self._live: False}

    def key(self, delivery: Delivery) -> str:
        message = _parsed(delivery.payload or _nothing(delivery))
        run = _run_of(message) if isinstance(message, dict) else None
        if not isinstance(run, str) or not run:
            raise Unreadable("E303", f"the message is for run {_show(run)}; a run has a text for its name")
        try:
            size = len(run.encode())
        except UnicodeEncodeError:
            raise Unreadable("E303", f"the run {_show(run)} is not UTF-8") from None
        if size > MAX_RUN_BYTES:
            raise Unreadable("E303", f"the run {_show(run)} is longer than {MAX_RUN_BYTES} bytes")
        return run

    def read(self, delivery: Delivery) -> bytes:
        kind = SubjectParts.of(delivery.subject).kind
        if kind not in ("ext", "sched"):
            return delivery.payload
        message = orjson.loads(delivery.payload)  # `key` has seen that it is an object
        if kind == "sched":
            return orjson.dumps({**message, "run": _run_of(message)})
        if message.get("t") != "result":
            raise Unreadable("E302", f"t is {_show(message.get('t'))}; an external worker sends results")
        return orjson.dumps({**message, "ns": names_of(delivery.subject)[0]})

    def emitted(self, delivery: Delivery, index: int, emit: Emit) -> Publication:
        pattern = self._inner.get(_beginning(emit.subject))
        if pattern is None:
            return super().emitted(delivery, index, emit)
        return Publication(emit.subject, emit.body, pattern, emit.headers)


def _beginning(subject: str) -> str:
    """What tells the patterns of `Route.inner` apart: the kind of an inbox's message needs its route, too."""
    tokens = subject.split(".", 4)
    return ".".join(tokens[: 4 if tokens[2:3] == ["in"] else 3])


def _run_of(message: Mapping[str, Any]) -> Any:
    """The run that a message is for; that of a schedule is named after its graph and when it was due."""
    if "run" not in message and isinstance(due := message.get("due"), str):
        return f"{message.get('graph')}-{due}"
    return message.get("run")


class TriggerCodec(Codec):
    """Messages that start runs of a graph: each becomes the `start` of a run named after it."""

    def __init__(self, route: Route) -> None:
        super().__init__(route)
        assert route.trigger is not None, "a route with the codec trigger has one"
        self._trigger = route.trigger
        self._runs = RouteSubjects(route.app, ENGINE)

    @property
    def topics(self) -> dict[str, bool]:
        return {}

    def start(self, delivery: Delivery) -> Publication:
        """The message to the engine that starts the run. Raises Unreadable."""
        run = f"{delivery.stream}-{delivery.sequence}"
        message = self._start("subject", self._inputs(delivery)) | {"run": run}
        return self._publication(run, message)

    @property
    def scheduled(self) -> tuple[str, bytes]:
        """Where the server sends what it sends at each due time, and that."""
        made = self._publication(
            self._route.name, self._start("schedule", self._trigger.inputs) | {"due": "{time}"}
        )
        return made.subject, made.payload

    def _start(self, by: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        start = {"v": 1, "t": "start", "graph": self._trigger.graph, "version": None, "inputs": inputs}
        return start | {"store": {}, "delay_ms": 0, "by": by, "check": True, "up": None}

    def _publication(self, key: str, message: Mapping[str, Any]) -> Publication:
        inbox = self._runs.inbox(partition_of(key, self._trigger.partitions))
        return Publication(inbox, orjson.dumps(message), self._runs.inbox())

    def _inputs(self, delivery: Delivery) -> Mapping[str, Any]:
        """The inputs of the run of a message; without any in the trigger the fields of its document are."""
        inputs = self._trigger.inputs
        if inputs:
            return dict(self._filled(inputs, delivery))
        document = _parsed(delivery.payload or _nothing(delivery))
        if not isinstance(document, dict):
            why = "the trigger has no `inputs` to say which input that is"
            raise Unreadable("E302", f"the message is {_kind(document)}, not an object, and {why}")
        return document

    def _filled(self, value: Any, delivery: Delivery) -> Any:
        """A value with what it refers to in its place; a field that the document lacks is left out."""
        if isinstance(value, dict):
            filled = ((name, self._filled(each, delivery)) for name, each in value.items())
            return {name: each for name, each in filled if each is not _ABSENT}
        if isinstance(value, list | tuple):
            found = [self._filled(each, delivery) for each in value]
            return [None if each is _ABSENT else each for each in found]
        reference = _TRIGGER_VALUE.fullmatch(value.strip()) if isinstance(value, str) else None
        if reference is None:
            return value
        if reference[1] == "subject":
            return subject_text(delivery.subject)
        document = _parsed(delivery.payload or _nothing(delivery))
        for name in reference[1].split(".")[1:]:
            document = document.get(name, _ABSENT) if isinstance(document, dict) else _ABSENT
        return document


class NodeCodec(Codec):
    """Executions of nodes: what a node gave, and why it failed, become results for its run.

    Whose result it is comes from the execution, and never from the guest. What was sent before its run was
    `gone`, by when it was, is not run.
    """

    answers = True

    def __init__(self, route: Route, gone: Mapping[str, int]) -> None:
        super().__init__(route)
        assert route.pool is not None, "a route with the codec node has its pool"
        self._pool = route.pool
        self._gone = gone
        self._runs = RouteSubjects(route.app, ENGINE)

    def kind(self, delivery: Delivery) -> str:
        try:
            return str(self._execution(delivery)["kind"])
        except Unreadable:
            return ""

    def key(self, delivery: Delivery) -> str:
        return ""

    def read(self, delivery: Delivery) -> bytes:
        message = self._execution(delivery)
        document = {name: message[name] for name in _EXECUTION if name in message}
        document["kind"] = message["kind"].rpartition("/")[2]
        return orjson.dumps({**document, "settings": self._pool.settings})

    def is_skipped(self, delivery: Delivery) -> bool:
        if not self._gone:
            return False
        try:
            message = self._execution(delivery)
        except Unreadable:
            return False
        return bool(message["sent_ms"] <= self._gone.get(message["run"], -1))

    def outputs(
        self, deliveries: Sequence[Delivery], key: str, outputs: Sequence[Output]
    ) -> list[Publication]:
        made = []
        for index, delivery in enumerate(deliveries):
            message = self._execution(delivery)
            body = outputs[index].body if len(outputs) == len(deliveries) else b""
            try:
                result = read_result(body)
            except ValueError as err:
                made.append(self._failed(message, Failure("E709", str(err))))
            else:
                body = orjson.dumps(result) if "error" in result else body.strip()
                made.append(self._result(message, b"," + body[1:]))
        return made

    def failed(self, delivery: Delivery, failure: Failure) -> list[Publication]:
        try:
            return [self._failed(self._execution(delivery), failure)]
        except Unreadable:
            return []  # nobody waits for it

    def _failed(self, message: Mapping[str, Any], failure: Failure) -> Publication:
        return self._result(message, b"," + orjson.dumps(failed_result(failure))[1:])

    def _result(self, message: Mapping[str, Any], rest: bytes) -> Publication:
        """`rest` is what follows whose result it is: the other members of the object, and its end."""
        run = message["run"]
        whose = {"v": 1, "t": "result", "run": run, "x": message["x"], "a": message["a"]}
        subject = self._runs.inbox(partition_of(run, self._pool.partitions))
        return Publication(subject, orjson.dumps(whose)[:-1] + rest, self._runs.inbox())

    def _execution(self, delivery: Delivery) -> dict[str, Any]:
        message = _parsed(delivery.payload)
        if not isinstance(message, dict):
            raise Unreadable("E302", f"the execution is {_kind(message)}, not an object")
        for name, kind in _EXECUTION_TYPES:
            if not isinstance(message.get(name), kind):
                raise Unreadable("E302", f"{name} of the execution is {_show(message.get(name))}")
        return message


def read_result(body: bytes) -> dict[str, Any]:
    """The result of a node that a guest gave. Raises ValueError where it is none, or names whose it is."""
    try:
        result = orjson.loads(body)
    except orjson.JSONDecodeError:
        result = None
    if not isinstance(result, dict):
        raise ValueError("the node gave no result")
    if more := result.keys() - _RESULT:
        raise ValueError(f"the result of the node has {_show(min(more))}")
    if (count := len(result.keys() & _ENDINGS)) != 1:
        raise ValueError(f"the result of the node has {count} of {', '.join(sorted(_ENDINGS))}")
    return _said_failure(result) if "error" in result else result


def _said_failure(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a step that says itself that it failed, bounded. Raises ValueError."""
    error = result["error"] if isinstance(result["error"], dict) else {}
    code, text, trace = error.get("code"), error.get("text"), error.get("traceback", "")
    if (
        not isinstance(code, str)
        or code not in _SAID_CODES
        or not isinstance(text, str)
        or not isinstance(trace, str)
    ):
        raise ValueError(f"the result of the node has an error that no step has, with the code {_show(code)}")
    failed = failed_result(Failure(code, text, trace))
    returned = result.get("returned")
    if returned is not None and len(orjson.dumps(returned)) <= _RETURNED_BYTES:
        failed["returned"] = returned
    return failed


def failed_result(failure: Failure) -> dict[str, Any]:
    """The result of a node that failed: why, bounded, and whether another try cannot change it."""
    row = ERRORS.get(failure.code)
    error = {
        "code": failure.code,
        "text": _encodable(failure.text[:_ERROR_CHARS]),
        "traceback": _encodable(failure.traceback[-_TRACEBACK_CHARS:]),
    }
    return {"error": error, "final": row is not None and row.is_final}


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def codec_for(route: Route, gone: Mapping[str, int] = NOBODY) -> Codec:
    """The codec that the route's `input.codec` names; `gone` says when runs were cancelled, ms since 1970."""
    if route.input.codec == "node":
        return NodeCodec(route, gone)
    kinds: dict[str, type[Codec]] = {
        "json": Codec,
        "raw": _Raw,
        "cloudevents": _CloudEvents,
        "ism": IsmCodec,
        "run": RunCodec,
        "trigger": TriggerCodec,
    }
    return kinds[route.input.codec](route)


def session_of(document: bytes) -> str:
    """The `session_id` of a query (of the first one in a list), empty where it has none."""
    session = _first(document).get("session_id")
    return str(session) if isinstance(session, (str, int)) and not isinstance(session, bool) else ""


def _parsed(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as err:
        raise _not_json(err) from err


def _not_json(err: ValueError | RecursionError, what: str = "the message") -> Unreadable:
    return Unreadable(*documents.unreadable(err, what))


def _parsed_exactly(payload: bytes) -> Any:
    """As `_parsed`, with integers of any size: what is written into another message must stay what it was.

    It is not so deep that it could not be written.
    """
    try:
        value = json.loads(payload.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as err:
        raise _not_json(err) from err
    if nests_deeper(payload, value, _LEVELS):
        raise Unreadable("E320", f"the message is nested too deeply: more than {_LEVELS} levels")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number is infinity: {text[:_SHOWN_CHARS]}")
    return number


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate can be written as an escape only
        return json.dumps(value, separators=(",", ":")).encode()


def _bounded(data: Any) -> Any:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return data if len(text) <= _STATUS_CHARS else text[:_STATUS_CHARS]


def _first(document: bytes) -> dict[str, Any]:
    """The first query of a document, empty where it is not an object; the guest says what is wrong."""
    try:
        value = documents.loads(document)
    except ValueError:
        return {}
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, dict) else {}


def _claimed_route_id(payload: bytes) -> str | None:
    route_id = _first(payload).get("route_id")
    return route_id if isinstance(route_id, str) else None


def _output_document(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as err:
        raise ProcessorError("E306", f"an output is not JSON: {err}") from err


def _row(body: bytes) -> dict[str, Any]:
    try:
        row = _parsed_exactly(body)
    except Unreadable as err:
        raise ProcessorError("E306", f"an output is not JSON: {err}") from err
    if isinstance(row, str):
        return {"result": row}
    if isinstance(row, dict):
        return row
    raise ProcessorError("E306", f"an output is {_kind(row)}; ISM takes objects and text")


def _pointed_at(document: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901), None where there is none."""
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(name)
        elif (
            isinstance(document, list)
            and re.fullmatch(r"0|[1-9][0-9]{0,8}", name)
            and int(name) < len(document)
        ):
            document = document[int(name)]
        else:
            return None
    return document


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "missing or null"}
    return names.get(type(value), "a number")


def _show(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, (dict, list)):
        return _kind(value)
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def content_of(payload: bytes) -> dict[str, Any]:
    """The payload as `data` where it is JSON, as `text` where it is text, else as `base64`."""
    try:
        orjson.loads(payload)
        # A fragment keeps numbers as they were written. It must not break the line: no text of JSON holds a
        # line break, so each is white space.
        return {"data": orjson.Fragment(payload.replace(b"\n", b" ").replace(b"\r", b" "))}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"text": payload.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(payload).decode()}


def headers_shown(headers: Mapping[str, str]) -> dict[str, Any]:
    """Headers as JSON: text by name, a list of what is repeated, `{"base64": ...}` for what is not UTF-8."""
    if not isinstance(headers, RawHeaders):
        return dict(headers)
    shown: dict[str, Any] = {}
    for name, raw in headers.pairs:
        try:
            value: Any = raw.decode()
        except UnicodeDecodeError:
            value = {"base64": base64.b64encode(raw).decode()}
        if name not in shown:
            shown[name] = value
        elif isinstance(shown[name], list):
            shown[name].append(value)
        else:
            shown[name] = [shown[name], value]
    return shown


def headers_from(shown: Any) -> RawHeaders:
    """The headers that `headers_shown` showed. Raises ValueError for anything else."""
    if not isinstance(shown, dict):
        raise ValueError("`headers` is not an object")
    pairs: list[tuple[str, str | bytes]] = []
    for name, values in shown.items():
        for value in values if isinstance(values, list) else [values]:
            match value:
                case str():
                    pairs.append((name, value))
                case {"base64": str(text), **more} if not more:
                    pairs.append((name, base64.b64decode(text, validate=True)))
                case _:
                    raise ValueError(
                        f"the header {name!r} is {_kind(value)}; text, or a list of texts, is read"
                    )
    return RawHeaders.of(pairs)


def key_of(delivery: Delivery, codec: Codec) -> str:
    """The key that decides which partition a message belongs to: also for one that has none to be used."""
    try:
        return codec.key(delivery)
    except Exception:  # a wall: any bytes; the worker asks again, and says what is wrong with the message
        return ""
