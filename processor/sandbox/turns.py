"""The groups of one run take turns in their guest: while one waits for an answer of the host, others run.

Groups run one after the other until one calls. What calls is a greenlet, which is left where it stands; the
guest begins another with the groups that are left, and goes back to each when its answer is there. User code
is written as if it were alone, and is left nowhere but in a call of its own: nothing of a program runs beside
what it does between two calls.

What must stay true:
- The groups of one queue, which are those of a key, run in order and never beside each other.
- When `run` ends, whatever way, no user code of the run is left standing.
- A run that fails asks nothing twice: what others of its groups have asked for is answered, and the host
  has it for their next try.

Only this module imports greenlet. Where that cannot be imported, groups run one after the other.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple

from processor.sandbox.channel import GuestCalls, ended
from processor.sandbox.results import Unsuccessful

try:
    import greenlet  # nothing of it is a system call: it moves the stack of the process
except ImportError:  # a platform without a wheel of it
    HAS_GREENLETS = False
else:
    HAS_GREENLETS = True

Queue = Collection[int]  # the numbers of groups that run in order


class Standing(NamedTuple):
    """A group that waits where it stands."""

    may_go_on: Callable[[], Any]
    known: Any  # what the guest knows of it


class Turns:
    """Runs the groups of one guest by turns."""

    def __init__(self, calls: GuestCalls, leave: Callable[[], Any], come_back: Callable[[Any], None]) -> None:
        """`leave` says what the guest knows of the group in hand, and `come_back` makes it so again."""
        self._calls = calls
        self._leave = leave
        self._come_back = come_back
        self._left: deque[Queue] = deque()  # whose groups have not begun
        self._waiting: dict[Any, Standing] = {}  # by greenlet
        self._run_group: Callable[[int], object]
        self._running: Any = None  # whose turn it is; None while the guest itself waits
        # What runs first in every run: to make a greenlet costs as much as a small group does.
        self._first: Any = None
        self._is_ending = False

    def run(self, queues: Iterable[Queue], run_group: Callable[[int], object]) -> None:
        """Call `run_group` for each group, in order within each queue; as many wait as may have calls open.

        Raises what it raises for one; the others do not go on then.
        """
        self._left.extend(queues)
        self._run_group = run_group
        self._calls.wait = self.wait
        try:
            while self._left or self._waiting:
                while self._left and len(self._waiting) < self._calls.most:
                    self._switch_to(self._another())
                self._go_on()
        except BaseException:
            self._end()
            raise
        finally:
            self._calls.wait = None

    def wait(self, until: Callable[[], Any]) -> bool:
        """Let others run until this one may go on. False where it has to wait by itself: it is no group's
        own code that calls, or nothing that others do could let it go on.
        """
        waiting = self._running
        if waiting is None or greenlet.getcurrent() is not waiting:
            return False
        if self._is_ending:
            raise ended()
        known = self._leave()
        self._waiting[waiting] = Standing(until, known)
        may_go_on: bool = waiting.parent.switch()
        self._come_back(known)
        if self._is_ending:
            raise ended()
        return may_go_on

    @property
    def longest(self) -> tuple[Any, FrameType] | None:
        """While all wait, what is known of the one that has waited longest, and where it stands."""
        if self._running is not None or not self._waiting:
            return None
        waiting, standing = next(iter(self._waiting.items()))
        return standing.known, waiting.gr_frame

    def _go_on(self) -> None:
        """Go on with those that may, once there are any."""
        ready = [waiting for waiting, standing in self._waiting.items() if standing.may_go_on()]
        if ready:
            for waiting in ready:
                if self._waiting[waiting].may_go_on():  # still so, after what those before it have done
                    del self._waiting[waiting]
                    self._switch_to(waiting, True)
        elif self._calls.are_open:
            self._calls.take_in_next()
        elif self._waiting:  # each holds what another waits for
            waiting = next(iter(self._waiting))
            del self._waiting[waiting]
            self._switch_to(waiting, False)

    def _switch_to(self, other: Any, *given: bool) -> None:
        self._running = other
        try:
            other.switch(*given)
        finally:
            self._running = None

    def _another(self) -> Any:
        """What runs groups that are left, until none is."""
        here = greenlet.getcurrent()
        if not self._first:
            self._first = greenlet.greenlet(self._work_on, here)
            # What user code sets there is there in the next run, as if nothing had been made for it.
            contextvars.copy_context()  # makes the one that it has, where it has none
            self._first.gr_context = here.gr_context
            return self._first
        if self._first not in self._waiting:
            return self._first
        other = greenlet.greenlet(self._work, here)
        other.gr_context = contextvars.copy_context()
        return other

    def _work_on(self) -> None:
        while True:
            self._work()
            greenlet.getcurrent().parent.switch()

    def _work(self) -> None:
        while self._left:
            for number in self._left.popleft():
                self._run_group(number)
                if self._is_ending:  # its code has caught what ended it
                    return

    def _end(self) -> None:
        """End those that wait: the run has failed, and keeps nothing of what they have done."""
        known = self._leave()
        self._left.clear()
        self._calls.give_up()
        self._is_ending = True
        try:
            for waiting in list(self._waiting):
                self._running = waiting
                with suppress(Unsuccessful, MemoryError):
                    waiting.switch(False)
        finally:
            self._waiting.clear()
            self._running, self._is_ending = None, False
            self._come_back(known)
