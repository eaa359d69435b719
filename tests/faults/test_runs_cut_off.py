"""A short storm of kills under runs of a graph; `runs.py` is the long one."""

from __future__ import annotations

from tests.faults.runs import storm


async def test_kills_lose_and_double_no_run() -> None:
    """Processors and the server die: each run has one record and one right result, and nothing is left."""
    found = await storm(runs=30, kills=3, hosts=2, seed=5)
    assert not found, found
    assert found.counts["results"] == 30
    assert found.counts["calls"] >= 90
