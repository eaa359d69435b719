"""The guest of one worker: that there is one, which contexts it holds, and what a run in it comes to.

A guest keeps the contexts of the keys that it has seen, up to a number. Contexts that the next batch needs
are read while it runs this one.

What must stay true:
- A guest that died takes unsettled contexts with it: everything that ran before is committed first, and
  contexts are then loaded from there.
- A context is dropped from the guest only when it has no unsettled changes.
- A guest that dies, or cannot be started, is told to the gate, and so is one that lives on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from types import MappingProxyType

from processor.capability.monitor import Monitor, RunScope
from processor.context.parked import ParkedMessages
from processor.context.position import UNREADABLE, no_context
from processor.delivery.breaker import DEATHS
from processor.delivery.chunks import Streaming
from processor.delivery.effects import Batch
from processor.delivery.gate import Gate
from processor.delivery.hand import Hand
from processor.delivery.observe import Observer
from processor.delivery.replay import Replay
from processor.delivery.runner import BatchRunner
from processor.delivery.settle import Settler
from processor.delivery.store import Store
from processor.errors import Faults, GuestError
from processor.model import Failed, Failure, Group, Outcome, Ran
from processor.route import Route
from processor.sandbox.calls import Answer
from processor.sandbox.host import Guest
from processor.sandbox.messages import columns

log = logging.getLogger("processor")

_RESPAWN_PAUSES_S = (0.02, 0.1, 0.5)
NOTHING: Mapping[str, bytes] = MappingProxyType({})  # the context of a key that has none


class Guests:
    """One guest after another, each with the contexts that it needs."""

    def __init__(
        self,
        route: Route,
        store: Store,
        spawn: Callable[[], Awaitable[BatchRunner]],
        streaming: Streaming,
        observer: Observer,
        gate: Gate,
        settler: Settler,
        hand: Hand,
        replay: Replay,
        monitor: Monitor,
        letters: ParkedMessages,
        coming_keys: Callable[[], Iterable[str]],
    ) -> None:
        """`coming_keys` are those of the messages that the next run will get, as far as they are here."""
        self._route = route
        self._store = store
        self._spawn = spawn
        self._streaming = streaming
        self._observer = observer
        self._gate = gate
        self._settler = settler
        self._hand = hand
        self._replay = replay
        self._monitor = monitor
        self._letters = letters
        self._coming_keys = coming_keys
        template = route.output_template
        self._fields = template.fields if template else ()
        self._guest: BatchRunner | None = None
        self._resident: OrderedDict[str, None] = OrderedDict()  # keys whose contexts the guest holds
        # Contexts of keys that it does not hold and the next batch has; nobody changes them meanwhile.
        self._ahead: dict[str, dict[str, bytes]] = {}
        self._loading: asyncio.Task[None] | None = None

    async def run(self, batch: Batch) -> Outcome:
        """What the Runnable makes of a batch; nothing where there is nothing in it to run.

        Raises GivenBack where the route stops before a guest could be started.
        """
        if not batch.groups:
            return Ran()
        self._monitor.begin(self._scope(batch) if self._route.audit.is_on else None)
        guest = await self._living()
        keys = dict.fromkeys(group.key for group in batch.groups)
        missing = [key for key in keys if key not in self._resident]
        contexts = dict.fromkeys(missing, NOTHING) if self._route.is_stateless else await self._load(missing)
        groups = [g._replace(context=contexts.pop(g.key, None)) for g in batch.groups]
        for number, group in enumerate(groups):
            if group.context is not None and UNREADABLE in group.context.values():
                return Failed(no_context(group.key, self._route.name), group=number)
        for key in keys:
            self._resident[key] = None
            self._resident.move_to_end(key)
        forget = self._evicted(keys)
        self._load_ahead()
        calls = self._replay.calls(batch.groups, batch.members)
        try:
            outcome = await self._asked(guest, batch, groups, forget, calls.answer)
        finally:
            await self._monitor.finish()
        if calls.cut is not None:
            outcome = await self._cut(outcome, calls.cut)
        await self._look_after(batch, outcome, missing)
        return outcome

    async def _asked(
        self,
        guest: BatchRunner,
        batch: Batch,
        groups: Sequence[Group],
        forget: Sequence[str],
        answer: Answer,
    ) -> Outcome:
        messages = self._columns(batch)
        if self._route.mode != "stream":
            return await guest.run(
                groups, fields=self._fields, forget=forget, messages=messages, answer=answer
            )
        assert isinstance(guest, Guest), "only a guest sends chunks"
        attempt = self._hand.attempt(batch.members[0][0])
        return await self._streaming.run(
            guest, batch, groups[0], attempt, forget=forget, messages=messages, answer=answer
        )

    async def undo(self) -> None:
        """Take the last run back: the guest's contexts are again what is committed."""
        await self._settler.settled()
        if self._guest is not None:
            await self._guest.run((), forget=list(self._resident))
        self._store.forget(self._resident)
        self._resident.clear()

    async def close(self) -> None:
        """End the guest, and what is read for it."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if self._guest is not None:
            await self._guest.close()

    # Around a run.

    async def _cut(self, outcome: Outcome, group: int) -> Failed:
        """What becomes of a run whose calls were refused from this group on, whatever it made of that."""
        if isinstance(outcome, Failed) and outcome.failure.lethal:
            failure = outcome.failure
        else:
            failure = Failure("E323", "the batch got more bytes of answers than can be kept")
        if isinstance(outcome, Ran):
            await self.undo()
        # Its lines are said by the runs that take its place.
        return Failed(failure, group=group, calls=outcome.calls, wall_s=outcome.wall_s, cpu_s=outcome.cpu_s)

    async def _look_after(self, batch: Batch, outcome: Outcome, loaded: Sequence[str]) -> None:
        """Note how the guest came out of a run that got the contexts of the keys `loaded`."""
        failure = outcome.failure if isinstance(outcome, Failed) else None
        if failure is None or not failure.lethal:
            await self._gate.lived()
        elif failure.code in DEATHS and len(batch.deliveries) == 1:
            await self._gate.died(failure.code, failure.text, batch.deliveries[0].sequence)
        if isinstance(outcome, Failed) and not outcome.failure.lethal:
            # A context that came with the run that failed is sent again with the next, `init` included.
            for key in loaded:
                self._resident.pop(key, None)

    def _scope(self, batch: Batch) -> RunScope:
        """What the audit is told of a run."""
        sequences = [delivery.sequence for delivery in batch.deliveries]
        return RunScope(batch.home, (min(sequences), max(sequences)), self._store.announce)

    def _columns(self, batch: Batch) -> bytes:
        """What the Runnable may know of the messages of a batch; of those of the app's own, nothing."""
        if self._route.input.is_inner:
            return b""
        members = [*chain(*batch.members)]
        known = self._hand.tries
        tries = [known.get(delivery.sequence, 0) for delivery in members] if known else ()
        return columns(self._letters.as_sent(members), tries)

    # The guest.

    async def _living(self) -> BatchRunner:
        if self._guest is not None and self._guest.alive:
            return self._guest
        # Contexts died with the guest: they are what is committed once everything before is.
        await self._settler.settled()
        if self._guest is not None:
            if (why := self._guest.verdict) is not None and why.code == "E367":  # between runs: of no message
                self._observer.stopped(why, logging.WARNING)
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
                log.debug("a guest could not be started: %s", err, extra={"route": self._route.name})
                await self._gate.died("E502", str(err), None)
            await self._gate.pause(next(pauses_s))
            await self._gate.let_through()

    # Contexts.

    async def _load(self, keys: Sequence[str]) -> dict[str, Mapping[str, bytes]]:
        if self._loading is not None:
            loading, self._loading = self._loading, None
            await loading
        found = {key: self._ahead.pop(key) for key in keys if key in self._ahead}
        return {**found, **await self._store.load([key for key in keys if key not in found])}

    def _load_ahead(self) -> None:
        """Read the contexts that the next batch needs while the guest runs this one."""
        if self._route.is_stateless or not self._store.is_spread or self._loading is not None:
            return
        next_keys = {key for key in self._coming_keys() if key not in self._resident}
        self._store.forget(self._ahead.keys() - next_keys)
        self._ahead = {key: items for key, items in self._ahead.items() if key in next_keys}
        if unread := self._store.unread(next_keys - self._ahead.keys()):
            self._loading = asyncio.create_task(self._read(unread), name=f"load-{self._route.name}")

    async def _read(self, keys: Sequence[str]) -> None:
        self._ahead |= await self._store.load(keys)

    def _evicted(self, in_use: Mapping[str, None]) -> list[str]:
        """Keys that the guest must drop to stay within its number of contexts, oldest first.

        Only keys without unsettled changes: others could not be loaded again yet.
        """
        excess = len(self._resident) - self._route.contexts
        if excess <= 0:
            return []
        gone: list[str] = []
        for key in self._resident:
            if len(gone) == excess:
                break
            if key not in in_use and not self._settler.is_unsettled(key):
                gone.append(key)
        for key in gone:
            del self._resident[key]
        self._store.forget(gone)
        return gone
