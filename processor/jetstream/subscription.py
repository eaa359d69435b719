"""Core NATS subscriptions: a `FrameTap` of one client, and a `Subscription` that outlives clients.

What must stay true:
- A message that cannot be handled costs itself only: who listens goes on.
- What is heard faster than it is handled is bounded; beyond that it is dropped, and the log says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as ClientSubscription

from processor.jetstream.intake import Intake, Taker
from processor.jetstream.protocol import parse_head
from processor.model import Delivery

log = logging.getLogger("processor")

_WAITING_MAX_MESSAGES = 1 << 16
_WAITING_MAX_BYTES = 64 << 20


class FrameTap:
    """The messages of one subject, handed over as they are read. It ends with the client it was made with."""

    def __init__(self, intake: Intake, subscription: ClientSubscription, taker: Taker) -> None:
        self._intake = intake
        self._subscription = subscription
        intake.hand(subscription, taker)

    @classmethod
    async def open(cls, client: Client, subject: str, taker: Taker, *, queue: str = "") -> FrameTap:
        """Give every message of `subject` from now on to `taker`."""
        subscription = await client.subscribe(subject, queue=queue)
        assert isinstance(client._ps, Intake)
        return cls(client._ps, subscription, taker)

    async def close(self) -> None:
        """Take no more; never raises."""
        self._intake.leave(self._subscription)
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._subscription.unsubscribe()


class Subscription:
    """A core NATS subscription that outlives the client it was made with.

    Messages are handled one after the other, in a task of their own.
    """

    def __init__(
        self,
        subject: str,
        callback: Callable[[Delivery], Awaitable[None]],
        queue: str,
        closed: Callable[[Subscription], None],
    ) -> None:
        self.subject = subject
        self._callback = callback
        self._queue = queue
        self._closed = closed
        self._tap: FrameTap | None = None
        self._waiting: asyncio.Queue[Delivery] = asyncio.Queue(_WAITING_MAX_MESSAGES)
        self._waiting_bytes = 0
        self._is_dropping = False
        self._handling: asyncio.Task[None] | None = None

    async def open(self, client: Client) -> None:
        """Listen on this client from now on."""
        self._tap = await FrameTap.open(client, self.subject, self._take, queue=self._queue)
        if self._handling is None:
            self._handling = asyncio.create_task(self._handle(), name=f"listen-{self.subject}")

    async def unsubscribe(self) -> None:
        """Hear nothing more; what has not been handed over yet is discarded."""
        self._closed(self)
        tap, self._tap = self._tap, None
        if tap is not None:
            await tap.close()
        handling, self._handling = self._handling, None
        if handling is not None and handling is not asyncio.current_task():
            handling.cancel()
            await asyncio.gather(handling, return_exceptions=True)

    def _take(self, subject: str, reply: str, head: bytes, payload: bytes) -> None:
        delivery = Delivery(subject, payload, parse_head(head), "", 0, time.time(), ack=reply)
        if self._waiting.full() or self._waiting_bytes > _WAITING_MAX_BYTES:
            if not self._is_dropping:
                self._is_dropping = True
                log.warning(
                    "messages of %s come faster than they are handled; some are dropped", self.subject
                )
            return
        self._waiting_bytes += len(payload)
        self._waiting.put_nowait(delivery)

    async def _handle(self) -> None:
        while True:
            delivery = await self._waiting.get()
            self._waiting_bytes -= len(delivery.payload)
            if self._waiting.empty():
                self._is_dropping = False
            try:
                await self._callback(delivery)
            except Exception:  # a fault of ours, over one message
                log.exception("a message of %s could not be handled; please report it", self.subject)
