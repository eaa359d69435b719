"""The record of a partition: what can be read is, and of the rest is told what can be told."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.audit import ChainHead
from processor.context import position
from processor.context.position import InputStream, Move, Position
from processor.errors import BrokerError
from processor.jetstream import Outgoing, Stored

GOOD: dict[str, Any] = {
    "v": 1, "stream": "IN", "created": "2026-01-31T08:00:00Z", "of": 64, "seq": 41, "epoch": 7, "owner": "me",
    "cid": "c", "ctx": {"a": {"n": [1.0, {"$set": [1]}]}, "b": {}},
}  # fmt: skip


# In the order in which a commit writes them.
FULL: dict[str, Any] = {
    **{name: GOOD[name] for name in ("v", "stream", "created", "of", "seq", "epoch")},
    "audit": {"n": 140, "head": "ab" * 32, "late": 10349},
    "owner": "me",
    "cid": "c",
    "key": "json./k",
    "lane": 2,
    "holds": True,
    "claims": 3,
    "open": {"39": 2, "40": 0},
    "blocked": {"k": 4},
    "spread": True,
    "ctx": GOOD["ctx"],
    "live": [["live.x", {"A": "b"}, "1"]],
    "resetting": 17,
    "deal": "0.9",
}


def stored(payload: bytes) -> Stored:
    return Stored("p.app.pos.r.5", 99, payload, {})


def test_a_record_comes_back_as_it_was_written() -> None:
    """Byte for byte, with every field and with none that need not be there."""
    for record in (GOOD, FULL):
        found = Position.read(stored(orjson.dumps(record)))
        assert Position.remains(stored(orjson.dumps(record))) == found
        assert found.encoded() == orjson.dumps(record)
        assert found.contexts == {"a": {"n": b'[1.0,{"$set":[1]}]'}, "b": {}}
        assert found.encoded() == orjson.dumps(record)


def test_every_field_of_a_record_is_told() -> None:
    """Each has the meaning that it was written with."""
    assert Position.read(stored(orjson.dumps(FULL))) == Position(
        InputStream("IN", "2026-01-31T08:00:00Z"),
        of=64,
        sequence=41,
        epoch=7,
        owner="me",
        commit_id="c",
        key="json./k",
        lane=2,
        holds=True,
        claims=3,
        open={39: 2, 40: 0},
        blocked={"k": 4},
        is_spread=True,
        live=(Outgoing("live.x", b"1", {"A": "b"}),),
        resetting=17,
        chain=ChainHead(140, bytes([0xAB] * 32)),
        looked=10349,
        unknown={"deal": "0.9"},
        _documents=FULL["ctx"],
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_a_record_or_named(data: st.DataObject) -> None:
    """Cut, bent or foreign: E421 with partition and sequence, and never another exception."""
    whole = orjson.dumps(GOOD)
    name = data.draw(st.sampled_from(list(GOOD)))
    anything = (
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.just([]) | st.just({})
    )
    payload = data.draw(
        st.binary(max_size=40)
        | st.integers(0, len(whole)).map(lambda end: whole[:end])
        | anything.map(lambda value: orjson.dumps({**GOOD, name: value}))
        | anything.map(lambda value: orjson.dumps({**GOOD, "ctx": {"a": value}}))
    )
    told = Position.remains(stored(payload))
    if told.is_readable:
        assert Position.read(stored(payload)) == told
        assert Position.read(stored(told.encoded())).contexts == told.contexts
    else:
        assert told.is_spread
        with pytest.raises(BrokerError, match=r"E421 .*partition 5 of route r .*message 99 "):
            Position.read(stored(payload))


def test_the_numbers_of_a_record_outlive_its_contexts() -> None:
    """A reset goes on from them."""
    whole = orjson.dumps({**GOOD, "ctx": {}})
    spoilt = whole.replace(b'"ctx":{}', b'"ctx":{"a":{"x":' + b"[" * 2000 + b"]" * 2000 + b"}}")
    told = Position.remains(stored(spoilt))
    assert told == Position(
        InputStream("IN", "2026-01-31T08:00:00Z"), 64, 41, 7, is_spread=True, is_readable=False
    )
    assert Position.remains(stored(b"?")).epoch > 1 << 39
    chained = Position.remains(stored(orjson.dumps(FULL)[:-1]))
    assert (chained.chain, chained.looked) == (ChainHead(140, bytes([0xAB] * 32)), 10349)
    assert chained.restarted("c2", keep_contexts=False).chain == chained.chain


@pytest.mark.parametrize("levels, is_kept", [(200, True), (300, False), (900, False)])
def test_an_item_that_cannot_be_written_again_is_marked(levels: int, is_kept: bool) -> None:
    """The others of its record are what they were."""
    deep = b"[" * levels + b"]" * levels
    head = orjson.dumps({name: value for name, value in GOOD.items() if name != "ctx"})[:-1]
    found = Position.read(stored(b'%b,"ctx":{"a":{"x":%b,"y":1},"b":{"z":2}}}' % (head, deep)))
    assert found.contexts == {
        "a": {"x": deep if is_kept else position.UNREADABLE, "y": b"1"},
        "b": {"z": b"2"},
    }


@pytest.mark.parametrize("payload", [b"", b"[]", b"5", b"\xff", b"[" * 2000 + b"]" * 2000])
def test_a_context_that_cannot_be_read_is_marked(payload: bytes) -> None:
    """As one item that no Runnable can have written."""
    assert position.items_of(payload) == {"": position.UNREADABLE}


@pytest.mark.parametrize(
    "name, value, complaint",
    [
        ("seq", "41", "its seq is no number"),
        ("owner", 5, "its owner is no text"),
        ("claims", "x", "its claims is no number"),
        ("key", 5, "its key is no text"),
        ("lane", None, "its lane is no number"),
        ("holds", 1, "its holds is no truth value"),
        ("spread", "no", "its spread is no truth value"),
        ("open", [], "its open is no object"),
        ("open", {"x": 1}, "a sequence in its open is no number"),
        ("open", {"3": "x"}, "its open is no number"),
        ("blocked", {"k": None}, "its blocked is no number"),
        ("ctx", {"a": []}, "a context in it is no object"),
        ("live", {}, "its live is no list"),
        ("live", [["a", {}]], "its live is no list of messages"),
        ("live", [[5, {}, "x"]], "its live is no list of messages"),
        ("resetting", "x", "its resetting is no number"),
    ],
)
def test_a_field_that_is_something_else_is_named(name: str, value: Any, complaint: str) -> None:
    """Each is checked when the record is read: none is met later, by whoever counts with it."""
    with pytest.raises(BrokerError, match=f"E421 .*{complaint}"):
        Position.read(stored(orjson.dumps({**GOOD, name: value})))


def test_a_record_of_another_version_is_told_as_far_as_it_means_the_same() -> None:
    """Its fields of our types are there, and what we do not know; whoever would run on it is refused."""
    later = {"v": 2, "seq": 41, "of": "many", "owner": "me", "open": {"x": 1}, "snap": [1]}
    found = Position.read(stored(orjson.dumps(later)))
    assert (found.version, found.sequence, found.of, found.owner) == (2, 41, 0, "me")
    assert (found.open, found.unknown) == ({}, {"snap": [1]})
    with pytest.raises(BrokerError, match=r"E410 .*has version 2, this build reads 1"):
        found.check_usable("r", 64)


def test_a_position_of_a_reset_or_of_other_partitions_is_refused() -> None:
    """E412 until the reset is finished, E410 for a number of partitions that the route did not have."""
    Position(of=4).check_usable("r", 4)
    with pytest.raises(BrokerError, match="E412 a reset of route r is not finished"):
        Position(of=4, resetting=0).check_usable("r", 4)
    with pytest.raises(BrokerError, match="E410 route r was created with 4 partitions and now has 5"):
        Position(of=4).check_usable("r", 5)


def test_a_move_says_what_is_done_open_and_blocked() -> None:
    """What was opened stays until it is closed, with its latest tries; a position never goes back."""
    found = Position(sequence=10, claims=2, open={7: 1}, blocked={"a": 1, "b": 2})
    found.apply(Move(12, opened={11: 0, 7: 2}, closed=set(), blocked={"a": None, "c": 3}))
    assert (found.sequence, found.open, found.blocked) == (12, {7: 2, 11: 0}, {"b": 2, "c": 3})
    assert found.claims == 0
    assert [found.is_done(n) for n in (6, 7, 11, 12, 13)] == [True, False, False, True, False]
    assert found.first_needed == 7
    found.apply(Move(5, closed={7, 11}))
    assert (found.sequence, found.open, found.first_needed) == (12, {}, 13)


def test_moves_add_up() -> None:
    """Two moves one after the other are what one move of both is."""
    first = Move(9, opened={4: 1, 5: 1}, closed={2}, blocked={"k": 1})
    first.add(Move(8, opened={2: 3}, closed={4}, blocked={"k": None, "l": 2}))
    assert first == Move(9, {5: 1, 2: 3}, {4}, {"k": None, "l": 2})


@pytest.mark.parametrize("keep_contexts", [True, False])
def test_a_reset_leaves_a_position_that_nobody_owns(keep_contexts: bool) -> None:
    """It counts where it did, knows what it does not know, and nothing waits; its contexts as was wanted."""
    body = orjson.loads(
        Position.read(stored(orjson.dumps(FULL))).restarted("new", keep_contexts=keep_contexts).encoded()
    )
    names = (
        "v",
        "stream",
        "created",
        "of",
        "seq",
        "audit",
        "deal",
        *(("ctx", "spread") if keep_contexts else ()),
    )
    assert body == {**{name: FULL[name] for name in names}, "epoch": 8, "owner": "", "cid": "new"}


@pytest.mark.parametrize(
    "audit",
    [
        [],
        {"n": 1},
        {"n": -1, "head": "ab" * 32, "late": 0},
        {"n": 1, "head": "AB" * 32, "late": 0},
        {"n": 1, "head": "ab" * 31, "late": 0},
        {"n": 1, "head": "ab" * 32},
        {"n": 1, "head": "ab" * 32, "late": "0"},
    ],
)
def test_an_audit_that_is_none_stops_the_partition(audit: Any) -> None:
    """A chain whose head cannot be read is not begun anew behind anybody's back."""
    with pytest.raises(BrokerError, match="E421"):
        Position.read(stored(orjson.dumps({**GOOD, "audit": audit})))
