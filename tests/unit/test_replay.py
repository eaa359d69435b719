"""Which answers a message gets again when it is run again, and the keys that tell a server so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from processor.delivery.replay import Replay
from processor.errors import ProcessorError
from processor.model import Delivery, Group
from processor.sandbox.wire import Attached

Script = Sequence[tuple[int, str]]  # of a run: the group that calls, and what it posts


class Server:
    """Counts what it is asked; `answers` are what it says next, 200 where there is none."""

    def __init__(self, across: Literal["attempt", "writes", "all"] = "attempt", **more: Any) -> None:
        self.asked: list[tuple[str, str]] = []  # body and idempotency key
        self.answers: list[int | str] = []
        self.repeated = 0
        self.replay = Replay(("app", "r", "2026"), across, {"key": "mark-1"}, self._note, **more)

    def _note(self) -> None:
        self.repeated += 1

    async def make(self, arguments: dict[str, Any]) -> Attached:
        self.asked.append((arguments["body"].decode(), arguments["idempotency_key"]))
        said = self.answers.pop(0) if self.answers else 200
        if isinstance(said, str):
            raise ProcessorError(said, "refused")
        return Attached(
            {"status": said} if said else {"failed": "timeout", "text": ""}, b"%d" % len(self.asked)
        )

    def run(self, keys: str, script: Script, method: str = "POST", start: int = 1) -> tuple[list[bytes], Any]:
        """What the calls of a run are answered; `keys` has a letter per message, the key of its group."""
        groups, members = batch(keys, start)
        calls = self.replay.calls(groups, members)

        async def go() -> list[bytes]:
            heard = []
            for group, body in script:
                arguments = {"method": method, "url": "http://a/", "body": body.encode(), "kind": "raw"}
                heard.append((await calls.answer(group, "requests", arguments, self.make)).body)
            return heard

        return asyncio.run(go()), calls

    @property
    def bodies(self) -> list[str]:
        return [body for body, _ in self.asked]

    @property
    def keys(self) -> list[str]:
        return [key for _, key in self.asked]


def batch(keys: str, start: int = 1) -> tuple[list[Group], list[list[Delivery]]]:
    taken = [Delivery(key, b"", {}, "IN", start + number, 0.0) for number, key in enumerate(keys)]
    names = list(dict.fromkeys(keys))
    return [Group(name, []) for name in names], [[d for d in taken if d.subject == name] for name in names]


def test_a_message_that_runs_again_in_the_same_try_is_answered_from_memory() -> None:
    """Calls of other messages, and calls that it had not made, are made."""
    server = Server()
    server.run("abc", [(0, "1"), (1, "2")])
    heard, _ = server.run("ab", [(0, "1"), (1, "2"), (1, "new")])
    assert heard == [b"1", b"2", b"3"]
    assert (server.bodies, server.repeated) == (["1", "2", "new"], 0)
    server.run("c", [(0, "1")], start=3)
    assert server.bodies == ["1", "2", "new", "1"]


def test_the_same_request_is_answered_as_often_as_it_was_made() -> None:
    """First in, first out: each answer is handed out once in a run, and parts of a group share them."""
    server = Server()
    server.run("aaa", [(0, "x")] * 3)
    first, _ = server.run("aa", [(0, "x")] * 2)
    server.replay.settled(*batch("aa"))
    second, _ = server.run("a", [(0, "x")] * 2, start=3)
    assert (first, second) == ([b"1", b"2"], [b"3", b"4"])
    assert len(set(server.keys)) == 4


def test_the_same_request_twice_at_a_time_is_two_calls() -> None:
    """Each has a key of its own while both are on their way, and when it is made again in the next run."""

    async def main() -> None:
        server = Server()
        arrived, leave = asyncio.Semaphore(0), asyncio.Event()

        async def make(arguments: dict[str, Any]) -> Attached:
            arrived.release()
            await leave.wait()
            return await server.make(arguments)

        async def both() -> list[bytes]:
            calls = server.replay.calls(*batch("a"))
            arguments = {"method": "POST", "url": "http://a/", "body": b"x", "kind": "raw"}
            asked = [asyncio.create_task(calls.answer(0, "requests", arguments, make)) for _ in range(2)]
            for _ in asked:
                await arrived.acquire()
            leave.set()
            return [(await each).body for each in asked]

        assert await both() == [b"1", b"2"]
        assert len(set(server.keys)) == 2
        server.replay.failed(*batch("a"))  # the answers are not kept for the next try
        leave.clear()
        assert await both() == [b"3", b"4"]
        assert server.keys[:2] == server.keys[2:]
        assert server.repeated == 2

    asyncio.run(main())


def test_nothing_is_left_of_settled_messages() -> None:
    """A later message with the same request makes its own call."""
    server = Server()
    server.run("ab", [(0, "x"), (1, "x")])
    server.replay.settled(*batch("ab"))
    assert (server.replay._calls, server.replay._bytes) == ({}, 0)
    server.run("a", [(0, "x")], start=3)
    assert len(server.asked) == 3
    assert len(set(server.keys)) == 3


@pytest.mark.parametrize(
    ("across", "method", "status", "made"),
    [
        ("attempt", "POST", 200, 2), ("attempt", "GET", 200, 2), ("writes", "POST", 200, 1),
        ("writes", "DELETE", 204, 1), ("writes", "GET", 200, 2), ("writes", "POST", 404, 2),
        ("all", "GET", 200, 1), ("all", "POST", 404, 1), ("all", "POST", 429, 2),
        ("all", "POST", 500, 2), ("all", "GET", 0, 2),
    ],
)  # fmt: skip
def test_what_the_next_try_gets(across: Any, method: str, status: int, made: int) -> None:
    """`calls.replay` says which answers outlive a try; a call that failed is made again in any case."""
    server = Server(across)
    server.answers = [status]
    server.run("a", [(0, "x")], method)
    server.replay.failed(*batch("a"))
    server.run("a", [(0, "x")], method)
    assert (len(server.asked), len(set(server.keys)), server.repeated) == (made, 1, made - 1)


@pytest.mark.parametrize("failure", [0, 429, 503])
def test_a_failed_call_is_made_again_with_the_same_key(failure: int) -> None:
    """In the same try, by the program itself, and wherever its message runs then."""
    server = Server()
    server.answers = [200, failure, failure]
    server.run("aa", [(0, "x"), (0, "y"), (0, "y")])
    server.run("a", [(0, "y")], start=2)
    assert server.bodies == ["x", "y", "y", "y"]
    assert len(set(server.keys[1:])) == 1
    assert server.repeated == 1  # the program's own second call is its business


def test_a_streamed_answer_is_not_kept_and_its_keys_are_its_own() -> None:
    """What was pulled is asked for again with its key, and the same request twice in a run is two calls."""
    server = Server("all")

    async def run() -> list[Any]:
        calls = server.replay.calls(*batch("a"))
        arguments = {"method": "POST", "url": "http://a/", "body": b"x", "kind": "raw", "stream": True}

        async def make(given: dict[str, Any]) -> Attached:
            await server.make(given)
            return Attached({"status": 200, "stream": len(server.asked)}, b"")

        return [(await calls.answer(0, "requests", arguments, make)).value["stream"] for _ in range(2)]

    assert [asyncio.run(run()), asyncio.run(run())] == [[1, 2], [3, 4]]
    assert server.keys[:2] == server.keys[2:]
    assert len(set(server.keys)) == 2
    assert server.repeated == 2


def test_a_refused_call_counts_as_not_made() -> None:
    """What the host did not send is no repetition when it is sent."""
    server = Server()
    server.answers = ["E322"]
    with pytest.raises(ProcessorError):
        server.run("a", [(0, "x")])
    server.run("a", [(0, "x")])
    assert (len(server.asked), server.repeated) == (2, 0)


def test_a_message_that_runs_alone_has_the_same_keys_in_every_process() -> None:
    """They are made of the route, its input, the message, the request and its number among the same ones."""
    ours, theirs = Server(), Server()
    ours.run("ab", [(0, "x"), (0, "x"), (1, "x"), (1, "mark-1")])
    theirs.run("a", [(0, "y"), (0, "x"), (0, "x")])
    theirs.replay._marks = [(b"mark-2", b"secret.key")]
    theirs.run("b", [(0, "x"), (0, "mark-2")], start=2)
    assert theirs.keys[1:3] + theirs.keys[3:] == ours.keys
    assert len(set(ours.keys)) == 4


def test_no_two_requests_share_a_key_however_a_batch_is_split() -> None:
    """A group of several messages has keys of its own, since whose call it was is not known."""
    servers = [Server() for _ in range(3)]
    servers[0].run("aa", [(0, "x"), (0, "x")])
    servers[1].run("a", [(0, "x")])
    servers[2].run("a", [(0, "x")], start=2)
    keys = [key for server in servers for key in server.keys]
    assert len(set(keys)) == 4


def test_a_run_with_too_many_bytes_of_answers_is_cut() -> None:
    """The rest of its calls are refused, and what was called is answered from memory in its parts."""
    server = Server(max_bytes=2_000)
    groups, members = batch("abcdef")
    calls = server.replay.calls(groups, members)

    async def go() -> None:
        for group in range(6):
            arguments = {"method": "GET", "url": "http://a/", "body": str(group).encode(), "kind": "raw"}
            await calls.answer(group, "requests", arguments, server.make)

    with pytest.raises(ProcessorError, match="in parts"):
        asyncio.run(go())
    assert (calls.cut, server.bodies) == (3, ["0", "1", "2", "3"])
    heard, part = server.run("abc", [(0, "0"), (1, "1"), (2, "2")], "GET")
    assert (heard, part.cut) == ([b"1", b"2", b"3"], None)
    server.replay.settled(*batch("abc"))
    heard, part = server.run("d", [(0, "3")], "GET", start=4)
    assert (heard, part.cut, server.repeated) == ([b"4"], None, 0)


def test_answers_of_messages_that_wait_make_room() -> None:
    """What runs may need every answer; what waits for its next try is the first to call again."""
    server = Server("all", max_bytes=1_200)
    server.run("a", [(0, "x")])
    server.replay.failed(*batch("a"))
    _, calls = server.run("bc", [(0, "y"), (1, "z")], start=2)
    assert calls.cut is None
    server.replay.settled(*batch("bc", 2))
    server.run("a", [(0, "x")])
    assert server.bodies == ["x", "y", "z", "x"]


def test_a_message_alone_is_never_cut() -> None:
    """There is no smaller part of it: answers beyond the bound are not kept."""
    server = Server(max_bytes=1_200)
    _, calls = server.run("a", [(0, "x"), (0, "y"), (0, "z")])
    assert calls.cut is None
    server.run("a", [(0, "x"), (0, "y"), (0, "z")])
    assert server.bodies == ["x", "y", "z", "z"]
    assert server.repeated == 1


def test_calls_that_fail_are_kept_within_the_bound_too() -> None:
    """While a server is down, those that have waited longest are let go; their keys stay what they were."""
    server = Server(max_bytes=20_000)
    server.answers = [503] * 201
    for number in range(1, 201):
        server.run("a", [(0, "x")], start=number)
        server.replay.failed(*batch("a", number))
        assert server.replay._bytes <= 20_000
    server.run("a", [(0, "x")], start=200)
    assert server.repeated == 1
    server.run("a", [(0, "x")], start=1)
    assert server.repeated == 1
    assert (server.keys[-2], server.keys[-1]) == (server.keys[199], server.keys[0])


@pytest.mark.parametrize("name", ["heap", "authorize", "audit"])
def test_what_the_rules_say_is_asked_anew(name: str) -> None:
    """A message that runs again hears of the rules as they are then, and not as they were."""
    server = Server("all")
    groups, members = batch("a")
    said: list[dict[str, Any]] = []

    async def make(arguments: dict[str, Any]) -> Any:
        said.append(arguments)
        return len(said)

    async def go() -> list[Any]:
        arguments = {"method": "alloc", "type": "a"}
        return [await server.replay.calls(groups, members).answer(0, name, arguments, make) for _ in range(2)]

    assert asyncio.run(go()) == [1, 2]
    assert server.repeated == 0
