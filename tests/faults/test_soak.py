"""A short storm of faults over three processors; `soak.py` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.faults.soak import Plan, soak_single


def test_a_storm_of_faults_loses_doubles_and_tears_nothing(tmp_path: Path) -> None:
    """Hosts, guests and the server die, hosts freeze and wake up, versions roll: the ledgers are clean."""
    plan = Plan(messages=3000, kills=6, poison=5, unsure=10, seed=7)
    soak, found = soak_single(plan, tmp_path)
    assert soak.sent == plan.messages
    assert soak.kills == plan.kills
    assert soak.done["redriven"] == 3 * plan.poison
    assert not any(found.values()), found
