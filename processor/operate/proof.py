"""Whether an audit is what was written: records follow, chains end where they should, and seals fit.

`Chains` follows records, for whoever reads an audit in order. `Verifier` is given all that there is, one by
one, from a running app or from an export: it reads nothing itself.

What must stay true: what is accepted was checked against what came before it and against what the positions
and the seals say. The first fault of each chain is named with the entry it begins at; what comes behind is
checked on by itself, so that one fault does not hide another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from processor.audit import GENESIS, AuditRecord, ChainHead, Seal, document_of
from processor.context.parked import timestamp
from processor.notes import Frontier, VerifierKey

# How much sooner than after `keep` a record may have gone: servers remove what is old when they find time.
_SLACK_US = 86_400_000_000


class Chains:
    """How far the chains of an audit have come, record by record in the order of their stream."""

    def __init__(self, heads: Mapping[str, ChainHead] | None = None) -> None:
        self.heads = dict(heads or {})
        self.began: dict[
            str, tuple[ChainHead, int]
        ] = {}  # chains without their first record: what is before, when

    def take(self, chain: str, payload: bytes) -> tuple[Sequence[bytes], str]:
        """The entry lines of the next record of a chain, and what is wrong with it, if something is."""
        head = self.heads.get(chain)
        number = 1 if head is None else head.number + 1
        try:
            record = AuditRecord.decode(payload)
            if record.chain != chain:
                raise ValueError(f"it says that it is of chain {record.chain[:80]!r}")
        except ValueError as err:
            return payload.split(b"\n")[1:], f"entry {number}: its record cannot be read: {err}"
        fault = ""
        if head is None:
            if record.before != GENESIS:
                self.began[chain] = record.before, document_of(record.lines[0]).get("t", 0)
        elif record.first > number:
            fault = f"entry {number}: {_entries(number, record.first - 1)} missing"
        elif record.first < number:
            fault = f"entry {record.first}: it comes a second time, behind entry {head.number}"
        elif record.before != head:
            fault = f"entry {number}: its record does not follow entry {head.number}"
        self.heads[chain] = record.head
        return record.lines, fault


@dataclass(slots=True)
class AuditReport:
    """What a verification found."""

    entries: int = 0
    chains: int = 0
    seals: int = 0
    signed: int = 0  # seals with a signature of the given key
    sealed: int = 0  # entries in the tree of the last seal
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Claims:
    """What the records of an audit are held against."""

    ends: Mapping[str, ChainHead]  # where each chain ends, or ended a moment ago, as positions have it
    seals: Sequence[tuple[str, bytes]]  # in order: where each was found, and its payload
    last_seal: Seal | None  # as the app's own stream has it
    stream: str  # where records are in
    created: str
    keep_us: int  # for how long a record must be there
    now_us: int
    keys: Sequence[VerifierKey] = ()  # one of which must have signed each seal, from the first signed one on


class Verifier:
    """Takes the records of an audit in order, and says at the end what is wrong with it."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._report = AuditReport()
        self._chains = Chains()
        self._broken: set[str] = set()
        self._chain_faults: list[str] = []
        self._reached: set[str] = set()  # chains that came to where they should end
        self._seals = self._read_seals()
        self._tree = Frontier()
        self._base: Seal | None = None  # the first seal that is left, where what is before it is not
        self._is_vouched = True  # what is before it has had the time to expire
        self._next = 0  # of the seals, the one that the tree comes to next
        first = self._seals[0] if self._seals else None
        if first is not None and first.before[0] > 0:
            self._base, self._tree, self._next = first, first.frontier.copy(), 1
            self._check_base(first)
        self._is_based = self._base is None

    def _read_seals(self) -> list[Seal]:
        found: list[Seal] = []
        for place, payload in self._claims.seals:
            try:
                seal = Seal.decode(payload)
                self._check_note(seal)
            except ValueError as err:
                self._fault(f"the seal in {place} cannot be relied on: {err}")
                continue
            if found and seal.before != (found[-1].frontier.size, found[-1].moment_us):
                self._fault(
                    f"the seal of {seal.frontier.size} entries ({place}) does not follow the one of "
                    f"{found[-1].frontier.size}: a seal between them is missing, or one of them was changed"
                )
            found.append(seal)
        self._report.seals = len(found)
        last = self._claims.last_seal
        if last is not None and (not found or found[-1].frontier.size < last.frontier.size):
            there = f"the last one there is of {found[-1].frontier.size}" if found else "there is none"
            self._fault(f"the seal of {last.frontier.size} entries is missing: {there}")
        return found

    def _check_note(self, seal: Seal) -> None:
        """Raise ValueError for a note that does not fit its seal, or is not signed as those before it."""
        seal.checkpoint(None)
        if not self._claims.keys:
            return
        why: ValueError | None = None
        for key in self._claims.keys:
            try:
                seal.checkpoint(key)
            except ValueError as err:
                why = why or err
            else:
                self._report.signed += 1
                return
        # Before there was a key, seals had no signature.
        if why is not None and (self._report.signed or "\n\n" in seal.note):
            raise why

    def _check_base(self, base: Seal) -> None:
        claims = self._claims
        if base.before[1] > claims.now_us - claims.keep_us + _SLACK_US:
            keep_days = claims.keep_us // 86_400_000_000
            self._is_vouched = False
            self._fault(
                f"what is before the seal of {base.frontier.size} entries is missing: the seal before it was "
                f"made at {_time(base.before[1])}, and nothing expires before {keep_days} d"
            )
        if (base.stream, base.created) != (claims.stream, claims.created):
            self._is_vouched = False
            self._fault(
                f"stream {claims.stream} was made anew: the seal of {base.frontier.size} entries counts in "
                f"stream {base.stream} created at {base.created}"
            )

    def take(self, sequence: int, chain: str, payload: bytes, place: str) -> None:
        """Take the next record, which was found at `place` under that sequence."""
        if not self._is_based and self._base is not None and sequence > self._base.sequence:
            self._check_heads(self._base)
            self._is_based = True
        before = self._chains.heads.get(chain, GENESIS)
        lines, fault = self._chains.take(chain, payload)
        if fault:
            self._break(chain, place, fault)
        self._report.entries += len(lines)
        self._check_end(chain, before, lines)
        if self._is_based:
            for line in lines:
                self._tree.add(line)
                self._check_tree()

    def _check_end(self, chain: str, before: ChainHead, lines: Sequence[bytes]) -> None:
        end, head = self._claims.ends.get(chain), self._chains.heads.get(chain, GENESIS)
        first = head.number - len(lines) + 1
        if end is None or not first <= end.number <= head.number:
            return
        self._reached.add(chain)
        if end.number < head.number:
            before = before if before.number == first - 1 else self._chains.began.get(chain, (before, 0))[0]
            head = before.after(lines[: end.number - first + 1])
        if head != end:
            self._break(chain, "", f"entry {end.number}: it is not the one that its position names")

    def _check_tree(self) -> None:
        if self._next == len(self._seals) or self._tree.size < self._seals[self._next].frontier.size:
            return
        seal = self._seals[self._next]
        self._next += 1
        if self._tree.size == seal.frontier.size and self._tree.root == seal.frontier.root:
            self._check_heads(seal)
            return
        last = self._seals[self._next - 2].frontier.size if self._next > 1 else 0
        self._fault(
            f"the seal of {seal.frontier.size} entries does not fit: of entries {last + 1} to "
            f"{seal.frontier.size} of the log one was changed, removed or put in"
        )
        # What comes behind is checked by itself.
        self._tree = seal.frontier.copy()

    def _check_heads(self, seal: Seal) -> None:
        """Hold the chains against a seal that has just been come to; it vouches for those that expired."""
        for chain, head in seal.heads.items():
            found = self._chains.heads.get(chain)
            if found is None and seal is self._base:
                if not self._is_vouched:
                    self._break(chain, "", f"entry 1: {_entries(1, head.number)} missing")
                self._chains.heads[chain] = head
            elif found is not None and found.number == head.number and found != head:
                what = f"it is not the one that the seal of {seal.frontier.size} entries names"
                self._break(chain, "", f"entry {head.number}: {what}")
            elif found != head:
                number = 0 if found is None else found.number
                what = f"the seal of {seal.frontier.size} entries has it at {head.number}"
                self._break(chain, "", f"entry {number + 1}: {what}")

    @property
    def unclaimed(self) -> Collection[str]:
        """The chains that have records, and of which no position says where they end."""
        return self._chains.heads.keys() - self._claims.ends.keys()

    def finish(self, late: Mapping[str, ChainHead] | None = None) -> AuditReport:
        """What was found, when every record was taken. `late` has the ends of chains as they are by now: one
        may have begun since the claims were read.
        """
        claims, report = self._claims, self._report
        if not self._is_based and self._base is not None:
            self._check_heads(self._base)
        for chain, (before, moment_us) in self._chains.began.items():
            vouched = self._is_vouched and self._base is not None and chain in self._base.heads
            is_old = (
                self._base is None
                and not self._seals
                and moment_us < claims.now_us - claims.keep_us + _SLACK_US
            )
            if not vouched and not is_old:
                self._break(chain, "", f"entry 1: {_entries(1, before.number)} missing")
        for chain, end in claims.ends.items():
            number = self._chains.heads.get(chain, GENESIS).number
            if number < end.number:
                what = f"{_entries(number + 1, end.number)} missing: its position is at {end.number}"
                self._break(chain, "", f"entry {number + 1}: {what}")
            elif chain not in self._reached and self._chains.heads[chain] != end:
                self._break(chain, "", f"entry {end.number}: it is not the one that its position names")
        for chain in self.unclaimed:
            head, now = self._chains.heads[chain], (late or {}).get(chain, GENESIS)
            if now == head or now.number > head.number:
                continue
            self._break(
                chain,
                "",
                f"entry {self._chains.heads[chain].number}: no position says that it ends there. The position"
                " was removed, or written by a build without audits",
            )
        if self._next < len(self._seals):
            size = self._seals[self._next].frontier.size
            self._fault(
                f"the seal of {size} entries does not fit: there are {self._tree.size}; entries were removed"
            )
        report.faults = [*self._chain_faults, *report.faults]
        report.chains = len(self._chains.heads)
        report.sealed = self._seals[-1].frontier.size if self._seals else 0
        return report

    def _break(self, chain: str, place: str, fault: str) -> None:
        if chain in self._broken:
            return
        self._broken.add(chain)
        entry, _, why = fault.partition(": ")
        where = f" ({place})" if place else ""
        self._chain_faults.append(f"chain {chain} breaks at {entry}{where}: {why}")

    def _fault(self, text: str) -> None:
        self._report.faults.append(text)


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def _time(moment_us: int) -> str:
    return timestamp(datetime.fromtimestamp(moment_us / 1e6, UTC))
