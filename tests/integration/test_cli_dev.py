"""What a person at a terminal sees of messages and failures, and two processors on one machine."""

from __future__ import annotations

import base64
import re
import signal
from pathlib import Path
from typing import Any

from processor.cli.dev import for_trying
from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK
from processor.config import load
from processor.embedded import EmbeddedServer
from tests.conftest import waited
from tests.integration.test_cli import DEADLINE_S, ROUTE, Start, code, command, done, route
from tests.running import connected
from tests.terminal import COLUMNS, on_a_terminal

__all__ = ["command", "done", "route"]

KEYED = ROUTE.replace("    output: out\n", "    output: out\n    key: subject.2\n    retry: {attempts: 1}\n")
FAILS = """
class Runnable:
    def process(self, queries):
        for query in queries:
            if query.get("fail"):
                raise ValueError(query["fail"])
        return queries
"""


def test_dev_shows_documents_whole_and_failures_as_a_person_reads_them(
    route: Path, done: Start, nats_server: EmbeddedServer
) -> None:
    """No document ends at the edge of the screen; a traceback has lines; a dead letter says its id."""
    route.write_text(KEYED)
    (route.parent / "count.py").write_text(FAILS)
    long = '{"text":"' + "word " * 60 + 'the end"}'
    with on_a_terminal(route.parent, "dev", route.name, NATS_URL=nats_server.url) as terminal:
        terminal.sees("route started")
        given = f'{long}\n{{"fail": "first\\nline\\u001b[2J"}}\n'
        assert code(done("pub", "in.ibm", url=nats_server.url, given=given)) == EXIT_OK
        terminal.sees('the end"}')
        terminal.sees("| ValueError: first")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == EXIT_OK
    lines = terminal.text.splitlines()
    [output] = [line for line in lines if "the end" in line]
    assert output.endswith(long)
    assert len(output) > 3 * COLUMNS
    [place] = [number for number, line in enumerate(lines) if "dead letter: E304" in line]
    found = re.search(r" key=ibm attempt=1 id=(r\.\d+\.2)$", lines[place])
    assert found, lines[place]
    assert lines[place + 1].startswith("    | Traceback (most recent call last):")
    assert '    |     raise ValueError(query["fail"])' in lines
    assert "    | ValueError: first" in lines
    assert r"    | line\x1b[2J" in lines
    shown = done("dlq", "show", route, "--id", found[1], url=nats_server.url)
    assert code(shown) == EXIT_OK
    assert (shown.documents[0]["code"], shown.documents[0]["key"]) == ("E304", "ibm")
    listed = done("dlq", "ls", route, "--format", "human", url=nats_server.url)
    assert listed.out.startswith(f"{found[1]}  key=ibm  ")
    tailed = ("tail", "r", "-c", route, "--no-follow", "--format")
    assert f" dead letter {found[1]} in.ibm E304 " in done(*tailed, "human", url=nats_server.url).out
    [letter] = [d for d in done(*tailed, "json", url=nats_server.url).documents if "code" in d]
    assert letter["id"] == found[1]


def test_a_document_that_would_fill_the_screen_is_begun(
    route: Path, done: Start, nats_server: EmbeddedServer
) -> None:
    """A terminal is shown its beginning and how long it is; a pipe gets all of it."""
    route.write_text(ROUTE)
    (route.parent / "count.py").write_text(FAILS)
    (route.parent / "in.jsonl").write_text('{"text":"' + 5000 * "x" + '"}\n')
    with on_a_terminal(route.parent, "try", route.name, "r", "in.jsonl") as terminal:
        assert terminal.end() == EXIT_OK
    assert "xxx… (5,011 characters; a pipe gets all)" in terminal.text
    piped = done("try", route, "r", "in.jsonl", "--format", "human")
    assert 5000 * "x" in piped.out


def test_json_lines_keep_a_traceback_in_a_field(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """One line is one record, with the key and the id of the dead letter beside it."""
    route.write_text(KEYED + "logs: {format: json}\n")
    (route.parent / "count.py").write_text(FAILS)
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    done("pub", "in.ibm", url=nats_server.url, given='{"fail": "no"}\n')
    run.says('"id": "r.')
    [line] = [line for line in run.err.splitlines() if "dead letter" in line]
    assert '"message": "dead letter: E304 ValueError: no"' in line
    assert '"key": "ibm"' in line
    assert r'"traceback": "Traceback (most recent call last):\n' in line
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_a_second_processor_on_one_machine_needs_another_port(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer, free_port: int
) -> None:
    """`run` says how to give it one; `dev` takes a free one and says which."""
    port = {"PROCESSOR_HTTP_PORT": str(free_port)}
    first = command("run", route, url=nats_server.url, **port)
    first.says("route started")
    second = done("run", route, url=nats_server.url, **port)
    assert code(second) == EXIT_CONFIG
    assert f"E109 health cannot listen on 127.0.0.1:{free_port}: Address already in use." in second.err
    assert f"PROCESSOR_HTTP_PORT={free_port + 1} (0 for any that is free)" in second.err
    dev = command("dev", route, url=nats_server.url, **port)
    dev.says(f"{free_port} is in use; metrics take a free port")
    dev.says("metrics  http://127.0.0.1:")
    for each in (dev, first):
        assert each.ends(signal.SIGINT) == EXIT_OK


def test_dev_without_an_address_has_a_server_of_its_own(
    route: Path, command: Start, done: Start, tmp_path: Path
) -> None:
    """Whatever listens on the default port is left alone; other commands find the server while it runs."""
    route.write_text(route.read_text() + f"nats: {{store_dir: {tmp_path / 'store'}}}\n")
    dev = command("dev", route)
    dev.says("(data in ")
    dev.says("route started")
    assert code(done("status", route)) == EXIT_OK
    assert dev.ends(signal.SIGINT) == EXIT_OK


def test_dev_makes_a_key_for_the_secrets_of_graphs_once(tmp_path: Path) -> None:
    """For its own server, where the configuration has none: what was uploaded is there at the next start."""
    path = tmp_path / "app.yaml"

    def key(nats: str, **env: str) -> str:
        secrets_key = "secrets_key: {env: KEY}" if env else ""
        path.write_text(f"app: app\nengine: {{{secrets_key}}}\nnats: {{{nats}}}\n")
        engine = for_trying(load(path, env)).engine
        assert engine is not None
        return engine.secrets_key

    own = f"store_dir: {tmp_path / 'data' / 'nats'}"
    made = key(own)
    assert len(base64.b64decode(made)) == 32
    assert (tmp_path / "data" / "nats.secrets-key").stat().st_mode & 0o777 == 0o600
    assert key(own) == made
    assert key(own, KEY="0f" * 32) == "0f" * 32
    assert key("url: 'nats://there:4222'") == ""


def test_a_line_of_the_feed_that_has_no_subject_is_left_out(
    route: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """The lines behind it are published; a feed of which nothing can be is said to be one."""
    route.write_text(ROUTE + "dev: {feed: feed.jsonl, subject: 'in.{who}'}\n")
    (route.parent / "count.py").write_text(FAILS)
    (route.parent / "feed.jsonl").write_text('{"who": "a"}\nno json\n{"who": "b.c"}\n{"who": "d"}\n')
    dev = command("dev", route, url=nats_server.url)
    dev.says("feed: done; 2 of its lines were left out")
    assert f"feed: left out: {route.parent / 'feed.jsonl'}:2:1 E104 is not JSON" in dev.err
    waited(lambda: '{"who":"d"}' in dev.out, "the last line is processed", DEADLINE_S)
    assert dev.out.count('"who"') == 2
    assert dev.ends(signal.SIGINT) == EXIT_OK


def test_a_feed_to_a_stream_that_acknowledges_nothing_is_refused(
    route: Path, command: Start, nats_server: EmbeddedServer, run_async: Any
) -> None:
    """Nobody would know how far it is: that is said once (E408), and the routes run without it."""

    async def make() -> None:
        async with connected(nats_server.url) as broker:
            await broker.create_stream({"name": "IN", "subjects": ["in.>"], "no_ack": True})

    run_async(make())
    route.write_text(ROUTE + "dev: {feed: feed.jsonl, subject: in.a}\n")
    (route.parent / "feed.jsonl").write_text('{"i": 1}\n')
    dev = command("dev", route, url=nats_server.url)
    dev.says("feed: E408 stream IN acknowledges nothing (no_ack)")
    dev.says("route started")
    assert dev.ends(signal.SIGINT) == EXIT_OK


def test_try_names_the_lines_that_it_cannot_use_and_runs_the_others(route: Path, done: Start) -> None:
    """As `pub` does with the same file."""
    (route.parent / "count.py").write_text(FAILS)
    lines = '{"who": "a"}\nno json\n{"who": "d"}\n'
    shown = done("try", route, "r", "-", "--subject", "in.{who}", given=lines)
    assert code(shown) == EXIT_FAILED
    assert shown.err.startswith("stdin:2:1 E104 is not JSON")
    assert [document["data"]["who"] for document in shown.documents if "data" in document] == ["a", "d"]
