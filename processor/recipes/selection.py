"""Which steps of a recipe one run is for: all of them, some, or what an earlier run has not come to.

What is left of a recipe is a recipe. Invariants: its steps keep their order, and none of them runs without a
step that it depends on, unless that has run in the same context, or was left out by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from processor.errors import ProcessorError
from processor.recipes.definition import Recipe


@dataclass(frozen=True, slots=True)
class Selection:
    """The steps that were asked for, by name; `only` is empty for all of them."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    resume_from: str | None = None

    def of(self, recipe: Recipe, done: Collection[str]) -> Recipe:
        """The recipe with these steps alone, where `done` have ended well in the context of the run.

        Raises ProcessorError E713 for a name that no step has, a step that would run without one that it
        depends on, and where nothing is left.
        """
        named = {"--only": self.only, "--skip": self.skip, "--resume-from": _one(self.resume_from)}
        for option, names in named.items():
            for name in names:
                _known(recipe, option, name)
        wanted = self._wanted(recipe, done)
        if not wanted:
            raise ProcessorError("E713", "no step is left to run", place=recipe.name, remedy=_REMEDY)
        if not recipe.is_chain:
            has_run = {*done, *self.skip}
            for name in recipe.order:
                if name not in wanted:
                    continue
                for before in recipe.before[name]:
                    if before not in wanted and before not in has_run:
                        self._refuse(name, before)
        near = _bridged(recipe, wanted)
        steps = [step for step in recipe.steps if step.name in wanted]
        if not recipe.is_chain:
            steps = [replace(step, depends_on=near[step.name]) for step in steps]
        return replace(recipe, steps=tuple(steps))

    def _wanted(self, recipe: Recipe, done: Collection[str]) -> set[str]:
        wanted = set(recipe.by_name)
        if self.resume_from is not None:
            wanted = _from(recipe, self.resume_from, done)
        if self.only:
            wanted &= set(self.only)
        return wanted - set(self.skip)

    def _refuse(self, name: str, before: str) -> None:
        if self.resume_from is None:
            place, remedy = f"--only {name}", "Add it, or use --resume-from."
        else:
            place, remedy = f"--resume-from {self.resume_from}", f"Resume from {before!r}, or use --skip."
        what = f"{name!r} depends on {before!r}, which has not run in this context"
        raise ProcessorError("E713", what, place=place, remedy=remedy)


_REMEDY = "Compare --only, --skip and --resume-from with the steps that --list-steps shows."


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _known(recipe: Recipe, option: str, name: str) -> None:
    if name in recipe.by_name:
        return
    near = difflib.get_close_matches(name, recipe.by_name, n=1)
    remedy = f"Did you mean {near[0]!r}?" if near else f"Steps are {', '.join(recipe.by_name)}."
    raise ProcessorError("E713", f"there is no step {name!r:.80}", place=option, remedy=remedy)


def _from(recipe: Recipe, first: str, done: Collection[str]) -> set[str]:
    """The step, what comes after it, and what did not end well, less what comes before it."""
    order = recipe.order
    if recipe.is_chain:
        return set(order[order.index(first) :])
    after = _reached(first, recipe.after)
    return {first} | after | (set(order) - set(done) - _reached(first, recipe.before))


def _reached(first: str, following: Mapping[str, Iterable[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(following[first])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += following[name]
    return found


def _bridged(recipe: Recipe, wanted: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """For each step the nearest of those that are wanted before it."""
    found: dict[str, tuple[str, ...]] = {}
    for name in recipe.order:
        near: dict[str, None] = {}
        for before in recipe.before[name]:
            near |= dict.fromkeys((before,) if before in wanted else found[before])
        found[name] = tuple(near)
    return found
