"""The specification of the wall is held to: its figures are compared with the code and with real guests."""

from __future__ import annotations

import operator
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from processor.model import Limits, Program
from processor.sandbox import jail, syscalls
from processor.sandbox.host import Zygote
from tests.sandbox.attacks import attacks

ROOT = Path(__file__).parents[2]
IDLE = Program("class Runnable:\n    def process(self, queries):\n        return queries\n", "idle.py")
ESCAPE = ROOT / "configs" / "escape"


def figures() -> dict[str, str]:
    text = (ROOT / "docs" / "security" / "specification.md").read_text()
    return dict(re.findall(r"^\| ([^|]+) \| ([\d/]+) \|$", text, re.MULTILINE))


def may_be_made(number: int) -> bool:
    """Whether the filter of a guest allows that system call, with whichever arguments."""
    program = list(struct.iter_unpack("<HBBI", jail.guest_filter("x86_64", 2)))
    pending: list[tuple[int, int | None]] = [(0, None)]  # where to go on, and what is loaded if that is known
    seen = set(pending)
    while pending:
        at, loaded = pending.pop()
        code, is_so, is_not, operand = program[at]
        if code == syscalls.RETURN:
            if operand == syscalls.ALLOW_CALL:
                return True
            continue
        if code == syscalls.LOAD:
            loaded = {0: number, 4: syscalls.AUDIT_ARCH["x86_64"]}.get(operand)
            ways = [at + 1]
        elif code == syscalls.AND:
            ways = [at + 1]
        elif code == syscalls.JUMP:
            ways = [at + 1 + operand]
        else:
            tests = {syscalls.EQUAL: operator.eq, syscalls.MORE: operator.gt, syscalls.AT_LEAST: operator.ge}
            ways = [at + 1 + is_so, at + 1 + is_not]
            if loaded is not None:
                ways = [ways[0] if tests[code](loaded, operand) else ways[1]]
        fresh = {(way, loaded) for way in ways} - seen
        seen |= fresh
        pending += fresh
    return False


def test_the_counts_are_those_of_the_code() -> None:
    """System calls, attacks and denied programs are as many as the page says."""
    ends = Counter(attack.end for attack in attacks())
    denied = {path.name for path in (ROOT / "tests/sandbox/denied").glob("*.py")}
    allowed = {path.name for path in (ROOT / "tests/sandbox/allowed").glob("*.py")}
    found = {
        "system calls that a guest may make on x86_64": sum(map(may_be_made, range(1024))),
        "attacks in plain Python against the kernel layers": ends.total(),
        "of these, killed by the whole jail": ends["killed"],
        "of these, refused by the whole jail": ends["refused"],
        "programs that the restricted language refuses": len(denied),
        "of these, with an allowed twin": len(denied & allowed),
    }
    said = figures()
    assert {name: int(said[name]) for name in found} == found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a guest")
async def test_an_idle_guest_has_little_for_itself() -> None:
    """What a guest does not share is at most the share that the page says of its zygote's memory."""
    zygote = await Zygote.start()
    try:
        guest = await zygote.spawn(IDLE, Limits())
        own, whole = private_and_resident_kb(guest.pid)
    finally:
        await zygote.close()
    assert Fraction(own, whole) <= Fraction(
        figures()["share of the zygote's memory that an idle guest has for itself, at most"]
    )


def private_and_resident_kb(pid: int) -> tuple[int, int]:
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {row[0].rstrip(":"): int(row[1]) for row in rows}
    return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"]


@pytest.mark.parametrize("route", ["restricted", "plain"])
def test_the_standing_target_runs_and_keeps_its_flag(route: str) -> None:
    """One command runs the attempt in a real guest, and the flag is not in what it prints."""
    command = [sys.executable, "-m", "processor", "try", str(ESCAPE / "escape.yaml"), route]
    ended = subprocess.run(
        [*command, str(ESCAPE / "input.jsonl")], capture_output=True, text=True, timeout=90, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    assert "refused" in ended.stdout
    assert (ESCAPE / "flag.txt").read_text().strip() not in ended.stdout + ended.stderr
