"""`self.heap` in a guest: typed objects in the key's context, changed by JSON Patch (RFC 6902).

`Objects` has the objects of one context while a guest holds it: what they were before the run, and what the
run made of them until `keep` or `undo`. `Heap` is what user code has in its hands; each operation is looked
up in what the host offered, and asked for where that does not say that it is allowed. A value is JSON: what
is handed over is written at once, and every read gives a value of its own.

Nothing here is trusted by the host, which checks items and operations again (`objects.Ledger`). Each
operation is whole or has no effect. Only this module imports jsonpatch.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import Any

import jsonpatch
from jsonpointer import JsonPointerException

from processor.model import HeapOp
from processor.runnable import BufferOverflowError, ConflictError, InvalidArgumentError, NotFoundError
from processor.sandbox import documents, objects, values
from processor.sandbox.bounds import Bounds
from processor.sandbox.objects import COUNTER, HeapObject
from processor.sandbox.offer import HeapOffer

PATCH_BYTES = 4 * objects.VALUE_BYTES
_SHOWN = 10  # handles or types in a sentence
_SHOWN_CHARS = 60

Ask = Callable[[str, dict[str, Any]], Any]


class Objects:
    """The objects of one context, and what the run in hand did to them."""

    def __init__(self, items: Mapping[str, bytes]) -> None:
        """`items` are those of the context that are of its heap."""
        gone = {name for name, item in items.items() if item == values.TOMBSTONE}
        items = {name: item for name, item in items.items() if name not in gone}
        self._kept = dict(items)
        self._bytes = self._staged_bytes = sum(values.weight(name, item) for name, item in items.items())
        self._staged: dict[str, HeapObject | None] = {}  # by handle; None where it was deleted
        self._changed: dict[str, bytes | None] = {}  # the items of what is staged, since `changes`
        self._handles = self._kept_handles()
        used = {objects.number_of(objects.handle_of(name)) for name in (*gone, *items) if name != COUNTER}
        self._next = self._kept_next = max(self._counted(), 1 + max(used, default=0))
        self.touched: dict[tuple[str, str], HeapOp] = {}  # by method and handle
        self.granted: set[tuple[str, str]] = set()  # methods and types that the host has allowed in the run

    def _kept_handles(self) -> dict[str, None]:
        return {objects.handle_of(name): None for name in self._kept if name != COUNTER}

    def _counted(self) -> int:
        """The next number as the context says; an edit may have taken it away."""
        try:
            return objects.read_counter(self._kept[COUNTER])
        except (KeyError, ValueError):
            return 1

    def __len__(self) -> int:
        return len(self._handles)

    def handles(self) -> list[str]:
        """Those of all objects, in the order of their numbers."""
        return sorted(self._handles, key=objects.number_of)

    def find(self, handle: str) -> HeapObject | None:
        """The object as the run has it. Raises ValueError for an item that keeps none."""
        if handle not in self._handles:
            return None
        if handle not in self._staged:
            self._staged[handle] = objects.read(self._kept[objects.item_of(handle)])
        return self._staged[handle]

    def add(self, made: HeapObject) -> str:
        """The handle of a new object."""
        handle = f"{self._next:#x}"
        self._next += 1
        self.put(handle, made)
        return handle

    def put(self, handle: str, made: HeapObject) -> None:
        self._staged[handle] = made
        self._handles[handle] = None

    def remove(self, handle: str) -> None:
        self._staged[handle] = None
        del self._handles[handle]

    def changes(self) -> tuple[dict[str, bytes | None], int]:
        """The items that the host does not hold yet (None: delete), and the bytes of all that it then holds.

        Staged until `keep` or `undo`.
        """
        changed: dict[str, bytes | None] = {}
        if self._next != self._kept_next:
            changed[COUNTER] = values.encode(self._next)
        for handle, made in self._staged.items():
            name = objects.item_of(handle)
            item = None if made is None else objects.write(made)
            if item != self._kept.get(name):
                changed[name] = item
        self._changed, self._staged_bytes = changed, self._bytes
        for name, item in changed.items():
            self._staged_bytes += values.weight(name, item) - values.weight(name, self._kept.get(name))
        return changed, self._staged_bytes

    def all_items(self) -> dict[str, bytes]:
        """All that the host has to hold, once what is staged is kept."""
        items = {**self._kept, **self._changed}
        return {name: item for name, item in items.items() if item is not None}

    def keep(self) -> None:
        """Make what `changes` staged the ground of the next run."""
        if self._changed:
            self._kept, self._bytes, self._kept_next = self.all_items(), self._staged_bytes, self._next
        self._end()

    def undo(self) -> None:
        """Be as before the run."""
        self._handles, self._next = self._kept_handles(), self._kept_next
        self._end()

    def _end(self) -> None:
        for ended in (self._staged, self._changed, self.touched, self.granted):
            ended.clear()


class Heap:
    """The typed objects of this key's context; what a run does to them is committed with it, or not at all.

    A handle such as `0x1` names an object in this context for ever. Raises NotFoundError for one that names
    none, OperationDeniedError where the policy has no line for the type, BufferOverflowError beyond a limit.
    """

    __slots__ = ("_ask", "_begin", "_bounds", "_objects", "_offer")

    def __init__(
        self,
        store: Objects,
        offer: HeapOffer,
        ask: Ask,
        bounds: Bounds,
        begin: Callable[[], int],
    ) -> None:
        """`ask` calls the host. `begin` gives the group of the run in hand; it raises where none is."""
        self._objects = store
        self._offer = offer
        self._ask = ask
        self._bounds = bounds
        self._begin = begin

    def alloc(self, type: str, value: Any = None) -> str:
        """The handle of a new object of this type, at version 0. Raises InvalidArgumentError for a value that
        is not JSON, or does not fit the schema of its type.
        """
        group = self._begin()
        kind = _type(type, "alloc")
        text = self._text(value, "alloc", kind)
        if len(self._objects) >= objects.OBJECTS:
            raise _too_many("alloc", kind, f"the heap holds {objects.OBJECTS:,} objects, as many as it may")
        self._permit("alloc", kind, text)
        self._check_room("alloc", kind)
        handle = self._objects.add(HeapObject(kind, 0, text))
        self._note(group, "alloc", handle, kind, 0)
        return handle

    def read(self, handle: str) -> Any:
        """The value of an object, as one of your own: what is done to it changes nothing."""
        return documents.loads(self._read(handle, "read").text)

    def version(self, handle: str) -> int:
        """How often an object was written."""
        return self._read(handle, "version").version

    def write(self, handle: str, patch: Any, expected_version: int | None = None) -> int:
        """The version of an object after a JSON Patch, a list of operations: all of it counts, or nothing.

        Raises ConflictError where the object has another version than `expected_version`, or where a `test`
        fails; InvalidArgumentError for a patch that cannot be applied, or makes a value that does not fit.
        """
        group = self._begin()
        steps = self._steps(patch)  # first, for writing it may run code of the caller's that uses the heap
        handle, found = self._found(handle, "write")
        if expected_version is not None:
            if isinstance(expected_version, bool) or not isinstance(expected_version, int):
                what = f"expected_version is a number or None, not {_shown(expected_version)}"
                raise _wrong("write", handle, what)
            expected = int.__int__(expected_version)
            if expected != found.version:
                what = f"the object {handle} has version {found.version}, not {expected}"
                raise ConflictError(f"heap.write E336 {what}.", operation="heap.write", target=handle)
        text = self._text(_patched(found, handle, steps), "write", handle)
        self._permit("write", found.type, text)
        self._check_room("write", handle)
        version = found.version + 1
        self._objects.put(handle, HeapObject(found.type, version, text))
        self._note(group, "write", handle, found.type, version)
        return version

    def delete(self, handle: str) -> None:
        """Remove an object; its handle is not used again."""
        group = self._begin()
        handle, found = self._found(handle, "delete")
        self._permit("delete", found.type)
        self._check_room("delete", handle)
        self._objects.remove(handle)
        self._note(group, "delete", handle, found.type, found.version)

    def list(self, type: str | None = None) -> builtins.list[str]:
        """The handles of all objects, or of those of one type, in the order in which they were made."""
        self._begin()
        handles = self._objects.handles()
        if type is None:
            return handles
        kind = _type(type, "list")
        self._permit("read", kind)
        return [handle for handle in handles if self._found(handle, "list")[1].type == kind]

    def __repr__(self) -> str:
        return f"<heap of {len(self._objects)} objects>"

    # Around every operation.

    def _read(self, handle: Any, method: str) -> HeapObject:
        group = self._begin()
        handle, found = self._found(handle, method)
        self._permit("read", found.type)
        if ("read", handle) not in self._objects.touched:
            self._check_room("read", handle)
            self._note(group, "read", handle, found.type, found.version)
        return found

    def _found(self, handle: Any, method: str) -> tuple[str, HeapObject]:
        """The object with this handle. Raises NotFoundError, and InvalidArgumentError for no handle."""
        if not isinstance(handle, str):
            raise _wrong(method, "", f"a handle is a text such as '0x1', not {_shown(handle)}")
        handle = str.__str__(handle)  # a subclass has its own idea of what it equals
        try:
            found = self._objects.find(handle)
        except ValueError as err:
            raise _wrong(method, handle, f"the object {handle} cannot be read: {err}") from None
        if found is None:
            there = self._objects.handles()
            known = ", ".join(there[:_SHOWN]) + (", …" if len(there) > _SHOWN else "") if there else "none"
            what = f"there is no object {_shown(handle)} in the heap of this context; there are {known}"
            raise NotFoundError(
                f"heap.{method} E335 {what}.", operation=f"heap.{method}", target=handle[:_SHOWN_CHARS]
            )
        return handle, found

    def _permit(self, method: str, kind: str, text: bytes | None = None) -> None:
        """Return if it is allowed; ask the host where that is not known. Raises what the host raises."""
        store, offer = self._objects, self._offer
        has_schema = text is not None and kind in offer.schemas
        if not has_schema and ((method, kind) in store.granted or offer.allows(method, kind)):
            return
        arguments: dict[str, Any] = {"method": method, "type": kind}
        if text is not None and has_schema:
            arguments["value"] = [documents.loads(text)]  # in a list, for null is a value, too
        self._ask(objects.HEAP, arguments)
        store.granted.add((method, kind))

    def _check_room(self, method: str, target: str) -> None:
        if len(self._objects.touched) >= objects.OBJECTS:
            what = f"one run does at most {objects.OBJECTS:,} things to the objects of a context"
            raise _too_many(method, target, what)

    def _note(self, group: int, method: str, handle: str, kind: str, version: int) -> None:
        self._objects.touched[method, handle] = HeapOp(group, method, kind, handle, version)

    def _text(self, value: Any, method: str, target: str) -> bytes:
        text = self._written(value, "the value", method, target)
        if len(text) > objects.VALUE_BYTES:
            what = f"the value has {len(text):,} bytes of JSON; an object takes {objects.VALUE_BYTES:,}"
            raise _too_many(method, target, what)
        return text

    def _steps(self, patch: Any) -> Any:
        text = self._written(patch, "the patch", "write", "")
        if len(text) > PATCH_BYTES:
            what = f"the patch has {len(text):,} bytes of JSON; one takes {PATCH_BYTES:,}"
            raise _too_many("write", "", what)
        steps = documents.loads(text)
        if type(steps) is not list:
            what = "a patch is a list of operations such as {'op': 'replace', 'path': '/value', 'value': 1}"
            raise _wrong("write", "", f"{what}, not {_shown(patch)}")
        return steps

    def _written(self, value: Any, name: str, method: str, target: str) -> bytes:
        try:
            return documents.encode(value, name, bounds=self._bounds)
        except documents.Unwritable as err:
            raise _wrong(method, target, str(err)) from None


def _patched(found: HeapObject, handle: str, steps: Any) -> Any:
    """The value with a patch applied, on a copy."""
    try:
        value = documents.loads(found.text)
        if not any(type(step) is dict and step.get("op") == "copy" for step in steps):
            return jsonpatch.JsonPatch(steps).apply(value, in_place=True)
        # Copies of copies double a value with each step: what no object could hold ends on its way.
        for step in steps:
            value = jsonpatch.JsonPatch([step]).apply(value, in_place=True)
            if len(documents.dumps(value)) > PATCH_BYTES:
                what = f"a step of the patch makes more than {PATCH_BYTES:,} bytes of JSON"
                raise _too_many("write", handle, what)
        return value
    except jsonpatch.JsonPatchTestFailed as err:
        what = f"a test of the patch fails: {_bounded(str(err))}"
        raise ConflictError(f"heap.write E336 {what}.", operation="heap.write", target=handle) from None
    except RecursionError:
        raise _wrong("write", handle, "the patch nests its value too deeply") from None
    except (
        jsonpatch.JsonPatchException, JsonPointerException, ArithmeticError, AttributeError, LookupError,
        TypeError, ValueError,
    ) as err:  # fmt: skip
        raise _wrong("write", handle, f"the patch cannot be applied: {_bounded(str(err))}") from None


def _type(kind: Any, method: str) -> str:
    name = str.__str__(kind) if isinstance(kind, str) else kind
    if not objects.is_type(name):
        what = f"a type is a text of 1 to {objects.TYPE_CHARS} printable characters, not {_shown(kind)}"
        raise _wrong(method, "", what)
    return name


def _wrong(method: str, target: str, what: str) -> InvalidArgumentError:
    text = f"heap.{method} E337 {what}."
    return InvalidArgumentError(text, operation=f"heap.{method}", target=str.__str__(target)[:_SHOWN_CHARS])


def _too_many(method: str, target: str, what: str) -> BufferOverflowError:
    text = f"heap.{method} E338 {what}."
    return BufferOverflowError(text, operation=f"heap.{method}", target=target, code="E338")


def _shown(value: Any) -> str:
    text = repr(str.__str__(value)) if isinstance(value, str) else f"a {type(value).__name__}"
    return _bounded(text, _SHOWN_CHARS)


def _bounded(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
