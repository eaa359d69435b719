"""What one call takes: time, memory of the process, and memory of Python's own objects.

`tracker` makes the decorator `track_resources` of steps, for guests and for programs of one's own: it says
one line of JSON for each call. Calls may nest; each has what it took itself, with all that it called.
"""

from __future__ import annotations

import functools
import inspect
import json
import resource
import threading
import time
import tracemalloc
from collections.abc import Callable
from types import FunctionType, TracebackType
from typing import Any

_RSS_UNIT = 1024  # of ru_maxrss, on Linux


class _Measured:
    """One call in progress."""

    _lock = threading.Lock()
    _open: list[_Measured] = []  # noqa: RUF012 - of the process, as what is measured is
    _is_ours = False  # whether tracing began with the first of these

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._peak = 0

    def __enter__(self) -> None:
        kind = _Measured
        with self._lock:
            if not kind._open:
                kind._is_ours = not tracemalloc.is_tracing()
                if kind._is_ours:
                    tracemalloc.start()
            self._note_peak()
            tracemalloc.reset_peak()
            self._heap = tracemalloc.get_traced_memory()[0]
            kind._open.append(self)
        self._rss = _most_resident()
        self._begin = time.perf_counter()

    def __exit__(self, kind: type | None, err: BaseException | None, trace: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._begin
        rss = _most_resident() - self._rss
        cls = _Measured
        with self._lock:
            self._note_peak()
            current = tracemalloc.get_traced_memory()[0]
            cls._open.remove(self)
            if not cls._open and cls._is_ours:
                tracemalloc.stop()
        said = {
            "metric": "resource_usage",
            "function": self._name,
            "seconds": round(seconds, 6),
            "rss_delta": rss,
            "heap_current": current - self._heap,
            "heap_peak": self._peak - self._heap,
        }
        self._say(json.dumps(said))

    @classmethod
    def _note_peak(cls) -> None:
        """A peak is of all calls that were open when it was reached."""
        peak = tracemalloc.get_traced_memory()[1]
        for each in cls._open:
            each._peak = max(each._peak, peak)


def _most_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def tracker(say: Callable[[str], None], *, has_coroutines: bool = True) -> Callable[[Any], Any]:
    """The decorator; `say` takes each line. Where there are no coroutines, functions are not looked into."""

    def track_resources(function: Any) -> Any:
        """Say what each call of `function` takes, in one line of JSON, whether it returns or raises.

        `seconds` of the clock; in bytes `rss_delta`, by which the most memory that the process ever had grew,
        `heap_current`, what Python has more than before, and `heap_peak`, the most of that meanwhile.
        """
        is_function = type(function) is FunctionType  # what else is called may have any idea of its name
        name = function.__name__ if is_function else type(function).__name__

        def measured(*args: Any, **kwargs: Any) -> Any:
            with _Measured(name, say):
                return function(*args, **kwargs)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with _Measured(name, say):
                return await function(*args, **kwargs)

        if not is_function:
            return measured
        is_awaited = has_coroutines and inspect.iscoroutinefunction(function)
        return functools.wraps(function)(awaited if is_awaited else measured)

    return track_resources
