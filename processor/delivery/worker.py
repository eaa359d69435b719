"""The life of a message: pull, load the context, run the guest, decide, commit, observe.

A worker owns some partitions of one route, mostly all; `lanes` starts it and stops it. It never decides how
user code is confined (`sandbox`), how bytes move (`jetstream`) or where contexts lie (`context`).

What must stay true:
- A delivery is settled exactly once, in `settle`, and nothing of a run is visible before its position is.
- Runs are settled in the order in which they ran. A guest that died takes unsettled contexts with it, so
  everything that ran before is committed first and contexts are then loaded from there.
- A batch that fails is split until the message that makes it fail is alone; only that one is judged.
- While a message waits for its next try, no later message of its key runs.
- While the breaker is open nothing runs, nothing is judged, and what is in hand waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat

from processor.context.parked import (
    REASON_CHARS,
    ParkedMessage,
    ParkedMessages,
    Unfit,
    is_held,
    is_held_for_another,
)
from processor.context.position import UNREADABLE, Move, no_context
from processor.context.store import STALE_POSITIONS, ContextStore
from processor.delivery.breaker import DEATHS, Breaker
from processor.delivery.chunks import Chunks, Unsendable
from processor.delivery.codec import Codec, Unreadable, key_of
from processor.delivery.due import Due
from processor.delivery.effects import COMMIT_BUDGET, Batch, Effects, EffectsBuilder, Outlet
from processor.delivery.replay import Replay
from processor.delivery.source import Source
from processor.delivery.waiting import Waiting
from processor.errors import BrokerError, Faults, GuestError, ProcessorError
from processor.jetstream import Again, ApiError, Broker, Outgoing, Unknown
from processor.model import (
    Block,
    DeadLetter,
    Delivery,
    Drop,
    Failed,
    Failure,
    Group,
    LogLine,
    Outcome,
    Park,
    Ran,
    RunAgain,
    Wait,
    decide,
)
from processor.route import Route
from processor.sandbox.host import Answer, Guest
from processor.sandbox.messages import columns
from processor.telemetry import RUNNABLE_LOG, RouteTelemetry

log = logging.getLogger("processor")
user_log = logging.getLogger(RUNNABLE_LOG)

_REFUSED_PAUSE_S = 2.0
# So many claims without a commit make it likely that a message kills the whole process.
_SUSPICIOUS_CLAIMS = 2
_RESPAWN_PAUSES_S = (0.02, 0.1, 0.5)
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _GivenBack(Exception):
    """A message that waits, for its next try or the breaker, is left to the next start: the route stops."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers of one route in one process have in common."""

    breaker: Breaker
    # By sequence, the tries that a message had before it was written down. It outlives the workers: what this
    # process has survived did not end it.
    survived: dict[int, int]
    # What stands for the route's secrets in the calls of its guests, by name.
    marks: Mapping[str, str]
    # Held while a message runs that may end the process: only one can then be blamed for it.
    carefully: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, route: Route, survived: dict[int, int], marks: Mapping[str, str]) -> Shared:
        """For workers that have not run yet."""
        limits, breaker = route.limits, route.breaker
        # Guests that use up their time die slowly; a window too short for that would never see them all.
        window_s = max(breaker.window_s, 1.2 * breaker.deaths * limits.wall_s)
        return cls(Breaker(breaker.deaths, window_s, breaker.pause_s), survived, marks)


class Worker:
    """Runs its partitions of a route until it is stopped, fenced, or cannot go on."""

    def __init__(
        self,
        route: Route,
        codec: Codec,
        broker: Broker,
        source: Source,
        store: ContextStore,
        spawn: Callable[[], Awaitable[Guest]],
        outlets: Mapping[str, Outlet],
        telemetry: RouteTelemetry,
        blocked: Callable[[str | None], None],
        shared: Shared,
    ) -> None:
        self._route = route
        self._codec = codec
        self._broker = broker
        self._source = source
        self._store = store
        self._spawn = spawn
        self._telemetry = telemetry
        self._blocked = blocked  # called with why commits are refused, and with None when they are not
        template = route.output_template
        self._chunk_outlet = outlets.get(template.pattern if template else "", Outlet(live=True))
        self._effects_of = EffectsBuilder(route, codec, outlets, broker.max_payload)
        self._letters = ParkedMessages(route.app, route.name, broker.max_payload)
        self._policy = route.retry
        self._waiting = Waiting()
        self._tries = store.tries  # of messages that failed and are not settled, by sequence
        # What may have ended the processes before this one: the first message of a partition that was claimed
        # again and again, and a message that was tried and then not heard of.
        self._suspects = {p for p in store.owned if store.fruitless_claims(p) >= _SUSPICIOUS_CLAIMS}
        self._unsure = {sequence for sequence, tries in self._tries.items() if tries}
        self._survived = shared.survived
        self._tries |= {s: tries for s, tries in shared.survived.items() if s in self._tries}
        self._announced: set[int] = set()
        self._unblocking: str | None = None  # the blocked key whose messages are being tried
        self._due = Due(store.due)
        self._is_alone = (
            codec.alone
            or route.mode == "stream"
            or route.calls_alone
            or any(outlet.foreign for outlet in outlets.values())
        )
        self._breaker = shared.breaker
        self._carefully = shared.carefully
        scope = (route.app, route.name, store.created)
        self._replay = Replay(scope, route.replay, shared.marks, telemetry.repeated)
        self._guest: Guest | None = None
        self._resident: OrderedDict[str, None] = OrderedDict()  # keys whose contexts the guest holds
        # Contexts of keys that it does not hold and the next batch has; nobody changes them meanwhile.
        self._ahead: dict[str, dict[str, bytes]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._pending = Effects()
        self._settling: Effects | None = None
        self._changed = asyncio.Condition()
        self._stop = asyncio.Event()
        self._submitted = store.watermark  # up to here the input was read by what was submitted
        self._coming: list[Sequence[Delivery]] = []  # taken and not processed yet, the next ones last
        self._weight = 1.0  # messages of a commit that one input message needs, as seen lately

    async def run(self) -> None:
        """Process deliveries until `stop` is called and all that was taken is settled.

        Raises Fenced when another processor owns one of the partitions, and what else makes it impossible to
        go on; then nothing that was not settled has had an effect.
        """
        settler = asyncio.create_task(self._settle_all(), name=f"settle-{self._route.name}")
        puller = asyncio.create_task(self._pull_all(), name=f"pull-{self._route.name}")
        draining: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({settler, puller}, return_when=asyncio.FIRST_COMPLETED)
            if not settler.done():  # what was submitted is whole, also where no more can be taken
                draining = asyncio.create_task(self._settled(), name=f"drain-{self._route.name}")
                await asyncio.wait({settler, draining}, return_when=asyncio.FIRST_COMPLETED)
            if settler.done():
                settler.result()
            puller.result()
            await self._store.release()
        finally:
            tasks = [task for task in (puller, settler, draining, self._looking) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._telemetry.ended()
            if self._guest is not None:
                await self._guest.close()

    async def say(self, what: str, **more: str) -> None:
        """Tell listeners what becomes of the whole route; no message's fate depends on it."""
        milestone = self._effects_of.milestone(what, more)
        if milestone is not None:
            with contextlib.suppress(Unknown, Again, ApiError):
                await self._broker.publish_stored(milestone)

    def stop(self) -> None:
        """Take no more deliveries; `run` returns when those in hand are settled."""
        self._stop.set()

    async def rest(self) -> None:
        """Return when all that was taken is settled and no message waits for another try."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not (self._pending.moves or self._settling or self._waiting or self._due)
            )

    def give(self, kept: ParkedMessage) -> None:
        """Process a message that is due, beside the input; one that was given before is ignored."""
        self._due.accept(kept)

    def look_for_due(self) -> None:
        """Process what is due in the app's stream, and was given to nobody, too."""
        self._due.look()

    def is_overtaken(self, epochs: Mapping[int, int]) -> bool:
        """Whether one of our partitions has one of these epochs by now: what we hold of it is old."""
        ours = self._store.epochs
        return any(epoch > ours.get(partition, epoch) for partition, epoch in epochs.items())

    def owns(self, partition: int) -> bool:
        """Whether this worker processes that partition."""
        return self._store.counted_by(partition) in self._store.owned

    async def _pull_all(self) -> None:
        now_s = time.monotonic
        for key in self._store.blocked:
            self._waiting.block(key, now_s())
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        arriving = asyncio.create_task(self._due.arrived.wait(), name="due")
        taking: asyncio.Task[list[Delivery]] | None = None
        try:
            while not self._stop.is_set():
                if arriving.done():
                    self._due.arrived.clear()
                    arriving = asyncio.create_task(self._due.arrived.wait(), name="due")
                await self._work_off(now_s())
                if taking is None and not self._is_held_up:
                    taking = asyncio.create_task(
                        self._source.take(self._batch_limit(), self._route.batch.max_bytes)
                    )
                waits_s = self._waiting.next_s()
                timeout_s = None if waits_s is None else max(0.0, waits_s - now_s())
                if self._due and not self._is_held_up:
                    timeout_s = 0.0  # only to have what came in the input get its turn
                tasks = {stopping, arriving, *([taking] if taking is not None else [])}
                await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if self._stop.is_set():
                    return  # what was taken in this moment is not in hand yet: the next start reads it
                if taking is not None and taking.done():
                    deliveries, taking = await self._filled(taking.result()), None
                    self._telemetry.received(len(deliveries))
                    await self._take_up(deliveries)
                    await self._keep_up()
        except _GivenBack:
            return
        finally:
            ending = [stopping, arriving, *([taking] if taking is not None else [])]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _filled(self, deliveries: list[Delivery]) -> list[Delivery]:
        """A batch and what comes for it while a commit is under way: to wait for that costs no latency."""
        batch = self._route.batch
        count, size = self._batch_limit(), batch.max_bytes
        if self._settling is None or not batch.max_wait_ms or len(deliveries) >= count:
            return deliveries
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(batch.max_wait_ms / 1000), self._changed:
                await self._changed.wait_for(lambda: self._settling is None)
        size -= sum(len(delivery.payload) for delivery in deliveries)
        if not self._source.waiting or size <= 0:
            return deliveries
        return deliveries + await self._source.take(count - len(deliveries), size)

    @property
    def _is_held_up(self) -> bool:
        """Whether nothing new can be run: the one key waits, or too much is held behind those that do."""
        return self._waiting.is_full or (not self._route.is_keyed and bool(self._waiting))

    async def _work_off(self, now_s: float) -> None:
        """Run some of what is due beside the input, and what waited and may be tried now."""
        if self._due and not self._is_held_up:
            due = await self._due.take(self._batch_limit(), self._route.batch.max_bytes)
            self._tries |= {kept.delivery.sequence: kept.tries for kept in due}
            await self._admit([kept.delivery for kept in due])
        for key in list(self._waiting.due(now_s)):
            if self._stop.is_set():
                return
            if self._waiting.is_blocked(key):
                await self._try_blocked(key)
            else:
                first, *others = self._waiting.take(key)
                await self._admit([first])
                if others:
                    await self._admit(others)

    async def _take_up(self, deliveries: Sequence[Delivery]) -> None:
        """Process new deliveries; alone, and written down before, those that may end the whole process."""
        if not self._suspects and not self._unsure:
            await self._admit(deliveries)
            return
        together: list[Delivery] = []
        for delivery in deliveries:
            partition = self._place(delivery)
            if partition in self._suspects or delivery.sequence in self._unsure:
                await self._admit(together)
                together = []
                async with self._carefully:
                    await self._process_carefully(delivery)
                self._suspects.discard(partition)
                self._unsure.discard(delivery.sequence)
            else:
                together.append(delivery)
        await self._admit(together)

    async def _keep_up(self) -> None:
        """Move positions on that the stream has left far behind, because what it brought was for others."""
        taken = self._source.taken
        if taken - self._submitted > STALE_POSITIONS:
            await self._submit(Effects(moves={min(self._store.owned): Move(taken)}))

    async def _process_carefully(self, delivery: Delivery) -> None:
        if self._stop.is_set():
            raise _GivenBack  # it has waited for another lane's message to end
        tries = self._tries.get(delivery.sequence, 0)
        batch = self._plan([delivery])
        if not batch.groups:
            await self._admit([delivery])
        elif tries >= self._policy.attempts:
            failure = Failure("E314", f"the processor ended {tries} times while it worked on this message")
            await self._judge(batch, failure, tries)
        else:
            partition = batch.partitions[delivery.sequence]
            self._tries.setdefault(delivery.sequence, tries)
            self._survived[delivery.sequence] = tries
            moves = {partition: Move(delivery.sequence, opened={delivery.sequence: tries + 1})}
            await self._submit(Effects(moves=moves))
            await self._settled()
            await self._admit([delivery])
            await self._settled()
            self._survived.pop(delivery.sequence, None)

    async def _admit(self, deliveries: Sequence[Delivery]) -> None:
        """Process deliveries in order, and what is left of each batch before the next.

        As many at a time as the breaker lets through: all; none while it is open; then one.
        """
        self._coming = coming = [deliveries]
        while coming:
            part = coming.pop()
            if not part:
                continue
            await self._let_through()
            if self._breaker.is_open and len(part) > 1:
                coming.append(part[1:])
                part = part[:1]
            coming += reversed(await self.process(part))
            self._breaker.tried(self)

    async def process(self, deliveries: Sequence[Delivery]) -> Sequence[Sequence[Delivery]]:
        """Take deliveries through the guest and hand their effects over to be settled.

        This is the path of every message: plan, load contexts, run, decide, settle. A batch that fails is
        split around the group that failed, or halved where that is not known; a message that fails alone is
        judged: tried again, kept for later, given up or dead-lettered. What is to be processed next, before
        anything else, is returned.
        """
        batch = self._plan(deliveries)
        await self._source.ack(batch.done)
        if not batch.moves:  # nothing of it is ours, or to be done
            return ()
        await self._announce(batch)
        outcome = await self._run(batch)
        effects = self._effects(batch, outcome)
        if isinstance(effects, Effects):
            effects.scattered = self._store.scattered(effects.contexts)
            if (misfit := self._effects_of.misfit(effects)) is not None:
                self._weight = max(self._weight, effects.weight)
                effects = misfit
        if isinstance(outcome, Ran) and isinstance(effects, Failure):
            await self._undo()  # the guest has kept what will not be committed
        if isinstance(effects, Effects):
            for key, delivery in batch.followers:
                self._waiting.follow(key, delivery)
            self._replay.settled(batch.groups, batch.members)
            await self._submit(effects)
        elif len(deliveries) > 1:
            failed = outcome.group if isinstance(outcome, Failed) else None
            return list(batch.split(deliveries, failed, self._place))
        elif await self._judge(batch, effects, self._tries.get(deliveries[0].sequence, 0) + 1):
            return [deliveries]
        return ()

    def _effects(self, batch: Batch, outcome: Outcome) -> Effects | Failure:
        try:
            return self._effects_of.run(batch, outcome, self._tries)
        except Exception:  # a wall: it takes apart what a message and a guest hold
            return self._fault("the effects of a run were made")

    def _fault(self, when: str) -> Failure:
        """An error of ours, being handled, as the failure of what it was about."""
        log.exception("an unexpected error while %s; please report it", when, extra=self._where(code="E365"))
        return Failure("E365", f"an error of Processor's own while {when}; its log has it, please report it")

    async def _judge(self, batch: Batch, failure: Failure, attempt: int) -> bool:
        """Decide about the one message of a batch that failed, and make it so; whether to try it at once."""
        delivery = batch.deliveries[0]
        self._telemetry.failed(failure.code)
        where = self._where(delivery, attempt=attempt, code=failure.code)
        log.debug("attempt failed: %s %s", failure.code, failure.text, extra=where)
        self._replay.failed(batch.groups, batch.members)
        decision = decide(
            failure,
            attempt,
            self._policy,
            random.random(),
            is_held=is_held(delivery),
            is_stopping=self._stop.is_set(),
            has_one_key=not self._route.is_keyed,
        )
        if isinstance(decision, RunAgain | Wait | Park | Block):
            self._tries[delivery.sequence] = attempt
            self._telemetry.retried()
        else:
            self._replay.settled(batch.groups, batch.members)
        match decision:
            case RunAgain():
                return True
            case Wait(after_s):
                await self._wait(batch, attempt, after_s)
            case Park(after_s):
                await self._park(batch, attempt, after_s)
            case Block(failure, after_s):
                await self._block(batch, failure, attempt, after_s)
            case DeadLetter(failure):
                await self._submit_without_run(batch, rejected=[(delivery, failure)])
            case Drop(failure):
                await self._submit_without_run(batch, dropped=[(delivery, failure)])
        return False

    async def _submit_without_run(
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
        effects = self._effects_of.run(alone, Ran(), self._tries)
        assert isinstance(effects, Effects)
        await self._submit(effects)

    async def _wait(self, batch: Batch, tries: int, after_s: float) -> None:
        """Keep the message in memory until its time; that it was tried is committed, for a successor."""
        delivery = batch.deliveries[0]
        key = key_of(delivery, self._codec)
        self._waiting.wait(key, delivery, time.monotonic() + after_s)
        if not delivery.kept:
            partition = batch.partitions[delivery.sequence]
            opened = {delivery.sequence: tries}
            await self._submit(Effects(moves={partition: Move(delivery.sequence, opened=opened)}))

    async def _park(self, batch: Batch, tries: int, after_s: float) -> None:
        """Leave the message to the server, which sends it again in time; its key goes on without it."""
        delivery = batch.deliveries[0]
        at = datetime.now(UTC) + timedelta(seconds=min(after_s, 1e9))
        try:
            later = self._letters.later(delivery, batch.partitions[delivery.sequence], tries, at)
        except Unfit:
            await self._wait(batch, tries, after_s)
        else:
            await self._submit_without_run(batch, stored=[later])

    async def _block(self, batch: Batch, failure: Failure, tries: int, after_s: float) -> None:
        """Keep the message, and behind it the later ones of its key, until it succeeds."""
        delivery = batch.deliveries[0]
        key, partition = key_of(delivery, self._codec), batch.partitions[delivery.sequence]
        until_s = time.monotonic() + after_s
        self._unblocking = None
        if not self._waiting.is_blocked(key):
            log.warning(
                "its key is blocked until this message succeeds: %s %s",
                failure.code,
                failure.text[:REASON_CHARS],
                extra=self._where(
                    delivery, key=key, attempt=tries, code=failure.code, traceback=failure.traceback
                ),
            )
        self._waiting.block(key, until_s)
        batch.moves.setdefault(partition, Move()).blocked[key] = tries
        if is_held(delivery):
            await self._submit(Effects(moves=batch.moves))
            return
        try:
            held = self._letters.held(delivery, partition, key, tries)
        except Unfit as err:
            self._waiting.unblock(key)
            batch.moves[partition].blocked[key] = None
            failure = Failure("E307", f"the message cannot be kept until it succeeds: {err}")
            await self._submit_without_run(batch, rejected=[(delivery, failure)])
        else:
            await self._submit_without_run(batch, stored=[held])

    async def _try_blocked(self, key: str) -> None:
        """Try the messages that are kept for a blocked key, in order, until one fails or none is left."""
        await self._settled()
        kept, has_more = await self._store.held(key, self._batch_limit())
        self._unblocking = key
        deliveries = [k.delivery for k in kept]
        for k in kept:
            self._tries.setdefault(k.delivery.sequence, k.tries)
        for part in (deliveries[:1], deliveries[1:]):
            if part and self._unblocking == key:
                await self._admit(part)
        if self._unblocking != key:
            return
        self._unblocking = None
        if has_more or len(kept) > 1:
            self._waiting.block(key, time.monotonic())  # look again: nothing may be left behind
            return
        self._waiting.unblock(key)
        where = self._where()
        log.info("a blocked key goes on", extra=where)
        partition = self._store.partition(key)
        await self._submit(Effects(moves={partition: Move(blocked={key: None})}))

    def _place(self, delivery: Delivery) -> int:
        return self._store.place(delivery, key_of(delivery, self._codec))

    async def _pause(self, seconds: float) -> None:
        """Let that time pass. Raises _GivenBack as soon as the route is to stop."""
        if seconds <= 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
            raise _GivenBack

    # decode, key, group

    def _plan(self, deliveries: Sequence[Delivery]) -> Batch:
        batch = Batch([])
        template = self._route.output_template
        tokens = template.subject_tokens if template else ()
        documents: list[list[bytes]] = []
        open_groups: dict[str, tuple[int, tuple[str, ...]]] = {}
        for delivery in deliveries:
            key, document, unreadable = "", b"", None
            try:
                key = self._codec.key(delivery)
            except Unreadable as err:
                unreadable = err.failure
            except Exception:  # a wall: any bytes
                unreadable = self._fault("the key of a message was looked for")
            partition = self._store.place(delivery, key)
            if partition not in self._store.owned:
                continue
            if not delivery.kept and self._store.is_done(partition, delivery.sequence):
                batch.done.append(delivery)
                continue
            if partition != self._store.partition(key) or is_held_for_another(delivery, key):
                self._deal_anew(batch, key, partition, delivery)
                continue
            if self._waiting and self._is_behind(batch, key, partition, delivery):
                continue
            self._move(batch, partition, delivery)
            batch.deliveries.append(delivery)
            if self._codec.is_skipped(delivery):
                batch.skipped.append(delivery)
                continue
            if unreadable is None:
                try:
                    document = self._codec.read(delivery)
                except Unreadable as err:
                    unreadable = err.failure
                except Exception:  # a wall, as above
                    unreadable = self._fault("a message was read")
            if unreadable is not None:
                batch.rejected.append((delivery, unreadable))
                continue
            parts = delivery.subject.split(".") if tokens else []
            chosen = tuple(parts[n - 1] for n in tokens if n <= len(parts))
            index, same = open_groups.get(key, (-1, ()))
            if index < 0 or same != chosen or self._is_alone:
                index = len(documents)
                documents.append([])
                batch.members.append([])
                batch.groups.append(Group(key, documents[index]))
                open_groups[key] = (index, chosen)
            documents[index].append(document)
            batch.members[index].append(delivery)
        return batch

    def _deal_anew(self, batch: Batch, key: str, partition: int, delivery: Delivery) -> None:
        """Give a delivery that was dealt, or kept, by another `key` to the partition of the present one."""
        self._move(batch, partition, delivery)
        batch.deliveries.append(delivery)
        try:
            tries = self._tries.get(delivery.sequence, 0)
            batch.stored.append(self._letters.dealt(delivery, self._store.partition(key), tries))
        except Unfit as err:
            failure = Failure("E307", f"the message cannot be given to its partition: {err}")
            batch.rejected.append((delivery, failure))

    def _move(self, batch: Batch, partition: int, delivery: Delivery) -> None:
        """Note where the position goes with a delivery that is settled by this batch."""
        batch.partitions[delivery.sequence] = partition
        move = batch.moves.get(partition)
        if move is None:
            move = batch.moves[partition] = Move()
        if not delivery.kept:
            move.sequence = max(move.sequence, delivery.sequence)
            if delivery.sequence in self._tries:
                move.closed.add(delivery.sequence)

    def _is_behind(self, batch: Batch, key: str, partition: int, delivery: Delivery) -> bool:
        """Whether an earlier message of the key is in the way; then the batch keeps this one behind it."""
        if self._waiting.waits(key):
            batch.followers.append((key, delivery))
            move = batch.moves.setdefault(partition, Move())
            if not delivery.kept:
                tries = self._tries.setdefault(delivery.sequence, 0)
                move.add(Move(delivery.sequence, opened={delivery.sequence: tries}))
            return True
        if not self._waiting.is_blocked(key) or key == self._unblocking:
            return False
        if not is_held(delivery):  # those that are held already stay as they are
            try:
                held = self._letters.held(delivery, partition, key, self._tries.get(delivery.sequence, 0))
            except Unfit as err:
                failure = Failure("E307", f"the message cannot be kept behind its blocked key: {err}")
                batch.rejected.append((delivery, failure))
            else:
                batch.stored.append(held)
            self._move(batch, partition, delivery)
            batch.deliveries.append(delivery)
        return True

    async def _announce(self, batch: Batch) -> None:
        """Say that messages are taken up, once for each, however often it is tried."""
        for members in batch.members if self._codec.alone else ():
            if members[0].sequence in self._announced:
                continue
            self._announced.add(members[0].sequence)
            for publication in self._codec.started(members[0]):
                await self._broker.publish(
                    Outgoing(publication.subject, publication.payload, publication.headers)
                )

    # contexts and the guest

    async def _run(self, batch: Batch) -> Outcome:
        if not batch.groups:
            return Ran()
        guest = await self._living_guest()
        keys = dict.fromkeys(group.key for group in batch.groups)
        missing = [key for key in keys if key not in self._resident]
        contexts = await self._load(missing)
        groups = [g._replace(context=contexts.pop(g.key, None)) for g in batch.groups]
        for number, group in enumerate(groups):
            if group.context is not None and UNREADABLE in group.context.values():
                return Failed(no_context(group.key, self._route.name), group=number)
        for key in keys:
            self._resident[key] = None
            self._resident.move_to_end(key)
        forget = self._evicted(keys)
        self._look_ahead()
        started_s = time.perf_counter()
        calls = self._replay.calls(batch.groups, batch.members)
        if self._route.mode == "stream":
            outcome = await self._stream(guest, batch, groups[0], forget, calls.answer)
        else:
            template = self._route.output_template
            fields = template.fields if template else ()
            outcome = await guest.run(
                groups, fields=fields, forget=forget, messages=self._columns(batch), answer=calls.answer
            )
        self._telemetry.processed(len(batch.deliveries), time.perf_counter() - started_s)
        if calls.cut is None:
            self._log_lines(outcome.logs)
        else:
            outcome = await self._cut(outcome, calls.cut)
        failure = outcome.failure if isinstance(outcome, Failed) else None
        if failure is None or not failure.lethal:
            await self._lived()
        elif failure.code in DEATHS and len(batch.deliveries) == 1:
            await self._died(failure.code, failure.text, batch.deliveries[0].sequence)
        if isinstance(outcome, Failed) and outcome.failure.lethal:
            self._telemetry.guest_restarted(outcome.failure.code)
            log.info(
                "the guest was stopped: %s %s",
                outcome.failure.code,
                outcome.failure.text,
                extra=self._where(code=outcome.failure.code),
            )
        elif isinstance(outcome, Ran):
            self._telemetry.guest_memory(outcome.memory_bytes)
        else:
            # A context that came with the run that failed is sent again with the next, `init` included.
            for key in missing:
                self._resident.pop(key, None)
        return outcome

    def _columns(self, batch: Batch) -> bytes:
        """What the Runnable may know of the messages of a batch."""
        members = [*chain(*batch.members)]
        tries = [self._tries.get(delivery.sequence, 0) for delivery in members] if self._tries else ()
        return columns(self._letters.as_sent(members), tries)

    async def _cut(self, outcome: Outcome, group: int) -> Failed:
        """What becomes of a run whose calls were refused from this group on, whatever it made of that."""
        if isinstance(outcome, Failed) and outcome.failure.lethal:
            return Failed(outcome.failure, group=group)
        if isinstance(outcome, Ran):
            await self._undo()
        return Failed(Failure("E323", "the batch got more bytes of answers than can be kept"), group=group)

    async def _load(self, keys: Sequence[str]) -> dict[str, dict[str, bytes]]:
        if self._looking is not None:
            looking, self._looking = self._looking, None
            await looking
        found = {key: self._ahead.pop(key) for key in keys if key in self._ahead}
        return found | await self._store.load([key for key in keys if key not in found])

    def _look_ahead(self) -> None:
        """Have the contexts that the next batch needs read while the guest runs this one."""
        if not self._store.is_spread or self._looking is not None:
            return
        coming = (key_of(delivery, self._codec) for delivery in self._source.peek(self._batch_limit()))
        next_keys = {key for key in coming if key not in self._resident}
        self._store.forget(self._ahead.keys() - next_keys)
        self._ahead = {key: items for key, items in self._ahead.items() if key in next_keys}
        if unread := self._store.unread(next_keys - self._ahead.keys()):
            self._looking = asyncio.create_task(self._read(unread), name=f"load-{self._route.name}")

    async def _read(self, keys: Sequence[str]) -> None:
        self._ahead |= await self._store.load(keys)

    async def _living_guest(self) -> Guest:
        if self._guest is not None and self._guest.alive:
            return self._guest
        # Contexts died with the guest: they are what is committed once everything before is.
        await self._settled()
        if self._guest is not None:
            if (why := self._guest.verdict) is not None and why.code == "E367":  # between runs: of no message
                self._telemetry.guest_restarted(why.code)
                log.warning(
                    "the guest was stopped: %s %s", why.code, why.text, extra=self._where(code=why.code)
                )
            await self._guest.close()
        self._store.forget(self._resident)
        self._resident.clear()
        pauses_s = chain(_RESPAWN_PAUSES_S, repeat(_RESPAWN_PAUSES_S[-1]))
        while True:
            try:
                self._guest = await self._spawn()
                return self._guest
            except (Faults, GuestError) as err:
                # The program was loaded before, so this is the machine: memory is short, or somebody kills.
                log.debug("a guest could not be started: %s", err, extra=self._where())
                await self._died("E502", str(err), None)
            await self._pause(next(pauses_s))
            await self._let_through()

    # the breaker

    async def _let_through(self) -> None:
        """Return when this worker may run something: at once, or once the breaker's pause is over."""
        while (wait_s := self._breaker.wait_s(self._now_s(), self)) > 0:
            await self._pause(wait_s)
        self._breaker.tries(self)

    async def _died(self, code: str, text: str, message: int | None) -> None:
        """A guest died over a message that was alone, or did not come to live."""
        was_open = self._breaker.is_open
        if not self._breaker.died(self._now_s(), message):
            return
        wait_s = self._breaker.wait_s(self._now_s())
        again = datetime.now(UTC) + timedelta(seconds=wait_s)
        why = (
            f"E503 the guests of route {self._route.name} keep dying, the last of {code} ({text}); "
            f"nothing runs until {again:%H:%M:%S} UTC, when one message is tried again"
        )
        self._telemetry.breaker_opened(why)
        if not was_open:
            log.error("%s", why, extra=self._where(code="E503"))
            await self.say("breaker_opened", code=code, text=text)

    async def _lived(self) -> None:
        if self._breaker.lived():
            self._telemetry.breaker_closed()
            log.info("a guest lives again: the breaker is closed", extra=self._where())
            await self.say("breaker_closed")

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _evicted(self, in_use: Mapping[str, None]) -> list[str]:
        """Keys that the guest must drop to stay within its number of contexts, oldest first.

        Only keys without unsettled changes: others could not be loaded again yet.
        """
        excess = len(self._resident) - self._route.contexts
        if excess <= 0:
            return []
        settling = self._settling.contexts if self._settling else {}
        gone: list[str] = []
        for key in self._resident:
            if len(gone) == excess:
                break
            if key not in in_use and key not in self._pending.contexts and key not in settling:
                gone.append(key)
        for key in gone:
            del self._resident[key]
        self._store.forget(gone)
        return gone

    async def _undo(self) -> None:
        """Take the last run back: the guest's contexts are again what is committed."""
        await self._settled()
        if self._guest is not None:
            await self._guest.run((), forget=list(self._resident))
        self._store.forget(self._resident)
        self._resident.clear()

    def _batch_limit(self) -> int:
        """Messages that one run may take so that what two of them leave behind fits one commit.

        Every commit costs the server 2.4 ms however little is in it (R1 file, nats-server 2.15): while one is
        under way, two runs are got ready for the next.
        """
        if self._route.mode == "stream":
            return 1
        room = COMMIT_BUDGET - self._route.partitions
        return max(1, min(self._route.batch.max_messages, int(room / self._weight / 2)))

    async def _stream(
        self, guest: Guest, batch: Batch, group: Group, forget: Sequence[str], answer: Answer
    ) -> Outcome:
        """Run one message of a stream-mode route; what it yields goes to its listeners at once."""
        delivery = batch.members[0][0]
        try:
            subject = self._codec.chunk_subject(delivery, group.key, group.documents[0])
            chunks = Chunks(self._broker, self._chunk_outlet, subject, self._stream_headers(delivery))
        except ProcessorError as err:
            return Failed(Failure(err.code, err.what))
        try:
            for opening in self._codec.opening(group.documents[0]):
                await chunks.send_chunk(opening)
            outcome = await guest.stream(
                group, chunks.send_chunk, forget=forget, messages=self._columns(batch), answer=answer
            )
        except Unsendable as err:  # nobody knows how far the guest is
            await guest.close()
            outcome = Failed(Failure("E307", f"a chunk cannot be sent: {err}", lethal=True))
        failure = outcome.failure if isinstance(outcome, Failed) else None
        marker = chunks.marker(is_error=failure is not None, payload=self._codec.marker(failure))
        if marker is not None and failure is None:
            batch.markers.append(marker)
        elif marker is not None:
            await self._broker.publish(marker)
        return outcome

    def _stream_headers(self, delivery: Delivery) -> dict[str, str]:
        return {
            "Processor-Route": self._route.name,
            "Processor-Sequence": str(delivery.sequence),
            "Processor-Attempt": str(self._tries.get(delivery.sequence, 0) + 1),
        }

    def _log_lines(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            if line.dropped:
                self._telemetry.log_lines_dropped(line.dropped)
            user_log.log(_LEVELS.get(line.level, logging.INFO), "%s", line.text, extra=self._where())

    def _where(self, delivery: Delivery | None = None, **more: object) -> dict[str, object]:
        seq = {} if delivery is None else {"seq": delivery.sequence}
        return {"route": self._route.name, **seq, **more}

    # settle

    async def _submit(self, effects: Effects) -> None:
        """Hand effects over to be settled; waits while two commits' worth is under way already."""
        self._weight = max(1.0, effects.weight, 0.98 * self._weight)
        self._submitted = max([self._submitted, *(move.sequence for move in effects.moves.values())])
        left = (delivery.sequence for part in self._coming for delivery in part if not delivery.kept)
        effects.first_left = min(left, default=None)
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._pending.moves or self._pending.size_with(effects) <= COMMIT_BUDGET
            )
            self._pending.add(effects)
            self._changed.notify_all()
        await asyncio.sleep(0)  # what is to be committed is on its way before anything else is begun

    async def _settled(self) -> None:
        """Return when everything that was submitted is settled."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._pending.moves and self._settling is None)

    async def _settle_all(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._pending.moves))
                self._settling, self._pending = self._pending, Effects()
                self._changed.notify_all()
            await self.settle(self._settling)
            async with self._changed:
                self._settling = None
                self._changed.notify_all()

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
        if self._tries or self._announced:
            for delivery in effects.deliveries:
                self._tries.pop(delivery.sequence, None)
                self._announced.discard(delivery.sequence)
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
        telemetry.outputs(effects.outputs)
        telemetry.events(effects.events)
        for code in effects.dead_letters:
            telemetry.dead_lettered(code)
        for _, failure, _ in effects.dropped:
            telemetry.dropped(failure.code)
        telemetry.waiting(len(self._waiting), self._waiting.blocked)
        telemetry.context(self._store.bytes_held)
