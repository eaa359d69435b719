"""The keys of a route with `codec: ism`, and what they come to with the routing file of that system.

`keys` places `Ism` in the configuration; `rules` reads the routing file.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from processor.config.forms import File, Settings, Text, sequence


class IsmOutput(Settings):
    """One output state of an ISM processor. A plain text is its route id."""

    short = "route_id"

    route_id: Annotated[str, Field(pattern=r"^[^\s:]+:[^\s:]+$")] = Field(
        description="Route of the output: `<state id>:<processor id>`.", examples=["s_out:p1"]
    )
    next: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[^\s:]+:[^\s:]+$")], ...], BeforeValidator(sequence)
    ] = Field(
        default=(),
        description="Routes that read this state; each gets the outputs as one `query_state_entry` on the"
        " selector processor/state/router.",
        examples=[["s_out:p2"]],
    )
    sync: bool = Field(
        default=True,
        description="Send the outputs as `query_state_route` on the selector processor/state/sync, to be"
        " stored.",
    )

    @property
    def state_id(self) -> str:
        return self.route_id.partition(":")[0]


class Ism(Settings):
    """What a route with `codec: ism` knows beyond its envelope; subjects come from the routing file."""

    routing_file: File = Field(
        description="The system's own `messageConfig.routes` file, unchanged.", examples=[".routing.yaml"]
    )
    selector: Text = Field(
        default="code/executor/python/python-executor-1.0",
        description="The file's entry that is this route's input.",
    )
    processor_id: Text | None = Field(
        default=None,
        description="Serve this processor only: a message for another one is dead-lettered (E302)."
        " Without it every message of the subject is taken.",
        examples=["p1"],
    )
    project_id: Text | None = Field(
        default=None, description="`project_id` of usage events.", examples=["project-1"]
    )
    outputs: Annotated[tuple[IsmOutput, ...], BeforeValidator(sequence)] = Field(
        default=(), description="Output states of the processor; each gets all outputs of the Runnable."
    )
    usage: bool = Field(
        default=True,
        description="Send COMPUTE usage events (entries in, rows out) on the selector processor/usage.",
    )
