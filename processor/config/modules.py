"""The modules that Runnables import: the `*.py` files of a folder, by the names that they are imported by.

A folder is a package of its own name, so that `from lib.fees import total` means the same in a Runnable as
to an editor, or to a test that is started beside the folder. What is wrong with a folder is told as rules
are: by code and sentence, for the key that names it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from keyword import iskeyword
from pathlib import Path

from processor.model import Module
from processor.sandbox import packages

MAX_FILES = 256
MAX_BYTES = 1 << 20
# Beside those of the standard library, which the modules of the restricted language are among.
_OURS = frozenset(
    ("authority_nanos", "exospherehost", "httpx", "processor", "pydantic", "requests", "runnable")
)

Problem = tuple[str, str]  # a code, and a sentence that begins with the file or the name


def listing(folder: str | Path) -> bytes:
    """The files of modules in a folder, a line for each: what a change of is a change of the modules."""
    files = (os.path.join(each, name) for each, _, names in _walk(folder) for name in names)
    return "".join(f"{file}\n" for file in sorted(files)).encode(errors="surrogateescape") or b"\n"


def read_modules(folder: str) -> tuple[tuple[Module, ...], list[Problem]]:
    """The modules of a folder, by name, and all that is wrong with it and with the names."""
    home = Path(folder)  # as it is written: so are the files in tracebacks and faults
    top = os.path.basename(os.path.abspath(folder))
    found: list[tuple[list[str], Module]] = []
    problems: list[Problem] = []
    size = 0
    try:
        os.listdir(home)
    except OSError as err:
        return (), [("E107", f"{folder} cannot be read: {err.strerror}")]
    files = [os.path.join(each, name) for each, _, names in _walk(home) for name in sorted(names)]
    if not files:
        problems.append(("E107", f"{folder} holds no file *.py"))
    for file in files[: MAX_FILES + 1]:
        parts = [top, *Path(file).relative_to(home).with_suffix("").parts]
        if parts[-1] == "__init__":
            del parts[-1]
        try:
            text = Path(file).read_bytes().decode("utf-8-sig")
        except OSError as err:
            problems.append(("E107", f"{file} cannot be read: {err.strerror}"))
            continue
        except UnicodeDecodeError:
            problems.append(("E107", f"{file} is not UTF-8 text"))
            continue
        size += len(text.encode())
        found.append((parts, Module(".".join(parts), file, text)))
        if size > MAX_BYTES:
            break
    if len(files) > MAX_FILES:
        problems.append(("E205", f"{folder} holds {len(files)} files *.py, more than {MAX_FILES}"))
    elif size > MAX_BYTES:
        problems.append(("E205", f"{folder} holds more than {MAX_BYTES} bytes of *.py files"))
    return tuple(sorted(module for _, module in found)), [*problems, *_misnamed(found)]


def modules_of(sources: Mapping[str, str]) -> tuple[tuple[Module, ...], list[Problem]]:
    """The same for sources by name."""
    modules = [Module(name, f"{name.replace('.', '/')}.py", text) for name, text in sources.items()]
    problems = list(_misnamed((module.name.split("."), module) for module in modules))
    size = sum(len(text.encode(errors="replace")) for text in sources.values())
    if len(modules) > MAX_FILES or size > MAX_BYTES:
        what = f"{len(modules)} modules of {size} bytes"
        problems.append(("E205", f"{what} are more than {MAX_FILES}, or than {MAX_BYTES} bytes"))
    return tuple(sorted(modules)), problems


def taken(modules: Iterable[Module], language: str, wanted: Collection[str]) -> Iterator[Problem]:
    """What is wrong with names that a route of this language and these packages has other modules for."""
    tops = {module.name.partition(".")[0] for module in modules}
    brought = packages.modules_of(wanted) if tops and language == "python" and wanted else ()
    for top in sorted(tops):
        if top in sys.stdlib_module_names or top in _OURS:
            yield "E114", f"{top!r} is the name of a module that is there already. {_RENAME}"
        elif top in brought:
            yield "E114", f"{top!r} is the name of a package of this route. {_RENAME}"


_RENAME = "Rename the folder, which its modules are imported by."


def _walk(folder: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk: the folders that modules may be in, and the files of modules."""
    for each, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        yield each, below, [name for name in names if name.endswith(".py") and not name.startswith(".")]


def _misnamed(found: Iterable[tuple[Sequence[str], Module]]) -> Iterator[Problem]:
    files: dict[str, str] = {}
    for parts, module in found:
        for part in parts:
            if not part.isidentifier() or iskeyword(part) or part.startswith("__"):
                text = f"{module.filename} cannot be imported: {part!r} is not a name to import. Rename it."
                yield "E114", text
                break
        other = files.setdefault(module.name, module.filename)
        if other != module.filename:
            yield "E114", f"{other} and {module.filename} are both imported as {module.name}. Rename one."
