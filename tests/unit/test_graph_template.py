"""What a text in the inputs of a node stands for."""

from __future__ import annotations

from typing import Any

import pytest

from processor.graphs.template import Reference, parse

FOUND = {("a", "n"): 7, ("a", "s"): "x", ("b-1", "o"): {"k": [1]}, ("", "cur"): None}


def find(reference: Reference) -> Any:
    return FOUND[reference.node, reference.field]


@pytest.mark.parametrize(
    ("value", "rendered"),
    [
        ("plain", "plain"),
        (5, 5),
        ("${{ a.outputs.n }}", 7),
        ("${{a.outputs.n}}", 7),
        ("${{ b-1.outputs.o }}", {"k": [1]}),
        ("${{ store.cur }}", None),
        ("${{ a.outputs.n }} of ${{ a.outputs.s }}", "7 of x"),
        (" ${{ a.outputs.n }}", " 7"),
        ("o=${{ b-1.outputs.o }}, c=${{ store.cur }}", 'o={"k":[1]}, c=null'),
        ("$${{ a.outputs.n }}", "${{ a.outputs.n }}"),
        ("$${{${{ a.outputs.s }}", "${{x"),
        ({"x": ["${{ a.outputs.n }}", 1], "y": "z"}, {"x": [7, 1], "y": "z"}),
        (["a", {"b": 1}], ["a", {"b": 1}]),
        ("$ {{ }}", "$ {{ }}"),
    ],
)
def test_a_value_is_rendered(value: Any, rendered: Any) -> None:
    """A reference alone keeps its type; among others it is a text; `$${{` is a literal."""
    assert parse(value).render(find) == rendered


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (
            "${{ a.output.x }}",
            "'${{ a.output.x }}' is no reference; write ${{ a.outputs.x }} or ${{ store.key }}",
        ),
        ("${{ a }}", "'${{ a }}' is no reference; write ${{ node.outputs.field }} or ${{ store.key }}"),
        (
            "${{ store.outputs.x }}",
            "'${{ store.outputs.x }}' is no reference; write ${{ node.outputs.field }}",
        ),
        ("${{ a.outputs.x.y }}", "'${{ a.outputs.x.y }}' is no reference"),
        ("x ${{ a.outputs.x", "'${{ a.outputs.x' is no reference"),
        (["${{ 1 + 1 }}"], "'${{ 1 + 1 }}' is no reference"),
    ],
)
def test_what_is_no_reference_is_named(value: Any, fault: str) -> None:
    """A text that begins as a reference and is none is a fault, with what to write instead."""
    with pytest.raises(ValueError) as raised:
        parse(value)
    assert str(raised.value).startswith(fault)


def test_all_faults_are_named_at_once() -> None:
    """Each text that is no reference is named, not the first alone."""
    with pytest.raises(ValueError, match=r"a\.x.*b\.x"):
        parse(["${{ a.x }}", {"k": "${{ b.x }}"}])


def test_templates_are_not_endless() -> None:
    """A value that is nested too deep is a fault, and not a recursion."""
    value: Any = "x"
    for _ in range(40):
        value = [value]
    with pytest.raises(ValueError, match="more than 32 levels deep"):
        parse(value)


def test_references_are_listed() -> None:
    """All references in a value are found, at any depth."""
    template = parse({"a": "${{ a.outputs.n }}!", "b": ["${{ store.k }}", "${{ a.outputs.s }}"]})
    assert list(template.references) == [Reference("a", "n"), Reference("", "k"), Reference("a", "s")]
    assert [str(each) for each in template.references] == [
        "${{ a.outputs.n }}", "${{ store.k }}", "${{ a.outputs.s }}"
    ]  # fmt: skip
