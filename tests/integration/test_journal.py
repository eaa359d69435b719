"""What is done to an app is in its audit: by people before and after, by processors once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.audit import CONTROL, GENESIS, AuditEntry, AuditRecord, ChainHead
from processor.config import load
from processor.context.chains import Chain
from processor.context.subjects import audit_subject, chain_record
from processor.errors import BrokerError
from processor.jetstream import KEPT, Broker, Outgoing
from processor.operate.control import Control
from processor.operate.journal import Journal
from tests.conftest import waited
from tests.running import COUNT, REPAIRED, Running, Start, connected

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  partitions: 4
  output: out.{key}
  retry: {attempts: 1}
"""
AUDITED = "audit: {level: calls}"


async def chain_of(broker: Broker, stream: str = "P_app") -> tuple[list[dict[str, Any]], ChainHead]:
    """The entries of the chain of control, which follow each other, and where they end."""
    head, found = GENESIS, list[dict[str, Any]]()
    async for stored in broker.history(stream, [audit_subject("app", CONTROL)]):
        record = AuditRecord.decode(stored.payload)
        record.check_follows(head)
        found += map(orjson.loads, record.lines)
        head = record.head
    return found, head


async def acts(running: Running, count: int) -> list[dict[str, Any]]:
    """The entries of what people did, as soon as there are so many."""

    async def enough() -> list[dict[str, Any]] | None:
        found = [each for each in (await chain_of(running.broker))[0] if each["e"] == "control"]
        return found if len(found) >= count else None

    found: list[dict[str, Any]] = await waited(enough, f"{count} entries of control")
    return found


async def asked(broker: Broker, verb: str, **request: Any) -> Any:
    reply = await broker.client.request(f"ctl.app.api.{verb}", orjson.dumps(request), timeout=10)
    return orjson.loads(reply.data)


async def run_cli(running: Running, *arguments: str) -> str:
    verb, *rest = arguments
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", verb, *rest),
        env={"NATS_URL": running.broker.address, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out
    return out.decode()


async def test_a_request_has_an_entry_before_and_after(processor: Start) -> None:
    """Who asked for what and why, with one id, and what became of it."""
    async with processor(ROUTE, AUDITED, count=COUNT) as running:
        await asked(running.broker, "pause", route="r", by="ann", reason="maintenance")
        before, after = await acts(running, 2)
        assert before["of"] == after["of"]
        assert {**before, "n": 0, "t": 0, "of": ""} == {
            "n": 0, "t": 0, "e": "control", "d": "allow", "route": "r", "actor": "by:ann", "op": "call",
            "on": "pause:r", "of": "", "verb": "pause", "reason": "maintenance", "result": "asked",
        }  # fmt: skip
        assert {**before, "n": 0, "t": 0, "result": ""} == {**after, "n": 0, "t": 0, "result": ""}
        assert after["result"] == "done"
        assert before["t"] <= after["t"]


async def test_every_order_is_noted_over_nats_and_by_command(processor: Start, tmp_path: Path) -> None:
    """Pause, resume, reset, redrive and drop, whichever way they come, with what they were about."""
    async with processor(ROUTE, AUDITED, count=COUNT) as running:
        await running.publish("in.a", {"raise": "no"}, {"i": 1})
        await running.dead_letters("r")
        path = str(running.path)
        await run_cli(running, "pause", path, "r", "--reason", "by hand")
        await waited(lambda: running.metric("processor_route_paused") == 1, "the route is paused")
        await run_cli(running, "reset", path, "r", "--to", "1", "--yes")
        await run_cli(running, "dlq", "redrive", path, "r")
        await run_cli(running, "resume", path, "r")
        await asked(running.broker, "dlq.drop", route="other", by="ann")
        await asked(running.broker, "reset", route="r", to=2, by="ann")
        await asked(running.broker, "resume", route="r", by="ann")
        found = await acts(running, 14)
        assert [(each["on"], each["result"]) for each in found] == [
            (what, result)
            for what, end in [
                ("pause:r", "done"), ("reset:r", "done"), ("dlq.redrive:r", "done"), ("resume:r", "done"),
                ("dlq.drop:other", "missed"), ("reset:r", "done"), ("resume:r", "done"),
            ]
            for result in ("asked", end)
        ]  # fmt: skip
        assert [each["actor"] == "by:ann" for each in found] == [False] * 8 + [True] * 6
        assert all(each["reason"] == "by hand" for each in found[:2])
        resets = [each for each in found if each["on"] == "reset:r"]
        assert [each["data"]["position"] for each in resets] == [0, 0, 1, 1]
        redriven = next(each for each in found[1::2] if each["on"] == "dlq.redrive:r")
        assert redriven["data"]["done"] == 1
        assert redriven["data"]["ids"][0].startswith("r.")
        # What was copied is the same chain.
        end = (await chain_of(running.broker))[1]

        async def copied() -> bool:
            return (await chain_of(running.broker, "AUDIT_app"))[1].number >= end.number

        await waited(copied, "the chain is copied")


async def test_what_failed_is_noted_with_its_code(processor: Start) -> None:
    """An act that raises is in the audit as failed, and the error goes on to who asked."""
    async with processor(ROUTE, AUDITED, count=COUNT) as running:
        await running.broker.api("STREAM.PURGE.P_app", {"filter": "p.app.pos.r.>"})
        journal = Journal(running.broker, load(running.path, {}))
        with pytest.raises(BrokerError) as raised:
            async with journal.act("reset", "r", by="ann"):
                await Control(running.broker, "app").reset("r", 1, keep_context=True)
        assert raised.value.code == "E401"
        _, after = await acts(running, 2)
        assert (after["result"], after["d"], after["code"]) == ("failed", "error", "E401")


async def test_nothing_is_done_that_cannot_be_noted(processor: Start) -> None:
    """Where the chain's end cannot be read, a request is refused before anything is done (E415)."""
    async with processor(ROUTE, AUDITED, count=COUNT) as running:
        subject = chain_record("app", CONTROL)

        async def is_noted() -> bool:
            return bool(await running.broker.last_of("P_app", [subject]))

        await waited(is_noted, "the start is noted")
        await running.broker.publish_stored(Outgoing(subject, b'{"n":-1}', KEPT))
        answer = await asked(running.broker, "pause", route="r", by="ann")
        assert answer["error"]["code"] == "E415"
        assert "the audit's chain =ctl.0 ends cannot be read" in answer["error"]["text"]
        assert await Control(running.broker, "app").pauses() == {}


async def test_without_an_audit_nothing_is_noted(processor: Start) -> None:
    """An app whose audit is off stores what it always did."""
    async with processor(ROUTE, count=COUNT) as running:
        await asked(running.broker, "pause", route="r", by="ann")
        assert [s.subject for s in await running.stored("p.app.audit.>")] == []
        assert [s.subject for s in await running.stored("p.app.chain.>")] == []


async def test_routes_reloads_and_policies_are_noted(processor: Start, tmp_path: Path) -> None:
    """What begins, ends and is in force, by which processor, with the ids of programs and policies."""
    policy = '[[capability]]\nname = "emit"\nresource = "a"\nmethods = ["publish"]\n'
    (tmp_path / "policy.toml").write_text(policy)
    async with processor(ROUTE, "policy: policy.toml", count=COUNT) as running:
        (tmp_path / "policy.toml").write_text(policy.replace('"a"', '"b"'))
        await running.reload(count=REPAIRED)
        await running.until_ready()
        first = load(running.path, {}).routes["r"].policy.id
        await running.service.stop()
        found = (await chain_of(running.broker))[0]
    assert [(each["e"], each["op"], each.get("route"), each["on"]) for each in found[:2]] == [
        ("policy", "load", None, "policy.toml"), ("route", "start", "r", "partitions 0-3"),
    ]  # fmt: skip
    assert [(each["e"], each["op"]) for each in found[2:]] == [
        ("route", "stop"), ("route", "reload"), ("policy", "load"), ("route", "start"), ("route", "stop"),
    ]  # fmt: skip
    loads = [each for each in found if each["e"] == "policy"]
    assert loads[1]["policy"] == first
    assert loads[1]["data"] == {"before": loads[0]["policy"], "routes": ["r"]}
    assert found[3]["data"]["changed"] == ["r"]
    assert len({each["actor"] for each in found}) == 1
    assert found[0]["actor"].startswith("processor:")
    starts = [each["data"]["program"] for each in found if each.get("op") == "start"]
    assert len(set(starts)) == 2


async def test_what_waits_for_a_server_is_bounded(
    processor: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond so many of its own entries a processor says which the audit lacks; the others are stored."""
    async with processor(ROUTE, AUDITED, count=COUNT) as running:
        journal = Journal(running.broker, load(running.path, {}))
        monkeypatch.setattr("processor.operate.journal._NOTES_MAX", 2)
        for number in range(3):
            journal.note(AuditEntry("route", operation=f"test{number}", target="partitions 0"))
        assert "route test2 of partitions 0 is not in the audit: 2 entries wait" in caplog.text
        writing = asyncio.create_task(journal.run())
        await journal.settle()
        writing.cancel()
        found = [each["op"] for each in (await chain_of(running.broker))[0]]
        assert [op for op in found if op.startswith("test")] == ["test0", "test1"]


async def test_many_that_write_at_once_keep_one_chain(processor: Start) -> None:
    """Each entry is there once, in a chain without a fork, whoever was faster."""
    async with (
        processor(ROUTE, count=COUNT) as running,
        connected(running.broker.address) as second,
    ):
        chains = [Chain(broker, "app", CONTROL, 3600) for broker in (running.broker, second) * 5]

        async def write(number: int) -> None:
            for each in range(5):
                await chains[number].append([AuditEntry("user", operation=f"{number}.{each}")] * 2)

        await asyncio.gather(*map(write, range(10)))
        found, head = await chain_of(running.broker)
        assert sorted(each["op"] for each in found) == sorted(
            f"{number}.{each}" for number in range(10) for each in range(5) for _ in range(2)
        )
        assert head.number == 100


async def test_a_chain_goes_on_behind_what_was_copied_of_it(processor: Start) -> None:
    """After the app's stream was lost, it begins with an entry that says so, and not anew."""
    async with processor(ROUTE, AUDITED, count=COUNT) as running:
        await asked(running.broker, "pause", route="r", by="ann")
        await acts(running, 2)

        async def ends_alike() -> bool:
            own, copied = await chain_of(running.broker), await chain_of(running.broker, "AUDIT_app")
            return own == copied

        await waited(ends_alike, "the chain is copied")
        before = (await chain_of(running.broker))[1]
        await running.broker.api("STREAM.DELETE.P_app")

        async def remade() -> bool:
            return await running.broker.stream("P_app") is not None

        await waited(remade, "the app's stream is made anew")
        await Chain(running.broker, "app", CONTROL, 3600).append([AuditEntry("user", operation="on")])

        async def goes_on() -> list[dict[str, Any]] | None:
            found = (await chain_of(running.broker, "AUDIT_app"))[0][before.number :]
            return found if any(each.get("op") == "on" for each in found) else None

        found = await waited(goes_on, "what came later is copied")
        assert found[0]["e"] == "rebuilt"
