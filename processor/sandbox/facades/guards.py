"""Names, attributes and classes while a Runnable runs: what it may read, set and derive from.

`dialect` decides by name, when a Runnable is compiled, what may be reached directly. What depends on the type
of an object is asked of the functions here. Nothing here gets, sets or defines a name of the user's choice
that was not vetted first, and nothing hands out a metaclass.

A private attribute `_x` is kept under `ǀ_x`, a name that no host object owns, so private names need no guard
at all. Names that begin with `~` are ours and cannot be spelled in a source.
"""

from __future__ import annotations

import _string  # type: ignore[import-not-found]
import abc
import csv
import enum
import functools
import io
import re
import string
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from processor.sandbox.documents import expect_changes, user_classes
from processor.sandbox.facades import exact
from processor.sandbox.facades.backwards import backwards, reverser
from processor.sandbox.facades.decimals import Context

# A letter, as __slots__ takes only identifiers; one that nobody begins a name with.
PRIVATE = "\u01c0"


def words(text: str) -> list[str]:
    return text.split()


# What stands before a function that stands for a call which is to be made later.
LATER = PRIVATE + "later"

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

# What a user's class may define for the interpreter to call. None of it can be had from an object by name,
# but what is in DEPENDENT; after super() there are those that no class of ours has.
AFTER_SUPER = frozenset(
    (
        "__getattr__",
        "__init_subclass__",
        "__set_name__",
        "__get__",
        "__set__",
        "__delete__",
        "__copy__",
        "__deepcopy__",
    )
)
HOOKS = AFTER_SUPER | {"__new__", "__setattr__", "__delattr__"}

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
# Where a class with bases keeps what its annotations evaluate to, as a function, for models.
HINTS = "~hints"
# Where a base keeps the function that builds a class from a class statement that names it.
BUILD = "~build"
# Where a data class keeps the `__init__` written out for it, and what makes a default of `field()` anew.
INIT = "~init"
FRESH = "~fresh"
# What `__dict__` is called where something is done to it.
WRITTEN_DICT = "~dict"
# Under which a class, while it is made, keeps what makes it one of the user's before any hook of it runs.
REGISTRAR = "~registrar"

# What an Enum keeps under names with one underscore at both ends; they are not private to anyone.
ENUM_NAMES = frozenset(("_value_", "_name_", "_member_map_", "_member_names_", "_value2member_map_"))

bases_allowed: set[type] = set()


def bless(cls: type) -> None:
    """Let users derive from `cls`, a class of ours whose public attributes have been reviewed."""
    bases_allowed.add(cls)


def insisting(cls: type) -> type:
    """`cls`, a class of ours whose methods refuse a `self` that is none of its instances.

    Given a class as `self`, `self.__class__(...)` is a call of the metaclass; given a facade or a class of
    the host's, `self.x = ...` changes it for everyone.
    """
    for name, value in list(vars(cls).items()):
        if isinstance(value, types.FunctionType) and not name.startswith("_"):
            insist_on_self(cls, name)
    return cls


def insist_on_self(cls: type, name: str) -> None:
    """Make `cls.name` refuse a `self` that is no instance of `cls`."""
    found = cls.__dict__[name]
    method: Any = found.fget if isinstance(found, property) else found

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, cls):
            raise TypeError(f"{cls.__name__}.{name}() is for an instance of {cls.__name__}")
        return method(self, *args, **kwargs)

    setattr(cls, name, property(checked) if isinstance(found, property) else checked)


def is_user_class(cls: object) -> bool:
    return isinstance(cls, type) and cls in user_classes


def _may_be_base(cls: object) -> bool:
    """Whether `cls` is a class that a user may derive from."""
    return isinstance(cls, type) and (cls in user_classes or cls in bases_allowed)


def is_dunder(name: str) -> bool:
    return len(name) > 4 and name.startswith("__") and name.endswith("__")


def attribute(name: str) -> str:
    """The name under which an object keeps its attribute `name`."""
    if name.startswith("_") and name != "_" and not is_dunder(name) and name not in ENUM_NAMES:
        return PRIVATE + name
    return name


def mangled(name: str, owner: str) -> str:
    """What the compiler makes of `name` in the body of class `owner`."""
    stripped = owner.lstrip("_")
    if stripped and name.startswith("__") and not name.endswith("__"):
        return f"_{stripped}{name}"
    return name


def unmangled(text: str) -> str:
    """`text` with the names of private attributes as the user wrote them; a str, whatever `text` was."""
    return str.replace(text, PRIVATE + "_", "_")


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


def _register(ob: object, name: str) -> Any:
    """`register` of an abstract class only where the class is the user's: the others are shared by all."""
    value = getattr(ob, name)
    if getattr(value, "__func__", None) is abc.ABCMeta.register and value.__self__ not in user_classes:
        _refuse(name, " on a class that is not yours; derive from it")
    return value


def _without_traceback(ob: object, name: str) -> Any:
    """`exception.with_traceback` as far as it takes a traceback away: a Runnable has none to give."""
    if not isinstance(ob, BaseException):
        return _not_of(BaseException)(ob, name)

    def with_traceback(trace: None) -> BaseException:
        if trace is not None:
            raise TypeError("with_traceback() takes None in a Runnable")
        return BaseException.with_traceback(ob, None)

    return with_traceback


def _throw(ob: object, name: str) -> Any:
    """`generator.throw`, while what the generator delegates to is held.

    C of CPython 3.11 frees it in the middle of its work, and a `finally` in it could resume the generator.
    """
    if not isinstance(ob, types.GeneratorType):
        return _outside(getattr(ob, name), name, (types.GeneratorType,))

    def throw(*args: Any) -> Any:
        held: list[Any] = [ob.gi_yieldfrom]
        while isinstance(held[-1], types.GeneratorType):
            held.append(held[-1].gi_yieldfrom)
        return ob.throw(*args)

    return throw


class _Formatter(string.Formatter):
    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        first, rest = _string.formatter_field_name_split(field_name)
        ob = self.get_value(first, args, kwargs)
        for is_attribute, key in rest:
            ob = read(ob, key) if is_attribute else ob[key]
        return ob, first


_formatter = _Formatter()
_MAY_READ_ATTRIBUTES = re.compile(r"\[|\{[^{}:!]*\.")


@functools.lru_cache(256)
def _may_read_attributes(template: str) -> bool:
    return _MAY_READ_ATTRIBUTES.search(template) is not None


def _format(ob: object, name: str) -> Any:
    """`str.format` that reads attributes through `read`; any other object's own `format`."""
    if not isinstance(ob, str):
        return _outside(getattr(ob, name), name, (str,))
    template = str.__str__(ob)
    if type(template) is str and not _may_read_attributes(template):
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
    members = getattr(ob, name)
    return list(members) if type(members) is list else dict(members)


_SLOTS = (types.WrapperDescriptorType, types.MethodDescriptorType, types.MethodWrapperType)


def _method(ob: Any, name: str) -> Any:
    if name == "__init__":
        return _initializer(ob)
    value = getattr(ob, name)
    if name == "__setitem__" and isinstance(value, _SLOTS) and issubclass(_kind(ob), list):
        return exact.list_setter(value)
    if name == "__ior__":
        value = exact.dict_slot(name, value)
    if name == "__reversed__":
        value = reverser(value)
    # A host class's own Python code trusts its `self`; through the class a user could give it any.
    if isinstance(ob, type) and not (
        is_user_function(value) or isinstance(value, _SLOTS) or exact.is_wrapper(value)
    ):
        _refuse(name, " on a class; use the operator or function that stands for it")
    return value


def _initializer(ob: Any) -> Callable[..., None]:
    """`Base.__init__` for a call with an instance of `Base`; nothing else can be initialized again."""
    if not _may_be_base(ob):
        _refuse("__init__", "; call the class")

    def initialize(self: Any, /, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self, ob) or type(self) not in user_classes:
            raise TypeError(f"{ob.__name__}.__init__() is for an instance of a class derived from it")
        exact.dict_slot("__init__", getattr(ob, "__init__"))(self, *args, **kwargs)  # noqa: B009

    initialize.__name__ = "__init__"
    return initialize


def _annotations(ob: Any, name: str) -> dict[str, Any]:
    """What a user's class annotates, as classes or as text."""
    if not is_user_class(ob):
        ob = type(ob)
    if ob not in user_classes:
        _refuse(name)
    return {field: type_ for field, _, type_ in ob.__dict__.get(FIELDS, ())}


def _owner(ob: Any, name: str) -> type:
    """The class whose method `name` is asked for: a user's, `object` and the like, or that of super()."""
    if type(ob) is super:
        return ob.__thisclass__  # type: ignore[attr-defined,no-any-return]
    if not _may_be_base(ob):
        _refuse(name, "; call the class" if name == "__new__" else "")
    return ob  # type: ignore[no-any-return]


def _maker(ob: Any, name: str) -> Callable[..., Any]:
    """`Base.__new__`, which makes instances of classes of the user's own."""
    owner, make = _owner(ob, name), getattr(ob, name)

    def new(cls: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not (is_user_class(cls) and issubclass(cls, owner)):
            raise TypeError(f"{owner.__name__}.__new__() is for a class derived from it")
        return make(cls, *args, **kwargs)

    return new


def _setter(ob: Any, name: str) -> Callable[..., None]:
    """`super().__setattr__`, `Base.__setattr__` and `__delattr__`, for names that may be set."""
    if type(ob) in user_classes:
        return functools.partial(write if name == "__setattr__" else delete, ob)
    owner, change = _owner(ob, name), getattr(ob, name)
    of_self = [_SUPER_SELF(ob)] if type(ob) is super else []

    def set_or_delete(*args: Any) -> None:
        target, key, *value = (*of_self, *args)
        _check_name(key)
        if type(target) not in user_classes or not isinstance(target, owner):
            raise TypeError(f"{owner.__name__}.{name}() is for an instance of a class derived from it")
        change(*args[: 1 - len(of_self)], _vetted(key), *value)

    return set_or_delete


def _space(ob: Any) -> dict[str, Any]:
    """Where `ob` keeps its attributes. Raises AttributeError for what is not of the user's making."""
    if type(ob) in user_classes or type(ob) is types.SimpleNamespace:
        return object.__getattribute__(ob, "__dict__")  # type: ignore[no-any-return]
    _refuse("__dict__", f" for {_kind(ob).__name__!r} objects")


def attributes_of(ob: Any) -> dict[str, Any]:
    """`vars(ob)` of a Runnable: a copy of the user's attributes, as the dict itself would take any name."""
    if is_user_class(ob):
        items = [(key, value) for key, value in ob.__dict__.items() if not is_dunder(key)]
    else:
        items = list(_space(ob).items())
    return {unmangled(key): value for key, value in items if key[:1] not in "_~" or is_dunder(key)}


class _Attributes(dict[str, Any]):
    """What `ob.__dict__` is where it is written to."""

    def __init__(self, ob: Any) -> None:
        self._space = _space(ob)
        super().__init__(attributes_of(ob))

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        self._space[_vetted(name)] = value
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        del self._space[_vetted(name)]

    def update(self, *others: Any, **items: Any) -> None:
        for name, value in dict(*others, **items).items():
            self[name] = value

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)
        return self

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, *default: Any) -> Any:
        if name in self:
            value = self[name]
            del self[name]
            return value
        return super().pop(name, *default)

    def clear(self) -> None:
        for name in list(self):
            del self[name]


def _class_of(ob: object, name: str) -> Any:
    return class_of(ob)


# Methods of dict that are not C's own here.
OF_DICT = frozenset(("clear", "update"))

# How an attribute is read whose meaning depends on the object it is read from.
DEPENDENT: dict[str, Callable[[object, str], Any]] = {
    "format": _format,
    "format_map": _format,
    "mro": _mro,
    "register": _register,
    "obj": _not_of(BaseException),
    "with_traceback": _without_traceback,
    "throw": _throw,
    "fget": _not_of(property, types.DynamicClassAttribute),
    "fset": _not_of(property, types.DynamicClassAttribute),
    "fdel": _not_of(property, types.DynamicClassAttribute),
    "__name__": _text_of,
    "__qualname__": _text_of,
    "__doc__": _text_of,
    "__class__": _class_of,
    "__cause__": _of_exceptions,
    "__context__": _of_exceptions,
    "__annotations__": _annotations,
    "__suppress_context__": _of_exceptions,
    "__notes__": _of_exceptions,
    "__module__": _text_of,
    "__members__": _members,
    "_member_map_": _members,
    "_member_names_": _members,
    "_value2member_map_": _members,
    "__new__": _maker,
    "__setattr__": _setter,
    "__delattr__": _setter,
    "__dict__": lambda ob, _: attributes_of(ob),
    WRITTEN_DICT: lambda ob, _: _Attributes(ob),
    **dict.fromkeys(OF_DICT, exact.of_dict),
    **dict.fromkeys(METHODS, _method),
}


# Names that a class has of its metaclass, where super() does not look.
OF_METACLASS = frozenset(("mro", "register"))


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


def inherited(found: Any, name: str) -> Any:
    """The special method `name` of `super()`, bound to an instance.

    Of a class it would be the bare function, and a host class's own trusts whatever it is given as `self`.
    """
    if name in ("__new__", "__setattr__", "__delattr__") or name in OF_DICT:
        return DEPENDENT[name](found, name)
    if isinstance(_SUPER_SELF(found), type) and name != "__init_subclass__":
        _refuse(name, " of super() in a method of the class; call the class")
    value = getattr(found, name)
    if name in ("__init__", "__ior__"):
        return exact.dict_slot(name, value)
    if name == "__reversed__":
        return reverser(value)
    is_list = name == "__setitem__" and isinstance(value, _SLOTS) and isinstance(_SUPER_SELF(found), list)
    return exact.list_setter(value) if is_list else value


_SUPER_SELF = vars(super)["__self__"].__get__


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

_WRITABLE: set[type] = {types.SimpleNamespace, Context}


def allow_writes(kind: type) -> None:
    """Let users set the attributes of a `kind`, a class of ours whose public attributes are theirs."""
    _WRITABLE.add(kind)


def is_user_function(ob: object) -> bool:
    return type(ob) is types.FunctionType and "~write" in ob.__globals__.get("__builtins__", ())


_unwatched: list[Callable[[], AbstractContextManager[None]]] = [nullcontext]


def look_within(unwatched: Callable[[], AbstractContextManager[None]]) -> None:
    """Look at functions of the user's within `unwatched` from now on: only an escape would, otherwise."""
    _unwatched[:] = [unwatched]


def parameters_of(function: types.FunctionType) -> int:
    """How many positional parameters a function has."""
    with _unwatched[0]():
        return function.__code__.co_argcount


def _check_name(name: object) -> None:
    if type(name) is not str:  # a str of the user's own class could change its mind
        raise TypeError(f"an attribute's name is a str, not {type(name).__name__}")


def writable(ob: Any) -> Any:
    """`ob`, where a Runnable may set or delete its attributes. Raises AttributeError."""
    kind = type(ob)
    if kind in user_classes or kind in _WRITABLE:
        return ob
    if isinstance(ob, type) and ob in user_classes:
        expect_changes(ob)
        return ob
    if is_user_function(ob):
        return ob
    if kind is types.ModuleType:
        raise AttributeError("a module's attributes cannot be set in a Runnable; use a name of your own")
    raise AttributeError(f"attributes of {kind.__name__!r} objects cannot be set in a Runnable")


def write(ob: Any, name: str, value: Any) -> None:
    _check_name(name)
    if name in METHODS and isinstance(ob, type):
        if name == "__iter__":
            exact.keep_walk()
        members = {name: value}
        heirs: Iterable[type] = _heirs(ob) if name in _OF_C else (ob,)
        for heir in heirs:
            _keep_from_c(members, heir.__mro__ if heir in user_classes else ())
        for key, made in members.items():
            setattr(writable(ob), key, made)
        return
    setattr(writable(ob), name if name in METHODS else _vetted(name), value)


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


class _Reversed(_Shown):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return backwards(*args, **kwargs)


class _ClassMethod(_Shown):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        # Older versions bind any descriptor: a host class's property would be handed a class as self.
        if len(args) == 1 and hasattr(type(args[0]), "__get__") and not isinstance(args[0], _FUNCTIONS):
            raise TypeError(f"classmethod() is for a function, not for a {type(args[0]).__name__}")
        return cls._kind(*args, **kwargs)


_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type(functools.cache(len)))


def _shown(kind: type, meta: type[_Shown] = _Shown) -> type:
    return meta(kind.__name__, (), {"_kind": kind, "__module__": "builtins"})


# `type` itself, and the classes whose constructors take apart or put together what users must not.
TYPE = _shown(type, _Type)
_SHOWN: dict[type, type] = {
    kind: _shown(kind)
    for kind in (
        *_INTERNALS, types.FunctionType, types.MethodType, types.ModuleType, types.CellType,
        types.GenericAlias, types.BuiltinFunctionType, staticmethod, slice,
        # Made by a call of their class, these two have nothing to read from or to write to (CPython 3.11.2).
        type(csv.reader([])), type(csv.writer(io.StringIO())),
    )
}  # fmt: skip
CLASSMETHOD = _SHOWN[classmethod] = _shown(classmethod, _ClassMethod)
REVERSED = _SHOWN[reversed] = _shown(reversed, _Reversed)
_SHOWN.update({kind: shown for shown, kind in exact.CAUGHT.items()})


def shown(kind: type) -> type:
    """The class that stands for `kind`, which users must not call."""
    return _SHOWN[kind]


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
        if not (isinstance(cls, type) and (cls in user_classes or cls in _SELF_MATCHING)):
            raise TypeError(
                f"positional patterns are for classes of your own, not {cls!r}; name the attributes"
            )
    return subject


_SELF_MATCHING = frozenset((bool, exact.bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple))


def user_class(name: str, bases: tuple[type, ...], body: Mapping[str, Any], /, **options: Any) -> type:
    """The class that a class statement makes. Raises TypeError for what a user's class may not be."""
    is_enum = any(isinstance(base, enum.EnumMeta) for base in bases)
    for base in bases:
        if not _may_be_base(base):
            raise TypeError(f"a class in a Runnable cannot derive from {getattr(base, '__name__', base)!r}")
    for base in bases:
        if BUILD in base.__dict__:
            return base.__dict__[BUILD](name, body)  # type: ignore[no-any-return]
    members = {}
    for key, value in body.items():
        if is_dunder(key):
            if key not in METHODS and key not in CLASS_NAMES and key not in HOOKS:
                raise TypeError(f"{key} cannot be defined in a Runnable")
            members[key] = _HOOKED[key](value) if key in _HOOKED else value
        elif is_enum and key in _ENUM_HOOKS:
            members[key] = value
        elif is_enum and key in (FIELDS, HINTS):
            continue  # it would be a member
        else:
            members[attribute(key)] = value
    members.pop("__orig_bases__", None)
    if "__slots__" in members:
        members["__slots__"] = _slots(name, members["__slots__"])
    if "__match_args__" in members:
        members["__match_args__"] = match_args(members["__match_args__"])
    if issubclass(dict, bases) or any(issubclass(base, dict) for base in bases):
        options.pop("total", None)  # of a TypedDict
    if is_enum and options:
        raise TypeError(f"the class argument {min(options)!r} is not for an Enum in a Runnable")
    return register(_metaclass(bases), name, bases, members, options)


class _EnumBody(dict[str, Any]):
    """The names of an Enum's body while it runs: `auto()` is a value at once, so members can be combined."""

    def __init__(self, trial: Any) -> None:
        super().__init__()
        self._trial = trial

    def __setitem__(self, key: str, value: Any) -> None:
        if not key.startswith("~"):
            self._trial[key] = value
            if isinstance(value, (enum.auto, tuple)):
                value = self._trial[key]
        super().__setitem__(key, value)


def _prepare(name: str, bases: tuple[type, ...], /, **_: Any) -> dict[str, Any]:
    meta = _metaclass(tuple(base for base in bases if isinstance(base, type)))
    return _EnumBody(meta.__prepare__(name, bases)) if issubclass(meta, enum.EnumMeta) else {}


setattr(user_class, "__prepare__", _prepare)  # noqa: B010 (what a class statement asks its metaclass for)

_ENUM_HOOKS = frozenset(("_missing_", "_generate_next_value_", "_ignore_", "_order_"))


def _checked_new(function: Any) -> Any:
    """`__new__` of the user's, which must give an object of a user's class: copy sets attributes of it."""
    function = function.__func__ if type(function) is staticmethod else function

    def new(cls: type, /, *args: Any, **kwargs: Any) -> Any:
        made = function(cls, *args, **kwargs)
        if type(made) not in user_classes:
            raise TypeError(
                f"{cls.__name__}.__new__() gives a {type(made).__name__!r}, no object of its class"
            )
        return made

    return new


def _by_name(function: Any) -> Any:
    """A hook whose first argument is an attribute's name, which it is told as the user wrote it."""

    def hook(self: Any, name: str, /, *value: Any) -> Any:
        return function(self, unmangled(name), *value)

    return hook


def _set_name(function: Any) -> Any:
    def hook(self: Any, owner: type, name: str, /) -> None:
        function(self, owner, unmangled(name))

    return hook


_HOOKED: dict[str, Callable[[Any], Any]] = {
    "__new__": _checked_new,
    "__getattr__": _by_name,
    "__setattr__": _by_name,
    "__delattr__": _by_name,
    "__set_name__": _set_name,
}


# What C compares with these may be its own last hold of both.
_PINNED = frozenset(("__lt__", "__le__", "__eq__", "__ne__", "__gt__", "__ge__"))
# The pairs of the last comparisons that gave no answer: C goes on with both, and in some places nobody else
# holds them any more. No code of a user's runs between such an answer and the end of C's comparison.
_pins: deque[tuple[Any, Any]] = deque()
_PINS = 16


def _pinning(function: Any) -> Any:
    """A user's comparison, whose operands outlive it where it answers NotImplemented."""

    def compared(self: Any, other: Any, /) -> Any:
        found = function(self, other)
        if found is NotImplemented:
            while len(_pins) >= _PINS:  # first, for what this frees may run a generator's `finally`
                _pins.popleft()
            _pins.append((self, other))
        return found

    return exact.wrapper(compared)


def _unmerged(function: Any) -> Any:
    """A user's `|` or `|=`, given its right operand as the user wrote it."""

    def combined(self: Any, other: Any, /) -> Any:
        return function(self, exact.unmerged(other))

    return exact.wrapper(combined)


_COMBINED = frozenset(("__or__", "__ior__"))


def _as_function(value: Any) -> Any:
    """A hook that is not a function, as one that is."""

    def bound(self: Any, other: Any, /) -> Any:
        get = getattr(type(value), "__get__", None)
        return (value if get is None else get(value, self, type(self)))(other)

    return bound


def _walk(self: Any) -> Iterator[Any]:
    """The items of an object that has only `__getitem__`; C's own iterator lets go of it twice."""
    at = 0
    while True:
        try:
            item = self[at]
        except (IndexError, StopIteration):
            return
        yield item
        at += 1


# What C asks of a text while it has hold of memory: of the text, or of a view that its user may release.
_OF_C: dict[str, tuple[type, ...]] = {"__len__": (str, bytes), "__hash__": (bytes,)}


def _is_given(bases: tuple[type, ...], name: str) -> bool:
    """Whether a class of the user's among `bases` and theirs defines the method `name`."""
    return any(
        vars(kind).get(name) is not None for base in bases for kind in base.__mro__ if kind in user_classes
    )


def _heirs(cls: type) -> Iterator[type]:
    yield cls
    heirs: list[type] = type.__subclasses__(cls)
    for heir in heirs:
        yield from _heirs(heir)


def _keep_from_c(members: dict[str, Any], bases: tuple[type, ...]) -> None:
    """Change among the hooks of a class of the user's what C code would trust. Raises TypeError."""
    for name, kinds in _OF_C.items():
        if any(issubclass(base, kinds) for base in bases) and (
            members.get(name) is not None or _is_given(bases, name)
        ):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} of a class derived from {names} cannot be defined in a Runnable")
    # C merges into what a call of the class gives, as into a new one.
    if any(issubclass(base, defaultdict) for base in bases) and (
        "__new__" in members or any(map(exact.makes_known, bases))
    ):
        raise TypeError("__new__ of a class derived from defaultdict cannot be defined in a Runnable")
    for name in _PINNED & members.keys():
        value = members[name]
        if is_user_function(value):
            members[name] = _pinning(value)
        elif value is not None and not isinstance(value, (types.FunctionType, *_SLOTS)):
            members[name] = _pinning(_as_function(value))
    for name in _COMBINED & members.keys():
        value = members[name]
        if is_user_function(value):
            members[name] = _unmerged(value)
        elif value is not None and not isinstance(value, (types.FunctionType, *_SLOTS)):
            members[name] = _unmerged(_as_function(value))
    if "__getitem__" not in members or "__iter__" in members:
        return
    if not any("__iter__" in vars(kind) for base in bases for kind in base.__mro__):
        members["__iter__"] = _walk


class _Registrar:
    """The first member of a class: the interpreter tells members of their class before it calls hooks."""

    def __get__(self, ob: Any, owner: Any = None) -> Any:
        return self  # has a __get__ because an Enum takes what has none for one of its values

    def __set_name__(self, owner: type, name: str) -> None:
        user_classes.add(owner)
        exact.keep_dict(owner)
        exact.keep_list(owner)


def _metaclass(bases: tuple[type, ...]) -> type:
    winner = type
    for base in bases:
        if issubclass(type(base), winner):
            winner = type(base)
    return winner


def register(
    meta: type, name: str, bases: tuple[type, ...], members: dict[str, Any], options: Mapping[str, Any] = {}
) -> type:
    _keep_from_c(members, bases)
    space = meta.__prepare__(name, bases)
    space[REGISTRAR] = _Registrar()
    for key, value in members.items():
        space[key] = value  # one by one: Enum's mapping takes note of each
    cls: type = meta(name, bases, space, **options)
    user_classes.add(cls)
    type.__delattr__(cls, REGISTRAR)
    return cls


def _slots(owner: str, value: Any) -> tuple[str, ...]:
    names = []
    for name in (value,) if type(value) is str else tuple(value):
        if type(name) is not str or is_dunder(name) or name in FORBIDDEN:
            raise TypeError(f"__slots__ names {name!r}, which cannot be an attribute in a Runnable")
        names.append(attribute(mangled(name, owner)))
    return tuple(names)


def match_args(value: Any) -> tuple[str, ...]:
    """The names that a class's positional patterns read, vetted. Raises TypeError."""
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
