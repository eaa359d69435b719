"""Everything that Processor says to NATS: connect, read in order, commit atomically, look up.

The only package that imports nats-py. Workers, the service and the CLI call it; it knows subjects, headers
and error numbers of the server, and nothing of routes, contexts or user code.

What must stay true:
- `Reader` yields a subject's messages in stream order with none missing: consumer sequences are checked to
  be contiguous, and at the first gap the consumer is created again behind the last message that was seen.
  (Without that check a client that stopped listening for a moment lost messages in silence.)
- `Broker.commit` stores all of its messages or none, and returns only when the server said which. A timeout
  says nothing about the outcome: it is raised as `Unknown`, and the caller reads its position to find out.
- Nothing here gives up on a lost connection; waiting is interrupted only by cancellation.

Sources: ADR-50 (atomic batch publish), ADR-31 (direct get), ADR-42/43 (TTL), nats-server errors.json.
"""

from __future__ import annotations

import processor.jetstream.lean  # noqa: F401 - before anything else imports nats-py
from processor.jetstream.api import NAME_IN_USE, NO_ROOM
from processor.jetstream.broker import BATCH_MAX, EXPECTED, GONE, KEPT, Broker
from processor.jetstream.consumers import create_consumer, expected_refusal
from processor.jetstream.leases import LeasedMessage, WorkQueue
from processor.jetstream.login import connect_options
from processor.jetstream.micro import Endpoint, MicroService, ask_service
from processor.jetstream.protocol import (
    NS,
    Again,
    ApiError,
    Outgoing,
    Stored,
    Unknown,
    WrongLastSequence,
    encode,
    own_headers,
    parse_ack,
)
from processor.jetstream.reader import Reader, check_end, end_of
from processor.jetstream.subscription import Subscription

__all__ = [
    "BATCH_MAX",
    "EXPECTED",
    "GONE",
    "KEPT",
    "NAME_IN_USE",
    "NO_ROOM",
    "NS",
    "Again",
    "ApiError",
    "Broker",
    "Endpoint",
    "LeasedMessage",
    "MicroService",
    "Outgoing",
    "Reader",
    "Stored",
    "Subscription",
    "Unknown",
    "WorkQueue",
    "WrongLastSequence",
    "ask_service",
    "check_end",
    "connect_options",
    "create_consumer",
    "encode",
    "end_of",
    "expected_refusal",
    "own_headers",
    "parse_ack",
]
