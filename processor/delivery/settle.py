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
from collections.abc import Callable, Mapping, Sequence

from processor.audit import AuditEntry
from processor.context.position import Move
from processor.context.store import NONE
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
_LATE_S = 1.0  # what the audit gets of runs without effects waits so long for a commit to be part of


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
        self._kept = Effects()  # entries and marks that wait for a commit to be part of
        self._is_kept_due = False
        self._reminder: asyncio.TimerHandle | None = None
        self._waking: asyncio.Task[None] | None = None
        self._weight = 1.0  # messages of a commit that one input message needs, as seen lately
        self.submitted = store.watermark  # up to here the input was read by what was submitted

    async def run(self) -> None:
        """Settle what is submitted, for ever. Raises what makes it impossible, such as Fenced."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._pending.moves) or self._is_kept_due)
                self._settling, self._pending = self._pending, Effects()
                self._take_kept(self._settling)
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

    def keep(self, audit: Sequence[tuple[int, AuditEntry]], marks: Mapping[int, int] = NONE) -> None:
        """Let a commit have entries of what leaves nothing else behind, and marks that go with them: the next
        one, and within a second one of their own.
        """
        self._kept.audit += audit
        self._kept.marks |= marks
        if (audit or marks) and self._reminder is None:
            self._reminder = asyncio.get_running_loop().call_later(_LATE_S, self._remind)

    def _remind(self) -> None:
        self._reminder = None
        self._waking = asyncio.create_task(self._commit_kept(), name=f"audit-{self._route.name}")

    async def _commit_kept(self) -> None:
        async with self._changed:
            self._is_kept_due = bool(self._kept.audit or self._kept.marks)
            self._changed.notify_all()

    def _take_kept(self, effects: Effects) -> None:
        """Add to effects that are to be settled as much of what is kept as fits the commit."""
        kept = self._kept
        taken = len(kept.audit)
        while effects.size_with(part := Effects(audit=kept.audit[:taken], marks=kept.marks)) > COMMIT_BUDGET:
            if not taken:
                return
            taken //= 2
        is_all = taken == len(kept.audit)
        effects.audit = [*part.audit, *effects.audit]
        effects.marks |= kept.marks if is_all else {}  # they are moved with the last of their entries
        self._kept = Effects() if is_all else Effects(audit=kept.audit[taken:], marks=kept.marks)
        self._is_kept_due = not is_all

    async def drained(self) -> None:
        """Return when everything that was submitted, or is kept for a commit, is settled."""
        await self._commit_kept()
        await self.settled_and(lambda: not self._kept.audit and not self._kept.marks)

    def left(self) -> list[tuple[int, AuditEntry]]:
        """The entries of what was submitted or kept, and is in no confirmed commit."""
        settling = self._settling.audit if self._settling is not None else []
        return [*settling, *self._kept.audit, *self._pending.audit]

    def close(self) -> None:
        """Commit nothing by itself any more."""
        if self._reminder is not None:
            self._reminder.cancel()
        if self._waking is not None:
            self._waking.cancel()

    async def settled(self) -> None:
        """Return when everything that was submitted is settled."""
        await self.settled_and(lambda: True)

    async def settled_and(self, is_so: Callable[[], bool]) -> None:
        """Return when everything that was submitted is settled and `is_so`, which each commit may change."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._pending.moves and self._settling is None and is_so()
            )

    async def reconsider(self) -> None:
        """Let whoever waits in `settled_and` look again: something else than a commit has changed."""
        async with self._changed:
            self._changed.notify_all()

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
        2. commit outputs, events, dead letters, audit entries, contexts and positions: all of it or none,
        3. send to live listeners what is now certain,
        4. acknowledge to the input stream, if it waits for that,
        5. count.

        After a crash before 2 everything is done again; after 2 nothing is, but 3 (stream endings) and 4,
        which a successor repeats.
        """
        await self._publish_foreign(effects.foreign)
        started_s = time.perf_counter()
        entries = effects.entries
        size = await self._store.commit(
            [*effects.stored, *effects.kept.values()],
            effects.contexts,
            {**{number: Move() for number in (*entries, *effects.marks)}, **effects.moves},
            live=effects.markers,
            first_left=effects.first_left,
            entries=entries,
            marks=effects.marks,
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
        telemetry.audited(len(effects.audit))
        telemetry.end_to_end([max(0.0, now_s - d.timestamp_s) for d in effects.ended])
        for record in effects.records:
            self._observe_run(record)
        telemetry.waiting(len(self._hand.waiting), self._hand.waiting.blocked)
        telemetry.context(self._store.bytes_held)
