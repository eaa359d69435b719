"""`try`: a route's real worker and guest on the lines of a file, with this process in place of a server.

Everything that decides about a message is the worker's own: batches, contexts, retries, dead letters, events,
chunks. Only where it would talk to NATS it has the parts of `delivery.memory`: input comes from the lines,
contexts are kept in memory, and what is published or committed is shown. A message that `then: drop` gives up
leaves nothing there, so it is shown when it is settled.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from processor.audit import document_of
from processor.capability.monitor import Mandate
from processor.capability.registry import HostCalls
from processor.cli.inputs import Line, lines_of, parse_template, read_all, route_of, subject_of
from processor.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    Runs,
    Screen,
    Shown,
    complain,
    envelope,
    say,
    warn,
)
from processor.config import Config, language_fault, load, tool_fault
from processor.context.parked import REASON_CHARS
from processor.context.position import InputStream
from processor.context.subjects import SubjectParts, public_subject
from processor.delivery.codec import codec_for, headers_from
from processor.delivery.effects import Outlet
from processor.delivery.memory import Memory, MemoryPublisher, MemorySource, MemoryStore
from processor.delivery.worker import Shared, Worker
from processor.errors import ConfigError, Faults, LanguageError
from processor.jetstream import Outgoing, own_headers
from processor.model import NO_HEADERS, Delivery, RunRecord
from processor.policy import Policy, Rules, asks_of, lines_for
from processor.printable import printable
from processor.route import Route
from processor.sandbox import documents
from processor.sandbox.host import Zygote
from processor.sandbox.values import TOMBSTONE, decode
from processor.subject import Template, check_subject, matches, overlaps
from processor.telemetry import Telemetry, configure_logging


def try_route(
    path: Path,
    name: str,
    file: str,
    *,
    subject: str | None,
    is_raw: bool,
    is_envelope: bool,
    learn: Path | None,
    format: str | None,
) -> int:
    """Run the route on the messages of `file`; whether one failed is in the exit code.

    `learn` is a file to be made, with the lines of a policy that allow what the Runnable asks for. Raises
    ConfigError E107 where it is there, or cannot be made.
    """
    config = load(path)
    route = route_of(config, name)
    if learn is not None:
        _write_new(learn, "")  # before anything runs: what cannot be written is not worth a run
        route = replace(route, policy=WATCHING, audit=replace(route.audit, level="calls"))
    lines = lines_of(read_all(file), file, keep_empty=is_raw)
    subjects = _Subjects(config, route, subject, is_raw=is_raw)
    read = _from_envelope if is_envelope else _from_line
    deliveries: list[Delivery] = []
    places: list[str] = []
    for line in lines:
        try:
            deliveries.append(read(line, len(deliveries) + 1, subjects))
            places.append(line.place)
        except ConfigError as err:  # as `pub` leaves it out
            complain(err)
    configure_logging("human", "error")
    logging.getLogger("processor.runnable").setLevel(logging.DEBUG)
    code, memory = asyncio.run(_run(config, route, deliveries, places, Screen(format)))
    if learn is not None:
        used = Counter(pair for entry in _entries(memory, name) for pair in asks_of(entry))
        learn.write_text(lines_for(used))
        say(f"lines for {len(used)} things that were asked for are in {learn}; read them before you use them")
    return code if len(deliveries) == len(lines) else code or EXIT_FAILED


# Denies nothing, and notes everything.
WATCHING = Rules((Policy("policy.toml", (), is_shadow=True),))


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x") as made:
            made.write(text)
    except OSError as err:
        what = (
            "is there already" if isinstance(err, FileExistsError) else f"cannot be written: {err.strerror}"
        )
        raise ConfigError("E107", what, place=str(file)) from err


def _entries(memory: Memory, route: str) -> Iterator[dict[str, Any]]:
    for record in memory.audit(route):
        yield from map(document_of, record.lines)


class _Subjects:
    """The subject of each line: as it was asked for, or one that the route's input takes."""

    def __init__(self, config: Config, route: Route, given: str | None, *, is_raw: bool) -> None:
        self._given = parse_template(given) if given else None
        pattern = route.input.subjects[0]
        self.example = ".".join("x" if token in "*>" else token for token in pattern.split("."))
        self._feed: Template | None = None
        if config.dev and not is_raw and overlaps(config.dev.template.pattern, pattern):
            self._feed = config.dev.template

    def of(self, line: Line) -> str:
        if self._given is not None:
            return subject_of(self._given, line)
        try:
            return subject_of(self._feed, line) if self._feed else self.example
        except ConfigError:  # what the feed could not publish is for the route to refuse
            return self.example


def _from_line(line: Line, number: int, subjects: _Subjects) -> Delivery:
    return Delivery(subjects.of(line), line.text, NO_HEADERS, "try", number, time.time())


def _from_envelope(line: Line, number: int, subjects: _Subjects) -> Delivery:
    try:
        envelope = documents.loads(line.text)
        if not isinstance(envelope, dict):
            raise ValueError("it is not an object")
        headers = headers_from(envelope.get("headers", {}))
        payload = _payload_of(envelope)
        subject = envelope.get("subject", subjects.example)
        if not isinstance(subject, str):
            raise ValueError("`subject` is not text")
        check_subject(subject, wildcards=False)
    except ValueError as err:
        raise ConfigError("E104", f"is not an envelope: {err}", place=line.place) from err
    return Delivery(subject, payload, headers, "try", number, time.time())


def _payload_of(envelope: Mapping[str, Any]) -> bytes:
    given = [name for name in ("data", "text", "base64") if name in envelope]
    if len(given) != 1:
        raise ValueError("one of `data` (JSON), `text` and `base64` is the message")
    value = envelope[given[0]]
    if given == ["data"]:
        return documents.dumps(value)
    if not isinstance(value, str):
        raise ValueError(f"`{given[0]}` is not text")
    try:
        return value.encode() if given == ["text"] else base64.b64decode(value, validate=True)
    except binascii.Error as err:
        raise ValueError(f"`base64` is not base64: {err}") from err


async def _run(
    config: Config,
    route: Route,
    deliveries: Sequence[Delivery],
    places: Sequence[str],
    screen: Screen,
) -> tuple[int, Memory]:
    """The exit code, and what a server would hold."""
    # Nobody waits here, for another try or for the breaker, and no later start would lift a block.
    then = "dead_letter" if route.retry.then == "block" else route.retry.then
    route = replace(
        route,
        retry=replace(route.retry, base_ms=0, max_ms=0, then=then),
        breaker=replace(route.breaker, deaths=sys.maxsize),
    )
    shown = _Display(route, places, screen)
    telemetry = Telemetry()
    memory = Memory(route.app, shown.stored)
    store, source = MemoryStore(memory, route.name, route.partitions, "try"), MemorySource(deliveries)
    await store.claim(InputStream("try", ""), 0)
    codec = codec_for(route)
    events = [route.events_subject] if route.events_subject else []
    calls = HostCalls()
    zygote = await Zygote.start()
    keeping: asyncio.Task[None] | None = None
    try:
        governor = calls.for_route(route.reach, Mandate.of(route))
        governor.see(dict.fromkeys(route.policy.expiring, time.time_ns() // 1000))
        governor.connections.files.open()
        calls.toolbox.borrow(zygote)
        if unusable := await calls.toolbox.unusable(route.reach.tools):
            raise Faults([tool_fault(config, name, err) for name, err in unusable.items()])
        monitor = governor.lane()
        spawn = partial(
            zygote.spawn,
            route.program,
            route.limits,
            perform=monitor.perform,
            capabilities=governor.signatures,
            secrets=governor.secrets,
            emits=route.emits,
            heap=governor.heap,
        )
        try:
            first = await spawn()  # faults of the Runnable, before its messages
            await first.close()
            warn(first.warnings)
        except LanguageError as err:
            raise Faults([language_fault(config, route, err)]) from err
        worker = Worker(
            route,
            codec,
            MemoryPublisher(memory, shown.live),
            source,
            store,
            spawn,
            dict.fromkeys([*codec.topics, *events], Outlet()),
            telemetry.route(route.name),
            lambda why: complain(why) if why else None,
            Shared.of(route, {}, governor),
            monitor,
            [shown.read],
        )
        await worker.say("started")
        keeping = asyncio.create_task(governor.budgets.keep(worker.say), name="budgets")
        working = asyncio.create_task(worker.run())
        reading = asyncio.create_task(source.drained())
        await asyncio.wait({working, reading}, return_when=asyncio.FIRST_COMPLETED)
        reading.cancel()
        await asyncio.wait(
            {working, resting := asyncio.create_task(worker.rest())}, return_when=asyncio.FIRST_COMPLETED
        )
        resting.cancel()
        worker.stop()
        await working
        await worker.say("stopped")
    finally:
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        await zygote.close()
        await calls.close()
    shown.contexts(memory.contexts(route.name))
    say(f"{len(deliveries)} message{'' if len(deliveries) == 1 else 's'}: {shown.summary()}")
    if repeated := int(telemetry.numbers["processor_repeated_requests_total"][(route.name,)]):
        say(
            f"{repeated} call{' was' if repeated == 1 else 's were'} made again in a later try of a message;"
            " `calls.replay` says which answers are kept for that"
        )
    return EXIT_FAILED if shown.counts["dead letter"] or shown.counts["dropped"] else EXIT_OK, memory


_PLURALS = {
    "output": "outputs",
    "emit": "emits",
    "event": "events",
    "chunk": "chunks",
    "retry": "retries",
    "dead letter": "dead letters",
    "dropped": "dropped",
}


class _Display:
    """Shows what would be published."""

    def __init__(self, route: Route, places: Sequence[str], screen: Screen) -> None:
        self._route = route
        self._places = places
        self._screen = screen
        self._runs = Runs()
        self.counts = dict.fromkeys(_PLURALS, 0)

    def stored(self, messages: Sequence[Outgoing]) -> None:
        """Show messages of one commit."""
        for message in messages:
            kind = SubjectParts.of(message.subject).kind
            if kind == "later":
                self._retry(message.headers)
            elif kind == "dlq":
                self._dead_letter(message.headers)
            elif kind == "emit":
                self._emit(message)
            else:
                subject = public_subject(self._route.app, message.subject)
                self._show(self._kind_of(subject), Outgoing(subject, message.payload, message.headers))
        self._screen.flush()

    def _kind_of(self, subject: str) -> str:
        if subject == self._route.events_subject:
            return "event"
        template = self._route.output_template
        is_output = template is not None and matches(template.pattern, subject)
        is_emit = any(matches(pattern, subject) for pattern in self._route.emits)
        return "emit" if is_emit and not is_output else "output"

    def live(self, message: Outgoing) -> None:
        """Show a message to those who are subscribed."""
        if self._runs.is_silent_end(message.headers) and not self._screen.is_json:
            return
        ending = message.headers.get("Processor-Stream", "")
        self._show(ending or ("chunk" if "Processor-Chunk" in message.headers else "event"), message)
        self._screen.flush()

    def contexts(self, kept: Mapping[str, Mapping[str, bytes]]) -> None:
        """Show what became of each context, which began empty."""
        for key, items in kept.items():
            change = {name: decode(value) for name, value in items.items() if value != TOMBSTONE}
            if self._screen.is_json:
                self._screen.document({"kind": "context", "key": key, "items": change})
                continue
            self._screen.heading(f"context {printable(key)}".rstrip())
            self._screen.items(change)
        self._screen.flush()

    def summary(self) -> str:
        words = [f"{n} {kind if n == 1 else _PLURALS[kind]}" for kind, n in self.counts.items() if n]
        return ", ".join(words) or "nothing came of them"

    def _show(self, kind: str, message: Outgoing) -> None:
        if kind in self.counts:
            self.counts[kind] += 1
        self._screen.message(Shown(message.subject, message.payload, own_headers(message.headers), kind=kind))

    def _emit(self, message: Outgoing) -> None:
        """Show what the server would send later, at its subject then."""
        subject = public_subject(self._route.app, message.headers["Nats-Schedule-Target"])
        at = message.headers["Nats-Schedule"].removeprefix("@at ")
        self.counts["emit"] += 1
        shown = Shown(subject, message.payload, own_headers(message.headers))
        if self._screen.is_json:
            self._screen.document({"kind": "emit", "at": at, **envelope(shown)})
        else:
            self._screen.message(replace(shown, kind=f"emit at {at}"))

    def _retry(self, headers: Mapping[str, str]) -> None:
        place = self._places[int(headers["x-original-sequence"]) - 1]
        at = headers["Nats-Schedule"].removeprefix("@at ")
        self.counts["retry"] += 1
        if self._screen.is_json:
            self._screen.document({"kind": "retry", "place": place, "at": at})
        else:
            self._screen.problem(f"retry {place} at {at}", "")

    def _dead_letter(self, headers: Mapping[str, str]) -> None:
        if headers.get("x-part", "1/").partition("/")[0] != "1":
            return
        self._given_up(
            "dead letter",
            headers["x-original-subject"],
            int(headers["x-original-sequence"]),
            int(headers["x-delivery-count"]),
            headers["x-error-code"],
            headers["x-dead-letter-reason"],
            orjson.loads(headers.get("x-error-traceback", '""')),
        )

    def read(self, record: RunRecord) -> None:
        """Show the messages that a run has left nothing of, behind what was committed."""
        for delivery, failure, attempt, _, id_, _ in record.given_up:
            if not id_:
                self._given_up(
                    "dropped",
                    delivery.subject,
                    delivery.sequence,
                    attempt,
                    failure.code,
                    failure.text[:REASON_CHARS],
                    failure.traceback,
                )
        self._screen.flush()

    def _given_up(
        self, kind: str, subject: str, number: int, tries: int, code: str, reason: str, traceback: str
    ) -> None:
        self.counts[kind] += 1
        place = self._places[number - 1]
        if self._screen.is_json:
            self._screen.document(
                {
                    "kind": kind,
                    "subject": subject,
                    "place": place,
                    "code": code,
                    "reason": reason,
                    "attempts": tries,
                    "traceback": traceback,
                }
            )
            return
        self._screen.problem(f"{kind} {place} {code} {reason}", traceback)
