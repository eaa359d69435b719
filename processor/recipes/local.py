"""A run of a recipe in this process: the machine of graphs, guests and cells, and a file with the context.

Steps in Python run in guests, each alone in one while it runs, and shell steps in cells of their own; what
can run at the same time does. The context changes when the machine has taken that a step ended well, all that
it set at once, and then the file is replaced, before what follows begins: whatever ends the run, the file is
as it was after the last good step.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from processor.delivery.codec import failed_result, read_result
from processor.errors import ProcessorError
from processor.graphs.history import StoreChange, read_changes
from processor.graphs.inline import document
from processor.graphs.local import LocalRuns
from processor.graphs.outcomes import first_error
from processor.graphs.plan import compile_plan
from processor.graphs.progress import CANCELLED, FAILED, SUCCESS, Execution, GraphRun, Message
from processor.model import Failure, Group, Limits, LogLine, Program, Ran
from processor.recipes.context import RecipeContext
from processor.recipes.definition import LONGEST_S, Recipe, Step
from processor.recipes.graph import graph_of
from processor.recipes.programs import program_of, reads_history
from processor.recipes.shell import result_of
from processor.recipes.snapshots import SnapshotFile
from processor.recipes.success import unmet
from processor.sandbox.blackboard import checked_key, strict
from processor.sandbox.host import Guest, Zygote
from processor.sandbox.shell import ShellCells, ShellLimits

AT_ONCE = 16  # steps that run at the same time
_LIMITS = Limits(memory_mb=512, cpu_s=LONGEST_S, wall_s=LONGEST_S, log_lines=10_000, log_bytes=512 << 10)
_NOTHING: Mapping[str, bytes] = {}


class StepEnd(NamedTuple):
    """What one try of a step came to: what it `returned`, and the `error` where it failed."""

    returned: Any
    error: Message | None
    seconds: float


class RunListener(Protocol):
    """What is told as it happens; nothing here may wait."""

    def began(self, step: Step, attempt: int) -> None: ...

    def said(self, step: Step, line: LogLine) -> None: ...

    def ended(self, step: Step, attempt: int, end: StepEnd) -> None: ...


@dataclass(frozen=True, slots=True)
class RecipeEnd:
    """How a run ended: its `state`, and of each step of the run, by name, what the snapshot has."""

    state: str
    steps: Mapping[str, Mapping[str, Any]]
    error: Message | None  # why it did not succeed

    @property
    def is_good(self) -> bool:
        return self.state == SUCCESS


class _Performed(NamedTuple):
    result: Message
    lines: Sequence[LogLine] = ()


class _Good(NamedTuple):
    """A step that has ended well, for all that it can say itself."""

    execution: Execution
    changes: Sequence[StoreChange]
    end: StepEnd


class PythonSteps:
    """Runs python steps in guests, which are used again for later steps."""

    def __init__(self, zygote: Zygote, program: Program, limits: Limits = _LIMITS) -> None:
        self._zygote = zygote
        self._program = program
        self._limits = limits
        self._idle: list[Guest] = []
        self.asks_history = reads_history(program)

    async def prepare(self) -> None:
        """Load the program. Raises Faults with what is wrong with it, and what `Zygote.spawn` raises."""
        self._idle.append(await self._spawn())

    async def _spawn(self) -> Guest:
        return await self._zygote.spawn(self._program, self._limits)

    async def perform(self, execution: Execution) -> _Performed:
        """What a step gave. Cancelled, it is killed."""
        guest = self._idle.pop() if self._idle else await self._spawn()
        try:
            outcome = await guest.run([Group("", [document(execution, {})], _NOTHING)], isolate=True)
        finally:
            if guest.alive:
                self._idle.append(guest)
            else:
                await guest.close()
        if not isinstance(outcome, Ran):
            return _Performed(failed_result(outcome.failure), outcome.logs)
        if outcome.failed:
            return _Performed(failed_result(outcome.failed[0][1]), outcome.logs)
        try:
            [output] = outcome.outputs
            return _Performed(read_result(output.body), outcome.logs)
        except ValueError as err:
            return _Performed(failed_result(Failure("E709", str(err))), outcome.logs)


class ShellSteps:
    """Runs shell steps in cells."""

    def __init__(self, cells: ShellCells, recipe: Recipe) -> None:
        self._cells = cells
        self._root = recipe.root

    async def perform(self, step: Step) -> _Performed:
        """What a program gave, with what it wrote to stderr. Cancelled, it is killed."""
        outcome = await self._cells.run(
            step.cmd,
            step.args,
            self._root,
            writes=[self._root / folder for folder in step.writes],
            limits=ShellLimits(wall_s=LONGEST_S),
        )
        errors = outcome.stderr.decode(errors="replace").splitlines()
        lines = [LogLine("info", f"{step.name} | {line}") for line in errors]
        return _Performed(result_of(outcome, step.name), lines)


@dataclass(frozen=True, slots=True)
class StepRunners:
    """What runs the steps of one recipe; None for a type that it has none of."""

    python: PythonSteps | None
    shell: ShellSteps | None


@asynccontextmanager
async def runners_of(
    recipe: Recipe, language: str = "restricted", packages: Sequence[str] = ()
) -> AsyncIterator[StepRunners]:
    """What its steps run in, with the program of its python steps loaded, which are in this language.

    Raises Faults with what is wrong with that, LanguageError E504 and E505 where plain Python or a package
    cannot be had, ProcessorError E715 where nothing here can confine a shell step, and GuestError E502.
    """
    kinds = {step.is_shell for step in recipe.steps}
    program = program_of(recipe, language, packages) if False in kinds else None
    async with AsyncExitStack() as stack:
        python, shell = None, None
        if program is not None:
            zygote = await Zygote.start()
            stack.push_async_callback(zygote.close)
            python = PythonSteps(zygote, program)
            await python.prepare()
        if True in kinds:
            cells = await ShellCells.start()
            stack.push_async_callback(cells.close)
            shell = ShellSteps(cells, recipe)
        yield StepRunners(python, shell)


async def check_steps(recipe: Recipe, language: str = "restricted", packages: Sequence[str] = ()) -> str:
    """Load the program of the python steps, and see whether shell steps have a jail here: why not, or empty.

    Raises what `runners_of` raises, but for E715.
    """
    python = [step for step in recipe.steps if not step.is_shell]
    if python:
        async with runners_of(replace(recipe, steps=tuple(python)), language, packages):
            pass
    if len(python) == len(recipe.steps):
        return ""
    try:
        cells = await ShellCells.start()
    except ProcessorError as err:
        return err.what
    await cells.close()
    return ""


class RecipeRun:
    """One run of a recipe. `earlier` has the steps that count as done, as an earlier snapshot has them."""

    def __init__(
        self,
        recipe: Recipe,
        runners: StepRunners,
        context: RecipeContext,
        file: SnapshotFile,
        listener: RunListener,
        earlier: Mapping[str, Mapping[str, Any]],
    ) -> None:
        graph = graph_of(recipe)
        self._recipe = recipe
        self._runners = runners
        self._context = context
        self._file = file
        self._listener = listener
        self._steps = {name: dict(each) for name, each in earlier.items() if name not in recipe.by_name}
        self._said: Message = {"recipe": recipe.name, "test_meta": recipe.test_meta, "started": _now()}
        self._good: list[_Good] = []  # which the machine has not taken yet
        plans = {graph.name: compile_plan(graph)}
        self._runs = LocalRuns(plans, self._execute, together=False, settle=self._settle)
        self._room = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> RecipeEnd:
        """Run the steps, until all have ended or one has failed for good.

        Raises ProcessorError E717 where the context cannot be written, and GuestError E502.
        """
        await self._write("RUNNING")
        start = {"v": 1, "t": "start", "run": self._file.id, "graph": self._recipe.name, "by": "local"}
        try:
            run = await self._runs.run(start)
        except BaseException as err:
            state = CANCELLED if isinstance(err, asyncio.CancelledError) else FAILED
            # Where this is because the file cannot be written, what says so goes on.
            with contextlib.suppress(ProcessorError):
                self._file.replace(self._file.text(self._context, self._document(state)))
            raise
        self._note_failures(run)
        await self._write(run.state)
        return RecipeEnd(run.state, self._steps, first_error(run))

    async def _execute(self, executions: Sequence[Execution]) -> list[Message]:
        [each] = executions
        async with self._room:
            return [await self._step(each)]

    async def _step(self, each: Execution) -> Message:
        step = self._recipe.by_name[each.node.id]
        began_s = time.monotonic()
        self._listener.began(step, each.attempt)
        try:
            done = await self._performed(step, each)
        except asyncio.CancelledError:
            self._listener.ended(
                step, each.attempt, StepEnd(None, self._why(each), time.monotonic() - began_s)
            )
            raise
        for line in done.lines:
            self._listener.said(step, line)
        result, changes = self._judged(step, done.result)
        seconds = time.monotonic() - began_s
        if "error" not in result:
            self._good.append(_Good(each, changes, StepEnd(result["outputs"], None, seconds)))
            return {"outputs": {}}  # nothing refers to what a step returned, and it may be large
        self._listener.ended(step, each.attempt, StepEnd(result.get("returned"), result["error"], seconds))
        return result

    async def _settle(self) -> None:
        """Take over what steps have set of which the machine says that they ended well, and write it down."""
        taken: list[_Good] = []
        waiting: list[_Good] = []
        for good in self._good:
            run, x, attempt = good.execution.run, good.execution.x, good.execution.attempt
            progress = self._runs.runs[run].executions[x]
            if progress.attempt == attempt and progress.is_open:
                waiting.append(good)
            elif progress.attempt == attempt and progress.state == SUCCESS:
                taken.append(good)
            else:  # it came too late, or its run was stopped
                self._ended(good, StepEnd(None, self._why(good.execution), good.end.seconds))
        self._good = waiting
        for good in taken:
            for change in good.changes:
                self._context.apply(*change)
            self._steps[good.execution.node.id] = {
                "state": SUCCESS,
                "tries": good.execution.attempt,
                "seconds": round(good.end.seconds, 3),
                "returned": good.end.returned,
            }
        if taken:
            await self._write("RUNNING")
        for good in taken:
            self._ended(good, good.end)

    def _ended(self, good: _Good, end: StepEnd) -> None:
        self._listener.ended(self._recipe.by_name[good.execution.node.id], good.execution.attempt, end)

    async def _performed(self, step: Step, each: Execution) -> _Performed:
        if step.is_shell:
            assert self._runners.shell is not None
            return await self._runners.shell.perform(step)
        assert self._runners.python is not None
        history = self._context.changes() if self._runners.python.asks_history else {}
        each = each._replace(store=self._context.to_dict(), history=history)
        return await self._runners.python.perform(each)

    def _judged(self, step: Step, result: Message) -> tuple[Message, Sequence[StoreChange]]:
        """The result, with what the step has set; or the reason why it has not ended well."""
        if "error" in result:
            return result, ()
        changes = changes_of(step, result)
        if changes is None or "outputs" not in result:
            failure = Failure("E709", f"step {step.name!r} gave what is no result of a step")
            return failed_result(failure), ()
        keys = {*self._context.to_dict(), *(change.key for change in changes)}
        if unfulfilled := unmet(step, keys, self._recipe.root):
            return {**failed_result(unfulfilled), "returned": result["outputs"]}, ()
        return result, changes

    def _why(self, each: Execution) -> Message:
        """Why an execution is cancelled."""
        progress = self._runs.runs[each.run].executions[each.x]
        if progress.why and progress.why[-1]["a"] == each.attempt:
            return progress.why[-1]
        return {"code": "", "text": f"step {each.node.id} was stopped"}

    def _note_failures(self, run: GraphRun) -> None:
        for each in run.executions.values():
            if each.state == SUCCESS or each.node.id not in self._recipe.by_name:
                continue
            record: Message = {"state": each.state, "tries": each.attempt}
            if each.why:
                record["error"] = {"code": each.why[-1]["code"], "text": each.why[-1]["text"]}
            self._steps[each.node.id] = record

    async def _write(self, state: str) -> None:
        await asyncio.to_thread(self._file.replace, self._file.text(self._context, self._document(state)))

    def _document(self, state: str) -> Message:
        ended = {} if state == "RUNNING" else {"ended": _now()}
        return {**self._said, **ended, "state": state, "steps": self._steps}


def changes_of(step: Step, result: Message) -> list[StoreChange] | None:
    """What a step set, checked, for a guest may say anything; None where it is not what a context takes."""
    changes = read_changes(result.get("sets", []), step.name, time.time_ns() // 1_000_000)
    if changes is None:
        return None
    try:
        for change in changes:
            strict(checked_key(change.key), change.value)
    except ValueError:
        return None
    return changes


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
