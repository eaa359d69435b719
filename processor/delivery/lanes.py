"""The lanes of one route in one process: workers side by side, each with its partitions and its guest.

`service` makes the lanes of a route when it starts, and stops them. A route has one reader and one breaker
in a process, however many lanes it has; with one lane, its worker takes from the reader itself.

What must stay true:
- A partition has one lane, so that the messages of a key are processed in order.
- Lanes live and die together: when one cannot go on, the others settle what they have in hand and end, and
  the route's supervisor hears of it once.
- A lane that is slow may hold the reader up, and with it the other lanes; it never lets memory grow.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from processor.context.parked import ParkedMessage
from processor.context.store import STALE_POSITIONS, ContextStore
from processor.delivery.codec import Codec, codec_for, key_of
from processor.delivery.effects import Outlet
from processor.delivery.runner import BatchRunner
from processor.delivery.source import Source
from processor.delivery.worker import Shared, Worker
from processor.jetstream import Broker, Reader
from processor.model import Delivery, Lag
from processor.route import Route
from processor.telemetry import RouteTelemetry

# What may wait in memory for a lane, on average: one that is slow gets more when the others are idle.
ROOM = 2000
ROOM_BYTES = 8 << 20
_AT_ONCE = 1000
_AT_ONCE_BYTES = 4 << 20
_LOOK_EVERY = STALE_POSITIONS // 10


class Lanes:
    """Everything that runs one route in this process, from its claim to its release."""

    def __init__(
        self,
        route: Route,
        broker: Broker,
        reader: Reader,
        store: ContextStore,
        spawn: Callable[..., Awaitable[BatchRunner]],
        outlets: Mapping[str, Outlet],
        telemetry: RouteTelemetry,
        blocked: Callable[[str | None], None],
        shared: Shared,
        codec: Callable[[Route], Codec] = codec_for,
    ) -> None:
        """`store` has claimed the partitions, and `reader` reads from where they begin. `spawn` makes a guest
        whose calls `perform` makes; `codec` makes the codec of each worker.
        """
        self._route = route
        self._broker = broker
        self._reader = reader
        self._telemetry = telemetry
        self._blocked = blocked
        self._budgets = shared.governor.budgets
        self._unannounced = store.unannounced
        self._refusals: dict[int, str] = {}
        owned = sorted(store.owned)
        count = min(route.concurrency, len(owned))
        shares = [owned[number::count] for number in range(count)]
        self._dealer: Dealer | None = None
        sources: Sequence[Source] = [reader]
        if count > 1:
            dealing = codec(route)
            self._dealer = Dealer(reader, shares, lambda d: store.place(d, key_of(d, dealing)))
            sources = self._dealer.lanes
        self._workers = []
        for number, (source, share) in enumerate(zip(sources, shares, strict=True)):
            refused = partial(self._refused, number)
            monitor = shared.governor.lane(number)
            self._workers.append(
                Worker(
                    route,
                    codec(route),
                    broker,
                    source,
                    store.part(number, share, refused),
                    partial(spawn, perform=monitor.perform),
                    outlets,
                    telemetry.lane(number),
                    refused,
                    shared,
                    monitor,
                )
            )

    def __len__(self) -> int:
        return len(self._workers)

    async def run(self) -> None:
        """Run until `stop` is called and all that was taken is settled.

        Raises what makes it impossible for a lane to go on, such as Fenced, after the others have ended.
        """
        tasks: list[asyncio.Task[None]] = []
        try:
            for marker in self._unannounced:
                await self._broker.publish(marker)
            await self._workers[0].say("started")
            for number, worker in enumerate(self._workers):
                tasks.append(asyncio.create_task(worker.run(), name=f"lane-{self._route.name}-{number}"))
            working = set(tasks)
            if self._dealer is not None:
                tasks.append(asyncio.create_task(self._dealer.run(), name=f"deal-{self._route.name}"))
            if self._budgets.are_kept:
                keep = self._budgets.keep(self._workers[0].say)
                tasks.append(asyncio.create_task(keep, name=f"budgets-{self._route.name}"))
            await self._until_ended(working, set(tasks))
            await self._workers[0].say("stopped")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._telemetry.breaker_closed()
            await self._reader.close()

    async def _until_ended(self, working: set[asyncio.Task[None]], going: set[asyncio.Task[None]]) -> None:
        """Return when none of `working` is going. When one of `going` ends, all workers are to; its error is
        raised.
        """
        error: BaseException | None = None
        while working & going:
            done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            for task in done:
                error = error or task.exception()
        if error is not None:
            raise error

    def stop(self) -> None:
        """Take no more deliveries; `run` returns when those in hand are settled."""
        for worker in self._workers:
            worker.stop()

    def accept_due(self, kept: ParkedMessage, partition: int) -> None:
        """Process a message of a partition that is due, beside the input, if the partition is ours."""
        for worker in self._workers:
            if worker.owns(partition):
                worker.accept_due(kept)

    def is_overtaken(self, epochs: Mapping[int, int]) -> bool:
        """Whether one of our partitions has one of these epochs by now: what we hold of it is old."""
        return any(worker.is_overtaken(epochs) for worker in self._workers)

    def check_due(self) -> None:
        """Process what is due in the app's stream, and was given to nobody, too."""
        for worker in self._workers:
            worker.check_due()

    async def measure(self) -> tuple[Lag, bool]:
        """What waits for the route, in the stream and here, and whether the server was asked for it.

        Raises as `Reader.measure`.
        """
        has_asked = await self._reader.measure()
        messages, oldest = self._reader.lag, [self._reader.oldest_s]
        if self._dealer is not None:
            messages += self._dealer.waiting
            oldest += [lane.oldest_s for lane in self._dealer.lanes]
        return Lag(messages, min((at_s for at_s in oldest if at_s is not None), default=None)), has_asked

    @property
    def is_idle(self) -> bool:
        """Whether `measure` would say, without asking the server, that nothing waits."""
        return self._reader.is_idle and (self._dealer is None or not self._dealer.waiting)

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` once, as soon as `is_idle` may not be so any more."""
        self._reader.on_change(changed)

    @property
    def oldest(self) -> Delivery | None:
        """The first message that waits here to be taken, if one does."""
        return next(iter(self._reader.peek(1)), None)

    @property
    def is_silent(self) -> bool:
        """Whether the input stream has not been heard of for longer than its heartbeats allow."""
        return self._reader.is_silent

    def _refused(self, lane: int, why: str | None) -> None:
        """A lane's commits are refused, or not any more: the route is blocked while those of any lane are."""
        if why is None:
            self._refusals.pop(lane, None)
        else:
            self._refusals[lane] = why
        self._blocked(next(iter(self._refusals.values()), None))


class Dealer:
    """Deals the deliveries of a reader out to lanes, by partition, and passes by what belongs to others."""

    def __init__(
        self, reader: Reader, shares: Sequence[Sequence[int]], partition: Callable[[Delivery], int]
    ) -> None:
        self.reader = reader
        self.lanes = [Lane(self) for _ in shares]
        self._by_partition = {
            number: lane for lane, share in zip(self.lanes, shares, strict=True) for number in share
        }
        self._partition = partition
        self._messages = 0
        self._bytes = 0
        self._changed = asyncio.Event()
        self.dealt = reader.taken  # up to this sequence everything is in its lane

    async def run(self) -> None:
        """Deal for ever. Raises BrokerError E401 when the stream itself is gone."""
        looked = self.dealt
        while True:
            for delivery in await self.reader.take(_AT_ONCE, _AT_ONCE_BYTES):
                lane = self._by_partition.get(self._partition(delivery))
                if lane is not None:
                    self._messages += 1
                    self._bytes += len(delivery.payload)
                    lane.put(delivery)
            self.dealt = self.reader.taken
            if self.dealt - looked > _LOOK_EVERY:
                looked = self.dealt
                for lane in self.lanes:
                    lane.look()
            while not self._has_room:
                self._changed.clear()
                await self._changed.wait()

    @property
    def _has_room(self) -> bool:
        room = len(self.lanes)
        return self._messages < room * ROOM and self._bytes < room * ROOM_BYTES

    @property
    def waiting(self) -> int:
        """Messages that no lane has taken yet."""
        return self._messages

    def took(self, messages: int, size: int) -> None:
        """A lane took so many messages, and bytes, away."""
        self._messages -= messages
        self._bytes -= size
        self._changed.set()


class Lane:
    """The deliveries of some partitions, in order: what one of several workers takes from."""

    def __init__(self, dealer: Dealer) -> None:
        self._dealer = dealer
        self._waiting: deque[Delivery] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._told = dealer.reader.taken  # up to where the worker knows that the stream has gone on

    @property
    def waiting(self) -> int:
        """Messages that `take` would return at once."""
        return len(self._waiting)

    @property
    def oldest_s(self) -> float | None:
        """When the first message that `take` would return was stored, seconds since 1970."""
        return self._waiting[0].timestamp_s if self._waiting else None

    @property
    def taken(self) -> int:
        """Up to this sequence everything that is for this lane was taken."""
        return self._waiting[0].sequence - 1 if self._waiting else self._dealer.dealt

    def peek(self, max_messages: int) -> list[Delivery]:
        """As `Reader.peek`."""
        return list(itertools.islice(self._waiting, max_messages))

    async def take(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        """The next messages, as `Reader.take`.

        None where there were many for others and none for this lane: then `taken` has gone on by more than
        STALE_POSITIONS, and the positions of its partitions should.
        """
        while not self._waiting and not self._is_passed:
            await self._wait()
        taken: list[Delivery] = []
        size = 0
        while self._waiting and len(taken) < max_messages:
            next_bytes = len(self._waiting[0].payload)
            if taken and size + next_bytes > max_bytes:
                break
            size += next_bytes
            taken.append(self._waiting.popleft())
        self._bytes -= size
        self._told = self.taken
        self._dealer.took(len(taken), size)
        return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """As `Reader.ack`."""
        await self._dealer.reader.ack(deliveries)

    def put(self, delivery: Delivery) -> None:
        """One more for this lane."""
        self._waiting.append(delivery)
        self._bytes += len(delivery.payload)
        self._arrived.set()

    def look(self) -> None:
        """Let the worker know when the stream has gone on far without it."""
        if self._is_passed:
            self._arrived.set()

    @property
    def _is_passed(self) -> bool:
        return self._dealer.dealt - self._told > STALE_POSITIONS

    async def _wait(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()
