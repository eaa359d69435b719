"""A NATS user that may do what README's table says, and nothing else."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from processor.config import load
from processor.jetstream import Broker, Message
from processor.service import Service
from processor.telemetry import Telemetry
from tests.running import Serve, is_empty

README = Path(__file__).parents[2] / "README.md"
CONFIG = """
app: app
http: off
routes:
  keyed:
    input: {subject: "in.*", create: true}
    runnable: count.py
    key: subject.2
    output: "out.{key}"
    events: {subject: events, level: all}
  queue: {input: work, runnable: count.py, output: own}
  talk: {input: in.*, runnable: talk.py, mode: stream, output: {subject: talk, durable: false}}
"""
COUNT = """
class Runnable:
    def process(self, queries):
        self.context["n"] = self.context.get("n", 0) + len(queries)
        return self.context["n"]
"""
TALK = """
class Runnable:
    def process_stream(self, query):
        yield "hello"
"""


def permissions(app: str, *subjects: str) -> dict[str, Any]:
    """README's table as the configuration of a user, with its own subjects of outputs."""
    table = re.findall(r"^\| (publish|subscribe) \| (.*) \|$", README.read_text(), re.MULTILINE)
    named = [(may, name) for may, cell in table for name in re.findall(r"`([^`]+)`", cell)]
    assert len(named) > 10
    return {
        kind: {"allow": [name.replace("<app>", app) for may, name in named if may == kind] + list(extra)}
        for kind, extra in (("publish", subjects), ("subscribe", ()))
    }


async def test_the_permissions_in_readme_are_enough(serve: Serve, tmp_path: Path, wait_until: Any) -> None:
    """Batch and stream mode, created streams and one of the user's own, a queue as input: all run."""
    (tmp_path / "count.py").write_text(COUNT)
    (tmp_path / "talk.py").write_text(TALK)
    (tmp_path / "config.yaml").write_text(CONFIG)
    user = {"user": "processor", "password": "x", "permissions": permissions("app", "talk")}
    owner = {"user": "owner", "password": "x"}
    accounts = {"A": {"jetstream": "enabled", "users": [owner, user]}}
    url = await serve(f'jetstream {{ store_dir: "{tmp_path}/js" }}\naccounts: {json.dumps(accounts)}')
    telemetry = Telemetry()
    env = {"NATS_URL": url, "NATS_USER": "processor", "NATS_PASSWORD": "x"}
    service = Service(load(tmp_path / "config.yaml", env), telemetry)
    broker = await Broker.connect(
        {"servers": [url], "user": "owner", "password": "x"}, name="owner", wait=False
    )
    try:
        await broker.create_stream({"name": "WORK", "subjects": ["work"], "retention": "workqueue"})
        await broker.create_stream({"name": "OWN", "subjects": ["own"]})
        await service.start(wait=False)
        await wait_until(lambda: not telemetry.readiness.blocks, "all routes run")
        for subject in ("in.a", "work"):
            await broker.publish(Message(subject, b"{}"))
        for subject in ("out.a", "own", "events"):
            await wait_until(partial(arrived, broker, subject), f"something came to {subject}")
        await wait_until(partial(is_empty, broker, "WORK"), "the queue was acknowledged")
        committed = telemetry.numbers["processor_committed_messages_total"]
        await wait_until(lambda: committed.get(("talk",)) == 1, "stream mode committed")
    finally:
        await service.stop()
        await broker.close()


async def arrived(broker: Broker, subject: str) -> bool:
    name = await broker.find_stream(subject)
    return bool(name and [stored async for stored in broker.history(name, [subject])])
