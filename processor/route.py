"""A route as it runs: one input, the Runnable that reads it, and where its results go.

`config` makes one from the keys of a file; other code may construct one that no file has. Everything here is
frozen data: two routes that are equal run alike, and a route that differs is started again.

Nothing here knows how a file is written: no aliases, no defaults that depend on other keys, no paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from processor.model import Limits, Program, RetryPolicy
from processor.policy import NO_POLICY, Rules
from processor.reach import Reach
from processor.subject import Template

# The route that runs graphs, and what the names of those that run the nodes of a group begin with.
ENGINE = "graphs"
POOL = "nodes-"
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a message's key is found: `kind` none, subject (token `number`), header or json (`name`)."""

    kind: Literal["none", "subject", "header", "json"] = "none"
    number: int = 0
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> KeySource:
        """Raises ValueError, whose sentence says how it is written."""
        if text == "none":
            return cls("none")
        kind, _, rest = text.partition(".")
        if kind == "subject" and re.fullmatch(r"[1-9]\d?", rest):
            return cls("subject", number=int(rest))
        if kind == "header" and re.fullmatch(r"[!-9;-~]+", rest):
            return cls("header", name=rest)
        if kind == "json" and re.fullmatch(r"(/([^~/]|~[01])*)+", rest):
            return cls("json", name=rest)
        raise ValueError("it must be none, subject.N, header.NAME or json./pointer")

    def __str__(self) -> str:
        """As a file has it."""
        return self.kind if self.kind == "none" else f"{self.kind}.{self.name or self.number}"


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The limits of a stream that is created; 0 is none.

    `chosen` names those that a person has set: the server's refusal of one of these is an error, while a
    default that it has no room for is left out.
    """

    max_age_s: float = 7 * _DAY_S
    max_bytes: int = 10 << 30  # a stream without limits grows until the server's disk is full
    chosen: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RouteSchedule:
    """When the NATS server sends a route a message, and what it sends.

    `when` is a NATS schedule, such as `@every 30s`; its times of day are in UTC unless `time_zone` is set.
    Without a `document` it sends the time. With `catches_up`, what was due while the route did not run waits
    for it; otherwise only the newest does.
    """

    when: str
    time_zone: str | None = None
    document: Mapping[str, Any] | None = None
    catches_up: bool = True


@dataclass(frozen=True, slots=True)
class RouteInput:
    """What a route reads.

    `subjects` are the subjects of the input stream; that of a schedule is where the app's stream keeps it.
    """

    subjects: tuple[str, ...]
    codec: Literal["json", "raw", "cloudevents", "ism", "run", "node", "trigger"] = "json"
    start: Literal["all", "new"] = "all"
    create: StreamLimits | None = None  # make a stream of the subjects where there is none
    skips_delete_markers: bool = False
    repartition: bool = False
    schedule: RouteSchedule | None = None
    is_inner: bool = False  # other routes of the app commit messages for it, and nobody else sends any

    @property
    def is_own(self) -> bool:
        """Whether it reads the app's own stream, where a schedule, a hop or commits put its messages."""
        return self.is_all_own or self.repartition

    @property
    def is_all_own(self) -> bool:
        """Whether its messages come from no other stream, where a hop would read them."""
        return self.schedule is not None or self.is_inner


@dataclass(frozen=True, slots=True)
class RouteAudit:
    """What is written down of a route's calls, and of its runs.

    `intent` says which calls are written down before they are made. `copy_ttl_s` is how long the app's own
    stream keeps what is written down.
    """

    level: Literal["off", "calls", "runs"] = "off"
    intent: Literal["none", "unsafe", "all"] = "unsafe"
    copy_ttl_s: float = 7 * _DAY_S

    @property
    def is_on(self) -> bool:
        """Whether anything is."""
        return self.level != "off"


NO_AUDIT = RouteAudit()


@dataclass(frozen=True, slots=True)
class RouteOutput:
    """Where a route's outputs go; `ttl_s` is how long the app's own stream keeps them."""

    template: Template
    is_durable: bool = True
    ttl_s: float = _DAY_S
    limits: StreamLimits = StreamLimits()  # of a stream that is created for them


@dataclass(frozen=True, slots=True)
class RouteEvents:
    """Where a route's events go, and which: those of the Runnable, failures too, or all."""

    subject: str
    level: Literal["user", "failures", "all"] = "failures"


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many messages one call of `process` and one commit may take, and how long one waits for more."""

    max_messages: int = 500
    max_bytes: int = 4 << 20
    max_wait_ms: float = 5
    run_s: float | None = None  # how long the messages of one call may take together, as far as it is known


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """How many guests in a row may die within `window_s` before the route pauses for `pause_s`."""

    deaths: int = 5
    window_s: float = 60
    pause_s: float = 30


@dataclass(frozen=True, slots=True)
class EventAttributes:
    """What the outputs of a route with the codec cloudevents say of themselves; empty is the default."""

    type: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Selector:
    """One entry of an ISM routing file."""

    selector: str
    name: str
    subject: str
    url: str = ""
    jetstream: bool = True
    priorities: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """The entries of an ISM routing file that one route needs."""

    input: Selector
    monitor: Selector
    usage: Selector
    sync: Selector
    router: Selector
    state: Selector


@dataclass(frozen=True, slots=True)
class IsmState:
    """An output state of an ISM processor, and the routes that read it; `is_stored` sends it to be stored."""

    route_id: str
    next: tuple[str, ...] = ()
    is_stored: bool = True

    @property
    def id(self) -> str:
        return self.route_id.partition(":")[0]


@dataclass(frozen=True, slots=True)
class IsmProcessor:
    """What a route with the codec ism knows beyond its envelope.

    Without an `id`, messages for every processor of the subject are taken.
    """

    routing: Routing
    selector: str
    id: str | None = None
    project_id: str | None = None
    states: tuple[IsmState, ...] = ()
    reports_usage: bool = True


@dataclass(frozen=True, slots=True)
class RoutePool:
    """What a route that runs the nodes of a group knows beside them.

    `partitions` are those of the engine, to which results go; `settings` are what its nodes may read.
    """

    partitions: int = 64
    settings: Mapping[str, str] = field(default_factory=dict)
    steps: RecipeSteps | None = None  # of a recipe

    @property
    def is_shell(self) -> bool:
        """Whether it runs shell steps, which have no program."""
        return self.steps is not None and self.steps.is_shell


@dataclass(frozen=True, slots=True)
class RouteTrigger:
    """What a route that only starts runs of a graph knows: each message, or due time, is one.

    `inputs` are those of the run, as the trigger of the graph has them; `partitions` are those of the engine.
    """

    graph: str
    inputs: Mapping[str, Any]
    partitions: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """All that delivery, operators and the service know of a route.

    `name` is unique in its `app`, and both are tokens of the subjects that keep what the route commits: with
    another name it starts from scratch. `partitions` must not change once it has run.
    """

    app: str
    name: str
    program: Program
    input: RouteInput
    mode: Literal["batch", "stream"] = "batch"
    key: KeySource = KeySource()
    partitions: int = 1
    concurrency: int = 1
    output: RouteOutput | None = None
    events: RouteEvents | None = None
    emits: tuple[str, ...] = ()  # patterns that the Runnable may send to
    inner: tuple[str, ...] = ()  # patterns of the app's own subjects that its commits may add to
    policy: Rules = NO_POLICY  # what its guests may do of all that the other fields declare
    audit: RouteAudit = RouteAudit()
    batch: BatchLimits = BatchLimits()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = BreakerPolicy()
    limits: Limits = field(default_factory=Limits)
    contexts: int = 10_000  # keys whose contexts a guest keeps in memory
    calls_alone: bool = False  # give `process` one message at a time
    replay: Literal["attempt", "writes", "all"] = "attempt"  # answers of calls that a later try gets again
    dead_letters_keep_s: float = 0  # 0 is until they are removed
    history_keep_s: float = 0  # of what commits change in contexts; 0 records nothing
    edits_keep_s: float = 90 * _DAY_S  # of what people change in contexts
    cloudevents: EventAttributes = EventAttributes()
    ism: IsmProcessor | None = None
    pool: RoutePool | None = None
    trigger: RouteTrigger | None = None
    engine: GraphEngine | None = None  # it runs graphs, in place of a program
    groups: Mapping[str, NodeGroup] = field(default_factory=dict)  # of nodes, by name, that its graphs have
    is_stateless: bool = False  # it keeps no contexts, and a message counts where it was dealt to
    reach: Reach = field(default_factory=lambda: Reach("outbound.allowed_domains"))

    @property
    def is_keyed(self) -> bool:
        """Whether messages have keys; without, all share one context and are processed in order."""
        return self.key.kind != "none"

    @property
    def output_template(self) -> Template | None:
        return self.output.template if self.output else None

    @property
    def events_subject(self) -> str | None:
        return self.events.subject if self.events else None


@dataclass(frozen=True, slots=True)
class Success:
    """What has to be there when a step of a recipe has ended well: keys of the context, and paths below the
    root.
    """

    ctx_has_keys: tuple[str, ...] = ()
    files_exist: tuple[str, ...] = ()


ANYTHING = Success()


@dataclass(frozen=True, slots=True)
class GroupStep:
    """A step of a recipe, as it runs.

    A shell step has `argv`, the folders below the root that it may write to, and the seconds that it may
    take.
    """

    name: str
    success: Success = ANYTHING
    argv: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class RecipeSteps:
    """The steps of a recipe that are one group, by name.

    `root` is the folder that their paths lie below. Where one `reads_history`, they are given how the context
    came to be.
    """

    root: Path
    steps: Mapping[str, GroupStep]
    is_shell: bool = False
    reads_history: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """A group of nodes as it runs: a file of kinds, and what their guests may use and reach.

    `program` has the mode `nodes`. `settings` are texts that its nodes get by name, beside the secrets of
    `reach`. Where `is_pool`, it runs as the route `nodes-<name>`, with `partitions` and `concurrency`; else
    in guests of the engine. Of a recipe it has the `steps`, and no program where they are shell steps.
    """

    app: str
    name: str
    namespace: str = ""  # of its kinds; empty: the app
    program: Program
    is_pool: bool
    policy: Rules = NO_POLICY
    audit: RouteAudit = RouteAudit()
    limits: Limits = field(default_factory=Limits)
    reach: Reach
    settings: Mapping[str, str] = field(default_factory=dict)
    emits: tuple[str, ...] = ()  # patterns that its nodes may send to
    concurrency: int = 1
    partitions: int = 64
    steps: RecipeSteps | None = None

    @property
    def route_name(self) -> str:
        """The name of the route that a pool is."""
        return f"nodes-{self.name}"

    @property
    def reads_history(self) -> bool:
        """Whether it is to get the history of the store."""
        return self.steps is not None and self.steps.reads_history

    @property
    def is_shell(self) -> bool:
        """Whether it has shell steps, which no guest runs."""
        return self.steps is not None and self.steps.is_shell

    @property
    def values(self) -> frozenset[str]:
        """The names that a class `Secrets` may have a field for: of secrets, and of settings."""
        return frozenset(self.settings) | {secret.name for secret in self.reach.secrets}


@dataclass(frozen=True, slots=True)
class GraphEngine:
    """What runs the graphs of an app: the route `graphs`, whose keys are runs.

    Records of runs that ended are kept for so many seconds as their state says. `secrets_key` seals what
    clients upload; empty where they cannot.
    """

    partitions: int = 64
    concurrency: int = 2
    keep_success_s: float = 7 * _DAY_S
    keep_failed_s: float = 30 * _DAY_S
    keep_cancelled_s: float = 7 * _DAY_S
    secrets_key: str = field(default="", repr=False)
