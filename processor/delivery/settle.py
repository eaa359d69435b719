"""The one place where the effects of runs become real: see `Settler.settle`.

A worker submits the effects of each run as soon as it has them. They are collected while a commit is under
way and settled together, so that runs and commits overlap.

What must stay true:
- A delivery is settled exactly once, in `settle`, and nothing of a run is visible before its position is.
- Runs are settled in the order in which they were submitted.
- What is submitted beside a commit that is under way fits one commit; `submit` waits where it would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from processor.delivery.effects import COMMIT_BUDGET, Effects
from processor.delivery.hand import Hand
from processor.delivery.publisher import Publisher
from processor.delivery.source import Source
from processor.delivery.store import Store
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Outgoing, Unknown
from processor.model import RunRecord
from processor.route import Route
from processor.telemetry import RouteTelemetry

_REFUSED_PAUSE_S = 2.0


class Settler:
    """Settles what one worker's runs leave behind."""

    def __init__(
        self,
        route: Route,
        broker: Publisher,
        source: Source,
        store: Store,
        telemetry: RouteTelemetry,
        hand: Hand,
        blocked: Callable[[str | None], None],
        observe: Callable[[RunRecord], None],
    ) -> None:
        """`blocked` is called with why a foreign stream refuses a message, and with None when none does;
        `observe` gets the record of each run once its effects are committed.
        """
        self._route = route
        self._broker = broker
        self._source = source
        self._store = store
        self._telemetry = telemetry
        self._hand = hand
        self._blocked = blocked
        self._observe_run = observe
        self._pending = Effects()
        self._settling: Effects | None = None
        self._changed = asyncio.Condition()
        self._weight = 1.0  # messages of a commit that one input message needs, as seen lately
        self.submitted = store.watermark  # up to here the input was read by what was submitted

    async def run(self) -> None:
        """Settle what is submitted, for ever. Raises what makes it impossible, such as Fenced."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._pending.moves))
                self._settling, self._pending = self._pending, Effects()
                self._changed.notify_all()
            await self.settle(self._settling)
            async with self._changed:
                self._settling = None
                self._changed.notify_all()

    async def submit(self, effects: Effects) -> None:
        """Hand effects over to be settled; waits while two commits' worth is under way already."""
        self._weight = max(1.0, effects.weight, 0.98 * self._weight)
        self.submitted = max([self.submitted, *(move.sequence for move in effects.moves.values())])
        effects.first_left = self._hand.first_left
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._pending.moves or self._pending.size_with(effects) <= COMMIT_BUDGET
            )
            self._pending.add(effects)
            self._changed.notify_all()
        await asyncio.sleep(0)  # what is to be committed is on its way before anything else is begun

    async def settled(self) -> None:
        """Return when everything that was submitted is settled."""
        await self.settled_and(lambda: True)

    async def settled_and(self, is_so: Callable[[], bool]) -> None:
        """Return when everything that was submitted is settled and `is_so`, which each commit may change."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._pending.moves and self._settling is None and is_so()
            )

    @property
    def is_settling(self) -> bool:
        """Whether a commit is under way."""
        return self._settling is not None

    async def settled_within(self, seconds: float) -> None:
        """Return when the commit that is under way is done, or after that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self._settling is None)

    def is_unsettled(self, key: str) -> bool:
        """Whether the key's context has changes that are not committed."""
        return key in self._pending.contexts or (
            self._settling is not None and key in self._settling.contexts
        )

    def weigh(self, effects: Effects) -> None:
        """Learn from effects that were too big for a commit how many messages one input message needs."""
        self._weight = max(self._weight, effects.weight)

    @property
    def run_limit(self) -> int:
        """Messages that one run may take so that what two of them leave behind fits one commit.

        Every commit costs the server 2.4 ms however little is in it (R1 file, nats-server 2.15): while one is
        under way, two runs are got ready for the next.
        """
        if self._route.mode == "stream":
            return 1
        room = COMMIT_BUDGET - self._route.partitions
        return max(1, min(self._route.batch.max_messages, int(room / self._weight / 2)))

    async def settle(self, effects: Effects) -> None:
        """Make the effects of processed deliveries real, in this order:

        1. publish to streams that cannot copy from ours; a second try of the same is dropped there,
        2. commit outputs, events, dead letters, contexts and positions: all of it or none,
        3. send to live listeners what is now certain,
        4. acknowledge to the input stream, if it waits for that,
        5. count.

        After a crash before 2 everything is done again; after 2 nothing is, but 3 (stream endings) and 4,
        which a successor repeats.
        """
        await self._publish_foreign(effects.foreign)
        started_s = time.perf_counter()
        size = await self._store.commit(
            effects.stored,
            effects.contexts,
            effects.moves,
            live=effects.markers,
            first_left=effects.first_left,
        )
        self._telemetry.committed(len(effects.ended), time.perf_counter() - started_s, size)
        with contextlib.suppress(Unknown):  # nobody can be listening
            await self._broker.publish(*effects.live)
        await self._source.ack([d for d in effects.deliveries if not d.kept])
        self._hand.settled(effects.deliveries)
        self._observe(effects)

    async def _publish_foreign(self, messages: Sequence[Outgoing]) -> None:
        for message in messages:
            while True:
                await self._broker.connected()
                try:
                    await self._broker.publish_stored(message)
                    break
                except (Unknown, Again):
                    await asyncio.sleep(0.1)
                except (ApiError, BrokerError) as err:
                    is_api = isinstance(err, ApiError)
                    self._blocked(f"E406 {message.subject} is not stored: {err}" if is_api else str(err))
                    await asyncio.sleep(_REFUSED_PAUSE_S)
        if messages:
            self._blocked(None)

    def _observe(self, effects: Effects) -> None:
        telemetry, now_s = self._telemetry, time.time()
        telemetry.end_to_end([max(0.0, now_s - d.timestamp_s) for d in effects.ended])
        for record in effects.records:
            self._observe_run(record)
        telemetry.waiting(len(self._hand.waiting), self._hand.waiting.blocked)
        telemetry.context(self._store.bytes_held)
