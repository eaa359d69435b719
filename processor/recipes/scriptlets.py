"""Steps that lie in a folder, whether or not a recipe names them: found by reading, nothing is run.

A step in Python is a class that derives from `BaseScriptlet`, at once or by way of others in its file; one
for a shell is a file that may be executed and ends in `.sh`.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from processor.errors import Fault

_BASE = "BaseScriptlet"
_FILE_BYTES = 1 << 20
_HEAD_BYTES = 4096  # of a script, in which its comments say what it is
_DESCRIBED = re.compile(r"^[#\s]*DESC(?:RIPTION)?:\s*(.+)$", re.MULTILINE)


class Scriptlet(NamedTuple):
    """A step as a recipe would name it: `module` and `class_name`, or `file` for a shell."""

    type: Literal["python", "shell"]
    file: str  # below the folder
    module: str = ""
    class_name: str = ""
    description: str = ""


def scriptlets_in(folder: Path) -> tuple[list[Scriptlet], list[Fault]]:
    """The steps below a folder, by file, and the sources there that are not Python (E201)."""
    found: list[Scriptlet] = []
    faults: list[Fault] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        try:
            if path.suffix == ".py":
                found += _classes(name, path.read_text("utf-8-sig"))
            elif os.access(path, os.X_OK):
                with path.open("rb") as file:
                    head = file.read(_HEAD_BYTES).decode(errors="replace")
                found.append(Scriptlet("shell", name, description=_described(head)))
        except (SyntaxError, ValueError, RecursionError) as err:
            line = getattr(err, "lineno", None) or 1
            faults.append(Fault(str(path), line, 1, "E201", f"is not Python: {getattr(err, 'msg', err)}"))
        except OSError as err:
            faults.append(Fault(str(path), 1, 1, "E713", f"cannot be read: {err.strerror}."))
    return found, faults


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        # What lies in these is a tool's, or another project's.
        folders[:] = sorted(
            each
            for each in folders
            if not each.startswith((".", "__")) and not (Path(place) / each / "pyvenv.cfg").exists()
        )
        for name in sorted(names):
            path = Path(place) / name
            if path.suffix in (".py", ".sh") and path.is_file() and path.stat().st_size <= _FILE_BYTES:
                yield path


def _classes(file: str, source: str) -> Iterator[Scriptlet]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is written there is for its own author
        tree = ast.parse(source, file)
    known = {_BASE}
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name == _BASE:
            continue
        if known & {_last_name(base) for base in node.bases}:
            known.add(node.name)
            words = _first_line(ast.get_docstring(node)) or _described(ast.get_docstring(tree) or "")
            yield Scriptlet("python", file, module, node.name, words)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _described(text: str) -> str:
    found = _DESCRIBED.search(text)
    return found[1].strip() if found else ""
