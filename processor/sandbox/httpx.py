"""`httpx` in a Runnable: the clients of the library that people know, whose requests the host makes.

`client` makes what stands for the module, as that of `requests` does, whose form of a call and whose answers
are used here, too. In plain Python `AsyncClient` is asynchronous: requests that are awaited together are made
together. Where there are no coroutines it is `Client` under its other name.

The exceptions have the names of the library's. They derive from those of `requests`, so that one that a
Runnable does not catch fails its run with the host's code.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from processor.runnable import AuthorityKernelError
from processor.sandbox import pulls, requests
from processor.sandbox.facades import bless, insisting

_VERBS = ("get", "post", "put", "patch", "delete", "head", "options")


# The names of the library's exceptions, each with the one that it is a kind of.
_KIND_OF = {
    "HTTPError": "",
    "RequestError": "HTTPError",
    "TransportError": "RequestError",
    "TimeoutException": "TransportError",
    "ConnectTimeout": "TimeoutException",
    "ReadTimeout": "TimeoutException",
    "WriteTimeout": "TimeoutException",
    "PoolTimeout": "TimeoutException",
    "NetworkError": "TransportError",
    "ConnectError": "NetworkError",
    "ReadError": "NetworkError",
    "WriteError": "NetworkError",
    "ProtocolError": "TransportError",
    "RemoteProtocolError": "ProtocolError",
    "UnsupportedProtocol": "TransportError",
    "DecodingError": "RequestError",
    "TooManyRedirects": "RequestError",
    "InvalidURL": "RequestError",
    "HTTPStatusError": "HTTPError",
    # What the library does not have, since nobody watches over it.
    "Denied": "RequestError",
    "BudgetExceeded": "RequestError",
    "TooLarge": "RequestError",
}
_WATCHED = {kind.__name__: kind for kind in (requests.Denied, requests.BudgetExceeded, requests.TooLarge)}
_EXCEPTIONS: dict[str, Any] = {}
for _name, _parent in _KIND_OF.items():
    _bases = (_EXCEPTIONS.get(_parent, requests.RequestException), *filter(None, [_WATCHED.get(_name)]))
    _EXCEPTIONS[_name] = type(_name, _bases, {"__module__": "httpx"})
    bless(_EXCEPTIONS[_name])
_REFUSALS = {"E322": "BudgetExceeded", "E323": "TooLarge", "E330": "Denied", "E332": "BudgetExceeded"}
_FAILURES = {
    "connection": "ConnectError",
    "timeout": "ReadTimeout",
    "tls": "ConnectError",
    "redirects": "TooManyRedirects",
}


_CUT = {"connection": "ReadError", "timeout": "ReadTimeout"}  # where the answer had begun


class ResponseNotRead(pulls.Unread):
    """The body of an answer that is a stream is asked for before it was read."""


class StreamConsumed(pulls.Consumed):
    """The body of an answer that is a stream was read already, or is closed."""


class HttpxResponse(requests.Response):
    """The answer to a request."""

    __slots__ = ()

    @property
    def content(self) -> bytes:
        """The body. Raises ResponseNotRead for a stream that was not read."""
        try:
            return self._body.content
        except pulls.Unread as err:
            raise ResponseNotRead(f"{err}: call `read()`, or `await aread()`, first") from None

    def iter_bytes(self, chunk_size: int | None = None) -> Any:
        """The body as it comes, in chunks of at most `chunk_size` bytes; None is whatever has come."""
        return self._body.each(pulls.Pieces(chunk_size))

    def iter_text(self, chunk_size: int | None = None) -> Any:
        """The same as text, of whole characters."""
        return self._body.each(pulls.Texts(self.encoding, chunk_size))

    def iter_lines(self) -> Any:  # type: ignore[override]
        """The lines of the body as text, each as soon as it is complete, without its end."""
        return self._body.each(pulls.Lines(pulls.known(self.encoding)))

    # The same for an answer that was awaited; `_body` knows which it is.
    iter_raw = aiter_raw = aiter_bytes = iter_bytes
    aiter_text = iter_text
    aiter_lines = iter_lines

    @property
    def is_stream_consumed(self) -> bool:
        return self._body.is_taken

    @property
    def reason_phrase(self) -> str:
        return self.reason

    @property
    def is_informational(self) -> bool:
        return self.status_code < 200

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300

    @property
    def is_client_error(self) -> bool:
        return 400 <= self.status_code < 500

    @property
    def is_server_error(self) -> bool:
        return self.status_code >= 500

    @property
    def is_error(self) -> bool:
        return self.status_code >= 400

    def read(self) -> Any:
        """The body, all of it."""
        return self._body.read()

    def close(self) -> Any:
        """Give up what has not been read of a stream."""
        return self._body.close()

    aread, aclose = read, close

    def raise_for_status(self) -> HttpxResponse:  # type: ignore[override]
        """Return this answer, or raise HTTPStatusError for a status that is not one of success."""
        if self.is_success:
            return self
        what = "Server error" if self.is_server_error else "Client error"
        if not self.is_error:
            what = "Informational response" if self.is_informational else "Redirect response"
        text = f"{what} '{self.status_code} {self.reason}' for url '{self.url}'"
        raise _EXCEPTIONS["HTTPStatusError"](text, response=self)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Response [{self.status_code} {self.reason}]>"


class HttpxTimeout:
    """How long a request may take. One deadline covers all of a call: what may connect and what may read."""

    __slots__ = ("connect", "pool", "read", "write")

    def __init__(self, timeout: Any = None, **each: Any) -> None:
        for name in each:
            if name not in self.__slots__:
                raise TypeError(f"httpx.Timeout does not take {name!r}: it has {', '.join(self.__slots__)}")
        self.connect = each.get("connect", timeout)
        self.read = each.get("read", timeout)
        self.write = each.get("write", timeout)
        self.pool = each.get("pool", timeout)

    def __repr__(self) -> str:
        return f"Timeout(connect={self.connect}, read={self.read}, write={self.write}, pool={self.pool})"


class BasicAuth:
    """User and password of a request."""

    __slots__ = ("password", "username")

    def __init__(self, username: Any, password: Any) -> None:
        self.username = username
        self.password = password


for _kind, _name in ((HttpxResponse, "Response"), (HttpxTimeout, "Timeout")):
    _kind.__name__ = _kind.__qualname__ = _name  # what user code calls it

_NOT_TAKEN = {
    "verify": "TLS is verified against the host's authorities, always",
    "cert": "there are no client certificates",
    "proxy": "the host connects directly",
    "proxies": "the host connects directly",
    "mounts": "the host makes the requests",
    "transport": "the host makes the requests",
    "app": "the host makes the requests",
    "http1": "the host chooses the version",
    "http2": "the host chooses the version",
    "limits": "limits.calls_at_once and limits.requests of the route hold",
    "trust_env": "the host's environment is not looked at",
    "event_hooks": "look at the response instead",
    "cookies": "give a Cookie header",
    "files": "give the body as `content`",
    "default_encoding": "an answer is in the encoding that its server names, or UTF-8",
    "extensions": "the host makes the requests",
}
_OF_CLIENT = "auth, params, headers, timeout, follow_redirects, base_url"
_OF_REQUEST = "content, data, json, params, headers, auth, follow_redirects, timeout"
_UNSET: Any = object()


def _refuse(names: Any, taken: str) -> None:
    for name in names:
        why = _NOT_TAKEN.get(name, f"the options are {taken}")
        raise TypeError(f"httpx does not take {name!r} in a Runnable: {why}")


class _Defaults:
    """What a client adds to each of its requests."""

    __slots__ = ("auth", "base_url", "follow_redirects", "headers", "params", "timeout")

    def __init__(
        self,
        *,
        auth: Any = None,
        params: Any = None,
        headers: Any = None,
        timeout: Any = _UNSET,
        follow_redirects: bool = False,
        base_url: Any = "",
        **others: Any,
    ) -> None:
        _refuse(others, _OF_CLIENT)
        self.auth = auth
        self.params = requests.fields_of(params, "params")
        self.headers = _pairs(headers)
        self.timeout = timeout
        self.follow_redirects = follow_redirects
        self.base_url = requests.text_of(base_url, "a base URL")

    def written(self, method: Any, url: Any, given: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """A request in the form that the host reads, and its body. Raises TypeError or ValueError."""
        values = dict(given)
        content, data, timeout = (
            values.pop("content", None),
            values.pop("data", None),
            values.pop("timeout", _UNSET),
        )
        options: dict[str, Any] = {"json": values.pop("json", None)}
        if content is not None and data is not None:
            raise ValueError("a request has `content` or `data`, not both")
        if content is not None and not isinstance(content, (str, bytes, bytearray)):
            raise TypeError(f"content is text or bytes, not {type(content).__name__}")
        options["data"] = data if content is None else content
        headers = {name.lower(): (name, value) for name, value in self.headers}
        headers.update({name.lower(): (name, value) for name, value in _pairs(values.pop("headers", None))})
        options["headers"] = dict(headers.values())
        options["params"], url = self._asked(values.pop("params", None), requests.text_of(url, "a URL"))
        auth = values.pop("auth", _UNSET)
        auth = self.auth if auth is _UNSET else auth
        options["auth"] = (auth.username, auth.password) if isinstance(auth, BasicAuth) else auth
        options["allow_redirects"] = values.pop("follow_redirects", self.follow_redirects)
        timeout = self.timeout if timeout is _UNSET else timeout
        if timeout is not _UNSET:
            options["timeout"] = _deadline(timeout)
        _refuse(values, _OF_REQUEST)
        return requests.written(method, url, options)

    def _asked(self, params: Any, url: str) -> tuple[list[list[str]], str]:
        """The query of a request, and its URL below that of the client."""
        if self.base_url and "://" not in url:
            url = f"{self.base_url.rstrip('/')}/{url.lstrip('/')}" if url else self.base_url
        if isinstance(params, (str, bytes)):
            url, params = f"{url}{'&' if '?' in url else '?'}{requests.text_of(params, 'params')}", None
        own = requests.fields_of(params, "params")
        named = {name for name, _ in own}
        return [*(pair for pair in self.params if pair[0] not in named), *own], url


def _pairs(headers: Any) -> list[tuple[str, Any]]:
    if headers is None:
        return []
    found = headers.items() if isinstance(headers, Mapping) else headers
    return [(requests.text_of(name, "the name of a header"), value) for name, value in found]


def _deadline(timeout: Any) -> Any:
    if isinstance(timeout, HttpxTimeout):
        parts = [timeout.read, timeout.connect] if timeout.connect != timeout.read else [timeout.read]
        return (None,) if None in parts else tuple(parts)
    return (None,) if timeout is None else timeout


class _HttpxClient:
    """What both clients are."""

    def __init__(self, **defaults: Any) -> None:
        self._defaults = _Defaults(**defaults)
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def _written(self, method: Any, url: Any, options: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if self._is_closed:
            raise RuntimeError("Cannot send a request, as the client has been closed.")
        return self._defaults.written(method, url, options)


def _explain(head: dict[str, Any], kinds: Mapping[str, str]) -> None:
    """Raise what stands for a call that was allowed and brought no answer, or not all of one."""
    if "failed" in head:
        raise _EXCEPTIONS[kinds.get(head["failed"], "TransportError")](head["text"])


def _cut(head: dict[str, Any]) -> None:
    _explain(head, _CUT)


class _Streaming:
    """An answer that is opened by `with`, or `async with`, and closed at its end."""

    __slots__ = ("_open", "_response")

    def __init__(self, open: Callable[[], Any]) -> None:
        self._open = open
        self._response: Any = None

    def __enter__(self) -> HttpxResponse:
        response: HttpxResponse = self._open()
        self._response = response
        return response

    def __exit__(self, *_: object) -> None:
        self._response.close()


class _AwaitedStreaming(_Streaming):
    __slots__ = ()

    async def __aenter__(self) -> HttpxResponse:
        response: HttpxResponse = await self._open()
        self._response = response
        return response

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()


def _refusal(err: AuthorityKernelError) -> requests.RequestException:
    kind: type[requests.RequestException] = _EXCEPTIONS[_REFUSALS.get(err.code, "RequestError")]
    return kind(err, **vars(err))


def _clients(
    call: pulls.Call, awaited: pulls.AwaitedCall | None
) -> tuple[type[_HttpxClient], type[_HttpxClient]]:
    """The two classes for one guest."""

    def ask(name: str, arguments: dict[str, Any], body: bytes) -> Any:
        try:
            return call(name, arguments, body)
        except AuthorityKernelError as err:
            raise _refusal(err) from None

    async def ask_awaited(name: str, arguments: dict[str, Any], body: bytes) -> Any:
        assert awaited is not None
        try:
            return await awaited(name, arguments, body)
        except AuthorityKernelError as err:
            raise _refusal(err) from None

    class SyncClient(_HttpxClient):
        """Makes requests, each of which waits for its answer."""

        def request(self, method: str, url: Any, **options: Any) -> HttpxResponse:
            return self._send(*self._written(method, url, options))

        def stream(self, method: str, url: Any, **options: Any) -> _Streaming:
            """The answer as it comes, for a `with` block: its head is there, its body is read from it."""
            arguments, body = self._written(method, url, options)
            return _Streaming(lambda: self._send({**arguments, "stream": True}, body))

        def _send(self, arguments: dict[str, Any], body: bytes) -> HttpxResponse:
            head, content = ask("requests", arguments, body)
            _explain(head, _FAILURES)
            is_stream = "stream" in head
            return HttpxResponse(
                head, pulls.StreamedBody(ask, head["stream"], _cut) if is_stream else pulls.WholeBody(content)
            )

        def close(self) -> None:
            self._is_closed = True

        def __enter__(self) -> SyncClient:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    class AsyncClient(_HttpxClient):
        """Makes requests, each of which is awaited."""

        async def request(self, method: str, url: Any, **options: Any) -> HttpxResponse:
            return await self._send(*self._written(method, url, options))

        def stream(self, method: str, url: Any, **options: Any) -> _AwaitedStreaming:
            """The answer as it comes, for an `async with` block."""
            arguments, body = self._written(method, url, options)
            return _AwaitedStreaming(lambda: self._send({**arguments, "stream": True}, body))

        async def _send(self, arguments: dict[str, Any], body: bytes) -> HttpxResponse:
            head, content = await ask_awaited("requests", arguments, body)
            _explain(head, _FAILURES)
            if "stream" in head:
                return HttpxResponse(head, pulls.AwaitedBody(ask_awaited, head["stream"], _cut))
            return HttpxResponse(head, pulls.WholeBody(content, is_awaited=True))

        async def aclose(self) -> None:
            self._is_closed = True

        async def __aenter__(self) -> AsyncClient:
            return self

        async def __aexit__(self, *_: object) -> None:
            await self.aclose()

    for verb in _VERBS:
        for kind in (SyncClient, AsyncClient):
            setattr(kind, verb, _verb(kind, verb))
    SyncClient.__name__ = SyncClient.__qualname__ = "Client"
    if awaited is not None:
        return SyncClient, AsyncClient
    SyncClient.aclose = SyncClient.close  # type: ignore[attr-defined]
    insisting(SyncClient)
    return SyncClient, SyncClient


def _verb(kind: Any, verb: str) -> Callable[..., Any]:
    method = verb.upper()

    def send(self: Any, url: Any, **options: Any) -> Any:
        return self.request(method, url, **options)

    send.__name__, send.__qualname__ = verb, f"{kind.__name__}.{verb}"
    return send


def client(call: pulls.Call, awaited: pulls.AwaitedCall | None = None) -> types.ModuleType:
    """The module `httpx` for one guest, whose requests go through `call`, and those that are awaited through
    `awaited`; without that, all through `call`.
    """
    sync, asynchronous = _clients(call, awaited)

    def request(method: str, url: Any, **options: Any) -> HttpxResponse:
        of_client = {name: options.pop(name) for name in ("base_url",) if name in options}
        _refuse(of_client, _OF_REQUEST)
        return sync().request(method, url, **options)  # type: ignore[attr-defined, no-any-return]

    def stream(method: str, url: Any, **options: Any) -> _Streaming:
        _refuse({"base_url": 0} if "base_url" in options else {}, _OF_REQUEST)
        return sync().stream(method, url, **options)  # type: ignore[attr-defined, no-any-return]

    def function(verb: str) -> Callable[..., HttpxResponse]:
        def send(url: Any, **options: Any) -> HttpxResponse:
            return request(verb.upper(), url, **options)

        send.__name__ = send.__qualname__ = verb
        return send

    module = types.ModuleType("runnable.httpx", "httpx, as a Runnable sees it.")
    codes = types.SimpleNamespace(**{status.name: int(status) for status in HTTPStatus})
    vars(module).update(
        _EXCEPTIONS,
        **{verb: function(verb) for verb in _VERBS},
        request=request,
        stream=stream,
        ResponseNotRead=ResponseNotRead,
        StreamConsumed=StreamConsumed,
        Client=sync,
        AsyncClient=asynchronous,
        Response=HttpxResponse,
        Timeout=HttpxTimeout,
        BasicAuth=BasicAuth,
        codes=codes,
    )
    return module
