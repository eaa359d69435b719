"""What a Runnable sees of the messages in hand, in real guests and both languages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from processor.errors import Faults
from processor.library import SecureRunnableBuilder, SecurityConfig
from processor.model import Delivery, Failed, Group, Ran
from processor.model import RawHeaders as Sent
from processor.runnable import Headers, Message
from processor.sandbox.host import Guest
from processor.sandbox.messages import columns

Spawned = Callable[..., AbstractAsyncContextManager[Guest]]

SHOW = """
def show(message):
    return [message.key, message.subject, message.stream, message.sequence, message.attempt, message.index,
            dict(message.headers), message.time.isoformat()]

class Runnable:
    def process(self, queries):
        return {"key": self.key, "messages": [show(message) for message in self.messages]}
"""
AT_S = 1_790_000_000.25
AT = "2026-09-21T14:13:20.250000+00:00"


def delivery(sequence: int, headers: Any = None, subject: str = "in.a") -> Delivery:
    return Delivery(subject, b"", Sent.of(headers or {}), "IN", sequence, AT_S)


@pytest.fixture(params=["restricted", "python"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def documents(outcome: Any) -> list[Any]:
    assert isinstance(outcome, Ran), outcome
    return [orjson.loads(output.body) for output in outcome.outputs]


async def test_each_query_has_its_message(spawned: Spawned, language: str) -> None:
    """A group sees its own; a list's message is there for each document, a rejected one not at all."""
    async with spawned(SHOW, language=language) as guest:
        groups = [Group("k", [b"1", b"nope", b"[2, 3]", b"[]"], {}), Group("ü", [b"4"], {})]
        deliveries = [
            delivery(7),
            delivery(8),
            delivery(9, {"a": "ä", "Nats-Msg-Id": "x"}, "in.b"),
            delivery(10),
            delivery(12),
        ]
        outcome = await guest.run(groups, messages=columns(deliveries, [0, 0, 2, 0, 0]))
        assert documents(outcome) == [
            {
                "key": "k",
                "messages": [
                    ["k", "in.a", "IN", 7, 1, 0, {}, AT],
                    ["k", "in.b", "IN", 9, 3, 0, {"a": "ä"}, AT],
                    ["k", "in.b", "IN", 9, 3, 1, {"a": "ä"}, AT],
                ],
            },
            {"key": "ü", "messages": [["ü", "in.a", "IN", 12, 1, 0, {}, AT]]},
        ]
        again = await guest.run([Group("k", [b"5"])], messages=columns([delivery(13)], ()))
        assert [row[3] for row in documents(again)[0]["messages"]] == [13]


async def test_bytes_that_are_not_utf8_are_replaced_in_what_a_runnable_sees(spawned: Spawned) -> None:
    """A subject or a header of another encoding is U+FFFD there, and hurts no message beside it."""
    source = """
    class Runnable:
        def process(self, queries):
            return [[m.subject, m.headers.get_list("a")] for m in self.messages]
    """
    taken = [
        delivery(7, subject="in.\udce9t"),
        delivery(8, [("a", b"\xff"), ("a", "2"), ("Nats-Msg-Id", "x")]),
    ]
    async with spawned(source) as guest:
        outcome = await guest.run([Group("", [b"1", b"2"], {})], messages=columns(taken, ()))
        assert documents(outcome) == [["in.\ufffdt", []], ["in.a", ["\ufffd", "2"]]]


async def test_a_stream_call_has_one_message(spawned: Spawned, language: str) -> None:
    """process_stream is called for one document, and self.message is its own, index included."""
    source = """
    class Runnable:
        def process_stream(self, query):
            yield [query, self.message.index, self.message.sequence, len(self.messages)]
    """
    async with spawned(source, language=language) as guest:
        chunks: list[Any] = []

        async def take(chunk: bytes) -> None:
            chunks.append(orjson.loads(chunk))

        await guest.stream(Group("k", [b'["a", "b"]'], {}), take, messages=columns([delivery(5)], ()))
        assert chunks == [["a", 0, 5, 1], ["b", 1, 5, 1]]


async def test_the_one_message_is_there_where_there_is_one(spawned: Spawned, language: str) -> None:
    """In process self.message is the only message, be it a list of documents; else a ValueError says why."""
    source = """
    class Runnable:
        def process(self, queries):
            try:
                return self.message.sequence
            except ValueError as err:
                return str(err)
    """
    async with spawned(source, language=language) as guest:
        groups = [Group("a", [b"[1, 2]"], {}), Group("b", [b"1", b"2", b"3"], {})]
        outcome = await guest.run(groups, messages=columns([delivery(n) for n in range(1, 5)], ()))
        assert documents(outcome) == [1, "3 messages are in hand; use self.messages"]
        assert documents(await guest.run([Group("a", [b"1"])])) == [
            "no message is in hand; use self.messages"
        ]


async def test_init_belongs_to_no_message(spawned: Spawned, language: str) -> None:
    """In init all three are a RuntimeError that says where they are for."""
    source = """
    class Runnable:
        def init(self):
            self.said = []
            for name in ("messages", "message", "key"):
                try:
                    getattr(self, name)
                except RuntimeError as err:
                    self.said.append(str(err))

        def process(self, queries):
            return self.said
    """
    async with spawned(source, language=language) as guest:
        outcome = await guest.run([Group("", [b"1"], {})], messages=columns([delivery(1)], ()))
        assert documents(outcome) == [
            f"self.{name} is for process and process_stream; init belongs to no message"
            for name in ("messages", "message", "key")
        ]


async def test_a_name_of_the_users_own_wins(spawned: Spawned, language: str) -> None:
    """A Runnable that sets self.messages or defines a method key has its own, as before these were there."""
    source = """
    class Runnable:
        def init(self):
            self.messages = ["mine"]
            self.message = 1

        def key(self, query):
            return query * 2

        def process(self, queries):
            self.messages.append("more")
            return [self.messages, self.message, self.key(queries[0])]
    """
    async with spawned(source, language=language) as guest:
        outcome = await guest.run([Group("", [b"21"], {})], messages=columns([delivery(1)], ()))
        assert documents(outcome) == [["mine", "more"], 1, 42]


async def test_a_message_cannot_be_changed(spawned: Spawned, language: str) -> None:
    """Neither a field nor a header of a message can be set, and it has no others."""
    source = """
    def field(message):
        message.subject = "x"

    def other(message):
        message.other = 1

    def header(message):
        message.headers["a"] = "b"

    class Runnable:
        def process(self, queries):
            refused = []
            for change in (field, other, header):
                try:
                    change(self.message)
                except (AttributeError, TypeError):
                    refused.append(change.__name__)
            return [refused]
    """
    async with spawned(source, language=language) as guest:
        outcome = await guest.run([Group("", [b"1"], {})], messages=columns([delivery(1)], ()))
        assert documents(outcome) == [["field", "other", "header"]]


def test_the_library_gives_the_messages_of_its_caller(language: str) -> None:
    """Without messages= there is none; with them they are as the caller made them, one for each query."""
    at = datetime(2026, 9, 21, 14, 13, 20, 250_000, tzinfo=UTC)
    made = [
        Message(key="k", subject="in.a", stream="IN", sequence=3, attempt=2, time=at),
        Message(key="k", sequence=4, index=1, headers=Headers({"a": "b"}), time=at),
    ]
    with SecureRunnableBuilder(SecurityConfig(language=language)).compile(SHOW) as runnable:
        assert runnable.process([1]) == [{"key": "", "messages": []}]
        assert runnable.process([1, [2]], messages=made) == [
            {
                "key": "k",
                "messages": [
                    ["k", "in.a", "IN", 3, 2, 0, {}, AT],
                    ["k", "", "", 4, 1, 1, {"a": "b"}, AT],
                ],
            }
        ]
        with pytest.raises(ValueError, match="2 messages for 1 queries; give one for each, or none"):
            runnable.process([1], messages=made)


def test_the_library_streams_with_a_message(language: str) -> None:
    """message= is self.message of process_stream."""
    source = "class Runnable:\n    def process_stream(self, query):\n        yield self.message.subject\n"
    with SecureRunnableBuilder(SecurityConfig(language=language)).compile(source) as runnable:
        assert list(runnable.process_stream({}, message=Message(subject="in.x"))) == ["in.x"]


async def test_what_editors_know_can_be_imported(spawned: Spawned, language: str) -> None:
    """processor.runnable has the guest's own names, however it is imported."""
    source = """
    import processor.runnable
    import processor.runnable as short
    from processor import runnable as module
    from processor.runnable import BaseSecureRunnable as Base, Message as Sent, Reject as No, Retry as Later

    same = [Base is BaseSecureRunnable, Sent is Message, No is Reject, Later is Retry,
            processor.runnable.Message is Sent, short.Message is Sent, module.Headers is Headers]

    class Runnable(Base):
        def process(self, queries):
            if queries == [1]:
                raise No("final")
            return [same, isinstance(self.message, Sent), isinstance(self, BaseSecureRunnable)]
    """
    async with spawned(source, language=language) as guest:
        outcome = await guest.run([Group("", [b"0"], {})], messages=columns([delivery(1)], ()))
        assert documents(outcome) == [[True] * 7, True, True]
        failed = await guest.run([Group("", [b"1"])])
        assert isinstance(failed, Failed)
        assert (failed.failure.code, failed.failure.text) == ("E305", "final")


async def test_a_name_that_is_not_there_is_refused(spawned: Spawned) -> None:
    """A misspelt name of the import is a fault of the program, with those that there are."""
    with pytest.raises(Faults) as refused:
        async with spawned("from processor.runnable import Mesage\nclass Runnable:\n    process = len\n"):
            pass
    [fault] = refused.value.faults
    assert fault.code == "E203"
    assert "processor.runnable has here: AuthorityKernelError, BaseSecureRunnable" in fault.text
    assert "Headers" in fault.text
    assert "Message" in fault.text
