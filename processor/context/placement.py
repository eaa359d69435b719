"""Where contexts are kept: in the position of their partition, as one message, or as a message per item.

`store` and `visit` ask here for the messages that write changed contexts, and give back what they read
outside of positions. Nothing here reads the stream. What must stay true: a context moves outwards only
(position -> one message -> one message per item), and leaves its old place in the messages that write the new
one; so reading is the union of what is there, without precedence rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from processor.context.position import Position, dump_items, items_of
from processor.context.subjects import WHOLE, RouteSubjects, SubjectParts
from processor.jetstream import EXPECTED, GONE, KEPT, Outgoing, Stored
from processor.model import WHOLE_BYTES, ContextChange, key_from_token, key_token, partition_of

# So many contexts of a partition, up to this size together, ride in its position message, which every commit
# writes anyway. More would be written again and again for the few of them that change.
INLINE_MAX_BYTES = WHOLE_BYTES
INLINE_MAX_KEYS = 8
_ITEM_HEADER = "Processor-Item"

Items = dict[str, bytes]  # a context as it is kept: encoded items by name


@dataclass(slots=True)
class Partition:
    """A partition that somebody owns or changes: its position, and the sequence of that message."""

    number: int
    position: Position = field(default_factory=Position)
    fence: int = 0
    _inline_bytes: dict[str, int] | None = None

    @property
    def inline(self) -> dict[str, Items]:
        """The contexts in its position."""
        return self.position.contexts

    def take(self, position: Position, fence: int) -> None:
        """Go on from a position that was read."""
        self.position, self.fence = position, fence
        self._inline_bytes = None

    def message(self, subject: str) -> Outgoing:
        """The position as a message, which is refused where another has come since `fence`."""
        return Outgoing(subject, self.position.encoded(), {**KEPT, EXPECTED: str(self.fence)})

    def put(self, key: str, items: Items) -> bool:
        """Keep a context in the position, if it may come there or stay there; False where it must go out."""
        sizes, size = self._sizes(), size_of(items)
        is_here = key in self.inline
        others = sum(sizes.values()) - sizes.get(key, 0)
        is_open = is_here or not self.position.is_spread
        has_room = others + size <= INLINE_MAX_BYTES and len(self.inline) + (not is_here) <= INLINE_MAX_KEYS
        if not (is_open and has_room):
            return False
        self.inline[key], sizes[key] = items, size
        return True

    def drop(self, key: str) -> None:
        """Keep the context of `key` in the position no more."""
        self.inline.pop(key, None)
        self._sizes().pop(key, None)

    def _sizes(self) -> dict[str, int]:
        if self._inline_bytes is None:
            self._inline_bytes = {key: size_of(items) for key, items in self.inline.items()}
        return self._inline_bytes


class Placement:
    """The places of the contexts of one route, as far as they were read or written here."""

    def __init__(self, subjects: RouteSubjects, of: int, partitions: Mapping[int, Partition]) -> None:
        """`partitions` are those whose contexts may be read and written here, of as many as `of`."""
        self._subjects = subjects
        self._of = of
        self._partitions = partitions
        # The contexts outside of positions: their items, or None while they are one message.
        self._outside: dict[str, set[str] | None] = {}

    def partition(self, key: str) -> int:
        """The partition of `key`."""
        return partition_of(key, self._of)

    @property
    def is_spread(self) -> bool:
        """Whether there are contexts outside of positions."""
        return any(partition.position.is_spread for partition in self._partitions.values())

    def inline(self, key: str) -> Items:
        """A copy of what the position of its partition has of a context."""
        return dict(self._partitions[self.partition(key)].inline.get(key, {}))

    def unread(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that belong to us and whose contexts, if they have any, are not in a position."""
        owned = ((key, self._partitions.get(self.partition(key))) for key in keys)
        return [
            key
            for key, partition in owned
            if partition and partition.position.is_spread and key not in partition.inline
        ]

    def patterns(self, keys: Iterable[str]) -> dict[str, str]:
        """The subjects of what is outside of a position, with their keys."""
        return {self._subjects.context(self.partition(key), key): key for key in keys}

    def read(self, stored: Iterable[Stored], contexts: dict[str, Items]) -> None:
        """Add what messages outside of positions hold to these contexts, and know from now on where it is."""
        by_token = {key_token(key): key for key in contexts}
        for message in stored:
            kind, _, _, rest = SubjectParts.of(message.subject)
            key = by_token.get(rest[0]) if kind == "ctx" and len(rest) == 2 else None
            if key is None or not message.payload:
                continue
            items = items_outside(rest[1], message)
            if rest[1] == WHOLE:
                contexts[key], self._outside[key] = items, None
            else:
                contexts[key].update(items)
                names = self._outside.setdefault(key, set())
                assert names is not None
                names.update(items)

    def written(self, key: str, change: ContextChange) -> list[Outgoing]:
        """The messages that write a changed context; none where its position, which changes here, has it."""
        if change.gone:
            return self.removed(key)
        names = self._outside.get(key)
        if change.whole and names is not None:
            return self._by_item(key, {**dict.fromkeys(names), **change.items})
        if change.is_small:
            return self._whole(key, {k: v for k, v in change.items.items() if v is not None})
        return self._by_item(key, change.items)

    def removed(self, key: str) -> list[Outgoing]:
        """The messages that remove a context from wherever it is; its position changes here."""
        self._partitions[self.partition(key)].drop(key)
        if key not in self._outside:
            return []
        names = self._outside.pop(key)
        tokens = [WHOLE] if names is None else [_item_token(name)[0] for name in names]
        return [Outgoing(self._subject(key, token), b"", GONE) for token in tokens]

    def scattered(self, changes: Mapping[str, ContextChange]) -> int:
        """How many messages write those of the changed contexts that come whole and are kept by item.

        A context that is kept by item stays so when it is small again; what it has no more is removed.
        """
        kept = {key: self._outside.get(key) for key, change in changes.items() if change.whole}
        return sum(len(names | changes[key].items.keys()) for key, names in kept.items() if names is not None)

    def forget(self, key: str) -> None:
        """Know no more where the context of `key` is outside of a position; it will be read again."""
        self._outside.pop(key, None)

    def _whole(self, key: str, items: Items) -> list[Outgoing]:
        if key not in self._outside:
            if self._partitions[self.partition(key)].put(key, items):
                return []
            self._move_out(key, None)
        return [Outgoing(self._subject(key, WHOLE), dump_items(items), KEPT)]

    def _by_item(self, key: str, items: Mapping[str, bytes | None]) -> list[Outgoing]:
        messages: list[Outgoing] = []
        names = self._outside.get(key)
        if names is None:
            if key in self._outside:
                messages.append(Outgoing(self._subject(key, WHOLE), b"", GONE))
            names = set[str]()
            self._move_out(key, names)
        for name, value in items.items():
            token, named = _item_token(name)
            headers = KEPT if value is not None else GONE
            # Members of a commit that share one mapping of headers are written faster.
            headers = {**headers, **named} if named else headers
            messages.append(Outgoing(self._subject(key, token), value or b"", headers))
            (names.discard if value is None else names.add)(name)
        return messages

    def _move_out(self, key: str, names: set[str] | None) -> None:
        partition = self._partitions[self.partition(key)]
        partition.drop(key)
        partition.position.is_spread = True
        self._outside[key] = names

    def _subject(self, key: str, item: str) -> str:
        return self._subjects.context(self.partition(key), key, item)


def items_outside(token: str, message: Stored) -> Items:
    """The items of a context that a message outside of positions holds: all, or the one of the token."""
    return (
        items_of(message.payload) if token == WHOLE else {_item_name(token, message.headers): message.payload}
    )


def size_of(items: Mapping[str, bytes]) -> int:
    """The size of a context by which it is placed."""
    return sum(len(name) + len(value) for name, value in items.items())


def _item_token(name: str) -> tuple[str, dict[str, str]]:
    """The subject token of an item, and the header that has its name where that is too long for one."""
    token = key_token(name)
    if len(token) <= 128:
        return token, {}
    # As JSON: a header as it is would come back without spaces at its ends, and without line breaks.
    return f"=h{hashlib.sha256(name.encode()).hexdigest()[:32]}", {_ITEM_HEADER: json.dumps(name)}


def _item_name(token: str, headers: Mapping[str, str]) -> str:
    return str(json.loads(headers[_ITEM_HEADER])) if _ITEM_HEADER in headers else key_from_token(token)
