"""The circuit breaker of a route: when its guests keep dying, it pauses before it tries again.

The rule: it opens when `deaths` guests in a row died within `window_s`, over more than one message or before
they had one, and no run ended otherwise in between. After `pause_s` one message is tried: if its guest
lives, the breaker closes; if it dies, the next pause is twice as long, up to ten times `pause_s`.
Several workers share it: one of them tries, and the others wait for what comes of that.

So a message that kills its guest at every try does not stop a route whose other messages are sound. Nor
does the halving of its batch: a run of several messages that dies says nothing yet, and is not told.

A pure value but for what it was told: the caller brings the clock. It decides nothing about messages; what
counts as a try, and what becomes a dead letter, is the same with and without it.
"""

from __future__ import annotations

from collections import deque

from processor.errors import ERRORS

LONGEST_PAUSES = 10
# How soon those who wait for another's try look again.
LOOK_AGAIN_S = 0.05
DEATHS = frozenset(row.code for row in ERRORS.values() if row.kills_guest)


class Breaker:
    """Closed at first: everything passes. Times are seconds of any clock that does not go back."""

    def __init__(self, deaths: int, window_s: float, pause_s: float) -> None:
        self._window_s = window_s
        self._first_pause_s = pause_s
        self._pause_s = pause_s
        self._deaths: deque[tuple[float, int | None]] = deque(maxlen=deaths)
        self._until_s: float | None = None
        self._trying: object = None

    @property
    def is_open(self) -> bool:
        """Whether it has opened and no guest has lived since, be the pause over or not."""
        return self._until_s is not None

    def wait_s(self, now_s: float, who: object = None) -> float:
        """How long `who` may run nothing yet: nothing while it is closed, or once no pause and no other is
        in the way.
        """
        if self._until_s is None:
            return 0.0
        if now_s < self._until_s:
            return self._until_s - now_s
        return 0.0 if self._trying in (None, who) else LOOK_AGAIN_S

    def tries(self, who: object) -> None:
        """While it is open, no other is let through from now on until `tried`."""
        if self._until_s is not None:
            self._trying = who

    def tried(self, who: object) -> None:
        """What came of it was said, or nothing had to be run."""
        if self._trying is who:
            self._trying = None

    def died(self, now_s: float, message: int | None) -> bool:
        """A guest died over `message` alone, or before it had one; whether that opens it, or prolongs it.

        A death in its pause does neither: that guest was at work before it opened.
        """
        if self._until_s is not None and now_s < self._until_s:
            return False
        if self._until_s is not None:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSES * self._first_pause_s)
            self._until_s = now_s + self._pause_s
            return True
        self._deaths.append((now_s, message))
        first_s, _ = self._deaths[0]
        messages = {message for _, message in self._deaths}
        if len(self._deaths) < (self._deaths.maxlen or 0):
            return False
        # A guest that cannot be started is tried again at once: such a row has no gaps, however slow it is.
        if None not in messages and (len(messages) == 1 or now_s - first_s > self._window_s):
            return False
        self._until_s = now_s + self._pause_s
        return True

    def lived(self) -> bool:
        """A run ended without a death; whether that closes the breaker."""
        was_open = self.is_open
        self._deaths.clear()
        self._until_s = self._trying = None
        self._pause_s = self._first_pause_s
        return was_open
