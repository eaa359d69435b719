"""The objects of a heap as a context keeps them: an item for each, and one for the number of the next.

`=heap` is the number of the next handle and `=heap.0x1` the object with that handle, as
`{"type": ..., "version": ..., "value": ...}`. A number is never used again in its context. The guest makes
these items (`heap`), the host checks them again (`Ledger`), and edits from outside pass `check_item`.

What must stay true: nothing here runs code of a user's, and what is read may be any bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from processor.model import ContextChange, HeapOp
from processor.sandbox import documents, values
from processor.sandbox.offer import HeapOffer

T = TypeVar("T")

COUNTER = values.HEAP
HEAP = "heap"  # the capability that asks the host about an operation
METHODS = ("alloc", "read", "write", "delete")
VALUE_BYTES = 64 << 10  # of the JSON text of a value
OBJECTS = 10_000  # in one context
TYPE_CHARS = 64
_ITEM = f"{COUNTER}."
_COUNTER_CHARS = len(COUNTER)
_HANDLE = re.compile(r"0x(?:[1-9a-f][0-9a-f]{0,12})\Z")
_MAX_NUMBER = 1 << 52
# What a value's text takes more as it is kept: quotes and tags around names that begin with $.
_ITEM_BYTES = 2 * VALUE_BYTES


class HeapObject(NamedTuple):
    """One object; `text` is the JSON of its value."""

    type: str
    version: int
    text: bytes


def is_reserved(name: str) -> bool:
    """Whether an item of this name cannot be one of the user's own."""
    return name.startswith(COUNTER)


def is_item(name: str) -> bool:
    """Whether an item of a context belongs to its heap."""
    return name.startswith(COUNTER) and (name == COUNTER or is_handle(name.removeprefix(_ITEM)))


def is_handle(text: object) -> bool:
    return type(text) is str and _HANDLE.match(text) is not None


def items_in(context: Mapping[str, T]) -> dict[str, T]:
    """Those of a context's items that belong to its heap."""
    if not _has_reserved(context):
        return {}
    return {name: item for name, item in context.items() if is_item(name)}


def _has_reserved(names: Iterable[str]) -> bool:
    """Quick, for most contexts have none, and each is looked at in every run."""
    for name in names:  # noqa: SIM110 - half the time of a generator
        if name[:_COUNTER_CHARS] == COUNTER:
            return True
    return False


def item_of(handle: str) -> str:
    """The name of the item that keeps the object with this handle."""
    return f"{_ITEM}{handle}"


def handle_of(name: str) -> str:
    """The handle that an item's name has; empty for the counter's."""
    return name[len(_ITEM) :]


def number_of(handle: str) -> int:
    return int(handle, 16)


def is_type(text: object) -> bool:
    """Whether an object can be of a type with this name."""
    return type(text) is str and 0 < len(text) <= TYPE_CHARS and text.isprintable()


def write(heap_object: HeapObject) -> bytes:
    """The item of an object. Raises ValueError for a value that no context keeps."""
    value = documents.loads(heap_object.text)
    return values.encode({"type": heap_object.type, "version": heap_object.version, "value": value})


def read(item: bytes) -> HeapObject:
    """The object that an item keeps. Raises ValueError for any other bytes."""
    if len(item) > _ITEM_BYTES:
        raise ValueError(f"it has {len(item)} bytes, more than an object of a heap")
    kept = values.decode(item)
    if type(kept) is not dict or kept.keys() != {"type", "version", "value"}:
        raise ValueError("it is not made of type, version and value")
    kind, version = kept["type"], kept["version"]
    if not is_type(kind):
        raise ValueError(f"its type is not a text of 1 to {TYPE_CHARS} printable characters")
    if type(version) is not int or not 0 <= version < _MAX_NUMBER:
        raise ValueError("its version is not a number from 0 on")
    try:
        text = documents.encode(kept["value"], "the value")
    except (TypeError, RecursionError) as err:
        raise ValueError("its value is not JSON") from err
    if len(text) > VALUE_BYTES:
        raise ValueError(f"its value has {len(text)} bytes of JSON, more than {VALUE_BYTES}")
    return HeapObject(kind, version, text)


def read_counter(item: bytes) -> int:
    """The number of the next object. Raises ValueError."""
    number = values.decode(item)
    if type(number) is not int or not 1 <= number < _MAX_NUMBER:
        raise ValueError("it is not a number from 1 on")
    return number


def check_item(name: str, item: bytes) -> None:
    """Raise ValueError unless a context may have this item under a name that is reserved for its heap."""
    if not is_item(name):
        raise ValueError(f"names that begin with {COUNTER} are those of the heap, such as {_ITEM}0x1")
    if name == COUNTER:
        read_counter(item)
    else:
        read(item)


class Ledger:
    """The objects of the contexts that a guest holds, as its host knows them.

    What a run did to them is checked against what it says that it did, and that against the rules. An item
    that keeps no object, as an edit may have left it, is let be as long as it stays what it was.
    """

    def __init__(self, offer: HeapOffer) -> None:
        self._offer = offer
        self._kept: dict[str, dict[str, bytes]] = {}  # by key, where it has objects; by name: its items

    def hold(self, key: str, context: Mapping[str, bytes]) -> None:
        """Know the context that the guest is given."""
        held = items_in(context)
        if held:
            self._kept[key] = held
        else:
            self._kept.pop(key, None)

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._kept.pop(key, None)

    def settle(
        self,
        changes: Mapping[str, ContextChange],
        ops: Sequence[tuple[str, HeapOp]],
        granted: Collection[tuple[str, str]],
    ) -> None:
        """Take what a run did to contexts, and its operations with the keys that they are of.

        `granted` are the pairs of method and type that the host has allowed in the run. Raises ValueError for
        what no honest guest does.
        """
        said: dict[str, dict[tuple[str, str], HeapOp]] = {}
        for key, op in ops:
            if not self._offer.allows(op.method, op.type) and (op.method, op.type) not in granted:
                raise ValueError("an operation on the heap that is not allowed")
            said.setdefault(key, {})[op.method, op.handle] = op
        for key, change in changes.items():
            held = self._kept.get(key)
            if held is None:
                if not _has_reserved(change.items):
                    continue
                held = self._kept[key] = {}
            changed = items_in(change.items)
            if change.whole:
                changed = {**dict.fromkeys(held), **changed}
            for name, item in changed.items():
                if item != held.get(name):
                    self._check(name, held, item, said.get(key, {}))
            for name, item in changed.items():
                if item is None:
                    held.pop(name, None)
                else:
                    held[name] = item
            if len(held) > OBJECTS + 1:
                raise ValueError("more objects than a heap may have")

    def _check(
        self, name: str, held: Mapping[str, bytes], item: bytes | None, said: Mapping[tuple[str, str], HeapOp]
    ) -> None:
        """Raise ValueError unless an item may become this one, after what was said of it."""
        counted = _counted(held.get(COUNTER))
        if name == COUNTER:
            if (1 if item is None else read_counter(item)) < counted:
                raise ValueError("handles of a heap that would be used again")
            return
        handle, there = handle_of(name), held.get(name, values.TOMBSTONE)
        was = None if there == values.TOMBSTONE else read(there)
        if item is None:
            if was is not None and _type_of(said, "delete", handle) != was.type:
                raise ValueError("an object of a heap that went without an operation")
            return
        now = read(item)
        if was is None:
            if _type_of(said, "alloc", handle) != now.type or number_of(handle) < counted:
                raise ValueError("an object of a heap that came without an operation")
        elif not (_type_of(said, "write", handle) == now.type == was.type and now.version > was.version):
            raise ValueError("an object of a heap that changed without an operation")
        if not self._offer.fits(now.type, now.text):
            raise ValueError("an object of a heap that does not fit its schema")


def _counted(item: bytes | None) -> int:
    try:
        return 1 if item is None else read_counter(item)
    except ValueError:
        return 1


def _type_of(said: Mapping[tuple[str, str], HeapOp], method: str, handle: str) -> str | None:
    op = said.get((method, handle))
    return op.type if op is not None else None
