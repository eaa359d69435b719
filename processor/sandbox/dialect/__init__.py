"""The language of a Runnable: which Python it is, and how a source becomes code that keeps to it.

The guest compiles and loads through this module; `processor check` only compiles. There are three passes, and
each can be read alone: `_Desugar` rewrites ordinary Python into the subset that RestrictedPython knows,
`Transformer` refuses what nobody reviewed and puts a guard where the type of an object decides, and `verify`
looks at the finished bytecode without trusting the other two. What is reached at run time is `facades`.

Nothing here runs user code but `describe`, which asks an exception for its text. Every refusal names its
place and what to write instead, and all refusals of a source are reported at once. The dialect is a contract
and an early message; the boundary that holds hostile code is the jail.
"""

from __future__ import annotations
import __future__

import ast
import difflib
import random
import sys
import types
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar, cast

from RestrictedPython.transformer import RestrictingNodeTransformer

from processor.errors import Fault, Faults
from processor.model import Module, Program
from processor.runnable import Reject, Retry
from processor.sandbox import facades
from processor.sandbox.dialect import awaits
from processor.sandbox.dialect.annotations import Evaluated, below, evaluated, expression_in
from processor.sandbox.dialect.holding import Held, bound_by, held_in
from processor.sandbox.dialect.initializers import initializer
from processor.sandbox.dialect.mains import drop_imports, is_main
from processor.sandbox.dialect.own import Own
from processor.sandbox.dialect.refusals import (
    INSTEAD_OF_ATTRIBUTE,
    INSTEAD_OF_DEFINING,
    INSTEAD_OF_NAME,
    INSTEAD_OF_NODE,
    instead_of_module,
    rest_of_module,
)
from processor.sandbox.dialect.verifier import (
    CLASS_BODY_NAMES,
    FORBIDDEN,
    MODULE_NAMES,
    SELF_MATCHING,
    verify,
)
from processor.sandbox.facades import (
    FIELDS,
    attribute,
    bless,
    bring_modules,
    is_dunder,
    mangled,
    preload,
    unmangled,
)
from processor.sandbox.languages import ERROR_CLASSES, Runtime

__all__ = [
    "Own", "Reject", "Retry", "Runtime", "bless", "bring_modules", "compile_module", "compile_program",
    "describe", "drop_imports", "namespace", "preload", "reseed", "runnable_class", "undefined", "verify",
]  # fmt: skip

MAX_SOURCE_CHARS = 256 * 1024
MAX_DEPTH = 400
FRAMES_PER_LEVEL = 8  # of a visitor; 6 measured
MAX_FAULTS = 100
TEXT_CHARS = 2000
TRACEBACK_CHARS = 8000


_UNNAMED = Program("", "runnable")


def namespace(runtime: Runtime, httpx: object | None = None) -> dict[str, object]:
    """Fresh globals to run a compiled program in; `httpx` is what an import of it gives."""
    bless(runtime.base)
    for cls in ERROR_CLASSES.values():
        bless(cls)
    for kit in (runtime.nodes, runtime.steps):
        for cls in kit.bases if kit else ():
            bless(cls)
    extra, nodes = runtime.given(), runtime.nodes.names() if runtime.nodes else None
    explain = runtime.explain or (lambda exc: describe(exc, Program("", "")))
    return facades.make_namespace(runtime.log, runtime.requests, extra, explain, nodes, httpx)


def runnable_class(space: dict[str, object], program: Program = _UNNAMED) -> type:
    """The class that a program is for, with the base class among its bases. Raises Faults."""
    name = program.class_name
    cls = space.get(name)
    if not isinstance(cls, type) or not facades.is_user_class(cls):
        found = "is not defined" if cls is None else "is not a class of this source"
        raise Faults([Fault(program.filename, 1, 1, "E204", f"{name} {found}. {no_class(name)}")])
    if cast(object, cls.__new__) is not object.__new__:
        text = f"{name} derives from a built-in class. Keep such an object in an attribute instead."
        raise Faults([Fault(program.filename, 1, 1, "E204", text)])
    base = cast(dict[str, Any], space["__builtins__"])["BaseSecureRunnable"]
    mixed = space[name] = facades.mix(cls, base)  # rebound: type(self) is what the source calls it
    return mixed


def reseed() -> None:
    """Give the random functions of a Runnable a seed of their own; for a process that was just forked."""
    random.seed()


_Node = TypeVar("_Node", bound=ast.AST)


def no_class(name: str) -> str:
    """What to write where the class that a program is for is not there."""
    return f"Write 'class {name}(BaseSecureRunnable):' with a method process(self, queries)."


# Compiling.


def compile_program(program: Program) -> types.CodeType:
    """The program as code that keeps to the dialect. Raises Faults with everything that is wrong with it.

    Its modules are not among it.
    """
    return _compiled(program, None)


def compile_module(program: Program, module: Module) -> types.CodeType:
    """A module of the program's, likewise."""
    return _compiled(replace(program, source=module.source, filename=module.filename), module)


def _compiled(program: Program, module: Module | None) -> types.CodeType:
    faults = _Collector(program)
    own = Own.of(program, module)
    tree = _parse(program, faults)
    faults.stop_if_any()
    _check_depth(tree, faults)
    faults.stop_if_any()
    bound = _bound_names(tree)
    has_slices = _knows_extended_slices(tree)
    if awaits.is_async(tree):
        _compile(program.source, program, faults)  # once it is plain, nothing finds an await out of place
        with _room_for_depth():
            tree = awaits.without_waiting(tree, bound, faults.add)
        _check_depth(tree, faults)  # calls that are made later are two levels deeper
    drop_imports(tree, lambda name, inner: _is_here(name, inner, own))
    if module is None and not program.has_kinds and program.class_name not in bound:
        faults.add(*undefined(tree, program.class_name))
    with _room_for_depth():
        words = ast.get_docstring(tree, clean=False)
        tree = _Desugar(faults, own.names).visit(tree)
        tree = Transformer(faults, bound, words, has_slices, own).visit(tree)
        # A source that is refused is compiled as it stands, for the mistakes that only the compiler finds.
        code = _compile(program.source if faults.any else ast.fix_missing_locations(tree), program, faults)
    faults.stop_if_any()
    assert code is not None
    for line, text in verify(code, own.names):
        faults.add_at(line, 1, "E202", f"{text}; the verifier refuses the compiled code.")
    faults.stop_if_any()
    return code


def _is_here(module: str, name: str, own: Own) -> bool:
    """Whether a source may import a module, and the name from it."""
    if module in own.names:
        return True
    names = facades.names_in(module)
    return facades.importable(module) and (not name or not names or name in names)


def undefined(tree: ast.AST, wanted: str) -> tuple[ast.AST | None, str, str]:
    """The place, code and text of the fault that a source binds no such name."""
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    near = difflib.get_close_matches(wanted.lower(), map(str.lower, classes), 1, 0.7)
    for name, node in sorted(classes.items(), key=lambda item: item[0].lower() not in near):
        methods = {getattr(statement, "name", "") for statement in node.body}
        if name.lower() in near or methods & {"process", "process_stream"}:
            meant = f"`{wanted}` for class `{name}`" if wanted == "Runnable" else f"`{name}`"
            return node, "E204", f"{wanted} is not defined; did you mean {meant}?"
    return None, "E204", f"{wanted} is not defined. {no_class(wanted)}"


@contextmanager
def _room_for_depth() -> Iterator[None]:
    """A recursion limit under which MAX_DEPTH levels of source can be walked from wherever we are called."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + MAX_DEPTH * FRAMES_PER_LEVEL)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class _Collector:
    """The faults of one source."""

    def __init__(self, program: Program) -> None:
        self._file = program.filename
        self._lines = program.source.splitlines()
        self._found: dict[tuple[int, int, str], Fault] = {}

    @property
    def any(self) -> bool:
        return bool(self._found)

    def add(self, node: ast.AST | None, code: str, text: str) -> None:
        line = getattr(node, "lineno", 1)
        offset = getattr(node, "col_offset", 0)
        source = self._lines[line - 1] if 0 < line <= len(self._lines) else ""
        column = len(source.encode("utf-8", "replace")[:offset].decode("utf-8", "replace")) + 1
        self.add_at(line, column, code, text)

    def add_at(self, line: int, column: int, code: str, text: str) -> None:
        if len(self._found) < MAX_FAULTS:
            self._found.setdefault((line, column, text), Fault(self._file, line, column, code, text))

    def has_line(self, line: int) -> bool:
        return any(line == place[0] for place in self._found)

    def stop_if_any(self) -> None:
        if self._found:
            raise Faults([self._found[place] for place in sorted(self._found)])


def _parse(program: Program, faults: _Collector) -> ast.Module:
    if len(program.source) > MAX_SOURCE_CHARS:
        faults.add(
            None,
            "E205",
            f"the source has {len(program.source)} characters, more than {MAX_SOURCE_CHARS}. "
            "Move data out of it, into messages or the context.",
        )
        return ast.Module([], [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(program.source, program.filename)
        except (RecursionError, MemoryError):
            faults.add(None, "E205", TOO_DEEP)
        except SyntaxError as err:
            _add_syntax_error(err, faults)
        except ValueError as err:  # a null byte or a lone surrogate
            faults.add(None, "E201", f"{err}.")
    return ast.Module([], [])


TOO_DEEP = "the source is too deeply nested. Split the expression or the function."


def _add_syntax_error(err: SyntaxError, faults: _Collector) -> None:
    text = str(err.msg)
    if "too many" in text and "nested" in text:
        faults.add_at(err.lineno or 1, err.offset or 1, "E205", TOO_DEEP)
        return
    if not faults.has_line(err.lineno or 1):  # what was refused there may be the very mistake
        faults.add_at(err.lineno or 1, max(err.offset or 1, 1), "E201", f"{text}.")


def _compile(source: str | ast.AST, program: Program, faults: _Collector) -> types.CodeType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return compile(source, program.filename, "exec", dont_inherit=True)  # type: ignore[arg-type]
        except (RecursionError, MemoryError):
            faults.add(None, "E205", TOO_DEEP)
        except SyntaxError as err:
            _add_syntax_error(err, faults)
        except ValueError as err:
            faults.add(None, "E201", f"{err}.")
    return None


def _check_depth(tree: ast.AST, faults: _Collector) -> None:
    level = below(tree, MAX_DEPTH)
    if level:
        faults.add(next((node for node in level if hasattr(node, "lineno")), None), "E205", TOO_DEEP)


def _bound_names(tree: ast.AST) -> set[str]:
    """Every name that the source binds in any scope."""
    names = (node.arg if isinstance(node, ast.arg) else bound_by(node) for node in ast.walk(tree))
    return {name for name in names if name is not None}


def _knows_extended_slices(tree: ast.AST) -> bool:
    """Whether a slice with a step can come up as a value: where it is an index, a list has to be guarded."""
    return any(
        (isinstance(node, ast.Slice) and node.step is not None)
        or (isinstance(node, ast.Name) and node.id == "slice")
        for node in ast.walk(tree)
    )


class _Desugar(ast.NodeTransformer):
    """Rewrites what RestrictedPython does not know into what it does, and marks private attributes.

    Annotations go (they would run code that nothing needs), but a class keeps the list of what it annotated
    for `dataclass` and `NamedTuple`.
    """

    def __init__(self, faults: _Collector, own: Collection[str]) -> None:
        self._faults = faults
        self._own = own
        self._classes: list[str] = []
        self._first_parameter: list[str] = []
        self._annotations_are_text = False

    def _private(self, name: str) -> str:
        """`name` as an attribute: what CPython makes of it in this class, then out of everyone's reach."""
        return attribute(mangled(name, self._classes[-1] if self._classes else ""))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self._private(node.attr)
        return self.generic_visit(node)

    def visit_MatchClass(self, node: ast.MatchClass) -> ast.AST:
        node.kwd_attrs = [self._private(name) for name in node.kwd_attrs]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        _drop_type_params(node)
        kept = _dispatched_on(node)
        parameters = [*node.args.posonlyargs, *node.args.args]
        self._first_parameter.append(parameters[0].arg if parameters else "")
        self.generic_visit(node)
        self._first_parameter.pop()
        if kept is not None:
            kept[0].annotation = self.visit(kept[1])
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if getattr(node, "type_params", []):
            node.body.append(_subscriptable(node))
        _drop_type_params(node)
        for part in ("bases", "keywords", "decorator_list"):
            setattr(node, part, [self.visit(child) for child in getattr(node, part)])
        fields = [
            (statement.target.id, _field_kind(statement.annotation), self._field_type(statement.annotation))
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        ]
        made = evaluated(node, [type_ for *_, type_ in fields])
        written = initializer(node, [(name, kind) for name, kind, _ in fields])
        if written is not None:
            node.body.append(written)
        self._classes.append(node.name)
        node.body = [self.visit(statement) for statement in node.body]
        if fields:
            node.body.append(_fields_statement(node, fields))
            if made is not None:
                node.body.append(made)
        self._classes.pop()
        return node

    def visit_If(self, node: ast.If) -> Any:
        if is_main(node):
            return [self.visit(child) for child in node.orelse] or ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> ast.AST:
        if any(_catches_import_error(handler) for handler in node.handlers):
            node.body = [_without_missing(statement, self._own) for statement in node.body]
        return self.generic_visit(node)

    def _field_type(self, annotation: ast.expr) -> ast.expr:
        """What the annotation evaluates to: a plain class, or the text."""
        if (
            isinstance(annotation, ast.Name)
            and annotation.id in _PLAIN_TYPES
            and not self._annotations_are_text
        ):
            return ast.Name(annotation.id, ast.Load())
        is_text = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
        return annotation if is_text else ast.Constant(ast.unparse(annotation))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        assign = ast.copy_location(ast.Assign([node.target], node.value), node)
        return self.generic_visit(assign)

    def visit_TypeAlias(self, node: Any) -> ast.AST:
        value = ast.copy_location(ast.Name("~any", ast.Load()), node)
        return ast.copy_location(ast.Assign([node.name], value), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == "__future__" and all(n.name in __future__.all_feature_names for n in node.names):
            self._annotations_are_text |= any(n.name == "annotations" for n in node.names)
            return ast.copy_location(ast.Pass(), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node:
            case ast.Call(
                func=ast.Name(id="super"), args=[ast.Name(id=cls), ast.Name(id=first)], keywords=[]
            ):
                # super(C, self) in a method of C is what super() means.
                if self._classes and self._first_parameter and (cls, first) == (
                    self._classes[-1], self._first_parameter[-1]
                ):  # fmt: skip
                    node.args = []
            case _:
                pass
        return self.generic_visit(node)


def _dispatched_on(node: ast.FunctionDef) -> tuple[ast.arg, ast.expr] | None:
    """The parameter whose annotation `@function.register` reads, as singledispatch does; and what it is."""
    if not any(isinstance(item, ast.Attribute) and item.attr == "register" for item in node.decorator_list):
        return None
    for parameter in (*node.args.posonlyargs, *node.args.args):
        match parameter.annotation:
            case None:
                continue
            case ast.Constant(value=str(text)) as annotation:
                parsed = expression_in(text)
                return None if parsed is None else (parameter, _located_all(parsed, annotation))
            case annotation:
                return parameter, annotation
    return None


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        isinstance(kind, ast.Name) and kind.id in ("ImportError", "ModuleNotFoundError") for kind in kinds
    )


def _without_missing(statement: ast.stmt, own: Collection[str]) -> ast.stmt:
    """`statement`, or, where it imports a module that is not there, what the import would raise."""
    match statement:
        case ast.Import(names=[ast.alias(name=module)]) | ast.ImportFrom(module=str(module), level=0):
            if module.partition(".")[0] in _STANDARD or facades.importable(module) or module in own:
                return statement  # what Python always has is refused with a word on what to do instead
            error = ast.Call(
                ast.Name("ModuleNotFoundError", ast.Load()),
                [ast.Constant(f"No module named {module!r} in a Runnable")],
                [],
            )
            raised = ast.copy_location(ast.Raise(error, None), statement)
            return ast.fix_missing_locations(raised)
        case _:
            return statement


_STANDARD = sys.stdlib_module_names | {"processor"}


_PLAIN_TYPES = frozenset(("bool", "bytes", "dict", "float", "int", "list", "object", "set", "str", "tuple"))


def _drop_type_params(node: Any) -> None:
    if hasattr(node, "type_params"):
        node.type_params = []


def _field_kind(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        head = annotation.value.partition("[")[0]
    else:
        while isinstance(annotation, ast.Subscript):
            annotation = annotation.value
        head = ast.unparse(annotation)
    return {"ClassVar": "class", "KW_ONLY": "kw_only", "InitVar": "initvar"}.get(
        head.rpartition(".")[2].strip(), "field"
    )


def _subscriptable(node: ast.ClassDef) -> ast.stmt:
    """What has a class with type parameters take them, to no effect."""
    statement = ast.parse("__class_getitem__ = classmethod(lambda cls, _: cls)").body[0]
    return _located_all(statement, node)


def _located_all(made: _Node, at: ast.AST) -> _Node:
    for part in ast.walk(made):
        ast.copy_location(part, at)
    return made


def _fields_statement(node: ast.ClassDef, fields: list[tuple[str, str, ast.expr]]) -> ast.stmt:
    rows: list[ast.expr] = [
        ast.Tuple([ast.Constant(mangled(name, node.name)), ast.Constant(kind), type_], ast.Load())
        for name, kind, type_ in fields
    ]
    statement = _Fields([ast.Name(FIELDS, ast.Store())], ast.Tuple(rows, ast.Load()))
    ast.copy_location(statement, node)
    return ast.fix_missing_locations(statement)


class _Fields(ast.Assign):
    """The one assignment that is ours and not the user's."""


class Transformer(RestrictingNodeTransformer):
    """What the dialect allows, by name and by construct; unknown nodes are refused by RestrictedPython."""

    def __init__(
        self, faults: _Collector, bound: set[str], words: str | None, has_slices: bool, own: Own
    ) -> None:
        super().__init__()
        self._own = own
        self._has_slices = has_slices
        self._words = words  # of the source as a whole, its docstring
        self._faults = faults
        self._bound = bound
        self._scopes: list[str] = ["module"]
        self._held: dict[str, Held] = {}

    # Refusals.

    def _refuse(self, node: ast.AST, what: str, instead: str) -> None:
        self._faults.add(node, "E202", f"{what} is not allowed. {instead}")

    def error(self, node: ast.AST, info: str) -> None:
        self._faults.add(node, "E202", unmangled(info))

    def not_allowed(self, node: ast.AST) -> None:
        what, instead = INSTEAD_OF_NODE.get(
            type(node).__name__, (f"'{type(node).__name__}'", "It is not part of the language of a Runnable.")
        )
        self._refuse(node, what, instead)

    # Names.

    def check_name(self, node: Any, name: str | None, allow_magic_methods: bool = False) -> None:
        if name is None:
            return
        if is_dunder(name):
            if self._scopes[-1] == "class" and name in CLASS_BODY_NAMES:
                return
            if self._scopes[-1] == "module" and name in MODULE_NAMES:
                return
            if self._scopes[-1] == "function" and name in facades.METHODS:
                return  # a method that a class decorator makes
            instead = INSTEAD_OF_DEFINING.get(name, "Leave out the underscores at both ends.")
            self._refuse(node, f"{name!r} as a name", instead)
        elif name == "super":
            self._refuse(node, "'super' as a name of your own", "Rename it.")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        name = node.id
        if name == "~any":
            return node
        if not isinstance(node.ctx, ast.Load):
            self.check_name(node, name)
            return node
        if name == "__name__":
            return ast.copy_location(ast.Constant(self._own.name), node)
        if name == "__doc__" and self._scopes[-1] != "class":
            return ast.copy_location(ast.Constant(self._words), node)
        if name == "super":
            self._refuse(node, "'super' without a call and a name", "Write super().method(...).")
        elif is_dunder(name):
            is_method = self._scopes[-1] == "function" and name in facades.METHODS and name in self._bound
            in_class = self._scopes[-1] == "class" and name in CLASS_BODY_NAMES
            if not (is_method or in_class or name in MODULE_NAMES):
                self._refuse(node, f"{name!r}", INSTEAD_OF_NAME.get(name, "Use a name of your own."))
        elif name in INSTEAD_OF_NAME and name not in self._bound:
            self._refuse(node, f"{name!r}", INSTEAD_OF_NAME[name])
        return node

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> ast.AST:
        for name in node.names:
            if is_dunder(name) or name == "super":
                self._refuse(node, f"{name!r} as a name", "Rename it.")
        return node

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        return self.visit_Global(node)

    # Attributes.

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        name = node.attr
        if name in FORBIDDEN:
            self._refuse(
                node, f"the attribute {name!r}", "It belongs to the interpreter; use a name of your own."
            )
        if _is_super_call(node.value):
            return self._after_super(node)
        if name == "__setattr__" and isinstance(node.value, ast.Name) and node.value.id == "object":
            return ast.copy_location(ast.Name("~put", ast.Load()), node)
        node.value = self.visit(node.value)
        if not isinstance(node.ctx, ast.Load):
            if is_dunder(name) and (name not in facades.METHODS or isinstance(node.ctx, ast.Del)):
                self._refuse(
                    node, f"setting {name!r}", INSTEAD_OF_ATTRIBUTE.get(name, "Use a name of your own.")
                )
            held = self._held.get(node.value.id) if isinstance(node.value, ast.Name) else None
            place = node.value
            node.value = _call("~write", place, at=place)
            if held is not None:
                node.value = _located(held.store_on(node.value), place)
            return node
        if name in facades.DEPENDENT:
            return _call("~read", node.value, ast.Constant(name), at=node)
        if is_dunder(name):
            instead = INSTEAD_OF_ATTRIBUTE.get(name, "Use the operator or function that stands for it.")
            self._refuse(node, f"the attribute {name!r}", instead)
        return node

    def _after_super(self, node: ast.Attribute) -> ast.AST:
        if not isinstance(node.ctx, ast.Load):
            self._refuse(node, "setting an attribute of super()", "Set it on self.")
        elif is_dunder(node.attr):
            if node.attr not in facades.METHODS and node.attr not in facades.HOOKS:
                instead = INSTEAD_OF_ATTRIBUTE.get(node.attr, "Leave it out.")
                self._refuse(node, f"super().{node.attr}", instead)
            return _call("~super", node.value, ast.Constant(node.attr), at=node)
        elif node.attr in facades.OF_DICT:
            return _call("~super", node.value, ast.Constant(node.attr), at=node)
        elif node.attr in facades.DEPENDENT and node.attr not in facades.OF_METACLASS:
            self._refuse(node, f"super().{node.attr}", f"Write self.{node.attr}.")
        return node

    # What carries no policy runs as it is.

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if not isinstance(node.ctx, ast.Load):
            node.value = self._written_dict(node.value)
        self._contents(node)
        if isinstance(node.ctx, ast.Store) and self._has_slices:
            node.value = _call("~items", node.value, at=node.value)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.check_name(node, node.name)
        self._contents(node)
        named = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        if node.type is not None and not all(self._is_plain_exception(kind) for kind in named):
            node.type = _call("~caught", node.type, at=node.type)
        return node

    def _is_plain_exception(self, kind: ast.expr | None) -> bool:
        """Whether it names a class of exceptions that stands for itself."""
        if not isinstance(kind, ast.Name) or kind.id in self._bound:
            return False
        return kind.id in facades.EXCEPTIONS and kind.id != "UnicodeDecodeError"

    def _written_dict(self, node: ast.expr) -> ast.expr:
        """`node`, which something is done to: where it is `ob.__dict__`, what writes through to `ob`."""
        match node:
            case ast.Attribute(value=value, attr="__dict__") if not _is_super_call(value):
                return _call("~read", value, ast.Constant(facades.WRITTEN_DICT), at=node)
            case ast.Call(func=ast.Name(id="vars"), args=[value], keywords=[]) if "vars" not in self._bound:
                return _call("~read", value, ast.Constant(facades.WRITTEN_DICT), at=node)
            case _:
                return node

    def guard_iter(self, node: Any) -> ast.AST:
        return self._contents(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        return node if isinstance(node, _Fields) else self._contents(node)

    visit__Fields = visit_Assign

    def visit_Evaluated(self, node: Evaluated) -> ast.AST:
        node.value = self.visit(node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self._contents(node)
        if isinstance(node.op, ast.BitOr):
            node.value = _call("~merged", node.value, at=node.value)
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        return self._contents(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Attribute) and node.func.attr in (
            "update",
            "pop",
            "setdefault",
            "clear",
        ):
            node.func.value = self._written_dict(node.func.value)
        return self._contents(node)

    def _contents(self, node: ast.AST) -> ast.AST:
        return self.node_contents_visit(node)

    # Functions and classes.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.check_name(node, node.name)
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        decorators, node.decorator_list = node.decorator_list, []
        node.args = self.visit(node.args)
        self._scopes.append("function")
        self.check_function_argument_names(node)
        outer, self._held = self._held, held_in(node)
        node.body = [self.visit(statement) for statement in node.body]
        begin = [_located(line, node) for held in self._held.values() for line in held.prologue()]
        at = 1 if ast.get_docstring(node, clean=False) is not None else 0
        node.body[at:at] = begin
        self._held = outer
        self._scopes.pop()
        node.decorator_list = decorators
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self._scopes.append("function")
        self.check_function_argument_names(node)
        self._scopes.pop()
        return self._inner_scope(node)

    def _inner_scope(self, node: ast.AST) -> ast.AST:
        outer, self._held = self._held, {}
        visited = self._contents(node)
        self._held = outer
        return visited

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _inner_scope

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.check_name(node, node.name)
        options = []
        for keyword in node.keywords:
            if keyword.arg == "metaclass" and ast.unparse(keyword.value).rpartition(".")[2] == "ABCMeta":
                node.bases.append(keyword.value)  # stands for ABC among the bases
            elif keyword.arg in (None, "metaclass"):
                what = f"the class argument {keyword.arg!r}" if keyword.arg else "'**' in a class statement"
                self._refuse(keyword, what, "Use inheritance or a class decorator.")
            else:
                options.append(keyword)
        for part in ("bases", "decorator_list"):
            setattr(node, part, [self.visit(child) for child in getattr(node, part)])
        options = [self.visit(keyword) for keyword in options]
        self._scopes.append("class")
        outer, self._held = self._held, {}
        node.body = [self.visit(statement) for statement in node.body]
        self._held = outer
        self._scopes.pop()
        metaclass = ast.keyword("metaclass", ast.Name("~class", ast.Load()))
        node.keywords = [metaclass, *options]
        return ast.fix_missing_locations(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._contents(node)

    # Imports.

    def check_import_names(self, node: Any) -> ast.AST:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._importable(node, alias.name)
                self.check_name(node, alias.asname)
            return cast(ast.AST, node)
        if node.level:
            self._faults.add(node, *self._own.instead_of_relative(node))
            return cast(ast.AST, node)
        if not self._importable(node, node.module):
            return cast(ast.AST, node)
        for alias in node.names:
            self._importable_name(node, alias)
        return cast(ast.AST, node)

    def _importable(self, node: ast.AST, module: str) -> bool:
        if facades.importable(module) or module in self._own.names:
            return True
        instead = self._own.nearest(module) or instead_of_module(module)
        if not instead:
            known = ", ".join(sorted({*facades.MODULES, *facades.RUNTIME_MODULES}))
            instead = f"Importable here: {known}."
        self._faults.add(node, "E203", f"'import {module}' is not allowed. {instead}")
        return False

    def _importable_name(self, node: ast.ImportFrom, alias: ast.alias) -> None:
        self.check_name(node, alias.asname or (None if alias.name == "*" else alias.name))
        module = str(node.module)
        if alias.name == "*":
            text = f"'from {module} import *' is not allowed. Name what you use, or write 'import {module}'."
            self._faults.add(node, "E203", text)
            return
        names = facades.names_in(module)
        if alias.name.startswith("_") and not is_dunder(alias.name) and module in self._own.names:
            text = (
                f"'from {module} import {alias.name}' is not allowed: what begins with _ is the module's own."
            )
            self._faults.add(node, "E203", f"{text} Rename it.")
        if names and alias.name not in names:
            known = ", ".join(sorted(names))
            text = f"'from {module} import {alias.name}' is not allowed. {module} has here: {known}."
            text += rest_of_module(module)
            self._faults.add(node, "E203", text)

    # match

    def visit_Match(self, node: ast.Match) -> ast.AST:
        patterns = (pattern for case in node.cases for pattern in ast.walk(case.pattern))
        classes = {
            ast.unparse(pattern.cls): pattern.cls
            for pattern in patterns
            if isinstance(pattern, ast.MatchClass)
            and pattern.patterns
            and not self._matches_itself(pattern.cls)
        }
        self._contents(node)
        if classes:
            node.subject = _call("~match", node.subject, *classes.values(), at=node.subject)
        return node

    def _matches_itself(self, cls: ast.expr) -> bool:
        return isinstance(cls, ast.Name) and cls.id in SELF_MATCHING and cls.id not in self._bound

    def visit_match_case(self, node: ast.match_case) -> ast.AST:
        return self._contents(node)

    def visit_MatchSequence(self, node: ast.MatchSequence) -> ast.AST:
        return self._contents(node)

    def visit_MatchOr(self, node: ast.MatchOr) -> ast.AST:
        return self._contents(node)

    def visit_MatchSingleton(self, node: ast.MatchSingleton) -> ast.AST:
        return node

    def visit_MatchValue(self, node: ast.MatchValue) -> ast.AST:
        self._check_pattern_path(node.value)
        return node

    def visit_MatchAs(self, node: ast.MatchAs) -> ast.AST:
        self.check_name(node, node.name)
        return self._contents(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> ast.AST:
        self.check_name(node, node.name)
        return node

    def visit_MatchMapping(self, node: ast.MatchMapping) -> ast.AST:
        self.check_name(node, node.rest)
        for key in node.keys:
            self._check_pattern_path(key)
        node.patterns = [self.visit(pattern) for pattern in node.patterns]
        return node

    def visit_MatchClass(self, node: ast.MatchClass) -> ast.AST:
        self._check_pattern_path(node.cls)
        for name in node.kwd_attrs:
            if is_dunder(name) or name in FORBIDDEN or name in facades.DEPENDENT:
                self._refuse(node, f"{unmangled(name)!r} in a class pattern", "Test it in the case's 'if'.")
        node.patterns = [self.visit(pattern) for pattern in node.patterns]
        node.kwd_patterns = [self.visit(pattern) for pattern in node.kwd_patterns]
        return node

    def _check_pattern_path(self, node: ast.AST) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute):
                name = part.attr
                if is_dunder(name) or name in FORBIDDEN or name in facades.DEPENDENT:
                    self._refuse(part, f"{unmangled(name)!r} in a pattern", "Test it in the case's 'if'.")
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                self.visit_Name(part)


def _is_super_call(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="super"), args=[], keywords=[]):
            return True
        case _:
            return False


def _located(made: _Node, at: ast.AST) -> _Node:
    """`made`, all of it in the place of `at` as far as it has none."""
    for part in ast.walk(made):
        if not hasattr(part, "lineno") and "lineno" in part._attributes:
            ast.copy_location(part, at)
    return made


def _call(name: str, *args: ast.expr, at: ast.AST) -> ast.Call:
    call = ast.Call(ast.Name(name, ast.Load()), list(args), [])
    for node in (call, call.func):
        ast.copy_location(node, at)
    return ast.fix_missing_locations(call)


# Explaining.


def describe(
    exc: BaseException, program: Program, unwatched: Callable[[], AbstractContextManager[None]] = nullcontext
) -> tuple[str, str]:
    """The exception as one line, and a traceback that shows the user's own frames with their source.

    Safe on an exception whose class is hostile; both texts are bounded. `unwatched` is where frames are
    looked at, which is nothing that user code might do; exceptions are asked for their texts outside of it.
    """

    def frames(exc: BaseException) -> str:
        with unwatched():
            return _frames(exc, program)

    text = _line_of(exc)
    parts = [frames(exc), text]
    seen = {id(exc)}
    cause = exc
    for _ in range(5):
        sentence, earlier = _earlier(cause)
        if earlier is None or id(earlier) in seen:
            break
        seen.add(id(earlier))
        parts = [frames(earlier), _line_of(earlier), "", sentence, "", *parts]
        cause = earlier
    trace = "\n".join(part for part in parts)
    if len(trace) > TRACEBACK_CHARS:
        trace = "…" + trace[1 - TRACEBACK_CHARS :]
    return text, trace


def _line_of(exc: BaseException) -> str:
    name = unmangled(str(type.__dict__["__name__"].__get__(type(exc))))
    try:
        words = facades.plain_text(exc)
    except BaseException as err:  # the text is made by user code, which may do anything
        words = f"<its text could not be made: {type.__dict__['__name__'].__get__(type(err))}>"
    text = unmangled(f"{name}: {words}" if words else name)
    return text if len(text) <= TEXT_CHARS else text[: TEXT_CHARS - 1] + "…"


def _earlier(exc: BaseException) -> tuple[str, BaseException | None]:
    cause = BaseException.__dict__["__cause__"].__get__(exc)
    if cause is not None:
        return "The above exception was the direct cause of the following exception:", cause
    if BaseException.__dict__["__suppress_context__"].__get__(exc):
        return "", None
    context = BaseException.__dict__["__context__"].__get__(exc)
    return "During handling of the above exception, another exception occurred:", context


_FRAMES_AT_EITHER_END = 8


def _frames(exc: BaseException, program: Program) -> str:
    sources = program.sources
    lines: dict[str, list[str]] = {}
    shown: list[str] = []
    trace = BaseException.__dict__["__traceback__"].__get__(exc)
    while trace is not None:
        code = trace.tb_frame.f_code
        file = code.co_filename
        if file in sources:
            found = lines.setdefault(file, [])
            found += () if found else sources[file].splitlines()
            number = trace.tb_lineno or 0
            name = "__init__" if code.co_name == facades.INIT else code.co_name
            entry = f'  File "{file}", line {number}, in {name}'
            source = found[number - 1].strip() if 0 < number <= len(found) else ""
            shown.append(f"{entry}\n    {source[:200]}" if source else entry)
        trace = trace.tb_next
    if len(shown) > 2 * _FRAMES_AT_EITHER_END:
        left_out = len(shown) - 2 * _FRAMES_AT_EITHER_END
        first, last = shown[:_FRAMES_AT_EITHER_END], shown[-_FRAMES_AT_EITHER_END:]
        shown = [*first, f"  [{left_out} more frames]", *last]
    return "\n".join(["Traceback (most recent call last):", *shown])
