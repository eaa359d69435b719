"""`self.budget(kind)` and `self.set_budget(kind, n)`: how much a run may still use, and using less of it."""

from __future__ import annotations

from typing import Any

from processor.capability.arguments import Argument, Text, Whole
from processor.capability.connections import Connections
from processor.capability.row import Arguments, Capability
from processor.errors import ProcessorError
from processor.policy import BUDGET_KINDS, LIMIT_MAX

KIND_CHARS = 40


async def _state(connections: Connections, arguments: Arguments) -> dict[str, Any]:
    """How the budget of a kind stands of which least is left; without one, what the run has used."""
    tab = connections.tab
    return await tab.said(_kind(arguments, "budget"))


async def _lower(connections: Connections, arguments: Arguments) -> None:
    kind = _kind(arguments, "set_budget")
    if not BUDGET_KINDS[kind].is_of_calls:
        of_calls = ", ".join(each.name for each in BUDGET_KINDS.values() if each.is_of_calls)
        what = f"{kind} is known when a run has ended; what a run can lower: {of_calls}"
        raise ProcessorError("E337", what, place="set_budget")
    connections.tab.lower(kind, arguments["limit"])


def _kind(arguments: Arguments, place: str) -> str:
    kind: str = arguments["kind"]
    if kind not in BUDGET_KINDS:
        known = ", ".join(BUDGET_KINDS)
        raise ProcessorError("E337", f"nothing counts {kind!r}; what is counted: {known}", place=place)
    return kind


BUDGET = Capability(
    "budget",
    (Argument("kind", Text(1, KIND_CHARS)),),
    perform=_state,
    ask=lambda arguments: None,  # to look is not to do
    event=None,
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_method=False,
)
SET_BUDGET = Capability(
    "set_budget",
    (Argument("kind", Text(1, KIND_CHARS)), Argument("limit", Whole(0, LIMIT_MAX))),
    perform=_lower,
    ask=lambda arguments: None,  # a run may always use less
    event=None,
    cost=lambda arguments: {},
    is_outside=False,
    is_request=False,
    is_method=False,
)
