"""What a guest is offered beside its program: capabilities, secrets by their marks, and subjects to emit to.

The host's registry (`processor/capability`) has all of a capability; a `Signature` is what a guest is told of
it: enough to call it by name. It is no permission. The host looks every call up in its own registry, so a
guest that changes its copy gains nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Signature:
    """The name of a capability and those of its arguments, in the order in which a call may give them."""

    name: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    is_method: bool = True  # of the Runnable: `self.<name>(...)`; others have helpers of their own there
    is_request: bool = True  # counts in `limits.requests`, as what leaves the host does; the host knows
    is_counted: bool = True  # in `limits.calls`; others go on with a call that was counted; the host knows

    def bind(self, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by their names; what is left out is missing. Raises TypeError."""
        names = (*self.required, *self.optional)
        if len(positional) > len(names):
            raise TypeError(
                f"{self.name}() takes {len(names)} arguments ({', '.join(names)}), not {len(positional)}"
            )
        bound = dict(zip(names, positional, strict=False))
        for name in named:
            if name not in names:
                known = ", ".join(names) or "none"
                raise TypeError(f"{self.name}() has no argument {name!r}; its arguments are {known}")
            if name in bound:
                raise TypeError(f"{self.name}() was given {name!r} twice")
            bound[name] = named[name]
        for name in self.required:
            if name not in bound:
                raise TypeError(f"{self.name}() is missing its argument {name!r}")
        return bound


class HeapGrant(NamedTuple):
    """A line of a policy for types of objects whose names match `types`, a regular expression."""

    is_deny: bool
    types: str
    methods: tuple[str, ...]  # "*" is every one


@dataclass(frozen=True, slots=True)
class HeapOffer:
    """Whose objects a guest may use without asking its host first.

    `policies` has the lines of each policy that never expire; of several each must allow. An operation that
    is not allowed by them is asked for (`heap`), and so is what stores a value of a type in `schemas`. The
    host has `fits`, which says whether the JSON text of a value fits the schema of its type.
    """

    policies: Sequence[Sequence[HeapGrant]] = ()
    schemas: Collection[str] = frozenset()
    fits: Callable[[str, bytes], bool] = field(default=lambda kind, text: True, compare=False)

    def allows(self, method: str, kind: str) -> bool:
        """Whether the lines allow it."""
        return all(_allows(grants, method, kind) for grants in self.policies)


def _allows(grants: Sequence[HeapGrant], method: str, kind: str) -> bool:
    found = [
        grant.is_deny
        for grant in grants
        if (method in grant.methods or "*" in grant.methods) and re.fullmatch(grant.types, kind, re.DOTALL)
    ]
    return bool(found) and not any(found)


OPEN_HEAP = HeapOffer()


@dataclass(frozen=True, slots=True)
class Offer:
    """What a guest may use from the load of its program on."""

    signatures: Sequence[Signature] = ()
    marks: Mapping[str, str] = field(default_factory=dict)  # the texts that stand for its secrets, by name
    emits: Sequence[str] = ()  # patterns
    heap: HeapOffer = OPEN_HEAP


NOTHING = Offer()
