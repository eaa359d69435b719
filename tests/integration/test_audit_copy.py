"""The audit's own stream: what it copies, what it refuses, and that nothing runs without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.context.subjects import audit_subject
from processor.jetstream import ApiError, Outgoing
from tests.conftest import waited
from tests.running import Serve, Start, connected, problems_of, starter

ROUTE = "r: {input: {subject: in, create: true}, runnable: echo.py, output: out}"
ECHO = """
class Runnable:
    def process(self, inputs):
        yield from inputs
"""
COPIES_NONE = "does not copy p.app.audit.> from P_app"
AUDITED = "audit: {level: calls, keep: 30d}"


async def test_the_audits_stream_copies_what_is_committed_to_it(processor: Start) -> None:
    """It holds the app's audit subjects, each record as it was, and lets nobody delete or purge."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        broker = running.broker
        await broker.publish_stored(Outgoing("p.app.audit.r.0", b"record", {"Nats-TTL": "168h"}))

        async def copied() -> list[bytes]:
            return [each.payload async for each in broker.history("AUDIT_app", ["p.app.audit.r.0"])]

        assert await waited(copied, "the record is copied") == [b"record"]
        info = await broker.stream("AUDIT_app")
        assert info is not None
        assert info["config"]["max_age"] == 30 * 86400 * 10**9
        assert not info["config"].get("subjects")
        for request, body in (
            ("STREAM.PURGE.AUDIT_app", {}),
            ("STREAM.MSG.DELETE.AUDIT_app", {"seq": 1}),
            ("STREAM.UPDATE.AUDIT_app", {**info["config"], "deny_purge": False}),
        ):
            with pytest.raises(ApiError):
                await broker.api(request, body)


@pytest.mark.parametrize("top", ["", "audit: {level: off}", "audit: {level: runs, stream: external}"])
async def test_where_nothing_is_kept_by_us_no_stream_is_made(processor: Start, top: str) -> None:
    """Without an audit, or with one that others keep, the app has no such stream."""
    async with processor(ROUTE, top, echo=ECHO) as running:
        await running.publish("in", {"n": 1})
        assert await running.documents("out", 1) == [{"n": 1}]
        assert await running.broker.stream("AUDIT_app") is None


async def test_a_longer_time_is_taken_up(processor: Start) -> None:
    """`audit.keep` is that of the stream also when it was made with another."""
    async with processor(ROUTE, AUDITED, echo=ECHO):
        pass
    async with processor(ROUTE, "audit: {level: calls, keep: 60d}", echo=ECHO) as running:
        info = await running.broker.stream("AUDIT_app")
        assert info is not None
        assert info["config"]["max_age"] == 60 * 86400 * 10**9


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"max_msgs": 10}, "has max_msgs 10, which drops the oldest records"),
        ({"deny_purge": False}, "is without deny_purge"),
        ({"sources": [{"name": "P_app", "filter_subject": "p.app.out.>"}]}, COPIES_NONE),
        ({"sources": None, "subjects": ["x.>"]}, f"{COPIES_NONE}, and takes x.> from anyone"),
    ],
)  # fmt: skip
async def test_no_route_runs_beside_a_stream_that_loses_records(
    processor: Start, changes: dict[str, object], what: str
) -> None:
    """What keeps the stream from keeping everything is named, and the route waits until it is mended."""
    made = {
        "name": "AUDIT_app", "storage": "file", "deny_delete": True, "deny_purge": True, "allow_direct": True,
        "max_age": 30 * 86400 * 10**9,
        "sources": [{"name": "P_app", "filter_subject": audit_subject("app", ">")}],
    }  # fmt: skip
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        url = running.broker.address
        await running.service.stop()
        await running.broker.api("STREAM.DELETE.AUDIT_app")
        await running.broker.create_stream({**made, **changes})
    async with processor(ROUTE, AUDITED, echo=ECHO) as running, connected(url) as broker:
        why = running.telemetry.readiness.blocks["route r"]
        assert why.startswith(f"E414 stream AUDIT_app {what}")
        [problem] = await problems_of(running)
        assert problem.startswith(f"E414 stream AUDIT_app {what}")
        await running.publish("in", {"n": 1})
        assert await running.stored("out") == []
        await broker.api("STREAM.DELETE.AUDIT_app")
        assert await running.documents("out", 1) == [{"n": 1}]


async def test_no_route_runs_where_the_stream_cannot_be_made(serve: Serve, tmp_path: Path) -> None:
    """A server without room for the stream is named, and the route waits (E414)."""
    url = await serve(
        f'jetstream: {{store_dir: "{tmp_path}/js"}}\nno_auth_user: a\n'
        "accounts: {A: {jetstream: {max_streams: 3}, users: [{user: a, password: a}]}}"
    )
    start = starter(tmp_path, url)
    async with connected(url) as broker:
        await broker.create_stream({"name": "X", "subjects": ["x"]})
        await broker.create_stream({"name": "Y", "subjects": ["y"]})
        async with start(ROUTE, AUDITED, echo=ECHO) as running:
            assert running.telemetry.readiness.blocks["route r"].startswith(
                "E414 stream AUDIT_app cannot be made: maximum number of streams reached"
            )
            await broker.api("STREAM.DELETE.X")
            await broker.api("STREAM.DELETE.Y")

            async def audited() -> bool:
                return await broker.stream("AUDIT_app") is not None

            await waited(audited, "the stream is made")


async def test_a_new_stream_of_the_app_is_copied_on(processor: Start) -> None:
    """After the app's stream was deleted and made anew, the audit's stream goes on with what it gets."""
    async with processor(ROUTE, AUDITED, echo=ECHO) as running:
        broker = running.broker
        await broker.publish_stored(Outgoing("p.app.audit.r.0", b"one"))

        async def copied() -> list[bytes]:
            return [each.payload async for each in broker.history("AUDIT_app", ["p.app.audit.r.0"])]

        async def has(count: int) -> bool:
            return len(await copied()) == count

        await waited(lambda: has(1), "the record is copied")
        await broker.api("STREAM.DELETE.P_app")

        async def remade() -> bool:
            return await broker.stream("P_app") is not None

        await waited(remade, "the app's stream is made anew")
        await broker.publish_stored(Outgoing("p.app.audit.r.0", b"two"))
        await waited(lambda: has(2), "what comes later is copied, too")
        assert await copied() == [b"one", b"two"]
