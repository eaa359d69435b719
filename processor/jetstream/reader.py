"""Reading a stream in order with none missing, through whatever happens to consumers and connections."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import nats.errors
import orjson

from processor.errors import BrokerError
from processor.jetstream.api import STREAM_NOT_FOUND
from processor.jetstream.broker import Broker
from processor.jetstream.consumers import NOT_UNIQUE, TOO_MANY_CONSUMERS, create_consumer, others_of, refusal
from processor.jetstream.protocol import (
    NS,
    Again,
    ApiError,
    Outgoing,
    Unknown,
    encode,
    is_status,
    parse_ack,
    parse_head,
    status_of,
)
from processor.jetstream.subscription import FrameTap
from processor.model import NO_HEADERS, Delivery, RawHeaders

log = logging.getLogger("processor")

_HEARTBEAT, _HEARTBEAT_S = b"NATS/1.0 100", 5.0
_LOOKS_AT_END, _LOOK_AGAIN_S = 4, 0.5  # a leader that was just elected may not have applied all it holds
_EXPIRES_S = 30.0
_EXPIRES_IDLE_S = 120.0  # of a pull request behind one that brought nothing
# At so many moments of a heartbeat's time the pull requests of all readers end, and their heartbeats come. To
# wake up for each of them by itself is most of what a thousand idle routes cost.
_MOMENTS = 10
_LOOK_S = 0.25
_PATIENCE_S = 10.0
_CLOSE_S = 1.0
_UNANSWERED_MAX = 10  # pull requests that nobody took, before the consumer is given up


async def end_of(broker: Broker, stream: str, created: str, least: int) -> int | None:
    """The last sequence of a stream, looked at for a while where it is below `least`; None without it."""
    last = 0
    for look in range(_LOOKS_AT_END):
        await asyncio.sleep(_LOOK_AGAIN_S if look else 0)
        info = await broker.stream(stream)
        if info is None or info["created"] != created:
            return None
        last = int(info["state"]["last_seq"])
        if last >= least:
            break
    return last


async def check_end(broker: Broker, stream: str, created: str, sequence: int, who: str) -> None:
    """Raise BrokerError E418 where a stream ends before `sequence`, which was read from it.

    What is published to it next would get a sequence that counts as read. A stream that is gone or was
    created again is left to its reader.
    """
    last = await end_of(broker, stream, created, sequence)
    if last is not None and last < sequence:
        raise BrokerError(
            "E418",
            f"{who} was at {sequence} of stream {stream}, which ends at {last}: the server lost messages "
            "that it had acknowledged, as when its machine loses power",
            remedy="What is published now would count as read. "
            'See "The server lost messages" in deploy/runbook.md.',
        )


class _Bell:
    """Rings when a message has come or something is wrong: for who waits, and once for who asked for it."""

    def __init__(self) -> None:
        self._has_rung = asyncio.Event()
        self.on_ring: Callable[[], None] | None = None

    def ring(self) -> None:
        self._has_rung.set()
        if self.on_ring is not None:
            call, self.on_ring = self.on_ring, None
            call()

    async def next(self) -> None:
        """Return when it rings after this call."""
        self._has_rung.clear()
        await self._has_rung.wait()


class Reader:
    """The messages of some subjects of a stream, from a sequence on, in order, none missing.

    On a limits stream the consumer is ephemeral and acknowledges nothing: the position lives with the
    context. On a work-queue or interest stream the consumer is durable and every delivery must be given to
    `ack` after its commit, because the stream deletes messages only then.

    An interest stream lets go of what no consumer wants, and a replica takes a consumer with a filter to want
    nothing as long as it has no state of it. So the oldest consumer stays until all replicas have seen the
    newest one acknowledge.
    """

    def __init__(
        self,
        broker: Broker,
        stream: str,
        subjects: Sequence[str],
        *,
        created: str,
        retention: str,
        name: str,
        start_sequence: int,
        prefetch: int,
        read: Callable[[Delivery], Delivery] | None = None,
    ) -> None:
        self._broker = broker
        self._stream = stream
        self._subjects = list(subjects)
        self._created = created
        self._keeps = retention == "limits"
        self._retention = retention
        self._name = name
        self._next = start_sequence  # the lowest stream sequence that has not been received
        self._prefetch = prefetch
        self._read = read  # makes of a message's delivery the one that `take` returns
        self._buffer: collections.deque[Delivery] = collections.deque()
        self._buffered_bytes = 0
        self._bell = _Bell()
        self._waits_since_s: float | None = None  # somebody waits for a message
        self._asked = 0  # messages that open pull requests may still bring
        self._unanswered = 0  # pull requests in a row that were not taken
        self._expected = 1  # next consumer sequence
        self._heard_s = time.monotonic()
        self._moment_s = random.randrange(_MOMENTS) * _HEARTBEAT_S / _MOMENTS
        self._is_in_step = False  # its requests end at that moment
        self._has_come = True  # a message, since we asked last
        self._most = prefetch  # of a pull request: the server may limit it
        self._refused_since_s: float | None = None  # the server refuses a consumer, or does not answer
        self._broken = ""
        self._unreadable: BrokerError | None = None  # why the next message cannot be handed out
        # Delivered and not settled, with the newest subject to acknowledge on: for streams that wait for it.
        self._unsettled: dict[int, str] = {}
        self._consumer = ""
        self._succeeding: asyncio.Task[None] | None = None
        self._inbox = ""
        self._tap: FrameTap | None = None
        self._generation = -1
        self.pending = 0  # messages behind the last one received, as the server counted them then
        self.taken = start_sequence - 1  # up to here `take` has handed out everything

    @property
    def is_silent(self) -> bool:
        """Whether neither a message nor a heartbeat came for longer than three heartbeats.

        Not so for a reader that is full: it asks for nothing, and is told nothing.
        """
        is_asking = self._asked > 0 or bool(self._broken)
        return is_asking and time.monotonic() - self._heard_s > 3 * _HEARTBEAT_S

    @property
    def waiting(self) -> int:
        """Messages that `take` would return at once."""
        return len(self._buffer)

    @property
    def lag(self) -> int:
        """Messages that wait: in the stream, and here."""
        return self.pending + len(self._buffer)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, here or in the stream, as far as this is known without asking the server."""
        return self._asked > 0 and not self.pending and not self._buffer and not self._broken

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` once, as soon as `is_idle` may not be so any more, or the reader is closed."""
        self._bell.on_ring = changed

    @property
    def oldest_s(self) -> float | None:
        """When the first message that `take` would return was stored, seconds since 1970."""
        return self._buffer[0].timestamp_s if self._buffer else None

    async def measure(self) -> bool:
        """Have `lag` as it is now; whether the server had to be asked.

        Not while we ask it for messages: it would have sent what there is. A reader that is full asks for
        none, and is told of none. Raises what `Broker.api` raises.
        """
        consumer = self._consumer
        if self._asked or self._broken or self._tap is None:
            return False
        info = await self._broker.api(f"CONSUMER.INFO.{self._stream}.{consumer}")
        if consumer == self._consumer and not self._asked:
            self.pending = int(info["num_pending"])
        return True

    async def open(self) -> None:
        """Return when the consumer exists: from then on no message that is published can be missed.

        Raises BrokerError E401 when the stream itself is gone.
        """
        try:
            while self._generation != self._broker.generation or self._broken:
                await self._broker.connected()
                await self._reopen()
        except BaseException:
            await self.close()
            raise

    def peek(self, max_messages: int) -> list[Delivery]:
        """The first messages that `take` would return, left where they are."""
        return list(itertools.islice(self._buffer, max_messages))

    async def take(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        """The next messages: at least one, and more if they are here.

        Waits for the first for as long as it takes, through lost connections and deleted consumers. Raises
        BrokerError E401 when the stream itself is gone, and E357 for a message that cannot be read.
        """
        await self._wait_for_one()
        taken: list[Delivery] = []
        size = 0
        while self._buffer and len(taken) < max_messages:
            size += len(self._buffer[0].payload)
            if taken and size > max_bytes:
                break
            delivery = self._buffer.popleft()
            self._buffered_bytes -= len(delivery.payload)
            taken.append(delivery)
        self.taken = taken[-1].sequence
        self._ask()
        return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Tell a work-queue or interest stream that these are done. One that is lost is skipped later."""
        if self._keeps or not deliveries:
            return
        subjects = [self._unsettled.pop(d.sequence, d.ack) for d in deliveries]
        with contextlib.suppress(Unknown):
            await self._broker.send([_acknowledged(subject) for subject in subjects if subject])

    async def close(self) -> None:
        """Stop receiving. A durable consumer stays, so that the stream keeps what was not acknowledged."""
        self._broker.waking.discard(self._bell.ring)
        self._broker.ticks.discard(self._look)
        self._broker.silent.discard(self)
        self._bell.ring()
        await self._unsubscribe()
        if self._consumer and self._keeps:
            # What cannot be deleted now ends by itself; closing never fails, nor waits for a silent server.
            with contextlib.suppress(ApiError, Again, BrokerError, Unknown, TimeoutError, nats.errors.Error):
                async with asyncio.timeout(_CLOSE_S):
                    await self._broker.delete_consumer(self._stream, self._consumer)

    async def _wait_for_one(self) -> None:
        while not self._buffer:
            if self._unreadable is not None:
                raise self._unreadable
            await self._broker.connected()
            if self._broken or self._generation != self._broker.generation:
                await self._reopen()
                continue
            self._waits_since_s = time.monotonic()
            try:
                await self._bell.next()
            finally:
                self._waits_since_s = None

    def _look(self) -> None:
        """Give up a consumer that somebody waits for if nothing is heard of it for too long."""
        now_s, since_s = time.monotonic(), self._waits_since_s
        if now_s - self._heard_s <= 2.5 * _HEARTBEAT_S:  # nearly always
            self._broker.silent.discard(self)
            return
        if since_s is not None and now_s - since_s > _HEARTBEAT_S:
            self._broken = "no heartbeat"
            self._bell.ring()
        if self.is_silent:
            self._broker.silent.add(self)

    async def _reopen(self) -> None:
        if self._broken:
            log.debug("reading %s of %s again: %s", self._subjects, self._stream, self._broken)
        try:
            await self._open()
            self._refused_since_s = None
        except (ApiError, Again, Unknown, nats.errors.Error, OSError) as err:
            if isinstance(err, ApiError):
                await self._give_up(err)
            self._broken = str(err) or type(err).__name__
            await asyncio.sleep(0.25)

    async def _give_up(self, err: ApiError) -> None:
        """Raise BrokerError for a refusal that a person has to end; return for one that may pass."""
        if err.err_code == STREAM_NOT_FOUND:
            raise BrokerError(
                "E401",
                f"stream {self._stream} is gone",
                remedy="Create it again; the position is kept, see `processor check --server`.",
            ) from err
        since_s = self._refused_since_s = self._refused_since_s or time.monotonic()
        # While a cluster elects its leaders it refuses what it takes a moment later.
        is_over = time.monotonic() - since_s > _PATIENCE_S
        if err.is_final or is_over:
            others = await _in_the_way(self._broker, self._stream, self._subjects, self._name)
            # One of our own is in the way where its making, or its removal, is not known to all servers yet.
            if err.err_code == NOT_UNIQUE and not others and not is_over:
                return
            raise refusal(self._stream, self._subjects, err, others) from err

    async def _open(self) -> None:
        self._broker.waking.add(self._bell.ring)
        self._broker.ticks.add(self._look)
        await self._unsubscribe()
        old = self._consumer
        self._consumer = f"{self._name}-{secrets.token_hex(4)}"
        config: dict[str, Any] = {
            "name": self._consumer,
            "filter_subjects": self._subjects,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(1, self._next),
        }
        if self._keeps:
            config |= {
                "ack_policy": "none",
                "mem_storage": True,
                "num_replicas": 1,
                "inactive_threshold": 60 * NS,
            }
        else:
            # A fresh consumer delivers in stream order; an old one would redeliver what it had out behind
            # newer messages. Long ack_wait: we make a new consumer ourselves whenever we need a redelivery.
            config |= {
                "durable_name": self._consumer,
                "ack_policy": "explicit",
                "ack_wait": 3600 * NS,
                "max_ack_pending": max(20_000, 4 * self._prefetch),
                "metadata": {"processor.reader": self._name},
            }
            if self._retention == "workqueue":
                # A work queue allows one consumer per subject, and keeps messages without any.
                for name in await _consumers_of(self._broker, self._stream, self._name):
                    await self._broker.delete_consumer(self._stream, name)
                config["deliver_policy"] = "all"
                del config["opt_start_seq"]
        made = await self._create(config, old)
        self._most = min(self._prefetch, made["config"].get("max_batch") or self._prefetch)
        # Looked at after the consumer was made: a consumer dies with its stream.
        info = await self._broker.stream(self._stream)
        if info is None or info["created"] != self._created:
            raise BrokerError(
                "E407",
                f"stream {self._stream} was deleted and recreated while it was being read",
                remedy="Its messages count from 1 again, so the position says nothing about them.",
            )
        if self._retention == "interest":
            ours = await _consumers_of(self._broker, self._stream, self._name)
            older = [name for name in ours if name != self._consumer]
            for name in older[1:]:
                await self._broker.delete_consumer(self._stream, name)
            if older:
                self._succeeding = asyncio.create_task(self._succeed(older[0], self._consumer))
        elif old and self._keeps:
            with contextlib.suppress(ApiError, Again, BrokerError, Unknown):
                await self._broker.delete_consumer(self._stream, old)
        if info["state"]["last_seq"] < self._next - 1:
            await check_end(self._broker, self._stream, self._created, self._next - 1, self._name)
        self._broken, self._expected, self._asked, self._unanswered = "", 1, 0, 0
        self._is_in_step, self._has_come = False, True
        self._generation = self._broker.generation
        self._heard_s = time.monotonic()
        self._inbox = self._broker.client.new_inbox()
        self._tap = await self._broker.tap(self._inbox, self._receive)
        self._ask()

    async def _create(self, config: dict[str, Any], old: str) -> dict[str, Any]:
        create = functools.partial(
            create_consumer, self._broker.api, self._stream, config, name=self._consumer
        )
        try:
            return await create()
        except ApiError as err:
            # What our last consumer had is in `_next`, so it can make room for this one.
            if err.err_code != TOO_MANY_CONSUMERS or not old or not self._keeps:
                raise
            await self._broker.delete_consumer(self._stream, old)
            return await create()

    async def _succeed(self, oldest: str, ours: str) -> None:
        """Let the oldest consumer go as soon as our own is known on every replica of the stream."""
        while True:
            await asyncio.sleep(_LOOK_S)
            with contextlib.suppress(ApiError, Again, BrokerError, Unknown, nats.errors.Error):
                info = await self._broker.api(f"CONSUMER.INFO.{self._stream}.{ours}")
                replicas = (info.get("cluster") or {}).get("replicas") or []
                if info["ack_floor"]["stream_seq"] and all(replica.get("current") for replica in replicas):
                    await self._broker.delete_consumer(self._stream, oldest)
                    return

    async def _unsubscribe(self) -> None:
        succeeding, self._succeeding = self._succeeding, None
        if succeeding is not None:
            succeeding.cancel()
            await asyncio.gather(succeeding, return_exceptions=True)
        tap, self._tap = self._tap, None
        if tap is not None:
            await tap.close()

    def _ask(self) -> None:
        room = min(self._prefetch - len(self._buffer) - self._asked, self._most)
        if self._broken or self._tap is None or room < min(self._prefetch // 2, self._most):
            return
        limit = max(8 << 20, 2 * self._broker.max_payload)
        if self._buffered_bytes > limit:
            return
        self._asked += room
        expires_s = (self._moment_s - time.monotonic()) % _HEARTBEAT_S
        ask: dict[str, Any] = {"batch": room, "max_bytes": limit}
        if self._is_in_step:
            expires_s += _EXPIRES_S if self._has_come else _EXPIRES_IDLE_S
            ask["idle_heartbeat"] = int(_HEARTBEAT_S * NS)
        # The server refuses an end that is now, and one that comes before two heartbeats.
        ask["expires"] = int(max(expires_s, 0.01) * NS)
        # The first in step is a short one, too: messages may have waited for this reader, and more may come.
        self._is_in_step, self._has_come = True, not self._is_in_step
        request = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        # The requests of many readers end at the same moment, and are made anew with one write.
        self._broker.gathered.post(encode(Outgoing(request, orjson.dumps(ask)), self._inbox))

    def _receive(self, subject: str, reply: str, head: bytes, payload: bytes) -> None:
        self._heard_s = time.monotonic()
        if is_status(head) and not reply.startswith("$JS.ACK."):
            if not head.startswith(_HEARTBEAT):  # it says no more than that it comes
                self._receive_status(*status_of(head), parse_head(head))
            return
        if self._broken or self._unreadable is not None:
            return
        last = self._next - 1
        try:
            self._receive_message(subject, reply, head, payload)
        except Exception as err:
            # Asked for again it would come again and again: its route stops, and says so.
            log.debug("a message of %s cannot be read", self._stream, exc_info=err)
            self._unreadable = BrokerError(
                "E357",
                f"the message behind {last} of stream {self._stream} cannot be read "
                f"({type(err).__name__}: {str(err)[:200]})",
                remedy="Please report it; remove the message, or reset the route to one behind it, to go on.",
            )
            self._bell.ring()

    def _receive_message(self, subject: str, reply: str, head: bytes, payload: bytes) -> None:
        consumer, sequence, consumer_sequence, timestamp_s, self.pending = parse_ack(reply)
        if consumer != self._consumer:
            return
        if consumer_sequence != self._expected:
            self._broken = f"consumer sequence {consumer_sequence} where {self._expected} was due"
            self._bell.ring()
            return
        self._expected += 1
        self._has_come = True
        self._unanswered = 0
        self._asked = max(0, self._asked - 1)
        if sequence < self._next:
            # A work queue hands out again what it had out to a consumer before this one. What is settled is
            # acknowledged again; what is still in hand will be.
            if sequence in self._unsettled:
                self._unsettled[sequence] = reply
            elif not self._keeps:
                with contextlib.suppress(Unknown):
                    self._broker.post([_acknowledged(reply)])
            self._ask()
            return
        self._next = sequence + 1
        if not self._keeps:
            self._unsettled[sequence] = reply
        delivery = Delivery(
            subject,
            payload,
            parse_head(head) if head else NO_HEADERS,
            self._stream,
            sequence,
            timestamp_s,
            "" if self._keeps else reply,
        )
        if self._read is not None:
            delivery = self._read(delivery)
        self._buffer.append(delivery)
        self._buffered_bytes += len(delivery.payload)
        self._bell.ring()

    def _receive_status(self, status: str, description: str, headers: RawHeaders) -> None:
        if status in ("408", "409") and headers.get("Nats-Pending-Messages"):
            # The request ended (expired, or full by bytes); what it did not bring can be asked for again.
            self._asked = max(0, self._asked - int(headers["Nats-Pending-Messages"]))
            if "Deleted" not in description and "Shutdown" not in description:
                self._ask()
                return
        if status == "503" and self._unanswered < _UNANSWERED_MAX:
            # Right after its creation a consumer in a cluster may have nobody to answer yet.
            self._unanswered += 1
            self._asked = 0
            asyncio.get_running_loop().call_later(0.05 * self._unanswered, self._ask)
            return
        self._broken = f"{status} {description}"
        self._bell.ring()


async def _in_the_way(
    broker: Broker, stream: str, subjects: Sequence[str], reader: str
) -> list[dict[str, Any]]:
    """The consumers of others on these subjects, where they may be listed."""
    with contextlib.suppress(ApiError, Again, BrokerError, Unknown):
        return others_of(await broker.consumers(stream), subjects, reader)
    return []


async def _consumers_of(broker: Broker, stream: str, reader: str) -> list[str]:
    """The consumers that readers of that name have made on the stream, oldest first."""
    found = [
        consumer
        for consumer in await broker.consumers(stream)
        if (consumer["config"].get("metadata") or {}).get("processor.reader") == reader
    ]
    return [c["name"] for c in sorted(found, key=lambda c: str(c["created"]))]


def _acknowledged(subject: str) -> bytes:
    return encode(Outgoing(subject, b"+ACK"), "")
