"""The governor of a route, and the monitors of its lanes: which rules hold for which run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from processor.address import Binding
from processor.capability.monitor import Mandate, RunScope
from processor.capability.registry import HostCalls
from processor.context.late import Intent
from processor.errors import ProcessorError
from processor.policy import Ask, Rules, load
from processor.reach import BoundSecret, Outbound, Reach
from processor.route import RouteAudit
from tests.web import Asked, answer, call, serving

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


async def test_an_entry_names_a_secret_and_never_its_mark(tmp_path: Path) -> None:
    """A mark is of this process; where a guest puts one into a path it is not for others to read."""

    async def announce(partition: int, intent: Intent) -> None:
        raise AssertionError("a GET is not written down before")

    secret = BoundSecret("key", "canary-value", (Binding.parse("http://a.example"),))
    reach = Reach("here", Outbound(allowed_domains=("a.example",)), secrets=(secret,))
    governor = HostCalls().for_route(reach, Mandate("r", program="p1", audit=RouteAudit("calls")))
    lane = governor.lane()
    lane.begin(RunScope(3, (7, 9), announce))
    with pytest.raises(ProcessorError, match="E326"):
        await lane.perform("requests", call("GET", f"http://a.example/{governor.secrets['key']}"))
    [entry] = lane.end()
    assert (entry.target, entry.decision, entry.code) == ("http://a.example/secret.key", "deny", "E326")
    assert (lane.home, entry.batch, entry.actor, entry.rule) == (3, (7, 9), "program:p1", "config")
    assert not lane.end()


async def test_calls_at_the_same_time_have_entries_of_their_own() -> None:
    """Each with the secret that it used, in the order in which they ended."""

    async def announce(partition: int, intent: Intent) -> None:
        assert intent.operation == "post"

    arrived, leave = asyncio.Semaphore(0), {"/a": asyncio.Event(), "/b": asyncio.Event()}

    async def say(asked: Asked) -> bytes:
        arrived.release()
        await leave[asked.target].wait()
        return answer()

    async with serving(say) as web:
        bound = (Binding.parse(web.url),)
        secrets = tuple(BoundSecret(name, f"canary-value-{name}", bound) for name in "ab")
        reach = Reach("here", Outbound(allowed_domains=(web.host,)), secrets=secrets)
        calls = HostCalls()
        governor = calls.for_route(reach, Mandate("r", audit=RouteAudit("calls", "unsafe")))
        lane = governor.lane()
        lane.begin(RunScope(0, (1, 1), announce))
        asked = {
            name: asyncio.create_task(
                lane.perform(
                    "requests", call("POST", f"{web.url}/{name}", headers=[["X", governor.secrets[name]]])
                )
            )
            for name in "ab"
        }
        for _ in asked:
            await arrived.acquire()
        for name in "ba":
            leave[f"/{name}"].set()
            await asked[name]
        await calls.close()
    entries = lane.end()
    assert [(entry.target, entry.secrets) for entry in entries] == [
        (f"{web.url}/b", ("b",)), (f"{web.url}/a", ("a",)),
    ]  # fmt: skip
    assert len({entry.intent for entry in entries}) == 2
