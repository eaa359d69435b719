"""`processor context serve`: one context, and programs that change it by lines of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processor.config import load
from processor.errors import ProcessorError
from processor.operate.edits import ContextEdits
from processor.operate.route_board import RouteBoard
from processor.recipes import context as files
from processor.recipes.bridge import HOST, LINE_BYTES, Board, Bridge, FileBoard
from processor.recipes.tree import tree
from tests.running import COUNT, Running, Start

ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: count.py
  key: subject.2
  output: out.{key}
"""


class Client:
    """A connection to a bridge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def line(self, text: bytes) -> dict[str, Any]:
        self._writer.write(text)
        said: dict[str, Any] = json.loads(await asyncio.wait_for(self._reader.readline(), 20))
        return said

    async def ask(self, op: str, path: str | None = None, **more: Any) -> dict[str, Any]:
        request = {"op": op, **({} if path is None else {"path": path}), **more}
        return await self.line(json.dumps(request).encode() + b"\n")

    async def is_closed(self) -> bool:
        try:
            return await asyncio.wait_for(self._reader.read(1), 20) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(HOST, port, limit=4 * LINE_BYTES)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def bridged(board: Board) -> AsyncIterator[Client]:
    async with Bridge(board, "ann@desk").serving(0) as port, client(port) as connected:
        yield connected


async def test_the_context_of_a_file_is_changed_line_by_line(tmp_path: Path) -> None:
    """Each change is in the file, with its author, before it is answered; a name with dots is one name."""
    path = tmp_path / "context.json"
    files.save(path, b'{"sample.message_v1": "Hi"}')
    with FileBoard.opened(path) as board:
        async with bridged(board) as asked:
            assert await asked.ask("get", "sample.message_v1") == {"ok": True, "value": "Hi"}
            for op, at, more in [
                ("set", "data.user", {"value": {"name": "Alice"}}),
                ("append", "data.numbers", {"value": 1}),
                ("append", "data.numbers", {"value": 2, "who": "bob"}),
            ]:
                assert await asked.ask(op, at, **more) == {"ok": True, "value": None}
            stored = files.read(path).context
            assert stored.to_dict()["data"] == {"user": {"name": "Alice"}, "numbers": [1, 2]}
            assert [entry["who"] for entry in stored.get_history("data")] == ["ann@desk", "ann@desk", "bob"]
            assert await asked.ask("pop", "data.numbers", index=0) == {"ok": True, "value": 1}
            assert (await asked.ask("delete", "data.user"))["ok"]
            assert (await asked.ask("delete", "sample.message_v1"))["ok"]
            assert await asked.ask("full") == {"ok": True, "value": {"data": {"numbers": [2]}}}
            gone = await asked.ask("get", "data.user")
            assert gone == {"ok": False, "error": "data.user is not there"}
    assert files.read(path).context.to_dict() == {"data": {"numbers": [2]}}


async def test_a_file_is_one_servers_and_is_read_again_when_another_wrote_it(tmp_path: Path) -> None:
    """It need not be there at first; a second server is refused; what a run wrote in between is kept."""
    path = tmp_path / "context.json"
    with FileBoard.opened(path) as board:
        with pytest.raises(ProcessorError, match="E719 another `processor context serve` has it"):
            FileBoard.opened(path).__enter__()
        async with bridged(board) as asked:
            assert await asked.ask("full") == {"ok": True, "value": {}}
            assert (await asked.ask("set", "a", value=1))["ok"]
            kept = files.read(path)
            kept.context.set("b", 2, "a run")
            files.save(path, files.dump(kept.context, {"recipe": "r"}))
            assert (await asked.ask("set", "c", value=3))["ok"]
            stored = files.read(path)
            assert (stored.context.to_dict(), stored.run) == ({"a": 1, "b": 2, "c": 3}, {"recipe": "r"})
            path.write_text("[]")
            broken = await asked.ask("get", "a")
            assert not broken["ok"]
            assert "E719" in broken["error"]


async def test_a_change_that_cannot_be_stored_is_none(tmp_path: Path) -> None:
    """Where the file cannot be written, the answer says so, and the context is as it was."""
    path = tmp_path / "data" / "context.json"
    path.parent.mkdir()
    with FileBoard.opened(path) as board:
        async with bridged(board) as asked:
            assert (await asked.ask("set", "a", value=1))["ok"]
            path.parent.rename(tmp_path / "elsewhere")
            refused = await asked.ask("set", "a", value=2)
            assert not refused["ok"]
            assert "cannot be written: No such file or directory" in refused["error"]
            (tmp_path / "elsewhere").rename(path.parent)
            assert await asked.ask("get", "a") == {"ok": True, "value": 1}


async def test_what_is_odd_costs_its_own_connection(tmp_path: Path) -> None:
    """A bad request is answered; what is no request, or too long, closes its connection; others go on."""
    with FileBoard.opened(tmp_path / "context.json") as board:
        async with Bridge(board, "me").serving(0) as port, client(port) as good:
            assert "there is no op" in (await good.ask("drop"))["error"]
            assert "64 bits" in (await good.line(b'{"op":"set","path":"a","value":%d}\n' % 2**64))["error"]
            async with client(port) as browser:
                posted = b"POST / HTTP/1.1\r\n\r\n" + b'{"op":"set","path":"a","value":"stolen"}\n'
                assert not (await browser.line(posted))["ok"]
                assert await browser.is_closed()
            async with client(port) as flood:
                assert "at most" in (await flood.line(b'"' + b"x" * (LINE_BYTES + 1)))["error"]
                assert await flood.is_closed()
            async with client(port) as short:
                assert (await short.line(b'{"op":"full"}\n')) == {"ok": True, "value": {}}
            half = '"' + "x" * 600_000 + '"'
            for name in ("a", "b"):
                assert (
                    await good.line(
                        b'{"op":"set","path":"l.%s","value":%s}\n' % (name.encode(), half.encode())
                    )
                )["ok"]
            large = await good.ask("full")
            assert not large["ok"]
            assert "ask for a part of it" in large["error"]
            assert (await good.ask("get", "l.a"))["ok"]


async def test_changes_from_many_connections_all_count(tmp_path: Path) -> None:
    """Twenty clients append five elements each: there are a hundred, each in the history."""
    with FileBoard.opened(tmp_path / "context.json") as board:
        async with Bridge(board, "me").serving(0) as port:

            async def append(number: int) -> None:
                async with client(port) as asked:
                    for turn in range(5):
                        assert (await asked.ask("append", "log", value=[number, turn]))["ok"]

            await asyncio.gather(*map(append, range(20)))
            async with client(port) as asked:
                log = (await asked.ask("get", "log"))["value"]
    assert sorted(log) == [[number, turn] for number in range(20) for turn in range(5)]
    assert len(files.read(tmp_path / "context.json").context.get_history("log")) == 100


def edits(running: Running) -> ContextEdits:
    return ContextEdits(running.broker, load(running.path, {"NATS_URL": running.broker.address}).routes["r"])


async def test_the_context_of_a_route_is_changed_while_it_runs(processor: Start) -> None:
    """Each change is one edit with its author; the route goes on with it, and types that JSON lacks stay."""
    async with processor(ROUTE, count=COUNT) as running:
        context = edits(running)
        async with bridged(RouteBoard(context, "a", "ticket 7")) as asked:
            assert await asked.ask("full") == {"ok": True, "value": {}}
            await running.publish("in.a", {"i": 0})
            assert [o["n"] for o in await running.documents("out.a", 1)] == [1]
            assert await asked.ask("get", "n") == {"ok": True, "value": 1}
            assert (await asked.ask("set", "n", value=100, who="bob"))["ok"]
            assert (await asked.ask("set", "seen", value={"$set": [1, 2]}))["ok"]
            await running.publish("in.a", {"i": 1})
            assert [o["n"] for o in await running.documents("out.a", 2)] == [1, 101]
            assert (await context.get("a"))["seen"] == {1, 2}
            assert (await asked.ask("get", "seen"))["value"] == {"$set": [1, 2]}
            assert (await asked.ask("append", "data.numbers", value=1))["ok"]
            assert (await asked.ask("pop", "data.numbers"))["value"] == 1
            assert (await asked.ask("delete", "data"))["ok"]
            assert not (await asked.ask("get", "data"))["ok"]
            assert await asked.ask("full") == {"ok": True, "value": {"n": 101, "seen": {"$set": [1, 2]}}}
            refused = await asked.ask("set", "big", value="x" * 1_040_000)
            assert not refused["ok"]
            assert "E318 context['big'] is 1040000 characters long" in refused["error"]
        edited = [record for record in await context.history("a") if record.by]
    assert [(record.by, record.reason, record.removed) for record in edited] == [
        ("bob", "ticket 7", ()),
        *[("ann@desk", "ticket 7", ())] * 3,
        ("ann@desk", "ticket 7", ("data",)),
    ]


async def test_two_clients_and_the_route_itself_lose_no_change(processor: Start) -> None:
    """Edits and commits of the owner come one after the other, however they meet."""
    async with processor(ROUTE, count=COUNT) as running:
        board = RouteBoard(edits(running), "a", "")
        async with Bridge(board, "me").serving(0) as port:

            async def append(number: int) -> None:
                async with client(port) as asked:
                    for turn in range(5):
                        assert (await asked.ask("append", "log", value=[number, turn]))["ok"]

            await running.publish("in.a", *({"i": i} for i in range(10)))
            await asyncio.gather(append(0), append(1))
            assert len(await running.documents("out.a", 10)) == 10
            context = await edits(running).get("a")
    assert context["n"] == 10
    assert sorted(context["log"]) == [[number, turn] for number in range(2) for turn in range(5)]


async def test_the_scenario_of_the_folder_runs_against_it(tmp_path: Path) -> None:
    """`test.sh`, as `recipe init` writes it, against `context serve`, which a signal ends well."""
    for name, file in tree().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(file.text)
        (tmp_path / name).chmod(0o755 if file.is_program else 0o644)
    context = tmp_path / "orchestrator" / "Data" / "context.json"
    command = [sys.executable, "-m", "processor", "context", "serve", "--file", str(context), "--port", "0"]
    serving = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)  # noqa: ASYNC220
    try:
        assert serving.stderr is not None
        said = await asyncio.to_thread(serving.stderr.readline)
        found = re.search(rf"{re.escape(HOST)}:(\d+)", said)
        assert found is not None, said
        scenario = await asyncio.to_thread(
            subprocess.run,
            ["bash", "test.sh"],
            cwd=tmp_path,
            env={**os.environ, "CONTEXT_PORT": found[1]},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert scenario.returncode == 0, scenario.stderr
        values = [json.loads(line) for line in scenario.stdout.splitlines()]
        assert values == [None, {"name": "Alice"}, None, None, [1, 2], 2, None, {"data": {"numbers": [1]}}]
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(20) == 0
        serving.stderr.close()
    assert files.read(context).context.to_dict() == {"data": {"numbers": [1]}}
