"""The `__init__` of a data class, written out where its source says what it will be.

`facades.records` makes one from closures for any data class, at ten times what the standard library's costs,
which generates source; a guest generates none. What the annotations of one class statement tell is enough for
most of them: here they become a function of the class like any other the user writes. `dataclass` takes it
where the class turns out to be what it was written for, which its docstring says.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from processor.sandbox.facades import FORBIDDEN, FRESH, INIT, init_purpose, is_dunder, mangled


@dataclass(frozen=True)
class _Row:
    name: str
    is_optional: bool
    may_be_field: bool  # the default may be what field() gave, and have to be made each time


def initializer(node: ast.ClassDef, kinds: list[tuple[str, str]]) -> ast.FunctionDef | None:
    """A method for the body of the data class `node`, which annotates `kinds`; None where in doubt."""
    options = _options(node)
    defined = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
    if options is None or not options.get("init", True) or "__init__" in defined:
        return None
    rows = _rows(node)
    if rows is None or not rows or any(kind not in ("field", "class") for _, kind in kinds):
        return None
    kept = [row for row, (_, kind) in zip(rows, kinds, strict=True) if kind == "field"]
    names = [row.name for row in kept]
    optional = [row.is_optional for row in kept]
    is_keyword = bool(options.get("kw_only"))
    if len({*names, "self", "object", "super"}) < len(names) + 3 or (
        optional != sorted(optional) and not is_keyword
    ):
        return None
    parameters = ", ".join(f"{row.name}={row.name}" if row.is_optional else row.name for row in kept)
    is_frozen, finishes = bool(options.get("frozen")), "__post_init__" in defined
    lines = [f"def __init__(self, {'*, ' if is_keyword and kept else ''}{parameters}):"]
    for row in kept:
        value = f"FRESH({row.name})" if row.may_be_field else row.name
        if is_frozen:
            lines.append(f" object.__setattr__(self, {mangled(row.name, node.name)!r}, {value})")
        else:
            lines.append(f" self.{row.name} = {value}")
    if finishes:
        lines.append(" self.__post_init__()")
    if len(lines) == 1:
        return None
    function = ast.parse("\n".join(lines)).body[0]
    assert isinstance(function, ast.FunctionDef)
    for part in ast.walk(function):
        ast.copy_location(part, node)
        if isinstance(part, ast.Name) and part.id == "FRESH":
            part.id = FRESH
    function.name = INIT
    shown = [(mangled(row.name, node.name), row.is_optional) for row in kept]
    purpose = ast.Expr(ast.Constant(init_purpose(shown, is_frozen, finishes, is_keyword)))
    function.body.insert(0, ast.fix_missing_locations(ast.copy_location(purpose, node)))
    return function


def _options(node: ast.ClassDef) -> dict[str, object] | None:
    """The constant options of the `@dataclass` of a class; None if it has none, or others."""
    for decorator in node.decorator_list:
        function = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name != "dataclass":
            continue
        found: dict[str, object] = {}
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
            if keyword.arg is None or not isinstance(keyword.value, ast.Constant):
                return None
            found[keyword.arg] = keyword.value.value
        return found
    return None


def _rows(node: ast.ClassDef) -> list[_Row] | None:
    rows = []
    for statement in node.body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        name, value = statement.target.id, statement.value
        if is_dunder(name) or name in FORBIDDEN or name == "FRESH":
            return None
        is_optional = value is not None
        if isinstance(value, ast.Call):
            words = {keyword.arg for keyword in value.keywords}
            function = value.func
            of = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if of == "field":
                if value.args or words & {None, "init", "kw_only"}:
                    return None
                is_optional = bool(words & {"default", "default_factory"})
        rows.append(_Row(name, is_optional, is_optional and not isinstance(value, ast.Constant)))
    return rows
