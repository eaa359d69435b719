"""The bounds of one value: what is over them is always found, and what is not never refused."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.model import Limits
from processor.sandbox import documents, values
from processor.sandbox.bounds import Bounds, Exceeded, nests_deeper

NAMES = st.text(st.characters(codec="utf-8"), max_size=7)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=30,
)
LIMITS = st.builds(
    Limits,
    max_string_length=st.integers(1, 8),
    max_container_length=st.integers(1, 7),
    max_depth=st.integers(1, 5),
)


def excesses(value: Any, limits: Limits, depth: int = 1) -> set[str]:
    """The codes of all that is over a bound, found without any cleverness."""
    found = set()
    if isinstance(value, str):
        return {"E318"} if len(value) > limits.max_string_length else set()
    if isinstance(value, (list, dict)):
        found |= {"E320"} if depth > limits.max_depth else set()
        found |= {"E319"} if len(value) > limits.max_container_length else set()
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            found |= excesses(inner, limits, depth + 1)
    return found


def code_of(write: Any) -> str | None:
    try:
        write()
    except Exceeded as err:
        return err.code if "limits.max_" in str(err) else str(err)
    return None


class Dict(dict[str, Any]):
    """A subclass, as a Runnable may return one."""


def subclassed(value: Any) -> Any:
    if isinstance(value, dict):
        return Dict({key: subclassed(inner) for key, inner in value.items()})
    return [subclassed(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=300)
@given(JSON, LIMITS)
def test_a_document_is_refused_exactly_when_it_is_over_a_bound(document: Any, limits: Limits) -> None:
    """As ordinary values and as subclasses; and its text alone is enough to know that it may be."""
    expected, bounds = excesses(document, limits), Bounds(limits)
    for form in (document, subclassed(document)):
        code = code_of(lambda form=form: documents.encode(form, "output", bounds=bounds))
        assert code in expected if expected else code is None
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    if expected:
        assert len(text) > bounds.harmless_bytes
        assert bounds.may_be_exceeded(text)


@settings(max_examples=200)
@given(JSON, LIMITS)
def test_a_kept_value_is_refused_exactly_when_it_is_over_a_bound(value: Any, limits: Limits) -> None:
    """Depth is counted in the JSON that is kept: what needs a tag may reach it earlier, and never later."""
    expected = excesses(value, limits)
    keeper = values.Keeper(Bounds(limits))
    keeper.context["v"] = value
    code = code_of(keeper.changes)
    if expected:
        assert code in expected | {"E320"}
    else:
        assert code in (None, "E320")
        assert code is None or "$" in str(value)


@pytest.mark.parametrize("text", [b"[" * 201, b'{"a":' * 200, b'"' + b"[" * 200 + b'"'])
def test_many_brackets_are_looked_at_closely(text: bytes) -> None:
    """Whether they are brackets or characters is for the walk to say."""
    assert Bounds(Limits()).may_be_exceeded(text)


def test_an_ordinary_text_is_not_looked_at() -> None:
    """What is short, or has few brackets, cannot be over a bound."""
    bounds = Bounds(Limits())
    assert bounds.harmless_bytes == 200
    assert not bounds.may_be_exceeded(b"[" + b"1," * 400_000 + b"1]")


@pytest.mark.parametrize("levels", [0, 1, 99, 100, 101, 102, 900])
@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ('[0,{"b":', '},"["]')])
def test_depth_is_found_without_recursion(levels: int, opening: str, closing: str) -> None:
    """It is that of the deepest part, whatever stands beside it, and brackets in texts do not count."""
    each = 2 if opening.count("[") + opening.count("{") == 2 else 1
    text = opening * (levels // each) + '"[[["' + closing * (levels // each)
    value = orjson.loads(text)
    depth = levels // each * each
    for most in (0, 1, 99, 100, 101):
        assert nests_deeper(text.encode(), value, most) == (depth > most)
