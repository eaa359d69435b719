"""Keys of graphs and of the nodes that they are made of: `engine`, `nodes` and `graphs`.

What a graph is, `graphs.definition` says; here are the file that it may stand in, the groups of nodes with
what they may use, and the engine that runs them. `engine.py` beside has what these keys come to.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from processor.config.forms import File, Listed, Settings, Text, Time, sequence
from processor.config.limits import GuestLimits
from processor.config.outside import OutboundSettings
from processor.graphs.definition import Graph
from processor.subject import check_target

# With `nodes-` in front it is the name of a route.
GROUP = r"^[A-Za-z0-9_-]{1,58}$"


def _target(value: str) -> str:
    return check_target(value)


class KeepSettings(Settings):
    """How long the app's stream keeps the record of a run that has ended."""

    success: Time = Field(default=7 * 86400.0, ge=60, description="Of a run that ended well.")
    failed: Time = Field(
        default=30 * 86400.0,
        ge=60,
        description="Of a run that FAILED; so long it can be retried.",
    )
    cancelled: Time = Field(default=7 * 86400.0, ge=60, description="Of a run that was cancelled.")


class SecretsKeySettings(Settings):
    """Where the key comes from that seals the secrets which clients upload with their graphs."""

    env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds it. One of `env` and `file` is required.",
        examples=["PROCESSOR_SECRETS_KEY"],
    )
    file: File | None = Field(
        default=None, description="File that holds it.", examples=["/run/secrets/processor-secrets-key"]
    )


class EngineKeys(Settings):
    """What runs graphs. `engine: {}` alone is an app whose graphs and nodes all come from clients."""

    partitions: int = Field(
        default=64,
        ge=1,
        le=512,
        description="Parts that runs are spread over; fixed once there were runs.",
    )
    concurrency: int = Field(
        default=2,
        ge=1,
        le=64,
        description="How many of them work at the same time in one process, each with guests of its own.",
    )
    keep: KeepSettings = Field(
        default=KeepSettings(), description="How long the records of finished runs are kept."
    )
    secrets_key: SecretsKeySettings | None = Field(
        default=None,
        description="32 random bytes, as base64 or hexadecimal, that seal the secrets which clients upload"
        " with their graphs. Without it they cannot.",
    )


class NodeGroupKeys(Settings):
    """A file of nodes, and what they may use. A plain text is the file."""

    short = "file"

    file: File = Field(
        description="Python file; each class in it that is a BaseNode is a kind of node.",
        examples=["nodes/lib.py"],
    )
    where: Literal["inline", "pool"] | None = Field(
        default=None,
        description="inline: run by the engine itself, in the commit of the run. pool: apart, each execution"
        " with a commit of its own, so that a call that was made is never made again for another. By default"
        " pool where the group lists `outbound`, `secrets`, `tools` or `inference`, else inline.",
        examples=["pool"],
    )
    language: Literal["restricted", "python"] = Field(
        default="restricted", description="The language of the file, as of a route."
    )
    packages: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")], ...],
        BeforeValidator(sequence),
    ] = Field(
        default=(),
        description="Packages installed beside Processor that plain Python may import. Only with `language:"
        " python`.",
    )
    modules: File | None = Field(
        default=None, description="As `modules` at the top, for this group.", examples=["lib/"]
    )
    outbound: OutboundSettings = Field(
        default=OutboundSettings(),
        description="Hosts that its nodes may ask. Nothing is taken from `outbound` at the top.",
    )
    secrets: Listed[Text] = Field(
        default=(),
        description="Names of the secrets that its nodes get, each for a field of that name in their class"
        " `Secrets`.",
    )
    settings: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")], str] = Field(
        default={},
        description="Texts for fields of `Secrets` that are no secrets, such as addresses.",
        examples=[{"api_endpoint": "https://api.example.com"}],
    )
    emits: Listed[Annotated[Text, AfterValidator(_target)]] = Field(
        default=(),
        description="Subjects or patterns that its nodes may send to with `self.emit(subject, document)`.",
        examples=[["alerts"]],
    )
    tools: Listed[Text] = Field(
        default=(),
        description="Names of the tools under `tools` that its nodes may call, as `routes.<name>.tools`.",
        examples=[["add"]],
    )
    inference: Listed[Text] = Field(
        default=(),
        description="Names of the endpoints under `inference` that its nodes may ask, as"
        " `routes.<name>.inference`.",
        examples=[["local"]],
    )
    policy: Listed[File] = Field(
        default=(), description="Policy files beside those at the top, for this group: each must allow."
    )
    concurrency: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many executions of a pool run at the same time in one process, each in a guest of"
        " its own.",
    )
    partitions: int = Field(
        default=64,
        ge=1,
        le=512,
        description="Parts that the executions of a pool are spread over; fixed once there were some.",
    )
    limits: GuestLimits = Field(default=GuestLimits(), description="What its guests may use.")

    @property
    def is_pool(self) -> bool:
        """Whether its nodes run apart from the engine: as `where` says, or because they reach outside."""
        return self.where == "pool" if self.where else bool(self.outside)

    @property
    def outside(self) -> tuple[str, ...]:
        """The keys of the group by which its nodes have an effect outside, which no commit can undo."""
        return tuple(
            key
            for key, is_given in (
                ("outbound", bool(self.outbound.allowed_domains)),
                ("secrets", bool(self.secrets)),
                ("tools", bool(self.tools)),
                ("inference", bool(self.inference)),
            )
            if is_given
        )


class GraphEntry(Graph):
    """A graph of nodes, here or in a file of its own."""

    file: str | None = Field(
        default=None,
        description="YAML file with the keys of the graph, in place of all others here.",
        examples=["graphs/my-workflow.yaml"],
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        mapping: dict[str, Any] = handler.resolve_ref_schema(schema)
        whole = dict(mapping)
        properties = dict(whole["properties"])
        file = {"type": "object", "properties": {"file": properties.pop("file")}, "required": ["file"]}
        mapping.clear()
        mapping["description"] = whole.get("description", "")
        mapping["anyOf"] = [
            {**file, "additionalProperties": False},
            {**whole, "properties": properties},
        ]
        return schema
