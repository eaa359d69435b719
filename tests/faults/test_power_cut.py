"""A machine loses power: each stream of its server loses a tail of its own, which nobody may pass over.

nats-server writes at once and syncs to disk every two minutes. What a power cut leaves is made here from the
directories of a server that was stopped twice: one stream's of the first time, the others' of the second.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from processor.operate.control import Control
from tests.running import COUNT, starter

ROUTE = """
r:
  input: {subject: in, create: true}
  runnable: count.py
  output: out
"""


def streams_of(store: Path) -> Path:
    [found] = store.glob("jetstream/$G/streams")
    return found


def keep(store: Path, at: Path) -> None:
    shutil.copytree(streams_of(store), at)


def bring_back(store: Path, kept: Path, stream: str) -> None:
    """Have one stream be as it was when `kept` was copied."""
    shutil.rmtree(streams_of(store) / stream)
    shutil.copytree(kept / stream, streams_of(store) / stream)


async def process(folder: Path, url: str, first: int, count: int, outputs: int) -> None:
    """One life of a processor, in which it processes `count` messages."""
    async with starter(folder, url)(ROUTE, count=COUNT) as running:
        await running.until_ready()
        await running.publish("in", *({"i": first + n} for n in range(count)))
        await running.documents("out", outputs)


async def cut(folder: Path, stream: str) -> Path:
    """A store of 7 processed messages in which that stream is as it was after 3."""
    store, kept = folder / "store", folder / "kept"
    with EmbeddedServer.start(store) as server:
        await process(folder, server.url, 0, 3, 3)
    keep(store, kept)
    with EmbeddedServer.start(store) as server:
        await process(folder, server.url, 3, 4, 7)
    bring_back(store, kept, stream)
    return store


async def bring_beyond(broker: Broker, count: int) -> None:
    """The way out of the runbook: that many messages more in the app's stream, which are then removed."""
    for _ in range(count):
        await broker.publish_stored(Outgoing("p.app.gap", b"", {}))
    await broker.api("STREAM.PURGE.P_app", {"filter": "p.app.gap"})


def checked(folder: Path, url: str) -> tuple[int, str]:
    """What `check --server` ends with and says."""
    command = [sys.executable, "-m", "processor", "check", str(folder / "config.yaml"), "--server"]
    ended = subprocess.run(
        [*command, "--format", "human"],
        env={**os.environ, "NATS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stdout + ended.stderr


async def test_a_position_ahead_of_its_input_stops_the_route(tmp_path: Path, wait_until: Any) -> None:
    """E418 in readiness; nothing published meanwhile counts as read, and a reset is the way on."""
    store = await cut(tmp_path, "app-in")
    with EmbeddedServer.start(store) as server:
        async with starter(tmp_path, server.url)(ROUTE, count=COUNT) as running:
            await wait_until(lambda: "E418" in str(running.telemetry.readiness.blocks), "the route stops")
            assert "was at 7 of stream app-in, which ends at 3" in str(running.telemetry.readiness.blocks)
            assert running.metric("processor_route_stopped", route="r") == 1
            await running.publish("in", {"i": "late"})
            control = Control(running.broker, "app")
            [route] = running.service._config.routes.values()
            await control.reset_to(await control.target(route, 4), keep_context=True)
            assert (await running.documents("out", 8))[7] == {"i": "late", "n": 8}
            await wait_until(lambda: running.telemetry.readiness.blocks == {}, "the route runs")


async def test_check_names_a_position_ahead_of_its_input(tmp_path: Path) -> None:
    """`check --server` fails with E418 where none runs, and says what the disk of one server keeps."""
    store = await cut(tmp_path, "app-in")
    with EmbeddedServer.start(store) as server:
        code, said = await asyncio.to_thread(checked, tmp_path, server.url)
    assert code != 0
    assert "E418" in said
    assert "P_app is on the disk of 1 server: a power cut may lose" in said.replace("\n", " ")


async def test_copies_ahead_of_the_app_stream_are_named(tmp_path: Path, wait_until: Any) -> None:
    """E419 for outputs whose commits are gone, until the app's stream is beyond what they have copied."""
    store = await cut(tmp_path, "P_app")
    with EmbeddedServer.start(store) as server:
        code, said = await asyncio.to_thread(checked, tmp_path, server.url)
        assert code != 0
        assert "E419" in said
        async with starter(tmp_path, server.url)(ROUTE, count=COUNT) as running:
            await wait_until(lambda: "E419" in str(running.telemetry.readiness.blocks), "the route stops")
            before = len(await running.stored("out"))
            await bring_beyond(running.broker, 20)
            await wait_until(lambda: running.telemetry.readiness.blocks == {}, "the route runs")
            await running.publish("in", {"i": "new"})
            # The four of the lost commits are processed again, and all of them arrive.
            found = await running.documents("out", before + 5)
            assert [each["i"] for each in found] == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, "new"]
            assert [each["n"] for each in found[-5:]] == [4, 5, 6, 7, 8]
        code, said = await asyncio.to_thread(checked, tmp_path, server.url)
        assert "E419" not in said


async def test_an_app_stream_that_went_back_is_named(tmp_path: Path, wait_until: Any) -> None:
    """E420 in a processor that has seen more, and what its input still holds is done again."""
    store, kept = tmp_path / "store", tmp_path / "kept"
    with EmbeddedServer.start(store) as server:
        await process(tmp_path, server.url, 0, 3, 3)
    keep(store, kept)
    with EmbeddedServer.start(store) as server:
        async with starter(tmp_path, server.url)(ROUTE, count=COUNT) as running:
            await running.until_ready()
            await running.publish("in", *({"i": n} for n in range(3, 30)))
            await running.documents("out", 30)
            server.kill()
            bring_back(store, kept, "P_app")
            server.restart()
            await wait_until(lambda: "E420" in str(running.telemetry.readiness.blocks), "it is named", 60)

            await bring_beyond(running.broker, 60)

            async def counted() -> bool:
                return (await running.contexts("r")).get("", {}).get("n") == 30

            await wait_until(counted, "the lost commits are done again", 60)
            await wait_until(lambda: len(running.telemetry.readiness.blocks) == 1, "the route runs", 60)
            assert "E420" in str(running.telemetry.readiness.blocks)


async def test_a_store_that_lost_the_same_of_all_is_not_complained_of(tmp_path: Path) -> None:
    """An older state of all streams is consistent: nothing is red, and the next message is processed."""
    store, kept = tmp_path / "store", tmp_path / "kept"
    with EmbeddedServer.start(store) as server:
        await process(tmp_path, server.url, 0, 3, 3)
    keep(store, kept)
    with EmbeddedServer.start(store) as server:
        await process(tmp_path, server.url, 3, 4, 7)
    for stream in kept.iterdir():
        bring_back(store, kept, stream.name)
    with EmbeddedServer.start(store) as server:
        code, said = await asyncio.to_thread(checked, tmp_path, server.url)
        assert code == 0, said
        await process(tmp_path, server.url, 9, 1, 4)
