"""Recipes as files: the keys of one with their lines and columns, and whether what they name is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from processor.config.source import YamlSource
from processor.errors import Fault, Faults
from processor.graphs.checks import Problem
from processor.recipes.definition import Recipe, Step, read_recipe


def load_recipe(path: Path) -> Recipe:
    """The recipe in a file. Raises Faults with everything that is wrong with it, each E713 and where it is.

    The files that steps name have to be there; none of them is opened.
    """
    try:
        source = YamlSource.read(path)
    except Faults as err:
        raise Faults([replace(fault, code="E713") for fault in err.faults]) from err
    recipe, problems = read_recipe(path, source.data)
    faults = [replace(fault, code="E713") for fault in source.faults]
    for problem in problems if recipe is None else _absent(recipe, source.data["steps"]):
        faults.append(source.fault(problem.place, problem.code, problem.text))
    if faults or recipe is None:
        raise Faults(sorted(faults, key=_place))
    return recipe


def _place(fault: Fault) -> tuple[int, int]:
    return fault.line, fault.column


def _absent(recipe: Recipe, written: list[dict[str, object]]) -> Iterator[Problem]:
    """The files of steps that are not there."""
    indexes = {str(keys["name"]): index for index, keys in enumerate(written)}
    for step in recipe.steps:
        index = indexes[step.name]
        keys = ("script", "cmd") if step.is_shell else ("script", "module")
        key = next(key for key in keys if written[index].get(key))
        if what := _why_not(recipe.root, step):
            yield Problem(("steps", index, key), "E713", f"steps[{index}].{key}: {what}")


def _why_not(root: Path, step: Step) -> str:
    if not step.is_shell:
        if (root / step.file).is_file():
            return ""
        return f"no module named '{step.module}': there is no file {step.file} below {root}."
    program = step.cmd[0]
    if "/" not in program:  # found in the PATH of the step, as any program
        return ""
    if not (root / program).is_file():
        return f"there is no file {program} below {root}."
    if not os.access(root / program, os.X_OK):
        return f"{program} may not be executed. Change that with `chmod +x {program}`."
    return ""
