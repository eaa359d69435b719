"""Keys about the audit: what of a run is recorded, and how that is kept, copied and sealed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from processor.config.forms import File, Settings, Text, Time
from processor.notes import check_name

AuditLevel = Literal["off", "calls", "runs"]


def _level(value: object) -> object:
    return "off" if value is False else value  # as YAML 1.1 reads the word


class SealSettings(Settings):
    """When the audit's entries are sealed: with the first of both."""

    entries: int = Field(default=1000, ge=1, le=1_000_000, description="After so many entries.")
    seconds: float = Field(
        default=60, ge=1, le=86_400, description="So many seconds after the first entry that is not sealed."
    )


class AuditSettings(Settings):
    """Who did what, in chains of entries that show where one was changed or removed. A word is `level`."""

    short = "level"

    level: Annotated[
        AuditLevel | None,
        BeforeValidator(_level),
        WithJsonSchema({"enum": ["off", "calls", "runs", False]}),
    ] = Field(
        default=None,
        description="off: nothing. calls: what Runnables ask of the outside, what the policy says, and what"
        " people do to the app. runs: also each run. By default calls with a policy, and off without one.",
        examples=["calls"],
    )
    intent: Literal["none", "unsafe", "all"] = Field(
        default="unsafe",
        description="Which calls are written down before they are made, so that one which a crash cut off is"
        " found: unsafe is those that change something outside (POST, PUT, PATCH, DELETE). Each costs a"
        " stored message.",
    )
    copy_ttl: Time = Field(
        default=7 * 86400.0,
        ge=3600,
        description="How long the app's own stream keeps a record, from which the audit's stream copies it.",
    )
    stream: Literal["own", "external"] = Field(
        default="own",
        description="own: make the stream AUDIT_<app>, and run no route without it. external: others copy the"
        " subjects p.<app>.audit.> from the app's stream, where we have no access.",
    )
    keep: Time = Field(
        default=400 * 86400.0, ge=86400, description="How long the stream AUDIT_<app> keeps a record."
    )
    key_file: File | None = Field(
        default=None,
        description="Ed25519 key that signs the seals, a PEM file: `processor audit keygen` makes one.",
        examples=["audit.pem"],
    )
    origin: Annotated[Text, AfterValidator(check_name)] = Field(
        default="processor",
        description="The log's name in its seals, before a slash and the app; best a host name of yours.",
    )
    seal: SealSettings = Field(default=SealSettings(), description="When entries are sealed.")
