"""Leave to do something: what a performer asks before each step on which the policy may have a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from processor.policy import Ask

Show = Callable[[str], str]


class Permit(Protocol):
    """Returns if something may be done, and raises ProcessorError where it may not."""

    def __call__(self, ask: Ask, show: Show = str) -> None:
        """`show` takes out of a sentence what nobody may read: a server can put a secret into a redirect."""


def allow_all(ask: Ask, show: Show = str) -> None:
    """The permit of those who have no policy."""
