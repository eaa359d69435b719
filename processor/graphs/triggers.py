"""What starts runs by itself: each trigger of a graph, as a route that has only an input. See `Triggers`.

A message of a trigger's subject, or a due time of its schedule, is dealt to the engine as the start of a run
that is named after it: so each is one run, however often it is dealt. One processor at a time does that for a
trigger, as for any inbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from processor.context.subjects import trigger_name
from processor.delivery.repartition import Inboxes
from processor.graphs.definition import GraphDefinition
from processor.graphs.registry import Registry
from processor.model import Program
from processor.route import Route, RouteInput, RouteSchedule, RouteTrigger, StreamLimits
from processor.subject import schedule_subject

_LOOK_S = 1.0


class Triggers:
    """Keeps the inboxes of the triggers of valid graphs filled, as far as that is this processor's part."""

    def __init__(self, app: str, partitions: int, registry: Registry, inboxes: Inboxes) -> None:
        """`partitions` are those of the engine."""
        self._app = app
        self._partitions = partitions
        self._registry = registry
        self._inboxes = inboxes
        self._running: dict[str, Route] = {}

    async def run(self) -> None:
        """Follow the graphs that are valid, until cancelled."""
        while True:
            wanted = {route.name: route for route in self._wanted()}
            if wanted != self._running:
                await self._change(wanted)
            await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        """Deal what was taken, and take no more; schedules stay, for whoever has these triggers next."""
        await asyncio.gather(*self._inboxes.stop(list(self._running)))
        self._running = {}

    async def _change(self, wanted: Mapping[str, Route]) -> None:
        ended = [name for name, route in self._running.items() if wanted.get(name) != route]
        await asyncio.gather(*self._inboxes.stop(ended))
        self._inboxes.forget([name for name in ended if name not in wanted])
        begun = [route for name, route in wanted.items() if self._running.get(name) != route]
        self._running = dict(wanted)
        for route in begun:
            self._inboxes.start(route, is_paused=False)

    def _wanted(self) -> Iterator[Route]:
        for name, head in [*self._registry.heads.items()]:
            definition = self._registry.definition(name)
            if definition is not None:
                yield from trigger_routes(self._app, definition, self._partitions)
            elif head.valid:  # it is not read yet: what there was goes on
                running = self._running.values()
                yield from (each for each in running if each.trigger and each.trigger.graph == name)


def trigger_routes(app: str, definition: GraphDefinition, partitions: int) -> Iterator[Route]:
    """The routes of a graph's triggers, by their places in it."""
    for index, trigger in enumerate(definition.triggers):
        name = trigger_name(definition.name, index)
        if trigger.subject is not None:
            create = StreamLimits() if trigger.create else None
            source = RouteInput((trigger.subject,), codec="trigger", create=create, repartition=True)
        else:
            assert trigger.when is not None, "a trigger has a subject or due times"
            schedule = RouteSchedule(trigger.when, trigger.zone)
            source = RouteInput((schedule_subject(app, name),), codec="trigger", schedule=schedule)
        yield Route(
            app=app,
            name=name,
            program=Program("", name),
            input=source,
            trigger=RouteTrigger(definition.name, trigger.inputs, partitions),
        )
