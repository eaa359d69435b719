"""What changed in the store of a run, and who changed it: kept where `store_config` has a `history`.

Of each key there is its value before the first change that is kept, and then the changes, oldest first:

    {"<key>": [<old>, [<ts>, "<who>", <new>], [<ts>, "<who>", <new>], ...]}

with `ts` in milliseconds since 1970. So no value is written twice, and this form is what items, records and
executions hold. A history is never changed in place: executions that were given it keep what they got.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

# Beside inputs and store it has to fit the message of an execution, and the record of a run.
HISTORY_BYTES = 96 << 10
WHO_CHARS = 128
_LAST_MS = 253_402_300_799_999  # the end of the year 9999: later times cannot be written as dates

History = Mapping[str, Sequence[Any]]


class StoreChange(NamedTuple):
    """A key of the store gets a value."""

    key: str
    value: Any
    who: str
    ts_ms: int


def read_changes(sets: Any, who: str, now_ms: int) -> list[StoreChange] | None:
    """The changes that a result lists: key and value, and where known by whom and when, else `who` and
    `now_ms`. None where it is no such list.
    """
    if not isinstance(sets, list):
        return None
    found = []
    for each in sets:
        if not isinstance(each, list) or len(each) not in (2, 4) or not isinstance(each[0], str):
            return None
        key, value, author, ts_ms = [*each, who, now_ms][:4]
        if not isinstance(author, str) or not isinstance(ts_ms, int) or not 0 <= ts_ms <= _LAST_MS:
            return None
        found.append(StoreChange(key, value, author[:WHO_CHARS], ts_ms))
    return found


def with_changes(
    history: History, store: Mapping[str, Any], changes: Sequence[StoreChange], most: int
) -> History:
    """The history of a store once these changes are made to it: of each key the last `most`.

    What is too much together goes, the oldest first.
    """
    found: dict[str, list[Any]] = {key: [*kept] for key, kept in history.items()}
    for change in changes:
        kept = found.setdefault(change.key, [store.get(change.key)])
        kept.append([change.ts_ms, change.who, change.value])
        if len(kept) - 1 > most:
            _drop(kept)
    excess = len(orjson.dumps(found)) - HISTORY_BYTES
    while excess > 0:
        key = min(found, key=lambda each: found[each][1][0])
        before = len(orjson.dumps(found[key]))
        _drop(found[key])
        excess -= before - len(orjson.dumps(found[key]))
        if len(found[key]) == 1:
            del found[key]
    return found


def _drop(kept: list[Any]) -> None:
    """Leave out the oldest change of a key."""
    kept[0] = kept.pop(1)[2]


def told(history: History) -> dict[str, list[dict[str, Any]]]:
    """The changes of each key as people read them: `ts` (ms since 1970), `who`, `old` and `new`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, (old, *changes) in history.items():
        said = found[key] = []
        for ts_ms, who, new in changes:
            said.append({"ts": ts_ms, "who": who, "old": old, "new": new})
            old = new
    return found
