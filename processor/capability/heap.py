"""The row by which guests ask about operations on their heaps, and what they are told of the rules.

A guest has its objects itself, in the context of the key. It asks here only what its `HeapOffer` does not
answer: an operation that no lasting line of the policy allows, and whether a value fits the schema of its
type. What it did comes with the result of its run, and is checked again there (`sandbox.objects`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from processor.capability.arguments import Anything, Argument, Choice, Listed, Text
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.errors import About, ProcessorError
from processor.policy import Ask, Rules, glob_regex
from processor.sandbox import documents, objects
from processor.sandbox.offer import HeapGrant, HeapOffer
from processor.schema import Schema


class _Value(Anything):
    """A JSON value of any kind, null among them."""

    def fits(self, value: Any) -> bool:
        return True


def offer_of(route: str, rules: Rules, schemas: Mapping[str, Schema]) -> HeapOffer:
    """What the guests of a route are told of its rules for objects."""

    def fits(kind: str, text: bytes) -> bool:
        return kind not in schemas or schemas[kind].fault(documents.loads(text)) is None

    policies = [
        [HeapGrant(rule.is_deny, glob_regex(rule.resource), tuple(sorted(rule.methods))) for rule in lines]
        for lines in rules.lasting(route, "heap")
    ]
    return HeapOffer(policies, frozenset(schemas), fits)


async def _allowed(connections: Connections, arguments: Arguments) -> bool:
    """True for an operation that the policy allowed. Raises ProcessorError E337 for a value that is unfit."""
    kind = arguments["type"]
    schema = connections.reach.heap.get(kind)
    for value in arguments["value"]:
        if schema is not None and (fault := schema.fault(value)) is not None:
            method = f"heap.{arguments['method']}"
            what = f"a value of the type {kind!r} does not fit its schema: {fault}"
            raise ProcessorError("E337", what, place=method, about=About(method, kind))
    return True


HEAP = Capability(
    objects.HEAP,
    (
        Argument("method", Choice(objects.METHODS)),
        Argument("type", Text(1, objects.TYPE_CHARS)),
        Argument("value", Listed(_Value(), most=1), required=False, default=[]),
    ),
    perform=_allowed,
    ask=lambda arguments: Ask("heap", arguments["method"], arguments["type"]),
    event="heap",
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_method=False,
)
