"""What nodes declare of their secrets, held against the values: names and rules are told, no value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from processor.address import Binding
from processor.capability.declared import misfits
from processor.model import Program
from processor.reach import BoundSecret, Reach
from processor.route import NodeGroup

CANARY = "CANARY-value"
HOST = (Binding.parse("a.example"),)


def texts(
    model: Any, secrets: dict[str, str] | None = None, settings: dict[str, str] | None = None
) -> list[str]:
    schema = model.model_json_schema() if isinstance(model, type) else model
    bound = tuple(BoundSecret(name, value, HOST) for name, value in (secrets or {}).items())
    program = Program("", "nodes/api.py", mode="nodes")
    group = NodeGroup(
        app="a", name="api", program=program, is_pool=True, reach=Reach("here", secrets=bound),
        settings=settings or {},
    )  # fmt: skip
    faults = misfits(group, {"Api": {"inputs": {}, "outputs": {}, "secrets": schema, "doc": ""}})
    assert all((fault.code, fault.file) == ("E705", "nodes/api.py") for fault in faults)
    assert "CANARY" not in str(faults)
    return [fault.text for fault in faults]


class Key(BaseModel):
    api_key: str = Field(min_length=20, pattern="^sk-")


def test_a_value_that_does_not_fit_is_told_by_its_field_and_rule() -> None:
    """Its own text is in no sentence."""
    assert texts(Key, {"api_key": "sk-" + "x" * 20}) == []
    assert texts(Key, {"api_key": CANARY}) == [
        "the secret 'api_key' of group api does not fit Api.Secrets: it breaks minLength 20, pattern ^sk-."
    ]
    assert texts(Key, settings={"api_key": "sk-CANARY"}) == [
        "the setting 'api_key' of group api does not fit Api.Secrets: it breaks minLength 20."
    ]


def test_a_secret_is_a_text_and_a_setting_is_read() -> None:
    """A guest gets a mark in place of a secret, which is no number; a setting may be written as one."""

    class Database(BaseModel):
        port: int = Field(ge=1024)

    assert texts(Database, settings={"port": "5432"}) == []
    assert texts(Database, settings={"port": "80"}) == [
        "the setting 'port' of group api does not fit Api.Secrets: it breaks type integer."
    ]
    assert texts(Database, {"port": "5432"}) == [
        "the secret 'port' of group api does not fit Api.Secrets: it breaks type integer."
        " A secret is a text: declare it as str."
    ]


def test_other_ways_to_declare_a_text() -> None:
    """SecretStr, a choice, something that may be left out, and a model of the class's own."""

    class Inner(BaseModel):
        a: str

    class Declared(BaseModel):
        key: SecretStr
        region: str | None = None
        inner: Inner | None = None

    assert texts(Declared, {"key": CANARY}, {"region": "eu", "inner": '{"a": "b"}'}) == []
    assert texts(Declared, {"key": CANARY}, {"inner": '{"b": 1}'}) == [
        "the setting 'inner' of group api does not fit Api.Secrets: it breaks anyOf."
    ]


def test_of_a_secret_and_a_setting_of_one_name_the_secret_counts() -> None:
    """As in the node, which gets its mark."""
    assert texts(Key, {"api_key": CANARY}, {"api_key": "sk-" + "x" * 20}) != []


def test_what_is_not_there_or_not_known_fits() -> None:
    """A graph that needs it says so; a check may have the names of secrets without their values."""
    assert texts(Key) == []
    assert texts(Key, {"api_key": "", "other": CANARY}, {"more": CANARY}) == []


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"properties": []},
        {"properties": {"k": 5}},
        {"properties": {"k": {"type": "no such type"}}},
        {"properties": {"k": {"$ref": "https://example.com/schema"}}},
        {"properties": {"k": {"pattern": "("}}},
        {"properties": {"k": {"$ref": "#/$defs/none"}}},
        {"properties": {"k": True}, "required": "k"},
        {"properties": {"k": False}},
        {"properties": {"k": {"$ref": "#"}}},
        {"properties": {"k": {"const": "another"}}},
    ],
)
def test_a_schema_is_a_guests_and_may_be_anything(schema: Any) -> None:
    """One that is none is a sentence or nothing; nothing is fetched, and no value is told."""
    for text in texts(schema, {"k": "the value"}):
        assert "the value" not in text
        assert "Api.Secrets" in text
