"""What a file does when it is run as a program, left out: here it never is.

What stands under `if __name__ == "__main__":` goes, and so does an import of something that is not here which
nothing else in the file needs. A function that only the block calls stays, and is of no use to anyone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator


def is_main(node: ast.AST) -> bool:
    """Whether it is `if __name__ == "__main__":`."""
    match node:
        case ast.If(
            test=ast.Compare(
                left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")]
            )
        ):
            return True
        case _:
            return False


def drop_imports(tree: ast.Module, is_here: Callable[[str, str], bool]) -> None:
    """Take from a source the imports that only its main blocks need, of what `is_here` says no to.

    It is asked for a module and a name in it, which is empty for the module itself.
    """
    blocks = [node for node in tree.body if isinstance(node, ast.If) and is_main(node)]
    if not blocks:
        return
    spare = _spare(tree, blocks)
    for at, node in enumerate(tree.body):
        if isinstance(node, ast.Import):
            node.names = [each for each in node.names if is_here(each.name, "") or _bound(each) not in spare]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            module = node.module
            node.names = [
                each for each in node.names if is_here(module, each.name) or _bound(each) not in spare
            ]
        else:
            continue
        if not node.names:
            tree.body[at] = ast.copy_location(ast.Pass(), node)


def _spare(tree: ast.Module, blocks: list[ast.If]) -> set[str]:
    """The names that only main blocks use, and functions that only they call."""
    used = {
        node.name: set(_names(node))
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    inside = {name for block in blocks for node in block.body for name in _names(node)}
    called = inside & used.keys()
    while more := {name for function in called for name in used[function] & used.keys()} - called:
        called |= more
    while True:
        others = [
            node for node in tree.body if node not in blocks and getattr(node, "name", "") not in called
        ]
        others += [node for block in blocks for node in block.orelse]
        outside = {name for node in others for name in _names(node)}
        if called.isdisjoint(outside):
            break
        called -= outside
    return inside.union(*(used[function] for function in called)) - outside


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _names(node: ast.AST) -> Iterator[str]:
    return (each.id for each in ast.walk(node) if isinstance(each, ast.Name))
