"""Chapter 15: what a Runnable asks for, and what people do, is in an audit that shows when it was changed."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.conftest import waited
from tests.running import Running, Start

ROUTE = """
orders:
  input: {subject: "orders.*", create: true}
  runnable: warn.py
  emits: ["alerts.*"]
  output: handled
"""
WARN = """
class Runnable:
    def process(self, orders):
        for order in orders:
            if order["amount"] > 1000:
                self.emit(f"alerts.{order['country']}", order)
            yield {"order": order["id"]}
"""
POLICY = """
[[capability]]
name = "emit"
resource = "alerts.de"
methods = ["publish"]
"""
AUDITED = "policy: policy.toml\naudit: {level: runs, seal: {seconds: 1}}"


async def audit(running: Running, action: str, *options: str) -> tuple[int, str]:
    """How `processor audit` ends, and what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "audit", action, str(running.path), *options),
        env={"NATS_URL": running.broker.address, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def entries(running: Running, *options: str, count: int = 1) -> list[dict[str, Any]]:
    """The entries that `processor audit query` finds, as soon as there are so many."""

    async def enough() -> list[dict[str, Any]] | None:
        found = [json.loads(line) for line in (await audit(running, "query", *options))[1].splitlines()]
        return found if len(found) >= count else None

    found: list[dict[str, Any]] = await waited(enough, f"{count} entries are there", 30)
    return found


async def test_the_audit_has_what_was_asked_for_and_what_came_of_it(processor: Start, tmp_path: Path) -> None:
    """A denial with its line of the policy and the run that it ended; a run with what it stored; an order."""
    (tmp_path / "policy.toml").write_text(POLICY)
    async with processor(ROUTE, AUDITED, warn=WARN) as running:
        await running.publish("orders.a", {"id": 1, "amount": 5000, "country": "de"})
        await running.documents("handled", 1)
        await running.publish("orders.a", {"id": 2, "amount": 5000, "country": "fr"})
        await running.dead_letters("orders")
        [run] = await entries(running, "--event", "run", "--decision", "allow", "--limit", "1")
        assert (run["chain"], run["route"], run["fate"]) == ("orders.0", "orders", "committed")
        assert (run["out"], run["emits"]) == (1, 1)
        [denied, *_] = await entries(running, "--decision", "deny")
        assert (denied["e"], denied["on"], denied["code"]) == ("emit", "alerts.fr", "E330")
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", "pause", str(running.path), "orders", "--reason", "look"),
            env={"NATS_URL": running.broker.address, "PATH": "/usr/bin:/bin"},
        )
        asked, done = await entries(running, "--event", "control", count=2)
        assert [each["result"] for each in (asked, done)] == ["asked", "done"]
        assert (asked["on"], asked["reason"], asked["chain"]) == ("pause:orders", "look", "=ctl.0")
        assert asked["actor"].startswith("by:")


async def test_an_entry_that_is_gone_is_named(processor: Start, tmp_path: Path) -> None:
    """`verify` holds all entries against each other, the positions and the seals; its exit code says so."""
    (tmp_path / "policy.toml").write_text(POLICY)
    async with processor(ROUTE, AUDITED, warn=WARN) as running:
        for number in range(12):
            await running.publish("orders.a", {"id": number, "amount": 1, "country": "de"})
            await running.documents("handled", number + 1)
        code, said = await audit(running, "verify", "--format", "human")
        assert (code, said.partition(":")[0]) == (0, "the audit of app is what was written")
        # Nothing can be deleted from the audit's stream, but who may change its limits can make it forget.
        stream = await running.broker.stream("AUDIT_app")
        assert stream is not None
        await running.broker.update_stream({**stream["config"], "max_msgs": 6})
        code, said = await audit(running, "verify", "--format", "human")
        assert code == 1
        assert said.startswith("audit: chain orders.0 breaks at entry 1: entries 1 to ")
