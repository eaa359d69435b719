"""Names, attributes and classes while a Runnable runs: what it may read, set and derive from.

`dialect` decides by name, when a Runnable is compiled, what may be reached directly. What depends on the type
of an object is asked of the functions here. Nothing here gets, sets or defines a name of the user's choice
that was not vetted first, and nothing hands out a metaclass.

A private attribute `_x` is kept under `ǀ_x`, a name that no host object owns, so private names need no guard
at all. Names that begin with `~` are ours and cannot be spelled in a source.
"""

from __future__ import annotations

import _string  # type: ignore[import-not-found]
import decimal
import enum
import re
import string
import types
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

# A letter, as __slots__ takes only identifiers; one that nobody begins a name with.
PRIVATE = "\u01c0"


def words(text: str) -> list[str]:
    return text.split()


# What a user's class may define or name of the interpreter's protocols.
METHODS = frozenset(
    f"__{name}__"
    for name in words(
        "abs add and bool bytes call ceil complex contains delitem divmod enter eq exit float floor "
        "floordiv format ge getitem gt hash iadd iand ifloordiv ilshift imatmul imod imul index init int "
        "invert ior ipow irshift isub iter itruediv ixor le len length_hint lshift lt matmul missing mod mul "
        "ne neg next or pos post_init pow radd rand rdivmod repr reversed rfloordiv rlshift rmatmul rmod "
        "rmul ror round rpow rrshift rshift rsub rtruediv rxor setitem str sub truediv trunc xor"
    )
)

# Names in a class body that the compiler or the user puts there besides methods.
CLASS_NAMES = frozenset(
    (
        "__module__", "__qualname__", "__doc__", "__classcell__", "__slots__", "__match_args__",
        "__firstlineno__", "__static_attributes__", "__orig_bases__", "__class_getitem__",
    )
)  # fmt: skip

_INTERNALS = (
    types.FrameType, types.CodeType, types.TracebackType, types.GeneratorType, types.CoroutineType,
    types.AsyncGeneratorType,
)  # fmt: skip

# Attributes of the interpreter's own objects, on whichever version we run.
FORBIDDEN = frozenset(
    name
    for kind in _INTERNALS
    for name in dir(kind)
    if name.startswith(("f_", "co_", "tb_", "gi_", "cr_", "ag_"))
) | {"f_generator", "gi_suspended", "cr_suspended", "ag_suspended", "co_lnotab"}

# Where a class keeps what it annotated, for data classes and named tuples.
FIELDS = "~fields"
# Where a base keeps the function that builds a class from a class statement that names it.
BUILD = "~build"

user_classes: set[type] = set()
bases_allowed: set[type] = set()


def bless(cls: type) -> None:
    """Let users derive from `cls`, a class of ours whose public attributes have been reviewed."""
    bases_allowed.add(cls)


def is_user_class(cls: object) -> bool:
    return isinstance(cls, type) and cls in user_classes


def is_dunder(name: str) -> bool:
    return len(name) > 4 and name.startswith("__") and name.endswith("__")


def attribute(name: str) -> str:
    """The name under which an object keeps its attribute `name`."""
    if name.startswith("_") and name != "_" and not is_dunder(name):
        return PRIVATE + name
    return name


def mangled(name: str, owner: str) -> str:
    """What the compiler makes of `name` in the body of class `owner`."""
    stripped = owner.lstrip("_")
    if stripped and name.startswith("__") and not name.endswith("__"):
        return f"_{stripped}{name}"
    return name


def unmangled(text: str) -> str:
    """`text` with the names of private attributes as the user wrote them."""
    return text.replace(PRIVATE + "_", "_")


# Reading attributes.


def _refuse(name: str, why: str = "") -> NoReturn:
    raise AttributeError(f"{name!r} is not accessible in a Runnable{why}")


def _kind(ob: object) -> type:
    return ob if isinstance(ob, type) else type(ob)


def _not_of(*kinds: type) -> Callable[[object, str], Any]:
    def get(ob: object, name: str) -> Any:
        if issubclass(_kind(ob), kinds):
            _refuse(name)
        return _outside(getattr(ob, name), name, kinds)

    return get


def _outside(value: Any, name: str, kinds: tuple[type, ...]) -> Any:
    """`value`, unless it is a method of one of `kinds`: what forwards attributes must not lend them."""
    owner = getattr(value, "__objclass__", None) or type(getattr(value, "__self__", None))
    if isinstance(owner, type) and issubclass(owner, kinds):
        _refuse(name)
    return value


def _mro(ob: object, name: str) -> Any:
    if type(ob) not in user_classes:
        _refuse(name, "; ask with isinstance() or issubclass()")
    return getattr(ob, name)


class _Formatter(string.Formatter):
    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        first, rest = _string.formatter_field_name_split(field_name)
        ob = self.get_value(first, args, kwargs)
        for is_attribute, key in rest:
            ob = read(ob, key) if is_attribute else ob[key]
        return ob, first


_formatter = _Formatter()
_MAY_READ_ATTRIBUTES = re.compile(r"\[|\{[^{}:!]*\.")


def _format(ob: object, name: str) -> Any:
    """`str.format` that reads attributes through `read`; any other object's own `format`."""
    if not isinstance(ob, str):
        return _outside(getattr(ob, name), name, (str,))
    template = str.__str__(ob)
    if type(template) is str and not _MAY_READ_ATTRIBUTES.search(template):
        return getattr(template, name)
    if name == "format":
        return lambda *args, **kwargs: _formatter.vformat(template, args, kwargs)
    return lambda mapping: _formatter.vformat(template, (), mapping)


def _text_of(ob: object, name: str) -> Any:
    text = getattr(ob, name)
    if text is not None and type(text) is not str:
        _refuse(name)
    return text


def _of_exceptions(ob: object, name: str) -> Any:
    if not isinstance(ob, BaseException):
        _refuse(name)
    return getattr(ob, name)


def _members(ob: object, name: str) -> Any:
    if not isinstance(ob, enum.EnumMeta):
        _refuse(name)
    return dict(getattr(ob, name))


_SLOTS = (types.WrapperDescriptorType, types.MethodDescriptorType, types.MethodWrapperType)


def _method(ob: Any, name: str) -> Any:
    if name == "__init__":
        return _initializer(ob)
    value = getattr(ob, name)
    # A host class's own Python code trusts its `self`; through the class a user could give it any.
    if isinstance(ob, type) and not (is_user_function(value) or isinstance(value, _SLOTS)):
        _refuse(name, " on a class; use the operator or function that stands for it")
    return value


def _initializer(ob: Any) -> Callable[..., None]:
    """`Base.__init__` for a call with an instance of `Base`; nothing else can be initialized again."""
    if not (isinstance(ob, type) and (ob in user_classes or ob in bases_allowed)):
        _refuse("__init__", "; call the class")

    def initialize(self: Any, /, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self, ob) or type(self) not in user_classes:
            raise TypeError(f"{ob.__name__}.__init__() is for an instance of a class derived from it")
        getattr(ob, "__init__")(self, *args, **kwargs)  # noqa: B009 (mypy has no word for a class of the user's)

    return initialize


def _class_of(ob: object, name: str) -> Any:
    return class_of(ob)


# How an attribute is read whose meaning depends on the object it is read from.
DEPENDENT: dict[str, Callable[[object, str], Any]] = {
    "format": _format,
    "format_map": _format,
    "mro": _mro,
    "obj": _not_of(BaseException),
    "with_traceback": _not_of(BaseException),
    "fget": _not_of(property, types.DynamicClassAttribute),
    "fset": _not_of(property, types.DynamicClassAttribute),
    "fdel": _not_of(property, types.DynamicClassAttribute),
    "__name__": _text_of,
    "__qualname__": _text_of,
    "__doc__": _text_of,
    "__class__": _class_of,
    "__cause__": _of_exceptions,
    "__context__": _of_exceptions,
    "__members__": _members,
    **dict.fromkeys(METHODS, _method),
}


def read(ob: Any, name: str, *default: Any) -> Any:
    """The attribute `name` of `ob`, by the rules of the dialect; also the `getattr` of a Runnable."""
    _check_name(name)
    get = DEPENDENT.get(name)
    try:
        if get is not None:
            return get(ob, name)
        return getattr(ob, _vetted(name))
    except AttributeError:
        if default:
            return default[0]
        raise


def has(ob: Any, name: str) -> bool:
    try:
        read(ob, name)
    except AttributeError:
        return False
    return True


def _vetted(name: str) -> str:
    if name in FORBIDDEN or is_dunder(name) or not name.isidentifier():
        _refuse(name)
    return attribute(name)


# Writing attributes.

_WRITABLE = frozenset((types.SimpleNamespace, decimal.Context))


def is_user_function(ob: object) -> bool:
    return type(ob) is types.FunctionType and "~write" in ob.__globals__.get("__builtins__", ())


def _check_name(name: object) -> None:
    if type(name) is not str:  # a str of the user's own class could change its mind
        raise TypeError(f"an attribute's name is a str, not {type(name).__name__}")


def writable(ob: Any) -> Any:
    """`ob`, where a Runnable may set or delete its attributes. Raises AttributeError."""
    kind = type(ob)
    if kind in user_classes or kind in _WRITABLE:
        return ob
    if (isinstance(ob, type) and ob in user_classes) or is_user_function(ob):
        return ob
    if kind is types.ModuleType:
        raise AttributeError("a module's attributes cannot be set in a Runnable; use a name of your own")
    raise AttributeError(f"attributes of {kind.__name__!r} objects cannot be set in a Runnable")


def write(ob: Any, name: str, value: Any) -> None:
    _check_name(name)
    setattr(writable(ob), _vetted(name), value)


def put(ob: Any, name: str, value: Any) -> None:
    """`object.__setattr__` of a Runnable: how the `__post_init__` of a frozen data class sets a field."""
    _check_name(name)
    if type(ob) not in user_classes:
        raise TypeError("object.__setattr__() is for an instance of a class of your own")
    object.__setattr__(ob, _vetted(name), value)


def delete(ob: Any, name: str) -> None:
    _check_name(name)
    delattr(writable(ob), _vetted(name))


# Classes.


class _Shown(type):
    """Metaclass of classes that stand for another one: they compare and test, and make nothing."""

    _kind: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{cls.__name__!r} objects cannot be made by a call in a Runnable")

    def __instancecheck__(cls, ob: object) -> bool:
        return isinstance(ob, cls._kind)

    def __repr__(cls) -> str:
        return f"<class {cls.__name__!r}>"


class _Type(_Shown):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            raise TypeError("type() takes one argument in a Runnable; write a class statement")
        return class_of(args[0])


def _shown(kind: type, meta: type[_Shown] = _Shown) -> type:
    return meta(kind.__name__, (), {"_kind": kind, "__module__": "builtins"})


# `type` itself, and the classes whose constructors take apart or put together what users must not.
TYPE = _shown(type, _Type)
_SHOWN: dict[type, type] = {
    kind: _shown(kind)
    for kind in (
        *_INTERNALS, types.FunctionType, types.MethodType, types.ModuleType, types.CellType,
        types.GenericAlias, types.BuiltinFunctionType, classmethod, staticmethod,
    )
}  # fmt: skip


def class_of(ob: object) -> Any:
    """The class of `ob`; never a metaclass, which would build classes past `user_class`."""
    kind = type(ob)
    if issubclass(kind, type):
        return TYPE
    if issubclass(kind, types.GenericAlias):
        return _SHOWN[types.GenericAlias]
    return _SHOWN.get(kind, kind)


def matchable(subject: Any, *classes: Any) -> Any:
    """`subject` of a match statement whose cases name `classes` with positional patterns.

    Such a pattern reads what `__match_args__` lists, so the class has to be one whose list was vetted.
    """
    for cls in classes:
        if not (cls in user_classes or cls in _SELF_MATCHING):
            raise TypeError(
                f"positional patterns are for classes of your own, not {cls!r}; name the attributes"
            )
    return subject


_SELF_MATCHING = frozenset((bool, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple))


def user_class(name: str, bases: tuple[type, ...], body: Mapping[str, Any], **options: Any) -> type:
    """The class that a class statement makes. Raises TypeError for what a user's class may not be."""
    is_enum = any(isinstance(base, enum.EnumMeta) for base in bases)
    for base in bases:
        if not (base in user_classes or base in bases_allowed or (is_enum and base is str)):
            raise TypeError(f"a class in a Runnable cannot derive from {getattr(base, '__name__', base)!r}")
    for base in bases:
        if BUILD in base.__dict__:
            return base.__dict__[BUILD](name, body)  # type: ignore[no-any-return]
    members = {}
    for key, value in body.items():
        if is_dunder(key):
            if key not in METHODS and key not in CLASS_NAMES:
                raise TypeError(f"{key} cannot be defined in a Runnable")
            members[key] = value
        elif is_enum and key in _ENUM_HOOKS:
            members[key] = value
        else:
            members[attribute(key)] = value
    members.pop("__orig_bases__", None)
    if "__slots__" in members:
        members["__slots__"] = _slots(name, members["__slots__"])
    if "__match_args__" in members:
        members["__match_args__"] = _match_args(members["__match_args__"])
    return register(_metaclass(bases), name, bases, members)


_ENUM_HOOKS = frozenset(("_missing_", "_generate_next_value_", "_ignore_"))


def _metaclass(bases: tuple[type, ...]) -> type:
    winner = type
    for base in bases:
        if issubclass(type(base), winner):
            winner = type(base)
    return winner


def register(meta: type, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> type:
    space = meta.__prepare__(name, bases)
    for key, value in members.items():
        space[key] = value  # one by one: Enum's mapping takes note of each
    cls: type = meta(name, bases, space)
    user_classes.add(cls)
    return cls


def _slots(owner: str, value: Any) -> tuple[str, ...]:
    names = []
    for name in (value,) if type(value) is str else tuple(value):
        if type(name) is not str or is_dunder(name) or name in FORBIDDEN:
            raise TypeError(f"__slots__ names {name!r}, which cannot be an attribute in a Runnable")
        names.append(attribute(mangled(name, owner)))
    return tuple(names)


def _match_args(value: Any) -> tuple[str, ...]:
    names = value if type(value) is tuple else ()
    for name in (value,) if names is not value else names:
        if type(name) is not str or is_dunder(name) or name in FORBIDDEN or name in DEPENDENT:
            raise TypeError(f"__match_args__ is a tuple of attribute names, and {name!r} cannot be one")
    return tuple(attribute(name) for name in names)


def mix(cls: type, base: type) -> type:
    """`cls` with `base` added to its bases, unless it derives from it already."""
    if issubclass(cls, base):
        return cls
    return register(_metaclass((cls, base)), cls.__name__, (cls, base), {"__module__": cls.__module__})
