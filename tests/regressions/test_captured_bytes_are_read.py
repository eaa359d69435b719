"""What an earlier build wrote is read by this one: positions, contexts, letters, history.

The files are captured from real runs (`captured`), one for each released format, and never change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.delivery.streams import app_stream_config
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from processor.operate.control import Control
from processor.operate.dead_letters import DeadLetters, Filter
from processor.operate.edits import ContextEdits
from tests.regressions.captured import FILLED, FOLDER, ROUTES, SHAPE, kept
from tests.running import REPAIRED, Start, connected

VERSIONS = sorted(path.stem.removeprefix("captured-") for path in FOLDER.glob("captured-*.jsonl"))
# By stream: its subjects, and that of a key whose partition has read so many messages.
INPUTS = {"app-in-any": ("in.*", "in.late", 7), "app-blocks-any": ("blocks.*", "blocks.k", 3)}


async def restore(broker: Broker, folder: Path, version: str) -> None:
    """The app's stream as it was captured, and inputs that were read as far as it says."""
    path = folder / "captured.yaml"
    path.write_text("app: app\nroutes: {x: {input: x, code: 'class Runnable: ...'}}")
    await broker.create_stream(app_stream_config(load(path, {})))
    created: dict[str, str] = {}
    for name, (subjects, read, count) in INPUTS.items():
        info = await broker.create_stream({"name": name, "subjects": [subjects], "allow_direct": True})
        created[name] = info["created"]
        for _ in range(count):
            await broker.publish_stored(Outgoing(read, b"{}"))
    for message in kept(version):
        payload = message.payload
        if ".pos." in message.subject:
            body = orjson.loads(payload)
            payload = orjson.dumps({**body, "created": created[body["stream"]]})
        await broker.publish_stored(Outgoing(message.subject, payload, message.headers))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_route_goes_on_from_captured_bytes(
    version: str, processor: Start, nats_server: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """Every context, in whatever form it is kept, and everything that waits."""
    async with connected(nats_server.url) as broker:
        await restore(broker, tmp_path, version)
    async with processor(ROUTES, shape=SHAPE, count=REPAIRED) as running:
        control = Control(running.broker, "app")
        pause = (await control.pauses())["r"]
        assert (pause.is_paused, pause.reason) == (True, "captured")
        # The messages behind a blocked key are taken in order, now that the first succeeds.
        assert [d["n"] for d in await running.documents("blocked.k", 3)] == [1, 2, 3]
        await control.pause("r", is_paused=False)
        await wait_until(
            lambda: running.metric("processor_route_paused", route="r") == 0, "the route goes on"
        )
        # The redriven message is due; its Runnable rejects it again.
        letters = DeadLetters(running.broker, "app")

        async def letters_of_r() -> list[str]:
            return sorted([letter.id async for letter in letters.find(Filter(route="r"))])

        async def is_back() -> bool:
            return await letters_of_r() == ["r.0.5", "r.0.6"]

        await wait_until(is_back, "the redriven message is a dead letter again")
        for key, fill in FILLED.items():
            await running.publish(f"in.{key}", {})
            found = (await running.documents(f"out.{key}", 2))[-1]
            assert found == {"n": 2, "has": key != "small", "texts": dict(fill)}
        [later] = await running.stored("p.app.later.r.>")
        assert later.headers["x-original-subject"] == "in.late"
        config = load(running.path, {"NATS_URL": nats_server.url})
        edits = ContextEdits(running.broker, config.routes["r"])
        assert await edits.get("edited") == {"tags": {"x", "y"}}
        [edit] = await edits.history("edited")
        assert (edit.action, edit.by, edit.reason) == ("set", "ann@desk", "captured")
        first, *_ = await edits.history("small")
        assert (first.first, first.last, sorted(first.items), first.removed) == (1, 1, ["a", "n"], ("gone",))
