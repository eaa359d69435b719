"""Whether an audit is what was written: what a verifier says of one that is, and of one that is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import orjson
from hypothesis import given
from hypothesis import strategies as st

from processor.audit import GENESIS, AuditEntry, AuditRecord, ChainHead, Seal, chained
from processor.notes import Checkpoint, Frontier, VerifierKey, public_key_of
from processor.operate.proof import AuditReport, Claims, Verifier

KEY = bytes(range(32))
ORIGIN = "processor/app"
VERIFIER = VerifierKey(ORIGIN, public_key_of(KEY))
DAY_US = 86_400_000_000
NOW_US = 1_800_000_000_000_000
STREAM = "AUDIT_app", "2026-01-01T00:00:00Z"


@dataclass
class Written:
    """An audit as a processor and its notary write it, with what it is held against."""

    records: list[tuple[int, str, bytes]] = field(default_factory=list)  # sequence, chain, payload
    seals: list[Seal] = field(default_factory=list)
    ends: dict[str, ChainHead] = field(default_factory=dict)
    tree: Frontier = field(default_factory=Frontier)
    keep_us: int = 400 * DAY_US
    has_last_seal: bool = True
    keys: tuple[VerifierKey, ...] = (VERIFIER,)
    late: dict[str, ChainHead] | None = None  # the ends as they are once the records were read

    def record(self, chain: str, count: int, word: str = "") -> None:
        entries = [AuditEntry("http", moment_us=NOW_US, target=f"{chain} {n}{word}") for n in range(count)]
        [made], head = chained(entries, chain, self.ends.get(chain, GENESIS), "0" * 16, 1 << 20)
        self.ends[chain] = head
        self.records.append((len(self.records) + len(self.seals) + 1, chain, made.encoded()))
        for line in made.lines:
            self.tree.add(line)

    def seal(self, moment_us: int = NOW_US, key: bytes | None = KEY) -> None:
        before = (self.seals[-1].frontier.size, self.seals[-1].moment_us) if self.seals else (0, 0)
        note = Checkpoint(ORIGIN, self.tree.size, self.tree.root).note(key)
        place = len(self.records) + len(self.seals)
        self.seals.append(Seal(moment_us, before, *STREAM, place, self.tree.copy(), dict(self.ends), note))

    def report(self) -> AuditReport:
        claims = Claims(
            self.ends,
            [(f"AUDIT_app {n}", seal.encoded(1 << 20)) for n, seal in enumerate(self.seals)],
            self.seals[-1] if self.seals and self.has_last_seal else None,
            *STREAM,
            self.keep_us,
            NOW_US,
            self.keys,
        )
        return self.verified(claims)

    def verified(self, claims: Claims) -> AuditReport:
        verifier = Verifier(claims)
        for sequence, chain, payload in self.records:
            verifier.take(sequence, chain, payload, f"AUDIT_app sequence {sequence}")
        return verifier.finish(self.late)

    def found(self, change: Callable[[Written], None]) -> list[str]:
        """What is wrong after the records or seals were changed, held against what was written."""
        claims = Claims(
            dict(self.ends),
            [],
            self.seals[-1] if self.seals else None,
            *STREAM,
            self.keep_us,
            NOW_US,
            self.keys,
        )
        change(self)
        seals = [(f"AUDIT_app {n}", seal.encoded(1 << 20)) for n, seal in enumerate(self.seals)]
        return self.verified(replace(claims, seals=seals)).faults


STEPS = st.lists(
    st.tuples(st.sampled_from(["r.0", "r.1", "=ctl.0"]), st.integers(1, 3)) | st.just(None),
    min_size=4,
    max_size=14,
)  # fmt: skip


def written(steps: Sequence[tuple[str, int] | None]) -> Written:
    made = Written()
    for step in [("r.0", 1), *steps]:
        if step is not None:
            made.record(*step)
        elif not made.seals or made.seals[-1].frontier.size < made.tree.size:
            made.seal()
    return made


def small() -> Written:
    """Three records of each of two chains, a seal behind each of the first two pairs."""
    made = Written()
    for _ in range(2):
        made.record("r.0", 2)
        made.record("r.1", 2)
        made.seal()
    made.record("r.0", 2)
    made.record("r.1", 2)
    return made


@given(steps=STEPS)
def test_what_was_written_is_found_to_be(steps: list[tuple[str, int] | None]) -> None:
    """Whatever chains and seals there are, one after the other, all of it is accepted, and counted."""
    made = written(steps)
    report = made.report()
    assert report.faults == []
    assert (report.chains, report.entries) == (len(made.ends), made.tree.size)
    assert report.signed == report.seals == len(made.seals)
    assert report.sealed == (made.seals[-1].frontier.size if made.seals else 0)


@given(steps=STEPS, data=st.data())
def test_no_change_of_a_record_is_passed_by(steps: list[tuple[str, int] | None], data: st.DataObject) -> None:
    """A record that was removed, put in twice, moved, cut or changed in one bit is a fault of its chain."""
    made = written(steps)
    at = data.draw(st.integers(0, len(made.records) - 1))
    sequence, chain, payload = made.records[at]

    def change(it: Written) -> None:
        kind = data.draw(st.sampled_from(["remove", "twice", "move", "cut", "bit"]))
        if kind == "remove":
            del it.records[at]
        elif kind == "twice":
            it.records.insert(at, it.records[at])
        elif kind == "move":
            it.records[at] = (sequence, "r.0" if chain != "r.0" else "r.1", payload)
        elif kind == "cut":
            it.records[at] = (sequence, chain, payload[: data.draw(st.integers(0, len(payload) - 1))])
        else:
            raw = bytearray(payload)
            place = data.draw(st.integers(payload.index(b"\n") + 1, len(raw) - 1))
            raw[place] ^= 1 << data.draw(st.integers(0, 7))
            it.records[at] = (sequence, chain, bytes(raw))

    faults = made.found(change)
    assert any(fault.startswith(f"chain {chain} breaks at entry ") for fault in faults), faults


def test_the_first_bad_entry_is_named() -> None:
    """With its chain, its number, and where its record is."""
    made = small()
    broken = made.records[2][2].replace(b"r.0 0", b"r.0 9")
    assert made.found(lambda it: it.records.__setitem__(2, (4, "r.0", broken))) == [
        "chain r.0 breaks at entry 5 (AUDIT_app sequence 7): its record does not follow entry 4",
        "the seal of 8 entries does not fit: of entries 5 to 8 of the log one was changed, removed or put in",
    ]  # fmt: skip


def test_missing_entries_are_counted() -> None:
    """Between records, at the end, of a whole chain, and of the whole stream."""
    assert small().found(lambda it: it.records.__delitem__(3))[0] == (
        "chain r.1 breaks at entry 3 (AUDIT_app sequence 8): entries 3 to 4 are missing"
    )
    assert small().found(lambda it: it.records.__delitem__(-1)) == [
        "chain r.1 breaks at entry 5: entries 5 to 6 are missing: its position is at 6"
    ]
    gone = small().found(lambda it: it.records.clear())
    assert gone[0] == "chain r.0 breaks at entry 1: entries 1 to 6 are missing: its position is at 6"
    assert gone[-1] == "the seal of 4 entries does not fit: there are 0; entries were removed"


def test_what_the_server_drops_is_missing() -> None:
    """The oldest records of a stream whose limit was lowered are missed, though their chains go on."""
    faults = small().found(lambda it: it.records.__delitem__(slice(0, 3)))
    assert sorted(fault for fault in faults if fault.startswith("chain")) == [
        "chain r.0 breaks at entry 1: entries 1 to 4 are missing",
        "chain r.1 breaks at entry 1: entries 1 to 2 are missing",
    ]


def test_a_record_that_somebody_put_in_is_no_entry() -> None:
    """Well made, it is still where another entry has to be."""
    made = small()

    def put_in(it: Written) -> None:
        head = AuditRecord.decode(it.records[0][2]).head
        [forged], _ = chained([AuditEntry("user")], "r.0", head, "", 1 << 20)
        it.records.insert(1, (9, "r.0", forged.encoded()))

    assert made.found(put_in)[0] == (
        "chain r.0 breaks at entry 3 (AUDIT_app sequence 4): it comes a second time, behind entry 3"
    )


def test_a_chain_whose_position_knows_nothing_of_it_is_named() -> None:
    """As a build without audits leaves it, or somebody who removed the position with the last records."""
    made = small()
    del made.ends["r.1"]
    assert made.report().faults == [
        "chain r.1 breaks at entry 6: no position says that it ends there. The position was removed, or"
        " written by a build without audits"
    ]


def test_a_chain_that_began_since_the_positions_were_read_is_no_fault() -> None:
    """Its position is read again: it has to be where the records end, or behind."""
    made = small()
    end = made.ends.pop("r.1")
    for late in (end, ChainHead(7, bytes(32))):
        made.late = {"r.1": late}
        assert made.report().faults == []
    for late in (ChainHead(6, bytes(32)), ChainHead(5, end.digest)):
        made.late = {"r.1": late}
        assert len(made.report().faults) == 1


def test_an_entry_that_a_position_names_is_that_one() -> None:
    """A chain that was written anew from some point on, with its position left, is found."""
    made = small()
    made.ends["r.0"] = ChainHead(6, bytes(32))
    assert made.report().faults == ["chain r.0 breaks at entry 6: it is not the one that its position names"]


def test_a_position_that_is_read_before_the_next_commit_is_no_fault() -> None:
    """The chain may have gone on since: what the position named must be in it."""
    made = small()
    before = ChainHead().after(AuditRecord.decode(made.records[0][2]).lines[:1])
    made.ends["r.0"] = before
    assert made.report().faults == []


def test_a_whole_audit_that_was_written_anew_is_found_by_its_seals() -> None:
    """Chains and positions may all fit each other: what was signed does not."""
    made, forged = small(), Written()
    for _, chain, payload in made.records:
        forged.record(chain, len(AuditRecord.decode(payload).lines), "!" if chain == "r.1" else "")
    forged.seals = made.seals
    faults = forged.report().faults
    assert faults[0].startswith("the seal of 4 entries does not fit")


def test_seals_are_signed_in_a_row_and_by_the_key() -> None:
    """A seal that was taken out, changed, or is not signed where one before it was, is named."""
    assert small().found(lambda it: it.seals.__delitem__(0)) == [
        "what is before the seal of 8 entries is missing: the seal before it was made at "
        "2027-01-15T08:00:00.000Z, and nothing expires before 400 d"
    ]
    assert small().found(lambda it: it.seals.__delitem__(1)) == [
        "the seal of 8 entries is missing: the last one there is of 4"
    ]
    made = small()
    made.record("r.0", 1)
    made.seal()
    assert made.found(lambda it: it.seals.__delitem__(1)) == [
        "the seal of 13 entries (AUDIT_app 1) does not follow the one of 4: a seal between them is missing,"
        " or one of them was changed"
    ]
    unsigned = small()
    root = unsigned.seals[1].frontier.root
    unsigned.seals[1] = replace(unsigned.seals[1], note=Checkpoint(ORIGIN, 8, root).text)
    assert unsigned.report().faults[0] == (
        "the seal in AUDIT_app 1 cannot be relied on: the note is not signed"
    )
    other = small()
    other.keys = (VerifierKey(ORIGIN, public_key_of(bytes(32))),)
    assert "is not signed by" in other.report().faults[0]


def test_seals_from_before_there_was_a_key_need_no_signature() -> None:
    """The first are unsigned, and with the key of a later one they are still in a row with it."""
    made = Written()
    made.record("r.0", 1)
    made.seal(key=None)
    made.record("r.0", 1)
    made.seal()
    report = made.report()
    assert (report.faults, report.seals, report.signed) == ([], 2, 1)


def test_what_has_expired_is_vouched_for_by_the_first_seal_that_is_left() -> None:
    """It says where each chain was, and what is behind is checked against the tree from there on."""
    made = Written()
    made.record("r.0", 3)
    made.record("quiet.0", 1)
    made.seal(NOW_US - 401 * DAY_US)
    made.record("r.0", 2)
    made.seal(NOW_US - 399 * DAY_US)
    made.record("r.0", 2)
    made.seal()
    del made.seals[0], made.records[:2]
    assert made.report().faults == []
    raw = made.records[-1][2].replace(b"r.0 0", b"r.0 1")
    faults = made.found(lambda it: it.records.__setitem__(-1, (*it.records[-1][:2], raw)))
    assert faults[0] == "chain r.0 breaks at entry 7: it is not the one that its position names"
    assert faults[1].startswith("the seal of 8 entries does not fit: of entries 7 to 8")


def test_what_has_not_had_the_time_to_expire_was_removed() -> None:
    """Records and seals that were taken away from the front are missed where the last of them was young."""
    made = Written()
    for age in (300, 200, 100):
        made.record("r.0", 1)
        made.seal(NOW_US - age * DAY_US)
    del made.seals[0], made.records[0]
    first, second = made.report().faults
    assert first == "chain r.0 breaks at entry 1: entry 1 is missing"
    assert second.startswith("what is before the seal of 2 entries is missing")


def test_a_young_seal_vouches_for_no_chain() -> None:
    """Whether what is left of a chain begins before it or right behind it, what is missing is named."""
    for kept in (1, 2):
        made = Written()
        for age in (3, 2, 1):
            made.record("r.0", 2)
            made.seal(NOW_US - age * DAY_US)
        del made.seals[0], made.records[:kept]
        first, second = made.report().faults
        assert first == f"chain r.0 breaks at entry 1: entries 1 to {2 * kept} are missing"
        assert second.startswith("what is before the seal of 4 entries is missing")


def test_a_stream_that_was_made_anew_is_named() -> None:
    """Where the first seals are gone with it, their places in it mean nothing any more."""
    made = Written()
    made.record("r.0", 1)
    made.seal(NOW_US - 500 * DAY_US)
    made.record("r.0", 1)
    made.seal(NOW_US - 300 * DAY_US)
    made.seals = [replace(seal, created="2025-01-01T00:00:00Z") for seal in made.seals]
    del made.seals[0], made.records[0]
    assert made.report().faults[-1] == (
        "stream AUDIT_app was made anew: the seal of 2 entries counts in stream AUDIT_app created at "
        "2025-01-01T00:00:00Z"
    )


def test_nonsense_in_place_of_a_seal_is_named() -> None:
    """Odd bytes are no seal, whatever they look like, and stop nothing."""
    made = small()
    good = orjson.loads(made.seals[0].encoded(1 << 20))
    odd: list[bytes] = [b"", b"[]", b'{"v":2}', b'{"v":1}', b"\xff"]
    for name in good:
        for value in (None, -1, "x", [1], {"a": 1}, True):
            odd.append(orjson.dumps({**good, name: value}))
    for payload in odd:
        claims = Claims(made.ends, [("AUDIT_app 1", payload)], None, *STREAM, made.keep_us, NOW_US)
        [fault, *_] = made.verified(claims).faults
        assert fault.startswith("the seal in AUDIT_app 1 cannot be relied on"), payload
