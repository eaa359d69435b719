"""`logging` for a Runnable: every line goes to the log of its route."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from processor.sandbox.facades.copies import share
from processor.sandbox.facades.guards import allow_writes, unmangled, words

Write = Callable[[str, str], None]

LEVELS = {
    "CRITICAL": 50,
    "FATAL": 50,
    "ERROR": 40,
    "WARNING": 30,
    "WARN": 30,
    "INFO": 20,
    "DEBUG": 10,
    "NOTSET": 0,
}


def plain_text(ob: object) -> str:
    """`str(ob)` as a str whose methods are str's own."""
    return str.__str__(str(ob))


def _level(level: object) -> int:
    if isinstance(level, str):
        if level not in LEVELS:
            raise ValueError(f"Unknown level: {level!r}")
        return LEVELS[level]
    return int(level)  # type: ignore[call-overload,no-any-return]


def route_level(level: int) -> str:
    """What the route's log calls a level of `logging`."""
    return "debug" if level < 20 else "info" if level < 30 else "warning" if level < 40 else "error"


class Logger:
    """`logger`, `self.logger` and what getLogger() gives: the usual methods, and nothing to configure."""

    __slots__ = ("_parent", "_write", "disabled", "filters", "handlers", "level", "name", "propagate")

    def __init__(self, write: Write, name: str = "root", parent: Logger | None = None) -> None:
        self._write = write
        self._parent = parent
        self.name = name
        self.level = 0
        self.disabled = False
        self.propagate = True
        self.handlers: list[Any] = []
        self.filters: list[Any] = []

    def setLevel(self, level: int | str) -> None:
        self.level = _level(level)

    def getEffectiveLevel(self) -> int:
        return self.level or (self._parent.getEffectiveLevel() if self._parent is not None else 0)

    def isEnabledFor(self, level: int) -> bool:
        return not self.disabled and level >= self.getEffectiveLevel()

    def getChild(self, suffix: str) -> Logger:
        return Logger(self._write, f"{self.name}.{suffix}", self)

    def addHandler(self, handler: object) -> None:
        """Nothing: the route's log takes every line."""

    addFilter = removeFilter = removeHandler = addHandler

    def hasHandlers(self) -> bool:
        return True

    def debug(self, message: object, *args: Any, **options: Any) -> None:
        self._line(10, "debug", message, args, options)

    def info(self, message: object, *args: Any, **options: Any) -> None:
        self._line(20, "info", message, args, options)

    def warning(self, message: object, *args: Any, **options: Any) -> None:
        self._line(30, "warning", message, args, options)

    warn = warning

    def error(self, message: object, *args: Any, **options: Any) -> None:
        self._line(40, "error", message, args, options)

    def critical(self, message: object, *args: Any, **options: Any) -> None:
        self._line(50, "error", message, args, options)

    fatal = critical

    def exception(self, message: object, *args: Any, **options: Any) -> None:
        self._line(40, "error", message, args, {"exc_info": True, **options})

    def log(self, level: int, message: object, *args: Any, **options: Any) -> None:
        self._line(level, route_level(level), message, args, options)

    def _line(self, level: int, name: str, message: object, args: tuple[Any, ...], options: Any) -> None:
        unknown = options.keys() - {"exc_info", "extra", "stack_info", "stacklevel"}
        if unknown:
            raise TypeError(f"logging got an unexpected keyword argument {min(unknown)!r}")
        if not self.isEnabledFor(level):
            return
        text = plain_text(message)
        if args:
            values: Any = args[0] if len(args) == 1 and isinstance(args[0], dict) and args[0] else args
            try:
                text = text % values
            except (TypeError, ValueError, KeyError) as err:
                text = f"{text} {args!r} (the text does not fit its arguments: {err})"
        told = options.get("exc_info")
        current = told if isinstance(told, BaseException) else sys.exception() if told else None
        if current is not None:
            text = f"{text}: {type(current).__name__}: {current}"
        self._write(name, unmangled(text))


class _Ignored:
    """Stands for handlers and formatters, which a Runnable may make and need not."""

    __slots__ = ()

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def setFormatter(self, formatter: object) -> None: ...

    def setLevel(self, level: object) -> None: ...

    def addFilter(self, condition: object) -> None: ...


class _Adapter(Logger):
    """logging.LoggerAdapter, without its extra fields: the route's log has lines of text."""

    __slots__ = ("extra", "logger")

    def __init__(self, logger: Logger, extra: Any = None) -> None:
        super().__init__(logger._write, logger.name, logger)
        self.logger, self.extra = logger, extra


def logging_names(root: Logger) -> dict[str, Any]:
    """The names of logging, over the log that `root` writes to."""
    made: dict[str, Logger] = {}

    def get_logger(name: object = None) -> Logger:
        if not name or name == "root":
            return root
        key = plain_text(name)
        if key not in made:
            above = key.rpartition(".")[0]
            made[key] = Logger(root._write, key, get_logger(above) if above else root)
        return made[key]

    def basic_config(*, level: int | str = 0, **_: Any) -> None:
        root.setLevel(level)

    def level_name(level: Any) -> Any:
        known = {number: name for name, number in reversed(LEVELS.items())}
        return LEVELS[level] if level in LEVELS else known.get(level, f"Level {level}")

    def disable(level: int | str = 50) -> None:
        root.setLevel(_level(level) + 1)

    return {
        **LEVELS,
        "getLogger": get_logger,
        "basicConfig": basic_config,
        "getLevelName": level_name,
        "disable": disable,
        "captureWarnings": lambda capture: None,
        "Logger": Logger,
        "LoggerAdapter": _Adapter,
        **dict.fromkeys(("StreamHandler", "NullHandler", "Handler", "Formatter", "Filter"), _Ignored),
        **{
            name: getattr(root, name)
            for name in words("debug info warning warn error critical exception log")
        },
    }


for _kind in (Logger, _Adapter):
    share(_kind)
    allow_writes(_kind)
