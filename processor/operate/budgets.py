"""How the budgets of an app stand, by the ledger: what `status` and `budget.status` show."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from processor.context.ledger import Account, accounts
from processor.context.parked import timestamp
from processor.jetstream import Broker
from processor.policy import Budget, window_at
from processor.route import Route


async def budget_states(broker: Broker, app: str, routes: Iterable[Route]) -> list[dict[str, Any]]:
    """A document for each account of these routes' budgets, by name. Raises what the broker raises.

    `used` is of the present window, and `held` what leases have beyond. Budgets of a run have no account.
    """
    charged: dict[str, tuple[Budget, list[str]]] = {}
    for route in routes:
        for budget in route.policy.budgets_of(route.name):
            if budget.window != "run":
                _, names = charged.setdefault(budget.account(route.name), (budget, []))
                names.append(route.name)
    if not charged:
        return []
    kept = await accounts(broker, app)
    now_us = time.time_ns() // 1000
    return [
        _document(name, budget, routes, kept.get(name, Account()), now_us)
        for name, (budget, routes) in sorted(charged.items())
    ]


def _document(name: str, budget: Budget, routes: list[str], account: Account, now_us: int) -> dict[str, Any]:
    window, ends_us = window_at(budget.window, now_us)
    is_of_now = account.per == budget.window and account.window == window
    used, taken = (account.used, account.taken) if is_of_now else (0, 0)
    return {
        "budget": name,
        "kind": budget.kind,
        "limit": budget.limit,
        "used": used,
        "held": taken - used,
        "left": max(0, budget.limit - taken),
        "window": budget.window,
        "until": None if ends_us is None else timestamp(datetime.fromtimestamp(ends_us / 1e6, UTC)),
        "then": budget.then,
        "routes": routes,
        "place": budget.place,
    }
