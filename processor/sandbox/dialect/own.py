"""The modules that a user brings beside the Runnable, as they are named while a source is compiled.

`dialect` asks for each source, the Runnable's or a module's, what it may import of them, and what to write in
place of an import that cannot be. Nothing here decides what is safe to import: the names are those that the
host gave with the program.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass

from processor.model import Module, Program


@dataclass(frozen=True, slots=True)
class Own:
    """What one source may import of the user's own modules."""

    name: str  # of the source itself, as `__name__`
    package: str  # that a relative import would begin at; empty for the Runnable
    names: frozenset[str]

    @classmethod
    def of(cls, program: Program, module: Module | None) -> Own:
        """For a module of the program's, or for the Runnable where it is None."""
        names = program.module_names
        if module is None:
            return cls("runnable", "", names)
        is_package = module.filename.endswith("__init__.py") or any(
            name.startswith(f"{module.name}.") for name in names
        )
        return cls(module.name, module.name if is_package else module.name.rpartition(".")[0], names)

    def instead_of_relative(self, node: ast.ImportFrom) -> tuple[str, str]:
        """The code and the sentence for a relative import: what it is in full."""
        dots = "." * node.level + (node.module or "")
        if not self.names:
            text = f"'from {dots} import' is not allowed. A Runnable is one file"
            return "E203", f"{text}, and those that `modules` names."
        parts = self.package.split(".")
        parts = parts[: len(parts) - node.level + 1] if self.package else []
        wanted = ".".join([*filter(None, parts), *filter(None, [node.module])])
        if wanted not in self.names:
            last = (node.module or node.names[0].name).rpartition(".")[2]
            found = sorted(name for name in self.names if name.rpartition(".")[2] == last)
            wanted = (found or sorted(self.names))[0]
            if found and not node.module:
                wanted = wanted.rpartition(".")[0] or wanted
        names = ", ".join(
            f"{each.name} as {each.asname}" if each.asname else each.name for each in node.names
        )
        text = f"'from {dots} import' is relative. Write 'from {wanted} import {names}'."
        return "E201", text

    def nearest(self, module: str) -> str:
        """What an import that is not available was probably meant for; empty if nothing is near."""
        same = sorted(name for name in self.names if name.endswith(f".{module}"))
        near = same or difflib.get_close_matches(module, sorted(self.names), 1, 0.8)
        if near:
            return f"Did you mean '{near[0]}'?"
        beside = sorted(name for name in self.names if name.startswith(module.partition(".")[0] + "."))
        return f"There are {', '.join(beside[:20])}." if beside else ""
