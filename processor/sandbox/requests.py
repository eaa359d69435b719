"""`requests` in a Runnable: the calls of the library that people know, performed by the host.

`client` makes what stands for the module, around the function that sends a capability call. Everything that
decides (which hosts, which addresses, how much, where a secret may go) is the host's; what is here writes
the call in its form and reads the answer, beside hostile code.

The exceptions have the names of the library's, and derive from `CapabilityError`: one that a Runnable does
not catch fails its run with the host's code.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

from processor.runnable import (
    AuthorityKernelError,
    BudgetExceededError,
    BufferOverflowError,
    CapabilityError,
    OperationDeniedError,
)
from processor.sandbox.capabilities import Secret
from processor.sandbox.facades import bless, remaining_s
from processor.sandbox.pulls import Call, Lines, Pieces, StreamedBody, Texts, WholeBody, known


class RequestException(CapabilityError):
    """A request was refused by the host, or brought no answer; the text says why."""

    def __init__(self, text: object = "", *, response: Any = None, code: str = "E317", **about: Any) -> None:
        CapabilityError.__init__(self, text, code=code, **about)
        self.response = response
        self.request = None


class Denied(RequestException, OperationDeniedError):
    """The policy does not allow the request; the text has the lines that would."""


class BudgetExceeded(RequestException, BudgetExceededError):
    """A budget, or the number of requests for one message, is used up."""


class TooLarge(RequestException, BufferOverflowError):
    """The request or its answer has more bytes than its limit."""


class ConnectionError(RequestException):
    """The server could not be reached, or broke off."""


class SSLError(ConnectionError):
    """The server's certificate could not be verified."""


class Timeout(RequestException):
    """The whole answer was not there in time."""


class ConnectTimeout(ConnectionError, Timeout):
    """Never raised, since one deadline covers all of a call; here for the programs that catch it."""


class ReadTimeout(Timeout):
    """Never raised, since one deadline covers all of a call; here for the programs that catch it."""


class TooManyRedirects(RequestException):
    """One redirect more than a call may follow."""


class InvalidURL(RequestException, ValueError):
    """Never raised: the host refuses such a URL, which is a RequestException. For programs that catch it."""


class HTTPError(RequestException):
    """`raise_for_status` found a status of 400 or more."""


class JSONDecodeError(RequestException, json.JSONDecodeError):
    """The body of an answer is not JSON."""

    def __init__(self, msg: str, doc: str, pos: int) -> None:
        RequestException.__init__(self, msg)
        json.JSONDecodeError.__init__(self, msg, doc, pos)


_EXCEPTIONS: dict[str, type[RequestException]] = {
    kind.__name__: kind
    for kind in (
        RequestException, ConnectionError, SSLError, Timeout, ConnectTimeout, ReadTimeout, TooManyRedirects,
        InvalidURL, HTTPError, JSONDecodeError, Denied, BudgetExceeded, TooLarge,
    )
}  # fmt: skip
for _kind in _EXCEPTIONS.values():
    bless(_kind)
_REFUSALS = {"E322": BudgetExceeded, "E323": TooLarge, "E330": Denied, "E332": BudgetExceeded}
_KINDS = {
    "connection": ConnectionError,
    "timeout": Timeout,
    "tls": SSLError,
    "redirects": TooManyRedirects,
}


class CaseInsensitiveDict(Mapping[str, str]):
    """The headers of an answer; a name is found in any case."""

    __slots__ = ("_lines",)

    def __init__(self, pairs: Any = ()) -> None:
        lines: dict[str, str] = {}
        for name, value in pairs:
            lines[name] = f"{lines[name]}, {value}" if name in lines else value
        self._lines = lines

    def __getitem__(self, name: str) -> str:
        return self._lines[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __repr__(self) -> str:
        return repr(self._lines)


class Response:
    """The answer to a request."""

    __slots__ = ("_body", "elapsed", "encoding", "headers", "reason", "status_code", "url")

    def __init__(self, head: dict[str, Any], body: WholeBody | StreamedBody) -> None:
        self.status_code: int = head["status"]
        self.reason: str = head["reason"]
        self.url: str = head["url"]
        self.headers = CaseInsensitiveDict(head["headers"])
        self._body = body
        self.elapsed = datetime.timedelta(seconds=head["elapsed_s"])
        found = re.search(r"charset=[\"']?([A-Za-z0-9._-]+)", self.headers.get("content-type", ""), re.I)
        self.encoding: str | None = found[1] if found else None

    @property
    def content(self) -> bytes:
        """The body; where it is a stream, all of it is read now."""
        content: bytes = self._body.read()
        return content

    @property
    def ok(self) -> bool:
        return self.status_code < 400

    @property
    def is_redirect(self) -> bool:
        return self.status_code in (301, 302, 303, 307, 308) and "location" in self.headers

    @property
    def text(self) -> str:
        """The body as text, in the encoding that the server names, or UTF-8."""
        return self.content.decode(known(self.encoding), "replace")

    def iter_content(self, chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        """The body as it comes, in chunks of at most `chunk_size` bytes; None is whatever has come."""
        shape = Texts(self.encoding, chunk_size) if decode_unicode else Pieces(chunk_size)
        chunks: Iterator[Any] = self._body.each(shape)
        return chunks

    def iter_lines(self, chunk_size: int | None = None, decode_unicode: bool = False) -> Iterator[Any]:
        """The lines of the body, each as soon as it is complete, without its end."""
        lines: Iterator[Any] = self._body.each(Lines(known(self.encoding) if decode_unicode else None))
        return lines

    def close(self) -> None:
        """Give up what has not been read of a stream."""
        self._body.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        return self.iter_content(None)

    def json(self, **options: Any) -> Any:
        """The body as JSON. Raises JSONDecodeError."""
        try:
            return json.loads(self.content, **options)
        except json.JSONDecodeError as err:
            raise JSONDecodeError(err.msg, err.doc, err.pos) from None
        except UnicodeDecodeError:
            raise JSONDecodeError("The body is not text", "", 0) from None

    def raise_for_status(self) -> None:
        """Raise HTTPError for a status of 400 or more."""
        if self.status_code >= 400:
            whose = "Client" if self.status_code < 500 else "Server"
            text = f"{self.status_code} {whose} Error: {self.reason} for url: {self.url}"
            raise HTTPError(text, response=self)

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return f"<Response [{self.status_code}]>"


_NOT_TAKEN = {
    "verify": "TLS is verified against the host's authorities, always",
    "cert": "there are no client certificates",
    "proxies": "the host connects directly",
    "trust_env": "the host's environment is not looked at",
    "hooks": "look at the response instead",
    "files": "give the body as `data`",
    "cookies": "give a Cookie header",
}
_TAKEN = "params, headers, json, data, timeout, allow_redirects, auth, stream"


def within_deadline(call: Call) -> Call:
    """`call` for requests that an `asyncio.timeout` of the restricted language bounds, too."""

    def make(name: str, arguments: dict[str, Any], body: bytes) -> Any:
        left_s = remaining_s()
        is_bounded = left_s is not None and left_s < arguments.get("timeout", math.inf)
        if is_bounded:
            arguments = {**arguments, "timeout": left_s}
        head, content = call(name, arguments, body)
        if is_bounded and head.get("failed") == "timeout":
            raise TimeoutError
        return head, content

    return make


def client(call: Call) -> types.ModuleType:
    """The module `requests` for one guest, whose requests go through `call`."""
    ask = partial(_asked, within_deadline(call))

    def request(method: str, url: str, **options: Any) -> Response:
        arguments, body = written(method, url, options)
        head, content = ask("requests", arguments, body)
        _explain(head)
        return Response(
            head, StreamedBody(ask, head["stream"], _explain) if "stream" in head else WholeBody(content)
        )

    def with_query(method: str) -> Callable[..., Response]:
        def send(url: str, params: Any = None, **options: Any) -> Response:
            return request(method, url, params=params, **options)

        return _named(send, method)

    def with_body(method: str) -> Callable[..., Response]:
        def send(url: str, data: Any = None, json: Any = None, **options: Any) -> Response:
            return request(method, url, data=data, json=json, **options)

        return _named(send, method)

    def head(url: str, **options: Any) -> Response:
        return request("HEAD", url, **{"allow_redirects": False, **options})

    module = types.ModuleType("runnable.requests", "requests, as a Runnable sees it.")
    exceptions = types.ModuleType("runnable.requests.exceptions", "The exceptions of requests.")
    vars(exceptions).update(_EXCEPTIONS)
    vars(module).update(
        _EXCEPTIONS,
        exceptions=exceptions,
        request=request,
        head=head,
        get=with_query("GET"),
        options=with_query("OPTIONS"),
        delete=with_query("DELETE"),
        post=with_body("POST"),
        put=with_body("PUT"),
        patch=with_body("PATCH"),
        Response=Response,
    )
    return module


def _asked(call: Call, name: str, arguments: dict[str, Any], body: bytes) -> Any:
    try:
        return call(name, arguments, body)
    except AuthorityKernelError as err:
        raise _REFUSALS.get(err.code, RequestException)(err, **vars(err)) from None


def _explain(head: dict[str, Any]) -> None:
    """Raise what stands for a call that was allowed and brought no answer, or not all of one."""
    if "failed" in head:
        raise _KINDS.get(head["failed"], RequestException)(head["text"])


def _named(send: Callable[..., Response], method: str) -> Callable[..., Response]:
    send.__name__ = send.__qualname__ = method.lower()
    return send


def written(method: Any, url: Any, options: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The call in the form that the host reads, and its body. Raises TypeError or ValueError."""
    values = dict(options)
    params, headers = values.pop("params", None), values.pop("headers", None)
    data, document = values.pop("data", None), values.pop("json", None)
    timeout, follow = values.pop("timeout", None), values.pop("allow_redirects", True)
    auth, is_stream = values.pop("auth", None), values.pop("stream", False)
    for name in values:
        why = _NOT_TAKEN.get(name, f"the options are {_TAKEN}")
        raise TypeError(f"requests does not take {name!r} in a Runnable: {why}")
    kind, content_type, body = _body(data, document)
    lines = _headers(headers)
    if content_type and not any(name.lower() == "content-type" for name, _ in lines):
        lines.append(["Content-Type", content_type])
    url = text_of(url, "a URL")
    if isinstance(params, (str, bytes)):
        url, params = f"{url}{'&' if '?' in url else '?'}{text_of(params, 'params')}", None
    arguments: dict[str, Any] = {
        "method": text_of(method, "a method").upper(),
        "url": url,
        "params": fields_of(params, "params"),
        "headers": lines,
        "kind": kind,
        "redirects": bool(follow),
    }
    if is_stream:
        arguments["stream"] = True
    if timeout is not None:
        arguments["timeout"] = _seconds(timeout)
    if auth is not None:
        if not isinstance(auth, (tuple, list)) or len(auth) != 2:
            raise TypeError("auth is a pair of user and password")
        arguments["auth"] = [text_of(part, "a part of auth") for part in auth]
    return arguments, body


def _body(data: Any, document: Any) -> tuple[str, str, bytes]:
    """How the body is written, its content type, and its bytes."""
    if document is not None:
        if data:
            raise ValueError("a request has `data` or `json`, not both")
        text = json.dumps(
            document, default=_secret_text, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        return "json", "application/json", text.encode()
    if data is None or data == "" or data == b"":
        return "none", "", b""
    if isinstance(data, (bytes, bytearray)):
        return "raw", "", bytes(data)
    if isinstance(data, (str, Secret)):
        return "raw", "", str(data).encode()
    fields = urlencode([(name, value) for name, value in fields_of(data, "data")])
    return "form", "application/x-www-form-urlencoded", fields.encode()


def _secret_text(value: Any) -> str:
    if isinstance(value, Secret):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def fields_of(value: Any, what: str) -> list[list[str]]:
    """Names and values of a query or a form: a list of a name's values as so many fields, None as none."""
    if value is None:
        return []
    pairs = [(name, value[name]) for name in value] if isinstance(value, Mapping) else list(value)
    fields = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{what} is a dict, or a list of pairs of name and value")
        name, values = pair
        for each in values if isinstance(values, (list, tuple, set)) else [values]:
            if each is not None:
                text = text_of(each, what) if isinstance(each, (str, bytes)) else str(each)
                fields.append([text_of(name, f"a name in {what}"), text])
    return fields


def _headers(value: Any) -> list[list[str]]:
    if value is None:
        return []
    lines: dict[str, list[str]] = {}
    for name in value:
        if value[name] is not None:
            text = text_of(name, "the name of a header")
            lines[text.lower()] = [text, text_of(value[name], f"the header {text}")]
    return list(lines.values())


def text_of(value: Any, what: str) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes.decode(value, "latin-1")
    if isinstance(value, Secret) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise TypeError(f"{what} is a text, not a {type(value).__name__}")


def _seconds(timeout: Any) -> float:
    parts = timeout if isinstance(timeout, (tuple, list)) else [timeout]
    waits = [part for part in parts if part is not None]
    for part in waits:
        if isinstance(part, bool) or not isinstance(part, (int, float)) or not part > 0:
            raise ValueError(f"a timeout is a number of seconds above 0, not {part!r}")
    # To connect and to read: a limit for the whole call that both fit into.
    return min(float(sum(waits)), 1e9) if waits else 1e9
