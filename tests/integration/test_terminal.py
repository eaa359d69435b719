"""The command line with a person at it, and what it does where a server or a subject is not as usual."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processor.cli.terminal import EXIT_BROKER, EXIT_OK
from processor.embedded import EmbeddedServer
from tests.conftest import waited
from tests.integration.test_cli import DEADLINE_S, ROOT, Start, code, command, done, route
from tests.running import COUNT, Serve, connected
from tests.running import Start as Processor

__all__ = ["command", "done", "route"]


class Person:
    """Somebody at a terminal whose standard output goes elsewhere, as in `processor ... > file`."""

    def __init__(self, terminal: int, process: subprocess.Popen[bytes]) -> None:
        self._terminal = terminal
        self._seen = b""
        self.process = process

    def sees(self, text: str) -> None:
        """Wait until the terminal shows `text`."""
        while text not in self._seen.decode():
            self._seen += os.read(self._terminal, 4096)

    def types(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())


@contextmanager
def at_a_terminal(*arguments: object, url: str, folder: Path) -> Iterator[Person]:
    ours, theirs = pty.openpty()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PROCESSOR_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "processor", *map(str, arguments)],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=folder,
        env={**own, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "NATS_URL": url},
    )
    os.close(theirs)
    try:
        yield Person(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


async def test_what_cannot_be_taken_back_is_asked_at_a_terminal(
    processor: Processor, nats_server: EmbeddedServer
) -> None:
    """No and Ctrl-D leave all as it is, yes does it; the question is seen whatever is redirected."""
    route = """
    r:
      input: {subject: "in.*", create: true}
      runnable: count.py
      retry: {attempts: 1}
    """
    async with processor(route, count=COUNT) as running:
        await running.publish("in.a", {"i": 1, "fails": "no"})
        await running.dead_letters("r")
        config = running.path

    async with connected(nats_server.url) as broker:
        for arguments, question, keys, exit_code, said, left in (
            (
                ("dlq", "drop", config, "r"),
                "Drop 1 dead letter for good?",
                "n\n",
                1,
                "nothing was dropped",
                1,
            ),
            (("dlq", "drop", config, "r"), "Drop 1 dead letter for good?", "\x04", 1, "Aborted", 1),
            (("reset", config, "r", "--to", "start"), "made again. Do it?", "y\n", 0, "(1 partition)", 1),
            (("dlq", "drop", config, "r"), "Drop 1 dead letter for good?", "y\n", 0, "1 dead letter", 0),
        ):
            with at_a_terminal(*arguments, url=nats_server.url, folder=config.parent) as person:
                person.sees(question)
                person.types(keys)
                person.sees(said)
                assert person.process.wait(DEADLINE_S) == exit_code, keys
            kept = [s async for s in broker.history("P_app", ["p.app.dlq.>"]) if s.payload]
            assert len(kept) == left


def test_a_server_without_jetstream_has_live_subscribers(
    serve: Serve, command: Start, done: Start, route: Path, run_async: Any
) -> None:
    """`pub` and `tail` of a subject do without and say so; what needs JetStream says E402."""
    url = run_async(serve(""))
    shown = command("tail", "news", "--count", "1", url=url)
    shown.says("no stream holds news; showing messages as they pass")

    def heard() -> bool:
        published = done("pub", "news", url=url, given="hello\n")
        assert code(published) == EXIT_OK
        assert (
            "has no JetStream for this account: messages reach only those who are subscribed now"
            in published.err
        )
        assert "1 message to news: 1 sent to live subscribers" in published.err
        return shown.process.poll() is not None

    waited(heard, "the message is shown", DEADLINE_S)
    assert [(d["subject"], d["text"]) for d in shown.documents] == [("news", "hello")]
    status = done("status", route, url=url)
    assert code(status) == EXIT_BROKER
    assert "E402" in status.err


def test_a_queue_cannot_be_read_again(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer, run_async: Any
) -> None:
    """`reset` says so (E413): its stream deletes what was processed."""

    async def make_queue() -> None:
        async with connected(nats_server.url) as broker:
            await broker.create_stream({"name": "IN", "subjects": ["in.*"], "retention": "workqueue"})

    run_async(make_queue())
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    refused = done("reset", route, "r", "--to", "start", "--yes", url=nats_server.url)
    assert code(refused) == EXIT_BROKER
    assert "E413 stream IN deletes what was processed, so route r cannot read it again" in refused.err


def test_try_shows_what_is_emitted(route: Path, done: Start) -> None:
    """At its own subject: at once, or with the time at which the server would send it."""
    route.write_text(route.read_text().replace("    output: out\n", "    output: out\n    emits: late.*\n"))
    source = "        self.emit('late.a', 1)\n        self.emit('late.b', 2, 60, {'kind': 'x'})\n"
    (route.parent / "count.py").write_text(f"class Runnable:\n    def process(self, queries):\n{source}")
    shown = done("try", route, "r", "-", given="{}\n")
    now, later = shown.documents
    assert now == {"kind": "emit", "subject": "late.a", "data": 1}
    assert later.pop("at").endswith("Z")
    assert later == {"kind": "emit", "subject": "late.b", "headers": {"kind": "x"}, "data": 2}
    assert shown.err.endswith("1 message: 2 emits\n")
    people = done("try", route, "r", "-", "--format", "human", given="{}\n")
    assert "emit late.a 1\nemit at " in people.out
