"""What `dev` adds to a service: the feed, and a view of everything that the routes publish.

The view listens where committed outputs and events appear live, and on the subjects that messages reach
without a stream, from before the service starts. It shows them in the order of arrival and never holds the
service back. What comes faster than a person reads is counted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from processor.cli.feed import check_feed, feed
from processor.cli.terminal import Runs, Screen, Shown, say, warn
from processor.config import Config, misspelled_inputs
from processor.delivery.codec import codec_for
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, Unknown, connect_options
from processor.model import Delivery
from processor.route import Route, StreamLimits
from processor.subject import matches, republished

_LINES = 20  # of one topic in a second
_SECOND_S = 1.0


def for_trying(config: Config) -> Config:
    """The configuration, with every input's stream created where there is none.

    Without an address it is tried on an embedded server: whatever listens on the default port of this machine
    may be in use, and is not for trying. There, secrets of graphs are sealed with a key that is made once,
    where the configuration has none.
    """
    routes = {
        name: replace(route, input=replace(route.input, create=route.input.create or StreamLimits()))
        for name, route in config.routes.items()
    }
    nats = config.nats
    if "url" not in nats.model_fields_set:
        nats = nats.model_copy(update={"url": ("embedded",)})
    tried = config.model_copy(update={"nats": nats}).with_routes(routes)
    engine = tried.engine
    if engine is None or engine.secrets_key or not nats.embedded:
        return tried
    return tried.with_engine(replace(engine, secrets_key=_own_key(Path(nats.store_dir))))


def _own_key(store: Path) -> str:
    """A key for secrets that clients upload to the embedded server, kept beside what they are stored in."""
    path = store.with_name(f"{store.name}.secrets-key")
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    path.parent.mkdir(parents=True, exist_ok=True)
    key = base64.b64encode(os.urandom(32)).decode()
    with (
        contextlib.suppress(FileExistsError),
        os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file,
    ):
        file.write(key)
    return path.read_text()


def live_subjects(route: Route) -> Iterator[str]:
    """Where those who are subscribed see what a route publishes without a stream in between."""
    template = route.output_template
    outputs = {template.pattern} if template else set()
    # What is emitted is for a stream, and may go to an input, where others publish too.
    yield from (topic for topic in codec_for(route).topics if topic in outputs or topic not in route.emits)
    if route.ism and route.mode == "stream":
        yield f"{route.ism.routing.state.subject.partition('{state_id}')[0]}>"


class Pace:
    """Lets so many messages of each topic through in a second, and counts the others.

    A topic's second begins with a message; `ended` gives the last one of those that were counted, so that
    what a person sees in the end is how things stand.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics
        self._seconds: dict[str, _Second] = {}  # those that have not ended, in the order of their beginning

    def admits(self, shown: Shown, now_s: float) -> bool:
        """Whether to show a message; it is counted otherwise. `ended` comes first."""
        second = self._seconds.setdefault(self._topic_of(shown.subject), _Second(now_s + _SECOND_S))
        if second.shown < _LINES:
            second.shown += 1
            return True
        second.hidden += 1
        second.last = shown
        return False

    def _topic_of(self, subject: str) -> str:
        return next((topic for topic in self._topics if matches(topic, subject)), subject)

    def ended(self, now_s: float) -> Iterator[Shown]:
        """Of each topic whose second is over: the last message that was not shown, and how many were not."""
        for topic, second in list(self._seconds.items()):
            if second.until_s > now_s:
                return
            del self._seconds[topic]
            if second.last is not None:
                kind = f"... {second.hidden} more, the last: {second.last.kind}".rstrip()
                yield replace(second.last, kind=kind)

    def next_s(self) -> float | None:
        """When a second ends next."""
        return next((second.until_s for second in self._seconds.values()), None)


@dataclass(slots=True)
class _Second:
    """What one topic had in one second."""

    until_s: float
    shown: int = 0
    hidden: int = 0
    last: Shown | None = None


class View:
    """Shows what the routes publish, and feeds them."""

    def __init__(self, *, is_fed: bool) -> None:
        self._is_fed = is_fed
        self._screen = Screen("human")
        self._arrived: asyncio.Queue[Shown] = asyncio.Queue()
        self._config: Config | None = None
        self._broker: Broker | None = None
        self._events: set[str] = set()
        self._runs = Runs()
        self._pace = Pace(())

    async def open(self, config: Config, server: EmbeddedServer | None, metrics_url: str) -> None:
        check_feed(config)
        self._config = config
        self._broker = broker = await Broker.connect(
            connect_options(config.nats), name=f"processor dev {config.app}"
        )
        data = f"  (data in {server.store_dir})" if server else ""
        say(f"NATS     {broker.address}{data}")
        say(f"metrics  {metrics_url}/metrics" if metrics_url else "metrics  off")
        warn(misspelled_inputs(config))
        say("Ctrl-C stops; the next start goes on from there.")
        say(f"Busy subjects show {_LINES} lines a second, and the rest is counted; processor tail shows all.")
        self._events = {route.events_subject for route in config.routes.values() if route.events_subject}
        codecs = map(codec_for, config.routes.values())
        self._pace = Pace(tuple(dict.fromkeys(topic for codec in codecs for topic in codec.topics)))
        subjects = [republished(config.app, ">")]
        subjects += [subject for route in config.routes.values() for subject in live_subjects(route)]
        for subject in dict.fromkeys(subjects):
            await broker.listen(subject, self._receive)
        with contextlib.suppress(Unknown):  # the connection was lost just now: it comes back with them
            await broker.flush()

    async def run(self) -> None:
        assert self._config is not None
        assert self._broker is not None
        tasks = [asyncio.create_task(self._show())]
        if self._config.dev is not None and self._is_fed:
            feeding = feed(self._broker, self._config, self._config.dev)
            tasks.append(asyncio.create_task(feeding))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            while not self._arrived.empty():
                self._take(self._arrived.get_nowait())
            self._end_seconds(math.inf)
            self._screen.flush()
        if self._broker is not None:
            await self._broker.close()

    async def _receive(self, delivery: Delivery) -> None:
        assert self._config is not None
        subject = delivery.subject.removeprefix(republished(self._config.app, ""))
        headers = delivery.headers
        if self._runs.is_silent_end(headers):
            return
        kind = "event" if subject in self._events else headers.get("Processor-Stream", "")
        self._arrived.put_nowait(Shown(subject, delivery.payload, headers, delivery.timestamp_s, kind=kind))

    async def _show(self) -> None:
        while True:
            until_s = self._pace.next_s()
            wait_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            try:
                async with asyncio.timeout(wait_s):
                    shown = await self._arrived.get()
                self._take(shown)
            except TimeoutError:
                self._end_seconds(time.monotonic())
            if self._arrived.empty():
                self._screen.flush()

    def _take(self, shown: Shown) -> None:
        now_s = time.monotonic()
        self._end_seconds(now_s)
        if self._pace.admits(shown, now_s):
            self._screen.message(shown)

    def _end_seconds(self, now_s: float) -> None:
        for last in self._pace.ended(now_s):
            self._screen.message(last)
