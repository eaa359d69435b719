"""What a graph is, as it is written: its keys, their defaults, and the version that names what it says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from processor.graphs.definition import Graph, GraphDefinition
from processor.model import RetryPolicy

NODES: list[dict[str, Any]] = [
    {"identifier": "a", "node_name": "Read", "next_nodes": ["b"]},
    {"identifier": "b", "node_name": "Write", "namespace": "other", "inputs": {"n": 1}},
]


def graph(**keys: Any) -> GraphDefinition:
    return GraphDefinition.named("g", Graph.model_validate({"nodes": NODES, **keys}), "app")


def why(**keys: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        graph(**keys)
    return "; ".join(error["msg"] for error in caught.value.errors())


def test_a_node_is_of_the_namespace_of_the_app_unless_it_says_another() -> None:
    """Kinds are named by both; `Wait` and other graphs have no namespace."""
    nodes = [
        *NODES,
        {"identifier": "w", "node_name": "Wait"},
        {"identifier": "n", "node_name": "graph:child", "namespace": "other"},
    ]
    made = graph(nodes=nodes)
    assert [node.kind for node in made.nodes] == ["app/Read", "other/Write", "Wait", "graph:child"]
    assert list(made.kinds) == ["app/Read", "other/Write"]
    assert list(made.graphs) == ["child"]


def test_a_version_names_what_a_graph_says_and_not_how_it_is_written() -> None:
    """Defaults written out change nothing; a name, a limit and an order of nodes do."""
    plain = graph()
    assert graph(retry_policy={"max_retries": 3}, on_error="finish", triggers=None).version == plain.version
    others = [
        graph(on_error="stop"),
        graph(nodes=NODES[::-1]),
        graph(nodes=[{**NODES[0], "retry": {"max_retries": 3}}, NODES[1]]),
        GraphDefinition.named("h", Graph.model_validate({"nodes": NODES}), "app"),
        GraphDefinition.named("g", Graph.model_validate({"nodes": NODES}), "elsewhere"),
    ]
    assert len({each.version for each in [plain, *others]}) == 6


def test_the_version_of_a_graph_is_the_same_in_every_build() -> None:
    """What is stored is found again after an upgrade: a default that is added changes no version."""
    assert graph().version == "51c1453ff411"


def test_a_stored_graph_is_read_as_it_was_written() -> None:
    """Nothing is lost or added between a definition and its document."""
    made = graph(
        output="results.{graph}",
        triggers=[
            {"subject": "orders.*", "create": True},
            {"type": "CRON", "value": {"expression": "0 9 * * 7"}},
        ],
        store_config={"required_keys": ["cursor"], "default_values": {"cursor": {"page": None}}},
        timeout_s=3600,
    )
    again = GraphDefinition.of_document(made.document)
    assert again == made
    assert again.version == made.version


def test_a_node_takes_from_the_graph_what_its_retry_does_not_say() -> None:
    """Also where what it says is the default."""
    nodes = [{**NODES[0], "retry": {"max_retries": 3}}, NODES[1]]
    made = graph(nodes=nodes, retry_policy={"max_retries": 5, "strategy": "LINEAR", "max_delay": 100})
    again = GraphDefinition.of_document(made.document)
    assert again.retry_of(again.nodes[0]) == RetryPolicy(4, "linear", 2000, 2, 100)
    assert again.retry_of(again.nodes[1]) == RetryPolicy(6, "linear", 2000, 2, 100)
    assert graph().retry_of(made.nodes[1]).max_ms == 3_600_000


@pytest.mark.parametrize(
    ("expression", "when"),
    [
        ("0 9 * * 1-5", "0 0 9 * * 1-5"),
        ("0 9 * * 7", "0 0 9 * * 0"),
        ("0 9 * * 5-7", "0 0 9 * * 5,6,0"),
        ("*/5 * * * 1-7/2", "0 */5 * * * 1,3,5,0"),
        ("30 0 9 * * sun", "30 0 9 * * sun"),
    ],
)
def test_cron_may_have_five_fields_and_sunday_twice(expression: str, when: str) -> None:
    """As crontab and other engines have it; the server gets the six fields that it takes."""
    made = graph(triggers=[{"type": "CRON", "value": {"expression": expression}}, {"schedule": expression}])
    assert [trigger.when for trigger in made.triggers] == [when, when]


@pytest.mark.parametrize(
    ("trigger", "says"),
    [
        ({}, "none of them"),
        ({"subject": "a", "schedule": "@daily"}, "subject and schedule"),
        ({"type": "CRON"}, "belong together"),
        ({"schedule": "@daily", "create": True}, "`create` has no effect"),
        ({"schedule": "@every 30s", "time_zone": "UTC"}, "`time_zone` has no effect"),
        ({"schedule": "0 9 * * 8"}, "day of the week is '8'"),
        ({"schedule": "0 9 * * -7"}, "day of the week is '-7'"),
        ({"subject": "a..b"}, "empty token"),
    ],
)
def test_a_trigger_is_one_thing(trigger: dict[str, Any], says: str) -> None:
    """Keys that would have no effect are refused, and so is what no server takes."""
    assert says in why(triggers=[trigger])


def test_the_subject_of_an_output_is_made_of_what_a_finished_run_says() -> None:
    """Other placeholders are refused when the graph is written, not when a run ends."""
    made = graph(output="results.{graph}.{state}.{outputs.customer}")
    assert made.output is not None
    assert made.output.template.fields == ("graph", "state", "outputs.customer")
    assert "{customer} is not" in why(output="results.{customer}")
    assert "only {graph}" in why(output="results.{key}")


@pytest.mark.parametrize("key", ["a.b", "", "a b", "{a}"])
def test_a_key_of_the_store_can_be_referred_to(key: str) -> None:
    """So it has no dot, brace or space."""
    assert why(store_config={"required_keys": [key]})


def test_a_default_of_the_store_is_bounded() -> None:
    """As every value of a store is."""
    assert "more than 65536" in why(store_config={"default_values": {"a": "x" * 65_536}})
