"""The keys that say what a Runnable may reach outside; `reach` has what they come to.

`keys` places these models in the configuration. Hosts and URLs are checked by `address`, which also decides
with them later on: an entry that loads is an entry that works.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import AfterValidator, Field

from processor.address import Binding, Entry, parse_url
from processor.config.forms import File, Listed, Settings, Size, Text

# A Runnable can have texts sent back to it, and reads *** for one that is a secret's value: a short one could
# be found by trying them all.
SECRET_CHARS = 8


def _domain(text: str) -> str:
    return Entry.parse(text).text


def _binding(text: str) -> str:
    Binding.parse(text)
    return text


def check_base_url(text: str) -> str:
    parse_url(text)
    if "?" in text or "#" in text:  # also an empty one: what is asked for stands behind it
        raise ValueError("it must have no query and no fragment")
    return text.rstrip("/")


class OutboundSettings(Settings):
    """What `self.requests` may reach. The host makes each request. A plain list is the hosts."""

    short = "allowed_domains"

    allowed_domains: Listed[Annotated[Text, AfterValidator(_domain)]] = Field(
        default=(),
        description="Hosts that may be asked: a name, *.suffix, an address, a network, or * for every public"
        " host; with :port for another one than 80 (http) and 443 (https). Private addresses only where"
        " they are listed themselves.",
    )
    timeout_s: float = Field(
        default=5, gt=0, le=300, description="Seconds that one call may take, with all its redirects."
    )
    request_bytes: Size = Field(
        default=1 << 20, ge=0, le=4 << 20, description="Bytes of one request, headers included (E323)."
    )
    response_bytes: Size = Field(
        default=4 << 20, ge=0, le=64 << 20, description="Bytes of one answer, unpacked (E323)."
    )
    redirects: int = Field(default=5, ge=0, le=20, description="Redirects that one call follows at most.")


class SecretSource(Settings):
    """Where a secret comes from and which hosts it may be sent to. No guest ever sees its value."""

    env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds it. One of `env` and `file` is required.",
        examples=["EXAMPLE_API_KEY"],
    )
    file: File | None = Field(
        default=None,
        description="File that holds it; a change of the file reloads the routes that use it.",
        examples=["/run/secrets/example-api-key"],
    )
    hosts: Listed[Annotated[Text, AfterValidator(_binding)]] = Field(
        min_length=1,
        description="Hosts that it may be sent to, written as in `allowed_domains` but without *. Over https,"
        " unless http:// stands in front.",
        examples=[["api.example.com"]],
    )

    @cached_property
    def bindings(self) -> tuple[Binding, ...]:
        return tuple(map(Binding.parse, self.hosts))


class FileRootSettings(Settings):
    """A directory whose files `self.files` may use. The host opens them, and never follows a link."""

    short = "path"

    path: File = Field(description="The directory.", examples=["/srv/data"])
    write: bool = Field(default=False, description="Whether files may be written and deleted, too.")
    max_bytes: Size = Field(
        default=4 << 20,
        ge=1,
        le=64 << 20,
        description="Bytes of the largest file that is read or written (E338). One write has at most 4 MiB.",
    )


class StateApiSettings(Settings):
    """Where `self.query_state_data` and `self.call_api_query` ask."""

    base_url: Annotated[str, AfterValidator(check_base_url)] = Field(
        default="https://api.ism.quantumwake.io",
        description="Server with the state API (`POST /api/v1/query/state/<state_id>`).",
    )
    secret: Text | None = Field(
        default=None,
        description="Name of the secret that is sent as `Authorization: Bearer`; it must be bound to the"
        " host.",
        examples=["state_api_key"],
    )


class StockSettings(Settings):
    """Where `self.get_stock_data` and `self.query_stock` ask; the host makes the request, never the guest."""

    base_url: Annotated[str, AfterValidator(check_base_url)] = Field(
        default="https://www.alphavantage.co",
        pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$",
        description="Server with the Alpha Vantage API (`/query?function=TIME_SERIES_INTRADAY`).",
    )
    api_key_env: str = Field(
        default="ALPHA_VANTAGE_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the API key; without it the key `demo` is sent.",
    )
