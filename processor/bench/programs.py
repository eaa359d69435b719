"""What the cell of a shell step takes: the same program in it and by itself, by turns."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from processor.errors import BrokerError, ProcessorError
from processor.sandbox.shell import ShellCells

_PROGRAM = '#!/bin/sh\necho \'{"status":"ok"}\'\n'


class NoJail(Exception):
    """Shell steps cannot be run here; the text says why."""


async def measure_steps(folder: Path, count: int) -> dict[str, float]:
    """The time of a step in milliseconds, and how much of it is not its program's.

    Raises NoJail, and BrokerError E404 for a step that fails.
    """
    program = folder / "step.sh"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    try:
        cells = await ShellCells.start()
    except ProcessorError as err:
        raise NoJail(str(err)) from err
    inside_ms: list[float] = []
    bare_ms: list[float] = []
    try:
        for number in range(count + 1):
            began_s = time.perf_counter()
            outcome = await cells.run([str(program)], {}, folder)
            ended_s = time.perf_counter()
            await _run_bare(program)
            if outcome.code != 0:
                failure = outcome.failure.text if outcome.failure else outcome.stderr.decode(errors="replace")
                raise BrokerError("E404", f"a step of the bench failed: {failure[:200]}")
            if number:  # the first one finds nothing in the caches
                inside_ms.append(1000 * (ended_s - began_s))
                bare_ms.append(1000 * (time.perf_counter() - ended_s))
    finally:
        await cells.close()
    return {
        "p50_ms": statistics.median(inside_ms),
        "p99_ms": statistics.quantiles(inside_ms, n=100)[98],
        "over_ms": statistics.median(inside_ms) - statistics.median(bare_ms),
    }


async def _run_bare(program: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        str(program), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    await process.communicate()
