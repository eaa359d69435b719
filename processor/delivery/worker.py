"""The life of a message: pull, load the context, run the guest, decide, commit, observe.

A worker owns some partitions of one route, mostly all; `lanes` starts it and stops it. The path of a message
is `Worker.process`; each step of it is a part with a file of its own, and none of them knows the worker:
`plan` groups what was taken, `guests` runs it, `effects` says what that leaves behind, `retrying` carries out
what becomes of a message that failed, `settle` makes it all real, `auditing` hands on what is to be written
down of it, and `gate` says when nothing may run.

What must stay true:
- Runs are settled in the order in which they ran.
- A batch that fails is split until the message that makes it fail is alone; only that one is judged.
- While a message waits for its next try, no later message of its key runs.
- While the breaker is open nothing runs, nothing is judged, and what is in hand waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from processor.capability.monitor import Governor, Monitor
from processor.context.parked import ParkedMessage, ParkedMessages
from processor.context.position import Move
from processor.context.store import STALE_POSITIONS
from processor.delivery.auditing import Auditor
from processor.delivery.breaker import Breaker
from processor.delivery.chunks import Streaming
from processor.delivery.codec import Codec, key_of
from processor.delivery.due import Due
from processor.delivery.effects import (
    Batch,
    Effects,
    EffectsBuilder,
    Outlet,
    fault_of_ours,
)
from processor.delivery.gate import Gate, GivenBack
from processor.delivery.guests import Guests
from processor.delivery.hand import Hand
from processor.delivery.observe import Observer
from processor.delivery.pace import RunPace
from processor.delivery.plan import Planner
from processor.delivery.publisher import Publisher
from processor.delivery.replay import Replay
from processor.delivery.retrying import Retrying
from processor.delivery.runner import BatchRunner
from processor.delivery.settle import Settler
from processor.delivery.source import Source
from processor.delivery.store import Store
from processor.errors import Fenced
from processor.jetstream import Again, ApiError, Outgoing, Unknown
from processor.model import DeadLetter, Delivery, Drop, Failed, Failure, Outcome, Ran, RunAgain, RunRecord
from processor.route import Route
from processor.telemetry import RouteTelemetry

ReadRecord = Callable[[RunRecord], None]

# So many claims without a commit make it likely that a message kills the whole process.
_SUSPICIOUS_CLAIMS = 2


@dataclass(frozen=True, slots=True)
class Shared:
    """What the workers of one route in one process have in common."""

    breaker: Breaker
    # By sequence, the tries that a message had before it was written down. It outlives the workers: what this
    # process has survived did not end it.
    survived: dict[int, int]
    governor: Governor  # of what their guests may do
    # Held while a message runs that may end the process: only one can then be blamed for it.
    carefully: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def of(cls, route: Route, survived: dict[int, int], governor: Governor) -> Shared:
        """For workers that have not run yet."""
        limits, breaker = route.limits, route.breaker
        # Guests that use up their time die slowly; a window too short for that would never see them all.
        window_s = max(breaker.window_s, 1.2 * breaker.deaths * limits.wall_s)
        return cls(Breaker(breaker.deaths, window_s, breaker.pause_s), survived, governor)


class Worker:
    """Runs its partitions of a route until it is stopped, fenced, or cannot go on."""

    def __init__(
        self,
        route: Route,
        codec: Codec,
        broker: Publisher,
        source: Source,
        store: Store,
        spawn: Callable[[], Awaitable[BatchRunner]],
        outlets: Mapping[str, Outlet],
        telemetry: RouteTelemetry,
        blocked: Callable[[str | None], None],
        shared: Shared,
        monitor: Monitor,
        readers: Sequence[ReadRecord] = (),
    ) -> None:
        """`blocked` is called with why commits are refused, and with None when they are not; `monitor` is the
        one that performs the calls of the guests that `spawn` makes; `readers` read the record of each run,
        after what operators are told of it.
        """
        self._route = route
        self._codec = codec
        self._broker = broker
        self._source = source
        self._store = store
        self._telemetry = telemetry
        self._hand = hand = Hand(store.tries)
        # What may have ended the processes before this one: the first message of a partition that was claimed
        # again and again, and a message that was tried and then not heard of.
        self._suspects = {p for p in store.owned if store.fruitless_claims(p) >= _SUSPICIOUS_CLAIMS}
        self._unsure = {sequence for sequence, tries in hand.tries.items() if tries}
        self._survived = shared.survived
        self._carefully = shared.carefully
        hand.tries |= {s: tries for s, tries in shared.survived.items() if s in hand.tries}
        observer = Observer(route.name, telemetry)
        self._readers = (observer.read, shared.governor.budgets.read, *readers)
        self._due = Due(store.due)
        scope = (route.app, route.name, store.created)
        self._replay = Replay(scope, route.replay, shared.governor.secrets, telemetry.repeated)
        template = route.output_template
        chunk_outlet = outlets.get(template.pattern if template else "", Outlet(live=True))
        is_alone = (
            codec.alone
            or route.mode == "stream"
            or route.calls_alone
            or any(outlet.foreign for outlet in outlets.values())
        )
        letters = ParkedMessages(route.app, route.name, broker.max_payload)
        self._effects = EffectsBuilder(route, codec, outlets, broker.max_payload, monitor.permit)
        self._gate = Gate(route.name, shared.breaker, shared.governor.budgets, telemetry, self.say)
        self._settler = Settler(route, broker, source, store, telemetry, hand, blocked, self._tell)
        self._auditor = Auditor(route, store, self._settler, monitor)
        self._guests = Guests(
            route,
            store,
            spawn,
            Streaming(route.name, codec, broker, chunk_outlet),
            observer,
            self._gate,
            self._settler,
            hand,
            self._replay,
            monitor,
            letters,
            self._coming_keys,
        )
        self._pace = RunPace(codec.kind, route.batch.run_s)
        self._planner = Planner(route, codec, store, letters, hand, is_alone=is_alone)
        self._retrying = Retrying(route, codec, store, self._effects, letters, self._settler, hand)

    async def run(self) -> None:
        """Process deliveries until `stop` is called and all that was taken is settled.

        Raises Fenced when another processor owns one of the partitions, and what else makes it impossible to
        go on; then nothing that was not settled has had an effect.
        """
        settler = asyncio.create_task(self._settler.run(), name=f"settle-{self._route.name}")
        puller = asyncio.create_task(self._pull_all(), name=f"pull-{self._route.name}")
        looking = asyncio.create_task(self._auditor.look(), name=f"look-{self._route.name}")
        draining: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({settler, puller}, return_when=asyncio.FIRST_COMPLETED)
            if not settler.done():  # what was submitted is whole, also where no more can be taken
                draining = asyncio.create_task(self._settler.drained(), name=f"drain-{self._route.name}")
                await asyncio.wait({settler, draining}, return_when=asyncio.FIRST_COMPLETED)
            if settler.done():
                settler.result()
            puller.result()
            await self._store.release()
        finally:
            self._settler.close()
            tasks = [task for task in (puller, settler, looking, draining) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._auditor.leave(is_fenced=isinstance(_error_of(settler), Fenced))
            self._telemetry.ended()
            await self._guests.close()

    async def process(self, deliveries: Sequence[Delivery]) -> Sequence[Sequence[Delivery]]:
        """Take deliveries through the guest and hand their effects over to be settled.

        This is the path of every message: plan, load contexts, run, decide, settle. A batch that fails is
        split around the group that failed, or halved where that is not known; a message that fails alone is
        judged: tried again, kept for later, given up or dead-lettered. What is to be processed next, before
        anything else, is returned.
        """
        batch = self._planner.plan(deliveries)
        await self._source.ack(batch.done)
        if not batch.moves:  # nothing of it is ours, or to be done
            return ()
        await self._announce(batch)
        outcome = await self._guests.run(batch)
        self._pace.took(batch.deliveries, outcome.wall_s)
        effects = self._effects_of(batch, outcome)
        if isinstance(effects, Effects):
            for key, delivery in batch.followers:
                self._hand.waiting.follow(key, delivery)
            self._replay.settled(batch.groups, batch.members)
            await self._settler.submit(effects)
            return ()
        if isinstance(outcome, Ran):
            await self._guests.undo()  # the guest has kept what will not be committed
        if self._is_waited_for(batch, effects):
            self._replay.failed(batch.groups, batch.members)
            self._tell(RunRecord.of(batch.deliveries, outcome, effects))
            return [deliveries]
        if len(deliveries) > 1:
            self._tell(RunRecord.of(batch.deliveries, outcome, effects))
            failed = outcome.group if isinstance(outcome, Failed) else None
            return list(batch.split(deliveries, failed, self._planner.place))
        is_again = await self._judge(batch, outcome, effects, self._hand.attempt(deliveries[0]))
        return [deliveries] if is_again else ()

    def _effects_of(self, batch: Batch, outcome: Outcome) -> Effects | Failure:
        """What a run leaves behind, where that can be one commit. Otherwise the audit gets of it that it was
        dropped, in a later one.
        """
        try:
            effects = self._effects.run(batch, outcome, self._hand.tries)
        except Exception:  # a wall: it takes apart what a message and a guest hold
            effects = fault_of_ours("the effects of a run were made", self._route.name)
        audit = self._auditor.of(batch, outcome, effects)
        if isinstance(effects, Effects):
            effects.audit = audit
            effects.scattered = self._store.scattered(effects.contexts)
            misfit = self._effects.misfit(effects)
            if misfit is None:
                return effects
            self._settler.weigh(effects)
            effects = misfit
        self._auditor.drop(audit, effects)
        return effects

    def _is_waited_for(self, batch: Batch, failure: Failure) -> bool:
        """Whether a run failed only because a budget is used up that is waited for: it is then no try.

        Once for each message: what needs more than a whole window has would be run for ever.
        """
        if failure.code != "E332" or not self._gate.is_waiting:
            return False
        new = {delivery.sequence for delivery in batch.deliveries} - self._hand.waited
        self._hand.waited |= new
        return bool(new)

    def _tell(self, record: RunRecord) -> None:
        """Hand the record of a run over; nothing of the run can change any more."""
        for read in self._readers:
            read(record)

    async def _judge(self, batch: Batch, outcome: Outcome, failure: Failure, attempt: int) -> bool:
        """Decide about the one message of a batch that failed, and make it so; whether to try it at once."""
        delivery = batch.deliveries[0]
        self._replay.failed(batch.groups, batch.members)
        decision = self._retrying.decide(delivery, failure, attempt, is_stopping=self._gate.is_stopping)
        if isinstance(decision, DeadLetter | Drop):
            self._replay.settled(batch.groups, batch.members)
        record = RunRecord.of(batch.deliveries, outcome, failure)
        self._tell(replace(record, attempt=attempt, decision=decision))
        await self._retrying.carry_out(decision, batch, attempt)
        return isinstance(decision, RunAgain)

    async def say(self, what: str, more: Mapping[str, str] | None = None) -> None:
        """Tell listeners what becomes of the whole route; no message's fate depends on it."""
        milestone = self._effects.milestone(what, more or {})
        if milestone is not None:
            with contextlib.suppress(Unknown, Again, ApiError):
                await self._broker.publish_stored(milestone)

    def stop(self) -> None:
        """Take no more deliveries; `run` returns when those in hand are settled."""
        self._gate.stop()

    async def rest(self) -> None:
        """Return when all that was taken is settled and no message waits for another try."""
        await self._settler.settled_and(lambda: not (self._hand.waiting or self._due))

    def accept_due(self, kept: ParkedMessage) -> None:
        """Process a message that is due, beside the input; one that was given before is ignored."""
        self._due.accept(kept)

    def check_due(self) -> None:
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
            self._hand.waiting.block(key, now_s())
        stopping = asyncio.create_task(self._gate.stopping(), name="stop")
        arriving = asyncio.create_task(self._due.arrived.wait(), name="due")
        taking: asyncio.Task[list[Delivery]] | None = None
        try:
            while not self._gate.is_stopping:
                if arriving.done():
                    self._due.arrived.clear()
                    arriving = asyncio.create_task(self._due.arrived.wait(), name="due")
                await self._run_waiting(now_s())
                if taking is None and not self._is_held_up:
                    taking = asyncio.create_task(
                        self._source.take(self._settler.run_limit, self._route.batch.max_bytes)
                    )
                waits_s = self._hand.waiting.next_s()
                timeout_s = None if waits_s is None else max(0.0, waits_s - now_s())
                if self._due and not self._is_held_up:
                    timeout_s = 0.0  # what came in the input gets its turn, too
                tasks = {stopping, arriving, *([taking] if taking is not None else [])}
                await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if self._gate.is_stopping:
                    return  # what was taken in this moment is not in hand yet: the next start reads it
                if taking is not None and taking.done():
                    deliveries, taking = await self._filled(taking.result()), None
                    self._telemetry.received(len(deliveries))
                    await self._run_new(deliveries)
                    await self._catch_up_position()
        except GivenBack:
            return
        finally:
            ending = [stopping, arriving, *([taking] if taking is not None else [])]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _filled(self, deliveries: list[Delivery]) -> list[Delivery]:
        """A batch and what comes for it while a commit is under way: to wait for that costs no latency."""
        batch = self._route.batch
        count, size = self._settler.run_limit, batch.max_bytes
        if not self._settler.is_settling or not batch.max_wait_ms or len(deliveries) >= count:
            return deliveries
        await self._settler.settled_within(batch.max_wait_ms / 1000)
        size -= sum(len(delivery.payload) for delivery in deliveries)
        if not self._source.waiting or size <= 0:
            return deliveries
        return deliveries + await self._source.take(count - len(deliveries), size)

    def _coming_keys(self) -> Iterator[str]:
        """The keys of what the next run gets, as far as it is here."""
        return (key_of(delivery, self._codec) for delivery in self._source.peek(self._settler.run_limit))

    @property
    def _is_held_up(self) -> bool:
        """Whether nothing new can be run: the one key waits, or too much is held behind those that do."""
        return self._hand.waiting.is_full or (not self._route.is_keyed and bool(self._hand.waiting))

    async def _run_waiting(self, now_s: float) -> None:
        """Run some of what is due beside the input, and what waited and may be tried now."""
        if self._due and not self._is_held_up:
            due = await self._due.take(self._settler.run_limit, self._route.batch.max_bytes)
            if not due:
                await self._settler.reconsider()  # somebody may wait for that
            self._hand.tries |= {kept.delivery.sequence: kept.tries for kept in due}
            await self._admit([kept.delivery for kept in due])
        for key in list(self._hand.waiting.due(now_s)):
            if self._gate.is_stopping:
                return
            if self._hand.waiting.is_blocked(key):
                await self._retrying.try_blocked(key, self._settler.run_limit, self._admit)
            else:
                first, *others = self._hand.waiting.take(key)
                await self._admit([first])
                if others:
                    await self._admit(others)

    async def _run_new(self, deliveries: Sequence[Delivery]) -> None:
        """Process new deliveries; alone, and written down before, those that may end the whole process."""
        if not self._suspects and not self._unsure:
            await self._admit(deliveries)
            return
        together: list[Delivery] = []
        for delivery in deliveries:
            partition = self._planner.place(delivery)
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

    async def _catch_up_position(self) -> None:
        """Move positions on that the stream has left far behind, because what it brought was for others."""
        taken = self._source.taken
        if taken - self._settler.submitted > STALE_POSITIONS:
            await self._settler.submit(Effects(moves={min(self._store.owned): Move(taken)}))

    async def _process_carefully(self, delivery: Delivery) -> None:
        if self._gate.is_stopping:
            raise GivenBack  # it has waited for another lane's message to end
        tries = self._hand.tries.get(delivery.sequence, 0)
        batch = self._planner.plan([delivery])
        if not batch.groups:
            await self._admit([delivery])
        elif tries >= self._route.retry.attempts:
            failure = Failure("E314", f"the processor ended {tries} times while it worked on this message")
            await self._judge(batch, Ran(), failure, tries)
        else:
            partition = batch.partitions[delivery.sequence]
            self._hand.tries.setdefault(delivery.sequence, tries)
            self._survived[delivery.sequence] = tries
            moves = {partition: Move(delivery.sequence, opened={delivery.sequence: tries + 1})}
            await self._settler.submit(Effects(moves=moves))
            await self._settler.settled()
            await self._admit([delivery])
            await self._settler.settled()
            self._survived.pop(delivery.sequence, None)

    async def _admit(self, deliveries: Sequence[Delivery]) -> None:
        """Process deliveries in order, and what is left of each batch before the next.

        As many at a time as the breaker lets through: all; none while it is open; then one. Where a run may
        take only so long, as many as that allows, and none any more once the route is to stop.
        """
        self._hand.coming = coming = [deliveries]
        while coming:
            part = coming.pop()
            if not part:
                continue
            if self._pace.is_bounded and self._gate.is_stopping:
                raise GivenBack  # the next start reads it again
            await self._gate.let_through()
            room = 1 if self._gate.is_narrow else self._pace.room(part)
            if room < len(part):
                coming.append(part[room:])
                part = part[:room]
            coming += reversed(await self.process(part))
            self._gate.tried()

    async def _announce(self, batch: Batch) -> None:
        """Say that messages are taken up, once for each, however often it is tried."""
        for members in batch.members if self._codec.alone else ():
            if members[0].sequence in self._hand.announced:
                continue
            self._hand.announced.add(members[0].sequence)
            for publication in self._codec.started(members[0]):
                await self._broker.publish(
                    Outgoing(publication.subject, publication.payload, publication.headers)
                )


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
