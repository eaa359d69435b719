"""The life of a message: pull, load the context, run the guest, decide, commit, observe.

A worker owns one route. `service` starts it and stops it; it never decides how user code is confined
(`sandbox`), how bytes move (`jetstream`) or where contexts lie (`context`).

What must stay true:
- A delivery is settled exactly once, in `settle`, and nothing of a run is visible before its position is.
- Runs are settled in the order in which they ran. A guest that died takes unsettled contexts with it, so
  everything that ran before is committed first and contexts are then loaded from there.
- A batch that fails is halved until the message that makes it fail is alone; only that one is judged.
- While the breaker is open nothing runs, nothing is judged, and what is in hand waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat

from processor.breaker import DEATHS, Breaker
from processor.codec import Codec, Unreadable
from processor.config import Route
from processor.context import ContextStore
from processor.effects import COMMIT_BUDGET, Batch, Effects, EffectsOf, Outlet
from processor.errors import BrokerError, Faults, GuestError, ProcessorError
from processor.jetstream import Again, ApiError, Broker, Message, Reader, Unknown
from processor.model import (
    Ack,
    DeadLetter,
    Delivery,
    Failed,
    Failure,
    Group,
    LogLine,
    Outcome,
    Ran,
    Retry,
    decide,
)
from processor.sandbox.host import Guest
from processor.telemetry import RouteTelemetry

log = logging.getLogger("processor")
user_log = logging.getLogger("processor.runnable")

_REFUSED_PAUSE_S = 2.0
_RESPAWN_PAUSES_S = (0.02, 0.1, 0.5)
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _GivenBack(Exception):
    """A message that waits, for its next try or the breaker, is left to the next start: the route stops."""


class Worker:
    """Runs one route until it is stopped, fenced, or cannot go on."""

    def __init__(
        self,
        route: Route,
        codec: Codec,
        broker: Broker,
        reader: Reader,
        store: ContextStore,
        spawn: Callable[[], Awaitable[Guest]],
        outlets: Mapping[str, Outlet],
        telemetry: RouteTelemetry,
        blocked: Callable[[str | None], None],
    ) -> None:
        self._route = route
        self._codec = codec
        self._broker = broker
        self._reader = reader
        self._store = store
        self._spawn = spawn
        self._telemetry = telemetry
        self._blocked = blocked  # called with why commits are refused, and with None when they are not
        self._effects_of = EffectsOf(route, codec, outlets, broker.max_payload)
        self._is_alone = (
            codec.alone or route.mode == "stream" or any(outlet.foreign for outlet in outlets.values())
        )
        limits, breaker = route.limits, route.breaker
        self._breaker = Breaker(
            breaker.deaths,
            # Guests that use up their time die slowly; a window too short for that would never see them all.
            max(breaker.window_s, 1.2 * breaker.deaths * limits.wall_s),
            breaker.pause_s,
        )
        self._guest: Guest | None = None
        self._resident: OrderedDict[str, None] = OrderedDict()  # keys whose contexts the guest holds
        self._pending = Effects()
        self._settling: Effects | None = None
        self._changed = asyncio.Condition()
        self._stop = asyncio.Event()
        self._weight = 1.0  # messages of a commit that one input message needs, as seen lately

    async def run(self) -> None:
        """Process deliveries until `stop` is called and all that was taken is settled.

        Raises Fenced when another processor owns the route, and what else makes it impossible to go on; then
        nothing that was not settled has had an effect.
        """
        for marker in self._store.unannounced:
            await self._broker.publish(marker)
        await self._say("started")
        settler = asyncio.create_task(self._settle_all(), name=f"settle-{self._route.name}")
        puller = asyncio.create_task(self._pull_all(), name=f"pull-{self._route.name}")
        draining: asyncio.Task[None] | None = None
        try:
            await asyncio.wait({settler, puller}, return_when=asyncio.FIRST_COMPLETED)
            if puller.done() and not settler.done():
                puller.result()
                draining = asyncio.create_task(self._settled(), name=f"drain-{self._route.name}")
                await asyncio.wait({settler, draining}, return_when=asyncio.FIRST_COMPLETED)
            if settler.done():
                settler.result()
            await self._store.catch_up()
            await self._say("stopped")
        finally:
            tasks = [task for task in (puller, settler, draining) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._telemetry.breaker_closed()
            await self._reader.close()
            if self._guest is not None:
                await self._guest.close()

    @property
    def is_silent(self) -> bool:
        """Whether the input stream has not been heard of for longer than its heartbeats allow.

        Not so while the breaker is open: a reader that is full asks for nothing.
        """
        return self._reader.is_silent and not self._breaker.is_open

    async def _say(self, what: str, **more: str) -> None:
        """Tell listeners what becomes of the route; no message's fate depends on it."""
        milestone = self._effects_of.milestone(what, more)
        if milestone is not None:
            with contextlib.suppress(Unknown, Again, ApiError):
                await self._broker.publish_stored(milestone)

    def stop(self) -> None:
        """Take no more deliveries; `run` returns when those in hand are settled."""
        self._stop.set()

    async def _pull_all(self) -> None:
        stopped = asyncio.create_task(self._stop.wait(), name=f"stop-{self._route.name}")
        taking: asyncio.Task[list[Delivery]] | None = None
        try:
            while True:
                # While a commit is under way, waiting for a fuller batch costs no latency.
                wait_s = self._route.batch.max_wait_ms / 1000 if self._settling is not None else 0.0
                taking = asyncio.create_task(
                    self._reader.take(self._batch_limit(), self._route.batch.max_bytes, wait_s)
                )
                await asyncio.wait({taking, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if self._stop.is_set():
                    return  # what was taken in this moment is not in hand yet: the next start reads it
                deliveries = taking.result()
                self._telemetry.received(len(deliveries))
                await self._admit(deliveries)
        except _GivenBack:
            return
        finally:
            ending = [task for task in (stopped, taking) if task is not None]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _admit(
        self, deliveries: Sequence[Delivery], attempt: int = 1, *, is_first: bool = True
    ) -> None:
        """Process as many at a time as the breaker lets through: all; none while it is open; then one."""
        while deliveries:
            await self._pause(self._breaker.wait_s(self._now_s()))
            count = 1 if self._breaker.is_open else len(deliveries)
            await self.process(deliveries[:count], attempt, is_first=is_first)
            deliveries = deliveries[count:]

    async def process(
        self, deliveries: Sequence[Delivery], attempt: int = 1, *, is_first: bool = True
    ) -> None:
        """Take deliveries through the guest and hand their effects over to be settled.

        This is the path of every message: plan, load contexts, run, decide, settle. A batch that fails is
        halved; a message that fails alone is tried again or becomes a dead letter.
        """
        batch = self._plan(deliveries)
        await self._reader.ack(batch.done)
        if not batch.deliveries:
            return
        if is_first:
            await self._announce(batch)
        outcome = await self._run(batch, attempt)
        effects = self._effects_of.run(batch, outcome, attempt)
        if isinstance(effects, Effects) and (misfit := self._effects_of.misfit(effects)) is not None:
            self._weight = max(self._weight, effects.weight)
            effects = misfit
        if isinstance(outcome, Ran) and isinstance(effects, Failure):
            await self._undo()  # the guest has kept what will not be committed
        if isinstance(effects, Effects):
            await self._submit(effects)
        elif len(deliveries) > 1:
            middle = len(deliveries) // 2
            await self._admit(deliveries[:middle], is_first=False)
            await self._admit(deliveries[middle:], is_first=False)
        else:
            await self._judge(batch, effects, attempt)

    async def _judge(self, batch: Batch, failure: Failure, attempt: int) -> None:
        delivery = batch.deliveries[0]
        self._telemetry.failed(failure.code)
        match decide(failure, attempt, self._route.retry.attempts):
            case Retry(after_s):
                log.debug(
                    "attempt failed: %s %s",
                    failure.code,
                    failure.text,
                    extra=self._where(delivery, attempt=attempt, code=failure.code),
                )
                await self._pause(after_s)
                await self._admit(batch.deliveries, attempt + 1, is_first=False)
            case DeadLetter():
                alone = Batch(batch.deliveries, rejected=[(delivery, failure)], positions=batch.positions)
                effects = self._effects_of.run(alone, Ran(), attempt)
                assert isinstance(effects, Effects)
                await self._submit(effects)
            case Ack():
                raise AssertionError("a failure is never acknowledged")

    async def _pause(self, seconds: float) -> None:
        """Let that time pass. Raises _GivenBack as soon as the route is to stop."""
        if seconds <= 0:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
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
                document = self._codec.read(delivery)
            except Unreadable as err:
                unreadable = err.failure
            partition = self._store.partition(key)
            if self._store.is_done(partition, delivery.sequence):
                batch.done.append(delivery)
                continue
            batch.deliveries.append(delivery)
            batch.positions[partition] = delivery.sequence
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

    async def _announce(self, batch: Batch) -> None:
        for members in batch.members if self._codec.alone else ():
            for publication in self._codec.started(members[0]):
                await self._broker.publish(
                    Message(publication.subject, publication.payload, publication.headers)
                )

    # contexts and the guest

    async def _run(self, batch: Batch, attempt: int) -> Outcome:
        if not batch.groups:
            return Ran()
        guest = await self._living_guest()
        keys = dict.fromkeys(group.key for group in batch.groups)
        missing = [key for key in keys if key not in self._resident]
        contexts = await self._store.load(missing)
        groups = [replace(g, context=contexts.pop(g.key, None)) for g in batch.groups]
        for key in keys:
            self._resident[key] = None
            self._resident.move_to_end(key)
        forget = self._evicted(keys)
        started_s = time.perf_counter()
        if self._route.mode == "stream":
            outcome = await self._stream(guest, batch, groups[0], attempt, forget)
        else:
            template = self._route.output_template
            fields = template.fields if template else ()
            outcome = await guest.run(groups, fields=fields, forget=forget)
        self._telemetry.processed(len(batch.deliveries), time.perf_counter() - started_s)
        self._log_lines(outcome.logs)
        failure = outcome.failure if isinstance(outcome, Failed) else None
        if failure is None or not failure.lethal:
            await self._lived()
        elif failure.code in DEATHS:
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

    async def _living_guest(self) -> Guest:
        if self._guest is not None and self._guest.alive:
            return self._guest
        # Contexts died with the guest: they are what is committed once everything before is.
        await self._settled()
        if self._guest is not None:
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
            await self._pause(max(next(pauses_s), self._breaker.wait_s(self._now_s())))

    # the breaker

    async def _died(self, code: str, text: str, message: int | None) -> None:
        """A guest died, or did not come to live; `message` is the first of those that it was given."""
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
            await self._say("breaker_opened", code=code, text=text)

    async def _lived(self) -> None:
        if self._breaker.lived():
            self._telemetry.breaker_closed()
            log.info("a guest lives again: the breaker is closed", extra=self._where())
            await self._say("breaker_closed")

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
        """Messages that one run may take so that what it leaves behind fits one commit."""
        if self._route.mode == "stream":
            return 1
        room = COMMIT_BUDGET - self._route.partitions
        return max(1, min(self._route.batch.max_messages, int(room / self._weight)))

    async def _stream(
        self, guest: Guest, batch: Batch, group: Group, attempt: int, forget: Sequence[str]
    ) -> Outcome:
        """Run one message of a stream-mode route; what it yields goes to its listeners at once."""
        delivery = batch.members[0][0]
        try:
            subject = self._codec.chunk_subject(delivery, group.key, group.documents[0])
        except ProcessorError as err:
            return Failed(Failure(err.code, err.what))
        headers = self._stream_headers(delivery, attempt)
        number = 0

        async def emit(chunk: bytes) -> None:
            nonlocal number
            number += 1
            if subject is not None:
                chunk_headers = {**headers, "Processor-Chunk": str(number)}
                await self._broker.publish(Message(subject, chunk, chunk_headers))

        for opening in self._codec.opening(group.documents[0]):
            await emit(opening)
        try:
            outcome = await guest.stream(group, emit, forget=forget)
        except BrokerError as err:  # a chunk that no message can carry; nobody knows how far the guest is
            await guest.close()
            outcome = Failed(Failure("E307", f"a chunk cannot be sent: {err.what}", lethal=True))
        if subject is not None:
            failure = outcome.failure if isinstance(outcome, Failed) else None
            ending = "end" if failure is None else "error"
            marker = Message(subject, self._codec.marker(failure), {**headers, "Processor-Stream": ending})
            if failure is None:
                batch.markers.append(marker)
            else:
                await self._broker.publish(marker)
        return outcome

    def _stream_headers(self, delivery: Delivery, attempt: int) -> dict[str, str]:
        return {
            "Processor-Route": self._route.name,
            "Processor-Sequence": str(delivery.sequence),
            "Processor-Attempt": str(attempt),
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
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._pending.deliveries or self._pending.size + effects.size <= COMMIT_BUDGET
            )
            self._pending.add(effects)
            self._changed.notify_all()

    async def _settled(self) -> None:
        """Return when everything that was submitted is settled."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._pending.deliveries and self._settling is None)

    async def _settle_all(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._pending.deliveries))
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
            effects.stored, effects.contexts, effects.positions, live=effects.markers
        )
        self._telemetry.committed(len(effects.deliveries), time.perf_counter() - started_s, size)
        with contextlib.suppress(Unknown):  # nobody can be listening
            for message in effects.live:
                await self._broker.publish(message)
        await self._reader.ack(effects.deliveries)
        self._observe(effects)

    async def _publish_foreign(self, messages: Sequence[Message]) -> None:
        for message in messages:
            while True:
                await self._broker.connected()
                try:
                    await self._broker.publish_stored(message)
                    break
                except (Unknown, Again):
                    await asyncio.sleep(0.1)
                except ApiError as err:
                    self._blocked(f"E406 {message.subject} is not stored: {err.description}")
                    await asyncio.sleep(_REFUSED_PAUSE_S)
        if messages:
            self._blocked(None)

    def _observe(self, effects: Effects) -> None:
        telemetry, now_s = self._telemetry, time.time()
        telemetry.end_to_end([max(0.0, now_s - d.timestamp_s) for d in effects.deliveries])
        telemetry.outputs(effects.outputs)
        telemetry.events(effects.events)
        for code in effects.dead_letters:
            telemetry.dead_lettered(code)
        telemetry.context(self._store.bytes_held)
        telemetry.lag(self._reader.lag)
