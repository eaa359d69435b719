"""The configuration: `load` a file, and what may be asked about it.

`keys` describes every key, `source` reads files and places faults, `rules` finds contradictions, `routes`
turns the keys of a route into the `Route` that runs, and `text` writes what people read. The rest of the
package imports from here. `load` reads a file once, lays the environment over it and either returns a
`Config` that everything else can rely on, or raises `Faults` with every fault it found. Sources of Runnables
are read here too, so that a running service never reads a half-written file: loading again is reloading.

It never connects to anything and never starts anything. Invariants: a loaded `Config` is frozen, its paths
are resolved, its keys do not contradict each other, and no secret appears in its repr, in a fault or in
`effective_yaml`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError

from processor.config.engine import (
    GraphFile,
    GraphSources,
    engine_faults,
    graph_faults,
    placed,
    read_secrets_key,
    readable_graphs,
    runs_nothing,
    runtime_engine,
    runtime_group,
)
from processor.config.forms import Place, show_size, show_time
from processor.config.inference import inference_endpoint
from processor.config.keys import Config, Credentials, Dev, Nats, RouteSettings, Tls
from processor.config.modules import listing, modules_of, read_modules, taken
from processor.config.outside import SECRET_CHARS
from processor.config.recipe_files import load_recipe
from processor.config.routes import RouteFiles, route_audit, runtime_route
from processor.config.rules import (
    INHERITED,
    app_faults,
    filled,
    is_absence,
    nats_faults,
    nearly_connected,
    read_login,
    read_routing,
    read_secrets,
    route_faults,
)
from processor.config.source import ENVIRONMENT, YamlSource, dotted
from processor.config.steps import (
    AppRecipe,
    graph_of_recipe,
    groups_of_recipe,
    read_app_recipe,
    recipe_faults,
    taken_names,
)
from processor.config.text import (
    BRIEF,
    brief,
    effective_yaml,
    fingerprint,
    full_yaml,
    guarantee,
    json_schema,
    notable,
    reachable,
)
from processor.config.tools import ToolSettings, calling, read_tool, tool_server
from processor.errors import Fault, Faults, LanguageError, ProcessorError
from processor.model import Program
from processor.policy import clashes
from processor.policy import load as load_policy
from processor.reach import BoundSecret, FileRoot, InferenceEndpoint, Tool
from processor.route import NodeGroup, Route
from processor.schema import Schema

_OF_PROGRAMS = ("runnable", "code", "language", "packages", "modules")

__all__ = [
    "BRIEF",
    "ENVIRONMENT",
    "SECRET_CHARS",
    "Config",
    "Credentials",
    "Dev",
    "GraphFile",
    "Nats",
    "Tls",
    "brief",
    "calling",
    "effective_yaml",
    "fingerprint",
    "full_yaml",
    "guarantee",
    "json_schema",
    "language_fault",
    "listing",
    "load",
    "load_recipe",
    "misspelled_inputs",
    "modules_of",
    "notable",
    "placed",
    "reachable",
    "read_login",
    "read_modules",
    "readable_programs",
    "server_of",
    "shell_fault",
    "show_size",
    "show_time",
    "taken",
    "tool_fault",
]


def load(
    path: str | Path,
    env: Mapping[str, str] = os.environ,
    *,
    needs_login: bool = True,
    needs_secrets: bool = True,
) -> Config:
    """Return the configuration in the file at `path` with the environment laid over it.

    Without `needs_secrets` the secrets and directories of the Runnables may be missing here, and without
    `needs_login` so may the files of the login: such a configuration serves for all but running its routes,
    or connecting.
    Raises Faults with everything that is wrong, each fault at its line and column.
    """
    source = YamlSource.read(Path(path))
    source.lay_over(env)
    graph_sources = GraphSources(source)
    data, base = source.data, source.path.parent
    faults = [*source.faults, *graph_sources.faults]
    config: Config | None = None
    try:
        config = Config.model_validate(data, context={"base": base})
    except ValidationError as err:
        errors = err.errors(include_url=False)
        faults += [graph_sources.explain(error) or source.explain(error) for error in errors]
    faults += [source.fault(*found) for found in runs_nothing(data)]
    graphs = readable_graphs(data)
    faults += graph_faults(graphs, graph_sources)
    # Routes are examined one by one, so that a fault in one hides none in another.
    routes = config.route_settings if config else dict(_sound_routes(data, base))
    library = _Library(source)
    tools, unreadable = _read_tools(source, data, base)
    faults += unreadable
    files: dict[str, RouteFiles] = {}
    for name, route in routes.items():
        faults += _rule_faults(source, name, route, str(data.get("app", "")))
        files[name], unreadable = _read_files(source, name, route, library)
        faults += unreadable
    groups, unreadable = _read_groups(source, config, library)
    faults += unreadable
    recipes, unreadable = _read_recipes(source, config)
    faults += unreadable
    secrets: dict[str, BoundSecret] = {}
    secrets_key = ""
    if config:
        found = [*app_faults(config), *engine_faults(config), *read_secrets(config, env, secrets)]
        secrets_key, wrong = read_secrets_key(config, env)
        found += [wrong] if wrong else []
        spared = {
            key
            for key, needed in (
                ("nats", needs_login),
                ("secrets", needs_secrets),
                ("audit", needs_secrets),
                ("files", needs_secrets),
                ("engine", needs_secrets),
            )
            if not needed
        }
        found = [each for each in found if not is_absence(each, spared)]
        if not needs_secrets:
            secrets |= {
                n: BoundSecret(n, "", s.bindings) for n, s in config.secrets.items() if n not in secrets
            }
        faults += [source.fault(place, code, text) for place, code, text in found]
    if faults or config is None:
        raise Faults(
            sorted(set(faults), key=lambda fault: (fault.file, fault.line, fault.column, fault.text))
        )
    config = _inherit(config, files)
    files = _with_policies(config, files)
    tools |= {
        name: tool_server(name, tool, secrets) for name, tool in config.tools.items() if tool.kind == "mcp"
    }
    endpoints = {name: inference_endpoint(name, keys, secrets) for name, keys in config.endpoints.items()}
    if config.has_engine:
        config._engine = runtime_engine(config.engine_keys, secrets_key)
        config._groups = _runtime_groups(config, groups, secrets, tools, endpoints)
        config._graphs, config._graph_files = dict(graphs), graph_sources.files
        for name, keys in config.recipe_keys.items():
            read = recipes[name]
            config._recipes[name] = read.recipe
            config._graphs[name] = graph_of_recipe(keys, read.recipe)
            rules = load_policy(keys.policy)
            made = groups_of_recipe(config.app, keys, read, rules, route_audit(config.audit, rules))
            config._groups |= {group.name: group for group in made}
    roots = {
        name: FileRoot(name, root.path, root.write, root.max_bytes) for name, root in config.roots.items()
    }
    config._routes = {
        name: replace(
            runtime_route(config.app, name, route, files[name], secrets, roots, tools, endpoints),
            audit=route_audit(config.audit, files[name].policy),
        )
        for name, route in config.route_settings.items()
    }
    config._tools, config._inference = tools, endpoints
    config._path, config._origins = source.path, source.origins
    return config


def readable_programs(path: str | Path) -> list[Program]:
    """The programs of a file that `load` refuses, as far as they can be read, to find their faults too."""
    source = YamlSource.read(Path(path))
    base = source.path.parent
    raws = source.data.get("routes")
    library = _Library(source)
    programs = []
    for name, raw in raws.items() if isinstance(raws, dict) else ():
        given = {key: raw[key] for key in _OF_PROGRAMS if key in raw} if isinstance(raw, dict) else {}
        with contextlib.suppress(ValidationError):
            route = RouteSettings.model_validate({**given, "input": "any"}, context={"base": base})
            program = _read_files(source, str(name), route, library)[0].program
            if program and not route.packages:
                programs.append(program)
    return programs


def language_fault(config: Config, route: Route, error: LanguageError) -> Fault:
    """Why a route cannot have plain Python, at the key that asks for it."""
    place: Place = ("routes", route.name, "packages" if error.package else "language")
    packages = route.program.packages
    if error.package in packages:
        place = (*place, packages.index(error.package))
    try:
        source = YamlSource.read(config.path)  # for its line and column only
    except Faults:
        source = YamlSource(config.path)
    return source.fault(place, error.code, f"{dotted(place)}: {error.what}. {error.remedy}")


def tool_fault(config: Config, name: str, error: ProcessorError) -> Fault:
    """Why the tool of this name cannot be called, at its key."""
    try:
        source = YamlSource.read(config.path)  # for its line and column only
    except Faults:
        source = YamlSource(config.path)
    remedy = f" {error.remedy}" if error.remedy else ""
    return source.fault(("tools", name), error.code, f"tools.{name}: {error.what}.{remedy}")


def shell_fault(config: Config, recipe: str, error: ProcessorError) -> Fault:
    """Why the shell steps of the recipe of this name cannot run, at its key."""
    try:
        source = YamlSource.read(config.path)  # for its line and column only
    except Faults:
        source = YamlSource(config.path)
    text = f"recipes.{recipe}.shell: {error.what}. {error.remedy}".rstrip()
    return source.fault(("recipes", recipe, "shell"), error.code, text)


def misspelled_inputs(config: Config) -> list[Fault]:
    """For each input that no route writes to, and that is nearly what one writes for nobody: which one."""
    try:
        source = YamlSource.read(config.path)  # for its lines and columns only
    except Faults:
        source = YamlSource(config.path)
    return [source.fault(("routes", name, "input"), "E106", text) for name, text in nearly_connected(config)]


def server_of(url: str | None, env: Mapping[str, str] = os.environ) -> Nats:
    """The NATS server at `url`, or the one that the environment names, for a command without a file.

    Raises Faults with everything that is wrong with it.
    """
    source = YamlSource(Path("--url"))
    source.data = {"nats": {"url": url}} if url else {}
    source.lay_over({name: value for name, value in env.items() if not url or name != "NATS_URL"})
    try:
        nats = Nats.model_validate(source.data.get("nats", {}), context={"base": Path.cwd()})
    except ValidationError as err:
        errors = err.errors(include_url=False)
        raise Faults([source.explain({**error, "loc": ("nats", *error["loc"])}) for error in errors]) from err
    if faults := [source.fault(place, code, text) for place, code, text in nats_faults(nats)]:
        raise Faults(faults)
    return nats


def _sound_routes(data: dict[str, Any], base: Path) -> Iterator[tuple[str, RouteSettings]]:
    """The routes of a faulty file that are valid by themselves."""
    routes = data.get("routes")
    for name, raw in routes.items() if isinstance(routes, dict) else ():
        try:
            yield name, RouteSettings.model_validate(raw, context={"base": base})
        except ValidationError:
            continue


def _with_policies(config: Config, files: Mapping[str, RouteFiles]) -> dict[str, RouteFiles]:
    """What the files of routes hold, with the rules of their policies. Raises Faults."""
    faults: dict[Fault, None] = {}
    found = {}
    for name, route in config.route_settings.items():
        try:
            found[name] = replace(files[name], policy=load_policy(route.policy))
        except Faults as err:
            faults |= dict.fromkeys(err.faults)
    policies = [each.policy for each in found.values()]
    of_steps = [group.policy for group in config.group_keys.values()]
    for named in [*of_steps, *(recipe.policy for recipe in config.recipe_keys.values())]:
        try:
            policies.append(load_policy(named))
        except Faults as err:
            faults |= dict.fromkeys(err.faults)
    faults |= dict.fromkeys(clashes(policies))
    if faults:
        raise Faults(list(faults))
    return found


class _Library:
    """The folders of modules that a file names, each read once."""

    def __init__(self, source: YamlSource) -> None:
        self._source = source
        named = source.data.get("modules")
        self._default = str(source.path.parent / Path(named).expanduser()) if _is_text(named) else None
        self._read = functools.cache(read_modules)

    def complete(self, program: Program, own: str | None, here: Place) -> tuple[Program, list[Fault]]:
        """The program with the modules of its route, whose `modules` is `own`; what is wrong with them."""
        folder = own or self._default
        if folder is None:
            return program, []
        place = (*here, "modules") if own else ("modules",)
        modules, problems = self._read(folder)
        problems = [*problems, *taken(modules, program.language, program.packages)]
        if not problems:
            program = replace(program, modules=modules)
        return program, [
            self._source.fault(place, code, f"{dotted(place)}: {text}") for code, text in problems
        ]


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value != ""


def _read_tools(source: YamlSource, data: dict[str, Any], base: Path) -> tuple[dict[str, Tool], list[Fault]]:
    """The tools of a file that are files themselves, each by itself, and why they cannot be read."""
    found: dict[str, Tool] = {}
    faults: list[Fault] = []
    tools = data.get("tools")
    for name, raw in tools.items() if isinstance(tools, dict) else ():
        try:
            settings = ToolSettings.model_validate(raw, context={"base": base})
        except ValidationError:
            continue
        if next(settings.contradictions(str(name)), None) is not None:
            continue
        here: Place = ("tools", name)
        tool, problems = read_tool(str(name), settings)
        faults += [
            source.fault((*here, *place), code, f"{dotted((*here, *place))}: {text}")
            for place, code, text in problems
        ]
        if tool is not None:
            found[str(name)] = tool
    return found, faults


def _rule_faults(source: YamlSource, name: str, route: RouteSettings, app: str) -> list[Fault]:
    """What is wrong with a valid route beyond single keys."""
    here: Place = ("routes", name)
    return [
        source.fault((*here, *place), code, f"{dotted(here)}.{text}")
        for place, code, text in route_faults(route, app)
    ]


def _read_groups(
    source: YamlSource, config: Config | None, library: _Library
) -> tuple[dict[str, Program], list[Fault]]:
    """The programs of the groups of nodes, as far as they can be read, and why not."""
    faults: list[Fault] = []
    found = {}
    for name, group in config.group_keys.items() if config else ():
        here: Place = ("nodes", name)
        text, fault = _read_text(source, (*here, "file"), group.file)
        if fault:
            faults.append(fault)
            continue
        program = Program(text, group.file, group.language, group.packages, "nodes")
        found[name], problems = library.complete(program, group.modules, here)
        faults += problems
    return found, faults


def _read_recipes(source: YamlSource, config: Config | None) -> tuple[dict[str, AppRecipe], list[Fault]]:
    """The recipes of a file, as far as they can be read, and all that is wrong with them."""
    found: dict[str, AppRecipe] = {}
    faults: list[Fault] = []
    if config is None:
        return found, faults
    for name, keys in config.recipe_keys.items():
        try:
            found[name] = read_app_recipe(name, keys)
        except Faults as err:
            faults += err.faults
        recipe = found[name].recipe if name in found else None
        faults += [source.fault(*each) for each in recipe_faults(name, keys, recipe)]
    names = config.recipe_keys, config.group_keys, config.graph_keys
    faults += [source.fault(*each) for each in taken_names(*names)]
    return found, faults


def _runtime_groups(
    config: Config,
    programs: Mapping[str, Program],
    secrets: Mapping[str, BoundSecret],
    tools: Mapping[str, Tool],
    endpoints: Mapping[str, InferenceEndpoint],
) -> dict[str, NodeGroup]:
    """The groups of nodes as they run; their policies have no faults."""
    found = {}
    for name, keys in config.group_keys.items():
        rules = load_policy(keys.policy)
        audit = route_audit(config.audit, rules)
        found[name] = runtime_group(
            config.app, name, keys, programs[name], rules, audit, secrets, tools, endpoints
        )
    return found


def _read_text(source: YamlSource, place: Place, file: str) -> tuple[str, Fault | None]:
    """The text of a file of Python that is named at `place`, or why it cannot be read."""
    what = f"{dotted(place)} is {file}, which"
    try:
        return Path(file).read_bytes().decode("utf-8-sig"), None
    except OSError as err:
        return "", source.fault(place, "E107", f"{what} cannot be read: {err.strerror}")
    except UnicodeDecodeError:
        return "", source.fault(place, "E107", f"{what} is not UTF-8 text")


def _read_files(
    source: YamlSource, name: str, route: RouteSettings, library: _Library
) -> tuple[RouteFiles, list[Fault]]:
    """The program and the routing of a valid route, as far as they can be read, and why not."""
    here: Place = ("routes", name)
    faults: list[Fault] = []
    routing, program = None, None
    if route.ism:
        try:
            routing = read_routing(route)
        except Faults as err:
            faults += err.faults
    if route.runnable:
        text, fault = _read_text(source, (*here, "runnable"), route.runnable_file)
        if fault:
            faults.append(fault)
        else:
            program = _program(route, text, route.runnable_file, route.class_name)
    elif route.code:
        line, literal = source.position((*here, "code"))
        # Blank lines in front make the Runnable's line numbers those of the configuration file.
        offset = "\n" * line if literal else ""
        filename = str(source.path) if literal else f"{source.path}:{dotted((*here, 'code'))}"
        program = _program(route, offset + route.code, filename)
    if program is not None:
        program, problems = library.complete(program, route.modules, here)
        faults += problems
    schemas = {}
    for kind, file in route.heap.items():
        what = f"{dotted((*here, 'heap', kind))} is {file}, which"
        try:
            schemas[kind] = Schema(Path(file).read_bytes())
        except OSError as err:
            text = f"{what} cannot be read: {err.strerror}"
            faults.append(source.fault((*here, "heap", kind), "E107", text))
        except ValueError as err:
            faults.append(source.fault((*here, "heap", kind), "E104", f"{what} is not a JSON Schema: {err}"))
    return RouteFiles(program, routing, heap=schemas), faults


def _program(route: RouteSettings, source: str, filename: str, class_name: str = "Runnable") -> Program:
    bytes_in = {"raw": "base64", "cloudevents": "data_base64"}.get(route.input.codec, "")
    language, nan = route.language, route.nan_as_null
    return Program(source, filename, language, route.packages, route.mode, class_name, nan, bytes_in)


def _inherit(config: Config, files: Mapping[str, RouteFiles]) -> Config:
    """The configuration with what routes take from the top, and from a routing file, filled in."""
    routes = {}
    for name, route in config.route_settings.items():
        routes[name] = route.model_copy(
            update={key: filled(getattr(config, key), getattr(route, key)) for key in INHERITED}
            | {"modules": route.modules or config.modules}
            | {"policy": tuple(dict.fromkeys((*config.policy, *route.policy)))}
        )
    groups = {
        name: group.model_copy(
            update={"modules": group.modules or config.modules}
            | {"policy": tuple(dict.fromkeys((*config.policy, *group.policy)))}
        )
        for name, group in config.group_keys.items()
    }
    recipes = {
        name: keys.model_copy(update={"policy": tuple(dict.fromkeys((*config.policy, *keys.policy)))})
        for name, keys in config.recipe_keys.items()
    }
    changes: dict[str, Any] = {"route_settings": routes, "group_keys": groups, "recipe_keys": recipes}
    server = next((each.routing.input.url for each in files.values() if each.routing), "")
    if server and "url" not in config.nats.model_fields_set:
        given = {key: getattr(config.nats, key) for key in config.nats.model_fields_set}
        changes["nats"] = Nats.model_validate({**given, "url": server})
    return config.model_copy(update=changes)
