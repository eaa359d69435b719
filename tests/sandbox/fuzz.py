# ruff: noqa: T201 - a program that prints what it found
"""Drive every reviewed module and built-in type with hostile hooks in real guests, and count how guests end.

    python tests/sandbox/fuzz.py [--seconds 60] [--seed 0] [--target array] [--here]

Each run is a seed and a target; the same pair does the same again. `hostile/meddler.py` is what runs in the
guest. A run may succeed, raise, or be stopped for its time or memory: those are clean. A guest that crashes,
or ends as only code outside of the language would end it (E314, E315, E316), is a finding: its seed and
target are printed, and the exit status is 1. A build of CPython with assertions finds more. `--here` does it
in this process, with no guest around it: what an assertion says is seen, and a debugger sees the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs from a checkout that nobody installed

from processor.model import Failed, Group, Limits, Outcome, Program, Ran
from processor.sandbox import dialect, documents
from processor.sandbox.host import Guest, Zygote

MEDDLER = Program((Path(__file__).parent / "hostile" / "meddler.py").read_text(), "meddler.py")
TARGETS = (
    "builtins", "operators", "array", "base64", "binascii", "bisect", "cmath", "collections", "copy", "csv",
    "datetime", "decimal", "difflib", "fractions", "functools", "hashlib", "heapq", "hmac", "io", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "struct", "textwrap", "time",
    "unicodedata", "urllib", "uuid", "zlib", "events", "asyncio", "pydantic", "contextlib", "models", "nodes",
)  # fmt: skip
STEPS = 60
# Memory is wide, so that native code which is refused some is not taken for a crash.
LIMITS = Limits(wall_s=20, cpu_s=3, memory_mb=1024, log_lines=0)
RUNS_OF_A_GUEST = 40


@dataclass
class Counts:
    """What became of the runs."""

    ended: Counter[str] = field(default_factory=Counter)  # by code; "ran" where the run succeeded
    calls: int = 0  # functions, methods and operators that were called
    meddled: int = 0  # times that a hook changed something while C was at work
    crashes: list[str] = field(default_factory=list)

    def take(self, outcome: Outcome, seed: int, target: str) -> bool:
        """Count it; whether the guest can go on."""
        if isinstance(outcome, Ran):
            self.ended["ran"] += 1
            calls, meddled = json.loads(outcome.outputs[0].body)
            self.calls += calls
            self.meddled += meddled
            return True
        failure = outcome.failure
        self.ended[failure.code] += 1
        if is_crash(outcome):
            self.crashes.append(f"--target {target} --seed {seed}: {failure.code} {failure.text}")
        return not failure.lethal and failure.code not in ("E311", "E312", "E313")


def is_crash(outcome: Outcome) -> bool:
    """Whether a guest ended otherwise than by a refusal or a limit."""
    if not isinstance(outcome, Failed):
        return False
    code, text = outcome.failure.code, outcome.failure.text
    return code in ("E314", "E315", "E316") or "crashed" in text


async def run(guest: Guest, seed: int, target: str, steps: int = STEPS) -> Outcome:
    query = json.dumps({"seed": seed, "target": target, "steps": steps}).encode()
    return await guest.run([Group("", [query], {})])


async def fuzz(seeds: range, seconds: float, targets: tuple[str, ...], counts: Counts, say: bool) -> None:
    zygote = await Zygote.start()
    until = time.monotonic() + seconds
    guest: Guest | None = None
    runs = 0
    try:
        for seed in seeds:
            for target in targets:
                if time.monotonic() > until:
                    return
                if guest is None or runs == RUNS_OF_A_GUEST:
                    if guest is not None:
                        await guest.close()
                    guest, runs = await zygote.spawn(MEDDLER, LIMITS), 0
                runs += 1
                known = len(counts.crashes)
                if not counts.take(await run(guest, seed, target), seed, target):
                    await guest.close()
                    guest = None
                if say and len(counts.crashes) > known:
                    print(counts.crashes[-1], flush=True)
    finally:
        await zygote.close()


class _Helpers:
    """What a Runnable has of a guest, as far as the one that meddles uses it."""

    def __init__(self) -> None:
        self.context: dict[str, Any] = {}

    def event(self, name: str, data: Any) -> None:
        documents.encode(data, "event", name)


def run_here(seeds: range, targets: tuple[str, ...]) -> None:
    dialect.preload()
    faulthandler.enable()
    space = dialect.namespace(dialect.Runtime(_Helpers, lambda *_: None))
    exec(dialect.compile_program(MEDDLER), space)
    runnable = dialect.runnable_class(space)()
    for seed in seeds:
        for target in targets:
            [done] = runnable.process([{"seed": seed, "target": target, "steps": STEPS}])
            print(
                f"--target {target} --seed {seed}: {done[0]} calls, {done[1]} hooks that meddled", flush=True
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1 << 40, help="how many")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only these; may be repeated")
    parser.add_argument("--here", action="store_true", help="in this process, with no guest around it")
    arguments = parser.parse_args()
    counts = Counts()
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    targets = tuple(arguments.target or TARGETS)
    if arguments.here:
        run_here(seeds, targets)
        return 0
    asyncio.run(fuzz(seeds, arguments.seconds, targets, counts, True))
    ends = ", ".join(f"{code} {count}" for code, count in sorted(counts.ended.items()))
    print(f"Python {sys.version.split()[0]}{' with assertions' if hasattr(sys, 'gettotalrefcount') else ''}")
    print(f"{counts.ended.total()} runs ({ends}), {counts.calls} calls, {counts.meddled} hooks that meddled")
    print(f"{len(counts.crashes)} guests ended otherwise than by a refusal")
    return 1 if counts.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
