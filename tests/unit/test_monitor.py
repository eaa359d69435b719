"""The governor of a route, and the monitors of its lanes: which rules hold for which run."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.capability.monitor import Mandate
from processor.capability.registry import HostCalls
from processor.errors import ProcessorError
from processor.policy import Ask, Rules, load
from processor.reach import Reach

ASK = Ask("emit", "publish", "a.b")


def rules(tmp_path: Path, *subjects: str) -> Rules:
    file = tmp_path / "policy.toml"
    lines = [f'[[capability]]\nname = "emit"\nresource = "{s}"\nmethods = ["publish"]\n' for s in subjects]
    file.write_text("".join(lines))
    return load([str(file)])


def test_a_run_keeps_the_rules_that_it_began_with(tmp_path: Path) -> None:
    """Replaced meanwhile, they hold until the lane's next run; other lanes go by their own runs."""
    governor = HostCalls().for_route(Reach("here"), Mandate("r", rules(tmp_path, "a.b")))
    running, idle = governor.lane(0), governor.lane(1)
    running.begin()
    governor.replace(rules(tmp_path, "c"))
    running.permit(ASK)
    idle.begin()
    with pytest.raises(ProcessorError, match=r"emit publish a\.b is not allowed to route r"):
        idle.permit(ASK)
    running.begin()
    with pytest.raises(ProcessorError, match="E330"):
        running.permit(ASK)


def test_a_denial_is_logged_once_for_all_lanes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Runnable may ask the same for every message, on every lane; each decision is counted."""
    decisions: list[tuple[str, str]] = []
    mandate = Mandate("r", rules(tmp_path, "c"))
    governor = HostCalls().for_route(Reach("here"), mandate, decided=lambda *each: decisions.append(each))
    for number in (0, 1, 0):
        with pytest.raises(ProcessorError, match="E330"):
            governor.lane(number).permit(ASK)
    assert decisions == [("emit", "deny")] * 3
    assert caplog.text.count("emit publish a.b is not allowed to route r") == 1
