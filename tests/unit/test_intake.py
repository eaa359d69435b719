"""The bytes of a server, taken apart as nats-py does it, however they are cut into pieces."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from processor.jetstream.intake import Intake
from processor.jetstream.protocol import parse_head, status_of

Heard = tuple[str, str, dict[str, str], bytes]

SHORT, LONG = 1, 22  # numbers of two subscriptions
TOKEN = st.text("abcXYZ09$._-", min_size=1, max_size=30)
HEADS = st.sampled_from(
    [
        b"",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\na: 1\r\nb:two\r\nc:\r\nNats-Expected: x:y \r\n\r\n",
        b"NATS/1.0\r\na: 1\r\na: 2\r\n\r\n",
        "NATS/1.0\r\nname: ä😀\r\nnämé: 1\r\nno colon\r\nwith space: 1\r\n\r\n".encode(),
        b"NATS/1.0\r\nbroken: \xff\xfe\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\nNats-Last-Stream: 4\r\n\r\n",
    ]
)
PAYLOADS = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"MSG a 1 0\r\n\r\n", b"PING\r\n", b"x" * 5000])
)


class Ears(Client):
    """A client that is not connected: it notes what its parser makes of the bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    async def _process_msg(  # type: ignore[override]
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        found = await self._process_headers(headers) or {}
        self.heard.append((subject.decode(), reply.decode(), found, data))

    async def _process_ping(self) -> None:
        self.heard.append("ping")

    async def _process_pong(self) -> None:
        self.heard.append("pong")

    async def _process_info(self, info: Any, initial_connection: bool = False) -> None:  # type: ignore[override]
        self.heard.append(info)

    async def _process_err(self, err: str) -> None:  # type: ignore[override]
        self.heard.append(err)

    def take(self, subject: str, reply: str, head: bytes, payload: bytes) -> None:
        said = {
            name: word for name, word in zip(("Status", "Description"), status_of(head), strict=True) if word
        }
        self.heard.append((subject, reply, {**said, **parse_head(head)}, payload))


class Ticket:
    """As much of a subscription as `Intake` knows of one."""

    def __init__(self, sid: int) -> None:
        self._id = sid


def intake(ears: Ears) -> Intake:
    parser = Intake(ears)
    for sid in (SHORT, LONG):
        parser.hand(Ticket(sid), ears.take)  # type: ignore[arg-type]
    return parser


@st.composite
def commands(draw: st.DrawFn) -> bytes:
    plain = [b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"a":1}\r\n', b"-ERR 'Permissions Violation'\r\n"]
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(plain))
    head, payload = draw(HEADS), draw(PAYLOADS)
    reply = draw(st.one_of(st.just(""), TOKEN))
    words = [draw(TOKEN), str(draw(st.sampled_from([SHORT, LONG])))] + ([reply] if reply else [])
    if head:
        line = ["HMSG", *words, str(len(head)), str(len(head) + len(payload))]
    else:
        line = ["MSG", *words, str(len(payload))]
    return " ".join(line).encode() + b"\r\n" + head + payload + b"\r\n"


async def heard(parser: Parser, ears: Ears, pieces: list[bytes]) -> list[Any]:
    for piece in pieces:
        await parser.parse(piece)
    return ears.heard


@given(st.lists(commands(), max_size=12), st.lists(st.integers(0, 9000), max_size=8))
def test_it_hears_what_nats_py_hears_however_the_bytes_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    """Messages of both subscriptions, in their order: empty ones, and what looks like commands."""
    data = b"".join(sent)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    theirs, ours = Ears(), Ears()
    expected = asyncio.run(heard(Parser(theirs), theirs, [data]))
    assert asyncio.run(heard(intake(ours), ours, pieces)) == expected


def test_half_a_message_is_forgotten_with_its_connection() -> None:
    """What the next connection sends is not the rest of it."""
    ears = Ears()
    parser = intake(ears)
    asyncio.run(parser.parse(b"MSG a 1 100\r\nhalf of"))
    parser.reset()
    asyncio.run(parser.parse(b"MSG b 1 3\r\nall\r\n"))
    assert ears.heard == [("b", "", {}, b"all")]


@pytest.mark.parametrize(
    "line", [b"HELO\r\n", b"MSG a\r\n", b"MSG a 1 x\r\n", b"HMSG a 1 r y 9\r\n", b"MGS a 1 1\r\n"]
)
def test_what_is_no_command_ends_the_connection(line: bytes) -> None:
    """As in nats-py, whose reading loop connects anew when its parser raises this."""
    with pytest.raises(ProtocolError):
        asyncio.run(intake(Ears()).parse(line + b"PING\r\n"))


def test_a_taker_that_fails_costs_its_message_only(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the fault; whoever else shares the connection goes on."""
    ears = Ears()
    parser = intake(ears)

    def fail(*_: object) -> None:
        raise ValueError("a fault of ours")

    parser.hand(Ticket(7), fail)  # type: ignore[arg-type]
    asyncio.run(parser.parse(b"MSG a 7 1\r\nx\r\nMSG b 1 1\r\ny\r\n"))
    assert ears.heard == [("b", "", {}, b"y")]
    assert "a fault of ours" in caplog.text


@given(
    st.binary(min_size=1, max_size=40).filter(lambda raw: not {*raw} & {*b" \t\n"} and b"\r" not in raw[-1:]),
    st.booleans(),
)
def test_a_subject_of_any_bytes_is_handed_over(subject: bytes, has_reply: bool) -> None:
    """Vertical tabs, single carriage returns and what is not UTF-8: it can be written again as it came."""
    ears = Ears()
    reply = subject[::-1] if has_reply and subject[:1] != b"\r" else b"reply"
    asyncio.run(intake(ears).parse(b"MSG %b 1 %b 2\r\nhi\r\nMSG b\t1\t1\r\ny\r\n" % (subject, reply)))
    (name, answer, _, payload), last = ears.heard
    assert [text.encode(errors="surrogateescape") for text in (name, answer)] == [subject, reply]
    assert (payload, last) == (b"hi", ("b", "", {}, b"y"))


def test_a_message_of_a_subscription_that_is_gone_is_skipped() -> None:
    """It was under way when the subscription ended, whatever its subject, which nats-py cannot read."""
    ears = Ears()
    parser = intake(ears)
    parser.leave(Ticket(SHORT))  # type: ignore[arg-type]
    asyncio.run(parser.parse(b"MSG \xff 1 1\r\nx\r\nMSG b 22 1\r\ny\r\n"))
    assert ears.heard == [("b", "", {}, b"y")]


def test_an_error_about_a_subject_of_other_bytes_is_heard() -> None:
    """The server repeats the subject of a message that it refuses."""
    ears = Ears()
    asyncio.run(intake(ears).parse(b"-ERR 'Permissions Violation for Publish to \"a.\xe9\"'\r\nPING\r\n"))
    assert ears.heard == ["'permissions violation for publish to \"a.\ufffd\"'", "ping"]


def test_an_error_of_the_client_ends_the_connection_and_not_the_reading() -> None:
    """nats-py connects anew after a ProtocolError; on any other its reading ends for good, in silence."""

    class Broken(Ears):
        async def _process_pong(self) -> None:
            raise asyncio.InvalidStateError

    with pytest.raises(ProtocolError):
        asyncio.run(intake(Broken()).parse(b"PONG\r\n"))


def test_headers_of_a_sender_are_not_the_servers_word() -> None:
    """Only the first line is; a header that is called `Status` is one like any other."""
    head = b"NATS/1.0\r\nStatus: 404\r\nDescription: gone\r\n\r\n"
    assert status_of(head) == ("", "")
    assert parse_head(head) == {"Status": "404", "Description": "gone"}
    assert status_of(b"NATS/1.0 404 No Messages\r\n\r\n") == ("404", "No Messages")
