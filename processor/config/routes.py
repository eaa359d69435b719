"""From the keys of a route to the `Route` that runs.

`load` calls `runtime_route` once for each route, when no key contradicts another any more. What the keys
leave to each other is settled here: subjects, units, the names of defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from processor.config.auditing import AuditSettings
from processor.config.ism import Ism
from processor.config.keeping import CreatedStream
from processor.config.keys import InputSettings, OutputSettings, RouteSettings
from processor.config.tools import granted
from processor.model import Limits, Program, RetryPolicy
from processor.policy import NO_POLICY, Rules
from processor.reach import BoundSecret, FileRoot, InferenceEndpoint, Outbound, Reach, StateApi, Stock, Tool
from processor.route import (
    BatchLimits,
    BreakerPolicy,
    EventAttributes,
    IsmProcessor,
    IsmState,
    Route,
    RouteAudit,
    RouteEvents,
    RouteInput,
    RouteOutput,
    RouteSchedule,
    Routing,
    StreamLimits,
)
from processor.schema import Schema
from processor.subject import Template, schedule_subject


@dataclass(frozen=True, slots=True)
class RouteFiles:
    """What the files hold that a route names: its program, the routing of an ISM processor, its policy, and
    schemas by the types of objects.
    """

    program: Program | None = None
    routing: Routing | None = None
    policy: Rules = NO_POLICY
    heap: Mapping[str, Schema] = field(default_factory=dict)


def runtime_route(
    app: str,
    name: str,
    settings: RouteSettings,
    files: RouteFiles,
    secrets: Mapping[str, BoundSecret],
    roots: Mapping[str, FileRoot],
    tools: Mapping[str, Tool],
    endpoints: Mapping[str, InferenceEndpoint],
) -> Route:
    """The route that these keys stand for. They must have what they inherit, and be free of faults."""
    assert files.program is not None, "a route without its program is a fault"
    limits, retry, breaker = settings.limit_settings, settings.retry, settings.breaker
    own = settings.cloudevents
    return Route(
        app=app,
        name=name,
        program=files.program,
        input=_input(app, name, settings.input, files.routing),
        mode=settings.mode,
        key=settings.key_source,
        partitions=settings.partitions,
        concurrency=settings.concurrency,
        output=_output(settings.output) if settings.output else None,
        events=RouteEvents(settings.events.subject, settings.events.level) if settings.events else None,
        emits=settings.emits,
        policy=files.policy,
        batch=BatchLimits(settings.batch.max_messages, settings.batch.max_bytes, settings.batch.max_wait_ms),
        retry=RetryPolicy(
            retry.attempts, retry.strategy, retry.base_ms, retry.factor, retry.max_ms, retry.then
        ),
        breaker=BreakerPolicy(breaker.deaths, breaker.window_s, breaker.pause_s),
        limits=Limits(**{each.name: getattr(limits, each.name) for each in fields(Limits)}),
        contexts=limits.contexts,
        calls_alone=limits.calls_alone,
        replay=settings.calls.replay,
        dead_letters_keep_s=settings.dlq.keep,
        history_keep_s=settings.history.keep,
        edits_keep_s=settings.history.edits,
        cloudevents=EventAttributes(own.type or "", own.source or "") if own else EventAttributes(),
        ism=_ism(settings.ism, files.routing) if settings.ism and files.routing else None,
        reach=_reach(name, settings, files, secrets, roots, tools, endpoints),
    )


def _input(app: str, name: str, settings: InputSettings, routing: Routing | None) -> RouteInput:
    schedule = None
    subjects: tuple[str, ...] = (settings.subject or "",)
    if settings.schedule is not None:
        schedule = RouteSchedule(settings.schedule, settings.time_zone, settings.document, settings.catch_up)
        subjects = (schedule_subject(app, name),)
    elif routing is not None:
        entry = routing.input
        subjects = (entry.subject, f"{entry.subject}.>") if entry.priorities else (entry.subject,)
    return RouteInput(
        subjects,
        settings.codec,
        settings.start,
        _limits(settings.create) if settings.create else None,
        settings.delete_markers == "skip",
        settings.repartition,
        schedule,
    )


def route_audit(settings: AuditSettings, policy: Rules) -> RouteAudit:
    """What is written down of a route under this policy: its calls where there is one, unless it is said."""
    level = settings.level or ("calls" if policy.policies else "off")
    return RouteAudit(level, settings.intent, settings.copy_ttl)


def _output(settings: OutputSettings) -> RouteOutput:
    template = Template.parse(settings.subject)
    return RouteOutput(template, settings.durable, settings.ttl, _limits(settings))


def _limits(settings: CreatedStream | OutputSettings) -> StreamLimits:
    chosen = settings.model_fields_set & {"max_age", "max_bytes"}
    return StreamLimits(settings.max_age, settings.max_bytes, frozenset(chosen))


def _ism(settings: Ism, routing: Routing) -> IsmProcessor:
    return IsmProcessor(
        routing,
        settings.selector,
        settings.processor_id,
        settings.project_id,
        tuple(IsmState(output.route_id, output.next, output.sync) for output in settings.outputs),
        settings.usage,
    )


def _reach(
    name: str,
    settings: RouteSettings,
    files: RouteFiles,
    secrets: Mapping[str, BoundSecret],
    roots: Mapping[str, FileRoot],
    tools: Mapping[str, Tool],
    endpoints: Mapping[str, InferenceEndpoint],
) -> Reach:
    outbound, api = settings.outbound, settings.state_api
    return Reach(
        f"routes.{name}.outbound.allowed_domains",
        Outbound(
            outbound.allowed_domains,
            outbound.timeout_s,
            outbound.request_bytes,
            outbound.response_bytes,
            outbound.redirects,
        ),
        Stock(settings.stock.base_url, settings.stock.api_key_env),
        StateApi(api.base_url),
        tuple(secrets[own] for own in settings.secrets),
        secrets[api.secret] if api.secret else None,
        files=tuple(roots[own] for own in settings.files),
        emits=settings.emits,
        heap=files.heap,
        tools=tuple(granted(settings.tools, tools)),
        inference=tuple(endpoints[own] for own in dict.fromkeys(settings.inference)),
    )
