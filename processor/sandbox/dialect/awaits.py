"""`async` and `await` in the plain forms that they stand for here, before anything else looks at a source.

A call to the outside waits by itself, so what an `async def` does can be done where it is called: no
coroutine ever exists, and the passes that follow know nothing of any. The source was compiled as it stands
first, so that what Python refuses (an `await` outside of a function) is refused in Python's words.

`asyncio.wait_for(call(), 5)` must know of its bound before the call is made, and `asyncio.gather` may have to
go on after one that raised: what is written as a call among their arguments is handed to them as a function
that makes it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator
from typing import Any

from processor.sandbox.facades import LATER

Refuse = Callable[[ast.AST, str, str], None]

_PLAIN = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
_PLAIN_BUILTINS = {"aiter": "iter", "anext": "next", "StopAsyncIteration": "StopIteration"}
_ASYNC = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
_MAKE_LATER = frozenset(("gather", "wait_for"))


def is_async(tree: ast.AST) -> bool:
    """Whether a source has anything that is for `without_waiting`."""
    return any(
        isinstance(node, _ASYNC) or (isinstance(node, ast.comprehension) and node.is_async)
        for node in ast.walk(tree)
    )


def without_waiting(tree: ast.Module, bound: Collection[str], refuse: Refuse) -> ast.Module:
    """The source in plain forms; each node keeps its place. `bound` are the names that it binds.

    `refuse` is told of what has no plain form: the node, a code and a sentence.
    """
    plain: ast.Module = _Plain(tree, bound, refuse).visit(tree)
    return plain


class _Plain(ast.NodeTransformer):
    def __init__(self, tree: ast.AST, bound: Collection[str], refuse: Refuse) -> None:
        self._refuse = refuse
        self._names = {name: plain for name, plain in _PLAIN_BUILTINS.items() if name not in bound}
        self._modules: set[str] = set()
        self._makers: set[str] = set()  # what `gather` and `wait_for` are called
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._modules |= {n.asname or n.name for n in node.names if n.name == "asyncio"}
            elif isinstance(node, ast.ImportFrom) and node.module == "asyncio":
                self._makers |= {n.asname or n.name for n in node.names if n.name in _MAKE_LATER}

    def _plain(self, node: ast.AST) -> ast.AST:
        plain: ast.AST = self.visit(node)
        return plain

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._plain(_as(ast.FunctionDef, node))

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self._plain(_as(ast.For, node))

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return self._plain(_as(ast.With, node))

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self._plain(node.value)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.is_async = 0
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = _PLAIN.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = _PLAIN.get(node.attr, node.attr)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = _PLAIN.get(node.id, self._names.get(node.id, node.id))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        defined = {name: at for at in node.body for name in _defined(at)}
        for name, plain in _PLAIN.items():
            if name in defined and plain in defined:
                text = f"{name!r} beside {plain!r} is not allowed. A Runnable waits by itself, so that they"
                self._refuse(defined[name], "E202", f"{text} are one method here: leave one of them out.")
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in self._modules:
                is_maker = name in _MAKE_LATER
            case ast.Name(id=name):
                is_maker = name in self._makers
            case _:
                is_maker = False
        if is_maker:
            node.args = [_later(argument) for argument in node.args]
            for keyword in node.keywords:
                keyword.value = _made_later(keyword.value, []) if keyword.arg == "fut" else keyword.value
        return node


def _as(kind: type[Any], node: Any) -> Any:
    fields = {name: getattr(node, name) for name in node._fields if hasattr(node, name)}
    return ast.copy_location(kind(**fields), node)


def _defined(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case _:
            pass


def _later(argument: ast.expr) -> ast.expr:
    """A call that is an argument, or each one of those in `*[...]`, as a function that makes it."""
    match argument:
        case ast.Starred(value=ast.ListComp() | ast.GeneratorExp() as made):
            targets = [node for part in made.generators for node in ast.walk(part.target)]
            # Each has its own of what the comprehension goes through.
            made.elt = _made_later(made.elt, [node.id for node in targets if isinstance(node, ast.Name)])
            return argument
        case ast.Starred(value=ast.List() | ast.Tuple() as made):
            made.elts = [_later(each) for each in made.elts]
            return argument
        case _:
            return _made_later(argument, [])


def _made_later(call: ast.expr, names: list[str]) -> ast.expr:
    if not isinstance(call, ast.Call) or any(map(_is_of_scope, ast.walk(call))):
        return call
    parameters = list(dict.fromkeys(names))
    defaults: list[ast.expr] = [ast.Name(name, ast.Load()) for name in parameters]
    arguments = ast.arguments([], [ast.arg(name) for name in parameters], None, [], [], None, defaults)
    marked = ast.Tuple([ast.Constant(LATER), ast.Lambda(arguments, call)], ast.Load())
    return ast.fix_missing_locations(ast.copy_location(marked, call))


def _is_of_scope(node: ast.AST) -> bool:
    """Whether it means something else inside of another function."""
    is_super = isinstance(node, ast.Name) and node.id == "super"
    return is_super or isinstance(node, (ast.NamedExpr, ast.Yield, ast.YieldFrom))
