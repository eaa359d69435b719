"""The verb `scriptlet`: its options and its help. What it does is in `scriptlets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def scriptlet(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The source of the step, in Python.")],
    name: Annotated[
        str | None,
        typer.Argument(metavar="CLASS", help="Its class, or function; where there is one only, that."),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE|-", help="The parameters of the step. By default it has none."),
    ] = None,
    context: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Begin with the context in this file, and keep it there."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=86_400, help="How long the step may take.")
    ] = 60.0,
    language: Annotated[
        Literal["restricted", "python"],
        typer.Option(help="The language of the step; python is plain Python, in the jail."),
    ] = "restricted",
    package: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A package that plain Python may import."),
    ] = None,
) -> int:
    """Run one step of a recipe from its file, in its jail, and print what it returned.

    Standard output has exactly one JSON object, whatever happens; what the step logs and prints goes to
    standard error. The step may import what lies below its root, as in a recipe: the nearest folder above
    that has `orchestrator/`, else that of the file. The context is changed where the step ends well.

    The exit code is 1 where the step failed, and 2 where it could not be run.

    Examples:
    processor scriptlet orchestrator/scriptlets/python/steps/sample_step.py --params '{"message": "Hi"}'
    processor scriptlet steps.py Load --params @load.json --context context.json | jq .rows
    processor scriptlet steps.py Fit --language python --package numpy
    """
    from processor.cli.scriptlets import ScriptletRequest, params_of, run_scriptlet

    if package and language != "python":
        raise typer.BadParameter("it goes with --language python", param_hint="--package")
    given = params_of(params)
    request = ScriptletRequest(file, name or "", given, context, timeout, language, tuple(package or ()))
    return run_scriptlet(request)
