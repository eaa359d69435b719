"""A user's own modules while a Runnable runs: each is run once, when it is first imported, as in Python.

What an import gives is a module object that holds nothing itself: it looks names up among those of the
source, public ones only. So neither the guards and built-in functions beside them nor a real module can be
reached from it, and its attributes cannot be set. A source runs in globals of its own, which begin as a
Runnable's do.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from processor.sandbox.facades.guards import PRIVATE, unmangled

_PRIVATE = ": what begins with _ is the module's own"
Run = Callable[[types.CodeType, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class _Module:
    """A module that was imported, or is being imported."""

    space: dict[str, Any]
    facade: types.ModuleType
    clean: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether it has a name that others may read."""
        return _is_public(name) and name in self.space

    def defines(self, name: str) -> bool:
        """Whether that is its own, and not one that is there without an import."""
        return self.has(name) and self.space[name] is not self.clean.get(name)


def bring_modules(
    space: dict[str, Any],
    codes: Mapping[str, types.CodeType | None],
    run: Run,
    given: Mapping[str, Mapping[str, Any]],
) -> None:
    """Let sources that run in `space`, and those of `codes`, import the modules of `codes` by name.

    `space` is as make_namespace made it; a package without a source of its own has None for its code. `run`
    executes a code in its globals. Those that are `given` have names of ours. The names were checked: none is
    that of a module that Python has.
    """
    builtins = space["__builtins__"]
    builtins["__import__"] = _importer(dict(space), codes, builtins["__import__"], run, given)


def _importer(
    clean: Mapping[str, Any],
    codes: Mapping[str, types.CodeType | None],
    other: Callable[..., Any],
    run: Run,
    given: Mapping[str, Mapping[str, Any]],
) -> Callable[..., Any]:
    loaded: dict[str, _Module] = {}
    running: set[str] = set()

    def load(name: str) -> _Module:
        above, _, last = name.rpartition(".")
        parent = load(above) if above else None
        found = loaded.get(name)
        if found is not None:
            return found
        found = loaded[name] = _made(name, clean, loaded)
        found.space.update(given.get(name, {}))
        code = codes[name]
        running.add(name)
        try:
            if code is not None:
                run(code, found.space)
            running.discard(name)
        finally:
            if name in running:
                running.discard(name)
                del loaded[name]  # the next import tries again
        words = found.space.get("__doc__")
        vars(found.facade)["__doc__"] = words if type(words) is str else None
        if parent is not None:
            parent.space[last] = found.facade
        return found

    def insist(name: str, wanted: str) -> None:
        module, inner = loaded[name], f"{name}.{wanted}"
        if inner in codes and _is_public(wanted) and not module.defines(wanted):
            load(inner)
        elif not module.has(wanted):
            # Not left to the interpreter, which would go on to look among the real modules.
            raise ImportError(f"cannot import name {wanted!r} from {name!r}{why(name, wanted)}")

    def why(name: str, wanted: str) -> str:
        if not _is_public(wanted):
            return _PRIVATE
        if name in running:
            return ", which has run in part (most likely the modules import each other in a circle)"
        return ""

    def __import__(name: str, _g: Any = None, _l: Any = None, names: Any = (), level: int = 0) -> Any:
        if type(names) is list or type(name) is not str or level or name not in codes:
            return other(name, _g, _l, names, level)
        module = load(name)
        for wanted in names or ():
            insist(name, wanted)
        return module.facade if names else loaded[name.partition(".")[0]].facade

    return __import__


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith(("_", PRIVATE))


def _made(name: str, clean: Mapping[str, Any], loaded: Mapping[str, _Module]) -> _Module:
    # Named unlike any real module: the interpreter looks for `from x import y` among those, too.
    facade = types.ModuleType(f"runnable.{name}")
    module = _Module({**clean, "__name__": name}, facade, clean)

    def get(attribute: str) -> Any:
        inner = loaded.get(f"{name}.{attribute}")
        if inner is not None and not module.defines(attribute):
            return inner.facade  # while it runs, which an import in a circle finds
        if module.has(attribute):
            return module.space[attribute]
        return refuse(unmangled(attribute))

    def refuse(attribute: str) -> NoReturn:
        own = _PRIVATE if attribute.startswith("_") else ""
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}{own}")

    vars(facade)["__getattr__"] = get
    vars(facade)["__dir__"] = lambda: sorted(filter(module.defines, module.space))
    return module
