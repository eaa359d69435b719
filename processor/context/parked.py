"""A delivery written down as a message of our own, and read back: dead letters, retries, held messages.

Whatever becomes of a message that did not simply succeed is kept in the app stream with its payload, the
sender's headers, and `x-` headers that say where it came from and what happened to it. So is what a hop or a
schedule brings a route:

    in       messages of a partition, in order
    dlq      a dead letter
    later    a retry that the server sends on when it is due
    due      a message that is due now
    held     a message of a blocked key

Except for the first, a subject holds one message, so that taking it away (an empty message in its place) is
part of a commit.
Nothing here waits, publishes or reads a clock that its caller did not read.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import orjson

from processor.context.subjects import RouteSubjects, SubjectParts, app_stream, last_partition
from processor.errors import ERRORS_PAGE, page_of
from processor.jetstream import EXPECTED, GONE, KEPT, Outgoing, Stored
from processor.model import Delivery, Failure, RawHeaders, is_of_server, key_token

REASON_CHARS = 500
_TRACEBACK_CHARS = 2000
_SPARE_BYTES = 512
# The server stores at most 65,535 bytes of headers; a commit and a schedule need some of them.
_HEADERS_MAX_BYTES = 60 << 10
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BODY_HEADERS = "x-original-headers-bytes"
# Subject, time, stream and sequence in one header: parsing headers is what reading costs.
_DEALT = "Dealt-From"
_OURS = frozenset(
    {
        b"x-dead-letter-reason", b"x-error-code", b"x-error-page", b"x-error-traceback",
        b"x-original-subject", b"x-original-stream", b"x-original-sequence", b"x-original-time",
        b"x-failed-at", b"x-delivery-count", b"x-route", b"x-part", _BODY_HEADERS.encode(), _DEALT.encode(),
    }
)  # fmt: skip
# Before the name of a sender's header that is called as one of ours.
_THEIR = b"x-original-header-"
# Where a message was before it was dealt; kept on it from then on, as if its sender had said so.
_SOURCE_STREAM, _SOURCE_SEQUENCE = "x-source-stream", "x-source-sequence"
_FIRST_LINE = b"NATS/1.0\r\n"
# What makes it worth looking at headers one by one before they are written behind one another.
_NEEDS_A_LOOK = re.compile(rb"(?:\A|\r\n)[ \t]*(?:Nats-|x-|Dealt-From|\r\n)")
_TIME = b'"{time}"'
_STREAM = operator.attrgetter("stream")


class Unfit(Exception):
    """A delivery whose payload and headers do not leave room for ours in one message."""


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """A delivery that was written down, how often it had been tried by then, and its place in our stream."""

    delivery: Delivery
    tries: int
    sequence: int


@dataclass(frozen=True, slots=True)
class ParkedMessages:
    """Writes and reads what one route keeps of its deliveries."""

    app: str
    route: str
    max_bytes: int
    keep_s: float = 0  # how long a dead letter is kept; 0 is for ever
    _subjects: RouteSubjects = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_subjects", RouteSubjects(self.app, self.route))

    def dead(
        self, delivery: Delivery, partition: int, failure: Failure, tries: int, at: datetime
    ) -> list[Outgoing]:
        """The dead letter of a message: more than one where payload and headers exceed what a message takes.

        Then the parts are numbered in `x-part` (`1/2`) and follow each other.
        """
        more = {
            "x-dead-letter-reason": failure.text[:REASON_CHARS],
            "x-error-code": failure.code,
            "x-error-page": page_of(failure.code),
            "x-failed-at": timestamp(at),
            **KEPT,  # a message that is read again and given up again has one letter
            **({"Nats-TTL": f"{int(self.keep_s)}s"} if self.keep_s else {}),
        }
        if failure.traceback:
            more["x-error-traceback"] = orjson.dumps(failure.traceback[-_TRACEBACK_CHARS:]).decode()
        ours = RawHeaders.of({**self._origin(delivery, tries), **more})
        # Headers that leave little room are the sender's own: theirs begin the payload's parts then.
        headers, payload = _combined(delivery, ours, max_bytes=min(_HEADERS_MAX_BYTES, self.max_bytes // 2))
        room = self.max_bytes - len(headers.lines) - _SPARE_BYTES
        subject = self._subjects.dead_letter(partition, delivery.sequence)
        if len(payload) <= room:
            return [Outgoing(subject, payload, headers)]
        parts = [payload[start : start + room] for start in range(0, len(payload), room)]
        return [
            Outgoing(
                f"{subject}.{number}",
                part,
                RawHeaders(b"%bx-part: %d/%d\r\n" % (headers.lines, number, len(parts))),
            )
            for number, part in enumerate(parts, 1)
        ]

    def dealt(self, delivery: Delivery, partition: int, tries: int = 0) -> Outgoing:
        """The message that gives a delivery to a partition of its route; one that is kept is due there.

        Raises Unfit.
        """
        if delivery.kept:
            return self.due(delivery, partition, f"{delivery.sequence}-{delivery.kept_at}", tries)
        stream, sequence = delivery.stream.encode(), b"%d" % delivery.sequence
        if delivery.dealt is not None:  # it is dealt anew, and says where it was before the first time
            delivery, stream, sequence = _without_source(delivery, stream, sequence)
        origin = (_subject_bytes(delivery), repr(delivery.timestamp_s).encode(), stream, sequence)
        ours = RawHeaders(b"%b: %b %b %b %b\r\n" % (_DEALT.encode(), *origin))
        return self._fitting(self._subjects.inbox(partition), delivery, ours)

    def later(self, delivery: Delivery, partition: int, tries: int, at: datetime) -> Outgoing:
        """The message that the server sends on to `due` at the time `at`. Raises Unfit."""
        name = f"{delivery.sequence}-{tries}"
        schedule = {
            "Nats-Schedule": f"@at {timestamp(at)}",
            "Nats-Schedule-Target": self._subjects.due(partition, name),
            "Nats-TTL": "never",
        }
        return self._whole(self._subjects.later(partition, name), delivery, tries, schedule)

    def due(self, delivery: Delivery, partition: int, name: str, tries: int = 0) -> Outgoing:
        """The message that makes a delivery due now, after so many tries. Raises Unfit.

        Nobody else may have `name`: there is no message that this one replaces.
        """
        never = {"Nats-TTL": "never"}
        return self._whole(self._subjects.due(partition, name), delivery, tries, never)

    def held(self, delivery: Delivery, partition: int, key: str, tries: int) -> Outgoing:
        """The message that keeps a delivery while its key is blocked. Raises Unfit."""
        return self._whole(self._subjects.held(partition, key, delivery.sequence), delivery, tries, KEPT)

    def as_sent(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Deliveries with the streams and sequences that they had before they were given to partitions."""
        ours = app_stream(self.app)
        if ours not in set(map(_STREAM, deliveries)):
            return deliveries
        return [_as_sent(each) if each.stream == ours else each for each in deliveries]

    def _whole(self, subject: str, delivery: Delivery, tries: int, more: Mapping[str, str]) -> Outgoing:
        ours = RawHeaders.of({**self._origin(delivery, tries), **more})
        return self._fitting(subject, delivery, ours)

    def _fitting(self, subject: str, delivery: Delivery, ours: RawHeaders) -> Outgoing:
        headers, payload = _combined(delivery, ours, max_bytes=_HEADERS_MAX_BYTES)
        if len(payload) + len(headers.lines) + _SPARE_BYTES > self.max_bytes:
            raise Unfit(f"{len(delivery.payload)} bytes of payload leave no room for where it came from")
        return Outgoing(subject, payload, headers)

    def _origin(self, delivery: Delivery, tries: int) -> dict[str, str | bytes]:
        return {
            "x-original-subject": _subject_bytes(delivery),
            "x-original-stream": delivery.stream,
            "x-original-sequence": str(delivery.sequence),
            "x-original-time": repr(delivery.timestamp_s),
            "x-delivery-count": str(tries),
            "x-route": self.route,
        }


def _as_sent(delivery: Delivery) -> Delivery:
    sent, stream, sequence = _without_source(delivery, b"", b"")
    if not (stream and sequence.isdigit()):
        return delivery
    return sent._replace(stream=stream.decode(errors="replace"), sequence=int(sequence))


def arrived(raw: Delivery) -> Delivery:
    """The delivery of a message of an inbox as its partition gets it: with its own subject and headers.

    Its sequence stays that of the app's stream, where its position counts. A schedule's document gets the
    time at which it was due, which is when the server stored it.
    """
    subject, payload, time_s = raw.subject, raw.payload, raw.timestamp_s
    try:
        theirs, ours, payload = _taken_apart(raw.headers, payload)
    except ValueError:  # not written here
        theirs, ours = raw.headers, {}
    if _DEALT.encode() in ours:
        with contextlib.suppress(ValueError):  # not written here
            was_at, time, stream, sequence = ours[_DEALT.encode()].rsplit(b" ", 3)
            subject, time_s = _subject_text(was_at), float(time)
            source = (_SOURCE_STREAM.encode(), stream, _SOURCE_SEQUENCE.encode(), sequence)
            theirs = RawHeaders(b"%b%b: %b\r\n%b: %b\r\n" % (theirs.lines, *source))
    elif "Nats-Scheduler" in raw.headers:
        subject = raw.headers["Nats-Scheduler"]
        due = datetime.fromtimestamp(int(time_s), UTC).isoformat().replace("+00:00", "Z")
        payload = payload.replace(_TIME, orjson.dumps(due))
    return Delivery(
        subject,
        payload,
        theirs,
        raw.stream,
        raw.sequence,
        time_s,
        dealt=last_partition(raw.subject),
    )


def sent(raw: Delivery) -> Delivery:
    """The delivery of a message that another route committed, or an external worker sent, as `arrived` says.

    Of what a worker sent nothing is believed that only we write.
    """
    if SubjectParts.of(raw.subject).kind == "in":
        return arrived(raw)
    return raw._replace(dealt=last_partition(raw.subject))


def bare(delivery: Delivery) -> Delivery:
    """A delivery with the headers that are left of it once it was written down and read back."""
    return delivery._replace(headers=_theirs(delivery.headers)) if delivery.headers else delivery


def gone(kept: Delivery) -> Outgoing:
    """What takes a kept message away; it refuses its commit where that message is not there any more.

    A replica that lags may hand out what is done, and a position does not tell: kept messages are behind it.
    """
    return Outgoing(kept.kept, b"", {**GONE, EXPECTED: str(kept.kept_at)})


def read(stored: Stored) -> ParkedMessage | None:
    """The delivery that a kept message holds, given to the partition that keeps it.

    None for one that was taken away, and for what was not written here.
    """
    kept, partition = joined([stored]), SubjectParts.of(stored.subject).partition
    if kept is None or partition is None:
        return None
    return replace(kept, delivery=kept.delivery._replace(dealt=partition))


def is_held(delivery: Delivery) -> bool:
    """Whether a delivery is kept for a blocked key."""
    return SubjectParts.of(delivery.kept).kind == "held"


def is_held_for_another(delivery: Delivery, key: str) -> bool:
    """Whether a delivery is kept for a blocked key that is not `key`: the route had another `key` then."""
    kind, _, _, rest = SubjectParts.of(delivery.kept)
    return kind == "held" and rest[:1] != (key_token(key),)


def joined(parts: Sequence[Stored]) -> ParkedMessage | None:
    """The delivery of a dead letter from all of its parts, in order; None for one that was taken away.

    None, too, for what was not written here.
    """
    first = parts[0]
    headers = first.headers
    if "x-original-subject" not in headers:
        return None
    try:
        theirs, ours, payload = _taken_apart(headers, b"".join(part.payload for part in parts))
        delivery = Delivery(
            _subject_text(ours[b"x-original-subject"]),
            payload,
            theirs,
            headers["x-original-stream"],
            int(headers["x-original-sequence"]),
            float(headers.get("x-original-time", first.timestamp_s)),
            kept=first.subject,
            kept_at=first.sequence,
        )
        return ParkedMessage(delivery, int(headers["x-delivery-count"]), first.sequence)
    except (KeyError, ValueError):
        return None


def timestamp(at: datetime) -> str:
    """A time as RFC 3339 in UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> datetime:
    """The time that `text` names: RFC 3339, or how long ago it is (`30s`, `10m`, `2h`, `7d`).

    Without a zone where `text` has none. Raises ValueError.
    """
    span = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if span:
        return datetime.now(UTC) - timedelta(seconds=int(span[1]) * _UNITS_S[span[2]])
    return datetime.fromisoformat(text)


def _subject_bytes(delivery: Delivery) -> bytes:
    return delivery.subject.encode(errors="surrogateescape")


def _subject_text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _combined(delivery: Delivery, ours: RawHeaders, *, max_bytes: int) -> tuple[RawHeaders, bytes]:
    """The headers and the payload of a message that holds a delivery.

    Where the sender's headers and ours are more than `max_bytes`, the sender's begin the payload.
    """
    if not delivery.headers:
        return ours, delivery.payload
    theirs = _theirs(delivery.headers)
    named = _renamed(theirs)
    if len(named) + len(ours.lines) <= max_bytes:
        return RawHeaders(named + ours.lines), delivery.payload
    block = b"%b%b\r\n" % (_FIRST_LINE, theirs.lines)
    size = b"%b: %d\r\n" % (_BODY_HEADERS.encode(), len(block))
    return RawHeaders(ours.lines + size), block + delivery.payload


def _theirs(headers: RawHeaders) -> RawHeaders:
    """The sender's headers: without what the server put there, and what we did where a letter was copied."""
    if headers.lines.endswith(b"\r\n") and not _NEEDS_A_LOOK.search(headers.lines):
        return headers
    is_copy = "x-original-subject" in headers and "x-original-sequence" in headers
    return headers.without(lambda name: is_of_server(name) or (is_copy and name in _OURS))


def _renamed(theirs: RawHeaders) -> bytes:
    """The lines of a sender's headers, told apart from ours where they are called the same."""
    if not _NEEDS_A_LOOK.search(theirs.lines):
        return theirs.lines
    lines = []
    for line in theirs.split():
        name = line.partition(b":")[0].strip(b" \t")
        is_like_ours = name in _OURS or name.startswith(_THEIR)
        lines.append((_THEIR + line.lstrip(b" \t") if is_like_ours else line) + b"\r\n")
    return b"".join(lines)


def _taken_apart(headers: RawHeaders, payload: bytes) -> tuple[RawHeaders, dict[bytes, bytes], bytes]:
    """What was combined: the sender's headers, ours by name, and the payload."""
    theirs, ours = [], {}
    for line in headers.split():
        name, _, value = line.partition(b":")
        # Letters that an older version wrote have no page of ours: one that leads elsewhere is the sender's.
        is_theirs = name == b"x-error-page" and ERRORS_PAGE.encode() not in value
        if name in _OURS and not is_theirs:
            ours[name] = value.strip(b" \t")
        elif not is_of_server(name):
            theirs.append(line.removeprefix(_THEIR) + b"\r\n")
    size = int(ours.get(_BODY_HEADERS.encode(), b"0"))
    if not size:
        return RawHeaders(b"".join(theirs)), ours, payload
    block, payload = payload[:size], payload[size:]
    if block.startswith(_FIRST_LINE):
        return RawHeaders(block[len(_FIRST_LINE) : -2]), ours, payload
    return RawHeaders.of(orjson.loads(block)), ours, payload  # as 0.1.0 wrote it


def _without_source(delivery: Delivery, stream: bytes, sequence: bytes) -> tuple[Delivery, bytes, bytes]:
    """A dealt delivery as it was before that: without the last two headers, which say where it was."""
    headers = delivery.headers
    stream = headers.raw(_SOURCE_STREAM) or stream
    sequence = headers.raw(_SOURCE_SEQUENCE) or sequence
    lines = headers.split()
    for name in (_SOURCE_SEQUENCE, _SOURCE_STREAM):
        if lines and lines[-1].startswith(name.encode() + b":"):
            lines.pop()
    before = RawHeaders(b"".join(line + b"\r\n" for line in lines))
    return delivery._replace(headers=before), stream, sequence
