"""A message that is written down is read back as it was: subject, payload, and every byte of its headers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.context.parked import ParkedMessage, ParkedMessages, Unfit, arrived, joined
from processor.jetstream import Outgoing, Stored, encode
from processor.jetstream.protocol import parse_head
from processor.model import Delivery, Failure, RawHeaders

MAX_BYTES = 8192
NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)
OURS = ["x-route", "x-part", "x-error-code", "x-original-headers-bytes", "x-original-header-x", "Dealt-From"]
names = st.one_of(st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}\Z"), st.sampled_from(OURS))
values = st.binary(max_size=60).filter(lambda raw: b"\r\n" not in raw and not raw.endswith(b"\r"))
sent = st.lists(st.tuples(names.filter(lambda name: not name.startswith("Nats-")), values), max_size=8)
subjects = st.sampled_from(["in.a", "in.\udce9t\udce9", "in.a\x0b\x0c\rb"])
letters = ParkedMessages("app", "r", MAX_BYTES)


def delivery(headers: RawHeaders, payload: bytes = b"{}", subject: str = "in.a") -> Delivery:
    return Delivery(subject, payload, headers, "IN", 7, 1.5)


def lines(*pairs: tuple[str, bytes]) -> RawHeaders:
    """Headers as a client writes them."""
    return RawHeaders(b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in pairs))


def stored(message: Outgoing) -> Stored:
    """What a stream gives back of a message that was sent to it, one that must fit into it."""
    line, _, rest = encode(message, "").partition(b"\r\n")
    head_bytes, size = (int(word) for word in line.split(b" ")[-2:])
    assert head_bytes < 1 << 16
    assert size <= MAX_BYTES
    return Stored(message.subject, 9, rest[head_bytes:size], parse_head(rest[:head_bytes]), 2.5)


def read(message: Outgoing) -> ParkedMessage:
    kept = joined([stored(message)])
    assert kept is not None
    return kept


KINDS: dict[str, Callable[[Delivery], Delivery]] = {
    "due": lambda d: read(letters.due(d, 3, "7-a")).delivery,
    "later": lambda d: read(letters.later(d, 3, 2, NOW)).delivery,
    "held": lambda d: read(letters.held(d, 3, "k", 2)).delivery,
}


@pytest.mark.parametrize("kind", KINDS)
@given(headers=sent, payload=st.binary(max_size=200), subject=subjects)
def test_what_is_kept_is_read_back(
    kind: str, headers: list[tuple[str, bytes]], payload: bytes, subject: str
) -> None:
    """Order, repeated names, bytes that are not UTF-8, and names that we use ourselves."""
    found = KINDS[kind](delivery(lines(*headers), payload, subject))
    assert (found.subject, found.payload, found.stream, found.sequence) == (subject, payload, "IN", 7)
    assert found.headers.pairs == lines(*headers).pairs


@given(
    payload=st.binary(max_size=3 * MAX_BYTES),
    headers=st.lists(
        st.tuples(names, st.binary(max_size=900).filter(lambda b: b"\r\n" not in b)), max_size=12
    ),
    text=st.text(max_size=2000),
)
def test_a_dead_letter_fits_and_gives_the_message_back(
    payload: bytes, headers: list[tuple[str, bytes]], text: str
) -> None:
    """Parts stay below the server's limit and, put together, are the payload with the sender's headers."""
    theirs = lines(*headers)
    written = letters.dead(delivery(theirs, payload), 3, Failure("E304", text), 2, NOW)
    parts = [stored(message) for message in written]
    first = parts[0].headers
    assert (first["x-error-code"], first["x-route"], first["x-original-sequence"]) == ("E304", "r", "7")
    if len(parts) > 1:
        assert [part.headers["x-part"] for part in parts] == [
            f"{number}/{len(parts)}" for number in range(1, len(parts) + 1)
        ]
    kept = joined(parts)
    assert kept is not None
    assert (kept.delivery.payload, kept.delivery.headers.pairs, kept.tries) == (payload, theirs.pairs, 2)


def test_a_letter_of_before_may_have_a_page_of_its_senders() -> None:
    """Older versions wrote no page of an error: a sender's header of that name is kept as it came."""
    [letter] = letters.dead(delivery(lines(("Trace", b"t"))), 3, Failure("E304", "no"), 1, NOW)
    page = ("x-error-page", b"reference/errors/#e304")
    assert page in letter.headers.pairs
    older = [("x-error-page", b"oops.html"), *(pair for pair in letter.headers.pairs if pair != page)]
    kept = joined([stored(letter._replace(headers=lines(*older)))])
    assert kept is not None
    assert kept.delivery.headers.pairs == [("x-error-page", b"oops.html"), ("Trace", b"t")]


@given(headers=sent, subject=subjects)
def test_what_is_dealt_twice_keeps_its_headers_and_its_first_place(
    headers: list[tuple[str, bytes]], subject: str
) -> None:
    """The partition sees the sender's headers, and behind them where the message was before."""
    first = stored(letters.dealt(delivery(lines(*headers), b"{}", subject), 3))
    once = arrived(Delivery(first.subject, first.payload, first.headers, "P_app", 40, 2.5))
    again = stored(letters.dealt(once, 4))
    twice = arrived(Delivery(again.subject, again.payload, again.headers, "P_app", 41, 3.5))
    place = [("x-source-stream", b"IN"), ("x-source-sequence", b"7")]
    for found, partition in ((once, 3), (twice, 4)):
        assert (found.subject, found.payload, found.timestamp_s) == (subject, b"{}", 1.5)
        assert (found.dealt, found.headers.pairs) == (partition, [*lines(*headers).pairs, *place])


@pytest.mark.parametrize("kind", [*KINDS, "dealt", "dead"])
def test_headers_that_leave_no_room_for_ours_go_into_the_body(kind: str) -> None:
    """The server stores 65,535 bytes of them: with ours they are more, and come back all the same."""
    large = ParkedMessages("app", "r", 1 << 20)
    theirs = lines(("X-Baggage", b"v" * 65_400), ("X-Tag", b"\xff"), ("X-Tag", b"two"))
    original = delivery(theirs, b'{"i":1}')
    written = {
        "due": lambda: large.due(original, 3, "7-a"),
        "later": lambda: large.later(original, 3, 2, NOW),
        "held": lambda: large.held(original, 3, "k", 2),
        "dealt": lambda: large.dealt(original, 3),
        "dead": lambda: large.dead(original, 3, Failure("E304", "no"), 1, NOW)[0],
    }[kind]()
    assert isinstance(written.headers, RawHeaders)
    assert len(written.headers.lines) < 4096
    if kind == "dealt":
        found = arrived(Delivery(written.subject, written.payload, written.headers, "P_app", 40, 2.5))
        assert found.headers.pairs[:-2] == theirs.pairs
    else:
        kept = joined([Stored(written.subject, 9, written.payload, written.headers)])
        assert kept is not None
        found = kept.delivery
        assert found.headers.pairs == theirs.pairs
    assert found.payload == b'{"i":1}'


def test_a_message_that_fills_a_message_is_unfit() -> None:
    """With where it came from it would be larger than the server takes."""
    with pytest.raises(Unfit, match="8000 bytes of payload leave no room"):
        letters.due(delivery(RawHeaders(), bytes(8000)), 3, "7-a")


def test_what_a_copied_letter_says_of_itself_is_not_taken_for_its_senders() -> None:
    """Whoever publishes a dead letter again as it is sends our headers, too; they do not pile up."""
    [letter] = letters.dead(delivery(lines(("Trace", b"t"))), 3, Failure("E304", "no"), 1, NOW)
    copy = delivery(stored(letter).headers)
    assert KINDS["due"](copy).headers.pairs == [("Trace", b"t")]


def test_headers_that_an_earlier_build_put_into_the_body_are_read() -> None:
    """0.1.0 wrote them as a JSON object."""
    block = orjson.dumps({"Trace": "t-1", "Colour": "blau"})
    headers = RawHeaders.of(
        {
            "x-original-subject": "in.a",
            "x-original-stream": "IN",
            "x-original-sequence": "7",
            "x-delivery-count": "2",
            "x-original-headers-bytes": str(len(block)),
        }
    )
    kept = joined([Stored("p.app.dlq.r.3.7", 9, block + b"payload", headers)])
    assert kept is not None
    assert kept.delivery.headers == {"Trace": "t-1", "Colour": "blau"}
    assert kept.delivery.payload == b"payload"


def test_headers_as_text_are_the_last_of_a_name() -> None:
    """What is not UTF-8 shows as U+FFFD there; names with white space or other letters are not seen."""
    headers = lines(("A", b"1"), ("a", b"2"), ("A", b"\xff"), ("b c", b"3"), ("n\u00e4me", b"4"))
    assert headers == {"A": "\ufffd", "a": "2"}
    assert headers.raw("A") == b"\xff"
    assert headers.pairs == [("A", b"1"), ("a", b"2"), ("A", b"\xff")]
