"""The packages that plain Python imports: found and read while there are files, kept for when there are none.

A guest has no files and may map no code, so all that its `import` statements need must be in the zygote's
memory before that closes its cell. `bring` imports the packages of a route and every extension module of
theirs and of what they depend on, and keeps the code of all other modules, the standard library's too, with
small data files. From then on `_Importer` is where Python finds modules; guests share it, and what one of
them changes is its own copy.

Packages run with the zygote's rights while it starts, as at their installation. Nothing that a user wrote
has been read by then. Which packages there are is the operator's decision (`packages` of a route).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import marshal
import os
import random
import re
import sys
import time
import uuid
import warnings
import zoneinfo
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from importlib.resources.abc import Traversable, TraversableResources
from pathlib import Path
from types import CodeType
from typing import Any

from processor.sandbox.languages import Unusable

# A guest may not start threads, and those of the zygote do not survive the fork; with more than one of them
# its namespaces could not be made at all. These are read once, when a library is loaded.
_ONE_THREAD = {
    f"{library}_NUM_THREADS": "1"
    for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "VECLIB", "NUMBA", "RAYON")
} | {
    "POLARS_MAX_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pandas imports pyarrow where it is installed
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
DATA_FILE_BYTES = 64 << 10
DATA_BYTES = 32 << 20
_NO_DATA = (".py", ".pyc", ".pyi", ".pyx", ".pxd", ".c", ".h", ".hpp", ".cpp", ".so", ".a", ".exe", ".dll")
_LEFT_OUT = frozenset({"tests", "test", "__pycache__", "site-packages", "dist-packages", "lib-dynload"})
_LEFT_OUT_OF_STANDARD = _LEFT_OUT | {
    "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "pydoc_data", "config",
}  # fmt: skip
# Extension modules of the standard library that test the interpreter, or want a terminal or a display.
_USELESS = re.compile(r"_?(test|xx|curses|tkinter|readline|nis|ossaudiodev|spwd|crypt|g?dbm|ctypes_test)")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def bring(names: Sequence[str]) -> tuple[int, list[str]]:
    """Make these packages, what they need and the standard library importable without a file.

    Returns the number of modules whose code is kept, and the extension modules that could not be loaded
    (an optional one may want what is not installed). Raises Unusable.
    """
    os.environ.update(_ONE_THREAD)
    sys.dont_write_bytecode = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _bring(names)


def modules_of(names: Iterable[str]) -> frozenset[str]:
    """The top-level modules that these packages bring with them; none for one that is not installed."""
    installed, wanted = _Installed(), {}
    for name in names:
        with contextlib.suppress(Unusable):
            wanted[name] = installed.imports_of(name)
    return frozenset(installed.with_requirements(wanted)[0])


def _bring(names: Sequence[str]) -> tuple[int, list[str]]:
    installed = _Installed()
    wanted = {name: installed.imports_of(name) for name in names}
    for name, modules in wanted.items():
        for module in modules:
            _import_named(name, module)
    roots, distributions = installed.with_requirements(wanted)
    kept = _Importer()
    for root in roots:
        kept.read(root)
    kept.read_standard_library()
    for name, distribution in distributions.items():
        kept.add_distribution(name, distribution)
    if "tzdata" not in roots:
        kept.read_time_zones()
    _prepare_event_loops()
    kept.load_extensions()
    _refuse_threads(", ".join(names))
    _forget_machine()
    kept.take_over()
    return len(kept.modules), sorted(kept.failed)


def _import_named(package: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except BaseException as err:  # a wall: what a package does at its import is unknown
        if module.startswith("_"):
            return
        text = " ".join(f"{type(err).__name__}: {err}".split())[:300]
        raise Unusable(package, f"cannot be imported here: {text}") from err
    _refuse_threads(package)


def _refuse_threads(package: str) -> None:
    if len(os.listdir("/proc/self/task")) > 1:
        raise Unusable(package, "starts threads when it is imported, which a guest cannot have")


def _prepare_event_loops() -> None:
    """Have asyncio's event loops do without the descriptors that a guest cannot open.

    What they have them for cannot be in a guest: sockets, signals, and threads that wake a loop.
    """
    # Before the extension modules: `_asyncio` imports asyncio, which would initialise `_asyncio` once more.
    # By name: the guests of the dialect must not have it.
    loops: Any = importlib.import_module("asyncio.selector_events").BaseSelectorEventLoop
    for name in ("_make_self_pipe", "_close_self_pipe", "_write_to_self"):
        setattr(loops, name, _do_nothing)
    selectors: Any = importlib.import_module("selectors")

    class Waiter(selectors.SelectSelector):  # type: ignore[misc]
        """Lets time pass for an event loop; no descriptor is ever ready."""

        def select(self, timeout: float | None = None) -> list[Any]:
            if timeout is None:
                raise RuntimeError("the event loop has nothing left to do, and nothing can wake it")
            time.sleep(max(timeout, 0))
            return []

    selectors.DefaultSelector = Waiter


def _do_nothing(loop: object) -> None:
    pass


def _forget_machine() -> None:
    """Drop the paths of the host, and have `uuid.uuid1` ask nobody.

    It asks a daemon, by a socket, and then a program for the address of the network card; either is fatal.
    """
    sys.argv[:], sys.orig_argv[:] = [""], []
    module: Any = uuid
    module._generate_time_safe = None
    module._node = random.getrandbits(48) | 1 << 40  # the bit that says it is no card's address


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class _Installed:
    """What is installed, by distribution and by import."""

    def __init__(self) -> None:
        self._providers = importlib.metadata.packages_distributions()
        self._imports: dict[str, list[str]] = {}
        for module, names in self._providers.items():
            for name in {_normal(name) for name in names}:
                if module.isidentifier() and module not in _LEFT_OUT:
                    self._imports.setdefault(name, []).append(module)

    def imports_of(self, name: str) -> list[str]:
        """The modules to import for a name from the configuration. Raises Unusable."""
        if _normal(name) in self._imports:
            return sorted(self._imports[_normal(name)])
        with contextlib.suppress(ImportError, ValueError):
            if importlib.util.find_spec(name) is not None:
                return [name]
        known = {known.lower(): known for known in [*self._providers, *self._imports]}
        near = difflib.get_close_matches(name.lower(), known, n=1)
        raise Unusable(name, "is not installed beside Processor", known[near[0]] if near else "")

    def with_requirements(
        self, wanted: Mapping[str, Sequence[str]]
    ) -> tuple[list[str], dict[str, importlib.metadata.Distribution]]:
        """The top-level modules that these packages bring with them, and the distributions by normal name."""
        tops = {module.partition(".")[0] for modules in wanted.values() for module in modules}
        waiting = [_normal(name) for top in tops for name in self._providers.get(top, ())]
        # Time zones belong to Python as much as to any package.
        waiting += ["tzdata", *map(_normal, wanted)]
        found: dict[str, importlib.metadata.Distribution] = {}
        while waiting:
            name = waiting.pop()
            if name in found or name not in self._imports:
                continue
            found[name] = distribution = importlib.metadata.distribution(name)
            tops.update(self._imports[name])
            for requirement in distribution.requires or ():
                named = _REQUIREMENT.match(requirement)
                if named and "extra" not in requirement.partition(";")[2]:
                    waiting.append(_normal(named[1]))
        return sorted(tops - sys.stdlib_module_names), found


@dataclass(frozen=True, slots=True)
class _Code:
    """A module that was not imported: marshalled code, or its source where there was no code."""

    path: str
    is_package: bool
    code: bytes
    is_source: bool


@dataclass(frozen=True, slots=True)
class _Files:
    """Data files by path, and the names in every folder of them."""

    content: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)

    def add(self, path: str, content: bytes) -> None:
        self.content[path] = content
        while path not in self.names.get(os.path.dirname(path), ()) and path != "/":
            folder, _, name = path.rpartition("/")
            self.names.setdefault(folder, set()).add(name)
            path = folder or "/"

    def read(self, path: str) -> bytes:
        try:
            return self.content[path]
        except KeyError:
            raise FileNotFoundError(path) from None


class _Importer(InspectLoader):
    """Finds and loads modules from memory; after `take_over`, Python asks nobody else."""

    def __init__(self) -> None:
        self.modules: dict[str, _Code] = {}
        self.failed: dict[str, str] = {}
        self._files = _Files()
        self._data_bytes = 0
        self._extensions: dict[str, str] = {}
        self._distributions: dict[str, _KeptDistribution] = {}  # by normal name

    # Reading, while there are files.

    def read(self, top: str) -> None:
        """Keep a top-level module or package with all that is in it."""
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return
        if spec is None:
            return
        if spec.submodule_search_locations is None:
            self._add(top, spec.origin or "")
        for folder in spec.submodule_search_locations or ():
            self._read_folder(folder, top, _LEFT_OUT)

    def read_standard_library(self) -> None:
        home = os.path.dirname(os.__file__)
        self._read_folder(home, "", _LEFT_OUT_OF_STANDARD, keep_data=False)
        for entry in sys.path:
            if entry.endswith("lib-dynload") and os.path.isdir(entry):
                for name in os.listdir(entry):
                    if not _USELESS.match(name):
                        self._add(name.partition(".")[0], os.path.join(entry, name))

    def read_time_zones(self) -> None:
        """Keep the machine's time zones as the package where `zoneinfo` looks when there are no files."""
        for home in zoneinfo.TZPATH:
            if not os.path.isdir(home):
                continue
            self.modules["tzdata"] = _Code(f"{home}/__init__.py", True, b"", True)
            zones = []
            for folder, below, names in os.walk(home):
                below[:] = [name for name in below if name not in ("posix", "right")]
                package = ".".join(["tzdata", "zoneinfo", *_parts(folder, home)])
                self.modules[package] = _Code(f"{folder}/__init__.py", True, b"", True)
                for name in names:
                    self._add_data(os.path.join(folder, name))
                    zones.append("/".join([*_parts(folder, home), name]))
            self._files.add(f"{home}/zones", "\n".join(zones).encode())
            return

    def add_distribution(self, name: str, distribution: importlib.metadata.Distribution) -> None:
        files = ("METADATA", "entry_points.txt", "top_level.txt")
        texts = {file: distribution.read_text(file) for file in files}
        self._distributions[name] = _KeptDistribution(texts, str(distribution.locate_file("")))

    def _read_folder(self, home: str, top: str, left_out: Iterable[str], *, keep_data: bool = True) -> None:
        for folder, below, names in os.walk(home):
            below[:] = sorted(
                name for name in below if name not in left_out and not name.startswith("config-")
            )
            package = ".".join(filter(None, [top, *_parts(folder, home)]))
            for name in names:
                path = os.path.join(folder, name)
                if name == "__init__.py" and package:
                    self._add(package, path)
                elif name.endswith(".py") or _is_extension(name):
                    self._add(".".join(filter(None, [package, name.partition(".")[0]])), path)
                elif keep_data and not name.endswith(_NO_DATA):
                    self._add_data(path)

    def _add(self, name: str, path: str) -> None:
        if name in sys.modules or not all(map(str.isidentifier, name.split("."))):
            return
        if _is_extension(path):
            self._extensions[name] = path
        elif path.endswith(".py"):
            with contextlib.suppress(OSError):
                code, is_source = _code_of(path)
                is_package = os.path.basename(path) == "__init__.py"
                self.modules[name] = _Code(path, is_package, code, is_source)

    def _add_data(self, path: str) -> None:
        with contextlib.suppress(OSError):
            size = os.path.getsize(path)
            if size <= DATA_FILE_BYTES and self._data_bytes + size <= DATA_BYTES:
                with open(path, "rb") as file:
                    self._files.add(path, file.read())
                self._data_bytes += size

    def load_extensions(self) -> None:
        """Import every extension module: their code cannot be mapped later."""
        for name in self._extensions:
            if name in sys.modules:
                continue
            try:
                importlib.import_module(name)
            except BaseException as err:  # a wall, as above
                if "does not define module export function" not in str(err):  # a library, and no module
                    self.failed[name] = f"{type(err).__name__}: {err}"

    def take_over(self) -> None:
        """Be where modules are found from now on, and where loaded packages find their data."""
        for name in [name for name in self.modules if name in sys.modules]:
            del self.modules[name]  # an extension module imported it
        for name, kept in list(self.modules.items()):
            self._add_folders(
                name, os.path.dirname(os.path.dirname(kept.path) if kept.is_package else kept.path)
            )
        for module in list(sys.modules.values()):
            spec = getattr(module, "__spec__", None)
            if isinstance(spec, ModuleSpec) and any(
                folder in self._files.names for folder in spec.submodule_search_locations or ()
            ):
                spec.loader = self
        memory: Any = self
        finders = (importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, memory)
        sys.meta_path[:] = finders
        sys.path[:] = []
        sys.path_importer_cache.clear()

    def _add_folders(self, name: str, folder: str) -> None:
        """Make packages of the folders above a module that have no __init__.py."""
        above = name.rpartition(".")[0]
        while above and above not in self.modules and above not in sys.modules:
            self.modules[above] = _Code(f"{folder}/__init__.py", True, b"", True)
            above, folder = above.rpartition(".")[0], os.path.dirname(folder)

    # Importing, when there are none.

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What the import system asks for."""
        module = self.modules.get(name)
        if module is None:
            if name in self.failed:
                why = f"{name} could not be loaded before the jail was closed ({self.failed[name]})"
                raise ImportError(why, name=name)
            return None
        spec = ModuleSpec(name, self, origin=module.path, is_package=module.is_package)
        if module.is_package:
            spec.submodule_search_locations = [os.path.dirname(module.path)]
        spec.has_location = True
        return spec

    def find_distributions(self, context: Any = None) -> Iterator[importlib.metadata.Distribution]:
        """What `importlib.metadata` asks for."""
        name = getattr(context, "name", None)
        for known, distribution in self._distributions.items():
            if name is None or known == _normal(name):
                yield distribution

    def get_code(self, fullname: str) -> CodeType:
        module = self.modules.get(fullname)
        if module is None:
            raise ImportError(f"the code of {fullname} is not kept", name=fullname)
        code: CodeType = (
            compile(module.code, module.path, "exec", dont_inherit=True)
            if module.is_source
            else marshal.loads(module.code)
        )
        return code

    def get_source(self, fullname: str) -> None:
        """There are no sources in a guest."""

    def is_package(self, fullname: str) -> bool:
        module = self.modules.get(fullname)
        return module is not None and module.is_package

    def get_data(self, path: str) -> bytes:
        return self._files.read(path)

    def get_resource_reader(self, fullname: str) -> _Resources | None:
        """What `importlib.resources` asks for."""
        module = self.modules.get(fullname)
        loaded = sys.modules.get(fullname)
        path = module.path if module else getattr(loaded, "__file__", None)
        return _Resources(_Resource(self._files, os.path.dirname(path))) if path else None


def _parts(folder: str, home: str) -> list[str]:
    relative = os.path.relpath(folder, home)
    return [] if relative == "." else relative.split("/")


def _is_extension(path: str) -> bool:
    return path.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))


def _code_of(path: str) -> tuple[bytes, bool]:
    """The marshalled code that Python wrote beside the source, if it fits it; else the source."""
    with (
        contextlib.suppress(OSError, NotImplementedError),
        open(importlib.util.cache_from_source(path), "rb") as file,
    ):
        compiled = file.read()
        status = os.stat(path)
        stamp = (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
        noted = (int.from_bytes(compiled[8:12], "little"), int.from_bytes(compiled[12:16], "little"))
        by_hash = int.from_bytes(compiled[4:8], "little") != 0
        if compiled[:4] == importlib.util.MAGIC_NUMBER and (by_hash or stamp == noted):
            return compiled[16:], False
    with open(path, "rb") as file:
        return file.read(), True


class _KeptDistribution(importlib.metadata.Distribution):
    """The metadata of an installed distribution."""

    def __init__(self, texts: Mapping[str, str | None], home: str) -> None:
        self._texts = texts
        self._home = home

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: Any) -> Any:
        return Path(self._home, path)


class _Resources(TraversableResources):
    def __init__(self, root: _Resource) -> None:
        self._root = root

    def files(self) -> _Resource:
        return self._root


class _Resource(Traversable):
    """A data file or a folder of them."""

    def __init__(self, files: _Files, path: str) -> None:
        self._files = files
        self._path = path

    @property
    def name(self) -> str:
        return os.path.basename(self._path)

    def is_dir(self) -> bool:
        return self._path in self._files.names

    def is_file(self) -> bool:
        return self._path in self._files.content

    def iterdir(self) -> Iterator[_Resource]:
        for name in sorted(self._files.names.get(self._path, ())):
            yield self.joinpath(name)

    def joinpath(self, *descendants: Any) -> _Resource:
        return _Resource(self._files, "/".join([self._path, *map(str, descendants)]))

    def read_bytes(self) -> bytes:
        return self._files.read(self._path)

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = io.BytesIO(self.read_bytes())
        return stream if "b" in mode else io.TextIOWrapper(stream, *args, **kwargs)
