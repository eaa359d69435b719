"""`self.infer` and `self.embed`: models of the route's endpoints, under its policy and its budgets.

Which endpoint is asked follows from the model's name, and from nothing that a guest could choose. To a policy
a chat is `infer.chat` of the model, embeddings are `infer.embed`. Of tokens and what they cost a budget is
reserved what a call may use at most, and is charged what it has used.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from processor.capability.arguments import (
    Argument,
    Choice,
    JsonObject,
    Kind,
    Listed,
    Number,
    OneOf,
    Text,
    Whole,
    shown,
)
from processor.capability.completions import (
    AnswerStream,
    ModelServer,
    Usage,
    endpoint_of,
    estimated,
    unserved,
)
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.errors import About, ProcessorError
from processor.policy import LIMIT_MAX, Ask, Verdict
from processor.reach import InferenceEndpoint
from processor.sandbox import documents

MODEL_CHARS = 200
MESSAGES = 10_000
TEXTS = 2048  # of one call of `embed`, as OpenAI has it
TOOLS = 128

# What a call may say beside its messages, and nothing else goes to a server.
OPTIONS: Mapping[str, Kind] = {
    "temperature": Number(-1, 100),
    "top_p": Number(-1, 1),
    "presence_penalty": Number(most=100),
    "frequency_penalty": Number(most=100),
    "stop": OneOf((Text(1), Listed(Text(1), 1, 16))),
    "seed": Whole(-(1 << 63), (1 << 63) - 1),
    "response_format": JsonObject(),
    "tools": Listed(JsonObject(), 1, TOOLS),
    "tool_choice": OneOf((Choice(("auto", "none", "required")), JsonObject())),
}


_NO_MORE: Mapping[str, Any] = MappingProxyType({})
_STREAMED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A call as it is to be made, or what is wrong with it."""

    ask: Ask
    endpoint: InferenceEndpoint | None  # None where no endpoint of the route serves the model
    body: bytes  # of the request
    most: int = 0  # tokens of the answer
    asked: int | None = None  # of these, what the guest has asked for
    fault: str = ""
    remedy: str = ""  # where there is no endpoint

    @property
    def tokens(self) -> Mapping[str, int]:
        """What budgets reserve of tokens and their cost."""
        return _tokens(self.endpoint, Usage(estimated(len(self.body)), self.most))


def _tokens(endpoint: InferenceEndpoint | None, usage: Usage) -> Mapping[str, int]:
    """What so many tokens are to budgets. A price is that of a million, so a token costs it in millionths."""
    price_in, price_out = (endpoint.price if endpoint else None) or (0.0, 0.0)
    cost = math.ceil(usage.tokens_in * price_in + usage.tokens_out * price_out)
    return {
        "tokens_in": usage.tokens_in,
        "tokens_out": usage.tokens_out,
        "tokens": usage.tokens_in + usage.tokens_out,
        "cost": min(cost, LIMIT_MAX),
    }


class _Meter:
    """Charges the tokens of a call, and tells the audit and whoever counts of them.

    A call that was refused, or brought no answer, has used none as far as anybody can know. One that was cut
    off keeps what it reserved: its server may have gone on.
    """

    def __init__(self, connections: Connections, prepared: _Prepared) -> None:
        self._connections = connections
        self._prepared = prepared
        self._reserved_us = time.time_ns() // 1000
        self._began_s = time.perf_counter()
        self._first_s: float | None = None

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, kind: Any, err: BaseException | None, trace: Any) -> None:
        if isinstance(err, ProcessorError):
            self._count(Usage(0, 0))

    def begun(self) -> None:
        """The first piece of the answer has come."""
        self._first_s = self._first_s or time.perf_counter() - self._began_s

    def read(self, usage: Usage, model: str) -> dict[str, Any]:
        """The answer has come, of a model that its server calls by this name; what the audit has of it."""
        self._count(usage)
        details: dict[str, Any] = {"model_said": model} if model else {}
        details |= {"name": self._endpoint.name, "tokens": [usage.tokens_in, usage.tokens_out]}
        return details | ({"estimated": True} if usage.is_estimated else {})

    @property
    def _endpoint(self) -> InferenceEndpoint:
        assert self._prepared.endpoint is not None  # else the call was denied
        return self._prepared.endpoint

    def _count(self, usage: Usage) -> None:
        used = _tokens(self._endpoint, usage)
        self._connections.tab.settle(self._prepared.tokens, used, self._reserved_us)
        took_s = time.perf_counter() - self._began_s
        tokens = usage.tokens_in, usage.tokens_out
        self._connections.inferred(self._endpoint.name, took_s, *tokens, self._first_s)


def _server(connections: Connections, prepared: _Prepared) -> ModelServer:
    """Who is to be asked, where nothing is in the way of it. Raises ProcessorError E326, E330 and E331."""
    endpoint = prepared.endpoint
    assert endpoint is not None  # else the call was denied
    connections.vault.refuse_marks(prepared.body.decode(), "a request to a model")
    if endpoint.secret is not None:
        connections.permit(Ask("secret", "use", endpoint.secret.name))
    return connections.model_server(endpoint)


async def _infer(connections: Connections, arguments: Arguments) -> dict[str, Any]:
    """The server's document, with `usage` in it."""
    prepared = _sound(arguments)
    with _Meter(connections, prepared) as meter:
        completion = await _server(connections, prepared).chat(prepared.ask, prepared.body)
        connections.describe(meter.read(completion.usage, completion.model))
    return completion.document


async def _infer_stream(connections: Connections, arguments: Arguments) -> dict[str, Any]:
    """The number of a stream, whose items are those of `AnswerStream`."""
    prepared = _sound(arguments)
    with connections.streams.room():
        with _Meter(connections, prepared) as meter:
            stream = await _server(connections, prepared).stream(prepared.ask, prepared.body)
        coming = _Coming(connections, stream, meter)
        return {"stream": connections.streams.open(coming.items, coming.close, are_bytes=False)}


class _Coming:
    """A stream that is charged, and has its entry, when it ends or is given up."""

    def __init__(self, connections: Connections, stream: AnswerStream, meter: _Meter) -> None:
        self._connections = connections
        self._stream = stream
        self._meter = meter
        self._entry = connections.defer(200)
        self._code = ""
        stream.heard = self._entry.add
        self.items = self._each()

    async def _each(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            async with aclosing(self._stream.items()) as items:
                async for item in items:
                    self._meter.begun()
                    yield item
        except ProcessorError as err:
            self._code = err.code
            raise

    async def close(self) -> None:
        stream = self._stream
        try:
            await self.items.aclose()
            await stream.close()
        finally:
            self._connections.tab.charge({"bytes": self._entry.size})
            self._entry.end(self._code, self._meter.read(stream.usage, stream.model))


async def _embed(connections: Connections, arguments: Arguments) -> dict[str, Any]:
    """The embeddings in the order of the texts, and what they used."""
    prepared = _sound(arguments)
    with _Meter(connections, prepared) as meter:
        server = _server(connections, prepared)
        completion = await server.embed(prepared.ask, arguments["texts"], prepared.body)
        connections.describe(meter.read(completion.usage, completion.model))
    said = completion.document
    return {"data": said["data"], "usage": said["usage"], "model": completion.model}


def _sound(arguments: Arguments) -> _Prepared:
    """The call, where nothing is wrong with it. Raises ProcessorError E337."""
    prepared: _Prepared = arguments["prepared"]
    if prepared.fault:
        about = About(f"infer.{prepared.ask.method}", prepared.ask.target)
        raise ProcessorError("E337", prepared.fault, place="infer", about=about)
    return prepared


def _prepare_chat(
    connections: Connections, arguments: Arguments, more: Mapping[str, Any] = _NO_MORE
) -> Arguments:
    ask = Ask("infer", "chat", arguments["model"])
    endpoint, remedy = _endpoint(connections, ask.target)
    asked, options = arguments["max_tokens"], arguments["options"]
    bounds = [endpoint.max_tokens if endpoint else 0, connections.verdict(ask).max_tokens]
    most = asked or min(bound for bound in bounds if bound is not None)
    fault = _options_fault(options)
    messages = arguments["messages"]
    if (messages is None) is (arguments["prompt"] is None):
        fault = "it takes either messages=[...] or prompt=..."
    if endpoint is not None and most > endpoint.max_tokens:
        key = f"inference.{endpoint.name}.max_tokens"
        fault = f"max_tokens is {most:,}, and an answer has at most {endpoint.max_tokens:,} ({key})"
    if messages is None:
        messages = [{"role": "user", "content": arguments["prompt"]}]
    body, odd = _written({"model": ask.target, "messages": messages, "max_tokens": most, **options, **more})
    return {"prepared": _Prepared(ask, endpoint, body, most, asked, fault or odd, remedy)}


def _prepare_embed(connections: Connections, arguments: Arguments) -> Arguments:
    ask = Ask("infer", "embed", arguments["model"])
    endpoint, remedy = _endpoint(connections, ask.target)
    body, fault = _written({"model": ask.target, "input": arguments["texts"], "encoding_format": "float"})
    return {"prepared": _Prepared(ask, endpoint, body, fault=fault, remedy=remedy)}


def _written(request: Mapping[str, Any]) -> tuple[bytes, str]:
    """The body of a request; or why there can be none."""
    try:
        return documents.dumps(request), ""
    except UnicodeEncodeError:
        return b"{}", "it holds a surrogate, which is no character"


def _endpoint(connections: Connections, model: str) -> tuple[InferenceEndpoint | None, str]:
    """Who serves a model; or what to add to the configuration, where nobody does."""
    endpoint = endpoint_of(connections.reach, model)
    return endpoint, "" if endpoint else unserved(connections.reach, model)


def _options_fault(options: Mapping[str, Any]) -> str:
    """Why these options cannot be sent; empty where they can."""
    for name, value in options.items():
        kind = OPTIONS.get(name)
        if kind is None:
            return f"there is no option {shown(name)}; there are {', '.join(OPTIONS)}"
        if not kind.fits(value):
            return f"{name} is {shown(value)}, not {kind.words}"
    return ""


def _narrow(arguments: Arguments, verdict: Verdict) -> Verdict:
    """Denies a model that no endpoint serves, and an answer of more tokens than the policy's line allows."""
    prepared: _Prepared = arguments["prepared"]
    ask, asked, most = prepared.ask, prepared.asked, verdict.max_tokens
    if prepared.endpoint is None:
        by = f"the policy allows it ({verdict.rule}) and " if verdict.rule else ""
        what = f"{ask}: {by}no endpoint of the route serves that model"
        return Verdict(False, "E330", "config", what=what, remedy=prepared.remedy)
    if most is not None and asked is not None and asked > most:
        what = f"{ask}: max_tokens is {asked:,}, and {verdict.rule} allows {most:,}"
        return Verdict(False, "E330", verdict.rule, what=what, remedy="Ask for less, or raise that bound.")
    return verdict


def _cost(arguments: Arguments) -> Mapping[str, int]:
    prepared: _Prepared = arguments["prepared"]
    if prepared.fault:
        return {}
    tokens = {kind: amount for kind, amount in prepared.tokens.items() if amount}
    return {"requests": 1, "infer_calls": 1, "bytes": len(prepared.body), **tokens}


def _answer_cost(answer: Any) -> Mapping[str, int]:
    return {"bytes": len(documents.dumps(answer))}


def _ask(arguments: Arguments) -> Ask:
    ask: Ask = arguments["prepared"].ask
    return ask


def _sent(arguments: Arguments) -> bytes:
    body: bytes = arguments["prepared"].body
    return body


_CHAT = (
    Argument("model", Text(1, MODEL_CHARS)),
    Argument("messages", Listed(JsonObject(), 1, MESSAGES), required=False),
    Argument("prompt", Text(1), required=False),
    Argument("max_tokens", Whole(1, LIMIT_MAX), required=False),
    Argument("options", JsonObject(), required=False, default={}),
)

INFER = Capability(
    "infer",
    _CHAT,
    perform=_infer,
    ask=_ask,
    event="infer",
    added=_prepare_chat,
    narrow=_narrow,
    cost=_cost,
    answer_cost=_answer_cost,
    sent=_sent,
    is_method=False,
)
INFER_STREAM = Capability(
    "infer_stream",
    _CHAT,
    perform=_infer_stream,
    ask=_ask,
    event="infer",
    added=partial(_prepare_chat, more=_STREAMED),
    narrow=_narrow,
    cost=_cost,
    sent=_sent,
    is_method=False,
)
EMBED = Capability(
    "embed",
    (Argument("model", Text(1, MODEL_CHARS)), Argument("texts", Listed(Text(1), 1, TEXTS))),
    perform=_embed,
    ask=_ask,
    event="infer",
    added=_prepare_embed,
    narrow=_narrow,
    cost=_cost,
    answer_cost=_answer_cost,
    sent=_sent,
    is_method=False,
)
