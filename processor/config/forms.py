"""How values are written in a configuration file, and what every model of its keys has in common.

Sizes and times with their units, files relative to the configuration, and `Settings`, which the models in
`keys` and `outside` derive from.

Invariants: a model is frozen, refuses unknown keys and wrong types, and shows no secret in its repr.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from processor.errors import ConfigError

Place = tuple[str | int, ...]
T = TypeVar("T")

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_TIME_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SIZE = re.compile(r"(\d+)\s*([KMG]i?B|B)?\Z")
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[dhms])\Z")


def _read_size(value: object) -> object:
    if isinstance(value, str):
        found = _SIZE.match(value)
        if not found:
            raise ValueError("it must be a number of bytes, or a number with KiB, MiB or GiB")
        return int(found[1]) * _SIZE_UNITS[found[2] or ""]
    return value


def show_size(size: int) -> int | str:
    """A number of bytes as the configuration has it: with a unit where it is a whole number of them."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return size


def _read_time(value: object) -> object:
    if isinstance(value, str):
        found = _TIME.match(value)
        if not found:
            raise ValueError("it must be a time such as 500ms, 30s, 15m, 24h or 7d")
        return float(found[1]) * _TIME_UNITS[found[2]]
    if value == 0 and not isinstance(value, bool):
        return 0.0
    raise ValueError("it must be a time with its unit, such as 30s, 24h or 7d")


def show_time(seconds: float) -> str:
    """A time as the configuration would have it, in the largest unit that it is a whole number of."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % _TIME_UNITS[unit] == 0:
            return f"{int(seconds / _TIME_UNITS[unit])}{unit}"
    return f"{round(seconds * 1000)}ms" if seconds else "0s"


def _resolve(value: str, info: ValidationInfo) -> str:
    base: Path | None = (info.context or {}).get("base")
    path = Path(value).expanduser()
    return str(path if base is None else base / path)


def sequence(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def on_off(value: object) -> object:
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else sequence(value)


Size = Annotated[
    int,
    BeforeValidator(_read_size),
    PlainSerializer(show_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": f"^{_SIZE.pattern[:-2]}$"},
            ]
        }
    ),
]
Time = Annotated[
    float,
    BeforeValidator(_read_time),
    PlainSerializer(show_time),
    WithJsonSchema({"anyOf": [{"const": 0}, {"type": "string", "pattern": f"^{_TIME.pattern[:-2]}$"}]}),
]
File = Annotated[str, Field(min_length=1), AfterValidator(_resolve)]
Text = Annotated[str, Field(min_length=1)]
# One text, or a list of them.
Listed = Annotated[
    tuple[T, ...],
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
            ]
        }
    ),
]


class Settings(BaseModel):
    """Keys that belong together: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    # The key that a plain value stands for where the mapping is not written out (`input: ticks.*`).
    short: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {cls.short: value} if cls.short and isinstance(value, (str, list)) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        if not cls.short:
            return schema
        mapping = handler.resolve_ref_schema(schema)
        whole = dict(mapping)
        mapping.clear()
        mapping["description"] = whole.get("description", "")
        mapping["anyOf"] = [{**whole["properties"][cls.short], "title": cls.short}, whole]
        return schema


def read_secret(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is not text"
        raise ConfigError("E107", f"a secret cannot be read: {reason}", place=file) from err


def alias_of(name: str, info: FieldInfo) -> str:
    """How the field is written in a file."""
    return info.alias or name


def default_text(info: FieldInfo) -> object:
    """The default as it would be written in a file."""
    for serializer in info.metadata:
        if isinstance(serializer, PlainSerializer):
            return serializer.func(info.default)  # type: ignore[call-arg]
    return [] if info.default == () else info.default


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that a type is, or holds: optional, listed, or by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arguments = get_args(annotation) if get_origin(annotation) else ()
    return next((model for part in reversed(arguments) if (model := inner_model(part))), None)
