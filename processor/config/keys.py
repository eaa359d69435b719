"""Every key of the configuration: its type, its default, its bounds and what it means.

The models here are the only description of the keys; what is generated for people and editors, and what a
fault says about a key, is made from them. Values that depend on other keys are methods and properties of
the model that holds them. What is written in a file is checked here key by key; whether keys fit together
is for `rules`.

Invariants: a model is frozen, refuses unknown keys and wrong types, and shows no secret in its repr.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin
from urllib.parse import unquote, urlsplit

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    PrivateAttr,
    SecretStr,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo

from processor.config.auditing import AuditLevel, AuditSettings
from processor.config.forms import (
    File,
    Listed,
    Place,
    Settings,
    Size,
    Text,
    Time,
    alias_of,
    inner_model,
    on_off,
    read_secret,
    sequence,
)
from processor.config.graphs import GROUP, EngineKeys, GraphEntry, NodeGroupKeys
from processor.config.inference import EndpointSettings
from processor.config.ism import Ism
from processor.config.keeping import (
    CREATED_MAX_BYTES,
    CreatedStream,
    DeadLetterSettings,
    HistorySettings,
    created_stream,
)
from processor.config.limits import LimitSettings
from processor.config.outside import (
    FileRootSettings,
    OutboundSettings,
    SecretSource,
    StateApiSettings,
    StockSettings,
)
from processor.config.recipes import RECIPE, RecipeSettings
from processor.config.tools import ToolSettings
from processor.graphs.definition import GraphDefinition, Name
from processor.reach import InferenceEndpoint, Tool
from processor.recipes.definition import Recipe
from processor.route import GraphEngine, KeySource, NodeGroup, Route
from processor.schedule import check_schedule, check_time_zone
from processor.subject import Template, check_subject, check_target


def _subject_pattern(value: str) -> str:
    return check_subject(value)


def _target(value: str) -> str:
    return check_target(value)


def _template(value: str) -> str:
    return Template.parse(value).text


def _key(value: str) -> str:
    return str(KeySource.parse(value))


def _sendable(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as err:
        raise ValueError(f"it cannot be written as JSON: {err}") from err
    return value


def _fixed_subject(value: str) -> str:
    template = Template.parse(value)
    if template.pattern != value:
        raise ValueError("it must be one subject, without placeholders")
    return value


def _one_or_more(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    if value == []:
        raise ValueError("it must not be empty")
    return tuple(value) if isinstance(value, list) else value


def _server(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("nats", "tls") and bool(parts.hostname) and (parts.port or 4222) > 0
    except ValueError:
        usable = False
    if not usable and url != "embedded":
        raise ValueError("it must be nats://host:4222, tls://host:4222 or embedded")
    return url


Secret = Annotated[SecretStr, PlainSerializer(lambda _: "***", return_type=str)]
Servers = Annotated[
    tuple[Annotated[Text, AfterValidator(_server)], ...],
    BeforeValidator(_one_or_more),
    PlainSerializer(lambda urls: urls[0] if len(urls) == 1 else list(urls)),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]


class Tls(Settings):
    """TLS to the NATS server. `tls: {}` is TLS with the system's certificate authorities."""

    ca: File | None = Field(
        default=None, description="Certificate authorities to trust, PEM file.", examples=["ca.pem"]
    )
    cert: File | None = Field(
        default=None, description="Our certificate, PEM file; needs `key`.", examples=["client.pem"]
    )
    key: File | None = Field(default=None, description="Our private key, PEM file.", examples=["client.key"])
    handshake_first: bool = Field(
        default=False,
        description="Start TLS before the server speaks, for servers configured with handshake_first.",
    )


@dataclass(frozen=True)
class Credentials:
    """What a connection shows to the server; at most one way is set. Never printed."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    nkey_seed: str = field(default="", repr=False)
    creds_file: str = ""


class Nats(Settings):
    """The NATS server (2.12 or newer, with JetStream) and the streams that are made there."""

    short = "url"

    url: Servers = Field(
        default=("nats://127.0.0.1:4222",),
        description="Server, or a list of servers of one cluster; `embedded` starts an own server for"
        " development.",
    )
    user: Text | None = Field(default=None, description="User name.", examples=["processor"])
    password: Secret | None = Field(
        default=None,
        description="Password of `user`. Better: `password_file` or NATS_PASSWORD.",
        examples=["..."],
    )
    password_file: File | None = Field(
        default=None, description="File that holds the password.", examples=["/run/secrets/nats-password"]
    )
    token: Secret | None = Field(
        default=None,
        description="Token, instead of a user. Better: `token_file` or NATS_TOKEN.",
        examples=["..."],
    )
    token_file: File | None = Field(
        default=None, description="File that holds the token.", examples=["/run/secrets/nats-token"]
    )
    nkey_seed: Secret | None = Field(
        default=None, description="Nkey seed. Better: `nkey_seed_file` or NATS_NKEY_SEED.", examples=["SU..."]
    )
    nkey_seed_file: File | None = Field(
        default=None, description="File that holds the nkey seed.", examples=["/run/secrets/nats.nk"]
    )
    creds_file: File | None = Field(
        default=None,
        description="Credentials file (JWT and seed) as `nsc` writes it.",
        examples=["/run/secrets/nats.creds"],
    )
    tls: Tls | None = Field(
        default=None, description="TLS. Without this block, `tls://` in `url` still means TLS."
    )
    replicas: int = Field(
        default=1, ge=1, le=5, description="Replicas of the streams that are created here; 3 in a cluster."
    )
    storage: Literal["file", "memory"] = Field(
        default="file",
        description="Storage of the streams that are created here; memory does not survive the server.",
    )
    store_dir: File = Field(
        default=".processor/nats",
        validate_default=True,
        description="Where the embedded server keeps its data.",
    )

    @property
    def embedded(self) -> bool:
        """Whether we start the server ourselves."""
        return self.url == ("embedded",)

    @property
    def credentials(self) -> Credentials:
        """What to show to the server now; files are read at each call. Raises ConfigError E107."""

        def value(own: SecretStr | None, file: str | None) -> str:
            return own.get_secret_value() if own else read_secret(file) if file else ""

        return Credentials(
            user=self.user or "",
            password=value(self.password, self.password_file),
            token=value(self.token, self.token_file),
            nkey_seed=value(self.nkey_seed, self.nkey_seed_file),
            creds_file=self.creds_file or "",
        )

    @model_validator(mode="before")
    @classmethod
    def _move_credentials(cls, value: Any) -> Any:
        """Take user and password out of URLs, so that a URL can be printed."""
        if not isinstance(value, dict) or not value.get("url"):
            return value
        urls = _one_or_more(value["url"])
        if not isinstance(urls, tuple) or not all(isinstance(url, str) for url in urls):
            return value
        found: set[tuple[str, str | None]] = set()
        bare = []
        for url in urls:
            parts = urlsplit(url if "://" in url or url == "embedded" else f"nats://{url}")
            if "@" in parts.netloc:
                found.add(
                    (unquote(parts.username or ""), unquote(parts.password) if parts.password else None)
                )
            bare.append(url if url == "embedded" else f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")
        value = {**value, "url": bare}
        if len(found) > 1:
            raise ValueError(
                "the servers in `url` have different users; give one, in `user` and `password_file`"
            )
        for user, password in found:
            own = {"token": user} if password is None else {"user": user, "password": password}
            if set(own) & set(value):
                raise ValueError("a user or token is given both in `url` and as its own key")
            value |= own
        return value


class InputSettings(Settings):
    """What a route reads. A plain text is the subject."""

    short = "subject"

    subject: Annotated[Text, AfterValidator(_subject_pattern)] | None = Field(
        default=None,
        description="Subject or pattern; the stream that holds it is found by it. Required, but for `codec:"
        " ism` and for a `schedule`.",
        examples=["ticks.*"],
    )
    create: Annotated[
        CreatedStream | None,
        BeforeValidator(created_stream),
        WithJsonSchema({"anyOf": [CreatedStream.model_json_schema(), {"type": "boolean"}]}),
    ] = Field(
        default=None,
        description="Create a stream for the subject where there is none: true, or the limits of that stream."
        " A stream that is there stays as it is.",
    )
    start: Literal["all", "new"] = Field(
        default="all",
        description="Where a route starts that has no position yet: with the oldest message that the stream"
        " holds, or with the next one that arrives.",
    )
    codec: Literal["json", "raw", "cloudevents", "ism"] = Field(
        default="json",
        description="How messages are read and outputs written. json: a document, or a list of documents."
        " raw: any bytes. cloudevents: CloudEvents 1.0 in binary or structured mode. ism: the envelope of the"
        " Alethic ISM processors.",
    )
    delete_markers: Literal["pass", "skip"] = Field(
        default="pass",
        description="What becomes of a KV bucket's delete, purge and expiry markers. pass: the Runnable gets"
        " them, as null with `codec: json`. skip: they are settled without a run.",
    )
    repartition: bool = Field(
        default=False,
        description="One processor reads the subject and deals its messages to the partitions, through the"
        " app's own stream: so several processors share a work-queue or interest stream too, in order per"
        " key. Needs `key`.",
    )
    schedule: Annotated[Text, AfterValidator(check_schedule)] | None = Field(
        default=None,
        description="Instead of a subject: when the NATS server sends the route its `document`. `@every"
        " 30s`, `@at 2026-12-01T08:00:00Z`, `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, or cron"
        " with six fields, the first for seconds.",
        examples=["@every 30s"],
    )
    time_zone: Annotated[Text, AfterValidator(check_time_zone)] | None = Field(
        default=None,
        description="Time zone of a `schedule` with times of day. Without it: UTC.",
        examples=["Europe/Berlin"],
    )
    document: Annotated[dict[str, JsonValue], AfterValidator(_sendable)] | None = Field(
        default=None,
        description="What a `schedule` sends; without it {time: '{time}'}. A text that is {time} and nothing"
        " else becomes the time at which it was due, in UTC.",
        examples=[{"time": "{time}"}],
    )
    catch_up: bool = Field(
        default=True,
        description="Whether what was due while the route did not run waits for it. false: only the newest"
        " does.",
    )


class OutputSettings(Settings):
    """Where a route's outputs go. A plain text is the subject."""

    short = "subject"

    subject: Annotated[Text, AfterValidator(_template)] = Field(
        description="Subject with placeholders: {key}; {subject.N}, a token of the input's subject; {session}"
        " (stream mode); {name} or {a.b}, a field of the output document.",
        examples=["stats.{key}"],
    )
    durable: bool = Field(
        default=True,
        description="true: a stream of the subject keeps the outputs, exactly once and in order (in stream"
        " mode: the chunks that reach it). false: only those who are subscribed at that moment get them.",
    )
    ttl: Time = Field(
        default=86400.0,
        ge=1,
        description="How long the app's own stream keeps an output. It must outlive any time in which the"
        " stream of the subject cannot be reached. Not for stream mode.",
    )
    max_age: Time = Field(
        default=7 * 86400.0,
        ge=0,
        description="How long a stream that is created for the subject keeps outputs; 0 is for ever.",
    )
    max_bytes: Size = Field(
        default=CREATED_MAX_BYTES,
        ge=0,
        description="How much a stream that is created for the subject keeps, oldest dropped first; 0 is"
        " without limit. The server sets that room aside; where it cannot, a stream without a limit of your"
        " own is made without.",
    )


class Events(Settings):
    """Where a route's events go. A plain text is the subject."""

    short = "subject"

    subject: Annotated[Text, AfterValidator(_fixed_subject)] = Field(
        description="Subject of the events.", examples=["events.stats"]
    )
    level: Literal["user", "failures", "all"] = Field(
        default="failures",
        description="user: what the Runnable says with `self.event`. failures: also each message that was"
        " given up (a dead letter, or dropped), and the breaker. all: also each message that completed, and"
        " each start and stop of the route.",
    )


class BatchSettings(Settings):
    """How many messages one call of `process` and one commit may take. An idle route never waits for more."""

    max_messages: int = Field(default=500, ge=1, le=10_000, description="Messages in one batch.")
    max_bytes: Size = Field(
        default=4 << 20, ge=1024, description="Payload bytes in one batch; one message may exceed it."
    )
    max_wait_ms: float = Field(
        default=5,
        ge=0,
        le=60_000,
        description="How long a batch that is not full waits for more while the one before it is committed;"
        " with no commit under way it runs at once.",
    )


class RetrySettings(Settings):
    """What happens to a message that failed. One that cannot be read at all is never tried again."""

    attempts: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Tries, the first included, before `then` decides. They are counted over restarts.",
    )
    strategy: Literal[
        "exponential",
        "exponential_full_jitter",
        "exponential_equal_jitter",
        "linear",
        "linear_full_jitter",
        "linear_equal_jitter",
        "fixed",
        "fixed_full_jitter",
        "fixed_equal_jitter",
    ] = Field(
        default="exponential_full_jitter",
        description="Wait after the n-th try: base_ms * factor^(n-1), base_ms * n, or base_ms. full_jitter"
        " takes a random part of it, equal_jitter half of it and a random part of the rest.",
    )
    base_ms: float = Field(default=200, ge=0, le=86_400_000, description="Wait after the first try.")
    factor: float = Field(default=2, ge=1, le=1000, description="Growth of an exponential wait.")
    max_ms: float = Field(
        default=60_000,
        ge=0,
        le=30 * 86_400_000,
        description="The longest wait. What waits for more than 2 s is kept by the server, and later messages"
        " of its key are processed meanwhile, unless `then` is block.",
    )
    then: Literal["dead_letter", "block", "drop"] = Field(
        default="dead_letter",
        description="After the last try. dead_letter: keep it, go on. block: go on trying every max_ms while"
        " the later messages of its key wait. drop: count it and keep nothing.",
    )


class BreakerSettings(Settings):
    """When a route pauses because its guests keep dying (E503), and for how long."""

    deaths: int = Field(
        default=5,
        ge=2,
        le=1000,
        description="Guests in a row that die over more than one message, or before they have one, until the"
        " breaker opens. One message alone never opens it, however often it is tried.",
    )
    window_s: float = Field(
        default=60,
        gt=0,
        le=86_400,
        description="Seconds in which they die; 1.2 x `deaths` x `limits.wall_s` where that is longer.",
    )
    pause_s: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="Seconds until one message is tried again; twice as long each time that it kills its"
        " guest, up to ten times this.",
    )


class CallSettings(Settings):
    """What becomes of the answers that a message's calls to the outside got when it is run again."""

    replay: Literal["attempt", "writes", "all"] = Field(
        default="attempt",
        description="Which answers are handed out again, from memory, instead of a new call. attempt: those"
        " of the same try, as when another message of the batch failed. writes: in later tries also those of"
        " POST, PUT, PATCH and DELETE below 400, of models and of tools of an MCP server. all: all of them."
        " No answer, 429 and 5xx are never kept.",
    )


class CloudEvents(Settings):
    """What the outputs of a route with `codec: cloudevents` say about themselves."""

    type: Text | None = Field(
        default=None,
        description="`type` of outputs. Without it: processor.<route>.output.",
        examples=["com.example.stats"],
    )
    source: Text | None = Field(
        default=None,
        description="`source` of outputs. Without it: /processor/<app>/<route>.",
        examples=["/stats"],
    )


_FILE_AND_CLASS = re.compile(r"(.+\.py):([^\W\d]\w*)")


class RouteSettings(Settings):
    """One input, the Runnable that reads it, and where its results go."""

    input: InputSettings = Field(
        description="What the route reads: a subject, or a mapping.", examples=["ticks.*"]
    )
    runnable: File | None = Field(
        default=None,
        description="Python file with `class Runnable`, relative to this file; `file.py:Name` for a class of"
        " another name. One of `runnable` and `code` is required.",
        examples=["runnables/stats.py"],
    )
    code: Text | None = Field(
        default=None,
        description="The source itself, instead of `runnable`.",
        examples=["class Runnable: ..."],
    )
    mode: Literal["batch", "stream"] = Field(
        default="batch",
        description="batch: `process(queries)`, outputs and context committed as one. stream:"
        " `process_stream(query)`,"
        " what it yields is sent at once.",
    )
    key: Annotated[str, AfterValidator(_key)] = Field(
        default="none",
        description="What separates contexts and keeps order: none (one context), subject.N (token N of the"
        " subject,"
        " counted from 1), header.NAME (the last one where it is repeated), or json./pointer into the"
        " document.",
        examples=["subject.2"],
    )
    partitions: int = Field(
        default=64,
        ge=1,
        le=512,  # one commit claims them all, and carries a position for each
        description="Parts that the keys are spread over; fixed once the route has run. 1 where `key` is"
        " none.",
    )
    concurrency: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many guests of the route work at the same time in one process. The messages of a key"
        " go to one of them, in order; each has the whole of `limits`.",
    )
    output: OutputSettings | None = Field(
        default=None,
        description="Where outputs go: a subject, or a mapping. Without it there are none.",
        examples=["stats.{key}"],
    )
    events: Events | None = Field(
        default=None,
        description="Where events go: a subject, or a mapping. Without it there are none.",
        examples=["events.stats"],
    )
    emits: Listed[Annotated[Text, AfterValidator(_target)]] = Field(
        default=(),
        description="Subjects or patterns that the Runnable may send to with `self.emit(subject, document,"
        " delay_s)`; streams keep the messages, as they keep durable outputs. Without it there are none.",
        examples=[["orders.*", "alerts"]],
    )
    nan_as_null: bool = Field(
        default=False,
        description="Write NaN as null in outputs, emits, events and chunks. Without it NaN, which JSON"
        " lacks, is an error (E306); infinity always is.",
    )
    batch: BatchSettings = Field(default=BatchSettings(), description="Size of batches and commits.")
    retry: RetrySettings = Field(
        default=RetrySettings(), description="What happens to a message that failed."
    )
    limit_settings: LimitSettings = Field(
        default=LimitSettings(), alias="limits", description="What the Runnable may use."
    )
    calls: CallSettings = Field(
        default=CallSettings(), description="Whether calls to the outside are made again with their message."
    )
    breaker: BreakerSettings = Field(
        default=BreakerSettings(), description="When the route pauses because its guests keep dying (E503)."
    )
    dlq: DeadLetterSettings = Field(
        default=DeadLetterSettings(), description="How long the route's dead letters are kept."
    )
    history: HistorySettings = Field(
        default=HistorySettings(), description="How long what has changed in the contexts can be looked up."
    )
    stock: StockSettings = Field(
        default=StockSettings(),
        description="As `stock` at the top; keys that are missing here are taken from there.",
    )
    state_api: StateApiSettings = Field(
        default=StateApiSettings(),
        description="As `state_api` at the top; keys that are missing here are taken from there.",
    )
    outbound: OutboundSettings = Field(
        default=OutboundSettings(),
        description="As `outbound` at the top; keys that are missing here are taken from there.",
    )
    secrets: Listed[Text] = Field(default=(), description="Names of the secrets that the Runnable may use.")
    files: Listed[Text] = Field(
        default=(), description="Names of the directories under `files` that the Runnable may use."
    )
    tools: Listed[Text] = Field(
        default=(),
        description="Names of the tools under `tools` that the Runnable may call; of an MCP server calc:"
        " calc/add, or a pattern such as calc/*.",
    )
    inference: Listed[Text] = Field(
        default=(),
        description="Names of the endpoints under `inference` that the Runnable may ask; of a model the first"
        " one that serves it.",
    )
    language: Literal["restricted", "python"] = Field(
        default="restricted",
        description="restricted: the reviewed subset of Python. python: all of it, in the same jail; needs"
        " the level confined.",
    )
    packages: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")], ...],
        BeforeValidator(sequence),
    ] = Field(
        default=(),
        description="Packages installed beside Processor that plain Python may import, by the name of the"
        " import or of the distribution. Only with `language: python`.",
    )
    modules: File | None = Field(
        default=None,
        description="As `modules` at the top, for this route.",
        examples=["lib/"],
    )
    heap: dict[Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")], File] = Field(
        default={},
        description="JSON Schemas (files) by type: what the values of objects of `self.heap` must fit.",
        examples=[{"counter": "schemas/counter.json"}],
    )
    policy: Listed[File] = Field(
        default=(),
        description="Policy files beside those at the top, for this route: each of them must allow.",
    )
    ism: Ism | None = Field(default=None, description="Required with `codec: ism`.")
    cloudevents: CloudEvents | None = Field(default=None, description="For `codec: cloudevents`.")

    @model_validator(mode="before")
    @classmethod
    def _default_partitions(cls, value: Any) -> Any:
        if isinstance(value, dict) and "partitions" not in value and value.get("key", "none") == "none":
            return {**value, "partitions": 1}
        return value

    @property
    def runnable_file(self) -> str:
        """The file of `runnable`, without the class that may stand behind it."""
        return self._runnable_parts[0]

    @property
    def class_name(self) -> str:
        """The class that the route calls."""
        return self._runnable_parts[1]

    @property
    def _runnable_parts(self) -> tuple[str, str]:
        found = _FILE_AND_CLASS.fullmatch(self.runnable or "")
        return (found[1], found[2]) if found else (self.runnable or "", "Runnable")

    @cached_property
    def key_source(self) -> KeySource:
        return KeySource.parse(self.key)

    @cached_property
    def output_template(self) -> Template | None:
        return Template.parse(self.output.subject) if self.output else None

    @property
    def events_subject(self) -> str | None:
        return self.events.subject if self.events else None


class Sandbox(Settings):
    """The jail around Runnables."""

    min_level: Literal["isolated", "confined", "process"] = Field(
        default="confined",
        description="Refuse to start where the kernel allows less. isolated: namespaces and an empty root."
        " confined: system calls and files closed off. process: an own process with limits.",
    )


class Http(Settings):
    """Metrics and health over HTTP: /metrics, /livez, /readyz."""

    host: Text = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(default=9464, ge=0, le=65_535, description="Port; 0 takes any free one and logs it.")


class Logs(Settings):
    """What the service itself logs, on stderr; never payloads."""

    format: Literal["human", "json"] = Field(
        default="human", description="For people, or one JSON object per line."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is logged."
    )


def _feed_subject(value: str) -> str:
    template = Template.parse(value)
    if template.needs_key or template.needs_session or template.subject_tokens:
        raise ValueError("only fields of the record can be placeholders here")
    return value


class Dev(Settings):
    """What `processor dev` publishes to the routes' inputs at each start."""

    feed: File = Field(description="File with one JSON document per line.", examples=["ticks.jsonl"])
    subject: Annotated[Text, AfterValidator(_feed_subject)] = Field(
        description="Subject of each document; {name} or {a.b} is a field of it.", examples=["ticks.{symbol}"]
    )

    @cached_property
    def template(self) -> Template:
        return Template.parse(self.subject)


def _http_off(value: object) -> object:
    return None if value in ("off", False) else {} if value is None else value


class Config(Settings):
    """A processor's whole configuration."""

    app: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,32}$",
        description="Name of the app: letters, digits, - and _, at most 32. It names the stream P_<app> that"
        " holds positions, contexts and dead letters; under another name everything starts from scratch.",
        examples=["market"],
    )
    nats: Nats = Field(default=Nats(), description="The NATS server: a URL, `embedded`, or a mapping.")
    route_settings: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], RouteSettings] = Field(
        default={},
        min_length=1,
        alias="routes",
        description="The routes by name: letters, digits, - and _, at most 64. Required, but for an app that"
        " runs graphs.",
    )
    engine_keys: EngineKeys | None = Field(
        default=None,
        alias="engine",
        description="What runs graphs. It is there with its defaults where there are `nodes`, `graphs` or"
        " `recipes`.",
    )
    group_keys: dict[Annotated[str, Field(pattern=GROUP)], NodeGroupKeys] = Field(
        default={},
        alias="nodes",
        description="Groups of nodes that graphs are made of, by name: letters, digits, - and _, at most 58.",
    )
    graph_keys: dict[Name, GraphEntry] = Field(
        default={}, alias="graphs", description="Graphs by name: letters, digits, - and _, at most 64."
    )
    recipe_keys: dict[Annotated[str, Field(pattern=RECIPE)], RecipeSettings] = Field(
        default={},
        alias="recipes",
        description="Recipes by name, each a graph of that name: letters, digits, - and _, at most 51.",
    )
    modules: File | None = Field(
        default=None,
        description="Folder of Python files that Runnables may import, relative to this file: `lib/fees.py`"
        " is `lib.fees`. At most 256 files and 1 MiB, each in the language of the route.",
        examples=["lib/"],
    )
    policy: Listed[File] = Field(
        default=(),
        description="Policy files (TOML), such as policy.toml, relative to this file. With one, Runnables may"
        " do only what a line of it allows; of several each must allow.",
    )
    audit: AuditSettings = Field(default=AuditSettings(), description="Who did what, kept and sealed.")
    stock: StockSettings = Field(default=StockSettings(), description="Default of every route's `stock`.")
    state_api: StateApiSettings = Field(
        default=StateApiSettings(), description="Default of every route's `state_api`."
    )
    outbound: OutboundSettings = Field(
        default=OutboundSettings(), description="Default of every route's `outbound`."
    )
    secrets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], SecretSource] = Field(
        default={}, description="Secrets by name: letters, digits, - and _, at most 64."
    )
    roots: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], FileRootSettings] = Field(
        default={},
        alias="files",
        description="Directories that Runnables may use, by name: letters, digits, - and _, at most 64. In a"
        " Runnable a path is name:/path.",
        examples=[{"data": {"path": "/srv/data", "write": True}}],
    )
    tools: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], ToolSettings] = Field(
        default={},
        description="Tools that Runnables may call with `self.tools.call`, by name: letters, digits, - and _,"
        " at most 64.",
    )
    endpoints: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], EndpointSettings] = Field(
        default={},
        alias="inference",
        description="Servers of models that Runnables may ask with `self.infer` and `self.embed`, by name:"
        " letters, digits, - and _, at most 64.",
    )
    sandbox: Sandbox = Field(default=Sandbox(), description="The jail around Runnables.")
    http: Annotated[
        Http | None,
        BeforeValidator(_http_off),
        WithJsonSchema({"anyOf": [Http.model_json_schema(), {"enum": ["off", False]}]}),
    ] = Field(default=Http(), description="Metrics and health: a mapping, or `off`.")
    control: Annotated[
        Literal["on", "off"], BeforeValidator(on_off), WithJsonSchema({"enum": ["on", "off", True, False]})
    ] = Field(
        default="on",
        description="Whether requests on ctl.<app>.api.> are answered, and `nats micro` finds the processor.",
    )
    logs: Logs = Field(default=Logs(), description="What the service logs.")
    drain_s: float = Field(
        default=10,
        ge=0,
        le=3600,
        description="How long SIGTERM may take to finish and commit what is in hand, in seconds.",
    )

    dev: Dev | None = Field(
        default=None, description="For `processor dev` only: records to try the routes with."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_nats(cls, value: Any) -> Any:
        # A default is not validated, and so its paths would not become relative to the file.
        return {**value, "nats": value.get("nats", {})} if isinstance(value, dict) else value

    _routes: dict[str, Route] = PrivateAttr(default_factory=dict)
    _engine: GraphEngine | None = PrivateAttr(default=None)
    _groups: dict[str, NodeGroup] = PrivateAttr(default_factory=dict)
    _graphs: dict[str, GraphDefinition] = PrivateAttr(default_factory=dict)
    _graph_files: tuple[Path, ...] = PrivateAttr(default=())
    _recipes: dict[str, Recipe] = PrivateAttr(default_factory=dict)
    _tools: dict[str, Tool] = PrivateAttr(default_factory=dict)
    _inference: dict[str, InferenceEndpoint] = PrivateAttr(default_factory=dict)
    _path: Path = PrivateAttr(Path())
    _origins: dict[Place, str] = PrivateAttr(default_factory=dict)

    @property
    def routes(self) -> Mapping[str, Route]:
        """The routes by name, as they run: made once, when the configuration was loaded."""
        return self._routes

    @property
    def has_engine(self) -> bool:
        """Whether the app runs graphs: its own, or those of clients."""
        return self.engine_keys is not None or bool(self.group_keys or self.graph_keys or self.recipe_keys)

    @property
    def engine(self) -> GraphEngine | None:
        """What runs graphs; None where nothing of them is configured."""
        return self._engine

    @property
    def groups(self) -> Mapping[str, NodeGroup]:
        """The groups of nodes by name, as they run."""
        return self._groups

    @property
    def graphs(self) -> Mapping[str, GraphDefinition]:
        """The graphs of the configuration by name, each node with its namespace, free of faults of their own.

        Whether their kinds are there, and fit, only a registry can say.
        """
        return self._graphs

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """The recipes of the configuration by name; each is one of its graphs, too."""
        return self._recipes

    @property
    def runtime_tools(self) -> Mapping[str, Tool]:
        """The tools by name, whether or not a route lists them."""
        return self._tools

    @property
    def inference(self) -> Mapping[str, InferenceEndpoint]:
        """The endpoints of models by name, whether or not a route lists them."""
        return self._inference

    @property
    def audit_level(self) -> AuditLevel:
        """What is recorded of runs: as `audit.level` says, or as a policy makes it."""
        if self.audit.level is not None:
            return self.audit.level
        is_governed = bool(
            self.policy
            or any(route.policy for route in self.route_settings.values())
            or any(group.policy for group in self.group_keys.values())
            or any(recipe.policy for recipe in self.recipe_keys.values())
        )
        return "calls" if is_governed else "off"

    @property
    def audit_origin(self) -> str:
        """The name of the app's audit in its seals."""
        return f"{self.audit.origin}/{self.app}"

    def with_routes(self, routes: Mapping[str, Route]) -> Config:
        """The same configuration with these routes to run."""
        copy = self.model_copy()
        copy._routes = dict(routes)
        return copy

    def with_engine(self, engine: GraphEngine) -> Config:
        """The same configuration with this engine to run graphs."""
        copy = self.model_copy()
        copy._engine = engine
        return copy

    @property
    def path(self) -> Path:
        """The file it was loaded from."""
        return self._path

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders of modules: a file *.py that comes or goes there changes this configuration."""
        found = [route.modules for route in self.route_settings.values()]
        found += [group.modules for group in self.group_keys.values()]
        return tuple(dict.fromkeys(Path(folder) for folder in found if folder))

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file, and folder, whose change changes this configuration; to be watched."""
        found = [self._path]
        for settings in self.route_settings.values():
            found += [Path(settings.runnable_file)] if settings.runnable else []
            found += [Path(settings.ism.routing_file)] if settings.ism else []
            found += map(Path, settings.policy)
            found += map(Path, settings.heap.values())
        for tool in self.tools.values():
            found += tool.files
        for group in self.group_keys.values():
            found += map(Path, (group.file, *group.policy))
        found += self._graph_files
        for recipe in self.recipe_keys.values():
            found += map(Path, (recipe.file, *recipe.policy))
        programs = [route.program for route in self.routes.values()]
        programs += [group.program for group in self.groups.values() if group.steps is None]
        found += [Path(module.filename) for program in programs for module in program.modules]
        for made in self.groups.values():  # the modules of steps are named below the root of their recipe
            if made.steps is not None:
                found += [made.steps.root / module.filename for module in made.program.modules]
        found += self.folders
        found += [Path(source.file) for source in self.secrets.values() if source.file]
        key = self.engine_keys.secrets_key if self.engine_keys else None
        found += [Path(key.file)] if key and key.file else []
        return tuple(dict.fromkeys(found))


def field_at(place: Place) -> FieldInfo | None:
    """The field that describes the key at `place`, if there is such a key."""
    model: type[BaseModel] | None = Config
    info: FieldInfo | None = None
    named = False
    for step in place:
        if named or isinstance(step, int):  # a route's own name, or a place in a list
            named = False
            continue
        by_alias = {alias_of(name, each): each for name, each in model.model_fields.items()} if model else {}
        if step not in by_alias:
            return None
        info = by_alias[step]
        named = get_origin(info.annotation) is dict
        model = inner_model(info.annotation)
    return info


def model_at(place: Place) -> type[BaseModel] | None:
    """The model of the mapping at `place`."""
    info = field_at(place)
    return inner_model(info.annotation) if info else Config if not place else None
