"""Keys that bound what a guest may use: of a Runnable, and of a group of nodes."""

from __future__ import annotations

from pydantic import Field

from processor.config.forms import Settings, Size


class GuestLimits(Settings):
    """What one guest, and one call of what it runs, may use. Each limit has its own error code."""

    memory_mb: int = Field(
        default=128, ge=16, le=1 << 20, description="Memory beyond that of an empty guest (E313)."
    )
    cpu_s: float = Field(default=5, gt=0, le=86_400, description="CPU seconds of one run (E311).")
    wall_s: float = Field(default=10, gt=0, le=86_400, description="Seconds of one run (E312).")
    requests: int = Field(
        default=50,
        ge=0,
        le=100_000,
        description="Calls to the outside for one message (E322); what `calls.replay` answers is none.",
    )
    calls: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="Calls of any kind for one message (E322), also those that do not leave the host, such as"
        " of `self.files` and `self.authorize`; never fewer than `requests`.",
    )
    calls_at_once: int = Field(
        default=16,
        ge=1,
        le=64,
        description="Calls that a guest may have open at a time: those of messages of different keys, which"
        " wait together, and in plain Python what `asyncio.gather` and the like begin together; what is more"
        " waits for its turn in the guest. 1 runs one message at a time.",
    )
    output_bytes: Size = Field(
        default=8 << 20, ge=1, description="Bytes of all outputs, with what is emitted, of one run (E307)."
    )
    outputs: int = Field(
        default=900,
        ge=1,
        le=900,
        description="Outputs, with what is emitted, and events of one message (E324); one commit cannot carry"
        " more. Stream: x 100 chunks.",
    )
    log_lines: int = Field(
        default=100,
        ge=0,
        le=100_000,
        description="Lines of log of one run; what is beyond is dropped and counted (E321).",
    )
    log_bytes: Size = Field(
        default=64 << 10,
        ge=0,
        le=512 << 10,  # they cross in the header of a frame, where a character may take six bytes
        description="Bytes of log of one run; what is beyond is dropped and counted (E321).",
    )
    max_string_length: int = Field(
        default=1_000_000,
        ge=1,
        description="Characters of one text in a message, output, chunk, event, call or context (E318); bytes"
        " of one `bytes` in a context.",
    )
    max_container_length: int = Field(
        default=1_000_000,
        ge=1,
        description="Items of one list or dict in the same places (E319); also messages that are a list of"
        " documents.",
    )
    max_depth: int = Field(
        default=100,
        ge=1,
        le=100,  # what can be kept; see sandbox.values.DEPTH
        description="Levels of lists and dicts in the same places (E320); in a context a set counts as two.",
    )


class LimitSettings(GuestLimits):
    """What one guest, and one call of a Runnable in it, may use. Each limit has its own error code."""

    calls_alone: bool = Field(
        default=False,
        description="Give `process` one message at a time, so that each call is known to be of one message"
        " whatever batch it comes in.",
    )
    context_bytes: Size = Field(default=64 << 20, ge=1, description="Bytes of one key's context (E310).")
    contexts: int = Field(
        default=10_000,
        ge=1,
        description="Keys whose contexts a guest keeps in memory; others are read again.",
    )
