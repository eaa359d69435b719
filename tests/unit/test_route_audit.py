"""What is written down of a route's calls, by the keys of `audit` and its policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.config import fingerprint, load
from processor.route import RouteAudit

LINE = '[[capability]]\nname = "stock"\nresource = "IBM"\nmethods = ["read"]\n'


def written(tmp_path: Path, audit: str, policy: str = "policy: policy.toml\n") -> Path:
    (tmp_path / "policy.toml").write_text(LINE)
    path = tmp_path / "config.yaml"
    route = "routes: {r: {input: in, code: 'class Runnable: pass'}}\n"
    path.write_text(f"app: a\n{policy}{audit}\n{route}")
    return path


@pytest.mark.parametrize(
    ("audit", "policy", "found"),
    [
        ("", "", RouteAudit("off")),
        ("", "policy: policy.toml\n", RouteAudit("calls")),
        ("audit: off", "policy: policy.toml\n", RouteAudit("off")),
        ("audit: runs", "", RouteAudit("runs")),
        ("audit: {level: calls, intent: all, copy_ttl: 90m}", "", RouteAudit("calls", "all", 5400)),
        ("audit: {intent: none}", "policy: policy.toml\n", RouteAudit("calls", "none")),
    ],
)
def test_a_route_is_audited_as_the_keys_say(
    tmp_path: Path, audit: str, policy: str, found: RouteAudit
) -> None:
    """By default the calls of a route with a policy, and nothing of one without."""
    assert load(written(tmp_path, audit, policy)).routes["r"].audit == found


def test_processors_that_audit_differently_run_different_versions(tmp_path: Path) -> None:
    """Digits that stood before there was an audit stay, while nothing is said of one."""
    plain = fingerprint(load(written(tmp_path, "")))
    assert fingerprint(load(written(tmp_path, "audit: calls"))) != plain
    assert fingerprint(load(written(tmp_path, "audit: {}"))) == plain
