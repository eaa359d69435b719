"""The governor of a route, and the monitors of its lanes: which rules hold for which run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from processor.address import Binding
from processor.capability.monitor import Mandate, RunScope
from processor.capability.registry import HostCalls
from processor.context.late import Intent
from processor.errors import ProcessorError
from processor.policy import Ask, Rules, load
from processor.reach import BoundSecret, Outbound, Reach
from processor.route import RouteAudit
from tests.web import Asked, answer, call, fed, refusal, serving

ASK = Ask("emit", "publish", "a.b")


def rules(tmp_path: Path, *subjects: str) -> Rules:
    file = tmp_path / "policy.toml"
    lines = [f'[[capability]]\nname = "emit"\nresource = "{s}"\nmethods = ["publish"]\n' for s in subjects]
    file.write_text("".join(lines))
    return load([str(file)])


def test_a_run_keeps_the_rules_that_it_began_with(tmp_path: Path) -> None:
    """Replaced meanwhile, they hold until the lane's next run; other lanes go by their own runs."""
    governor = HostCalls().for_route(Reach("here"), Mandate("r", rules(tmp_path, "a.b")))
    running, idle = governor.lane(0), governor.lane(1)
    running.begin()
    governor.replace(rules(tmp_path, "c"))
    running.permit(ASK)
    idle.begin()
    with pytest.raises(ProcessorError, match=r"emit publish a\.b is not allowed to route r"):
        idle.permit(ASK)
    running.begin()
    with pytest.raises(ProcessorError, match="E330"):
        running.permit(ASK)


def test_a_denial_is_logged_once_for_all_lanes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Runnable may ask the same for every message, on every lane; each decision is counted."""
    decisions: list[tuple[str, str]] = []
    mandate = Mandate("r", rules(tmp_path, "c"))
    governor = HostCalls().for_route(Reach("here"), mandate, decided=lambda *each: decisions.append(each))
    for number in (0, 1, 0):
        with pytest.raises(ProcessorError, match="E330"):
            governor.lane(number).permit(ASK)
    assert decisions == [("emit", "deny")] * 3
    assert caplog.text.count("emit publish a.b is not allowed to route r") == 1


async def test_an_entry_names_a_secret_and_never_its_mark(tmp_path: Path) -> None:
    """A mark is of this process; where a guest puts one into a path it is not for others to read."""

    async def announce(partition: int, intent: Intent) -> None:
        raise AssertionError("a GET is not written down before")

    secret = BoundSecret("key", "canary-value", (Binding.parse("http://a.example"),))
    reach = Reach("here", Outbound(allowed_domains=("a.example",)), secrets=(secret,))
    governor = HostCalls().for_route(reach, Mandate("r", program="p1", audit=RouteAudit("calls")))
    lane = governor.lane()
    lane.begin(RunScope(3, (7, 9), announce))
    with pytest.raises(ProcessorError, match="E326"):
        await lane.perform("requests", call("GET", f"http://a.example/{governor.secrets['key']}"))
    [entry] = lane.end()
    assert (entry.target, entry.decision, entry.code) == ("http://a.example/secret.key", "deny", "E326")
    assert (lane.home, entry.batch, entry.actor, entry.rule) == (3, (7, 9), "program:p1", "config")
    assert not lane.end()


async def test_calls_at_the_same_time_have_entries_of_their_own() -> None:
    """Each with the secret that it used, in the order in which they ended."""

    async def announce(partition: int, intent: Intent) -> None:
        assert intent.operation == "post"

    arrived, leave = asyncio.Semaphore(0), {"/a": asyncio.Event(), "/b": asyncio.Event()}

    async def say(asked: Asked) -> bytes:
        arrived.release()
        await leave[asked.target].wait()
        return answer()

    async with serving(say) as web:
        bound = (Binding.parse(web.url),)
        secrets = tuple(BoundSecret(name, f"canary-value-{name}", bound) for name in "ab")
        reach = Reach("here", Outbound(allowed_domains=(web.host,)), secrets=secrets)
        calls = HostCalls()
        governor = calls.for_route(reach, Mandate("r", audit=RouteAudit("calls", "unsafe")))
        lane = governor.lane()
        lane.begin(RunScope(0, (1, 1), announce))
        asked = {
            name: asyncio.create_task(
                lane.perform(
                    "requests", call("POST", f"{web.url}/{name}", headers=[["X", governor.secrets[name]]])
                )
            )
            for name in "ab"
        }
        for _ in asked:
            await arrived.acquire()
        for name in "ba":
            leave[f"/{name}"].set()
            await asked[name]
        await calls.close()
    entries = lane.end()
    assert [(entry.target, entry.secrets) for entry in entries] == [
        (f"{web.url}/b", ("b",)), (f"{web.url}/a", ("a",)),
    ]  # fmt: skip
    assert len({entry.intent for entry in entries}) == 2


# Answers that come in pieces.


async def unannounced(partition: int, intent: Intent) -> None:
    raise AssertionError("a GET is not written down before")


async def test_a_streamed_answer_has_one_entry_when_it_has_ended() -> None:
    """Its digest and size are those of the same answer read whole; one that breaks off has its code."""
    async with fed([b"one ", b"two"]) as feed, fed([b"one"], is_cut=True) as cut:
        calls = HostCalls()
        reach = Reach("here", Outbound(allowed_domains=(feed.host, cut.host)))
        lane = calls.for_route(reach, Mandate("r", audit=RouteAudit("calls"))).lane()
        lane.begin(RunScope(0, (1, 1), unannounced))
        whole = await lane.perform("requests", call("GET", f"http://{feed.host}/"))
        opened = [
            (await lane.perform("requests", call("GET", f"http://{host}/", stream=True))).value["stream"]
            for host in (feed.host, cut.host, feed.host)
        ]
        assert len(lane.end()) == 1, "none of those that are open"
        body = b""
        while True:
            pulled = await lane.perform("stream_next", {"stream": opened[0]})
            body += pulled.body
            if pulled.value["end"]:
                break
        assert body == whole.body
        while "failed" not in (await lane.perform("stream_next", {"stream": opened[1]})).value:
            pass
        await lane.perform("stream_close", {"stream": opened[2]})
        read, broken, given_up = lane.end()
        lane.begin(RunScope(0, (2, 2), unannounced))
        await lane.perform("requests", call("GET", f"http://{feed.host}/"))
        [unstreamed] = lane.end()
        await calls.close()
    assert (read.status, read.answer_digest, read.sizes) == (200, unstreamed.answer_digest, unstreamed.sizes)
    assert read.request_digest == unstreamed.request_digest
    assert (read.decision, read.code) == ("allow", "")
    assert (broken.decision, broken.code) == ("error", "E317")
    assert (given_up.decision, given_up.sizes) == ("allow", (read.sizes[0], 0))


async def test_no_stream_outlives_its_run() -> None:
    """What a run leaves open is closed with it, and has its entry; the next run cannot pull it."""
    async with fed([b"one"]) as feed:
        calls = HostCalls()
        reach = Reach("here", Outbound(allowed_domains=(feed.host,)))
        lane = calls.for_route(reach, Mandate("r", audit=RouteAudit("calls"))).lane()
        lane.begin(RunScope(0, (1, 1), unannounced))
        opened = await lane.perform("requests", call("GET", f"http://{feed.host}/idle", stream=True))
        await lane.finish()
        await asyncio.wait_for(feed.gone.wait(), 10)
        assert [entry.status for entry in lane.end()] == [200]
        lane.begin(RunScope(0, (2, 2), unannounced))
        pull = lane.perform("stream_next", {"stream": opened.value["stream"]})
        assert "the stream 1 is closed" in await refusal("E317", pull)
        await calls.close()


async def test_a_budget_of_bytes_ends_a_stream(tmp_path: Path) -> None:
    """What a stream brings is taken from it as it comes, and there is no more than it has."""
    async with fed([b"x" * 40, b"y" * 40]) as feed:
        (tmp_path / "policy.toml").write_text(
            '[[budget]]\nname = "b"\nkind = "bytes"\nlimit = 100\nwindow = "run"\n'
            f'[[capability]]\nname = "http"\nresource = "{feed.host}"\nmethods = ["get"]\n'
        )
        calls = HostCalls()
        reach = Reach("here", Outbound(allowed_domains=(feed.host,)))
        mandate = Mandate("r", load([str(tmp_path / "policy.toml")]), audit=RouteAudit("calls"))
        lane = calls.for_route(reach, mandate).lane()
        lane.begin(RunScope(0, (1, 1), unannounced))
        opened = await lane.perform("requests", call("GET", f"http://{feed.host}/seen", stream=True))
        pull = {"stream": opened.value["stream"]}
        assert (await lane.perform("stream_next", pull)).body == b"x" * 40
        feed.see(b"x" * 40)
        text = await refusal("E332", lane.perform("stream_next", pull))
        assert "this call needs 40" in text
        assert "is closed" in await refusal("E317", lane.perform("stream_next", pull))
        [entry] = lane.end()
        await calls.close()
    assert (entry.decision, entry.code) == ("deny", "E332")
