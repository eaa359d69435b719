"""`asyncio` for a Runnable, where whatever is awaited has been done: calls are made where they are written.

Two things must be known before a call is made: how long it may take (`timeout`, `wait_for`), and that another
one is made though it raised (`gather`). `dialect` hands calls that are written as arguments of those over as
functions. Deadlines bound what waits: `sleep`, and the requests that the host makes.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterable
from typing import Any

from processor.sandbox.facades.guards import LATER, bless, insisting

_deadlines: list[float] = []  # by the monotonic clock; the innermost is the last, and may be the latest
_LONGEST_S = 1e9


def remaining_s() -> float | None:
    """Seconds that what waits now may take; None where nothing bounds it. Raises TimeoutError after that."""
    if not _deadlines:
        return None
    left_s = min(_deadlines) - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def deadlines() -> list[float]:
    """Those that bound what waits now, for `set_deadlines`."""
    return _deadlines.copy()


def set_deadlines(those: Iterable[float] = ()) -> None:
    """Others run now, which these bound and no others."""
    _deadlines[:] = those


_let_others_run: list[Callable[[Callable[[], Any]], bool]] = [lambda until: False]


def wait_by(let_others_run: Callable[[Callable[[], Any]], bool]) -> None:
    """Let a lock that is held elsewhere be waited for by this, which says whether it has come free."""
    _let_others_run[:] = [let_others_run]


def _made(value: Any) -> Any:
    """What an argument stands for: the call that was handed over as a function is made now."""
    match value:
        case (str(mark), types.FunctionType() as call) if mark == LATER:
            return call()
        case _:
            return value


def _seconds(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise TypeError(f"{what} is a number of seconds, not {type(value).__name__}")
    return min(float(value), _LONGEST_S)


@insisting
class Deadline:
    """Bounds what waits in its `with` block; TimeoutError is raised where that would take longer."""

    __slots__ = ("_at", "_is_expired", "_seconds")

    def __init__(self, delay: Any) -> None:
        self._seconds = None if delay is None else _seconds(delay, "a timeout")
        self._at: float | None = None
        self._is_expired = False

    def expired(self) -> bool:
        """Whether it ended what was in it."""
        return self._is_expired

    def __enter__(self) -> Deadline:
        if self._at is not None:
            raise RuntimeError("a timeout can be entered once")
        self._at = time.monotonic() + (_LONGEST_S if self._seconds is None else self._seconds)
        _deadlines.append(self._at)
        return self

    def __exit__(self, kind: Any, err: Any, trace: Any) -> None:
        if self._at in _deadlines:
            _deadlines.remove(self._at)
        self._is_expired = isinstance(err, TimeoutError) and time.monotonic() >= (self._at or 0)


@insisting
class Lock:
    """Held while its holder waits for an answer, which lets messages of other keys run. Who asks for it
    again while holding it would wait for itself.
    """

    __slots__ = ("_free", "_most")

    def __init__(self) -> None:
        self._free = self._most = 1

    def locked(self) -> bool:
        return self._free == 0

    def acquire(self) -> bool:
        while self._free == 0:
            if not _let_others_run[0](lambda: self._free):
                raise RuntimeError("it is held here already, and nothing runs beside that could release it")
            remaining_s()
        self._free -= 1
        return True

    def release(self) -> None:
        if self._free == self._most and type(self) is not Semaphore:
            raise RuntimeError("Lock is not acquired." if type(self) is Lock else "it is released too often")
        self._free += 1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: Any) -> None:
        self.release()


@insisting
class Semaphore(Lock):
    """As many places as it is made with; a message takes one at a time, unless one is nested."""

    __slots__ = ()

    def __init__(self, value: int = 1) -> None:
        if type(value) is not int or value < 0:
            raise ValueError("Semaphore initial value must be >= 0")
        self._free = self._most = value


@insisting
class BoundedSemaphore(Semaphore):
    __slots__ = ()


def sleep(delay: Any, result: Any = None) -> Any:
    """Wait. Raises TimeoutError where a deadline comes first."""
    wait_s = max(_seconds(delay, "a delay"), 0.0)
    left_s = remaining_s()
    if left_s is not None and left_s < wait_s:
        time.sleep(left_s)
        raise TimeoutError
    time.sleep(wait_s)
    return result


def gather(*calls: Any, return_exceptions: bool = False) -> list[Any]:
    """What the calls gave, in order; with `return_exceptions` also what those raised that are made here."""
    results = []
    for call in calls:
        try:
            results.append(_made(call))
        except Exception as err:
            if not return_exceptions:
                raise
            results.append(err)
    return results


def wait_for(fut: Any, timeout: Any) -> Any:
    """What a call gave that is made here, within its time."""
    with Deadline(timeout):
        return _made(fut)


def run(main: Any, **_: Any) -> Any:
    """What the call gave."""
    return main


def create_task(coro: Any, **_: Any) -> Any:
    """What the call gave: it has been made."""
    return coro


def as_completed(calls: Iterable[Any], *, timeout: Any = None) -> Iterable[Any]:
    """What the calls gave, which have been made."""
    return iter(list(calls))


class CancelledError(BaseException):
    """Never raised: nothing cancels what a Runnable does. For programs that catch it."""


bless(CancelledError)
NAMES: dict[str, Any] = {
    "sleep": sleep,
    "gather": gather,
    "run": run,
    "create_task": create_task,
    "ensure_future": create_task,
    "as_completed": as_completed,
    "wait_for": wait_for,
    "timeout": Deadline,
    "Lock": Lock,
    "Semaphore": Semaphore,
    "BoundedSemaphore": BoundedSemaphore,
    "TimeoutError": TimeoutError,
    "CancelledError": CancelledError,
}
