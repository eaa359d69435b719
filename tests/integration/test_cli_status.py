"""`status` as scripts and people use it: what its exit code means, and which version each member runs."""

from __future__ import annotations

import signal
from pathlib import Path

from processor.cli.terminal import EXIT_FAILED, EXIT_OK
from processor.config import fingerprint, load
from processor.embedded import EmbeddedServer
from tests.conftest import waited
from tests.integration.test_cli import COUNT, DEADLINE_S, ROUTE, Process, Start, code, command, done, route

__all__ = ["command", "done", "route"]


def until(done: Start, expected: int, *arguments: object, url: str) -> Process:
    """`status` as soon as it ends with the expected code."""
    shown: list[Process] = []

    def is_there() -> bool:
        shown[:] = [done("status", *arguments, url=url)]
        return code(shown[0]) == expected

    waited(is_there, f"status ends with {expected}", DEADLINE_S)
    return shown[0]


def test_status_fails_while_a_route_is_stopped(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """Whatever stops it; the other routes of the app may do well, and do so by themselves."""
    sound = route.read_text()
    route.write_text(f"{sound}  lost:\n    input: nowhere.*\n    runnable: count.py\n")
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    failing = until(done, EXIT_FAILED, route, url=nats_server.url)
    [lost] = [d for d in failing.documents if d.get("route") == "lost"]
    assert "E401 no stream holds 'nowhere.*'" in lost["stops"][0]["why"]
    assert code(done("status", route, "r", url=nats_server.url)) == EXIT_OK
    assert code(done("status", route, "lost", url=nats_server.url)) == EXIT_FAILED
    assert code(done("pause", route, "lost", url=nats_server.url)) == EXIT_OK
    until(done, EXIT_OK, route, url=nats_server.url)
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_status_fails_where_no_processor_has_the_route(
    route: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """Also a route that has not run yet: the file names it, and nobody runs it."""
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    until(done, EXIT_OK, route, url=nats_server.url)
    more = route.with_name("more.yaml")
    more.write_text(f"{route.read_text()}  more:\n    input: in.*\n    runnable: count.py\n")
    shown = done("status", more, "--format", "human", url=nats_server.url)
    assert code(shown) == EXIT_FAILED
    assert f"{more} is configuration {fingerprint(load(more, {}))}, which no processor runs\n" in shown.out
    assert "route more\n  no processor runs it\n" in shown.out
    assert run.ends(signal.SIGTERM) == EXIT_OK
    gone = done("status", route, url=nats_server.url)
    assert code(gone) == EXIT_FAILED
    assert "no processor of this app answers" in gone.err


def test_members_that_run_different_versions_are_marked(
    route: Path, tmp_path: Path, command: Start, done: Start, nats_server: EmbeddedServer
) -> None:
    """Each with its configuration and the programs of its routes; alike once both were reloaded."""
    route.write_text(ROUTE + "    key: subject.2\n")  # partitions for both
    old = command("run", route, url=nats_server.url)
    old.says("route started")
    before = load(route, {})
    (tmp_path / "count.py").write_text(COUNT.replace('{"i": query["i"]', '{"new": query["i"]'))
    after = load(route, {})
    new = command("run", route, url=nats_server.url)
    new.says("route started")

    shown = done("status", route, url=nats_server.url)
    assert code(shown) == EXIT_OK
    members, routes = shown.documents[:2], shown.documents[2]
    assert {member["config"] for member in members} == {fingerprint(before), fingerprint(after)}
    assert {each["program"]: len(each["members"]) for each in routes["programs"]} == {
        before.routes["r"].program.id: 1,
        after.routes["r"].program.id: 1,
    }
    people = done("status", route, "--format", "human", url=nats_server.url).out
    assert "processors run 2 different configurations\n" in people
    assert "  processors run 2 different programs\n" in people

    old.process.send_signal(signal.SIGHUP)
    old.says("reloaded; started: r")
    alike = until(done, EXIT_OK, route, "--format", "human", url=nats_server.url).out
    assert "different" not in alike
    assert alike.count(f"  configuration {fingerprint(after)}\n") == 2
    assert f"  program {after.routes['r'].program.id}\n" in alike
    for each in (old, new):
        assert each.ends(signal.SIGTERM) == EXIT_OK
