"""All sources of a program as code, and how they import each other: a Runnable and the user's own modules.

The guest asks, for both languages. Every source is compiled before the first one runs, so that the faults of
all are known together; a module runs when it is imported. No user code runs in here.
"""

from __future__ import annotations

import marshal
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from processor.errors import Fault, Faults
from processor.model import Program
from processor.sandbox import dialect, plain

_OURS = frozenset(("processor", "requests", "runnable"))  # there in a guest, though no file has them
Codes = list[CodeType]  # the Runnable's, then those of the modules in the program's order


def compile_all(program: Program) -> Codes:
    """The program's sources as code. Raises Faults with everything that is wrong with any of them."""
    language = plain if program.language == "python" else dialect
    faults = list(_taken(program))
    codes = []
    for module in (None, *program.modules):
        try:
            codes.append(
                language.compile_module(program, module) if module else language.compile_program(program)
            )
        except Faults as err:
            faults += err.faults
    if faults:
        raise Faults(list(dict.fromkeys(faults)))
    return codes


def read_codes(given: bytes, program: Program) -> Codes | None:
    """What another guest compiled, if that passes for code of the dialect."""
    try:
        codes = marshal.loads(given) if given else None
    except (ValueError, TypeError, EOFError):
        return None
    if type(codes) is not list or len(codes) != 1 + len(program.modules):
        return None
    names = program.module_names
    is_good = all(isinstance(code, CodeType) and not dialect.verify(code, names) for code in codes)
    return codes if is_good else None


def bring(
    program: Program, codes: Codes, space: dict[str, Any], run: Callable[[CodeType, dict[str, Any]], None]
) -> None:
    """Let the sources import the modules; `run` executes a code of the dialect in its globals."""
    if not program.modules:
        return
    by_name: dict[str, CodeType | None] = dict.fromkeys(program.module_names)
    by_name |= {module.name: code for module, code in zip(program.modules, codes[1:], strict=True)}
    if program.language == "python":
        plain.bring_modules(program, by_name, space)
    else:
        dialect.bring_modules(space, by_name, run)


def _taken(program: Program) -> Iterator[Fault]:
    """A fault for each module that nobody could import, as Python has another one of its name."""
    for module in program.modules:
        top = module.name.partition(".")[0]
        if top in _OURS or top in sys.modules or (program.language == "python" and _is_found(top)):
            text = f"the module {module.name} cannot be imported: {top} is a module or a package that is"
            yield Fault(module.filename, 1, 1, "E114", f"{text} there already. Rename it or its folder.")


def _is_found(top: str) -> bool:
    for finder in sys.meta_path:
        try:
            if finder.find_spec(top, None) is not None:
                return True
        except ImportError:  # it is there, and could not be loaded
            return True
    return False
