"""A delivery written down as a message of our own, and read back: dead letters, retries, held messages.

Whatever becomes of a message that did not simply succeed is kept in the app stream with its payload, the
sender's headers, and `x-` headers that say where it came from and what happened to it:

    p.<app>.dlq.<route>.<partition>.<sequence>           a dead letter
    p.<app>.later.<route>.<partition>.<id>               a retry that the server sends on when it is due
    p.<app>.due.<route>.<partition>.<id>                 a message that is due now
    p.<app>.held.<route>.<partition>.<key>.<sequence>    a message of a blocked key

A subject holds one message, so that taking it away (an empty message in its place) is part of a commit.
Nothing here waits, publishes or reads a clock that its caller did not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from processor.jetstream import GONE, KEPT, Message, Stored, own_headers
from processor.model import Delivery, Failure, key_token

REASON_CHARS = 500
_TRACEBACK_CHARS = 2000
_SPARE_BYTES = 512
_OURS = (
    "x-dead-letter-reason", "x-error-code", "x-error-traceback", "x-original-subject", "x-original-stream",
    "x-original-sequence", "x-original-time", "x-original-headers-bytes", "x-failed-at", "x-delivery-count",
    "x-route", "x-part",
)  # fmt: skip


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
        """The message that makes a delivery due now, with no tries counted. Raises Unfit."""
        return self._whole(f"p.{self.app}.due.{self.route}.{partition}.{name}", delivery, 0, KEPT)

    def held(self, delivery: Delivery, partition: int, key: str, tries: int) -> Message:
        """The message that keeps a delivery while its key is blocked. Raises Unfit."""
        return self._whole(
            f"p.{self.app}.held.{self.route}.{partition}.{key_token(key)}.{delivery.sequence}",
            delivery,
            tries,
            KEPT,
        )

    def _whole(self, subject: str, delivery: Delivery, tries: int, more: Mapping[str, str]) -> Message:
        headers = {**_restored(delivery.headers), **self._origin(delivery, tries), **more}
        if len(delivery.payload) > self._room(headers):
            raise Unfit(f"{len(delivery.payload)} bytes of payload leave no room for where it came from")
        return Message(subject, delivery.payload, headers)

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


def gone(subject: str) -> Message:
    """What takes the kept message of a subject away."""
    return Message(subject, b"", GONE)


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
    )
    return Kept(delivery, int(headers["x-delivery-count"]), first.sequence)


def timestamp(at: datetime) -> str:
    """A time as RFC 3339 in UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _restored(headers: Mapping[str, str]) -> dict[str, str]:
    """The sender's headers, without what the server and we put there."""
    return {name: value for name, value in own_headers(headers).items() if name not in _OURS}
