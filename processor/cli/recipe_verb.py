"""The verb `recipe`: its options and its help. What an action does is in the module that `WORK` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

Action = Literal["run", "check", "show", "steps", "runs", "init"]
Format = Literal["human", "text", "json", "mermaid", "svg"]

# The module that does an action, as a function of `RecipeRequest`; imported when it is asked for.
WORK: Mapping[str, str] = {
    "run": "processor.cli.recipe_running",
    "runs": "processor.cli.recipe_runs",
    "check": "processor.cli.recipe_files",
    "show": "processor.cli.recipe_files",
    "steps": "processor.cli.recipe_files",
    "init": "processor.cli.recipe_files",
}


@dataclass(frozen=True, slots=True)
class RecipeRequest:
    """What was asked of the verb `recipe`, as it was written."""

    action: str
    path: Path
    name: str | None = None
    format: str | None = None
    list_steps: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    resume_from: str | None = None
    run: str | None = None
    params: str | None = None
    context: Path | None = None
    logs: Path | None = None
    shell: bool = False
    language: str = "restricted"
    packages: tuple[str, ...] = ()


def recipe(
    action: Annotated[
        Action,
        typer.Argument(metavar="ACTION", help="run, check, show, steps, init, or runs: those of an app."),
    ],
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The recipe, a YAML file; steps, init: a folder; runs: a configuration."
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="runs: only those of this recipe.")
    ] = None,
    list_steps: Annotated[
        bool, typer.Option("--list-steps", help="run: list the steps in their order, and run none.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="STEP,...", help="run: these steps and no others.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="STEP,...", help="run: not these steps.")] = None,
    resume_from: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="run: go on from this step, in the context of the last run."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="ID", help="run: with --resume-from, in that of this run; show: how far it came."
        ),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|@FILE|-",
            help="run: parameters in place of those of the file, by step: {STEP: {NAME: VALUE}}.",
        ),
    ] = None,
    context: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="run: begin with the context in this file, and keep it there."),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(metavar="DIR", help="run: a log for each step goes to this folder.")
    ] = None,
    shell: Annotated[bool, typer.Option("--shell", help="run: allow shell steps, in a jail.")] = False,
    language: Annotated[
        Literal["restricted", "python"],
        typer.Option(help="run, check: the language of python steps; python is plain Python, in the jail."),
    ] = "restricted",
    package: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="run, check: a package that plain Python may import."),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            help="Lines for people, or JSON objects; show: also mermaid, or svg. By default lines at a"
            " terminal, and JSON in a pipe."
        ),
    ] = None,
) -> int:
    """Run recipes: steps in Python or as programs, which share one context. Only `runs` needs a server.

    `run` runs the steps of a recipe, each in a jail, and keeps the context in a file after each of them;
    a run that was killed goes on with --resume-from. `check` finds all faults of a recipe and of its steps;
    `show` shows its steps, as text or as a picture. `steps` lists the steps that lie in a folder,
    and `init` makes a folder with an example and nothing over what is there. `runs` lists the runs of the
    recipes of an app; `processor graph` starts, shows and steers them, by the name of the recipe.

    The exit code is 1 where a step failed, and 2 where the recipe or an option has a fault.

    Examples:
    processor recipe run orchestrator/recipes/example.yaml --shell
    processor recipe run nightly.yaml --list-steps
    processor recipe run nightly.yaml --resume-from report --logs logs/
    processor recipe run nightly.yaml --only load --params '{"load": {"day": "2026-11-30"}}'
    processor recipe show nightly.yaml --format svg > nightly.svg
    processor recipe show nightly.yaml --run 20261130T020000123
    processor recipe steps orchestrator/
    processor recipe init nightly/
    processor recipe runs market.yaml nightly
    """
    request = RecipeRequest(
        action,
        path,
        name,
        format="human" if format == "text" else format,
        list_steps=list_steps,
        only=_split(only),
        skip=_split(skip),
        resume_from=resume_from,
        run=run,
        params=params,
        context=context,
        logs=logs,
        shell=shell,
        language=language,
        packages=tuple(package or ()),
    )
    if name is not None and action != "runs":
        raise typer.BadParameter(f"{action} takes no name", param_hint="RECIPE")
    if package and language != "python":
        raise typer.BadParameter("it goes with --language python", param_hint="--package")
    if format in ("mermaid", "svg") and action != "show":
        raise typer.BadParameter(f"{format} is for show", param_hint="--format")
    code: int = import_module(WORK[action]).do(request)
    return code


def _split(given: list[str] | None) -> tuple[str, ...]:
    """The names in options that may be given several times, each with several names."""
    return tuple(name.strip() for each in given or () for name in each.split(",") if name.strip())
