"""The ledger of budgets: leases that never give away more than there is, and what a killed holder costs."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from processor.context.ledger import LAPSE_US, Account, Claim, Lease
from processor.policy import Budget

NOW_US = 1_800_000_000_000_000  # 2027-01-15 08:00 UTC
DAY_US = 86_400_000_000
DAILY = Budget("policy.toml:1", "b", "requests", 1000, "day")


NONE = Lease()


def settle(
    account: Account, holder: str, need: int, *, had: Lease = NONE, spent: int = 0, now_us: int = NOW_US,
    budget: Budget = DAILY,
) -> tuple[Account, Lease]:  # fmt: skip
    return account.settled(budget, Claim(holder, had, spent, need), now_us)


def test_a_lease_is_a_part_of_what_is_free() -> None:
    """At most a twentieth, never more than half of what is left for each, and what is needed in any case."""
    account, lease = settle(Account(), "a", 1)
    assert (lease.amount, lease.window, account.taken) == (50, "2027-01-15", 50)
    account, lease = settle(replace(account, used=930), "b", 1)
    assert lease.amount == 5  # of 20 that are free, for two
    account, lease = settle(account, "c", 15)
    assert lease.amount == 15
    account, lease = settle(account, "d", 1)
    assert (lease.amount, lease.is_refused, lease.taken) == (0, True, 1000)


def test_what_is_spent_of_a_lease_is_used_and_the_rest_is_free_again() -> None:
    """When the holder comes back for more, and when it gives back."""
    account, lease = settle(Account(), "a", 1)
    account, lease = settle(account, "a", 1, had=lease, spent=50)
    assert (account.used, account.taken) == (50, 100)
    account, lease = settle(account, "a", 0, had=lease, spent=20)
    assert (account.used, account.taken, account.held) == (70, 70, {})


def test_a_window_that_begins_has_all_of_the_limit() -> None:
    """Leases of the old one are void, and what was spent of them belongs to the old window."""
    account, lease = settle(Account(), "a", 1000)
    account, other = settle(account, "b", 1)
    assert other.is_refused
    account, fresh = settle(account, "a", 10, had=lease, spent=700, now_us=NOW_US + DAY_US)
    assert (fresh.window, account.used, account.taken) == ("2027-01-16", 0, 50)
    assert fresh.ends_us == NOW_US + 40 * 3_600_000_000


def test_a_clock_that_is_behind_opens_no_window_again() -> None:
    """Windows only go forward: a holder whose clock is behind is of the window that there is."""
    account, _ = settle(Account(), "a", 1000, now_us=NOW_US + DAY_US)
    account, lease = settle(account, "b", 1)
    assert (lease.is_refused, lease.window, lease.ends_us) == (
        True,
        "2027-01-16",
        NOW_US + 40 * 3_600_000_000,
    )


def test_a_lease_that_is_not_renewed_counts_as_used() -> None:
    """Whole, and for ever in its window: its holder may have used all of it, and may still be there."""
    account, lease = settle(Account(), "a", 1)
    later_us = NOW_US + LAPSE_US + 1
    account, _ = settle(account, "b", 1, now_us=later_us)
    assert (account.used, [*account.held]) == (50, ["b"])
    account, _ = settle(account, "a", 0, had=lease, spent=30, now_us=later_us)
    assert account.used == 50  # what it spent is part of that
    account, _ = settle(account, "a", 0, had=lease, spent=60, now_us=later_us)
    assert account.used == 60  # and this is not


def test_most_of_a_budget_is_told_once_a_window() -> None:
    """To the one whose claim takes it to 90 %, and to nobody after it."""
    account, first = settle(Account(), "a", 899)
    account, second = settle(account, "b", 1)
    account, third = settle(account, "c", 1)
    assert [lease.is_warning for lease in (first, second, third)] == [False, True, False]
    _, fresh = settle(account, "c", 950, now_us=NOW_US + DAY_US)
    assert fresh.is_warning


def test_a_budget_that_only_warns_refuses_nothing() -> None:
    """It says that there was none left, and gives what is needed."""
    warn = replace(DAILY, limit=10, then="warn")
    account, _ = settle(Account(), "a", 10, budget=warn)
    account, lease = settle(account, "b", 5, budget=warn)
    assert (lease.amount, lease.is_refused, account.taken) == (5, True, 15)


def test_a_record_of_another_kind_of_window_begins_anew() -> None:
    """A budget whose window is changed from a day to a month does not read the day's record as its own."""
    account, _ = settle(Account(), "a", 1000)
    found, lease = settle(account, "a", 1, budget=replace(DAILY, window="month"))
    assert (found.window, lease.is_refused) == ("2027-01", False)


steps = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 60), st.integers(0, 40_000_000)),
    max_size=60,
)


@given(steps, st.integers(1, 300))
def test_holders_never_use_more_than_the_limit(moves: list[tuple[int, int, int, int]], limit: int) -> None:
    """Whatever they need, spend of their leases, forget to renew or give back, in whatever order."""
    budget = replace(DAILY, limit=limit)
    account, now_us, used = Account(), NOW_US, 0
    leases = [(Lease(), 0)] * 4  # and what was spent of it
    for holder, need, spends, passed_us in moves:
        now_us += passed_us // 4  # all within the day
        lease, spent = leases[holder]
        more = min(spends, lease.amount - spent)
        used, spent = used + more, spent + more
        account, lease = account.settled(budget, Claim(f"h{holder}", lease, spent, need), now_us)
        leases[holder] = lease, 0
        assert used <= account.taken <= limit
    assert used <= limit
