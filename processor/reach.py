"""What a route may reach outside of the jail: hosts, known servers, secrets, directories, tools and models.

`config` makes a `Reach` when it loads a file, `library` from its own settings; `capability` decides with it.
Nothing here opens a connection.

Invariant: no secret's value appears in a repr.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from processor.address import Allowed, Binding
from processor.model import Program
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
class WasmTool:
    """A WebAssembly module that is called with a JSON object, and what one call of it may take."""

    name: str
    module: bytes = field(repr=False)
    input: Schema | None = None  # of its arguments
    output: Schema | None = None  # of its result
    timeout_s: float = 1.0
    fuel: int = 100_000_000
    memory_mb: int = 64
    description: str = ""
    sha256: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.module).hexdigest())


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A Python function that is called with the members of a JSON object, in a guest of its own.

    `program` has a Runnable that calls it; `sha256` is of the file of the function.
    """

    name: str
    program: Program = field(repr=False)
    sha256: str
    input: Schema | None = None
    output: Schema | None = None
    timeout_s: float = 1.0
    memory_mb: int = 128
    description: str = ""


@dataclass(frozen=True, slots=True)
class ToolServer:
    """An MCP server over HTTP, whose tools are called `name/tool`.

    A tool is there where a pattern in `names` matches its own name, and one in `granted`, which are the
    route's.
    """

    name: str
    url: str
    secret: BoundSecret | None = None  # sent as Authorization: Bearer
    names: tuple[str, ...] = ("*",)
    granted: tuple[str, ...] = ("*",)
    timeout_s: float = 5.0

    def grants(self, name: str) -> bool:
        """Whether the route may call the tool of the server that has this name."""
        lists = (self.names, self.granted)
        return all(any(fnmatchcase(name, pattern) for pattern in patterns) for patterns in lists)


Tool = WasmTool | FunctionTool | ToolServer


@dataclass(frozen=True, slots=True)
class InferenceEndpoint:
    """A server of chat completions and embeddings with an API as OpenAI's, and the models it is asked for."""

    name: str
    base_url: str
    models: tuple[str, ...]  # patterns
    secret: BoundSecret | None = None  # sent as Authorization: Bearer
    timeout_s: float = 60.0  # of one call, with its retries
    idle_s: float = 20.0  # of silence in a stream
    max_tokens: int = 1024  # of one answer, at most
    price: tuple[float, float] | None = None  # of a million tokens, in and out

    def serves(self, model: str) -> bool:
        """Whether the model of this name is asked for here."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


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
    tools: tuple[Tool, ...] = ()
    inference: tuple[InferenceEndpoint, ...] = ()  # of a model, the first one that serves it
