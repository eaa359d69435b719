"""`pub` and `tail`: messages into a subject, and messages as they are or come.

Neither knows a route's inner life: `tail` of a route reads its outputs, events and dead letters where its
commits put them. Looking on takes nothing away: streams that hand each message to one reader are read
message by message without a consumer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import secrets
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from processor.cli.connection import connected, server_for, unanswered
from processor.cli.dev import live_subjects
from processor.cli.inputs import BOM, Line, parse_template, subject_of
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, Shown, complain, is_terminal, name_pages, say
from processor.config import Nats, load, server_of
from processor.context.subjects import (
    RouteSubjects,
    app_stream,
    committed_subject,
    dead_letter_id,
    public_subject,
)
from processor.delivery.codec import codec_for
from processor.errors import BrokerError, ConfigError, ProcessorError
from processor.jetstream import Again, ApiError, Broker, Outgoing, Reader, Stored, Unknown, own_headers
from processor.model import Delivery
from processor.route import Route
from processor.subject import Template, check_subject, matches
from processor.telemetry import configure_logging

_WINDOW = 500  # messages that are under way at once
_PATIENCE_S = 10.0  # how long an answer may be outstanding, a reconnect included
_PROGRESS_AFTER_S = 0.5
_READ_BYTES = 1 << 18
_REFUSALS_SAID_MAX = 20
_TOO_LARGE = 10054  # the server's number for a message above the stream's max_msg_size
_REFUSED = object()


@dataclass(frozen=True, slots=True)
class _Publishing:
    template: Template
    headers: Mapping[str, str]
    rate: float | None
    run_id: str  # with a line's number the id of its message: a stream stores a line of one run once


def publish(
    subject: str,
    file: str,
    *,
    config: Path | None,
    url: str | None,
    rate: float | None,
    headers: Sequence[str],
    count: int,
    is_whole: bool,
    from_line: int,
    run_id: str | None,
) -> int:
    """Publish the lines of `file`, or all of it as one message, `count` times.

    Lines that cannot be published are named and left out, and the exit code is EXIT_FAILED; so it is where
    nobody can hear the messages.
    """
    nats = load(config, needs_secrets=False).nats if config is not None else server_of(url)
    how = _Publishing(
        parse_template(subject), dict(map(_header, headers)), rate, run_id or secrets.token_hex(6)
    )
    configure_logging("human", "warning")
    with _opened(file) as number, server_for(nats) as (server, is_own):
        name = "stdin" if file == "-" else file
        source = _Input(number, name, count=count, is_whole=is_whole, from_line=from_line)
        try:
            refused = asyncio.run(_publish(server, how, source, is_alone=is_own))
        except _Unheard as err:
            complain(err)
            name_pages(str(err))
            return EXIT_FAILED
    return EXIT_FAILED if refused else EXIT_OK


class _Unheard(BrokerError):
    """A message that no stream takes, at a server that nobody else has reached yet."""


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name or any(not "!" <= c <= "~" for c in name) or not value.isprintable():
        raise ConfigError("E104", f"the header {text!r} is not NAME:VALUE")
    return name, value.strip()


@contextlib.contextmanager
def _opened(file: str) -> Iterator[int]:
    if file == "-":
        yield sys.stdin.fileno()
        return
    try:
        number = os.open(file, os.O_RDONLY)
    except OSError as err:
        raise ConfigError("E107", f"cannot be read: {err.strerror}", place=file) from err
    try:
        yield number
    finally:
        os.close(number)


class _Input:
    """The lines of an open file as they become available, a handful at a time.

    A thread reads: a terminal or a pipe may keep it waiting while the connection must stay alive. It reads
    the file itself and not Python's buffer, whose lock a waiting thread would hold when the process ends.
    """

    def __init__(self, number: int, name: str, *, count: int, is_whole: bool, from_line: int) -> None:
        found = os.fstat(number)
        self.name = name
        self._number = number
        self._count = count
        self._is_whole = is_whole
        self._from_line = from_line
        self.bytes_total = found.st_size * count if stat.S_ISREG(found.st_mode) else None

    async def lines(self) -> AsyncIterator[tuple[int, list[Line]]]:
        """Some lines at a time, and how often the input is still to be published, this time included."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[int, list[Line]] | OSError | None] = asyncio.Queue()
        room = threading.Semaphore(4)

        def put(item: tuple[int, list[Line]] | OSError | None) -> None:
            room.acquire()
            loop.call_soon_threadsafe(arrived.put_nowait, item)

        def read() -> None:
            try:
                for some in self._read():
                    put(some)
                put(None)
            except OSError as err:
                put(err)
            except RuntimeError:  # the loop has ended, and nobody wants more
                pass

        threading.Thread(target=read, name="read input", daemon=True).start()
        while True:
            item = await arrived.get()
            room.release()
            if item is None:
                return
            if isinstance(item, OSError):
                raise ConfigError("E107", f"cannot be read: {item.strerror}", place=self.name)
            yield item

    def _read(self) -> Iterator[tuple[int, list[Line]]]:
        kept: list[list[Line]] = []
        for lines in [[self._all()]] if self._is_whole else self._once():
            if self._count > 1:
                kept.append(lines)
            if wanted := [line for line in lines if line.number >= self._from_line]:
                yield self._count, wanted
        for left in range(self._count - 1, 0, -1):
            for lines in kept:
                yield left, lines

    def _all(self) -> Line:
        parts = []
        while part := os.read(self._number, _READ_BYTES):
            parts.append(part)
        return Line(b"".join(parts), self.name)

    def _once(self) -> Iterator[list[Line]]:
        begun, number = b"", 0
        while True:
            part = os.read(self._number, _READ_BYTES)
            *whole, begun = (begun + part).split(b"\n") if part else (begun, b"")
            lines = []
            for text in whole:
                number += 1
                text = text.removeprefix(BOM) if number == 1 else text
                if text.strip():
                    lines.append(Line(text.removesuffix(b"\r"), f"{self.name}:{number}:1", number))
            if lines:
                yield lines
            if not part:
                return


async def _publish(nats: Nats, how: _Publishing, source: _Input, *, is_alone: bool) -> int:
    """Publish what `source` has; how many lines could not be."""
    began_s = time.monotonic()
    own = asyncio.current_task()
    assert own is not None
    async with connected(nats, "processor pub", needs_jetstream=False) as broker:
        publisher = _Publisher(broker, how, is_alone=is_alone)
        try:
            await publisher.find_streams()
            with _progress(source.bytes_total) as advance:
                async for rounds_left, lines in source.lines():
                    for start in range(0, len(lines), publisher.window):
                        window = lines[start : start + publisher.window]
                        await publisher.send(window, rounds_left)
                        advance(publisher.sent, sum(len(line.text) + 1 for line in window))
                        if own.cancelling():  # Ctrl-C met an answer, and Python 3.11 lost it there
                            raise asyncio.CancelledError
        except BaseException:
            if publisher.sent:
                say(f"stopped: {publisher.summary(time.monotonic() - began_s)}")
                say(f"To go on with {source.name}, add {publisher.resumption}.")
            raise
        say(publisher.summary(time.monotonic() - began_s))
        return publisher.refused


class _Publisher:
    """Sends windows of lines, to the streams that hold their subjects or to live subscribers.

    A line that cannot become a message, or is too large for one, is named and left out. Raises _Unheard
    before a message is lost because it `is_alone` at the server.
    """

    def __init__(self, broker: Broker, how: _Publishing, *, is_alone: bool) -> None:
        self._broker = broker
        self._how = how
        self._is_alone = is_alone
        self._held: dict[str, list[str]] = {}  # subjects of each stream that may hold ours
        self._began_s = time.monotonic()
        self._silent: set[str] = set()  # of those, the streams that acknowledge nothing
        self._stored: collections.Counter[str] = collections.Counter()
        self._unconfirmed: collections.Counter[str] = collections.Counter()
        self._live = 0
        self._next = (1, 1)  # times that the input is left to publish, and its first line not yet confirmed
        self.refused = 0
        # A tenth of a second's worth keeps an even pace.
        self.window = _WINDOW if how.rate is None else max(1, min(_WINDOW, int(how.rate / 10)))

    @property
    def sent(self) -> int:
        return self._live + self._stored.total() + self._unconfirmed.total()

    @property
    def resumption(self) -> str:
        """The options with which the same command goes on after a stop."""
        rounds_left, number = self._next
        count = f" --count {rounds_left}" if rounds_left > 1 else ""
        return f"--from-line {number} --run-id {self._how.run_id}{count}"

    async def find_streams(self) -> None:
        """Learn which streams hold subjects of ours."""
        if not await self._broker.has_jetstream():
            say(
                f"the NATS server at {self._broker.address} has no JetStream for this account: messages reach"
                " only those who are subscribed now"
            )
            return
        pattern = self._how.template.pattern
        found = await self._broker.api("STREAM.NAMES", {"subject": pattern})
        for name in found.get("streams") or []:
            info = await self._broker.stream(name)
            self._held[name] = info["config"].get("subjects") or [] if info else []
            if info and info["config"].get("no_ack"):
                self._silent.add(name)
                say(f"stream {name} acknowledges nothing (no_ack): nobody knows whether it has a message")

    async def send(self, lines: Sequence[Line], rounds_left: int) -> None:
        """Publish these lines in order. Returns when streams that acknowledge have confirmed theirs."""
        self._next = rounds_left, lines[0].number
        stored: list[tuple[str, Outgoing, Line]] = []
        live = 0
        unconfirmed: collections.Counter[str] = collections.Counter()
        for line in lines:
            try:
                subject = subject_of(self._how.template, line)
            except ConfigError as err:
                self._refuse(err)
                continue
            holder = next((n for n, held in self._held.items() if any(matches(p, subject) for p in held)), "")
            message = Outgoing(subject, line.text, self._how.headers)
            if not holder and self._is_alone:
                raise _Unheard(
                    "E401",
                    f"no stream holds {subject}, and the embedded server runs for this command alone, so "
                    "nobody would get the message",
                    place=line.place,
                    remedy="Start the app first (processor dev CONFIG), or create the stream.",
                )
            if not holder:
                answer = await self._checked(line, self._broker.publish(message))
                live += answer is not _REFUSED
                continue
            headers = {
                "Nats-Msg-Id": f"{self._how.run_id}-{rounds_left}-{line.number}",
                **self._how.headers,
            }
            message = Outgoing(subject, line.text, headers)
            if holder in self._silent:
                answer = await self._checked(line, self._broker.publish(message))
                unconfirmed[holder] += answer is not _REFUSED
            else:
                stored.append((holder, message, line))
        if live or unconfirmed:
            await self._broker.flush()
            self._live += live
            self._unconfirmed += unconfirmed
        await self._store(stored)
        if self._broker.last_denial:
            raise BrokerError("E403", f"the NATS server does not let this user {self._broker.last_denial}")
        self._next = rounds_left, lines[-1].number + 1
        if self._how.rate is not None:
            due_s = self._began_s + self.sent / self._how.rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    def summary(self, seconds: float) -> str:
        where = [f"{n:,} stored in {name}" for name, n in self._stored.items()]
        where += [f"{n:,} sent to {name}, which does not confirm it" for name, n in self._unconfirmed.items()]
        where += [f"{self._live:,} sent to live subscribers (no stream holds them)"] if self._live else []
        pace = f" in {seconds:.1f} s" if seconds >= 0.1 else ""
        what = f"{self.sent:,} message{'' if self.sent == 1 else 's'} to {self._how.template.text}{pace}"
        if self.refused:
            lines = "1 line was" if self.refused == 1 else f"{self.refused:,} lines were"
            where.append(f"{lines} left out")
        return f"{what}: {', '.join(where) or 'the input is empty'}"

    async def _store(self, waiting: list[tuple[str, Outgoing, Line]]) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        while waiting:
            await self._broker.connected()
            answers = await asyncio.gather(
                *(self._checked(line, self._broker.publish_stored(message)) for _, message, line in waiting),
                return_exceptions=True,
            )
            again: list[tuple[str, Outgoing, Line]] = []
            for item, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, Unknown | Again):
                    if time.monotonic() > deadline_s or self._broker.last_denial:
                        raise unanswered(self._broker, answer) from answer
                    again.append(item)
                elif isinstance(answer, BaseException):
                    raise answer
                elif answer is not _REFUSED:
                    self._stored[item[0]] += 1
            waiting = again

    async def _checked(self, line: Line, publishing: Any) -> Any:
        """What `publishing` returns, or _REFUSED where this line is too large. Raises BrokerError."""
        try:
            return await publishing
        except ApiError as err:
            what = f"the stream refused the message: {err.description} ({err.err_code})"
            error = BrokerError("E406", what, place=line.place)
            if err.err_code != _TOO_LARGE:
                raise error from err
        except BrokerError as err:
            error = BrokerError(err.code, err.what, place=line.place, remedy=err.remedy)
            if err.code != "E406":  # above the server's max_payload
                raise error from err
        self._refuse(error)
        return _REFUSED

    def _refuse(self, error: ProcessorError) -> None:
        self.refused += 1
        if self.refused <= _REFUSALS_SAID_MAX:
            complain(error)
        elif self.refused == _REFUSALS_SAID_MAX + 1:
            say("There are more such lines; from here on they are only counted.")


@contextlib.contextmanager
def _progress(bytes_total: int | None) -> Iterator[Callable[[int, int], None]]:
    """A call that shows how far the input is, on a terminal and when it takes its time.

    It is told how many messages were sent so far, and how many bytes of input since it was told last.
    """
    if not is_terminal(sys.stderr):
        yield lambda sent, size: None
        return
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("", total=bytes_total)
    began_s = time.monotonic()

    def advance(sent: int, size: int) -> None:
        if time.monotonic() - began_s > _PROGRESS_AFTER_S:
            progress.start()
        progress.update(task, advance=size, description=f"{sent:,} messages")

    try:
        yield advance
    finally:
        progress.stop()


def tail(
    source: str,
    *,
    config: Path | None,
    url: str | None,
    last: int | None,
    count: int | None,
    follow: bool,
    format: str | None,
) -> int:
    """Show messages of a subject, or what a route publishes; `last` is None for all there are."""
    app = load(config, needs_secrets=False) if config is not None else None
    nats = app.nats if app is not None else server_of(url)
    route = app.routes.get(source) if app is not None else None
    if route is None:
        try:
            check_subject(source)
        except ValueError as err:
            raise ConfigError("E104", f"cannot be shown: {err}") from err
    configure_logging("human", "warning")
    hint = f"The routes of {app.app} are {', '.join(app.routes)}." if app is not None else ""
    shown = _Tail(Screen(format), last=last, count=count, is_following=follow, hint=hint)
    return asyncio.run(shown.main(nats, route, source))


class _Tail:
    """Messages of a subject or a route, from where they are read to the screen."""

    def __init__(
        self, screen: Screen, *, last: int | None, count: int | None, is_following: bool, hint: str
    ) -> None:
        self._screen = screen
        self._hint = hint  # what else could have been meant by a subject that is not there
        self._last = last
        self._left = count
        self._is_following = is_following
        # Bounded: a long stream is read no faster than it is shown.
        self._arrived: asyncio.Queue[Shown | Exception | None] = asyncio.Queue(1000)
        self._view: Callable[[Shown], Shown] = lambda shown: shown

    async def main(self, nats: Nats, route: Route | None, subject: str) -> int:
        """Show until there is no more to show, or until a signal."""
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            needs_jetstream = route is not None
            async with connected(nats, "processor tail", needs_jetstream=needs_jetstream) as broker:
                reading = asyncio.create_task(self._read(broker, route, subject))
                try:
                    await self._show()
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        except asyncio.CancelledError:
            self._screen.flush()
        return EXIT_OK

    async def _show(self) -> None:
        while self._left != 0 and (item := await self._arrived.get()) is not None:
            if isinstance(item, Exception):
                raise item
            self._screen.message(self._view(item))
            self._left = self._left - 1 if self._left is not None else None
            if self._arrived.empty():
                self._screen.flush()
        self._screen.flush()

    async def _read(self, broker: Broker, route: Route | None, subject: str) -> None:
        try:
            if route is not None:
                await self._read_route(broker, route)
            else:
                await self._read_subject(broker, subject)
            if not self._is_following:
                await self._arrived.put(None)
        except (BrokerError, Unknown, Again, ApiError) as err:
            await self._arrived.put(err)

    async def _read_route(self, broker: Broker, route: Route) -> None:
        """What the route's commits hold, and what it publishes without a commit."""
        events = route.events_subject
        patterns = [*codec_for(route).topics, *([events] if events else [])]

        def view(shown: Shown) -> Shown:
            if (letter_id := dead_letter_id(shown.subject)) is not None:
                return replace(
                    shown,
                    subject=shown.headers.get("x-original-subject", ""),
                    kind="dead letter",
                    code=shown.headers.get("x-error-code", ""),
                    reason=shown.headers.get("x-dead-letter-reason", ""),
                    id=letter_id,
                )
            subject = public_subject(route.app, shown.subject)
            ending = shown.headers.get("Processor-Stream", "")
            return replace(shown, subject=subject, kind="event" if subject == events else ending)

        self._view = view
        if self._is_following:
            for subject in dict.fromkeys(live_subjects(route)):
                await broker.listen(subject, self._receive)
        subjects = [committed_subject(route.app, pattern) for pattern in dict.fromkeys(patterns)]
        subjects.append(RouteSubjects(route.app, route.name).every("dlq"))
        await self._read_stream(broker, app_stream(route.app), subjects)

    async def _read_subject(self, broker: Broker, subject: str) -> None:
        names: list[str] = []
        if await broker.has_jetstream():
            names = (await broker.api("STREAM.NAMES", {"subject": subject})).get("streams") or []
        if names:
            say(f"{subject} in {', '.join(names)}")
            await asyncio.gather(*(self._read_stream(broker, name, [subject]) for name in names))
        elif self._is_following:
            say(f"no stream holds {subject}; showing messages as they pass. {self._hint}".removesuffix(". "))
            await broker.listen(subject, self._receive)
        else:
            raise BrokerError("E401", f"no stream holds {subject}", remedy=self._hint)

    async def _read_stream(self, broker: Broker, name: str, subjects: Sequence[str]) -> None:
        info = await broker.stream(name)
        if info is None:
            hint = "Create it, or name another."
            raise BrokerError("E401", f"there is no stream {name} at {broker.address}", remedy=hint)
        if info["config"].get("retention", "limits") != "limits":
            await self._look_into_queue(broker, info, subjects)
            return
        sequence = int(info["state"]["last_seq"])
        async for stored in self._kept(broker, info, subjects):
            sequence = max(sequence, stored.sequence)
            await self._put(stored)
        if not self._is_following:
            return
        reader = Reader(
            broker,
            name,
            subjects,
            created=info["created"],
            retention="limits",
            name="processor-tail",
            start_sequence=sequence + 1,
            prefetch=_WINDOW,
        )
        try:
            while True:
                for delivery in await reader.take(_WINDOW, 1 << 20):
                    await self._receive(delivery)
        finally:
            await reader.close()

    async def _kept(
        self, broker: Broker, info: dict[str, Any], subjects: Sequence[str]
    ) -> AsyncIterator[Stored]:
        """The messages to begin with, that the stream holds now."""
        name, state = info["config"]["name"], info["state"]
        if self._last is None:
            async for stored in broker.history(name, subjects):
                yield stored
            return
        if not self._last:
            return
        # The last of a pattern may lie far back: look at four times as much until there are enough.
        reach = 4 * self._last
        while True:
            start = max(1, state["last_seq"] - reach + 1)
            found: collections.deque[Stored] = collections.deque(maxlen=self._last)
            async for stored in broker.history(name, subjects, start_sequence=start):
                found.append(stored)
            if len(found) == self._last or start <= state["first_seq"]:
                break
            reach *= 4
        for stored in found:
            yield stored

    async def _look_into_queue(self, broker: Broker, info: dict[str, Any], subjects: Sequence[str]) -> None:
        """Show what waits in a stream that gives each message to one reader, without being one."""
        name, kept = info["config"]["name"], collections.deque[Stored](maxlen=self._last)
        if self._is_following:
            for subject in subjects:
                await broker.listen(subject, self._receive)
        for subject in subjects if self._last != 0 else ():
            sequence = 0
            while (stored := await broker.next_of(name, subject, sequence + 1)) is not None:
                sequence = stored.sequence
                if sequence > info["state"]["last_seq"]:
                    break
                kept.append(stored)
        for stored in kept:
            await self._put(stored)

    async def _receive(self, delivery: Delivery) -> None:
        headers = own_headers(delivery.headers)
        await self._arrived.put(
            Shown(delivery.subject, delivery.payload, headers, delivery.timestamp_s, delivery.sequence)
        )

    async def _put(self, stored: Stored) -> None:
        await self._arrived.put(
            Shown(stored.subject, stored.payload, stored.headers, stored.timestamp_s, stored.sequence)
        )
