"""What a Runnable is written against: the classes that user code may import from `processor.runnable`.

Inside of Processor the import is optional: the names are there without it. It is for editors, type checkers
(`runnable.pyi` is what they read) and unit tests: outside of a guest a context is a plain dict, `messages` is
what a test sets, nothing is sent, and a helper that needs the world raises RuntimeError.

`Message` and `Headers` are the very classes that a guest hands out; of the others it has its own. Nothing
here imports another part of Processor, and nothing of it decides anything.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "AuthorityKernelError", "BaseSecureRunnable", "BudgetExceededError", "BufferOverflowError",
    "CapabilityError", "ConflictError", "Headers", "InvalidArgumentError", "LibakError", "Message",
    "NotFoundError", "OperationDeniedError", "OutOfMemoryError", "Reject", "Retry",
]  # fmt: skip
# Without TimeoutError: an `import *` would hide Python's, which that of here is, too.


class Headers(Mapping[str, str]):
    """The headers of a message: a read-only mapping of names, as they were sent, to texts.

    A name that was sent more than once has its last value here, and all of them in `get_list`. Bytes that are
    not UTF-8 are U+FFFD.
    """

    __slots__ = ("_last", "_pairs")

    def __init__(self, pairs: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        """From pairs of name and value, or from another mapping."""
        self._pairs = [*pairs.items()] if isinstance(pairs, Mapping) else [(name, of) for name, of in pairs]
        self._last: dict[str, str] = dict(self._pairs)

    def get_list(self, name: str) -> list[str]:
        """All values that were sent under `name`, in order; empty where there is none."""
        return [value for own, value in self._pairs if own == name]

    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of name and value, in the order in which they were sent."""
        return list(self._pairs)

    def __getitem__(self, name: str) -> str:
        return self._last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def __eq__(self, other: object) -> bool:
        return self._pairs == other._pairs if isinstance(other, Headers) else self._last == other

    def __hash__(self) -> int:
        return hash(tuple(self._pairs))

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"


_NO_HEADERS = Headers()
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One input message, as its sender published it.

    `sequence` is its place in `stream`, and `time` is when that stored it. `attempt` counts its tries from 1.
    `index` is the place of the document in a message that is a list of documents. A message that was kept to
    be tried again, or as a dead letter, or was given to its partition has its own subject and sequence still.
    """

    key: str = ""
    subject: str = ""
    stream: str = ""
    sequence: int = 0
    attempt: int = 1
    index: int = 0
    headers: Headers = _NO_HEADERS
    time: datetime = _BEGINNING


class Reject(BaseException):
    """Raised by user code: the message can never be processed, and `why`."""

    def __init__(self, why: object = "") -> None:
        self.why = str.__str__(str(why))  # exactly a str: a subclass runs code wherever it is read
        super().__init__(self.why)


class Retry(BaseException):
    """Raised by user code: the message is to be tried again, `after_s` seconds from now."""

    def __init__(self, after_s: float = 0.0) -> None:
        self.after_s = float(after_s)
        if not self.after_s >= 0:
            raise ValueError(f"after_s is a number of seconds, 0 or more, not {self.after_s}")
        super().__init__(f"retry in {self.after_s:g} s")


class AuthorityKernelError(Exception):
    """Something that a Runnable asked of its host was not done; `str()` says why, and what to do.

    `code` is the number of the error, and `operation` and `target` are what was asked. Of a denial, `rule` is
    the line of the policy that decided, and `remedy` has the lines that would allow it. `expires_s` is in how
    many seconds the capability ends or the budget is free again; below 0 it has ended so long ago.
    """

    _code = "E317"  # of one that is raised without a code

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
    ) -> None:
        # Not super(): with two bases, that would be the other one.
        Exception.__init__(self, str(text))
        self.code = code or self._code
        self.operation = operation
        self.target = target
        self.rule = rule
        self.expires_s = expires_s
        self.remedy = remedy


class CapabilityError(AuthorityKernelError):
    """The host refused or could not do it, or the capability for it has expired."""


class OperationDeniedError(CapabilityError):
    """The policy does not allow it."""

    _code = "E330"


class BudgetExceededError(AuthorityKernelError):
    """A budget, or the number of calls for one message, is used up."""

    _code = "E332"


class InvalidArgumentError(AuthorityKernelError, ValueError):
    """An argument is not what the operation takes, or a value is not what its schema demands."""

    _code = "E337"


class NotFoundError(AuthorityKernelError, LookupError):
    """What is named is not there."""

    _code = "E335"


class ConflictError(AuthorityKernelError):
    """It has another version than the one that was expected."""

    _code = "E336"


class BufferOverflowError(AuthorityKernelError):
    """It is larger than its limit, or more than there may be."""

    _code = "E338"


class TimeoutError(AuthorityKernelError, builtins.TimeoutError):
    """It was not done in time."""


class OutOfMemoryError(AuthorityKernelError):
    """Never raised: a guest out of memory ends. For programs that catch it."""


class LibakError(AuthorityKernelError):
    """Never raised: there is no libak below. For programs that catch it."""


class _Overridable:
    """A property whose place an assignment takes, as in a guest."""

    def __init__(self, find: Callable[[Any], Any]) -> None:
        self._find = find

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else self._find(instance)


def _message(runnable: BaseSecureRunnable) -> Message:
    if len(runnable.messages) != 1:
        count = len(runnable.messages)
        raise ValueError(f"{count or 'no'} message{'s are' if count else ' is'} in hand; use self.messages")
    return runnable.messages[0]


def _key(runnable: BaseSecureRunnable) -> str:
    return runnable.messages[0].key if runnable.messages else ""


def _heap(runnable: BaseSecureRunnable) -> Any:
    raise _outside("heap")


def _files(runnable: BaseSecureRunnable) -> Any:
    raise _outside("files")


def _tools(runnable: BaseSecureRunnable) -> Any:
    raise _outside("tools")


class BaseSecureRunnable:
    """What a Runnable inherits. Every method may be left out; the defaults do nothing."""

    messages: Sequence[Message] = ()
    message: Any = _Overridable(_message)
    key: Any = _Overridable(_key)
    heap: Any = _Overridable(_heap)
    logger: Any = logging.getLogger("runnable")
    requests: Any = None
    files: Any = _Overridable(_files)
    tools: Any = _Overridable(_tools)
    secrets: Mapping[str, Any] = {}

    def __init__(self, config: Any = None) -> None:
        """Take a configuration that has nothing to say."""

    def init(self) -> None:
        """Set up a new context; called once per context, before its first message."""

    def process(self, queries: list[Any]) -> Any:
        """The outputs for a batch of documents."""
        return []

    def process_stream(self, query: Any) -> Any:
        """The chunks for one document."""
        return ()

    @property
    def context(self) -> MutableMapping[str, Any]:
        """The mapping that is kept: what it holds after a run is what the next run finds."""
        kept: dict[str, Any] = vars(self).setdefault("_context", {})
        return kept

    @context.setter
    def context(self, items: Mapping[str, Any]) -> None:
        vars(self)["_context"] = dict(items)

    def emit(
        self, subject: str, document: Any, delay_s: float = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a document to one of the subjects in the route's `emits`, in the commit of this run."""

    def event(self, name: str, data: Any = None) -> None:
        """Publish an event on the route's event subject, in the commit of this run."""

    def authorize(self, operation: str, target: str) -> bool:
        """Whether `operation`, such as `http.post`, would be allowed on `target` now; nothing is done."""
        raise _outside("authorize")

    def authorize_details(self, operation: str, target: str) -> dict[str, Any]:
        """What `authorize` says, with why, and what would allow it."""
        raise _outside("authorize_details")

    def budget(self, kind: str) -> dict[str, Any]:
        """How much of a kind, such as requests or bytes, is used and left in the budget that has least left:
        used, limit, left, window and until; without a budget limit and left are None.
        """
        raise _outside("budget")

    def set_budget(self, kind: str, limit: int) -> None:
        """Let this run use no more than `limit` of a kind; what goes beyond it raises BudgetExceededError."""
        raise _outside("set_budget")

    def audit(self, name: str, data: Any = None) -> bool:
        """Add an entry of your own to the route's audit; False where there is none, as here."""
        return False

    def infer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """What a model answers to these messages, or to a prompt; with `stream`, its text as it comes."""
        raise _outside("infer")

    def ainfer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """`infer`, to be awaited."""
        raise _outside("ainfer")

    def embed(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """The embedding of each text, in their order."""
        raise _outside("embed")

    def aembed(self, model: str, texts: Sequence[str]) -> Any:
        """`embed`, to be awaited."""
        raise _outside("aembed")

    def get_stock_data(self, ticker: str) -> Any:
        """The stock service's document of 5 minute prices for `ticker`, as the service words it."""
        raise _outside("get_stock_data")

    def query_stock(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """The newest prices of `query["ticker"]` under `ticker_*` names."""
        raise _outside("query_stock")

    def query_state_data(self, state_id: str, filters: Iterable[Mapping[str, Any]] = ()) -> Any:
        """The rows of a state that match all of `filters` (`column`, `operator`, `value`)."""
        raise _outside("query_state_data")

    def call_api_query(
        self, state_id: str, user_id: str | None, filters: Iterable[Mapping[str, Any]] = ()
    ) -> Any:
        """`query_state_data` in the name of a user."""
        raise _outside("call_api_query")

    def pivot_list_of_dicts(self, data: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        """Rows of `data_index`, `column_name` and `data_value` as one dict per `data_index`, in order."""
        pivoted: dict[Any, dict[str, Any]] = {}
        for row in data or ():
            pivoted.setdefault(row["data_index"], {})[row["column_name"]] = row["data_value"]
        return list(pivoted.values())


def _outside(name: str) -> RuntimeError:
    return RuntimeError(
        f"self.{name} is answered by the host of a guest: replace it in a unit test, or run the code with "
        "processor.library.SecureRunnableBuilder"
    )
