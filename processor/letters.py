"""A delivery written down as a message of our own, and read back: dead letters, retries, held messages.

Whatever becomes of a message that did not simply succeed is kept in the app stream with its payload, the
sender's headers, and `x-` headers that say where it came from and what happened to it. So is what a hop or a
schedule brings a route:

    p.<app>.in.<route>.<partition>                       messages of a partition, in order
    p.<app>.dlq.<route>.<partition>.<sequence>           a dead letter
    p.<app>.later.<route>.<partition>.<id>               a retry that the server sends on when it is due
    p.<app>.due.<route>.<partition>.<id>                 a message that is due now
    p.<app>.held.<route>.<partition>.<key>.<sequence>    a message of a blocked key

But for the first, a subject holds one message, so that taking it away (an empty message in its place) is
part of a commit.
Nothing here waits, publishes or reads a clock that its caller did not read.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson

from processor.jetstream import EXPECTED, GONE, KEPT, Message, Stored, own_headers
from processor.model import Delivery, Failure, key_token

REASON_CHARS = 500
_TRACEBACK_CHARS = 2000
_SPARE_BYTES = 512
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_OURS = (
    "x-dead-letter-reason", "x-error-code", "x-error-traceback", "x-original-subject", "x-original-stream",
    "x-original-sequence", "x-original-time", "x-original-headers-bytes", "x-failed-at", "x-delivery-count",
    "x-route", "x-part",
)  # fmt: skip
# Subject, time, stream and sequence in one header: parsing headers is what reading costs.
_DEALT = "Dealt-From"
# Where a message was before it was dealt; kept on it from then on, as if its sender had said so.
_SOURCE_STREAM, _SOURCE_SEQUENCE = "x-source-stream", "x-source-sequence"
_NOT_THEIRS = frozenset({*_OURS, _DEALT})
_TIME = b'"{time}"'
_STREAM = operator.attrgetter("stream")


class Unfit(Exception):
    """A delivery whose payload and headers do not leave room for ours in one message."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A delivery that was written down, how often it had been tried by then, and its place in our stream."""

    delivery: Delivery
    tries: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Letters:
    """Writes and reads what one route keeps of its deliveries."""

    app: str
    route: str
    max_bytes: int

    def dead(
        self, delivery: Delivery, partition: int, failure: Failure, tries: int, at: datetime
    ) -> list[Message]:
        """The dead letter of a message: more than one where payload and headers exceed what a message takes.

        Then the parts are numbered in `x-part` (`1/2`) and follow each other.
        """
        headers = {
            **_restored(delivery.headers),
            **self._origin(delivery, tries),
            "x-dead-letter-reason": failure.text[:REASON_CHARS],
            "x-error-code": failure.code,
            "x-failed-at": timestamp(at),
            **KEPT,  # a message that is read again and given up again has one letter
        }
        if failure.traceback:
            headers["x-error-traceback"] = orjson.dumps(failure.traceback[-_TRACEBACK_CHARS:]).decode()
        payload = delivery.payload
        room = self._room(headers)
        if room < self.max_bytes // 2:
            # Headers of that size are the sender's own: keep ours, and move theirs into the payload's parts.
            theirs = orjson.dumps(_restored(delivery.headers))
            headers = {name: value for name, value in headers.items() if name in _OURS or name in KEPT}
            headers["x-original-headers-bytes"] = str(len(theirs))
            payload, room = theirs + payload, self.max_bytes // 2
        subject = f"p.{self.app}.dlq.{self.route}.{partition}.{delivery.sequence}"
        if len(payload) <= room:
            return [Message(subject, payload, headers)]
        parts = [payload[start : start + room] for start in range(0, len(payload), room)]
        return [
            Message(f"{subject}.{number}", part, {**headers, "x-part": f"{number}/{len(parts)}"})
            for number, part in enumerate(parts, 1)
        ]

    def dealt(self, delivery: Delivery, partition: int) -> Message:
        """The message that gives a delivery to a partition of its route. Raises Unfit."""
        headers = _restored(delivery.headers)
        stream, sequence = delivery.stream, str(delivery.sequence)
        if delivery.dealt is not None:  # it is dealt anew, and says where it was before the first time
            stream = headers.pop(_SOURCE_STREAM, stream)
            sequence = headers.pop(_SOURCE_SEQUENCE, sequence)
        headers[_DEALT] = f"{delivery.subject} {delivery.timestamp_s!r} {stream} {sequence}"
        self._check_room(delivery, headers)
        return Message(in_subject(self.app, self.route, partition), delivery.payload, headers)

    def later(self, delivery: Delivery, partition: int, tries: int, at: datetime) -> Message:
        """The message that the server sends on to `due` at the time `at`. Raises Unfit."""
        name = f"{self.route}.{partition}.{delivery.sequence}-{tries}"
        schedule = {
            "Nats-Schedule": f"@at {timestamp(at)}",
            "Nats-Schedule-Target": f"p.{self.app}.due.{name}",
            "Nats-TTL": "never",
        }
        return self._whole(f"p.{self.app}.later.{name}", delivery, tries, schedule)

    def due(self, delivery: Delivery, partition: int, name: str) -> Message:
        """The message that makes a delivery due now, with no tries counted. Raises Unfit.

        Nobody else may have `name`: there is no message that this one replaces.
        """
        never = {"Nats-TTL": "never"}
        return self._whole(f"p.{self.app}.due.{self.route}.{partition}.{name}", delivery, 0, never)

    def held(self, delivery: Delivery, partition: int, key: str, tries: int) -> Message:
        """The message that keeps a delivery while its key is blocked. Raises Unfit."""
        return self._whole(
            f"p.{self.app}.held.{self.route}.{partition}.{key_token(key)}.{delivery.sequence}",
            delivery,
            tries,
            KEPT,
        )

    def as_sent(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Deliveries with the streams and sequences that they had before they were given to partitions."""
        ours = f"P_{self.app}"
        if ours not in set(map(_STREAM, deliveries)):
            return deliveries
        return [_as_sent(each) if each.stream == ours else each for each in deliveries]

    def _whole(self, subject: str, delivery: Delivery, tries: int, more: Mapping[str, str]) -> Message:
        headers = {**_restored(delivery.headers), **self._origin(delivery, tries), **more}
        self._check_room(delivery, headers)
        return Message(subject, delivery.payload, headers)

    def _check_room(self, delivery: Delivery, headers: Mapping[str, str]) -> None:
        if len(delivery.payload) > self._room(headers):
            raise Unfit(f"{len(delivery.payload)} bytes of payload leave no room for where it came from")

    def _origin(self, delivery: Delivery, tries: int) -> dict[str, str]:
        return {
            "x-original-subject": delivery.subject,
            "x-original-stream": delivery.stream,
            "x-original-sequence": str(delivery.sequence),
            "x-original-time": repr(delivery.timestamp_s),
            "x-delivery-count": str(tries),
            "x-route": self.route,
        }

    def _room(self, headers: Mapping[str, str]) -> int:
        used = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
        return self.max_bytes - used - _SPARE_BYTES


def _as_sent(delivery: Delivery) -> Delivery:
    headers = dict(delivery.headers)
    stream, sequence = headers.pop(_SOURCE_STREAM, ""), headers.pop(_SOURCE_SEQUENCE, "")
    if not (stream and sequence.isdecimal()):
        return delivery
    return delivery._replace(headers=headers, stream=stream, sequence=int(sequence))


def in_subject(app: str, route: str, partition: int | str) -> str:
    """Where the messages of one partition are that a hop or a schedule brings; `*` for all of them."""
    return f"p.{app}.in.{route}.{partition}"


def arrived(raw: Delivery) -> Delivery:
    """The delivery of a message of `in_subject` as its partition gets it: with its own subject and headers.

    Its sequence stays that of the app's stream, where its position counts. A schedule's document gets the
    time at which it was due, which is when the server stored it.
    """
    subject, payload, time_s, source = raw.subject, raw.payload, raw.timestamp_s, {}
    if _DEALT in raw.headers:
        with contextlib.suppress(ValueError):  # not written here
            subject, time, stream, sequence = raw.headers[_DEALT].split(" ")
            time_s = float(time)
            source = {_SOURCE_STREAM: stream, _SOURCE_SEQUENCE: sequence}
    elif "Nats-Scheduler" in raw.headers:
        subject = raw.headers["Nats-Scheduler"]
        due = datetime.fromtimestamp(int(time_s), UTC).isoformat().replace("+00:00", "Z")
        payload = payload.replace(_TIME, orjson.dumps(due))
    return Delivery(
        subject,
        payload,
        {**_restored(raw.headers), **source},
        raw.stream,
        raw.sequence,
        time_s,
        dealt=int(raw.subject.rsplit(".", 1)[1]),
    )


def bare(delivery: Delivery) -> Delivery:
    """A delivery with the headers that are left of it once it was written down and read back."""
    return delivery._replace(headers=_restored(delivery.headers)) if delivery.headers else delivery


def gone(kept: Delivery) -> Message:
    """What takes a kept message away; it refuses its commit where that message is not there any more.

    A replica that lags may hand out what is done, and a position does not tell: kept messages are behind it.
    """
    return Message(kept.kept, b"", {**GONE, EXPECTED: str(kept.kept_at)})


def read(stored: Stored) -> Kept | None:
    """The delivery that a kept message holds; None for one that was taken away."""
    return joined([stored])


def joined(parts: Sequence[Stored]) -> Kept | None:
    """The delivery of a dead letter from all of its parts, in order; None for one that was taken away."""
    first = parts[0]
    headers = first.headers
    if "x-original-subject" not in headers:
        return None
    payload = b"".join(part.payload for part in parts)
    theirs = _restored(headers)
    moved = int(headers.get("x-original-headers-bytes", "0"))
    if moved:
        theirs, payload = orjson.loads(payload[:moved]), payload[moved:]
    delivery = Delivery(
        headers["x-original-subject"],
        payload,
        theirs,
        headers["x-original-stream"],
        int(headers["x-original-sequence"]),
        float(headers.get("x-original-time", first.timestamp_s)),
        kept=first.subject,
        kept_at=first.sequence,
    )
    return Kept(delivery, int(headers["x-delivery-count"]), first.sequence)


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


def _restored(headers: Mapping[str, str]) -> dict[str, str]:
    """The sender's headers, without what the server and we put there."""
    if not headers:
        return {}
    return {name: value for name, value in own_headers(headers).items() if name not in _NOT_THEIRS}
