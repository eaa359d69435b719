"""What a worker runs its batches in, whatever that is: see `BatchRunner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from processor.model import Failure, Group, Outcome
from processor.sandbox.calls import Answer


class BatchRunner(Protocol):
    """What makes outcomes of groups: a `Guest` of the sandbox, or what runs several of these.

    When it dies (`alive` is False), the contexts that it had are gone; another one is then given them again.
    """

    @property
    def alive(self) -> bool:
        """Whether it can run something."""

    @property
    def verdict(self) -> Failure | None:
        """Why it was ended, where it was."""

    async def run(
        self,
        groups: Sequence[Group],
        *,
        fields: Sequence[str] = (),
        forget: Sequence[str] = (),
        messages: bytes = b"",
        answer: Answer | None = None,
    ) -> Outcome:
        """As `Guest.run`."""

    async def close(self) -> None:
        """End it, and wait until it is gone. Idempotent."""
