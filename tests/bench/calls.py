# ruff: noqa: T201 - a measurement prints its figures
"""What calls to the outside leave in the host: `python tests/bench/calls.py`; `--count`, `--bytes`.

One guest makes 10,000 calls with a body of 500 KB that are refused, and 10,000 that fail because nobody
answers. The memory of this process, which is the host, is printed each thousand of them; it is flat.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs from a checkout that nobody installed

from processor.capability.registry import HostCalls
from processor.model import Group, Limits, Program, Ran
from processor.reach import Outbound, Reach
from processor.sandbox.host import Zygote

CALLER = """
import requests
class Runnable:
    def process(self, queries):
        for _ in range(queries[0]["calls"]):
            try:
                requests.post(queries[0]["url"], data="x" * queries[0]["bytes"])
            except requests.RequestException:
                continue
            raise ValueError("it was answered")
"""


def resident_mb() -> float:
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * 4096 / 1e6


async def measure(what: str, url: str, allowed: str, count: int, size: int) -> None:
    calls = HostCalls()
    route = calls.for_route(Reach("here", Outbound(allowed_domains=(allowed,))))
    zygote = await Zygote.start()
    try:
        limits = Limits(requests=1_000_000, wall_s=600, cpu_s=600)
        guest = await zygote.spawn(Program(CALLER, "caller.py"), limits, perform=route.lane().perform)
        least = most = 0.0
        for number in range(0, count, 1000):
            query = {"url": url, "calls": min(1000, count - number), "bytes": size}
            context = {} if number == 0 else None
            outcome = await guest.run([Group("", [orjson.dumps(query)], context)])
            assert isinstance(outcome, Ran), outcome
            now = resident_mb()
            least, most = (now, now) if number == 0 else (min(least, now), max(most, now))
            print(f"{what}: {number + query['calls']} calls, host {now:.1f} MB", flush=True)
        print(f"{what}: {least:.1f} to {most:.1f} MB from the first thousand on")
    finally:
        await zygote.close()
        await calls.close()


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--bytes", type=int, default=500_000)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
    for what, url, allowed in (
        ("refused", "http://elsewhere.example/", "here.example"),
        ("failing", f"http://{nobody}/", nobody),
    ):
        await measure(what, url, allowed, options.count, options.bytes)


if __name__ == "__main__":
    asyncio.run(main())
