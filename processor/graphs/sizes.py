"""How much a run keeps: of outputs for other nodes and for people, in its store, and in one message.

Invariant: nothing that a run keeps or sends is larger than what a server takes in one message (1 MB), so that
a commit cannot fail for what user code returned. What goes together has to fit together: an execution is its
inputs and the store; a slice its outputs and the store; a record what the run was given and returns, the
store, and 64 KiB of executions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from processor.graphs.definition import STORE_VALUE_BYTES
from processor.graphs.history import StoreChange, with_changes
from processor.graphs.plan import NodePlan
from processor.graphs.progress import NOTHING, GraphRun

# Branches of a fan-out that run in their run; more of them are cut into slices of this many.
SLICE = 64
# A run that would have more executions begins them in slices, so that its context stays small.
IN_ONE_RUN = 256
SLICE_BYTES = 256 << 10
# What a node gets as inputs, and what one execution may keep for others.
COLLECTED_BYTES = 512 << 10
# What a run is given, and what it returns.
RUN_BYTES = 256 << 10
# Outputs that nothing refers to are kept, for people, up to this size.
LEAF_BYTES = 2048
STORE_BYTES = 256 << 10
SIGNALS_BYTES = 64 << 10
_SHORT = 1024


class TooMuch(Exception):
    """More than a limit of a run; the text says of what."""


def kept(node: NodePlan, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What others refer to of an output; all of it if it is to be shown, and is small."""
    if node.is_shown and outputs and len(orjson.dumps(outputs)) <= LEAF_BYTES:
        return outputs
    if not node.used:
        return NOTHING
    found = {field: outputs[field] for field in node.used if field in outputs}
    if not is_short(found):
        bound(node, found)
    return found


def kept_of_all(node: NodePlan, outputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """The same of the outputs of a fan-out together; None where that is nothing. Raises TooMuch."""
    if node.used:
        found = [{field: output[field] for field in node.used if field in output} for output in outputs]
        bound(node, found)
        return list(found)
    is_small = node.is_shown and len(outputs) <= SLICE and len(orjson.dumps(outputs)) <= LEAF_BYTES
    return list(outputs) if is_small else None


def is_short(values: Mapping[str, Any]) -> bool:
    """Whether these are few and plain, so that nobody has to look how large they are."""
    if len(values) > 64:
        return False
    for value in values.values():
        kind = type(value)
        if kind is str:
            if len(value) > _SHORT:
                return False
        elif kind is list or kind is dict:
            return False
    return True


def bound_inputs(node: NodePlan, inputs: Mapping[str, Any]) -> None:
    """Raise TooMuch if these are more than an execution may get."""
    if not is_short(inputs) and (size := len(orjson.dumps(inputs))) > COLLECTED_BYTES:
        raise TooMuch(
            f"the inputs of {node.id} are {size} bytes together; {COLLECTED_BYTES} are the most. Pass"
            " references to data instead of the data"
        )


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


def set_store(run: GraphRun, changes: Sequence[StoreChange], history: int = 0) -> str:
    """Change the store; a sentence says which change is too large, and then none was made.

    Of each key the last `history` changes are remembered; of a slice the run remembers them that it is of.
    """
    if not changes:
        return ""
    store = dict(run.store)
    for key, value, *_ in changes:
        if (size := len(orjson.dumps(value))) > STORE_VALUE_BYTES:
            return f"the value of {key!r:.80} in the store is {size} bytes; {STORE_VALUE_BYTES} are the most"
        store[key] = value
    if (size := len(orjson.dumps(store))) > STORE_BYTES:
        return f"the store is {size} bytes with {changes[-1].key!r:.80}; {STORE_BYTES} are the most"
    if history and run.slice is None:
        run.history = with_changes(run.history, run.store, changes, history)
        run.has_new_history = True
    run.store = store
    if run.slice is not None:
        run.slice.sets.update((each.key, each.value) for each in changes)
    return ""
