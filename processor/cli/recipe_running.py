"""`recipe run`: the run of a recipe on this machine, and what is said of it while it goes on.

A person at a terminal sees a bar; a log, or a pipe, gets the lines of the runner that recipes were written
for. What steps say goes to standard error, and into a file for each step where there is a folder for logs.
Standard output has one JSON document, unless a person looks at it: how the run ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from processor.cli.inputs import read_all
from processor.cli.recipe_files import show_steps
from processor.cli.recipe_verb import RecipeRequest
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, complain, is_terminal, say
from processor.config import load_recipe
from processor.errors import ProcessorError
from processor.model import LogLine
from processor.printable import printable
from processor.recipes.authoring import line_of
from processor.recipes.context import RecipeContext, Snapshot, read
from processor.recipes.definition import Recipe, Step, with_params
from processor.recipes.graph import picture_of
from processor.recipes.local import RecipeEnd, RecipeRun, RunListener, StepEnd, runners_of
from processor.recipes.selection import Selection
from processor.recipes.snapshots import SnapshotFile, done_in, earlier_run, home_of
from processor.telemetry import configure_logging

_SHOWN_CHARS = 2000  # of what a step returned, in a line


def do(request: RecipeRequest) -> int:
    """Run the recipe; the exit code says whether it is a SUCCESS. Raises Faults and ProcessorError."""
    if request.run is not None and request.resume_from is None:
        raise typer.BadParameter("it goes with --resume-from", param_hint="--run")
    configure_logging("human", "warning")
    recipe = load_recipe(request.path)
    if request.params is not None:
        recipe = with_params(recipe, _object(request.params))
    earlier = _earlier(request, recipe)
    selection = Selection(request.only, request.skip, request.resume_from)
    chosen = selection.of(recipe, done_in(earlier.run))
    screen = Screen(request.format)
    if request.list_steps:
        show_steps(screen, chosen)
        return EXIT_OK
    for step in chosen.steps:
        if step.is_shell and not request.shell:
            what = f"step {step.name!r} is a shell step"
            raise ProcessorError(
                "E715", what, remedy="Allow it with --shell; it runs in a cell without network."
            )
    end = asyncio.run(_run(request, chosen, earlier, screen))
    _draw(recipe, end)
    return EXIT_OK if end.is_good else EXIT_FAILED


def _object(text: str) -> Mapping[str, Any]:
    is_file = text == "-" or text.startswith("@")
    try:
        found = orjson.loads(read_all(text.removeprefix("@")) if is_file else text)
    except orjson.JSONDecodeError as err:
        raise typer.BadParameter(f"it is not JSON: {err}", param_hint="--params") from err
    if not isinstance(found, dict):
        raise typer.BadParameter("it must be a JSON object, by step", param_hint="--params")
    return found


def _earlier(request: RecipeRequest, recipe: Recipe) -> Snapshot:
    """The context that the run begins with, and the run that left it, where it is one of this recipe."""
    if request.context is not None and request.context.exists():
        if request.run is not None:
            raise typer.BadParameter("--context has the context of one run", param_hint="--run")
        found = read(request.context)
        return found if found.run.get("recipe") == recipe.name else Snapshot(found.context, {})
    if request.resume_from is not None:
        return earlier_run(recipe, request.run)
    return Snapshot(RecipeContext(), {})


async def _run(request: RecipeRequest, recipe: Recipe, earlier: Snapshot, screen: Screen) -> RecipeEnd:
    async with runners_of(recipe, request.language, request.packages) as runners:
        file = SnapshotFile(request.context) if request.context else SnapshotFile.create(recipe)
        done = done_in(earlier.run)
        is_whole = not (request.resume_from or request.only)
        with ExitStack() as stack:
            listeners: list[RunListener] = [_lines(stack, recipe)]
            if folder := _log_folder(request, recipe):
                listeners.append(stack.enter_context(StepLogs(folder, recipe)))
            listener = _All(listeners)
            run = RecipeRun(recipe, runners, earlier.context, file, listener, {} if is_whole else done)
            end = await run.run()
    document = {"recipe": recipe.name, "run": file.id, "state": end.state, "context": str(file.path)}
    _say_end(end, file)
    if screen.is_json:
        screen.document({**document, "steps": end.steps})
        screen.flush()
    return end


def _say_end(end: RecipeEnd, file: SnapshotFile) -> None:
    if end.is_good:
        say("INFO | Pipeline complete")
        return
    error = end.error or {}
    said = f"{error.get('code', '')} {error.get('text', '')}".strip()
    say(printable(f"ERROR | Pipeline stopped: {said}"))
    say(printable(f"ERROR | The context after the last good step is in {file.path}"))


def _log_folder(request: RecipeRequest, recipe: Recipe) -> Path | None:
    """Where the logs of steps go: a folder that was asked for, or the one that the recipe has."""
    if request.logs is not None:
        return request.logs
    own = home_of(recipe) / "Logs"
    return own if own.is_dir() else None


def _draw(recipe: Recipe, end: RecipeEnd) -> None:
    """Put a picture of the run where the recipe has a folder for pictures."""
    folder = home_of(recipe) / "Assets"
    if not folder.is_dir():
        return
    states = {name: {str(each["state"]): 1} for name, each in end.steps.items()}
    path = folder / f"{recipe.name}.svg"
    try:
        path.write_text(picture_of(recipe, "svg", states, f"recipe {recipe.name}: {end.state}"))
    except OSError as err:
        complain(f"{path}: the picture cannot be written: {err.strerror}")


class _All:
    """Tells several what it is told."""

    def __init__(self, listeners: Sequence[RunListener]) -> None:
        self._listeners = listeners

    def began(self, step: Step, attempt: int) -> None:
        for each in self._listeners:
            each.began(step, attempt)

    def said(self, step: Step, line: LogLine) -> None:
        for each in self._listeners:
            each.said(step, line)

    def ended(self, step: Step, attempt: int, end: StepEnd) -> None:
        for each in self._listeners:
            each.ended(step, attempt, end)


def _began(step: Step, attempt: int) -> str:
    again = f" (try {attempt})" if attempt > 1 else ""
    return f"INFO | Running {step.type} step {step.name} ...{again}"


def _ended(step: Step, end: StepEnd) -> list[str]:
    level = "INFO" if end.error is None else "ERROR"
    lines = []
    if end.returned is not None:
        lines.append(f"{level} | Step {step.name} output: {end.returned!r:.{_SHOWN_CHARS}}")
    if end.error is not None:
        said = f"{end.error.get('code', '')} {end.error.get('text', '')}".strip()
        lines.append(f"{level} | Step {step.name} failed: {said}")
        lines += [f"    {line}" for line in str(end.error.get("traceback") or "").splitlines()]
    return [printable(line) for line in lines]


def _line(step: Step, line: LogLine) -> str:
    return printable(line_of(line, step.module or step.name, datetime.now()))


def _lines(stack: ExitStack, recipe: Recipe) -> RunListener:
    """What tells the person, or the log, on standard error."""
    return stack.enter_context(RunBar(len(recipe.steps))) if is_terminal(sys.stderr) else RunLines()


class RunLines:
    """Lines on standard error."""

    def began(self, step: Step, attempt: int) -> None:
        say(_began(step, attempt))

    def said(self, step: Step, line: LogLine) -> None:
        say(_line(step, line))

    def ended(self, step: Step, attempt: int, end: StepEnd) -> None:
        for line in _ended(step, end):
            say(line)


class RunBar:
    """A bar on a terminal: how many steps have ended well, and which are at work."""

    def __init__(self, steps: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: TaskID = self._progress.add_task("", total=steps)
        self._at_work: dict[str, None] = {}

    def __enter__(self) -> RunBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def began(self, step: Step, attempt: int) -> None:
        self._at_work[step.name] = None
        self._show()

    def said(self, step: Step, line: LogLine) -> None:
        self._print(_line(step, line))

    def ended(self, step: Step, attempt: int, end: StepEnd) -> None:
        self._at_work.pop(step.name, None)
        for line in _ended(step, end):
            self._print(line)
        self._show(end.error is None)

    def _show(self, is_done: bool = False) -> None:
        self._progress.update(self._task, advance=int(is_done), description=", ".join(self._at_work))

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


class StepLogs:
    """A file for each step, in the order in which they can run: `<NN>_<step>.log`."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        """Raises ProcessorError E718 where they cannot be written."""
        self._folder = folder
        self._names = {name: f"{number:02d}_{name}.log" for number, name in enumerate(recipe.order, 1)}
        self._files: dict[str, TextIO] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise _unwritten(folder, err) from err

    def __enter__(self) -> StepLogs:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def began(self, step: Step, attempt: int) -> None:
        self._write(step, [_dated(_began(step, attempt))])

    def said(self, step: Step, line: LogLine) -> None:
        self._write(step, [_line(step, line)])

    def ended(self, step: Step, attempt: int, end: StepEnd) -> None:
        self._write(step, [line if line.startswith(" ") else _dated(line) for line in _ended(step, end)])

    def _write(self, step: Step, lines: list[str]) -> None:
        path = self._folder / self._names[step.name]
        try:
            if step.name not in self._files:
                self._files[step.name] = path.open("w", encoding="utf-8")
            file = self._files[step.name]
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
        except OSError as err:
            raise _unwritten(path, err) from err


def _dated(line: str) -> str:
    """A line of the runner with time and module, as the lines of steps have them."""
    level, _, text = line.partition(" | ")
    return f"{datetime.now().isoformat(timespec='seconds')} | {level} | recipe | {text}"


def _unwritten(path: Path, err: OSError) -> ProcessorError:
    return ProcessorError("E718", f"the log cannot be written: {err.strerror}", place=str(path))
