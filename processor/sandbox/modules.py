"""All sources of a program as code, and how they import each other: a Runnable and the user's own modules.

The guest asks, with the language of the program. Every source is compiled before the first one runs, so that
the faults of all are known together; a module runs when it is imported. No user code runs in here.
"""

from __future__ import annotations

import marshal
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from processor.errors import Fault, Faults
from processor.model import STEP_PACKAGE, Program
from processor.sandbox.languages import Given, Language

_OURS = frozenset(("processor", "requests", "runnable"))  # there in a guest, though no file has them
Sources = list[CodeType]  # of the Runnable, then of the modules in the program's order


def compile_all(program: Program, language: Language) -> Sources:
    """The program's sources as code. Raises Faults with everything that is wrong with any of them."""
    faults = list(_taken(program, language))
    codes = []
    for module in (None, *program.modules):
        try:
            codes.append(language.compile(program, module))
        except Faults as err:
            faults += err.faults
    if faults:
        raise Faults(list(dict.fromkeys(faults)))
    return codes


def read_codes(given: bytes, program: Program, language: Language) -> Sources | None:
    """What another guest compiled, if that passes for code of the language."""
    try:
        codes = marshal.loads(given) if given and language.is_preparable else None
    except (ValueError, TypeError, EOFError):
        return None
    if type(codes) is not list or len(codes) != 1 + len(program.modules):
        return None
    names = program.module_names
    is_good = all(isinstance(code, CodeType) and language.accepts(code, names) for code in codes)
    return codes if is_good else None


def bring(
    program: Program,
    codes: Sources,
    language: Language,
    space: dict[str, Any],
    run: Callable[[CodeType, dict[str, Any]], None],
    given: Given,
) -> None:
    """Let the sources import the modules; `run` executes a code in its globals.

    Those that are `given` have names of ours.
    """
    if not program.module_names:
        return
    by_name: dict[str, CodeType | None] = dict.fromkeys(program.module_names)
    by_name |= {module.name: code for module, code in zip(program.modules, codes[1:], strict=True)}
    language.bring_modules(program, by_name, space, run, given)


def _taken(program: Program, language: Language) -> Iterator[Fault]:
    """A fault for each module that nobody could import, as Python has another one of its name."""
    for module in program.modules:
        top = module.name.partition(".")[0]
        if program.mode == "steps" and top == STEP_PACKAGE:
            continue  # whatever has that name elsewhere, in here it is where their modules are
        if top in _OURS or top in sys.modules or language.is_found(top):
            text = f"the module {module.name} cannot be imported: {top} is a module or a package that is"
            yield Fault(module.filename, 1, 1, "E114", f"{text} there already. Rename it or its folder.")
