"""The configuration in words and files: guarantees, the JSON Schema, the full example, the effective keys."""

from __future__ import annotations

import hashlib
import io
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import LiteralScalarString

from processor.config.auditing import AuditSettings
from processor.config.forms import Place, alias_of, default_text, inner_model
from processor.config.keys import Config
from processor.reach import ToolServer, WasmTool
from processor.route import IsmProcessor, Route

_AT_THE_END = {
    "dead_letter": "becomes a dead letter; none is skipped.",
    "block": "is tried on, and holds the later messages of its key; none is skipped.",
    "drop": "is given up and counted: such messages are lost.",
}


def fingerprint(config: Config) -> str:
    """12 hex digits that name this version of the configuration, its programs included.

    Processors that run the same routes have the same digits, whatever their own server, addresses, logs,
    folders and the values of their secrets.
    """
    said = config.model_dump(mode="json", include={"app", "route_settings", "secrets"}, by_alias=True)
    for name in said["routes"]:  # the routes that graphs run on follow from what is said of these
        route = config.routes[name]
        del said["routes"][name]["runnable"], said["routes"][name]["code"]
        said["routes"][name]["program"] = route.program.id
        del said["routes"][name]["modules"]
        said["routes"][name]["policy"] = route.policy.id
        said["routes"][name]["heap"] = {
            kind: hashlib.sha256(schema.text).hexdigest() for kind, schema in route.reach.heap.items()
        }
        del said["routes"][name]["input"]["create"]  # done once, and what `dev` does of every route
        if route.ism:
            said["routes"][name]["ism"]["routing_file"] = asdict(route.ism.routing)
    if config.engine:
        said["engine"] = asdict(config.engine) | {"secrets_key": ""}
        said["graphs"] = {name: graph.version for name, graph in config.graphs.items()}
        said |= config.model_dump(mode="json", include={"group_keys"}, by_alias=True)
        for name, keys in said["nodes"].items():
            group = config.groups[name]
            del keys["file"], keys["modules"]
            keys |= {"program": group.program.id, "policy": group.policy.id}
    if config.recipes:
        said |= config.model_dump(mode="json", include={"recipe_keys"}, by_alias=True)
        for keys in said["recipes"].values():
            del keys["file"]
        said["steps"] = {
            name: (group.program.id, group.policy.id, [asdict(step) for step in group.steps.steps.values()])
            for name, group in config.groups.items()
            if group.steps is not None
        }
    if config.audit != AuditSettings():
        said["audit"] = config.audit.model_dump(mode="json", include={"level", "intent", "copy_ttl"})
    for source in said["secrets"].values():
        del source["env"], source["file"]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


BRIEF = ("route", "reads", "writes", "delivery", "order", "what fails")


def brief(route: Route) -> tuple[str, ...]:
    """One line about a route: what `BRIEF` names, each in a few words."""
    template = route.output_template
    written = [template.text] if template else []
    if route.ism:
        written, delivery = ["by ISM's routing"], "chunks, live" if route.mode == "stream" else "status once"
    elif not template and not route.emits:
        delivery = "-"
    elif route.mode == "stream":
        delivery = "chunks, live"
    elif route.output and not route.output.is_durable:
        delivery = "at most once"
    else:
        delivery = "exactly once"
    tries = "1 try" if route.retry.attempts == 1 else f"{route.retry.attempts} tries"
    end = {"dead_letter": "dead letter", "block": "blocks its key", "drop": "LOST"}[route.retry.then]
    return (
        route.name,
        route.input.schedule.when if route.input.schedule else ", ".join(route.input.subjects),
        ", ".join([*written, *route.emits]) or "nothing",
        delivery,
        "per key" if route.is_keyed else "of all",
        f"{tries}, {end}",
    )


def notable(route: Route) -> list[str]:
    """What a reader of `brief` has to know beside it, where the route has it."""
    said = []
    if route.program.language == "python":
        said.append("plain Python; only the jail holds it")
    if domains := route.reach.outbound.allowed_domains:
        secrets = ", ".join(secret.name for secret in route.reach.secrets)
        may = f"may ask {', '.join(domains)}"
        said.append(f"{may}, with {secrets}" if secrets else may)
    return said


def guarantee(route: Route) -> list[str]:
    """What becomes of a message on this route, as far as its configuration alone can say, and why."""
    order = (
        f"per key ({route.key}), {route.partitions} partitions" if route.is_keyed else "of the whole input"
    )
    times = "once" if route.retry.attempts == 1 else f"{route.retry.attempts} times"
    said = [
        "Context, position and dead letters: exactly once; they are one atomic commit.",
        f"Order: {order}.",
        f"A message that fails {times} {_AT_THE_END[route.retry.then]}",
    ]
    if route.concurrency > 1:
        memory_mb = route.limits.memory_mb
        said.insert(
            2,
            f"Concurrency: {route.concurrency} keys at a time, each in a guest of its own with"
            f" {memory_mb} MB: up to {route.concurrency * memory_mb} MB in one process.",
        )
    if route.input.repartition:
        said.append(
            "Input: one processor deals it to the partitions, exactly once and in order; each of them is then"
            " read by its owner from the app's stream."
        )
    elif route.input.schedule:
        schedule = route.input.schedule
        waits = "what is due while no processor runs" if schedule.catches_up else "only the newest"
        zone = f" ({schedule.time_zone})" if schedule.time_zone else ""
        said.append(
            f"Schedule {schedule.when}{zone}: what the server sends is processed exactly once; {waits}"
            " waits. While the server itself is down nothing is sent; only `@at` is made up for."
        )
    if route.program.language == "python":
        packages = route.program.packages
        names = f"with {', '.join(packages)}" if packages else "without packages"
        said.insert(0, f"Language: plain Python {names}; only the jail holds it.")
    template = route.output_template
    if route.ism:
        said += _ism_guarantee(route, route.ism)
    elif route.mode == "stream" and template:
        kept = (
            " A stream of the subject keeps what reaches it."
            if route.output and route.output.is_durable
            else ""
        )
        said.append(
            f"Chunks to {template.text}: live, at most once for a listener; a retry sends them again, marked"
            f" with its attempt. They go out before the commit: waiting for it would not be streaming.{kept}"
        )
    elif route.output and template and route.output.is_durable:
        said.append(
            f"Outputs to {template.pattern}: exactly once and in order, because a stream takes them from the"
            " app's"
            " stream after the commit. If the subject already belongs to a stream of yours that cannot be"
            " given this"
            " source: at least once, deduplicated by message id."
        )
    elif template:
        said.append(
            f"Outputs to {template.pattern}: at most once (`durable: false`); committed outputs only, and"
            " only for"
            " those who are subscribed at that moment."
        )
    else:
        said.append(
            "Outputs: none are sent (no `output`)."
            if route.mode == "batch"
            else "Chunks: none are sent (no `output`)."
        )
    for pattern in route.emits:
        said.append(
            f"Emits to {pattern}: exactly once, as durable outputs are; with delay_s the server sends them on"
            " when they are due. To a stream of yours that cannot copy from the app's: at least once, and"
            " nothing with a delay."
        )
    if route.events:
        said.append(f"Events to {route.events.subject}: committed together with the outputs.")
    if route.input.start == "new":
        said.append("Messages from before the route's first start are not read (`start: new`).")
    said.append(
        "Calls to the outside (`self.requests`, stock and state API): at least once; "
        + _AGAIN[route.replay]
        + " Nothing can take a call back."
    )
    return said


_AGAIN = {
    "attempt": "a message that is tried again calls again (`calls.replay`).",
    "writes": "a message that is tried again calls again, but not a POST, PUT, PATCH, DELETE that went well.",
    "all": "a message that is tried again calls again only what failed.",
}


def reachable(route: Route) -> list[str]:
    """What the route may reach outside, and the secrets that it may send there."""
    outbound = route.reach.outbound
    said = ["Outside: nothing (`outbound.allowed_domains` is empty)."]
    if outbound.allowed_domains:
        redirects = f", {outbound.redirects} redirects" if outbound.redirects else ", no redirects"
        said = [
            f"Outside: {', '.join(outbound.allowed_domains)}; {route.limits.requests} calls a message,"
            f" {outbound.timeout_s:g} s each{redirects}."
        ]
    said += [
        f"Secret {secret.name}: for {', '.join(binding.text for binding in secret.bindings)}."
        for secret in route.reach.secrets
    ]
    for tool in route.reach.tools:
        if isinstance(tool, ToolServer):
            names = ", ".join(f"{tool.name}/{name}" for name in tool.granted)
            said.append(f"Tools {names}: of {tool.url}, {tool.timeout_s:g} s each.")
        else:
            fuel = f", {tool.fuel:,} fuel" if isinstance(tool, WasmTool) else ""
            kind = "a module" if isinstance(tool, WasmTool) else "a Python function"
            said.append(f"Tool {tool.name}: {kind}, {tool.timeout_s:g} s, {tool.memory_mb} MB{fuel}.")
    said += [
        f"Models {', '.join(endpoint.models)}: of {endpoint.base_url}, {endpoint.timeout_s:g} s and"
        f" {endpoint.max_tokens:,} tokens each."
        for endpoint in route.reach.inference
    ]
    said += [
        f"Files {root.name}: {root.path}, to be {'read and written' if root.is_writable else 'read'}."
        for root in route.reach.files
    ]
    return said


def _ism_guarantee(route: Route, ism: IsmProcessor) -> Iterator[str]:
    routing = ism.routing
    if route.mode == "stream":
        subject = routing.state.subject.replace("{state_id}", ism.states[0].id)
        yield f"Chunks to {subject}[.session]: live, at most once for a listener; a retry sends them again."
    else:
        targets = {
            entry.subject
            for state in ism.states
            for entry, used in ((routing.sync, state.is_stored), (routing.router, bool(state.next)))
            if used
        }
        if targets:
            yield (
                f"Outputs to {', '.join(sorted(targets))}: committed once, then handed over with a"
                " message id."
            )
        else:
            yield "Outputs: none are sent (no `ism.outputs`)."
    yield (
        f"Status events to {routing.monitor.subject}: exactly one COMPLETED or FAILED for each message"
        " and ISM route."
    )
    if routing.input.priorities:
        yield (
            f"Priorities: all levels of {routing.input.subject} are read in order of arrival, not by"
            " priority."
        )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the configuration, for editors."""
    schema = Config.model_json_schema()
    anything = [{"required": [key]} for key in ("routes", "engine", "nodes", "graphs", "recipes")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "anyOf": anything}


# Keys without a default that the full example sets nevertheless, so that it is an example of a whole app.
_SHOWN = frozenset({"Config.route_settings", "InputSettings.subject", "TriggerDefinition.subject"}) | {
    f"RouteSettings.{key}" for key in ("runnable", "key", "output", "events")
}


def full_yaml() -> str:
    """A configuration with every key: its meaning as a comment, its default or an example as its value."""
    head = "Every key of the configuration. Generated from the models in processor/config/keys.py."
    lines = _comment(head)
    for name, info in Config.model_fields.items():
        lines += ["", *_full_field(Config, name, info)]
    return "\n".join(lines) + "\n"


def _full_field(model: type[BaseModel], name: str, info: FieldInfo) -> Iterator[str]:
    """The lines of one key; a key without a default is a comment, unless an app cannot do without it."""
    key, inner = alias_of(name, info), inner_model(info.annotation)
    shown = f"{model.__name__}.{name}" in _SHOWN
    absent = info.default in (None, {}) and not shown
    yield from _comment(_full_description(info, shown))
    mark = "# " if absent else ""
    if inner is None:
        from_example = absent or shown or info.is_required() or info.default == ()
        value = info.examples[0] if from_example and info.examples else default_text(info)
        yield f"{mark}{key}: {_scalar(value)}"
        return
    yield f"{mark}{key}:"
    lines = [line for each in inner.model_fields.items() for line in _full_field(inner, *each)]
    if get_origin(info.annotation) is dict:
        lines = ["example:", *(f"  {line}" for line in lines)]
    elif get_origin(info.annotation) is tuple:
        first = next(place for place, line in enumerate(lines) if not line.startswith("#"))
        lines = [f"{'- ' if place == first else '  '}{line}" for place, line in enumerate(lines)]
    yield from (f"{mark}  {line}" for line in lines)


def _full_description(info: FieldInfo, shown: bool) -> str:
    text = info.description or ""
    if info.is_required():
        return f"{text} Required."
    if shown and info.default not in (None, {}):
        return f"{text} Default: {_scalar(info.default)}."
    return text


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _scalar(value: object) -> str:
    out = io.StringIO()
    writer = YAML()
    writer.default_flow_style = True
    writer.width = 4096
    writer.dump([[value]] if isinstance(value, dict) else [value], out)
    shown = out.getvalue().strip()[1:-1]
    return f"{{{shown[1:-1]}}}" if isinstance(value, dict) else shown


def effective_yaml(config: Config) -> str:
    """The configuration as it is used: file, environment and defaults together, secrets as ***."""
    data = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    if config.http is None:
        data["http"] = "off"
    node = _commented(data, (), config._origins)
    out = io.StringIO()
    writer = YAML()
    writer.width = 4096
    writer.dump(node, out)
    return out.getvalue()


def _commented(value: Any, place: Place, origins: Mapping[Place, str]) -> Any:
    if isinstance(value, str) and "\n" in value:
        return LiteralScalarString(value)
    if not isinstance(value, dict):
        return value
    node = CommentedMap()
    for key, inner in value.items():
        node[key] = _commented(inner, (*place, key), origins)
        if (*place, key) in origins:
            node.yaml_add_eol_comment(f"from {origins[*place, key]}", key)
    return node
