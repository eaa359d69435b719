"""What one processor has for the graphs of its app, beside the routes that run them: see `GraphKeeper`.

`service` makes one, starts and changes it with the configuration, and asks it for the engines, codecs and
watches that it runs as those of any route.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import orjson

from processor.config import Config
from processor.context.subjects import GraphSubjects, RouteSubjects, app_stream, names_of
from processor.delivery.codec import Codec, codec_for
from processor.delivery.repartition import Inboxes
from processor.graphs.engine import Engine
from processor.graphs.registry import Registry, kinds_of_manifest
from processor.graphs.steps import shell_manifest
from processor.graphs.triggers import Triggers
from processor.jetstream import Again, ApiError, Broker, Outgoing, Reader, Unknown
from processor.model import Program, partition_of
from processor.route import ENGINE, NodeGroup, Route
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.wire import Manifest
from processor.telemetry import GraphTelemetry, Telemetry

log = logging.getLogger("processor")

# Cancelled runs that are remembered; their messages go after a day.
_GONE_MAX = 200_000
_COUNT_S = 15.0


class GraphKeeper:
    """Definitions and kinds, what was cancelled, and the engines of one processor."""

    def __init__(
        self,
        broker: Broker,
        zygote: Zygote,
        config: Config,
        telemetry: Telemetry,
        inboxes: Inboxes,
        is_first: Callable[[], bool],
    ) -> None:
        """`is_first` says whether this processor is the one that does what one of them does."""
        assert config.engine is not None, "an app without an engine has no graphs"
        self._broker = broker
        self._zygote = zygote
        self._config = config
        self._telemetry = GraphTelemetry(telemetry)
        self._is_first = is_first
        self._graphs = GraphSubjects(config.app)
        self._engines: list[Engine] = []
        self._going: set[asyncio.Task[None]] = set()
        # By run, when it was cancelled, in ms since 1970; shared with the codecs of pools.
        self.gone: dict[str, int] = {}
        self.registry = Registry(broker, config.app, self._appeared)
        self._partitions = config.engine.partitions
        self._triggers = Triggers(config.app, self._partitions, self.registry, inboxes)

    async def start(self, manifests: Mapping[Program, Manifest]) -> None:
        """Know all graphs and kinds, and publish those of the configuration."""
        await self.registry.load()
        await self._publish(manifests)

    async def change(self, config: Config, manifests: Mapping[Program, Manifest]) -> None:
        """Publish what another configuration has."""
        self._config = config
        await self._publish(manifests)

    async def _publish(self, manifests: Mapping[Program, Manifest]) -> None:
        config = self._config
        kinds = [
            kind
            for group in config.groups.values()
            for kind in kinds_of_manifest(
                group, shell_manifest(group) if group.is_shell else manifests.get(group.program, {})
            )
        ]
        await self.registry.publish(config.graphs, kinds, config.groups)

    async def stop(self) -> None:
        """Start no more runs by triggers."""
        await self._triggers.stop()

    def codec(self, route: Route) -> Codec:
        """The codec of a worker of any route."""
        return codec_for(route, self.gone)

    async def spawn(self, route: Route, **_: Any) -> Engine:
        """An engine for one lane of the route `graphs`."""
        engine = Engine(route, self.registry, self._broker, self._guest, self._telemetry)
        self._engines = [each for each in self._engines if each.alive] + [engine]
        return engine

    async def _guest(self, group: NodeGroup) -> Guest:
        return await self._zygote.spawn(group.program, group.limits, emits=group.emits)

    @property
    def watches(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """What has to run as long as the processor, by name."""
        return {
            "watch-graphs": self.registry.follow,
            "watch-cancelled": self._follow_gone,
            "count-runs": self._count_open,
            "watch-triggers": self._triggers.run,
        }

    async def _count_open(self) -> None:
        """Tell how many runs of each graph are open, for ever."""
        stream = app_stream(self._config.app)
        while True:
            await self._broker.connected()
            counts: dict[str, int] = {}
            for graph in [*self.registry.heads] if self._is_first() else ():
                try:
                    open_runs = self._graphs.runs(graph, "running")
                    counts[graph] = await self._broker.count(stream, [open_runs], 1)
                except (Unknown, Again, ApiError) as err:
                    log.debug("the runs of graph %s cannot be counted: %s", graph, err)
            self._telemetry.runs_open(counts)
            await asyncio.sleep(_COUNT_S)

    async def _follow_gone(self) -> None:
        """Know which runs were cancelled, for ever."""
        name = app_stream(self._config.app)
        info = await self._broker.stream(name)
        if info is None:
            return
        reader = Reader(
            self._broker,
            name,
            [self._graphs.every_gone],
            created=info["created"],
            retention="limits",
            name=f"{name}-gone",
            start_sequence=1,
            prefetch=500,
        )
        await reader.open()
        try:
            while True:
                for delivery in await reader.take(500, 8 << 20):
                    self._take_gone(delivery.subject, delivery.payload)
        finally:
            await reader.close()

    def _take_gone(self, subject: str, payload: bytes) -> None:
        try:
            at_ms = orjson.loads(payload)["at_ms"]
        except (orjson.JSONDecodeError, KeyError, TypeError):  # not written here
            return
        [run] = names_of(subject)
        self.gone.pop(run, None)
        self.gone[run] = at_ms
        while len(self.gone) > _GONE_MAX:
            del self.gone[next(iter(self.gone))]

    def _appeared(self, kind: str) -> None:
        """A kind is known now, is another, or goes: runs that wait for it look at once."""
        runs = {run for engine in self._engines if engine.alive for run in engine.awaiting(kind)}
        if runs:
            task = asyncio.create_task(self._go_on(runs), name=f"go-on-{kind}")
            self._going.add(task)
            task.add_done_callback(self._going.discard)

    async def _go_on(self, runs: Collection[str]) -> None:
        subjects = RouteSubjects(self._config.app, ENGINE)
        for run in runs:
            subject = subjects.inbox(partition_of(run, self._partitions))
            try:
                await self._broker.publish(Outgoing(subject, orjson.dumps({"v": 1, "t": "go", "run": run})))
            except Unknown:  # each looks again by itself
                return
