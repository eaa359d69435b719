"""The answers that calls of unsettled messages got, so that a message which runs again need not call again.

A worker has one `Replay`. It takes `Calls` from it for every run, which answer the guest: with what is kept,
or by making the call. When messages are settled the worker says so, and nothing of them is left; a restart
forgets everything.

A call is told by its request: what a message asks again, word for word, is answered in the order in which it
was asked before. `process` may get several messages of a key at a time; whose call it was then shows when
they run apart.

What must stay true:
- An answer is handed out once in a run, and only to messages whose run has made the call.
- What is decided by the rules of the moment (`ANEW`) is decided anew, and never kept.
- A call that failed (no answer, 429, 5xx) is never kept; it is made again, with the same idempotency key.
- Two requests that are not the same call never have the same idempotency key.
- What is kept has a bound. A run that would go over it is cut: it is run again as smaller batches.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import orjson

from processor.capability.registry import ANEW, UNSAFE, WRITES
from processor.errors import ERRORS, ProcessorError
from processor.model import Delivery, Group
from processor.sandbox.wire import Attached

KEPT_BYTES = 64 << 20
_CALL_BYTES = 500  # of a call that is remembered, beside its answer
# What makes two requests the same; how long one may take and whether it follows redirects does not.
_ASKED = ("method", "url", "params", "headers", "auth", "kind")
_UNANSWERED = object()
_UNSENT = frozenset(row.code for row in ERRORS.values() if row.is_unsent)

Make = Callable[[dict[str, Any]], Awaitable[Any]]
Members = Sequence[Sequence[Delivery]]  # of each group, its messages


@dataclass(slots=True, eq=False)
class _Call:
    """One call that messages have made, or are making."""

    messages: frozenset[int]  # it is of one of these, by sequence
    origin: bytes  # tells the group that made it first
    idempotency_key: str
    is_write: bool
    run: int = 0  # the last that it was part of
    is_open: bool = False  # on its way in that run
    is_made: bool = False
    is_answered: bool = False  # in that run
    answer: Any = None
    size: int = 0  # of the answer; 0 where there is none


class _Callers(NamedTuple):
    """A group that calls: its messages, by sequence, and what tells it from other groups.

    Of the whole group: which of its messages calls is not known, and in another group it may differ.
    """

    messages: frozenset[int]
    origin: bytes

    @classmethod
    def of(cls, deliveries: Sequence[Delivery]) -> _Callers:
        messages = _sequences(deliveries)
        return cls(messages, ",".join(map(str, sorted(messages))).encode())


def _is_free(call: _Call, run: int) -> bool:
    """Whether a run may be given it: it is not on its way, and the run has not had its answer."""
    return not call.is_open and (call.run != run or not call.is_answered)


class _SameCalls:
    """The calls that messages of a key have made with one request, in their order."""

    __slots__ = ("_counts", "_run", "_taken", "calls")

    def __init__(self, calls: Sequence[_Call] = ()) -> None:
        self.calls = list(calls)
        self._counts = Counter(call.origin for call in calls)
        self._run = 0
        self._taken = 0  # so many of them, from the first on, are no longer to be had in that run

    def free(self, run: int) -> Iterator[_Call]:
        """Those that this run may still be given, in order."""
        if run != self._run:
            self._run, self._taken = run, 0
        calls = self.calls
        while self._taken < len(calls) and not _is_free(calls[self._taken], run):
            self._taken += 1
        return (call for call in islice(calls, self._taken, None) if _is_free(call, run))

    def freed(self) -> None:
        """One of them is to be had again in the run that had it."""
        self._taken = 0

    def count(self, origin: bytes) -> int:
        """How many of them a group has made first."""
        return self._counts[origin]

    def add(self, call: _Call) -> None:
        self.calls.append(call)
        self._counts[call.origin] += 1


class Replay:
    """What the calls of one worker's unsettled messages were answered."""

    def __init__(
        self,
        scope: Sequence[str],
        across: Literal["attempt", "writes", "all"],
        marks: Mapping[str, str],
        repeated: Callable[[], None],
        max_bytes: int = KEPT_BYTES,
    ) -> None:
        """`scope` names the route and its input, `across` is the route's `calls.replay`, `marks` stand for
        its secrets, and `repeated` hears of each call that is made again.
        """
        self._scope = "\0".join(scope).encode()
        self._across = across
        self._marks = [(mark.encode(), f"secret.{name}".encode()) for name, mark in marks.items()]
        self._repeated = repeated
        self._max_bytes = max_bytes
        self._bytes = 0
        self._runs = 0
        self._calls: dict[str, dict[bytes, _SameCalls]] = {}  # by key, by request

    def calls(self, groups: Sequence[Group], members: Members) -> Calls:
        """What answers the calls of a run of these groups."""
        self._runs += 1
        return Calls(self, self._runs, groups, members)

    def settled(self, groups: Sequence[Group], members: Members) -> None:
        """Forget the calls of messages that will not run again."""
        for group, deliveries in zip(groups, members, strict=True) if self._calls else ():
            by_request = self._calls.get(group.key)
            if by_request is None:
                continue
            gone = _sequences(deliveries)
            left: dict[int, tuple[frozenset[int], frozenset[int]]] = {}  # many calls share one set
            for digest, same in list(by_request.items()):
                for call in same.calls:
                    _, call.messages = left.setdefault(
                        id(call.messages), (call.messages, call.messages - gone)
                    )
                self._remove(by_request, digest, {call for call in same.calls if not call.messages})
            if not by_request:
                del self._calls[group.key]

    def failed(self, groups: Sequence[Group], members: Members) -> None:
        """Keep for the next try of these messages what that is to get of this one."""
        for group, deliveries in zip(groups, members, strict=True) if self._across != "all" else ():
            mine = _sequences(deliveries)
            for same in self._calls.get(group.key, {}).values():
                for call in same.calls:
                    if call.messages <= mine and not (self._across == "writes" and _is_done_write(call)):
                        self._drop_answer(call)

    def _remove(self, by_request: dict[bytes, _SameCalls], digest: bytes, gone: set[_Call]) -> None:
        for call in gone:
            self._drop_answer(call)
            self._bytes -= _CALL_BYTES
        left = [call for call in by_request[digest].calls if call not in gone]
        if left:
            by_request[digest] = _SameCalls(left)
        else:
            del by_request[digest]

    def _drop_answer(self, call: _Call) -> None:
        self._bytes -= call.size
        call.answer, call.size = None, 0

    def _digest(self, name: str, arguments: Mapping[str, Any]) -> bytes:
        """What tells one request from another, in any process: secrets by their names, not their marks."""
        body = arguments.get("body")
        body = body if type(body) is bytes else b""
        asked = _ASKED if name == "requests" else [part for part in arguments if part != "body"]
        head = orjson.dumps(
            [name, {part: arguments.get(part) for part in asked}], option=orjson.OPT_SORT_KEYS
        )
        said = b"%d\0%s\0%s" % (len(head), head, body)
        for mark, secret in self._marks:
            said = said.replace(mark, secret)
        return hashlib.sha256(said).digest()

    def _find(self, run: int, key: str, group: _Callers, digest: bytes, *, is_write: bool) -> _Call:
        """The call that a run asks for: one of this group's messages that it has not had, or a new one."""
        by_request = self._calls.setdefault(key, {})
        if (same := by_request.get(digest)) is None:
            same = by_request[digest] = _SameCalls()
        messages = group.messages
        for call in same.free(run):
            if not messages.isdisjoint(call.messages):
                if not call.messages <= messages:
                    call.messages &= messages
                return call
        said = b"\0".join((self._scope, group.origin, b"%d" % same.count(group.origin), digest))
        call = _Call(messages, group.origin, hashlib.sha256(said).hexdigest()[:32], is_write)
        same.add(call)
        self._bytes += _CALL_BYTES
        return call

    def _freed(self, key: str, digest: bytes) -> None:
        """A call of this request has brought no answer that counts: the run that had it may have it again."""
        if (same := self._calls.get(key, {}).get(digest)) is not None:
            same.freed()

    def _keep(self, call: _Call, answer: Any, running: Callable[[], Mapping[str, frozenset[int]]]) -> bool:
        """Keep an answer; False where that is over the bound, whatever is let go for it."""
        size = _size(answer)
        if self._bytes + size > self._max_bytes:
            self._let_go(size, running())
        call.answer, call.size = answer, size
        self._bytes += size
        return self._bytes <= self._max_bytes

    def _let_go(self, size: int, running: Mapping[str, frozenset[int]]) -> None:
        """Make room by forgetting calls of messages that wait: of those that run every one may be needed."""
        for key, by_request in list(self._calls.items()):
            in_hand = running.get(key, frozenset())
            for digest, same in list(by_request.items()):
                if self._bytes + size <= self._max_bytes:
                    return
                self._remove(by_request, digest, {c for c in same.calls if in_hand.isdisjoint(c.messages)})
            if not by_request:
                del self._calls[key]


class Calls:
    """The calls of one run. `cut` is the group in which it was cut, where it was."""

    def __init__(self, replay: Replay, run: int, groups: Sequence[Group], members: Members) -> None:
        self._replay = replay
        self._run = run
        self._groups = groups
        self._members = members
        self._callers: dict[int, _Callers] = {}  # the groups that have made a call
        self.cut: int | None = None

    async def answer(self, group: int, name: str, arguments: dict[str, Any], make: Make) -> Any:
        """The answer to a call of a group: the one that it had before, or that of `make`.

        Raises what `make` raises, and ProcessorError E323 in a run that was cut, whose outcome is void.
        """
        if self.cut is not None:
            raise ProcessorError("E323", "the batch is run again in parts: it has too many bytes of answers")
        if name in ANEW:
            return await make(arguments)
        replay, key = self._replay, self._groups[group].key
        if (callers := self._callers.get(group)) is None:
            callers = self._callers[group] = _Callers.of(self._members[group])
        digest = replay._digest(name, arguments)
        is_write = name in WRITES or (name == "requests" and str(arguments.get("method")) in UNSAFE)
        before_bytes = replay._bytes
        call = replay._find(self._run, key, callers, digest, is_write=is_write)
        # A call is remembered that fails and has no answer to be kept, too.
        if replay._bytes > max(before_bytes, replay._max_bytes):
            replay._let_go(replay._max_bytes // 8, self._in_hand())
        if call.size:
            call.run, call.is_answered = self._run, True
            return call.answer
        if call.is_made and call.run != self._run:
            replay._repeated()
        call.run, call.is_made, call.is_answered, call.is_open = self._run, True, False, True
        if name == "requests":
            arguments = {**arguments, "idempotency_key": call.idempotency_key}
        answer: Any = _UNANSWERED
        try:
            answer = await make(arguments)
        except ProcessorError as err:
            call.is_made = err.code not in _UNSENT
            raise
        finally:
            call.is_open = False
            if not (is_final := answer is not _UNANSWERED and _is_final(answer)):
                replay._freed(key, digest)
        if is_final:
            call.is_answered = True
            if not _is_stream(answer) and not replay._keep(call, answer, self._in_hand):
                if sum(map(len, self._members)) > 1:
                    self.cut = group
                else:  # nothing is left to be cut
                    replay._drop_answer(call)
        return answer

    def _in_hand(self) -> dict[str, frozenset[int]]:
        """By key, the messages that this run has."""
        in_hand: dict[str, frozenset[int]] = {}
        for group, deliveries in zip(self._groups, self._members, strict=True):
            in_hand[group.key] = in_hand.get(group.key, frozenset()) | _sequences(deliveries)
        return in_hand


def _sequences(deliveries: Sequence[Delivery]) -> frozenset[int]:
    return frozenset(delivery.sequence for delivery in deliveries)


def _is_final(answer: Any) -> bool:
    """Whether asking again would be a second call, and not another try of one that failed."""
    if not isinstance(answer, Attached):
        return True
    status = answer.value.get("status")
    return isinstance(status, int) and status != 429 and status < 500


def _is_stream(answer: Any) -> bool:
    """Whether its body was pulled, and is not here to be kept."""
    return isinstance(answer, Attached) and "stream" in answer.value


def _is_done_write(call: _Call) -> bool:
    is_kept = call.is_write and call.size > 0
    return is_kept and (not isinstance(call.answer, Attached) or call.answer.value["status"] < 400)


def _size(answer: Any) -> int:
    if isinstance(answer, Attached):
        return len(answer.body) + len(orjson.dumps(answer.value))
    return len(orjson.dumps(answer))
