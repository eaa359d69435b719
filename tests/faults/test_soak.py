"""A short storm of faults over three processors; `soak.py` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.faults.soak import Plan, soak_single


def test_a_storm_of_faults_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Hosts, guests and the server die, hosts freeze and wake up, versions roll: the ledger is clean."""
    plan = Plan(messages=3000, faults=12, poison=5, seed=7)
    soak, found = soak_single(plan, tmp_path)
    assert len(soak.sent) == plan.messages
    assert soak.done.total() >= plan.faults // 2
    assert not found, found
