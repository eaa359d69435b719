"""The contexts that one guest holds, as its host counts them.

A guest says how large a context is, and the host does not believe it: it counts the items that it gave and
those that came back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from processor.model import ContextChange, Group
from processor.sandbox import wire
from processor.sandbox.values import weight


class Tally:
    """The keys whose contexts a guest holds, with the bytes of every item."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._items: dict[str, dict[str, int]] = {}

    def ask(self, groups: Iterable[Group], forget: Iterable[str]) -> None:
        """Note what a request gives and takes. Raises ValueError for a key whose context it does not have."""
        for key in forget:
            self._items.pop(key, None)
        for group in groups:
            if group.context is not None:
                self._items[group.key] = {name: weight(name, value) for name, value in group.context.items()}
            elif group.key not in self._items:
                raise ValueError(
                    f"the guest holds no context of key {group.key!r}; Group.context must give it"
                )

    def change(self, changes: Mapping[str, ContextChange]) -> dict[str, ContextChange]:
        """What a run did to contexts, with the sizes that they really have then.

        Raises Violation for one that is over its limit.
        """
        measured: dict[str, ContextChange] = {}
        for key, change in changes.items():
            items = {} if change.whole else dict(self._items[key])
            for name, value in change.items.items():
                if value is None:
                    items.pop(name, None)
                else:
                    items[name] = weight(name, value)
            size = sum(items.values())
            if size > self._limit_bytes:
                raise wire.Violation("a context that is larger than its limit")
            self._items[key] = items
            measured[key] = replace(change, size=size)
        return measured
