import builtins
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from logging import Logger
from typing import Any, Literal, Self, overload, type_check_only

__all__ = [
    "AuthorityKernelError",
    "BaseSecureRunnable",
    "BudgetExceededError",
    "BufferOverflowError",
    "CapabilityError",
    "ConflictError",
    "Headers",
    "InvalidArgumentError",
    "LibakError",
    "Message",
    "NotFoundError",
    "OperationDeniedError",
    "OutOfMemoryError",
    "Reject",
    "Retry",
]

class Headers(Mapping[str, str]):
    """A message's headers by name, as it was sent; the last value of one that was sent more than once."""

    def __init__(self, pairs: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None: ...
    def get_list(self, name: str) -> list[str]:
        """All values that were sent under `name`, in order."""
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of name and value, in the order in which they were sent."""
    def __getitem__(self, name: str) -> str: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One input message, as its sender published it."""

    key: str = ""
    subject: str = ""
    stream: str = ""  # that stored it first
    sequence: int = 0  # its place there
    attempt: int = 1  # 1 at the first try
    index: int = 0  # of the document, in a message that is a list
    headers: Headers = ...  # without those of the server
    time: datetime = ...  # when the stream stored it, in UTC

class Reject(BaseException):
    """Raise it for a message that can never be processed."""

    why: str
    def __init__(self, why: object = "") -> None: ...

class Retry(BaseException):
    """Raise it to have the message tried again, `after_s` seconds from now."""

    after_s: float
    def __init__(self, after_s: float = 0.0) -> None: ...

class AuthorityKernelError(Exception):
    """Something that a Runnable asked of its host was not done; `str()` says why, and what to do."""

    code: str  # the number of the error
    operation: str
    target: str
    rule: str  # the line of the policy that decided
    expires_s: float | None  # until the capability ends, or the budget is free again
    remedy: str
    def __init__(
        self,
        text: object = "",
        *,
        code: str = "",
        operation: str = "",
        target: str = "",
        rule: str = "",
        expires_s: float | None = None,
        remedy: str = "",
    ) -> None: ...

class CapabilityError(AuthorityKernelError):
    """The host refused or could not do it, or the capability for it has expired."""

class OperationDeniedError(CapabilityError):
    """The policy does not allow it."""

class BudgetExceededError(AuthorityKernelError):
    """A budget, or the number of calls for one message, is used up."""

class InvalidArgumentError(AuthorityKernelError, ValueError):
    """An argument is not what the operation takes, or a value is not what its schema demands."""

class NotFoundError(AuthorityKernelError, LookupError):
    """What is named is not there."""

class ConflictError(AuthorityKernelError):
    """It has another version than the one that was expected."""

class BufferOverflowError(AuthorityKernelError):
    """It is larger than its limit, or more than there may be."""

class TimeoutError(AuthorityKernelError, builtins.TimeoutError):
    """It was not done in time."""

class OutOfMemoryError(AuthorityKernelError):
    """Never raised: for programs that catch it."""

class LibakError(AuthorityKernelError):
    """Never raised: for programs that catch it."""

@type_check_only
class Files:
    """Files below the directories of the route, each by `root:/path`; not part of a commit."""

    def read(self, path: str) -> bytes:
        """What is in a file."""
    def text(self, path: str) -> str:
        """What is in a file that is text in UTF-8."""
    def write(self, path: str, data: bytes | str) -> None:
        """Replace a file as a whole, or make it."""
    def list(self, path: str) -> builtins.list[str]:
        """The names in a directory, in order; those of directories end in a slash."""
    def delete(self, path: str) -> None:
        """Remove a file."""

@type_check_only
class Tools:
    """The tools of the route, called by name; those of an MCP server by `server/name`."""

    @property
    def names(self) -> builtins.list[str]:
        """Those that may be called."""
    def call(self, name: str, /, **arguments: Any) -> Any:
        """What the tool returns for these arguments."""
    def list(self) -> builtins.list[dict[str, Any]]:
        """Those that may be called: `name`, `description`, and `input`, the schema of the arguments."""

@type_check_only
class ToolCall:
    """A call of a tool that a model asks for."""

    id: str
    name: str
    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name. Raises ValueError where the model has written no JSON object."""

@type_check_only
class Completion:
    """The answer of a model. `answer["choices"]` and so on is the server's own document."""

    @property
    def message(self) -> dict[str, Any]:
        """The message of the model, to be put behind those it was given."""
    @property
    def text(self) -> str:
        """What it says; empty where it only calls tools."""
    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools that it asks for."""
    @property
    def finish_reason(self) -> str:
        """Why it ended: stop, length, tool_calls or another word of the server's."""
    @property
    def usage(self) -> dict[str, Any]:
        """prompt_tokens, completion_tokens, total_tokens; and estimated, where nobody has counted them."""
    @property
    def model(self) -> str:
        """The model, as the server calls it."""
    def json(self) -> Any:
        """The text as JSON. Raises ValueError where the model has not written any."""
    def __getitem__(self, name: str) -> Any: ...

@type_check_only
class CompletionStream(Completion):
    """The answer of a model as it comes. Who asks for more than its text reads the rest."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> str: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def close(self) -> None:
        """Give up what was not taken yet."""

@type_check_only
class AwaitedCompletionStream(Completion):
    """The same where each piece is awaited; behind its end it has all that an answer has."""

    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> str: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...
    async def aclose(self) -> None:
        """Give up what was not taken yet."""

class BaseSecureRunnable:
    """What a Runnable inherits. Every method may be left out; the defaults do nothing."""

    messages: Sequence[Message]  # messages[i] belongs to queries[i]
    message: Message  # the only one in hand; ValueError where there are more
    key: str  # of the call
    heap: Any  # typed objects: alloc, read, version, write, delete, list
    logger: Logger
    requests: Any  # the calls of the library of that name, made by the host
    files: Files  # below the directories of the route
    tools: Tools  # of the route
    secrets: Mapping[str, Any]  # str() of one is a mark, in whose place the host puts the value
    def __init__(self, config: Any = None) -> None: ...
    def init(self) -> None:
        """Set up a new context; called once per context, before its first message."""
    def process(self, queries: list[Any]) -> Any:
        """The outputs for a batch of documents: mode batch."""
    def process_stream(self, query: Any) -> Any:
        """The chunks for one document: mode stream."""
    @property
    def context(self) -> MutableMapping[str, Any]:
        """The mapping that is kept: what it holds after a run is what the next run finds."""
    @context.setter
    def context(self, items: Mapping[str, Any]) -> None: ...
    def emit(
        self, subject: str, document: Any, delay_s: float = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a document to one of the subjects in the route's `emits`, in the commit of this run."""
    def event(self, name: str, data: Any = None) -> None:
        """Publish an event on the route's event subject, in the commit of this run."""
    def authorize(self, operation: str, target: str) -> bool:
        """Whether `operation`, such as `http.post`, would be allowed on `target` now; nothing is done."""
    def authorize_details(self, operation: str, target: str) -> dict[str, Any]:
        """What `authorize` says, with why, and what would allow it."""
    def budget(self, kind: str) -> dict[str, Any]:
        """What is used and left of a kind in the budget that has least: used, limit, left, window, until."""
    def set_budget(self, kind: str, limit: int) -> None:
        """Let this run use no more than `limit` of a kind; what goes beyond it raises BudgetExceededError."""
    def audit(self, name: str, data: Any = None) -> bool:
        """Add an entry of your own to the route's audit; False where there is none."""
    @overload
    def infer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        stream: Literal[False] = False,
        **options: Any,
    ) -> Completion:
        """What a model answers to these messages, or to a prompt."""
    @overload
    def infer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        stream: Literal[True],
        **options: Any,
    ) -> CompletionStream:
        """The same, as it comes: iterating over it gives its text."""
    @overload
    async def ainfer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        stream: Literal[False] = False,
        **options: Any,
    ) -> Completion:
        """`infer`, to be awaited."""
    @overload
    async def ainfer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        stream: Literal[True],
        **options: Any,
    ) -> AwaitedCompletionStream:
        """The same, as it comes: `async for` gives its text."""
    def embed(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """The embedding of each text, in their order."""
    async def aembed(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """`embed`, to be awaited."""
    def get_stock_data(self, ticker: str) -> Any:
        """The stock service's document of 5 minute prices for `ticker`."""
    def query_stock(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """The newest prices of `query["ticker"]` under `ticker_*` names."""
    def query_state_data(self, state_id: str, filters: Iterable[Mapping[str, Any]] = ()) -> Any:
        """The rows of a state that match all of `filters` (`column`, `operator`, `value`)."""
    def call_api_query(
        self, state_id: str, user_id: str | None, filters: Iterable[Mapping[str, Any]] = ()
    ) -> Any:
        """`query_state_data` in the name of a user."""
    def pivot_list_of_dicts(self, data: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        """Rows of `data_index`, `column_name` and `data_value` as one dict per `data_index`, in order."""
