"""What stands for a value in the inputs of a node: a literal, a reference, or a text with references in it.

`${{ node.outputs.field }}` is an output of a node before this one, `${{ store.key }}` is a value of the run's
store, `$${{` is the text `${{`. A text that is one reference and nothing else becomes the value, with its
JSON type; in any other text references become texts, where what is no text is written as JSON. Lists and
objects may hold such texts at any depth. Nothing is ever evaluated: there are no expressions.

`checks` parses to find faults, `plan` to compile, `machine` to render; what a reference finds is theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

_MARK = re.compile(r"\$\$\{\{|\$\{\{(.*?)\}\}", re.DOTALL)
_OUTPUT = re.compile(r"\s*([A-Za-z0-9_-]+)\.outputs\.([^\s.{}]+)\s*\Z")
_STORE = re.compile(r"\s*store\.([^\s.{}]+)\s*\Z")
# Nobody's file needs more; a recursion that a request controls has to have an end.
_MOST_DEEP = 32


class Reference(NamedTuple):
    """An output of a node, or a key of the store where `node` is empty."""

    node: str
    field: str

    def __str__(self) -> str:
        return (
            f"${{{{ {self.node}.outputs.{self.field} }}}}" if self.node else f"${{{{ store.{self.field} }}}}"
        )


Find = Callable[[Reference], Any]


@dataclass(frozen=True, slots=True)
class ValueTemplate:
    """A value with references in it; `parse` makes one.

    Exactly one of these holds: `reference` is set (the value is what it finds), `parts` is (texts and
    references, joined), `nested` is (a list or an object of templates), or it is the literal `value`.
    """

    value: Any = None
    reference: Reference | None = None
    parts: tuple[str | Reference, ...] = ()
    nested: tuple[ValueTemplate, ...] | dict[str, ValueTemplate] | None = None

    @property
    def is_literal(self) -> bool:
        """Whether it is `value`, whatever the run."""
        return self.reference is None and not self.parts and self.nested is None

    @property
    def references(self) -> Iterator[Reference]:
        """Each reference in it, as often as it is there."""
        if self.reference is not None:
            yield self.reference
        for part in self.parts:
            if isinstance(part, Reference):
                yield part
        if self.nested is not None:
            below = self.nested.values() if isinstance(self.nested, dict) else self.nested
            for template in below:
                yield from template.references

    def render(self, find: Find) -> Any:
        """The value, with what `find` returns in the place of each reference; what it raises goes through."""
        if self.reference is not None:
            return find(self.reference)
        if self.parts:
            return "".join(part if isinstance(part, str) else as_text(find(part)) for part in self.parts)
        if self.nested is None:
            return self.value
        if isinstance(self.nested, dict):
            return {key: template.render(find) for key, template in self.nested.items()}
        return [template.render(find) for template in self.nested]


def as_text(value: Any) -> str:
    """A value inside of a text: itself where it is a text, else its JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def parse(value: Any) -> ValueTemplate:
    """The template that a JSON value stands for. ValueError names each text in it that is no reference."""
    faults: list[str] = []
    template = _parse(value, faults, 0)
    if faults:
        raise ValueError("; ".join(faults))
    return template


def literal(value: Any) -> Any:
    """The JSON value that stands for `value` itself, whatever is in its texts."""
    if isinstance(value, str):
        return value.replace("${{", "$${{")
    if isinstance(value, dict):
        return {key: literal(each) for key, each in value.items()}
    return [literal(each) for each in value] if isinstance(value, list) else value


def _parse(value: Any, faults: list[str], depth: int) -> ValueTemplate:
    if isinstance(value, str):
        return _parse_text(value, faults)
    if not isinstance(value, list | dict):
        return ValueTemplate(value)
    if depth == _MOST_DEEP:
        faults.append(f"it is more than {_MOST_DEEP} levels deep")
        return ValueTemplate()
    nested: tuple[ValueTemplate, ...] | dict[str, ValueTemplate]
    if isinstance(value, dict):
        nested = {key: _parse(item, faults, depth + 1) for key, item in value.items()}
        rendered = [template.value for template in nested.values()]
        is_literal = all(template.is_literal for template in nested.values())
        return (
            ValueTemplate(dict(zip(nested, rendered, strict=True)))
            if is_literal
            else ValueTemplate(nested=nested)
        )
    nested = tuple(_parse(item, faults, depth + 1) for item in value)
    if all(template.is_literal for template in nested):
        return ValueTemplate([template.value for template in nested])
    return ValueTemplate(nested=nested)


def _parse_text(text: str, faults: list[str]) -> ValueTemplate:
    if "${{" not in text:
        return ValueTemplate(text)
    parts: list[str | Reference] = []
    literal, at = "", 0
    for mark in _MARK.finditer(text):
        literal += text[at : mark.start()]
        at = mark.end()
        if mark[1] is None:
            literal += "${{"
            continue
        if literal:
            parts.append(literal)
            literal = ""
        parts.append(_reference(mark[0], mark[1], faults))
    literal += text[at:]
    if "${{" in text[at:]:
        faults.append(_no_reference(text[text.index("${{", at) :]))
    if literal:
        parts.append(literal)
    if parts and isinstance(parts[0], Reference) and len(parts) == 1:
        return ValueTemplate(reference=parts[0])
    if all(isinstance(part, str) for part in parts):
        return ValueTemplate(literal)
    return ValueTemplate(parts=tuple(parts))


def _reference(text: str, inside: str, faults: list[str]) -> Reference:
    if found := _STORE.match(inside):
        return Reference("", found[1])
    if (found := _OUTPUT.match(inside)) and found[1] != "store":
        return Reference(found[1], found[2])
    faults.append(_no_reference(text))
    return Reference("", "")


def _no_reference(text: str) -> str:
    shown = text if len(text) <= 80 else text[:77] + "..."
    guess = re.match(r"\$\{\{\s*([A-Za-z0-9_-]+)\.\w+\.([^\s.{}]+)\s*\}\}\Z", text)
    right = f"${{{{ {guess[1]}.outputs.{guess[2]} }}}}" if guess and guess[1] != "store" else ""
    return f"{shown!r} is no reference; write {right or '${{ node.outputs.field }}'} or ${{{{ store.key }}}}"
