"""Apps beside each other: in one account, under one name by mistake, and in accounts of their own."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.config import load
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Outgoing
from processor.operate.control import Control
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import waited
from tests.faults.cable import cable
from tests.running import COUNT, Serve, connected

KEYED = """
app: {app}
http: off
drain_s: 5
routes:
  r: {{input: {input}, runnable: count.py, key: subject.2, partitions: {partitions}, output: "{app}.{{key}}"}}
"""


@asynccontextmanager
async def app(folder: Path, text: str, env: dict[str, str]) -> AsyncIterator[Telemetry]:
    """A running processor with this configuration."""
    (folder / "count.py").write_text(COUNT)
    (folder / "config.yaml").write_text(text)
    telemetry = Telemetry()
    service = Service(load(folder / "config.yaml", env), telemetry)
    try:
        await service.start(wait=False)
        blocks = telemetry.readiness
        await waited(lambda: "the route is starting" not in blocks.blocks.values(), "it has started")
        yield telemetry
    finally:
        await service.stop()


async def documents(broker: Broker, pattern: str, count: int) -> list[dict[str, int]]:
    """The documents in the stream of a subject, as soon as there are so many."""

    async def found() -> list[dict[str, int]] | None:
        name = await broker.find_stream(pattern)
        stored = [s async for s in broker.history(name, [pattern])] if name else []
        return [orjson.loads(s.payload) for s in stored] if len(stored) >= count else None

    result: list[dict[str, int]] = await waited(found, f"{count} messages of {pattern}", 15)
    return result


async def publish(broker: Broker, first: int, count: int) -> None:
    for i in range(first, first + count):
        await broker.publish(Outgoing(f"in.k{i % 5}", orjson.dumps({"i": i})))
    await broker.flush()


def subjects(sent: bytes) -> set[str]:
    """What a client published and subscribed to, by the lines of its protocol."""
    text = sent.decode(errors="replace")
    return set(re.findall(r"^(?:H?PUB|SUB) (\S+) ", text, re.MULTILINE))


async def test_two_apps_in_one_account_never_touch_each_others_subjects(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Both read one stream. All that each sends on its connection, and all that is stored, is its own."""
    talk = "  t: {{input: in.*, code: {code}, mode: stream, output: {{subject: {app}.talk, durable: false}}}}"
    code = json.dumps("class Runnable:\n  def process_stream(self, query):\n    yield 'hello'")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(connected(nats_server.url))
        await broker.create_stream({"name": "IN", "subjects": ["in.*"]})
        lines = {}
        for name in ("red", "blue"):
            line = lines[name] = await stack.enter_async_context(cable(nats_server.url))
            line.listens = True
            text = KEYED.format(app=name, input="in.*", partitions=8) + talk.format(app=name, code=code)
            await stack.enter_async_context(app(tmp_path, text, {"NATS_URL": line.url}))
        await publish(broker, 0, 50)
        for name in ("red", "blue"):
            assert [o["i"] for o in await documents(broker, f"{name}.k0", 10)] == list(range(0, 50, 5))
        for name, line in lines.items():
            used = subjects(bytes(line.sent))
            own = re.compile(
                rf"p\.{name}\..*|ctl\.{name}\.(members|api\..*)|_INBOX\..*|{name}\.talk"
                # What another app's new stream holds may be this one's input.
                r"|\$JS\.API\.STREAM\.INFO\.[^.]+|\$JS\.EVENT\.ADVISORY\.STREAM\.\*\.\*"
                rf"|\$SRV\.(PING|INFO|STATS)(\.processor-{name}(\..*)?)?"
                rf"|\$JS\.API\.(INFO|STREAM\.NAMES)|\$JS\.API\.[A-Z.]+\.(P_{name}|{name}-{name}-any|IN)(\..*)?"
            )
            assert {subject for subject in used if not own.fullmatch(subject)} == set()
            assert {f"p.{name}.pos.r.0", f"{name}.talk", f"ctl.{name}.members"} <= used
            readers = {s.split(".")[5] for s in used if s.startswith("$JS.API.CONSUMER.CREATE.IN.")}
            assert readers
            assert all(reader.startswith(f"P_{name}-") for reader in readers)
            stored = [s.subject async for s in broker.history(f"P_{name}", [">"])]
            assert {subject.split(".")[1] for subject in stored} == {name}


@pytest.mark.parametrize(
    ("other", "code"), [({"input": "in.*", "partitions": 4}, "E410"), ({"input": "else.*"}, "E407")]
)
async def test_a_second_configuration_of_the_same_name_is_refused_and_loses_nothing(
    nats_server: EmbeddedServer, tmp_path: Path, other: dict[str, Any], code: str, wait_until: Any
) -> None:
    """Somebody gives another route the app's and the route's name: it stays stopped, says why, and takes no
    part of the first one's work, which is done once and in order."""
    env = {"NATS_URL": nats_server.url}
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "IN", "subjects": ["in.*"]})
        await broker.create_stream({"name": "ELSE", "subjects": ["else.*"]})
        async with app(tmp_path, KEYED.format(app="app", input="in.*", partitions=8), env):
            await publish(broker, 0, 50)
            await documents(broker, "app.*", 50)
            second = KEYED.format(**{"app": "app", "partitions": 8, **other})
            async with app(tmp_path, second, env) as telemetry:
                blocks = telemetry.readiness
                await wait_until(
                    lambda: code in blocks.blocks.get("route r", ""), "it says why it stands still"
                )
                await publish(broker, 50, 50)
                await broker.publish(Outgoing("else.k1", b'{"i": -1}'))
                outputs = await documents(broker, "app.*", 100)
        for key in range(5):
            assert [o["i"] for o in outputs if o["i"] % 5 == key] == list(range(key, 100, 5))
        assert sorted(o["n"] for o in outputs) == sorted(list(range(1, 21)) * 5)


async def test_the_same_app_in_two_accounts_is_two_apps(serve: Serve, tmp_path: Path) -> None:
    """One server, one configuration, two accounts: neither sees what the other has."""
    accounts = {
        name: {"jetstream": "enabled", "users": [{"user": name, "password": "x"}]} for name in ("red", "blue")
    }
    url = await serve(f'jetstream {{ store_dir: "{tmp_path}/js" }}\naccounts: {json.dumps(accounts)}')
    text = KEYED.format(app="app", input="{subject: in.*, create: true}", partitions=8)
    async with AsyncExitStack() as stack:
        brokers = {}
        for name in accounts:
            env = {"NATS_URL": url, "NATS_USER": name, "NATS_PASSWORD": "x"}
            await stack.enter_async_context(app(tmp_path, text, env))
            login = {"servers": [url], "user": name, "password": "x"}
            brokers[name] = await Broker.connect(login, name=name, wait=False)
            stack.push_async_callback(brokers[name].close)
        await publish(brokers["red"], 0, 10)
        await publish(brokers["blue"], 100, 20)
        assert sorted(o["i"] for o in await documents(brokers["red"], "app.*", 10)) == list(range(10))
        assert sorted(o["i"] for o in await documents(brokers["blue"], "app.*", 20)) == list(range(100, 120))
        for name in accounts:
            assert len(await Control(brokers[name], "app").members()) == 1
