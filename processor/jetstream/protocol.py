"""What goes over the wire to NATS: messages, the errors of the server, and the bytes of its protocol.

Formats only: nothing here holds a connection. `Client.publish` of nats-py formats and checks every header of
every message again; a commit of hundreds of messages is written here as one buffer instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from processor.model import NO_HEADERS, RawHeaders, is_of_server

NS = 1_000_000_000


class Outgoing(NamedTuple):
    """One message to store or publish."""

    subject: str
    payload: bytes
    headers: Mapping[str, str] = NO_HEADERS


class Stored(NamedTuple):
    """One message as a stream holds it."""

    subject: str
    sequence: int
    payload: bytes
    headers: RawHeaders
    timestamp_s: float = 0.0  # when the stream stored it, where the reading says so


class ApiError(Exception):
    """The server refused a JetStream request; `err_code` is its number in nats-server's errors.json."""

    def __init__(self, subject: str, error: Mapping[str, Any]) -> None:
        self.err_code = int(error.get("err_code", error.get("code", 0)))
        self.description = str(error.get("description", ""))
        # As HTTP has it: the same request would be refused again.
        self.is_final = 400 <= int(error.get("code", 0)) < 500
        super().__init__(f"{subject}: {self.description} ({self.err_code})")


class Unknown(Exception):
    """The server did not answer in time: the commit may or may not have happened."""


class Again(Exception):
    """The server could not do it now and stored nothing: the same request may succeed later."""


class WrongLastSequence(Exception):
    """A fence of the commit does not match: another owner wrote that position. Nothing was stored."""


def parse_ack(reply: str) -> tuple[str, int, int, float, int]:
    """Consumer, stream sequence, consumer sequence, timestamp (s) and messages pending behind it.

    From the reply subject of a delivery, in its 9-token form or, with a domain and an account hash, 11 or 12
    (ADR-15).
    """
    tokens = reply.split(".")
    if len(tokens) > 9:
        tokens = tokens[:2] + tokens[4:]
    return tokens[3], int(tokens[5]), int(tokens[6]), int(tokens[7]) / NS, int(tokens[8])


def parse_tries(reply: str) -> int:
    """How often a consumer delivered the message of a delivery, from its reply subject, as `parse_ack`."""
    tokens = reply.split(".")
    return int(tokens[6 if len(tokens) > 9 else 4])


def parse_head(head: bytes) -> RawHeaders:
    """The headers of a message as the server sends or stores them, `NATS/1.0` line first."""
    lines = head.partition(b"\r\n")[2]
    return RawHeaders(lines[:-2] if lines.endswith(b"\r\n\r\n") else lines) if len(lines) > 2 else NO_HEADERS


def status_of(head: bytes) -> tuple[str, str]:
    """Status and description that the server says in the first line: `NATS/1.0 404 No Messages`.

    Both are empty for any other message, whatever its headers are called.
    """
    if not is_status(head):
        return "", ""
    status, _, description = head[9 : head.find(b"\r\n")].decode(errors="replace").partition(" ")
    return status, description


def is_status(head: bytes) -> bool:
    """Whether headers are of a message that the server made to say something."""
    return head[8:9] == b" "


def own_headers(headers: Mapping[str, str]) -> RawHeaders:
    """`headers` without those of the server, which must not travel on with a forwarded message."""
    if not isinstance(headers, RawHeaders):
        headers = RawHeaders.of(headers)
    if b"Nats-" not in headers.lines:
        return headers
    return headers.without(is_of_server)


def encode_batch(messages: Sequence[Outgoing], batch: str) -> list[bytes]:
    """The HPUB commands of a batch's members, numbered from 1."""
    frames: list[bytes] = []
    # Outputs of one route share one mapping of headers: it is written out once for all of them.
    heads: dict[int, bytes] = {}
    for number, message in enumerate(messages, 1):
        head = heads.get(id(message.headers))
        if head is None:
            lines = _lines(message.headers)
            head = b"NATS/1.0\r\n%bNats-Batch-Id: %b\r\nNats-Batch-Sequence: " % (lines, batch.encode())
            heads[id(message.headers)] = head
        payload = message.payload
        raw = b"%b%d\r\n\r\n" % (head, number)
        sizes = (_raw(message.subject), len(raw), len(raw) + len(payload), raw, payload)
        frames.append(b"HPUB %b %d %d\r\n%b%b\r\n" % sizes)
    return frames


def encode(message: Outgoing, reply: str) -> bytes:
    head, rest = encode_parts(message, NO_HEADERS)
    return head + _raw(reply) + b" " + rest if reply else head + rest


def encode_parts(message: Outgoing, extra: Mapping[str, str]) -> tuple[bytes, bytes]:
    """The PUB or HPUB protocol line and body, split where the reply subject belongs."""
    payload = message.payload
    subject = _raw(message.subject)
    if not message.headers and not extra:
        return b"PUB %b " % subject, b"%d\r\n%b\r\n" % (len(payload), payload)
    raw = b"NATS/1.0\r\n%b%b\r\n" % (_lines(message.headers), _lines(extra))
    return (
        b"HPUB %b " % subject,
        b"%d %d\r\n%b%b\r\n" % (len(raw), len(raw) + len(payload), raw, payload),
    )


def asked_subject(head: bytes) -> str:
    """The subject of a request, from the first part of what `encode_parts` made."""
    return head.split(b" ", 2)[1].decode(errors="replace")


def _raw(subject: str) -> bytes:
    return subject.encode(errors="surrogateescape")


def _lines(headers: Mapping[str, str]) -> bytes:
    return (headers if isinstance(headers, RawHeaders) else RawHeaders.of(headers)).lines
