"""The contexts that one guest holds, as its host counts them.

A guest says how large a context is, and the host does not believe it: it counts the items that it gave and
those that came back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from processor.model import ContextChange, Group, Ran
from processor.sandbox import wire
from processor.sandbox.objects import Ledger
from processor.sandbox.offer import OPEN_HEAP, HeapOffer
from processor.sandbox.values import weight


class Tally:
    """The keys whose contexts a guest holds, with the bytes of every item."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._items: dict[str, dict[str, int]] = {}
        self._ledger = Ledger(OPEN_HEAP)

    def watch(self, heap: HeapOffer) -> None:
        """Check what runs do to objects of heaps against these rules, from now on."""
        self._ledger = Ledger(heap)

    def ask(self, groups: Iterable[Group], forget: Iterable[str]) -> None:
        """Note what a request gives and takes. Raises ValueError for a key whose context it does not have."""
        for key in forget:
            self._items.pop(key, None)
        self._ledger.forget(forget)
        for group in groups:
            if group.context is not None:
                self._ledger.hold(group.key, group.context)
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

    def check_heap(self, groups: Sequence[Group], ran: Ran, granted: Collection[tuple[str, str]]) -> None:
        """Note what a run did to objects of heaps; `granted` are methods and types that the host allowed.

        Raises Violation for what it may not do, or did not say.
        """
        ops = [(groups[op.group].key, op) for op in ran.heap]
        try:
            self._ledger.settle(ran.contexts, ops, granted)
        except ValueError as err:
            raise wire.Violation(str(err)) from None
