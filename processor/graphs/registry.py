"""The graphs and kinds of an app as its stream has them: what is valid, and what this processor knows of it.

    p.<app>.graph.<name>              {"v": 1, "name", "version", "status": "VALID|PENDING|INVALID",
                                       "errors": [{"place", "code", "text"}], "valid": <version or null>,
                                       "by", "at", "from": "config|request"}
    p.<app>.graph.<name>.<version>    the definition, which never changes
    p.<app>.kind.<namespace>.<name>   {"v": 1, "inputs": <JSON Schema>, "outputs", "secrets": [names],
                                       "optional": [names], "where", "group", "doc", "at"}

A processor reads all of it when it starts, publishes what its configuration has, and follows what changes.
Other graphs and kinds come from clients and from the Runtimes of external workers.

What must stay true:
- The first of these messages, the head, is written with a fence: of two that change a graph at a time, one
  looks again. A version is stored before a head names it.
- What is not valid never takes the place of what is: `valid` stays until another version is.
- A graph that only lacks kinds is PENDING, and is looked at again whenever a kind comes or is another.
- A version that no head names and no run has goes away a week later, never before.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import orjson

from processor.context.subjects import names_of
from processor.errors import ProcessorError, Refusal
from processor.graphs.checks import Problem, graph_circles, problems_of, problems_with_kinds, read_graph
from processor.graphs.definition import BUILT_IN, GraphDefinition, NodeKind
from processor.graphs.known import KnownGraphs
from processor.graphs.versions import GraphHead, Status, errors_of, let_unused_go, now, sentence_of
from processor.jetstream import (
    EXPECTED,
    GONE,
    KEPT,
    Again,
    ApiError,
    Broker,
    Outgoing,
    Reader,
    Stored,
    Unknown,
    WrongLastSequence,
)
from processor.model import NO_HEADERS
from processor.route import NodeGroup

log = logging.getLogger("processor")

_TRIES_S = 10.0  # how long somebody else's changes, and a server that does not answer, are borne
_PAUSE_S = 0.05
_RETRY_S = 1.0
_SWEEP_S = 3600.0


class Registry(KnownGraphs):
    """What one processor knows of the graphs and kinds of its app, and how it changes them."""

    def __init__(
        self,
        broker: Broker,
        app: str,
        changed: Callable[[str], None] = lambda _: None,
        *,
        groups: Mapping[str, NodeGroup] | None = None,
    ) -> None:
        """`changed` is called with the id of each kind that becomes known, is another, or goes.

        `groups` are those of the configuration, which say what secrets their kinds get; `publish` gives
        others.
        """
        super().__init__(broker, app, changed)
        self._groups = groups or {}
        self._own_graphs: Collection[str] = ()  # of the configuration
        self._own_kinds: Collection[str] = ()

    async def follow(self) -> None:
        """Learn of what changes, and look again at what is pending, for ever."""
        while True:
            readers: list[Reader] = []
            tasks: list[asyncio.Task[None]] = []
            try:
                await self._broker.connected()
                info = await self._broker.stream(self._stream)
                if info is None:
                    raise Again(f"stream {self._stream} is gone")
                for kind, subject in (("graph", self._subjects.heads), ("kind", self._subjects.kinds)):
                    reader = Reader(
                        self._broker,
                        self._stream,
                        [subject],
                        created=info["created"],
                        retention="limits",
                        name=f"{self._stream}-{kind}",
                        start_sequence=info["state"]["last_seq"] + 1,
                        prefetch=500,
                    )
                    readers.append(reader)
                    await reader.open()
                await self.load()
                self._due.set()
                jobs = [*map(self._follow, readers), self._look_after()]
                tasks = [asyncio.create_task(job, name="follow-graphs") for job in jobs]
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                ended.pop().result()
            except (ProcessorError, Unknown, Again, ApiError) as err:
                log.debug("graphs and kinds cannot be followed: %s", err)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for reader in readers:
                    await reader.close()
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, reader: Reader) -> None:
        while True:
            for delivery in await reader.take(500, 8 << 20):
                stored = Stored(delivery.subject, delivery.sequence, delivery.payload, delivery.headers)
                self._take(stored)
            await self._read_valid()

    async def _look_after(self) -> None:
        # Processors that started together should not all read the same.
        sweep_s = time.monotonic() + random.uniform(60, _SWEEP_S)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0, sweep_s - time.monotonic())):
                    await self._due.wait()
            self._due.clear()
            await self._look_at_pending()
            if time.monotonic() >= sweep_s:
                sweep_s = time.monotonic() + _SWEEP_S
                await let_unused_go(self._broker, self._app, self._read_head)

    async def publish(
        self,
        graphs: Mapping[str, GraphDefinition],
        kinds: Iterable[NodeKind],
        groups: Mapping[str, NodeGroup] | None = None,
    ) -> list[str]:
        """Store the graphs and kinds of the configuration where they are other than what is there.

        Kinds of groups that it has no more go. Returns what is wrong, a sentence for each, which the log has,
        too. Raises what the broker raises.
        """
        own: dict[str, NodeKind] = {}
        wrong: list[str] = []
        for kind in kinds:
            other = own.setdefault(kind.id, kind)
            if kind.name in BUILT_IN:
                what = f"'{kind.name}' is the name of a built-in kind"
                wrong.append(f"E702 nodes.{kind.group}: {what}. Rename the class.")
            elif other is not kind:
                what = f"'{kind.name}' is in the groups {other.group} and {kind.group}"
                wrong.append(f"E702 nodes.{kind.group}: {what}. Rename one of them.")
        own = {id: kind for id, kind in own.items() if kind.name not in BUILT_IN}
        self._groups = groups or {}
        self._own_graphs, self._own_kinds = frozenset(graphs), frozenset(own)
        gone = [kind for kind in self._kinds.values() if kind.where != "external" and kind.id not in own]
        for kind in own.values():
            if self._kinds.get(kind.id) != kind:
                await self._write_kind(kind)
        for kind in gone:
            subject = self._subjects.kind(kind.namespace, kind.name)
            sequence = await self._broker.commit([Outgoing(subject, b"", GONE)])
            self._take_kind((kind.namespace, kind.name), Stored(subject, sequence, b"", NO_HEADERS))
        for definition in _inner_first(graphs):
            head = await self.apply(definition, by="the configuration", source="config")
            wrong += [f"graph '{head.name}' is {head.status}: {sentence_of(each)}" for each in head.errors]
        for sentence in wrong:
            log.warning("%s", sentence)
        return wrong

    async def apply_keys(self, name: str, keys: Mapping[str, Any], *, by: str) -> GraphHead:
        """What `apply` returns, for keys as a request has them.

        Keys that are wrong are never stored: then the head that is returned only says so.
        """
        definition, problems = read_graph(name, keys, self._app)
        if definition is None:
            known = await self._read_head(name)
            self._refuse_own(name, "request")
            valid = known.valid if known else ""
            return GraphHead(name, "", "INVALID", valid, errors_of(problems), by, now())
        return await self.apply(definition, by=by)

    async def apply(
        self, definition: GraphDefinition, *, by: str, source: Literal["config", "request"] = "request"
    ) -> GraphHead:
        """Make this the newest version of its graph, and the valid one if nothing is wrong with it.

        Asked twice it is done once. Raises Refusal E708 where a request would change a graph of the
        configuration, and what the broker raises.
        """
        name, version = definition.name, definition.version
        self._refuse_own(name, source)
        if (size := len(definition.document)) > self._broker.max_payload - 1024:
            text = f"the graph has {size} bytes; a message takes {self._broker.max_payload}. Split it."
            head = self._heads.get(name)
            valid = head.valid if head else ""
            return GraphHead(name, "", "INVALID", valid, errors_of([Problem((), "E701", text)]), by, now())
        until_s = time.monotonic() + _TRIES_S
        while True:
            try:
                return await self._try_to_apply(definition, by, source)
            except (WrongLastSequence, Unknown, Again):
                if time.monotonic() >= until_s:
                    raise
                log.debug("graph %s version %s is applied again", name, version)
            await asyncio.sleep(_PAUSE_S)

    async def _try_to_apply(
        self, definition: GraphDefinition, by: str, source: Literal["config", "request"]
    ) -> GraphHead:
        name, version = definition.name, definition.version
        head = await self._read_head(name)
        status, errors = await self._judge(definition)
        valid = version if status == "VALID" else head.valid if head else ""
        made = GraphHead(name, version, status, valid, errors, by, now(), source)
        if head and (head.version, head.status, head.errors, head.source) == (
            version,
            status,
            errors,
            source,
        ):
            return head
        if head is None or version not in (head.version, head.valid):
            await self._store_version(definition)
        return await self._write_head(made, head)

    def _refuse_own(self, name: str, source: str) -> None:
        if source == "request" and name in self._own_graphs:
            text = f"graph '{name}' is of the configuration. Change it there, and let it be read again."
            raise Refusal("E708", text)

    async def _store_version(self, definition: GraphDefinition) -> None:
        name, version = definition.name, definition.version
        subject = self._subjects.graph(name, version)
        await self._broker.commit([Outgoing(subject, definition.document, KEPT)])
        self._definitions[name, version] = definition

    async def _write_head(self, made: GraphHead, before: GraphHead | None) -> GraphHead:
        """Store a head in the place of another. Raises WrongLastSequence where that is not the last."""
        subject = self._subjects.graph(made.name)
        fence = before.sequence if before else await self._last_sequence(subject)
        sequence = await self._broker.commit(
            [Outgoing(subject, made.document, {**KEPT, EXPECTED: str(fence)})]
        )
        made = replace(made, sequence=sequence)
        self._heads[made.name] = made
        if made.status == "VALID":
            log.info("graph %s has the valid version %s, by %s", made.name, made.version, made.by)
            self._due.set()
        return made

    async def _last_sequence(self, subject: str) -> int:
        stored = await self._broker.last_from_leader(self._stream, subject)
        return stored.sequence if stored else 0

    async def _judge(self, definition: GraphDefinition) -> tuple[Status, tuple[Mapping[str, str], ...]]:
        """Whether a graph is valid with the kinds and graphs that there are now, and what is wrong."""
        problems = problems_of(definition)
        if not problems:
            graphs = self._valid_graphs() | {definition.name: definition}
            uploaded = await self._uploaded(definition.name)
            problems = [problem for name, problem in graph_circles(graphs) if name == definition.name]
            problems += problems_with_kinds(
                definition, self._kinds, graphs, lambda kind: self._values(kind) | uploaded
            )
        status: Status = "VALID"
        if problems:
            is_pending = all(problem.code == "E704" for problem in problems)
            status = "PENDING" if is_pending else "INVALID"
        return status, errors_of(problems)

    def _valid_graphs(self) -> dict[str, GraphDefinition]:
        found = {name: self.definition(name) for name in self._heads}
        return {name: definition for name, definition in found.items() if definition}

    def _values(self, kind: NodeKind) -> frozenset[str]:
        group = self._groups.get(kind.group)
        # Of another processor's configuration this one knows nothing.
        return group.values if group else frozenset(kind.secrets)

    async def _uploaded(self, graph: str) -> frozenset[str]:
        stored = await self._broker.last_of(self._stream, [self._subjects.secrets(graph)])
        return frozenset(names_of(each.subject)[1] for each in stored if each.payload)

    async def register(self, kinds: Sequence[NodeKind]) -> list[str]:
        """Store the kinds of an external worker; what is wrong with those that are not, a sentence for each.

        Asked twice it is done once. Raises what the broker raises.
        """
        wrong = []
        for kind in kinds:
            if kind.name in BUILT_IN:
                wrong.append(f"E702 '{kind.name}' is the name of a built-in kind. Rename the class.")
            elif kind.id in self._own_kinds:
                group = self._kinds[kind.id].group
                wrong.append(
                    f"E708 kind '{kind.id}' is of group {group} of the configuration. Rename the class."
                )
            elif self._kinds.get(kind.id) != kind:
                await self._write_kind(kind)
        return wrong

    async def _write_kind(self, kind: NodeKind) -> None:
        subject = self._subjects.kind(kind.namespace, kind.name)
        said = kind._asdict()
        del said["namespace"], said["name"]
        body = orjson.dumps({"v": 1, **said, "at": now()})
        sequence = await self._broker.commit([Outgoing(subject, body, KEPT)])
        self._take_kind((kind.namespace, kind.name), Stored(subject, sequence, body, NO_HEADERS))

    async def _look_at_pending(self) -> None:
        """Look again at the graphs that lacked kinds; where two processors do, one of them writes."""
        for head in [head for head in self._heads.values() if head.status == "PENDING"]:
            await self._read_versions([(head.name, head.version)])
            definition = self._definitions.get((head.name, head.version))
            if definition is None:
                continue
            status, errors = await self._judge(definition)
            if (status, errors) == (head.status, head.errors):
                continue
            valid = head.version if status == "VALID" else head.valid
            made = replace(head, status=status, errors=errors, valid=valid, at=now())
            with suppress(WrongLastSequence):  # another one was first
                await self._write_head(made, head)


def _inner_first(graphs: Mapping[str, GraphDefinition]) -> Iterable[GraphDefinition]:
    """Graphs, each behind those that its nodes run; they do not run each other in a circle."""
    done: dict[str, GraphDefinition] = {}

    def add(name: str) -> None:
        if name in graphs and name not in done:
            for inner in graphs[name].graphs:
                add(inner)
            done[name] = graphs[name]

    for name in graphs:
        add(name)
    return done.values()


def kinds_of_manifest(group: NodeGroup, manifest: Mapping[str, Mapping[str, Any]]) -> list[NodeKind]:
    """The kinds of a group, as its guest told of them when its program was loaded."""
    return [
        NodeKind(
            group.namespace or group.app,
            name,
            node["inputs"],
            node["outputs"],
            *_secrets_of(node["secrets"])[:1],
            "pool" if group.is_pool else "inline",
            group.name,
            node["doc"],
            _secrets_of(node["secrets"])[1],
        )
        for name, node in manifest.items()
    ]


def _secrets_of(schema: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names in the schema of a class `Secrets`, and those of them that have a default."""
    properties, required = schema.get("properties"), schema.get("required")
    names = tuple(map(str, properties)) if isinstance(properties, Mapping) else ()
    needed = set(map(str, required)) if isinstance(required, list) else set()
    return names, tuple(name for name in names if name not in needed)
