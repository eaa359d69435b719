"""Servers of models: chat completions and embeddings, as OpenAI's API and those that follow it have them.

A `ModelServer` is one endpoint of the configuration, reached by the same `Client` as every other request. A
call is made again where the server says that it may be (408, 409, 429, 5xx) or could not be reached, within
the deadline of the endpoint, and never once an answer has begun. What the server says is hostile: JSON of
bounded bytes and depth, with its own secret taken out; what it says of tokens is believed as far as it is a
count, and else they are estimated.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import email.utils
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeGuard

from processor.address import parse_url
from processor.capability.answers import Unanswered, one_line
from processor.capability.client import Client, Streamed
from processor.capability.events import EventSplitter
from processor.capability.secrets import Scrubber
from processor.errors import About, ProcessorError
from processor.policy import Ask
from processor.reach import InferenceEndpoint, Reach
from processor.sandbox import documents
from processor.sandbox.bounds import nests_deeper
from processor.sandbox.values import DEPTH

TRIES = 3
FIRST_PAUSE_S = 0.5  # before the second try; twice that before the third
BYTES_A_TOKEN = 4  # where nobody counts them: what English takes
_TOKENS_MAX = 1 << 40
_SAID_CHARS = 500
_CALLS_MAX = 128  # of tools, in one answer
_END_S = 1.0  # what is waited for the end of a body behind the last event
_AGAIN = frozenset((408, 409, 429))  # and 500 and more


class InferenceError(ProcessorError):
    """A model that has not answered (E334)."""

    def __init__(self, endpoint: str, ask: Ask, why: str) -> None:
        about = About(f"{ask.kind}.{ask.method}", ask.target)
        super().__init__("E334", f"{ask.target} of {endpoint}: {why}", place="infer", about=about)


class Usage(NamedTuple):
    """The tokens of one call."""

    tokens_in: int
    tokens_out: int
    is_estimated: bool = False

    @classmethod
    def of(cls, said: Any, sent_bytes: int, answered_bytes: int) -> Usage:
        """What a server says of it; by the bytes, where it says nothing that can be counted."""
        if _is_object(said):
            given, answered = said.get("prompt_tokens"), said.get("completion_tokens", 0)  # embeddings: none
            if _is_count(given) and _is_count(answered):
                return cls(given, answered)
        return cls(estimated(sent_bytes), estimated(answered_bytes), True)


def estimated(size: int) -> int:
    """How many tokens so many bytes may be."""
    return -(-size // BYTES_A_TOKEN)


def endpoint_of(reach: Reach, model: str) -> InferenceEndpoint | None:
    """The first endpoint of the route that serves this model."""
    return next((endpoint for endpoint in reach.inference if endpoint.serves(model)), None)


def unserved(reach: Reach, model: str) -> str:
    """What to add to the configuration for a model that no endpoint of the route serves."""
    listed = [f"{endpoint.name} ({', '.join(endpoint.models)})" for endpoint in reach.inference]
    return (
        f"Add to the route's inference an endpoint whose `models` match {model!r}; those of the route are"
        f" {', '.join(listed) or 'none'}."
    )


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What a server answered: its document with what it used in it, and the name that it gives the model."""

    document: dict[str, Any]
    usage: Usage
    model: str


class ModelServer:
    """One endpoint. Every failure is ProcessorError E334, but E323 for too many bytes and E325."""

    def __init__(self, endpoint: InferenceEndpoint, client: Client, max_bytes: int) -> None:
        self._endpoint = endpoint
        self._client = client
        self._max_bytes = max_bytes
        self._scrubber = Scrubber([endpoint.secret.value] if endpoint.secret else [])

    async def chat(self, ask: Ask, body: bytes) -> ModelAnswer:
        """The answer to a request for a chat completion, which is JSON."""
        document = await self._document(ask, "/chat/completions", body)
        choices = document.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        message = choice.get("message") if _is_object(choice) else None
        if not _is_object(message):
            raise self._failed(ask, "the server's answer is no chat completion: it has no message")
        usage = Usage.of(document.get("usage"), len(body), len(documents.dumps(message)))
        return self._completed(document, usage)

    async def embed(self, ask: Ask, texts: Sequence[str], body: bytes) -> ModelAnswer:
        """The answer to a request for the embeddings of these texts."""
        document = await self._document(ask, "/embeddings", body)
        vectors = _vectors(document.get("data"), len(texts))
        if vectors is None:
            what = f"the server's answer has not one list of numbers for each of {len(texts)} texts"
            raise self._failed(ask, what)
        usage = Usage.of(document.get("usage"), sum(len(text.encode()) for text in texts), 0)
        return self._completed({**document, "data": vectors}, usage)

    def _completed(self, document: dict[str, Any], usage: Usage) -> ModelAnswer:
        said = document.get("model")
        document["usage"] = usage_of(usage)
        return ModelAnswer(document, usage, said[:_SAID_CHARS] if type(said) is str else "")

    async def stream(self, ask: Ask, body: bytes) -> AnswerStream:
        """The answer to a request for a chat completion that is to come in pieces, as soon as it begins."""
        endpoint = self._endpoint
        ends_s = asyncio.get_running_loop().time() + endpoint.timeout_s
        streamed = await self._begun(ask, "/chat/completions", body, ends_s, endpoint.idle_s)
        kind = streamed.header("content-type").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            await streamed.close()
            raise self._failed(ask, f"the server's answer is no stream of events: it is {kind[:60]!r}")
        return AnswerStream(streamed, ends_s, self._scrubber, len(body), partial(self._broken, ask))

    def _broken(self, ask: Ask, err: ProcessorError | TimeoutError | ValueError | str) -> ProcessorError:
        """What ends a stream before its end."""
        if isinstance(err, TimeoutError):
            return self._failed(ask, self._too_late)
        if isinstance(err, ProcessorError) and not isinstance(err, Unanswered):
            return err
        what = err.what if isinstance(err, Unanswered) else str(err)
        return self._failed(ask, self._scrubber.text(what))

    async def _document(self, ask: Ask, path: str, body: bytes) -> dict[str, Any]:
        """What the server answers, read whole. Raises InferenceError."""
        ends_s = asyncio.get_running_loop().time() + self._endpoint.timeout_s
        streamed = await self._begun(ask, path, body, ends_s)
        try:
            async with asyncio.timeout_at(ends_s):
                text = self._scrubber.body(await _whole(streamed))
        except TimeoutError:
            raise self._failed(ask, self._too_late) from None
        except Unanswered as err:
            raise self._failed(ask, self._scrubber.text(err.what)) from None
        try:
            document = documents.loads(text)
        except ValueError:
            raise self._failed(ask, "the server's answer is not JSON") from None
        if not isinstance(document, dict) or nests_deeper(text, document, DEPTH):
            raise self._failed(ask, f"the server's answer is no object of at most {DEPTH} levels")
        return document

    async def _begun(
        self, ask: Ask, path: str, body: bytes, ends_s: float, idle_s: float | None = None
    ) -> Streamed:
        """The first answer of status 200, whose head has come. Raises InferenceError."""
        url, headers = parse_url(f"{self._endpoint.base_url}{path}"), self._headers()
        loop = asyncio.get_running_loop()
        pause_s, why = FIRST_PAUSE_S, ""
        for left in reversed(range(TRIES)):
            wait_s = pause_s
            try:
                async with asyncio.timeout_at(ends_s):
                    streamed = await self._client.stream("POST", url, headers, body, self._max_bytes, idle_s)
                    if streamed.status == 200:
                        return streamed
                    why = self._said(streamed.status, await _whole(streamed))
            except TimeoutError:
                why = f"{self._too_late}; before that: {why}" if why else self._too_late
                break
            except Unanswered as err:
                why = self._scrubber.text(err.what)
                is_over = err.kind == "tls"
            else:
                is_over = streamed.status not in _AGAIN and streamed.status < 500
                asked_s = _retry_after_s(streamed.header("retry-after"))
                wait_s = pause_s if asked_s is None else asked_s
            if is_over or not left:
                break
            if loop.time() + wait_s >= ends_s:
                why += f"; the next try would be in {wait_s:g} s, which is too late ({self._limit})"
                break
            await asyncio.sleep(wait_s)
            pause_s *= 2
        raise self._failed(ask, why)

    def _headers(self) -> list[tuple[str, str]]:
        headers = [("Content-Type", "application/json")]
        if self._endpoint.secret is not None:
            headers.append(("Authorization", f"Bearer {self._endpoint.secret.value}"))
        return headers

    @property
    def _too_late(self) -> str:
        return f"no complete answer within {self._endpoint.timeout_s:g} s ({self._limit})"

    @property
    def _limit(self) -> str:
        return f"inference.{self._endpoint.name}.timeout_s"

    def _said(self, status: int, body: bytes) -> str:
        """What an answer that is an error says, in one line."""
        said: Any = None
        with contextlib.suppress(ValueError):
            said = documents.loads(self._scrubber.body(body))
        text = _error_in(said)
        return f"status {status}{f': {text}' if text else ''}"

    def _failed(self, ask: Ask, why: str) -> InferenceError:
        return InferenceError(self._endpoint.name, ask, why)


class AnswerStream:
    """A chat completion that comes. `heard` is called with each piece of its bytes."""

    def __init__(
        self,
        streamed: Streamed,
        ends_s: float,
        scrubber: Scrubber,
        sent_bytes: int,
        broken: Callable[[ProcessorError | TimeoutError | ValueError | str], ProcessorError],
    ) -> None:
        self.usage = Usage(estimated(sent_bytes), 0, True)  # as far as it is known
        self.model = ""
        self.heard: Callable[[bytes], None] = lambda piece: None
        self._streamed = streamed
        self._ends_s = ends_s
        self._scrubber = scrubber
        self._text = _ScrubbedText(scrubber)
        self._sent_bytes = sent_bytes
        self._broken = broken
        self._message = _Message()
        self._counted: Any = None  # what the server says of its usage
        self._is_done = False

    async def items(self) -> AsyncGenerator[dict[str, Any], None]:
        """`{"text": ...}` for each piece that has any, and behind them one with what an answer has that is
        read whole: `message`, `finish_reason`, `usage` and `model`.

        Raises InferenceError where the stream breaks off, is silent or odd, and ProcessorError E323 beyond
        the bytes of an answer.
        """
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    if text := self._text.feed(self._read(event)):
                        yield {"text": text}
            if not (self._is_done or self._message.finish_reason):
                raise self._broken("the answer broke off")
        except (ProcessorError, TimeoutError, ValueError) as err:
            raise self._broken(err) from None
        if text := self._text.finish():
            yield {"text": text}
        yield {
            "message": self._scrubbed(self._message.whole),
            "finish_reason": self._message.finish_reason,
            "usage": usage_of(self.usage),
            "model": self.model,
        }
        await self._streamed.end(_END_S)

    async def close(self) -> None:
        """Give up what has not come yet. Idempotent."""
        await self._streamed.close()

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """The events up to the one that says that there are no more. Raises what ends the stream."""
        splitter, scrubbed = EventSplitter(), self._scrubber.stream()
        pieces = aiter(self._streamed)
        while True:
            async with asyncio.timeout_at(self._ends_s):
                piece = await anext(pieces, b"")
            data = scrubbed.feed(piece) if piece else scrubbed.finish()
            self.heard(data)
            for event in splitter.feed(data):
                if event.strip() == b"[DONE]":
                    self._is_done = True
                    return
                yield event
            if not piece:
                return

    def _read(self, event: bytes) -> str:
        """The text that an event adds. Raises ValueError."""
        document = documents.loads(event)
        if not _is_object(document) or nests_deeper(event, document, DEPTH):
            raise ValueError(f"an event of the answer is no object of at most {DEPTH} levels")
        if "error" in document and "choices" not in document:
            raise ValueError(_error_in(document) or "the server says that it failed")
        if type(document.get("model")) is str:
            self.model = document["model"][:_SAID_CHARS]
        self._counted = document.get("usage") or self._counted
        choices = document.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        text = self._message.add(choice) if _is_object(choice) else ""
        self.usage = Usage.of(self._counted, self._sent_bytes, self._message.size)
        return text

    def _scrubbed(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message without the endpoint's secret, which events may have had in parts."""
        found: dict[str, Any] = documents.loads(self._scrubber.body(documents.dumps(message)))
        return found


class _Message:
    """The message of a model, put together from what its pieces add."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self.size = 0  # bytes of what it says
        self._texts: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}

    def add(self, choice: Mapping[str, Any]) -> str:
        """The text of a piece. Raises ValueError for more calls of tools than there may be."""
        if type(choice.get("finish_reason")) is str:
            self.finish_reason = choice["finish_reason"][:_SAID_CHARS]
        delta = choice.get("delta")
        if not _is_object(delta):
            return ""
        calls = delta.get("tool_calls")
        for call in calls if type(calls) is list else ():
            self._add_call(call)
        text = delta.get("content")
        if type(text) is not str:
            return ""
        self._texts.append(text)
        self.size += len(text.encode("utf-8", "replace"))
        return text

    @property
    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts)}
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for _, call in sorted(self._calls.items())
            ]
        return message

    def _add_call(self, said: Any) -> None:
        index = said.get("index", 0) if _is_object(said) else None
        if type(index) is not int:
            return
        if index not in self._calls and len(self._calls) >= _CALLS_MAX:
            raise ValueError(f"the model calls more than {_CALLS_MAX} tools")
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        function = said.get("function")
        function = function if _is_object(function) else {}
        call["id"] = call["id"] or _text_of(said.get("id"))
        call["name"] = call["name"] or _text_of(function.get("name"))
        more = _text_of(function.get("arguments"))
        call["arguments"] += more
        self.size += len(more.encode("utf-8", "replace"))


class _ScrubbedText:
    """Takes the endpoint's secret out of a text that comes in pieces."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubbed = scrubber.stream()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, text: str) -> str:
        return self._decoder.decode(self._scrubbed.feed(text.encode("utf-8", "replace"))) if text else ""

    def finish(self) -> str:
        return self._decoder.decode(self._scrubbed.finish(), True)


async def _whole(streamed: Streamed) -> bytes:
    """The body of an answer."""
    try:
        return b"".join([piece async for piece in streamed])
    finally:
        await streamed.close()


def usage_of(usage: Usage) -> dict[str, Any]:
    """The usage of a call as a guest gets it."""
    said: dict[str, Any] = {
        "prompt_tokens": usage.tokens_in,
        "completion_tokens": usage.tokens_out,
        "total_tokens": usage.tokens_in + usage.tokens_out,
    }
    return {**said, "estimated": True} if usage.is_estimated else said


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return type(value) is dict


def _text_of(value: Any) -> str:
    return value if type(value) is str else ""


def _error_in(document: Any) -> str:
    """What a document says of an error, in one line; empty where it says nothing."""
    error = document.get("error") if _is_object(document) else None
    message = error.get("message") if _is_object(error) else error
    return one_line(_text_of(message))


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _TOKENS_MAX


def _vectors(data: Any, count: int) -> list[list[float]] | None:
    """The embeddings in the order of their texts; None where it is not one for each."""
    if type(data) is not list or len(data) != count:
        return None
    found: dict[int, list[float]] = {}
    for place, item in enumerate(data):
        vector = item.get("embedding") if _is_object(item) else None
        index = item.get("index", place) if _is_object(item) else None
        if type(vector) is not list or type(index) is not int or not 0 <= index < count:
            return None
        if not all(type(number) in (int, float) for number in vector):
            return None
        found[index] = vector
    return [found[index] for index in range(count)] if len(found) == count else None


def _retry_after_s(said: str) -> float | None:
    """How long a server asks to wait; None where it does not say so, or not so that it can be read."""
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, float(int(said)))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return None
