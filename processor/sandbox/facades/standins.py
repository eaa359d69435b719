"""What stands in for parts of the standard library that a Runnable cannot have as they are.

Each does what its namesake does for the programs that people write, and keeps to the rules of `facades`. The
originals evaluate annotations (`singledispatch`), wait for another thread (`queue`), open files (`zoneinfo`,
`linecache` behind `traceback`) or write to the process's own output (`warnings`, `pprint`).
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import functools
import heapq
import importlib.resources
import io
import pprint
import sys
import types
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from processor.sandbox.facades.guards import PRIVATE, is_user_class, is_user_function, read, user_class, words

Write = Callable[[str, str], None]


# functools


def name_as(wrapper: Any, wrapped: Any) -> None:
    """Give `wrapper`, a user's function or object or one made for them, the name and text of `wrapped`."""
    for name in ("__name__", "__qualname__", "__doc__"):
        text = getattr(wrapped, name, None)
        if type(text) is str:
            with contextlib.suppress(AttributeError):  # an object with slots has no room for a name
                object.__setattr__(wrapper, name, text)


def singledispatch(function: Any) -> Any:
    """functools.singledispatch; the classes may also be given by the first parameter's annotation."""
    if not callable(function):
        raise TypeError("singledispatch() is for a function")
    registry: dict[type, Any] = {object: function}
    find = functools._find_impl  # type: ignore[attr-defined]
    found: dict[type, Any] = {}

    def dispatch(cls: type) -> Any:
        if not isinstance(cls, type):
            raise TypeError(f"dispatch() takes a class, not {cls!r}")
        if cls not in found:
            found[cls] = find(cls, registry)
        return found[cls]

    def register(cls: Any, func: Any = None) -> Any:
        kinds = cls.__args__ if type(cls) is types.UnionType else (cls,)
        if not all(isinstance(kind, type) for kind in kinds):
            if func is not None or not is_user_function(_bare(cls)):
                raise TypeError(
                    f"register() takes a class, or a function whose parameter is annotated: {cls!r}"
                )
            annotated = list(_bare(cls).__annotations__.values())
            if not annotated:
                raise TypeError(
                    "register() takes a class where it is no plain decorator of a function with an annotation"
                )
            return register(annotated[0], cls)
        if func is None:
            return lambda func: register(cls, func)
        for kind in kinds:
            registry[kind] = func
        found.clear()
        return func

    def dispatcher(*args: Any, **kwargs: Any) -> Any:
        if not args:
            raise TypeError(f"{dispatcher.__name__} requires at least 1 positional argument")
        return dispatch(type(args[0]))(*args, **kwargs)

    name_as(dispatcher, function)
    vars(dispatcher).update(
        register=register,
        dispatch=dispatch,
        registry=types.MappingProxyType(registry),
        _clear_cache=found.clear,
    )
    return dispatcher


def _bare(function: Any) -> Any:
    return function.__func__ if isinstance(function, (classmethod, staticmethod)) else function


class singledispatchmethod:
    """functools.singledispatchmethod."""

    def __init__(self, function: Any) -> None:
        self._dispatcher = singledispatch(function)
        self._function = function

    def register(self, cls: Any, method: Any = None) -> Any:
        return self._dispatcher.register(cls, method)

    def __get__(self, ob: Any, cls: Any = None) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            if not args:
                raise TypeError("a method that dispatches requires at least 1 positional argument")
            found = self._dispatcher.dispatch(type(args[0]))
            is_method = is_user_function(found) or isinstance(found, (classmethod, staticmethod))
            return (found.__get__(ob, cls) if is_method else found)(*args, **kwargs)

        name_as(method, self._function)
        return method


# collections


def _format_of_user_string(self: Any, /, *args: Any, **kwargs: Any) -> str:
    return read(self.data, "format")(*args, **kwargs)  # type: ignore[no-any-return]


def _format_map_of_user_string(self: Any, mapping: Any) -> str:
    return read(self.data, "format_map")(mapping)  # type: ignore[no-any-return]


def guard_user_string() -> None:
    """The class's own would read any attribute that a template names."""
    setattr(collections.UserString, "format", _format_of_user_string)  # noqa: B010
    setattr(collections.UserString, "format_map", _format_map_of_user_string)  # noqa: B010


# enum


def enum_class(base: Any, name: Any, names: Any = None, /, *, start: int = 1, **options: Any) -> type:
    """The class that `Enum(name, names)` makes."""
    if options.keys() - {"module", "qualname", "type"} or options.get("type") is not None:
        raise TypeError("an Enum with further options is made by a class statement in a Runnable")
    if type(name) is not str or not name.isidentifier():
        raise TypeError(f"an Enum's name is an identifier, not {name!r}")
    if type(names) is str:
        names = names.replace(",", " ").split()
    listed: list[Any] = list(names.items()) if isinstance(names, Mapping) else list(names or ())
    last: list[Any] = []
    members: dict[str, Any] = {}
    for count, item in enumerate(listed):
        key, value = (item, None) if type(item) is str else item
        if type(key) is not str or not key.isidentifier() or key.startswith("_"):
            raise TypeError(f"a member's name is an identifier that starts with a letter, not {key!r}")
        if type(item) is str:
            value = base._generate_next_value_(key, start, count, list(last))
        last.append(value)
        members[key] = value
    return user_class(name, (base,), {"__module__": "runnable", "__qualname__": name, **members})


# queue


class Empty(Exception):
    """There is nothing to get."""


class Full(Exception):
    """There is no room to put anything."""


class Queue:
    """queue.Queue for one thread: what would wait for ever raises Empty or Full at once."""

    def __init__(self, maxsize: int = 0) -> None:
        self.maxsize = maxsize
        self._items: Any = collections.deque()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if self.full():
            raise Full
        self._put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._items:
            raise Empty
        return self._get()

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def get_nowait(self) -> Any:
        return self.get()

    def qsize(self) -> int:
        return len(self._items)

    def empty(self) -> bool:
        return not self._items

    def full(self) -> bool:
        return 0 < self.maxsize <= len(self._items)

    def task_done(self) -> None: ...

    def join(self) -> None: ...

    def _put(self, item: Any) -> None:
        self._items.append(item)

    def _get(self) -> Any:
        return self._items.popleft()


class LifoQueue(Queue):
    def _get(self) -> Any:
        return self._items.pop()


class PriorityQueue(Queue):
    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._items = []

    def _put(self, item: Any) -> None:
        heapq.heappush(self._items, item)

    def _get(self) -> Any:
        return heapq.heappop(self._items)


class SimpleQueue(Queue):
    def __init__(self) -> None:
        super().__init__()


# zoneinfo


@functools.cache
def zones() -> dict[str, bytes]:
    """What is known of every time zone, by name: read once, from a package, before a guest has no files."""
    root = importlib.resources.files("tzdata")
    names = root.joinpath("zones").read_text().split()
    return {name: root.joinpath("zoneinfo", *name.split("/")).read_bytes() for name in names}


class ZoneInfo(zoneinfo.ZoneInfo):
    """zoneinfo.ZoneInfo, from memory."""

    _made: dict[str, ZoneInfo] = {}  # noqa: RUF012 (one for all, as the standard library's cache)

    def __new__(cls, key: str) -> ZoneInfo:
        if type(key) is not str:
            raise TypeError(f"a time zone's name is a str, not {type(key).__name__}")
        if key not in ZoneInfo._made:
            if key not in zones():
                raise ZoneInfoNotFoundError(f"No time zone found with key {key}")
            ZoneInfo._made[key] = super().from_file(io.BytesIO(zones()[key]), key)
        return ZoneInfo._made[key]

    @classmethod
    def no_cache(cls, key: str) -> ZoneInfo:
        return cls(key)

    @classmethod
    def from_file(cls, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a time zone is made from its name in a Runnable")

    @classmethod
    def clear_cache(cls, *_: Any, **__: Any) -> None:
        """Nothing: other names of a zone would no longer be the same."""

    # C takes anything but None for a datetime, and looks into its memory.

    def utcoffset(self, at: Any, /) -> Any:
        return super().utcoffset(_moment(at))

    def dst(self, at: Any, /) -> Any:
        return super().dst(_moment(at))

    def tzname(self, at: Any, /) -> Any:
        return super().tzname(_moment(at))

    def __repr__(self) -> str:
        return f"zoneinfo.ZoneInfo(key={self.key!r})"


def _moment(at: Any) -> datetime.datetime | None:
    if at is not None and not isinstance(at, datetime.datetime):
        raise TypeError(f"a time zone is asked about a datetime, not about a {type(at).__name__}")
    return at


ZoneInfoNotFoundError = zoneinfo.ZoneInfoNotFoundError


def available_timezones() -> set[str]:
    return set(zones())


# What writes to the log of one Runnable.


def pprint_names(write: Write) -> dict[str, Any]:
    """The names of pprint; what would be printed goes to the log."""

    class PrettyPrinter:
        """pprint.PrettyPrinter."""

        def __init__(
            self,
            indent: int = 1,
            width: int = 80,
            depth: int | None = None,
            stream: Any = None,
            **options: Any,
        ) -> None:
            if unknown := options.keys() - {"compact", "sort_dicts", "underscore_numbers"}:
                raise TypeError(f"PrettyPrinter() got an unexpected keyword argument {min(unknown)!r}")
            self._stream = stream
            self._printer = pprint.PrettyPrinter(indent, width, depth, **options)

        def pformat(self, ob: Any) -> str:
            return self._printer.pformat(ob)

        def pprint(self, ob: Any) -> None:
            if self._stream is not None:
                self._stream.write(self.pformat(ob) + "\n")
            else:
                write("info", self.pformat(ob))

    def pformat(ob: Any, indent: int = 1, width: int = 80, depth: int | None = None, **options: Any) -> str:
        return PrettyPrinter(indent, width, depth, **options).pformat(ob)

    def show(
        ob: Any,
        stream: Any = None,
        indent: int = 1,
        width: int = 80,
        depth: int | None = None,
        **options: Any,
    ) -> None:
        PrettyPrinter(indent, width, depth, stream, **options).pprint(ob)

    def pp(ob: Any, *args: Any, sort_dicts: bool = False, **options: Any) -> None:
        show(ob, *args, sort_dicts=sort_dicts, **options)

    names = {name: getattr(pprint, name) for name in words("isreadable isrecursive saferepr")}
    return {"PrettyPrinter": PrettyPrinter, "pformat": pformat, "pprint": show, "pp": pp, **names}


def warnings_names(write: Write) -> dict[str, Any]:
    """The names of warnings; each text is logged once."""
    said: set[str] = set()

    def warn(message: Any, category: Any = UserWarning, stacklevel: int = 1, source: Any = None) -> None:
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        text = f"{kind.__name__}: {message}"
        if text not in said:
            said.add(text)
            write("warning", text)

    @contextlib.contextmanager
    def catch_warnings(**_: Any) -> Any:
        yield []

    def nothing(*_: Any, **__: Any) -> None: ...

    return {
        "warn": warn,
        "catch_warnings": catch_warnings,
        **dict.fromkeys(words("filterwarnings simplefilter resetwarnings"), nothing),
    }


def traceback_names(write: Write, explain: Callable[[BaseException], tuple[str, str]]) -> dict[str, Any]:
    """The names of traceback, which show the user's own frames."""

    def told(part: int, *args: Any) -> str:
        exc = next((item for item in args if isinstance(item, BaseException)), None)
        return "NoneType: None\n" if exc is None else explain(exc)[part] + "\n"

    def format_exc(limit: Any = None, chain: bool = True) -> str:
        return told(1, sys.exception())

    def format_exception(*args: Any, **_: Any) -> list[str]:
        return told(1, *args).splitlines(keepends=True)

    def format_exception_only(*args: Any, **_: Any) -> list[str]:
        return [told(0, *args)]

    def say(text: str, file: Any) -> None:
        if file is None:
            write("error", text.rstrip("\n"))
        else:
            file.write(text)

    def print_exc(limit: Any = None, file: Any = None, chain: bool = True) -> None:
        say(format_exc(), file)

    def print_exception(*args: Any, file: Any = None, **_: Any) -> None:
        say(told(1, *args), file)

    return {
        function.__name__: function
        for function in (format_exc, format_exception, format_exception_only, print_exc, print_exception)
    }


def names_of(ob: Any) -> list[str]:
    """`dir(ob)` of a Runnable: the names it might have used itself."""
    if isinstance(ob, type) or not is_user_class(type(ob)):
        return sorted(name for name in dir(ob) if not name.startswith(("~", PRIVATE)))
    return sorted(
        {
            *(name for name in dir(type(ob)) if not name.startswith(("~", "_", PRIVATE))),
            *read(ob, "__dict__"),
        }
    )
