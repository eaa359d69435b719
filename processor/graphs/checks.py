"""What is wrong with a graph: every fault at once, each with its place and what to do.

`problems_of` looks at a definition alone, `problems_with_kinds` also at the kinds that its nodes are of. The
configuration adds file, line and column; a request gets the place as a path. A definition without problems
compiles, and a run of it can end.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import BaseModel

from processor.graphs.definition import (
    BUILT_IN,
    Graph,
    GraphDefinition,
    NodeDefinition,
    NodeKind,
    UnitesDefinition,
    keys_at,
)
from processor.graphs.template import Reference, ValueTemplate, parse
from processor.subject import overlaps

Place = tuple[str | int, ...]

# An identifier that `${{ store.key }}` would be taken for.
RESERVED = ("store",)
# Keys of a node that other nodes' faults follow from: where one is wrong, nothing else is said of the shape.
_SHAPING = ("identifier", "node_name", "next_nodes", "unites")
_SHOWN = 10
_WAIT_INPUTS = {
    "type": "object",
    "properties": {
        "signal": {"type": "string"},
        "timeout_s": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    },
}


class Problem(NamedTuple):
    """One fault: where in the definition, its code, and a sentence that says what to do."""

    place: Place
    code: str
    text: str

    @property
    def path(self) -> str:
        """The place as a text: `nodes[2].unites`."""
        return path_of(self.place)

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


def path_of(place: Place) -> str:
    """A place as a text: `nodes[2].unites`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def read_graph(name: str, keys: Mapping[str, Any], app: str) -> tuple[GraphDefinition | None, list[Problem]]:
    """The graph that these keys say, as they come from a request or a file, and all that is wrong with it.

    With a problem in its keys there is none; what is wrong with the rest is found nevertheless.
    """
    definition, errors = GraphDefinition.read(name, keys, app)
    readable = definition or _without_faulty_keys(name, keys, app, errors)
    problems = [key_problem(error, error["loc"]) for error in errors]
    return definition, [*problems, *(problems_of(readable) if readable else ())]


def readable_graph(name: str, keys: Mapping[str, Any], app: str) -> GraphDefinition | None:
    """What these keys say but for what is wrong with them; None where the shape would be another."""
    definition, errors = GraphDefinition.read(name, keys, app)
    return definition or _without_faulty_keys(name, keys, app, errors)


def _without_faulty_keys(
    name: str, keys: Mapping[str, Any], app: str, errors: Sequence[Mapping[str, Any]]
) -> GraphDefinition | None:
    kept = _copied(keys)
    for error in errors:
        place = error["loc"]
        own = place[2:3] if place[:1] == ("nodes",) else place[:1]
        if not own or own[0] in ("name", "nodes") or difflib.get_close_matches(str(own[0]), _SHAPING, n=1):
            return None
        holder = kept["nodes"][place[1]] if place[0] == "nodes" else kept
        holder.pop(own[0], None)
    return GraphDefinition.read(name, kept, app)[0]


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value


def key_problem(
    error: Mapping[str, Any], place: Place, code: str = "E701", model: type[BaseModel] = Graph
) -> Problem:
    """What a validation error of a model, by default that of a graph, means for the person who wrote it."""
    kind, path = error["type"], path_of(place) or f"the {model.__name__.removesuffix('Keys').lower()}"
    if place[-1:] == ("[key]",):
        text = f"{path_of(place[:-2])} has the key {_shown(place[-2])}, which no reference could name."
        return Problem(place[:-1], code, f"{text} Use letters, digits, - and _.")
    if kind == "extra_forbidden":
        known = keys_at(place[:-1], model)
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"keys here are {', '.join(known)}."
        return Problem(place, code, f"{path} is no key; {hint}")
    if kind == "missing":
        return Problem(place, code, f"{path} is missing.")
    context = error.get("ctx", {})
    why = str(context["error"]) if kind == "value_error" else _REASONS.get(kind, error["msg"])
    if kind == "string_pattern_mismatch":
        why = _PATTERNS.get(str(place[-1]), _PATTERNS[""])
    found = error.get("input")
    shown = "" if isinstance(found, dict | list | tuple) else f" is {_shown(found)}"
    return Problem(place, code, f"{path}{shown}: {why.format(**context)}.")


_REASONS = {
    "int_type": "it must be a whole number",
    "float_type": "it must be a number",
    "string_type": "it must be text; quote it",
    "bool_type": "it must be true or false",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a mapping",
    "model_type": "it must be a mapping",
    "model_attributes_type": "it must be a mapping",
    "literal_error": "it must be {expected}",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than_equal": "it must be at most {le}",
    "too_short": "it must not be empty",
    "too_long": "it has {actual_length} entries, more than {max_length}",
    "finite_number": "it must be a finite number",
}
_PATTERNS = {
    "": "it must be 1 to 64 letters, digits, - and _",
    "node_name": "it must be the name of a class, Wait or graph:NAME",
}


def problems_of(definition: GraphDefinition) -> list[Problem]:
    """All that is wrong with a graph by itself."""
    problems = [*_identifier_problems(definition), *_edge_problems(definition)]
    if not problems:
        edges = _Edges(definition)
        problems += edges.unite_problems()
        problems += _reference_problems(definition, edges)
    else:
        problems += _reference_problems(definition, None)
    problems += _trigger_problems(definition)
    return problems


def _identifier_problems(definition: GraphDefinition) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, node in enumerate(definition.nodes):
        place: Place = ("nodes", index, "identifier")
        if node.identifier in RESERVED:
            text = f"'{node.identifier}' is a reserved identifier. Rename the node."
            yield Problem(place, "E702", text)
        first = seen.setdefault(node.identifier, index)
        if first != index:
            text = f"'{node.identifier}' is the identifier of nodes[{first}], too. Rename one of them."
            yield Problem(place, "E702", text)


def _edge_problems(definition: GraphDefinition) -> Iterator[Problem]:
    nodes = definition.by_identifier
    is_whole = True
    for index, node in enumerate(definition.nodes):
        for number, after in enumerate(node.next_nodes):
            place: Place = ("nodes", index, "next_nodes", number)
            if after not in nodes:
                is_whole = False
                text = f"'{node.identifier}' is followed by '{after}', and there is no such node"
                yield Problem(place, "E702", f"{text}{_near(after, nodes)}")
            elif after in node.next_nodes[:number]:
                text = f"'{node.identifier}' is followed by '{after}' twice. Remove one."
                yield Problem(place, "E702", text)
    following = {
        node.identifier: [each for each in node.next_nodes if each in nodes] for node in nodes.values()
    }
    circle = circle_of(following)
    if circle:
        index = next(n for n, node in enumerate(definition.nodes) if node.identifier == circle[0])
        shown = " -> ".join(f"'{each}'" for each in circle)
        text = f"{shown} is a circle; graphs have none: use ReQueueAfterSignal for a loop"
        yield Problem(("nodes", index, "next_nodes"), "E702", text)
    reached = {after for each in following.values() for after in each}
    roots = [identifier for identifier in following if identifier not in reached]
    # Of a graph with another fault a second root may be only what follows from it.
    if len(roots) > 1 and is_whole and not circle:
        count = {2: "two", 3: "three"}.get(len(roots), str(len(roots)))
        shown = ", ".join(f"'{each}'" for each in roots[:-1])
        if len(roots) > _SHOWN:
            shown = f"{', '.join(map(repr, roots[:_SHOWN]))}, ..."
        text = (
            f"{count} roots, {shown} and '{roots[-1]}': exactly one node has nothing before it. Join them"
            " under one."
        )
        index = next(n for n, node in enumerate(definition.nodes) if node.identifier == roots[1])
        yield Problem(("nodes", index, "identifier"), "E702", text)


def circle_of(following: Mapping[str, Iterable[str]]) -> list[str]:
    """Names that follow each other in a circle, the first one again at the end; empty where there is none."""
    done: set[str] = set()
    for start in following:
        path: dict[str, Iterator[str]] = {}
        if start not in done:
            path[start] = iter(following[start])
        while path:
            name, rest = next(reversed(path.items()))
            after = next(rest, None)
            if after is None:
                done.add(name)
                del path[name]
            elif after in path:
                names = list(path)
                return [*names[names.index(after) :], after]
            elif after not in done and after in following:
                path[after] = iter(following[after])
    return []


def graph_circles(graphs: Mapping[str, GraphDefinition]) -> Iterator[tuple[str, Problem]]:
    """Graphs that run each other in a circle: the name of one, and what is wrong with it."""
    circle = circle_of({name: list(graph.graphs) for name, graph in graphs.items()})
    if circle:
        shown = " -> ".join(f"'{each}'" for each in circle)
        nodes = graphs[circle[0]].nodes
        index = next(n for n, node in enumerate(nodes) if node.graph == circle[1])
        text = f"{shown} is a circle of graphs that run each other. Take one of them out."
        yield circle[0], Problem(("nodes", index, "node_name"), "E702", text)


class _Edges:
    """What follows from the edges of a graph, all of whose edges are right.

    `seen` are the nodes that a node may refer to: those that ran before it, however it was reached.
    """

    def __init__(self, definition: GraphDefinition) -> None:
        self._definition = definition
        self._nodes = definition.by_identifier
        self._parents: dict[str, list[str]] = {identifier: [] for identifier in self._nodes}
        for node in definition.nodes:
            for after in node.next_nodes:
                self._parents[after].append(node.identifier)

    @cached_property
    def order(self) -> list[str]:
        """The identifiers, each after all that lead to it."""
        waiting = {identifier: len(before) for identifier, before in self._parents.items()}
        free = [identifier for identifier, count in waiting.items() if not count]
        for identifier in free:  # it grows by what becomes free
            for after in self._nodes[identifier].next_nodes:
                waiting[after] -= 1
                if not waiting[after]:
                    free.append(after)
        return free

    @cached_property
    def ancestors(self) -> dict[str, set[str]]:
        """The nodes before each node."""
        found: dict[str, set[str]] = {}
        for identifier in self.order:
            before = self._parents[identifier]
            found[identifier] = set(before).union(*(found[each] for each in before))
        return found

    @cached_property
    def seen(self) -> dict[str, set[str]]:
        """The nodes that each node may refer to, where what it unites is before it."""
        found: dict[str, set[str]] = {}
        for identifier in self.order:
            before = self._parents[identifier]
            unites = self._nodes[identifier].unites
            if unites and unites.identifier in self.ancestors[identifier]:
                above = unites.identifier
                found[identifier] = found[above] | {above} | self.between(above, identifier)
            else:
                each = [found[parent] | {parent} for parent in before]
                found[identifier] = set.intersection(*each) if each else set()
        return found

    def between(self, above: str, identifier: str) -> set[str]:
        """The nodes below `above` from which `identifier` is reached."""
        return {each for each in self.ancestors[identifier] if above in self.ancestors[each]}

    def is_united_at(self, node: str, other: str) -> bool:
        """Whether `node` sees what `other` put out in several branches, as a list."""
        for identifier in (node, *self.ancestors[node]):
            unites = self._nodes[identifier].unites
            if unites and (
                other == unites.identifier or other in self.between(unites.identifier, identifier)
            ):
                return True
        return False

    def unite_problems(self) -> Iterator[Problem]:
        for index, node in enumerate(self._definition.nodes):
            if node.unites:
                yield from self._of_unites(("nodes", index, "unites"), node, node.unites)

    def _of_unites(self, place: Place, node: NodeDefinition, unites: UnitesDefinition) -> Iterator[Problem]:
        above, own = unites.identifier, node.identifier
        before = self.ancestors[own]
        if above not in before:
            names = [each for each in self.order if each in before]
            there = f"ancestors are {_listed(names)}" if names else "nothing is before it"
            text = f"'{own}' unites '{above}', which is no ancestor of it; {there}."
            yield Problem((*place, "identifier"), "E702", text)
            return
        for parent in self._parents[own]:
            if parent != above and above not in self.ancestors[parent]:
                text = (
                    f"'{own}' unites '{above}', and '{parent}' leads to it without coming after '{above}'."
                    " Unite a node that is before both."
                )
                yield Problem((*place, "identifier"), "E702", text)


def _reference_problems(definition: GraphDefinition, edges: _Edges | None) -> Iterator[Problem]:
    """Inputs and outputs that are no references, or refer to what is not there."""
    nodes = definition.by_identifier
    for index, node in enumerate(definition.nodes):
        for field, value in node.inputs.items():
            place: Place = ("nodes", index, "inputs", field)
            yield from _text_problems(place, value)
            for reference in references_of(value):
                if reference.node not in nodes:
                    what = f"'{node.identifier}' refers to '{reference.node}', and there is no such node"
                    yield Problem(place, "E703", f"{what}{_near(reference.node, nodes)}")
                elif edges and reference.node not in edges.seen[node.identifier]:
                    yield Problem(place, "E703", _unseen(node.identifier, reference.node, edges))
    for field, value in definition.outputs.items():
        place = ("outputs", field)
        yield from _text_problems(place, value)
        for reference in references_of(value):
            if reference.node not in nodes:
                what = f"outputs.{field} refers to '{reference.node}', and there is no such node"
                yield Problem(place, "E703", f"{what}{_near(reference.node, nodes)}")


def _unseen(node: str, other: str, edges: _Edges) -> str:
    if other not in edges.ancestors[node]:
        return f"'{node}' refers to '{other}', which is not before it."
    return (
        f"'{node}' refers to '{other}', which is not before it on every way. Let '{node}' unite a node before"
        f" both, or refer to one that all ways have."
    )


def _text_problems(place: Place, value: Any) -> Iterator[Problem]:
    try:
        parse(value)
    except ValueError as err:
        yield Problem(place, "E703", f"{path_of(place)}: {err}")


def references_of(value: Any) -> list[Reference]:
    """The outputs of nodes that an input refers to, each once; none of what cannot be read."""
    try:
        found = parse(value).references
    except ValueError:
        return []
    return [reference for reference in dict.fromkeys(found) if reference.node]


def _trigger_problems(definition: GraphDefinition) -> Iterator[Problem]:
    missing = definition.store_config.missing_keys
    for index, trigger in enumerate(definition.triggers):
        place: Place = ("triggers", index)
        if missing:
            keys = ", ".join(f"'{key}'" for key in missing)
            text = f"store keys {keys} are missing and have no default, and triggers[{index}] gives none."
            yield Problem(place, "E707", f"{text} Add them to store_config.default_values.")
        own = definition.output
        if trigger.subject and own and overlaps(trigger.subject, own.template.pattern):
            text = (
                f"triggers[{index}].subject '{trigger.subject}' takes what the graph puts out to"
                f" '{own.subject}': each run would start another. Change one of them."
            )
            yield Problem((*place, "subject"), "E701", text)
        for field, value in trigger.inputs.items():
            where: Place = (*place, "inputs", field)
            for text in bad_message_references(value):
                yield Problem(where, "E703", f"{path_of(where)}: {text}")


_MARK = re.compile(r"(?<!\$)\$\{\{")
# What of a message the inputs of a trigger may be.
MESSAGE_REFERENCE = re.compile(r"\$\{\{\s*(document(?:\.[^\s.{}]+)*|subject)\s*\}\}")


def bad_message_references(value: Any) -> Iterator[str]:
    """What is wrong with the texts in a trigger's input."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from bad_message_references(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from bad_message_references(each)
    elif isinstance(value, str) and _MARK.search(value) and not MESSAGE_REFERENCE.fullmatch(value.strip()):
        yield (
            f"{_shown(value)} is no reference; write ${{{{ document }}}}, ${{{{ document.field }}}} or"
            " ${{ subject }}, and nothing else"
        )


Values = Callable[[NodeKind], Collection[str]]


def problems_with_kinds(
    definition: GraphDefinition,
    kinds: Mapping[str, NodeKind],
    graphs: Mapping[str, GraphDefinition],
    values: Values,
) -> list[Problem]:
    """What is wrong with a graph without problems of its own, given the kinds and graphs that there are.

    `values` says which names a kind gets for its `Secrets`. Problems E704, a kind or a graph that is not
    there, may pass by themselves; all others are for a person.
    """
    return [*_Typing(definition, kinds, graphs).problems(), *_secret_problems(definition, kinds, values)]


def _secret_problems(
    definition: GraphDefinition, kinds: Mapping[str, NodeKind], values: Values
) -> Iterator[Problem]:
    done: set[str] = set()
    for index, node in enumerate(definition.nodes):
        kind = kinds.get(node.kind)
        # An external worker has an environment of its own, which only it can look into.
        if kind is None or kind.where == "external" or node.kind in done:
            continue
        done.add(node.kind)
        given = values(kind)
        for name in kind.needs:
            if name not in given:
                text = (
                    f"{kind.name} needs the secret '{name}', and group {kind.group} has none of that name."
                    f" Add it to nodes.{kind.group}.secrets, or to nodes.{kind.group}.settings if it is no"
                    " secret."
                )
                yield Problem(("nodes", index, "node_name"), "E705", text)


class _Typing:
    """What a graph takes from and gives to the kinds of its nodes."""

    def __init__(
        self,
        definition: GraphDefinition,
        kinds: Mapping[str, NodeKind],
        graphs: Mapping[str, GraphDefinition],
    ) -> None:
        self._definition, self._kinds, self._graphs = definition, kinds, graphs
        self._edges = _Edges(definition)
        self._root = next((node.identifier for node in definition.nodes if self._is_root(node)), "")

    def _is_root(self, node: NodeDefinition) -> bool:
        return not self._edges.ancestors[node.identifier]

    def problems(self) -> Iterator[Problem]:
        for index, node in enumerate(self._definition.nodes):
            yield from self._absent(("nodes", index, "node_name"), node)
            schema = self._inputs(node)
            if schema is not None:
                yield from self._of_inputs(("nodes", index, "inputs"), node, schema)
        for field, value in self._definition.outputs.items():
            for reference in references_of(value):
                yield from self._of_reference(("outputs", field), reference)

    def _absent(self, place: Place, node: NodeDefinition) -> Iterator[Problem]:
        if node.graph is not None:
            if node.graph not in self._graphs:
                text = f"no graph '{node.graph}' has a valid version; graphs here: {_listed(self._graphs)}."
                yield Problem(place, "E704", f"{text} Apply it first.")
        elif node.kind not in BUILT_IN and node.kind not in self._kinds:
            here = [kind.name for kind in self._kinds.values() if kind.namespace == node.namespace]
            text = f"no kind '{node.kind}' is registered; kinds here: {_listed(here)}."
            yield Problem(place, "E704", f"{text} Start its Runtime, or add its file to `nodes`.")

    def _inputs(self, node: NodeDefinition) -> Mapping[str, Any] | None:
        if node.is_wait:
            return _WAIT_INPUTS
        kind = self._kinds.get(node.kind)
        return kind.inputs if kind else None

    def _of_inputs(self, place: Place, node: NodeDefinition, schema: Mapping[str, Any]) -> Iterator[Problem]:
        properties = _properties(schema)
        for name in schema.get("required", ()):
            if name not in node.inputs:
                text = f"{path_of(place)} lacks '{name}', which {node.node_name} requires. Add it."
                yield Problem(place, "E703", text)
        for field, value in node.inputs.items():
            here = (*place, field)
            for reference in references_of(value):
                yield from self._of_reference(here, reference)
            if field not in properties:
                if not schema.get("additionalProperties"):
                    what = f"{path_of(here)}: {node.node_name} has no input '{field}'"
                    yield Problem(here, "E703", f"{what}{_near(field, properties)}")
                continue
            wanted = _types(properties[field], schema)
            if self._definition.strings_only and wanted and "string" not in wanted:
                text = (
                    f"{path_of(here)} is {_said(wanted)} in {node.node_name}, and the graph has texts only."
                )
                yield Problem(here, "E703", f"{text} Make it a str, or remove `strings_only`.")
            elif not self._definition.strings_only:
                yield from self._of_type(here, node, value, wanted)

    def _of_type(
        self, place: Place, node: NodeDefinition, value: Any, wanted: frozenset[str]
    ) -> Iterator[Problem]:
        template = parse(value)
        if template.reference is not None:
            given, what = self._given(node, template.reference), str(template.reference)[4:-3]
        elif node.identifier == self._root and isinstance(value, str):
            return  # what a trigger gives takes its place
        else:
            given, what = _literal_types(value, template), "what the graph gives"
        if wanted and given and not _fits(given, wanted, value):
            text = f"{path_of(place)} is {_said(wanted)} in {node.node_name}, and {what} is {_said(given)}."
            yield Problem(place, "E703", text)

    def _given(self, node: NodeDefinition, reference: Reference) -> frozenset[str]:
        """The types of what a reference finds; empty where only the run knows."""
        if not reference.node or self._edges.is_united_at(node.identifier, reference.node):
            return frozenset()
        schema = self._outputs(reference.node)
        found = _properties(schema).get(reference.field) if schema else None
        return _types(found, schema) if schema and found is not None else frozenset()

    def _outputs(self, identifier: str) -> Mapping[str, Any] | None:
        """The schema of what a node puts out; None where nothing is known of it."""
        node = self._definition.by_identifier[identifier]
        if node.is_wait:
            return {"properties": {"value": {}}}
        if node.graph is not None:
            child = self._graphs.get(node.graph)
            return {"properties": {key: {} for key in child.outputs}} if child else None
        kind = self._kinds.get(node.kind)
        return kind.outputs if kind else None

    def _of_reference(self, place: Place, reference: Reference) -> Iterator[Problem]:
        schema = self._outputs(reference.node)
        if not schema or schema.get("additionalProperties") or "properties" not in schema:
            return
        properties = _properties(schema)
        if reference.field not in properties:
            text = f"{reference.node} has no output '{reference.field}'{_near(reference.field, properties)}"
            yield Problem(place, "E703", text)


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


_OF_VALUES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_ANY: frozenset[str] = frozenset()


def _types(schema: Any, whole: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema takes; empty where it does not say, or says it in a way not known here."""
    if not isinstance(schema, Mapping) or depth > 8:
        return _ANY
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        found = whole.get("$defs")
        return _types(found.get(reference[8:]) if isinstance(found, Mapping) else None, whole, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            each = [_types(one, whole, depth + 1) for one in schema[key]]
            return frozenset().union(*each) if all(each) else _ANY
    if isinstance(schema.get("enum"), list):
        return frozenset(_OF_VALUES.get(type(value), "object") for value in schema["enum"])
    if "const" in schema:
        return frozenset((_OF_VALUES.get(type(schema["const"]), "object"),))
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset((kind,))
    return frozenset(kind) if isinstance(kind, list) and all(isinstance(each, str) for each in kind) else _ANY


def _literal_types(value: Any, template: ValueTemplate) -> frozenset[str]:
    if template.parts:
        return frozenset(("string",))
    kind = "object" if isinstance(value, Mapping) else "array" if isinstance(value, list | tuple) else ""
    return frozenset((kind or _OF_VALUES.get(type(value), "object"),))


def _fits(given: frozenset[str], wanted: frozenset[str], value: Any) -> bool:
    """Whether a model may take it; models read numbers in texts, and whole numbers in others."""
    numbers = frozenset(("integer", "number"))
    if given & wanted or (given & numbers and wanted & numbers):
        return True
    if not isinstance(value, str) or "${{" in value or not wanted & (numbers | {"boolean"}):
        return False
    return bool(
        re.fullmatch(r"\s*[+-]?[\d_.]+(e[+-]?\d+)?\s*|true|false|yes|no|on|off|[ytnf]", value, re.IGNORECASE)
    )


def _said(types: frozenset[str]) -> str:
    return " or ".join(sorted(types))


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {_listed(names)}."


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "") if found else "none"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
