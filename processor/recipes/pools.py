"""Shell steps of recipes as executions of a pool: what its route has in place of a guest.

A worker gives a `ShellRunner` executions and gets their results, as from any guest; each runs in a cell of
its own, and has a commit of its own, beside which the next one may run. A processor that is killed leaves
these two without a result, and they run again with the same attempts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from processor.errors import GuestError
from processor.graphs.steps import judged
from processor.model import Failure, Group, LogLine, Outcome, Output, Ran
from processor.recipes.definition import LONGEST_S
from processor.recipes.shell import result_of
from processor.route import GroupStep, RecipeSteps
from processor.sandbox.calls import Answer
from processor.sandbox.shell import ShellCells, ShellLimits, ShellOutcome

log = logging.getLogger("processor")

_LOOK_S = 0.5  # how soon a step is ended whose run was
_PAUSES_S = (0.1, 0.5, 2.0)
_LINES = 100  # of what a step says on stderr, as many as a guest may log
_LINE_CHARS = 1000


class ShellPools:
    """The cells of this process, which all of its pools of shell steps share."""

    def __init__(self) -> None:
        self._cells: ShellCells | None = None
        self._starting = asyncio.Lock()

    async def prepare(self) -> ShellCells:
        """The cells, tried once. Raises ProcessorError E715 where nothing here can confine a step."""
        async with self._starting:
            if self._cells is None:
                self._cells = await ShellCells.start()
                log.info("shell steps: %s", ", ".join(f"{k} {v}" for k, v in self._cells.layers.items()))
            return self._cells

    async def spawn(self, steps: RecipeSteps, gone: Mapping[str, int], **_: Any) -> ShellRunner:
        """What runs the shell steps of one lane; `gone` says when runs were cancelled, in ms since 1970."""
        return ShellRunner(await self.prepare(), steps, gone)

    async def close(self) -> None:
        """End every step. Idempotent."""
        cells, self._cells = self._cells, None
        if cells is not None:
            await cells.close()


class ShellRunner:
    """Runs shell steps of a recipe, one after the other: see `BatchRunner`."""

    def __init__(self, cells: ShellCells, steps: RecipeSteps, gone: Mapping[str, int]) -> None:
        self._cells = cells
        self._steps = steps
        self._gone = gone
        self._is_alive = True

    @property
    def alive(self) -> bool:
        return self._is_alive

    @property
    def verdict(self) -> Failure | None:
        """Nobody ends it from outside."""
        return None

    async def run(
        self,
        groups: Sequence[Group],
        *,
        fields: Sequence[str] = (),
        forget: Sequence[str] = (),
        messages: bytes = b"",
        answer: Answer | None = None,
    ) -> Outcome:
        """What the execution of each group gave; one whose program could not end by itself has failed."""
        began_s = time.perf_counter()
        outputs: list[Output] = []
        failed: list[tuple[int, Failure]] = []
        logs: list[LogLine] = []
        for number, group in enumerate(groups):
            document = orjson.loads(group.documents[0])
            given = await self._step(document, logs)
            if isinstance(given, Failure):
                failed.append((number, given))
            else:
                outputs.append(Output(number, orjson.dumps(given)))
        return Ran(outputs=outputs, failed=failed, logs=logs, wall_s=time.perf_counter() - began_s)

    async def close(self) -> None:
        self._is_alive = False

    async def _step(self, document: Mapping[str, Any], logs: list[LogLine]) -> dict[str, Any] | Failure:
        name, inputs = document["kind"], document["inputs"]
        step = self._steps.steps.get(name)
        if step is None:
            return Failure("E716", f"step {name}: the recipe here has no shell step of that name")
        environment = {key: _as_text(value) for key, value in inputs.items()}
        outcome = await self._unless_gone(document["run"], self._ran(step, environment))
        if outcome is None:
            return Failure("E716", f"step {name}: its run has ended without it")
        logs += _lines(name, outcome, _LINES - len(logs))
        if (failure := outcome.failure) is not None:
            return Failure(failure.code, f"step {name}: {failure.text}")
        result = result_of(outcome, name)
        result.pop("final", None)  # where results are read, that follows from the code
        return judged(result, self._steps, name, document.get("store") or {})

    async def _unless_gone(self, run: str, running: Coroutine[Any, Any, ShellOutcome]) -> ShellOutcome | None:
        """What came of a step; None where its run was cancelled meanwhile: then nothing of it is left."""
        before = self._gone.get(run)
        task = asyncio.create_task(running, name="shell-step")
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_LOOK_S)
                if not task.done() and self._gone.get(run, before) != before:
                    return None
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ran(self, step: GroupStep, environment: Mapping[str, str]) -> ShellOutcome:
        root = self._steps.root
        limits = ShellLimits(wall_s=step.timeout_s or LONGEST_S)
        tries = 0
        while True:
            try:
                return await self._cells.run(
                    step.argv, environment, root, writes=[Path(each) for each in step.writes], limits=limits
                )
            except GuestError as err:  # the machine: memory or processes are short
                level = logging.DEBUG if tries else logging.ERROR
                log.log(level, "E502 a shell step of %s could not be started: %s", root, err)
            await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _lines(name: str, outcome: ShellOutcome, most: int) -> list[LogLine]:
    """What a step said on stderr, for the log."""
    level = "info" if outcome.code == 0 else "warning"
    said = outcome.stderr.decode(errors="replace").splitlines()
    lines = [LogLine(level, f"{name}: {line[:_LINE_CHARS]}") for line in said[: max(most, 0)]]
    dropped = len(said) - len(lines)
    return [*lines, LogLine(level, f"{name}: {dropped} more lines", dropped)] if dropped else lines
