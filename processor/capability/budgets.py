"""The budgets of a route in one process: reserved before a call, charged after a run, and waited for.

`Budgets` belongs to a `Governor`; all lanes of a route in a process charge the same leases (`Purse`), in
memory. Leases come from the ledger of the app, or in the library and `try` from one in memory. `keep` renews
them beside the batch path, which never waits for a message about a budget; a call that needs more than a
lease has waits for the ledger's answer.

What must stay true: what a call reserves was taken out of a lease before the call is made. A budget that is
waited for lets no run begin while it is used up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from processor.context.ledger import RENEW_US, BudgetLedger, Claim, Lease, LedgerError, MemoryLedger
from processor.errors import About, ProcessorError
from processor.model import RunRecord
from processor.policy import BUDGET_KINDS, NO_POLICY, Ask, Budget, Rules, window_at

log = logging.getLogger("processor")

_LOOK_S = 5.0  # how often leases are looked at
_ASK_AGAIN_US = 1_000_000  # a ledger that had nothing left is asked again: others may have given back
_TRY_AGAIN_US = 10_000_000  # and so often for a route that waits
_GIVE_BACK_S = 2.0  # what a stop waits for the ledger
_LONGEST_LOOK_S = 1.0
_UNNOTED_MAX = 100  # of a route that is not audited nobody takes them

Say = Callable[[str, Mapping[str, str]], Awaitable[None]]


class BudgetListener(Protocol):
    """Who hears what becomes of budgets."""

    def budget_used(self, account: str, ratio: float | None) -> None:
        """How much of it is used in its window, or held; None where nobody here knows any more."""

    def budget_denied(self, account: str) -> None:
        """A call was denied, or would have been, because it is used up."""

    def budget_waits(self, sentence: str | None) -> None:
        """The route takes nothing until a budget is free again, and why; None when it goes on."""


class Unheard:
    """Nobody hears of the budgets of a library."""

    def budget_used(self, account: str, ratio: float | None) -> None: ...

    def budget_denied(self, account: str) -> None: ...

    def budget_waits(self, sentence: str | None) -> None: ...


class BudgetState(NamedTuple):
    """How a budget stands, as far as it is known here."""

    budget: Budget
    used: int
    until_us: int | None  # when it is free again

    @property
    def left(self) -> int:
        """What may still be used."""
        return max(0, self.budget.limit - self.used)

    @property
    def said(self) -> dict[str, Any]:
        """For programs."""
        return {
            "used": self.used,
            "limit": self.budget.limit,
            "left": self.left,
            "window": self.budget.window,
            "until": None if self.until_us is None else _iso(self.until_us),
        }


class Purse:
    """What a route has of one budget in this process."""

    def __init__(
        self, budget: Budget, account: str, holder: str, ledger: BudgetLedger, hears: BudgetListener
    ) -> None:
        self.budget = budget
        self.account = account
        self.warnings: deque[Lease] = deque()
        self.unnoted: deque[Lease] = deque(maxlen=_UNNOTED_MAX)
        self.wanted = asyncio.Event()  # set when it is to be looked at
        self._holder = holder
        self._ledger = ledger
        self._hears = hears
        self._lease = Lease()
        self._left = 0
        self._spent = 0  # since the lease was renewed
        self._renewed_us = 0
        self._refused_us = 0  # when the ledger had less than was needed
        self._needed = 0  # then
        self._is_told = False  # that it is used up in this window
        self.trouble = ""  # why the ledger cannot be asked
        # What a run uses is known too late to be denied: until the ledger has been asked, none begins.
        self.is_blocked = self._is_asked_first = budget.then == "wait" and not budget.is_of_calls
        self._asking = asyncio.Lock()

    @property
    def is_known(self) -> bool:
        """Whether the ledger has said how the budget stands in this window."""
        return bool(self._lease.window)

    def state(self, now_us: int) -> BudgetState:
        """How the budget stands: what others have used, or hold, as of the last look at the ledger."""
        self._roll(now_us)
        free = self._left if not self._asking.locked() else 0
        return BudgetState(self.budget, max(0, self._lease.taken - free), self._lease.ends_us)

    def _roll(self, now_us: int) -> None:
        """Begin anew where the window of the lease is over."""
        ends_us = self._lease.ends_us
        if ends_us is not None and now_us >= ends_us and not self._asking.locked():
            self._lease, self._left, self._spent, self._refused_us, self._needed = Lease(), 0, 0, 0, 0
            self.is_blocked = self._is_told = False

    def take(self, amount: int, now_us: int) -> bool:
        """Whether so much was there, and is taken."""
        self._roll(now_us)
        if self._left < amount:
            return False
        self._left -= amount
        self._spent += amount
        return True

    def put_back(self, amount: int) -> None:
        """Undo a `take` of something that is not done."""
        self._left += amount
        self._spent -= amount

    def refund(self, amount: int, taken_us: int, now_us: int) -> None:
        """Undo a part of a `take` that was not used after all, unless the window of then is over."""
        self._roll(now_us)
        if window_at(self.budget.window, taken_us)[0] == window_at(self.budget.window, now_us)[0]:
            self.put_back(amount)

    def charge(self, amount: int, now_us: int) -> None:
        """Count what is used already."""
        self._roll(now_us)
        self._left -= amount
        self._spent += amount
        if self._left <= 0:
            self.wanted.set()

    async def refill(self, need: int, ask: Ask) -> None:
        """Take `need` out of a new lease. Raises ProcessorError E332 where less than that is left, and E317
        where the ledger cannot be asked.
        """
        async with self._asking:
            now_us = _now_us()
            if self._left >= need:
                self._left -= need
                self._spent += need
                return
            is_refused = self._refused_us > now_us - _ASK_AGAIN_US and need >= self._needed
            if is_refused and self.budget.then != "warn":
                raise self._exhausted(need, ask)
            lease = await self._renew(need, now_us)
            self._left -= need if lease.amount else 0
            self._spent += need if lease.amount else 0
            if not lease.amount:
                raise self._exhausted(need, ask)

    async def _renew(self, need: int, now_us: int) -> Lease:
        """A new lease in place of the one there is. While it is asked for nothing can be taken."""
        had, spent = self._lease, self._spent
        self._left = min(self._left, 0)
        try:
            lease = await self._ledger.settle(
                self.budget, self.account, Claim(self._holder, had, spent, need), now_us
            )
        except LedgerError as err:
            self.trouble = f"the ledger of budget {self.budget.name} cannot be asked: {err}"
            raise ProcessorError(
                "E317", self.trouble, remedy="It is asked again with the next call."
            ) from err
        self._lease, self._renewed_us, self.trouble = lease, now_us, ""
        self._left = lease.amount - (self._spent - spent)
        self._spent -= spent
        self._refused_us, self._needed = (now_us, need) if lease.is_refused else (0, 0)
        self._hear(lease)
        return lease

    def _hear(self, lease: Lease) -> None:
        self._hears.budget_used(self.account, lease.taken / self.budget.limit)
        if lease.is_warning:
            self.warnings.append(lease)
            self.unnoted.append(lease)
            self.wanted.set()
        if lease.is_refused and self.budget.then == "warn":
            self._hears.budget_denied(self.account)
        if lease.is_refused and self.budget.then != "wait" and not self._is_told:
            self._is_told = True
            text = used_text(BudgetState(self.budget, lease.taken, lease.ends_us))
            does = "it only warns" if self.budget.then == "warn" else "calls are denied"
            log.warning("E332 %s; %s", text, does, extra={"code": "E332", "budget": self.account})
        self.is_blocked = lease.is_refused and self.budget.then == "wait"

    def _exhausted(self, need: int, ask: Ask) -> ProcessorError:
        self._hears.budget_denied(self.account)
        state = BudgetState(self.budget, self._lease.taken, self._lease.ends_us)
        return exhausted(state, need, ask)

    async def know(self) -> None:
        """Ask the ledger how the budget stands, where that is not known in this window."""
        self._roll(_now_us())
        if not self._lease.window:
            async with self._asking:
                await self._renew(0, _now_us())

    async def look(self, now_us: int) -> None:
        """Renew the lease where it is time to, and give back what is not used."""
        self._roll(now_us)
        self._hears.budget_used(self.account, self._lease.taken / self.budget.limit)
        is_over = self._left < 0 or (self._left == 0 and self._spent > 0)
        is_due = now_us - self._renewed_us >= RENEW_US and (self._spent or self._lease.amount)
        is_retried = self.is_blocked and now_us - self._refused_us >= _TRY_AGAIN_US  # also the first time
        if not (is_over or is_due or is_retried) or self._asking.locked():
            return
        need = max(1, self._needed) if is_retried else 1 if self._spent else 0
        if is_over and self._refused_us and now_us - self._refused_us < _ASK_AGAIN_US:
            return
        async with self._asking:
            await self._renew(need, now_us)

    async def give_back(self) -> None:
        """Give the lease back: the route stops."""
        async with self._asking:
            if self._spent or self._lease.amount:
                with suppress(ProcessorError):
                    await self._renew(0, _now_us())
        self._hears.budget_used(self.account, None)
        self.is_blocked = self._is_asked_first

    def waits_until(self, now_us: int) -> int | None:
        """Until when no run may begin; None where one may."""
        self._roll(now_us)
        if not self.is_blocked:
            return None
        return self._lease.ends_us if self._lease.ends_us is not None else now_us + _TRY_AGAIN_US


class Budgets:
    """The budgets of a route in one process."""

    def __init__(
        self,
        route: str = "",
        rules: Rules = NO_POLICY,
        ledger: BudgetLedger | None = None,
        holder: str = "",
        hears: BudgetListener | None = None,
        *,
        is_waited_for: bool = False,
    ) -> None:
        """`holder` is a name that nobody else has. Where nobody waits, as in `try`, what would be waited for
        is denied, or where no call can be, told.
        """
        self.hears = hears = hears or Unheard()
        ledger = ledger or MemoryLedger()
        self._route = route
        self._waits = ""
        self.of_runs: list[Budget] = []
        self._purses: list[Purse] = []
        self._by_kind: dict[str, list[Purse]] = {}
        for budget in rules.budgets_of(route):
            if budget.then == "wait" and not is_waited_for:
                budget = replace(budget, then="deny" if budget.is_of_calls else "warn")
            if budget.window == "run":
                self.of_runs.append(budget)
                continue
            purse = Purse(budget, budget.account(route), holder, ledger, hears)
            self._purses.append(purse)
            self._by_kind.setdefault(budget.kind, []).append(purse)

    @property
    def are_kept(self) -> bool:
        """Whether there are leases for `keep` to look after."""
        return bool(self._purses)

    async def reserve(self, costs: Mapping[str, int], ask: Ask) -> None:
        """Take what a call needs out of all its budgets, or out of none. Raises ProcessorError E332 where a
        budget has less than that, and E317 where the ledger cannot be asked.
        """
        taken: list[tuple[Purse, int]] = []
        for kind, amount in costs.items():
            for purse in self._by_kind.get(kind, ()) if amount > 0 else ():
                try:
                    if not purse.take(amount, _now_us()):
                        await purse.refill(amount, ask)
                except BaseException:
                    for other, given in taken:
                        other.put_back(given)
                    self._show_wait()
                    raise
                taken.append((purse, amount))

    def charge(self, costs: Mapping[str, int]) -> None:
        """Count what is used already."""
        now_us = _now_us()
        for kind, amount in costs.items():
            for purse in self._by_kind.get(kind, ()) if amount > 0 else ():
                purse.charge(amount, now_us)

    def settle(self, reserved: Mapping[str, int], used: Mapping[str, int], reserved_us: int) -> None:
        """Count what a call has used in place of what it reserved at that moment."""
        now_us = _now_us()
        for kind, amount in reserved.items():
            more = used.get(kind, 0) - amount
            for purse in self._by_kind.get(kind, ()) if more else ():
                if more > 0:
                    purse.charge(more, now_us)
                else:
                    purse.refund(-more, reserved_us, now_us)

    def read(self, record: RunRecord) -> None:
        """Count what a run has used, by its record."""
        if self._purses:
            self.charge(
                {
                    "compute": round(record.cpu_s * 1e6),
                    "wall_time": round(record.wall_s * 1e3),
                    "outputs": record.outputs + record.emits,
                    "output_bytes": record.output_bytes,
                }
            )

    async def states(self, kind: str) -> list[BudgetState]:
        """How the budgets of a kind stand. Raises ProcessorError E317 where the ledger cannot be asked."""
        purses = self._by_kind.get(kind, ())
        for purse in purses:
            await purse.know()
        return [purse.state(_now_us()) for purse in purses]

    def wait_s(self) -> float:
        """How long no run may begin: nothing where one may."""
        if not self._purses:
            return 0.0
        now_us = _now_us()
        until_us = [found for purse in self._purses if (found := purse.waits_until(now_us)) is not None]
        if not until_us:
            self._show_wait()
            return 0.0
        return min(_LONGEST_LOOK_S, max(0.001, (max(until_us) - now_us) / 1e6))

    def noted(self) -> Iterator[Mapping[str, Any]]:
        """What the audit is to have of budgets, each once: that most of one is used."""
        for purse in self._purses:
            while purse.unnoted:
                lease = purse.unnoted.popleft()
                used, limit = lease.taken, purse.budget.limit
                yield {"name": purse.account, "window": lease.window, "used": used, "limit": limit}

    async def keep(self, say: Say) -> None:
        """Look after the leases until cancelled, and give them back then; `say` tells listeners."""
        wanted = asyncio.Event()
        for purse in self._purses:
            purse.wanted = wanted
        try:
            while True:
                for purse in self._purses:
                    with suppress(ProcessorError):  # the ledger cannot be asked now: it is the next time
                        await purse.look(_now_us())
                    while purse.warnings:
                        await self._warn(purse, purse.warnings.popleft(), say)
                self._show_wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await wanted.wait()
                wanted.clear()
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GIVE_BACK_S):
                    await asyncio.gather(*(purse.give_back() for purse in self._purses))
            self.hears.budget_waits(None)

    async def _warn(self, purse: Purse, lease: Lease, say: Say) -> None:
        budget = purse.budget
        text = used_text(BudgetState(budget, lease.taken, lease.ends_us))
        log.warning(
            "most of a budget is used: %s", text, extra={"route": self._route, "budget": purse.account}
        )
        more = {"budget": purse.account, "window": lease.window, "text": text}
        await say("budget_warning", more)

    def _show_wait(self) -> None:
        """Say that the route waits, and for what, or that it goes on: once each."""
        now_us = _now_us()
        text = ""
        for purse in self._purses:
            if purse.waits_until(now_us) is not None:
                text = waiting_text(self._route, purse.state(now_us)) if purse.is_known else purse.trouble
                break
        if text == self._waits:
            return
        if text:
            log.warning("%s", text, extra={"route": self._route, "code": "E332"})
        elif self._waits:
            log.info("a budget is free again: the route goes on", extra={"route": self._route})
        self._waits = text
        self.hears.budget_waits(text or None)


class Tab:
    """What the runs of a lane use, one after the other, and what each of them may use."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self.begin()

    def begin(self) -> None:
        """A run begins: nothing is used, and nothing is lowered."""
        self._used: dict[str, int] = {}
        self._lowered: dict[str, Budget] = {}  # by kind: a guest may lower one again and again
        self._of_run: Sequence[Budget] = self._budgets.of_runs

    async def reserve(self, costs: Mapping[str, int], ask: Ask) -> None:
        """Take what a call needs. Raises ProcessorError E332 where less than that is left, and E317 where the
        ledger cannot be asked.
        """
        for budget in self._of_run:
            need, state = costs.get(budget.kind, 0), self._state(budget)
            if need > state.left:
                self._budgets.hears.budget_denied(budget.name)
                if budget.then == "deny":
                    raise exhausted(state, need, ask)
        self._count(costs)  # before anything is waited for: the run may have other calls on their way
        try:
            await self._budgets.reserve(costs, ask)
        except BaseException:
            self._count({kind: -amount for kind, amount in costs.items()})
            raise

    def charge(self, costs: Mapping[str, int]) -> None:
        """Count what is used already."""
        self._count(costs)
        self._budgets.charge(costs)

    def settle(self, reserved: Mapping[str, int], used: Mapping[str, int], reserved_us: int) -> None:
        """Count what a call of this run has used in place of what it reserved at that moment."""
        self._count({kind: used.get(kind, 0) - amount for kind, amount in reserved.items()})
        self._budgets.settle(reserved, used, reserved_us)

    def lower(self, kind: str, limit: int) -> None:
        """Let the run use no more than this of a kind. Raises ProcessorError E337 for more than it may."""
        least = min((each.limit for each in self._of_run if each.kind == kind), default=None)
        if least is not None and limit > least:
            what = f"the run may use {least:,} {BUDGET_KINDS[kind].unit}, and not {limit:,}"
            raise ProcessorError("E337", what, place="set_budget", remedy="A budget can only be lowered.")
        self._lowered[kind] = Budget("set_budget", kind, kind, limit, "run")
        self._of_run = [*self._budgets.of_runs, *self._lowered.values()]

    async def said(self, kind: str) -> dict[str, Any]:
        """How the budget of a kind stands of which least is left; without one, what the run has used."""
        states = [self._state(budget) for budget in self._of_run if budget.kind == kind]
        states += await self._budgets.states(kind)
        if not states:
            used = self._used.get(kind, 0)
            return {"used": used, "limit": None, "left": None, "window": "run", "until": None}
        return min(states, key=lambda state: state.left).said

    def _state(self, budget: Budget) -> BudgetState:
        return BudgetState(budget, self._used.get(budget.kind, 0), None)

    def _count(self, costs: Mapping[str, int]) -> None:
        for kind, amount in costs.items():
            self._used[kind] = self._used.get(kind, 0) + amount


def exhausted(state: BudgetState, need: int, ask: Ask) -> ProcessorError:
    """The error of a call that needs more than is left."""
    free_s = None if state.until_us is None else max(0.0, (state.until_us - _now_us()) / 1e6)
    about = About(f"{ask.kind}.{ask.method}", ask.target, state.budget.place, free_s)
    what = f"{used_text(state)}, and this call needs {need:,}"
    return ProcessorError("E332", what, remedy=_free_text(state), about=about)


def used_text(state: BudgetState) -> str:
    """How much of a budget is used, as a sentence without its end."""
    budget = state.budget
    when = {"run": "in this run", "life": "in all"}.get(budget.window, f"this {budget.window}")
    return f"budget {budget.name}: {state.used:,} of {budget.limit:,} {budget.unit} used {when}"


def waiting_text(route: str, state: BudgetState) -> str:
    """Why a route takes nothing."""
    return f'E332 {used_text(state)}; route {route} takes nothing (then = "wait"). {_free_text(state)}'


def _free_text(state: BudgetState) -> str:
    if state.until_us is None:
        return f"Its limit is in {state.budget.place}."
    return f"Free again at {_iso(state.until_us)}."


def _iso(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us // 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def _now_us() -> int:
    return time.time_ns() // 1000
