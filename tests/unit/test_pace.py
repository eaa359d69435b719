"""How many messages share a run where the results of each are waited for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from processor.delivery.pace import RunPace
from processor.model import NO_HEADERS, Delivery

MS = 1 / 1024  # so that sums of it are exact


def deliveries(kinds: str) -> list[Delivery]:
    """A message for each letter, which is its kind."""
    return [Delivery(kind, b"", NO_HEADERS, "IN", number, 0.0) for number, kind in enumerate(kinds, 1)]


def paced(*runs: tuple[str, float], run_s: float | None = 20 * MS) -> RunPace:
    """A pace that has learned from runs of these kinds, which took so long."""
    pace = RunPace(lambda delivery: delivery.subject, run_s)
    for kinds, wall_s in runs:
        pace.took(deliveries(kinds), wall_s)
    return pace


@pytest.mark.parametrize(
    ("runs", "next", "room"),
    [
        ([], "aaa", 1),  # nobody knows
        ([("a", MS)], "a" * 100, 20),
        ([("a", MS)], "aab", 2),  # b is not known
        ([("a", MS), ("b", 15 * MS)], "aaaaaab", 6),  # b would make it too long
        ([("a", MS), ("b", 15 * MS)], "bbb", 1),
        ([("a", 7.0)], "aaa", 1),
        ([("a", 0.0)], "aaa", 1),  # a run in which nothing was asked of a guest says nothing
    ],
)
def test_messages_share_a_run_as_long_as_it_is_short(
    runs: Sequence[tuple[str, float]], next: str, room: int
) -> None:
    """As many as are expected to take 20 ms together, and those of which nothing is known alone."""
    assert paced(*runs).room(deliveries(next)) == room


def test_a_slow_run_counts_at_once_and_is_forgotten_by_and_by() -> None:
    """After one outlier each message runs alone; many fast ones later they share runs again."""
    pace = paced(("a", MS), ("aaaaaaaaaa", 5.0))
    assert pace.room(deliveries("aaaa")) == 1
    for _ in range(60):
        pace.took(deliveries("a"), MS)
    assert pace.room(deliveries("a" * 100)) > 10


def test_a_mixed_run_counts_for_each_kind_as_it_was_expected_to_take() -> None:
    """Where it took twice as long, each kind in it is taken to need twice as long."""
    pace = paced(("a", MS), ("b", 4 * MS), ("ab", 10 * MS))
    assert pace.room(deliveries("a" * 100)) == 10
    assert pace.room(deliveries("b" * 100)) == 2


def test_without_a_bound_all_run_together() -> None:
    """What takes long is the affair of the route's limits then."""
    pace = paced(("a", 7.0), run_s=None)
    assert pace.room(deliveries("a" * 500)) == 500
    assert not pace.is_bounded
