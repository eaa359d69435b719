"""`pydantic` for a Runnable: models whose fields are checked and converted, in the words of the library.

A class statement keeps what it annotates as a function that evaluates the annotations (HINTS); the first use
of a model makes its plan of that: for each field a function from a value to the value that is kept. What the
library has beyond the types and options here is refused with a word on `language: python`.

Users derive from `BaseModel`, so everything on it is reached by hostile code: methods insist on their `self`,
and no attribute is read or set whose name was not a field's.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from processor.sandbox.documents import AS_DOCUMENT, DOCUMENT_NAMES, encode, loads
from processor.sandbox.facades.copies import deepcopied
from processor.sandbox.facades.guards import (
    FIELDS,
    HINTS,
    PRIVATE,
    bless,
    insisting,
    is_dunder,
    is_user_class,
    is_user_function,
    parameters_of,
    unmangled,
)
from processor.sandbox.facades.hints import ANY, Hint, Subscribed
from processor.sandbox.facades.kinds import (
    ANYTHING,
    Check,
    FieldKind,
    Refused,
    bounded,
    bounds_schema,
    dictionary,
    listed,
    literal,
    one_of,
    optional,
    plain_kind,
)

PLAN = "~plan"
GIVEN = "~given"  # where an instance keeps the names of the fields that were given
_ALL_OF_IT = "`language: python` has all of pydantic"


class UnsupportedError(TypeError):
    """What pydantic has, and not here: a fault of the source (E203) where it is loaded."""


_NOTHING: Any = object()
_NONE = type(None)
_UNCHANGING = (str, int, float, bool, type(None), datetime, tuple, frozenset)


class ValidationError(ValueError):
    """What a model does not take: all of it, by the place of each fault."""

    def __init__(self, title: str, faults: list[tuple[tuple[Any, ...], str, str]]) -> None:
        self._title = title
        self._faults = faults
        many = "errors" if len(faults) != 1 else "error"
        lines = [f"{len(faults)} validation {many} for {title}"]
        for place, kind, text in faults:
            lines += [".".join(map(str, place)), f"  {text} [type={kind}]"]
        super().__init__("\n".join(line for line in lines if line))

    @property
    def title(self) -> str:
        return self._title

    def errors(self, **_: Any) -> list[dict[str, Any]]:
        """Each fault: `type`, `loc` and `msg`."""
        return [{"type": kind, "loc": place, "msg": text} for place, kind, text in self._faults]

    def error_count(self) -> int:
        return len(self._faults)


insisting(ValidationError)


# Fields.


class FieldInfo:
    """What `Field(...)` says of a field."""

    __slots__ = ("bounds", "default", "factory", "words")

    def __init__(
        self, default: Any, factory: Callable[[], Any] | None, bounds: dict[str, Any], words: dict[str, Any]
    ) -> None:
        self.default = default
        self.factory = factory
        self.bounds = bounds
        self.words = words  # of its schema


_BOUNDS = ("ge", "gt", "le", "lt", "max_length", "min_length", "pattern")
_WORDS = ("description", "examples", "title")


def field_info(default: Any = _NOTHING, *, default_factory: Any = None, **options: Any) -> Any:
    """`Field(...)`. Raises TypeError for what is not taken here."""
    for name in options:
        if name not in (*_BOUNDS, *_WORDS):
            known = ", ".join(("default", "default_factory", *_BOUNDS, *_WORDS))
            raise UnsupportedError(
                f"Field does not take {name!r} in a Runnable; it takes {known}. {_ALL_OF_IT}"
            )
    if default is not _NOTHING and default is not ... and default_factory is not None:
        raise TypeError("cannot specify both default and default_factory")
    bounds = {name: options[name] for name in _BOUNDS if options.get(name) is not None}
    words = {name: options[name] for name in _WORDS if options.get(name) is not None}
    return FieldInfo(_NOTHING if default is ... else default, default_factory, bounds, words)


field_info.__name__ = field_info.__qualname__ = "Field"


class _Validator:
    """A method that checks fields, or the model, until its class takes it up."""

    __slots__ = ("__weakref__", "fields", "function", "mode")

    def __init__(self, function: Any, fields: tuple[str, ...], mode: str) -> None:
        self.function = function.__func__ if isinstance(function, classmethod) else function
        self.fields = fields  # none: of the model
        self.mode = mode
        if not is_user_function(self.function):
            raise TypeError("a validator is a method of your own model")


def field_validator(field: str, /, *fields: str, mode: str = "after", **options: Any) -> Any:
    """Have a method check fields, with the value as it came (`mode="before"`) or as it is kept."""
    names = (field, *fields)
    if not all(type(name) is str for name in names):
        raise TypeError("@field_validator takes the names of fields: @field_validator('name')")
    return _validating(names, mode, options, "field_validator")


def model_validator(*, mode: str, **options: Any) -> Any:
    """Have a method check the whole: the values before, or the model after."""
    return _validating((), mode, options, "model_validator")


def _validating(names: tuple[str, ...], mode: str, options: Mapping[str, Any], what: str) -> Any:
    if mode not in ("before", "after") or options:
        raise UnsupportedError(f"{what} takes mode 'before' or 'after' in a Runnable. {_ALL_OF_IT}")
    return lambda function: _Validator(function, names, mode)


class ValidationInfo:
    """What a validator of a field is told beside its value."""

    __slots__ = ("_data", "_name")

    def __init__(self, name: str, data: dict[str, Any]) -> None:
        self._name = name
        self._data = data

    @property
    def field_name(self) -> str:
        return self._name

    @property
    def data(self) -> dict[str, Any]:
        """The fields that were checked before."""
        return self._data


# Plans.

Validate = Callable[[Any, ValidationInfo], Any]


class _Step(NamedTuple):
    """How one field is filled."""

    name: str
    exact: type | None  # what needs no look
    check: Check
    info: FieldInfo
    before: tuple[Validate, ...]
    after: tuple[Validate, ...]
    kind: FieldKind

    @property
    def is_required(self) -> bool:
        return self.info.default is _NOTHING and self.info.factory is None


class ModelPlan(NamedTuple):
    """How a model is filled."""

    steps: tuple[_Step, ...]
    names: frozenset[str]
    before: tuple[Callable[[Any], Any], ...]
    after: tuple[Callable[[Any], Any], ...]
    extra: str
    is_frozen: bool
    has_moments: bool


def plan_of(model: type) -> ModelPlan:
    """The plan of a model, made at its first use. Raises TypeError for a type that there is not here."""
    plan = model.__dict__.get(PLAN)
    if plan is None:
        plan = _planned(model)
        type.__setattr__(model, PLAN, plan)
    return plan


def _planned(model: type) -> ModelPlan:
    steps: dict[str, _Step] = {}
    before: list[Any] = []
    after: list[Any] = []
    config: dict[str, Any] = {}
    of_fields: dict[str, list[tuple[str, Any]]] = {}
    for base in reversed(model.__mro__):
        if not (is_user_class(base) and issubclass(base, BaseModel)):
            continue
        config |= base.__dict__.get(CONFIG, {})
        for validator in base.__dict__.get(VALIDATORS, ()):
            if validator.fields:
                called = _called(validator.function, model)
                for name in validator.fields:
                    of_fields.setdefault(name, []).append((validator.mode, called))
            elif validator.mode == "before":
                before.append(types.MethodType(validator.function, model))
            else:
                after.append(validator.function)
        for name, info, annotation in _annotated(base):
            kind = _kind(annotation, f"{base.__name__}.{name}")
            if isinstance(annotation, Subscribed) and annotation.name == "Annotated":
                for part in annotation.arguments[1:]:
                    if isinstance(part, FieldInfo):
                        info = _merged(part, info)
            exact = kind.exact if not info.bounds else None
            check = bounded(kind, info.bounds, f"{base.__name__}.{name}") if info.bounds else kind.check
            steps[name] = _Step(name, exact, check, info, (), (), kind)
    unknown = sorted((of_fields.keys() - steps.keys()) - {"*"})
    if unknown:
        raise TypeError(f"a validator of {model.__name__} is for {unknown[0]!r}, which is no field of it")
    for name, step in steps.items():
        found = [*of_fields.get(name, ()), *of_fields.get("*", ())]
        if found:
            # As pydantic has it: what is written last sees the value first.
            first = tuple(called for mode, called in reversed(found) if mode == "before")
            last = tuple(called for mode, called in found if mode == "after")
            steps[name] = step._replace(exact=None, before=first, after=last)
    has_moments = any(step.kind.has_moments for step in steps.values())
    return ModelPlan(
        tuple(steps.values()),
        frozenset(steps),
        tuple(before),
        tuple(after),
        config.get("extra", "ignore"),
        bool(config.get("frozen")),
        has_moments or config.get("extra") == "allow",
    )


def _merged(first: FieldInfo, then: FieldInfo) -> FieldInfo:
    default = first.default if then.default is _NOTHING else then.default
    factory = first.factory if then.factory is None else then.factory
    return FieldInfo(default, factory, {**first.bounds, **then.bounds}, {**first.words, **then.words})


def _called(function: types.FunctionType, model: type) -> Validate:
    """A validator of a field as a function of the value and what is told beside it."""
    if parameters_of(function) > 2:
        return types.MethodType(function, model)
    return lambda value, _: function(model, value)


def _annotated(base: type) -> Iterator[tuple[str, FieldInfo, Any]]:
    """The fields that a class adds: name, default, and what was annotated."""
    rows = base.__dict__.get(FIELDS, ())
    made = base.__dict__.get(HINTS)
    hints = made() if made is not None else [row[2] for row in rows]
    defaults = base.__dict__[DEFAULTS]
    for (name, kind, _), hint in zip(rows, hints, strict=True):
        if not _is_field(name, kind):
            continue
        default = defaults.get(name, _NOTHING)
        yield name, default if isinstance(default, FieldInfo) else FieldInfo(default, None, {}, {}), hint


def _is_field(name: str, kind: str) -> bool:
    """Whether what is annotated is a field, and not of the class or private."""
    return kind != "class" and not name.startswith("_") and name != "model_config"


def _kind(hint: Any, place: str) -> FieldKind:
    """What an annotation means. Raises TypeError where that is nothing here."""
    found = plain_kind(hint)
    if found is not None:
        return found
    if hint is ANY or (isinstance(hint, Hint) and type(hint) is Hint and hint.name == "Any"):
        return ANYTHING
    if is_user_class(hint) and issubclass(hint, BaseModel):
        return _model_kind(hint)
    origin, arguments = _parts(hint)
    if origin == "Annotated" and arguments:
        return _kind(arguments[0], place)
    if origin == "Literal" and arguments:
        return literal(arguments)
    if origin == "Optional" and len(arguments) == 1:
        return optional(_kind(arguments[0], place))
    if origin == "Union" and arguments:
        members = [_kind(each, place) for each in arguments if each is not None and each is not _NONE]
        whole = members[0] if len(members) == 1 else one_of(members)
        return whole if len(members) == len(arguments) else optional(whole)
    if origin == "list":
        return listed(_kind(arguments[0], place) if arguments else ANYTHING)
    if origin == "dict":
        keys, values = arguments if len(arguments) == 2 else (Any, Any)
        if not arguments:
            return dictionary(ANYTHING, ANYTHING)
        return dictionary(_kind(keys, place), _kind(values, place))
    raise UnsupportedError(
        f"{place} is a {_shown(hint)}, which a model cannot have in a Runnable: it has str, int, float, "
        f"bool, list, dict, datetime, Any, Optional, Union, Literal and models. {_ALL_OF_IT}"
    )


def _parts(hint: Any) -> tuple[str, tuple[Any, ...]]:
    """What is subscripted, and with what."""
    if isinstance(hint, Subscribed):
        name = {"List": "list", "Dict": "dict"}.get(hint.name, hint.name)
        return name, hint.arguments
    if isinstance(hint, types.GenericAlias):
        return hint.__origin__.__name__, hint.__args__
    if isinstance(hint, types.UnionType):
        return "Union", hint.__args__
    if isinstance(hint, Hint):
        return {"List": "list", "Dict": "dict"}.get(hint.name, ""), ()
    return "", ()


def _shown(hint: Any) -> str:
    text = hint if type(hint) is str else getattr(hint, "__name__", None) or repr(type(hint))
    return unmangled(str(text))[:80]


def _checked(model: type, value: Any) -> Any:
    if isinstance(value, model):
        return value
    if isinstance(value, Mapping):
        return made_of(model, value)
    raise Refused("model_type", f"Input should be a valid dictionary or instance of {model.__name__}")


def _model_kind(model: type) -> FieldKind:
    # A model may have itself among its fields: what it holds is asked when it is used.
    return FieldKind(
        model.__name__,
        None,
        functools.partial(_checked, model),
        lambda defs: _reference(model, defs),
        lambda value: isinstance(value, model),
        has_moments=True,
    )


# Models.

VALIDATORS = "~validators"
DEFAULTS = "~defaults"
CONFIG = "~config"
_CONFIGURED = {"extra": ("ignore", "forbid", "allow"), "frozen": (True, False)}


def config_dict(**options: Any) -> dict[str, Any]:
    """`ConfigDict(...)`. Raises TypeError for what is not taken here."""
    for name, value in options.items():
        if name not in _CONFIGURED or value not in _CONFIGURED[name]:
            known = ", ".join(f"{key}: {' '.join(map(repr, each))}" for key, each in _CONFIGURED.items())
            raise UnsupportedError(
                f"model_config does not take {name}={value!r} here; it takes {known}. {_ALL_OF_IT}"
            )
    return options


config_dict.__name__ = config_dict.__qualname__ = "ConfigDict"


def made_of(model: type, values: Mapping[Any, Any]) -> Any:
    """A model of these values. Raises Refused with all that it does not take."""
    if model.__init__ is BaseModel.__init__:  # type: ignore[misc]
        made: Any = object.__new__(model)
        fill(made, model, values)
        return made
    try:
        return model(**{str(name): values[name] for name in values})
    except ValidationError as err:
        raise Refused.of(err._faults) from None


def unruled(model: type, values: Mapping[Any, Any], names: Collection[str]) -> Any:
    """A model of these values, of which those by these names are taken as they are, and nothing as a whole.

    Raises ValidationError.
    """
    made: Any = object.__new__(model)
    try:
        fill(made, model, values, names)
    except Refused as err:
        raise ValidationError(model.__name__, err.faults) from None
    return made


def fill(made: Any, model: type, data: Mapping[Any, Any], unruled: Collection[str] = ()) -> None:
    """Set the fields of a new model. Raises Refused with all that it does not take.

    No rule is held against the fields that are `unruled`, nor, where there are such, against all of it.
    """
    plan: ModelPlan = model.__dict__.get(PLAN) or plan_of(model)
    for validate in plan.before if not unruled else ():
        data = _told(validate, (data,), ())
        if not isinstance(data, Mapping):
            raise Refused("model_type", f"Input should be a valid dictionary or instance of {model.__name__}")
    space: dict[str, Any] = object.__getattribute__(made, "__dict__")
    faults: list[tuple[tuple[Any, ...], str, str]] = []
    given: list[str] = []
    for step in plan.steps:
        name, exact, check, info, before, after, _ = step
        if name in data:
            value = data[name]
            given.append(name)
            if type(value) is not exact and name not in unruled:
                try:
                    for validator in before:
                        value = _told(validator, (value, ValidationInfo(name, dict(space))), (name,))
                    value = check(value)
                    for validator in after:
                        value = _told(validator, (value, ValidationInfo(name, dict(space))), (name,))
                except Refused as err:
                    faults += err.below(name)
                    continue
        elif info.factory is not None:
            value = info.factory()
        elif info.default is _NOTHING:
            faults.append(((name,), "missing", "Field required"))
            continue
        else:
            value = info.default
            if not isinstance(value, _UNCHANGING):
                value = deepcopied(value)
        space[name] = value
    if plan.extra != "ignore":
        _take_extra(plan, data, space, faults)
    if faults:
        raise Refused.of(faults)
    space[GIVEN] = given
    for finish in plan.after if not unruled else ():
        _told(finish, (made,), ())


def _take_extra(
    plan: ModelPlan,
    data: Mapping[Any, Any],
    space: dict[str, Any],
    faults: list[tuple[tuple[Any, ...], str, str]],
) -> None:
    for name in data:
        if name in plan.names:
            continue
        if plan.extra == "forbid":
            faults.append(((name,), "extra_forbidden", "Extra inputs are not permitted"))
        elif type(name) is str and name.isidentifier() and not name.startswith(("_", PRIVATE)):
            space[name] = data[name]


def _told(function: Callable[..., Any], arguments: tuple[Any, ...], place: tuple[str, ...]) -> Any:
    """What a validator of the user's gives; a ValueError or AssertionError of its is a fault of the value."""
    try:
        return function(*arguments)
    except ValidationError as err:
        raise Refused.of(err._faults) from None
    except ValueError as err:
        raise Refused("value_error", f"Value error, {err}") from None
    except AssertionError as err:
        raise Refused("assertion_error", f"Assertion failed, {err}") from None


def _taken(cls: type, name: str) -> Any:
    """What a class has under a name, which it has no more."""
    value = cls.__dict__[name]
    type.__delattr__(cls, name)
    return value


class BaseModel:
    """What a model derives from."""

    def __init_subclass__(cls, **options: Any) -> None:
        if options:
            raise UnsupportedError(f"a model takes no {min(options)!r} in its class statement. {_ALL_OF_IT}")
        if cls.__new__ is not object.__new__:
            raise TypeError(f"{cls.__name__} cannot make its own objects: leave __new__ out")
        space = cls.__dict__
        fields = [name for name, kind, _ in space.get(FIELDS, ()) if _is_field(name, kind)]
        for name in fields:
            if hasattr(BaseModel, name) or is_dunder(name):
                raise TypeError(f"{cls.__name__}.{name} cannot be a field: models have {name!r} themselves")
        type.__setattr__(cls, DEFAULTS, {name: _taken(cls, name) for name in fields if name in space})
        own = [name for name, value in space.items() if isinstance(value, _Validator)]
        type.__setattr__(cls, VALIDATORS, [_taken(cls, name) for name in own])
        config = space.get("model_config", {})
        type.__setattr__(cls, CONFIG, config_dict(**config) if type(config) is dict else {})
        inherited = getattr(cls, DOCUMENT_NAMES, ())
        type.__setattr__(cls, DOCUMENT_NAMES, tuple(dict.fromkeys((*inherited, *fields))))
        loose = [name for name, value in space.items() if isinstance(value, FieldInfo)]
        if loose:
            raise TypeError(
                f"{cls.__name__}.{loose[0]} has no annotation: write '{loose[0]}: str = Field(...)'"
            )
        with contextlib.suppress(
            NameError
        ):  # what it names is defined below: the plan is made at the first use
            plan_of(cls)

    def __init__(self, /, **data: Any) -> None:
        model = type(self)
        try:
            fill(self, model, data)
        except Refused as err:
            raise ValidationError(model.__name__, err.faults) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Any:
        """A model of what a mapping holds, or the model itself. Raises ValidationError."""
        if options:
            _take_no(options, "model_validate")
        try:
            return made_of(cls, obj) if type(obj) is dict else _checked(cls, obj)
        except Refused as err:
            raise ValidationError(cls.__name__, err.faults) from None

    @classmethod
    def model_validate_json(cls, json_data: Any, **options: Any) -> Any:
        """The same of a JSON text."""
        _take_no(options, "model_validate_json")
        try:
            value = json_loads(json_data)
        except (ValueError, TypeError) as err:
            raise ValidationError(cls.__name__, [((), "json_invalid", f"Invalid JSON: {err}")]) from None
        return cls.model_validate(value)

    @classmethod
    def model_json_schema(cls, **options: Any) -> dict[str, Any]:
        """The JSON Schema of the model."""
        _take_no(options, "model_json_schema")
        return schema_of(cls)

    @property
    def model_fields_set(self) -> set[str]:
        """The names of the fields that were given, and not left to their defaults."""
        return set(object.__getattribute__(self, "__dict__").get(GIVEN, ()))

    def model_dump(
        self,
        *,
        mode: str = "python",
        include: Any = None,
        exclude: Any = None,
        exclude_unset: bool = False,
        exclude_defaults: bool = False,
        exclude_none: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """The fields as a dict, models in them, too; with mode "json" in the types that JSON has."""
        _take_no(options, "model_dump")
        left = _Left(mode == "json", bool(exclude_unset), bool(exclude_defaults), bool(exclude_none))
        names = {name for name in _fields_in(self) if name not in (exclude or ())}
        return _dumped(self, left, names if include is None else names & set(include))

    def model_dump_json(self, *, indent: int | None = None, **options: Any) -> str:
        """The fields as a JSON text."""
        if indent is not None:
            options["indent"] = indent
        _take_no({name: None for name in options if name not in _DUMP_OPTIONS}, "model_dump_json")
        return encode(self.model_dump(mode="json", **options), "model").decode()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Any:
        """A copy; what is updated in it is not checked."""
        made = object.__new__(type(self))
        space = object.__getattribute__(made, "__dict__")
        space.update(object.__getattribute__(self, "__dict__"))
        if deep:
            space.update({name: deepcopied(space[name]) for name in _fields_in(self)})
        for name in update or ():
            if name not in plan_of(type(self)).names:
                raise ValueError(f'"{type(self).__name__}" object has no field "{name}"')
            space[name] = (update or {})[name]
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        plan = plan_of(type(self))
        if plan.is_frozen and not name.startswith(PRIVATE):
            raise ValidationError(type(self).__name__, [((name,), "frozen_instance", "Instance is frozen")])
        is_own = name in plan.names or name.startswith(PRIVATE) or hasattr(type(self), name)
        if not is_own and plan.extra != "allow":
            raise ValueError(f'"{type(self).__name__}" object has no field "{unmangled(name)}"')
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> Any:
        if type(other) is not type(self):
            return NotImplemented
        return _fields_in(self) == _fields_in(other)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(list(_fields_in(self).items()))

    def __str__(self) -> str:
        return " ".join(f"{name}={value!r}" for name, value in _fields_in(self).items())

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in _fields_in(self).items())
        return f"{type(self).__name__}({inner})"


insisting(BaseModel)
bless(BaseModel)
bless(UnsupportedError)


def _take_no(options: Mapping[str, Any], what: str) -> None:
    for name in options:
        raise UnsupportedError(f"{what} does not take {name!r} in a Runnable. {_ALL_OF_IT}")


def _fields_in(model: Any) -> dict[str, Any]:
    """What a model holds: its fields, in order, and what it took beside them."""
    space, plan = object.__getattribute__(model, "__dict__"), plan_of(type(model))
    held = {step.name: space[step.name] for step in plan.steps if step.name in space}
    if plan.extra == "allow":
        held |= {name: value for name, value in space.items() if name[:1] not in f"~_{PRIVATE}"}
    return held


# What is written.

_DUMP_OPTIONS = frozenset(("include", "exclude", "exclude_unset", "exclude_defaults", "exclude_none"))


class _Left(NamedTuple):
    """How models are dumped, and what is left out."""

    as_json: bool
    unset: bool = False
    defaults: bool = False
    none: bool = False


def _dumped(model: Any, left: _Left, names: set[str] | None = None) -> dict[str, Any]:
    held = _fields_in(model)
    given = object.__getattribute__(model, "__dict__").get(GIVEN, ())
    of = _defaults(type(model)) if left.defaults else {}
    made = {}
    for name, value in held.items():
        if (names is not None and name not in names) or (left.none and value is None):
            continue
        if (left.unset and name not in given) or (name in of and value == of[name]):
            continue
        made[name] = _dumped_value(value, left)
    return made


def _defaults(model: type) -> dict[str, Any]:
    infos = {step.name: step.info for step in plan_of(model).steps}
    made = {name: info.factory() for name, info in infos.items() if info.factory is not None}
    return made | {name: info.default for name, info in infos.items() if info.default is not _NOTHING}


def _dumped_value(value: Any, left: _Left) -> Any:
    if isinstance(value, BaseModel):
        return _dumped(value, left)
    kind = type(value)
    if kind is list or kind is tuple:
        return [_dumped_value(each, left) for each in value]
    if kind is dict:
        return {key: _dumped_value(each, left) for key, each in value.items()}
    if left.as_json and kind is datetime:
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    return value


_AS_JSON = _Left(as_json=True)


def as_document(model: Any) -> dict[str, Any]:
    """What a model is where it is handed over."""
    plan = plan_of(type(model))
    if plan.has_moments:
        return _dumped(model, _AS_JSON)
    space = object.__getattribute__(model, "__dict__")
    return {step.name: space[step.name] for step in plan.steps if step.name in space}


setattr(BaseModel, AS_DOCUMENT, staticmethod(as_document))


def json_loads(text: Any) -> Any:
    if not isinstance(text, (str, bytes, bytearray)):
        raise TypeError("a JSON text is a str or bytes")
    return loads(text.encode() if isinstance(text, str) else bytes(text))


# JSON Schema.


def schema_of(model: type) -> dict[str, Any]:
    """The JSON Schema of a model, in the words of pydantic."""
    defs: dict[str, Any] = {}
    found = _object_schema(model, defs)
    if model.__name__ in defs:  # it is among its own fields
        found = {"$ref": f"#/$defs/{model.__name__}"}
    return {"$defs": defs, **found} if defs else found


def _object_schema(model: type, defs: dict[str, Any]) -> dict[str, Any]:
    plan = plan_of(model)
    schema: dict[str, Any] = {"properties": {}, "title": model.__name__, "type": "object"}
    words = model.__dict__.get("__doc__")
    if type(words) is str and words:
        schema["description"] = _dedented(words)
    if plan.extra != "ignore":
        schema["additionalProperties"] = plan.extra == "allow"
    required = [step.name for step in plan.steps if step.is_required]
    if required:
        schema["required"] = required
    for step in plan.steps:
        info = step.info
        field = {**step.kind.schema(defs), **bounds_schema(step.kind, info.bounds)}
        if not _is_reference(field):
            field["title"] = step.name.replace("_", " ").title()
        if info.default is not _NOTHING:
            field["default"] = _dumped_value(info.default, _AS_JSON)
        schema["properties"][step.name] = {**field, **info.words}
    return schema


def _dedented(words: str) -> str:
    return inspect.cleandoc(words)


def _is_reference(field: dict[str, Any]) -> bool:
    """Whether it is a model, or None: what is said of the field is then said of the model."""
    several = field.get("anyOf", ())
    return "$ref" in field or (len(several) == 2 and "$ref" in several[0] and several[1] == {"type": "null"})


def _reference(model: type, defs: dict[str, Any]) -> dict[str, Any]:
    name = model.__name__
    if name not in defs:
        defs[name] = {}  # for one that has itself among its fields
        defs[name] = _object_schema(model, defs)
    return {"$ref": f"#/$defs/{name}"}


NAMES: dict[str, Any] = {
    "BaseModel": BaseModel,
    "ConfigDict": config_dict,
    "Field": field_info,
    "ValidationError": ValidationError,
    "ValidationInfo": ValidationInfo,
    "field_validator": field_validator,
    "model_validator": model_validator,
}
