"""Named tuples and data classes for a Runnable, made without `eval` and `exec`.

The standard library writes source and runs it, which a guest must not be able to do at all. These make the
same classes from closures. Fields are named by users, so every name is vetted before it is set, and read as
any name of the user's is.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from processor.sandbox.documents import AS_DOCUMENT, DOCUMENT_NAMES, look_anew
from processor.sandbox.facades.copies import deepcopied, share
from processor.sandbox.facades.guards import (
    BUILD,
    CLASS_NAMES,
    DEPENDENT,
    FIELDS,
    FORBIDDEN,
    HINTS,
    INIT,
    METHODS,
    attribute,
    bless,
    is_dunder,
    is_user_class,
    match_args,
    read,
    register,
    unmangled,
    user_class,
)


class NamedTupleBase:
    """Stands for typing.NamedTuple among the bases of a class statement."""


# Named tuples, without the standard library's eval.


def _namedtuple_class(
    name: str, fields: tuple[str, ...], defaults: tuple[Any, ...], members: Mapping[str, Any]
) -> type:
    optional = dict(zip(fields[len(fields) - len(defaults) :], defaults, strict=True))
    width = len(fields)

    def new(cls: type, /, *args: Any, **kwargs: Any) -> Any:
        if len(args) != width or kwargs:
            args = _bind(f"{name}()", fields, optional, args, kwargs)
        return tuple.__new__(cls, args)

    def make(cls: type, iterable: Iterable[Any]) -> Any:
        values = tuple(iterable)
        if len(values) != width:
            raise TypeError(f"expected {width} arguments, got {len(values)}")
        return tuple.__new__(cls, values)

    def replace(self: Any, /, **changes: Any) -> Any:
        unknown = [key for key in changes if key not in fields]
        if unknown:
            raise ValueError(f"got unexpected field names: {unknown!r}")
        return make(type(self), [changes.get(f, value) for f, value in zip(fields, self, strict=True)])

    def asdict(self: Any) -> dict[str, Any]:
        return dict(zip(fields, self, strict=True))

    def text(self: Any) -> str:
        return f"{name}({', '.join(f'{f}={v!r}' for f, v in zip(fields, self, strict=True))})"

    own = {
        "__new__": new,
        "__repr__": text,
        "__slots__": (),
        "__match_args__": fields,
        "__module__": "runnable",
        attribute("_make"): classmethod(make),
        attribute("_replace"): replace,
        attribute("_asdict"): asdict,
        attribute("_fields"): fields,
        attribute("_field_defaults"): optional,
        "__getnewargs__": lambda self: tuple(self),
        **{field: property(operator.itemgetter(at)) for at, field in enumerate(fields)},
    }
    return register(type, name, (tuple,), {**own, **members})


def _bind(
    what: str,
    names: tuple[str, ...],
    optional: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, ...]:
    """The values of `names` from a call's arguments. Raises TypeError as Python does."""
    if len(args) > len(names):
        raise TypeError(f"{what} takes {len(names)} arguments but {len(args)} were given")
    given = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        if key in given:
            raise TypeError(f"{what} got multiple values for argument {key!r}")
        if key not in names:
            raise TypeError(f"{what} got an unexpected keyword argument {key!r}")
        given[key] = value
    missing = [repr(key) for key in names if key not in given and key not in optional]
    if missing:
        raise TypeError(f"{what} is missing arguments: {', '.join(missing)}")
    return tuple(given[key] if key in given else optional[key] for key in names)


def _field_names(names: Any) -> tuple[str, ...]:
    split = names.replace(",", " ").split() if type(names) is str else list(names)
    for name in split:
        if type(name) is not str or not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"a field's name is an identifier that starts with a letter, not {name!r}")
        if name in FORBIDDEN:
            raise ValueError(f"{name!r} cannot be a field's name")
    if len(set(split)) != len(split):
        raise ValueError(f"field names are not unique: {split!r}")
    return tuple(split)


def namedtuple(typename: str, field_names: Any, *, defaults: Iterable[Any] = ()) -> type:
    fields = _field_names(field_names)
    values = tuple(defaults or ())
    if len(values) > len(fields):
        raise TypeError("got more default values than field names")
    if type(typename) is not str or not typename.isidentifier() or is_dunder(typename):
        raise ValueError(f"a type's name is an identifier, not {typename!r}")
    return _namedtuple_class(typename, fields, values, {})


def _typed_namedtuple(name: str, body: Mapping[str, Any]) -> type:
    fields = _field_names([field for field, kind, _ in body.get(FIELDS, ()) if kind == "field"])
    defaults = [body[field] for field in fields if field in body]
    if any(field in body for field in fields[: len(fields) - len(defaults)]):
        raise TypeError("a field without a default cannot follow a field with one")
    members = {}
    for key, value in body.items():
        if key in fields or key in ("__orig_bases__", "__slots__", FIELDS, HINTS):
            continue
        if is_dunder(key) and key not in METHODS and key not in CLASS_NAMES:
            raise TypeError(f"{key} cannot be defined in a Runnable")
        members[attribute(key)] = match_args(value) if key == "__match_args__" else value
    return _namedtuple_class(name, fields, tuple(defaults), members)


# Data classes, without the standard library's exec.


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


class Field:
    """What dataclasses.fields() gives."""

    __slots__ = (
        "compare",
        "default",
        "default_factory",
        "hash",
        "init",
        "initvar",
        "kw_only",
        "metadata",
        "name",
        "repr",
        "type",
    )

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.type: Any = None
        self.default = options.get("default", MISSING)
        self.default_factory = options.get("default_factory", MISSING)
        self.init = options.get("init", True)
        self.repr = options.get("repr", True)
        self.compare = options.get("compare", True)
        self.hash = options.get("hash")
        self.kw_only = options.get("kw_only", MISSING)
        self.initvar = False
        self.metadata = types.MappingProxyType(dict(options.get("metadata") or {}))

    def __repr__(self) -> str:
        return f"Field(name={self.name!r}, default={self.default!r})"


class FrozenInstanceError(AttributeError):
    """An attribute of a frozen data class was to be changed."""


_DATACLASS = "~dataclass"
_FIELD_OPTIONS = frozenset(
    ("default", "default_factory", "init", "repr", "compare", "hash", "kw_only", "metadata")
)
_DATACLASS_OPTIONS = frozenset(
    ("init", "repr", "eq", "order", "unsafe_hash", "frozen", "match_args", "kw_only", "slots")
)


def make_field(**options: Any) -> Any:
    unknown = options.keys() - _FIELD_OPTIONS
    if unknown:
        raise TypeError(f"field() got an unexpected keyword argument {min(unknown)!r}")
    if "default" in options and "default_factory" in options:
        raise ValueError("cannot specify both default and default_factory")
    return Field("", options)


def dataclass(cls: Any = None, /, **options: Any) -> Any:
    unknown = options.keys() - _DATACLASS_OPTIONS
    if unknown:
        raise TypeError(f"dataclass() got an unexpected keyword argument {min(unknown)!r}")
    if cls is None:
        return lambda cls: _make_dataclass(cls, options)
    return _make_dataclass(cls, options)


def make_dataclass(
    cls_name: str,
    fields: Iterable[Any],
    *,
    bases: tuple[type, ...] = (),
    namespace: Any = None,
    **options: Any,
) -> type:
    """The data class that a class statement with these fields would make."""
    rows = [(item,) if type(item) is str else tuple(item) for item in fields]
    _field_names([row[0] for row in rows])
    body = {**(namespace or {}), **{row[0]: row[2] for row in rows if len(row) > 2}}
    # Looked at once it is a dict of ours; what is no identifier could be one of the names that we keep.
    if not all(type(key) is str and key.isidentifier() for key in (cls_name, *body)):
        raise TypeError("make_dataclass() takes names that are plain str and identifiers")
    body[FIELDS] = tuple((row[0], "field", row[1] if len(row) > 1 else "typing.Any") for row in rows)
    made = user_class(cls_name, bases, {"__module__": "runnable", "__qualname__": cls_name, **body})
    return dataclass(made, **options)  # type: ignore[no-any-return]


def _make_dataclass(cls: Any, options: Mapping[str, Any]) -> type:
    if not is_user_class(cls):
        raise TypeError("dataclass() is for a class of your own")
    own = _own_fields(cls, options.get("kw_only", False))
    fields: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:]):
        fields.update(base.__dict__.get(_DATACLASS, {}))
    fields.update(own)
    frozen = options.get("frozen", False)
    names = None if DEPENDENT.keys() & fields.keys() else tuple(map(attribute, fields))
    members: dict[str, Any] = {_DATACLASS: fields, AS_DOCUMENT: _as_document, DOCUMENT_NAMES: names}
    if options.get("init", True):
        written = _written_init(cls, fields, own, frozen, options.get("kw_only", False))
        members["__init__"] = written or _dataclass_init(cls, fields, frozen)
    if options.get("repr", True):
        members["__repr__"] = _dataclass_repr(fields)
    compared = _values_of([f.name for f in fields.values() if f.compare])
    if options.get("eq", True):
        members["__eq__"] = _dataclass_eq(compared)
    if options.get("order", False):
        members.update(_dataclass_order(compared))
    if frozen:
        members["__setattr__"] = members["__delattr__"] = _frozen
    hashed = _values_of([f.name for f in fields.values() if (f.compare if f.hash is None else f.hash)])
    if options.get("unsafe_hash", False) or (options.get("eq", True) and frozen):
        members["__hash__"] = lambda self: hash(hashed(self))
    elif options.get("eq", True) and "__hash__" not in cls.__dict__:
        members["__hash__"] = None
    positional = tuple(attribute(f.name) for f in fields.values() if f.init and not f.kw_only)
    if options.get("match_args", True) and not DEPENDENT.keys() & set(positional):
        members["__match_args__"] = positional
    overwritten = ("__init__", "__repr__", "__eq__", "__hash__", "__match_args__")
    look_anew()
    for key, value in members.items():
        if key in cls.__dict__ and key in overwritten and not (key == "__hash__" and value is not None):
            continue
        setattr(cls, key, value)
    return _with_slots(cls, own) if options.get("slots", False) else cls


def _getter(name: str) -> Callable[[Any], Any]:
    # Fields are named by the user, so they are read as any name of the user's is.
    return functools.partial(_read_field, name) if name in DEPENDENT else operator.attrgetter(attribute(name))


def _read_field(name: str, ob: Any) -> Any:
    return read(ob, name)


def _own_fields(cls: type, kw_only: bool) -> dict[str, Field]:
    fields = {}
    for name, kind, type_ in cls.__dict__.get(FIELDS, ()):
        if is_dunder(name) or name in FORBIDDEN:
            raise TypeError(f"{name!r} cannot be a field's name")
        if kind == "kw_only":
            kw_only = True
        if kind not in ("field", "initvar"):
            continue
        key = attribute(name)
        default = cls.__dict__.get(key, MISSING)
        if type(default) is types.MemberDescriptorType:
            default = MISSING
        field = default if type(default) is Field else Field("", {"default": default})
        field.name, field.type = name, type_
        if field.kw_only is MISSING:
            field.kw_only = kw_only
        if kind == "initvar":  # is given to __post_init__ and not kept
            field.initvar, field.compare, field.repr, field.hash = True, False, False, False
        if type(default) is Field:
            if field.default is MISSING:
                delattr(cls, key)
            else:
                setattr(cls, key, field.default)
        if type(field.default) in (list, dict, set):
            kind_name = type(field.default).__name__
            raise ValueError(
                f"mutable default {kind_name} for field {name}: use field(default_factory={kind_name})"
            )
        fields[name] = field
    return fields


def init_purpose(rows: Iterable[tuple[str, bool]], *flags: bool) -> str:
    """What an `__init__` was written out for: fields with whether they may be left out; what the class is."""
    return " ".join([*(f"{name}=" if optional else name for name, optional in rows), str(flags)])


def _written_init(
    cls: type, fields: Mapping[str, Field], own: Mapping[str, Field], frozen: bool, kw_only: bool
) -> Any:
    """The `__init__` that the dialect wrote out, where the class is what it was written for."""
    written = cls.__dict__.get(INIT)
    if written is None:
        return None
    type.__delattr__(cls, INIT)
    rows = [
        (name, field.default is not MISSING or field.default_factory is not MISSING)
        for name, field in fields.items()
    ]
    finishes = hasattr(cls, "__post_init__")
    if len(fields) != len(own) or written.__doc__ != init_purpose(rows, frozen, finishes, kw_only):
        return None
    written.__doc__, written.__name__ = None, "__init__"
    written.__qualname__ = f"{cls.__qualname__}.__init__"
    return written


def fresh(value: Any) -> Any:
    """The default of a field: what field() was given, or makes anew."""
    if type(value) is not Field:
        return value
    return value.default if value.default_factory is MISSING else value.default_factory()


def _dataclass_init(cls: type, fields: Mapping[str, Field], frozen: bool) -> Callable[..., None]:
    positional = tuple(f.name for f in fields.values() if f.init and not f.kw_only)
    keyword = tuple(f.name for f in fields.values() if f.init and f.kw_only)
    names = positional + keyword
    constant = {f.name: f.default for f in fields.values() if f.default is not MISSING}
    made = {f.name: f.default_factory for f in fields.values() if f.default_factory is not MISSING}
    optional = {**constant, **dict.fromkeys(made, MISSING)}
    seen_default = ""
    for name in positional:
        if name in optional:
            seen_default = name
        elif seen_default:
            raise TypeError(f"non-default argument {name!r} follows default argument {seen_default!r}")
    slots = [(name, "" if fields[name].initvar else attribute(name)) for name in names]
    passed = [at for at, name in enumerate(names) if fields[name].initvar]
    rest = [f.name for f in fields.values() if not f.init and f.name in optional]
    finish = hasattr(cls, "__post_init__")
    width, what = len(names), f"{cls.__name__}.__init__()"
    put = object.__setattr__ if frozen else setattr

    def init(self: Any, /, *args: Any, **kwargs: Any) -> None:
        if not is_user_class(type(self)):
            raise TypeError(f"{what} is for an instance of {cls.__name__}")
        if len(args) > len(positional):
            raise TypeError(f"{what} takes {len(positional)} arguments but {len(args)} were given")
        values = args if len(args) == width and not kwargs else _bind(what, names, optional, args, kwargs)
        for (name, key), value in zip(slots, values, strict=True):
            if key:
                put(self, key, made[name]() if value is MISSING else value)
        for name in rest:
            put(self, attribute(name), made[name]() if name in made else constant[name])
        if finish:
            self.__post_init__(*[values[at] for at in passed])

    return init


def _dataclass_repr(fields: Mapping[str, Field]) -> Callable[[Any], str]:
    shown = [(f.name, _getter(f.name)) for f in fields.values() if f.repr]
    running: set[int] = set()

    def text(self: Any) -> str:
        mark = id(self)
        if mark in running:
            return "..."
        running.add(mark)
        try:
            inside = ", ".join(f"{name}={get(self)!r}" for name, get in shown)
        finally:
            running.discard(mark)
        return f"{type(self).__qualname__}({inside})"

    return text


def _values_of(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the tuple of these fields of an object."""
    if len(names) < 2 or DEPENDENT.keys() & set(names):
        getters = [_getter(name) for name in names]
        return lambda ob: tuple([get(ob) for get in getters])
    return operator.attrgetter(*map(attribute, names))


def _dataclass_eq(values: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def equal(self: Any, other: Any) -> Any:
        if type(other) is not type(self):
            return NotImplemented
        return values(self) == values(other)

    return equal


def _dataclass_order(values: Callable[[Any], Any]) -> dict[str, Any]:
    def compare(how: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
        def method(self: Any, other: Any) -> Any:
            if type(other) is not type(self):
                return NotImplemented
            return how(values(self), values(other))

        return method

    return {
        f"__{how.__name__}__": compare(how) for how in (operator.lt, operator.le, operator.gt, operator.ge)
    }


def _frozen(self: Any, name: str, *value: Any) -> NoReturn:
    raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {unmangled(name)!r}")


def _with_slots(cls: type, own: Mapping[str, Field]) -> type:
    members = {k: v for k, v in cls.__dict__.items() if k not in ("__dict__", "__weakref__")}
    for name in own:
        members.pop(attribute(name), None)
    members["__qualname__"] = cls.__qualname__
    members["__slots__"] = tuple(attribute(name) for name in own)
    return register(type(cls), cls.__name__, cls.__bases__, members)


def is_dataclass(ob: Any) -> bool:
    return hasattr(ob if isinstance(ob, type) else type(ob), _DATACLASS)


def fields_of(ob: Any) -> Mapping[str, Field]:
    fields = getattr((ob if isinstance(ob, type) else type(ob)), _DATACLASS, None)
    if fields is None:
        raise TypeError("that is not a data class or an instance of one")
    return {name: field for name, field in fields.items() if not field.initvar}


def _plain(value: Any, make: Callable[[Any], Any]) -> Any:
    if not isinstance(value, type) and hasattr(type(value), _DATACLASS):
        return make(value)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_plain(item, make) for item in value)
    if isinstance(value, dict):
        return {_plain(k, make): _plain(v, make) for k, v in value.items()}
    return deepcopied(value)


def _as_document(ob: Any) -> dict[str, Any]:
    """The fields of an instance, as they are."""
    return {name: _getter(name)(ob) for name in fields_of(ob)}


def asdict(ob: Any, *, dict_factory: Callable[[Any], Any] = dict) -> Any:
    fields = fields_of(ob)
    return dict_factory(
        [(f, _plain(_getter(f)(ob), lambda value: asdict(value, dict_factory=dict_factory))) for f in fields]
    )


def astuple(ob: Any) -> tuple[Any, ...]:
    return tuple(_plain(_getter(f)(ob), astuple) for f in fields_of(ob))


def replace_fields(ob: Any, /, **changes: Any) -> Any:
    for name, field in fields_of(ob).items():
        if field.init:
            changes.setdefault(name, _getter(name)(ob))
        elif name in changes:
            raise ValueError(f"field {name} is declared with init=False and cannot be replaced")
    return type(ob)(**changes)


setattr(NamedTupleBase, BUILD, _typed_namedtuple)
share(_Missing)
bless(NamedTupleBase)
bless(FrozenInstanceError)
