"""The values that pass between the parts of Processor, and the rule for a message's fate.

Everything here is frozen data and pure functions (what comes by the thousand is a named tuple: a frozen
dataclass takes four times as long to make); nothing here reads a clock, a socket or a file, and
nothing here imports another part of the package but `errors`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from processor.errors import ERRORS


class RawHeaders(Mapping[str, str]):
    """The headers of a message, all of them and unchanged: order, case, repeated names, any bytes.

    `lines` are their bytes on the wire. As a mapping they are text: the last value of a name that is there
    several times, and U+FFFD for what is not UTF-8. They are taken apart when they are first looked at: most
    messages pass without that.
    """

    __slots__ = ("_values", "lines")

    def __init__(self, lines: bytes = b"") -> None:
        """`lines` end in CRLF each; what is no `name: value` among them is carried along and not seen."""
        self.lines = lines
        self._values: dict[str, bytes] | None = None

    @classmethod
    def of(cls, pairs: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]) -> RawHeaders:
        """Headers of these names and values; a line break in a text becomes a space."""
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        return cls(b"".join(_header_line(name, value) for name, value in items))

    @property
    def pairs(self) -> list[tuple[str, bytes]]:
        """Each name and value as they came. Names that are not ASCII, or have white space, are left out."""
        found = []
        for line in self.split():
            name, colon, value = line.partition(b":")
            if colon and _HEADER_NAME.match(name := name.strip(b" \t")):
                found.append((name.decode(), value.strip(b" \t")))
        return found

    def without(self, is_unwanted: Callable[[bytes], object]) -> RawHeaders:
        """These less the ones whose name `is_unwanted`."""
        named = ((line, line.partition(b":")[0].strip(b" \t")) for line in self.split())
        return RawHeaders(b"".join(line + b"\r\n" for line, name in named if not is_unwanted(name)))

    def split(self) -> list[bytes]:
        """Each line without its end."""
        # Not `splitlines`: a single CR is a byte of a value.
        return [line for line in self.lines.split(b"\r\n") if line]

    def raw(self, name: str) -> bytes | None:
        """The last value of a name as it came; None where there is none."""
        return self._last().get(name)

    def _last(self) -> dict[str, bytes]:
        if self._values is None:
            self._values = dict(self.pairs)
        return self._values

    def __getitem__(self, name: str) -> str:
        return self._last()[name].decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        return iter(self._last())

    def __len__(self) -> int:
        return len(self._last())

    def __bool__(self) -> bool:
        return bool(self.lines)

    def __repr__(self) -> str:
        return f"RawHeaders({self.lines!r})"


def _header_line(name: str, value: str | bytes) -> bytes:
    if isinstance(value, str):
        text = " ".join(value.splitlines()) if "\n" in value or "\r" in value else value
        value = text.encode(errors="replace")  # a lone surrogate in a sentence of ours
    return b"%b: %b\r\n" % (name.encode(), value.replace(b"\r\n", b" "))


_HEADER_NAME = re.compile(rb"[\x21-\x39\x3b-\x7e]+\Z")
NO_HEADERS = RawHeaders()
# The server's word on a message that it wrote in place of one that is gone: MaxAge, Purge, Remove.
MARKER_REASON = "Nats-Marker-Reason"
_MARKER_REASON = MARKER_REASON.encode()


def is_of_server(name: bytes) -> bool:
    """Whether a header is the server's, or for it, and must not travel on with a message.

    What a delete marker says of itself is not: without it the message would be an empty one.
    """
    return name.startswith(b"Nats-") and name != _MARKER_REASON


# One token of a NATS subject that is made from data: no dots, no wildcards, no white space, no control
# characters, and not so long that a subject stops being one.
SAFE_TOKEN = re.compile(r"[^\s.*>\x00-\x1f\x7f\ud800-\udfff]{1,256}\Z")


# A context up to this size is reported, and stored, as a whole; a larger one by changed item.
WHOLE_BYTES = 4096


# What steps of recipes import without bringing it: the context, their base class, a logger, and the decorator
# that measures them, in the order of `sandbox.steps`.
STEP_PACKAGE = "orchestrator"
STEP_MODULES = (
    f"{STEP_PACKAGE}.context",
    f"{STEP_PACKAGE}.scriptlets.python.core.base",
    f"{STEP_PACKAGE}.scriptlets.python.core.logging",
    f"{STEP_PACKAGE}.scriptlets.python.core.resource",
)


class Module(NamedTuple):
    """A source that a Runnable may import by its dotted name; one named as others begin is their package."""

    name: str
    filename: str
    source: str


@dataclass(frozen=True, slots=True)
class Program:
    """A Runnable's source and where it came from; `id` names the version in logs, events and position."""

    source: str
    filename: str
    language: str = "restricted"  # or "python"
    packages: tuple[str, ...] = ()  # what plain Python may import beside the standard library
    # Of the route that calls it, "batch" or "stream", empty where either may be called; "nodes" where it
    # defines nodes of graphs in place of a Runnable, "steps" where it names the steps of a recipe.
    mode: str = ""
    class_name: str = "Runnable"
    nan_as_null: bool = False  # in what it hands over; otherwise NaN is an error
    bytes_in: str = ""  # the field of a document in which its codec has bytes, in base64; empty where none
    modules: tuple[Module, ...] = ()  # that it may import, in the same language

    @property
    def id(self) -> str:
        said = (
            [self.source] if self.language == "restricted" else [self.source, self.language, *self.packages]
        )
        if self.class_name != "Runnable":
            said.append(f"class {self.class_name}")
        said += [text for module in sorted(self.modules) for text in (f"module {module.name}", module.source)]
        return hashlib.sha256("\0".join(said).encode()).hexdigest()[:12]

    @property
    def has_kinds(self) -> bool:
        """Whether it has what executions of graphs are of, in place of a Runnable."""
        return self.mode in ("nodes", "steps")

    @property
    def module_names(self) -> frozenset[str]:
        """What may be imported beside what everyone may: `modules`, the packages that their names begin with,
        and what is there for steps.
        """
        given = STEP_MODULES if self.mode == "steps" else ()
        parts = (name.split(".") for name in (*given, *(module.name for module in self.modules)))
        return frozenset(".".join(each[:end]) for each in parts for end in range(1, len(each) + 1))

    @property
    def sources(self) -> dict[str, str]:
        """All its sources by the files that they are from, its own first."""
        return {self.filename: self.source} | {module.filename: module.source for module in self.modules}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one guest may use. Memory is on top of what an empty guest needs."""

    memory_mb: int = 128
    cpu_s: float = 5.0
    wall_s: float = 10.0
    requests: int = 50
    calls: int = 1000
    calls_at_once: int = 16
    output_bytes: int = 8 << 20
    outputs: int = 900
    context_bytes: int = 64 << 20
    log_lines: int = 100
    log_bytes: int = 65536
    max_string_length: int = 1_000_000
    max_container_length: int = 1_000_000
    max_depth: int = 100

    def of_base64(self) -> Limits:
        """The same for bytes as for characters, where the bytes are written in base64."""
        return replace(self, max_string_length=(self.max_string_length + 2) // 3 * 4)


class Delivery(NamedTuple):
    """One input message as the stream handed it to us."""

    subject: str
    payload: bytes
    headers: RawHeaders
    stream: str
    sequence: int
    timestamp_s: float
    ack: str = ""  # reply subject to acknowledge on; empty where the stream keeps messages by itself
    kept: str = ""  # our own subject that it is kept under, where it does not come from the input stream
    dealt: int | None = None  # the partition that it was given to; None where its key says so
    kept_at: int = 0  # the sequence of that message in our own stream


class Lag(NamedTuple):
    """What waits for a route."""

    messages: int
    oldest_s: float | None = None  # when the oldest of them was stored, seconds since 1970


class Group(NamedTuple):
    """A run of messages of one key, given to one call of `process`.

    `documents` are JSON texts, each one document or a list of documents. `context` holds the key's
    committed items (top-level key to encoded value); None means that the guest already has them.
    """

    key: str
    documents: Sequence[bytes]
    context: Mapping[str, bytes] | None = None


class Output(NamedTuple):
    """A document that a Runnable returned, as JSON text; `fields` are the values its subject asks for."""

    group: int
    body: bytes
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Emit:
    """What a Runnable sent to a subject of its own choice with `self.emit`; `body` is JSON text.

    It is to be sent on `delay_s` seconds after the run.
    """

    group: int
    subject: str
    body: bytes
    delay_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """What a Runnable said with `self.event(name, data)`; `body` is JSON text."""

    group: int
    name: str
    body: bytes


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line from `self.logger` or `print`; with `dropped`, what says how many did not get here (E321)."""

    level: str
    text: str
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class ContextChange:
    """What a run did to one key's context.

    `items` maps a top-level key to its new encoded value, or None where it was deleted. `whole` says that
    `items` is the entire context and not just what changed, as it is for one that is small, or was before the
    change. `size` is the context's size in bytes after the change. `gone` says that there is no context any
    more: nothing of it is kept, as if the key had never been seen.
    """

    items: Mapping[str, bytes | None]
    whole: bool
    size: int
    gone: bool = False

    @property
    def is_small(self) -> bool:
        """Whether the context is here as a whole, and can be kept in one message."""
        return self.whole and self.size <= WHOLE_BYTES


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a message, or a batch, could not be processed.

    `text` is the user's own exception (`ValueError: no price`) or our sentence; `traceback` shows the
    user's frames only. `retry_after_s` is set where user code raised `Retry`.
    """

    code: str
    text: str
    traceback: str = ""
    lethal: bool = False  # the guest died, and every context it held died with it
    retry_after_s: float | None = None


class Call(NamedTuple):
    """A call of a capability that a run made. One that got the answer of an earlier run was not made."""

    group: int
    name: str  # of the capability
    host: str  # that the guest asked for; empty where the capability has a place of its own
    status: int | None  # of the answer, where it has one
    code: str  # why there was no answer, E314 where the guest ended first; empty where there was one
    seconds: float
    bytes_out: int  # of the body that was sent
    bytes_in: int  # of the body that came


class HeapOp(NamedTuple):
    """What a run did to one object of a heap: once for each method; `version` is the object's then."""

    group: int
    method: str  # alloc, read, write or delete
    type: str
    handle: str
    version: int


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that succeeded, apart from the messages in `rejected` (group, index in group, why), and from the
    groups in `failed`, which were undone alone where that was asked for.
    """

    outputs: Sequence[Output] = ()
    emits: Sequence[Emit] = ()
    events: Sequence[Event] = ()
    contexts: Mapping[str, ContextChange] = field(default_factory=dict)
    rejected: Sequence[tuple[int, int, Failure]] = ()
    logs: Sequence[LogLine] = ()
    heap: Sequence[HeapOp] = ()
    calls: Sequence[Call] = ()
    wall_s: float = 0.0  # 0 where no guest was asked
    cpu_s: float = 0.0
    memory_bytes: int = 0
    failed: Sequence[tuple[int, Failure]] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that failed as a whole; every context it touched is as it was before.

    `group` is the group that failed, where one can be named: those before it ran without a failure.
    """

    failure: Failure
    logs: Sequence[LogLine] = ()
    group: int | None = None
    calls: Sequence[Call] = ()
    wall_s: float = 0.0  # 0 where no guest was asked
    cpu_s: float = 0.0  # as far as it is known of a guest that has ended


# What a run leaves of a context that is not needed any more.
NO_CONTEXT = ContextChange({}, whole=True, size=0, gone=True)

Outcome = Ran | Failed


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a message that fails is tried, how long it waits before each try, and what comes then.

    The wait after the n-th try is `base * factor**(n-1)` for exponential, `base * n` for linear and `base`
    for fixed, at most `max_ms`. `_full_jitter` takes a random part of it, `_equal_jitter` half of it and a
    random part of the other half (M. Brooker, "Exponential Backoff and Jitter").
    """

    attempts: int = 3
    strategy: str = "exponential_full_jitter"
    base_ms: float = 200
    factor: float = 2
    max_ms: float = 60_000
    then: str = "dead_letter"

    def wait_s(self, attempt: int, luck: float) -> float:
        """Seconds to wait after the `attempt`-th try failed; `luck` is a random number in [0, 1)."""
        kind, _, jitter = self.strategy.partition("_")
        longest = self.base_ms
        if kind == "exponential":
            try:
                longest = self.base_ms * self.factor ** (attempt - 1)
            except OverflowError:
                longest = self.max_ms
        elif kind == "linear":
            longest = self.base_ms * attempt
        longest = min(longest, self.max_ms)
        part = {"": 1.0, "full_jitter": luck, "equal_jitter": 0.5 + luck / 2}[jitter]
        return longest * part / 1000


@dataclass(frozen=True, slots=True)
class RunAgain:
    """The message is tried again at once, before anything else runs."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The message waits in memory for `after_s` seconds, and the later ones of its key wait behind it."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Park:
    """The server keeps the message and sends it again in `after_s` seconds; its key goes on without it."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Block:
    """The message holds its key: it is tried in `after_s` seconds, and the key's later messages are kept
    behind it until it succeeds.
    """

    failure: Failure
    after_s: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The message goes to the dead letters of its route, in the commit that moves the position past it."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Drop:
    """The message is given up and counted; nothing of it is kept."""

    failure: Failure


Decision = RunAgain | Wait | Park | Block | DeadLetter | Drop

# Not among them: a message over a bound (E318 to E320) is rejected before it is tried, and an output over one
# may be shorter the next time.
_FINAL = frozenset(row.code for row in ERRORS.values() if row.is_final)
# Up to this wait a message stays in memory and its key waits; the server keeps those that wait longer.
SHORT_WAIT_S = 2.0
# A key that is blocked for good is not tried more often than this, whatever `max_ms` is.
_BLOCKED_MIN_S = 0.05


def decide(
    failure: Failure,
    attempt: int,
    policy: RetryPolicy,
    luck: float,
    *,
    is_held: bool = False,
    is_stopping: bool = False,
    has_one_key: bool = False,
) -> Decision:
    """The fate of a message whose `attempt`-th try (counted from 1) failed; `luck` is random in [0, 1).

    `is_held` says that it holds its blocked key already, `is_stopping` that nothing is run any more, and
    `has_one_key` that all messages of the route are of one key.
    """
    if failure.code in _FINAL:
        return DeadLetter(failure)
    is_last = attempt >= policy.attempts
    if is_last and policy.then == "drop":
        return Drop(failure)
    if is_last and policy.then != "block":
        return DeadLetter(failure)
    if failure.retry_after_s is not None:
        after_s = failure.retry_after_s
    elif is_last:
        after_s = max(policy.max_ms / 1000, _BLOCKED_MIN_S)
    else:
        after_s = policy.wait_s(attempt, luck)
    if after_s <= 0 and not is_last and not is_stopping:
        return RunAgain()
    is_long = after_s > SHORT_WAIT_S
    if is_last or is_held or (is_long and policy.then == "block"):
        # Where there is one key, nothing else can go on: the messages need not be moved out of its way.
        return Wait(after_s) if has_one_key else Block(failure, after_s)
    return Park(after_s) if is_long else Wait(after_s)


class GivenUp(NamedTuple):
    """A message that was dead-lettered, dropped, or answered with its failure."""

    delivery: Delivery
    failure: Failure
    attempt: int  # the last one, counted from 1
    key: str
    id: str  # of its dead letter; empty where there is none
    is_answered: bool = False  # who sent it gets to know the failure


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What happened in one run, and what became of its messages.

    It is made once, when nothing of it can change any more: a run whose effects were committed has a record
    after its commit, one that failed has it at once. What was settled without a run has a record, too, whose
    `wall_s` is 0. Metrics and log lines are made from it, and from nothing else.
    """

    messages: int  # that were settled by it, or that it failed with
    first: int  # the sequence of the first of them
    wall_s: float
    cpu_s: float
    memory_bytes: int  # of the guest after it; 0 where it failed
    logs: Sequence[LogLine]
    calls: Sequence[Call]
    failure: Failure | None  # of the run, or why what it made cannot be committed
    attempt: int = 0  # of the one message that failed alone, counted from 1
    decision: Decision | None = None  # about that message
    outputs: int = 0
    output_bytes: int = 0  # of outputs and emits
    emits: int = 0
    events: int = 0
    given_up: Sequence[GivenUp] = ()
    unsent: Sequence[tuple[int, str]] = ()  # what only reports a fate and fits into no stream: of whom, why

    @classmethod
    def of(
        cls, deliveries: Sequence[Delivery], outcome: Outcome, failure: Failure | None = None
    ) -> RunRecord:
        """The record of a run of these deliveries, of which nothing else is known; `failure` is the one that
        came of a run that had none itself.
        """
        return cls(
            len(deliveries),
            deliveries[0].sequence if deliveries else 0,
            outcome.wall_s,
            outcome.cpu_s,
            outcome.memory_bytes if isinstance(outcome, Ran) else 0,
            outcome.logs,
            outcome.calls,
            outcome.failure if isinstance(outcome, Failed) else failure,
        )


def subject_text(subject: str) -> str:
    """A subject as text for people and programs: U+FFFD stands for bytes that are not UTF-8.

    Inside, they are the lone surrogates of `surrogateescape`, so that the subject can be written as it came.
    """
    return subject if subject.isascii() else subject.encode(errors="surrogateescape").decode(errors="replace")


@functools.lru_cache(maxsize=1 << 16)
def partition_of(key: str, partitions: int) -> int:
    """The partition that owns `key`: FNV-1a (32 bit) modulo `partitions`, as nats-server's `partition()`."""
    if partitions == 1:
        return 0
    digest = 0x811C9DC5
    for byte in key.encode():
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return digest % partitions


_PLAIN_TOKEN = re.compile(r"[A-Za-z0-9_-]+\Z")


def key_token(key: str) -> str:
    """`key` as one subject token of `[A-Za-z0-9_-]`; any other byte becomes `=HH`. See `key_from_token`."""
    if not key:
        return "="
    if _PLAIN_TOKEN.match(key):
        return key
    return "".join(
        chr(b) if (48 <= b <= 57 or 65 <= b <= 90 or 97 <= b <= 122 or b in (45, 95)) else f"={b:02X}"
        for b in key.encode()
    )


def key_from_token(token: str) -> str:
    """The key that `key_token` turned into `token`."""
    if token == "=":
        return ""
    return re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), token.encode()).decode()
