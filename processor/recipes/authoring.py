"""What steps import where they run as programs of their own, in tests and by hand: the same as in a guest.

The wheel of `deploy/compat` has these by the names that steps import them by. Nothing is confined here.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import datetime
from typing import Any, TextIO

from processor.model import STEP_MODULES, LogLine
from processor.sandbox.usage import tracker

__all__ = ["BaseScriptlet", "get_logger", "track_resources"]

LINE = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
TIME = "%Y-%m-%dT%H:%M:%S"


class BaseScriptlet:
    """What a step derives from: `validate` asserts what its parameters have to be, and `run` does the work.

    `run` returns `{"status": "ok", ...}` or 0 where it ended well, and what a failure is otherwise.
    """

    def validate(self, ctx: Any, params: Any) -> None:
        """Raise AssertionError where the parameters are not what `run` needs. By default they all are."""

    def run(self, ctx: Any, params: Any) -> Any:
        """Do the work with these parameters; `ctx` is the Context that all steps share."""
        raise NotImplementedError(f"{type(self).__name__} has no run(self, ctx, params)")


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is when a line comes, where nobody else takes what the program logs."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(LINE, TIME))

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        raise AttributeError("lines go to standard error")

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.root.handlers:
            super().emit(record)


_HANDLER = _ToStandardError()


def line_of(line: LogLine, module: str, moment: datetime) -> str:
    """A line that a step in a guest has logged, as `get_logger` writes it; `module` where it names none."""
    text = line.text if _NAMES_MODULE.match(line.text) else f"{module} | {line.text}"
    return f"{moment.strftime(TIME)} | {line.level.upper()} | {text}"


_NAMES_MODULE = re.compile(r"[\w.-]+ \| ")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: `YYYY-MM-DDTHH:MM:SS | LEVEL | module | message` on standard error, from INFO.

    Where the program has handlers of its own at the root, such as pytest, they alone take the lines.
    """
    logger = logging.getLogger(name)
    if _HANDLER not in logger.handlers:
        logger.addHandler(_HANDLER)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    return logger


track_resources = tracker(lambda text: get_logger(STEP_MODULES[3]).info("%s", text))
