"""What a model has answered, as a Runnable has it: `self.infer(...)`.

The host asks the model; what is here reads its answer, beside hostile code. Whatever a server may have left
out of it is empty.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from processor.sandbox.facades import insisting

AwaitedCall = Callable[[str, dict[str, Any], bytes | None], Awaitable[Any]]


def call_of(
    model: str,
    messages: Sequence[Mapping[str, Any]] | None,
    prompt: str | None,
    max_tokens: int | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of a call, as the host takes them. Raises TypeError for a model that is no text."""
    if not isinstance(model, str):
        raise TypeError(f"the name of a model is text such as 'gpt-4o', not {type(model).__name__}")
    return {
        "model": str(model),
        "messages": None if messages is None else [*messages],
        "prompt": prompt,
        "max_tokens": max_tokens,
        "options": {name: value for name, value in options.items() if value is not None},
    }


def embedding_of(model: str, texts: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call for embeddings. Raises TypeError for one text."""
    if isinstance(texts, str):
        raise TypeError("embed takes a list of texts, and not one text")
    return {"model": model, "texts": [*texts]}


class ToolCall:
    """A call of a tool that a model asks for. What it says is the model's word, and may be anything."""

    __slots__ = ("_arguments", "id", "name")

    def __init__(self, said: Any) -> None:
        said = said if type(said) is dict else {}
        function = said.get("function")
        function = function if type(function) is dict else {}
        self.id: str = _text(said.get("id"))
        self.name: str = _text(function.get("name"))
        self._arguments = function.get("arguments")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name. Raises ValueError where the model has written no JSON object."""
        found = json.loads(self._arguments) if type(self._arguments) is str else self._arguments
        if type(found) is not dict:
            raise ValueError(f"the model calls {self.name} with {str(found)[:100]!r}, which is no object")
        return found

    def __repr__(self) -> str:
        return f"<call of {self.name}>"


class Completion:
    """The answer of a model. `answer["choices"]` and so on is the server's own document."""

    __slots__ = ("_document",)

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    @property
    def message(self) -> dict[str, Any]:
        """The message of the model, to be put behind those it was given."""
        found = self._choice.get("message")
        return found if type(found) is dict else {}

    @property
    def text(self) -> str:
        """What it says; empty where it only calls tools."""
        return _text(self.message.get("content"))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools that it asks for."""
        calls = self.message.get("tool_calls")
        return [ToolCall(call) for call in calls] if type(calls) is list else []

    @property
    def finish_reason(self) -> str:
        """Why it ended: stop, length, tool_calls or another word of the server's."""
        return _text(self._choice.get("finish_reason"))

    @property
    def usage(self) -> dict[str, Any]:
        """`prompt_tokens`, `completion_tokens` and `total_tokens`; with `estimated` where the server has not
        counted them.
        """
        usage = self._whole.get("usage")
        return usage if type(usage) is dict else {}

    @property
    def model(self) -> str:
        """The model, as the server calls it."""
        return _text(self._whole.get("model"))

    def json(self) -> Any:
        """The text as JSON. Raises ValueError where the model has not written any."""
        return json.loads(_text(self.message.get("content")))

    @property
    def _whole(self) -> dict[str, Any]:
        """The document, all of it."""
        return self._document

    @property
    def _choice(self) -> dict[str, Any]:
        choices = self._whole.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        return choice if type(choice) is dict else {}

    def __getitem__(self, name: str) -> Any:
        return self._whole[name]

    def __repr__(self) -> str:
        return f"<answer: {self.text[:60]!r}>"


class CompletionStream(Completion):
    """The answer of a model as it comes: iterating over it gives its text, piece by piece.

    Behind the last piece it has all that an answer has; who asks for that before reads the rest.
    """

    __slots__ = ("_call", "_is_over", "_number", "_said", "_waiting")

    def __init__(self, call: Callable[[str, dict[str, Any]], Any], number: int) -> None:
        super().__init__({})
        self._call = call
        self._number = number
        self._said: list[str] = []
        self._waiting: list[str] = []  # pieces that have come and were not taken
        self._is_over = False

    def __iter__(self) -> CompletionStream:
        return self

    def __next__(self) -> str:
        while not self._waiting:
            if self._is_over:
                raise StopIteration
            self._take(self._ask("stream_next"))
        return self._waiting.pop(0)

    @property
    def text(self) -> str:
        """What it says; before its end, what it has said so far."""
        return "".join(self._said)

    def close(self) -> None:
        """Give up what was not taken yet."""
        self._waiting.clear()
        if not self._is_over:
            self._ask("stream_close")
            self._is_over = True

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _whole(self) -> dict[str, Any]:
        while not self._is_over:
            self._take(self._ask("stream_next"))
        return self._document

    def _ask(self, name: str) -> Any:
        try:
            return self._call(name, {"stream": self._number})
        except TimeoutError:
            raise  # of the program's own, and the next pull goes on
        except BaseException:
            self._is_over = True
            raise

    def _take(self, pulled: dict[str, Any]) -> None:
        for item in pulled["items"]:
            if "text" in item:
                self._said.append(item["text"])
                self._waiting.append(item["text"])
            else:
                choice = {"index": 0, "message": item["message"], "finish_reason": item["finish_reason"]}
                self._document = {"choices": [choice], "usage": item["usage"], "model": item["model"]}
        self._is_over = pulled["end"]


class AwaitedCompletionStream(CompletionStream):
    """The same where each piece is awaited."""

    __slots__ = ("_awaited",)

    def __init__(self, awaited: AwaitedCall, number: int) -> None:
        super().__init__(_not_called, number)
        self._awaited = awaited

    def __aiter__(self) -> AwaitedCompletionStream:
        return self

    async def __anext__(self) -> str:
        while not self._waiting:
            if self._is_over:
                raise StopAsyncIteration
            self._take(await self._ask_awaited("stream_next"))
        return self._waiting.pop(0)

    async def aclose(self) -> None:
        """Give up what was not taken yet."""
        self._waiting.clear()
        if not self._is_over:
            await self._ask_awaited("stream_close")
            self._is_over = True

    async def __aenter__(self) -> AwaitedCompletionStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _ask_awaited(self, name: str) -> Any:
        try:
            return await self._awaited(name, {"stream": self._number}, None)
        except Exception:  # but not where the program gives a pull up, which another one may follow
            self._is_over = True
            raise


def _not_called(name: str, arguments: dict[str, Any]) -> Any:
    raise RuntimeError("this answer is awaited: `async for` reads it, and `aclose` gives it up")


def _text(value: Any) -> str:
    return value if type(value) is str else ""


for _kind in (ToolCall, Completion, CompletionStream, AwaitedCompletionStream):
    insisting(_kind)
