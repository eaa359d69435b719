"""Chapter 13: a Runnable imports the files of a folder, and a change of one is a new version of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processor.errors import Faults
from tests.running import Start

ROUTE = """
plain:
  input: {subject: "plain.*", create: true}
  runnable: bill.py
  language: python
  output: bills.plain
restricted:
  input: {subject: "restricted.*", create: true}
  runnable: bill.py
  output: bills.restricted
"""
BILL = """
from lib.fees import fee
from lib.pricing import discount

class Runnable:
    def process(self, queries):
        self.context["billed"] = self.context.get("billed", 0) + len(queries)
        return [{"bill": fee(discount.off(q["amount"])), "n": self.context["billed"]} for q in queries]
"""
FEES = """
RATE = 10

def fee(amount):
    return amount + amount // RATE
"""
DISCOUNT = """
def off(amount):
    if amount < 0:
        raise ValueError("no amount")
    return amount - 1
"""


async def test_routes_share_the_modules_of_a_folder(processor: Start, tmp_path: Path) -> None:
    """Each compiles them in its own language; a failure shows their lines, a change keeps the context."""
    (tmp_path / "lib/pricing").mkdir(parents=True)
    files = {"bill": BILL, "lib/fees": FEES, "lib/pricing/discount": DISCOUNT}
    async with processor(ROUTE, top="modules: lib/", **files) as running:
        for route in ("plain", "restricted"):
            await running.publish(f"{route}.x", {"amount": 101})
            assert await running.documents(f"bills.{route}", 1) == [{"bill": 110, "n": 1}]
            await running.publish(f"{route}.x", {"amount": -1})
            [letter] = await running.dead_letters(route)
            assert 'discount.py", line 4, in off' in json.loads(letter.headers["x-error-traceback"])
        changed = await running.reload(**{"lib/fees": FEES.replace("RATE = 10", "RATE = 5")})
        assert changed == ["plain", "restricted"]
        await running.publish("restricted.x", {"amount": 101})
        assert (await running.documents("bills.restricted", 2))[1] == {"bill": 120, "n": 2}


async def test_the_faults_of_all_modules_are_told_together(processor: Start, tmp_path: Path) -> None:
    """With file, line and column, and what runs goes on."""
    (tmp_path / "lib/pricing").mkdir(parents=True)
    files = {"bill": BILL, "lib/fees": FEES, "lib/pricing/discount": DISCOUNT}
    only = "restricted:" + ROUTE.partition("restricted:")[2]
    async with processor(only, top="modules: lib/", **files) as running:
        with pytest.raises(Faults) as refused:
            await running.reload(**{
                "lib/fees": "import os\n" + FEES,
                "lib/pricing/discount": "def off(amount):\n    return open(amount)\n",
                "lib/unused": "from .fees import fee\n",
            })  # fmt: skip
        told = [
            (Path(f.file).relative_to(tmp_path).as_posix(), f.line, f.column, f.code)
            for f in refused.value.faults
        ]
        assert told == [
            ("lib/fees.py", 1, 1, "E203"),
            ("lib/pricing/discount.py", 2, 12, "E202"),
            ("lib/unused.py", 1, 1, "E201"),
        ]
        await running.publish("restricted.x", {"amount": 101})
        assert await running.documents("bills.restricted", 1) == [{"bill": 110, "n": 1}]
