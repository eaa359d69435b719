"""What programs for the Authority Kernel SDK have in their hands: one class, with the calls of that SDK.

`Kernel` turns its calls, which take and give bytes, into what there is here: the heap, questions to the
policy, requests, files, tools. In a guest it is `AuthorityKernel` of the module `authority_nanos` and works
on the context of the call in hand; outside, `processor.authority` has the one for scripts.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Any, TypeVar

from processor.runnable import AuthorityKernelError, InvalidArgumentError
from processor.sandbox import documents

T = TypeVar("T")

_OTHERS = ("tool_call", "inference", "inference_stream")  # calls that are not about the heap
_BYTES = "$bytes"  # the name under which bytes stand that are not JSON


class Kernel:
    """The calls of the SDK; a subclass says what they are done with. A refusal is an AuthorityKernelError.

    What is handed over as bytes is the JSON text of a value; other bytes are kept as they are.
    """

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what the kernel holds. Idempotent."""

    # The heap.

    def alloc(self, type: str, data: bytes = b"null") -> str:
        """The handle of a new object of this type, with this value, at version 0."""
        value = _value(data, "alloc")
        return self._use("alloc", type, lambda heap: str(heap.alloc(type, value)))

    def read(self, handle: str) -> bytes:
        """The JSON text of an object's value, or the bytes that it was made from where these are not JSON."""
        value = self._use("read", handle, lambda heap: heap.read(handle))
        if isinstance(value, dict) and value.keys() == {_BYTES} and isinstance(value[_BYTES], str):
            return binascii.a2b_base64(value[_BYTES])
        return documents.dumps(value)

    def write(self, handle: str, patch: bytes, expected_version: int | None = None) -> int:
        """The version of an object after a JSON Patch, given as its JSON text."""
        steps = _json(patch, "write")
        return self._use("write", handle, lambda heap: int(heap.write(handle, steps, expected_version)))

    def version(self, handle: str) -> int:
        """How often an object was written."""
        return self._use("read", handle, lambda heap: int(heap.version(handle)))

    def delete(self, handle: str) -> None:
        """Remove an object; its handle is not used again."""
        self._use("delete", handle, lambda heap: heap.delete(handle))

    def list(self, type: str | None = None) -> Any:
        """The handles of all objects, or of those of one type."""
        return self._use("read", type or "", lambda heap: heap.list(type))

    # What may be done, and what is done outside.

    def authorize(self, operation: str, target: str) -> bool:
        """Whether `operation`, such as `http.post`, would be allowed on `target` now; nothing is done."""
        return bool(self.authorize_details(operation, target)["authorized"])

    def authorize_details(self, operation: str, target: str) -> dict[str, Any]:
        """What `authorize` says, with why: operation, target, authorized, capability, expires_s, reason and
        remedy.
        """
        raise NotImplementedError

    def http_get(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of what a server answers. Raises HTTPError for a status of 400 or more."""
        return self._request("GET", url, headers=headers)

    def http_post(self, url: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """The body of what a server answers to these bytes. Raises HTTPError for a status of 400 or more."""
        return self._request("POST", url, data=data, headers=headers)

    def file_read(self, path: str) -> bytes:
        """The bytes of a file below a root, such as `data:/in/a.csv`."""
        return self._file("read", path, b"")

    def file_write(self, path: str, data: bytes) -> int:
        """How many bytes were written: the whole file, at once."""
        if not isinstance(data, (bytes, bytearray)):
            raise InvalidArgumentError(f"file_write E337 the data is a {type(data).__name__}, not bytes.")
        self._file("write", path, bytes(data))
        return len(data)

    def audit_log(self, event: str, data: Any = None) -> bool:
        """Add an entry of your own to the audit; False where there is none."""
        raise NotImplementedError

    def set_budget(self, kind: str, limit: int) -> None:
        """Allow at most `limit` of a kind from now on; a budget can only be lowered."""
        raise NotImplementedError

    def tool_call(self, name: str, arguments: bytes = b"{}") -> bytes:
        """The JSON text of what a tool returns for these arguments, the JSON text of an object."""
        given = _json(arguments, "tool_call")
        if not isinstance(given, dict):
            raise InvalidArgumentError("tool_call E337 the arguments are no object.", operation="tool_call")
        return documents.dumps(self._tool(name, given))

    def inference(self, request: bytes) -> bytes:
        """The JSON text of what a model answers, with `choices` and `usage`, to the JSON text of an object
        with `model`, `messages` or `prompt`, `max_tokens` and options of the API.
        """
        return documents.dumps(self._infer("infer", _asked(request, "inference")))

    def inference_stream(self, request: bytes) -> Generator[str, None, dict[str, Any]]:
        """The text of such an answer as it comes, piece by piece; the iterator returns its `usage`."""
        number = self._infer("infer_stream", _asked(request, "inference_stream"))["stream"]
        is_over, usage = False, {}
        try:
            while not is_over:
                try:
                    pulled = self._infer("stream_next", {"stream": number})
                except BaseException:
                    is_over = True
                    raise
                is_over = pulled["end"]
                for item in pulled["items"]:
                    if "text" in item:
                        yield item["text"]
                    else:
                        usage = item["usage"]
        finally:
            if not is_over:
                self._infer("stream_close", {"stream": number})
        return usage

    # What a subclass does.

    def _use(self, method: str, target: str, act: Callable[[Any], T]) -> T:
        """What `act` makes of the heap."""
        raise NotImplementedError

    def _request(self, method: str, url: str, **options: Any) -> bytes:
        raise NotImplementedError

    def _file(self, op: str, path: str, body: bytes) -> bytes:
        raise NotImplementedError

    def _tool(self, name: str, arguments: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _infer(self, name: str, arguments: dict[str, Any]) -> Any:
        """What a call about a model brings: infer, infer_stream, stream_next or stream_close."""
        raise NotImplementedError


class GuestKernel(Kernel):
    """The kernel as a program in a guest has it: its heap is that of the call in hand, and so is the rest.

    What it may do is the route's: files of a policy, or another configuration, are for scripts outside.
    """

    in_hand: list[Any] = [None]  # noqa: RUF012 - of the process: the instance that is called

    def __init__(self, policy: Any = None, config: Any = None, route: Any = None, **more: Any) -> None:
        if more or (policy, config, route) != (None, None, None):
            what = "in a guest the policy and the configuration are those of its route: AuthorityKernel()"
            raise InvalidArgumentError(f"AuthorityKernel E337 {what}.")

    @property
    def _voice(self) -> Any:
        [instance] = self.in_hand
        if instance is None:
            raise AuthorityKernelError("a kernel is for process and process_stream: no call is in hand")
        return instance._voice

    def authorize_details(self, operation: str, target: str) -> dict[str, Any]:
        said: dict[str, Any] = self._voice.call("authorize", {"op": operation, "target": target})
        return said

    def audit_log(self, event: str, data: Any = None) -> bool:
        return bool(self._voice.call("audit", {"name": event, "data": data}))

    def set_budget(self, kind: str, limit: int) -> None:
        self._voice.call("set_budget", {"kind": kind, "limit": limit})

    def _use(self, method: str, target: str, act: Callable[[Any], T]) -> T:
        return act(self._voice.heap())

    def _request(self, method: str, url: str, **options: Any) -> bytes:
        answer = self._voice.requests.request(method, url, **options)
        answer.raise_for_status()
        content: bytes = answer.content
        return content

    def _file(self, op: str, path: str, body: bytes) -> bytes:
        found: bytes | None = getattr(self._voice.files, op)(path, *([body] if op == "write" else ()))
        return found or b""

    def _tool(self, name: str, arguments: dict[str, Any]) -> Any:
        return self._voice.tools.call(name, **arguments)

    def _infer(self, name: str, arguments: dict[str, Any]) -> Any:
        return self._voice.call(name, arguments)


GuestKernel.__name__ = GuestKernel.__qualname__ = "AuthorityKernel"  # what user code calls it


_OF_CALL = ("model", "messages", "prompt", "max_tokens")  # others are options


def _asked(request: Any, method: str) -> dict[str, Any]:
    """The arguments of a call that asks a model."""
    given = _json(request, method)
    if not isinstance(given, dict):
        raise InvalidArgumentError(f"{method} E337 the request is no object.", operation=method)
    options = {name: value for name, value in given.items() if name not in _OF_CALL}
    return {**{name: given.get(name) for name in _OF_CALL}, "options": options}


def _json(data: Any, method: str) -> Any:
    if isinstance(data, (bytes, bytearray)):
        try:
            return documents.loads(bytes(data))
        except ValueError as err:
            operation = _operation(method)
            what = f"{operation} E337 the data is not JSON: {err}."
            raise InvalidArgumentError(what, operation=operation) from None
    operation = _operation(method)
    what = f"{operation} E337 the data is a {type(data).__name__}, not bytes; encode the text of its JSON."
    raise InvalidArgumentError(what, operation=operation)


def _operation(method: str) -> str:
    return method if method in _OTHERS else f"heap.{method}"


def _value(data: Any, method: str) -> Any:
    try:
        return _json(data, method)
    except InvalidArgumentError:
        if not isinstance(data, (bytes, bytearray)):
            raise
        return {_BYTES: binascii.b2a_base64(bytes(data), newline=False).decode()}
