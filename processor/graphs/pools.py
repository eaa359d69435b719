"""The routes that graphs run on: `graphs`, and `nodes-<group>` for each group of nodes that is a pool.

`service` adds them to those of the configuration, and runs them as any other route. Executions of a pool
share a run of its guest where they take little; each is undone alone, and a call that one made is not made
again for another's failure: the worker keeps its answer until it is settled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from processor.config import Config
from processor.context.subjects import RouteSubjects
from processor.delivery.codec import read_result
from processor.graphs.outbox import EVENTS_MAX, inner_subjects
from processor.graphs.steps import judged
from processor.model import Failed, Failure, Group, Outcome, Output, Program, Ran, RetryPolicy
from processor.route import (
    ENGINE,
    BatchLimits,
    GraphEngine,
    KeySource,
    NodeGroup,
    RecipeSteps,
    Route,
    RouteInput,
    RoutePool,
)
from processor.sandbox.calls import Answer
from processor.sandbox.host import Guest

# A run leaves two messages in a commit, or more: those of two batches have to fit one.
_RUNS_AT_ONCE = 200
# Executions of a pool that share a run, and how long their results may wait for each other.
_AT_ONCE = 100
_RUN_S = 0.02
_ALONE = BatchLimits(max_messages=1)  # a shell step may take long, and has a commit of its own


class PoolGuest:
    """A guest of a pool, in which one execution that fails leaves the others alone: see `BatchRunner`."""

    def __init__(self, guest: Guest, steps: RecipeSteps | None = None) -> None:
        """`steps` are those that it runs, if they are of a recipe."""
        self._guest = guest
        self._steps = steps

    @property
    def alive(self) -> bool:
        return self._guest.alive

    @property
    def verdict(self) -> Failure | None:
        return self._guest.verdict

    async def run(
        self,
        groups: Sequence[Group],
        *,
        fields: Sequence[str] = (),
        forget: Sequence[str] = (),
        messages: bytes = b"",
        answer: Answer | None = None,
    ) -> Outcome:
        """As `Guest.run`; Failed where a run had no room for all of them."""
        ran = await self._guest.run(
            groups, fields=fields, forget=forget, messages=messages, answer=answer, isolate=True
        )
        if isinstance(ran, Failed):
            return ran
        if self._steps is not None:
            outputs = [self._judged(output, groups[output.group]) for output in ran.outputs]
            ran = replace(ran, outputs=outputs)
        done = {output.group for output in ran.outputs} | {group for group, _ in ran.failed}
        done |= {group for group, _, _ in ran.rejected}
        if (left := next((group for group in range(len(groups)) if group not in done), None)) is None:
            return _with_events(ran) if ran.events else ran
        failure = Failure("E318", "the node gave more than one run may bring")
        return Failed(failure, ran.logs, left, ran.calls, ran.wall_s, ran.cpu_s)

    async def close(self) -> None:
        await self._guest.close()

    def _judged(self, output: Output, group: Group) -> Output:
        """What a step gave, or that it left something out."""
        document = orjson.loads(group.documents[0])
        try:
            result = read_result(output.body)
        except ValueError:
            return output  # refused where results are read
        return output._replace(
            body=orjson.dumps(judged(result, self._steps, document["kind"], document.get("store") or {}))
        )


def _with_events(ran: Ran) -> Ran:
    """A run with its events in the results: they are for the subject of the graph, which its engine knows."""
    said: dict[int, list[tuple[str, orjson.Fragment]]] = {}
    for event in ran.events:
        said.setdefault(event.group, []).append((event.name, orjson.Fragment(event.body)))
    over = {group for group, events in said.items() if len(events) > EVENTS_MAX}
    failure = Failure("E324", f"one execution may have {EVENTS_MAX} events")
    return replace(
        ran,
        outputs=[
            output._replace(body=_added(output.body, said[output.group])) if output.group in said else output
            for output in ran.outputs
            if output.group not in over
        ],
        emits=[emit for emit in ran.emits if emit.group not in over],
        events=(),
        failed=[*ran.failed, *((group, failure) for group in sorted(over))],
    )


def _added(body: bytes, events: Sequence[tuple[str, orjson.Fragment]]) -> bytes:
    """A result with events; what is no result stays as it is, and is refused where results are read."""
    try:
        result = read_result(body)
    except ValueError:
        return body
    if "error" in result:
        return body
    return body.rstrip()[:-1] + b',"events":' + orjson.dumps(events) + b"}"


async def pool_guest(
    spawn: Callable[..., Awaitable[Guest]], steps: RecipeSteps | None, **how: Any
) -> PoolGuest:
    """A new guest of a pool, made by `spawn`."""
    return PoolGuest(await spawn(**how), steps)


def graph_routes(config: Config) -> Mapping[str, Route]:
    """The routes that the graphs of a configuration need, by name; none where it has no engine."""
    engine = config.engine
    if engine is None:
        return {}
    found = [_engine_route(config, engine)]
    found += [_pool_route(group, engine) for group in config.groups.values() if group.is_pool]
    return {route.name: route for route in found}


def _engine_route(config: Config, engine: GraphEngine) -> Route:
    groups = config.groups
    said = [pattern for group in groups.values() if not group.is_pool for pattern in group.emits]
    for definition in config.graphs.values():
        said += [definition.output.template.pattern] if definition.output else []
        said += [definition.events.subject] if definition.events else []
    inbox = RouteSubjects(config.app, ENGINE).inbox()
    return Route(
        app=config.app,
        name=ENGINE,
        program=Program("", ENGINE),
        input=RouteInput((inbox,), codec="run", is_inner=True),
        key=KeySource("json", name="/run"),
        partitions=engine.partitions,
        concurrency=engine.concurrency,
        emits=tuple(dict.fromkeys(said)),
        inner=inner_subjects(config.app, [group.route_name for group in groups.values() if group.is_pool]),
        batch=BatchLimits(max_messages=_RUNS_AT_ONCE),
        engine=engine,
        groups=groups,
    )


def _pool_route(group: NodeGroup, engine: GraphEngine) -> Route:
    return Route(
        app=group.app,
        name=group.route_name,
        program=group.program,
        input=RouteInput((RouteSubjects(group.app, group.route_name).inbox(),), codec="node", is_inner=True),
        partitions=group.partitions,
        concurrency=group.concurrency,
        emits=group.emits,
        inner=(RouteSubjects(group.app, ENGINE).inbox(),),
        policy=group.policy,
        audit=group.audit,
        batch=_ALONE if group.is_shell else BatchLimits(max_messages=_AT_ONCE, run_s=_RUN_S),
        calls_alone=True,  # so that each execution is undone alone
        retry=RetryPolicy(attempts=1, then="drop"),
        limits=group.limits,
        pool=RoutePool(engine.partitions, group.settings, group.steps),
        is_stateless=True,
        reach=group.reach,
    )
