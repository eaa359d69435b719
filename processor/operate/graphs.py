"""The graphs of an app and the kinds that they are made of, for those who run neither.

Both are in the app's stream, and `graphs.registry` has their rules; here is what people and programs ask of
them: to define a graph, to list and show what there is, and to register the kinds of an external worker.

What must stay true: a graph that is at fault never takes the place of a valid one; what the configuration
has, no request changes; no answer holds a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from processor.config import Config
from processor.context.subjects import GraphSubjects, app_stream, names_of
from processor.errors import ProcessorError
from processor.graphs.checks import read_graph
from processor.graphs.definition import NodeKind
from processor.graphs.registry import Registry
from processor.graphs.vault import VALUE_BYTES, SecretVault
from processor.graphs.versions import GraphHead
from processor.jetstream import KEPT, Broker, Outgoing
from processor.operate.forms import listed_briefly
from processor.operate.journal import Journal
from processor.route import GraphEngine

ROUTE = "graphs"  # that runs them

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SCHEMA_BYTES = 64 << 10
_DOC_CHARS = 2000


def engine_of(config: Config) -> GraphEngine:
    """What runs the graphs of an app. Raises ProcessorError E602 where nothing does."""
    if config.engine is None:
        raise ProcessorError(
            "E602",
            f"app {config.app} runs no graphs",
            remedy="Give its configuration `graphs`, or `engine: {}` where they come from clients.",
        )
    return config.engine


class Graphs:
    """The graphs and kinds of an app. Raises ProcessorError E602 for what is not there."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._engine = engine_of(config)
        self._broker = broker
        self._config = config
        self._stream = app_stream(config.app)
        self._subjects = GraphSubjects(config.app)

    async def heads(self) -> list[dict[str, Any]]:
        """What is known of each graph, by name: its last version, its valid one, and faults."""
        found = []
        for stored in await self._broker.last_of(self._stream, [self._subjects.heads]):
            [name] = names_of(stored.subject)
            if head := GraphHead.read(name, stored):
                found.append(head.said)
        return sorted(found, key=lambda head: str(head["name"]))

    async def head(self, name: str) -> dict[str, Any]:
        """What is known of one graph."""
        for stored in await self._broker.last_of(self._stream, [self._subjects.graph(name)]):
            if head := GraphHead.read(name, stored):
                return head.said
        names = [str(head["name"]) for head in await self.heads()]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"graphs here are {listed_briefly(names) or 'none'}"
        raise ProcessorError("E602", f"there is no graph {name[:64]!r}; {hint}")

    async def definition(self, name: str, version: str) -> dict[str, Any]:
        """One version of a graph, as it is written, without the keys that have their default."""
        subject = self._subjects.graph(name, version)
        for stored in await self._broker.last_of(self._stream, [subject]):
            if found := read_document(stored.payload):
                return found
        raise ProcessorError("E602", f"there is no version {version[:64]!r} of graph {name[:64]!r} any more")

    async def show(self, name: str, version: str = "") -> dict[str, Any]:
        """What is known of a graph, with the definition of its last version, or of the one that is named."""
        head = await self.head(name)
        shown = version or str(head["version"])
        definition = await self.definition(name, shown)
        secrets = await self._broker.last_of(self._stream, [self._subjects.secrets(name)])
        names = sorted(names_of(each.subject)[1] for each in secrets if each.payload)
        return {**head, "shown": shown, "definition": definition, "secrets": names}

    async def kinds(self) -> list[dict[str, Any]]:
        """Every kind that is registered, by namespace and name."""
        registry = await self._registry()
        found = []
        for id, kind in sorted(registry.kinds.items()):
            said = kind._asdict()
            found.append({"kind": id, **{key: said[key] for key in said if key not in ("namespace", "name")}})
        return found

    async def _registry(self) -> Registry:
        """What there is now, as the engine knows it."""
        registry = Registry(self._broker, self._config.app, groups=self._config.groups)
        await registry.load()
        return registry

    async def apply(
        self, name: str, keys: Mapping[str, Any], secrets: Mapping[str, Any], *, by: str, reason: str = ""
    ) -> dict[str, Any]:
        """Make a graph of these keys, as a configuration has them, and say what is known of it then.

        With a fault in its keys nothing is kept, and the answer has no version. Else secrets are kept first,
        as what a graph needs is checked against them.
        Raises ProcessorError E708 for a graph of the configuration.
        """
        if name in self._config.graphs:
            raise ProcessorError(
                "E708",
                f"graph {name!r} is of the configuration",
                remedy="Change it there, and let it be read again.",
            )
        if faults := self._secret_faults(secrets):
            before = next((head for head in await self.heads() if head["name"] == name), {})
            valid = before.get("valid")
            return {"name": name, "version": "", "status": "INVALID", "errors": faults, "valid": valid}
        registry = await self._registry()
        journal = Journal(self._broker, self._config)
        said = {"graph": name[:64], "secrets": sorted(secrets)}
        async with journal.act("graph.apply", ROUTE, by=by, reason=reason, data=said) as act:
            if secrets and read_graph(name, keys, self._config.app)[0] is not None:
                await self._keep_secrets(name, secrets)
            head = (await registry.apply_keys(name, keys, by=by)).said
            act.data |= {"version": head["version"], "status": head["status"]}
        return head

    async def register(self, runtime: str, namespace: str, kinds: Sequence[Any]) -> dict[str, Any]:
        """Keep the kinds of an external worker; none of them, where one is at fault."""
        registry = await self._registry()
        faults: list[dict[str, str]] = []
        wanted: list[NodeKind] = []
        if not _NAME.fullmatch(namespace):
            faults.append(
                fault("E701", f"namespace {namespace!r:.80} is not a name: letters, digits, - and _")
            )
        for number, kind in enumerate(kinds):
            if text := _kind_fault(kind):
                faults.append(fault("E701", f"kinds[{number}]{text}"))
                continue
            made = NodeKind(
                namespace,
                kind["name"],
                kind["inputs"],
                kind["outputs"],
                secrets=tuple(kind.get("secrets", ())),
                optional=tuple(kind.get("optional", ())),
                where="external",
                doc=kind.get("doc", "")[:_DOC_CHARS],
            )
            if (own := registry.kind(made.id)) and own.where != "external":
                faults.append(
                    fault("E708", f"{made.id} is a kind of group {own.group!r:.80} of the configuration")
                )
            wanted.append(made)
        if not faults:
            for sentence in await registry.register(wanted):
                code, _, text = sentence.partition(" ")
                faults.append(fault(code, text))
        return {
            "registered": [] if faults else [kind.id for kind in wanted],
            "faults": faults,
            "partitions": self._engine.partitions,
        }

    async def _keep_secrets(self, graph: str, secrets: Mapping[str, str]) -> None:
        vault = SecretVault(self._engine.secrets_key)
        for name, value in secrets.items():
            sealed = vault.seal(self._config.app, graph, name, value)
            await self._broker.publish_stored(Outgoing(self._subjects.secret(graph, name), sealed, KEPT))

    def _secret_faults(self, secrets: Mapping[str, Any]) -> list[dict[str, str]]:
        if secrets and not self._engine.secrets_key:
            text = "secrets cannot be uploaded: the app has no `engine.secrets_key` to seal them with"
            return [fault("E705", text)]
        faults = []
        for name, value in secrets.items():
            if not _NAME.fullmatch(name):
                faults.append(fault("E701", f"secrets.{name!r:.80} is not a name: letters, digits, - and _"))
            elif not isinstance(value, str) or not value:
                faults.append(fault("E701", f"secrets.{name} must be a text that is not empty"))
            elif len(value.encode()) > VALUE_BYTES:
                faults.append(fault("E701", f"secrets.{name} has more than {VALUE_BYTES} bytes"))
        return faults


def fault(code: str, text: str, place: str = "") -> dict[str, str]:
    """One thing that is wrong, as answers list it."""
    return {"place": place, "code": code, "text": text}


def read_document(payload: bytes) -> dict[str, Any] | None:
    """A document of ours; None for what is none, such as what takes one away."""
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _kind_fault(kind: Any) -> str:
    """What is wrong with a kind that a worker says it has; empty if nothing is."""
    if not isinstance(kind, dict):
        return " is not an object"
    name = kind.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f".name {name!r:.80} is not a name: letters, digits, - and _"
    for key in ("inputs", "outputs"):
        if not isinstance(kind.get(key), dict):
            return f".{key} is not a JSON Schema"
        if len(orjson.dumps(kind[key])) > _SCHEMA_BYTES:
            return f".{key} has more than {_SCHEMA_BYTES} bytes"
    for key in ("secrets", "optional"):
        names = kind.get(key, [])
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            return f".{key} is not a list of names"
    if not isinstance(kind.get("doc", ""), str):
        return ".doc is not a text"
    return ""
