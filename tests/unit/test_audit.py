"""Audit records: the bytes of an entry, the chain that binds them, and what a change of a byte does to it."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from processor.audit import (
    DETAILS,
    ENTRY_MAX_BYTES,
    GENESIS,
    AuditEntry,
    AuditRecord,
    ChainHead,
    Seal,
    chained,
    document_of,
)
from processor.notes import Checkpoint, Frontier

COMMIT = "0123456789abcdef"


def entry(**more: Any) -> AuditEntry:
    return AuditEntry(**{"event": "http", "moment_us": 1764459600123456, "operation": "get", **more})


def first_fault(payloads: list[bytes], end: ChainHead, chain: str = "enrich.3") -> str | None:
    """What a reader of a whole chain says who knows its end."""
    head = GENESIS
    for payload in payloads:
        try:
            record = AuditRecord.decode(payload)
            assert record.chain == chain
            record.check_follows(head)
        except (ValueError, AssertionError) as err:
            return f"after {head.number}: {err}"
        head = record.head
    return None if head == end else f"after {head.number}: it ends"


def records_of(sizes: list[int]) -> tuple[list[bytes], ChainHead]:
    """The payloads of records with so many entries each, and the head behind them."""
    head, payloads = GENESIS, []
    for size in sizes:
        made, head = chained([entry(target=f"https://a.example/{n}") for n in range(size)], "enrich.3", head,
                             COMMIT, 1 << 20)  # fmt: skip
        payloads += [record.encoded() for record in made]
    return payloads, head


def test_an_entry_is_a_line_with_its_keys_in_order() -> None:
    """Every field has its key, in one order, and an entry with all of them is these bytes."""
    full = AuditEntry(
        "http", "allow", "committed", 1764459600123456, "enrich", "9f3c1a2b4d5e6f70", (100, 199),
        "program:4f1b2c3d4e5f", "post", "https://api.example.com/v1/pay", "policy.toml:12", "9f86d081884c",
        "c0ffee01", "a" * 32, "b" * 32, 200, (312, 1880), 12345, ["pay_key"], "E317",
        {name: name for name in reversed(DETAILS)},
    )  # fmt: skip
    assert all(getattr(full, each.name) for each in fields(full))
    details = ",".join(f'"{name}":"{name}"' for name in DETAILS)
    assert full.line(101).decode() == (
        '{"n":101,"t":1764459600123456,"e":"http","d":"allow","fate":"committed","route":"enrich",'
        '"run":"9f3c1a2b4d5e6f70","in":[100,199],"actor":"program:4f1b2c3d4e5f","op":"post",'
        '"on":"https://api.example.com/v1/pay","rule":"policy.toml:12","policy":"9f86d081884c",'
        f'"of":"c0ffee01","req":"{"a" * 32}","res":"{"b" * 32}","status":200,"bytes":[312,1880],"us":12345,'
        f'"secrets":["pay_key"],"code":"E317",{details}}}'
    )


def test_what_is_empty_is_not_stored() -> None:
    """An entry without more than its event has its number, event and decision only; zero is a count."""
    assert AuditEntry("run").line(1) == b'{"n":1,"e":"run","d":"allow"}'
    assert orjson.loads(entry(details={"out": 0, "digest": "", "ctx": []}).line(1))["out"] == 0
    assert not {"digest", "ctx"} & orjson.loads(entry(details={"digest": "", "ctx": []}).line(1)).keys()


def test_a_long_target_is_cut_and_says_so() -> None:
    """A target has at most 1,000 characters in an entry."""
    said = orjson.loads(entry(target="x" * 1001).line(1))
    assert (said["on"], said["cut"]) == ("x" * 1000, True)
    assert "cut" not in orjson.loads(entry(target="x" * 1000).line(1))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=50),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters()) | st.integers(), inner)
    ),
    max_leaves=30,
)  # fmt: skip


@given(
    texts=st.lists(st.text(st.characters(), max_size=3000), min_size=5, max_size=5),
    data=JSON,
    times=st.integers(1, 2000),
)
def test_any_entry_can_be_written(texts: list[str], data: Any, times: int) -> None:
    """Whatever a guest or a policy says, an entry is at most 8 KB of JSON on one line."""
    target, rule, secret, reason, actor = texts
    made = entry(target=target, rule=rule, actor=actor * 3, secrets=[secret] * times,
                 details={"data": data, "reason": reason * 3})  # fmt: skip
    line = made.line(7)
    assert len(line) <= ENTRY_MAX_BYTES
    assert b"\n" not in line
    assert document_of(line)["n"] == 7


def test_an_entry_beyond_its_size_keeps_what_it_is_about() -> None:
    """What is left of the longest entry still says what was done, by whom, and that it was cut."""
    deep: Any = "end"
    for _ in range(300):
        deep = [deep, "\x00" * 500]
    said = document_of(
        entry(target="\x00" * 900, actor="by:me", details={"data": deep, "limit": 1 << 70}).line(1)
    )
    assert (said["op"], said["actor"], said["cut"]) == ("get", "by:me", True)
    assert said["limit"] == str(1 << 70)


def test_a_chain_is_the_hash_of_the_hash_before_and_the_line() -> None:
    """The head of a chain is computed from its lines by SHA-256 alone, from 32 zero bytes."""
    [record], head = chained([entry(), entry(event="run")], "enrich.3", GENESIS, COMMIT, 1 << 20)
    said, *lines = record.encoded().split(b"\n")
    assert said.decode() == (
        f'{{"v":1,"chain":"enrich.3","first":1,"prev":"{"0" * 64}","commit":"0123456789abcdef"}}'
    )
    digest = bytes(32)
    for line in lines:
        digest = hashlib.sha256(digest + line).digest()
    assert head == ChainHead(2, digest) == record.head
    assert AuditRecord.decode(record.encoded()) == record


@given(sizes=st.lists(st.integers(0, 4000), min_size=1, max_size=20), max_bytes=st.integers(600, 9000))
def test_records_are_split_above_a_size(sizes: list[int], max_bytes: int) -> None:
    """Records of one commit follow each other; none that could be smaller is above the size."""
    start = ChainHead(9_999_999, bytes(range(32)))
    made = [entry(details={"reason": "r" * size}) for size in sizes]
    records, head = chained(made, "enrich.3", start, COMMIT, max_bytes)
    before = start
    for record in records:
        record.check_follows(before)
        before = record.head
        assert len(record.encoded()) <= max_bytes or len(record.lines) == 1
    assert before == head
    assert head.number == start.number + len(sizes)
    lines = [line for record in records for line in record.lines]
    assert lines == [each.line(number) for number, each in enumerate(made, start.number + 1)]


def test_nothing_to_chain_changes_no_head() -> None:
    """Without entries there is no record."""
    assert chained([], "enrich.3", GENESIS, COMMIT, 1 << 20) == ([], GENESIS)


SIZES = st.lists(st.integers(1, 4), min_size=3, max_size=6)


@given(sizes=SIZES, data=st.data())
def test_a_changed_byte_breaks_the_chain(sizes: list[int], data: st.DataObject) -> None:
    """A bit of any record that is turned around is found there, or where the next record does not follow."""
    payloads, end = records_of(sizes)
    assert first_fault(payloads, end) is None
    at = data.draw(st.integers(0, len(payloads) - 1))
    changed = bytearray(payloads[at])
    place = data.draw(st.integers(0, len(changed) - 1))
    # The commit's id is no part of the chain: nothing but its commit knows it.
    assume(not 0 <= place - changed.index(COMMIT.encode()) < len(COMMIT))
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    payloads[at] = bytes(changed)
    before, behind = sum(sizes[:at]), sum(sizes[: at + 1])
    assert str(first_fault(payloads, end)).startswith((f"after {before}: ", f"after {behind}: "))


@given(sizes=SIZES, data=st.data())
def test_a_missing_record_breaks_the_chain(sizes: list[int], data: st.DataObject) -> None:
    """A record that was removed is named by the entry that nothing follows; also where it was the last."""
    payloads, end = records_of(sizes)
    at = data.draw(st.integers(0, len(payloads) - 1))
    del payloads[at]
    found = f"after {sum(sizes[:at])}: "
    found += "it ends" if at == len(payloads) else f"its record does not follow entry {sum(sizes[:at])}"
    assert first_fault(payloads, end) == found


@given(sizes=SIZES, data=st.data())
def test_records_out_of_order_break_the_chain(sizes: list[int], data: st.DataObject) -> None:
    """Two records that changed places are found at the first of them."""
    payloads, end = records_of(sizes)
    at = data.draw(st.integers(0, len(payloads) - 2))
    payloads[at], payloads[at + 1] = payloads[at + 1], payloads[at]
    number = sum(sizes[:at])
    assert first_fault(payloads, end) == f"after {number}: its record does not follow entry {number}"


@given(sizes=SIZES, data=st.data())
def test_a_foreign_record_breaks_the_chain(sizes: list[int], data: st.DataObject) -> None:
    """A record that somebody put in, well made, is found where what was there before does not follow it."""
    payloads, end = records_of(sizes)
    at = data.draw(st.integers(0, len(payloads)))
    head = AuditRecord.decode(payloads[at - 1]).head if at else GENESIS
    [foreign], _ = chained([entry(actor="by:nobody")], "enrich.3", head, COMMIT, 1 << 20)
    payloads.insert(at, foreign.encoded())
    assert str(first_fault(payloads, end)).startswith(f"after {head.number + 1}: ")


@given(sizes=SIZES, data=st.data())
def test_a_record_cut_short_breaks_the_chain(sizes: list[int], data: st.DataObject) -> None:
    """A record without its end is found there, or, where whole entries are gone, at the one behind."""
    payloads, end = records_of(sizes)
    at = data.draw(st.integers(0, len(payloads) - 1))
    payloads[at] = payloads[at][: data.draw(st.integers(0, len(payloads[at]) - 1))]
    before, behind = sum(sizes[:at]), sum(sizes[: at + 1])
    found = str(first_fault(payloads, end))
    assert before <= int(found.removeprefix("after ").partition(":")[0]) < behind


HEAD = '{"v":1,"chain":"r.0","first":1,"prev":"' + "0" * 64 + '","commit":"ab"}'


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        ("", "its head line is not JSON"),
        ("[]\n{}", "its head line has not just v, chain, first, prev, commit"),
        (HEAD.replace("commit", "cid") + "\n{}", "its head line has not just v, chain, first, prev, commit"),
        (HEAD.replace(":1,", ":2,", 1) + "\n{}", "it has version 2, and this build reads 1"),
        (HEAD.replace('first":1', 'first":0') + "\n{}", "the number of its first entry is '0'"),
        (HEAD.replace('first":1', 'first":true') + "\n{}", "the number of its first entry is 'True'"),
        (HEAD.replace('"r.0"', "7") + "\n{}", "its chain or its commit is no text"),
        (HEAD.replace("00", "0g", 1) + "\n{}", "the head before it is '0g000"),
        (HEAD, "it has no entries"),
        (HEAD.replace(",", ", ", 1) + '\n{"n":1,"e":"run","d":"allow"}', "not as this build writes it"),
        (HEAD + "\n", "entry 1 cannot be read: it is not JSON"),
        (HEAD + "\n\xff", "entry 1 cannot be read: it is not JSON"),
        (HEAD + "\n[1]", "entry 1 cannot be read: it is no JSON object"),
        (HEAD + '\n{"n":2,"e":"run","d":"allow"}', "entry 1 cannot be read: its n is 2"),
        (HEAD + '\n{"n":true,"e":"run","d":"allow"}', "entry 1 cannot be read: its n is 'True'"),
        (HEAD + '\n{"n":1,"e":5,"d":"allow"}', "entry 1 cannot be read: its e is '5'"),
        (HEAD + '\n{"n":1,"t":"x","e":"run","d":"allow"}', "entry 1 cannot be read: its t is 'x'"),
    ],
)
def test_a_record_that_cannot_be_read_says_why(payload: str, what: str) -> None:
    """Odd bytes are named, never taken for a record."""
    with pytest.raises(ValueError, match=what):
        AuditRecord.decode(payload.encode("latin-1"))


@pytest.mark.parametrize(
    ("document", "what"),
    [
        (None, "no object"),
        ({}, "the number of its audit chain is 'None'"),
        ({"n": -1, "head": "0" * 64}, "the number of its audit chain is '-1'"),
        ({"n": 1, "head": "0" * 63}, "not 64 hex digits"),
        ({"n": 1, "head": "A" * 64}, "not 64 hex digits"),
        ({"n": 1, "head": 7}, "not 64 hex digits"),
    ],
)
def test_a_head_that_cannot_be_read_says_why(document: Any, what: str) -> None:
    """What a position says of its chain is taken as a whole or refused."""
    with pytest.raises(ValueError, match=what):
        ChainHead.read(document)
    assert ChainHead.read({"n": 140, "head": "0a" * 32, "late": 7}) == ChainHead(140, b"\n" * 32)


def seal(heads: dict[str, ChainHead]) -> Seal:
    tree = Frontier()
    for entry_line in (b"a", b"b", b"c"):
        tree.add(entry_line)
    note = Checkpoint("processor/app", 3, tree.root).note(None)
    stream = ("AUDIT_app", "2026-01-01T00:00:00Z")
    return Seal(1764459600123456, (1, 1764459500000000), *stream, 9, tree, heads, note)


def test_a_seal_is_these_bytes() -> None:
    """What every build has to read: the tree, the chains, the note, and which seal was before it."""
    made = seal({"r.0": ChainHead(3, b"\x0a" * 32)})
    assert made.encoded(1 << 20) == (
        b'{"v":1,"t":1764459600123456,"prev":[1,1764459500000000],"of":["AUDIT_app","2026-01-01T00:00:00Z"],'
        b'"to":9,"size":3,"frontier":["b137985ff484fb600db93107c77b0365c80d78f5b429ded0fd97361d077999eb",'
        b'"597fcb31282d34654c200d3418fca5705c648ebf326ec73d8ddef11841f876d8"],"heads":{"r.0":[3,"'
        + b"0a" * 32
        + b'"]},"note":"processor/app\\n3\\nNmQuc8JUCrEh46a/lUWwokmCzYMOsT080Z3jzmwCHsE=\\n"}'
    )
    assert Seal.decode(made.encoded(1 << 20)).encoded(1 << 20) == made.encoded(1 << 20)
    assert made.checkpoint(None).size == 3


def test_a_seal_leaves_out_chains_that_have_no_room() -> None:
    """It has the first of them, as many as fit into its message, and is a seal all the same."""
    made = seal({f"route-{number}.63": ChainHead(number, bytes(32)) for number in range(1000)})
    encoded = made.encoded(20_000)
    assert 15_000 < len(encoded) <= 20_000
    kept = Seal.decode(encoded).heads
    assert 100 < len(kept) < 1000
    assert kept == dict(list(made.heads.items())[: len(kept)])
