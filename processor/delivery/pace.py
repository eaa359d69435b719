"""How many messages one run is given where the result of each is waited for: see `RunPace`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from processor.model import Delivery

_KINDS_MAX = 1000
_FORGOTTEN = 0.2  # of what is known of a kind, with each run that was faster


class RunPace:
    """Cuts what is at hand into runs that end soon, as far as it is known how long messages take.

    Messages that take little share a run, which costs less; one that takes long, or of which nothing is
    known, has its own. Each message is of a kind, and those of one kind are taken to need the same time: the
    mean of the slowest run lately.
    """

    def __init__(self, kind: Callable[[Delivery], str], run_s: float | None) -> None:
        """`run_s` is how long the messages of a run may take together; None where that does not matter."""
        self._kind = kind
        self._run_s = run_s
        self._mean_s: dict[str, float] = {}

    @property
    def is_bounded(self) -> bool:
        """Whether the time of a run matters."""
        return self._run_s is not None

    def room(self, deliveries: Sequence[Delivery]) -> int:
        """How many of the first of these may run together; at least one."""
        if self._run_s is None:
            return len(deliveries)
        left_s = self._run_s
        for count, delivery in enumerate(deliveries):
            mean_s = self._mean_s.get(self._kind(delivery))
            if mean_s is None or mean_s > left_s:
                return max(1, count)
            left_s -= mean_s
        return len(deliveries)

    def took(self, deliveries: Sequence[Delivery], wall_s: float) -> None:
        """Learn from a run of these that took so long; 0 says that nothing was run."""
        if self._run_s is None or not wall_s:
            return
        kinds = [self._kind(delivery) for delivery in deliveries]
        expected_s = sum(self._mean_s.get(kind, 0.0) for kind in kinds)
        if len(self._mean_s) > _KINDS_MAX:
            self._mean_s.clear()
        for kind in set(kinds):
            before_s = self._mean_s.get(kind)
            if before_s is None or not expected_s:
                self._mean_s[kind] = wall_s / len(kinds)
            else:
                now_s = before_s * wall_s / expected_s
                self._mean_s[kind] = max(now_s, before_s + _FORGOTTEN * (now_s - before_s))
