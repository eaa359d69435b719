"""`check` for people: a screenful first, and in CI without secrets."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import pytest

from processor.cli.terminal import EXIT_CONFIG, EXIT_OK
from processor.embedded import EmbeddedServer
from tests.integration.test_cli import Start, code, command, done, faults, route
from tests.running import connected
from tests.terminal import COLUMNS, LINES, on_a_terminal

__all__ = ["command", "done", "route"]


def with_routes(path: Path, count: int) -> None:
    routes = "".join(
        f"  a-route-with-quite-a-name-{n}:\n    input: {{subject: in.{n}.*, create: true}}\n"
        f"    runnable: count.py\n    key: subject.3\n    output: results.of.the.route.{n}.{{key}}\n"
        f"    retry: {{attempts: {n + 1}, then: {('dead_letter', 'block', 'drop')[n % 3]}}}\n"
        for n in range(count)
    )
    path.write_text(f"app: app\nroutes:\n{routes}")


@pytest.mark.parametrize("count", [6, 60])
def test_check_fills_at_most_a_screen(count: int, route: Path) -> None:
    """However many routes and however long their names; the first lines say what matters most."""
    with_routes(route, count)
    with on_a_terminal(route.parent, "check", route.name) as terminal:
        assert terminal.end() == EXIT_OK
    shown = terminal.text.splitlines()
    assert len(shown) < LINES
    assert max(map(len, shown)) <= COLUMNS
    assert shown[0] == f"app.yaml: app app, {count} routes, no fault"
    rows = [line for line in shown if line.startswith("a-route-")]
    assert [row.split("per key  ")[1] for row in rows[:3]] == [
        "1 try, dead letter", "2 tries, blocks its key", "3 tries, LOST",
    ]  # fmt: skip
    assert all("exactly once" in row for row in rows)
    assert (f"... and {count - len(rows)} more" in shown) == (count > len(rows))


def test_check_has_every_route_in_full_where_nobody_looks_on(route: Path, done: Start) -> None:
    """In a pipe or a file nothing is cut; what a reviewer must not miss stands beside the table."""
    with_routes(route, 40)
    text = route.read_text()
    route.write_text(
        text.replace("runnable: count.py\n", "runnable: count.py\n    outbound: [a.example]\n", 1)
    )
    shown = done("check", route, "--format", "human")
    assert code(shown) == EXIT_OK
    assert re.search(
        r"^a-route-with-quite-a-name-38 +in\.38\.\* +results\.of\.the\.route\.38\.\{key\} +exactly once"
        r" +per key +39 tries, LOST$",
        shown.out,
        re.MULTILINE,
    )
    assert "a-route-with-quite-a-name-0: may ask a.example.\n" in shown.out
    assert len(shown.out.splitlines()) < 50
    assert "limits:" not in shown.out


def test_check_does_without_secrets_where_it_is_told_to(route: Path, done: Start) -> None:
    """Those of the environment, files of secrets, and logins; every other fault is still one."""
    route.write_text(
        route.read_text()
        + "    secrets: [key, other]\n    outbound: [a.example]\n"
        + "secrets:\n  key: {env: OUR_KEY, hosts: [a.example]}\n"
        + "  other: {file: /run/secrets/other, hosts: [a.example]}\n"
        + "nats: {url: 'nats://nats:4222', user: u, password_file: /run/secrets/password}\n"
    )
    missing = done("check", route)
    assert code(missing) == EXIT_CONFIG
    assert len(faults(missing)) == 3
    shown = done("check", route, "--no-secrets")
    assert (code(shown), shown.err) == (EXIT_OK, "")
    assert "r: may ask a.example, with key, other.\n" in shown.out
    full = done("check", route, "--no-secrets", "--full")
    assert "  - Secret key: for a.example.\n" in full.out
    text = route.read_text().replace("[key, other]", "[key, otter]")
    route.write_text(text.replace("{file: /run/secrets/other", "{env: A, file: /run/secrets/other"))
    left = done("check", route, "--no-secrets")
    assert code(left) == EXIT_CONFIG
    assert "otter" in left.err
    assert "E106 secrets.other has both env and file" in left.err
    refused = done("check", route, "--no-secrets", "--server")
    assert code(refused) == EXIT_CONFIG
    assert "--server and --no-secrets exclude each other" in " ".join(refused.err.split())


def test_an_operator_needs_no_secrets_of_the_runnables(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """Verbs that run no Runnable work where its secrets are missing; `run` and `check` say which one is."""
    route.write_text(
        route.read_text()
        + "    secrets: [key]\n    outbound: [a.example]\n"
        + "secrets:\n  key: {env: OUR_KEY, hosts: [a.example]}\n"
    )
    run = command("run", route, url=nats_server.url, OUR_KEY="0123456789abcdef")
    run.says("route started")
    told = {
        "pub": done("pub", "in.a", "--config", route, given='{"i": 1}\n', url=nats_server.url),
        "pause": done("pause", route, "r", url=nats_server.url),
        "resume": done("resume", route, "r", url=nats_server.url),
        "dlq": done("dlq", "ls", route, url=nats_server.url),
        "context": done("context", "full", route, "r", url=nats_server.url),
        "status": done("status", route, url=nats_server.url),
        "tail": done("tail", "r", "--config", route, "--no-follow", url=nats_server.url),
        "reset": done("reset", route, "r", "--to", "start", "--yes", url=nats_server.url),
    }
    assert [(verb, code(each), each.err) for verb, each in told.items() if "E108" in each.err] == []
    assert {code(each) for verb, each in told.items() if verb != "context"} == {EXIT_OK}
    assert run.ends(signal.SIGTERM) == EXIT_OK
    for verb in ("run", "check"):
        assert "secrets.key.env is OUR_KEY, which is not set" in done(verb, route, url=nats_server.url).err


async def test_check_of_an_input_that_is_there_ends_before_the_app_was_ever_started(
    route: Path, done: Start, nats_server: EmbeddedServer
) -> None:
    """There is no stream of the app yet, so there are no positions to ask for, and no key before this one."""
    async with connected(nats_server.url) as broker:
        await broker.create_stream({"name": "IN", "subjects": ["in.*"]})
    checked = await asyncio.to_thread(done, "check", route, "--server", url=nats_server.url)
    assert code(checked) == EXIT_OK
    assert "in.* from stream IN (limits, 0 messages)" in checked.out
