"""Pictures of graphs: what is in them, and that nothing that a graph or a run holds breaks them."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from processor.graphs.definition import GraphDefinition
from processor.graphs.pictures import mermaid, svg

SVG = "{http://www.w3.org/2000/svg}"


def node(identifier: str, *after: str, **keys: Any) -> dict[str, Any]:
    return {"identifier": identifier, "node_name": "Work", "next_nodes": list(after), **keys}


def graph(*nodes: dict[str, Any]) -> GraphDefinition:
    definition, errors = GraphDefinition.read("etl", {"nodes": list(nodes)}, "app")
    assert definition, errors
    return definition


DIAMOND = graph(
    node("split", "left", "right", "end"),
    node("left", "deep"),
    node("right", "end"),
    node("deep", "end"),
    node("end", unites={"identifier": "split"}),
    # Not part of it, so that what is odd is drawn as well.
    node("wait", "child", node_name="Wait"),
    node("child", node_name="graph:other"),
)
STATES = {"split": {"SUCCESS": 1}, "left": {"SUCCESS": 7, "ERRORED": 2}, "end": {"WAITING": 1, "Odd": 3}}


def test_mermaid_has_each_node_and_each_edge() -> None:
    """With names, kinds, what unites, and the colour of the worst state."""
    assert mermaid(DIAMOND, STATES) == (
        "flowchart TD\n"
        '    n0["split<br/>app/Work<br/>SUCCESS"]\n'
        '    n1["left<br/>app/Work<br/>2 ERRORED, 7 SUCCESS"]\n'
        '    n2["right<br/>app/Work"]\n'
        '    n3["deep<br/>app/Work"]\n'
        '    n4["end<br/>app/Work<br/>unites split (ALL_SUCCESS)<br/>WAITING"]\n'
        '    n5(["wait<br/>Wait"])\n'
        '    n6[["child<br/>graph:other"]]\n'
        "    n0 --> n1\n    n0 --> n2\n    n0 --> n4\n    n1 --> n3\n    n2 --> n4\n    n3 --> n4\n"
        "    n5 --> n6\n"
        "    classDef success fill:#d7f0dc,stroke:#1e7a34,color:#1c232a\n    class n0 success\n"
        "    classDef errored fill:#fdd8d8,stroke:#b3261e,color:#1c232a\n    class n1 errored\n"
        "    classDef waiting fill:#fff1c9,stroke:#946800,color:#1c232a\n    class n4 waiting\n"
    )


def test_an_svg_has_each_node_below_what_leads_to_it() -> None:
    """No two boxes overlap, all lie in the image, and each edge goes from one box down to another."""
    image = ElementTree.fromstring(svg(DIAMOND, STATES))
    width, height = float(image.attrib["width"]), float(image.attrib["height"])
    boxes = [
        tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        for rect in image.iter(f"{SVG}rect")
        if "x" in rect.attrib
    ]
    assert len(boxes) == 7
    for number, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        for other_x, other_y, other_w, other_h in boxes[:number]:
            assert x + w <= other_x or other_x + other_w <= x or y + h <= other_y or other_y + other_h <= y
    names = ["split", "left", "right", "deep", "end", "wait", "child"]
    tops = dict(zip(names, (box[1] for box in boxes), strict=True))
    assert tops["split"] < tops["left"] < tops["deep"] < tops["end"]
    edges = [path.attrib["d"] for path in image.iter(f"{SVG}path") if "marker-end" in path.attrib]
    assert len(edges) == 7
    for edge in edges:
        numbers = list(map(float, re.findall(r"-?[\d.]+", edge)))
        assert numbers[1] < numbers[-1]
    texts = [text.text for text in image.iter(f"{SVG}text")]
    assert "2 ERRORED, 7 SUCCESS" in texts


@pytest.mark.parametrize(
    "odd", ["<script>alert(1)</script>", '"]; click n0 "x"', "a & b", "\x00\x1b[0m", "\ud800", "%%{init}%%"]
)
def test_nothing_that_a_run_holds_breaks_a_picture(odd: str) -> None:
    """A title is shown, and is never markup; a state that is not known is left out."""
    image = ElementTree.fromstring(svg(DIAMOND, {"split": {odd: 1}}, odd))
    assert not list(image.iter("script"))
    assert len(list(image.iter(f"{SVG}rect"))) == 8
    assert mermaid(DIAMOND, {"split": {odd: 1}}) == mermaid(DIAMOND)


def test_a_large_graph_is_drawn() -> None:
    """In a moment, however its nodes are joined."""
    nodes = [node("n0", *(f"n{i}" for i in range(1, 400)))]
    nodes += [node(f"n{i}", *([f"n{i + 200}"] if i <= 200 else [])) for i in range(1, 401)]
    nodes[0]["next_nodes"].append("n400")
    assert len(list(ElementTree.fromstring(svg(graph(*nodes))).iter(f"{SVG}rect"))) == 402
