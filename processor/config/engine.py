"""From the keys `engine`, `nodes` and `graphs` to what runs, and what is wrong with them.

`load` asks here as it asks `rules` and `routes` about routes. A graph in a file of its own is read before
anything is checked, so that whatever is found stands at its line of that file.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails

from processor.config.forms import Place, read_secret
from processor.config.graphs import EngineKeys, NodeGroupKeys, SecretsKeySettings
from processor.config.keys import Config
from processor.config.rules import Contradiction, topics, unknown_secret
from processor.config.source import YamlSource, dotted
from processor.config.tools import granted
from processor.errors import ConfigError, Fault, Faults
from processor.graphs.checks import Problem, graph_circles, key_problem, problems_of, readable_graph
from processor.graphs.definition import GraphDefinition
from processor.model import Limits, Program
from processor.policy import Rules
from processor.reach import BoundSecret, InferenceEndpoint, Outbound, Reach, Tool
from processor.route import GraphEngine, NodeGroup, RouteAudit
from processor.subject import app_patterns, overlaps

ENGINE_ROUTE = "graphs"
POOL_PREFIX = "nodes-"
_KEY_BYTES = 32


class GraphSources:
    """Where each graph of a configuration is written: in it, or in the file that it names.

    Making one puts what such files hold into the data of the configuration; `faults` says which cannot be
    read, and such a graph is left out.
    """

    def __init__(self, source: YamlSource) -> None:
        self.faults: list[Fault] = []
        self._sources: dict[str, tuple[YamlSource, Place]] = {}
        self._default = source
        recipes = source.data.get("recipes")
        for name in recipes if isinstance(recipes, dict) else ():
            self._sources[name] = (source, ("recipes", name))
        graphs = source.data.get("graphs")
        if not isinstance(graphs, dict):
            return
        for name, raw in list(graphs.items()):
            place: Place = ("graphs", name)
            file = raw.get("file") if isinstance(raw, dict) else None
            self._sources[name] = (source, place)
            if not isinstance(file, str) or not file:
                continue
            if len(raw) > 1:
                other = next(key for key in raw if key != "file")
                text = f"graphs.{name}.{other} has no effect beside `file`, which has all keys of the graph"
                self.faults.append(source.fault((*place, other), "E106", text))
            self._read(graphs, name, source.path.parent / Path(file).expanduser())

    def _read(self, graphs: dict[str, object], name: str, path: Path) -> None:
        try:
            own = YamlSource.read(path, missing="E107")
        except Faults as err:
            self.faults += err.faults
            del graphs[name]
            return
        self.faults += own.faults
        self._sources[name] = (own, ())
        graphs[name] = own.data

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that graphs stand in."""
        return tuple(source.path for source, _ in self._sources.values() if source is not self._default)

    def fault(self, name: str, problem: Problem) -> Fault:
        """A problem of a graph, where it is written."""
        source, place = self._sources.get(name, (self._default, ("graphs", name)))
        key = dotted(place) if place else f"graphs.{name}"
        return source.fault((*place, *problem.place), problem.code, f"{key}: {problem.text}")

    def explain(self, error: ErrorDetails) -> Fault | None:
        """What a validation error means that lies in a graph; None for another."""
        top, name, *place = (*error["loc"], "", "")[: max(2, len(error["loc"]))]
        if top != "graphs" or name not in self._sources or place[-1:] == ["[key]"]:
            return None
        return self.fault(str(name), key_problem(error, tuple(place)))


class GraphFile:
    """A YAML file with the keys of one graph, apart from any configuration."""

    def __init__(self, source: YamlSource) -> None:
        self._source = source
        self.keys = dict(source.data)
        self.name = str(self.keys.pop("name", source.path.stem))

    @classmethod
    def read(cls, path: Path) -> GraphFile:
        """What the file holds. Raises Faults where it cannot be read, or is not YAML."""
        return cls(YamlSource.read(path))

    @property
    def path(self) -> Path:
        return self._source.path

    @property
    def is_configuration(self) -> bool:
        """Whether it is a configuration: its nodes are groups by name, where a graph has a list."""
        return "app" in self.keys or not isinstance(self.keys.get("nodes"), list)

    def faults(self, problems: Iterable[Problem]) -> list[Fault]:
        """What is wrong with the file, and these problems of its graph, where each is written."""
        found = [self._source.fault(each.place, each.code, each.text) for each in problems]
        return [*self._source.faults, *found]


def runs_nothing(data: Mapping[str, Any]) -> Iterator[Contradiction]:
    """That a file has neither routes nor what runs graphs, whatever else is wrong with it."""
    if not {"routes", "engine", "nodes", "graphs", "recipes"} & data.keys():
        text = "routes is missing: the routes by name (or `graphs`, `recipes` or `engine: {}`)"
        yield ("routes",), "E105", text


def readable_graphs(data: Mapping[str, Any]) -> dict[str, GraphDefinition]:
    """The graphs of a file, faulty or not, as far as their keys are right."""
    graphs, found = data.get("graphs"), dict[str, GraphDefinition]()
    for name, raw in graphs.items() if isinstance(graphs, dict) else ():
        keys = raw if isinstance(raw, dict) else {}
        if definition := readable_graph(name, keys, str(data.get("app"))):
            found[name] = definition
    return found


def graph_faults(graphs: Mapping[str, GraphDefinition], sources: GraphSources) -> Iterator[Fault]:
    """What is wrong with graphs beyond their keys, each by itself and among each other."""
    for name, graph in graphs.items():
        for problem in problems_of(graph):
            yield sources.fault(name, problem)
    for name, problem in graph_circles(graphs):
        yield sources.fault(name, problem)


def placed(config: Config, problems: Mapping[str, Iterable[Problem]]) -> list[Fault]:
    """Problems of the graphs of a loaded configuration, by name, where each is written."""
    try:
        sources = GraphSources(YamlSource.read(config.path))  # for their lines and columns only
    except Faults:
        sources = GraphSources(YamlSource(config.path))
    return [sources.fault(name, problem) for name, found in problems.items() for problem in found]


def engine_faults(config: Config) -> Iterator[Contradiction]:
    """What the keys of graphs and nodes say against each other, and against those of routes."""
    if not config.has_engine:
        return
    for name in config.route_settings:
        if name == ENGINE_ROUTE or name.startswith(POOL_PREFIX):
            text = (
                f"routes.{name} has the name of a route that runs graphs: {ENGINE_ROUTE} and {POOL_PREFIX}*"
                " are taken where there are `engine`, `nodes`, `graphs` or `recipes`"
            )
            yield ("routes", name), "E106", text
    key = config.engine_keys.secrets_key if config.engine_keys else None
    if key and bool(key.env) == bool(key.file):
        how = "has both" if key.env else "has neither"
        text = f"engine.secrets_key {how} env and file; the key comes from one of them"
        yield ("engine", "secrets_key"), "E106", text
    for name, group in config.group_keys.items():
        for place, code, text in _group_faults(config, name, group):
            yield ("nodes", name, *place), code, text
    yield from _subject_faults(config)


def _group_faults(config: Config, name: str, group: NodeGroupKeys) -> Iterator[Contradiction]:
    here = f"nodes.{name}"
    if group.packages and group.language != "python":
        text = f"{here}.packages has no effect with `language: {group.language}`; set `language: python`"
        yield ("packages",), "E106", text
    if group.where == "inline" and group.outside:
        what = " and ".join(f"`{key}`" for key in group.outside)
        text = (
            f"{here}.where is inline, and the group lists {what}: what has an effect outside runs in a pool,"
            " or it would happen again where a commit is done again"
        )
        yield ("where",), "E106", text
    if not group.is_pool:
        for key in ("concurrency", "partitions"):
            if key in group.model_fields_set:
                text = f"{here}.{key} has no effect: the group runs inline, as `engine.{key}` says"
                yield (key,), "E106", text
    elif group.concurrency > group.partitions:
        text = (
            f"{here}.concurrency is {group.concurrency}, but executions are spread over {group.partitions}"
            f" partitions: at most {group.partitions} guests can work"
        )
        yield ("concurrency",), "E106", text
    for used in group.secrets:
        if used not in config.secrets:
            _, code, text = unknown_secret(("nodes", name, "secrets"), used, config)
            yield ("secrets",), code, text
        if used in group.settings:
            text = f"{here}.settings.{used} is a secret of the group, too; it can be one of them"
            yield ("settings", used), "E106", text


def _subject_faults(config: Config) -> Iterator[Contradiction]:
    """What the subjects that nodes and graphs send to are at odds with: one stream keeps each."""
    taken = [each for name, route in config.route_settings.items() for each in topics(name, route)]
    found: list[tuple[Place, str]] = []
    for name, group in config.group_keys.items():
        found += [(("nodes", name, "emits", n), pattern) for n, pattern in enumerate(group.emits)]
    told = [(("graphs", name), graph.output, graph.events) for name, graph in config.graph_keys.items()]
    told += [(("recipes", name), each.output, each.events) for name, each in config.recipe_keys.items()]
    for here, output, events in told:
        if output:
            found.append(((*here, "output"), output.template.pattern))
        if events:
            found.append(((*here, "events"), events.subject))
    for place, pattern in found:
        key = dotted(place)
        for own in app_patterns(config.app):
            if overlaps(pattern, own):
                text = f"{key} '{pattern}' overlaps {own}, which the app itself publishes to"
                yield place, "E106", text
        for theirs, where, is_kept in taken:
            if overlaps(theirs, pattern) and not (is_kept and theirs == pattern):
                why = "and one stream keeps a subject: make it one pattern"
                why = why if is_kept else "which no stream keeps (`durable: false`)"
                yield place, "E106", f"{key} '{pattern}' overlaps {where} '{theirs}', {why}"
        taken.append((pattern, key, True))


def read_secrets_key(config: Config, env: Mapping[str, str]) -> tuple[str, Contradiction | None]:
    """The key that seals what clients upload, empty where there is none; what is wrong with it."""
    key = config.engine_keys.secrets_key if config.engine_keys else None
    if key is None or bool(key.env) == bool(key.file):
        return "", None
    place, value, fault = _key_text(key, env)
    if fault is None and not _is_key(value):
        what = f"{dotted(place)} does not hold {_KEY_BYTES} bytes as base64 or hexadecimal"
        fault = (place, "E107" if key.file else "E108", f"{what}; `openssl rand -base64 32` makes some")
    return ("", fault) if fault else (value, None)


def _key_text(key: SecretsKeySettings, env: Mapping[str, str]) -> tuple[Place, str, Contradiction | None]:
    place: Place = ("engine", "secrets_key", "file" if key.file else "env")
    if key.file:
        try:
            return place, read_secret(key.file), None
        except ConfigError as err:
            return place, "", (place, "E107", f"{dotted(place)}: {err.what} ({err.place})")
    value = env.get(key.env or "", "").strip()
    unset = (place, "E108", f"{dotted(place)} is {key.env}, which is not set")
    return place, value, None if value else unset


def _is_key(text: str) -> bool:
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return True
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def runtime_engine(keys: EngineKeys | None, secrets_key: str) -> GraphEngine:
    """The engine that these keys stand for."""
    keys = keys or EngineKeys()
    return GraphEngine(
        keys.partitions,
        keys.concurrency,
        keys.keep.success,
        keys.keep.failed,
        keys.keep.cancelled,
        secrets_key,
    )


def runtime_group(
    app: str,
    name: str,
    keys: NodeGroupKeys,
    program: Program,
    rules: Rules,
    audit: RouteAudit,
    secrets: Mapping[str, BoundSecret],
    tools: Mapping[str, Tool],
    endpoints: Mapping[str, InferenceEndpoint],
) -> NodeGroup:
    """The group that these keys stand for, which are free of faults."""
    outbound = keys.outbound
    limits = {
        each.name: getattr(keys.limits, each.name)
        for each in fields(Limits)
        if each.name in type(keys.limits).model_fields
    }
    return NodeGroup(
        app=app,
        name=name,
        program=program,
        is_pool=keys.is_pool,
        policy=rules,
        audit=audit,
        limits=Limits(**limits),
        reach=Reach(
            f"nodes.{name}.outbound.allowed_domains",
            Outbound(
                outbound.allowed_domains,
                outbound.timeout_s,
                outbound.request_bytes,
                outbound.response_bytes,
                outbound.redirects,
            ),
            secrets=tuple(secrets[own] for own in keys.secrets),
            emits=keys.emits,
            tools=tuple(granted(keys.tools, tools)),
            inference=tuple(endpoints[own] for own in dict.fromkeys(keys.inference)),
        ),
        settings=keys.settings,
        emits=keys.emits,
        concurrency=keys.concurrency,
        partitions=keys.partitions,
    )
