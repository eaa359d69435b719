"""How much a run keeps: of outputs for other nodes and for people, in its store, and in one message.

Invariant: no value that a run keeps, or sends to another run, is larger than what a server takes in one
message, so that a commit cannot fail for what user code returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from processor.graphs.plan import NodePlan
from processor.graphs.progress import NOTHING, GraphRun

# Branches of a fan-out that run in their run; more of them are cut into slices of this many.
SLICE = 64
# A slice is one message, and servers take 1 MB.
SLICE_BYTES = 256 << 10
# What a node may look at together, and what one execution may keep for others.
COLLECTED_BYTES = 512 << 10
# Outputs that nothing refers to are kept, for people, up to this size.
LEAF_BYTES = 2048
STORE_VALUE_BYTES = 64 << 10
STORE_BYTES = 1 << 20


class TooMuch(Exception):
    """More than a limit of a run; the text says of what."""


def kept(node: NodePlan, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What others refer to of an output; all of it if nothing follows that could, and it is small."""
    if node.is_leaf and outputs and len(orjson.dumps(outputs)) <= LEAF_BYTES:
        return outputs
    if not node.used:
        return NOTHING
    found = {field: outputs[field] for field in node.used if field in outputs}
    for value in found.values():
        if type(value) in (str, list, dict):
            bound(node, found)
            break
    return found


def bound(node: NodePlan, found: Any) -> None:
    """Raise TooMuch if what is kept of the outputs of a node is more than it may be."""
    if (size := len(orjson.dumps(found))) > COLLECTED_BYTES:
        raise TooMuch(
            f"what is kept of the outputs of {node.id} is {size} bytes; {COLLECTED_BYTES} are the most. Pass"
            " references to data instead of the data"
        )


def cut(node: NodePlan, outputs: Sequence[Any]) -> list[tuple[int, list[Any]]]:
    """Outputs in parts that are one message each, by their first index. Raises TooMuch."""
    parts: list[tuple[int, list[Any]]] = []
    size = 0
    for index, output in enumerate(outputs):
        more = len(orjson.dumps(output)) + 1
        if more > COLLECTED_BYTES:
            raise TooMuch(f"output {index} of {node.id} is {more} bytes; {COLLECTED_BYTES} are the most")
        if not parts or len(parts[-1][1]) == SLICE or size + more > SLICE_BYTES:
            parts.append((index, []))
            size = 0
        parts[-1][1].append(output)
        size += more
    return parts


def set_store(run: GraphRun, sets: Sequence[Sequence[Any]]) -> str:
    """Change the store; a sentence says which of them is too large, and then none was made."""
    if not sets:
        return ""
    store = dict(run.store)
    for key, value in sets:
        if (size := len(orjson.dumps(value))) > STORE_VALUE_BYTES:
            return f"the value of {key!r:.80} in the store is {size} bytes; {STORE_VALUE_BYTES} are the most"
        store[key] = value
    if (size := len(orjson.dumps(store))) > STORE_BYTES:
        return f"the store is {size} bytes with {sets[-1][0]!r:.80}; {STORE_BYTES} are the most"
    run.store = store
    if run.slice is not None:
        run.slice.sets += [list(each) for each in sets]
    return ""
