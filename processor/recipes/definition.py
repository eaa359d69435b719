"""What a recipe is: steps in order, each a class or function in Python, or a program with its arguments.

`read_recipe` takes the keys of a file and finds every fault at once; `processor.config.load_recipe` reads the
file, and places the faults. `graph` beside makes a graph of a recipe, `programs` the program of its steps.

Both ways to write a step are one here: `args` is another word for `params`, and `script` names the file of a
step where `module` or `cmd` would. Invariants: a recipe is frozen, its names are identifiers of nodes, its
paths lie below its root, and its parameters can be written as JSON.
"""

from __future__ import annotations

import difflib
import heapq
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BeforeValidator, Field, ValidationError

from processor.errors import ProcessorError
from processor.graphs.checks import RESERVED, Place, Problem, circle_of, key_problem, path_of
from processor.graphs.definition import BUILT_IN, NAME, GraphKeys, Name, NodeRetryDefinition, Seconds
from processor.route import ANYTHING, Success

# What a step would be taken for in a graph.
_TAKEN = (*RESERVED, *BUILT_IN)
FOLDER = "orchestrator"  # the root of a recipe is the nearest folder above it that holds one
_FUNCTION = "run"  # of a module, where neither class nor function is named
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
LONGEST_S = 3600.0  # that a step may take which has no `timeout_s`
_MOST_STEPS = 900  # with the node before them they are fewer than a graph may have nodes
_MOST_DEEP = 30  # levels of parameters; as inputs of a node they may have 32
# Keys that only one type of step has.
_OF_PYTHON = ("module", "class", "function")
_OF_SHELL = ("cmd", "writes")


def _listed(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return () if value is None else tuple(value) if isinstance(value, list) else value


def _argv(value: object) -> object:
    # As a shell would take it apart, and no more: nothing in it is ever expanded.
    return tuple(shlex.split(value)) if isinstance(value, str) else _listed(value)


def _retry(value: object) -> object:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return {"max_retries": value} if is_number else value


Text = Annotated[str, Field(min_length=1)]
Listed = Annotated[tuple[Text, ...], BeforeValidator(_listed)]


class SuccessKeys(GraphKeys):
    """What has to be there when a step has ended well (E714)."""

    ctx_has_keys: Listed = Field(default=(), description="Keys of the context.")
    files_exist: Listed = Field(default=(), description="Files or folders below the root of the recipe.")


class StepKeys(GraphKeys):
    """The keys of a step, as people write them."""

    idx: int | None = Field(default=None, description="Place in the order; without it that in the file.")
    name: Name = Field(description="Name of the step: letters, digits, - and _, at most 64.")
    type: Literal["python", "shell"] = Field(description="What runs it.")
    module: Text | None = Field(default=None, description="Its module: a.b.c is a/b/c.py below the root.")
    script: Text | None = Field(default=None, description="Its file below the root.")
    class_name: Text | None = Field(default=None, alias="class", description="Class with a method `run`.")
    function: Text | None = Field(default=None, description="Function of (ctx, params) or of (params).")
    cmd: Annotated[tuple[str, ...] | None, BeforeValidator(_argv)] = Field(
        default=None, description="Program and arguments: a text with the quotes of a shell, or a list."
    )
    params: Any = Field(default=None, description="Parameters, or the environment of a program.")
    args: Any = Field(default=None, description="Another word for `params`; a list is arguments.")
    depends_on: Listed = Field(default=(), description="Steps that have to end well before.")
    success: SuccessKeys = Field(default=SuccessKeys(), description="What has to be there afterwards.")
    timeout_s: Seconds | None = Field(default=None, description="Seconds that one try may take (E710).")
    retry: Annotated[NodeRetryDefinition | None, BeforeValidator(_retry)] = Field(
        default=None, description="How often it is tried again, or more about it; without it never."
    )
    writes: Listed = Field(default=(), description="Folders below the root that a program may write to.")


class RecipeKeys(GraphKeys):
    """The keys at the top of a recipe."""

    name: Name | None = Field(default=None, description="Name of the recipe; by default that of the file.")
    test_meta: dict[str, Any] = Field(
        default={}, description="What people want to know of a run; events carry it."
    )
    steps: Annotated[tuple[StepKeys, ...], BeforeValidator(_listed)] = Field(description="The steps.")


@dataclass(frozen=True, slots=True)
class Step:
    """One step: in Python with `module` and one of `class_name` and `function`, or in a shell with `cmd`.

    `params` are those of a python step, `args` the environment of a shell step. `retry` is None for one try.
    """

    idx: int
    name: str
    type: Literal["python", "shell"]
    module: str = ""
    class_name: str = ""
    function: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    cmd: tuple[str, ...] = ()
    args: Mapping[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    success: Success = ANYTHING
    timeout_s: float | None = None
    retry: NodeRetryDefinition | None = None
    writes: tuple[str, ...] = ()

    @property
    def is_shell(self) -> bool:
        """Whether it is a program of its own, which has to be allowed."""
        return self.type == "shell"

    @property
    def runs(self) -> str:
        """What it runs, in a few words."""
        return shlex.join(self.cmd) if self.is_shell else f"{self.module}:{self.class_name or self.function}"

    @property
    def file(self) -> str:
        """Where a python step is written, below the root."""
        return f"{self.module.replace('.', '/')}.py"


@dataclass(frozen=True)
class Recipe:
    """A recipe without faults; `steps` are in the order of their `idx`, and every path is below `root`."""

    name: str
    path: Path
    root: Path
    test_meta: Mapping[str, Any]
    steps: tuple[Step, ...]
    is_chain: bool  # each step waits for the one before it, because none says what it waits for

    @cached_property
    def by_name(self) -> Mapping[str, Step]:
        """The steps by their names."""
        return {step.name: step for step in self.steps}

    @cached_property
    def before(self) -> Mapping[str, tuple[str, ...]]:
        """The steps that each step waits for: what it names, or, in a chain, the one before it."""
        if not self.is_chain:
            return {step.name: tuple(dict.fromkeys(step.depends_on)) for step in self.steps}
        names = [step.name for step in self.steps]
        return dict(zip(names, [(), *((name,) for name in names)], strict=False))

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The names of the steps, each after those that it waits for; of several that could, by `idx`."""
        numbers = {step.name: number for number, step in enumerate(self.steps)}
        waiting = {name: len(before) for name, before in self.before.items()}
        free = [numbers[name] for name, count in waiting.items() if not count]
        found: list[str] = []
        while free:
            name = self.steps[heapq.heappop(free)].name
            found.append(name)
            for after in self.after[name]:
                waiting[after] -= 1
                if not waiting[after]:
                    heapq.heappush(free, numbers[after])
        return tuple(found)

    @cached_property
    def after(self) -> Mapping[str, tuple[str, ...]]:
        """The steps that wait for each step."""
        found: dict[str, list[str]] = {step.name: [] for step in self.steps}
        for name, before in self.before.items():
            for each in before:
                found[each].append(name)
        return {name: tuple(names) for name, names in found.items()}


def root_of(path: Path) -> Path:
    """The folder that the modules and programs of a recipe lie below, and where its programs run."""
    folder = path.absolute().parent
    return next((each for each in (folder, *folder.parents) if (each / FOLDER).is_dir()), folder)


def read_recipe(path: Path, keys: Mapping[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe that these keys say, and all that is wrong with it; with a problem there is none.

    `path` is the file that it stands in, from which root and name follow. What it names is not opened.
    """
    raw = keys.get("steps")
    written = [_Written(index, each) for index, each in enumerate(raw if isinstance(raw, list) else ())]
    # Each step is checked by itself, so that the good ones can be compared where others are not.
    top, problems = _validated(RecipeKeys, {**keys, "steps": []} if written else keys, ())
    if raw == [] or len(written) > _MOST_STEPS:
        problems.append(_problem(("steps",), f"has {len(written)} steps; 1 to {_MOST_STEPS} can be run."))
    problems += [_problem((key,), what) for key, what in _not_json("test_meta", keys.get("test_meta"))]
    for each in written:
        problems += each.problems
    problems += _order_problems(written)
    name = (top.name if top else None) or path.stem
    if top and not re.match(f"{NAME}\\Z", name):
        what = f"is missing, and that of the file, {name!r}, is not 1 to 64 letters, digits, - and _."
        problems.append(_problem(("name",), what))
    if problems or top is None:
        return None, problems
    steps = sorted((each.step() for each in written), key=lambda step: step.idx)
    is_chain = not any(step.depends_on for step in steps)
    return Recipe(name, path, root_of(path), top.test_meta, tuple(steps), is_chain), []


def with_params(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe with other parameters, by step and name; those that are not given stay.

    Raises ProcessorError E713.
    """
    for name, values in given.items():
        if name not in recipe.by_name:
            near = difflib.get_close_matches(name, recipe.by_name, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"Steps are {', '.join(recipe.by_name)}."
            raise ProcessorError("E713", f"there is no step {_shown(name)}", place="--params", remedy=remedy)
        wrong = list(_wrong_params(recipe.by_name[name], values))
        if wrong:
            raise ProcessorError("E713", f"{name} {wrong[0]}", place="--params")
    return replace(recipe, steps=tuple(_with(step, given.get(step.name, {})) for step in recipe.steps))


def _wrong_params(step: Step, values: Any) -> Iterator[str]:
    if not isinstance(values, dict):
        yield "must have an object of parameters."
        return
    yield from (what for _, what in _not_json(step.name, values))
    for name, value in values.items() if step.is_shell else ():
        if not _VARIABLE.match(name):
            yield f"has {_shown(name)}, which is no name of an environment variable."
        elif isinstance(value, str) and "\0" in value:
            yield f"has a NUL character in {name}, which no program can be given."


def _with(step: Step, values: Mapping[str, Any]) -> Step:
    if step.is_shell:
        return replace(step, args={**step.args, **{key: _as_text(value) for key, value in values.items()}})
    return replace(step, params={**step.params, **values})


class _Written:
    """A step as it is written, with what is wrong with it alone."""

    def __init__(self, index: int, raw: object) -> None:
        self.place: Place = ("steps", index)
        self.keys, self.problems = _validated(StepKeys, raw, self.place)
        self.idx = index + 1
        name = raw.get("name") if isinstance(raw, dict) else None
        self.name = name if isinstance(name, str) else None
        if self.keys:
            self.idx = index + 1 if self.keys.idx is None else self.keys.idx
            self.problems += [_problem((*self.place, key), what) for key, what in _contradictions(self.keys)]

    def step(self) -> Step:
        """It as it runs; only of one without a problem."""
        keys = self.keys
        assert keys is not None, "there is no problem"
        is_shell = keys.type == "shell"
        values = _given(keys)
        environment = values if is_shell and isinstance(values, dict) else {}
        flags = values if isinstance(values, list) else []
        return Step(
            idx=self.idx,
            name=keys.name,
            type=keys.type,
            module="" if is_shell else keys.module or _module_of(keys.script or ""),
            class_name=keys.class_name or "",
            function="" if is_shell or keys.class_name else keys.function or _FUNCTION,
            params={} if is_shell or not isinstance(values, dict) else values,
            cmd=(*(keys.cmd or (keys.script or "",)), *map(_as_text, flags)) if is_shell else (),
            args={name: _as_text(value) for name, value in environment.items()},
            depends_on=keys.depends_on,
            success=Success(keys.success.ctx_has_keys, keys.success.files_exist),
            timeout_s=keys.timeout_s,
            retry=keys.retry,
            writes=keys.writes,
        )


def _given(keys: StepKeys) -> Any:
    return keys.params if keys.args is None else keys.args


def _module_of(script: str) -> str:
    return ".".join(PurePosixPath(script).with_suffix("").parts)


def _as_text(value: Any) -> str:
    """A value in an environment or among arguments: a text as it is, another as its JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _contradictions(keys: StepKeys) -> Iterator[tuple[str, str]]:
    """What is wrong with a step whose keys are right, each by key."""
    if keys.name in _TAKEN:
        yield "name", f"is {keys.name!r}, which has a meaning of its own. Rename the step."
    if keys.params is not None and keys.args is not None:
        yield "args", "is another word for `params`, and both are given. Remove one."
    other = _OF_PYTHON if keys.type == "shell" else _OF_SHELL
    for key in other:
        if getattr(keys, "class_name" if key == "class" else key):
            yield key, f"has no effect in a {keys.type} step. Remove it, or change `type`."
    if keys.retry and keys.retry.max_retries is None:
        yield "retry", "has no `max_retries`, so that the step would be tried once."
    yield from (_of_shell if keys.type == "shell" else _of_python)(keys)
    for name, paths in (("writes", keys.writes), ("success", keys.success.files_exist)):
        for each in paths:
            if not _is_below(each):
                yield name, f"has the path {_shown(each)}, which is not below the root of the recipe."


def _of_python(keys: StepKeys) -> Iterator[tuple[str, str]]:
    if keys.module and keys.script:
        yield "script", "and `module` both name the file. Remove one."
    elif keys.script and not (keys.script.endswith(".py") and _DOTTED.match(_module_of(keys.script))):
        what = f"is {_shown(keys.script)}, which cannot be imported: name a file a/b/c.py below the root."
        yield "script", what
    elif keys.module and not _DOTTED.match(keys.module):
        yield "module", f"is {_shown(keys.module)}, which is no name of a module, such as a.b.c."
    elif not keys.module and not keys.script:
        yield "module", "is missing: which module, or which `script`, has the step?"
    if keys.class_name and keys.function:
        yield "function", "and `class` are both given. Remove one."
    for key, name in (("class", keys.class_name), ("function", keys.function)):
        if name and not name.isidentifier():
            yield key, f"is {_shown(name)}, which is no name in Python."
    given = _given(keys)
    if given is not None and not isinstance(given, dict):
        yield "params" if keys.args is None else "args", "must be a mapping of parameters."
    else:
        yield from _not_json("params" if keys.args is None else "args", given)


def _of_shell(keys: StepKeys) -> Iterator[tuple[str, str]]:
    if keys.cmd is not None and keys.script:
        yield "script", "and `cmd` both name the program. Remove one."
    elif keys.cmd is None and not keys.script:
        yield "cmd", "is missing: which program, or which `script`, is the step?"
    program = keys.cmd[0] if keys.cmd else keys.script or ""
    if keys.cmd == () or (keys.cmd and not program):
        yield "cmd", "names no program."
    elif "/" in program and not program.startswith("/") and not _is_below(program):
        key = "cmd" if keys.cmd else "script"
        yield key, f"is {_shown(program)}, which is not below the root of the recipe."
    given, key = _given(keys), "params" if keys.args is None else "args"
    if faults := list(_not_json(key, given)):
        yield from faults
        return
    texts = [*(keys.cmd or ()), program]
    if isinstance(given, dict):
        texts += map(_as_text, given.values())
        for name in given:
            if not _VARIABLE.match(name):
                yield key, f"has {_shown(name)}, which is no name of an environment variable."
    elif isinstance(given, list):
        texts += map(_as_text, given)
    elif given is not None:
        yield key, "must be a mapping of environment variables, or a list of arguments."
    if any("\0" in text for text in texts):
        yield key if keys.cmd is None else "cmd", "has a NUL character, which no program can be given."


def _not_json(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The first value below a key that cannot be written as JSON, and why; what is infinite becomes null."""
    waiting: list[tuple[Place, Any]] = [((), value)]
    while waiting:
        place, each = waiting.pop()
        where = f"has {path_of(place)}, which" if place else "has a value that"
        if len(place) > _MOST_DEEP:
            yield key, f"is more than {_MOST_DEEP} levels deep."
        elif isinstance(each, dict | list):
            inner = each.items() if isinstance(each, dict) else enumerate(each)
            waiting += [((*place, step), one) for step, one in inner]
            continue
        elif isinstance(each, float) and not math.isfinite(each):
            yield key, f"{where} is {each}: JSON has finite numbers only."
        elif isinstance(each, int) and not -(1 << 63) <= each < 1 << 64:
            yield key, f"{where} is a number of more than 64 bits. Quote it."
        elif isinstance(each, str) and not each.isascii() and not _is_unicode(each):
            yield key, f"{where} holds half of a character."
        elif not isinstance(each, str | int | float | None):
            yield key, f"{where} is a {type(each).__name__}, which is not JSON. Quote it."
        else:
            continue
        return


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_below(path: str) -> bool:
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and "\0" not in path


def _order_problems(written: Sequence[_Written]) -> Iterator[Problem]:
    """What is wrong between steps, of those that are right by themselves."""
    names: dict[str, int] = {}
    places: dict[int, int] = {}
    for index, each in enumerate(written):
        if each.name is not None and names.setdefault(each.name, index) != index:
            what = f"is {_shown(each.name)}, as that of steps[{names[each.name]}]. Rename one of them."
            yield _problem((*each.place, "name"), what)
        if each.keys and places.setdefault(each.idx, index) != index:
            what = f"is {each.idx}, as that of steps[{places[each.idx]}]. Give each step one of its own."
            yield _problem((*each.place, "idx"), what)
    following: dict[str, list[str]] = {name: [] for name in names}
    for each in written:
        for number, before in enumerate(each.keys.depends_on if each.keys else ()):
            if before in names:
                following[before].append(each.name or "")
                continue
            near = difflib.get_close_matches(before, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; steps are {', '.join(names)}."
            place = (*each.place, "depends_on", number)
            path = path_of(place[:-1])
            yield Problem(place, "E713", f"{path} names {_shown(before)}, and there is no such step{hint}")
    if circle := circle_of(following):
        place = (*written[names[circle[1]]].place, "depends_on")
        shown = " -> ".join(f"'{each}'" for each in circle)
        yield Problem(place, "E713", f"{shown} is a circle: each of them waits for the one before it.")


_Keys = TypeVar("_Keys", bound=GraphKeys)


def _validated(model: type[_Keys], raw: object, place: Place) -> tuple[_Keys | None, list[Problem]]:
    try:
        return model.model_validate(raw), []
    except ValidationError as err:
        errors = err.errors(include_url=False)
    return None, [key_problem(error, (*place, *error["loc"]), "E713", RecipeKeys) for error in errors]


def _problem(place: Place, what: str) -> Problem:
    return Problem(place, "E713", f"{path_of(place)} {what}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
