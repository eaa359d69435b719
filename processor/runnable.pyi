from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from logging import Logger
from typing import Any

__all__ = ["BaseSecureRunnable", "Headers", "Message", "Reject", "Retry"]

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

class BaseSecureRunnable:
    """What a Runnable inherits. Every method may be left out; the defaults do nothing."""

    messages: Sequence[Message]  # messages[i] belongs to queries[i]
    message: Message  # the only one in hand; ValueError where there are more
    key: str  # of the call
    logger: Logger
    requests: Any  # the calls of the library of that name, made by the host
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
