"""What annotations say, where something has to know it: models of pydantic, and `@function.register`.

The dialect drops annotations, for nothing needs the code in them. A class that derives from something may be
a model: it keeps what its annotations evaluate to as a function, which a model calls and nothing else does.
What is no expression of a type stays a text in it, and is not evaluated by anyone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from typing import cast

from processor.sandbox.dialect.refusals import INSTEAD_OF_NAME
from processor.sandbox.facades import FORBIDDEN, HINTS, is_dunder

MAX_DEPTH_OF_TEXT = 50  # of an annotation, where the text stands: what FRAMES_PER_LEVEL leaves

_OF_TYPES = (
    ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.BitOr, ast.Constant, ast.Tuple, ast.List, ast.Load,
    ast.Call, ast.keyword, ast.UnaryOp, ast.USub,
)  # fmt: skip


class Evaluated(ast.Assign):
    """The assignment of what the annotations of a class evaluate to; its target is ours."""


def evaluated(node: ast.ClassDef, annotations: Sequence[ast.expr]) -> Evaluated | None:
    """What a class keeps its annotations in; None where they are plain classes, or it derives from nothing.

    `annotations` are as the class lists them: names of plain classes, and texts.
    """
    if not node.bases or all(isinstance(each, ast.Name) for each in annotations):
        return None
    hints = [_hint(each) for each in annotations]
    inner = {each.name for each in node.body if isinstance(each, ast.ClassDef)}
    used = {part.id for hint in hints for part in ast.walk(hint) if isinstance(part, ast.Name)}
    names = sorted(inner & used)  # of the class body, which a function in it cannot see
    defaults: list[ast.expr] = [ast.Name(name, ast.Load()) for name in names]
    arguments = ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, defaults)
    made = Evaluated([ast.Name(HINTS, ast.Store())], ast.Lambda(arguments, ast.Tuple(hints, ast.Load())))
    return ast.fix_missing_locations(ast.copy_location(made, node))


def expression_in(text: str) -> ast.expr | None:
    """What an annotation that is a text says; None where that is nothing, or nested as no name is."""
    try:
        parsed = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return None if below(parsed, MAX_DEPTH_OF_TEXT) else parsed


def below(tree: ast.AST, levels: int) -> list[ast.AST]:
    """The nodes that many levels below `tree`."""
    level = [tree]
    for _ in range(levels):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return level


def _hint(annotation: ast.expr) -> ast.expr:
    if isinstance(annotation, ast.Name):
        return copy.copy(annotation)
    assert isinstance(annotation, ast.Constant)
    assert isinstance(annotation.value, str)
    found = expression_in(annotation.value)
    if found is None or not all(map(_is_of_a_type, ast.walk(found))):
        return ast.Constant(annotation.value)
    return cast(ast.expr, _Texts().visit(found))


def _is_of_a_type(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return not name.startswith("_") and name != "super" and name not in INSTEAD_OF_NAME
        case ast.Attribute(attr=name):
            return not name.startswith("_") and not is_dunder(name) and name not in FORBIDDEN
        case _:
            return isinstance(node, _OF_TYPES)


class _Texts(ast.NodeTransformer):
    """Puts what texts in an annotation say in their place, but for those that are values."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, str):
            return node
        found = expression_in(node.value)
        return found if found is not None and all(map(_is_of_a_type, ast.walk(found))) else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if ast.unparse(node.value).rpartition(".")[2] == "Literal":
            return node
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return node  # of Field(...) in Annotated, whose texts are patterns and words
