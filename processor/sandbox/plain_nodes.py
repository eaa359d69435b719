"""Nodes in plain Python say what they take and give with pydantic itself; what our own code asks of it.

Imported in zygotes that have pydantic, by name: the guests of the dialect must not have it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import pydantic

from processor.sandbox.languages import Models


def _dumped(model: pydantic.BaseModel) -> Any:
    return model.model_dump(mode="json", by_alias=True)


def _unruled(model: type[pydantic.BaseModel], values: Mapping[str, Any], names: Collection[str]) -> Any:
    """A model of these values, those by these names not held against rules beyond their types.

    Raises ValidationError.
    """
    loose: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        loose[name] = (info.annotation, copy.copy(info))
        if (info.alias or name) in names:
            loose[name][1].metadata = []
    made = pydantic.create_model(model.__name__, **loose).model_validate(values)
    fields = {info.alias or name: getattr(made, name) for name, info in model.model_fields.items()}
    return model.model_construct(**fields)


MODELS = Models(pydantic.BaseModel, pydantic.ValidationError, _dumped, _unruled)
