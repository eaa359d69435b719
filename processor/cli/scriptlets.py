"""`scriptlet`: one step from its file, without a recipe, in its jail.

Standard output has exactly one JSON object, what the step returned, whatever happens; everything else goes to
standard error. So a step can be used by programs as any other command.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import typer

from processor.cli.inputs import read_all
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, complain, exit_code_of, name_pages, say
from processor.delivery.codec import read_result
from processor.errors import Faults, ProcessorError
from processor.model import Failed, Group, Limits, LogLine
from processor.recipes.authoring import line_of
from processor.recipes.context import RecipeContext, dump, read, save
from processor.recipes.definition import Step
from processor.recipes.programs import program_of, recipe_of
from processor.sandbox.host import Zygote
from processor.telemetry import configure_logging


@dataclass(frozen=True, slots=True)
class ScriptletRequest:
    """What was asked of the verb `scriptlet`."""

    file: Path
    name: str
    params: Mapping[str, Any]
    context: Path | None
    timeout_s: float
    language: str
    packages: tuple[str, ...]


def params_of(given: str | None) -> dict[str, Any]:
    """The parameters that an option gives: JSON, a file after @, or standard input. Raises BadParameter."""
    if given is None:
        return {}
    is_elsewhere = given == "-" or given.startswith("@")
    text = read_all(given.removeprefix("@")) if is_elsewhere else given.encode()
    try:
        params = orjson.loads(text)
    except orjson.JSONDecodeError as err:
        raise typer.BadParameter(f"it is not JSON: {err}", param_hint="--params") from None
    if not isinstance(params, dict):
        raise typer.BadParameter("parameters are a JSON object, by name", param_hint="--params")
    return params


def run_scriptlet(request: ScriptletRequest) -> int:
    """Run the step, and print what it returned; the exit code says whether that was good."""
    configure_logging("human", "warning")
    try:
        returned, is_good = asyncio.run(_run(request))
        code = EXIT_OK if is_good else EXIT_FAILED
    except (Faults, ProcessorError) as err:
        complain(err)
        name_pages(str(err))
        returned, code = {"status": "error", "reason": str(err)}, exit_code_of(err)
    sys.stdout.write(json.dumps(returned, ensure_ascii=False) + "\n")
    return code


async def _run(request: ScriptletRequest) -> tuple[Any, bool]:
    """What the step returned, or why it did not, and whether it is good.

    Raises Faults and ProcessorError.
    """
    recipe = recipe_of(request.file, request.name, request.params)
    [step] = recipe.steps
    program = program_of(recipe, request.language, request.packages)
    context = _context_in(request.context)
    zygote = await Zygote.start()
    try:
        await zygote.prepare(program)
        limits = Limits(cpu_s=request.timeout_s, wall_s=request.timeout_s)
        guest = await zygote.spawn(program, limits)
        document = {"kind": step.name, "run": "scriptlet", "x": step.name, "a": 1, "inputs": step.params}
        document |= {"store": context.to_dict(), "history": context.changes()}
        outcome = await guest.run([Group("", [orjson.dumps(document)], {})], isolate=True)
    finally:
        await zygote.close()
    _show_log(outcome.logs, step)
    if isinstance(outcome, Failed) or outcome.failed:
        failure = outcome.failure if isinstance(outcome, Failed) else outcome.failed[0][1]
        complain(f"{failure.code} step {step.name}: {failure.text}")
        _show_trace(failure.traceback)
        return {"status": "error", "reason": failure.text}, False
    try:
        result = read_result(outcome.outputs[0].body if outcome.outputs else b"")
    except ValueError as err:
        return {"status": "error", "reason": str(err)}, False
    if "error" in result:
        error = result["error"]
        complain(f"{error['code']} {error['text']}")
        _show_trace(error["traceback"])
        reason = error["text"].partition(": ")[2]
        return result.get("returned", {"status": "error", "reason": reason}), False
    if request.context is not None:
        for key, value, who, ts_ms in result["sets"]:
            context.apply(key, value, who, ts_ms)
        save(request.context, dump(context))
    return result["outputs"], True


def _context_in(file: Path | None) -> RecipeContext:
    return read(file).context if file is not None and file.exists() else RecipeContext()


def _show_log(lines: Iterable[LogLine], step: Step) -> None:
    for line in lines:
        say(line_of(line.level, line.text, step.module, datetime.now()))


def _show_trace(trace: str) -> None:
    if trace:
        say(trace)
