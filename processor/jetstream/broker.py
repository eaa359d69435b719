"""What Processor says to NATS: publish, commit, and read what streams hold.

`commit` is the one write of Processor: all of its messages or none. Everything that fails says which of
three things it means: nothing was stored and a person must act (BrokerError), nothing was stored and it may
be tried again (`Again`, `WrongLastSequence`), or nobody knows (`Unknown`).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Any

import nats.errors
import orjson

from processor.errors import BrokerError
from processor.jetstream.api import JetStreamApi
from processor.jetstream.consumers import create_consumer
from processor.jetstream.protocol import (
    NS,
    Again,
    ApiError,
    Outgoing,
    Stored,
    Unknown,
    WrongLastSequence,
    encode,
    encode_batch,
    encode_parts,
    is_status,
    own_headers,
    parse_ack,
    parse_head,
    status_of,
)
from processor.model import RawHeaders

BATCH_MAX = 1000  # messages in one atomic batch: the server's default limit
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
# The only message of its subject, for ever.
KEPT = {"Nats-Rollup": "sub", "Nats-TTL": "never"}
# What takes such a message away: with an empty payload it replaces it, and goes away by itself.
GONE = {"Nats-Rollup": "sub", "Nats-TTL": "1h"}
_READ_TIMEOUT_S = 10.0
# A server drops a client that is 64 MB behind with what was sent to it, by default.
_PAGE_BYTES = 8 << 20

_WRONG_LAST_SEQUENCE = 10071
_CONFLICT = frozenset({10164, 10176, 10210, 10008, 10074, 503})  # in flight, gap, too many open: send again
_MESSAGE_NOT_FOUND = 10037


class Broker(JetStreamApi):
    """A connection to NATS that publishes, commits, and reads what streams hold."""

    committed: int = 0  # the highest sequence of a commit of ours

    async def publish(self, *messages: Outgoing) -> None:
        """Send messages to those who listen now (core NATS)."""
        if messages:
            await self.send([encode(message, "") for message in messages])

    async def publish_stored(self, message: Outgoing) -> int:
        """Store one message and return its sequence.

        Raises ApiError, Unknown on a timeout, and BrokerError E403 without permission.
        """
        reply = await self._request(message)
        return int(reply["seq"])

    async def commit(self, messages: Sequence[Outgoing], *, batch: str = "") -> int:
        """Store all of `messages` in order, or none, and return the stream sequence of the last.

        They must belong to one stream and be at most BATCH_MAX; `batch` is an id that no other commit has.
        One message is stored by itself, which the server does faster. A server that comes to a limit within a
        commit refuses it, and may have stored a part: see `stored_of_batch`. Raises WrongLastSequence when a
        fence in their headers is stale, Unknown when no answer came, Conflict-like refusals as `Again`, and
        BrokerError E403 or E406 for what a person must mend.
        """
        if len(messages) == 1:
            reply = await self._commit_request(encode_parts(messages[0], {}), messages[0].subject)
            self.committed = max(self.committed, int(reply["seq"]))
            return int(reply["seq"])
        batch = batch or secrets.token_hex(12)
        parts = encode_batch(messages[:-1], batch)
        last = encode_parts(
            messages[-1],
            {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"},
        )
        reply = await self._commit_request(last, messages[-1].subject, before=parts)
        self.committed = max(self.committed, int(reply["seq"]))
        return int(reply["seq"])

    async def _commit_request(
        self, parts: tuple[bytes, bytes], subject: str, before: Sequence[bytes] = ()
    ) -> dict[str, Any]:
        try:
            return await self._exchange(parts, before)
        except ApiError as err:
            if err.err_code == _WRONG_LAST_SEQUENCE:
                raise WrongLastSequence(subject) from err
            if err.err_code in _CONFLICT:
                raise Again(str(err)) from err
            raise BrokerError(
                "E406",
                f"the server refused to store a commit: {err.description} ({err.err_code})",
                remedy="Nothing is skipped or doubled; the route goes on when the cause is gone.",
            ) from err

    async def last_of(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        """The last message of every subject that matches one of `subjects`, from one consistent view.

        Falls back to a scan where more than 1,024 match. Raises Unknown when the server does not answer, and
        Again where something changed between two parts of a large answer.
        """
        # The server ends an answer at so many bytes; by itself it does at what it lets a client be behind.
        asked: dict[str, Any] = {"multi_last": list(subjects), "max_bytes": self._page_bytes}
        found: list[Stored] = []
        left = None
        while left != 0:
            part = await self._direct_get(stream, asked)
            if part is None:
                return await self._scan(stream, subjects)
            messages, end = part
            still_left = int(end.get("Nats-Num-Pending", 0))
            if left is not None and left != len(messages) + still_left:
                raise Again(f"{stream} changed while it was read")
            if still_left and not messages:
                raise Again(f"{stream} has a message of more than {self._page_bytes} bytes")
            found += messages
            left = still_left
            if left:
                up_to = int(end["Nats-UpTo-Sequence"])
                asked |= {"seq": messages[-1].sequence + 1, "up_to_seq": up_to}
        return found

    @property
    def _page_bytes(self) -> int:
        return max(_PAGE_BYTES, 2 * self.max_payload)

    async def page_of(self, stream: str, subject: str, sequence: int, max_messages: int) -> list[Stored]:
        """The first messages of a subject or pattern from `sequence` on, in order, without their times.

        At least one where the replica that answers has one. It may lag behind the stream's leader, and then
        lacks the newest. Raises Unknown when the server does not answer, and Again where it cannot now.
        """
        asked = {
            "seq": sequence,
            "next_by_subj": subject,
            "batch": max_messages,
            "max_bytes": self._page_bytes,
        }
        page = await self._direct_get(stream, asked)
        assert page is not None  # only what is asked for by many subjects can be too much
        return page[0]

    async def last_from_leader(self, stream: str, subject: str) -> Stored | None:
        """The last message of one subject as the stream's leader has it: never behind an answered commit."""
        return await self._message(stream, {"last_by_subj": subject})

    async def next_of(self, stream: str, subject: str, sequence: int) -> Stored | None:
        """The first message of a subject or pattern from `sequence` on, with the server's headers too."""
        return await self._message(stream, {"seq": sequence, "next_by_subj": subject})

    async def stored_of_batch(
        self, stream: str, batch: str, messages: Sequence[Outgoing], start: int
    ) -> set[int]:
        """The numbers, from 1, of those messages of a commit that a stream holds, as its leader has it.

        They are looked for from the sequence `start` on. Without the first there is none.
        """
        stored = await self.next_of(stream, messages[0].subject, start)
        while stored is not None and stored.headers.get("Nats-Batch-Id") != batch:
            stored = await self.next_of(stream, messages[0].subject, stored.sequence + 1)
        found: set[int] = set()
        while stored is not None and len(found) < len(messages):
            if stored.headers.get("Nats-Batch-Id") != batch:
                break
            found.add(int(stored.headers["Nats-Batch-Sequence"]))
            stored = await self.next_of(stream, ">", stored.sequence + 1)
        return found

    async def _message(self, stream: str, which: Mapping[str, Any]) -> Stored | None:
        try:
            reply = await self.api(f"STREAM.MSG.GET.{stream}", which)
        except ApiError as err:
            if err.err_code == _MESSAGE_NOT_FOUND:
                return None
            raise Again(str(err)) from err
        message = reply["message"]
        payload, head = (base64.b64decode(message.get(part, "")) for part in ("data", "hdrs"))
        stored_s = datetime.fromisoformat(message["time"]).timestamp()
        return Stored(message["subject"], int(message["seq"]), payload, parse_head(head), stored_s)

    async def _direct_get(
        self, stream: str, body: Mapping[str, Any]
    ) -> tuple[list[Stored], RawHeaders] | None:
        """What the server sends, and the headers that end it; None for too many subjects."""
        subject = f"$JS.API.DIRECT.GET.{stream}"
        found: list[Stored] = []
        async with self._inbox(subject) as inbox:
            await self.send([encode(Outgoing(subject, orjson.dumps(body)), inbox.subject)])
            while True:
                _, _, head, payload = await inbox.next(f"direct get from {stream}")
                headers = parse_head(head)
                status, description = status_of(head)
                if status in ("204", "404"):
                    return found, headers
                if status == "413":
                    return None
                if status:
                    raise Again(f"direct get from {stream}: {status} {description}")
                found.append(
                    Stored(
                        headers["Nats-Subject"],
                        int(headers["Nats-Sequence"]),
                        payload,
                        own_headers(headers),
                    )
                )

    async def _scan(self, stream: str, subjects: Sequence[str]) -> list[Stored]:
        last: dict[str, Stored] = {}
        async for stored in self.history(stream, subjects, last_per_subject=True):
            last[stored.subject] = stored
        return list(last.values())

    async def count(self, stream: str, subjects: Sequence[str], start_sequence: int) -> int:
        """How many messages of these subjects the stream holds from a sequence on."""
        config = {
            "ack_policy": "none",
            "filter_subjects": list(subjects),
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, start_sequence),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 5 * NS,
        }
        info = await create_consumer(self.api, stream, config)
        with contextlib.suppress(ApiError, Again, BrokerError, Unknown, nats.errors.Error):
            await self.delete_consumer(stream, info["name"])  # it would go by itself, later
        return int(info["num_pending"])

    async def history(
        self,
        stream: str,
        subjects: Sequence[str],
        *,
        last_per_subject: bool = False,
        start_sequence: int = 1,
        headers_only: bool = False,
    ) -> AsyncGenerator[Stored, None]:
        """What `stream` holds of `subjects` now, in order; ends at the last message there was at the call.

        Messages that are removed while it reads may be left out. With `headers_only` payloads are, and the
        headers include those of the server.
        """
        config: dict[str, Any] = {
            "ack_policy": "none",
            "filter_subjects": list(subjects),
            "deliver_policy": "last_per_subject" if last_per_subject else "by_start_sequence",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 30 * NS,
        }
        if not last_per_subject:
            config["opt_start_seq"] = max(1, start_sequence)
        if headers_only:
            config["headers_only"] = True
        info = await create_consumer(self.api, stream, config)
        name, waiting = info["name"], int(info["num_pending"])
        most = info["config"].get("max_batch") or 1000
        try:
            async with self._inbox() as inbox:
                unanswered = asked = 0
                request = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
                while waiting:
                    if not asked:
                        asked = min(waiting, most)
                        ask = {"batch": asked, "no_wait": True, "max_bytes": self._page_bytes}
                        await self.send([encode(Outgoing(request, orjson.dumps(ask)), inbox.subject)])
                    message = await inbox.next(f"reading {stream}", _READ_TIMEOUT_S)
                    subject, reply, head, payload = message
                    if reply or not is_status(head):
                        _, sequence, _, timestamp_s, waiting = parse_ack(reply)
                        asked -= 1
                        headers = parse_head(head)
                        headers = headers if headers_only else own_headers(headers)
                        yield Stored(subject, sequence, payload, headers, timestamp_s)
                        continue
                    match status_of(head):
                        case (("404" | "408"), _):
                            return  # what was left to read has been removed meanwhile
                        case "409", "Batch Completed":
                            pass  # which was counted
                        case "409", said if "MaxBytes" in said:
                            asked = 0
                        case "503", _ if unanswered < 20:
                            # Right after its creation a consumer may have nobody to answer yet.
                            unanswered, asked = unanswered + 1, 0
                            await asyncio.sleep(0.05)
                        case _, said:
                            raise Again(f"reading {stream}: {said}")
        finally:
            with contextlib.suppress(ApiError, Again, BrokerError, Unknown, nats.errors.Error):
                await self.delete_consumer(stream, name)
