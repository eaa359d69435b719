"""What a file does when it is run as a program, left out: here it never is.

What stands under `if __name__ == "__main__":` goes, and so does an import of something that is not here which
nothing else in the file needs.
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
    blocks = [node for node in tree.body if is_main(node)]
    if not blocks:
        return
    inside = {name for block in blocks for node in block.body for name in _names(node)}  # type: ignore[attr-defined]
    outside = {name for node in tree.body if node not in blocks for name in _names(node)}
    outside |= {name for block in blocks for node in block.orelse for name in _names(node)}  # type: ignore[attr-defined]
    spare = inside - outside
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


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _names(node: ast.AST) -> Iterator[str]:
    return (each.id for each in ast.walk(node) if isinstance(each, ast.Name))
