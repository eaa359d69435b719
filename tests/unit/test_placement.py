"""Where contexts are kept, without a stream: what is written lies in one place, and is read from there."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.context.placement import (
    INLINE_MAX_BYTES,
    INLINE_MAX_KEYS,
    Items,
    Partition,
    Placement,
    size_of,
)
from processor.context.position import Position
from processor.context.subjects import RouteSubjects, SubjectParts
from processor.jetstream import EXPECTED, GONE, KEPT, Outgoing, Stored
from processor.model import ContextChange, key_token
from tests.properties.test_context import change_of

OWN = RouteSubjects("app", "r")
LONG = "long " * 40


class Kept:
    """What a stream would keep of a route with one partition, and somebody who owns that."""

    def __init__(self) -> None:
        self.stream: dict[str, Stored] = {}
        self.partition = Partition(0, Position(of=1))
        self.placement = Placement(OWN, 1, {0: self.partition})

    def store(self, messages: list[Outgoing]) -> list[str]:
        """The items that were written or removed (`-`), in order."""
        for message in messages:
            assert message.headers.items() >= (KEPT if message.payload else GONE).items()
            self.stream.pop(message.subject, None)
            if message.payload:
                self.stream[message.subject] = Stored(message.subject, 1, message.payload, message.headers)
        return [("" if m.payload else "-") + m.subject.rsplit(".", 1)[1] for m in messages]

    def write(self, key: str, before: Items, after: Items) -> list[str]:
        return self.store(self.placement.written(key, change_of(before, after)))

    def places(self, key: str) -> list[str]:
        """Where something of a context lies: `in` for the position, else the item's token."""
        tokens = [s.rsplit(".", 1)[1] for s in self.stream if SubjectParts.of(s).rest[0] == key_token(key)]
        return ["in"] * (key in self.partition.inline) + sorted(tokens)

    def read_anew(self, keys: list[str]) -> dict[str, Items]:
        """The contexts as somebody reads them who knows the stored bytes only."""
        body = Stored("p.app.pos.r.0", 7, self.partition.position.encoded(), {})
        partition = Partition(0)
        partition.take(Position.read(body), 7)
        placement = Placement(OWN, 1, {0: partition})
        contexts = {key: placement.inline(key) for key in keys}
        if not placement.is_spread:
            assert not self.stream
        unread = {key: contexts[key] for key in placement.unread(keys)}
        placement.read(self.stream.values(), unread)
        return contexts | unread


def filled(size: int, name: str = "x") -> Items:
    """A context of this size with one item."""
    return {name: b'"%b"' % (b"x" * (size - 2 - len(name)))}


def test_small_contexts_lie_in_the_position() -> None:
    """As many as may; nothing is written beside it, and nothing has to be read of another key."""
    kept = Kept()
    for number in range(INLINE_MAX_KEYS):
        assert kept.write(f"k{number}", {}, {"n": b"1"}) == []
    assert not kept.placement.is_spread
    assert kept.placement.unread(["k0", "new"]) == []
    assert kept.write("k0", {"n": b"1"}, {"n": b"2"}) == []
    assert kept.read_anew(["k0", "k7"]) == {"k0": {"n": b"2"}, "k7": {"n": b"1"}}


def test_one_more_than_the_position_holds_goes_out_and_so_do_all_that_come_later() -> None:
    """What is there stays; a key that is not there may have a context outside, so it is never taken in."""
    kept = Kept()
    for number in range(INLINE_MAX_KEYS):
        kept.write(f"k{number}", {}, {"n": b"1"})
    assert kept.write("k8", {}, {"n": b"1"}) == ["=all"]
    assert kept.placement.is_spread
    assert kept.write("k0", {"n": b"1"}, {"n": b"2"}) == []
    kept.store(kept.placement.removed("k1"))
    assert kept.write("k9", {}, {"n": b"1"}) == ["=all"]
    assert kept.placement.unread(["k0", "k8", "k9"]) == ["k8", "k9"]


def test_the_position_holds_so_many_bytes() -> None:
    """Exactly as many as may be; one byte more, and the context that came goes out."""
    kept = Kept()
    assert kept.write("a", {}, filled(INLINE_MAX_BYTES - 10)) == []
    assert kept.write("b", {}, filled(10)) == []
    assert sum(map(size_of, kept.partition.inline.values())) == INLINE_MAX_BYTES
    assert kept.write("b", filled(10), filled(11)) == ["=all"]
    assert (kept.places("a"), kept.places("b")) == (["in"], ["=all"])


def test_a_context_that_shrinks_makes_room() -> None:
    """The position is counted by what is in it now."""
    kept = Kept()
    kept.write("a", {}, filled(INLINE_MAX_BYTES))
    kept.write("a", filled(INLINE_MAX_BYTES), filled(10))
    assert kept.write("b", {}, filled(INLINE_MAX_BYTES - 10)) == []
    kept.store(kept.placement.removed("b"))
    assert kept.write("c", {}, filled(INLINE_MAX_BYTES - 10)) == []


def test_another_position_is_counted_by_what_is_in_it() -> None:
    """What was in the one before takes no room in one that was read after it."""
    partition = Partition(0, Position(of=1))
    assert partition.put("a", filled(INLINE_MAX_BYTES))
    partition.take(Position(of=1), 5)
    assert partition.put("b", filled(INLINE_MAX_BYTES))
    assert not partition.put("c", filled(10))


def test_a_context_moves_outwards_and_leaves_its_old_place() -> None:
    """Position, one message, a message per item: what writes the new place removes the old one."""
    kept = Kept()
    small, middle, large = {"a": b"1"}, {"a": b"1", "b": b"2"}, {"a": b"1", **filled(INLINE_MAX_BYTES)}
    kept.write("other", {}, filled(INLINE_MAX_BYTES - 3))
    kept.write("k", {}, small)
    assert kept.places("k") == ["in"]
    assert kept.write("k", small, middle) == ["=all"]
    assert kept.places("k") == ["=all"]
    assert kept.write("k", middle, large) == ["-=all", "-b", "a", "x"]
    assert kept.places("k") == ["a", "x"]
    assert sorted(kept.write("k", large, small)) == ["-x", "a"]
    assert kept.places("k") == ["a"]
    assert kept.read_anew(["k"]) == {"k": small}


def test_a_context_that_is_large_at_once_is_written_by_item() -> None:
    """Also where the position had it: it is not there any more."""
    kept = Kept()
    kept.write("k", {}, {"a": b"1"})
    large = {"a": b"1", **filled(INLINE_MAX_BYTES)}
    assert sorted(kept.write("k", {"a": b"1"}, large)) == ["a", "x"]
    assert kept.places("k") == ["a", "x"]
    changed = {**large, "a": b"2"}
    assert kept.write("k", large, changed) == ["a"]
    assert kept.read_anew(["k"]) == {"k": changed}


@pytest.mark.parametrize("size", [5, INLINE_MAX_BYTES + 5])
def test_a_context_is_removed_from_wherever_it_is(size: int) -> None:
    """From the position, from its message, or item by item; then nothing is known of it."""
    for is_outside in (False, True):
        kept = Kept()
        if is_outside:
            kept.write("other", {}, filled(INLINE_MAX_BYTES - 3))
        kept.write("k", {}, filled(size))
        assert kept.places("k")
        kept.store(kept.placement.removed("k"))
        assert kept.places("k") == []
        assert kept.placement.removed("k") == []
        assert kept.read_anew(["k"]) == {"k": {}}


def test_an_item_with_a_long_name_is_read_by_that_name() -> None:
    """Its subject has a digest; the name is in a header, which stays with what removes it."""
    kept = Kept()
    large = {LONG: b"1", " \n": b"2", **filled(INLINE_MAX_BYTES)}
    tokens = kept.write("k", {}, large)
    assert any(token.startswith("=h") for token in tokens)
    assert kept.read_anew(["k"]) == {"k": large}
    kept.write("k", large, {name: value for name, value in large.items() if name != LONG})
    assert LONG not in kept.read_anew(["k"])["k"]


def test_what_writes_a_scattered_context_is_counted_before_it_is_written() -> None:
    """A commit is cut by it: so many messages as `written` gives then."""
    kept = Kept()
    large = {**filled(INLINE_MAX_BYTES), "a": b"1", "b": b"2"}
    kept.write("k", {}, large)
    change = ContextChange({"a": b"1", "c": b"3"}, True, 10)
    changes = {"k": change, "elsewhere": ContextChange({"n": b"1"}, True, 2)}
    assert kept.placement.scattered(changes) == 4
    assert len(kept.placement.written("k", change)) == 4


def test_what_is_forgotten_is_read_again() -> None:
    """Nothing is remembered of it; then its places are known as before."""
    kept = Kept()
    large = {**filled(INLINE_MAX_BYTES), "a": b"1"}
    kept.write("k", {}, large)
    kept.placement.forget("k")
    assert kept.placement.removed("k") == []
    contexts: dict[str, Items] = {"k": {}}
    kept.placement.read(kept.stream.values(), contexts)
    assert contexts == {"k": large}
    assert sorted(kept.write("k", large, {"a": b"2"})) == ["-x", "a"]


def test_messages_of_others_are_passed_over() -> None:
    """Positions, other keys, and what was removed."""
    placement = Placement(OWN, 1, {0: Partition(0)})
    contexts: dict[str, Items] = {"k": {}}
    strangers = [
        ("p.app.pos.r.0", b"{}"), ("p.app.ctx.r.0.k", b"1"), ("p.app.ctx.r.0.j.=all", b"{}"),
        ("p.app.ctx.r.0.k.n", b""), ("p.app.held.r.0.k.n", b"1"),
    ]  # fmt: skip
    placement.read([Stored(subject, 1, payload, {}) for subject, payload in strangers], contexts)
    assert contexts == {"k": {}}


def test_a_position_is_fenced_by_its_predecessor() -> None:
    """The message expects exactly the sequence that was read."""
    partition = Partition(3)
    partition.take(Position(of=4), 41)
    message = partition.message("p.app.pos.r.3")
    assert message.headers == {**KEPT, EXPECTED: "41"}
    assert orjson.loads(message.payload)["of"] == 4


values = st.sampled_from([b"1", b"2", *(b'"%b"' % (b"x" * size) for size in (900, 3000, 9000))])
contexts = st.dictionaries(st.sampled_from(["n", "total", "", LONG, "ü"]), values, max_size=4)
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "remove", "restart"]),
        st.sampled_from(["", "a.b", *"cdefghijk"]),
        contexts,
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(steps=steps)
def test_a_context_lies_in_one_place(steps: list[tuple[str, str, Any]]) -> None:
    """Whatever is changed, removed, forgotten and read again: one place each, read as it was written."""
    kept, model = Kept(), dict[str, Items]()
    for what, key, after in steps:
        if what == "restart":
            known = kept.read_anew(list(model))
            assert known == model
            kept.placement = Placement(OWN, 1, {0: kept.partition})
            kept.placement.read(kept.stream.values(), {name: {} for name in kept.placement.unread(model)})
        elif what == "write":
            kept.write(key, model.get(key, {}), after)
            model[key] = after
        else:
            kept.store(kept.placement.removed(key))
            model.pop(key, None)
        for name in model:
            places = kept.places(name)
            assert len({"in" if p == "in" else "all" if p == "=all" else "items" for p in places}) <= 1
        assert {SubjectParts.of(s).rest[0] for s in kept.stream} <= set(map(key_token, model))
    assert kept.read_anew(list(model)) == model
