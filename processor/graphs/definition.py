"""What a graph is, as people write it: in the configuration, in a file of its own, or in a request.

The models here are the only description of the keys of a graph; YAML, requests and the client library share
them, and what is generated for people and editors is made from them. They are checked key by key; whether
nodes fit together is for `checks`, and what a run makes of them for `plan`.

Invariants: a definition is frozen, refuses unknown keys and wrong types, and holds no secret. Two that are
written differently and mean the same have one version, whichever build wrote them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from processor.model import RetryPolicy
from processor.schedule import check_time_zone, has_calendar, of_crontab
from processor.subject import Template, check_subject

# Built-in kind: an execution of it waits for a signal, such as an approval.
WAIT = "Wait"
# Built-in kind: it does nothing, and is there for what comes after it to have one root.
ROOT = "_root"
BUILT_IN = (WAIT, ROOT)
NESTED = "graph:"  # what the kind of a node that runs another graph begins with
STORE_VALUE_BYTES = 64 << 10
_LONGEST_WAIT_MS = 3_600_000.0  # where `max_delay` is not given
_YEAR_S = 366 * 86_400.0
# What the subject of a graph's output may take from the document of a finished run.
OUTPUT_FIELDS = ("graph", "run", "state")

NAME = r"^[A-Za-z0-9_-]{1,64}$"
Name = Annotated[str, Field(pattern=NAME)]
KindName = Annotated[str, Field(pattern=r"^(graph:)?[A-Za-z0-9_-]{1,64}$")]
# A reference to it, `${{ store.key }}`, has to end somewhere.
StoreKey = Annotated[str, Field(pattern=r"^[^\s.{}\x00-\x1f\x7f]{1,128}$")]
Seconds = Annotated[float, Field(gt=0, le=_YEAR_S)]
Strategy = Literal[
    "EXPONENTIAL",
    "EXPONENTIAL_FULL_JITTER",
    "EXPONENTIAL_EQUAL_JITTER",
    "LINEAR",
    "LINEAR_FULL_JITTER",
    "LINEAR_EQUAL_JITTER",
    "FIXED",
    "FIXED_FULL_JITTER",
    "FIXED_EQUAL_JITTER",
]


def _sequence(value: object) -> object:
    return () if value is None else tuple(value) if isinstance(value, list) else value


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    # Not `min_length`, which counts only the entries that are right, and so adds a fault of its own.
    if not value:
        raise ValueError("it must not be empty")
    return value


def _json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as err:
        raise ValueError(f"it cannot be written as JSON: {err}") from err
    return value


def _stored(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for key, each in _json(value).items():
        if (size := len(orjson.dumps(each))) > STORE_VALUE_BYTES:
            raise ValueError(f"the value of {key!r} has {size} bytes, more than {STORE_VALUE_BYTES}")
    return value


def _output_subject(value: str) -> str:
    for name in (template := Template.parse(value)).fields:
        if name not in OUTPUT_FIELDS and not name.startswith("outputs."):
            raise ValueError(f"{{{name}}} is not {{graph}}, {{run}}, {{state}} or {{outputs.NAME}}")
    if template.needs_key or template.needs_session or template.subject_tokens:
        raise ValueError("only {graph}, {run}, {state} and {outputs.NAME} can be placeholders here")
    return value


def _crontab(value: str) -> str:
    of_crontab(value)
    return value


def _event_subject(value: str) -> str:
    if Template.parse(value).pattern != value:
        raise ValueError("it must be one subject, without placeholders")
    return value


Object = Annotated[dict[str, JsonValue], AfterValidator(_json)]


class GraphKeys(BaseModel):
    """Keys that belong together: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    # The key that a plain text stands for where the mapping is not written out.
    short: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {cls.short: value} if cls.short and isinstance(value, str) else value


class UnitesDefinition(GraphKeys):
    """Where a node joins again what a node before it split or forked."""

    identifier: Name = Field(description="The node before it whose branches are united.", examples=["split"])
    strategy: Literal["ALL_SUCCESS", "ALL_DONE"] = Field(
        default="ALL_SUCCESS",
        description="ALL_SUCCESS: the node is skipped where an execution between has failed. ALL_DONE: it"
        " runs with what succeeded.",
    )


class RetryDefinition(GraphKeys):
    """How often an execution that failed is tried again, and how long it waits before."""

    max_retries: int = Field(default=3, ge=0, le=999, description="Tries after the first; 0 is none.")
    strategy: Strategy = Field(
        default="EXPONENTIAL",
        description="Wait after the n-th try: backoff_factor * exponent^(n-1), backoff_factor * n, or"
        " backoff_factor. FULL_JITTER takes a random part of it, EQUAL_JITTER half of it and a random part of"
        " the rest.",
    )
    backoff_factor: int = Field(
        default=2000, ge=1, le=86_400_000, description="Milliseconds that the wait is made from."
    )
    exponent: float = Field(default=2, ge=1, le=1000, description="Growth of an EXPONENTIAL wait.")
    max_delay: int | None = Field(
        default=None,
        ge=1,
        le=30 * 86_400_000,
        description="The longest wait in milliseconds; without it one hour.",
        examples=[60_000],
    )

    @property
    def policy(self) -> RetryPolicy:
        """The same as a policy that computes waits."""
        return RetryPolicy(
            self.max_retries + 1,
            self.strategy.lower(),
            self.backoff_factor,
            self.exponent,
            _LONGEST_WAIT_MS if self.max_delay is None else self.max_delay,
        )


class NodeRetryDefinition(GraphKeys):
    """What of the graph's `retry_policy` is another for one node."""

    max_retries: int | None = Field(
        default=None, ge=0, le=999, description="Tries after the first.", examples=[0]
    )
    strategy: Strategy | None = Field(default=None, description="How waits grow.", examples=["FIXED"])
    backoff_factor: int | None = Field(
        default=None,
        ge=1,
        le=86_400_000,
        description="Milliseconds that the wait is made from.",
        examples=[500],
    )
    exponent: float | None = Field(
        default=None, ge=1, le=1000, description="Growth of an EXPONENTIAL wait.", examples=[3]
    )
    max_delay: int | None = Field(
        default=None,
        ge=1,
        le=30 * 86_400_000,
        description="The longest wait in milliseconds.",
        examples=[60_000],
    )


class NodeDefinition(GraphKeys):
    """A place in a graph: which kind of node runs there, with which inputs, and what comes after it."""

    identifier: Name = Field(
        description="Name of the node in this graph: letters, digits, - and _, at most 64.",
        examples=["data_validator"],
    )
    node_name: KindName = Field(
        description="Its kind: the name of a class that is a BaseNode, `Wait`, which waits for a signal, or"
        " `graph:NAME`, another graph.",
        examples=["DataValidatorNode"],
    )
    namespace: Name | None = Field(
        default=None, description="Namespace of the kind; by default the app.", examples=["MyProject"]
    )
    inputs: Object = Field(
        default={},
        description="Inputs by name: any JSON, in whose texts `${{ node.outputs.field }}` and `${{ store.key"
        " }}` are references, and `$${{` stands for `${{`. What a trigger gives replaces those of the first"
        " node.",
        examples=[{"data": "${{ data_processor.outputs.processed_data }}"}],
    )
    next_nodes: Annotated[tuple[Name, ...], BeforeValidator(_sequence)] = Field(
        default=(), description="Identifiers of the nodes that run after it.", examples=[["report"]]
    )
    unites: UnitesDefinition | None = Field(
        default=None, description="Run once for all branches of a node before it, instead of for each."
    )
    retry: NodeRetryDefinition | None = Field(
        default=None,
        description="As `retry_policy` of the graph, from which the keys that are missing here are taken.",
    )
    timeout_s: Seconds | None = Field(
        default=None,
        description="Seconds that one try may take, its wait in a queue included (E710).",
        examples=[30],
    )

    @property
    def kind(self) -> str:
        """`namespace/Name`, `graph:name`, or the name of a built-in kind."""
        if self.node_name in BUILT_IN or self.graph is not None:
            return self.node_name
        return f"{self.namespace or ''}/{self.node_name}"

    @property
    def is_wait(self) -> bool:
        return self.node_name == WAIT

    @property
    def graph(self) -> str | None:
        """The name of the graph that the node runs, if it does."""
        return self.node_name.removeprefix(NESTED) if self.node_name.startswith(NESTED) else None


class StoreDefinition(GraphKeys):
    """The values that the nodes of one run share."""

    required_keys: Annotated[tuple[StoreKey, ...], BeforeValidator(_sequence)] = Field(
        default=(),
        description="Keys that a trigger has to give, unless they have a default (E707).",
        examples=[["cursor"]],
    )
    default_values: Annotated[dict[StoreKey, JsonValue], AfterValidator(_stored)] = Field(
        default={}, description="Values of keys that a trigger does not give.", examples=[{"cursor": "0"}]
    )
    history: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="How many changes of each key a run remembers, with time, author, old and new value: 96"
        " KiB of them together, the newest.",
        examples=[1000],
    )

    @property
    def missing_keys(self) -> tuple[str, ...]:
        """The keys that only a trigger can give."""
        return tuple(key for key in self.required_keys if key not in self.default_values)


class GraphOutputDefinition(GraphKeys):
    """Where a document goes for each run that has ended. A plain text is the subject."""

    short = "subject"

    subject: Annotated[str, AfterValidator(_output_subject)] = Field(
        description="Subject with placeholders: {graph}, {run}, {state}, or {outputs.NAME}. A stream keeps"
        " the documents, exactly one of each run.",
        examples=["results.{graph}"],
    )

    @cached_property
    def template(self) -> Template:
        """The subject; its fields are those of the document."""
        return Template.parse(self.subject)


class GraphEventsDefinition(GraphKeys):
    """Where the events of runs and their nodes go. A plain text is the subject."""

    short = "subject"

    subject: Annotated[str, AfterValidator(_event_subject)] = Field(
        description="Subject of the events.", examples=["events.graphs"]
    )
    level: Literal["user", "failures", "all"] = Field(
        default="failures",
        description="user: what nodes say with `self.event`. failures: also each run that FAILED or was"
        " CANCELLED. all: also each run that began, and each SUCCESS.",
    )


class CronDefinition(GraphKeys):
    """The times of a CRON trigger."""

    expression: Annotated[str, AfterValidator(_crontab)] = Field(
        description="Five fields: minute, hour, day of the month, month, day of the week; or six, the first"
        " for seconds.",
        examples=["0 9 * * 1-5"],
    )
    timezone: Annotated[str, AfterValidator(check_time_zone)] = Field(
        default="UTC", description="Time zone of the times of day.", examples=["Europe/Berlin"]
    )


class TriggerDefinition(GraphKeys):
    """What starts runs by itself: each message on a subject, or each due time of a schedule.

    Just one of `subject`, `schedule` and `type: CRON` is given; `when` and `zone` are the times of both of
    the latter.
    """

    subject: Annotated[str, AfterValidator(check_subject)] | None = Field(
        default=None,
        description="Subject or pattern: each message that a stream holds there is one run.",
        examples=["orders.*"],
    )
    create: bool = Field(
        default=False, description="Create a stream for the subject where there is none, as an input does."
    )
    schedule: Annotated[str, AfterValidator(of_crontab)] | None = Field(
        default=None,
        description="Each due time is one run: `@every 30s`, `@daily` and the like, or cron with five or six"
        " fields.",
        examples=["0 9 * * *"],
    )
    time_zone: Annotated[str, AfterValidator(check_time_zone)] | None = Field(
        default=None,
        description="Time zone of a `schedule` with times of day. Without it: UTC.",
        examples=["Europe/Berlin"],
    )
    type: Literal["CRON"] | None = Field(
        default=None,
        description="Another way to write a schedule, with its `value`.",
        examples=["CRON"],
    )
    value: CronDefinition | None = Field(default=None, description="The times of `type: CRON`.")
    inputs: Object = Field(
        default={},
        description="Inputs of the run. A text that is `${{ document }}`, `${{ document.field }}` or `${{"
        " subject }}` and nothing else becomes that of the message. Without inputs the fields of the document"
        " are.",
        examples=[{"order": "${{ document }}"}],
    )

    @model_validator(mode="after")
    def _is_one(self) -> TriggerDefinition:
        given = [key for key in ("subject", "schedule", "type") if getattr(self, key) is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "none of them"
            raise ValueError(f"a trigger has one of subject, schedule and type; this one has {what}")
        if (self.value is None) == (self.type is not None):
            raise ValueError("`type: CRON` and `value` belong together")
        if self.create and self.subject is None:
            raise ValueError("`create` has no effect without `subject`")
        if self.time_zone is not None and not (self.schedule and has_calendar(self.schedule)):
            raise ValueError("`time_zone` has no effect without a `schedule` with times of day")
        return self

    @property
    def when(self) -> str | None:
        """The NATS schedule, if it has due times."""
        return of_crontab(self.value.expression) if self.value else self.schedule

    @property
    def zone(self) -> str | None:
        """The time zone of the schedule; None is UTC."""
        if self.value:
            return None if self.value.timezone == "UTC" else self.value.timezone
        return self.time_zone


class GraphLimits(GraphKeys):
    """How large one run may become (E711)."""

    fan_out: int = Field(
        default=10_000, ge=1, le=100_000, description="Elements of the list that one execution returns."
    )
    executions: int = Field(default=100_000, ge=1, le=1_000_000, description="Executions of one run.")


class Graph(GraphKeys):
    """Everything about a graph but its name."""

    nodes: Annotated[tuple[NodeDefinition, ...], BeforeValidator(_sequence), AfterValidator(_not_empty)] = (
        Field(
            max_length=1000,
            json_schema_extra={"minItems": 1},
            description="The nodes; exactly one has nothing before it, and there are no circles.",
        )
    )
    retry_policy: RetryDefinition = Field(
        default=RetryDefinition(), description="What becomes of an execution that failed."
    )
    store_config: StoreDefinition = Field(
        default=StoreDefinition(), description="The store that the nodes of a run share."
    )
    outputs: Object = Field(
        default={},
        description="What a run returns, written as the inputs of a node are.",
        examples=[{"result": "${{ data_validator.outputs.result }}"}],
    )
    output: GraphOutputDefinition | None = Field(
        default=None, description="Where one document goes for each run that has ended, exactly once."
    )
    events: GraphEventsDefinition | None = Field(
        default=None, description="Where the events of its runs go: a subject, or a mapping."
    )
    triggers: Annotated[tuple[TriggerDefinition, ...], BeforeValidator(_sequence)] = Field(
        default=(), description="What starts runs by itself."
    )
    timeout_s: Seconds | None = Field(
        default=None,
        description="Seconds that a run may take before it is FAILED (E710); without it there is no end.",
        examples=[3600],
    )
    on_error: Literal["finish", "stop"] = Field(
        default="finish",
        description="After the last try of an execution failed. finish: other branches go on, and then the"
        " run is FAILED. stop: what is open is cancelled at once.",
    )
    strings_only: bool = Field(
        default=False, description="Inputs of nodes are texts, and other values become their JSON."
    )
    limits: GraphLimits = Field(default=GraphLimits(), description="How large one run may become.")


class GraphDefinition(Graph):
    """A graph by its name, each node with its namespace; what is stored as one version of it."""

    name: Name = Field(description="Name of the graph: letters, digits, - and _, at most 64.")
    test_meta: Object = Field(default={}, description="Of a recipe: what its events carry.")
    keeps_outputs: bool = Field(
        default=False, description="Of a recipe: a run keeps what each node returned, where it is small."
    )

    @classmethod
    def named(cls, name: str, graph: Graph, app: str) -> GraphDefinition:
        """The graph under this name; nodes without a namespace get that of the app."""
        nodes = tuple(
            node if node.namespace or "/" not in node.kind else node.model_copy(update={"namespace": app})
            for node in graph.nodes
        )
        keys = {key: getattr(graph, key) for key in Graph.model_fields}
        return cls.model_construct(None, **(keys | {"name": name, "nodes": nodes}))

    @classmethod
    def read(
        cls, name: str, keys: Mapping[str, Any], app: str
    ) -> tuple[GraphDefinition | None, list[Mapping[str, Any]]]:
        """The graph that these keys say; or none, and what is wrong with them, for `checks` to explain."""
        errors: list[Mapping[str, Any]] = []
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            errors.append({"type": "string_pattern_mismatch", "loc": ("name",), "input": name})
        try:
            graph = Graph.model_validate(dict(keys))
        except ValidationError as err:
            return None, [*errors, *err.errors(include_url=False)]
        return (None, errors) if errors else (cls.named(name, graph, app), [])

    @cached_property
    def document(self) -> bytes:
        """Its JSON, without the keys that have their default, in one form: what is stored, and hashed."""
        said = self.model_dump(mode="json", exclude_defaults=True)
        return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def of_document(cls, document: bytes) -> GraphDefinition:
        """What `document` wrote. Raises ValueError where a later build wrote keys that are unknown here."""
        return cls.model_validate(orjson.loads(document))

    @cached_property
    def version(self) -> str:
        """12 hex digits that name what it says."""
        return hashlib.sha256(self.document).hexdigest()[:12]

    @cached_property
    def by_identifier(self) -> Mapping[str, NodeDefinition]:
        """The nodes by their identifiers; of two that share one, the first."""
        found: dict[str, NodeDefinition] = {}
        for node in self.nodes:
            found.setdefault(node.identifier, node)
        return found

    def retry_of(self, node: NodeDefinition) -> RetryPolicy:
        """What becomes of an execution of this node that failed."""
        given = node.retry.model_dump(exclude_none=True) if node.retry else {}
        return self.retry_policy.model_copy(update=given).policy

    @property
    def kinds(self) -> Iterator[str]:
        """The kinds `namespace/Name` that its nodes are of, each once."""
        yield from dict.fromkeys(node.kind for node in self.nodes if "/" in node.kind)

    @property
    def graphs(self) -> Iterator[str]:
        """The graphs that its nodes run, each once."""
        yield from dict.fromkeys(node.graph for node in self.nodes if node.graph is not None)


def keys_at(place: tuple[str | int, ...], top: type[BaseModel] = Graph) -> list[str]:
    """The keys of the mapping at a place below a model, by default of a graph, as far as models know them."""
    model: type[BaseModel] | None = top
    for step in place:
        if isinstance(step, str):
            info = model.model_fields.get(step) if model else None
            model = _model_in(info.annotation) if info else None
    return [info.alias or name for name, info in model.model_fields.items()] if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


class NodeKind(NamedTuple):
    """A kind of node that some processor or worker has: what it takes and gives, and where it runs.

    `inputs` and `outputs` are the JSON Schemas of its models, `secrets` the names of the fields of its
    `Secrets`, and `optional` those of them that have a default. `group` is the group of the configuration
    that has it, empty for one of an external worker.
    """

    namespace: str
    name: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    secrets: tuple[str, ...] = ()
    where: Literal["inline", "pool", "external"] = "inline"
    group: str = ""
    doc: str = ""
    optional: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The names that its `Secrets` cannot do without."""
        return tuple(name for name in self.secrets if name not in self.optional)

    @property
    def id(self) -> str:
        """As nodes name it: `namespace/Name`."""
        return f"{self.namespace}/{self.name}"
