"""The routes that graphs run on: `graphs`, and `nodes-<group>` for each group of nodes that is a pool.

`service` adds them to those of the configuration, and runs them as any other route. Nothing here runs
anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from processor.config import Config
from processor.context.subjects import RouteSubjects
from processor.graphs.outbox import inner_subjects
from processor.model import Program, RetryPolicy
from processor.route import (
    ENGINE,
    BatchLimits,
    GraphEngine,
    KeySource,
    NodeGroup,
    Route,
    RouteInput,
    RoutePool,
)

# A run leaves two messages in a commit, or more: those of two batches have to fit one.
_RUNS_AT_ONCE = 200


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
    """Each execution is a batch of its own: a call that it made is not made again for another's failure."""
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
        batch=BatchLimits(max_messages=1),
        retry=RetryPolicy(attempts=1, then="drop"),
        limits=group.limits,
        pool=RoutePool(engine.partitions, group.settings),
        is_stateless=True,
        reach=group.reach,
    )
