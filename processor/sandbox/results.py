"""What the run in hand has brought: each part written, counted and bounded before it is kept.

The guest makes these for its program, and hands what they hold to the host when the run is over. They stand
beside hostile code, which reaches their methods by way of `self.emit`, `self.event` and the log. A bound that
is passed fails the run, whatever user code makes of the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from processor.model import Failure, Limits, LogLine, Program
from processor.sandbox import capabilities, documents, wire
from processor.sandbox.bounds import Bounds
from processor.sandbox.jail import MemoryLimit
from processor.sandbox.messages import InHand

Row = TypeVar("Row", bound=tuple[Any, ...])


class Unsuccessful(BaseException):
    """Ends a run with the failure that its reply will carry; `except Exception` does not stop it."""

    def __init__(
        self, failure: Failure, place: tuple[str, int] = ("", 1), fault: tuple[str, str] = ("E206", "")
    ) -> None:
        """`place` is the file and the line, and `fault` the code and the text of it where it ended while the
        program was loaded.
        """
        super().__init__(failure.text)
        self.failure = failure
        self.place = place
        self.fault = fault


def failed(code: str, text: str) -> Unsuccessful:
    return Unsuccessful(Failure(code, text))


class GuestLog:
    """The lines of log of the run in hand."""

    def __init__(self, end_lines: Callable[[], None]) -> None:
        """`end_lines` writes what was printed without a line end."""
        self.limits = Limits()
        self._end_lines = end_lines
        self._lines: list[LogLine] = []
        self._bytes = 0
        self._dropped = 0

    def write(self, level: str, text: str) -> None:
        text = wire.log_text(text[: wire.LOG_CHARS + 1])
        size = len(text.encode())
        limits = self.limits
        # Once one line is dropped all that follow are: what the log has is how it began.
        if self._dropped or len(self._lines) == limits.log_lines or self._bytes + size > limits.log_bytes:
            self._dropped += 1
            return
        self._bytes += size
        self._lines.append(LogLine(level, text))

    def take(self) -> list[LogLine]:
        """The lines of the run, which is over, with one more that says how many were dropped."""
        self._end_lines()
        lines, self._lines, self._bytes = self._lines, [], 0
        if self._dropped:
            lines.append(
                LogLine(
                    "warning",
                    f"E321 dropped {self._dropped} of the run's lines of log; it may write "
                    f"{self.limits.log_lines} lines (limits.log_lines) "
                    f"and {self.limits.log_bytes} bytes (limits.log_bytes)",
                    self._dropped,
                )
            )
            self._dropped = 0
        return lines


class Writer:
    """Writes the documents of one program within its bounds."""

    def __init__(self, program: Program, limits: Limits) -> None:
        self.bounds = Bounds(limits)
        self._bounds_of_bytes = Bounds(limits.of_base64())
        self._program = program

    def write(self, document: Any, *place: object) -> bytes:
        bounds, nan_as_null = self.bounds_for(document), self._program.nan_as_null
        return documents.encode(document, *place, bounds=bounds, nan_as_null=nan_as_null)

    def bounds_for(self, document: Any) -> Bounds:
        # A codec's base64 is measured by the bytes that it stands for: those are what its sender knows.
        name = self._program.bytes_in
        text = document.get(name) if name and type(document) is dict else None
        wide = self._bounds_of_bytes
        return wide if type(text) is str and len(text) <= wide.max_string_length else self.bounds

    def write_chunk(self, chunk: Any, number: int) -> bytes:
        if not isinstance(chunk, str):
            return self.write(chunk, "chunk", number)
        text = str.__str__(chunk)  # a subclass has an encode() of its own
        self.bounds.check_text(text, f"chunk {number}")
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise failed("E306", f"chunk {number} holds a lone surrogate, which is not text") from None


class Mark(NamedTuple):
    """How much a run had brought when one of its groups began."""

    outputs: int
    emits: int
    events: int
    output_count: int
    output_bytes: int
    event_bytes: int

    @property
    def is_empty(self) -> bool:
        return not any(self)


class Results:
    """What one run after the other brings; `brought` is that of the run in hand.

    `spoiled` is why that run fails, however it goes on.
    """

    def __init__(
        self, limits: Limits, writer: Writer, emits: Sequence[str], memory: MemoryLimit, in_hand: InHand
    ) -> None:
        """`emits` are the subjects, as patterns, that may be emitted to."""
        self._limits = limits
        self._writer = writer
        self._emits = emits
        self._memory = memory
        self._in_hand = in_hand
        self.begin(0)

    def begin(self, groups: int, *, isolate: bool = False) -> None:
        """Another run, of so many groups, which are undone alone where it is to `isolate` them."""
        self.brought = wire.Yield.of(groups, isolate=isolate)
        self.group = 0
        self.spoiled: Unsuccessful | None = None
        # Where groups take turns, the group of each part of the outputs, with the numbers of outputs and of
        # tokens before it.
        self._parts: list[tuple[int, int, int]] = []
        self._is_mixed = False
        self._event_bytes = self._output_bytes = self._output_count = 0

    def enter(self, group: int) -> None:
        """What is brought from now on is of this group."""
        self.group = group
        self._parts.append((group, len(self.brought.bodies), len(self.brought.tokens)))

    def leave(self) -> tuple[int, Unsuccessful | None]:
        """What is known of the group in hand, for `come_back`: others come before it goes on."""
        known = self.group, self.spoiled
        self.spoiled = None
        return known

    def come_back(self, known: tuple[int, Unsuccessful | None]) -> None:
        """The group that was left goes on."""
        group, self.spoiled = known
        self._is_mixed = True
        self.enter(group)

    def put_in_order(self) -> None:
        """Have all that was brought by turns as if the groups had run one after the other."""
        if not self._is_mixed:
            return
        brought, ends = self.brought, self._parts[1:]
        ends.append((-1, len(brought.bodies), len(brought.tokens)))
        parts = sorted(zip(self._parts, ends, strict=True), key=lambda part: part[0][0])
        brought.bodies = [b for (_, at, _), (_, end, _) in parts for b in brought.bodies[at:end]]
        brought.tokens = [t for (_, _, at), (_, _, end) in parts for t in brought.tokens[at:end]]
        brought.emits, brought.emit_bodies = _by_group(brought.emits, brought.emit_bodies)
        brought.events, brought.event_bodies = _by_group(brought.events, brought.event_bodies)
        brought.rejected.sort(key=itemgetter(0))

    def mark(self) -> Mark:
        """What there is so far, to come back to."""
        brought = self.brought
        return Mark(
            len(brought.bodies),
            len(brought.emits),
            len(brought.events),
            self._output_count,
            self._output_bytes,
            self._event_bytes,
        )

    def back_to(self, mark: Mark) -> None:
        """Drop what the group in hand has brought; the mark is of its begin."""
        brought = self.brought
        brought.counts[self.group] = 0
        for part, length in (
            (brought.bodies, mark.outputs),
            (brought.emits, mark.emits),
            (brought.emit_bodies, mark.emits),
            (brought.events, mark.events),
            (brought.event_bodies, mark.events),
        ):
            del part[length:]
        _, _, _, self._output_count, self._output_bytes, self._event_bytes = mark
        self.spoiled = None

    def undo(self, failure: Failure) -> None:
        """The group in hand failed, and that undoes it alone."""
        assert self.brought.failed is not None
        self.brought.failed.append((self.group, failure))

    def add_output(self, body: bytes) -> Unsuccessful | None:
        """Take an output; the failure where it is one, or some bytes, too many."""
        if (excess := self._excess(body)) is None:
            self.brought.bodies.append(body)
            self.brought.counts[self.group] += 1
        return excess

    def count_chunk(self, body: bytes, sent: int) -> Unsuccessful | None:
        """Count the bytes of a chunk, the `sent`-th; the failure where there are too many of either."""
        self._output_bytes += len(body)
        limits = self._limits
        if sent > limits.outputs * 100:
            return failed(
                "E324", f"more than {limits.outputs * 100} chunks in one stream (100 x limits.outputs)"
            )
        if self._output_bytes > limits.output_bytes:
            return failed(
                "E307", f"more than {limits.output_bytes} bytes in one stream (limits.output_bytes)"
            )
        return None

    def emit(self, subject: Any, document: Any, delay_s: Any, headers: dict[Any, Any]) -> None:
        if self._in_hand.is_making:
            # It runs whenever a guest takes the context up: the message would be sent each time.
            raise RuntimeError("self.emit is for process and process_stream; init runs again after a restart")
        # The types' own conversions: a subclass has its own idea of itself.
        subject, delay_s = _plain(subject), _plain(delay_s)
        headers = {_plain(name): _plain(value) for name, value in headers.items()}
        wire.check_emit(subject, delay_s, headers)
        if not wire.is_listed(subject, self._emits):
            line = ", ".join(f'"{pattern}"' for pattern in (*self._emits, subject))
            raise capabilities.EmitError(
                f"the route may not emit to {subject!r}; allow it in the configuration: emits: [{line}]"
            )
        self._memory.for_runtime()
        try:
            body = self._writer.write(document, "emit", subject)
        finally:
            self._memory.for_user()
        # Kept as well as raised, as for events.
        self.spoiled = self.spoiled or self._excess(body)
        if self.spoiled is not None:
            raise self.spoiled
        self.brought.emits.append((self.group, subject, delay_s, headers))
        self.brought.emit_bodies.append(body)

    def heap_group(self) -> int:
        """The group whose call uses the heap."""
        if self._in_hand.is_making:
            # It runs whenever a guest takes the context up: an object would be made each time.
            raise RuntimeError("self.heap is for process and process_stream; init runs again after a restart")
        return self.group

    def event(self, name: str, data: Any) -> None:
        name = str.__str__(name) if isinstance(name, str) else ""  # a subclass has its own idea of itself
        if not 0 < len(name) <= wire.EVENT_NAME_CHARS:
            raise ValueError(f"an event's name is a text of 1 to {wire.EVENT_NAME_CHARS} characters")
        if not wire.is_text(name):
            raise ValueError("an event's name holds a lone surrogate, which is not text")
        self._writer.bounds.check_text(name, "an event's name")
        self._memory.for_runtime()
        try:
            body = self._writer.write(data, "event", name)
        finally:
            self._memory.for_user()
        self._event_bytes += len(body)
        limits = self._limits
        # Kept as well as raised: a bare `except` must not make the event disappear unnoticed.
        if len(self.brought.events) == limits.outputs:
            self.spoiled = failed("E324", f"more than {limits.outputs} events in one run (limits.outputs)")
        elif self._event_bytes > limits.output_bytes:
            self.spoiled = failed(
                "E307", f"more than {limits.output_bytes} bytes of events in one run (limits.output_bytes)"
            )
        if self.spoiled is not None:
            raise self.spoiled
        self.brought.events.append((self.group, name))
        self.brought.event_bodies.append(body)

    def _excess(self, body: bytes) -> Unsuccessful | None:
        """Count an output, or what is emitted; the failure where it is one, or some bytes, too many."""
        limits = self._limits
        self._output_count += 1
        if self._output_count > limits.outputs:
            return failed("E324", f"more than {limits.outputs} outputs in one run (limits.outputs)")
        self._output_bytes += len(body)
        if self._output_bytes > limits.output_bytes:
            return failed(
                "E307", f"more than {limits.output_bytes} bytes of output in one run (limits.output_bytes)"
            )
        return None


def _by_group(rows: Sequence[Row], bodies: Sequence[bytes]) -> tuple[list[Row], list[bytes]]:
    """Rows that begin with their group, and their bodies, group by group."""
    order = sorted(range(len(rows)), key=lambda index: rows[index][0])
    return [rows[index] for index in order], [bodies[index] for index in order]


def _plain(value: Any) -> Any:
    """A text or a number of a subclass as its own type; anything else as it is."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return int.__int__(value) if isinstance(value, int) and not isinstance(value, bool) else value
