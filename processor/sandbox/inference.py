"""What a model has answered, as a Runnable has it: `self.infer(...)`.

The host asks the model; what is here reads its answer, beside hostile code. Whatever a server may have left
out of it is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from processor.sandbox.facades import insisting


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
        usage: dict[str, Any] = self._document["usage"]
        return usage

    @property
    def model(self) -> str:
        """The model, as the server calls it."""
        return _text(self._document.get("model"))

    def json(self) -> Any:
        """The text as JSON. Raises ValueError where the model has not written any."""
        return json.loads(self.text)

    @property
    def _choice(self) -> dict[str, Any]:
        choices = self._document.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        return choice if type(choice) is dict else {}

    def __getitem__(self, name: str) -> Any:
        return self._document[name]

    def __repr__(self) -> str:
        return f"<answer of {self.model}: {self.text[:60]!r}>"


def _text(value: Any) -> str:
    return value if type(value) is str else ""


for _kind in (ToolCall, Completion):
    insisting(_kind)
