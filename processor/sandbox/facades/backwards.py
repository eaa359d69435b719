"""`reversed` of a dict, and of what shows one: it looks behind no table that a dict has got meanwhile.

C's iterator begins where a dict's entries ended when it was made, and reads there at its next step, though
the dict may have a smaller table by then, of as many keys: what lies behind that would be taken for objects.
Here the last item is read where the iterator is made, in one call of C, and the others are copied.
"""

from __future__ import annotations

import builtins
import functools
import types
from collections.abc import Iterator
from typing import Any

from processor.sandbox.facades.exact import last_of, wrapper

_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_SHOWING = (dict, types.MappingProxyType, *_VIEWS)
_OF_C: frozenset[type] = frozenset(map(type, (reversed({}), reversed({}.values()), reversed({}.items()))))


def backwards(ob: Any, /) -> Iterator[Any]:
    """reversed(ob)."""
    made = builtins.reversed(ob)
    return of_dict(ob) if type(made) in _OF_C else made


def of_dict(ob: Any, /) -> Iterator[Any]:
    """`__reversed__` of a dict, of a view of one, or of a proxy, which does not know of a user's own."""
    if isinstance(ob, dict):
        ob = dict.keys(ob)
    elif type(ob) is types.MappingProxyType:
        ob = ob.keys()
    elif type(ob) not in _VIEWS:
        raise TypeError(f"'__reversed__' of a dict is not for a {type(ob).__name__!r} object")
    return _walk(ob, len(ob))


def _walk(view: Any, count: int) -> Iterator[Any]:
    rest: list[Any] = []
    for step in range(count):
        if len(view) != count:
            raise RuntimeError("dictionary changed size during iteration")
        if step == 0:
            yield last_of(view)
            continue
        if step == 1:
            rest = list(view)[:-1]
        yield rest.pop()


def reverser(value: Any) -> Any:
    """`value`, which is `__reversed__` of something, bound or not."""
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, _SHOWING):
        return functools.partial(of_dict, value.__self__)
    if isinstance(value, types.MethodDescriptorType) and value.__objclass__ in _SHOWING:
        return _UNBOUND
    return value


def _unbound(ob: Any, /) -> Iterator[Any]:
    return of_dict(ob)


_UNBOUND = wrapper(_unbound)
