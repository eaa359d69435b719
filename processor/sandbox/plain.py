"""Plain Python as the language of a Runnable: what `dialect` is for the restricted one, without its rules.

The source is compiled as it stands and runs with Python's own builtins. What is there without an import in
the dialect is there too, so that a Runnable may change its language and go on. Nothing here keeps anybody
from anything: the jail does, which is why plain Python is refused where the jail cannot be relied on.

Called by the guest, and only there: a namespace takes over `sys.stdout` and the root logger of the process.
"""

from __future__ import annotations

import ast
import builtins
import datetime
import hashlib
import importlib
import io
import json
import linecache
import logging
import math
import random
import re
import sys
import time
import types
import typing
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from typing import Any

import processor
from processor.errors import Fault, Faults
from processor.model import Module, Program
from processor.sandbox import dialect, httpx
from processor.sandbox.facades import PRELUDE_HINTS, Logger, names_in, route_level
from processor.sandbox.kernel import GuestKernel
from processor.sandbox.languages import AUTHORITY, ERROR_CLASSES, Codes, Given, Models, Runtime

MODULE = "runnable"
LINE_CHARS = 4000


def _compiled(program: Program, module: Module | None) -> types.CodeType:
    if len(program.source) > dialect.MAX_SOURCE_CHARS:
        much = f"{len(program.source)} characters, more than {dialect.MAX_SOURCE_CHARS}"
        raise _faults(program, "E205", f"the source has {much}. Move data out of it.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _refuse_relative(program, module)
            code = compile(_runnable_part(program), program.filename, "exec", dont_inherit=True)
        except SyntaxError as err:
            if "too many" in err.msg and "nested" in err.msg:
                raise _faults(program, "E205", dialect.TOO_DEEP) from err
            raise _faults(program, "E201", f"{err.msg}.", err.lineno or 1, max(err.offset or 1, 1)) from err
        except ValueError as err:  # a null byte or a lone surrogate
            raise _faults(program, "E201", f"{err}.") from err
        except (RecursionError, MemoryError) as err:
            raise _faults(program, "E205", dialect.TOO_DEEP) from err
    # Tracebacks and `inspect` find the source where there is no file.
    lines = program.source.splitlines(keepends=True)
    linecache.cache[program.filename] = (len(program.source), None, lines, program.filename)
    return code


def _runnable_part(program: Program) -> str | ast.Module:
    """The source, without imports of what is not here that only its main block needs."""
    if "__main__" not in program.source:
        return program.source
    tree = ast.parse(program.source, program.filename)
    dialect.drop_imports(tree, lambda module, name: module in program.module_names or _is_here(module, name))
    return tree


def _is_here(module: str, name: str) -> bool:
    names = names_in(module) if module == "exospherehost" else []
    if names:
        return not name or name in names
    top = module.partition(".")[0]
    return top in sys.modules or any(finder.find_spec(top, None) is not None for finder in sys.meta_path)


def _refuse_relative(program: Program, module: Module | None) -> None:
    """Raise Faults with each relative import of a source that is one of several."""
    if not program.modules:
        return
    own = dialect.Own.of(program, module)
    tree = ast.parse(program.source, program.filename)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    faults = [(node.lineno, node.col_offset + 1, *own.instead_of_relative(node)) for node in found]
    if faults:
        raise Faults([Fault(program.filename, *fault) for fault in sorted(faults)])


def _faults(program: Program, code: str, text: str, line: int = 1, column: int = 1) -> Faults:
    return Faults([Fault(program.filename, line, column, code, text)])


class _Modules(InspectLoader):
    """Where Python finds the user's own modules.

    What is there without an import is among their built-in names: `from lib.fees import *` leaves it out.
    """

    def __init__(self, program: Program, codes: Codes, prelude: Mapping[str, object], given: Given) -> None:
        self._codes = codes
        self._given = given
        self._builtins = {**vars(builtins), **prelude}
        self._modules = {module.name: module for module in program.modules}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self._codes:
            return None
        module = self._modules.get(name)
        spec = ModuleSpec(name, self, origin=module.filename if module else None)
        if any(other.startswith(f"{name}.") for other in self._codes):
            spec.submodule_search_locations = []
        spec.has_location = module is not None
        return spec

    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__builtins__"] = self._builtins
        super().exec_module(module)
        vars(module).update(self._given.get(module.__name__, {}))

    def get_code(self, fullname: str) -> types.CodeType | None:
        return self._codes[fullname] or compile("", f"<{fullname}>", "exec")

    def get_source(self, fullname: str) -> str | None:
        module = self._modules.get(fullname)
        return module.source if module else None


class _PlainClock:
    """The bare name `time`, as in the dialect: the module, and, when called, `datetime.time`."""

    def __call__(self, *args: Any, **kwargs: Any) -> datetime.time:
        return datetime.time(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


# What a program prints and logs.


class _LogStream(io.TextIOBase):
    """A text stream whose lines go to the route's log."""

    def __init__(self, log: Callable[[str, str], None], level: str) -> None:
        self._log = log
        self._level = level
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._log(self._level, line)
        if len(self._rest) > LINE_CHARS:
            self.end_line()
        return len(text)

    def end_line(self) -> None:
        """Let go of a line that was begun."""
        if self._rest:
            rest, self._rest = self._rest, ""
            self._log(self._level, rest)


class _Records(logging.Handler):
    """What is logged with Python's own `logging`, in the route's log."""

    def __init__(self, log: Callable[[str, str], None]) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log(route_level(record.levelno), self.format(record))


_streams: list[_LogStream] = []


def _redirect(log: Callable[[str, str], None]) -> None:
    _streams[:] = [_LogStream(log, "info"), _LogStream(log, "warning")]
    for suffix in ("", "__"):
        for name, stream in zip(("stdout", "stderr", "stdin"), (*_streams, None), strict=True):
            setattr(sys, f"{suffix}{name}{suffix}", stream)
    logging.root.handlers[:] = [_Records(log)]
    logging.root.setLevel(logging.INFO)


class PlainPython:
    """`language: python`."""

    name = "python"
    is_watched = False  # imports and compiled code are ordinary here
    is_preparable = False  # a namespace takes over what the process prints and logs
    finish: Callable[[Any], Any] | None = None  # in a zygote, that of `loop`
    awaited: Callable[..., Any] | None = None  # that too

    def __init__(self) -> None:
        # By name, and late: the guests of the dialect must not have asyncio and pydantic.
        self._loop: Any = None
        self._models: Models | None = None

    def models(self) -> Models | None:
        return self._models

    def prepare(self, packages: Sequence[str]) -> dict[str, Any]:
        # Here, because it brings a good part of the standard library, which other guests never need.
        from processor.sandbox.packages import bring

        self._loop = importlib.import_module("processor.sandbox.loop")
        self.finish, self.awaited = self._loop.finish, self._loop.call
        if "pydantic" in packages:
            self._models = importlib.import_module("processor.sandbox.plain_nodes").MODELS
        kept, failed = bring(packages)
        self._loop.prepare()
        return {"kept": kept, "failed": failed[:20]}

    def rehearse(self, space: dict[str, object]) -> None:
        """There is nothing to rehearse: nothing of it can be shared."""

    def reseed(self) -> None:
        dialect.reseed()
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed()

    def compile(self, program: Program, module: Module | None = None) -> types.CodeType:
        if module is not None:
            program = replace(program, source=module.source, filename=module.filename)
        return _compiled(program, module)

    def accepts(self, code: types.CodeType, modules: Collection[str]) -> bool:
        return False  # nothing tells what was compiled from what was forged

    def namespace(self, runtime: Runtime) -> dict[str, object]:
        """The globals to run a compiled program in: those of a module that can be imported by its name."""
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module  # dataclasses, pydantic and pickle look their classes' module up
        _redirect(runtime.log)
        self._loop.bring_calls(runtime.calls)
        space = module.__dict__
        ours = runtime.given()
        # Importable under the name that editors know, which is another module outside of a guest.
        importable = types.ModuleType("processor.runnable")
        vars(importable).update({**ERROR_CLASSES, **ours}, __all__=list(ours))
        sys.modules["processor.runnable"] = vars(processor)["runnable"] = importable
        authority = types.ModuleType(AUTHORITY)
        names = {**ERROR_CLASSES, "AuthorityKernel": GuestKernel}
        vars(authority).update(names, __all__=list(names))
        sys.modules[AUTHORITY] = authority
        space.update(
            ours,
            __builtins__=__builtins__,
            json=json,
            math=math,
            re=re,
            random=random,
            hashlib=hashlib,
            datetime=datetime.datetime,
            time=_PlainClock(),
            logger=Logger(runtime.log),
            **{name: getattr(typing, name) for name in PRELUDE_HINTS},
        )
        if runtime.nodes is not None:
            nodes = types.ModuleType("exospherehost")
            vars(nodes).update(runtime.nodes.names())
            sys.modules["exospherehost"] = nodes
        if runtime.requests is not None:
            space["requests"] = runtime.requests
            module_of_requests = typing.cast(types.ModuleType, runtime.requests)
            sys.modules["requests"] = module_of_requests  # the library could reach nothing in here
            sys.modules["requests.exceptions"] = module_of_requests.exceptions
            sys.modules["httpx"] = httpx.client(runtime.calls.call, self._loop.call)
        return space

    def bring_modules(
        self,
        program: Program,
        codes: Codes,
        space: dict[str, Any],
        run: Callable[[types.CodeType, dict[str, Any]], None],
        given: Given,
    ) -> None:
        """They have the names of `space`, as `namespace` made it, without an import. Python runs them."""
        prelude = {name: value for name, value in space.items() if not name.startswith("__")}
        finder: Any = _Modules(program, codes, prelude, given)
        sys.meta_path.insert(0, finder)

    def is_found(self, name: str) -> bool:
        for finder in sys.meta_path:
            try:
                if finder.find_spec(name, None) is not None:
                    return True
            except ImportError:  # it is there, and could not be loaded
                return True
        return False

    def runnable_class(self, space: dict[str, object], program: Program) -> type:
        """The class that a program is for, with the base class among its bases. Raises Faults."""
        name = program.class_name
        cls: Any = space.get(name)
        base: Any = space["BaseSecureRunnable"]
        if cls is None:
            node, code, text = dialect.undefined(ast.parse(program.source), name)
            raise _faults(program, code, text, getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1)
        if not isinstance(cls, type):
            raise _faults(program, "E204", f"{name} is not a class. {dialect.no_class(name)}")
        if typing.cast(object, cls.__new__) is not object.__new__:
            text = f"{name} derives from a class that makes its own objects."
            text += " Keep such an object in an attribute."
            raise _faults(program, "E204", text)
        if not issubclass(cls, base):
            inner = {"__module__": MODULE, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
            try:
                cls = types.new_class(cls.__name__, (cls, base), exec_body=lambda body: body.update(inner))
            except TypeError as err:
                text = f"{name} cannot be combined with BaseSecureRunnable: {err}. Derive from it."
                raise _faults(program, "E204", text) from err
            space[name] = cls  # rebound: type(self) is what the source calls it
        return typing.cast(type, cls)

    def describe(
        self, err: BaseException, program: Program, unwatched: Callable[[], AbstractContextManager[None]]
    ) -> tuple[str, str]:
        text, trace = dialect.describe(err, program, unwatched)
        if isinstance(err, ModuleNotFoundError):
            # What a person who wrote an ordinary import may not know.
            text = f"{text} (packages of this route: {', '.join(program.packages) or 'none'})"
        return text, trace

    def end_lines(self) -> None:
        for stream in _streams:
            stream.end_line()
