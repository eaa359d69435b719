"""Keys that say for how long, and how much, is kept: input and output streams, dead letters, history."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from processor.config.forms import Settings, Size, Time

# Of streams that are created: a stream without limits grows until the server's disk is full.
CREATED_MAX_BYTES = 10 << 30


class CreatedStream(Settings):
    """The limits of a stream that is created for an input."""

    max_age: Time = Field(
        default=7 * 86400.0,
        ge=0,
        description="How long the stream keeps messages, whether they were read or not; 0 is for ever.",
    )
    max_bytes: Size = Field(
        default=CREATED_MAX_BYTES,
        ge=0,
        description="How much the stream keeps, oldest dropped first; 0 is without limit. The server sets"
        " that room aside; where it cannot, a stream without a limit of your own is made without.",
    )


def created_stream(value: object) -> object:
    """`create: true` is a stream with the default limits, `create: false` none."""
    return {True: CreatedStream(), False: None}[value] if isinstance(value, bool) else value


def _kept_time(value: float) -> float:
    if 0 < value < 1:
        raise ValueError("it must be 0 or at least 1s")
    return value


class HistorySettings(Settings):
    """How long the app's stream keeps what has changed in the contexts. A plain time is `keep`."""

    short = "keep"

    keep: Annotated[Time, AfterValidator(_kept_time)] = Field(
        default=0.0,
        ge=0,
        description="Record what each commit of the route changes in its contexts, and keep that for so long;"
        " 0 records nothing. A record is one more message of the commit for each context that it changes.",
    )
    edits: Time = Field(
        default=90 * 86400.0,
        ge=60,
        description="How long to keep the records of what people changed; these are always made.",
    )


class DeadLetterSettings(Settings):
    """What becomes of a route's dead letters. A plain time is `keep`."""

    short = "keep"

    keep: Annotated[Time, AfterValidator(_kept_time)] = Field(
        default=0.0,
        ge=0,
        description="How long the app's stream keeps a dead letter; 0 is until you remove it.",
    )
