"""threading's locks for plain Python, where no thread runs beside and messages take turns.

A lock is held while its holder waits for an answer of the host; who asks for it meanwhile lets the others
run until it is free. With the locks of Python, which know of threads alone, that would wait for ever.
`install` puts these in their place, where `Condition`, `Event`, `Semaphore` and `queue.Queue` find them too.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from processor.sandbox.channel import GuestCalls

_LONGEST_S = threading.TIMEOUT_MAX


class TurnLock:
    """threading.Lock."""

    _calls: GuestCalls  # from `install` on, for all of them

    def __init__(self) -> None:
        self._is_held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Raises RuntimeError where nobody runs who could release it."""
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        until_s = time.monotonic() + (_LONGEST_S if timeout < 0 else timeout)
        while self._is_held:
            if not blocking or time.monotonic() >= until_s:
                return False
            if not self._calls.let_others_run(lambda: not self._is_held):
                if timeout < 0:
                    raise RuntimeError(
                        "it is held here already, and nothing runs beside that could release it"
                    )
                time.sleep(max(0.0, until_s - time.monotonic()))
        self._is_held = True
        return True

    def release(self) -> None:
        if not self._is_held:
            raise RuntimeError("release unlocked lock")
        self._is_held = False

    def locked(self) -> bool:
        return self._is_held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _at_fork_reinit(self) -> None:
        self._is_held = False


class TurnRLock:
    """threading.RLock: the message that holds it may take it again."""

    def __init__(self) -> None:
        self._lock = TurnLock()
        self._owner = -1
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._is_owned():
            if not self._lock.acquire(blocking, timeout):
                return False
            self._owner = TurnLock._calls.group
        self._count += 1
        return True

    def release(self) -> None:
        if not self._is_owned():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            self._release_save()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    # What a Condition asks of it.

    def _is_owned(self) -> bool:
        return self._lock.locked() and self._owner == TurnLock._calls.group

    def _release_save(self) -> tuple[int, int]:
        held, self._count, self._owner = (self._count, self._owner), 0, -1
        self._lock.release()
        return held

    def _acquire_restore(self, held: tuple[int, int]) -> None:
        self._lock.acquire()
        self._count, self._owner = held

    def _at_fork_reinit(self) -> None:
        self.__init__()  # type: ignore[misc]


def install(calls: GuestCalls) -> None:
    """Let this process, which is a guest, have no other locks."""
    TurnLock._calls = calls
    module: Any = threading
    module.Lock = module._allocate_lock = TurnLock
    module.RLock = TurnRLock
