"""What looking at streams asks of the server, and that nothing is missed for what is not asked.

The routes here are only compared with their streams; none runs. Requests are counted as the server got them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from processor.config import Route, load
from processor.delivery.streams import Streams
from processor.delivery.watch import StreamWatch
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker
from processor.model import Delivery
from tests.conftest import waited
from tests.running import connected, write_sources

ROUTES = 50
ECHO = """
class Runnable:
    def process(self, queries):
        return queries
"""


@dataclass
class Watched:
    """Routes that read `in<number>.*` from IN and write `out.<number>` to OUT, and a watch over both."""

    broker: Broker
    streams: Streams
    routes: dict[str, Route]
    asked: Counter[str]  # requests by their subject less `$JS.API.`
    running: dict[str, Route] = field(default_factory=dict)  # those that the watch takes for running
    changed: dict[str, str] = field(default_factory=dict)  # what the watch said of them

    async def begin(self, *names: str) -> None:
        """Have these routes find their streams, and run."""
        for name in names:
            await self.find(name)
        self.running |= {name: self.routes[name] for name in names}

    async def find(self, name: str) -> None:
        await self.streams.input(self.routes[name])
        await self.streams.outlets(self.routes[name])

    async def change(self, stream: str, **settings: Any) -> None:
        """Change a stream as somebody else would."""
        info = await self.broker.stream(stream)
        assert info is not None
        await self.broker.update_stream({**info["config"], **settings})

    async def is_looking(self) -> bool:
        """Whether the watch has looked at a stream that was made, after one more was."""
        name = f"FIRST{len(self.asked)}"
        await self.broker.create_stream({"name": name, "subjects": [name]})
        return any(name.startswith("STREAM.INFO.FIRST") for name in self.asked)

    async def until_looked(self, name: str) -> None:
        """Return when the watch has looked at everything that happened before this call."""
        # The second round begins when the first, which may have begun before, has ended.
        for each in (name, f"{name}-again"):
            await self.broker.create_stream({"name": each, "subjects": [each]})
            await waited(partial(self.asked.get, f"STREAM.INFO.{each}"), f"the watch looks at {each}")


Watching = Callable[[], AbstractAsyncContextManager[Watched]]


@pytest.fixture
def watching(nats_server: EmbeddedServer, tmp_path: Path) -> Watching:
    """`async with watching() as watched`: a watch over the streams of routes that have not begun yet."""
    return partial(watch_streams, nats_server.url, tmp_path)


@asynccontextmanager
async def watch_streams(url: str, folder: Path) -> AsyncIterator[Watched]:
    write_sources(folder, {"echo": ECHO})
    lines = (
        f"  r{n}: {{input: {{subject: in{n}.*}}, runnable: echo.py, output: out.{n}}}\n"
        for n in range(ROUTES)
    )
    path = folder / "config.yaml"
    path.write_text(f"app: app\nroutes:\n{''.join(lines)}")
    config = load(path, {"NATS_URL": url})
    async with connected(url) as broker, connected(url) as listener:
        await broker.create_stream({"name": "IN", "subjects": [f"in{n}.*" for n in range(ROUTES)]})
        await broker.create_stream({"name": "OUT", "subjects": ["out.*"], "allow_direct": True})
        asked = Counter[str]()

        async def count(delivery: Delivery) -> None:
            asked[delivery.subject.removeprefix("$JS.API.")] += 1

        await listener.listen("$JS.API.STREAM.>", count)
        await listener.flush()
        streams = Streams(broker, config)
        await streams.prepare()
        found = Watched(broker, streams, dict(config.routes), asked)
        watch = StreamWatch(broker, streams, lambda: found.running)
        task = asyncio.create_task(watch.run(found.changed.__setitem__))
        try:
            await waited(found.is_looking, "the watch hears of streams")
            yield found
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def infos(asked: Counter[str]) -> dict[str, int]:
    """How often IN and OUT were asked for."""
    return {name: asked[f"STREAM.INFO.{name}"] for name in ("IN", "OUT")}


async def test_a_round_over_all_routes_asks_once_for_each_stream(watching: Watching) -> None:
    """A change that concerns fifty routes of two streams takes two requests, and all of them hear of it."""
    async with watching() as watched:
        await watched.begin(*watched.routes)
        await watched.until_looked("MARK")
        watched.asked.clear()
        info = await watched.broker.stream("OUT")
        assert info is not None
        await watched.broker.update_stream({**info["config"], "max_msg_size": 1000})
        await waited(lambda: len(watched.changed) == ROUTES, "all routes have heard of it")
        await watched.until_looked("END")
        found = infos(watched.asked)
        assert found["OUT"] <= 1 + 2, found  # ours, one of the round, and one of a route whose turn it was
        assert found["IN"] <= 2, found
        assert watched.asked["STREAM.NAMES"] <= 4, watched.asked
        assert all("out." in why and "other settings" in why for why in watched.changed.values())


async def test_what_we_have_changed_ourselves_concerns_no_route(watching: Watching) -> None:
    """Routes that begin and have a stream copy for them too are nothing to those that run already."""
    async with watching() as watched:
        await watched.begin("r0")
        await watched.until_looked("MARK")
        watched.asked.clear()
        await watched.begin(*[f"r{n}" for n in range(1, 20)])
        await watched.until_looked("END")
        assert watched.asked["STREAM.UPDATE.OUT"] == 19
        # What the routes ask themselves; the watch reads OUT once for each time that it heard of it, at most.
        assert watched.asked["STREAM.INFO.IN"] <= 19 + 1, watched.asked
        assert watched.changed == {}


async def test_a_change_just_before_one_of_ours_is_noticed(watching: Watching) -> None:
    """What we write back has the setting of somebody else in it, and is not all ours."""
    async with watching() as watched:
        await watched.begin("r0", "r1")
        await watched.until_looked("MARK")
        await watched.change("OUT", max_msg_size=1000)
        await watched.begin("r2")
        await waited(lambda: watched.changed.keys() >= {"r0", "r1"}, "those that ran have heard of it")
        assert "other settings" in watched.changed["r0"]


async def test_a_change_just_after_one_of_ours_is_noticed(watching: Watching) -> None:
    """Two changes are one look, at what came last."""
    async with watching() as watched:
        await watched.begin("r0", "r1")
        await watched.until_looked("MARK")
        await watched.begin("r2")
        await watched.change("OUT", max_msg_size=1000)
        await waited(lambda: watched.changed.keys() == {"r0", "r1", "r2"}, "all have heard of it")


async def test_a_source_of_ours_that_takes_the_place_of_others_concerns_their_routes(
    watching: Watching, tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """What a copy has in headers depends on its source: with a limit of size, routes look again."""
    async with watching() as watched:
        await watched.change("OUT", max_msg_size=1000)
        await watched.begin("r0", "r1")
        await watched.until_looked("MARK")
        (tmp_path / "wide.yaml").write_text(
            'app: app\nroutes:\n  w: {input: {subject: in1.*}, runnable: echo.py, output: "out.{key}",'
            " key: subject.2}\n"
        )
        wide = load(tmp_path / "wide.yaml", {"NATS_URL": nats_server.url}).routes["w"]
        await watched.streams.outlets(wide)
        await waited(lambda: watched.changed.keys() == {"r0", "r1"}, "those without their sources hear of it")


async def test_a_stream_that_changes_while_a_route_begins_is_noticed_by_it(watching: Watching) -> None:
    """The change was looked at before the route ran: it is compared with its streams once it does."""
    async with watching() as watched:
        await watched.begin("r0")
        await watched.find("r1")
        await watched.change("OUT", max_msg_size=1000)
        await waited(lambda: watched.changed.keys() == {"r0"}, "the route that runs has heard of it")
        await watched.until_looked("MARK")
        watched.running["r1"] = watched.routes["r1"]
        await waited(lambda: "r1" in watched.changed, "the route that has begun has heard of it")


async def test_a_stream_that_is_as_it_was_before_a_route_stood_still_is_noticed(watching: Watching) -> None:
    """Its change was looked at while no route that uses it ran; the change back is one for those that do."""
    async with watching() as watched:
        await watched.begin("r0")
        await watched.until_looked("MARK")
        watched.running.clear()
        await watched.change("OUT", max_msg_size=1000)
        await watched.until_looked("CHANGED")
        await watched.begin("r0")
        await watched.until_looked("BEGUN")
        assert watched.changed == {}
        await watched.change("OUT", max_msg_size=-1)
        await waited(lambda: "r0" in watched.changed, "the route has heard of it")


async def test_a_stream_that_changes_back_before_it_is_looked_at_is_noticed(watching: Watching) -> None:
    """A route began between the two changes, with what nobody else has seen."""
    async with watching() as watched:
        await watched.begin("r0")
        await watched.until_looked("MARK")
        watched.running.clear()
        await watched.change("OUT", max_msg_size=1000)
        await watched.begin("r0")
        await watched.change("OUT", max_msg_size=-1)
        await waited(lambda: "r0" in watched.changed, "the route has heard of it")


async def test_the_first_change_of_all_that_is_taken_back_is_noticed(
    watching: Watching, tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """As above, where nothing else has happened since the watch began."""
    running: dict[str, Route] = {}
    changed: dict[str, str] = {}
    async with watching() as watched, connected(nats_server.url) as broker:
        route = watched.routes["r0"]
        streams = Streams(broker, load(tmp_path / "config.yaml", {"NATS_URL": nats_server.url}))
        await streams.outlets(route)
        watch = asyncio.create_task(StreamWatch(broker, streams, lambda: running).run(changed.__setitem__))
        await waited(lambda: broker._subscriptions, "the watch listens")
        await watched.change("OUT", max_msg_size=1000)
        await streams.outlets(route)
        running["r0"] = route
        await watched.change("OUT", max_msg_size=-1)
        await waited(lambda: "r0" in changed, "the route has heard of it", 5)
        watch.cancel()


async def test_many_streams_that_change_at_once_are_all_noticed(watching: Watching) -> None:
    """One that comes for a part of a route's input is named, however much else happened with it."""
    async with watching() as watched:
        await watched.begin("r7")
        for n in range(150):
            await watched.broker.create_stream({"name": f"OTHER{n}", "subjects": [f"other{n}"]})
        await watched.change("IN", subjects=[f"in{n}.*" for n in range(ROUTES) if n != 7])
        await watched.broker.create_stream({"name": "EU", "subjects": ["in7.eu"]})
        await waited(lambda: "r7" in watched.changed, "the route has heard of it")


async def test_a_stream_that_is_deleted_and_made_again_is_another(watching: Watching) -> None:
    """With the settings that it had before: its sequences begin anew, and so do its readers."""
    async with watching() as watched:
        await watched.begin("r0", "r1")
        await watched.until_looked("MARK")
        info = await watched.broker.stream("IN")
        assert info is not None
        await watched.broker.api("STREAM.DELETE.IN")
        await watched.broker.create_stream(info["config"])
        await waited(lambda: watched.changed.keys() == {"r0", "r1"}, "all have heard of it")
        assert "created was" in watched.changed["r0"]


async def test_routes_that_begin_together_change_their_stream_together(watching: Watching) -> None:
    """Fifty routes of one stream need a few changes of it, and all of them are copied."""
    async with watching() as watched:
        await asyncio.gather(*(watched.find(name) for name in watched.routes))
        info = await watched.broker.stream("OUT")
        assert info is not None
        sources = [s["subject_transforms"][0]["src"] for s in info["config"]["sources"]]
        assert sorted(sources) == sorted(f"p.app.out.out.{n}" for n in range(ROUTES))
        assert watched.asked["STREAM.UPDATE.OUT"] <= ROUTES // 2, watched.asked
        ways = [watched.streams.used_by(name).outlets for name in watched.routes]
        assert not any(way.foreign for outlets in ways for way in outlets.values())


async def test_what_a_stream_refuses_to_copy_is_said_for_each_route(
    watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for many at once, or for each: every route publishes to it, and one line says so."""
    async with watching() as watched:
        await watched.broker.api("STREAM.DELETE.OUT")
        await watched.broker.create_stream(
            {"name": "OUT", "subjects": ["out.*"], "allow_msg_schedules": True}
        )
        names = [f"r{n}" for n in range(12)]
        await asyncio.gather(*(watched.find(name) for name in names))
        ways = [watched.streams.used_by(name).outlets for name in names]
        assert all(way.foreign for outlets in ways for way in outlets.values())
        said = [r.message for r in caplog.records if "stream OUT cannot copy from P_app" in r.message]
        assert len(said) == len(names)
        assert watched.asked["STREAM.UPDATE.OUT"] <= len(names) + 1, watched.asked
