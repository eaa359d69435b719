"""`pub` with input that is not as it should be, and a run that was stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from processor.cli.terminal import EXIT_BROKER, EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from processor.embedded import EmbeddedServer
from tests.conftest import waited
from tests.integration.test_cli import DEADLINE_S, Start, code, command, done
from tests.running import connected

__all__ = ["command", "done"]

BOM = "\ufeff"


def with_stream(run_async: Any, server: EmbeddedServer, **settings: Any) -> None:
    async def make() -> None:
        async with connected(server.url) as broker:
            await broker.create_stream({"name": "IN", "subjects": ["in.>"], **settings})

    run_async(make())


def held(run_async: Any, server: EmbeddedServer) -> list[tuple[str, bytes]]:
    """Subject and payload of what the stream holds."""

    async def read() -> list[tuple[str, bytes]]:
        async with connected(server.url) as broker:
            return [(s.subject, s.payload) async for s in broker.history("IN", ["in.>"])]

    found: list[tuple[str, bytes]] = run_async(read())
    return found


def test_a_byte_order_mark_is_no_part_of_the_first_line(
    done: Start, nats_server: EmbeddedServer, run_async: Any, tmp_path: Path
) -> None:
    """Files of Windows programs begin with one; `--whole` publishes a file's bytes as they are."""
    with_stream(run_async, nats_server)
    file = tmp_path / "from_windows.jsonl"
    file.write_bytes(f'{BOM}{{"who": "a"}}\r\n{{"who": "b"}}\r\n'.encode())
    for subject in ("in.{who}", "in.plain"):
        published = done("pub", subject, file, url=nats_server.url)
        assert (code(published), published.err) == (
            EXIT_OK,
            f"2 messages to {subject}: 2 stored in IN\n",
        )
    assert code(done("pub", "in.piped", url=nats_server.url, given=f"{BOM}x\n{BOM}y\n")) == EXIT_OK
    assert code(done("pub", "in.whole", file, "--whole", url=nats_server.url)) == EXIT_OK
    assert held(run_async, nats_server) == [
        ("in.a", b'{"who": "a"}'),
        ("in.b", b'{"who": "b"}'),
        ("in.plain", b'{"who": "a"}'),
        ("in.plain", b'{"who": "b"}'),
        ("in.piped", b"x"),
        ("in.piped", f"{BOM}y".encode()),
        ("in.whole", file.read_bytes()),
    ]


def test_a_line_that_cannot_be_published_is_named_and_left_out(
    done: Start, nats_server: EmbeddedServer, run_async: Any
) -> None:
    """Each with its place and why; the lines after it are published, and the command fails."""
    with_stream(run_async, nats_server, max_msg_size=200)
    large = '{"who": "c", "text": "' + 300 * "x" + '"}'
    lines = ['{"who": "a"}', "no json", "{}", '{"who": "b.c"}', large, '{"who": "d"}']
    published = done("pub", "in.{who}", url=nats_server.url, given="\n".join(lines))
    assert code(published) == EXIT_FAILED
    *refusals, summary = published.err.splitlines()
    assert [line.split()[:2] for line in refusals] == [
        ["stdin:2:1", "E104"],
        ["stdin:3:1", "E104"],
        ["stdin:4:1", "E104"],
        ["stdin:5:1", "E406"],
    ]
    assert "message size exceeds maximum allowed (10054)" in refusals[3]
    assert summary == "2 messages to in.{who}: 2 stored in IN, 4 lines were left out"
    assert [subject for subject, _ in held(run_async, nats_server)] == ["in.a", "in.d"]


def test_a_line_above_the_servers_limit_is_left_out(
    done: Start, nats_server: EmbeddedServer, run_async: Any
) -> None:
    """Also where no stream holds the subject; the server would end the connection for it."""
    with_stream(run_async, nats_server)
    large = ((1 << 20) + 1) * "x"
    for subject, where in (("in.a", "stored in IN"), ("news", "sent to live subscribers")):
        published = done("pub", subject, url=nats_server.url, given=f"1\n{large}\n3\n")
        assert code(published) == EXIT_FAILED
        assert "stdin:2:1 E406 a message of " in published.err
        assert f"2 messages to {subject}: 2 {where}" in published.err


def test_many_bad_lines_are_counted_and_not_all_shown(
    done: Start, nats_server: EmbeddedServer, run_async: Any
) -> None:
    """A wrong field name in the subject must not write a line for each of a million lines."""
    with_stream(run_async, nats_server)
    published = done("pub", "in.{who}", url=nats_server.url, given=100 * "{}\n")
    assert code(published) == EXIT_FAILED
    assert published.err.count(" E104 ") == 20
    assert published.err.endswith(
        "There are more such lines; from here on they are only counted.\n"
        "0 messages to in.{who}: 100 lines were left out\n"
    )


def test_a_stopped_run_goes_on_where_it_was(
    command: Start, done: Start, nats_server: EmbeddedServer, run_async: Any, tmp_path: Path
) -> None:
    """Ctrl-C says with which options; with them no line is missing, and none is stored twice."""
    with_stream(run_async, nats_server)
    file = tmp_path / "lines.txt"
    # The second time over takes 50 s, which is longer than it is waited for: it cannot end before the signal.
    count, rate, first = 2000, 40, 1991
    file.write_text("".join(f"{n}\n" for n in range(count)))

    async def has_messages() -> bool:
        async with connected(nats_server.url) as broker:
            info = await broker.stream("IN")
            return info is not None and info["state"]["messages"] > count - first + 5

    options = ("--count", "3", "--from-line", first, "--rate", rate)
    slow = command("pub", "in.n", file, *options, url=nats_server.url)
    waited(lambda: run_async(has_messages()), "the second time over has begun", DEADLINE_S)
    assert slow.ends(signal.SIGINT) == EXIT_INTERRUPTED
    head, _, added = slow.err.rstrip(".\n").rpartition(", add ")
    assert head.endswith(f"To go on with {file}")
    assert added.startswith("--from-line ")
    assert added.endswith(" --count 2")
    rest = done("pub", "in.n", file, *added.split(), url=nats_server.url)
    assert code(rest) == EXIT_OK
    # A line of the window that was stopped may be sent again, and is dropped by the stream.
    stored = [int(payload) for _, payload in held(run_async, nats_server)]
    assert stored == [*range(first - 1, count), *range(count), *range(count)]


def test_a_refusal_that_is_not_about_the_line_stops_the_run(
    done: Start, nats_server: EmbeddedServer, run_async: Any
) -> None:
    """A full stream takes none of the lines that follow either: it goes on from there once there is room."""
    with_stream(run_async, nats_server, max_msgs=600, discard="new")
    stopped = done("pub", "in.n", url=nats_server.url, given="".join(f"{n}\n" for n in range(900)))
    assert code(stopped) == EXIT_BROKER
    assert "E406 the stream refused the message: maximum messages exceeded (10077)" in stopped.err
    assert "To go on with stdin, add --from-line 501 --run-id " in stopped.err


def test_options_that_contradict_are_refused(done: Start) -> None:
    """The whole has no lines to begin with, and an id of a run is a header's value."""
    for arguments, why in (
        (("--whole", "--from-line", "2"), "--whole and --from-line exclude each other"),
        (("--run-id", "a b"), "letters, digits, - and _"),
    ):
        refused = done("pub", "in.n", *arguments, given="")
        assert code(refused) == EXIT_CONFIG
        assert why in " ".join(refused.err.split())


def test_a_stream_that_acknowledges_nothing_gets_its_messages_unconfirmed(
    done: Start, nats_server: EmbeddedServer, run_async: Any, tmp_path: Path
) -> None:
    """Waiting for an answer would never end: what was sent is counted, and said not to be confirmed."""
    with_stream(run_async, nats_server, no_ack=True)
    file = tmp_path / "lines.jsonl"
    file.write_text('{"i": 1}\n{"i": 2}\n')
    published = done("pub", "in.x", file, url=nats_server.url)
    assert code(published) == EXIT_OK
    assert "stream IN acknowledges nothing (no_ack)" in published.err
    assert "2 messages to in.x: 2 sent to IN, which does not confirm it" in published.err
    waited(lambda: len(held(run_async, nats_server)) == 2, "the stream has stored both")
