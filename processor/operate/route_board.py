"""The context of a route as `recipes.bridge` serves one: each change is an edit, with its author."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from processor.context.history import Author
from processor.errors import ProcessorError
from processor.jetstream import Again, ApiError, Unknown
from processor.operate.edits import ContextEdits, Items
from processor.recipes.bridge import Act, NotDone, found_at, steps_of
from processor.sandbox import objects
from processor.sandbox.bounds import Exceeded
from processor.sandbox.values import TOMBSTONE, decode, encode


class RouteBoard:
    """The context of a key of a route; each change is one edit, with its author.

    A value that JSON lacks is `{"$set": [1, 2]}` and the like, both ways.
    """

    def __init__(self, edits: ContextEdits, key: str, reason: str) -> None:
        self._edits = edits
        self._key = key
        self._reason = reason

    async def values(self) -> Mapping[str, Any]:
        items = await self._items()
        return {name: orjson.Fragment(item) for name, item in items.items()}

    async def value(self, path: str) -> Any:
        items = await self._items()
        name, *steps = steps_of(path, items)
        root = {name: decode(items[name])} if name in items else {}
        return orjson.Fragment(encode(found_at(root, (name, *steps))))

    async def change(self, path: str, act: Act, who: str) -> Any:
        answers: list[Any] = []

        def change(items: Items | None) -> Items:
            before = items or {}
            kept = {name: item for name, item in before.items() if item != TOMBSTONE}
            steps = steps_of(path, kept)
            name = steps[0]
            if objects.is_reserved(name):
                raise NotDone(f"{name} belongs to `self.heap`; change it by `processor context set`")
            root = {name: decode(kept[name])} if name in kept else {}
            answer = act(root, steps)
            try:
                changed = {name: encode(root[name], ("context", name)) if name in root else TOMBSTONE}
            except Exceeded as err:
                raise NotDone(f"{err.code} {err}") from None
            except ValueError as err:
                raise NotDone(str(err)) from None
            self._edits.check(self._key, changed)
            answers.append(answer)
            return {**before, **changed}

        with _answered():
            await self._edits.update(self._key, change, Author(who, self._reason))
        return answers[-1]

    def kept(self, value: Any) -> Any:
        try:
            return decode(orjson.dumps(value))
        except ValueError as err:
            raise NotDone(f"the value cannot be kept: {err}") from None

    async def _items(self) -> Items:
        try:
            with _answered():
                items = await self._edits.items(self._key)
        except ProcessorError as err:
            if err.code != "E328":  # nothing is kept for it yet
                raise
            return {}
        return {name: item for name, item in items.items() if item != TOMBSTONE}


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except (Unknown, Again, ApiError) as err:
        raise NotDone(
            f"E404 the NATS server did not answer ({err}); it is not known what was stored"
        ) from err
