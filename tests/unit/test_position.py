"""The record of a partition: what can be read is, and of the rest is told what can be told."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.context import position
from processor.errors import BrokerError
from processor.jetstream import Stored

GOOD = {
    "v": 1, "stream": "IN", "created": "2026-01-31T08:00:00Z", "of": 64, "seq": 41, "epoch": 7, "owner": "me",
    "cid": "c", "ctx": {"a": {"n": [1.0, {"$set": [1]}]}, "b": {}},
}  # fmt: skip


def stored(payload: bytes) -> Stored:
    return Stored("p.app.pos.r.5", 99, payload, {})


def test_a_record_comes_back_as_it_was_written() -> None:
    """With its contexts as encoded items, which make the same record again."""
    body = position.read(stored(orjson.dumps(GOOD)))
    assert body == GOOD
    assert position.remains(stored(orjson.dumps(GOOD))) == GOOD
    contexts = position.contexts_of(body)
    assert contexts == {"a": {"n": b'[1.0,{"$set":[1]}]'}, "b": {}}
    assert orjson.loads(orjson.dumps(position.written_contexts(contexts))) == GOOD["ctx"]


@settings(max_examples=300)
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
    told = position.remains(stored(payload))
    if "unreadable" in told:
        assert type(told["epoch"]) is int
        with pytest.raises(BrokerError, match=r"E421 .*partition 5 of route r .*message 99 "):
            position.read(stored(payload))
    else:
        assert position.read(stored(payload)) == told
        if told["v"] == 1:
            position.contexts_of(told)


def test_the_numbers_of_a_record_outlive_its_contexts() -> None:
    """A reset goes on from them."""
    whole = orjson.dumps({**GOOD, "ctx": {}})
    spoilt = whole.replace(b'"ctx":{}', b'"ctx":{"a":{"x":' + b"[" * 2000 + b"]" * 2000 + b"}}")
    told = position.remains(stored(spoilt))
    assert {name: told[name] for name in ("stream", "created", "of", "seq", "epoch")} == {
        name: GOOD[name] for name in ("stream", "created", "of", "seq", "epoch")
    }
    assert told["spread"]
    assert position.remains(stored(b"?"))["epoch"] > 1 << 39


@pytest.mark.parametrize("levels, is_kept", [(200, True), (300, False), (900, False)])
def test_an_item_that_cannot_be_written_again_is_marked(levels: int, is_kept: bool) -> None:
    """The others of its record are what they were."""
    deep = b"[" * levels + b"]" * levels
    body = orjson.loads(b'{"ctx":{"a":{"x":%b,"y":1},"b":{"z":2}}}' % deep)
    contexts = position.contexts_of(body)
    assert contexts == {"a": {"x": deep if is_kept else position.UNREADABLE, "y": b"1"}, "b": {"z": b"2"}}


@pytest.mark.parametrize("payload", [b"", b"[]", b"5", b"\xff", b"[" * 2000 + b"]" * 2000])
def test_a_context_that_cannot_be_read_is_marked(payload: bytes) -> None:
    """As one item that no Runnable can have written."""
    assert position.items_of(payload) == {"": position.UNREADABLE}
