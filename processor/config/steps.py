"""From the keys of recipes to what runs: a graph each, and the groups that its steps are in.

The python steps of a recipe are one group, which runs with its runs unless it may ask other hosts; its shell
steps are another, a pool, and have to be allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path

from processor.config.forms import Place
from processor.config.recipe_files import load_recipe
from processor.config.recipes import RecipeSettings
from processor.config.rules import Contradiction
from processor.config.source import dotted
from processor.graphs.definition import GraphDefinition, StoreDefinition
from processor.model import Limits, Program
from processor.policy import Rules
from processor.reach import Outbound, Reach
from processor.recipes.definition import Recipe, Step
from processor.recipes.graph import graph_of
from processor.recipes.programs import program_of, reads_history
from processor.route import GroupStep, NodeGroup, RecipeSteps, RouteAudit

# The runs of an engine's lane wait while one of them is in a guest: what may take longer has a pool.
_INLINE_S = 10.0
OF_PYTHON, OF_SHELL = "recipe-", "shell-"  # what the names of the groups of a recipe begin with


@dataclass(frozen=True, slots=True)
class AppRecipe:
    """A recipe under its name in the app, and the program of its python steps, if it has some."""

    recipe: Recipe
    program: Program | None


def read_app_recipe(name: str, keys: RecipeSettings) -> AppRecipe:
    """The recipe in the file that these keys name. Raises Faults with all that is wrong with it."""
    recipe = replace(load_recipe(Path(keys.file)), name=name)
    python = any(not step.is_shell for step in recipe.steps)
    return AppRecipe(recipe, program_of(recipe, keys.language, keys.packages) if python else None)


def recipe_faults(name: str, keys: RecipeSettings, recipe: Recipe | None) -> Iterator[Contradiction]:
    """What the keys of a recipe say against each other, and against the recipe, where it could be read."""
    here = f"recipes.{name}"
    if keys.packages and keys.language != "python":
        text = f"{here}.packages has no effect with `language: {keys.language}`; set `language: python`"
        yield ("recipes", name, "packages"), "E106", text
    if recipe is None:
        return
    yield from _trigger_faults(name, keys, recipe)
    shell = [step for step in recipe.steps if step.is_shell]
    if shell and keys.shell == "off":
        named = f"step '{shell[0].name}' of {here}"
        text = f"{named} is a shell step. Allow it with `shell: on`; it runs in a cell without network"
        yield ("recipes", name), "E715", text
    python = [step for step in recipe.steps if not step.is_shell]
    for key in () if python else ("language", "packages", "outbound", "policy", "limits"):
        if key in keys.model_fields_set:
            text = f"{here}.{key} has no effect: the recipe has no python step"
            yield ("recipes", name, key), "E106", text
    if "concurrency" in keys.model_fields_set and not shell and not _has_pool(keys, python):
        text = f"{here}.concurrency has no effect: its steps run one after another, with their runs"
        yield ("recipes", name, "concurrency"), "E106", text


def _trigger_faults(name: str, keys: RecipeSettings, recipe: Recipe) -> Iterator[Contradiction]:
    """Inputs of triggers that no step would get: they are parameters of the first step, if it is only one."""
    first = [step for step in recipe.steps if not recipe.before[step.name]]
    known = first[0].params or first[0].args
    for index, trigger in enumerate(keys.triggers):
        place: Place = ("recipes", name, "triggers", index, "inputs")
        here = dotted(place)
        if trigger.inputs and len(first) > 1:
            steps = ", ".join(step.name for step in first)
            text = f"{here} has no effect: several steps begin ({steps}); put one before them, which takes it"
            yield place, "E106", text
            continue
        for key in trigger.inputs:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known) or 'none'}"
                text = f"{here}.{key} is no parameter of step '{first[0].name}'; {hint}"
                yield (*place, key), "E106", text


def taken_names(
    names: Collection[str], nodes: Collection[str], graphs: Collection[str]
) -> Iterator[Contradiction]:
    """Names of recipes that are those of graphs, or whose groups are groups of nodes already."""
    for name in names:
        if name in graphs:
            text = f"recipes.{name} and graphs.{name} have one name, and a recipe is a graph. Rename one"
            yield ("recipes", name), "E106", text
        for group in (OF_PYTHON + name, OF_SHELL + name):
            if group in nodes:
                text = f"nodes.{group} has the name of the group of steps of recipes.{name}. Rename one"
                yield ("nodes", group), "E106", text


def graph_of_recipe(keys: RecipeSettings, recipe: Recipe) -> GraphDefinition:
    """The graph of a recipe with what starts it and where its results go."""
    return graph_of(recipe).model_copy(
        update={
            "store_config": StoreDefinition(history=keys.history),
            "triggers": keys.triggers,
            "events": keys.events,
            "output": keys.output,
            "timeout_s": keys.timeout_s,
            "test_meta": dict(recipe.test_meta),
            "keeps_outputs": True,
        }
    )


def groups_of_recipe(
    app: str, keys: RecipeSettings, read: AppRecipe, rules: Rules, audit: RouteAudit
) -> Iterator[NodeGroup]:
    """The groups that the steps of a recipe are in."""
    recipe = read.recipe
    outbound = keys.outbound
    if read.program is not None:
        steps = [step for step in recipe.steps if not step.is_shell]
        yield NodeGroup(
            app=app,
            name=OF_PYTHON + recipe.name,
            namespace=recipe.name,
            program=read.program,
            is_pool=_has_pool(keys, steps),
            policy=rules,
            audit=audit,
            limits=_limits_of(keys, steps),
            reach=Reach(
                f"recipes.{recipe.name}.outbound.allowed_domains",
                Outbound(
                    outbound.allowed_domains,
                    outbound.timeout_s,
                    outbound.request_bytes,
                    outbound.response_bytes,
                    outbound.redirects,
                ),
            ),
            steps=RecipeSteps(
                recipe.root,
                {step.name: _as_run(step) for step in steps},
                reads_history=reads_history(read.program),
            ),
            concurrency=keys.concurrency,
        )
    if shell := [step for step in recipe.steps if step.is_shell]:
        yield NodeGroup(
            app=app,
            name=OF_SHELL + recipe.name,
            namespace=recipe.name,
            program=Program("", str(recipe.path)),
            is_pool=True,
            audit=audit,
            reach=Reach(f"recipes.{recipe.name}"),
            steps=RecipeSteps(recipe.root, {step.name: _as_run(step) for step in shell}, is_shell=True),
            concurrency=keys.concurrency,
        )


def _has_pool(keys: RecipeSettings, steps: Sequence[Step]) -> bool:
    """Whether python steps run apart from their runs."""
    return bool(keys.outbound.allowed_domains) or _limits_of(keys, steps).wall_s > _INLINE_S


def _limits_of(keys: RecipeSettings, steps: Sequence[Step]) -> Limits:
    """What a guest of python steps may use: as much time as one may take, unless a key says another."""
    values = {
        each.name: getattr(keys.limits, each.name)
        for each in fields(Limits)
        if each.name in type(keys.limits).model_fields
    }
    longest_s = max(step.timeout_s or 0.0 for step in steps)
    for name in {"wall_s", "cpu_s"} - keys.limits.model_fields_set:
        values[name] = max(values[name], longest_s)
    return Limits(**values)


def _as_run(step: Step) -> GroupStep:
    return GroupStep(step.name, step.success, step.cmd, step.writes, step.timeout_s)
