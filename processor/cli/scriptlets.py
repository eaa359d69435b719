"""`scriptlet`: one step from its file, without a recipe, in its jail.

Standard output has exactly one JSON object, what the step returned, whatever happens; everything else goes to
standard error. So a step can be used by programs as any other command.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import typer

from processor.cli.inputs import read_all
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, complain, exit_code_of, name_pages, say
from processor.errors import Faults, ProcessorError
from processor.graphs.plan import compile_plan
from processor.graphs.progress import Execution
from processor.model import Limits
from processor.recipes.authoring import line_of
from processor.recipes.context import RecipeContext, dump, read
from processor.recipes.graph import graph_of
from processor.recipes.local import PythonSteps, changes_of
from processor.recipes.programs import program_of, recipe_of
from processor.recipes.snapshots import SnapshotFile
from processor.sandbox.host import Zygote
from processor.telemetry import configure_logging

_RUN = "scriptlet"  # what the run is called that the step is an execution of
_MEMORY_MB = 512


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
    node = compile_plan(graph_of(recipe)).nodes[step.name]
    context = _context_in(request.context)
    execution = Execution(
        _RUN, step.name, node, 1, step.params, context.to_dict(), None, _RUN, context.changes()
    )
    program = program_of(recipe, request.language, request.packages)
    zygote = await Zygote.start()
    try:
        limits = Limits(memory_mb=_MEMORY_MB, cpu_s=request.timeout_s, wall_s=request.timeout_s)
        steps = PythonSteps(zygote, program, limits)
        await steps.prepare()
        result, lines = await steps.perform(execution)
    finally:
        await zygote.close()
    for line in lines:
        say(line_of(line, step.module, datetime.now()))
    changes = changes_of(step, result)
    if "outputs" not in result or changes is None:
        error = result.get("error") or {"code": "E709", "text": "it gave what is no result of a step"}
        complain(f"{error['code']} {error['text']}")
        if trace := error.get("traceback"):
            say(trace)
        reason = str(error["text"]).removeprefix(f"step {step.name}: ")
        return result.get("returned", {"status": "error", "reason": reason}), False
    if request.context is not None:
        for change in changes:
            context.apply(*change)
        SnapshotFile(request.context).replace(dump(context))
    return result["outputs"], True


def _context_in(file: Path | None) -> RecipeContext:
    return read(file).context if file is not None and file.exists() else RecipeContext()
