"""Messages of a work queue that are leased to us, one consumer with its explicit acknowledgements.

For workers outside of a processor: a message is theirs until `ack_wait_s` is over, unless they say that they
are still at it; then the server gives it to another. `Reader` is for routes, which keep their position
themselves.

What must stay true: a message that is not acknowledged comes again, whatever happens to us; and however
connections and servers go and come back, messages go on coming.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import nats.errors
import orjson

from processor.errors import BrokerError
from processor.jetstream.broker import Broker
from processor.jetstream.consumers import create_consumer
from processor.jetstream.protocol import (
    NS,
    Again,
    ApiError,
    Outgoing,
    Unknown,
    encode,
    is_status,
    parse_ack,
    parse_tries,
    status_of,
)
from processor.jetstream.subscription import FrameTap

log = logging.getLogger("processor")

_EXPIRES_S = 30.0
_HEARTBEAT_S = 5.0
_SILENT_S = 3 * _HEARTBEAT_S  # without a word for so long, the request is as good as lost
_AGAIN_S = 0.5
_EXISTS = 10148  # a consumer of that name, with other settings


class LeasedMessage(NamedTuple):
    """One message that is ours for now."""

    subject: str
    payload: bytes
    tries: int  # how often it was delivered, this time included
    sequence: int
    ack: str


class WorkQueue:
    """The messages of one subject of a work-queue stream, through a durable consumer that workers share.

    Used by one task at a time. Raises BrokerError E403 where the server does not allow it, and E408 where the
    consumer takes something else.
    """

    def __init__(
        self, broker: Broker, stream: str, subject: str, *, name: str, ack_wait_s: float, batch: int
    ) -> None:
        """`batch` is how many messages are leased at most before the first of them is let go."""
        self._broker = broker
        self._stream = stream
        self._subject = subject
        self._name = name
        self.ack_wait_s = ack_wait_s  # as the consumer has it, once there was a first message
        self._batch = batch
        self._buffer: collections.deque[LeasedMessage] = collections.deque()
        self._held = 0  # leased, and neither acknowledged nor given back
        self._asked = 0  # messages that the server may still send for what was asked
        self._generation = -1  # of the connection in which `_inbox` is listened to
        self._tap: FrameTap | None = None
        self._inbox = ""
        self._bell = asyncio.Event()  # a message has come, or there is something to ask for
        self._trouble = ""

    async def next(self) -> LeasedMessage:
        """The next message, however long that takes."""
        while not self._buffer:
            self._bell.clear()
            try:
                await self._ask()
            except (Again, ApiError, Unknown, nats.errors.Error) as err:
                self._tell(f"stream {self._stream} gives no work now: {err}")
                await asyncio.sleep(_AGAIN_S)
                continue
            try:
                async with asyncio.timeout(_SILENT_S):
                    await self._bell.wait()
            except TimeoutError:
                if self._asked > 0:  # lost, it may be with a server
                    self._lose("it is silent")
        return self._buffer.popleft()

    def extend(self, lease: LeasedMessage) -> None:
        """Have it for the whole of the time again."""
        self._say(lease, b"+WPI")

    def finish(self, lease: LeasedMessage) -> None:
        """Let go of a message that is done with."""
        self._say(lease, b"+ACK")
        self.forget(lease)

    def give_back(self, lease: LeasedMessage) -> None:
        """Let another worker have it at once."""
        self._say(lease, b"-NAK")
        self.forget(lease)

    def forget(self, lease: LeasedMessage) -> None:
        """Leave it to its time: it comes again when that is over."""
        self._held -= 1
        self._bell.set()

    async def close(self) -> None:
        """Take no more, and give back what nobody has taken yet."""
        tap, self._tap = self._tap, None
        if tap is not None:
            await tap.close()
        while self._buffer:
            self.give_back(self._buffer.popleft())

    def _say(self, lease: LeasedMessage, what: bytes) -> None:
        self._broker.gathered.post(encode(Outgoing(lease.ack, what), ""))

    def _lose(self, why: str) -> None:
        self._generation = -1
        self._tell(f"stream {self._stream} gives no work now: {why}")

    def _tell(self, trouble: str) -> None:
        """Once for as long as it lasts."""
        if trouble != self._trouble:
            log.warning("%s; trying until it does", trouble)
            self._trouble = trouble

    async def _ask(self) -> None:
        """Ask for as many messages as there is room for, unless that was asked."""
        await self._broker.connected()
        if self._generation != self._broker.generation:
            if self._trouble:
                await asyncio.sleep(_AGAIN_S)
            await self._open()
        room = self._batch - self._held
        if self._asked > 0 or room <= 0:
            return
        self._asked = room
        asked = {"batch": room, "expires": int(_EXPIRES_S * NS), "idle_heartbeat": int(_HEARTBEAT_S * NS)}
        request = Outgoing(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", orjson.dumps(asked))
        await self._broker.send([encode(request, self._inbox)])

    async def _open(self) -> None:
        """Have the consumer, and a subject of ours for what it sends."""
        generation = self._broker.generation
        if self._tap is not None:
            await self._tap.close()
        config = {
            "name": self._name,
            "durable_name": self._name,
            "filter_subject": self._subject,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait_s * NS),
            "max_deliver": -1,
            "max_ack_pending": -1,
        }
        try:
            info = await create_consumer(
                self._broker.api, self._stream, config, name=f"{self._name}.{self._subject}"
            )
        except ApiError as err:
            if err.err_code != _EXISTS:
                raise
            info = await self._broker.api(f"CONSUMER.INFO.{self._stream}.{self._name}")
        self._check(info["config"])
        self.ack_wait_s = info["config"].get("ack_wait", 0) / NS or self.ack_wait_s
        self._inbox = self._broker.client.new_inbox()
        self._tap = await self._broker.tap(self._inbox, self._take)
        self._generation, self._asked = generation, 0

    def _check(self, config: Mapping[str, Any]) -> None:
        """One that was made by hand may have another `ack_wait`, and what matters less."""
        found = config.get("filter_subject"), config.get("ack_policy")
        if found != (self._subject, "explicit"):
            raise BrokerError(
                "E408",
                f"consumer {self._name} of stream {self._stream} takes {found[0] or 'everything'} with "
                f"ack_policy {found[1]}",
                remedy=f"Remove it: it has to take {self._subject}, and to wait for acknowledgements.",
            )

    def _take(self, subject: str, reply: str, head: bytes, payload: bytes) -> None:
        if is_status(head):
            status, said = status_of(head)
            if status in ("404", "408") or "Completed" in said or "MaxBytes" in said:
                self._asked = 0
            elif status != "100":  # a heartbeat says that the request stands
                self._lose(f"{status} {said}")
        else:
            self._asked -= 1
            self._held += 1
            _, sequence, *_ = parse_ack(reply)
            self._buffer.append(LeasedMessage(subject, payload, parse_tries(reply), sequence, reply))
        if self._trouble and self._generation == self._broker.generation:
            log.info("stream %s gives work again", self._stream)
            self._trouble = ""
        self._bell.set()
