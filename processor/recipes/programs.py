"""The one program that all python steps of a recipe run in: what they name below its root, and import there.

A step's module is a file below the root, and so is what it imports by a name that leads to one; everything
else that it imports is what any program of a guest may. Files are read, and looked at as text: nothing of a
user's runs here.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from processor.errors import Fault, Faults
from processor.graphs.definition import NAME
from processor.model import STEP_MODULES, Module, Program
from processor.recipes.definition import Recipe, Step, root_of
from processor.sandbox.steps import source_of

# How a key came to be is handed over only where a source asks for it: it grows with every run.
_ASKING = ("get_history", "last_modified")
MODULES = 256
MODULES_BYTES = 4 << 20


def program_of(recipe: Recipe, language: str = "restricted", packages: Sequence[str] = ()) -> Program:
    """The program of the python steps of a recipe, whose kinds are the names of the steps.

    Raises Faults E713 with every module that cannot be read, and every class or function that is not there.
    What is wrong within a source is for the guest that loads it.
    """
    steps = [step for step in recipe.steps if not step.is_shell]
    files = _ModuleFiles(recipe.root)
    for step in steps:
        files.bring(step.module)
    faults = [*files.faults, *(fault for step in steps for fault in _unnamed(step, files.found))]
    if faults:
        raise Faults(list(dict.fromkeys(faults)))
    modules = [Module(name, file.filename, file.source) for name, file in sorted(files.found.items())]
    named = {
        step.name: (step.module, step.class_name or step.function, bool(step.class_name)) for step in steps
    }
    source = source_of(named)
    return Program(source, str(recipe.path), language, tuple(packages), "steps", modules=tuple(modules))


def reads_history(program: Program) -> bool:
    """Whether the steps of a program may ask for the history of the context."""
    return any(word in module.source for module in program.modules for word in _ASKING)


class _File(NamedTuple):
    """A source below the root."""

    filename: str  # below the root
    source: str
    tree: ast.Module | None  # None where it is no Python; the guest says why


class _ModuleFiles:
    """The modules below a root that were asked for, with those that they import."""

    def __init__(self, root: Path) -> None:
        self.found: dict[str, _File] = {}
        self.faults: list[Fault] = []
        self._root = root
        self._bytes = 0
        self._absent: set[str] = set(STEP_MODULES)  # which are ours, whatever lies there

    def bring(self, wanted: str) -> None:
        """Take up a module, the packages that it lies in, and all that they import below the root."""
        waiting = [wanted]
        while waiting:
            parts = waiting.pop().split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                if name in self.found or name in self._absent:
                    continue
                if (file := self._read(name)) is None:
                    self._absent.add(name)
                    continue
                self.found[name] = file
                waiting += imported(file.tree, name, is_package=file.filename.endswith("__init__.py"))

    def _read(self, name: str) -> _File | None:
        path = name.replace(".", "/")
        for filename in (f"{path}/__init__.py", f"{path}.py"):
            if (self._root / filename).is_file():
                break
        else:
            return None
        try:
            if not (self._root / filename).resolve().is_relative_to(self._root.resolve()):
                raise ValueError("it leads out of the root of the recipe")
            source = (self._root / filename).read_text("utf-8-sig")
        except (OSError, ValueError) as err:
            why = (err.strerror if isinstance(err, OSError) else None) or err
            self._add(filename, f"the module {name} cannot be read: {why}.")
            return None
        self._bytes += len(source.encode())
        if len(self.found) == MODULES or self._bytes > MODULES_BYTES:
            much = f"more than {MODULES} modules, or {MODULES_BYTES} bytes"
            self._add(filename, f"the steps import {much}. Divide the recipe.")
            return None
        return _File(filename, source, _parsed(source))

    def _add(self, filename: str, text: str) -> None:
        self.faults.append(Fault(filename, 1, 1, "E713", text))


def _parsed(source: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def imported(tree: ast.Module | None, name: str, *, is_package: bool) -> Iterator[str]:
    """The modules that the source of a module may import, at any depth; a name in a module counts as one."""
    parts = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _unnamed(step: Step, found: Mapping[str, _File]) -> Iterator[Fault]:
    """The fault that the module of a step has no such class or function."""
    if reserved := [part for part in step.module.split(".") if keyword.iskeyword(part)]:
        text = f"step {step.name} names a module that no import can: {reserved[0]!r} is a word of Python."
        yield Fault(step.file, 1, 1, "E713", text)
        return
    wanted, what = (step.class_name, "class") if step.class_name else (step.function, "function")
    file = found.get(step.module)
    if file is None:
        if step.module in STEP_MODULES:
            text = f"{step.module} is what steps import, and no step itself, which step {step.name} says."
            yield Fault(step.file, 1, 1, "E713", text)
        return
    if file.tree is None:
        return
    names = _bound(file.tree)
    if wanted in names or "*" in names:
        if wanted.startswith("_"):
            text = f"{wanted} of step {step.name} begins with _, and so is the module's own. Rename it."
            yield Fault(file.filename, names[wanted], 1, "E713", text)
        return
    classes = [node for node in file.tree.body if isinstance(node, ast.ClassDef)]
    functions = [node for node in file.tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    others = [
        node.name for node in (classes if step.class_name else functions) if not node.name.startswith("_")
    ]
    text = f"there is no {what} {wanted}, which step {step.name} names"
    near = difflib.get_close_matches(wanted, others, 1)
    if near:
        yield Fault(file.filename, names[near[0]], 1, "E713", f"{text}; did you mean '{near[0]}'?")
    elif step.function and classes and not functions:
        runs = " and ".join(node.name for node in classes)
        yield Fault(file.filename, 1, 1, "E713", f"{text}. Name a class: the module has {runs}.")
    else:
        known = ", ".join(others) if others else "none"
        yield Fault(file.filename, 1, 1, "E713", f"{text}; it has {known}.")


def _bound(tree: ast.Module) -> dict[str, int]:
    """The names that a module binds outside of its functions and classes, with the lines; * for any."""
    found: dict[str, int] = {}
    waiting: list[ast.AST] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(node.name, node.lineno)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found.setdefault(alias.asname or alias.name.partition(".")[0], node.lineno)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, node.lineno)
        waiting += reversed(list(ast.iter_child_nodes(node)))
    return found


def recipe_of(file: Path, name: str = "", params: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of one step, the class or function of that name in a file; without a name the only one.

    Raises Faults E713 where the file cannot be imported, or does not say which step is meant.
    """
    root = root_of(file)
    parts = file.absolute().relative_to(root).with_suffix("").parts
    if file.suffix != ".py" or not all(part.isidentifier() for part in parts):
        raise Faults([Fault(str(file), 1, 1, "E713", f"{file.name} cannot be imported: it is no a/b/c.py.")])
    try:
        tree = _parsed(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as err:
        why = (err.strerror if isinstance(err, OSError) else None) or err
        raise Faults([Fault(str(file), 1, 1, "E713", f"the file cannot be read: {why}.")]) from None
    body = tree.body if tree else []
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not name and tree is not None:
        bases = {_last(base) for node in classes for base in node.bases}
        steps = [node.name for node in classes if _is_step(node) and node.name not in bases]
        steps = steps or [each for each in functions if each == "run"]
        if len(steps) != 1:
            has = f"it has {', '.join(steps)}; say which" if steps else "it has no class with a method run"
            raise Faults([Fault(str(file), 1, 1, "E713", f"which step is meant? {has}.")])
        name = steps[0]
    is_function = name in functions
    step = Step(
        1,
        file.stem if _NAME.match(file.stem) else "step",
        "python",
        module=".".join(parts),
        class_name="" if is_function else name,
        function=name if is_function else "",
        params=params or {},
    )
    return Recipe(step.name, file, root, {}, (step,), is_chain=True)


_NAME = re.compile(NAME)


def _is_step(node: ast.ClassDef) -> bool:
    """Whether a class derives from another one, or has `run` itself."""
    return bool(node.bases) or any(
        isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name == "run" for each in node.body
    )


def _last(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]
