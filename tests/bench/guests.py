# ruff: noqa: T201 - a measurement prints its figures
"""Figures of guests on this machine: `python tests/bench/guests.py`; `--json` for a machine to read.

Start, replacement after a kill, memory, round trips and capability calls of real guests in the real jail, and
the jail's own line. Every figure is the median and the 95th percentile of many; nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs from a checkout that nobody installed

from processor.model import Group, Limits, Program, Ran
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.launch import raise_descriptor_limit

COUNTER = """
class Runnable(BaseSecureRunnable):
    def init(self):
        self.context['counter'] = 0

    def process(self, queries):
        outputs = []
        for query in queries:
            self.context['counter'] += 1
            outputs.append({**query, 'counter': self.context['counter']})
        return outputs
"""
CALLER = """
class Runnable(BaseSecureRunnable):
    def process(self, queries):
        for _ in range(queries[0]):
            self.get_stock_data('IBM')
"""
PROGRAM = Program(COUNTER, "counter.py")
LIMITS = Limits(wall_s=60, cpu_s=60, requests=100_000)
DOCUMENT = json.dumps({"symbol": "AAPL", "price": 123.45, "note": ""}).encode()
DOCUMENT = DOCUMENT[:-2] + b"n" * (200 - len(DOCUMENT)) + b'"}'


def ms(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1e3, 3),
        "p95": round(ordered[int(len(ordered) * 0.95)] * 1e3, 3),
    }


async def checked(guest: Guest, count: int, context: dict[str, bytes] | None) -> Ran:
    outcome = await guest.run([Group("", [DOCUMENT] * count, context)])
    assert isinstance(outcome, Ran), outcome
    return outcome


async def start(zygote: Zygote, repeats: int) -> dict[str, Any]:
    """From the call of spawn to a guest that is sealed and loaded; and to its first answer."""
    loaded, answered = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        guest = await zygote.spawn(PROGRAM, LIMITS)
        loaded.append(time.perf_counter() - began)
        await checked(guest, 1, {})
        answered.append(time.perf_counter() - began)
        await guest.close()
    return {"guest start": ms(loaded), "guest start and first message": ms(answered)}


async def replacement(zygote: Zygote, repeats: int) -> dict[str, Any]:
    """From kill -9 of a guest to the answer of its successor, which goes on from the committed context."""
    guest = await zygote.spawn(PROGRAM, LIMITS)
    committed = {
        name: body for name, body in (await checked(guest, 100, {})).contexts[""].items.items() if body
    }
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        os.kill(guest.pid, signal.SIGKILL)
        await guest.run([Group("", [DOCUMENT] * 100, {})])
        guest = await zygote.spawn(PROGRAM, LIMITS)
        await checked(guest, 100, committed)
        took.append(time.perf_counter() - began)
    await guest.close()
    return {"kill, replace, restore, next 100": ms(took)}


async def memory(zygote: Zygote, count: int) -> dict[str, Any]:
    before_kb = proportional_kb(os.getpid())["Pss"]
    began = time.perf_counter()
    guests = await asyncio.gather(*(zygote.spawn(PROGRAM, LIMITS) for _ in range(count)))
    took_s = time.perf_counter() - began
    for guest in guests:
        await checked(guest, 1, {})
    try:
        parts = [proportional_kb(guest.pid) for guest in guests]
    except PermissionError:  # only root may look into a guest
        parts = []
    host_kb = proportional_kb(os.getpid())["Pss"] - before_kb
    await asyncio.gather(*(guest.close() for guest in guests))
    figures: dict[str, Any] = {
        f"{count} guests at once, per guest": {"p50": round(took_s * 1e3 / count, 3)},
        "memory of the host per guest (KB)": {"p50": round(max(host_kb, 0) / count, 1)},
    }
    if parts:
        unique = [part["Private_Clean"] + part["Private_Dirty"] for part in parts]
        figures["memory of an idle guest (MB)"] = {
            "unique": round(statistics.median(unique) / 1024, 2),
            "proportional": round(statistics.median(part["Pss"] for part in parts) / 1024, 2),
        }
    return figures


def proportional_kb(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rows = [line.split() for line in text.splitlines()[1:]]
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


async def round_trips(zygote: Zygote, repeats: int) -> dict[str, Any]:
    found = {}
    guest = await zygote.spawn(PROGRAM, LIMITS)
    await checked(guest, 1, {})
    # A run may bring 900 outputs, so a thousand messages are two runs.
    for count, runs in ((1, 1), (10, 1), (100, 1), (1000, 2)):
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            for _ in range(runs):
                await checked(guest, count // runs, None)
            took.append(time.perf_counter() - began)
        found[f"round trip, {count} messages of 200 bytes"] = ms(took)
    await guest.close()
    return found


async def calls(zygote: Zygote, repeats: int) -> dict[str, Any]:
    """What a capability call costs on top of what the host does for it, which is nothing here."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        return {}

    guest = await zygote.spawn(Program(CALLER, "caller.py"), LIMITS, perform=perform)
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        outcome = await guest.run([Group("", [b"100"], {})])
        took.append((time.perf_counter() - began) / 100)
        assert isinstance(outcome, Ran), outcome
    await guest.close()
    return {"capability call": ms(took)}


async def crowd(zygote: Zygote, count: int) -> dict[str, Any]:
    """As many guests in one process, alive at the same time."""
    began = time.perf_counter()
    guests = await asyncio.gather(*(zygote.spawn(PROGRAM, LIMITS) for _ in range(count)))
    took = time.perf_counter() - began
    alive = sum(guest.alive for guest in guests)
    await asyncio.gather(*(guest.close() for guest in guests))
    return {f"{count} guests in one process": {"alive": alive, "seconds": round(took, 2)}}


async def measure(repeats: int, crowd_of: int) -> dict[str, Any]:
    began = time.perf_counter()
    zygote = await Zygote.start()
    figures: dict[str, Any] = {"zygote start": {"p50": round((time.perf_counter() - began) * 1e3, 1)}}
    try:
        for part in (start, replacement, round_trips, calls):
            figures |= await part(zygote, repeats)
        figures |= await memory(zygote, 50)
        if crowd_of:
            figures |= await crowd(zygote, crowd_of)
    finally:
        await zygote.close()
    return {"jail": str(zygote.report), "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--crowd", type=int, default=0, help="also start so many guests at the same time")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    found = asyncio.run(measure(arguments.repeats, arguments.crowd))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(found["jail"])
    print("Milliseconds, unless it says otherwise:")
    for name, values in found["figures"].items():
        print(f"{name:44}" + "  ".join(f"{key} {value}" for key, value in values.items()))


if __name__ == "__main__":
    main()
