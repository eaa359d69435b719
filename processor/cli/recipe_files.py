"""`recipe check`, `show`, `steps` and `init`: recipes and steps as files have them; no step is run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from processor.cli.recipe_verb import RecipeRequest
from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK, Screen, complain, name_pages, warn
from processor.config import load_recipe
from processor.errors import Fault, Faults
from processor.recipes.definition import Recipe, Step
from processor.recipes.graph import picture_of
from processor.recipes.local import check_steps
from processor.recipes.scriptlets import scriptlets_in
from processor.recipes.snapshots import earlier_run, steps_in
from processor.recipes.tree import EXAMPLE, write_tree
from processor.telemetry import configure_logging


def do(request: RecipeRequest) -> int:
    """Do what was asked for. Raises Faults."""
    configure_logging("human", "warning")
    match request.action:
        case "check":
            return check_recipe(request)
        case "steps":
            return list_scriptlets(request)
        case "init":
            return make_folder(request)
        case _:
            return show_recipe(request)


def check_recipe(request: RecipeRequest) -> int:
    """Check a recipe with the sources of its steps, and say what was found."""
    screen = Screen(request.format)
    try:
        recipe = load_recipe(request.path)
        unconfined = asyncio.run(check_steps(recipe, request.language, request.packages))
    except Faults as err:
        if screen.is_json:
            screen.document({"faults": [str(fault) for fault in err.faults]})
        else:
            complain(err)
            name_pages(*map(str, err.faults))
        return EXIT_CONFIG
    if screen.is_json:
        screen.document({"faults": [], "recipe": recipe.name, "steps": [step.name for step in recipe.steps]})
    else:
        count = len(recipe.steps)
        screen.line(f"{recipe.path}: recipe {recipe.name}, {count} step{'s' * (count != 1)}, no fault")
        if names := [step.name for step in recipe.steps if step.is_shell]:
            screen.line(f"Shell steps, which run with --shell only: {', '.join(names)}")
        screen.flush()
    if unconfined:
        warn([Fault(str(recipe.path), 1, 1, "E715", unconfined)])
    return EXIT_OK


def show_recipe(request: RecipeRequest) -> int:
    """Show the steps of a recipe, as text, JSON or a picture, with how far a run of it came.

    Raises Faults, ProcessorError E713 where there is no such run, and E719 where its file cannot be read.
    """
    recipe = load_recipe(request.path)
    screen = Screen(request.format)
    run = None if request.run is None else earlier_run(recipe, request.run).run
    steps = None if run is None else steps_in(run)
    match request.format:
        case "mermaid" | "svg":
            states = {name: {each["state"]: 1} for name, each in (steps or {}).items()}
            title = "" if run is None else f"recipe {recipe.name}: {run.get('state')}"
            for line in picture_of(recipe, request.format, states, title).splitlines():
                screen.line(line)
            screen.flush()
        case _:
            show_steps(screen, recipe, steps)
    return EXIT_OK


def show_steps(screen: Screen, recipe: Recipe, came: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """The steps of a recipe in the order in which they can run, with how far each `came` in a run."""
    steps = [recipe.by_name[name] for name in recipe.order]
    if screen.is_json:
        for step in steps:
            document = {
                "idx": step.idx,
                "name": step.name,
                "type": step.type,
                "runs": step.runs,
                "depends_on": list(recipe.before[step.name]),
            }
            screen.document(document if came is None else document | {"run": came.get(step.name)})
        return
    rows = [
        (
            str(step.idx),
            step.name,
            step.type,
            step.runs,
            ", ".join(recipe.before[step.name]) or "-",
            ", ".join(_notes(step)) if came is None else _how_far(came.get(step.name, {})),
        )
        for step in steps
    ]
    last = "notes" if came is None else "state"
    screen.table(("idx", "step", "type", "runs", "after", last), rows, elastic=4)
    screen.flush()


def _how_far(record: Mapping[str, Any]) -> str:
    error = record.get("error")
    said = f" {error.get('code')} {error.get('text')}" if isinstance(error, dict) else ""
    return f"{record.get('state', '-')}{said}"


def _notes(step: Step) -> Iterator[str]:
    if step.retry:
        yield f"{(step.retry.max_retries or 0) + 1} tries"
    if step.timeout_s:
        yield f"{step.timeout_s:g} s a try"
    if names := [*step.success.ctx_has_keys, *step.success.files_exist]:
        yield f"leaves {' '.join(names)}"
    if step.writes:
        yield f"writes {' '.join(step.writes)}"


def list_scriptlets(request: RecipeRequest) -> int:
    """List the steps that lie in a folder, and warn of sources that cannot be read."""
    folder = Path(request.path)
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder", param_hint="FILE")
    screen = Screen(request.format)
    found, faults = scriptlets_in(folder)
    for each in found if screen.is_json else ():
        screen.document({name: value for name, value in each._asdict().items() if value})
    if not screen.is_json:
        rows = [
            (each.class_name or "-", each.type, each.module or each.file, each.description) for each in found
        ]
        screen.table(("class", "type", "module or file", "what it does"), rows, elastic=4)
    screen.flush()
    warn(faults)
    return EXIT_OK


def make_folder(request: RecipeRequest) -> int:
    """Write the files that a recipe begins with, and say what can be done with them."""
    folder = request.path
    try:
        written = write_tree(folder)
    except FileExistsError as err:
        raise typer.BadParameter(f"{err}; nothing was written", param_hint="FILE") from None
    except OSError as err:
        complain(f"{folder} cannot be written: {err.strerror}")
        return EXIT_FAILED
    screen = Screen(request.format)
    for path in written if screen.is_json else ():
        screen.document({"file": str(path)})
    if not screen.is_json:
        screen.line(
            f"{folder}: {len(written)} files; begin with `processor recipe run {folder / EXAMPLE} --shell`"
        )
    screen.flush()
    return EXIT_OK
