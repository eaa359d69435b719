"""The methods by which a Runnable is called: how that is done, and what is told to one that has not got them.

A Runnable of mode batch has `process`, one of mode stream `process_stream`; the base class has both, and both
do nothing. So a method that is misspelt, or that is the other mode's, would take every message and do nothing
with it: such a Runnable is refused when it is loaded (E207). What is only perhaps a slip is a warning.

Only the guest calls this module, because only it may run user code, or look at what that made of a class. The
checks run none of it: methods are found in the namespaces of classes, and places in the syntax tree.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from types import FunctionType
from typing import Any
from warnings import catch_warnings, simplefilter

from processor.errors import Fault, Faults
from processor.model import Program
from processor.sandbox.capabilities import GuestRunnable
from processor.sandbox.facades import unmangled

MORE, END = object(), object()
_AT_A_TIME = 64
_UNCHANGING: frozenset[type] = frozenset({str, int, float, bool, type(None)})

# What calls which method: the modes of a route.
ENTRY_POINTS = {"batch": "process", "stream": "process_stream"}
HOOKS = ("init", *ENTRY_POINTS.values())

_PARAMETERS = {"init": "self", "process": "self, queries", "process_stream": "self, query"}

Finish = Callable[[Any], Any]


def init(instance: Any, finish: Finish | None) -> None:
    """Call `init`. What it returned, where it may be a coroutine, is for `finish` to run to its end."""
    made = instance.init()
    if finish is not None:
        finish(made)


def process(instance: Any, queries: list[Any], finish: Finish | None) -> Sequence[Any] | Iterator[Any]:
    """The documents that `process` returned, or what it makes them with."""
    result = instance.process(queries)
    if finish is not None:
        result = finish(result)
    if result is None or (isinstance(result, (dict, str, int, float)) and not result):
        return ()
    if type(result) is list or type(result) is tuple or isinstance(result, Iterator):
        return result
    return list(result) if isinstance(result, (list, tuple)) else (result,)


def draw(iterator: Iterator[Any], flat: list[Any]) -> Any:
    """The iterator's next item that may still change, and in `flat` copies of those before it that cannot.

    MORE where it has only drawn as many as it does at a time, END where there is nothing left.
    """
    for item in iterator:
        kind = type(item)
        if kind is dict and _UNCHANGING.issuperset(map(type, item.values())):
            flat.append(item.copy())
        elif kind in _UNCHANGING:
            flat.append(item)
        else:
            return item
        if len(flat) == _AT_A_TIME:
            return MORE
    return END


def process_stream(instance: Any, argument: Any, finish: Finish | None) -> Iterator[Any]:
    """The chunks that `process_stream` makes."""
    result = instance.process_stream(argument)
    if finish is not None:
        result = finish(result)
    if result is None:
        return iter(())
    if isinstance(result, (dict, str, int, float)):
        return iter((result,))
    return iter(result)


def close(iterator: Iterator[Any]) -> None:
    """End an iterator now, inside the run and its limits, and not whenever the collector finds it."""
    end = getattr(iterator, "close", None)
    if end is not None:
        end()


def first_parameter(cls: type, name: str) -> str:
    """What the method `name` of `cls` calls its first parameter; found without running any code of `cls`."""
    method: Any = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    for _level in range(10):  # of decorators
        inner = vars(method).get("__wrapped__") if type(method) is FunctionType else None
        if type(inner) is not FunctionType:
            break
        method = inner
    if type(method) is not FunctionType:
        return ""
    names = method.__code__.co_varnames[: method.__code__.co_argcount]
    return names[1] if len(names) > 1 else ""


def entry_points(cls: type) -> frozenset[str]:
    """Those of the methods that routes call which the user's class has; its bases count."""
    found = {name: _defined(cls, name) for name in ENTRY_POINTS.values()}
    return frozenset(name for name, method in found.items() if _is_method(method))


def check(cls: type, program: Program) -> None:
    """Raise Faults E207 unless the class has the method that the program's mode calls.

    A program without a mode may have any of them.
    """
    modes = [program.mode] if program.mode else list(ENTRY_POINTS)
    wanted = [ENTRY_POINTS[mode] for mode in modes]
    found = entry_points(cls)
    if not found.isdisjoint(wanted):
        return
    source = _Source(cls, program)
    if not source.assigns(wanted):  # with `self.process = ...` it is there when it is called
        raise Faults([_missing(source, program, wanted, found)])


def warnings(cls: type, program: Program) -> list[Fault]:
    """Methods that look as if Processor called them, which it does not."""
    suspects = {}
    for name in _own_methods(cls, program.filename):
        if name not in HOOKS and not unmangled(name).startswith("_"):
            near = difflib.get_close_matches(name, HOOKS, 1, 0.8)
            if near or name.startswith("on_"):
                meant = f"did you mean `{near[0]}`?" if near else f"it calls {', '.join(HOOKS)}."
                suspects[name] = f"Processor does not call `{name}` of {program.class_name}; {meant}"
    if not suspects:
        return []
    source = _Source(cls, program)
    # What the source calls itself is a helper.
    return [source.fault(name, text) for name, text in suspects.items() if not source.mentions(name)]


def _missing(source: _Source, program: Program, wanted: Sequence[str], found: Collection[str]) -> Fault:
    names = " and no ".join(f"`{name}`" for name in wanted)
    text = f"{program.class_name} has no {names}"
    text += f", which mode {program.mode} calls" if program.mode else ""
    write = " or ".join(f"'def {name}({_PARAMETERS[name]}):'" for name in wanted)
    for other in found:
        theirs = next(key for key, entry in ENTRY_POINTS.items() if entry == other)
        has = f"it has `{other}`{source.at(other)}, which mode {theirs} calls"
        return source.fault(other, f"{text}; {has}. Set 'mode: {theirs}', or write {write}.")
    if (stray := source.outside(wanted)) is not None:
        place = f"the one in line {stray.lineno} is not in the body of the class. Check how it is indented."
        return source.fault_at(stray, f"{text}; {place}")
    if (meant := source.nearest(wanted)) is not None:
        name, entry = meant
        return source.fault(name, f"{text}; did you mean `{entry}` for `{name}`{source.at(name)}?")
    return source.fault("", f"{text}. Write {write}.")


def _defined(cls: type, name: str) -> Any:
    """What the user's class, or a base of it, has under that name; None where it is only ours."""
    for base in cls.__mro__:
        if base is GuestRunnable:
            return None
        if name in vars(base):
            return vars(base)[name]
    return None


def _is_method(found: Any) -> bool:
    return found is not None and (callable(found) or hasattr(type(found), "__get__"))


def _own_methods(cls: type, filename: str) -> Iterator[str]:
    for base in cls.__mro__:
        if base is GuestRunnable:
            return
        for name, value in vars(base).items():
            if type(value) is FunctionType and value.__code__.co_filename == filename:
                yield name


_Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Source:
    """Where the methods of a class stand in its source."""

    def __init__(self, cls: type, program: Program) -> None:
        self._file = program.filename
        with catch_warnings():
            simplefilter("ignore")
            tree = ast.parse(program.source)
        self._nodes = list(ast.walk(tree))
        order = [base.__name__ for base in cls.__mro__]
        classes = [n for n in self._nodes if isinstance(n, ast.ClassDef) and n.name in order]
        classes.sort(key=lambda node: order.index(node.name))
        self._class = next(iter(classes), None)
        self._methods: dict[str, _Function] = {}
        for node in classes:
            self._methods = {method.name: method for method in _methods_in(node)} | self._methods

    def fault(self, method: str, text: str) -> Fault:
        """At the method, or at the class where it has none of that name."""
        return self.fault_at(self._methods.get(method, self._class), text)

    def fault_at(self, node: ast.stmt | None, text: str) -> Fault:
        line, column = (node.lineno, node.col_offset + 1) if node else (1, 1)
        return Fault(self._file, line, column, "E207", text)

    def at(self, method: str) -> str:
        """The line of the method, in parentheses."""
        node = self._methods.get(method)
        return f" (line {node.lineno})" if node else ""

    def assigns(self, names: Collection[str]) -> bool:
        """Whether an attribute of one of these names is set anywhere."""
        return any(
            isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in names
            for node in self._nodes
        )

    def mentions(self, name: str) -> bool:
        """Whether the source uses a method of that name, or has the name as a text."""
        return any(
            isinstance(node, (ast.Attribute, ast.Name, ast.Constant))
            and name == getattr(node, {ast.Attribute: "attr", ast.Name: "id"}.get(type(node), "value"))
            for node in self._nodes
        )

    def outside(self, names: Collection[str]) -> _Function | None:
        """A function that is named and written like one of these methods, but is in no class."""
        classes = (node for node in self._nodes if isinstance(node, ast.ClassDef))
        methods = {id(method) for node in classes for method in _methods_in(node)}
        for node in self._nodes:
            if not isinstance(node, _Function) or node.name not in names or id(node) in methods:
                continue
            if node.args.args and node.args.args[0].arg == "self":
                return node
        return None

    def nearest(self, wanted: Sequence[str]) -> tuple[str, str] | None:
        """A method that is none of ours, and what it was probably meant for: it is alike, or the only one."""
        own = [name for name in self._methods if name not in HOOKS and not name.startswith("_")]
        for entry in wanted:
            for name in difflib.get_close_matches(entry, own, 1, 0.6):
                return name, entry
        return (own[0], wanted[0]) if len(own) == 1 else None


def _methods_in(node: ast.AST) -> Iterator[_Function]:
    """The functions of a class's body, those behind an `if` or `try` included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler) and not isinstance(child, ast.ClassDef):
            yield from _methods_in(child)
