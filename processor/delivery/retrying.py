"""What becomes of a message that failed alone: `decide` says it, and this carries it out.

The message waits in memory, is left to the server, holds its key, is dead-lettered or dropped; each of these
is submitted to be settled, as the effects of a run are.

What must stay true:
- While a message waits for its next try, no later message of its key runs, unless the server keeps it.
- That a message was tried is written down before anything else of its key is, so that a successor knows.
- What cannot be kept for its next try waits in memory, or ends as a dead letter: it is never lost.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from processor.context.parked import REASON_CHARS, ParkedMessages, Unfit, is_held
from processor.context.position import Move
from processor.delivery.codec import Codec, key_of
from processor.delivery.effects import Batch, Effects, EffectsBuilder
from processor.delivery.hand import Hand
from processor.delivery.settle import Settler
from processor.delivery.store import Store
from processor.jetstream import Outgoing
from processor.model import (
    Block,
    DeadLetter,
    Decision,
    Delivery,
    Drop,
    Failure,
    Park,
    Ran,
    RunAgain,
    Wait,
    decide,
)
from processor.route import Route

log = logging.getLogger("processor")

Process = Callable[[Sequence[Delivery]], Awaitable[None]]


class Retrying:
    """The messages of one worker that failed, until they are settled."""

    def __init__(
        self,
        route: Route,
        codec: Codec,
        store: Store,
        effects: EffectsBuilder,
        letters: ParkedMessages,
        settler: Settler,
        hand: Hand,
    ) -> None:
        self._route = route
        self._codec = codec
        self._store = store
        self._effects = effects
        self._letters = letters
        self._settler = settler
        self._hand = hand
        self._policy = route.retry

    def decide(self, delivery: Delivery, failure: Failure, attempt: int, *, is_stopping: bool) -> Decision:
        """What becomes of a message whose `attempt`-th try failed, with the luck of this moment."""
        return decide(
            failure,
            attempt,
            self._policy,
            random.random(),
            is_held=is_held(delivery),
            is_stopping=is_stopping,
            has_one_key=not self._route.is_keyed,
        )

    async def carry_out(self, decision: Decision, batch: Batch, attempt: int) -> None:
        """Submit what becomes of the one message of a batch, whose `attempt`-th try failed."""
        delivery = batch.deliveries[0]
        if isinstance(decision, RunAgain | Wait | Park | Block):
            self._hand.tries[delivery.sequence] = attempt
        match decision:
            case RunAgain():  # it has had no effect
                pass
            case Wait(after_s):
                await self._wait(batch, attempt, after_s)
            case Park(after_s):
                await self._park(batch, attempt, after_s)
            case Block(failure, after_s):
                await self._block(batch, failure, attempt, after_s)
            case DeadLetter(failure):
                await self._submit(batch, rejected=[(delivery, failure)])
            case Drop(failure):
                await self._submit(batch, dropped=[(delivery, failure)])

    async def try_blocked(self, key: str, limit: int, process: Process) -> None:
        """Try the messages that are kept for a blocked key, in order, until one fails or none is left.

        `process` takes some of them through a run and has submitted what came of it when it returns.
        """
        await self._settler.settled()
        kept, has_more = await self._store.held(key, limit)
        self._hand.unblocking = key
        deliveries = [k.delivery for k in kept]
        for k in kept:
            self._hand.tries.setdefault(k.delivery.sequence, k.tries)
        for part in (deliveries[:1], deliveries[1:]):
            if part and self._hand.unblocking == key:
                await process(part)
        if self._hand.unblocking != key:
            return  # it is blocked again
        self._hand.unblocking = None
        if has_more or len(kept) > 1:
            self._hand.waiting.block(key, time.monotonic())  # look again: nothing may be left behind
            return
        self._hand.waiting.unblock(key)
        log.info("a blocked key goes on", extra={"route": self._route.name})
        partition = self._store.partition(key)
        await self._settler.submit(Effects(moves={partition: Move(blocked={key: None})}))

    async def _submit(
        self,
        batch: Batch,
        *,
        rejected: Sequence[tuple[Delivery, Failure]] = (),
        dropped: Sequence[tuple[Delivery, Failure]] = (),
        stored: Sequence[Outgoing] = (),
    ) -> None:
        """Settle the message of a batch with what becomes of it instead of its effects."""
        alone = Batch(
            batch.deliveries,
            rejected=list(rejected),
            dropped=list(dropped),
            stored=list(stored),
            partitions=batch.partitions,
            moves=batch.moves,
        )
        effects = self._effects.run(alone, Ran(), self._hand.tries)
        assert isinstance(effects, Effects)
        await self._settler.submit(effects)

    async def _wait(self, batch: Batch, tries: int, after_s: float) -> None:
        """Keep the message in memory until its time; that it was tried is committed, for a successor."""
        delivery = batch.deliveries[0]
        key = key_of(delivery, self._codec)
        self._hand.waiting.wait(key, delivery, time.monotonic() + after_s)
        if not delivery.kept:
            partition = batch.partitions[delivery.sequence]
            opened = {delivery.sequence: tries}
            await self._settler.submit(Effects(moves={partition: Move(delivery.sequence, opened=opened)}))

    async def _park(self, batch: Batch, tries: int, after_s: float) -> None:
        """Leave the message to the server, which sends it again in time; its key goes on without it."""
        delivery = batch.deliveries[0]
        at = datetime.now(UTC) + timedelta(seconds=min(after_s, 1e9))
        try:
            later = self._letters.later(delivery, batch.partitions[delivery.sequence], tries, at)
        except Unfit:
            await self._wait(batch, tries, after_s)
        else:
            await self._submit(batch, stored=[later])

    async def _block(self, batch: Batch, failure: Failure, tries: int, after_s: float) -> None:
        """Keep the message, and behind it the later ones of its key, until it succeeds."""
        delivery = batch.deliveries[0]
        key, partition = key_of(delivery, self._codec), batch.partitions[delivery.sequence]
        waiting = self._hand.waiting
        self._hand.unblocking = None
        if not waiting.is_blocked(key):
            log.warning(
                "its key is blocked until this message succeeds: %s %s",
                failure.code,
                failure.text[:REASON_CHARS],
                extra={
                    "route": self._route.name,
                    "seq": delivery.sequence,
                    "key": key,
                    "attempt": tries,
                    "code": failure.code,
                    "traceback": failure.traceback,
                },
            )
        waiting.block(key, time.monotonic() + after_s)
        batch.moves.setdefault(partition, Move()).blocked[key] = tries
        if is_held(delivery):
            await self._settler.submit(Effects(moves=batch.moves))
            return
        try:
            held = self._letters.held(delivery, partition, key, tries)
        except Unfit as err:
            waiting.unblock(key)
            batch.moves[partition].blocked[key] = None
            failure = Failure("E307", f"the message cannot be kept until it succeeds: {err}")
            await self._submit(batch, rejected=[(delivery, failure)])
        else:
            await self._submit(batch, stored=[held])
