"""What one processor, or a command line, knows of the graphs and kinds of an app: as their stream has them.

`Registry` adds how they are changed. What is in the stream was written by any build, or by a stranger: a
message that says nothing known is named once in the log, and nothing else suffers by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import orjson

from processor.context.subjects import GraphSubjects, app_stream, names_of
from processor.graphs.definition import GraphDefinition, NodeKind
from processor.graphs.plan import Plan, compile_plan
from processor.graphs.versions import GraphHead
from processor.jetstream import Broker, Stored

log = logging.getLogger("processor")

_OLD_VERSIONS = 1000  # that are kept in memory beside the valid ones


class KnownGraphs:
    """The graphs and kinds of an app, as far as this process has read them."""

    def __init__(self, broker: Broker, app: str, changed: Callable[[str], None] = lambda _: None) -> None:
        """`changed` is called with the id of each kind that becomes known, is another, or goes."""
        self._broker = broker
        self._app = app
        self._stream = app_stream(app)
        self._subjects = GraphSubjects(app)
        self._changed = changed
        self._heads: dict[str, GraphHead] = {}
        self._kinds: dict[str, NodeKind] = {}
        self._definitions: dict[tuple[str, str], GraphDefinition] = {}
        self._plans: dict[tuple[str, str], Plan] = {}
        self._unreadable: set[str] = set()  # subjects whose messages were named in the log
        self._due = asyncio.Event()  # what is pending is to be looked at again

    @property
    def heads(self) -> Mapping[str, GraphHead]:
        """What is said of each graph, by name."""
        return self._heads

    @property
    def kinds(self) -> Mapping[str, NodeKind]:
        """All kinds by their ids, `namespace/Name`."""
        return self._kinds

    def kind(self, id: str) -> NodeKind | None:
        """The kind `namespace/Name`, where some processor or worker has it."""
        return self._kinds.get(id)

    def plan(self, name: str, version: str | None = None) -> Plan | None:
        """That version of a graph, compiled; without one the one that is valid. None where it is not known.

        What another processor made of it just now, `look` finds.
        """
        definition = self.definition(name, version)
        if definition is None:
            return None
        key = name, definition.version
        if key not in self._plans:
            self._plans[key] = compile_plan(definition)
        return self._plans[key]

    def definition(self, name: str, version: str | None = None) -> GraphDefinition | None:
        """That version of a graph as it was written; without one the one that is valid."""
        if version is None:
            head = self._heads.get(name)
            version = head.valid if head else ""
        return self._definitions.get((name, version))

    async def load(self) -> None:
        """Read all heads, kinds and valid versions that the server has. Raises what the broker raises."""
        stored = await self._broker.last_of(self._stream, [self._subjects.heads, self._subjects.kinds])
        for each in stored:
            self._take(each)
        await self._read_valid()

    async def look(self, name: str, version: str | None = None) -> None:
        """Read what the server has of a graph now: it may be newer than what was heard of."""
        await self._read_head(name)
        head = self._heads.get(name)
        if wanted := version or (head.valid if head else ""):
            await self._read_versions([(name, wanted)])

    def _take(self, stored: Stored) -> None:
        """Know what a message says of a kind, or of a graph."""
        names = names_of(stored.subject)
        if stored.subject.split(".")[2] == "kind":
            self._take_kind(names, stored)
            return
        [name] = names
        known = self._heads.get(name)
        if known and known.sequence > stored.sequence:
            return
        head = GraphHead.read(name, stored) if stored.payload else None
        if head is not None:
            self._heads[name] = head
            if known is None or known.valid != head.valid or head.status == "PENDING":
                self._due.set()
        elif stored.payload:
            self._name_unreadable(stored.subject)
        else:
            self._heads.pop(name, None)

    def _take_kind(self, names: Sequence[str], stored: Stored) -> None:
        namespace, name = names
        id = f"{namespace}/{name}"
        kind = _read_kind(namespace, name, stored.payload) if stored.payload else None
        if kind is None and stored.payload:
            self._name_unreadable(stored.subject)
            return
        if self._kinds.get(id) == kind:
            return
        if kind is None:
            del self._kinds[id]
        else:
            self._kinds[id] = kind
        self._due.set()
        self._changed(id)

    def _name_unreadable(self, subject: str) -> None:
        if subject not in self._unreadable:
            self._unreadable.add(subject)
            log.error("E357 the message %s says nothing that is known here", subject, extra={"code": "E357"})

    async def _read_head(self, name: str) -> GraphHead | None:
        """What the leader of the stream has: never behind an answered change."""
        stored = await self._broker.last_from_leader(self._stream, self._subjects.graph(name))
        if stored is None:
            self._heads.pop(name, None)
        else:
            self._take(stored)
        return self._heads.get(name)

    async def _read_valid(self) -> None:
        """Have the valid version of each graph."""
        named = [(head.name, head.valid) for head in self._heads.values() if head.valid]
        await self._read_versions([key for key in named if key not in self._definitions])
        if len(self._definitions) > len(named) + _OLD_VERSIONS:
            for key in [key for key in self._definitions if key not in named][:-_OLD_VERSIONS]:
                del self._definitions[key]
                self._plans.pop(key, None)

    async def _read_versions(self, keys: Sequence[tuple[str, str]]) -> None:
        missing = [key for key in keys if key not in self._definitions]
        for first in range(0, len(missing), 500):
            subjects = [self._subjects.graph(*key) for key in missing[first : first + 500]]
            for stored in await self._broker.last_of(self._stream, subjects):
                name, version = names_of(stored.subject)
                try:
                    self._definitions[name, version] = GraphDefinition.of_document(stored.payload)
                except ValueError:
                    self._name_unreadable(stored.subject)


def _read_kind(namespace: str, name: str, payload: bytes) -> NodeKind | None:
    try:
        said = orjson.loads(payload)
        where = said["where"]
        if where not in ("inline", "pool", "external"):
            return None
        if not isinstance(said["inputs"], dict) or not isinstance(said["outputs"], dict):
            return None
        secrets, optional = tuple(map(str, said["secrets"])), tuple(map(str, said.get("optional", ())))
        group, doc = str(said["group"]), str(said["doc"])
    except (ValueError, KeyError, TypeError):
        return None
    return NodeKind(namespace, name, said["inputs"], said["outputs"], secrets, where, group, doc, optional)
