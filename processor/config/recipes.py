"""Keys of recipes that an app runs: `recipes`. `steps.py` beside has what these keys come to.

What a recipe is, its own file says; here are what starts it, what its steps may use, and where its events go.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from processor.config.forms import File, Listed, Settings, on_off, sequence
from processor.config.limits import GuestLimits
from processor.config.outside import OutboundSettings
from processor.graphs.definition import (
    GraphEventsDefinition,
    GraphOutputDefinition,
    Seconds,
    TriggerDefinition,
)

# With `nodes-recipe-` in front it is the name of a route.
RECIPE = r"^[A-Za-z0-9_-]{1,51}$"


class RecipeSettings(Settings):
    """A recipe that the app runs. A plain text is its file."""

    short = "file"

    file: File = Field(description="YAML file of the recipe.", examples=["orchestrator/recipes/nightly.yaml"])
    shell: Annotated[
        Literal["on", "off"], BeforeValidator(on_off), WithJsonSchema({"enum": ["on", "off", True, False]})
    ] = Field(
        default="off",
        description="Whether its shell steps may run: each in a cell of its own without network, which sees"
        " the folder of the recipe and the programs of this machine (E715).",
    )
    triggers: Annotated[tuple[TriggerDefinition, ...], BeforeValidator(sequence)] = Field(
        default=(), description="What starts runs by itself. Inputs are parameters of its first step."
    )
    events: GraphEventsDefinition | None = Field(
        default=None, description="Where the events of its runs go, each with its `test_meta`."
    )
    output: GraphOutputDefinition | None = Field(
        default=None, description="Where one document goes for each run that has ended, exactly once."
    )
    timeout_s: Seconds | None = Field(
        default=None,
        description="Seconds that a run may take before it is FAILED (E710); without it there is no end.",
        examples=[3600],
    )
    history: int = Field(
        default=1000,
        ge=0,
        le=10_000,
        description="How many changes of each key of the context a run remembers: 96 KiB of them together,"
        " the newest.",
    )
    language: Literal["restricted", "python"] = Field(
        default="restricted", description="The language of its python steps, as of a route."
    )
    packages: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")], ...],
        BeforeValidator(sequence),
    ] = Field(
        default=(),
        description="Packages installed beside Processor that its python steps may import. Only with"
        " `language: python`.",
    )
    outbound: OutboundSettings = Field(
        default=OutboundSettings(),
        description="Hosts that its python steps may ask. With one, or where a step may take more than 10"
        " seconds, each of these steps has a commit of its own, so that a call that was made is not made"
        " again for another step.",
    )
    policy: Listed[File] = Field(
        default=(), description="Policy files beside those at the top, for its python steps: each must allow."
    )
    limits: GuestLimits = Field(
        default=GuestLimits(),
        description="What the guests of its python steps may use: without `wall_s` and `cpu_s` as much time"
        " as the longest `timeout_s` of a step.",
    )
    concurrency: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many shell steps run at the same time in one process, each in a cell of its own, and"
        " how many python steps that may ask other hosts.",
    )
