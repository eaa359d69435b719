"""Pictures of graphs: as Mermaid text, and as SVG in layers, each with the states of a run if there is one.

Nodes lie in layers, each below all that lead to it; within a layer they are ordered so that few edges cross
(barycentres, four sweeps). Nothing is needed for it but this module. What must stay true: whatever a graph or
a run holds, the SVG is well-formed and the Mermaid text has no more nodes and edges than the graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

from processor.graphs.definition import GraphDefinition, NodeDefinition

# How many executions of a node are in each state, by node.
States = Mapping[str, Mapping[str, int]]

# Which of several states of a node's executions its colour says: the first of these.
_FIRST = ("ERRORED", "QUEUED", "WAITING", "CREATED", "CANCELLED", "SKIPPED", "PRUNED", "SUCCESS")
_COLOURS = {
    "ERRORED": ("#fdd8d8", "#b3261e"),
    "QUEUED": ("#d6e8ff", "#1a5fb4"),
    "WAITING": ("#fff1c9", "#946800"),
    "CREATED": ("#eef1f4", "#5e6a75"),
    "CANCELLED": ("#e6e0ee", "#63508a"),
    "SKIPPED": ("#e9e9e9", "#6b6b6b"),
    "PRUNED": ("#e9e9e9", "#6b6b6b"),
    "SUCCESS": ("#d7f0dc", "#1e7a34"),
}
_PLAIN = ("#ffffff", "#44505c")
_SWEEPS = 4
# Pixels. A character of the SVG's font is at most so wide.
_CHAR, _LINE, _PAD = 7.3, 17, 14
_GAP_X, _GAP_Y, _MARGIN, _TITLE = 32, 48, 20, 34
_LONGEST = 44  # characters of a line
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


# What stands below the name of a node, in place of its kind and of what it unites.
Notes = Mapping[str, str]


def mermaid(graph: GraphDefinition, states: States | None = None, notes: Notes | None = None) -> str:
    """The graph as a Mermaid flowchart, in which a node has the colour of its state."""
    numbers = {node.identifier: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for node in graph.nodes:
        label = "<br/>".join(map(_mermaid_text, _lines_of(node, states, notes)))
        left, right = ("([", "])") if node.is_wait else ("[[", "]]") if node.graph is not None else ("[", "]")
        lines.append(f'    {numbers[node.identifier]}{left}"{label}"{right}')
    for node in graph.nodes:
        for after in node.next_nodes:
            lines.append(f"    {numbers[node.identifier]} --> {numbers[after]}")
    used: dict[str, list[str]] = {}
    for node in graph.nodes:
        if state := _state_of(node.identifier, states):
            used.setdefault(state, []).append(numbers[node.identifier])
    for state, names in used.items():
        fill, stroke = _COLOURS[state]
        lines.append(f"    classDef {state.lower()} fill:{fill},stroke:{stroke},color:#1c232a")
        lines.append(f"    class {','.join(names)} {state.lower()}")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """Mermaid reads `#35;` as the character of that number, and much else as its own syntax."""
    return re.sub(r"[^\w .,:()/~-]", lambda found: f"#{ord(found[0])};", text)


def svg(
    graph: GraphDefinition, states: States | None = None, title: str = "", notes: Notes | None = None
) -> str:
    """The graph as an SVG image, from the first node at the top to the last at the bottom."""
    texts = {node.identifier: _lines_of(node, states, notes) for node in graph.nodes}
    layout = _Layout(graph, texts)
    title = title or f"{graph.name} {graph.version}"
    width = max(layout.width, len(_cut(title)) * _CHAR) + 2 * _MARGIN
    height = layout.height + 2 * _MARGIN + _TITLE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="ui-monospace, Menlo, Consolas, monospace"'
        ' font-size="12" role="img">',
        f"<title>{_xml(title)}</title>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
        ' orient="auto"><path d="M0 0L8 4L0 8z" fill="#7a8794"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 8}" font-weight="bold" fill="#1c232a">{_xml(_cut(title))}</text>',
    ]
    parts += [_edge(points) for points in layout.edges()]
    for node in graph.nodes:
        parts.append(_box(layout.box(node.identifier), texts[node.identifier], node, states))
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Box:
    """Where a node, or the place where a long edge goes through a layer, lies."""

    __slots__ = ("height", "width", "x", "y")

    def __init__(self, width: float, height: float) -> None:
        self.x = self.y = 0.0
        self.width, self.height = width, height

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


class _Layout:
    """Places for all nodes; `_edges` are cut at each layer, so that none crosses a box."""

    def __init__(self, graph: GraphDefinition, texts: Mapping[str, Sequence[str]]) -> None:
        self._graph = graph
        ranks = _ranks(graph)
        self._layers: list[list[str]] = [[] for _ in range(max(ranks.values()) + 1)]
        self._boxes: dict[str, _Box] = {}
        for node in graph.nodes:
            lines = texts[node.identifier]
            width = max(len(line) for line in lines) * _CHAR + 2 * _PAD
            self._boxes[node.identifier] = _Box(width, len(lines) * _LINE + _PAD)
            self._layers[ranks[node.identifier]].append(node.identifier)
        self._ways: list[list[str]] = []
        for node in graph.nodes:
            for after in node.next_nodes:
                self._ways.append(self._way(node.identifier, after, ranks))
        for _ in range(_SWEEPS):
            self._sweep(range(1, len(self._layers)), -1)
            self._sweep(range(len(self._layers) - 2, -1, -1), 1)
        self._place()

    def _way(self, node: str, after: str, ranks: Mapping[str, int]) -> list[str]:
        way = [node]
        for rank in range(ranks[node] + 1, ranks[after]):
            # No identifier has such a name.
            through = f"{node} {after} {rank}"
            self._boxes[through] = _Box(2, 2)
            self._layers[rank].append(through)
            way.append(through)
        return [*way, after]

    def _sweep(self, ranks: Iterable[int], towards: int) -> None:
        beside: dict[str, list[str]] = {}
        for way in self._ways:
            for one, other in pairwise(way):
                beside.setdefault(other if towards < 0 else one, []).append(one if towards < 0 else other)
        for rank in ranks:
            places = {name: place for place, name in enumerate(self._layers[rank + towards])}
            own = {name: place for place, name in enumerate(self._layers[rank])}

            def centre(name: str, places: Mapping[str, int] = places, own: Mapping[str, int] = own) -> float:
                found = [places[each] for each in beside.get(name, ()) if each in places]
                return sum(found) / len(found) if found else own[name]

            self._layers[rank].sort(key=centre)

    def _place(self) -> None:
        widths = [
            sum(self._boxes[n].width for n in layer) + _GAP_X * (len(layer) - 1) for layer in self._layers
        ]
        self.width = max(widths)
        y: float = _MARGIN + _TITLE
        for layer, width in zip(self._layers, widths, strict=True):
            x = _MARGIN + (self.width - width) / 2
            height = max(self._boxes[name].height for name in layer)
            for name in layer:
                box = self._boxes[name]
                box.x, box.y = x, y + (height - box.height) / 2
                x += box.width + _GAP_X
            y += height + _GAP_Y
        self.height = y - _GAP_Y - _MARGIN - _TITLE

    def box(self, identifier: str) -> _Box:
        """Where a node lies."""
        return self._boxes[identifier]

    def edges(self) -> Iterable[list[tuple[float, float]]]:
        """The points of each edge, from the bottom of one box to the top of another."""
        for way in self._ways:
            first, *through, last = (self._boxes[name] for name in way)
            points = [(first.middle, first.y + first.height)]
            points += [(box.middle, box.y) for box in through]
            yield [*points, (last.middle, last.y)]


def _ranks(graph: GraphDefinition) -> dict[str, int]:
    """The layer of each node: one below the lowest that leads to it."""
    waiting = dict.fromkeys((node.identifier for node in graph.nodes), 0)
    for node in graph.nodes:
        for after in node.next_nodes:
            waiting[after] += 1
    ranks = dict.fromkeys(waiting, 0)
    free = [identifier for identifier, count in waiting.items() if not count]
    for identifier in free:  # it grows by what becomes free
        for after in graph.by_identifier[identifier].next_nodes:
            ranks[after] = max(ranks[after], ranks[identifier] + 1)
            waiting[after] -= 1
            if not waiting[after]:
                free.append(after)
    return ranks


def _edge(points: Sequence[tuple[float, float]]) -> str:
    x, y = points[0]
    path = [f"M{x:.1f} {y:.1f}"]
    for next_x, next_y in points[1:]:
        half = (next_y - y) / 2
        path.append(f"C{x:.1f} {y + half:.1f} {next_x:.1f} {next_y - half:.1f} {next_x:.1f} {next_y:.1f}")
        x, y = next_x, next_y
    return (
        f'<path d="{"".join(path)}" fill="none" stroke="#7a8794" stroke-width="1.3" marker-end="url(#end)"/>'
    )


def _box(box: _Box, lines: Sequence[str], node: NodeDefinition, states: States | None) -> str:
    state = _state_of(node.identifier, states)
    fill, stroke = _COLOURS[state] if state else _PLAIN
    radius = 16 if node.is_wait else 4
    dash = ' stroke-dasharray="5 3"' if node.graph is not None else ""
    parts = [
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
        f' rx="{radius}" fill="{fill}" stroke="{stroke}" stroke-width="1.3"{dash}/>'
    ]
    for number, line in enumerate(lines):
        weight = ' font-weight="bold"' if number == 0 else ""
        y = box.y + _PAD / 2 + 13 + number * _LINE
        parts.append(
            f'<text x="{box.middle:.1f}" y="{y:.1f}" text-anchor="middle" fill="#1c232a"{weight}>'
            f"{_xml(line)}</text>"
        )
    return "".join(parts)


def _lines_of(node: NodeDefinition, states: States | None, notes: Notes | None) -> list[str]:
    lines = [node.identifier, node.kind if notes is None else notes[node.identifier]]
    if node.unites and notes is None:
        lines.append(f"unites {node.unites.identifier} ({node.unites.strategy})")
    counts = _counts(node.identifier, states)
    if counts:
        several = len(counts) > 1 or sum(counts.values()) > 1
        lines.append(", ".join(f"{count:,} {state}" if several else state for state, count in counts.items()))
    return list(map(_cut, lines))


def _counts(identifier: str, states: States | None) -> dict[str, int]:
    """Of one node, in the order of what matters most; states that are unknown here are not shown."""
    found = (states or {}).get(identifier, {})
    return {state: found[state] for state in _FIRST if found.get(state)}


def _state_of(identifier: str, states: States | None) -> str:
    return next(iter(_counts(identifier, states)), "")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _xml(text: str) -> str:
    return escape(_CONTROL.sub("?", text), {'"': "&quot;"})
