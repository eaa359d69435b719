"""decimal's contexts in a Runnable: what C may still work with stays, however the program leaves it."""

from __future__ import annotations

from processor.sandbox.facades import decimals
from tests.sandbox.test_dialect import Loaded

NESTED = """
from decimal import Decimal, getcontext, localcontext

class Runnable:
    def process(self, depths):
        precisions = []
        for depth in depths:
            precisions.append(self.inside(depth))
        return precisions, getcontext().prec

    def inside(self, depth):
        with localcontext(prec=depth + 1):
            return getcontext().prec if depth == 0 else self.inside(depth - 1) + getcontext().prec
"""
KEPT = """
from decimal import localcontext

class Runnable:
    def process(self, counts):
        kept = []
        for count in range(counts[0]):
            with localcontext(prec=count + 1) as context:
                kept.append(context)
        return [context.prec for context in kept]
"""


def test_a_context_that_was_left_is_used_again_and_never_freed() -> None:
    """A thousand local contexts, three at a time, take as many contexts as were ever in use at once."""
    process = Loaded(NESTED).process
    assert process([2]) == ([6], 28)
    used = [id(context) for context in decimals._used]
    assert process([2] * 1000) == ([6] * 1000, 28)
    assert sorted(id(context) for context in decimals._used) == sorted(used)


def test_a_context_that_a_program_keeps_stays_as_it_left_it() -> None:
    """Another local context does not write its settings into one that somebody holds."""
    assert Loaded(KEPT).process([50]) == list(range(1, 51))
