"""decimal's contexts, as a Runnable has them: none is freed while C may still work with it.

C borrows the current context for as long as it works on a number, and code of a user's that runs meanwhile
(a key's `__eq__`, a generator's `finally`) may leave a `localcontext()`. A context's `flags` and `traps`
point into it, and do not hold it. `facades` hands out what is here in the place of its namesakes.
"""

from __future__ import annotations

import decimal
import sys
from collections import deque
from collections.abc import Iterator, MutableMapping
from typing import Any

_SETTINGS = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "flags", "traps")
_SIGNALS = frozenset(("flags", "traps"))
_get = decimal.Context.__getattribute__
_set = decimal.Context.__setattr__


class Signals(MutableMapping[Any, bool]):
    """The signals of a context, which it holds."""

    __slots__ = ("_context", "_signals")

    def __init__(self, context: decimal.Context, signals: Any) -> None:
        self._context = context
        self._signals = signals

    def __getitem__(self, signal: Any) -> bool:
        return bool(self._signals[signal])

    def __setitem__(self, signal: Any, value: Any) -> None:
        self._signals[signal] = bool(value)

    def __delitem__(self, signal: Any) -> None:
        raise ValueError("signal keys cannot be deleted")

    def __iter__(self) -> Iterator[Any]:
        return iter(self._signals)

    def __len__(self) -> int:
        return len(self._signals)

    def __repr__(self) -> str:
        return repr(self._signals)

    def copy(self) -> dict[Any, bool]:
        return dict(self)


class Context(decimal.Context):
    """decimal.Context, as its namesake."""

    __slots__ = ()

    def __init__(
        self,
        prec: Any = None,
        rounding: Any = None,
        Emin: Any = None,
        Emax: Any = None,
        capitals: Any = None,
        clamp: Any = None,
        flags: Any = None,
        traps: Any = None,
    ) -> None:
        decimal.Context.__init__(
            self, prec, rounding, Emin, Emax, capitals, clamp, _of_c(flags), _of_c(traps)
        )

    def __getattribute__(self, name: str) -> Any:
        found = _get(self, name)
        return Signals(self, found) if name in _SIGNALS else found

    def __setattr__(self, name: str, value: Any) -> None:
        _set(self, name, _of_c(value))

    def copy(self) -> Any:
        return _take_over(Context(), self)

    __copy__ = copy


Context.__module__ = "decimal"


def _of_c(value: Any) -> Any:
    return value.copy() if type(value) is Signals else value


def _take_over(context: Context, source: decimal.Context) -> Context:
    """`context` with the settings of `source`."""
    for name in _SETTINGS:
        _set(context, name, _get(source, name))
    return context


# All that were ever the current one: one is used again where nobody else holds it, and never freed.
_used: deque[Context] = deque()
_SEARCHED = 8  # more than are in use at once in a program that does not keep them
_ONLY_HERE = 3  # references of one that nobody else holds: in `_used`, in the loop below, in the question


def getcontext() -> Context:
    """decimal.getcontext."""
    found = decimal.getcontext()
    if type(found) is Context:
        return found
    raise RuntimeError("the current context of decimal is not the one that was set at the start")


def _another(source: decimal.Context) -> Context:
    """A context with the settings of `source`, to be the current one."""
    for _ in range(min(_SEARCHED, len(_used))):
        context = _used[-1]
        if sys.getrefcount(context) <= _ONLY_HERE:
            return _take_over(context, source)
        _used.rotate(1)
    made = _take_over(Context(), source)
    _used.append(made)
    return made


class _Local:
    """What `localcontext()` gives a `with`."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, outer: Context, inner: Context) -> None:
        self._outer = outer
        self._inner = inner

    def __enter__(self) -> Context:
        decimal.setcontext(self._inner)
        return self._inner

    def __exit__(self, *_: object) -> None:
        decimal.setcontext(self._outer)


def localcontext(ctx: Any = None, **settings: Any) -> Any:
    """decimal.localcontext."""
    outer = getcontext()
    if ctx is not None and not isinstance(ctx, decimal.Context):
        raise TypeError("optional argument must be a context")
    if settings and (unknown := settings.keys() - set(_SETTINGS)):
        raise TypeError(f"{min(unknown)!r} is an invalid keyword argument for this function")
    inner = _another(outer if ctx is None else ctx)
    for name, value in settings.items():
        if value is not None:
            setattr(inner, name, value)
    return _Local(outer, inner)


def guard_decimal() -> None:
    """Make the current context one of those that are never freed."""
    decimal.setcontext(_another(decimal.getcontext()))
