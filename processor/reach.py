"""What a route may reach outside of the jail: hosts, the two known servers, secrets, and directories.

`config` makes a `Reach` when it loads a file, `library` from its own settings; `capability` decides with it.
Nothing here opens a connection.

Invariant: no secret's value appears in a repr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from processor.address import Allowed, Binding
from processor.schema import Schema


@dataclass(frozen=True)
class Outbound:
    """What `self.requests` may reach, and the bounds of one call.

    Raises ValueError where an entry of `allowed_domains` is not a host.
    """

    allowed_domains: tuple[str, ...] = ()
    timeout_s: float = 5
    request_bytes: int = 1 << 20
    response_bytes: int = 4 << 20
    redirects: int = 5
    allowed: Allowed = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed", Allowed.of(self.allowed_domains))


@dataclass(frozen=True, slots=True)
class Stock:
    """The server of the stock helpers, and the environment variable that holds its API key."""

    base_url: str = "https://www.alphavantage.co"
    api_key_env: str = "ALPHA_VANTAGE_API_KEY"


@dataclass(frozen=True, slots=True)
class StateApi:
    """The server of `self.query_state_data` and `self.call_api_query`."""

    base_url: str = "https://api.ism.quantumwake.io"


@dataclass(frozen=True, slots=True)
class BoundSecret:
    """A secret's value, and where it may go. Never printed."""

    name: str
    value: str = field(repr=False)
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class FileRoot:
    """A directory whose files `self.files` reads, and writes where it `is_writable`."""

    name: str
    path: str
    is_writable: bool = False
    max_bytes: int = 4 << 20  # of one file


@dataclass(frozen=True, slots=True)
class Reach:
    """All that a route may reach outside. `place` is the key that a denial tells people to change."""

    place: str
    outbound: Outbound = field(default_factory=Outbound)
    stock: Stock = field(default_factory=Stock)
    state_api: StateApi = field(default_factory=StateApi)
    secrets: tuple[BoundSecret, ...] = ()
    state_key: BoundSecret | None = None  # sent to the state API
    files: tuple[FileRoot, ...] = ()
    emits: tuple[str, ...] = ()  # the subjects, as patterns, that it may send to
    heap: Mapping[str, Schema] = field(default_factory=dict)  # what values of its objects fit, by type
