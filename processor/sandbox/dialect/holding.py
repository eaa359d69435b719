"""Where the guard of a store needs to be asked only once in a function.

`self.x = value` is `~write(self).x = value`: a call for every store, which in a loop costs more than the
store. A parameter that its function never binds again is the same object throughout, and so is what `~write`
says of it: it is asked at the first store, and kept in a local variable that no source can name. `verifier`
checks for itself that such a variable never holds anything but what `~write` gave.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

# How the variable of a parameter begins.
HELD = "~w."

_SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp,
)  # fmt: skip
_Statement = ast.Assign | ast.AugAssign | ast.Delete


@dataclass
class Held:
    """How one parameter's guard is kept: asked by the first store, or by whichever store comes first."""

    variable: str
    is_open: bool  # which store comes first is known only at run time
    is_asked: bool = False

    def store_on(self, guard: ast.expr) -> ast.expr:
        """What a store is made on in place of `guard`, the call of `~write`."""
        load = ast.Name(self.variable, ast.Load())
        ask = ast.NamedExpr(ast.Name(self.variable, ast.Store()), guard)
        if self.is_open:
            test = ast.Compare(load, [ast.Is()], [ast.Constant(None)])
            return ast.IfExp(test, ask, ast.Name(self.variable, ast.Load()))
        if self.is_asked:
            return load
        self.is_asked = True
        return ask

    def prologue(self) -> list[ast.stmt]:
        if not self.is_open:
            return []
        return [ast.Assign([ast.Name(self.variable, ast.Store())], ast.Constant(None))]


def held_in(function: ast.FunctionDef) -> dict[str, Held]:
    """The parameters of `function` whose guard is worth keeping."""
    stores: dict[str, int] = {}
    first: dict[str, ast.stmt] = {}
    for statement in function.body:
        for name, weight in _stores(statement, in_loop=False):
            stores[name] = stores.get(name, 0) + weight
            first.setdefault(name, statement)
    found = {}
    for parameter in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
        name = parameter.arg
        if stores.get(name, 0) > 1 and not _is_bound_again(function, name):
            found[name] = Held(HELD + name, not isinstance(first[name], _Statement))
    return found


def _stores(node: ast.AST, in_loop: bool) -> Iterator[tuple[str, int]]:
    """The names that attributes are set or deleted of below `node`, each with 2 where it is in a loop."""
    if isinstance(node, _SCOPES):
        return
    match node:
        case ast.Attribute(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            yield name, 2 if in_loop else 1
        case _:
            in_loop = in_loop or isinstance(node, (ast.For, ast.While))
            for child in ast.iter_child_nodes(node):
                yield from _stores(child, in_loop)


def _is_bound_again(function: ast.FunctionDef, name: str) -> bool:
    """Whether anything below `function` could bind `name`, in whichever scope: in doubt it does."""
    for node in ast.walk(function):
        match node:
            case ast.Name(id=bound, ctx=ast.Del()) if bound == name:
                return True
            case ast.Global(names=names) | ast.Nonlocal(names=names) if name in names:
                return True
            case _ if node is not function and bound_by(node) == name:
                return True
            case _:
                pass
    return False


def bound_by(node: ast.AST) -> str | None:
    """The name that `node` itself binds, other than as a parameter."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.ClassDef(name=name):
            return name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
        case ast.alias(name=name, asname=asname):
            return asname or name.partition(".")[0]
        case ast.ExceptHandler(name=bound) | ast.MatchAs(name=bound) | ast.MatchStar(name=bound):
            return bound
        case ast.MatchMapping(rest=rest):
            return rest
        case _:
            return None
