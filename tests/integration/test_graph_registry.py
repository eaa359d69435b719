"""The graphs and kinds of an app in its stream: who changes them, what becomes valid, and what others see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from processor.context.subjects import GraphSubjects, app_stream
from processor.embedded import EmbeddedServer
from processor.errors import Refusal
from processor.graphs.definition import GraphDefinition, NodeKind
from processor.graphs.registry import Registry, kinds_of_manifest
from processor.graphs.versions import GraphHead, let_unused_go
from processor.jetstream import KEPT, Broker, Outgoing
from processor.model import Program
from processor.reach import BoundSecret, Reach
from processor.route import NodeGroup
from tests.running import connected

SUBJECTS = GraphSubjects("app")
NODE = {"identifier": "a", "node_name": "Api", "inputs": {"n": 1}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}
GROUP = NodeGroup(
    app="app",
    name="api",
    program=Program("", "api.py", mode="nodes"),
    is_pool=True,
    reach=Reach("nodes.api", secrets=(BoundSecret("api_key", "a-long-secret", ()),)),
    settings={"endpoint": "x"},
)
MANIFEST = {
    "Api": {
        "inputs": SCHEMA,
        "outputs": SCHEMA,
        "secrets": {
            "properties": {"api_key": {}, "endpoint": {}, "mode": {}},
            "required": ["api_key", "endpoint"],
        },
        "doc": "Asks.",
    }
}


@asynccontextmanager
async def app_on(server: EmbeddedServer) -> AsyncIterator[Broker]:
    """A client of a server that has an app's stream."""
    async with connected(server.url) as found:
        config = {"name": app_stream("app"), "subjects": ["p.app.>"], "allow_direct": True,
                  "allow_rollup_hdrs": True, "allow_msg_ttl": True}  # fmt: skip
        await found.api(f"STREAM.CREATE.{app_stream('app')}", config)
        yield found


@asynccontextmanager
async def following(broker: Broker, **keys: Any) -> AsyncIterator[Registry]:
    """A registry that follows what changes."""
    registry = Registry(broker, "app", **keys)
    await registry.load()
    task = asyncio.create_task(registry.follow())
    try:
        yield registry
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def graph(name: str = "g", *nodes: dict[str, Any], **keys: Any) -> GraphDefinition:
    definition, errors = GraphDefinition.read(name, {"nodes": list(nodes) or [NODE], **keys}, "app")
    assert definition, errors
    return definition


def kind(**schema: Any) -> NodeKind:
    return NodeKind("app", "Api", SCHEMA | schema, SCHEMA, where="external")


async def stored(broker: Broker, subject: str) -> Any:
    found = await broker.last_from_leader(app_stream("app"), subject)
    return orjson.loads(found.payload) if found and found.payload else None


async def test_a_graph_of_the_configuration_is_valid_with_the_kinds_of_its_groups(
    nats_server: EmbeddedServer,
) -> None:
    """Head, version and kind are stored as others read them; published again, nothing is written."""
    async with app_on(nats_server) as broker:
        registry = Registry(broker, "app")
        kinds = kinds_of_manifest(GROUP, MANIFEST)
        assert await registry.publish({"g": graph()}, kinds, {"api": GROUP}) == []
        head = await stored(broker, SUBJECTS.graph("g"))
        assert head.pop("at").endswith("Z")
        version = graph().version
        assert head == {
            "v": 1, "name": "g", "version": version, "status": "VALID", "errors": [], "valid": version,
            "by": "the configuration", "from": "config",
        }  # fmt: skip
        assert await stored(broker, SUBJECTS.graph("g", version)) == orjson.loads(graph().document)
        said = await stored(broker, SUBJECTS.kind("app", "Api"))
        assert (said["where"], said["group"], said["secrets"], said["optional"]) == (
            "pool", "api", ["api_key", "endpoint", "mode"], ["mode"],
        )  # fmt: skip
        plan = registry.plan("g")
        assert plan is not None
        assert plan.version == version
        end = (await broker.stream(app_stream("app")) or {})["state"]["last_seq"]
        other = Registry(broker, "app")
        await other.load()
        assert await other.publish({"g": graph()}, kinds, {"api": GROUP}) == []
        assert (await broker.stream(app_stream("app")) or {})["state"]["last_seq"] == end
        assert other.kinds == registry.kinds
        assert other.plan("g", version) == plan
        # A group that is gone takes its kinds along.
        await other.publish({}, [])
        assert await stored(broker, SUBJECTS.kind("app", "Api")) is None
        assert other.kind("app/Api") is None


async def test_what_is_wrong_never_takes_the_place_of_what_is_valid(nats_server: EmbeddedServer) -> None:
    """The head names the newest version and its faults, and runs begin with the valid one."""
    async with app_on(nats_server) as broker:
        registry = Registry(broker, "app")
        await registry.register([kind()])
        good = await registry.apply(graph(), by="ann")
        assert (good.status, good.valid, good.source) == ("VALID", good.version, "request")
        bad = await registry.apply(graph("g", NODE | {"inputs": {"m": 1}}), by="bob")
        assert (bad.status, bad.valid, bad.by) == ("INVALID", good.version, "bob")
        assert bad.errors == (
            {
                "place": "nodes[0].inputs.m",
                "code": "E703",
                "text": "nodes[0].inputs.m: Api has no input 'm'; there are n.",
            },
        )
        plan = registry.plan("g")
        assert plan is not None
        assert plan.version == good.version
        never = await registry.apply_keys("g", {"nodes": [NODE | {"unite": {}}]}, by="bob")
        assert (never.status, never.version, never.valid) == ("INVALID", "", good.version)
        assert never.errors[0]["text"] == "nodes[0].unite is no key; did you mean 'unites'?"
        assert (await stored(broker, SUBJECTS.graph("g")))["version"] == bad.version


async def test_a_graph_that_lacks_kinds_becomes_valid_when_they_come(
    nats_server: EmbeddedServer, wait_until: Callable[..., Any]
) -> None:
    """On every processor, and whoever registers them; what does not fit then is told."""
    async with app_on(nats_server) as broker:
        came: list[str] = []
        async with following(broker, changed=came.append) as one, following(broker) as two:
            head = await one.apply(graph(), by="ann")
            assert (head.status, head.valid) == ("PENDING", "")
            assert one.plan("g") is None
            outer = await one.apply(graph("outer", NODE | {"node_name": "graph:g"}), by="ann")
            assert outer.status == "PENDING"
            assert await two.register([kind()]) == []
            await wait_until(lambda: one.plan("g") and two.plan("g"), "the graph is valid for both")
            await wait_until(lambda: one.heads["outer"].status == "VALID", "and the one that runs it")
            assert came == ["app/Api"]
            other = await one.apply(graph("other", NODE | {"node_name": "Odd"}), by="ann")
            assert other.status == "PENDING"
            odd = NodeKind("app", "Odd", {"properties": {"m": {}}}, {}, where="external")
            await two.register([odd])
            await wait_until(lambda: two.heads["other"].status == "INVALID", "its input does not fit")


async def test_a_graph_of_the_configuration_is_not_changed_by_request(nats_server: EmbeddedServer) -> None:
    """Neither is a kind of its groups: a file says something else than what runs otherwise."""
    async with app_on(nats_server) as broker:
        registry = Registry(broker, "app")
        await registry.publish({"g": graph()}, kinds_of_manifest(GROUP, MANIFEST), {"api": GROUP})
        with pytest.raises(Refusal, match="E708 graph 'g' is of the configuration"):
            await registry.apply(graph("g", NODE, timeout_s=5), by="ann")
        (wrong,) = await registry.register([kind()])
        assert wrong.startswith("E708 kind 'app/Api' is of group api of the configuration")


async def test_those_who_change_a_graph_at_a_time_follow_each_other(nats_server: EmbeddedServer) -> None:
    """Each change is one of the stream's, and the last one is what everybody has."""
    async with app_on(nats_server) as broker:
        registries = [Registry(broker, "app") for _ in range(4)]
        await registries[0].register([kind()])
        for registry in registries:
            await registry.load()
        made = [graph(timeout_s=number + 1) for number in range(4)]
        heads = await asyncio.gather(
            *(registry.apply(each, by="ann") for registry, each in zip(registries, made, strict=True))
        )
        assert {head.version for head in heads} == {each.version for each in made}
        assert len({head.sequence for head in heads}) == 4
        last = max(heads, key=lambda head: head.sequence)
        for registry in registries:
            await registry.look("g")
            plan = registry.plan("g")
            assert plan is not None
            assert plan.version == last.version


async def test_a_change_that_was_cut_off_before_or_after_its_head_is_made_once(
    nats_server: EmbeddedServer,
) -> None:
    """A version without its head is no graph until it is applied again; a head without an answer stays."""
    async with app_on(nats_server) as broker:
        made = graph()
        cut_off = Outgoing(GraphSubjects("app").graph("g", made.version), made.document, KEPT)
        await broker.commit([cut_off])
        registry = Registry(broker, "app")
        await registry.register([kind()])
        await registry.load()
        assert registry.plan("g") is None
        head = await registry.apply(made, by="ann")
        assert (head.status, head.valid) == ("VALID", made.version)
        another = Registry(broker, "app")
        await another.load()
        again = await another.apply(made, by="ann")
        assert (again.sequence, again.at) == (head.sequence, head.at)


async def test_a_version_is_kept_as_long_as_a_run_has_it(nats_server: EmbeddedServer) -> None:
    """Then it goes by itself; one that is applied again stays."""
    async with app_on(nats_server) as broker:
        registry = Registry(broker, "app")
        await registry.register([kind()])
        versions = [graph(timeout_s=number + 1) for number in range(3)]
        for each in versions:
            await registry.apply(each, by="ann")
        run = orjson.dumps({"v": 1, "run": "r", "version": versions[0].version})
        await broker.publish_stored(Outgoing(SUBJECTS.run("g", "running", "r"), run))
        await let_unused_go(broker, "app", heads(registry))
        assert await lives(broker) == {
            versions[0].version: "never",
            versions[1].version: "604800s",
            versions[2].version: "never",
        }
        again = await registry.apply(versions[1], by="ann")
        assert again.status == "VALID"
        await let_unused_go(broker, "app", heads(registry))
        assert (await lives(broker))[versions[1].version] == "never"
        await registry.look("g", versions[2].version)
        assert registry.plan("g", versions[2].version)


def heads(registry: Registry) -> Callable[[str], Awaitable[GraphHead | None]]:
    async def read(name: str) -> GraphHead | None:
        await registry.look(name)
        return registry.heads.get(name)

    return read


async def lives(broker: Broker) -> dict[str, str]:
    found = {}
    async for each in broker.history(app_stream("app"), [SUBJECTS.versions("g")], headers_only=True):
        found[each.subject.rpartition(".")[2]] = each.headers["Nats-TTL"]
    return found


async def test_a_message_that_says_nothing_known_is_named_once(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a later build, or of a stranger; everything else goes on."""
    async with app_on(nats_server) as broker:
        first = Registry(broker, "app")
        await first.register([kind()])
        await first.apply(graph(), by="ann")
        odd = [b"{", b"[]", b'{"v": 1}', b'{"status": "VALID", "from": "config", "errors": 3}']
        for number, body in enumerate(odd):
            await broker.publish_stored(Outgoing(SUBJECTS.graph(f"odd{number}"), body))
            await broker.publish_stored(Outgoing(SUBJECTS.kind("app", f"Odd{number}"), body))
        later = {"v": 9, "nodes": [NODE], "name": "later", "colour": "red"}
        await broker.publish_stored(Outgoing(SUBJECTS.graph("later", "1"), orjson.dumps(later)))
        head = await stored(broker, SUBJECTS.graph("g")) | {"version": "1", "valid": "1"}
        await broker.publish_stored(Outgoing(SUBJECTS.graph("later"), orjson.dumps(head)))
        registry = Registry(broker, "app")
        await registry.load()
        await registry.load()
        assert registry.plan("g") is not None
        assert registry.plan("later") is None
        assert list(registry.kinds) == ["app/Api"]
        assert (
            len([each for each in caplog.records if "says nothing that is known" in each.getMessage()]) == 9
        )
