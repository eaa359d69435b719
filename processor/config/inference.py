"""The keys of models: which servers answer for which, and what one call of them may take.

`keys` places the model of these keys in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from processor.config.forms import Listed, Settings, Text, sequence
from processor.config.outside import check_base_url
from processor.reach import BoundSecret, InferenceEndpoint

Price = Annotated[float, Field(ge=0, le=1e9)]


class EndpointSettings(Settings):
    """A server with an API as OpenAI's: `/chat/completions` and `/embeddings` below its address."""

    base_url: Annotated[str, AfterValidator(check_base_url)] = Field(
        description="Address of the API, with its version.",
        examples=["https://api.openai.com/v1"],
    )
    models: Listed[Text] = Field(
        min_length=1,
        description="Names of the models that are asked for here, as patterns; * is any text. Others never"
        " are, whatever the server has.",
        examples=[["gpt-*"]],
    )
    secret: Text | None = Field(
        default=None,
        description="Name of the secret that is sent as `Authorization: Bearer`; it must be bound to the"
        " host.",
        examples=["openai_key"],
    )
    timeout_s: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="Seconds that one call may take, with its retries (E334); the route's `limits.wall_s`"
        " holds, too.",
    )
    idle_s: float = Field(
        default=20, gt=0, le=3600, description="Seconds that a streamed answer may be silent (E334)."
    )
    max_tokens: int = Field(
        default=1024,
        ge=1,
        le=1 << 31,
        description="Tokens of one answer at most: what a call asks for that names no number, and no call"
        " more (E337).",
    )
    price: Annotated[tuple[Price, Price] | None, BeforeValidator(sequence)] = Field(
        default=None,
        description="Price of a million tokens that the model is given, and of a million that it answers"
        " with, for budgets of the kind `cost`.",
        examples=[[0.5, 1.5]],
    )


def inference_endpoint(
    name: str, settings: EndpointSettings, secrets: Mapping[str, BoundSecret]
) -> InferenceEndpoint:
    """The endpoint that these keys stand for."""
    return InferenceEndpoint(
        name,
        settings.base_url,
        settings.models,
        secrets[settings.secret] if settings.secret else None,
        settings.timeout_s,
        settings.idle_s,
        settings.max_tokens,
        settings.price,
    )
