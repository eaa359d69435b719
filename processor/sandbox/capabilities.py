"""What a Runnable gets from us inside its guest: the base class and the helpers it may call.

`GuestRunnable` is the class that users derive from, by the name BaseSecureRunnable; `make` turns their class
into an instance with its context, logger and voice. A guest has no network and no files, so a helper that
needs the world sends a *capability call* to the host and waits for the answer; the host decides, meters and
performs.

Everything here runs beside hostile code and is reachable from it: no helper may read or write an attribute
whose name the user chose, hold a secret, or decide anything that matters to another guest.
"""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from processor.runnable import (
    AuthorityKernelError,
    BudgetExceededError,
    BufferOverflowError,
    CapabilityError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    OperationDeniedError,
)
from processor.sandbox.inference import (
    AwaitedCall,
    AwaitedCompletionStream,
    Completion,
    CompletionStream,
    call_of,
    embedding_of,
)
from processor.sandbox.messages import InHand
from processor.sandbox.offer import Signature
from processor.sandbox.values import LiveContext

_OF_CODE: Mapping[str, type[AuthorityKernelError]] = {
    "E322": BudgetExceededError,
    "E323": BufferOverflowError,
    "E330": OperationDeniedError,
    "E332": BudgetExceededError,
    "E335": NotFoundError,
    "E336": ConflictError,
    "E337": InvalidArgumentError,
    "E338": BufferOverflowError,
}


def refused(text: str, code: str, **about: Any) -> AuthorityKernelError:
    """The exception that a refusal is to user code; `about` are attributes of it."""
    return _OF_CODE.get(code, CapabilityError)(text, code=code, **about)


class EmitError(ValueError):
    """The Runnable may not emit to that subject; the text has the line that would allow it (E327)."""


class Secret:
    """Stands for a secret that the host knows: `str()` of it is a mark that means nothing elsewhere.

    The host puts the value in its place in the headers, params, JSON or form fields of a request to a host
    that the secret is bound to.
    """

    __slots__ = ("_mark", "_name")

    def __init__(self, name: str, mark: str) -> None:
        self._name = name
        self._mark = mark

    def __str__(self) -> str:
        return self._mark

    def __format__(self, spec: str) -> str:
        return self._mark  # whole, whatever the width: half a mark is none

    def __add__(self, other: str) -> str:
        return self._mark + other

    def __radd__(self, other: str) -> str:
        return other + self._mark

    def __repr__(self) -> str:
        return f"<secret {self._name}>"


class Secrets(Mapping[str, Secret]):
    """`self.secrets`: the route's secrets by name, without their values."""

    __slots__ = ("_secrets",)

    def __init__(self, marks: Mapping[str, str]) -> None:
        self._secrets = {name: Secret(name, mark) for name, mark in marks.items()}

    def __getitem__(self, name: str) -> Secret:
        try:
            return self._secrets[name]
        except KeyError:
            known = ", ".join(self._secrets) or "none"
            raise KeyError(f"{name!r} is no secret of this route; it has {known} (secrets)") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._secrets)

    def __len__(self) -> int:
        return len(self._secrets)

    def __repr__(self) -> str:
        return f"<secrets {', '.join(self._secrets)}>"


class Files:
    """`self.files`: files below the directories of the route, each by `root:/path`. The host opens them.

    Nothing of it is part of a commit: what is written is there at once, and a message that is tried again
    writes again. Each method raises AuthorityKernelError: E330 for what is not allowed, E335 for what is not
    there, E337 for what is no such path or leads through a link, E338 for too much, E339 where the system
    refuses.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[str, dict[str, Any], bytes], Any]) -> None:
        self._call = call

    def read(self, path: str) -> bytes:
        """What is in a file."""
        content: bytes = self._do("read", path, b"")[1]
        return content

    def text(self, path: str) -> str:
        """What is in a file that is text in UTF-8. Raises UnicodeDecodeError for another one."""
        return self.read(path).decode()

    def write(self, path: str, data: bytes | str) -> None:
        """Replace a file as a whole, or make it. Whoever reads it gets the old one or the new one."""
        if isinstance(data, str):
            data = data.encode()
        elif isinstance(data, (bytes, bytearray)):
            data = bytes(data)
        else:
            raise TypeError(f"what is written is text or bytes, not {type(data).__name__}")
        self._do("write", path, data)

    def list(self, path: str) -> builtins.list[str]:
        """The names in a directory, in order; those of directories end in a slash. Links are left out."""
        names: list[str] = self._do("list", path, b"")[0]["names"]
        return names

    def delete(self, path: str) -> None:
        """Remove a file."""
        self._do("delete", path, b"")

    def _do(self, op: str, path: str, body: bytes) -> tuple[Any, bytes]:
        if not isinstance(path, str):
            raise TypeError(f"a path is text such as 'data:/in/a.csv', not {type(path).__name__}")
        head, content = self._call("file", {"op": op, "path": str(path)}, body)
        return head, content

    def __repr__(self) -> str:
        return "<files>"


class Tools:
    """`self.tools`: the tools of the route, called by name; those of an MCP server by `server/name`.

    Each method raises AuthorityKernelError: E330 for what the policy does not allow, E333 for a tool that has
    not done what it was called for, E335 for one that is not there, E337 for arguments that do not fit.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[str, dict[str, Any]], Any]) -> None:
        self._call = call

    def call(self, name: str, /, **arguments: Any) -> Any:
        """What the tool returns for these arguments."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a tool is text such as 'add', not {type(name).__name__}")
        row = "served_tool" if "/" in name else "tool"
        return self._call(row, {"name": str(name), "arguments": arguments})

    def list(self) -> builtins.list[dict[str, Any]]:
        """The tools that may be called: `name`, `description`, and `input`, the schema of the arguments."""
        listed: builtins.list[dict[str, Any]] = self._call("tool_list", {})
        return listed

    @property
    def names(self) -> builtins.list[str]:
        """Their names."""
        return [tool["name"] for tool in self.list()]

    def __repr__(self) -> str:
        return "<tools>"


@dataclass(frozen=True, slots=True)
class Voice:
    """How an instance reaches out of itself: calls, requests, messages, events and the route's log."""

    call: Callable[[str, dict[str, Any]], Any]
    emit: Callable[[str, Any, float, dict[Any, Any]], None]
    event: Callable[[str, Any], None]
    logger: Any
    requests: Any
    secrets: Secrets
    files: Files
    tools: Tools
    in_hand: InHand
    heap: Callable[[], Any]  # of the key's context
    awaited: AwaitedCall | None = None  # where calls can be awaited


class _OfVoice:
    """`self.heap`, made when it is first used, unless the user's own code sets an attribute of its name."""

    __slots__ = ()

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance._voice.heap()


class _InHand:
    """An attribute that is looked up in what is in hand, unless the user's own code sets one of its name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else getattr(instance._voice.in_hand, self._name)()


class Capable:
    """What user code reaches the outside with, in a Runnable and in a node of a graph."""

    logger: Any
    requests: Any  # the calls of the library of that name, made by the host
    files: Files
    tools: Tools
    _voice: Voice

    def emit(
        self, subject: str, document: Any, delay_s: float = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a document to one of the subjects in the route's `emits`, in the commit of this run.

        It is sent on `delay_s` seconds after the run, at most 366 days. Raises ValueError for a subject that
        is not listed, and for a delay, a header or a document that cannot be sent; RuntimeError in `init`.
        """
        named = {} if headers is None else {name: headers[name] for name in headers}
        self._voice.emit(subject, document, delay_s, named)

    def event(self, name: str, data: Any = None) -> None:
        """Publish an event on the route's event subject, in the commit of this run."""
        self._voice.event(name, data)

    def authorize(self, operation: str, target: str) -> bool:
        """Whether `operation`, such as `http.post`, would be allowed on `target` now; nothing is done.

        Raises InvalidArgumentError for an operation that there is not.
        """
        return bool(self.authorize_details(operation, target)["authorized"])

    def authorize_details(self, operation: str, target: str) -> dict[str, Any]:
        """What `authorize` says, with why: operation, target, authorized, capability (the line of the policy,
        or `config`), expires_s, reason and remedy, which has the lines that would allow it.
        """
        said: dict[str, Any] = self._voice.call("authorize", {"op": operation, "target": target})
        return said

    def budget(self, kind: str) -> dict[str, Any]:
        """How much of a kind, such as requests or bytes, is used and left in the budget that has least left:
        used, limit, left, window and until; without a budget limit and left are None.

        Raises InvalidArgumentError for a kind that there is not.
        """
        said: dict[str, Any] = self._voice.call("budget", {"kind": kind})
        return said

    def set_budget(self, kind: str, limit: int) -> None:
        """Let this run use no more than `limit` of a kind; what goes beyond it raises BudgetExceededError.

        Raises InvalidArgumentError for more than the run may use already.
        """
        self._voice.call("set_budget", {"kind": kind, "limit": limit})

    def audit(self, name: str, data: Any = None) -> bool:
        """Add an entry of your own to the route's audit, with at most 4 KiB of JSON; 100 in a run.

        False where the route has no audit, and it is kept nowhere. Raises BufferOverflowError for more.
        """
        return bool(self._voice.call("audit", {"name": name, "data": data}))

    def infer(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Completion:
        """What a model answers to these messages, or to a prompt: `text`, `message`, `tool_calls`, `usage`,
        `finish_reason`, `json()`. Options are those of the API, such as temperature, tools, response_format.

        With `stream` it is there as soon as the answer begins: iterating over it gives the text as it comes.

        Raises AuthorityKernelError: E330 for a model that is not allowed, E332 where a budget is used up,
        E334 where it has not answered, E337 for what cannot be asked.
        """
        asked = call_of(model, messages, prompt, max_tokens, options)
        if stream:
            return CompletionStream(self._voice.call, self._voice.call("infer_stream", asked)["stream"])
        return Completion(self._voice.call("infer", asked))

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
        """`infer`, to be awaited; with `stream`, `async for` reads what it gives."""
        awaited = self._voice.awaited
        if awaited is None:  # nothing waits here, and `await` is of what is there already
            return self.infer(model, messages, prompt=prompt, max_tokens=max_tokens, stream=stream, **options)
        return _answer(awaited, call_of(model, messages, prompt, max_tokens, options), stream)

    def embed(self, model: str, texts: Sequence[str]) -> list[list[float]]:
        """The embedding of each text, in their order. Raises what `infer` raises."""
        vectors: list[list[float]] = self._voice.call("embed", embedding_of(model, texts))["data"]
        return vectors

    def aembed(self, model: str, texts: Sequence[str]) -> Any:
        """`embed`, to be awaited."""
        awaited = self._voice.awaited
        return self.embed(model, texts) if awaited is None else _vectors(awaited, embedding_of(model, texts))

    def get_stock_data(self, ticker: str) -> Any:
        """The stock service's document of 5 minute prices for `ticker`, as the service words it."""
        if not isinstance(ticker, str) or not ticker:
            raise ValueError(f"a ticker is a text such as 'AAPL', not {ticker!r}")
        return self._voice.call("stock", {"ticker": ticker})

    def query_stock(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """The newest prices of `query["ticker"]` under `ticker_*` names."""
        ticker = query["ticker"]
        document = self.get_stock_data(ticker)
        series = document.get("Time Series (5min)") if isinstance(document, dict) else None
        if not isinstance(series, dict) or not series:
            raise CapabilityError(f"the stock service has no 'Time Series (5min)' for {ticker!r}")
        newest = next(iter(series.values()))  # the service lists the newest first
        return {
            "ticker": ticker,
            "ticker_open": newest["1. open"],
            "ticker_high": newest["2. high"],
            "ticker_low": newest["3. low"],
            "ticker_close": newest["4. close"],
            "ticker_volume": newest["5. volume"],
        }

    def query_state_data(self, state_id: str, filters: Iterable[Mapping[str, Any]] = ()) -> Any:
        """The rows of a state that match all of `filters` (`column`, `operator`, `value`).

        Each row is one value, with `column_name`, `data_value` and `data_index`; `pivot_list_of_dicts` makes
        records of them. Operators are those of the state API: `=`, `!=`, `like`, `>`, `<`.
        """
        return self._voice.call("state_data", {"state_id": state_id, "filters": _filters(filters)})

    def call_api_query(
        self, state_id: str, user_id: str | None, filters: Iterable[Mapping[str, Any]] = ()
    ) -> Any:
        """`query_state_data` in the name of a user."""
        arguments = {"state_id": state_id, "user_id": user_id, "filters": _filters(filters)}
        return self._voice.call("state_data", arguments)

    def pivot_list_of_dicts(self, data: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        """Rows of `data_index`, `column_name` and `data_value` as one dict per `data_index`, in order."""
        pivoted: dict[Any, dict[str, Any]] = {}
        for row in data or ():
            pivoted.setdefault(row["data_index"], {})[row["column_name"]] = row["data_value"]
        return list(pivoted.values())


class GuestRunnable(Capable):
    """What a Runnable inherits. It has at least the method that its mode calls; the others may be left out.

    `self.context` is kept between runs and over crashes; every other attribute lives as long as the guest.
    """

    secrets: Mapping[str, Secret]
    messages: Any = _InHand("messages")  # of the call, one for each of its queries
    message: Any = _InHand("message")  # the only one; ValueError where there are more
    key: Any = _InHand("key")
    heap: Any = _OfVoice()  # the typed objects of the key's context
    _context: LiveContext

    def __init__(self, config: Any = None) -> None:
        """Take, for the sake of `super().__init__(config)`, a configuration that has nothing to say."""

    def init(self) -> None:
        """Set up a new context; called once per context, before its first message."""

    def process(self, queries: list[Any]) -> Any:
        """The outputs for a batch of documents."""
        return []

    def process_stream(self, query: Any) -> Any:
        """The chunks for one document."""
        return ()

    @property
    def context(self) -> LiveContext:
        """The mapping that is kept: what it holds after a run is what the next run finds."""
        return self._context

    @context.setter
    def context(self, items: Mapping[str, Any]) -> None:
        # `self.context = {...}` is what people write in init(); it must fill the kept mapping, not hide it.
        fresh = {key: items[key] for key in items}
        self._context.clear()
        self._context.update(fresh)


GuestRunnable.__name__ = GuestRunnable.__qualname__ = "BaseSecureRunnable"  # what user code calls it


def offer(signatures: Iterable[Signature]) -> None:
    """Give the base classes of this guest a method for each of these capabilities that is called by one.

    On the class, so that a method of the user's own by that name is the one that is called.
    """
    for signature in signatures:
        if signature.is_method:
            setattr(Capable, signature.name, _calling(signature))


def _calling(signature: Signature) -> Callable[..., Any]:
    def method(self: Capable, *positional: Any, **named: Any) -> Any:
        return self._voice.call(signature.name, signature.bind(positional, named))

    method.__name__ = signature.name
    method.__qualname__ = f"{GuestRunnable.__qualname__}.{signature.name}"
    return method


async def _answer(awaited: AwaitedCall, asked: dict[str, Any], stream: bool) -> Completion:
    if stream:
        return AwaitedCompletionStream(awaited, (await awaited("infer_stream", asked, None))["stream"])
    return Completion(await awaited("infer", asked, None))


async def _vectors(awaited: AwaitedCall, asked: dict[str, Any]) -> Any:
    return (await awaited("embed", asked, None))["data"]


def _filters(filters: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: each[key] for key in each} for each in filters or ()]


def make(cls: type, context: LiveContext, voice: Voice) -> Any:
    """An instance of the user's class with everything in place that its own `__init__` may use."""
    instance: Any = object.__new__(cls)
    put = functools.partial(object.__setattr__, instance)  # past a __setattr__ of the user's own
    put("_context", context)
    put("_voice", voice)
    put("logger", voice.logger)
    put("requests", voice.requests)
    put("secrets", voice.secrets)
    put("files", voice.files)
    put("tools", voice.tools)
    instance.__init__()
    return instance
