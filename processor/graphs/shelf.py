"""The runs that one engine has in memory, and what it reads of them and their graphs: see `Shelf`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

import orjson

from processor.context.subjects import GraphSubjects, app_stream
from processor.graphs import runs
from processor.graphs.definition import GraphDefinition, NodeKind
from processor.graphs.plan import Plan
from processor.graphs.progress import CANCELLED, FAILED, SUCCESS, GraphRun, Message
from processor.jetstream import Again, ApiError, Broker, Stored, Unknown

log = logging.getLogger("processor")

_READS = 200  # subjects that are looked for in one request
_AGAIN_S = 0.1
_T = TypeVar("_T")


class Definitions(Protocol):
    """What is known of graphs and kinds: a `Registry`."""

    def plan(self, name: str, version: str | None = None) -> Plan | None:
        """That version of a graph, compiled; without one the newest that is valid."""

    def definition(self, name: str, version: str) -> GraphDefinition | None:
        """That version of a graph as it was written."""

    def kind(self, id: str) -> NodeKind | None:
        """The kind `namespace/Name`, where some processor or worker has it."""

    async def look(self, name: str, version: str | None = None) -> None:
        """Read what the server has of a graph now: it may be newer than what was heard of."""


class NoVersion(Exception):
    """A run is of a version of its graph that nobody has any more."""


class Shelf:
    """The runs of one engine, as they are once all that it has given to its worker is committed."""

    def __init__(self, app: str, definitions: Definitions, broker: Broker) -> None:
        self._definitions = definitions
        self._broker = broker
        self._stream = app_stream(app)
        self._subjects = GraphSubjects(app)
        self._runs: dict[str, GraphRun | None] = {}  # None where there is no context of it
        self._ended: set[str] = set()  # of those, what has ended here: its record may still be on the way

    def __getitem__(self, key: str) -> GraphRun | None:
        return self._runs.get(key)

    def has_ended(self, key: str) -> bool:
        """Whether a run has ended here, and nothing but its record is left."""
        return key in self._ended

    def put(self, key: str, run: GraphRun) -> None:
        """Hold a run that has a context."""
        self._runs[key] = run
        self._ended.discard(key)

    def end(self, key: str) -> None:
        """A run has no context any more."""
        self._runs[key] = None
        self._ended.add(key)

    def forget(self, keys: Iterable[str]) -> None:
        """Hold these no more; who asks for one again gives its context with it."""
        for key in keys:
            self._runs.pop(key, None)
            self._ended.discard(key)

    async def take(self, key: str, items: Mapping[str, bytes]) -> None:
        """Hold the run in the items of a context, or know that there is none. Raises NoVersion."""
        self.forget([key])
        if not items:
            self._runs[key] = None
            return
        graph, version = runs.plan_of(items)
        plan = await self.plan(graph, version)
        if plan is None:
            raise NoVersion(f"version {version} of graph {graph} is gone, which run {key} began with")
        self._runs[key] = runs.run_of(plan, key, items)

    async def plan(self, graph: str, version: str | None) -> Plan | None:
        """That version of a graph, compiled, wherever it is known; without one the newest that is valid."""
        plan = self._definitions.plan(graph, version)
        if plan is None:
            await self._patiently(lambda: self._definitions.look(graph, version))
            plan = self._definitions.plan(graph, version)
        return plan

    def plan_of(self, run: GraphRun) -> Plan:
        """The plan of a run that is held."""
        plan = self._definitions.plan(run.graph, run.version)
        assert plan is not None, "a run was begun, or read, with its plan"
        return plan

    async def revived(self, record: Message) -> GraphRun | None:
        """The run of a record, to be tried again; None where its graph is gone."""
        plan = await self.plan(record["graph"], record["version"] or None)
        return None if plan is None else runs.revived(plan, record)

    async def records(self, messages: Iterable[tuple[str, Message]]) -> dict[str, Message]:
        """The records of runs that have ended, of those that are not held and whose messages need them."""
        subjects: dict[str, None] = {}
        for key, message in messages:
            if self._runs.get(key) is not None:
                continue
            if message["t"] == "start" and message.get("check") and key not in self._ended:
                for state in (SUCCESS, FAILED, CANCELLED):
                    subjects[self._subjects.run(message["graph"], state.lower(), key)] = None
            elif message["t"] == "control":
                subjects[self._subjects.record(key)] = None
        found: dict[str, Message] = {}
        for stored in await self._stored(list(subjects)):
            record = orjson.loads(stored.payload)
            if record["state"] in (SUCCESS, FAILED, CANCELLED):
                found[record["run"]] = record
        return found

    async def shared(self, place: Message) -> Message:
        """What the slices of a fan-out have in common; nothing where its run has ended."""
        stored = await self._stored([self._subjects.seen(place["run"], place["n"])])
        return dict(orjson.loads(stored[0].payload)) if stored else {}

    async def _stored(self, subjects: Sequence[str]) -> list[Stored]:
        """The last messages of these subjects and patterns, but for those that are taken away."""
        found: list[Stored] = []
        for first in range(0, len(subjects), _READS):
            ask = partial(self._broker.last_of, self._stream, subjects[first : first + _READS])
            found += await self._patiently(ask)
        return [each for each in found if each.payload]

    async def _patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What the server answers, however long it does not."""
        while True:
            await self._broker.connected()
            try:
                return await ask()
            except (Unknown, Again, ApiError) as err:
                log.debug("the engine of graphs asks again: %s", err)
            await asyncio.sleep(_AGAIN_S)
