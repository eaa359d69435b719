"""What is wrong with a graph: all of it at once, each fault at its place, with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from processor.graphs.checks import (
    Problem,
    graph_circles,
    problems_with_kinds,
    read_graph,
)
from processor.graphs.definition import GraphDefinition, NodeKind


def node(identifier: str, *after: str, **keys: Any) -> dict[str, Any]:
    return {"identifier": identifier, "node_name": "Api", "next_nodes": list(after), **keys}


def refused(*nodes: dict[str, Any], **keys: Any) -> list[Problem]:
    return read_graph("g", {"nodes": list(nodes), **keys}, "MyProject")[1]


def said(*nodes: dict[str, Any], **keys: Any) -> list[str]:
    return [f"{problem.path}: {problem}" for problem in refused(*nodes, **keys)]


def accepted(*nodes: dict[str, Any], **keys: Any) -> GraphDefinition:
    definition, problems = read_graph("g", {"nodes": list(nodes), **keys}, "MyProject")
    assert not problems
    assert definition
    return definition


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (
            [node("a", "b"), node("b", unite={})],
            "nodes[1].unite: E701 nodes[1].unite is no key; did you mean 'unites'?",
        ),
        (
            [node("a", timeout_s="soon")],
            "nodes[0].timeout_s: E701 nodes[0].timeout_s is 'soon': it must be a number.",
        ),
        (
            [{"identifier": "a"}],
            "nodes[0].node_name: E701 nodes[0].node_name is missing.",
        ),
        (
            [node("a b")],
            "nodes[0].identifier: E701 nodes[0].identifier is 'a b': it must be 1 to 64 letters, digits, -"
            " and _.",
        ),
        (
            [node("a", unites={"identifier": "b", "strategy": "SOME"})],
            "nodes[0].unites.strategy: E701 nodes[0].unites.strategy is 'SOME': it must be 'ALL_SUCCESS' or"
            " 'ALL_DONE'.",
        ),
        (
            [node("a", "b"), node("b", "a")],
            "nodes[0].next_nodes: E702 'a' -> 'b' -> 'a' is a circle; graphs have none: use"
            " ReQueueAfterSignal for a loop",
        ),
        (
            [node("a", "b"), node("b", "c"), node("c", "c")],
            "nodes[2].next_nodes: E702 'c' -> 'c' is a circle; graphs have none: use ReQueueAfterSignal for a"
            " loop",
        ),
        ([node("store")], "nodes[0].identifier: E702 'store' is a reserved identifier. Rename the node."),
        (
            [node("a", "b"), node("b"), node("a")],
            "nodes[2].identifier: E702 'a' is the identifier of nodes[0], too. Rename one of them.",
        ),
        (
            [node("a", "b"), node("b"), node("x", "b")],
            "nodes[2].identifier: E702 two roots, 'a' and 'x': exactly one node has nothing before it. Join"
            " them under one.",
        ),
        (
            [node("a", "lod"), node("load")],
            "nodes[0].next_nodes[0]: E702 'a' is followed by 'lod', and there is no such node; did you mean"
            " 'load'?",
        ),
        (
            [node("a", "b", "b"), node("b")],
            "nodes[0].next_nodes[1]: E702 'a' is followed by 'b' twice. Remove one.",
        ),
        (
            [node("a", "b", "d"), node("b", "c"), node("c", unites={"identifier": "d"}), node("d")],
            "nodes[2].unites.identifier: E702 'c' unites 'd', which is no ancestor of it; ancestors are a,"
            " b.",
        ),
        (
            [node("a", "b", "p"), node("b", "u"), node("p", "u"), node("u", unites={"identifier": "b"})],
            "nodes[3].unites.identifier: E702 'u' unites 'b', and 'p' leads to it without coming after 'b'."
            " Unite a node that is before both.",
        ),
        (
            [node("a", "b"), node("b", inputs={"data": "${{ a.output.x }}"})],
            "nodes[1].inputs.data: E703 nodes[1].inputs.data: '${{ a.output.x }}' is no reference; write"
            " ${{ a.outputs.x }} or ${{ store.key }}",
        ),
        (
            [node("a", "b", "c"), node("b", inputs={"n": "${{ c.outputs.x }}"}), node("c")],
            "nodes[1].inputs.n: E703 'b' refers to 'c', which is not before it.",
        ),
        (
            [node("a", "b"), node("b", inputs={"n": ["${{ aa.outputs.x }}"]})],
            "nodes[1].inputs.n: E703 'b' refers to 'aa', and there is no such node; did you mean 'a'?",
        ),
        (
            [
                node("a", "p", "q"),
                node("p", "c"),
                node("q", "c"),
                node("c", inputs={"n": "${{ p.outputs.x }}"}),
            ],
            "nodes[3].inputs.n: E703 'c' refers to 'p', which is not before it on every way. Let 'c' unite a"
            " node before both, or refer to one that all ways have.",
        ),
    ],
)
def test_a_fault_says_where_it_is_and_what_to_do(nodes: list[dict[str, Any]], says: str) -> None:
    """In the words of whoever wrote the graph, and with nothing beside it that only follows from it."""
    assert said(*nodes) == [says]


def test_all_faults_are_said_at_once() -> None:
    """Of keys, of the shape and of references, wherever they are."""
    problems = said(
        node("a", "b", colour="red"),
        node("b", inputs={"n": "${{ c.outputs.x }}", "m": "${{ a }}"}),
        node("x", "b"),
        retry_policy={"max_retries": -1},
        outputs={"r": "${{ z.outputs.x }}"},
        triggers=[{"subject": "in.*", "inputs": {"d": "${{ body }}"}}],
    )
    assert [problem.split(" ")[1] for problem in problems] == [
        "E701",
        "E701",
        "E702",
        "E703",
        "E703",
        "E703",
        "E703",
    ]


def test_a_fault_of_the_shape_is_not_said_of_what_only_follows_from_it() -> None:
    """A key that may have been meant to join nodes hides what is said of how they are joined."""
    assert len(said(node("a", next_node=["b"]), node("b"))) == 1


def test_what_a_node_unites_may_be_referred_to_after_it() -> None:
    """In the uniting node and behind it, from every branch."""
    accepted(
        node("a", "p", "q"),
        node("p", "u"),
        node("q", "u"),
        node("u", "v", unites={"identifier": "a"}, inputs={"n": "${{ p.outputs.x }} ${{ q.outputs.x }}"}),
        node("v", inputs={"n": "${{ q.outputs.x }}", "m": "${{ a.outputs.x }}"}),
        outputs={"r": "${{ p.outputs.x }}"},
    )


def test_a_trigger_that_cannot_give_the_store_is_refused() -> None:
    """A run without a key that its graph requires would never begin."""
    (problem,) = said(
        node("a"), triggers=[{"schedule": "@daily"}], store_config={"required_keys": ["cursor", "batch_id"]}
    )
    assert "E707 store keys 'cursor', 'batch_id' are missing and have no default" in problem


def test_a_graph_that_would_start_itself_is_refused() -> None:
    """Its output is not what triggers it."""
    (problem,) = said(node("a"), output="results.{graph}", triggers=[{"subject": "results.*"}])
    assert "each run would start another" in problem


def test_graphs_that_run_each_other_in_a_circle_are_refused() -> None:
    """By whichever comes first."""
    graphs = {
        name: GraphDefinition.read(name, {"nodes": [node("n") | {"node_name": f"graph:{other}"}]}, "app")[0]
        for name, other in (("a", "b"), ("b", "c"), ("c", "b"))
    }
    ((name, problem),) = graph_circles({name: graph for name, graph in graphs.items() if graph})
    assert (name, problem.path) == ("b", "nodes[0].node_name")
    assert "'b' -> 'c' -> 'b' is a circle of graphs" in problem.text


def schema(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    made = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in properties.items()}
    return {"type": "object", "properties": made, "required": list(required)}


def kind(name: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], **keys: Any) -> NodeKind:
    return NodeKind("MyProject", name, inputs, outputs, group="api", **keys)


KINDS = [
    kind(
        "Split",
        schema(n="integer"),
        schema(
            total="string", count="integer", any={}, maybe={"anyOf": [{"type": "integer"}, {"type": "null"}]}
        ),
    ),
    kind(
        "Api",
        schema(("user_id",), user_id="string", n="integer", ref={"$ref": "#/$defs/Item"})
        | {"$defs": {"Item": {"type": "object"}}},
        schema(answer="string"),
        secrets=("api_key", "endpoint"),
        optional=("endpoint",),
    ),
]


def with_kinds(*nodes: dict[str, Any], values: tuple[str, ...] = ("api_key",), **keys: Any) -> list[str]:
    definition = accepted(*nodes, **keys)
    kinds = {each.id: each for each in KINDS}
    return [str(each) for each in problems_with_kinds(definition, kinds, {}, lambda _: values)]


SPLIT = {"identifier": "a", "node_name": "Split", "inputs": {"n": "initial"}, "next_nodes": ["b"]}


def api(**inputs: Any) -> dict[str, Any]:
    return {"identifier": "b", "node_name": "Api", "inputs": {"user_id": "u", **inputs}}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"n": "${{ a.outputs.totl }}"}, "E703 a has no output 'totl'; did you mean 'total'?"),
        (
            {"n": "${{ a.outputs.total }}"},
            "E703 nodes[1].inputs.n is integer in Api, and a.outputs.total is string.",
        ),
        ({"n": "no number"}, "E703 nodes[1].inputs.n is integer in Api, and what the graph gives is string."),
        ({"ref": [1]}, "E703 nodes[1].inputs.ref is object in Api, and what the graph gives is array."),
        ({"m": 1}, "E703 nodes[1].inputs.m: Api has no input 'm'; there are user_id, n, ref."),
    ],
)
def test_an_input_fits_the_model_of_its_kind(inputs: dict[str, Any], says: str) -> None:
    """As far as its schema tells before anything runs."""
    assert with_kinds(SPLIT, api(**inputs)) == [says]


@pytest.mark.parametrize(
    "value",
    ["${{ a.outputs.count }}", "${{ a.outputs.any }}", "${{ a.outputs.maybe }}", 3, "12", "${{ store.n }}"],
)
def test_what_a_model_may_take_is_no_fault(value: Any) -> None:
    """Numbers in texts, what may be null, and what nothing is known of are for the model to decide."""
    assert with_kinds(SPLIT, api(n=value)) == []


def test_an_input_that_a_kind_requires_is_there() -> None:
    """A reference, a literal or a word for what the trigger gives."""
    (says,) = with_kinds(SPLIT, {"identifier": "b", "node_name": "Api"})
    assert says == "E703 nodes[1].inputs lacks 'user_id', which Api requires. Add it."


def test_texts_only_are_for_kinds_that_take_texts() -> None:
    """As nodes of the first version of other engines do."""
    (says,) = with_kinds(SPLIT | {"inputs": {}}, api(n="1"), strings_only=True)
    assert says.startswith("E703 nodes[1].inputs.n is integer in Api, and the graph has texts only.")


def test_a_kind_that_is_not_there_is_named_with_those_that_are() -> None:
    """So is a graph that a node runs."""
    found = with_kinds(
        SPLIT | {"node_name": "Splt"}, {"identifier": "b", "node_name": "graph:child"}, values=()
    )
    assert found == [
        "E704 no kind 'MyProject/Splt' is registered; kinds here: Split, Api. Start its Runtime, or add its"
        " file to `nodes`.",
        "E704 no graph 'child' has a valid version; graphs here: none. Apply it first.",
    ]


def test_a_kind_gets_the_secrets_that_it_needs() -> None:
    """By name, once for each kind; what has a default is not needed."""
    nodes = [SPLIT | {"next_nodes": ["b", "c"]}, api(), api() | {"identifier": "c"}]
    assert with_kinds(*nodes, values=("other",)) == [
        "E705 Api needs the secret 'api_key', and group api has none of that name. Add it to"
        " nodes.api.secrets, or to nodes.api.settings if it is no secret."
    ]


def test_what_is_united_is_a_list_that_only_the_run_knows() -> None:
    """So its type is not compared."""
    nodes = [
        SPLIT,
        api() | {"next_nodes": ["c"]},
        api(n="${{ b.outputs.answer }}") | {"identifier": "c", "unites": {"identifier": "a"}},
    ]
    assert with_kinds(*nodes) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"$ref": "#/$defs/Loop"},
        {"$ref": 3},
        {"anyOf": "x"},
        {"type": [{}]},
        {"enum": 3},
        [],
        None,
        {"allOf": [{"$ref": "#/nowhere"}]},
    ],
)
def test_a_schema_that_says_nothing_known_takes_anything(odd: Any) -> None:
    """Manifests are written by nodes, and a strange one refuses no graph."""
    odd_kind = kind(
        "Odd", {"properties": {"n": odd}, "$defs": {"Loop": {"$ref": "#/$defs/Loop"}}}, {"properties": odd}
    )
    definition = accepted({"identifier": "a", "node_name": "Odd", "inputs": {"n": [1]}})
    assert problems_with_kinds(definition, {odd_kind.id: odd_kind}, {}, lambda _: ()) == []
