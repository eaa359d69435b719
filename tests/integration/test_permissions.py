"""A user with what docs/operate/permissions.md lists and nothing else, and users that lack a line of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.bench.processes import free_ports
from processor.cli.checking import check
from processor.config import load
from processor.embedded import find_binary
from processor.errors import BrokerError
from processor.jetstream import Broker, Outgoing
from processor.service import Service
from processor.telemetry import Telemetry
from tests.conftest import waited
from tests.running import Serve, is_empty, listens

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "permissions.md"
LISTED = [
    (may, name)
    for may, cell in re.findall(r"^\| (publish|subscribe) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    for name in re.findall(r"`([^`]+)`", cell)
]
CONFIG = """
app: app
http: off
drain_s: 1
routes:
  keyed:
    input: {subject: "in.*", create: true}
    runnable: count.py
    key: subject.2
    output: "out.{key}"
    events: {subject: events, level: all}
  queue: {input: work, runnable: count.py, output: own}
  dealt: {input: {subject: jobs, repartition: true}, runnable: count.py, key: json./k, output: "done.{key}"}
  daily: {input: {schedule: "@at 2020-01-01T00:00:00Z"}, runnable: count.py, output: reports}
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


def permissions(app: str, *subjects: str, without: tuple[str, str] = ("", "")) -> dict[str, Any]:
    """The table as the configuration of a user, with its own subjects of outputs, and one left out."""
    given = {
        kind: [name.replace("<app>", app) for may, name in LISTED if may == kind and (may, name) != without]
        for kind in ("publish", "subscribe")
    }
    # An empty list would allow everything.
    return {kind: {"allow": names + list(subjects) or ["nothing"]} for kind, names in given.items()}


async def test_the_permissions_in_the_table_are_enough(serve: Serve, tmp_path: Path, wait_until: Any) -> None:
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
        await broker.create_stream({"name": "JOBS", "subjects": ["jobs"], "retention": "workqueue"})
        await broker.create_stream({"name": "OWN", "subjects": ["own"]})
        await service.start(wait=False)
        await wait_until(lambda: not telemetry.readiness.blocks, "all routes run")
        for subject in ("in.a", "work", "jobs"):
            await broker.publish(Outgoing(subject, b'{"k": "a"}'))
        for subject in ("out.a", "own", "events", "done.a", "reports"):
            await wait_until(partial(arrived, broker, subject), f"something came to {subject}")
        for queue in ("WORK", "JOBS"):
            await wait_until(partial(is_empty, broker, queue), "the queue was acknowledged")
        committed = telemetry.numbers["processor_committed_messages_total"]
        await wait_until(lambda: committed.get(("talk",)) == 1, "stream mode committed")
        reply = await broker.client.request("ctl.app.api.pause", b'{"route": "talk", "by": "ann"}', timeout=5)
        assert (reply.data, reply.headers) == (b'{"route":"talk","paused":true}', None)
        assert json.loads((await broker.client.request("$SRV.PING", b"", timeout=5)).data)["type"]
    finally:
        await service.stop()
        await broker.close()


async def test_without_the_right_to_take_requests_everything_else_runs(
    serve: Serve, tmp_path: Path, wait_until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log names what is missing, and so does `check --server`."""
    (tmp_path / "count.py").write_text(COUNT)
    path = tmp_path / "config.yaml"
    path.write_text("app: app\nhttp: off\nroutes:\n  r: {input: work, runnable: count.py, output: own}\n")
    allowed = permissions("app", "$SYS.REQ.USER.INFO")
    kept = [
        subject for subject in allowed["subscribe"]["allow"] if subject not in ("$SRV.>", "ctl.app.api.>")
    ]
    users = [
        {"user": "processor", "password": "x", "permissions": {**allowed, "subscribe": {"allow": kept}}},
        {"user": "owner", "password": "x"},
    ]
    accounts = {"A": {"jetstream": "enabled", "users": users}}
    url = await serve(f'jetstream {{ store_dir: "{tmp_path}/js" }}\naccounts: {json.dumps(accounts)}')
    env = {"NATS_URL": url, "NATS_USER": "processor", "NATS_PASSWORD": "x"}
    owner = await Broker.connect(
        {"servers": [url], "user": "owner", "password": "x"}, name="owner", wait=False
    )
    telemetry = Telemetry()
    service = Service(load(path, env), telemetry)
    caplog.set_level(logging.INFO, logger="processor")
    try:
        await owner.create_stream({"name": "WORK", "subjects": ["work"]})
        await service.start(wait=False)
        await wait_until(lambda: not telemetry.readiness.blocks, "the route runs")
        await owner.publish(Outgoing("work", b"{}"))
        await wait_until(partial(arrived, owner, "own"), "its output came")
        [line] = [r.getMessage() for r in caplog.records if "may not subscribe" in r.getMessage()]
        assert line.startswith("E403 this user may not subscribe to $SRV.PING, $SRV.PING.processor-app, ")
        checked = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "processor", "check", str(path), "--server", "--format", "json"],
            env={**os.environ, **env},
            capture_output=True,
            check=False,
        )
        [problem] = json.loads(checked.stdout)["problems"]
        assert problem.startswith("E403 the user may not subscribe to $SRV.PING.processor-app.x, ")
        assert "ctl.app.api.status" in problem
    finally:
        await service.stop()
        await owner.close()


async def arrived(broker: Broker, subject: str) -> bool:
    name = await broker.find_stream(subject)
    return bool(name and [stored async for stored in broker.history(name, [subject])])


# Without these a processor runs all the same; each is missed only by what the page says beside it, or when an
# answer of the server is lost, a consumer is replaced or a cluster has to be asked.
SELDOM = {
    ("publish", "$JS.API.STREAM.MSG.GET.P_<app>"),
    ("publish", "$JS.API.CONSUMER.DELETE.>"),
    ("publish", "$JS.API.CONSUMER.INFO.>"),
    ("publish", "$JS.API.STREAM.PURGE.P_<app>"),
    ("publish", "$SYS.REQ.USER.INFO"),
    ("publish", "_INBOX.>"),
    ("subscribe", "ctl.<app>.api.>"),
    ("subscribe", "$SRV.>"),
}
# Without it the user's own stream is published to, so this is what is missing then.
INSTEAD = {"$JS.API.STREAM.UPDATE.*": "own"}


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with an account for each line of the table, whose user has all of it but that line."""
    folder = tmp_path_factory.mktemp("lacking")
    accounts = {
        f"A{number}": {
            "jetstream": "enabled",
            "users": [
                {"user": f"owner{number}", "password": "x"},
                {
                    "user": f"user{number}",
                    "password": "x",
                    "permissions": permissions("app", "talk", without=line),
                },
            ],
        }
        for number, line in enumerate(LISTED)
    }
    [port] = free_ports(1)
    (folder / "conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/js" }}\n'
        f"accounts: {json.dumps(accounts)}\n"
    )
    (folder / "count.py").write_text(COUNT)
    (folder / "talk.py").write_text(TALK)
    command = [str(find_binary()), "-c", str(folder / "conf"), "-l", str(folder / "log")]
    server = subprocess.Popen(command)
    try:
        waited(lambda: listens(port), "the server listens")
        asyncio.run(prepare(f"nats://127.0.0.1:{port}"))
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


async def prepare(url: str) -> None:
    for number in range(len(LISTED)):
        async with owner(url, number) as broker:
            await broker.create_stream({"name": "WORK", "subjects": ["work"], "retention": "workqueue"})
            await broker.create_stream({"name": "JOBS", "subjects": ["jobs"], "retention": "workqueue"})
            await broker.create_stream({"name": "OWN", "subjects": ["own"]})
            await broker.create_stream({"name": "IN", "subjects": ["in.*"]})


@asynccontextmanager
async def owner(url: str, number: int) -> AsyncIterator[Broker]:
    """A user of that account who may do everything."""
    login = {"servers": [url], "user": f"owner{number}", "password": "x"}
    broker = await Broker.connect(login, name="owner", wait=False)
    try:
        yield broker
    finally:
        await broker.close()


def login_of(url: str, number: int) -> dict[str, str]:
    return {"NATS_URL": url, "NATS_USER": f"user{number}", "NATS_PASSWORD": "x"}


def configuration(folder: Path) -> Path:
    (folder / "count.py").write_text(COUNT)
    (folder / "talk.py").write_text(TALK)
    (folder / "config.yaml").write_text(CONFIG)
    return folder / "config.yaml"


def names(line: tuple[str, str], sentence: str) -> bool:
    """Whether a sentence with E403 names a subject that this line of the table would allow."""
    may, pattern = line
    if "E403" not in sentence or may not in sentence:
        return False
    literal = INSTEAD.get(pattern, pattern.replace("<app>", "app")).rstrip(">*")
    return literal.lower() in sentence.lower()


def test_check_names_each_permission_that_is_missing(
    lacking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line of the table at a time is taken away: E403 has its subject, before anything runs."""
    path = configuration(tmp_path)
    for number, line in enumerate(LISTED):
        if line[1] in ("$JS.API.STREAM.PURGE.P_<app>", "$SYS.REQ.USER.INFO"):
            continue  # no route needs it
        for name, value in login_of(lacking, number).items():
            monkeypatch.setenv(name, value)
        exit_code = check(path, with_server=True, has_secrets=True, is_full=False, format="json")
        problems = json.loads(capsys.readouterr().out)["problems"]
        assert exit_code == 3
        assert any(names(line, problem) for problem in problems), (line, problems)


async def test_a_missing_permission_is_never_silent(lacking: str, tmp_path: Path) -> None:
    """A processor without one line of the table says which, in the error of its start or in readiness.

    Where it lacks what it seldom needs it runs.
    """
    path = configuration(tmp_path)
    together = asyncio.Semaphore(8)

    async def live(number: int, line: tuple[str, str]) -> None:
        telemetry = Telemetry()
        service = Service(load(path, login_of(lacking, number)), telemetry)
        async with together, owner(lacking, number) as broker:
            said: list[str] = []
            try:
                await service.start(wait=False)
            except BrokerError as err:
                said = [str(err)]
            try:
                for subject in ("in.a", "work"):
                    await broker.publish(Outgoing(subject, b"{}"))
                if line in SELDOM:
                    for subject in ("out.a", "own"):
                        await waited(partial(arrived, broker, subject), f"{subject} without {line}", 20)
                    return

                def is_named() -> bool:
                    return any(names(line, each) for each in [*said, *telemetry.readiness.blocks.values()])

                await waited(is_named, f"it says that it lacks {line}", 20)
            finally:
                await service.stop()

    await asyncio.gather(*(live(number, line) for number, line in enumerate(LISTED)))
