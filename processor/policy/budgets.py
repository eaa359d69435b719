"""What a budget is: how much of one kind some routes may use in a window of time.

`BUDGET_KINDS` says what can be counted. Times are UTC, so that all processors have the same windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Literal

from processor.policy.kinds import quoted

Then = Literal["deny", "wait", "warn"]
Window = Literal["run", "minute", "hour", "day", "month", "life"]

WINDOWS: tuple[Window, ...] = ("run", "minute", "hour", "day", "month", "life")
LIMIT_MAX = 1 << 53  # what every reader of JSON reads exactly


@dataclass(frozen=True, slots=True)
class BudgetKind:
    """Something that can be counted."""

    name: str
    unit: str  # behind a number: "100 requests"
    counts: str
    is_of_calls: bool  # reserved before a call; else it is known when a run has ended


BUDGET_KINDS: Mapping[str, BudgetKind] = {
    kind.name: kind
    for kind in (
        BudgetKind(
            "requests",
            "requests",
            "calls that leave the host: HTTP, stock, state_data, MCP tools, models",
            True,
        ),
        BudgetKind("tool_calls", "calls of tools", "calls of tools, of whatever kind", True),
        BudgetKind(
            "bytes", "bytes", "bytes of requests to HTTP, MCP and model servers, and their answers", True
        ),
        BudgetKind("infer_calls", "calls of models", "calls of models: chat and embeddings", True),
        BudgetKind("tokens", "tokens", "tokens of models, in and out", True),
        BudgetKind("tokens_in", "tokens in", "tokens that models are given", True),
        BudgetKind("tokens_out", "tokens out", "tokens that models answer with", True),
        BudgetKind(
            "cost",
            "millionths",
            "what tokens cost, in millionths of the currency that `inference.*.price` is in",
            True,
        ),
        BudgetKind("file_bytes", "bytes of files", "bytes of files that are read and written", True),
        BudgetKind("compute", "us of CPU", "microseconds of a guest's CPU time", False),
        BudgetKind("wall_time", "ms of runs", "milliseconds of runs", False),
        BudgetKind("outputs", "outputs", "outputs that are committed", False),
        BudgetKind("output_bytes", "bytes of outputs", "bytes of outputs that are committed", False),
    )
}
# What policies of other releases count, and this one cannot.
UNCOUNTED = ("heap_objects", "heap_bytes", "memory")


@dataclass(frozen=True, slots=True)
class Budget:
    """One budget of a policy file."""

    place: str
    name: str
    kind: str
    limit: int
    window: Window
    routes: tuple[str, ...] = ()
    is_shared: bool = True  # by its routes; else each of them has the limit for itself
    then: Then = "deny"
    at: tuple[str, int, int] = field(default=("", 1, 1), compare=False, repr=False)  # file, line, column

    def is_for(self, route: str) -> bool:
        """Whether the budget is for this route."""
        return not self.routes or any(fnmatchcase(route, pattern) for pattern in self.routes)

    def account(self, route: str) -> str:
        """Whose the ledger's account is that a route is charged in."""
        return self.name if self.is_shared else f"{self.name}.{route}"

    @property
    def unit(self) -> str:
        """What is counted, as it stands behind a number."""
        return BUDGET_KINDS[self.kind].unit

    @property
    def is_of_calls(self) -> bool:
        """Whether it is reserved before a call, and not counted when a run has ended."""
        return BUDGET_KINDS[self.kind].is_of_calls

    @property
    def scope(self) -> str:
        """Whose it is, as the file says it."""
        return "shared" if self.is_shared else "route"

    @property
    def text(self) -> str:
        """The budget as TOML, in one form whatever form it was written in."""
        lines = ["[[budget]]", f"name = {quoted(self.name)}", f"kind = {quoted(self.kind)}"]
        lines += [f"limit = {self.limit}", f"window = {quoted(self.window)}"]
        if self.routes:
            lines.append(f"routes = [{', '.join(map(quoted, self.routes))}]")
        if not self.is_shared:
            lines.append('scope = "route"')
        lines.append(f"then = {quoted(self.then)}")
        return "\n".join(lines)


def window_at(window: Window, now_us: int) -> tuple[str, int | None]:
    """The name of the window that a moment lies in, and when it ends; a run and a life have no end in time.

    Names follow each other as texts do, so a later window has the greater name.
    """
    if window in ("run", "life"):
        return window, None
    moment = datetime.fromtimestamp(now_us / 1e6, UTC)
    if window == "month":
        begins = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        ends = (begins + timedelta(days=32)).replace(day=1)
        name = f"{begins:%Y-%m}"
    elif window == "day":
        begins = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        name, ends = f"{begins:%Y-%m-%d}", begins + timedelta(days=1)
    elif window == "hour":
        begins = moment.replace(minute=0, second=0, microsecond=0)
        name, ends = f"{begins:%Y-%m-%dT%H}", begins + timedelta(hours=1)
    else:
        begins = moment.replace(second=0, microsecond=0)
        name, ends = f"{begins:%Y-%m-%dT%H:%M}", begins + timedelta(minutes=1)
    return name, int(ends.timestamp()) * 1_000_000
