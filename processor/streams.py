"""The streams that an app works with: its own, those of its inputs and those of its outputs.

`service` asks for them before a route starts; what is missing is made, and what is there is checked or asked
to copy from the app's stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from processor.codec import Codec, codec_for
from processor.config import Config, Route
from processor.context import app_stream
from processor.effects import Outlet
from processor.errors import BrokerError
from processor.jetstream import Again, ApiError, Broker, Unknown
from processor.subject import matches

log = logging.getLogger("processor")

_NS = 1_000_000_000
_RETRY_S = 2.0
# The server answers the requests of a connection one after the other, and some take it milliseconds: more
# at a time would only wait there, until those of the last routes are given up as unanswered.
_AT_ONCE = 16


def app_stream_config(config: Config) -> dict[str, Any]:
    """The stream of an app: it holds all that its commits write.

    It has no limits of its own: what a stream with limits drops first is the oldest message, and that may be
    a context. Outputs carry a time to live instead. What is committed for a public subject is also sent to
    `live.<app>.<subject>` for whoever looks on.
    """
    return {
        "name": app_stream(config.app),
        "subjects": [f"p.{config.app}.>"],
        "storage": config.nats.storage,
        "num_replicas": config.nats.replicas,
        "retention": "limits",
        "discard": "old",
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "allow_msg_schedules": True,
        "allow_direct": True,
        "republish": {"src": f"p.{config.app}.out.>", "dest": f"live.{config.app}.>"},
        "metadata": {"processor.app": config.app},
    }


class Streams:
    """The streams of one app on one server."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._broker = broker
        self._config = config
        # Two routes may share a stream: changing it is reading it and writing it back.
        self._changing = asyncio.Lock()
        self._making: dict[str, asyncio.Lock] = {}  # by the name of a stream that is to be made
        self._asking = asyncio.Semaphore(_AT_ONCE)  # held by a route while it asks for its streams

    async def prepare(self, *, is_known: bool = False) -> None:
        """Return when the app's own stream is there. Raises BrokerError E410 where it has other settings.

        `is_known` says that it was there before. A stream that follows a deleted one does not count from 1
        but from the microseconds since 1970. So its sequences are above all that the old one had: no fence
        that somebody still holds can fit by chance, and the streams that copy from it go on behind what they
        copied last. They would wait for that sequence otherwise.
        """
        wanted = app_stream_config(self._config)
        while True:
            try:
                info = await self._broker.stream(wanted["name"])
                if info is None:
                    copying = await self._copying(wanted["name"])
                    above = {"first_seq": time.time_ns() // 1000} if is_known or copying else {}
                    if await self._create(wanted | above):
                        for config in copying:
                            await self._find_anew(config, wanted["name"])
                else:
                    check_app_stream(info["config"], wanted)
                return
            except (Unknown, Again, ApiError) as err:
                log.warning("E404 stream %s cannot be prepared yet: %s", wanted["name"], err)
                await asyncio.sleep(_RETRY_S)

    async def _create(self, wanted: dict[str, Any]) -> bool:
        """Create the app's stream; False where another processor was faster."""
        try:
            await self._broker.create_stream(wanted)
        except BrokerError:
            # It may have made it in this moment, with another first sequence.
            if await self._broker.stream(wanted["name"]) is None:
                raise
            return False
        log.info("created stream %s", wanted["name"])
        return True

    async def _copying(self, name: str) -> list[dict[str, Any]]:
        """The configurations of the outputs' streams that copy from the app's stream, which is not there."""
        found: dict[str, dict[str, Any]] = {}
        for route in self._config.routes.values():
            for pattern in _topics(route, codec_for(route)):
                info = await self._broker.stream_of(pattern)
                if info and any(source["name"] == name for source in info["config"].get("sources") or []):
                    found[info["config"]["name"]] = info["config"]
        return list(found.values())

    async def _find_anew(self, config: dict[str, Any], name: str) -> None:
        """Have a stream look for its source `name` now: by itself it does so only after 10 s or more.

        It goes on behind what it copied last, and nothing of the new stream was copied yet.
        """
        others = [source for source in config["sources"] if source["name"] != name]
        async with self._changing:
            # What fails here ends when the route starts, which asks for its source.
            with contextlib.suppress(ApiError, Unknown, Again):
                await self._broker.update_stream({**config, "sources": others})
                await self._broker.update_stream(config)

    async def outlets(self, route: Route) -> dict[str, Outlet]:
        """How the outputs and events of a route reach their subjects, by pattern.

        Creates or extends the streams that keep them. Raises BrokerError E408 for one that cannot be.
        """
        async with self._asking:
            return {
                pattern: await self._outlet(route, pattern, is_durable)
                for pattern, is_durable in _topics(route, codec_for(route)).items()
            }

    async def input(self, route: Route) -> dict[str, Any]:
        """The stream that a route reads, as the server describes it; made where the route wants that.

        Raises BrokerError E401 where there is none.
        """
        async with self._asking:
            return await self._input(route)

    async def source(self, route: Route) -> dict[str, Any]:
        """The stream that the processors of a route read, as the server describes it.

        The app's own, where a hop or a schedule puts the route's messages; else as `input`.
        """
        if not route.input.is_own:
            return await self.input(route)
        info = await self._broker.stream(app_stream(route.app))
        if info is None:
            raise Again(f"stream {app_stream(route.app)} is gone")
        return info

    async def _input(self, route: Route) -> dict[str, Any]:
        subjects = route.input_subjects
        name = await self._broker.find_stream(subjects[0])
        if name is None:
            if not route.input.create:
                raise BrokerError(
                    "E401",
                    f"no stream holds {subjects[0]!r}, the input of route {route.name}",
                    remedy=f"Create it, or set routes.{route.name}.input.create: true.",
                )
            name = stream_name(route.app, subjects[0])
            config: dict[str, Any] = {}
            if route.ism is not None:
                # As the routers and processors of that system make it themselves.
                name, config = route.ism.routing.input.name, {"retention": "workqueue"}
            name = await self._made(
                route,
                subjects[0],
                {
                    "name": name,
                    "subjects": list(subjects),
                    "storage": self._config.nats.storage,
                    "num_replicas": self._config.nats.replicas,
                    "allow_direct": True,
                    "metadata": {"processor.app": route.app},
                    **config,
                },
            )
        info = await self._broker.stream(name)
        if info is None:
            raise BrokerError("E401", f"stream {name} is gone", remedy="Create it again.")
        return info

    async def _made(self, route: Route, subject: str, wanted: dict[str, Any]) -> str:
        """The name of the stream of a subject that had none: as wanted, or as somebody made it meanwhile.

        Raises BrokerError E408 where it cannot be.
        """
        making = self._making.setdefault(wanted["name"], asyncio.Lock())
        is_being_made = making.locked()
        async with making:
            if is_being_made and (made := await self._broker.find_stream(subject)):
                return made
            try:
                await self._broker.create_stream(wanted)
            except BrokerError:
                # Another route or processor may have been faster, with other settings or a wider subject.
                name = await self._broker.find_stream(subject)
                if name is None:
                    raise
                return name
            log.info("created stream %s for %s", wanted["name"], subject, extra={"route": route.name})
        return str(wanted["name"])

    async def _outlet(self, route: Route, pattern: str, is_durable: bool) -> Outlet:
        """How to reach a public subject; creates or extends the stream that keeps it."""
        is_chunks = route.mode == "stream" and route.output is not None and pattern == _pattern(route)
        if not is_durable:
            return Outlet(live=True)
        ttl_s = int(route.output.ttl) if route.output else 86_400
        outlet = Outlet(live=True) if is_chunks else Outlet(ttl={"Nats-TTL": f"{ttl_s}s"})
        name = await self._broker.find_stream(pattern)
        if name == app_stream(route.app):
            raise BrokerError(
                "E408",
                f"the subject {pattern} of route {route.name} belongs to the app's own stream {name}",
                remedy="Give the output or the events another subject.",
            )
        source = {"name": app_stream(route.app), "subject_transforms": [_transform(route.app, pattern)]}
        if name is None:
            max_age_s = route.output.max_age if route.output else 7 * 86_400
            created = {
                "name": stream_name(route.app, pattern),
                "subjects": [pattern],
                "storage": self._config.nats.storage,
                "num_replicas": self._config.nats.replicas,
                "max_age": int(max_age_s * _NS),
                "allow_direct": True,
                "metadata": {"processor.app": route.app},
            }
            # Chunks are published as they are made, straight to their subject.
            wanted = created if is_chunks else {**created, "sources": [source]}
            name = await self._made(route, pattern, wanted)
        if is_chunks or await self._copies(name, source):
            return outlet
        log.warning(
            "stream %s cannot copy from %s: outputs of route %s are published to it at least once, and "
            "deduplicated within its duplicate window",
            name, source["name"], route.name,
            extra={"route": route.name},
        )  # fmt: skip
        return Outlet(foreign=True)

    async def _copies(self, name: str, source: dict[str, Any]) -> bool:
        """Whether stream `name` copies from ours, after asking it to where it does not."""
        if _with_source(await self._config_of(name), source) is None:
            return True
        async with self._changing:
            changed = _with_source(await self._config_of(name), source)
            if changed is None:
                return True
            try:
                await self._broker.update_stream(changed)
            except (ApiError, Unknown, BrokerError) as err:
                log.debug("stream %s: %s", name, err)
                return False
        [wanted] = source["subject_transforms"]
        log.info("stream %s now copies %s from %s", name, wanted["dest"], source["name"])
        return True

    async def _config_of(self, name: str) -> dict[str, Any]:
        info = await self._broker.stream(name)
        if info is None:
            raise Again(f"stream {name} is gone")
        return dict(info["config"])


def _with_source(config: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of a stream that copies from `source`, too; None for one that does already."""
    sources = list(config.get("sources") or [])
    [wanted] = source["subject_transforms"]
    ours = next((s for s in sources if s["name"] == source["name"]), None)
    transforms = list(ours.get("subject_transforms") or []) if ours else []
    if any(matches(t["src"], wanted["src"]) for t in transforms):
        return None
    others = [s for s in sources if s is not ours]
    merged = {**(ours or {}), "name": source["name"], "subject_transforms": [*transforms, wanted]}
    return {**config, "sources": [*others, merged]}


def warn_of_gap(source: Mapping[str, Any], start: int, route: str) -> None:
    """Say it where a stream, as the server describes it, begins behind what is to be read (E409)."""
    state = source["state"]
    if 1 < start < state["first_seq"] and state["first_seq"] <= state["last_seq"]:
        log.warning(
            "E409 stream %s begins at %d, after position %d: messages between them were removed before "
            "they were processed, unless they were of other subjects",
            source["config"]["name"], state["first_seq"], start - 1,
            extra={"route": route, "code": "E409"},
        )  # fmt: skip


def stream_name(app: str, pattern: str) -> str:
    """The name of a stream that is created for a subject: `market-stats-any` for `stats.*` of app market."""
    words = {"*": "any", ">": "all"}
    return "-".join([app, *(words.get(token, token) for token in pattern.split("."))])


def _topics(route: Route, codec: Codec) -> dict[str, bool]:
    events = {route.events_subject: True} if route.events_subject else {}
    return {**codec.topics, **events}


def _pattern(route: Route) -> str:
    template = route.output_template
    return template.pattern if template else ""


def _transform(app: str, pattern: str) -> dict[str, str]:
    numbers = iter(range(1, len(pattern)))
    tokens = [f"{{{{wildcard({next(numbers)})}}}}" if t == "*" else t for t in pattern.split(".")]
    return {"src": f"p.{app}.out.{pattern}", "dest": ".".join(tokens)}


def check_app_stream(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise BrokerError E410 where an existing app stream (its configuration) cannot take commits."""
    needed = ("allow_atomic", "allow_rollup_hdrs", "allow_msg_ttl", "allow_msg_schedules", "allow_direct")
    missing = [name for name in needed if not found.get(name)]
    limited = [name for name in ("max_msgs", "max_bytes") if found.get(name, -1) > 0]
    limited += ["max_age"] if found.get("max_age", 0) > 0 else []
    if missing or limited:
        what = [f"without {name}" for name in missing] + [f"with {name}" for name in limited]
        raise BrokerError(
            "E410",
            f"stream {wanted['name']} exists {', '.join(what)}",
            remedy="Change it with `nats stream edit`: a limit would drop contexts, oldest first.",
        )
