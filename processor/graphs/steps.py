"""Steps of recipes as executions of a graph: what one has to leave, and the kinds that they are."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from processor.graphs.progress import Message
from processor.recipes.success import unmet
from processor.route import NodeGroup, RecipeSteps

_OBJECT = {"type": "object", "additionalProperties": True}  # whatever it is


def judged(result: Message, steps: RecipeSteps | None, name: str, store: Mapping[str, Any]) -> Message:
    """The result of a step: E714 in place of one that ended well without what its recipe says.

    `store` is the context as it was given to the step; of nodes that are no steps the result is as it was.
    """
    step = steps.steps.get(name) if steps is not None else None
    if steps is None or step is None or "outputs" not in result:
        return result
    sets = result.get("sets")
    own = [each[0] for each in sets if isinstance(each, list) and each] if isinstance(sets, list) else []
    keys = {*store, *(key for key in own if isinstance(key, str))}
    failure = unmet(step, keys, steps.root)
    if failure is None:
        return result
    return {"error": {"code": failure.code, "text": failure.text}, "returned": result["outputs"]}


def shell_manifest(group: NodeGroup) -> dict[str, dict[str, Any]]:
    """What the shell steps of a group take and give, as a guest says it of its nodes."""
    assert group.steps is not None, "only a group of a recipe has shell steps"
    return {
        name: {"inputs": _OBJECT, "outputs": _OBJECT, "secrets": {}, "doc": shlex.join(step.argv)}
        for name, step in group.steps.steps.items()
    }
