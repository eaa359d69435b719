"""A run says which calls it made and what it has used, whether it succeeds, fails or ends its guest."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from processor.errors import ProcessorError
from processor.model import Call, Failed, Group, Limits, Ran
from processor.sandbox.calls import RunCalls
from processor.sandbox.wire import Attached

CALLS = """
class Runnable:
    def process(self, queries):
        for url in queries[0]["urls"]:
            try:
                self.requests.post(url, data=b"12345")
            except Exception:
                pass
        if queries[0].get("fails"):
            raise ValueError("no price")
        if queries[0].get("spins"):
            while True:
                pass
        return []
"""


async def perform(name: str, arguments: dict[str, Any]) -> Any:
    """Answers by the host that is asked for."""
    if "refused" in arguments["url"]:
        raise ProcessorError("E325", "this host is not allowed")
    if "late" in arguments["url"]:
        return Attached({"failed": "timeout", "text": "no answer"}, b"")
    return Attached({"status": 201, "headers": [], "url": arguments["url"]}, b"answer")


def told(calls: Any) -> list[tuple[Any, ...]]:
    return [(c.group, c.name, c.host, c.status, c.code, c.bytes_out, c.bytes_in) for c in calls]


async def test_a_run_says_which_calls_it_made(spawned: Any, one: Any) -> None:
    """In order, by their group: where to, how they ended and how much was sent; not what."""
    urls = ["https://Api.Example.com:8443/secret?q=1", "http://refused/x", "http://late/x", "no url"]
    async with spawned(CALLS, perform) as guest:
        outcome = await guest.run([one({"urls": []}, key="a"), one({"urls": urls}, key="b")])
        assert isinstance(outcome, Ran)
        assert told(outcome.calls) == [
            (1, "requests", "api.example.com", 201, "", 5, 6),
            (1, "requests", "refused", None, "E325", 5, 0),
            (1, "requests", "late", None, "E317", 5, 0),
            (1, "requests", "", 201, "", 5, 6),
        ]
        assert all(0 <= call.seconds < outcome.wall_s for call in outcome.calls)
        assert "secret" not in repr(outcome.calls)
        outcome = await guest.run([one({"urls": []}, key="a", context=None)])
        assert outcome.calls == []


async def test_a_run_that_fails_says_so_too(spawned: Any, one: Any) -> None:
    """With what it used of the processor: compute costs, whatever came of it."""
    async with spawned(CALLS, perform) as guest:
        outcome = await guest.run([one({"urls": ["http://a/"], "fails": True})])
        assert isinstance(outcome, Failed)
        assert told(outcome.calls) == [(0, "requests", "a", 201, "", 5, 6)]
        assert 0 < outcome.cpu_s <= outcome.wall_s


@pytest.mark.parametrize("limit", ["cpu_s", "wall_s"])
async def test_a_run_that_ends_its_guest_says_so_too(spawned: Any, one: Any, limit: str) -> None:
    """As it was when the guest was last seen."""
    async with spawned(CALLS, perform, **{limit: 0.3}) as guest:
        outcome = await guest.run([one({"urls": ["http://a/"], "spins": True})])
        assert isinstance(outcome, Failed)
        assert outcome.failure.lethal
        assert told(outcome.calls) == [(0, "requests", "a", 201, "", 5, 6)]
        assert outcome.cpu_s > 0.05
        assert outcome.wall_s >= 0.3
        again = await guest.run([one({"urls": []})])
        assert isinstance(again, Failed)
        assert (again.calls, again.wall_s, again.cpu_s) == ((), 0.0, 0.0)


async def test_a_call_that_its_guest_does_not_outlive_is_recorded() -> None:
    """It was made, and nobody knows what came of it."""
    calls = RunCalls(Limits(), [Group("", [b"1"])], None)

    async def is_cut(name: str, arguments: dict[str, Any]) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await calls.making(0, "stock", is_cut)({"symbol": "X"})
    [call] = calls.made
    assert call == Call(0, "stock", "", None, "E314", call.seconds, 0, 0)


async def test_a_call_that_is_not_made_is_not_recorded() -> None:
    """One beyond the limit, or of a capability that there is not, went nowhere."""
    calls = RunCalls(Limits(requests=1), [Group("", [b"1"])], None)
    with pytest.raises(ProcessorError, match="E317"):
        await calls.making(0, "stock", None)({})
    with pytest.raises(ProcessorError, match="E322"):
        await calls.making(0, "stock", perform)({})
    assert calls.made == []
