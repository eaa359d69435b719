"""kill -9 of host, guest and server at every point of every write: nothing lost, doubled, wrong or torn.

Each gap has a name, and a test that ends a host there; `tests/faults/host.py` has all names. A commit has
two: half of it sent, and stored but not answered. (Before it is after the write before. Of a single message
the half is an open batch.)

| what is written | gaps beside these | shown by test_... |
| --- | --- | --- |
| effects, by `Settler.settle` | before 1, 1-2, 2-3, 3-4, 4-5 | a_host_killed_at_any_point_of_a_commit... |
| a claim, a release | | a_host_killed_when_it_claims_or_lets_go... |
| a hand-over: a claim, a release | the other host goes on | a_host_killed_in_a_hand_over... |
| a dead letter | | a_host_killed_when_a_message_fails... |
| a try, counted; the key waits | | a_host_killed_when_a_message_fails... |
| a retry that the server keeps; its end | | a_host_killed_when_a_message_fails... |
| a message of a blocked key; its end | | a_host_killed_when_a_message_fails... |
| that a blocked key goes on | | a_host_killed_when_a_message_fails... |
| a redrive | | a_redrive_killed_at_any_point... |
| a hop: what it deals, acknowledges, removes | | a_hop_killed_at_any_point... |
| an edit of a context | between commits of others | edits_between_the_commits... |
| a reset: mark, purges, move, word | before, between, after purges; before the word | a_reset_killed... |
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.config import load
from processor.context.history import Author
from processor.embedded import EmbeddedServer
from processor.jetstream import Again, Broker
from processor.operate.control import Control
from processor.operate.edits import ContextEdits
from tests.conftest import guests_of, waited
from tests.faults import ledger
from tests.faults.host import HOP, start
from tests.running import connected, is_empty


@contextmanager
def host(
    config: Path, url: str, point: str = "none", nth: int = 1, what: str = "run"
) -> Iterator[subprocess.Popen[bytes]]:
    process = start(config, url, point, nth, what)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def make_input(broker: Broker, retention: str = "limits") -> None:
    await broker.create_stream(
        {"name": "IN", "subjects": ["in.*"], "retention": retention, "allow_direct": True}
    )


async def dies(config: Path, url: str, point: str, nth: int = 1, what: str = "run") -> None:
    """Return when a host has ended at that point."""
    with host(config, url, point, nth, what) as process:
        await waited(lambda: process.poll() is not None, f"the host died: {point}", 30)
        assert process.returncode == -signal.SIGKILL, f"it did not get to the point: {point}"


async def is_at_work(broker: Broker, process: subprocess.Popen[bytes]) -> bool:
    """Whether the host owns partitions of the route."""
    try:
        parts = await Control(broker, "app").parts("r")
    except Again:  # the stream of the app is not made yet
        return False
    return any(f"-{process.pid}-" in part.owner for part in parts)


async def settles(broker: Broker, config: Path, url: str, sent: ledger.Sent) -> None:
    """Return when a host that never dies has done the rest; everything is there once, and in order."""
    with host(config, url) as process:
        await waited(partial(is_at_work, broker, process), "the host is at work", 30)
        await waited(lambda: ledger.settled(broker, "app", len(sent)), "all inputs are settled", 30)
        process.terminate()
        await waited(lambda: process.poll() is not None, "the host has drained")
        assert process.returncode == 0
    found = await ledger.examine(broker, "app", sent)
    assert not found, found


HALF, UNANSWERED = "inside step 2, half of the batch sent", "inside step 2, stored but not answered"


@pytest.mark.parametrize(
    "point, input_stream",
    [
        (HALF, "limits"),
        (UNANSWERED, "limits"),
        (UNANSWERED, "workqueue"),
        ("between steps 2 and 3", "limits"),
        ("between steps 3 and 4", "workqueue"),
        ("between steps 4 and 5", "workqueue"),
    ],
)
async def test_a_host_killed_at_any_point_of_a_commit_loses_and_doubles_nothing(
    point: str, input_stream: str, nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """A life ends at the second commit, the next goes on: the result is that of one that never died."""
    config = ledger.write_config(tmp_path, "app")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker, input_stream)
        sent = await ledger.feed(broker, 300, poison=3)
        await dies(config, nats_server_file.url, point, nth=2)
        await settles(broker, config, nats_server_file.url, sent)


@pytest.mark.parametrize("point", ["before step 1", "between steps 1 and 2"])
async def test_a_host_killed_at_any_point_of_a_commit_to_a_stream_of_others_doubles_nothing(
    point: str, nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """What was published before the commit is published again, and dropped there by its id."""
    config = ledger.write_config(tmp_path, "app")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker)
        await broker.create_stream({"name": "OUT", "subjects": ["out.*"], "allow_msg_schedules": True})
        sent = await ledger.feed(broker, 60, poison=1)
        await dies(config, nats_server_file.url, point, nth=5)
        await settles(broker, config, nats_server_file.url, sent)


@pytest.mark.parametrize("kind", ["claim", "release"])
@pytest.mark.parametrize("point", ["half of a {} sent", "a {} stored but not answered"])
async def test_a_host_killed_when_it_claims_or_lets_go_loses_and_doubles_nothing(
    point: str, kind: str, nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """Nothing was run yet, or all of it is settled: the next life claims, whatever the last one said."""
    config, url = ledger.write_config(tmp_path, "app"), nats_server_file.url
    async with connected(url) as broker:
        await make_input(broker)
        sent = await ledger.feed(broker, 100, poison=1)
        with host(config, url, point.format(kind)) as process:
            if kind == "release":
                await waited(lambda: ledger.settled(broker, "app", 50), "it is at work")
                process.terminate()
            await waited(lambda: process.poll() is not None, "the host died", 30)
            assert process.returncode == -signal.SIGKILL
        await settles(broker, config, url, sent)


@pytest.mark.parametrize("point", ["a claim stored but not answered", "half of a release sent"])
async def test_a_host_killed_in_a_hand_over_loses_and_doubles_nothing(
    point: str, nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """Messages flow while one comes or goes and dies over it; the other takes its part back."""
    config, url = ledger.write_config(tmp_path, "app"), nats_server_file.url
    async with connected(url) as broker:
        await make_input(broker)
        sent = await ledger.feed(broker, 100, poison=1)
        with host(config, url) as other:
            await waited(lambda: ledger.settled(broker, "app", 100), "one is at work", 30)
            with host(config, url, point) as process:
                sent += await ledger.feed(broker, 300, first=100)
                if "release" in point:
                    await waited(partial(is_at_work, broker, process), "the other is at work", 30)
                    await waited(lambda: ledger.settled(broker, "app", 400), "both have done theirs", 30)
                    # Its part may be dealt anew meanwhile; between two parts there is none to let go of.
                    await waited(partial(is_at_work, broker, process), "the other has a part", 30)
                    process.terminate()
                sent += await ledger.feed(broker, 300, first=400)
                await waited(lambda: process.poll() is not None, "the host died", 30)
                assert process.returncode == -signal.SIGKILL
            await waited(lambda: ledger.settled(broker, "app", 700), "the other has done the rest", 30)
            other.terminate()
            await waited(lambda: other.poll() is not None, "the other has drained")
        found = await ledger.examine(broker, "app", sent)
        assert not found, found


WAIT = "{attempts: 2, strategy: fixed, base_ms: 20}"
SCHEDULE = "{attempts: 2, strategy: fixed, base_ms: 150}"
BLOCK = "{attempts: 1, max_ms: 50, then: block}"


@pytest.mark.parametrize(
    "kind, retry",
    [
        ("dead letter", WAIT),
        ("wait", WAIT),
        ("schedule", SCHEDULE),
        ("done schedule", SCHEDULE),
        ("hold", BLOCK),
        ("done hold", BLOCK),
        ("unblock", BLOCK),
    ],
)
@pytest.mark.parametrize("point", ["half of a {} sent", "a {} stored but not answered"])
async def test_a_host_killed_when_a_message_fails_loses_and_doubles_nothing(
    point: str,
    kind: str,
    retry: str,
    nats_server_file: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever a failed message is on its way to its next try or its end, the next life goes on there."""
    monkeypatch.setenv("SHORT_WAIT_S", "0.1")
    # In a batch of many what is unsure runs again and again, and hardly ever fails when it is alone.
    config = ledger.write_config(tmp_path, "app", retry=retry, batch="{max_messages: 1}")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker)
        few = {"unsure": 10} if retry == BLOCK else {"poison": 6}
        sent = await ledger.feed(broker, 100, **few)
        await dies(config, nats_server_file.url, point.format(kind))
        await settles(broker, config, nats_server_file.url, sent)


async def test_a_redrive_killed_at_any_point_sends_each_message_back_once(
    nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """Some go back before it dies, one may have; the second redrive takes what is left."""
    config, url = ledger.write_config(tmp_path, "app"), nats_server_file.url
    async with connected(url) as broker:
        await make_input(broker)
        sent = await ledger.feed(broker, 100, poison=8)
        await settles(broker, config, url, sent)
        config.with_name("counter.py").write_text(ledger.REPAIRED)
        with host(config, url) as process:
            await dies(config, url, "half of a redrive sent", nth=3, what="redrive")
            await dies(config, url, "a redrive stored but not answered", nth=3, what="redrive")
            with host(config, url, what="redrive") as rest:
                await waited(lambda: rest.poll() is not None, "the rest is sent back", 30)
            await waited(lambda: ledger.count_is(broker, "out.*", 100), "all are done", 30)
            process.terminate()
            await waited(lambda: process.poll() is not None, "the host has drained")
        found = await ledger.examine(broker, "app", sent, apart=[m["id"] for m in sent if "poison" in m])
        assert not found, found


async def test_a_reset_killed_at_any_point_is_run_on_only_when_it_is_whole(
    nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """Half of one has the route stand still; once the positions are moved, all of the input is read again."""
    config, url = ledger.write_config(tmp_path, "app"), nats_server_file.url
    async with connected(url) as broker:
        await make_input(broker)
        sent = await ledger.feed(broker, 100)

        async def there_are(outputs: int) -> None:
            await waited(lambda: ledger.count_is(broker, "out.*", outputs), f"{outputs} outputs", 30)
            found = await ledger.examine(broker, "app", sent, earlier=outputs - len(sent))
            assert not found, found

        with host(config, url) as process:
            await there_are(100)
            await dies(config, url, "half of a reset mark sent", what="reset")
            await dies(config, url, "a reset mark stored but not answered", what="reset")
            sent += await ledger.feed(broker, 1, first=100)  # for which the owner learns of the reset
            await dies(config, url, "before a purge", what="reset")
            await dies(config, url, "before a purge", nth=3, what="reset")
            await dies(config, url, "after a purge", nth=4, what="reset")
            await dies(config, url, "half of a release sent", what="reset")
            assert await ledger.count_is(broker, "out.*", 100)
            await dies(config, url, "a release stored but not answered", what="reset")
            await there_are(100 + 101)
            await dies(config, url, "before the word of a reset", what="reset")
            with host(config, url, what="reset") as whole:
                await waited(lambda: whole.poll() is not None, "the reset is done", 30)
            await there_are(100 + 101 + 101)
            process.terminate()
            await waited(lambda: process.poll() is not None, "the host has drained")


async def test_a_hop_killed_at_any_point_loses_and_doubles_nothing(
    nats_server_file: EmbeddedServer, tmp_path: Path
) -> None:
    """A life ends at each point of dealing a work queue; then two share it, and one of them is killed."""
    url = nats_server_file.url
    # More tries than lives: a message is given up when processes keep ending while they work on it.
    retry = "{attempts: 10, base_ms: 1}"
    more = {"input": "{subject: in.*, repartition: true}", "key": "json./key", "retry": retry}
    config = ledger.write_config(tmp_path, "app", **more)
    async with connected(url) as broker:
        await make_input(broker, "workqueue")
        sent = await ledger.feed(broker, 100, poison=3)
        for point in HOP:
            sent += await ledger.feed(broker, 100, first=len(sent))
            await dies(config, url, point)
        with host(config, url) as first, host(config, url) as second:
            await waited(partial(ledger.settled, broker, "app", len(sent)), "all is settled", 30)
            sent += await ledger.feed(broker, 1000, first=len(sent))
            await waited(partial(ledger.settled, broker, "app", len(sent) - 900), "some is settled", 30)
            first.kill()
            sent += await ledger.feed(broker, 200, first=len(sent))
            await waited(partial(ledger.settled, broker, "app", len(sent)), "all is settled", 30)
            await waited(partial(is_empty, broker, "IN"), "the queue is acknowledged")
            assert second.poll() is None
        assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)


async def test_guests_killed_at_any_time_lose_and_double_nothing(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """Guests die by SIGKILL while they work; their replacements go on from what is committed."""
    config = ledger.write_config(tmp_path, "app", retry="{attempts: 50}", breaker="{deaths: 1000}")
    sent: list[dict[str, object]] = []
    async with connected(nats_server_file.url) as broker:
        await make_input(broker, "limits")
        with host(config, nats_server_file.url) as process:
            for _ in range(10):
                sent += await ledger.feed(broker, 60, first=len(sent))
                await wait_until(lambda: ledger.settled(broker, "app", 1), "the route has begun")
                guests = await wait_until(lambda: guests_of(process.pid), "a guest lives")
                for pid in guests:
                    with suppress(ProcessLookupError):  # its own host was faster
                        os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: ledger.settled(broker, "app", 600), "all inputs are settled", 30)
        assert not await ledger.examine(broker, "app", sent)


async def test_a_server_killed_at_any_time_loses_and_doubles_nothing(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """The server dies by SIGKILL while commits are under way, five times; the host waits and goes on."""
    config = ledger.write_config(tmp_path, "app")
    async with connected(nats_server_file.url) as broker:
        await make_input(broker, "limits")
        sent = await ledger.feed(broker, 3000, poison=5)
        with host(config, nats_server_file.url) as process:
            for done in range(400, 2400, 400):
                await broker.connected()
                await wait_until(partial(ledger.settled, broker, "app", done), f"{done} are settled", 30)
                nats_server_file.kill()
                nats_server_file.restart()
            await wait_until(lambda: ledger.settled(broker, "app", 3000), "all inputs are settled", 60)
            assert process.poll() is None
        assert not await ledger.examine(broker, "app", sent)


async def test_edits_between_the_commits_of_hosts_that_are_killed_are_made_once(
    nats_server_file: EmbeddedServer, tmp_path: Path, wait_until: Any
) -> None:
    """Somebody appends to every context while hosts die: no message and no edit is lost."""
    retry = "{attempts: 6, base_ms: 1}"
    config = ledger.write_config(tmp_path, "app", batch="{max_messages: 3}", retry=retry)
    url = nats_server_file.url
    async with connected(url) as broker, connected(url) as other:
        await make_input(broker, "limits")
        edits = ContextEdits(other, load(config, {"NATS_URL": url}).routes["r"])
        made: dict[str, list[int]] = {key: [] for key in ledger.KEYS}
        is_over = asyncio.Event()

        async def edit() -> None:
            for number in itertools.count():
                if is_over.is_set():
                    return
                key = ledger.KEYS[number % len(ledger.KEYS)]
                await edits.append(key, "notes", number, Author("ann@desk"))
                made[key].append(number)

        sent = await ledger.feed(broker, 10)
        with host(config, url):
            await wait_until(lambda: ledger.settled(broker, "app", 10), "the route has begun", 30)
        editing = asyncio.create_task(edit())
        for point in (HALF, UNANSWERED):
            sent += await ledger.feed(broker, 40, poison=1, first=len(sent))
            await dies(config, url, point, nth=4)
        with host(config, url):
            await wait_until(lambda: ledger.settled(broker, "app", len(sent)), "all inputs are settled", 30)
            is_over.set()
            await editing
        assert min(map(len, made.values())) > 1
        for key, numbers in made.items():
            assert await edits.get(key, "notes") == numbers
            items = await edits.items(key)
            del items["notes"]
            await edits.put({key: items}, Author("ann@desk"), is_whole=True)
        assert not await ledger.examine(broker, "app", sent), await ledger.examine(broker, "app", sent)
