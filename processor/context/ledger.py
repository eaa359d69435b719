"""The ledger: how much of each budget is used in its window, and who holds leases of it.

    p.<app>.budget.<account>    {"v": 1, "per": "day", "window": "2026-11-30", "limit": 100000, "used": 52000,
                                 "held": {"<holder>": [5000, <us>]}, "warned": false}

An account is a budget, or a budget of one route (`scope = "route"`). A holder is a route in one process, from
its start to its stop; no other one ever has its name.

A holder takes a lease and charges it in its own memory; it comes back when that is used up, after 30 s, and
when it stops. Every write is fenced by the record that it was computed from, so that processors which race
never give away the same part twice.

What must stay true: in a window, `used` and all that is `held` are together never above the limit but for
what was charged without being asked for before (the answer of a call, the CPU of a run). A lease that was not
renewed for 60 s counts as used, whole: a process that is killed costs at most its lease, and its lease is
given to nobody else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import orjson

from processor.context.subjects import app_stream, budget_record
from processor.errors import BrokerError
from processor.jetstream import EXPECTED, KEPT, Again, Broker, Outgoing, Unknown, WrongLastSequence
from processor.policy import Budget, window_at

VERSION = 1
RENEW_US = 30_000_000
LAPSE_US = 60_000_000
WARN_RATIO = 0.9
_SLICES = 20  # a lease is at most this part of the limit
_PAUSE_S = 0.02
_TRIES_S = 5.0  # how long a server that does not answer is asked again


class Lease(NamedTuple):
    """What a holder may use without asking again."""

    window: str = ""
    ends_us: int | None = None  # of the window
    amount: int = 0
    taken: int = 0  # by everybody in this window: used, or held and not free for others
    is_refused: bool = False  # less than what is needed is left
    is_warning: bool = False  # with this, most of the budget is gone: nobody else is told so in this window


class Claim(NamedTuple):
    """What a holder tells the ledger, and asks of it."""

    holder: str
    had: Lease  # its last one
    spent: int  # since it got that
    need: int  # at least; 0 gives the lease back


@dataclass(frozen=True, slots=True)
class Account:
    """The record of one budget."""

    per: str = ""
    window: str = ""
    used: int = 0
    held: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # amount, and when it was renewed
    is_warned: bool = False

    @property
    def taken(self) -> int:
        """What is not free."""
        return self.used + sum(amount for amount, _ in self.held.values())

    def settled(self, budget: Budget, claim: Claim, now_us: int) -> tuple[Account, Lease]:
        """The account after a claim, and what the holder has now."""
        window, ends_us = window_at(budget.window, now_us)
        account = self
        if self.per != budget.window or self.window < window:
            account = Account(budget.window, window)
        elif self.window > window and ends_us is not None:  # our clock is behind that of others
            window, ends_us = self.window, window_at(budget.window, ends_us)[1]
        held = dict(account.held)
        lapsed = [holder for holder, (_, at_us) in held.items() if now_us - at_us > LAPSE_US]
        used = account.used + sum(held.pop(holder)[0] for holder in lapsed if holder != claim.holder)
        used += _spent(held.pop(claim.holder, None), claim, window)
        free = budget.limit - used - sum(amount for amount, _ in held.values())
        amount = 0
        if claim.need:
            amount = max(claim.need, min(budget.limit // _SLICES, free // (2 * (len(held) + 1))))
            if amount > free:
                amount = claim.need if claim.need <= free or budget.then == "warn" else 0
            if amount:
                held[claim.holder] = (amount, now_us)
        found = replace(account, used=used, held=held)
        is_warning = not account.is_warned and found.taken >= WARN_RATIO * budget.limit
        found = replace(found, is_warned=account.is_warned or is_warning)
        is_refused = claim.need > max(free, 0)
        return found, Lease(window, ends_us, amount, found.taken, is_refused, is_warning)


def _spent(held: tuple[int, int] | None, claim: Claim, window: str) -> int:
    """What a claim adds to what is used: `held` is the lease that the account has of the holder."""
    is_of_now = claim.had.window in ("", window)
    if held is None:
        # A lease that lapsed was counted whole; one of an earlier window is none of this one.
        return max(0, claim.spent - claim.had.amount) if is_of_now else 0
    if not is_of_now or held[0] != claim.had.amount:  # of a process that had our name and did not give back
        return held[0] + (claim.spent if is_of_now else 0)
    return claim.spent


class BudgetLedger(Protocol):
    """Who keeps the accounts."""

    async def settle(self, budget: Budget, account: str, claim: Claim, now_us: int) -> Lease:
        """What the holder has now. Raises LedgerError where the account cannot be reached."""


class LedgerError(Exception):
    """The server does not answer, or refuses; the sentence says why."""


class MemoryLedger:
    """The accounts of one process: of the library, and of `try`."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    async def settle(self, budget: Budget, account: str, claim: Claim, now_us: int) -> Lease:
        """What the holder has now."""
        known = self._accounts.get(account, Account())
        self._accounts[account], lease = known.settled(budget, claim, now_us)
        return lease


class AppLedger:
    """The accounts of an app, in its stream."""

    def __init__(self, broker: Broker, app: str) -> None:
        self._broker = broker
        self._app = app

    async def settle(self, budget: Budget, account: str, claim: Claim, now_us: int) -> Lease:
        """What the holder has now. Raises LedgerError."""
        subject = budget_record(self._app, account)
        doubted: dict[tuple[int, int], Lease] = {}  # what was written without an answer, as it would stand
        why = ""
        try:
            async with asyncio.timeout(_TRIES_S):
                while True:
                    try:
                        return await self._settle(subject, budget, claim, now_us, doubted)
                    except WrongLastSequence:
                        await asyncio.sleep(random.uniform(0, _PAUSE_S))
                    except BrokerError as err:
                        raise LedgerError(str(err)) from err
                    except (Again, Unknown) as err:
                        why = str(err) or "the server does not answer"
                        await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            raise LedgerError(why or "the account is in too much demand") from None

    async def _settle(
        self, subject: str, budget: Budget, claim: Claim, now_us: int, doubted: dict[tuple[int, int], Lease]
    ) -> Lease:
        stored = await self._broker.last_of(app_stream(self._app), [subject])
        known, fence = (_read(stored[0].payload), stored[0].sequence) if stored else (Account(), 0)
        mine = known.held.get(claim.holder)
        if mine is not None and mine in doubted:
            return doubted[mine]  # that write was done after all
        found, lease = known.settled(budget, claim, now_us)
        if found == known:
            return lease
        if lease.amount:
            doubted[found.held[claim.holder]] = lease
        await self._broker.commit(
            [Outgoing(subject, _written(found, budget), {**KEPT, EXPECTED: str(fence)})]
        )
        return lease


async def accounts(broker: Broker, app: str) -> dict[str, Account]:
    """All accounts of an app, by name. Raises what the broker raises."""
    root = budget_record(app, "")
    stored = await broker.last_of(app_stream(app), [budget_record(app, ">")])
    return {message.subject.removeprefix(root): _read(message.payload) for message in stored}


def _written(account: Account, budget: Budget) -> bytes:
    return orjson.dumps(
        {
            "v": VERSION,
            "per": account.per,
            "window": account.window,
            "limit": budget.limit,
            "used": account.used,
            "held": account.held,
            "warned": account.is_warned,
        }
    )


def _read(payload: bytes) -> Account:
    """The record; one that cannot be read is of no window, and begins anew."""
    try:
        said = orjson.loads(payload)
        held = {str(holder): (int(amount), int(at_us)) for holder, (amount, at_us) in said["held"].items()}
        return Account(str(said["per"]), str(said["window"]), int(said["used"]), held, bool(said["warned"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Account()
