"""What `dev` adds to a service: the feed, and a view of everything that the routes publish.

The view listens where committed outputs and events appear live, and on the subjects that messages reach
without a stream, from before the service starts. It shows them in the order of arrival and never holds the
service back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from processor.cli.feed import check_feed, feed
from processor.cli.terminal import Runs, Screen, Shown, say
from processor.codec import codec_for
from processor.config import Config, Route
from processor.embedded import EmbeddedServer
from processor.jetstream import Broker, connect_options
from processor.model import Delivery


def with_streams(config: Config) -> Config:
    """The configuration, with every input's stream created where there is none."""
    routes = {
        name: route.model_copy(update={"input": route.input.model_copy(update={"create": True})})
        for name, route in config.routes.items()
    }
    return config.model_copy(update={"routes": routes})


def live_subjects(route: Route) -> Iterator[str]:
    """Where those who are subscribed see what a route publishes without a stream in between."""
    yield from codec_for(route).topics
    if route.ism and route.mode == "stream":
        yield f"{route.ism.routing.state.subject.partition('{state_id}')[0]}>"


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

    async def open(self, config: Config, server: EmbeddedServer | None, metrics_url: str) -> None:
        check_feed(config)
        self._config = config
        self._broker = broker = await Broker.connect(
            connect_options(config.nats), name=f"processor dev {config.app}"
        )
        data = f"  (data in {server.store_dir})" if server else ""
        say(f"NATS     {broker.address}{data}")
        say(f"metrics  {metrics_url}/metrics" if metrics_url else "metrics  off")
        say("Ctrl-C stops; the next start goes on from there.")
        self._events = {route.events_subject for route in config.routes.values() if route.events_subject}
        subjects = [f"live.{config.app}.>"]
        subjects += [subject for route in config.routes.values() for subject in live_subjects(route)]
        for subject in dict.fromkeys(subjects):
            await broker.listen(subject, self._receive)
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
                self._screen.message(self._arrived.get_nowait())
            self._screen.flush()
        if self._broker is not None:
            await self._broker.close()

    async def _receive(self, delivery: Delivery) -> None:
        assert self._config is not None
        subject = delivery.subject.removeprefix(f"live.{self._config.app}.")
        headers = delivery.headers
        if self._runs.is_silent_end(headers):
            return
        kind = "event" if subject in self._events else headers.get("Processor-Stream", "")
        self._arrived.put_nowait(Shown(subject, delivery.payload, headers, delivery.timestamp_s, kind=kind))

    async def _show(self) -> None:
        while True:
            self._screen.message(await self._arrived.get())
            if self._arrived.empty():
                self._screen.flush()
